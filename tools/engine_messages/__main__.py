"""`python tools/engine_messages`: see the package."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import search_path  # noqa: F401 - first, for what is imported from the repository

from engine_messages import __doc__ as _ABOUT
from engine_messages.collect import collect, off_the_way
from engine_messages.coverage import coverage, show
from engine_messages.table import TABLE, dump, table_of


def main() -> None:
    """Collect the messages of the wheels, write the table, and print the coverage."""
    parser = argparse.ArgumentParser(
        prog="python tools/engine_messages", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheels", nargs="*", type=Path)
    parser.add_argument("--collect", action="store_true", help="write the table, and leave the coverage out")
    parser.add_argument("--off", action="store_true", help="count the wheel's other messages too, with the reasons")
    arguments = parser.parse_args()
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    for wheel in arguments.wheels:
        found = collect(wheel)
        table[found.engine] = table_of(found)
        print(f"{found.engine} {found.version}: {len(found.said):,} messages in {len(found.modules):,} modules")
        for entry in found.missing:
            print(f"  no {entry}: the entry is left out", file=sys.stderr)
        for reason, number in off_the_way(found).most_common() if arguments.off else ():
            print(f"  {number:7,} off the way: {reason}")
    if arguments.wheels:
        TABLE.write_text(dump(table))
    if not arguments.collect:
        show(table, coverage(table))


if __name__ == "__main__":
    main()
