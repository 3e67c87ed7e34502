"""Builds the container image and uses it, or checks the Dockerfile where nothing here can build it.

    python tools/build_image.py

Without a builder, hadolint reads the Dockerfile, and the commands of its first stage run in a folder of this machine
that holds only what the stage copies, and of that only what .dockerignore lets through.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
BUILDERS = ("docker", "podman", "buildah")
IMAGE = "dsv4-shard:test"
INSTALLED = "/opt/dsv4-shard"
"""Where the image has the environment that the first stage makes."""

Instruction = tuple[str, str]
"""Its name in capitals, and all that follows it."""


def find_builder(base: str) -> str | None:
    """Returns the first builder that works and has the base image, or gets it.

    A client without its server does not work, and without a registry no base image comes.
    """
    for builder in BUILDERS:
        if shutil.which(builder) is None or _output(builder, "info") is None:
            continue
        if _output(builder, "images", "--quiet", base) or _output(builder, "pull", base) is not None:
            return builder
    return None


def _output(*command: str) -> str | None:
    """Returns what a command prints, None if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


def base_of(instructions: list[Instruction]) -> str:
    """Returns the base image, which is the default of the argument BASE."""
    [base] = [rest.removeprefix("BASE=") for name, rest in instructions if name == "ARG" and rest.startswith("BASE=")]
    return base


def read_instructions(dockerfile: str) -> list[Instruction]:
    lines = [line for line in dockerfile.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name.upper(), rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def stages_of(instructions: list[Instruction]) -> list[list[Instruction]]:
    """Returns the instructions of each stage, FROM first; those before the first FROM are left out."""
    stages: list[list[Instruction]] = []
    for instruction in instructions:
        if instruction[0] == "FROM":
            stages.append([])
        if stages:
            stages[-1].append(instruction)
    return stages


def is_sent(path: str, rules: list[str]) -> bool:
    """Tells whether a builder gets the file `path` of the context: the last rule that fits decides."""
    sent = True
    for rule in rules:
        pattern = rule.removeprefix("!").removeprefix("**/")
        places = [path, *map(str, PurePosixPath(path).parents)]
        names = PurePosixPath(path).parts if "**/" in rule else ()
        if any(fnmatch(place, pattern) for place in (*places, *names)):
            sent = rule.startswith("!")
    return sent


def copy_context(sources: list[str], folder: Path, rules: list[str]) -> list[str]:
    """Copies what a COPY names, as far as it is sent, to its place below `folder`. Returns the names of the files."""
    copied = []
    for source in sources:
        place = ROOT / source
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and is_sent(name, rules):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / name)
                copied.append(name)
    return copied


def run_first_stage(folder: Path) -> Path:
    """Runs the COPY and RUN of the first stage below `folder`, and returns the environment that they make."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    environment = folder / "environment"
    source = folder / "source"
    source.mkdir()
    for name, rest in stages_of(read_instructions((ROOT / "Dockerfile").read_text()))[0]:
        if name == "COPY":
            *sources, _ = rest.split()
            if not copy_context(sources, source, rules):
                raise SystemExit(f"COPY {rest}: nothing of it is there, or .dockerignore keeps it back")
        elif name == "RUN":
            subprocess.run(rest.replace(INSTALLED, str(environment)), shell=True, check=True, cwd=source)
    return environment


def use(*command: str | Path) -> None:
    """Runs a command that must end well, and shows it."""
    words = [str(word) for word in command]
    print("$", " ".join(words), flush=True)
    subprocess.run(words, check=True)


def main() -> None:
    use(Path(sys.executable).with_name("hadolint"), ROOT / "Dockerfile")
    builder = find_builder(base_of(read_instructions((ROOT / "Dockerfile").read_text())))
    with tempfile.TemporaryDirectory() as folder:
        if builder is None:
            print(
                f"none of {', '.join(BUILDERS)} gets the base image here: the first stage runs on this machine",
                flush=True,
            )
            program = run_first_stage(Path(folder)) / "bin" / "dsv4-shard"
            use(program, "--version")
            use(program, "demo", Path(folder) / "demo")
            return
        use(builder, "build", "--tag", IMAGE, ROOT)
        if builder != "buildah":  # it builds, and leaves running to podman
            use(builder, "run", "--rm", IMAGE, "--version")
            use(builder, "run", "--rm", "--user", "4711:0", "--workdir", "/tmp", IMAGE, "demo")


if __name__ == "__main__":
    main()
