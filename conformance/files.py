"""Reshards each case's checkpoint as a user would, compares the files with its oracle, and has the engine load them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conformance.cases import Case
from conformance.digests import Oracle, read_oracle
from conformance.engines import Engine
from conformance.oracles import checkpoint_of, committed_path, report
from conformance.written import DRAFT_FOLDER, compare_rank, wanted
from dsv4_shard.catalog.options import LOAD_FORMAT

_OPTIONS = {
    "dp": "--dp",
    "ep": "--ep",
    "gpu": "--gpu",
    "runner": "--runner",
    "a2a": "--a2a",
    "shared_experts": "--shared-experts",
}


def check_files(engine: Engine, cases: list[Case], load_format: str) -> int:
    """Compare and load the files of each case; returns how many cases failed."""
    outcomes: dict[Case, list[str]] = {}
    jobs: list[dict[str, Any]] = []
    compared = 0
    for case in cases:
        outcomes[case] = reshard_case(case, engine.work)
        if outcomes[case]:
            continue
        oracle = read_oracle(committed_path(case))
        checkpoint, out = checkpoint_of(case, engine.work), output_of(case, engine.work)
        for rank in oracle.ranks:
            outcomes[case] += [f"rank {rank}: {line}" for line in compare_rank(oracle, rank, checkpoint, out)]
        compared += oracle.count
        jobs += _load_jobs(oracle, checkpoint, out, load_format)
    loaded = 0
    for result in engine.run(jobs):
        outcomes[Case(**result["job"]["case"])] += list(_loading_failures(result))
        loaded += result.get("compared", 0)
    for case, lines in outcomes.items():
        report(case, "files", lines)
    failed = sum(map(bool, outcomes.values()))
    print(f"{engine.name}: {len(cases)} cases, {compared} parameters compared, {loaded} loaded, {failed} cases failed")
    return failed


def output_of(case: Case, work: Path) -> Path:
    """reshard's output for a case; a target and its draft stand in one."""
    target = Case(**case.to_dict() | {"draft": False})
    return work / "resharded" / case.engine / target.name


def reshard_case(case: Case, work: Path) -> list[str]:
    """`dsv4-shard reshard` for a case, unless it was done; what it says if it fails."""
    out = output_of(case, work)
    if out.exists():
        return []
    out.parent.mkdir(parents=True, exist_ok=True)
    request = case.request
    command = [sys.executable, "-m", "dsv4_shard", "reshard", str(checkpoint_of(case, work)), str(out)]
    command += ["--tp", str(case.tp), "--engine", case.engine]
    for key, option in _OPTIONS.items():
        if request[key] is not None:
            command += [option, str(request[key])]
    command += ["--pp", str(case.pp)] if case.pp > 1 else []
    command += ["--pp-partition", case.partition] if case.partition else []
    command += ["--dp-lm-head"] if case.dp_lm_head else []
    command += ["--redundant-experts", str(case.redundant)] if case.redundant else []
    command += ["--expert-locations", case.locations_file] if case.locations_file else []
    done = subprocess.run(command, capture_output=True, text=True)
    return [f"dsv4-shard ended with {done.returncode}: {done.stderr.strip()}"] if done.returncode else []


def _load_jobs(oracle: Oracle, checkpoint: Path, out: Path, load_format: str) -> Iterator[dict[str, Any]]:
    """Each rank by each loader that can take it: SGLang's stock one takes FP8 on Hopper, where nothing is repacked.

    Ours also loads the checkpoint itself, by the plan in `out`.
    """
    case = oracle.case
    formats = [load_format] if case.engine == "sglang" or case.is_mega else ["sharded_state", load_format]
    in_order = not (case.redundant or case.locations or case.pp > 1)
    if case.engine == "sglang" and case.fp8_experts and case.sm == 90 and not case.draft and in_order:
        formats.append("sharded_state")
    for rank in oracle.ranks:
        want = {"do": "load", "case": case.to_dict(), "rank": rank, "turned": oracle.turned}
        want |= {"want": wanted(oracle, rank, checkpoint)}
        for name in formats:
            yield want | {"model": str(out), "draft": str(out / DRAFT_FOLDER), "load_format": name}
        if load_format == LOAD_FORMAT and (case.engine == "sglang" or not case.draft):
            options = {"model_loader_extra_config": json.dumps({"plan": str(out / "plan.json")})}
            yield want | {"model": str(checkpoint), "load_format": load_format, "options": options}


def _loading_failures(result: dict[str, Any]) -> Iterator[str]:
    job = result["job"]
    where = f"rank {job['rank']} by {job['load_format']}" + (" and plan" if "options" in job else "")
    if "error" in result:
        yield f"{where}: {result['error']} ({result.get('where')})"
    for line in result.get("differences", []):
        yield f"{where}: {line}"
    for warning in result.get("warnings", []):
        yield f"{where}: warning: {warning}"
