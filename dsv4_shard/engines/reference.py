"""DeepSeek's own inference code: `convert.py`'s files, `model.py`'s rules.

Routed experts are whole and spread by contiguous blocks (EP = the number of ranks), shared experts are whole on every
rank and added after the all-reduce, attention and vocabulary are tensor-parallel. The files are those that the V4
converter writes, name by name and byte by byte; the rules are those of the model that loads them, and also those that
it forgets (it floors heads, index heads and output groups).
"""

import json
from collections.abc import Iterator

from dsv4_shard.checkpoint import Tensor
from dsv4_shard.engines.base import (
    Constant,
    Context,
    Deployment,
    Divides,
    Engine,
    Expert,
    Fate,
    Held,
    Kept,
    Launch,
    LeftOut,
    Placement,
    Replicate,
    Request,
    Requires,
    Rule,
    Split,
    held_by_rank,
)
from dsv4_shard.engines.common import NODES_RULE, O_A_DECODING_RULE, nvfp4_rule, pick_gpu, pick_nodes, version_rule
from dsv4_shard.inventory import Group, Inventory
from dsv4_shard.roles import Module, Part, Role, Stage, TensorName

VERSION = "V4"
CONFIG_NAME = "inference_config.json"

FP8_CAST_BLOCK = 128
"""Rows and columns of the blocks that the FP4 → FP8 cast makes."""

_ROUTED = (Role.ROUTED_GATE, Role.ROUTED_UP, Role.ROUTED_DOWN)
_SILENT = "the converter and the model start; the model then computes garbage or fails in the first forward"


def candidates(inventory: Inventory, request: Request) -> Iterator[Deployment]:
    """The one way that the reference has."""
    gpu = pick_gpu(request)
    yield Deployment(
        engine="reference",
        tp=request.tp,
        ep=request.ep if request.ep is not None else request.tp,
        dp=request.dp,
        world=request.tp,
        attention_tp=request.tp,
        moe_tp=1,
        runner=request.runner or "tilelang",
        a2a=request.a2a,
        shared="whole" if request.shared == "auto" else request.shared,
        shared_parts=1,
        experts=(request.expert_dtype or inventory.routed.name).upper(),
        gpu=gpu,
        gpu_named=request.gpu is not None,
        nodes=pick_nodes(request, request.tp, gpu),
        version=request.engine_version or VERSION,
    )


def _ranks(context: Context) -> int:
    return context.at.tp


def _dimension_quote(axis: int) -> str:
    return f"AssertionError: Dimension {axis} must be divisible by {{parts}}"


def _scale_rule(name: str, module: Module, role: Role, size_name: str, axis: int = 0) -> Divides:
    """The converter narrows a scale like its weight, so the blocks must divide too."""
    return Divides(
        name, module, lambda c: _size(c, role), size_name, _ranks, "ranks", lambda c: c.block(role)[axis], "blocks",
        quote=_dimension_quote(axis), whole_quote=_dimension_quote(axis),
    )  # fmt: skip


def _size(context: Context, role: Role) -> int:
    return {
        Role.Q_B: context.q_rows,
        Role.O_A: context.o_cols,
        Role.O_B: context.o_cols,
        Role.INDEXER_Q_B: context.v4.index_n_heads * context.v4.index_head_dim,
    }[role]


