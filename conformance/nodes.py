"""Node folders, loaded by the engines' stock loaders: each rank must hold what it has of the whole checkpoint."""

import itertools
import subprocess
import sys
from pathlib import Path

from conformance.cases import Case
from conformance.digests import differences, read_oracle
from conformance.engines import Engine
from conformance.oracles import checkpoint_of, committed_path, report
from conformance.written import DRAFT_FOLDER

NODES = 2


def is_served(case: Case) -> bool:
    """Node folders serve EP over all ranks, with experts in order.

    vLLM's own loader misreads `fp8e8`, so no load of it is right.
    """
    in_order = not (case.redundant or case.locations)
    return in_order and case.ep == case.tp > 1 and case.a2a is None and "fp8e8" not in case.variant


def check_nodes(engine: Engine, cases: list[Case]) -> int:
    """Load each rank from its node's folder and compare with the committed oracle; returns how many cases failed.

    A draft is loaded from the folder that has all of the node's tensors, and from one that has the draft alone.
    """
    outcomes: dict[Case, list[str]] = {}
    jobs = []
    for case in filter(is_served, cases):
        outcomes[case] = [line for draft in _drafts(case) for line in reshard_nodes(case, engine.work, draft)]
        for rank, draft in itertools.product(case.ranks if not outcomes[case] else (), _drafts(case)):
            folder = output_of(case, engine.work, draft) / f"node-{rank * NODES // case.tp}"
            own = {"draft": str(folder / DRAFT_FOLDER)} if draft else {}
            jobs.append({"do": "oracle", "case": case.to_dict(), "rank": rank, "model": str(folder), **own})
    compared = 0
    for result in engine.run(jobs):
        case, rank = Case(**result["job"]["case"]), result["job"]["rank"]
        if "error" in result:
            outcomes[case].append(f"rank {rank}: {result['error']} ({result.get('where')})")
            continue
        found = {name: tuple(spec) for name, spec in result["params"].items()}
        outcomes[case] += [
            f"rank {rank}: {line}" for line in differences(read_oracle(committed_path(case)).ranks[rank], found)
        ]
        compared += len(found)
    for case, lines in outcomes.items():
        report(case, f"from {NODES} node folders", lines)
    failed = sum(map(bool, outcomes.values()))
    print(f"{engine.name}: {len(outcomes)} cases from node folders, {compared} parameters compared, {failed} failed")
    return failed


def _drafts(case: Case) -> tuple[str | None, ...]:
    """Values of `--draft` for a case: None has the draft's tensors beside the target's."""
    return (None, "dspark" if case.dspark else "mtp") if case.draft else (None,)


def output_of(case: Case, work: Path, draft: str | None) -> Path:
    """reshard's output: the same for all cases of a checkpoint and number of ranks, since loaders read all of it."""
    return work / "nodes" / f"{case.variant}-tp{case.tp}{f'-{draft}' if draft else ''}"


def reshard_nodes(case: Case, work: Path, draft: str | None) -> list[str]:
    """`dsv4-shard reshard --engine node` for a case, unless it was done; what it says if it fails."""
    out = output_of(case, work, draft)
    if out.exists():
        return []
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "dsv4_shard", "reshard", str(checkpoint_of(case, work)), str(out)]
    command += ["--engine", "node", "--tp", str(case.tp), "--nodes", str(NODES)]
    command += ["--draft", draft] if draft else []
    done = subprocess.run(command, capture_output=True, text=True)
    return [f"dsv4-shard ended with {done.returncode}: {done.stderr.strip()}"] if done.returncode else []
