"""`python -m conformance COMMAND [CASE ...]`: what reshard writes and what two engines load, byte for byte.

    oracles     what the engines' own loaders put into the parameters, compared with tests/data/oracles
    files       reshards each case's checkpoint, compares the files with the oracles, loads them with the engine
    nodes       reshards for two nodes, and has the stock loaders load each rank from its node's folder
    loader      our loader within SGLang in other deployments: it loads what SGLang loads, or refuses with its reason
    kv-cache    the KV cache that the engines' own code makes of memory, compared with tests/data/kv_cache
    gpus        which MoE backends the engines accept on each GPU, compared with tests/data/gpus
    stages      how the engines divide layers over pipeline stages, compared with tests/data/pipeline
    order       where the engines stop first on layouts that break several rules, compared with tests/data/order
    options     the options of the engines' own parsers, compared with dsv4_shard/configurations/engine_options.json
    contracts   which parameters the engines declare for the real models, and what they refuse, into the folder --out

CASE is part of the name of a case or deployment; with several, any of them will do. The exit code is 1 if anything
differs.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from conformance.cases import CASES, Case
from conformance.contracts import write_contracts
from conformance.engines import ENGINES, Engine, make_environment
from conformance.files import check_files
from conformance.gpus import check_gpus
from conformance.kv_cache import check_kv_cache
from conformance.loader import check_loader
from conformance.nodes import check_nodes
from conformance.options import check_options
from conformance.oracles import check_oracles
from conformance.order import check_order
from conformance.stages import check_stages

_COMMANDS = ("oracles", "files", "nodes", "loader", "kv-cache", "gpus", "stages", "order", "options", "contracts")

ENVIRONMENTS = Path.home() / ".cache" / "dsv4-shard-conformance"


def main() -> None:
    """Entry point."""
    options = _parse()
    failures = 0
    with _work_folder(options.work) as work:
        for name in options.engine or ENGINES:
            environment = getattr(options, f"{name}_venv") or make_environment(name, ENVIRONMENTS / name)
            engine = Engine(name, environment.resolve(), work)
            cases = [case for case in CASES if case.engine == name and _is_wanted(case, options.cases)]
            match options.command:
                case "oracles":
                    failures += check_oracles(engine, cases, update=options.update)
                case "files":
                    failures += check_files(engine, cases, options.load_format)
                case "nodes":
                    failures += check_nodes(engine, cases)
                case "loader":
                    if name == "sglang":
                        failures += check_loader(engine, options.cases, update=options.update)
                case "kv-cache":
                    failures += check_kv_cache(engine, update=options.update)
                case "gpus":
                    failures += check_gpus(engine, update=options.update)
                case "stages":
                    failures += check_stages(engine, update=options.update)
                case "order":
                    failures += check_order(engine, options.cases, update=options.update)
                case "options":
                    failures += check_options(engine, update=options.update)
                case "contracts":
                    failures += write_contracts(engine, options.out, options.cases)
    sys.exit(bool(failures))


def _is_wanted(case: Case, words: list[str]) -> bool:
    return not words or any(word in case.name for word in words)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m conformance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=_COMMANDS)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="only this engine")
    for name in ENGINES:
        parser.add_argument(f"--{name}-venv", type=Path, metavar="FOLDER", help="an environment that has the engine")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="where all is made and left (default: temporary)")
    parser.add_argument("--update", action="store_true", help="write what is compared with tests/data into it")
    parser.add_argument("--load-format", default="dsv4_shard", help="files: SGLang's loader for them (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("contracts"), help="contracts: folder (%(default)s)")
    return parser.parse_intermixed_args()


@contextlib.contextmanager
def _work_folder(folder: Path | None) -> Iterator[Path]:
    """The named folder, or one that is removed at the end."""
    made = folder or Path(tempfile.mkdtemp(prefix="dsv4-shard-conformance-"))
    made.mkdir(parents=True, exist_ok=True)
    try:
        yield made.resolve()
    finally:
        if folder is None:
            shutil.rmtree(made)
