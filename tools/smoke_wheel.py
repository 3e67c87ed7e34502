"""Installs a wheel with pip, uvx and pipx into empty environments and uses it there, as a user would.

    python tools/smoke_wheel.py dist/dsv4_shard-0.1.0-py3-none-any.whl

Tests run from the source tree, and do not notice a file that the wheel lacks. uv and pipx are those on the PATH, or
come from pip; where there are none, their part is skipped. `hf dsv4-shard` runs as an extension of `hf`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "dsv4_shard"
CONSTRAINTS = ROOT / "constraints.txt"

LARGE = "torch"
"""Left out where that is possible: a download of gigabytes, which the commands that are tried here do not need."""

LOADS_PLUGIN = """
import sys
from importlib.metadata import entry_points
import dsv4_shard
assert dsv4_shard.__file__.startswith(sys.prefix), dsv4_shard.__file__
[plugin] = entry_points(group="sglang.srt.plugins", name="dsv4_shard")
assert callable(plugin.load()), plugin
"""


# `hf extensions install owner/hf-dsv4-shard`, with the wheel in place of GitHub's archive. hf makes an environment,
# installs into it with pip, and looks for the program that it will run.
INSTALLS_EXTENSION = """
import subprocess, sys
from pathlib import Path
from huggingface_hub.cli import extensions
home, wheel, requirements = sys.argv[1:]

def run(command, run=subprocess.run, **options):
    archive = next((word for word in command if word.startswith("https://github.com/")), None)
    if archive is None:
        return run(command, **options)
    *pip, _ = command[: command.index(archive) + 1]
    run([*pip, "--requirement", requirements], **options)
    return run([*pip, "--no-deps", wheel], **options)

def offline(method, url, **options):
    raise OSError(f"{url}: not asked")

subprocess.run, extensions._github_request = run, offline
extensions.EXTENSIONS_ROOT = Path(home, ".local/share/hf/extensions")
owner, repo, name = extensions._normalize_repo_id("owner/hf-dsv4-shard")
extensions._install_extension(owner=owner, repo_name=repo, short_name=name)
"""


def missing_files(wheel: Path) -> set[str]:
    """Returns the files of the source package that the wheel does not hold."""
    paths = (ROOT / PACKAGE).rglob("*")
    sources = {path.relative_to(ROOT).as_posix() for path in paths if path.is_file() and path.suffix != ".pyc"}
    with zipfile.ZipFile(wheel) as archive:
        return sources - set(archive.namelist())


def read_version(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())["Version"]


def clean_variables(**more: str | Path) -> dict[str, str]:
    """Returns the environment variables without those that change what Python imports, and with `more`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return kept | {key: str(value) for key, value in more.items()}


def run(command: Sequence[str | Path], folder: Path, variables: dict[str, str]) -> str:
    """Runs a command in `folder` and returns stdout. Raises SystemExit with all output if the command fails."""
    words = list(map(str, command))
    done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class Environment:
    """An environment that nothing of the source tree leaks into: commands run in an empty folder."""

    def __init__(self, folder: Path):
        venv.create(folder / "venv", with_pip=True)
        self.bin = folder / "venv" / "bin"
        self.cwd = folder / "empty"
        self.cwd.mkdir()
        self.variables = clean_variables(HF_HUB_DISABLE_UPDATE_CHECK="1")

    def run(self, *command: str | Path) -> str:
        return run([self.bin / command[0], *command[1:]], self.cwd, self.variables)

    def install(self, *wanted: str | Path) -> None:
        self.run("pip", "install", "--quiet", "--disable-pip-version-check", *wanted)


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(f"failed: {what}")
    print(f"ok: {what}", flush=True)


def requirements_file(folder: Path) -> Path:
    """Writes the requirements of the package without the large one, and returns the file."""
    file = folder / "requirements.txt"
    command: list[str | Path] = [sys.executable, ROOT / "tools/requirements.py", "--without", LARGE]
    file.write_text(run(command, folder, clean_variables()))
    return file


