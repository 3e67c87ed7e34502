"""SGLang 0.5.23's rank files: the raw parameters of its model classes, as its own loader fills them.

Names, fusions and orders are a table; `conformance/` verified each line byte by byte against SGLang's `load_weights`.
The draft model (NextN, or DSpark) is a model of its own, so its files have a folder of their own. The files hold the
state before SGLang's own changes after loading (the repack of FP4, the reordering of `ape`).
"""

import struct

from dsv4_shard.catalog.sms import SM_10X
from dsv4_shard.checkpoint import NVFP4
from dsv4_shard.engines.deployment import Context, Deployment
from dsv4_shard.engines.drafts import draft_blocks, is_dspark, left_out_draft
from dsv4_shard.engines.expert_locations import IDENTITY
from dsv4_shard.engines.layout import Constant, Disposition, LeftOut, TargetTensor
from dsv4_shard.engines.parameters import DRAFT_FOLDER, Parameter, model_files, rank_file_name
from dsv4_shard.engines.placement import GROUP_NAMES
from dsv4_shard.engines.sglang.launch import drafted_context, environment_of, is_stock
from dsv4_shard.engines.sglang.parameters import keeps_o_a_fp8, parameter_dtype
from dsv4_shard.engines.sglang.rules import VERSION
from dsv4_shard.engines.sglang.runners import Runner, runner_of
from dsv4_shard.models import Part, Role, Stage, TensorName
from dsv4_shard.tensors.header import Tensor

LAYOUT = "dsv4-shard sglang 1"
"""Name of what these files hold, for loaders. The number grows when the same deployment gets other files."""

W13_ORDERS = {False: "gate, up", True: "up, gate"}

CONFIDENCE = "confidence_head.proj.weight"
"""The parameter that a DSpark draft has only if SGLANG_RAGGED_VERIFY_MODE is other than its default, `static`."""

_LAYER: dict[Role, Parameter] = {
    Role.ATTN_NORM: Parameter("input_layernorm"),
    Role.FFN_NORM: Parameter("post_attention_layernorm"),
    Role.Q_A: Parameter("self_attn.wqkv_a", 0),
    Role.KV: Parameter("self_attn.wqkv_a", 1),
    Role.Q_NORM: Parameter("self_attn.q_norm"),
    Role.Q_B: Parameter("self_attn.wq_b"),
    Role.KV_NORM: Parameter("self_attn.kv_norm"),
    Role.O_A: Parameter("self_attn.wo_a"),
    Role.O_B: Parameter("self_attn.wo_b"),
    Role.ATTN_SINK: Parameter("self_attn.attn_sink", bare=True),
    Role.COMPRESSOR_APE: Parameter("self_attn.compressor.ape", bare=True),
    Role.COMPRESSOR_KV: Parameter("self_attn.compressor.wkv_gate", 0),
    Role.COMPRESSOR_GATE: Parameter("self_attn.compressor.wkv_gate", 1),
    Role.COMPRESSOR_NORM: Parameter("self_attn.compressor.norm"),
    Role.INDEXER_Q_B: Parameter("self_attn.indexer.wq_b"),
    Role.INDEXER_WEIGHTS: Parameter("self_attn.indexer.weights_proj"),
    Role.INDEXER_APE: Parameter("self_attn.indexer.compressor.ape", bare=True),
    Role.INDEXER_KV: Parameter("self_attn.indexer.compressor.wkv_gate", 0),
    Role.INDEXER_GATE: Parameter("self_attn.indexer.compressor.wkv_gate", 1),
    Role.INDEXER_NORM: Parameter("self_attn.indexer.compressor.norm"),
    Role.HC_ATTN_FN: Parameter("hc_attn_fn", bare=True),
    Role.HC_ATTN_BASE: Parameter("hc_attn_base", bare=True),
    Role.HC_ATTN_SCALE: Parameter("hc_attn_scale", bare=True),
    Role.HC_FFN_FN: Parameter("hc_ffn_fn", bare=True),
    Role.HC_FFN_BASE: Parameter("hc_ffn_base", bare=True),
    Role.HC_FFN_SCALE: Parameter("hc_ffn_scale", bare=True),
    Role.ROUTER: Parameter("mlp.gate"),
    Role.ROUTER_BIAS: Parameter("mlp.gate.e_score_correction_bias", bare=True),
    Role.ROUTER_HASH: Parameter("mlp.topk.tid2eid", bare=True),
    Role.SHARED_GATE: Parameter("mlp.shared_experts.gate_up_proj", 0),
    Role.SHARED_UP: Parameter("mlp.shared_experts.gate_up_proj", 1),
    Role.SHARED_DOWN: Parameter("mlp.shared_experts.down_proj"),
}

