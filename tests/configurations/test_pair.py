"""Prefill and decode as one deployment: the same files are those that reshard writes alike; commands and router."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.full_size import PRO
from support.command_line import root_of, run
from support.paths import DATA
from support.schemas import validator

import dsv4_shard
from dsv4_shard.configurations import PlannedDeployment, read_configuration
from dsv4_shard.configurations.pair import equal_bytes, has_same_files
from dsv4_shard.errors import ExitCode, UsageError

PAIRS: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({"tp": 2}, {"tp": 2, "context": 64}, True),
    ({"tp": 2, "gpu": "h200"}, {"tp": 2, "gpu": "h20-96", "nodes": 2}, True),
    ({"tp": 2}, {"tp": 4}, False),
    ({"tp": 2, "dp": 2}, {"tp": 4, "dp": 4}, False),
    ({"tp": 2}, {"tp": 2, "ep": 2}, False),
    ({"tp": 2}, {"tp": 2, "dp": 2, "dp_lm_head": True}, False),
]


def rank_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("model-*.safetensors")}


@pytest.mark.parametrize(("one", "other", "same"), PAIRS)
def test_shards_are_called_the_same_where_reshard_writes_the_same_files(
    one: dict[str, Any], other: dict[str, Any], same: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    plans = [dsv4_shard.plan(tiny_checkpoint, **request) for request in (one, other)]
    for number, plan in enumerate(plans):
        dsv4_shard.reshard(tiny_checkpoint, tmp_path / str(number), plan=plan)
    written = [rank_files(tmp_path / str(number)) for number in range(2)]
    assert has_same_files(*plans) is same
    assert (written[0] == written[1]) is same


def pair(prefill: str, decode: str, **both: Any) -> PlannedDeployment:
    return dsv4_shard.plan_pair(root_of(PRO), prefill=prefill, decode=decode, **both)


def test_equal_bytes_are_those_of_the_modules_that_all_ranks_hold_whole() -> None:
    found = pair("--tp 8 --dp 8 --a2a deepep", "--tp 16 --dp 16 --a2a deepep", gpu="b200")
    one, other = (role.plan for role in found.roles)
    assert one is not None
    assert other is not None
    assert found.pair is not None
    assert found.pair.equal_bytes == equal_bytes(one, other) == equal_bytes(other, one)
    whole = sum(row.bytes_per_rank for row in one.modules if row.placement == "whole on every rank")
    assert 20e9 < found.pair.equal_bytes <= whole


def test_each_role_has_its_commands_and_the_router_both_addresses() -> None:
    found = pair("--tp 8", "--tp 16", gpu="h20-141")
    assert found.pair is not None
    assert "--disaggregation-mode prefill" in found.pair.prefill
    assert "--disaggregation-mode decode" in found.pair.decode
    assert "--dist-init-addr $DECODE0:30300" in found.pair.decode
    assert "--prefill http://$PREFILL0:30000 8998 --decode http://$DECODE0:30000" in found.pair.router
    assert [command.split()[1] for command in found.pair.writes] == ["reshard", "reshard"]


@pytest.mark.parametrize(("engine", "words"), [("sglang", "--tp 8"), ("vllm", "--tp 8 --ep 8"), ("vllm", "--tp 16")])
def test_the_commands_are_read_back_as_the_roles(engine: str, words: str) -> None:
    found = pair(words, words, engine=engine, gpu="h200")
    assert found.pair is not None
    assert found.pair.same_files
    assert len(found.pair.writes) == 1
    roles = read_configuration(f"{found.pair.prefill}\n{found.pair.decode}").roles
    assert [role.name for role in roles] == ["prefill", "decode"]
    for role, command in zip(found.roles, (found.pair.prefill, found.pair.decode), strict=True):
        [again] = dsv4_shard.plan_from(command, repo=str(root_of(PRO)), gpu="h200").roles
        assert again.plan is not None
        assert role.plan is not None
        assert again.plan.deployment == role.plan.deployment
        assert again.others == ()


def test_other_nodes_of_vllm_are_told_what_to_add() -> None:
    found = pair("--tp 16", "--tp 16", engine="vllm", gpu="h200")
    assert found.pair is not None
    assert "On every node of decode but the first, add --headless." in found.pair.notes


def test_a_file_with_both_roles_has_the_pair_too() -> None:
    found = dsv4_shard.plan_from(DATA / "configurations" / "dynamo-v1alpha1.yaml", repo=str(root_of(PRO)))
    assert found.pair is not None
    assert any("add those of the configuration" in note for note in found.pair.notes)


def test_the_worse_verdict_is_the_exit_code(tmp_path: Path) -> None:
    words = ["plan", root_of(PRO), "--gpu", "h20-141", "--prefill", "--tp 8"]
    good = run(*words, "--decode", "--tp 16", "-o", f"{tmp_path}/launch/")
    assert good.exit_code == 0
    assert "sglang_router.launch_router" in good.stdout
    written = {path.name: path for path in (tmp_path / "launch").iterdir()}
    assert {"prefill-plan.json", "decode-plan.json", "router.sh"} <= written.keys()
    [role] = read_configuration(str(written["decode.sh"])).roles
    assert role.name == "decode"
    subprocess.run(["sh", "-n", written["router.sh"]], check=True)
    bad = run(*words, "--decode", "--tp 3", "--json")
    assert bad.exit_code == ExitCode.NO
    document = json.loads(bad.stdout)
    validator("deployment").validate(document)
    assert document["pair"] is None


@pytest.mark.parametrize(("prefill", "decode", "said"), [
    ("--tp 8 --foo", "--tp 8", "--prefill: --foo is no option of a layout"),
    ("--tp", "--tp 8", "--prefill: --tp has no value"),
    ("--tp 8", "--tp '8", "--decode: a quote is not closed"),
    ("--tp 8", "--tp eight", "tp"),
    ("--tp 8", "", "tp"),
    ("--tp 8 --engine vllm", "--tp 8", "prefill and decode are for sglang and vllm"),
])  # fmt: skip
def test_wrong_options_of_a_role_are_refused(prefill: str, decode: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        pair(prefill, decode)


def test_one_role_alone_is_refused() -> None:
    result = run("plan", root_of(PRO), "--prefill", "--tp 8")
    assert result.exit_code == ExitCode.USAGE
    assert "no --decode" in result.stderr
