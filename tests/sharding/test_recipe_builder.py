"""Every byte of every rank's file has exactly one origin, and every source tensor a fate."""

import re
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from math import gcd, prod
from typing import Any, NamedTuple

import pytest
from hypothesis import assume, given, settings
from support.checkpoints.full_size import PRO, feasible, inventory_of
from support.checkpoints.small import small_config
from support.recipes import Case, cases, cases_with_ranks, raw_cases, vllm_cases

from dsv4_shard.checkpoint.inventory import take_inventory
from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.registry import find_engine
from dsv4_shard.engines.vllm.files import layout_class
from dsv4_shard.models.names import scale_name
from dsv4_shard.planning.choice import choose
from dsv4_shard.sharding.recipe import ALL_RANKS, Destination, OutputFile, Recipe, Slice, Step
from dsv4_shard.sharding.recipe_builder import make_recipe
from dsv4_shard.tensors.dtype_casts import CONVERSIONS
from dsv4_shard.tensors.header import DTYPE_BITS, parse_header

FP8_BLOCK, FP4_BLOCK = (128, 128), (1, 32)


# --- what a recipe says, told by output tensor ---------------------------------------------------------------------


class Piece(NamedTuple):
    """A piece of an output tensor: its place there, and its origin."""

    slot: int
    at: int
    nbytes: int
    source: str
    cut: Slice | None


def landed(step: Step, cut: Slice) -> int:
    """Bytes that a cut becomes."""
    assert cut.rows * cut.row_nbytes * step.repeat > 0
    nbytes = cut.rows * cut.row_nbytes
    if step.transform is not None:
        return nbytes * 2
    if step.conversion is not None:
        return nbytes * DTYPE_BITS[step.conversion.target] // DTYPE_BITS[step.conversion.source]
    return nbytes


def pieces_of(recipe: Recipe) -> dict[tuple[int, str], list[Piece]]:
    """The pieces of every output tensor, by (file number, name), in slot order."""
    found: dict[tuple[int, str], list[Piece]] = defaultdict(list)
    for step in recipe.steps:
        for landing in step.landings:
            for cut, files in landing.spread:
                piece = Piece(landing.slot, landing.at, landed(step, cut), step.source.name, cut)
                for file in files:
                    found[file, landing.tensor].append(piece)
                    if step.transform is not None and step.transform.name == "fp4_to_fp8":
                        scales = cut.rows // 128 * (cut.row_nbytes * 2 // 128)
                        assert step.scale is not None
                        found[file, scale_name(landing.tensor)].append(Piece(0, 0, scales, step.scale.name, cut))
    for fixed in recipe.fixed:
        found[fixed.file, fixed.tensor].append(Piece(0, 0, len(fixed.data), fixed.data.hex(), None))
    return {key: sorted(pieces) for key, pieces in found.items()}


def ranks_of(file: OutputFile, world: int) -> tuple[int, ...]:
    """The ranks that a file of a full run is for, from its name."""
    number = re.search(r"model-rank-(\d+)-part-(\d)|model(\d+)-mp", file.name)
    assert number is not None
    return tuple(range(world)) if number[2] == "1" else (int(number[1] or number[3] or 0),)


def origins(case: Case, landing: Destination) -> dict[int, Slice]:
    """Which cut each rank gets of a landing; none gets two."""
    found: dict[int, Slice] = {}
    for cut, files in landing.spread:
        for number in files:
            for rank in ranks_of(case.recipe.files[number], case.deployment.world):
                assert rank not in found
                found[rank] = cut
    return found


