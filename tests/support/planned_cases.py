"""A conformance case's checkpoint with the plan for it, which loaders follow in place of rank files."""

from pathlib import Path

from support.checkpoints.small import open_folder

from conformance.cases import Case
from conformance.tiny import write_variant
from dsv4_shard.engines import Request
from dsv4_shard.planning.plan_builder import make_plan


def plan_case(root: Path, case: Case) -> tuple[Path, str]:
    """Write the checkpoint, once for each variant, and the plan under `root`; return both paths."""
    source, path = root / case.variant, root / f"{case.name}.json"
    if not source.exists():
        write_variant(source, case.variant)
    path.write_text(make_plan(*open_folder(source), Request(**case.request)).to_json())
    return source, str(path)