_MODEL: dict[Role, Parameter] = {
    Role.EMBED: Parameter("model.embed_tokens"),
    Role.HEAD: Parameter("lm_head"),
    Role.FINAL_NORM: Parameter("model.norm"),
    Role.HC_HEAD_FN: Parameter("model.hc_head_fn", bare=True),
    Role.HC_HEAD_BASE: Parameter("model.hc_head_base", bare=True),
    Role.HC_HEAD_SCALE: Parameter("model.hc_head_scale", bare=True),
}

_DRAFT: dict[Role, Parameter] = {
    **{role: _MODEL[role] for role in (Role.HC_HEAD_FN, Role.HC_HEAD_BASE, Role.HC_HEAD_SCALE)},
    Role.FINAL_NORM: Parameter("model.shared_head.norm"),
    Role.MTP_E_PROJ: Parameter("model.e_proj"),
    Role.MTP_H_PROJ: Parameter("model.h_proj"),
    Role.MTP_ENORM: Parameter("model.enorm"),
    Role.MTP_HNORM: Parameter("model.hnorm"),
}

USUAL = {"lm_head": "TP", "redundant experts": "0", "expert locations": IDENTITY, "pp": "1", "pp_layers": ""}
"""Choices that an identity names only where they differ from these, as files of earlier releases do not name them."""

_STAGE: dict[Role, Parameter] = _LAYER | {
    Role.Q_A: Parameter("self_attn.wq_a"),
    Role.KV: Parameter("self_attn.wkv"),
    Role.FINAL_NORM: Parameter("norm"),
    Role.HC_HEAD_FN: Parameter("hc_head_fn", bare=True),
    Role.HC_HEAD_BASE: Parameter("hc_head_base", bare=True),
    Role.HC_HEAD_SCALE: Parameter("hc_head_scale", bare=True),
    Role.DSPARK_MAIN_PROJ: Parameter("main_proj"),
    Role.DSPARK_MAIN_NORM: Parameter("main_norm"),
}
"""Parameters of a DSpark stage, in which wq_a and wkv are not fused."""

_DSPARK: dict[Role, Parameter] = {
    Role.DSPARK_MARKOV_EMBED: Parameter("markov_head.markov_w1"),
    Role.DSPARK_MARKOV_HEAD: Parameter("markov_head.markov_w2"),
    Role.DSPARK_CONFIDENCE: Parameter(CONFIDENCE.removesuffix(".weight")),
}
"""Parameters of a DSpark draft outside of its stages."""

_ROUTED = {Role.ROUTED_GATE: "w13", Role.ROUTED_UP: "w13", Role.ROUTED_DOWN: "w2"}


