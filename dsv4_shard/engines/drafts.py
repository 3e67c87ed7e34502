"""Draft models: the one that a deployment serves with, the rules on it, and why rank files leave it out.

A release has MTP blocks, DSpark's stages, or no draft. SGLang and vLLM load a draft as a model of its own. Rank files
hold it wherever the engine's own loader was run with it; `--draft` asks for it in the launch, in the memory and in the
KV cache, or leaves it out.
"""

from dataclasses import replace

from dsv4_shard.catalog.options import NO_DRAFT
from dsv4_shard.catalog.sms import SM_10X
from dsv4_shard.checkpoint import NVFP4
from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.remarks import Loss
from dsv4_shard.engines.remedies import DP_LM_HEAD, DRAFT_OF_RELEASE, for_engine, leave_out
from dsv4_shard.engines.rules import NO_OPTION, NOT_VERIFIED, Requires
from dsv4_shard.engines.stages import StartStage
from dsv4_shard.models import Module, Role, Stage, V3Config
from dsv4_shard.tensors.geometry import FP4_GROUP

_ON_SGLANG = ("sglang", "node")
"""Engines whose commands start SGLang."""

_NO_DSPARK_VERSIONS = ("0.25.0",)
"""Versions of vLLM whose DSpark classes were not run."""

_DSPARK_A2A = (None, "megamoe", "mori")
"""All-to-all backends with which SGLang runs DSpark under attention DP (`speculative_hook._handle_dspark`)."""


def _is_dspark_under_dp(context: Context) -> bool:
    """Whether SGLang is to run DSpark under attention DP."""
    at = context.deployment
    return at.engine in _ON_SGLANG and at.dp > 1 and context.inventory.draft.dspark


def needs_other_head(context: Context) -> bool:
    """Whether SGLang refuses DSpark with the deployment's head."""
    return _is_dspark_under_dp(context) and not context.deployment.dp_lm_head


def clashes_with_a2a(context: Context) -> bool:
    """Whether SGLang refuses DSpark with the deployment's all-to-all backend."""
    return _is_dspark_under_dp(context) and context.deployment.a2a not in _DSPARK_A2A


def _is_whole_fp4(context: Context) -> bool:
    """Whether the draft's experts are FP4, and a rank holds whole groups of them."""
    fmt = context.inventory.format(Role.ROUTED_GATE, Stage.MTP)
    is_whole = context.config.moe_intermediate_size % (context.deployment.moe_tp * FP4_GROUP) == 0
    return is_whole and fmt is not None and fmt.name == "FP4"


def drafted(context: Context, runner: str) -> Context:
    """The context of a draft of FP4 experts beside NVFP4 ones, which engines build with `runner`; else `context`."""
    if context.deployment.experts != NVFP4 or left_out_draft(context) or not _is_whole_fp4(context):
        return context
    return replace(context, deployment=replace(context.deployment, experts="FP4", runner=runner))


_UNLOADED = (
    Requires(
        "draft-known", Module.DEPLOYMENT, lambda c: c.inventory.is_draft_known,
        "the draft is of a format that is not known", consequence=NOT_VERIFIED,
    ),
    Requires(
        "draft-experts-format", Module.DEPLOYMENT, lambda c: c.inventory.draft_difference is None,
        "the draft's experts are of another format than the target's, and the engine builds both in one",
        consequence=NOT_VERIFIED,
    ),
)  # fmt: skip

_SGLANG_UNLOADED = (
    Requires(
        "draft-stages", Module.DEPLOYMENT, lambda c: c.deployment.pp == 1 or c.inventory.draft.dspark,
        "under pipeline parallelism, SGLang reads the draft's embedding from the checkpoint, by its own load formats "
        "alone (speculative/pp_draft_embedding.py)", consequence=NOT_VERIFIED, remedies=(leave_out("draft"),),
    ),
    Requires(
        "dspark-stages", Module.DEPLOYMENT, lambda c: c.deployment.pp == 1 or not c.inventory.draft.dspark,
        "SGLang runs DSpark with pipeline stages only in PD prefill, which is not planned", consequence=NOT_VERIFIED,
        remedies=(leave_out("draft"),),
    ),
    Requires(
        "draft-experts", Module.DEPLOYMENT,
        lambda c: not (c.deployment.redundant_experts and c.draft_experts % c.deployment.ep),
        "SGLang's draft has no redundant experts, and its {context.draft_experts} do not divide by EP {at.ep}",
        consequence=NOT_VERIFIED, remedies=(leave_out("redundant_experts"),),
    ),
    Requires(
        "draft-nvfp4", Module.DEPLOYMENT,
        lambda c: c.deployment.experts != NVFP4 or c.deployment.engine != "sglang"
        or (c.deployment.gpu.sm in SM_10X and _is_whole_fp4(c)),
        "beside NVFP4 experts SGLang builds the draft with a method for FP4 ones in whole groups of 32, on Blackwell",
        consequence=NOT_VERIFIED, remedies=(leave_out("draft"),),
    ),
)  # fmt: skip

