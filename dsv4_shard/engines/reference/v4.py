"""DeepSeek's own inference code: the files of `convert.py`, the rules of `model.py`.

Routed experts are whole and spread by contiguous blocks (EP = the number of ranks). Shared experts are whole on every
rank and added after the all-reduce. Attention and vocabulary are tensor-parallel. The files equal those of the V4
converter, name by name and byte by byte; the converter of the DSpark releases knows more names and changes nothing
else. The rules are those of the model that loads the files, plus those that it does not check (it floors heads, index
heads and output groups).

Later generations change little besides sizes and names: a `Converter` describes a family's generation.
"""

from collections.abc import Callable, Iterator
from functools import partial

from dsv4_shard.catalog.options import RUNNERS, VERSIONS
from dsv4_shard.checkpoint import Inventory, TensorGroup
from dsv4_shard.engines.bytes_sent import added_up_in_f32
from dsv4_shard.engines.deployment import Context, Deployment, Request, resolve
from dsv4_shard.engines.drafts import DRAFT_OPTION_RULE
from dsv4_shard.engines.engine import Engine
from dsv4_shard.engines.host_memory import REFERENCE_HOST
from dsv4_shard.engines.launch import FIRST_NODE, NODE_RANK, Command, Launch, Options, node_ranks
from dsv4_shard.engines.layout import Constant, Disposition, LeftOut, TargetTensor
from dsv4_shard.engines.parallelism import no_choice
from dsv4_shard.engines.pipeline_rules import NO_PIPELINE_RULE
from dsv4_shard.engines.placement import Expert, Pad, Placement, RankTensor, Replicate, Split, rank_tensor
from dsv4_shard.engines.reference.converter import CONFIG_NAME, Converter, config_file, inference_config
from dsv4_shard.engines.remedies import NO_DP, leave_out
from dsv4_shard.engines.rules import NO_OPTION, NOT_VERIFIED, Divides, Requires, Rule, Symptom, Template, in_stage
from dsv4_shard.engines.shared_rules import (
    NODES_RULE,
    SGLANG_OPTIONS_RULE,
    nvfp4_rule,
    o_a_decoding_rule,
    version_rule,
)
from dsv4_shard.engines.stages import StartStage
from dsv4_shard.models import V4, Family, ModelConfig, Module, Names, Part, Role, Stage, TensorName, family_of
from dsv4_shard.tensors.header import Tensor

(KERNELS,) = RUNNERS["reference"]

_ROUTED = (Role.ROUTED_GATE, Role.ROUTED_UP, Role.ROUTED_DOWN)

WRONG = "the converter and the model start; the model then computes garbage or fails in the first forward"


def one_way(
    request: Request, inventory: Inventory, *, version: str, kernels: str, shared: str, shared_parts: int
) -> Deployment:
    """Return the only deployment that DeepSeek's code has for a request.

    Args:
        request: The request.
        inventory: The checkpoint's inventory.
        version: Version of the generation's rules.
        kernels: The generation's kernels, as its runner.
        shared: How the generation holds shared experts.
        shared_parts: Ranks that share one shared expert.
    """
    return resolve(
        request, inventory, engine="reference", version=version, ep=request.tp if request.ep is None else request.ep,
        runner=request.runner or kernels, shared=shared, shared_parts=shared_parts, attention_tp=request.tp, moe_tp=1,
    )  # fmt: skip


def candidates(version: str, inventory: Inventory, request: Request) -> Iterator[Deployment]:
    """The only deployment: whole shared experts."""
    yield one_way(request, inventory, version=version, kernels=KERNELS, shared="whole", shared_parts=1)


def ranks(context: Context) -> int:
    """Number of ranks over which the converter cuts."""
    return context.deployment.tp


def dimension_quote(axis: int) -> str:
    """Error text of every converter if an axis of a tensor does not divide."""
    return f"AssertionError: Dimension {axis} must be divisible by {{parts}}"


def scale_rule(
    name: str, module: Module, role: Role, size: Callable[[Context], int], size_name: str, axis: int = 0
) -> Divides:
    """Rule: the blocks of a scale divide too, since the converters narrow a scale like its weight."""
    return Divides(
        name, module, size, size_name, ranks, "ranks", lambda c: c.block(role)[axis], "blocks",
        Symptom(dimension_quote(axis)), Symptom(dimension_quote(axis)),
    )  # fmt: skip


