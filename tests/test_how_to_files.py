"""Files that the how-to pages offer: manifests of Kubernetes against its schemas, and each command run as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support.checkpoints.full_size import FLASH, PRO
from support.command_line import root_of, run
from support.paths import ROOT
from typer.testing import CliRunner

import dsv4_shard
from dsv4_shard.cli import app

FOLDER = ROOT / "docs" / "how-to" / "files"
MANIFESTS = sorted(FOLDER.glob("*.yaml"))
OLDEST = "1.28"
"""The label apps.kubernetes.io/pod-index is there from this version on."""


def documents_of(manifest: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(manifest.read_text()))


def pods_of(manifest: Path) -> list[dict[str, Any]]:
    """The pods' specs in a manifest."""
    return [
        document["spec"]["template"]["spec"] for document in documents_of(manifest) if document["kind"] != "Service"
    ]


def container(name: str) -> dict[str, Any]:
    """The first container, or init container, that is called so."""
    pods = [pod for manifest in MANIFESTS for pod in pods_of(manifest)]
    every = [one for pod in pods for one in (*pod.get("initContainers", ()), *pod["containers"])]
    return next(one for one in every if one["name"] == name)


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_as_kubernetes_says(manifest: Path, version: str) -> None:
    for document in documents_of(manifest):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_refuse_a_wrong_key() -> None:
    [job] = documents_of(FOLDER / "reshard-job.yaml")
    job["spec"]["completion"] = 2
    with pytest.raises(kubernetes_validate.ValidationError, match="completion"):
        kubernetes_validate.validate(job, OLDEST, strict=True)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_every_mount_has_its_volume_and_every_pod_its_number(manifest: Path) -> None:
    for document in documents_of(manifest):
        if document["kind"] == "Service":
            continue
        spec, pod = document["spec"], document["spec"]["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", ())}
        every = [*pod.get("initContainers", ()), *pod["containers"]]
        assert {mount["name"] for one in every for mount in one["volumeMounts"]} == volumes
        [reshard] = [one for one in every if one["name"] == "reshard"]
        variables = {variable["name"]: variable.get("value") for variable in reshard["env"]}
        assert variables["WORLD_SIZE"] == str(spec.get("completions", spec.get("replicas")))


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_pods_write_their_ranks_and_a_retry_succeeds(
    manifest: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arguments as they stand, on a small checkpoint: each pod, then one that starts again after all is done."""
    [pod] = pods_of(manifest)
    [reshard] = [one for one in (*pod.get("initContainers", ()), *pod["containers"]) if one["name"] == "reshard"]
    command, _, out, *options = reshard["args"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for index in ("1", "0", "1"):
        monkeypatch.setenv("RANK", index)
        place = tmp_path / Path(out).name
        options = [option for option in options if not option.startswith(("--tp", "--gpu"))]
        result = CliRunner().invoke(app, [command, str(tiny_checkpoint), str(place), "--tp=2", *options])
        assert result.exit_code == 0, result.output
    found = dsv4_shard.verify(place, against=tiny_checkpoint)
    assert (found.ok, found.ranks) == (True, (0, 1))


def options_in(command: str) -> set[str]:
    """Its options with their values, without paths and what differs by node."""
    words = re.sub(r"(--[\w-]+) (?!--)", r"\1=", command).split()
    fixed = ("--model-path", "--dist-init-addr", "--node-rank")
    return {word for word in words if word.startswith("--") and not word.startswith(fixed)}


def test_the_pods_serve_with_the_options_of_the_plan() -> None:
    launch = dsv4_shard.plan(root_of(PRO), tp=16, gpu="h20-96").launch
    assert launch is not None
    sglang = container("sglang")
    assert {one["name"]: one["value"] for one in sglang["env"] if "value" in one} == launch.environment
    wanted = options_in(launch.commands[1])
    assert "--moe-runner-backend=marlin" in wanted
    assert options_in(" ".join(sglang["command"])) == wanted | {"--host=0.0.0.0", "--port=30000"}


SERVED = [
    ("../README.md", "SGLANG_SHARED_EXPERT_TP1=1 sglang serve", PRO, {"tp": 16, "gpu": "h20-96"}),
    ("how-to/serve.md", "SGLANG_SHARED_EXPERT_TP1=1 sglang serve", PRO, {"tp": 16, "gpu": "h20-96"}),
    ("how-to/serve.md", "sglang serve", FLASH, {"tp": 8, "gpu": "h100"}),
    ("how-to/serve.md", "vllm serve", PRO, {"tp": 8, "gpu": "h200", "engine": "vllm"}),
]


@pytest.mark.parametrize(("page", "begins", "model", "layout"), SERVED)
def test_commands_on_pages_are_those_of_the_plan(page: str, begins: str, model: str, layout: dict[str, Any]) -> None:
    text = (ROOT / "docs" / page).read_text().replace("\\\n", " ")
    shown = re.search(rf"^{re.escape(begins)} (.*)$", text, re.MULTILINE)
    launch = dsv4_shard.plan(root_of(model), **layout).launch
    assert shown is not None
    assert [f"{name}={value}" for name, value in launch.environment.items()] == begins.split()[:-2]
    assert options_in(shown[1]) == options_in(launch.commands[0])


def test_the_plan_holds_for_the_command_that_reshards() -> None:
    reshard = container("reshard")["args"]
    plan = dsv4_shard.plan(root_of(PRO), tp=16, gpu="h20-96")
    assert {"--tp=16", "--gpu=h20-96"} <= set(reshard)
    assert reshard[2] in container("sglang")["command"][3]
    assert plan.out is not None
    assert Path(reshard[2]).name.endswith(plan.out.rpartition("sglang")[2])


SRUN = """#!/bin/sh
# Starts two tasks one after the other, as srun starts them side by side.
for task in 0 1; do SLURM_PROCID=$task SLURM_NTASKS=2 "$@" || exit 1; done
"""


def test_the_batch_script_writes_all_ranks_verifies_them_and_can_be_requeued(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    ours = f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m dsv4_shard "$@"\n'
    for name, text in (("srun", SRUN), ("dsv4-shard", ours)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    run("plan", tiny_checkpoint, "--tp", "2", "-o", tmp_path / "plan.json")
    variables = {"CHECKPOINT": tiny_checkpoint, "OUT": tmp_path / "out", "PLAN": tmp_path / "plan.json"}
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"} | {k: str(v) for k, v in variables.items()}
    for _ in range(2):
        command = ["bash", str(FOLDER / "reshard.sbatch")]
        result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    assert dsv4_shard.verify(tmp_path / "out").ranks == (0, 1)