_VLLM_UNLOADED = (
    Requires(
        "dspark-stages", Module.DEPLOYMENT, lambda c: c.deployment.pp == 1 or not c.inventory.draft.dspark,
        "with DSpark, vLLM's last stage has the embedding too: such files were not compared",
        consequence=NOT_VERIFIED, remedies=(leave_out("draft"),),
    ),
    Requires(
        "dspark-version", Module.DEPLOYMENT,
        lambda c: not (c.inventory.draft.dspark and c.deployment.version in _NO_DSPARK_VERSIONS),
        "DSpark's own classes were not run in version {at.version}", consequence=NOT_VERIFIED,
        remedies=(leave_out("engine_version"),),
    ),
    Requires(
        "draft-nvfp4", Module.DEPLOYMENT, lambda c: c.deployment.experts != NVFP4 or _is_whole_fp4(c),
        "beside NVFP4 experts, only drafts of FP4 experts in whole groups of 32 are verified",
        consequence=NOT_VERIFIED, remedies=(leave_out("draft"),),
    ),
)  # fmt: skip

_DSPARK_UNDER_DP = (
    Requires(
        "dspark-a2a", Module.DEPLOYMENT, lambda c: not clashes_with_a2a(c),
        "with attention DP, SGLang runs DSpark without an all-to-all backend, or with megamoe or mori, not with "
        "{at.a2a}",
        "ValueError: DSpark with dp attention supports moe_a2a_backend 'none' (built-in TP MoE), 'megamoe', or "
        "'mori', got {at.a2a!r}.",
        remedies=(leave_out("a2a"), leave_out("draft")), stage=StartStage.CONFIGURATION,
    ),
    Requires(
        "dspark-head", Module.DEPLOYMENT, lambda c: not needs_other_head(c),
        "with attention DP, SGLang runs DSpark only with --enable-dp-lm-head: plan with --dp-lm-head",
        "ValueError: DSpark with dp attention requires --enable-dp-lm-head.",
        remedies=(DP_LM_HEAD, leave_out("draft")), stage=StartStage.CONFIGURATION,
    ),
)  # fmt: skip

_LEAVES_OUT = {
    "sglang": (*_SGLANG_UNLOADED, *_DSPARK_UNDER_DP, *_UNLOADED),
    "vllm": (*_VLLM_UNLOADED, *_UNLOADED),
    "node": (*_SGLANG_UNLOADED, *_DSPARK_UNDER_DP, *_UNLOADED),
}
"""Engine → what keeps the draft of a release out of its files and its memory, whether or not it is asked for."""


def _if_served(rules: tuple[Requires, ...], *drafts: str) -> tuple[Requires, ...]:
    """The rules for deployments that serve one of `drafts`: others run without it."""

    def narrowed(rule: Requires) -> Requires:
        return replace(rule, holds=lambda c: c.deployment.draft not in drafts or rule.holds(c))

    return tuple(map(narrowed, rules))


def draft_choices(engine: str) -> tuple[Requires, ...]:
    """Rules on what `--draft` may ask of SGLang (`sglang`) or vLLM (`vllm`), before the engine starts."""
    own = {"sglang": _SGLANG_UNLOADED, "vllm": _VLLM_UNLOADED}[engine]
    return (DRAFT_RULE, *_if_served((*own, *_UNLOADED), "mtp", "dspark"))


DRAFT_RULE = Requires(
    "draft", Module.DEPLOYMENT, lambda c: not c.deployment.serves_draft or _has_draft(c),
    "--draft {at.draft}, and the checkpoint has no such draft model", consequence="there is nothing to draft with",
    remedies=(leave_out("draft"),), fatal=True,
)  # fmt: skip
"""Rule: the checkpoint has a draft model if one is asked for. DSpark is of V4's generation."""


def _has_draft(context: Context) -> bool:
    return context.inventory.draft.blocks > 0 and not (context.deployment.draft == "dspark" and _is_v3(context))


def _is_v3(context: Context) -> bool:
    return isinstance(context.config, V3Config)


