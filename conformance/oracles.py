"""Oracles from a run of the engine, compared with those in tests/data/oracles or written there."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conformance.cases import Case
from conformance.digests import Oracle, differences, read_oracle, write_oracle
from conformance.engines import ROOT, Engine
from conformance.tiny import write_variant

COMMITTED = ROOT / "tests" / "data" / "oracles"


def committed_path(case: Case) -> Path:
    """Where the oracle of a case is kept."""
    return COMMITTED / case.engine / f"{case.name}.json"


@dataclass
class Made:
    """A fresh oracle, and the errors of ranks that could not be built."""

    oracle: Oracle
    errors: list[str] = field(default_factory=list)


def checkpoint_of(case: Case, work: Path) -> Path:
    """The case's tiny checkpoint, written if it is not there."""
    folder = work / "tiny" / case.variant
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_variant(folder, case.variant)
    return folder


def make_oracles(engine: Engine, cases: Iterable[Case]) -> Iterator[Made]:
    """Run the engine's own loader for each case and rank."""
    jobs = [
        {"do": "oracle", "case": case.to_dict(), "rank": rank, "model": str(checkpoint_of(case, engine.work))}
        for case in cases
        for rank in case.ranks
    ]
    made: Made | None = None
    for result in engine.run(jobs):
        case, rank = Case(**result["job"]["case"]), result["job"]["rank"]
        if made is None or made.oracle.case != case:
            made = Made(Oracle(case, {}))
        _add(made, rank, result)
        if rank == case.ranks[-1]:
            yield made


def _add(made: Made, rank: int, result: dict[str, Any]) -> None:
    if "error" in result:
        made.errors.append(f"rank {rank}: {result['error']} ({result.get('where')})")
        return
    made.oracle.ranks[rank] = {
        name: (dtype, shape, digest) for name, (dtype, shape, digest) in result["params"].items()
    }
    made.oracle.unloaded = list(dict.fromkeys((*made.oracle.unloaded, *result["unloaded"])))
    made.oracle.method = result["method"]
    made.oracle.turned |= result.get("turned", {})


def check_oracles(engine: Engine, cases: list[Case], *, update: bool) -> int:
    """Compare fresh oracles with the committed ones, or write them; returns how many cases failed."""
    failed = total = 0
    for made in make_oracles(engine, cases):
        lines = made.errors or ([] if update else _against_committed(made.oracle))
        if update and not made.errors:
            write_oracle(committed_path(made.oracle.case), made.oracle)
        report(made.oracle.case, f"{made.oracle.count} parameters, {made.oracle.method}", lines)
        failed += bool(lines)
        total += made.oracle.count
    print(f"{engine.name}: {len(cases)} cases, {total} parameters, {failed} cases failed")
    return failed


def _against_committed(oracle: Oracle) -> list[str]:
    path = committed_path(oracle.case)
    if not path.exists():
        return [f"no {path.relative_to(ROOT)}: make it with --update"]
    committed = read_oracle(path)
    return [
        f"rank {rank}: {line}"
        for rank, params in committed.ranks.items()
        for line in differences(params, oracle.ranks[rank])
    ]


def report(case: Case, summary: str, lines: list[str]) -> None:
    """One line a case, and the first differences under it."""
    print(f"{case.engine} {case.name}: {summary}" + (f", {len(lines)} FAILED" if lines else ""))
    for line in lines[:8]:
        print(f"    {line}")
    sys.stdout.flush()