@pytest.mark.slow
@settings(max_examples=90)
@given(cases_with_ranks())
def test_pieces_tile_each_tensor_and_tensors_each_file_without_overlap_or_hole(
    job: tuple[Case, tuple[int, ...]],
) -> None:
    case, ranks = job
    recipe = case.for_ranks(ranks)
    pieces = pieces_of(recipe)
    assert set(pieces) == {(number, name) for number, file in enumerate(recipe.files) for name in file.tensors}
    for (number, name), mine in pieces.items():
        file = recipe.files[number]
        ends = [piece.at + piece.nbytes for piece in mine]
        assert [piece.slot for piece in mine] == list(range(len(mine)))
        assert [piece.at for piece in mine] == [0, *ends[:-1]]
        assert ends[-1] == file.tensors[name].nbytes
        runs = [nbytes for count, nbytes in file.pieces.get(name, ()) for _ in range(count)]
        assert runs == ([piece.nbytes for piece in mine] if len(mine) > 1 else [])
        assert all(before[1] != after[1] for before, after in pairwise(file.pieces.get(name, ())))
        assert recipe.offset(number, name) == len(file.header) + file.tensors[name].start
    for file in recipe.files:
        places = sorted((info.start, info.stop) for info in file.tensors.values())
        assert [start for start, _ in places] == [0, *(stop for _, stop in places[:-1])]
        assert file.payload == places[-1][1] == file.nbytes - len(file.header)
        assert file.pieces.keys() <= file.tensors.keys()
    assert recipe.nbytes == sum(file.nbytes for file in recipe.files)


@pytest.mark.slow
@settings(max_examples=60)
@given(cases_with_ranks())
def test_each_cut_comes_from_within_its_source_in_whole_elements(job: tuple[Case, tuple[int, ...]]) -> None:
    case, ranks = job
    for step in case.for_ranks(ranks).steps:
        assert case.checkpoint.tensors[step.source.name] == step.source
        item = DTYPE_BITS[step.source.dtype] // 8
        rows = step.source.shape[0] * step.repeat
        row_nbytes = prod(step.source.shape[1:]) * (step.repeat if len(step.source.shape) > 1 else 1) * item
        assert len(step.fill) == item
        for landing in step.landings:
            assert len({(cut.rows, cut.row_nbytes) for cut, _ in landing.spread}) == 1
            for cut, files in landing.spread:
                area = cut.rectangle
                assert 0 <= area.row_start <= area.row_stop <= rows
                assert 0 <= area.start <= area.stop <= row_nbytes
                assert area.nbytes or cut.pad_rows or cut.pad_cols
                assert cut.pad_rows >= 0 <= cut.pad_cols
                assert area.start % item == area.stop % item == cut.pad_cols % item == 0
                assert list(files) == sorted(set(files))


@settings(max_examples=60)
@given(cases())
def test_dtypes_change_by_a_conversion_or_not_at_all_but_in_name(case: Case) -> None:
    for step in case.recipe.steps:
        for landing in step.landings:
            for dtype in {
                case.recipe.files[file].tensors[landing.tensor].dtype for _, files in landing.spread for file in files
            }:
                if step.transform is not None:
                    assert dtype == (step.transform.scale_dtype if step.makes_scale else step.transform.weight_dtype)
                    assert (step.conversion, step.repeat) == (None, 1)
                elif step.conversion is not None:
                    assert step.conversion is CONVERSIONS[step.source.dtype, dtype]
                else:
                    assert dtype in {step.source.dtype, {"I8": "F4"}.get(step.source.dtype), "U8"}


@pytest.mark.slow
@settings(max_examples=60)
@given(cases())
def test_ranks_hold_each_source_byte_once_or_all_of_a_tensor_each(case: Case) -> None:
    deployment = case.deployment
    for step in case.recipe.steps:
        whole = step.source.nbytes * step.repeat**2
        for landing in step.landings:
            areas = sorted(cut.rectangle for cut, _ in landing.spread if cut.rectangle.nbytes)
            held = origins(case, landing)
            assert sum(area.nbytes for area in areas) == whole
            assert all(a.row_stop <= b.row_start or a.stop <= b.start for a, b in pairwise(areas))
            expert = re.search(r"\.experts\.(\d+)\.", step.source.name)
            owners = range(deployment.world)
            if expert:
                block = int(expert[1]) // (case.config["n_routed_experts"] // deployment.ep)
                owners = range(block * deployment.moe_tp, (block + 1) * deployment.moe_tp)
            assert sorted(held) == list(owners)


def kind_of(name: str) -> str:
    """A tensor's module: what is between its layer and its part, without the number of the expert."""
    name = re.sub(r"^(layers|mtp)\.\d+\.", "", re.sub(r"\.experts\.\d+\.", ".experts.", name))
    return re.sub(r"\.(weight|scale)$", "", name)


