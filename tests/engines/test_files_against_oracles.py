"""What reshard writes is what the engines load: compared with oracles from SGLang's and vLLM's own loaders.

The oracles come from `python -m conformance oracles --update`, which runs the engines; these tests need neither.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.small import open_folder

from conformance.cases import CASES, Case
from conformance.digests import read_oracle
from conformance.oracles import committed_path
from conformance.tiny import write_variant
from conformance.written import compare_rank
from dsv4_shard.engines.deployment import Request
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.run import reshard


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Tiny checkpoints by variant, each written once. Only to be read."""
    folder = tmp_path_factory.mktemp("variants")

    def write(variant: Any) -> Any:
        return folder / variant if (folder / variant).exists() else write_variant(folder / variant, variant)

    return write


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.engine}-{case.name}")
def test_files_hold_what_the_engine_loads(case: Case, checkpoint_of: Callable[..., Any], tmp_path: Path) -> None:
    oracle = read_oracle(committed_path(case))
    assert oracle.case == case
    folder = checkpoint_of(case.variant)
    checkpoint, inventory = open_folder(folder)
    job = prepare(checkpoint, inventory, make_plan(checkpoint, inventory, Request(**case.request)))
    reshard(job, checkpoint, tmp_path / "out", workers=1)
    lines = [line for rank in oracle.ranks for line in compare_rank(oracle, rank, folder, tmp_path / "out")]
    assert lines == []


def test_every_oracle_has_its_case() -> None:
    kept = {
        path for engine in ("sglang", "vllm") for path in committed_path(CASES[0]).parent.parent.glob(f"{engine}/*")
    }
    assert kept == {committed_path(case) for case in CASES}
