"""Checkpoints under other tools' names give what the native one gives; what is mixed or mis-stacked is refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from support.checkpoints.full_size import FLASH, PRO, PRO_FP8, Tensors, config_of, in_memory
from support.checkpoints.other_names import BESIDE, DIALECTS, LAYERS, OUTER, dialect_name, renamed, write_dialect
from support.checkpoints.skeletons import expand
from support.checkpoints.small import load_checkpoint, open_folder, raw, rewrite, small_config
from typer.testing import CliRunner

from dsv4_shard.checkpoint.inventory import Inventory, take_inventory
from dsv4_shard.checkpoint.reader import Checkpoint, read_checkpoint
from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, tensors_of, write_checkpoint
from dsv4_shard.cli import app
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import BadStack, DuplicateTensor, MixedDialects
from dsv4_shard.models import dialects
from dsv4_shard.models.dialects import NATIVE, View, native_view
from dsv4_shard.models.v4 import V4
from dsv4_shard.opening import open_source
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.run import reshard
from dsv4_shard.sources.checkpoint_files import INDEX_FILE
from dsv4_shard.verification.result_folder import verify

CONFIG = {"num_hidden_layers": 3, "compress_ratios": [128, 4, 4, 0], "hidden_size": 256}
"""As wide as vLLM's tiles; no two kinds of layers are equally many, since a plan shows the shapes of the commonest."""