class SglangLayout:
    """`model-rank-{rank}-part-{part}.safetensors`: a rank's own parts, then those that all ranks share."""

    name = "sglang"
    shares_files = True
    has_parts = True
    by_node = False

    def file_name(self, rank: int, part: int, deployment: Deployment) -> str:
        """The pattern of `--load-format sharded_state`, with pipeline stages that of vLLM's."""
        if deployment.pp == 1:
            return rank_file_name(rank, part)
        stage, within = divmod(rank, deployment.stage_world)
        return rank_file_name(within, part, stage=stage)

    def fate(self, tensor: Tensor, name: TensorName, context: Context) -> Disposition:
        """The parameter that `tensor` goes into, and its transform."""
        if name.stage is Stage.MTP:
            if (reason := left_out_draft(context)) is not None:
                return LeftOut(reason)
            context = drafted_context(context)
        if name.role in (Role.MTP_EMBED, Role.MTP_HEAD):
            return LeftOut("the draft model shares the target's embedding and head")
        decodes = name.role is Role.O_A and not keeps_o_a_fp8(context, name.stage)
        if decodes and name.part is Part.SCALE:
            where = "in DSpark's stages" if is_dspark(name.stage, context) else "on Hopper"
            return LeftOut(f"multiplied into wo_a.weight, which SGLang holds in BF16 {where}")
        folder = DRAFT_FOLDER if name.stage is Stage.MTP else ""
        dtype = parameter_dtype(name.role, name.part, context, name.stage) or tensor.dtype
        prefix = _prefix(name, context)
        if name.role in _ROUTED:
            return (_routed(name, context, dtype, folder, prefix),)
        row = _row(name, context)
        transform = "fp8_to_bf16" if decodes and tensor.dtype == "F8_E4M3" else None
        return (TargetTensor(row.full_name(prefix, name.part), dtype, folder, row.order, transform=transform),)

    def refusal(self, context: Context) -> str | None:
        """Refuse what is not verified against SGLang's loader: more draft blocks than it builds."""
        blocks, built = draft_blocks(context), _built_blocks(context)
        if blocks > built:
            what = "DSpark stages" if context.inventory.draft.dspark else "MTP blocks"
            return f"the checkpoint has {blocks} {what}, SGLang's draft model has {built}"
        deployment = context.deployment
        if deployment.experts == NVFP4 and deployment.gpu.sm in SM_10X and (part := _uneven_tile(context)):
            return f"TRTLLM's kernels round {part} rows per rank up to a multiple of {_TRTLLM_TILE}: not verified"
        if deployment.experts == NVFP4 and (deployment.redundant_experts or deployment.locations or deployment.pp > 1):
            return "NVFP4 experts were not compared with redundant experts, a map of experts, or pipeline stages"
        return None

    def constants(self, context: Context) -> tuple[Constant, ...]:
        """Scales of the KV cache, 1.0: `sharded_state` expects every parameter, and no checkpoint has these."""
        if not is_stock(context):
            return ()
        config, one = context.config, struct.pack("<f", 1.0)
        owners = [("", f"model.layers.{layer}.self_attn.attn_mqa") for layer in range(config.num_hidden_layers)]
        if is_dspark(Stage.MTP, context):
            owners += [(DRAFT_FOLDER, f"stages.{stage}.self_attn.attn") for stage in range(draft_blocks(context))]
        else:
            owners += [(DRAFT_FOLDER, "model.decoder.self_attn.attn_mqa")] * draft_blocks(context)
        return tuple(
            Constant(f"{prefix}.{which}_scale", "F32", (), one, folder)
            for folder, prefix in owners
            for which in ("k", "v")
        )

    def identity(self, context: Context) -> dict[str, str]:
        """Properties that the files depend on and that names and shapes do not show."""
        deployment, runner = context.deployment, runner_of(context)
        choices = {
            "lm_head": GROUP_NAMES[deployment.head_group],
            "redundant experts": str(deployment.redundant_experts),
            "expert locations": deployment.expert_locations,
            "pp": str(deployment.pp),
            "pp_layers": deployment.partition,
        }
        return {
            "layout": LAYOUT,
            "engine": f"sglang {VERSION}",
            "gpu_family": deployment.gpu.family,
            "moe_runner": deployment.runner,
            "moe_a2a": deployment.a2a or "none",
            "tp": str(deployment.tp),
            "ep": str(deployment.ep),
            "attention_dp": str(deployment.dp),
            "shared_experts": deployment.shared,
            "experts": deployment.experts,
            "w13_order": W13_ORDERS[runner.up_first if runner else False],
            "wo_a": parameter_dtype(Role.O_A, Part.WEIGHT, context) or context.format(Role.O_A).name,
            "environment": " ".join(f"{key}={value}" for key, value in environment_of(context).items()),
            **{name: choice for name, choice in choices.items() if choice != USUAL[name]},
            **_of_the_draft(context),
        }

    def companions(self, document: dict[str, object], context: Context) -> dict[str, bytes]:
        """None: SGLang reads the checkpoint's own config and tokenizer."""
        return {}

    def copied(self, context: Context) -> dict[str, str]:
        """Files that are copied if they exist: name in the output → name in the checkpoint."""
        return model_files(context)


