"""Prints what pyproject.toml requires, one requirement a line, for `pip install --requirement`.

    python tools/requirements.py --without torch          # an install without the large one
    python tools/requirements.py --extra test --lowest    # the oldest versions that users may have

With `--lowest`, dependencies have the lowest version that pyproject.toml allows. The extras and PINNED keep the
versions of constraints.txt.
"""

import argparse
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINNED = ("huggingface_hub", "torch")
"""Tests of the stand-in for the Hub use the client's newest functions. An older torch is a large download."""

REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?P<extras>\[[\w,.-]+\])?>=(?P<bound>[\w.]+)")


def read_project() -> dict[str, list[str]]:
    """Returns the requirements of each extra, and under "" those of the package itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def read_constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.lower().split("==") for line in lines if not line.startswith("#"))


def parse(requirement: str) -> re.Match[str]:
    match = REQUIREMENT.fullmatch(requirement)
    if match is None:
        raise SystemExit(f"pyproject.toml: {requirement!r} is not of the form name>=version")
    return match


def select(extras: list[str], without: list[str], lowest: bool) -> list[str]:
    project, pins = read_project(), read_constraints()
    lines = []
    for extra in ("", *extras):
        for requirement in project[extra]:
            parts = parse(requirement)
            name = parts["name"]
            if name in without:
                continue
            pinned = extra or name in PINNED
            version = pins[name] if pinned else parts["bound"]
            lines.append(f"{name}{parts['extras'] or ''}=={version}" if lowest else requirement)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--extra", action="append", default=[], metavar="NAME", help="add the requirements of an extra")
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="leave out these requirements")
    parser.add_argument("--lowest", action="store_true", help="print the lowest versions in place of ranges")
    options = parser.parse_args()
    print("\n".join(select(options.extra, options.without, options.lowest)))


if __name__ == "__main__":
    main()