TOOLS = tuple(name.partition(",")[0] for name in DIALECTS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint in every dialect; `native without MTP` is what Transformers starts from. Only to be read."""
    root = tmp_path_factory.mktemp("dialects")
    native = write_checkpoint(root / "native", small_config(**CONFIG), 43)
    bare = write_checkpoint(root / "bare", small_config(**CONFIG, num_nextn_predict_layers=0), 43, mtp_blocks=0)
    made = {"native": native, "native without MTP": bare}
    for dialect in DIALECTS:
        source = bare if dialect.startswith("transformers") else native
        made[dialect] = write_dialect(root / dialect.replace(" ", "-").replace(",", ""), source, dialect)
    return made


def native_of(dialect: str) -> str:
    return "native without MTP" if dialect.startswith("transformers") else "native"


def view_of(document: dict[str, Any], tensors: Tensors) -> tuple[View, Checkpoint]:
    checkpoint = in_memory(document, tensors)
    return native_view(checkpoint.config, checkpoint.tensors), checkpoint


def read(folder: Path) -> Checkpoint:
    return read_checkpoint(open_source(str(folder)))


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "dialect"),
    [
        *((FLASH, dialect) for dialect in DIALECTS),
        # Other formats: experts of which a stack is taken apart, and each alone.
        *((model, dialect) for model in (PRO, PRO_FP8) for dialect in ("sglang", "transformers")),
    ],
)
def test_a_real_checkpoint_is_complete_under_the_names_of_any_tool(model: str, dialect: str) -> None:
    document, native = config_of(model), expand(model)
    if dialect.startswith("transformers"):
        document["num_nextn_predict_layers"] = 0
        native = {name: tensor for name, tensor in native.items() if not name.startswith("mtp.")}
    view, checkpoint = view_of(document, renamed(native, dialect, document["num_hidden_layers"]))
    assert view.dialect is not None
    assert view.dialect.name == dialect.partition(",")[0]
    assert {name: (t.dtype, t.shape) for name, t in view.tensors.items()} == native
    assert all(name == tensor.name for name, tensor in view.tensors.items())
    inventory = take_inventory(Checkpoint(checkpoint.source, checkpoint.config, document, (), view.tensors, ()))
    assert inventory.errors == ()


@pytest.mark.slow
@given(st.sampled_from(DIALECTS), st.data())
def test_any_native_name_comes_back_from_any_dialect(dialect: str, data: DataObject) -> None:
    native = sorted(tensors_of(DEMO_CONFIG, optional=True))
    name = data.draw(st.sampled_from(native))
    layers = DEMO_CONFIG["num_hidden_layers"]
    other = dialect_name(name, dialect, layers)
    if other is None:
        assert name.startswith("mtp.")
        return
    table = next(one for one in dialects.DIALECTS["v4"] if one.name == dialect.partition(",")[0])
    config = in_memory(DEMO_CONFIG, {}).config
    found = dialects.Dictionary(table, V4, config).native(other)
    if isinstance(found, dialects.Stack):
        assert name in [part.replace("*", name.split(".")[4]) for part in found.parts]
    else:
        assert found == name


@pytest.mark.slow
@pytest.mark.parametrize("tool", sorted(set(TOOLS)))
@given(
    st.text(max_size=30) | st.from_regex(r"(model\.layers|mtp)\.\d{1,3}\.(self_attn|mlp)\.[\w.*]{0,30}", fullmatch=True)
)
def test_no_name_that_a_dialect_does_not_have_is_translated(tool: str, name: str) -> None:
    table = next(one for one in dialects.DIALECTS["v4"] if one.name == tool)
    checkpoint = in_memory(DEMO_CONFIG, {})
    found = dialects.Dictionary(table, V4, checkpoint.config).native(name)
    words = {word for key in DIALECTS if key.startswith(tool) for word in (*LAYERS[key].values(), *BESIDE.values())}
    outer = {word for key in DIALECTS if key.startswith(tool) for word in OUTER[key].values()}
    known = name in outer or re.sub(r"(?<=experts\.)\d+(?=\.)", "*", name).split(".", 3)[-1] in words
    assert found is None or known


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.experts.*.gate_proj.weight",
        "model.layers.01.input_layernorm.weight",
        "model.layers.1.mlp.experts.01.gate_proj.weight",
        "model.layers.1.mlp.experts.1.gate_proj.bias",
        "model.layers.x.input_layernorm.weight",
        "model.layers.1.",
        "model.vision.weight",
    ],
)
def test_an_unknown_tensor_keeps_its_own_name_and_is_a_finding(name: str) -> None:
    layers = DEMO_CONFIG["num_hidden_layers"]
    view, checkpoint = view_of(DEMO_CONFIG, renamed(tensors_of(DEMO_CONFIG), "sglang", layers) | {name: ("BF16", (1,))})
    assert view.tensors.keys() - tensors_of(DEMO_CONFIG).keys() == {name}
    inventory = take_inventory(Checkpoint(checkpoint.source, checkpoint.config, {}, (), view.tensors, ()))
    (error,) = inventory.errors
    assert error.code == "unknown-tensors"
    assert name in error.message


@pytest.mark.slow
def test_a_native_checkpoint_is_left_as_it_is(folders: dict[str, Path]) -> None:
    checkpoint = read(folders["native"])
    assert checkpoint.dialect == NATIVE
    assert checkpoint.findings == ()
    view = native_view(checkpoint.config, checkpoint.tensors)
    assert view.tensors is checkpoint.tensors


@pytest.mark.parametrize("part", ["weight", "weight_scale", "weight_scale_2", "input_scale"])
@pytest.mark.parametrize(("word", "native"), [("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3")])
def test_nvfp4_keeps_its_parts_under_sglangs_names(part: str, word: str, native: str) -> None:
    book = dialects.Dictionary(dialects.SGLANG, V4, in_memory(DEMO_CONFIG, {}).config)
    assert book.native(f"model.layers.1.mlp.experts.3.{word}.{part}") == f"layers.1.ffn.experts.3.{native}.{part}"


# --- the same as the native one ------------------------------------------------------------------------------------


def told(plan: Plan) -> dict[str, Any]:
    """A plan without what tells its checkpoint from others; its rows follow the order of tensors in the files."""
    document = plan.model_dump(exclude={"source", "out", "ways", "host"})
    return document | {"modules": sorted(document["modules"], key=lambda row: (row["part_of"], row["role"]))}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_inventory_is_that_of_the_native_checkpoint(folders: dict[str, Path], dialect: str) -> None:
    checkpoint, inventory = open_folder(folders[dialect])
    native, due = open_folder(folders[native_of(dialect)])
    assert checkpoint.dialect == dialect.partition(",")[0]
    (note,) = inventory.findings
    assert (note.code, note.severity) == ("dialect", "note")
    assert inventory.names == {name: due.names[name] for name in inventory.names}
    for field in ("names", "groups", "formats", "draft"):
        assert getattr(inventory, field) == getattr(due, field)
    tensors = load_checkpoint(folders[native_of(dialect)])
    for name, tensor in checkpoint.tensors.items():
        data = (folders[dialect] / tensor.file).read_bytes()[tensor.start : tensor.stop]
        assert data == raw(tensors[name]), name
    assert {name: t.shape for name, t in checkpoint.tensors.items()} == {n: t.shape for n, t in native.tensors.items()}


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [{"engine": "reference", "tp": 2}, {"engine": "sglang", "tp": 4, "ep": 2},
                                    {"engine": "vllm", "tp": 2}], ids=lambda wanted: wanted["engine"])  # fmt: skip
@pytest.mark.parametrize("dialect", DIALECTS)
def test_plan_and_rank_files_are_those_of_the_native_checkpoint(
    folders: dict[str, Path], tmp_path: Path, dialect: str, wanted: dict[str, Any]
) -> None:
    made = {}
    for which in (native_of(dialect), dialect):
        checkpoint, inventory = open_folder(folders[which])
        plan = make_plan(checkpoint, inventory, Request(**wanted))
        out = tmp_path / f"out-{which == dialect}"
        reshard(prepare(checkpoint, inventory, plan), checkpoint, out)
        assert verify(out, (checkpoint, inventory)).ok
        files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.safetensors")}
        made[which == dialect] = (told(plan), files)
    assert made[True][1]
    assert made[True] == made[False]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_node_folders_have_native_names_and_are_no_links(
    folders: dict[str, Path], tmp_path: Path, dialect: str
) -> None:
    checkpoint, inventory = open_folder(folders[dialect])
    plan = make_plan(checkpoint, inventory, Request(4, engine="node", nodes=2))
    outcome = reshard(prepare(checkpoint, inventory, plan), checkpoint, tmp_path / "out")
    assert outcome.linked == 0
    assert verify(tmp_path / "out", (checkpoint, inventory)).ok
    source = load_checkpoint(folders[native_of(dialect)])
    found = [load_checkpoint(tmp_path / "out" / f"node-{node}") for node in range(2)]
    assert found[0].keys() | found[1].keys() == source.keys()
    for there in found:
        assert all(raw(tensor) == raw(source[name]) for name, tensor in there.items())
    index = json.loads((tmp_path / "out/node-0" / INDEX_FILE).read_text())
    assert index["weight_map"].keys() == found[0].keys()


@pytest.mark.slow
def test_inspect_says_whose_names_they_are(folders: dict[str, Path]) -> None:
    result = CliRunner().invoke(app, ["inspect", str(folders["sglang"]), "--json"])
    assert json.loads(result.stdout)["identity"]["dialect"] == "sglang"
    shown = CliRunner().invoke(app, ["inspect", str(folders["sglang"])])
    assert "named as by SGLang and miles" in " ".join(shown.stdout.split())


def test_a_plan_that_writes_nothing_says_that_names_were_not_looked_at(folders: dict[str, Path]) -> None:
    for which, said in (("native", False), ("v3", True)):
        plan = make_plan(*open_folder(folders[which]), Request(2, engine="trtllm"))
        assert plan.layout is None
        assert any("own names (v3)" in line for line in plan.assumptions) is said


# --- formats of dialects -------------------------------------------------------------------------------------------


def test_what_miles_quantizes_is_taken_as_it_is() -> None:
    """FP8 with F32 scales everywhere but wo_a, which is BF16; no MTP block."""
    document = DEMO_CONFIG | {"expert_dtype": "fp8"}
    native = tensors_of(document, mtp_blocks=0, scales="F32", o_a="BF16")
    view, checkpoint = view_of(document, renamed(native, "sglang", document["num_hidden_layers"]))
    inventory = take_inventory(Checkpoint(checkpoint.source, checkpoint.config, {}, (), view.tensors, ()))
    assert inventory.errors == ()
    assert inventory.routed.scale_dtype == "F32"


def plain(tensors: Tensors, norms: str) -> Tensors:
    """`tensors` without any quantization, with `norms` of a dtype."""
    result: Tensors = {}
    for name, (dtype, shape) in tensors.items():
        if name.endswith(".scale"):
            continue
        shape = (shape[0], shape[1] * 2) if dtype == "I8" else shape
        dtype = {"I8": "BF16", "F8_E4M3": "BF16"}.get(dtype, dtype)
        result[name] = (norms if "norm.weight" in name else dtype, shape)
    return result


@pytest.mark.parametrize(("dialect", "ok"), [("transformers", True), ("transformers-resaved", True), ("v3", False)])
def test_norms_of_an_unquantized_model_may_be_f32_where_transformers_saved_it(dialect: str, ok: bool) -> None:
    native = plain(tensors_of(DEMO_CONFIG, mtp_blocks=0), "F32")
    inventory = self_inventory(native, dialect)
    assert [error.code for error in inventory.errors] == ([] if ok else ["odd-dtypes"])


def test_norms_of_a_quantized_model_may_not() -> None:
    native = {name: ("F32", shape) if "norm.weight" in name else (dtype, shape)
              for name, (dtype, shape) in tensors_of(DEMO_CONFIG, mtp_blocks=0).items()}  # fmt: skip
    assert [error.code for error in self_inventory(native, "transformers").errors] == ["odd-dtypes"]


def self_inventory(native: Tensors, dialect: str) -> Inventory:
    view, checkpoint = view_of(DEMO_CONFIG, renamed(native, dialect, DEMO_CONFIG["num_hidden_layers"]))
    tool = view.dialect.name if view.dialect else NATIVE
    return take_inventory(Checkpoint(checkpoint.source, checkpoint.config, {}, (), view.tensors, (), tool))


def test_scales_that_transformers_lost_end_in_an_error_that_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["transformers-resaved"], tmp_path / "lost")
    tensors = load_checkpoint(folder)
    for name in [name for name in tensors if ".ffn.experts." in name and name.endswith(".scale")]:
        scale = tensors.pop(name)
        tensors["." + name.partition(".ffn.")[2].replace("scale", "weight")] = scale
    checkpoint, inventory = open_folder(rewrite(folder, tensors))
    assert checkpoint.dialect == "transformers-resaved"
    assert inventory.errors[0].code == "missing-scales"
    assert ".experts.0.w1.weight" in inventory.errors[0].message
    assert "save_original_format=False" in inventory.errors[0].message
    assert "unknown-tensors" not in {error.code for error in inventory.errors}


def test_transformers_own_config_is_understood_and_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Its keys say the same, but engines and DeepSeek's model read the original ones."""
    folder = shutil.copytree(folders["transformers"], tmp_path / "model")
    document = json.loads((folder / "config.json").read_text())
    ratios, hashed = document.pop("compress_ratios"), document.pop("num_hash_layers")
    kinds = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
    layers = document["num_hidden_layers"]
    document |= {
        "layer_types": [kinds[ratio] for ratio in ratios[:layers]],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
        "mlp_layer_types": ["hash_moe"] * hashed + ["moe"] * (layers - hashed),
    }
    (folder / "config.json").write_text(json.dumps(document))
    (error,) = open_folder(folder)[1].errors
    assert error.code == "config-dialect"
    assert "the original release's config.json" in error.message


# --- mixed and hostile ---------------------------------------------------------------------------------------------

SMALL = tensors_of(DEMO_CONFIG, mtp_blocks=0)
SMALL_LAYERS = DEMO_CONFIG["num_hidden_layers"]


OWN = {
    "native": "layers.1.attn.kv_norm.weight",
    "sglang": "model.layers.1.self_attn.wq_a.weight",
    "v3": "model.layers.1.self_attn.kv_a_layernorm.weight",
    "transformers": "model.layers.1.self_attn.sinks",
    "transformers-resaved": "model.layers.1.attn.norm.weight",
}
"""A name that no other dialect has."""


@pytest.mark.parametrize(("mostly", "stray"), [(one, other) for one in OWN for other in OWN if one != other])
def test_a_name_of_another_dialect_is_refused_by_name(mostly: str, stray: str) -> None:
    most = SMALL if mostly == "native" else renamed(SMALL, mostly, SMALL_LAYERS)
    with pytest.raises(MixedDialects) as caught:
        view_of(DEMO_CONFIG, most | {OWN[stray]: ("BF16", (128,))})
    assert OWN[stray] in str(caught.value)


def test_two_names_for_one_tensor_are_refused_with_both() -> None:
    tensors = renamed(tensors_of(DEMO_CONFIG), "sglang", SMALL_LAYERS)
    twice = "mtp.0.input_layernorm.weight"
    with pytest.raises(DuplicateTensor) as caught:
        view_of(DEMO_CONFIG, tensors | {twice: tensors[f"model.layers.{SMALL_LAYERS}.input_layernorm.weight"]})
    assert twice in str(caught.value)
    assert f"model.layers.{SMALL_LAYERS}.input_layernorm.weight" in str(caught.value)


STACKED = renamed(SMALL, "transformers", SMALL_LAYERS)
GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        (GATE_UP, (15, 6144, 128), "a stack of 15 experts, config.json has 16"),
        (GATE_UP, (10**9, 6144, 0), "a stack of 1000000000 experts, config.json has 16"),
        (GATE_UP, (0, 6144, 128), "a stack of 0 experts, config.json has 16"),
        (GATE_UP, (16, 6143, 128), "6143 rows do not fall into 2 projections"),
        (GATE_UP, (16, 6144), "2 axes, a stack of experts has 3"),
        (GATE_UP, (), "0 axes, a stack of experts has 3"),
        (GATE_UP, (16, 6144, 128, 1), "4 axes, a stack of experts has 3"),
        (GATE_UP + "_scale_inv", (16, 5, 8), "5 rows do not fall into 2 projections"),
        (GATE_UP + "_scale_inv", (16, 46, 8), "23 rows of scales for 3072 of the gate projection"),
        ("model.layers.1.mlp.experts.down_proj", (17, 256, 1536), "a stack of 17 experts"),
    ],
)
def test_a_stack_of_another_shape_is_refused_with_its_name_and_numbers(
    name: str, shape: tuple[int, ...], said: str
) -> None:
    with pytest.raises(BadStack) as caught:
        view_of(DEMO_CONFIG, STACKED | {name: (STACKED[name][0], shape)})
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{name} {list(shape)}")


