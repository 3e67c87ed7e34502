"""Files that start a plan: scripts that run its commands, manifests that Kubernetes takes, and nothing replaced."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support.checkpoints.full_size import PRO, inventory_of
from support.command_line import root_of, run

import dsv4_shard
from dsv4_shard.configurations import planned, read_configuration
from dsv4_shard.engines import Request
from dsv4_shard.errors import ExitCode, OutputNotEmpty, UsageError
from dsv4_shard.launch_files import write_launch_files
from dsv4_shard.planning import load_plan, make_plan
from dsv4_shard.planning.document import Plan

LAYOUTS: dict[str, dict[str, Any]] = {
    "sglang-2-nodes": {"tp": 16, "gpu": "h20-96"},
    "sglang-1-node": {"tp": 8, "dp": 8, "a2a": "deepep", "gpu": "b200"},
    "vllm-2-nodes": {"tp": 16, "gpu": "h200", "engine": "vllm"},
    "vllm-replicas": {"tp": 1, "dp": 8, "ep": 8, "gpu": "b300", "engine": "vllm", "runner": "deep_gemm_mega_moe"},
    "node-folders": {"tp": 16, "ep": 16, "gpu": "h200", "engine": "node"},
    "trtllm": {"tp": 8, "dp": 8, "gpu": "b300", "engine": "trtllm"},
    "reference": {"tp": 8, "gpu": "h200", "engine": "reference"},
}
SERVED = [name for name in LAYOUTS if name not in ("trtllm", "reference")]


def plan_of(name: str) -> Plan:
    return dsv4_shard.plan(root_of(PRO), **LAYOUTS[name])


def files_of(name: str, folder: Path) -> Plan:
    plan = plan_of(name)
    write_launch_files(folder, {"": plan})
    return plan


RECORDER = """#!/bin/sh
{ env -0; printf '\\1'; printf '%s\\0' "${0##*/}" "$@"; } > "$RECORDED"
"""


def ran(script: Path, folder: Path, **variables: str) -> tuple[dict[str, str], list[str]]:
    """The environment and the words of the program that a script starts."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name in ("sglang", "vllm", "trtllm-serve", "torchrun", "dsv4-shard"):
        (programs / name).write_text(RECORDER)
        (programs / name).chmod(0o755)
    recorded = folder / "recorded"
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "RECORDED": str(recorded), **variables}
    subprocess.run([script], env=environment, cwd=folder, check=True, capture_output=True)
    raw, words = recorded.read_bytes().decode().split("\1")
    return dict(line.split("=", 1) for line in raw.split("\0") if line), words.split("\0")[:-1]


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_script_runs_the_command_of_its_node_with_its_variables(name: str, tmp_path: Path) -> None:
    plan = files_of(name, tmp_path / "launch")
    for way in plan.ways:
        prefix = {"checkpoint by plan": "by-plan"}.get(way.serves, way.serves.replace(" ", "-"))
        for node, command in enumerate(way.launch.commands):
            place = f"-node-{node}" if len(way.launch.commands) > 1 else ""
            variables, words = ran(tmp_path / "launch" / f"{prefix}{place}.sh", tmp_path, NODE0="10.0.0.1")
            assert words == shlex.split(command.replace("$NODE0", "10.0.0.1"))
            assert variables.items() >= way.launch.environment.items()
            for file, text in way.launch.files.items():
                assert (tmp_path / file).read_text().strip() == text.strip()


NAMES = (
    "a\ntouch pwned\nb", "a\rtouch pwned", "$(touch pwned)", "`touch pwned`", "a'b\"c", "a' --b", "a --b", "a;b&c",
    "$NODE0", "$(NODE_RANK)$$(HOME)", "~/x", "a\\b", "#a", "-a", "a\u2028b", "\x1b[31ma", "END\ntouch pwned",
    "END_OF_FILE\nx",
)  # fmt: skip


