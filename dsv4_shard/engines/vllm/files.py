"""vLLM's rank files: the raw parameters of its model classes, for stock `--load-format sharded_state` and our loader.

Names, fusions and paddings are a table; `conformance/` verified each line byte by byte against vLLM 0.33.0's
`load_weights`. For parameters with several names, the files have the one that vLLM's own filter keeps. The draft model
(MTP, or DSpark) is a model of its own, so its files have a folder of their own.
"""

import json
import struct

from dsv4_shard.catalog.options import VLLM_LOADER_VERSIONS
from dsv4_shard.checkpoint import NVFP4
from dsv4_shard.engines.deployment import Context, Deployment
from dsv4_shard.engines.drafts import draft_blocks, is_dspark, left_out_draft
from dsv4_shard.engines.layout import Constant, Disposition, LeftOut, TargetTensor
from dsv4_shard.engines.parameters import DRAFT_FOLDER, Parameter, model_files, rank_file_name
from dsv4_shard.engines.vllm.backends import TILE, backend_of, fits, is_aligned, is_mega
from dsv4_shard.engines.vllm.v4 import drafted_context, holds_all_inputs, parameter_dtype, scale_repeat
from dsv4_shard.models import Part, Role, Stage, TensorName
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE
from dsv4_shard.tensors.header import Tensor

LAYOUT = "dsv4-shard vllm 1"
"""Name of what these files hold, for loaders. The number grows when the same deployment gets other files."""

_MINUS_INFINITY = struct.pack("<f", float("-inf"))

_ONE = {"F8_E8M0": b"\x7f", "F32": struct.pack("<f", 1.0)}

DSPARK_STAGES = 3
"""Stages that vLLM builds (`models/deepseek_v4/nvidia/dspark.py`)."""

_EXPERT_MAP_VERSIONS = ("0.25.0",)
"""Versions whose models own a map from experts to local slots if experts are spread over ranks."""

_WHOLE_BLOCK_VERSIONS = ("0.25.0",)
"""Versions that neither refine nor pad the blocks of FP8 experts."""

_LAYER: dict[Role, Parameter] = {
    Role.ATTN_NORM: Parameter("attn_norm"),
    Role.FFN_NORM: Parameter("ffn_norm"),
    Role.Q_A: Parameter("attn.fused_wqa_wkv", 0),
    Role.KV: Parameter("attn.fused_wqa_wkv", 1),
    Role.Q_NORM: Parameter("attn.q_norm"),
    Role.Q_B: Parameter("attn.wq_b"),
    Role.KV_NORM: Parameter("attn.kv_norm"),
    Role.O_A: Parameter("attn.wo_a"),
    Role.O_B: Parameter("attn.wo_b"),
    Role.ATTN_SINK: Parameter("attn.attn_sink", bare=True),
    Role.COMPRESSOR_APE: Parameter("attn.compressor.ape", bare=True),
    Role.COMPRESSOR_KV: Parameter("attn.compressor.fused_wkv_wgate", 0),
    Role.COMPRESSOR_GATE: Parameter("attn.compressor.fused_wkv_wgate", 1),
    Role.COMPRESSOR_NORM: Parameter("attn.compressor.norm"),
    Role.INDEXER_Q_B: Parameter("attn.indexer.wq_b"),
    Role.INDEXER_WEIGHTS: Parameter("attn.indexer.weights_proj"),
    Role.INDEXER_APE: Parameter("attn.indexer.compressor.ape", bare=True),
    Role.INDEXER_KV: Parameter("attn.indexer.compressor.fused_wkv_wgate", 0),
    Role.INDEXER_GATE: Parameter("attn.indexer.compressor.fused_wkv_wgate", 1),
    Role.INDEXER_NORM: Parameter("attn.indexer.compressor.norm"),
    Role.HC_ATTN_FN: Parameter("hc_attn_fn", bare=True),
    Role.HC_ATTN_BASE: Parameter("hc_attn_base", bare=True),
    Role.HC_ATTN_SCALE: Parameter("hc_attn_scale", bare=True),
    Role.HC_FFN_FN: Parameter("hc_ffn_fn", bare=True),
    Role.HC_FFN_BASE: Parameter("hc_ffn_base", bare=True),
    Role.HC_FFN_SCALE: Parameter("hc_ffn_scale", bare=True),
    Role.ROUTER: Parameter("ffn.experts.gate"),
    Role.ROUTER_BIAS: Parameter("ffn.experts.gate.e_score_correction_bias", bare=True),
    Role.ROUTER_HASH: Parameter("ffn.experts.gate.tid2eid", bare=True),
    Role.SHARED_GATE: Parameter("ffn.experts._shared_experts._layer.gate_up_proj", 0),
    Role.SHARED_UP: Parameter("ffn.experts._shared_experts._layer.gate_up_proj", 1),
    Role.SHARED_DOWN: Parameter("ffn.experts._shared_experts._layer.down_proj"),
}