def try_pip(wheel: Path, folder: Path) -> None:
    """Installs as `pip install` does, and runs commands, the plugin's entry point and the extension of `hf`."""
    version = read_version(wheel)
    environment = Environment(folder)
    environment.install("--constraint", CONSTRAINTS, "--requirement", requirements_file(folder))
    environment.install("--no-deps", wheel)
    expect("Usage:" in environment.run("dsv4-shard", "--help"), "pip install: dsv4-shard --help")
    expect(environment.run("dsv4-shard", "--version").split()[-1] == version, f"dsv4-shard --version: {version}")
    environment.run("python", "-c", LOADS_PLUGIN)
    expect(True, "the entry point for SGLang loads from the installed package")
    environment.run("dsv4-shard", "demo", "demo")
    page = (environment.cwd / "demo" / "report.html").read_text()
    expect(all(f"</{tag}>" in page for tag in ("html", "script", "style")), "dsv4-shard demo, with its report")
    environment.variables["PIP_CONSTRAINT"] = str(CONSTRAINTS)
    environment.run("python", "-c", INSTALLS_EXTENSION, folder / "home", wheel, folder / "requirements.txt")
    environment.variables["HOME"] = str(folder / "home")  # hf looks for extensions there; pip had the user's settings
    expect("hf dsv4-shard" in environment.run("hf", "extensions", "list"), "hf extensions install, and list")
    expect(environment.run("hf", "dsv4-shard", "--version").split()[-1] == version, "hf dsv4-shard --version")
    shown = environment.run("hf", "dsv4-shard", "inspect", "demo/checkpoint")
    expect("664 tensors" in shown, "hf dsv4-shard inspect, with its arguments and output")


def find_tool(name: str, folder: Path) -> Path | None:
    """Returns the program `name`: that on the PATH, else one that pip installs below `folder`, else None."""
    if found := shutil.which(name):
        return Path(found)
    venv.create(folder, with_pip=True)
    install = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", name]
    if subprocess.run(install, capture_output=True).returncode == 0:
        return folder / "bin" / name
    print(f"skipped: {name} is not on the PATH, and pip does not get it here", flush=True)
    return None


def try_uvx(wheel: Path, folder: Path) -> None:
    """Runs the wheel with `uv tool run`, which is uvx, in a cache of its own and with the index that pip uses."""
    uv = find_tool("uv", folder / "uv")
    if uv is None:
        return
    index = {"UV_DEFAULT_INDEX": os.environ["PIP_INDEX_URL"]} if "PIP_INDEX_URL" in os.environ else {}
    places = {"UV_CACHE_DIR": folder / "uv-cache", "UV_TOOL_DIR": folder / "uv-tools"}
    without = folder / "override.txt"
    without.write_text(f"{LARGE}; python_version < '3'\n")
    variables = clean_variables(
        **places, **index, UV_CONSTRAINT=CONSTRAINTS, UV_OVERRIDE=without, UV_PYTHON_DOWNLOADS="never"
    )
    version = read_version(wheel)
    command = (uv, "tool", "run", "--from", wheel, "dsv4-shard", "--version")
    shown = run(command, folder, variables).strip()
    expect(shown == f"dsv4-shard {version}", f"uvx --from {wheel.name} dsv4-shard")


def try_pipx(wheel: Path, folder: Path) -> None:
    """Installs the wheel with pipx and all that it requires, and runs both of its programs."""
    pipx = find_tool("pipx", folder / "pipx")
    if pipx is None:
        return
    places = {"PIPX_HOME": folder / "pipx-home", "PIPX_BIN_DIR": folder / "bin", "PIPX_MAN_DIR": folder / "man"}
    variables = clean_variables(**places, PIP_CONSTRAINT=CONSTRAINTS)
    run([pipx, "install", wheel], folder, variables)
    version = read_version(wheel)
    for program in ("dsv4-shard", "hf-dsv4-shard"):
        shown = run([folder / "bin" / program, "--version"], folder, variables).strip()
        expect(shown == f"dsv4-shard {version}", f"pipx install: {program}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel.resolve()
    missing = missing_files(wheel)
    expect(not missing, f"the wheel holds every file of {PACKAGE}/" + "".join(f"\n  not {name}" for name in missing))
    for attempt in (try_pip, try_uvx, try_pipx):
        with tempfile.TemporaryDirectory() as folder:
            attempt(wheel, Path(folder))


if __name__ == "__main__":
    main()