def cut_of(case: Case, kind: str) -> tuple[int, int, str] | None:
    """How a module is cut: axis, parts and by what; None where it is whole."""
    deployment = case.deployment
    table = {"attn.wq_b": 0, "attn.wo_a": 0, "attn.wo_b": 1}
    if deployment.engine == "reference":
        table |= {"embed": 0, "head": 0, "attn.attn_sink": 0, "attn.indexer.wq_b": 0, "attn.indexer.weights_proj": 0}
        return (table[kind], deployment.tp, "even") if kind in table else None
    if kind in table or (kind == "attn.attn_sink" and deployment.engine == "vllm"):
        return table.get(kind, 0), deployment.attention_tp, "sink" if kind == "attn.attn_sink" else "even"
    if kind == "head" or (kind == "embed" and deployment.dp == 1):
        return 0, deployment.tp, "even"
    axis = 1 if kind.endswith("w2") else 0
    if ".shared_experts." in kind and deployment.shared_parts > 1:
        return axis, deployment.tp, "blocks" if deployment.shared == "pad" else "even"
    if ".experts." in kind and deployment.moe_tp > 1:
        return axis, deployment.moe_tp, {"A": "tile", "B": "half a tile", "F": "blocks"}.get(vllm_class(case), "even")
    return None


def vllm_class(case: Case) -> str:
    """A, B, D, E or F; empty for other engines."""
    return layout_class(case.context) if case.deployment.engine == "vllm" else ""


def up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