def _of_the_draft(context: Context) -> dict[str, str]:
    """Properties of the draft's files that differ from the target's, each after `DRAFT_KEY`."""
    own = drafted_context(context)
    if own is context:
        return {}
    runner = runner_of(own)
    order = W13_ORDERS[runner.up_first if runner else False]
    return {f"{DRAFT_KEY}moe_runner": own.deployment.runner, f"{DRAFT_KEY}w13_order": order}


DRAFT_KEY = "draft "
"""Before the names of properties that the draft's files have otherwise than the target's."""

_TRTLLM_TILE = 64


def _uneven_tile(context: Context) -> int:
    """Rows of a rank's expert if they are no multiple of a tile of TRTLLM's NVFP4 kernels; 0 if they are one."""
    rows = context.config.moe_intermediate_size // context.deployment.moe_tp
    return rows if rows % _TRTLLM_TILE else 0


def _built_blocks(context: Context) -> int:
    """Blocks of SGLang's draft model: one (NextN), or as many stages as DSpark reads layers of the target."""
    if not context.inventory.draft.dspark:
        return 1
    config = context.v4
    return len(config.dspark_target_layer_ids) or config.num_nextn_predict_layers or 1


def _prefix(name: TensorName, context: Context) -> str:
    """Prefix of the parameter's name: that of a layer, of the draft's layer or stage, or empty outside of these."""
    if name.stage is Stage.LAYER:
        return f"model.layers.{name.layer}."
    if is_dspark(name.stage, context):
        return "" if name.role in _DSPARK else f"stages.{name.layer}."
    return "model.decoder." if name.stage is Stage.MTP and (name.role in _LAYER or name.role in _ROUTED) else ""


def _row(name: TensorName, context: Context) -> Parameter:
    if is_dspark(name.stage, context):
        return _DSPARK.get(name.role) or _STAGE[name.role]
    if name.role in _LAYER:
        return _LAYER[name.role]
    return (_DRAFT if name.stage is Stage.MTP else _MODEL)[name.role]


_SUFFIXES = {
    Part.WEIGHT: "weight",
    Part.SCALE: "weight_scale_inv",
    Part.GROUP_SCALE: "weight_scale",
    Part.TENSOR_SCALE: "weight_scale_2",
    Part.INPUT_SCALE: "input_scale",
}


def _routed(name: TensorName, context: Context, dtype: str, folder: str, prefix: str) -> TargetTensor:
    """The parameter of a routed expert. NVFP4's scalars stand gate before up with every runner.

    SGLang has one input scale for gate and up, in both columns, and those of all experts on every rank.
    """
    parameter = f"{prefix}mlp.experts.{_ROUTED[name.role]}_{_SUFFIXES[name.part]}"
    order = _w13_order(name.role, None if name.part.is_scalar else runner_of(context))
    is_input = name.part is Part.INPUT_SCALE
    paired = is_input and name.role is not Role.ROUTED_DOWN
    return TargetTensor(parameter, dtype, folder, order, stacked=True, everywhere=is_input, paired=paired)


def _w13_order(role: Role, runner: Runner | None) -> int:
    """Position in w13: gate before up, or up before gate for runners that expect that."""
    up_first = runner is not None and runner.up_first
    return int((role is Role.ROUTED_UP) != up_first) if role is not Role.ROUTED_DOWN else 0