_MEGA: dict[Role, Parameter] = {
    Role.ROUTER: Parameter("ffn.gate"),
    Role.ROUTER_BIAS: Parameter("ffn.gate.e_score_correction_bias", bare=True),
    Role.ROUTER_HASH: Parameter("ffn.gate.tid2eid", bare=True),
    Role.SHARED_GATE: Parameter("ffn.shared_experts.gate_up_proj", 0),
    Role.SHARED_UP: Parameter("ffn.shared_experts.gate_up_proj", 1),
    Role.SHARED_DOWN: Parameter("ffn.shared_experts.down_proj"),
}
"""Names of a layer under MegaMoE, where they differ."""

_MODEL: dict[Role, Parameter] = {
    Role.EMBED: Parameter("model.embed_tokens"),
    Role.HEAD: Parameter("lm_head"),
    Role.FINAL_NORM: Parameter("model.norm"),
    Role.HC_HEAD_FN: Parameter("model.hc_head_fn", bare=True),
    Role.HC_HEAD_BASE: Parameter("model.hc_head_base", bare=True),
    Role.HC_HEAD_SCALE: Parameter("model.hc_head_scale", bare=True),
}

_DRAFT: dict[Role, Parameter] = {
    Role.HC_HEAD_FN: Parameter("hc_head_fn", bare=True),
    Role.HC_HEAD_BASE: Parameter("hc_head_base", bare=True),
    Role.HC_HEAD_SCALE: Parameter("hc_head_scale", bare=True),
    Role.FINAL_NORM: Parameter("shared_head.norm"),
    Role.MTP_E_PROJ: Parameter("e_proj"),
    Role.MTP_H_PROJ: Parameter("h_proj"),
    Role.MTP_ENORM: Parameter("enorm"),
    Role.MTP_HNORM: Parameter("hnorm"),
}

_DSPARK: dict[Role, Parameter] = {
    Role.HC_HEAD_FN: Parameter("model.hc_head_fn", bare=True),
    Role.HC_HEAD_BASE: Parameter("model.hc_head_base", bare=True),
    Role.HC_HEAD_SCALE: Parameter("model.hc_head_scale", bare=True),
    Role.FINAL_NORM: Parameter("model.norm"),
    Role.DSPARK_MAIN_PROJ: Parameter("model.main_proj"),
    Role.DSPARK_MAIN_NORM: Parameter("model.main_norm"),
    Role.DSPARK_MARKOV_EMBED: Parameter("model.markov_head.markov_w1"),
    Role.DSPARK_MARKOV_HEAD: Parameter("model.markov_head.markov_w2"),
    Role.DSPARK_CONFIDENCE: Parameter("model.confidence_head.proj"),
}
"""Parameters of a DSpark draft outside of its stages, which are its layers."""

_CONTEXT_KV = Parameter("model.context_wkv_proj")
"""A second copy of the wkv of all DSpark stages, one after the other."""

_ROUTED = {
    Role.ROUTED_GATE: Parameter("w13", 0),
    Role.ROUTED_UP: Parameter("w13", 1),
    Role.ROUTED_DOWN: Parameter("w2"),
}


def layout_class(context: Context) -> str:
    """Class of the shapes of routed experts; files of one class do not load as another.

    A: FP4 rounded up to 128, B: FP4 rounded up to less, C: FP4 for MegaMoE, in the order of the checkpoint, which our
    loader has vLLM turn into its kernel's, D: FP8 in whole blocks, E: FP8 in finer blocks, F: FP8 padded by whole
    blocks, N: NVFP4.
    """
    if is_mega(context):
        return "C"
    if context.deployment.experts == NVFP4:
        return "N"
    if context.deployment.experts == "FP4":
        backend = backend_of(context)
        return "A" if backend is not None and backend.tile == TILE and backend.fit == "tile" else "B"
    if is_aligned(context) or context.deployment.moe_tp == 1:
        return "D"
    return "E" if fits(context, "refine") else "F"