ONE_WAY_RULES: tuple[Rule, ...] = (
    Requires(
        "ep", Module.ROUTED, lambda c: c.deployment.ep == c.deployment.tp,
        "the reference spreads whole experts over all {at.tp} ranks, so EP {at.ep} is not possible",
        consequence=NO_OPTION, remedies=(leave_out("ep"),),
        fatal=True,
    ),
    Requires(
        "dp", Module.ATTENTION, lambda c: c.deployment.dp == 1, "the reference has no attention DP",
        consequence=NO_OPTION, remedies=(NO_DP,), fatal=True,
    ),
    DRAFT_OPTION_RULE,
    NO_PIPELINE_RULE,
    SGLANG_OPTIONS_RULE,
)  # fmt: skip
"""Rules of all generations: none has attention DP, and none cuts a routed expert."""

VOCAB_RULE = Divides(
    "vocab", Module.EMBEDDING, lambda c: c.config.vocab_size, "vocab_size", ranks, "ranks",
    uneven=Symptom(dimension_quote(0)),
)  # fmt: skip


def _indexer_rows(context: Context) -> int:
    return context.v4.index_n_heads * context.v4.index_head_dim


def _casts_draft(context: Context) -> bool:
    """Whether the converter casts the experts of an MTP block in FP4, so that they get the format of the target's."""
    fmt = context.inventory.format(Role.ROUTED_GATE, Stage.MTP)
    is_fp4 = fmt is not None and fmt.name == "FP4"
    return is_fp4 and context.inventory.is_draft_known and context.deployment.experts == "FP8"


_WAYS: tuple[Rule, ...] = (
    *ONE_WAY_RULES,
    Requires(
        "options", Module.ROUTED, lambda c: c.deployment.a2a is None and c.deployment.runner == KERNELS,
        "the reference has no runners or all-to-all backends to choose", consequence=NO_OPTION,
        remedies=(leave_out("runner", "a2a"),), fatal=True,
    ),
    Requires(
        "shared-way", Module.SHARED, lambda c: c.deployment.shared == "whole",
        "the reference adds whole shared experts after the all-reduce; it cannot {at.shared} them",
        consequence=NO_OPTION, remedies=(leave_out("shared_experts"),), fatal=True,
    ),
    nvfp4_rule("DeepSeek's model.py has no NVFP4 experts", "the model cannot load them"),
    Requires(
        "draft-format", Module.MTP, lambda c: _casts_draft(c) or c.inventory.draft_difference is None,
        "model.py builds the experts of the MTP block as {at.experts}, like those of the layers, and they are stored "
        "otherwise", consequence=NOT_VERIFIED,
    ),
    NODES_RULE,
)  # fmt: skip
"""Choices that the reference does not offer."""

_EXPERTS_FORMAT_RULE = Requires(
    "expert-dtype", Module.ROUTED,
    lambda c: c.deployment.experts in ("FP4", "FP8") and (c.deployment.experts,
    c.inventory.routed.name) != ("FP4", "FP8"),
    "experts are {context.inventory.routed.name} in the checkpoint and cannot be written as {at.experts}",
    remedies=(leave_out("expert_dtype"),), fatal=True, stage=StartStage.CONVERSION,
)  # fmt: skip

_DECODES = "the converter stops: it decodes whole blocks"

_SIZES = in_stage(
    StartStage.CONVERSION,
    VOCAB_RULE,
    Divides(
        "heads", Module.ATTENTION, lambda c: c.config.num_attention_heads, "num_attention_heads", ranks, "ranks",
        uneven=Symptom(dimension_quote(0)),
    ),
    scale_rule("o_a-blocks", Module.ATTENTION, Role.O_A, lambda c: c.o_cols, "o_a blocks"),
    Divides(
        "o_a-columns", Module.ATTENTION, lambda c: c.q_rows, "q_b rows", lambda c: c.v4.o_groups, "o_groups",
        lambda c: c.block(Role.O_A).cols, "blocks", cut=Symptom(consequence=_DECODES),
        uneven=Symptom(consequence=_DECODES),
    ),
    scale_rule("o_b-blocks", Module.ATTENTION, Role.O_B, lambda c: c.o_cols, "o_b blocks", axis=1),
    scale_rule("q_b-blocks", Module.ATTENTION, Role.Q_B, lambda c: c.q_rows, "q_b blocks"),
    Divides(
        "index-heads", Module.INDEXER, lambda c: c.v4.index_n_heads, "index_n_heads", ranks, "ranks",
        uneven=Symptom(dimension_quote(0)),
    ),
    scale_rule("indexer-blocks", Module.INDEXER, Role.INDEXER_Q_B, _indexer_rows, "indexer q_b blocks"),
)  # fmt: skip
"""Sizes that must divide in the converter, by the names of their first tensors, whose order it follows in a file."""