DRAFT_OPTION_RULE = Requires(
    "draft-option", Module.DEPLOYMENT, lambda c: c.deployment.draft is None,
    "--draft is for SGLang, vLLM and folders for nodes", consequence=NO_OPTION,
    remedies=(leave_out("draft"), for_engine("sglang"), for_engine("vllm")), fatal=True,
)  # fmt: skip
"""Rule of engines that do not draft, or load the draft with the target."""

KNOWN_DRAFT_RULE = Requires(
    "draft-format", Module.MTP, lambda c: c.inventory.is_draft_known or c.deployment.draft == NO_DRAFT,
    "the folders hold the draft's tensors too, and these are of a format that is not known", consequence=NOT_VERIFIED,
    fatal=True, remedies=tuple(for_engine(name, ", whose files hold the target alone") for name in ("sglang", "vllm")),
)  # fmt: skip
"""Rule of layouts that hold every tensor of the checkpoint."""

_MTP_OF_DSPARK = Requires(
    "draft-mtp", Module.DEPLOYMENT, lambda c: c.deployment.draft != "mtp" or not c.inventory.draft.dspark,
    "--draft mtp, and the checkpoint's draft is DSpark: its stages have no e_proj, h_proj, enorm and hnorm",
    remedies=(DRAFT_OF_RELEASE,),
)  # fmt: skip

_DSPARK_OF_MTP = Requires(
    "draft-dspark", Module.DEPLOYMENT, lambda c: c.deployment.draft != "dspark" or c.inventory.draft.dspark,
    "--draft dspark, and the checkpoint's draft is MTP, without DSpark's stages", remedies=(DRAFT_OF_RELEASE,),
)  # fmt: skip

SGLANG_CONFIGURATION = (
    *_if_served(_DSPARK_UNDER_DP, "dspark"),
    replace(
        _DSPARK_OF_MTP,
        quote="ValueError: DSpark dense speculative decoding requires setting --speculative-draft-model-path.",
    ),
)
"""SGLang's conditions on a draft model before it builds one (`speculative_hook._handle_dspark`)."""

SGLANG_LOADING = replace(
    _MTP_OF_DSPARK,
    consequence="{engine} starts with these four uninitialised, and drafts garbage: its log has only the warning "
    "'Some weights are not initialized from checkpoints'",
)
"""What SGLang makes of DSpark's stages as an MTP block. It was run with random weights."""

VLLM_CONSTRUCTION = replace(
    _DSPARK_OF_MTP, quote="AttributeError: 'DeepseekV4Config' object has no attribute 'dspark_target_layer_ids'"
)
VLLM_LOADING = replace(
    _MTP_OF_DSPARK, quote=lambda _: "KeyError: 'model.layers.{config.num_hidden_layers}.mtp_block.main_norm.weight'"
)  # not a template to be heard: `explain` has an answer for every KeyError of a parameter
"""Where vLLM stops with a draft of the other kind. Both were run, with random weights."""

NODE_DRAFT_RULES = (
    DRAFT_RULE,
    KNOWN_DRAFT_RULE,
    *(
        replace(rule, consequence="the folder would hold another draft than is asked for")
        for rule in (_MTP_OF_DSPARK, _DSPARK_OF_MTP)
    ),
)
"""Rules of node folders for families whose engines are not verified."""


def left_out_draft(context: Context) -> str | None:
    """Why the files of SGLang and vLLM leave out the MTP blocks; None if they hold them."""
    if context.deployment.draft == NO_DRAFT:
        return f"left out by --draft {NO_DRAFT}"
    rules = _LEAVES_OUT.get(context.deployment.engine, ())
    return next((breach.reason for rule in rules if (breach := rule.check(context)) is not None), None)


def draft_blocks(context: Context) -> int:
    """Number of MTP blocks, or DSpark stages, that the files of SGLang and vLLM hold as a draft model."""
    return 0 if left_out_draft(context) else context.inventory.draft.blocks


def is_dspark(stage: Stage, context: Context) -> bool:
    """Whether a tensor of `stage` is of a DSpark draft."""
    return stage is Stage.MTP and context.inventory.draft.dspark


def is_left_out(stage: Stage, context: Context) -> bool:
    """Whether the raw layouts of SGLang and vLLM leave out the tensors of `stage`."""
    return stage is Stage.MTP and left_out_draft(context) is not None


def draft_losses(context: Context) -> tuple[Loss, ...]:
    """The draft model, if the rank files of SGLang and vLLM leave it out."""
    inventory, reason = context.inventory, left_out_draft(context)
    if reason is None or not inventory.draft.blocks:
        return ()
    nbytes = sum(group.nbytes * count for group, count in inventory.groups.items() if group.stage is Stage.MTP)
    return (Loss("DSpark" if inventory.draft.dspark else "the draft model", nbytes, reason),)