class VllmLayout:
    """`model-rank-{rank}-part-{part}.safetensors`: a rank's own parts, then those that all ranks share."""

    name = "vllm"
    shares_files = True
    has_parts = True
    by_node = False

    def file_name(self, rank: int, part: int, deployment: Deployment) -> str:
        """The pattern of `--load-format sharded_state`; with data parallelism, the one that `replica_pattern` names.

        A stage has as many ranks as a replica: no layout has both.
        """
        replica, within = divmod(rank, deployment.tp)
        if deployment.pp > 1:
            return rank_file_name(within, part, stage=replica)
        return rank_file_name(within, part, replica if deployment.dp > 1 else None)

    def refusal(self, context: Context) -> str | None:
        """Refuse layouts whose sharded state does not load, or is not verified, though the checkpoint runs."""
        deployment, config, backend = context.deployment, context.config, backend_of(context)
        if is_dspark(Stage.MTP, context) and draft_blocks(context) not in (0, DSPARK_STAGES):
            return f"the checkpoint has {draft_blocks(context)} DSpark stages, vLLM's draft model has {DSPARK_STAGES}"
        for is_there, what in ((deployment.dp > 1, "data parallelism"), (deployment.pp > 1, "pipeline parallelism")):
            if is_there and deployment.experts == NVFP4:
                return f"NVFP4 experts were not compared with {what}"
            if is_there and deployment.version not in VLLM_LOADER_VERSIONS:
                return f"{what} of vLLM {deployment.version} was not compared"
        if backend is not None and config.hidden_size % backend.hidden_tile:
            return f"hidden_size {config.hidden_size} would be rounded up to a multiple of {backend.hidden_tile}"
        if is_mega(context) and deployment.pp > 1:
            return f"MoE backend {deployment.runner} was not compared with pipeline stages"
        if is_mega(context) and deployment.version not in VLLM_LOADER_VERSIONS:
            return f"MoE backend {deployment.runner} needs our loader, which was not run with vLLM {deployment.version}"
        if layout_class(context) == "E" and (config.moe_intermediate_size % TILE or config.hidden_size % TILE):
            return f"vLLM's finer FP8 blocks need whole blocks of {TILE} to begin with"
        if deployment.version in _WHOLE_BLOCK_VERSIONS and layout_class(context) in ("E", "F"):
            return f"vLLM {deployment.version} has no way for FP8 experts that do not fall into whole blocks"
        return None

    def fate(self, tensor: Tensor, name: TensorName, context: Context) -> Disposition:
        """The parameter that `tensor` goes into, and its transform."""
        if name.stage is Stage.MTP:
            if (reason := left_out_draft(context)) is not None:
                return LeftOut(reason)
            context = drafted_context(context)
        if name.role in (Role.MTP_EMBED, Role.MTP_HEAD):
            return LeftOut("the draft model shares the target's embedding and head")
        dtype = parameter_dtype(name.role, name.part, context) or tensor.dtype
        folder = DRAFT_FOLDER if name.stage is Stage.MTP else ""
        prefix = _prefix(name, context)
        if name.role in _ROUTED:
            return (_routed(tensor, name, context, dtype, folder, prefix),)
        layer = _LAYER | (_MEGA if is_mega(context) else {})
        draft = _DSPARK if context.inventory.draft.dspark else _DRAFT
        tables = {Stage.MODEL: _MODEL, Stage.LAYER: layer, Stage.MTP: layer | draft}
        row = tables[name.stage][name.role]
        fill = _MINUS_INFINITY if name.role is Role.ATTN_SINK else b""
        kept = TargetTensor(row.full_name(prefix, name.part), dtype, folder, row.order, fill=fill)
        return (kept, *_copies_in_the_draft(name, dtype, context))

    def constants(self, context: Context) -> tuple[Constant, ...]:
        """The map from experts to local slots, for versions whose model owns one."""
        deployment, config = context.deployment, context.config
        if deployment.version not in _EXPERT_MAP_VERSIONS or deployment.ep == 1:
            return ()
        each = config.n_routed_experts // deployment.ep
        layers = [("", f"model.layers.{layer}.") for layer in range(config.num_hidden_layers)]
        layers += [
            (DRAFT_FOLDER, f"model.layers.{config.num_hidden_layers + block}.mtp_block.")
            for block in range(draft_blocks(context))
        ]
        constants = []
        for rank in range(deployment.world):
            local = range(rank * each, (rank + 1) * each)
            slots = [expert - local.start if expert in local else -1 for expert in range(config.n_routed_experts)]
            data = struct.pack(f"<{len(slots)}i", *slots)
            constants += [
                Constant(f"{prefix}ffn.experts.routed_experts._expert_map", "I32", (len(slots),), data, folder, rank)
                for folder, prefix in layers
            ]
        return tuple(constants)

    def identity(self, context: Context) -> dict[str, str]:
        """Properties that the files depend on and that names and shapes do not show."""
        deployment = context.deployment
        return {
            "layout": f"{LAYOUT}, class {layout_class(context)}",
            "engine": f"vllm {deployment.version}",
            "moe_backend": deployment.runner,
            "tp": str(deployment.tp),
            "ep": str(deployment.ep),
            "shared_experts": deployment.shared,
            "experts": deployment.experts,
            **({"dp": str(deployment.dp)} if deployment.dp > 1 else {}),
            **({"pp": str(deployment.pp), "pp_layers": deployment.partition} if deployment.pp > 1 else {}),
        }

    def companions(self, document: dict[str, object], context: Context) -> dict[str, bytes]:
        """config.json, if it has to state the format of the experts: vLLM reads nothing else."""
        declared, experts = document.get("expert_dtype", "fp4"), context.deployment.experts
        if experts == NVFP4 or declared == experts.lower():
            return {}
        content = json.dumps(document | {"expert_dtype": context.deployment.experts.lower()}, indent=2).encode() + b"\n"
        return {name: content for name in model_files(context) if name.endswith(CONFIG_FILE)}

    def copied(self, context: Context) -> dict[str, str]:
        """Files that are copied if they exist: name in the output → name in the checkpoint."""
        return model_files(context)