_MODEL_RULES = in_stage(
    StartStage.CONSTRUCTION,
    Requires(
        "one-shared-expert", Module.SHARED, lambda c: c.config.n_shared_experts == 1,
        "the reference has one shared expert, the checkpoint {config.n_shared_experts}", "AssertionError",
    ),
) + in_stage(
    StartStage.SERVING,
    Divides(
        "o_groups", Module.ATTENTION, lambda c: c.v4.o_groups, "o_groups", ranks, "ranks",
        uneven=Symptom(consequence=WRONG),
    ),
)  # fmt: skip
"""What the model refuses after the converter has run."""


def experts_rule(quote: Template) -> Divides:
    """Rule: the experts divide over the ranks; the converter spreads whole experts and prints `quote` otherwise."""
    return Divides(
        "experts", Module.ROUTED, lambda c: c.config.n_routed_experts, "n_routed_experts", ranks, "ranks",
        uneven=Symptom(quote),
    )  # fmt: skip


WHOLE_EXPERTS_RULE = experts_rule("AssertionError: Number of experts must be divisible by model parallelism")


def _cast_rule(block: int) -> Requires:
    return Requires(
        "cast-blocks", Module.ROUTED,
        lambda c: c.deployment.experts == c.inventory.routed.name
        or (c.config.hidden_size % block == 0 and c.config.moe_intermediate_size % block == 0),
        f"the FP8 cast needs multiples of {block}, here hidden_size {{config.hidden_size}} and moe_intermediate_size "
        "{config.moe_intermediate_size}", "AssertionError",
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
    Role.ENGRAM_EMBED: Pad(0, "tp", 1),
    Role.DSPARK_MARKOV_EMBED: Split(0, "tp"),
    Role.DSPARK_MARKOV_HEAD: Split(0, "tp"),
    **dict.fromkeys(_ROUTED, Expert(Replicate())),
}
"""The converter's `mapping`, by role; other roles are whole on every rank.

V4.1's converter has no entry for DSpark's two factors, whose names end in `embed` and `head`, like those of the model.
"""

_ONE = {"F8_E8M0": b"\x7f", "F32": b"\0\0\x80\x3f"}
"""1.0 in each dtype of scales: the scale of padding rows in an engram table."""


def _place(role: Role, context: Context) -> Placement:
    """The converter's placement of `role`."""
    return _PLACEMENTS.get(role, Replicate())


def _format(context: Context, role: Role, stage: Stage) -> str | None:
    fmt = context.inventory.format(role, stage)
    return fmt.name if fmt else None


def _store(converter: Converter, group: TensorGroup, placement: Placement, context: Context) -> RankTensor | None:
    """Content of a rank's file: o_a decoded to BF16 without scale, FP4 experts unchanged or cast to FP8."""
    if group.role in (Role.MTP_EMBED, Role.MTP_HEAD):
        return None
    form = _format(context, group.role, group.stage)
    if group.role is Role.O_A and form == "FP8":
        return None if group.part is Part.SCALE else rank_tensor(group, placement, context, "BF16")
    if group.role in _ROUTED and form == "FP4" and context.deployment.experts == "FP8":
        if group.part is Part.WEIGHT:
            return rank_tensor(group, placement, context, "F8_E4M3")
        groups_per_block = converter.cast_block // context.block(group.role).cols
        rows, cols = group.shape[0] // converter.cast_block, group.shape[1] // groups_per_block
        return RankTensor("F8_E8M0", (rows, cols), rows * cols)
    return rank_tensor(group, placement, context)