@pytest.mark.parametrize("label", NAMES)
@pytest.mark.parametrize("name", ["sglang-2-nodes", "sglang-1-node", "vllm-2-nodes", "trtllm"])
def test_a_checkpoint_of_any_name_is_one_word_of_what_is_started(name: str, label: str, tmp_path: Path) -> None:
    checkpoint, inventory = inventory_of(PRO)
    plan = make_plan(checkpoint, inventory, Request(**LAYOUTS[name]), label=label)
    write_launch_files(tmp_path / "launch", {"": plan})
    scripts = [
        *tmp_path.glob("launch/checkpoint*.sh"),
        *_commands_of_pods(tmp_path),
        *tmp_path.glob("launch/*-write.sh"),
    ]
    here = {"NODE0": "10.0.0.1", "LWS_LEADER_ADDRESS": "10.0.0.1", "LWS_WORKER_INDEX": "1", "HOME": "/"}
    for script in scripts:
        _, words = ran(script, tmp_path, **here)
        assert (f"./{label}" if label.startswith("-") else label) in words, script
    assert len(scripts) > 1
    assert not list(tmp_path.rglob("pwned"))


def _commands_of_pods(folder: Path) -> list[Path]:
    """Scripts with the commands of the pods that serve the checkpoint, as Kubernetes passes them on."""
    found: list[Path] = []
    for document in yaml.safe_load_all((folder / "launch" / "checkpoint.yaml").read_text()):
        spec = document["spec"]
        templates = spec["leaderWorkerTemplate"].values() if document["kind"] == "LeaderWorkerSet" else [spec]
        for pod in [one for one in templates if isinstance(one, dict) and "spec" in one.get("template", one)]:
            [container] = pod.get("template", pod)["spec"]["containers"]
            found.append(folder / f"pod-{len(found)}.sh")
            found[-1].write_text("#!/bin/sh\n" + _expanded(container["command"][2]), newline="")
            found[-1].chmod(0o755)
    return found


def _expanded(text: str) -> str:
    """A command as Kubernetes expands it in a container that sets NODE_RANK."""
    values = {"$$": "$", "$(NODE_RANK)": "expanded"}
    return re.sub(r"\$\$|\$\(NODE_RANK\)", lambda match: values[match[0]], text)


def test_a_script_for_several_nodes_asks_for_the_address_of_the_first(tmp_path: Path) -> None:
    files_of("sglang-2-nodes", tmp_path)
    result = subprocess.run([tmp_path / "checkpoint-node-1.sh"], env={"PATH": "/bin"}, capture_output=True, text=True)
    assert result.returncode != 0
    assert "address of node 0" in result.stderr


def test_the_script_that_writes_follows_the_plan_beside_it(tmp_path: Path) -> None:
    plan = files_of("sglang-2-nodes", tmp_path / "launch")
    _, words = ran(tmp_path / "launch" / "shards-write.sh", tmp_path)
    assert words[:4] == ["dsv4-shard", "reshard", str(root_of(PRO)), plan.out]
    assert load_plan(Path(words[-1])) == plan


