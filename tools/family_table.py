"""What each command does with each checkpoint of the family, found out by doing it: the table in docs/families.md.

    python tools/family_table.py     # does it all again, and writes the table into the document

A small checkpoint of every kind, with real values, is inspected, planned for, written in every layout at TP 2, verified
against its source, and merged; what comes back is compared with the source by the safetensors library.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import search_path  # noqa: F401 - first, for what is imported from the repository
import torch
from support.checkpoints.other_names import write_dialect
from support.checkpoints.small import (
    SMALL_V3,
    SMALL_V32,
    contents,
    dspark_config,
    load_tensors,
    open_folder,
    raw,
    small_config,
    with_bf16_o_a,
    write_nvfp4,
)
from support.paths import ROOT
from support.scratch import process_folder

from dsv4_shard.checkpoint.synthetic import V41_CONFIG, write_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.engines.registry import ENGINES
from dsv4_shard.errors import InfeasiblePlan, UsageError
from dsv4_shard.models.roles import Role, Stage
from dsv4_shard.opening import open_source
from dsv4_shard.planning.choice import choose
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.reassembly.merge_job import prepare_merge
from dsv4_shard.reassembly.rank_folder import open_ranks
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.run import reshard
from dsv4_shard.sources.checkpoint_files import INDEX_FILE
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.verification.result_folder import verify

DOCUMENT = ROOT / "docs" / "families.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
TP = 2

CONFIG = small_config(hidden_size=256)
"""Wide enough for the tiles of every backend."""


def _stored_as(**stored: Any) -> Callable[[Path, dict[str, Any]], Path]:
    def write(folder: Path, document: dict[str, Any]) -> Path:
        return write_checkpoint(folder, document, seed=5, **stored)

    return write


def _re_release(folder: Path, document: dict[str, Any]) -> Path:
    """FP8 experts and BF16 wo_a, with the index that still lists wo_a's scales."""
    write_checkpoint(folder, document, seed=5, experts="FP8")
    names = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
    with_bf16_o_a(folder)
    stale = [name for name in names if name.endswith("wo_a.scale")]
    kept = load_tensors(folder / "model.safetensors")
    weight_map = dict.fromkeys([*kept, *stale], "model.safetensors")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def _in_dialect(dialect: str, mtp_blocks: int) -> Callable[[Path, dict[str, Any]], Path]:
    def write(folder: Path, document: dict[str, Any]) -> Path:
        native = write_checkpoint(folder.with_name(f"{folder.name}-native"), document, 5, mtp_blocks)
        return write_dialect(folder, native, dialect)

    return write


def _nvfp4(folder: Path, document: dict[str, Any]) -> Path:
    return write_nvfp4(folder, document, 5)


@dataclass(frozen=True, eq=False)
class Case:
    """A kind of checkpoint: how it is called, which releases are of it, and how a small one is written."""

    title: str
    releases: str
    write: Callable[[Path, dict[str, Any]], Path]
    document: dict[str, Any] = field(default_factory=lambda: CONFIG)


def _without(document: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in keys}


CASES = (
    Case("V4", "V4-Pro, V4-Flash", _stored_as()),
    Case("V4, first revision", "no `expert_dtype` in the config", _stored_as(experts="FP4"),
         _without(CONFIG, "expert_dtype")),
    Case("V4, DSpark", "V4-Flash-0731, V4-Pro-0813, `-DSpark`", _stored_as(mtp_blocks=3, dspark=True),
         dspark_config(hidden_size=256, dspark_target_layer_ids=[0, 1, 1])),
    Case("V4, FP8 re-release", "V4-Pro-FP8, V4-Flash-FP8", _re_release,
         _without(CONFIG, "expert_dtype") | {"model_type": "deepseek_ref"}),
    Case("V4, Base", "V4-Flash-Base", _stored_as(experts="FP8", scales="F32", optional=True),
         CONFIG | {"expert_dtype": "fp8"}),
    Case("V4, NVFP4", "NVIDIA's V4-Pro-NVFP4, V4-Flash-NVFP4", _nvfp4,
         CONFIG | {"quantization_config": CONFIG["quantization_config"] | {"moe_quant_algo": "NVFP4"}}),
    Case("V4, SGLang's names", "what miles and SGLang's tools write", _in_dialect("sglang", 1)),
    Case("V4, V3's names", "what converters to Hugging Face's names write", _in_dialect("v3", 1)),
    Case("V4, Transformers' names", "`save_pretrained(save_original_format=False)`: stacked experts",
         _in_dialect("transformers", 0), CONFIG | {"num_nextn_predict_layers": 0}),
    Case("V4.1", "V4.1-Flash", _stored_as(mtp_blocks=2, dspark=True), V41_CONFIG),
    Case("V3", "V3, V3.1, R1", _stored_as(scales="F32", optional=True), SMALL_V3),
    Case("V3.2", "V3.2, V3.2-Exp", _stored_as(scales="F32", optional=True), SMALL_V32),
)  # fmt: skip

LAYOUTS = ("reference", "sglang", "vllm", "node")


def request_for(layout: str, tp: int = TP) -> Request:
    """As many nodes as ranks where the files are those of nodes."""
    return Request(tp=tp, engine=layout, nodes=tp if layout == "node" else None)


@cache
def checkpoint_of(case: Case) -> Path:
    """A small checkpoint of the kind, written once."""
    return case.write(process_folder() / "families" / case.title, case.document)


