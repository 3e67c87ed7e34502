"""`python -m fuzz TARGET --seconds N`: damage valid documents until a promise breaks or the time is over.

Prints the number of inputs that were run. A finding ends the run: its trace is printed, its input kept as `crash-*` (or
`timeout-*`, `oom-*`) in the current folder, and the exit code is 1. Ten seconds or two gigabytes for one input are
findings too.
"""

import argparse
import mmap
import os
import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

NAMES = ("header", "index", "config", "plan", "manifest", "journal", "archive", "hub", "store", "log", "configuration")

LIMITS = {"max_len": 1 << 16, "rss_limit_mb": 2048}


def main() -> int:
    """Entry point: the exit code, 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz one target, or check one input.")
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=int, default=10, help="seconds for one input; more on a busy machine")
    parser.add_argument("--input", type=Path, help="only check this file, a crash-* of an earlier run")
    options = parser.parse_args()
    if options.input:
        from fuzz.targets import TARGETS

        TARGETS[options.target].check(options.input.read_bytes())
        return 0
    count = mmap.mmap(-1, 8)
    with tempfile.TemporaryDirectory() as corpus, tempfile.TemporaryFile() as log:
        child = os.fork()
        if child == 0:
            os.dup2(log.fileno(), sys.stderr.fileno())
            _fuzz(
                options.target,
                {"max_total_time": options.seconds, "seed": options.seed, "timeout": options.timeout},
                corpus,
                count,
            )
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        inputs = int.from_bytes(count[:], "little")
        print(f"{options.target}: {inputs:,} inputs, {'a finding' if code else 'nothing found'}", flush=True)
        if code:
            log.seek(0)
            sys.stderr.buffer.write(log.read())
    return 1 if code else 0


def _fuzz(name: str, arguments: dict[str, int], corpus: str, count: mmap.mmap) -> None:
    """Does not come back: libFuzzer ends the process."""
    with atheris.instrument_imports(include=["dsv4_shard"]):
        from fuzz.targets import TARGETS
    target = TARGETS[name]
    for number, seed in enumerate(target.seeds()):
        (Path(corpus) / str(number)).write_bytes(seed)

    def check(data: bytes) -> None:
        count[:] = (int.from_bytes(count[:], "little") + 1).to_bytes(8, "little")
        target.check(data)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        """Structure mostly, bytes now and then."""
        random = Random(seed)
        damaged = target.mutate(data, random) if random.random() < 0.8 else bytes(atheris.Mutate(data, max_size))
        return damaged if len(damaged) <= max_size else data

    options = [f"-{key}={value}" for key, value in (arguments | LIMITS).items()]
    atheris.Setup([sys.argv[0], *options, corpus], check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
