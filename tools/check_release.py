"""Says whether the checkout may be released: nothing uncommitted, and CHANGELOG.md has the version.

    python tools/check_release.py 0.1.0

Entries of CHANGELOG.md are lines that begin with a dash.
"""

import argparse
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def read_sections(changelog: str) -> list[tuple[str, bool]]:
    """Returns heading and whether there is an entry, section by section."""
    _, *sections = re.split(r"^## ", changelog, flags=re.MULTILINE)
    return [(section.partition("\n")[0].strip(), "\n- " in section) for section in sections]


def find_faults(version: str, changelog: str, uncommitted: str) -> list[str]:
    """Returns what stands against a release. `uncommitted` is what `git status --porcelain` prints."""
    faults = [f"not committed: {line}" for line in uncommitted.splitlines()]
    sections = read_sections(changelog)
    if not sections or sections[0][0] != "[Unreleased]":
        return [*faults, "CHANGELOG.md: the first section must be [Unreleased]"]
    if sections[0][1]:
        faults.append(f"CHANGELOG.md: move the entries of [Unreleased] to [{version}]")
    dated = rf"\[{re.escape(version)}\] - \d{{4}}-\d{{2}}-\d{{2}}"
    if len(sections) < 2 or not re.fullmatch(dated, sections[1][0]):
        faults.append(f"CHANGELOG.md: the section after [Unreleased] must be: ## [{version}] - YYYY-MM-DD")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("version")
    version = parser.parse_args().version
    status = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True)
    if faults := find_faults(version, (ROOT / "CHANGELOG.md").read_text(), status.stdout):
        raise SystemExit("\n".join(faults))
    print(f"ready to release {version}")


if __name__ == "__main__":
    main()
