"""Installs a wheel into an empty environment and uses it there, as a user would.

    python tools/smoke_wheel.py dist/dsv4_shard-0.1.0-py3-none-any.whl [--without torch]

Tests run from the source tree, and do not notice a file that the wheel lacks. `--without` leaves out dependencies; the
commands that are tried here need no torch.
"""

import argparse
import os
import re
import subprocess
import tempfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "dsv4_shard"

LOADS_PLUGIN = """
import sys
from importlib.metadata import entry_points
import dsv4_shard
assert dsv4_shard.__file__.startswith(sys.prefix), dsv4_shard.__file__
[plugin] = entry_points(group="sglang.srt.plugins", name="dsv4_shard")
assert callable(plugin.load()), plugin
"""


def missing_files(wheel: Path) -> set[str]:
    """Returns the files of the source package that the wheel does not hold."""
    paths = (ROOT / PACKAGE).rglob("*")
    sources = {path.relative_to(ROOT).as_posix() for path in paths if path.is_file() and path.suffix != ".pyc"}
    with zipfile.ZipFile(wheel) as archive:
        return sources - set(archive.namelist())


def read_metadata(wheel: Path) -> tuple[str, list[str]]:
    """Returns the version and the requirements of no extra."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
    requirements = metadata.get_all("Requires-Dist") or []
    return metadata["Version"], [requirement for requirement in requirements if "extra ==" not in requirement]


class Environment:
    """An environment that nothing of the source tree leaks into: commands run in an empty folder."""

    def __init__(self, folder: Path):
        venv.create(folder / "venv", with_pip=True)
        self.bin = folder / "venv" / "bin"
        self.cwd = folder / "empty"
        self.cwd.mkdir()
        self.variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run(self, *command: str | Path) -> str:
        """Returns stdout. Raises SystemExit with all output if the command fails."""
        words = [str(self.bin / command[0]), *map(str, command[1:])]
        done = subprocess.run(words, cwd=self.cwd, env=self.variables, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def install(self, wheel: Path, requirements: list[str]) -> None:
        pip = ("pip", "install", "--quiet", "--disable-pip-version-check")
        self.run(*pip, "--constraint", ROOT / "constraints.txt", *requirements)
        self.run(*pip, "--no-deps", wheel)


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(f"failed: {what}")
    print(f"ok: {what}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="do not install these dependencies")
    options = parser.parse_args()
    wheel = options.wheel.resolve()
    missing = missing_files(wheel)
    expect(not missing, f"the wheel holds every file of {PACKAGE}/" + "".join(f"\n  not {name}" for name in missing))
    version, requirements = read_metadata(wheel)
    wanted = [line for line in requirements if re.split(r"[^\w.-]", line)[0] not in options.without]
    with tempfile.TemporaryDirectory() as folder:
        environment = Environment(Path(folder))
        environment.install(wheel, wanted)
        expect("Usage:" in environment.run("dsv4-shard", "--help"), "dsv4-shard --help")
        expect(environment.run("dsv4-shard", "--version").split()[-1] == version, f"dsv4-shard --version: {version}")
        environment.run("python", "-c", LOADS_PLUGIN)
        expect(True, "the entry point for SGLang loads from the installed package")
        environment.run("dsv4-shard", "demo", "demo")
        page = (environment.cwd / "demo" / "report.html").read_text()
        expect(all(f"</{tag}>" in page for tag in ("html", "script", "style")), "dsv4-shard demo, with its report")


if __name__ == "__main__":
    main()