RULES: tuple[Rule, ...] = (
    Requires(
        "ep", Module.ROUTED, lambda c: c.at.ep == c.at.tp,
        "the reference spreads whole experts over all {at.tp} ranks, so EP {at.ep} cannot be had",
        remedies=("leave --ep out",), fatal=True,
    ),
    Requires(
        "dp", Module.ATTENTION, lambda c: c.at.dp == 1, "the reference has no attention DP", remedies=("--dp 1",),
        fatal=True,
    ),
    Requires(
        "options", Module.ROUTED, lambda c: c.at.a2a is None and c.at.runner == "tilelang",
        "the reference has no runners or all-to-all backends to choose", remedies=("leave them out",), fatal=True,
    ),
    Requires(
        "shared-way", Module.SHARED, lambda c: c.at.shared == "whole",
        "the reference adds whole shared experts after the all-reduce; it cannot {at.shared} them",
        remedies=("--shared-experts whole",), fatal=True,
    ),
    nvfp4_rule("DeepSeek's model.py has no NVFP4 experts", "the model cannot load them"),
    Requires(
        "expert-dtype", Module.ROUTED,
        lambda c: c.at.experts in ("FP4", "FP8") and (c.at.experts, c.inventory.routed.name) != ("FP4", "FP8"),
        "experts are {context.inventory.routed.name} in the checkpoint and cannot be written as {at.experts}",
        remedies=("leave --expert-dtype out",), fatal=True,
    ),
    NODES_RULE,
    version_rule(VERSION),
    Requires(
        "one-shared-expert", Module.SHARED, lambda c: c.config.n_shared_experts == 1,
        "the reference has one shared expert, the checkpoint {config.n_shared_experts}", "AssertionError",
    ),
    Divides(
        "vocab", Module.EMBEDDING, lambda c: c.config.vocab_size, "vocab_size", _ranks, "ranks",
        whole_quote=_dimension_quote(0),
    ),
    Divides(
        "heads", Module.ATTENTION, lambda c: c.config.num_attention_heads, "num_attention_heads", _ranks, "ranks",
        whole_quote=_dimension_quote(0),
    ),
    _scale_rule("q_b-blocks", Module.ATTENTION, Role.Q_B, "q_b blocks"),
    Divides(
        "o_groups", Module.ATTENTION, lambda c: c.v4.o_groups, "o_groups", _ranks, "ranks", consequence=_SILENT,
    ),
    _scale_rule("o_a-blocks", Module.ATTENTION, Role.O_A, "o_a blocks"),
    _scale_rule("o_b-blocks", Module.ATTENTION, Role.O_B, "o_b blocks", axis=1),
    Divides(
        "index-heads", Module.INDEXER, lambda c: c.v4.index_n_heads, "index_n_heads", _ranks, "ranks",
        whole_quote=_dimension_quote(0),
    ),
    _scale_rule("indexer-blocks", Module.INDEXER, Role.INDEXER_Q_B, "indexer q_b blocks"),
    Divides(
        "experts", Module.ROUTED, lambda c: c.config.n_routed_experts, "n_routed_experts", _ranks, "ranks",
        whole_quote="AssertionError: Number of experts must be divisible by model parallelism",
    ),
    O_A_DECODING_RULE,
    Requires(
        "cast-blocks", Module.ROUTED,
        lambda c: c.at.experts == c.inventory.routed.name
        or (c.config.hidden_size % FP8_CAST_BLOCK == 0 and c.config.moe_intermediate_size % FP8_CAST_BLOCK == 0),
        "the FP8 cast needs multiples of 128, here hidden_size {config.hidden_size} and moe_intermediate_size "
        "{config.moe_intermediate_size}", "AssertionError",
    ),
)  # fmt: skip

_PLACEMENTS: dict[Role, Placement] = {
    Role.EMBED: Split(0, "tp"),
    Role.HEAD: Split(0, "tp"),
    Role.Q_B: Split(0, "tp"),
    Role.O_A: Split(0, "tp"),
    Role.O_B: Split(1, "tp"),
    Role.ATTN_SINK: Split(0, "tp"),
    Role.INDEXER_Q_B: Split(0, "tp"),
    Role.INDEXER_WEIGHTS: Split(0, "tp"),
    **dict.fromkeys(_ROUTED, Expert(Replicate())),
}
"""The converter's `mapping`, by role; what is not here is whole on every rank."""


def place(role: Role, context: Context) -> Placement:
    """Where the converter puts `role`."""
    return _PLACEMENTS.get(role, Replicate())


def _format(context: Context, role: Role, stage: Stage) -> str | None:
    fmt = context.inventory.format(role, stage)
    return fmt.name if fmt else None


def hold(group: Group, placement: Placement, context: Context) -> Held | None:
    """What stands in a rank's file: o_a decoded to BF16 without scale, FP4 experts as they are or cast to FP8."""
    if group.role in (Role.MTP_EMBED, Role.MTP_HEAD):
        return None
    form = _format(context, group.role, group.stage)
    if group.role is Role.O_A and form == "FP8":
        return None if group.part is Part.SCALE else held_by_rank(group, placement, context, "BF16")
    if group.role in _ROUTED and form == "FP4" and context.at.experts == "FP8":
        if group.part is Part.WEIGHT:
            return held_by_rank(group, placement, context, "F8_E4M3")
        groups_per_block = FP8_CAST_BLOCK // context.block(group.role).cols
        rows, cols = group.shape[0] // FP8_CAST_BLOCK, group.shape[1] // groups_per_block
        return Held("F8_E8M0", (rows, cols), rows * cols)
    return held_by_rank(group, placement, context)