@pytest.mark.slow
@settings(max_examples=150)
@given(cases())
def test_each_rank_gets_the_part_that_its_place_in_its_group_gives_it(case: Case) -> None:
    """Told in elements of the weights, also for their scales: rank r of a group of n has the r-th n-th."""
    for step in case.recipe.steps:
        name = step.source.name
        weight = case.checkpoint.tensors.get(name.removesuffix("scale") + "weight", step.source)
        packed = weight.dtype == "I8"
        sizes = (weight.shape[0], prod(weight.shape[1:]) * (2 if packed else 1))
        unit = (1, 2 if packed else 1)
        if name.endswith(".scale"):
            block = FP4_BLOCK if packed else FP8_BLOCK
            unit = (block[0] // step.repeat, block[1] // step.repeat)
        item = DTYPE_BITS[step.source.dtype] // 8
        found = cut_of(case, kind_of(name))
        for landing in step.landings:
            for rank, cut in origins(case, landing).items():
                area = cut.rectangle
                held = ((area.row_start, area.row_stop), (area.start // item, area.stop // item))
                padded = (cut.rows, cut.row_nbytes // item)
                for axis in (0, 1):
                    size, start, stop, filled = sizes[axis], 0, sizes[axis], sizes[axis]
                    if found and found[0] == axis:
                        _, parts, way = found
                        local = up(size, 128 * parts) // parts if way == "blocks" else size // parts
                        start = min(rank % parts * local, size)
                        stop = min(start + local, size)
                        filled = up(local, {"sink": 64, "tile": 128, "half a tile": 64}.get(way, 1))
                    ours = tuple(min(edge * unit[axis], size) for edge in held[axis])
                    assert ours == (start, min(up(stop, unit[axis]), size)), (name, rank, axis)
                    assert padded[axis] * unit[axis] == up(filled, unit[axis]), (name, rank, axis)


@settings(max_examples=60)
@given(vllm_cases())
def test_padding_is_zero_but_for_attention_sinks_and_scales_of_padded_fp8_experts(case: Case) -> None:
    for step in case.recipe.steps:
        if step.source.name.endswith("attn_sink"):
            assert step.fill == b"\x00\x00\x80\xff"  # -inf: a padded head must not draw any attention
        elif ".experts." in step.source.name and step.source.name.endswith("scale") and vllm_class(case) == "F":
            assert step.fill == {"F8_E8M0": b"\x7f", "F32": b"\x00\x00\x80\x3f"}[step.source.dtype]
        else:
            assert not any(step.fill)


@pytest.mark.slow
@settings(max_examples=60)
@given(vllm_cases())
def test_only_scales_of_fp8_experts_in_finer_blocks_are_repeated(case: Case) -> None:
    config = case.config
    for step in case.recipe.steps:
        repeat = 1
        if ".experts." in step.source.name and step.source.name.endswith("scale") and vllm_class(case) == "E":
            repeat = 128 // gcd(config["moe_intermediate_size"] // case.deployment.moe_tp, 128, config["hidden_size"])
            assert repeat > 1
        assert step.repeat == repeat


@pytest.mark.parametrize(("experts", "runner", "intermediate", "ep", "wanted"), [
    ("fp4", "marlin", 192, 1, "A"),
    ("fp4", "triton_unfused", 192, 1, "B"),
    ("fp8", "triton", 512, 1, "D"),
    ("fp8", "triton", 384, 4, "D"),
    ("fp8", "triton", 384, 1, "E"),
    ("fp8", "deep_gemm", 384, 1, "F"),
])  # fmt: skip
def test_vllms_classes_of_expert_shapes_are_all_among_the_cases(
    experts: str, runner: str, intermediate: int, ep: int, wanted: str
) -> None:
    config = small_config(expert_dtype=experts, moe_intermediate_size=intermediate * (2 if experts == "fp4" else 1))
    case = Case(config, Request(tp=4, ep=ep, engine="vllm", runner=runner))
    assert vllm_class(case) == wanted
    case.recipe.nbytes  # noqa: B018 - it can be made


# --- order ---------------------------------------------------------------------------------------------------------

FUSED = {
    r"self_attn\.wqkv_a\.|attn\.fused_wqa_wkv\.": ("attn.wq_a", "attn.wkv"),
    r"self_attn\.compressor\.wkv_gate\.|attn\.compressor\.fused_wkv_wgate\.": (
        "attn.compressor.wkv",
        "attn.compressor.wgate",
    ),
    r"indexer\.compressor\.(wkv_gate|fused_wkv_wgate)\.": (
        "attn.indexer.compressor.wkv",
        "attn.indexer.compressor.wgate",
    ),
    r"gate_up_proj\.": ("ffn.shared_experts.w1", "ffn.shared_experts.w3"),
}


def is_up_first(case: Case) -> bool:
    deployment = case.deployment
    return (deployment.engine, deployment.runner, deployment.gpu.family) == ("sglang", "flashinfer_mxfp4", "Hopper")


@pytest.mark.slow
@settings(max_examples=90)
@given(raw_cases())
def test_joined_tensors_have_their_sources_in_the_engines_order(case: Case) -> None:
    seen = set()
    for (number, name), pieces in pieces_of(case.recipe).items():
        sources = [piece.source for piece in pieces]
        if "_w13_" in (marked := name.replace(".w13_", "_w13_").replace(".w2_", "_w2_")) or "_w2_" in marked:
            rank = ranks_of(case.recipe.files[number], case.deployment.world)[0]
            each = case.config["n_routed_experts"] // case.deployment.ep
            first = rank // case.deployment.moe_tp * each
            parts = ["w2"] if "_w2_" in marked else ["w3", "w1"] if is_up_first(case) else ["w1", "w3"]
            prefix = sources[0].split(".experts.")[0]
            part = "scale" if "scale" in name else "weight"
            wanted = [f"{prefix}.experts.{first + e}.{w}.{part}" for e in range(each) for w in parts]
            assert sources == wanted
            shape = case.recipe.files[number].tensors[name].shape
            assert shape[0] == each
            assert len(shape) == 3
            continue
        fused = next((order for pattern, order in FUSED.items() if re.search(pattern, name)), None)
        if fused is None:
            assert len(sources) == 1, (name, sources)
            continue
        seen.add(fused)
        assert [kind_of(source) for source in sources] == list(fused)
        stem = {source[: source.index(kind_of(source))] for source in sources}
        assert len(stem) == 1, "both halves are of one layer"
        assert len({source.rsplit(".", 1)[1] for source in sources}) == 1, "weights and scales do not mix"
    assert FUSED[r"gate_up_proj\."] in seen


@pytest.mark.parametrize(("runner", "gpu", "wanted"), [
    ("marlin", "h200", ["w1", "w3"]),
    ("flashinfer_mxfp4", "h200", ["w3", "w1"]),
    ("flashinfer_mxfp4", "b200", ["w1", "w3"]),
])  # fmt: skip
def test_w13_has_the_up_projection_first_where_the_runner_wants_it_so(runner: str, gpu: str, wanted: list[str]) -> None:
    case = Case(small_config(), Request(tp=2, ep=1, engine="sglang", runner=runner, gpu=gpu))
    pieces = pieces_of(case.recipe)
    mine = next(pieces[key] for key in pieces if key[1] == "model.layers.0.mlp.experts.w13_weight")
    assert [piece.source.split(".")[-2] for piece in mine[:2]] == wanted
    header = case.recipe.files[1].header
    metadata = parse_header(header[8:], case.recipe.files[1].nbytes, "file").metadata
    assert metadata["w13_order"] == ("up, gate" if wanted[0] == "w3" else "gate, up")


# --- steps ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=60)
@given(cases_with_ranks())
def test_steps_follow_the_order_of_the_sources_bytes_and_read_each_tensor_once(
    job: tuple[Case, tuple[int, ...]],
) -> None:
    case, ranks = job
    places = [(step.source.file, step.source.start) for step in case.for_ranks(ranks).steps]
    assert places == sorted(places)
    assert len(set(places)) == len(places)


@pytest.mark.slow
@settings(max_examples=60)
@given(cases())
def test_each_source_tensor_is_moved_decoded_or_left_out_with_a_reason(case: Case) -> None:
    recipe = case.recipe
    moved = {step.source.name for step in recipe.steps if not step.makes_scale}
    decoded = {step.scale.name for step in recipe.steps if step.scale is not None and step.transform is not None}
    made = {step.source.name for step in recipe.steps if step.makes_scale}
    casting = [step for step in recipe.steps if step.transform is not None and step.transform.rescale is not None]
    assert made == {step.scale.name for step in casting if step.scale is not None}
    assert all(step.scale is None for step in recipe.steps if step.transform is None)
    assert all(step.scale.name == scale_name(step.source.name) for step in recipe.steps if step.scale is not None)
    o_a = {name for name in case.checkpoint.tensors if name.endswith("wo_a.scale")}
    keeps = case.deployment.engine == "vllm" or (case.deployment.engine == "sglang" and case.deployment.gpu.sm >= 100)
    assert set(recipe.left_out) == (set() if keeps else o_a)
    assert all("wo_a.weight" in reason for reason in recipe.left_out.values())
    casts = {name for name in decoded if ".experts." in name}
    assert decoded - casts == set(recipe.left_out)
    assert not moved & decoded
    assert moved | decoded == case.checkpoint.tensors.keys()


@pytest.mark.parametrize("engine", ["reference", "sglang", "vllm"])
def test_the_mtp_blocks_own_embedding_and_head_are_left_out_with_a_reason(engine: str) -> None:
    spare = ("mtp.0.emb.tok_emb.weight", "mtp.0.head.weight")
    case = Case(small_config(), Request(tp=2, engine=engine), spare=spare)
    for name in spare:
        assert "shares" in case.recipe.left_out[name]
        assert all(step.source.name != name for step in case.recipe.steps)
        assert all(name not in file.tensors for file in case.recipe.files)


@pytest.mark.slow
@settings(max_examples=30)
@given(vllm_cases())
def test_what_vllms_target_and_draft_both_hold_is_read_once(case: Case) -> None:
    landings = {
        name: [
            (case.recipe.files[landing.spread[0][1][0]].name.startswith("draft/"), landing.tensor)
            for step in case.recipe.steps
            if step.source.name == name
            for landing in step.landings
        ]
        for name in ("embed.weight", "head.weight")
    }
    block = f"model.layers.{case.config['num_hidden_layers']}"
    assert landings == {
        "embed.weight": [(False, "model.embed_tokens.weight"), (True, "model.embed_tokens.weight")][: 1 + case.mtp],
        "head.weight": [(False, "lm_head.weight"), (True, f"{block}.shared_head.head.weight")][: 1 + case.mtp],
    }
    assert sum(step.source.name in landings for step in case.recipe.steps) == 2


@pytest.mark.slow
@settings(max_examples=60)
@given(raw_cases())
def test_the_draft_has_files_of_its_own_with_nothing_but_its_blocks(case: Case) -> None:
    for step in case.recipe.steps:
        folders = {
            case.recipe.files[file].name.rpartition("/")[0]
            for landing in step.landings
            for _, files in landing.spread
            for file in files
        }
        if not (case.deployment.engine == "vllm" and step.source.name in ("embed.weight", "head.weight") and case.mtp):
            assert folders == {"draft" if step.source.name.startswith("mtp.") else ""}


# --- ranks, files, headers -----------------------------------------------------------------------------------------


def is_shared(file: OutputFile) -> bool:
    return "-part-1." in file.name


@pytest.mark.slow
@settings(max_examples=90)
@given(cases_with_ranks())
def test_some_ranks_alone_give_the_files_of_the_full_run(job: tuple[Case, tuple[int, ...]]) -> None:
    case, ranks = job
    whole, some = case.recipe, case.for_ranks(ranks)
    kept = [n for n, file in enumerate(whole.files) if set(file.ranks) & set(ranks)]
    assert len(some.files) == len(kept)
    for number, file in zip(kept, some.files, strict=True):
        full = whole.files[number]
        assert file.ranks == tuple(rank for rank in ranks if rank in full.ranks)
        assert (file.header, file.tensors, file.pieces) == (full.header, full.tensors, full.pieces)
        names = dict(zip(full.ranks, (full.name, *full.links), strict=True))
        assert (file.name, *file.links) == tuple(names[rank] for rank in file.ranks)
    assert some.left_out == whole.left_out
    assert some.nbytes == sum(whole.files[number].nbytes for number in kept)
    expected = []
    for step in whole.steps:
        landings = []
        for landing in step.landings:
            spread = [(cut, tuple(kept.index(f) for f in files if f in kept)) for cut, files in landing.spread]
            spread = [one for one in spread if one[1]]
            if spread:
                landings.append(landing._replace(spread=set(spread)))  # type: ignore[arg-type]
        if landings:
            expected.append(replace(step, landings=tuple(landings)))
    as_sets = [replace(s, landings=tuple(x._replace(spread=set(x.spread)) for x in s.landings)) for s in some.steps]  # type: ignore[arg-type]
    assert as_sets == expected
    fixed = {(kept.index(f.file), f.tensor, f.data) for f in whole.fixed if f.file in kept}
    assert {(f.file, f.tensor, f.data) for f in some.fixed} == fixed
    assert len(some.fixed) == len(fixed)


def common_tensors(case: Case) -> list[tuple[bool, bool, str]]:
    """(is the same on every rank, is in the file of all ranks, folder and name) for every output tensor."""
    held: dict[str, dict[int, object]] = defaultdict(dict)
    shared: dict[str, bool] = {}
    for (number, name), pieces in pieces_of(case.recipe).items():
        file = case.recipe.files[number]
        key = f"{file.name.rpartition('/')[0]}/{name}"
        assert shared.setdefault(key, is_shared(file)) == is_shared(file), "a tensor is in one kind of file"
        for rank in ranks_of(file, case.deployment.world):
            assert rank not in held[key]
            held[key][rank] = (file.tensors[name][:2], [(piece.source, piece.cut) for piece in pieces])
    return [
        (len(by_rank) == case.deployment.world and all(one == by_rank[0] for one in by_rank.values()), shared[key], key)
        for key, by_rank in held.items()
    ]


@pytest.mark.slow
@settings(max_examples=90)
@given(raw_cases())
def test_the_shared_file_holds_exactly_what_every_rank_has_in_common(case: Case) -> None:
    assume(case.deployment.world == 1 or case.deployment.attention_tp > 1)
    for common, shared, name in common_tensors(case):
        assert shared == (common and case.deployment.world > 1), name


def test_attention_that_data_parallelism_leaves_whole_is_shared_too() -> None:
    case = Case(small_config(), Request(tp=4, dp=4, engine="sglang"))
    assert [name for common, shared, name in common_tensors(case) if common != shared] == []


@settings(max_examples=60)
@given(cases())
def test_files_are_one_a_rank_and_one_that_all_share_under_each_ranks_name(case: Case) -> None:
    world, folders = (
        case.deployment.world,
        ["", "draft/"] if case.mtp and case.deployment.engine != "reference" else [""],
    )
    names = [(file.name, file.ranks, file.links) for file in case.recipe.files]
    if case.deployment.engine == "reference":
        assert names == [(f"model{rank}-mp{world}.safetensors", (rank,), ()) for rank in range(world)]
        return
    expected = []
    for folder in folders:
        if world > 1:
            part = [f"{folder}model-rank-{rank}-part-1.safetensors" for rank in range(world)]
            expected.append((part[0], tuple(range(world)), tuple(part[1:])))
        expected += [(f"{folder}model-rank-{rank}-part-0.safetensors", (rank,), ()) for rank in range(world)]
    assert names == expected


@pytest.mark.slow
@settings(max_examples=60)
@given(cases_with_ranks())
def test_headers_are_what_a_strict_reader_takes_and_name_sizes_that_add_up(job: tuple[Case, tuple[int, ...]]) -> None:
    case, ranks = job
    for file in case.for_ranks(ranks).files:
        header = parse_header(file.header[8:], file.nbytes, file.name)
        assert header.data_start == len(file.header)
        assert header.tensors == file.tensors
        assert header.warnings == ()
        for info in file.tensors.values():
            assert prod(info.shape) * DTYPE_BITS[info.dtype] == info.nbytes * 8


@pytest.mark.slow
@settings(max_examples=60)
@given(cases_with_ranks())
def test_headers_say_for_what_and_which_rank_the_files_are_but_the_references_say_nothing(
    job: tuple[Case, tuple[int, ...]],
) -> None:
    case, ranks = job
    identity = case.layout.identity(case.context)
    assert bool(identity) == (case.deployment.engine != "reference")
    for file in case.for_ranks(ranks).files:
        metadata = parse_header(file.header[8:], file.nbytes, file.name).metadata
        if case.deployment.engine == "reference":
            assert metadata == {}
            assert b"__metadata__" not in file.header
            continue
        assert metadata == identity | {"rank": "all" if is_shared(file) else str(file.ranks[0])}
        assert metadata["engine"] == f"{case.deployment.engine} {case.deployment.version}"
        assert (metadata["tp"], metadata["ep"], metadata["experts"]) == (
            str(case.deployment.tp),
            str(case.deployment.ep),
            case.deployment.experts,
        )


# --- constants -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world", "shared"), [(1, False), (4, True)])
def test_kv_scales_of_one_stand_once_for_all_ranks_where_sglang_is_stock(world: int, shared: bool) -> None:
    config = small_config(expert_dtype="fp8", moe_intermediate_size=512)
    case = Case(config, Request(tp=world, engine="sglang", gpu="h200"))
    names = {f"{owner}.self_attn.attn_mqa.{which}_scale" for which in "kv" for owner in
             ("model.layers.0", "model.layers.1", "model.decoder")}  # fmt: skip
    assert {fixed.tensor for fixed in case.recipe.fixed} == names
    assert len(case.recipe.fixed) == len(names)
    for fixed in case.recipe.fixed:
        file = case.recipe.files[fixed.file]
        assert fixed.data == b"\x00\x00\x80\x3f"
        assert file.tensors[fixed.tensor][:2] == ("F32", ())
        assert is_shared(file) == shared
        assert file.name.startswith("draft/") == ("decoder" in fixed.tensor)


def test_old_vllm_gets_each_ranks_own_map_from_experts_to_slots() -> None:
    case = Case(small_config(), Request(tp=4, ep=4, engine="vllm", engine_version="0.25.0"))
    maps = defaultdict(set)
    for fixed in case.for_ranks((1, 3)).fixed:
        maps[case.for_ranks((1, 3)).files[fixed.file].ranks].add((fixed.tensor, fixed.data))
    names = [f"model.layers.{n}.ffn.experts.routed_experts._expert_map" for n in (0, 1)]
    names.append("model.layers.2.mtp_block.ffn.experts.routed_experts._expert_map")
    for rank in (1, 3):
        slots = [expert - 2 * rank if expert // 2 == rank else -1 for expert in range(8)]
        data = b"".join(slot.to_bytes(4, "little", signed=True) for slot in slots)
        assert maps[rank,] == {(name, data) for name in names}
    assert len(maps) == 2


def test_engines_without_constants_have_none() -> None:
    for engine, more in (("reference", {}), ("sglang", {}), ("vllm", {"ep": 2})):
        assert Case(small_config(), Request(tp=2, engine=engine, **more)).recipe.fixed == ()  # type: ignore[arg-type]


# --- refusals and size ---------------------------------------------------------------------------------------------


def test_an_engine_without_a_file_layout_has_no_recipe() -> None:
    case = Case(small_config(), Request(tp=2, engine="reference"))
    with pytest.raises(ValueError, match="no file layout"):
        make_recipe(case.checkpoint, find_engine("trtllm"), case.context, (0, 1))


@pytest.mark.parametrize("engine", ["reference", "sglang", "vllm"])
def test_a_deployment_that_does_not_divide_raises_where_rules_forgot_to_refuse_it(engine: str) -> None:
    case = Case(small_config(), Request(tp=2, engine=engine))
    deployment = replace(case.deployment, tp=3, world=3, attention_tp=3)
    with pytest.raises(ValueError, match=r"divi|does not"):
        make_recipe(case.checkpoint, find_engine(engine), replace(case.context, deployment=deployment), (0, 1, 2))


@pytest.mark.parametrize(("changes", "tp"), [
    ({"num_attention_heads": 8, "head_dim": 72, "o_groups": 4}, 4),  # q_b: 576 rows in 5 blocks
    ({"o_groups": 4, "o_lora_rank": 144}, 4),  # o_a: 576 rows in 5 blocks, 144 a rank
    ({"o_groups": 2, "o_lora_rank": 160}, 2),  # o_a: 320 rows in 3 blocks, 160 a rank
    ({"o_groups": 2, "o_lora_rank": 224}, 2),  # o_a: 448 rows in 4 blocks, 224 a rank
    ({"index_n_heads": 8, "index_head_dim": 72}, 4),
])  # fmt: skip
def test_rules_refuse_blocks_that_the_ranks_would_cut(changes: dict[str, Any], tp: int) -> None:
    case = Case(small_config(), Request(tp=tp, engine="reference"))
    changed = replace(case, config=small_config(**changes))
    assert not choose(take_inventory(changed.checkpoint), case.request).feasible


def test_two_mtp_blocks_are_refused_or_kept_apart() -> None:
    config = small_config(num_nextn_predict_layers=2, compress_ratios=[128, 4, 0, 0])
    case = Case(config, Request(tp=2, engine="sglang"), mtp=2)
    if case.layout.refusal(case.context) is None:
        norms = [info.shape for file in case.recipe.files for name, info in file.tensors.items() if "kv_norm" in name]
        assert set(norms) == {(config["head_dim"],)}


def test_finer_blocks_of_a_ragged_intermediate_size_cover_what_each_rank_holds() -> None:
    config = small_config(expert_dtype="fp8", moe_intermediate_size=192)
    inventory = take_inventory(Case(config, Request(tp=1)).checkpoint)
    request = Request(tp=2, engine="vllm", runner="triton")
    choice = choose(inventory, request)
    case = Case(config, request)
    if not choice.feasible or case.layout.refusal(case.context):
        return
    tensors = case.recipe.files[-1].tensors
    scale = next(info for name, info in tensors.items() if name.endswith("w13_weight_scale_inv"))
    assert scale.shape[1] * 32 == 192, "w1 and w3 of a rank have 96 rows each, in blocks of 32"


@pytest.mark.slow
def test_the_recipe_of_v4_pro_at_tp16_shares_its_spreads() -> None:
    checkpoint, inventory = inventory_of(PRO)
    chosen = feasible(inventory, tp=16, ep=1, engine="sglang")
    recipe = make_recipe(checkpoint, find_engine("sglang"), Context(inventory, chosen), tuple(range(16)))
    landings = [landing for step in recipe.steps for landing in step.landings]
    spreads = {id(landing.spread): landing.spread for landing in landings}
    assert sum(len(files) for landing in landings for _, files in landing.spread) > 2_000_000
    assert len(landings) > 140_000
    assert len(spreads) < 300
    assert sum(len(spread) for spread in spreads.values()) < 1000
    assert sum(len(runs) for file in recipe.files for runs in file.pieces.values()) < 10_000
    assert [file.ranks for file in recipe.files[:2]] == [tuple(range(16)), (0,)]
    assert ALL_RANKS == -1
