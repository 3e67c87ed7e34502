"""Configurations of each format: their roles, and what each asks for."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.paths import DATA

from dsv4_shard.catalog.option import names_of
from dsv4_shard.catalog.request import PlanOptions
from dsv4_shard.configurations import Use, read_configuration
from dsv4_shard.configurations.programs import roles_in
from dsv4_shard.configurations.translation import translated
from dsv4_shard.errors import ReadFailed, UsageError

FOLDER = DATA / "configurations"
PRO = "deepseek-ai/DeepSeek-V4-Pro"

EXPECTED: dict[str, dict[str, dict[str, Any]]] = {
    "dynamo-v1alpha1.yaml": {
        "prefill": {"engine": "sglang", "tp": 8, "runner": "flashinfer_mxfp4", "gpu": "b200"},
        "decode": {"engine": "sglang", "tp": 16, "dp": 16, "a2a": "megamoe", "gpu": "b200", "nodes": 2},
    },
    "dynamo-v1beta1.yaml": {
        "VllmWorker": {"engine": "vllm", "tp": 8, "ep": 8, "runner": "marlin", "context": 86016, "gpu": "h200"},
    },
    "llm-d-lws.yaml": {
        "decode": {
            "engine": "vllm", "tp": 1, "dp": 8, "ep": 8, "runner": "deep_gemm_mega_moe", "nodes": 2,
            "engine_version": "0.33.0",
        },
    },
    "llm-d-recipe.yaml": {
        "prefill": {"engine": "vllm", "tp": 1, "runner": "deep_gemm_mega_moe", "context": 9280},
        "decode": {"engine": "vllm", "tp": 8, "context": 16384},
    },
    "srt-slurm.yaml": {
        "prefill": {
            "engine": "sglang", "tp": 4, "ep": 4, "dp": 4, "a2a": "megamoe", "dp_lm_head": True, "gpu": "gb300",
        },
        "decode": {
            "engine": "sglang", "tp": 40, "ep": 40, "dp": 40, "a2a": "megamoe", "dp_lm_head": True,
            "redundant_experts": 16, "gpu": "gb300", "nodes": 10,
        },
    },
    "sglang-options.yaml": {"serve": {"engine": "sglang", "tp": 16, "runner": "marlin"}},
    "vllm-options.yaml": {"serve": {"engine": "vllm", "tp": 8, "ep": 8}},
    "two-nodes.sh": {
        "serve": {"engine": "sglang", "tp": 16, "runner": "marlin", "nodes": 2, "shared_experts": "whole"},
    },
    "statefulset.yaml": {
        "sglang": {
            "engine": "sglang", "tp": 16, "nodes": 2, "shared_experts": "whole", "engine_version": "0.5.23",
        },
    },
}  # fmt: skip


def test_every_configuration_is_expected() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*EXPECTED, "README.md"}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_role_asks_for_its_layout(name: str) -> None:
    found = read_configuration(str(FOLDER / name))
    assert {role.name: translated(role).values for role in found.roles} == EXPECTED[name]


def test_replicas_and_the_checkpoint_are_read() -> None:
    prefill, decode = read_configuration(str(FOLDER / "srt-slurm.yaml")).roles
    assert (prefill.replicas, decode.replicas) == (8, 1)
    assert prefill.model == f"{PRO}@0366e4e064385807ea86b088a5c6c878ff23343b"
    assert read_configuration(str(FOLDER / "two-nodes.sh")).roles[0].model == PRO


def asked(command: str) -> dict[str, Any]:
    [role] = roles_in(command, {})
    return translated(role).values


@pytest.mark.parametrize(("command", "values"), [
    ("sglang serve M --tp 8", {"tp": 8}),
    ("sglang serve --model-path M --tp-size=8 --ep 8 --context-length 4096", {"tp": 8, "ep": 8, "context": 4096}),
    ("A=1 python -m sglang.launch_server --tp 8 --dp-size 8 --enable-dp-attention", {"tp": 8, "dp": 8}),
    ("sglang serve --tp 8 --dp-size 2", {"tp": 8}),
    ("sglang serve --tp 8 --attn-dp-size 4 --moe-a2a-backend none", {"tp": 8, "dp": 4}),
    ("vllm serve M -tp 4 -dp 2 -ep --max-model-len 128k", {"tp": 4, "dp": 2, "ep": 8, "context": 128_000}),
    ("vllm serve M --tensor_parallel_size 4 --max-model-len 8K", {"tp": 4, "context": 8192}),
    ("vllm serve M -tp 4 -ep --disable-expert-parallel", {"tp": 4}),
    ("vllm serve M --tensor-parallel-size 2 --tensor-parallel-size 4", {"tp": 4}),
    ("docker run --gpus all -e X=1 image vllm serve M -tp 4 --moe-backend auto", {"tp": 4}),
    ("vllm serve M --pipeline-parallel-size 1", {"tp": 1}),
])  # fmt: skip
def test_a_command_line_asks_for_its_layout(command: str, values: dict[str, Any]) -> None:
    found = asked(command)
    assert found.pop("engine") == ("vllm" if "vllm" in command else "sglang")
    assert found == values


@pytest.mark.parametrize(("options", "use", "said"), [
    ("--tp 8", Use.USED, "--tp 8"),
    ("--mem-fraction-static 0.9", Use.NO_EFFECT, "KV cache"),
    ("--moe-a2a-backend none", Use.NO_EFFECT, "default"),
    ("--tp $TP", Use.UNPLANNED, "not a number"),
    ("--quantization fp8", Use.UNPLANNED, "formats"),
    ("--attn-cp-size 2", Use.UNPLANNED, "context parallelism"),
    ("--enable-layernorm-sp", Use.UNKNOWN, "not known"),
    ("--cuda-graph-max-bs 8", Use.ABSENT, "did you mean --cuda-graph-max-bs-decode"),
    ("--tensor-paralel-size 8", Use.ABSENT, "did you mean --tensor-parallel-size"),
    ("--config none.yaml", Use.UNPLANNED, "no such file"),
])  # fmt: skip
def test_each_option_has_its_use(options: str, use: Use, said: str) -> None:
    [role] = roles_in(f"sglang serve {options}", {})
    [row] = translated(role).rows
    assert row.use is use
    assert said in row.note


def test_pipeline_stages_are_used_where_they_can_be_planned_and_never_left_out() -> None:
    [role] = roles_in("SGLANG_PP_LAYER_PARTITION=31,30 sglang serve --tp 8 --pp-size 2", {})
    found = translated(role)
    can = "pp" in names_of(PlanOptions)
    assert [row.use for row in found.rows if row.option != "--tp"] == [Use.USED if can else Use.UNPLANNED] * 2
    assert bool(found.denied) is not can


@pytest.mark.parametrize(("variable", "use"), [
    ("SGLANG_SHARED_EXPERT_TP1=1", Use.USED), ("SGLANG_DSV4_FP4_DEQUANT=1", Use.UNPLANNED),
    ("SGLANG_DSV4_FP4_DEQUANT=0", Use.NO_EFFECT), ("SGLANG_LOG_MS=1", Use.NO_EFFECT),
    ("SGLANG_MADE_UP=1", Use.NO_EFFECT), ("SGLANG_OPT_DEEPGEMM_MEGA_MOE_FUSE_SHARED_EXPERTS=1", Use.UNKNOWN),
])  # fmt: skip
def test_each_variable_of_the_engine_has_its_use(variable: str, use: Use) -> None:
    [role] = roles_in(f"NCCL_DEBUG=INFO {variable} sglang serve", {})
    assert [row.use for row in translated(role).rows] == [use]


def test_a_layout_on_more_gpus_than_the_pods_have_is_denied(tmp_path: Path) -> None:
    text = (FOLDER / "dynamo-v1beta1.yaml").read_text().replace('nvidia.com/gpu: "8"', 'nvidia.com/gpu: "4"')
    (tmp_path / "deploy.yaml").write_text(text)
    [role] = read_configuration(str(tmp_path / "deploy.yaml")).roles
    assert list(translated(role).denied) == ["the layout is for 8 GPUs, and the configuration has 1 node of 4 GPUs"]


def test_an_option_file_is_read_before_the_command_lines_own_options(tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("tensor-parallel-size: 4\nmax-model-len: 4096\nmodel: M\n")
    script = tmp_path / "serve.sh"
    script.write_text("vllm serve --config options.yaml -tp 8")
    [role] = read_configuration(str(script)).roles
    assert translated(role).values == {"engine": "vllm", "tp": 8, "context": 4096}
    assert role.model == "M"


@pytest.mark.parametrize(("name", "text", "said"), [
    ("a.yaml", "tp: [1", "not YAML"),
    ("a.yaml", "!!python/object/apply:os.system [id]", "not YAML"),
    ("a.yaml", "a: &a [*a]", "not YAML that can be read"),
    ("a.yaml", "[" * 200_000, "not YAML that can be read"),
    ("a.yaml", "- " * 100_000, "not YAML that can be read"),
    ("a.yaml", "tp-size: 0x" + "f" * 100_000, "not YAML that can be read"),
    ("a.yaml", "&a a: " + "[" * 100 + "]" * 100, "not YAML that can be read"),
    ("a.yaml", "tp-size: 1" + ":1" * 300 + ".5", "not YAML that can be read"),
    ("a.yaml", "tp-size: !!int ''", "line 1: '' is no int"),
    ("a.yaml", "\ntp-size: !!bool x", "line 2: 'x' is no bool"),
    ("a.yaml", f"!{'x' * 5000} 1", "not YAML: line 1: could not determine a constructor"),
    ("a.yaml", "a: \x00", "not YAML: unacceptable character #x0000"),
    ("a.yaml", "backend: {type: x, x_config: {prefill: {tp: 1}}}", "x is no engine whose options are known"),
    ("a.yaml", "x: 1", "neither a manifest, a recipe, nor the options of one engine"),
    ("a.yaml", "apiVersion: v1\nkind: ConfigMap\ndata: {a: vllm serve M}", "starts no engine"),
    ("a.sh", "\necho 'sglang serve", r"a\.sh: line 2: a quote is not closed"),
    ("a.sh", "python train.py", "starts no engine"),
])  # fmt: skip
def test_what_is_no_configuration_is_refused_in_a_line(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=said) as raised:
        read_configuration(str(tmp_path / name))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_dates_bytes_and_keys_that_json_lacks_are_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text('tp-size: 8\n2001-99-99: 1\njson-model-override-args: {2001-01-01: !!binary "aGk="}\n')
    [role] = read_configuration(str(path)).roles
    values = {option.name: option.value for option in role.options}
    assert values == {"--tp-size": "8", "--2001-99-99": "1", "--json-model-override-args": '{"2001-01-01": "aGk="}'}


def test_options_of_tensorrt_llm_have_names_whatever_their_keys(tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("1: 2\ntensor_parallel_size: 8\n")
    (tmp_path / "serve.sh").write_text("trtllm-serve M --config options.yaml")
    [role] = read_configuration(str(tmp_path / "serve.sh")).roles
    assert translated(role).values == {"engine": "trtllm", "tp": 8}


def test_a_file_reads_no_option_file_beyond_its_folder(tmp_path: Path) -> None:
    """Such a path is one in a container, or a file that its author wants to see in the answer."""
    (tmp_path / "secret.yaml").write_text("model: secret\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link.yaml").symlink_to("../secret.yaml")
    for path in ("../secret.yaml", tmp_path / "secret.yaml", "link.yaml"):
        (folder / "serve.sh").write_text(f"vllm serve M --config {path}")
        [role] = read_configuration(str(folder / "serve.sh")).roles
        assert [option.name for option in role.options] == ["--config"], path
    [role] = read_configuration(f"vllm serve M --config {tmp_path}/secret.yaml").roles
    assert [option.name for option in role.options] == ["--model"]


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "/" * 5000 + "a"])
def test_an_option_file_that_no_file_system_holds_is_not_there(name: str, tmp_path: Path) -> None:
    (tmp_path / "serve.sh").write_text(f"vllm serve M --config {name}")
    [role] = read_configuration(str(tmp_path / "serve.sh")).roles
    assert [row.use for row in translated(role).rows] == [Use.UNPLANNED]


def test_each_role_has_a_name_of_its_own(tmp_path: Path) -> None:
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
             "spec": {"containers": [{"command": ["vllm", "serve", "M"]}]}} for name in ("a-2", "a", "a")]  # fmt: skip
    (tmp_path / "pods.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": pods}))
    assert [role.name for role in read_configuration(str(tmp_path / "pods.json")).roles] == ["a-2", "a", "a-3"]


def test_a_file_that_is_not_there_is_no_command_line() -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_configuration("deploy.yaml")


def test_aliases_count_as_often_as_they_are_used(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 2]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(UsageError, match="values, at most"):
        read_configuration(str(tmp_path / "a.yaml"))


def test_characters_of_aliases_count_as_often_as_they_are_used(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"tp-size: 8\na: &a {'x' * 100_000}\nb: [*a, *a, *a]\n")
    with pytest.raises(UsageError, match=r"400,\d+ characters with those of aliases, at most 262,144"):
        read_configuration(str(tmp_path / "a.yaml"))


def test_aliases_do_not_nest_deeper_than_values(tmp_path: Path) -> None:
    lines = ["tp-size: 8", f"a0: &a0 {'[' * 40}1{']' * 40}", f"a1: {'[' * 40}*a0{']' * 40}"]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(UsageError, match="not YAML that can be read"):
        read_configuration(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("text", ["vllm serve M --served-model-name \udcff", "folder/\udcff.yaml"])
def test_a_command_line_or_name_that_is_not_utf_8_is_refused(text: str) -> None:
    """JSON cannot hold it."""
    with pytest.raises(UsageError, match=r"udcff.*: not text in UTF-8"):
        read_configuration(text)


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises((UsageError, ReadFailed)):
        read_configuration(str(tmp_path))