class ReferenceLayout:
    """`model{rank}-mp{N}.safetensors`, one file a rank, in the names of the checkpoint."""

    name = "reference"
    shares_files = False
    by_node = False

    def file_name(self, rank: int, part: int, at: Deployment) -> str:
        """As DeepSeek's `generate.py` looks for it."""
        return f"model{rank}-mp{at.tp}.safetensors"

    def fate(self, tensor: Tensor, name: TensorName, context: Context) -> Fate:
        """What the converter makes of `tensor`, under its own name."""
        if name.role in (Role.MTP_EMBED, Role.MTP_HEAD):
            return LeftOut("the MTP block shares the model's embedding and head")
        form = _format(context, name.role, name.stage)
        if name.role is Role.O_A and form == "FP8":
            if name.part is Part.SCALE:
                return LeftOut("multiplied into wo_a.weight, which is stored in BF16")
            return (Kept("", "BF16", transform="fp8_to_bf16"),)
        if name.role in _ROUTED and form == "FP4":
            if context.at.experts == "FP8":
                dtype = "F8_E4M3" if name.part is Part.WEIGHT else "F8_E8M0"
                return (Kept("", dtype, transform="fp4_to_fp8"),)
            return (Kept("", "F4" if name.part is Part.WEIGHT else tensor.dtype),)
        return (Kept("", tensor.dtype),)

    def refusal(self, context: Context) -> str | None:
        """None: whatever the reference can run can be written."""
        return None

    def constants(self, context: Context) -> tuple[Constant, ...]:
        """None: the files are the converter's."""
        return ()

    def identity(self, context: Context) -> dict[str, str]:
        """None in the headers, which are the converter's; names and digests tell the files apart."""
        return {}

    def companions(self, document: dict[str, object], context: Context) -> dict[str, bytes]:
        """The config of DeepSeek's `inference/model.py`."""
        return {CONFIG_NAME: (json.dumps(inference_config(document, context.at.experts), indent=4) + "\n").encode()}

    def copied(self, context: Context) -> dict[str, str]:
        """What the converter copies, and what generate.py's tokenizer may look for beside them."""
        names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
        return {name: name for name in names}


_INFERENCE_KEYS = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "moe_inter_dim": "moe_intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_hash_layers": "num_hash_layers",
    "n_heads": "num_attention_heads",
    "n_routed_experts": "n_routed_experts",
    "n_shared_experts": "n_shared_experts",
    "n_activated_experts": "num_experts_per_tok",
    "score_func": "scoring_func",
    "route_scale": "routed_scaling_factor",
    "swiglu_limit": "swiglu_limit",
    "q_lora_rank": "q_lora_rank",
    "head_dim": "head_dim",
    "rope_head_dim": "qk_rope_head_dim",
    "o_groups": "o_groups",
    "o_lora_rank": "o_lora_rank",
    "window_size": "sliding_window",
    "original_seq_len": "rope_scaling.original_max_position_embeddings",
    "rope_theta": "rope_theta",
    "rope_factor": "rope_scaling.factor",
    "beta_fast": "rope_scaling.beta_fast",
    "beta_slow": "rope_scaling.beta_slow",
    "index_n_heads": "index_n_heads",
    "index_head_dim": "index_head_dim",
    "index_topk": "index_topk",
    "hc_mult": "hc_mult",
    "hc_sinkhorn_iters": "hc_sinkhorn_iters",
    "dtype": "quantization_config.quant_method",
    "scale_fmt": "quantization_config.scale_fmt",
    "expert_dtype": "",
    "compress_rope_theta": "compress_rope_theta",
    "compress_ratios": "compress_ratios",
}
"""`ModelArgs` of inference/model.py ← config.json, in the order of the released inference/config.json."""


def inference_config(document: dict[str, object], experts: str) -> dict[str, object]:
    """config.json in the words of DeepSeek's inference code. A key that config.json lacks is left to its default."""
    result: dict[str, object] = {}
    for key, path in _INFERENCE_KEYS.items():
        value: object = document
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if key == "expert_dtype":
            value = "fp4" if experts == "FP4" else None
        if value is not None:
            result[key] = value
    return result


def launch(context: Context, model_path: str, sharded: bool) -> Launch:
    """torchrun of DeepSeek's generate.py, from its `inference/` folder; `model_path` is reshard's output."""
    at = context.at
    script = f"generate.py --ckpt-path {model_path} --config {model_path}/{CONFIG_NAME} --interactive"
    if at.nodes == 1:
        return Launch({}, (f"torchrun --nproc-per-node {at.tp} {script}",))
    each = at.tp // at.nodes
    head = f"torchrun --nnodes {at.nodes} --nproc-per-node {each} --master-addr <node0>"
    return Launch({}, tuple(f"{head} --node-rank {node} {script}" for node in range(at.nodes)))


def addition(context: Context) -> str:
    """How the shared expert's output joins the sum."""
    return (
        f"The shared expert's output is complete on each of the {context.at.tp} ranks: model.py adds it once, "
        f"after the all-reduce of the routed output; added before it, it would count {context.at.tp} times."
    )


REFERENCE = Engine(
    name="reference",
    title="DeepSeek reference",
    version=VERSION,
    candidates=candidates,
    rules=RULES,
    place=place,
    hold=hold,
    launch=launch,
    addition=addition,
    layout=ReferenceLayout(),
)