def native_of(case: Case) -> Path:
    """The same checkpoint in its family's own names, where it has others."""
    native = checkpoint_of(case).with_name(f"{case.title}-native")
    return native if native.exists() else checkpoint_of(case)


def inspected(case: Case) -> str:
    """Whether it is known, whole and right."""
    _, inventory = open_folder(checkpoint_of(case))
    assert inventory.errors == ()
    return "yes"


def planned(case: Case) -> str:
    """The engines that run it."""
    _, inventory = open_folder(checkpoint_of(case))
    feasible = [engine.title for name, engine in ENGINES.items() if choose(inventory, request_for(name)).feasible]
    return ", ".join(dict.fromkeys(title.partition(" (")[0] for title in feasible))


def written(case: Case, layout: str, tp: int = TP) -> str:
    """Write it in a layout, verify that against the source, merge it, and say what came back."""
    checkpoint, inventory = open_folder(checkpoint_of(case))
    shards, merged = (process_folder() / "families" / f"{case.title}-{layout}-{what}" for what in ("shards", "merged"))
    try:
        job = prepare(checkpoint, inventory, make_plan(checkpoint, inventory, request_for(layout, tp)))
    except (InfeasiblePlan, UsageError) as refusal:
        return f"no: {refusal}"
    reshard(job, checkpoint, shards)
    assert verify(shards, (checkpoint, inventory)).ok
    source = open_source(str(shards))
    assert isinstance(source, LocalSource)
    held, found = open_ranks(source)
    reshard(prepare_merge(held, found), held, merged)
    try:
        return compared(native_of(case), merged, checkpoint_of(case))
    finally:
        shutil.rmtree(shards)
        shutil.rmtree(merged)


def compared(source: Path, merged: Path, original: Path) -> str:
    """What a merged checkpoint has of `source`, which is `original` in native names, in words."""
    before = {name: data for name, data in contents(source).items() if name.endswith((".safetensors", ".json"))}
    after = contents(merged)
    if all(after.get(name) == data for name, data in before.items()):
        return "exact"
    theirs, ours = (load_tensors(*sorted(folder.glob("*.safetensors"))) for folder in (source, merged))
    assert ours.keys() <= theirs.keys()
    changed = {name for name in ours if raw(ours[name]) != raw(theirs[name])}
    decoded = {name.removesuffix("weight") + "scale" for name in changed}
    lost = _words_for_lost(source, set(theirs) - set(ours) - decoded)
    said = lost + sorted({_words_for_changed(name, ours[name]) for name in changed})
    if not said:
        return "exact, in native names"
    if source == original:
        _hold_untouched_files(source, merged, changed | (theirs.keys() - ours.keys()))
    return f"exact but {' and '.join(said)}"


def _hold_untouched_files(source: Path, merged: Path, touched: set[str]) -> None:
    """Files without a tensor that is lost or changed are those of the source, header and all."""
    for file in source.glob("*.safetensors"):
        if touched.isdisjoint(load_tensors(file)):
            assert (merged / file.name).read_bytes() == file.read_bytes(), file.name


def _words_for_lost(source: Path, names: set[str]) -> list[str]:
    """What a set of tensors is to the model."""
    _, inventory = open_folder(source)
    drafts = {name for name, at in inventory.names.items() if at.stage is Stage.MTP}
    own = {name for name in drafts if inventory.names[name].role in (Role.MTP_EMBED, Role.MTP_HEAD)}
    for some, words in ((drafts, "no draft"), (own, "no embedding and head of the draft's own")):
        if some and names == some:
            return [words]
    return [f"no {', '.join(sorted(names))}"] if names else []


def _words_for_changed(name: str, tensor: torch.Tensor) -> str:
    module = name.split(".")[-2]
    return f"`{module}` in {str(tensor.dtype).removeprefix('torch.').replace('bfloat16', 'BF16')}"


def render() -> str:
    """The table, and the reasons of what it does not do."""
    reasons: list[str] = []

    def cell(text: str) -> str:
        if not text.startswith("no: "):
            return text
        reason = text.removeprefix("no: ")
        if reason not in reasons:
            reasons.append(reason)
        return f"no [{reasons.index(reason) + 1}]"

    lines = [
        "| checkpoint | releases | inspect | plan | " + " | ".join(LAYOUTS) + " |",
        "|---" * (4 + len(LAYOUTS)) + "|",
    ]
    for case in CASES:
        cells = [cell(written(case, layout)) for layout in LAYOUTS]
        lines.append(f"| {case.title} | {case.releases} | {inspected(case)} | {planned(case)} | {' | '.join(cells)} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", *notes]) + "\n"


def table_in_document() -> str:
    """The table as the document has it."""
    return DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]


def pairs_in_document() -> list[tuple[str, str]]:
    """(title, layout) of what is written, as the document has it."""
    rows = [line.strip("| ").split(" | ") for line in table_in_document().splitlines() if line.startswith("| ")]
    head, *cases = rows
    return [
        (cells[0], layout)
        for cells in cases
        for layout, cell in zip(head, cells, strict=True)
        if layout in LAYOUTS and not cell.startswith("no ")
    ]


def _write() -> None:
    head, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(head + BEGIN + render() + END + rest.partition(END)[2])


if __name__ == "__main__":
    _write()