@pytest.mark.parametrize("shape", [(16, 6142, 128), (16, 6144, 127), (16, 0, 0)])
def test_a_stack_of_another_size_is_a_finding_about_its_experts(shape: tuple[int, ...]) -> None:
    view, checkpoint = view_of(DEMO_CONFIG, STACKED | {GATE_UP: ("I8", shape)})
    inventory = take_inventory(Checkpoint(checkpoint.source, checkpoint.config, {}, (), view.tensors, ()))
    assert "odd-shapes" in {error.code for error in inventory.errors}
    assert any("layers.1.ffn.experts.0.w1.weight" in error.message for error in inventory.errors)


def test_stacks_of_too_many_experts_are_refused_before_they_are_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialects, "MAX_UNSTACKED", 100)
    with pytest.raises(BadStack, match="more than 100 tensors"):
        view_of(DEMO_CONFIG, STACKED)


def test_blocks_of_scales_that_lie_across_gate_and_up_are_refused() -> None:
    """96 rows of each in blocks of 128: the second block holds rows of both."""
    document = DEMO_CONFIG | {"moe_intermediate_size": 96}
    tensors = STACKED | {
        GATE_UP: ("F8_E4M3", (16, 192, 256)),
        GATE_UP + "_scale_inv": ("F8_E8M0", (16, 2, 2)),
    }
    with pytest.raises(BadStack, match="a block would lie across gate and up"):
        view_of(document, tensors)
