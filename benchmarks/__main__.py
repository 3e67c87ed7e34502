"""`make bench`: what reshard costs beside what cannot be avoided, on this machine and its disk.

    python -m benchmarks [--only moves,headers] [--gb 4] [--rounds 3] [--cold] [--json FILE]

Each ratio comes from runs in turns within the same minute, since machines are noisy: the median of the rounds, with the
least and the most. Peak memory and bytes are the kernel's figures for a process of its own. Page caches are warm, but
with `--cold` and for `loading`. Every part is a module of this folder, whose docstring says what it measures; the part
`converter` needs `--converter`. Tables go to stdout, progress to stderr, and all numbers to `--json FILE`.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

from benchmarks import (
    back,
    converter,
    disk,
    growth,
    headers,
    loading,
    machine,
    machines,
    moves,
    network,
    remote,
    shares,
    together,
    workers,
)
from benchmarks.running import ChildFailed
from benchmarks.settings import NotMeasured, Settings, say

PARTS: dict[str, ModuleType] = {
    "disk": disk,
    "moves": moves,
    "workers": workers,
    "back": back,
    "growth": growth,
    "loading": loading,
    "headers": headers,
    "remote": remote,
    "network": network,
    "shares": shares,
    "together": together,
    "machines": machines,
    "converter": converter,
}
"""Each measures (`measure`) and shows (`table`) rows of its own."""


def main() -> None:
    """Measure and print."""
    arguments = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that scratch folders are removed
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        with tempfile.TemporaryDirectory(prefix="dsv4-shard-bench-", dir=arguments.scratch) as folder:
            os.environ["XDG_STATE_HOME"] = folder  # `inspect` would else change what this user inspected last
            document: dict[str, Any] = {"machine": machine.describe(Path(folder))}
            console.print(*(f"{name}: {value}" for name, value in document["machine"].items()), sep=", ")
            for name in arguments.only:
                rows = PARTS[name].measure(_settings(arguments, Path(folder)))
                console.print(PARTS[name].table(rows))
                document[name] = [asdict(row) for row in rows]
    except (ChildFailed, NotMeasured) as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        say("bench: interrupted")
        sys.exit(128 + signal.SIGINT)
    if arguments.json_file:
        arguments.json_file.write_text(json.dumps(document, indent=1) + "\n")


def _settings(arguments: argparse.Namespace, scratch: Path) -> Settings:
    return Settings(
        scratch=scratch,
        nbytes=round(arguments.gb * 1e9),
        rounds=arguments.rounds,
        cold=arguments.cold,
        converter=arguments.converter,
        converter_nbytes=round(arguments.converter_gb * 1e9),
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_parts, help=f"of {','.join(PARTS)}; default: all that can be run")
    parser.add_argument("--gb", type=float, default=4.0, help="size of the generated checkpoint; default: 4")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--cold", action="store_true", help="read the source from the disk, not from the page cache")
    parser.add_argument("--converter", type=Path, help="a copy of DeepSeek-V4's inference/convert.py (needs tqdm)")
    parser.add_argument("--converter-gb", type=float, default=1.0, help="checkpoint for the converter; default: 1")
    parser.add_argument("--scratch", type=Path, help="where to write; default: the temporary folder")
    parser.add_argument("--json", type=Path, dest="json_file", help="keep every number here")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.gb <= 0 or arguments.converter_gb <= 0:
        parser.error("--rounds, --gb and --converter-gb must be above 0")
    if arguments.only is None:
        arguments.only = [name for name in PARTS if name != "converter" or arguments.converter]
    return arguments


def _parts(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no part {unknown[0]}; there are {', '.join(PARTS)}")
    return names


if __name__ == "__main__":
    main()