@pytest.mark.parametrize("name", LAYOUTS)
def test_manifests_are_as_kubernetes_says(name: str, tmp_path: Path) -> None:
    """LeaderWorkerSets are no kind of Kubernetes itself: their pods are validated, and their own keys here."""
    plan = files_of(name, tmp_path)
    manifests = sorted(tmp_path.glob("*.yaml"))
    assert bool(manifests) == (name != "reference")
    for document in (one for path in manifests for one in yaml.safe_load_all(path.read_text())):
        if document["kind"] != "LeaderWorkerSet":
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
            continue
        group = document["spec"]["leaderWorkerTemplate"]
        assert document["spec"].keys() == {"replicas", "leaderWorkerTemplate"}
        assert group.keys() == {"size", "restartPolicy", "leaderTemplate", "workerTemplate"}
        assert group["size"] == plan.deployment.nodes
        for template in (group["leaderTemplate"], group["workerTemplate"]):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template["spec"]}
            kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
            gpus = template["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
            assert gpus * group["size"] == plan.deployment.world


@pytest.mark.parametrize("name", SERVED)
def test_scripts_and_manifests_are_read_back_as_the_plan(name: str, tmp_path: Path) -> None:
    plan = files_of(name, tmp_path)
    for path in (*tmp_path.glob("*.sh"), *tmp_path.glob("*.yaml")):
        if path.stem.endswith("-write"):
            continue
        found = planned(read_configuration(str(path)), None, {"gpu": LAYOUTS[name]["gpu"]}, lambda _: inventory_of(PRO))
        [role] = found.roles
        assert role.plan is not None, path
        ours, theirs = (one.deployment.model_dump(exclude={"engine"}) for one in (role.plan, plan))
        assert ours == theirs, path
        assert (role.others, role.lacks) == ((), ()), path


def test_files_of_others_are_not_replaced_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-node-1.sh").write_text("#!/bin/sh\n# mine\n")
    with pytest.raises(OutputNotEmpty, match=r"checkpoint-node-1\.sh"):
        files_of("sglang-2-nodes", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-node-1.sh"]


def test_own_files_are_replaced(tmp_path: Path) -> None:
    files_of("sglang-2-nodes", tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    files_of("sglang-2-nodes", tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_each_role_has_files_of_its_own_that_kubernetes_takes(tmp_path: Path) -> None:
    plan = plan_of("sglang-1-node")
    write_launch_files(tmp_path, dict.fromkeys(("x-3", "x", "X", "///", "1"), plan))
    assert sorted(path.name.removesuffix("-plan.json") for path in tmp_path.glob("*plan.json")) == [
        "role", "role-1", "x", "x-2", "x-3",
    ]  # fmt: skip
    for path in tmp_path.glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", document["metadata"]["name"])


def test_names_of_roles_stay_in_the_folder(tmp_path: Path) -> None:
    plan = plan_of("vllm-2-nodes")
    written = write_launch_files(tmp_path / "launch", {"../../Decode Worker": plan, "decode/worker": plan})
    assert sorted(written) == sorted(path.name for path in (tmp_path / "launch").iterdir())
    assert {name.rpartition("-plan")[0] for name in written if name.endswith("plan.json")} == {
        "decode-worker", "decode-worker-2",
    }  # fmt: skip


@pytest.mark.parametrize("output", ["launch/", "launch"])
def test_the_command_writes_a_folder_for_a_slash_or_a_folder_that_is_there(output: str, tmp_path: Path) -> None:
    if not output.endswith("/"):
        (tmp_path / output).mkdir()
    result = run("plan", root_of(PRO), "--tp", "8", "--gpu", "h200", "-o", f"{tmp_path}/{output}")
    assert result.exit_code == 0
    assert json.loads((tmp_path / "launch" / "plan.json").read_text())["kind"] == "plan"
    assert (tmp_path / "launch" / "checkpoint.sh").stat().st_mode & 0o111


def test_a_layout_that_does_not_run_has_its_plan_alone(tmp_path: Path) -> None:
    result = run("plan", root_of(PRO), "--tp", "3", "-o", f"{tmp_path}/launch/")
    assert result.exit_code == ExitCode.NO
    assert [path.name for path in (tmp_path / "launch").iterdir()] == ["plan.json"]


def test_a_role_without_a_plan_writes_nothing(tmp_path: Path) -> None:
    command = "vllm serve -tp 8 --hf-overrides '{}'"
    with pytest.raises(UsageError, match="no plan of serve to write"):
        dsv4_shard.plan_from(command, repo=str(root_of(PRO)), output=f"{tmp_path}/launch/")
    assert not (tmp_path / "launch").exists()


def test_the_screen_names_the_plan_in_the_folder(tmp_path: Path) -> None:
    shown = run("plan", root_of(PRO), "--tp", "8", "--gpu", "h200", "-o", f"{tmp_path}/launch/")
    assert shown.exit_code == 0
    assert f"--plan {tmp_path}/launch/plan.json" in " ".join(shown.stdout.replace(chr(92), " ").split())
    names = {path.name for path in (tmp_path / "launch").iterdir()}
    assert "by-plan.sh" in names
    assert "by-plan-write.sh" not in names