def _prefix(name: TensorName, context: Context) -> str:
    if name.stage is Stage.LAYER:
        return f"model.layers.{name.layer}."
    if name.stage is Stage.MODEL:
        return ""
    if context.inventory.draft.dspark:
        return "" if name.role in _DSPARK else f"model.layers.{name.layer}."
    block = f"model.layers.{context.config.num_hidden_layers + name.layer}."
    return f"{block}mtp_block." if name.role in _LAYER or name.role in _ROUTED else block


_SUFFIXES = {
    Part.WEIGHT: "weight",
    Part.GROUP_SCALE: "weight_scale",
    Part.TENSOR_SCALE: "weight_scale_2",
    Part.INPUT_SCALE: "input_scale",
}


def _routed(tensor: Tensor, name: TensorName, context: Context, dtype: str, folder: str, prefix: str) -> TargetTensor:
    row = _ROUTED[name.role]
    suffix = _SUFFIXES.get(name.part) or ("weight_scale" if context.deployment.experts == "FP4" else "weight_scale_inv")
    padded_scale = name.part is Part.SCALE and layout_class(context) == "F"
    return TargetTensor(
        f"{prefix}ffn.experts.{'' if is_mega(context) else 'routed_experts.'}{row.name}_{suffix}",
        dtype,
        folder,
        row.order,
        stacked=True,
        repeat=scale_repeat(name.role, name.part, context),
        fill=_ONE[tensor.dtype] if padded_scale else b"",
        everywhere=name.part is Part.INPUT_SCALE and holds_all_inputs(context),
    )


def _copies_in_the_draft(name: TensorName, dtype: str, context: Context) -> tuple[TargetTensor, ...]:
    """Further places of a tensor in the draft's files.

    These have the target's embedding and head, since sharded_state expects them, although vLLM replaces them by the
    target's. DSpark's have each stage's wkv a second time.
    """
    blocks, dspark = range(draft_blocks(context)), context.inventory.draft.dspark
    if name.role is Role.EMBED and blocks:
        return (TargetTensor("model.embed_tokens.weight", dtype, DRAFT_FOLDER),)
    if name.role is Role.KV and is_dspark(name.stage, context):
        return (TargetTensor(_CONTEXT_KV.full_name("", name.part), dtype, DRAFT_FOLDER, name.layer),)
    if name.role is Role.HEAD and dspark and blocks:
        return (TargetTensor("lm_head.weight", dtype, DRAFT_FOLDER),)
    if name.role is Role.HEAD:
        first = context.config.num_hidden_layers
        return tuple(
            TargetTensor(f"model.layers.{first + b}.shared_head.head.weight", dtype, DRAFT_FOLDER) for b in blocks
        )
    return ()