class ReferenceLayout:
    """`model{rank}-mp{N}.safetensors`, one file per rank, with the checkpoint's names."""

    name = "reference"
    shares_files = False
    has_parts = False
    by_node = False

    def __init__(self, converter: Converter) -> None:
        self._converter = converter

    def file_name(self, rank: int, part: int, deployment: Deployment) -> str:
        """The name that DeepSeek's `generate.py` looks for."""
        return f"model{rank}-mp{deployment.tp}.safetensors"

    def fate(self, tensor: Tensor, name: TensorName, context: Context) -> Disposition:
        """What the converter makes of `tensor`, under its own name."""
        if name.role in (Role.MTP_EMBED, Role.MTP_HEAD):
            return LeftOut("the MTP block shares the model's embedding and head")
        form = _format(context, name.role, name.stage)
        if name.role is Role.O_A and form == "FP8":
            if name.part is Part.SCALE:
                return LeftOut("multiplied into wo_a.weight, which is stored in BF16")
            return (TargetTensor("", "BF16", transform=self._converter.decodings[context.block(Role.O_A).rows]),)
        if name.role in _ROUTED and form == "FP4":
            if context.deployment.experts == "FP8":
                dtype = "F8_E4M3" if name.part is Part.WEIGHT else "F8_E8M0"
                return (TargetTensor("", dtype, transform=self._converter.cast),)
            return (TargetTensor("", "F4" if name.part is Part.WEIGHT else tensor.dtype),)
        fill = _ONE[tensor.dtype] if (name.role, name.part) == (Role.ENGRAM_EMBED, Part.SCALE) else b""
        return (TargetTensor("", tensor.dtype, fill=fill),)

    def names(self, config: ModelConfig) -> Names:
        """The converter's tensor names, which are the checkpoint's."""
        return family_of(config).names(config)

    def refusal(self, context: Context) -> str | None:
        """None: every layout that the reference runs can be written."""
        return None

    def constants(self, context: Context) -> tuple[Constant, ...]:
        """None: the converter writes none."""
        return ()

    def identity(self, context: Context) -> dict[str, str]:
        """Empty: the converter's headers have none. Names and digests identify the files."""
        return {}

    def companions(self, document: dict[str, object], context: Context) -> dict[str, bytes]:
        """The config of DeepSeek's `inference/model.py`."""
        config = inference_config(self._converter, document, context.deployment.experts, context.inventory.draft)
        return config_file(config)

    def copied(self, context: Context) -> dict[str, str]:
        """Files that the converter copies, and those that generate.py's tokenizer may need."""
        names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
        return {name: name for name in names}


def launch(context: Context, model_path: str, sharded: bool) -> Launch:
    """torchrun of DeepSeek's generate.py, from its `inference/` folder; `model_path` is reshard's output."""
    deployment = context.deployment
    options: Options = {"--ckpt-path": model_path, "--config": f"{model_path}/{CONFIG_NAME}", "--interactive": None}
    script, each = Command("generate.py", options), {"--nproc-per-node": str(deployment.tp // deployment.nodes)}
    if deployment.nodes == 1:
        return Launch({}, script, Command("torchrun", dict(each)))
    on_nodes = {"--nnodes": str(deployment.nodes), **each, "--master-addr": FIRST_NODE, NODE_RANK: "0"}
    return Launch({}, script, Command("torchrun", dict(on_nodes)), node_ranks(deployment.nodes))


def addition(context: Context) -> str:
    """Describe how the shared expert's output joins the sum."""
    return (
        f"The shared expert's output is complete on each of the {context.deployment.tp} ranks: model.py adds it once, "
        f"after the all-reduce of the routed output; added before it, it would count {context.deployment.tp} times."
    )


def reference(family: Family, converter: Converter, *more: Rule) -> Engine:
    """Return the engine of a family; `more` are the additional rules of its generation."""
    return Engine(
        name="reference",
        title="DeepSeek reference",
        short_title="reference",
        host=REFERENCE_HOST,
        version=converter.version,
        families=(family,),
        runners=RUNNERS["reference"],
        versions=VERSIONS["reference"],
        draft_in_model=True,
        files_for_any_gpu=True,
        parallelism=no_choice,
        bytes_sent=added_up_in_f32,
        candidates=partial(candidates, converter.version),
        rules=(
            *_WAYS,
            version_rule(converter.version),
            _EXPERTS_FORMAT_RULE,
            *in_stage(StartStage.CONVERSION, *more),
            *_SIZES,
            *in_stage(StartStage.CONVERSION, o_a_decoding_rule(*converter.decodings), _cast_rule(converter.cast_block)),
            *_MODEL_RULES,
        ),
        place=_place,
        store=partial(_store, converter),
        launch=launch,
        addition=addition,
        misloads=lambda _: "model.py loads only converted files",
        layout=ReferenceLayout(converter),
    )


_V4_KEYS = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "moe_inter_dim": "moe_intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_hash_layers": "num_hash_layers",
    "n_mtp_layers": "",
    "dspark_block_size": "dspark_block_size",
    "dspark_noise_token_id": "dspark_noise_token_id",
    "dspark_target_layer_ids": "dspark_target_layer_ids",
    "dspark_markov_rank": "dspark_markov_rank",
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

V4_CONVERTER = Converter(
    version="V4", decodings={128: "fp8_to_bf16"}, cast="fp4_to_fp8", cast_block=128, config_keys=_V4_KEYS
)

REFERENCE = reference(V4, V4_CONVERTER, WHOLE_EXPERTS_RULE)
