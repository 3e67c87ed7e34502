"""The commands, variables and options that start SGLang."""

import shlex

from dsv4_shard.catalog.options import LOAD_FORMAT
from dsv4_shard.catalog.sms import SM_10X, SM_90
from dsv4_shard.checkpoint import NVFP4
from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.drafts import clashes_with_a2a, drafted, left_out_draft, needs_other_head
from dsv4_shard.engines.expert_locations import IDENTITY
from dsv4_shard.engines.launch import (
    FIRST_NODE,
    NODE_RANK,
    Command,
    Launch,
    Options,
    by_plan,
    node_ranks,
    settings_of,
)
from dsv4_shard.engines.pipeline import partition_variable, rest_to_the_last
from dsv4_shard.engines.remarks import Change
from dsv4_shard.engines.sglang.kv_cache import (
    EAGLE_TOKENS,
    MEGAMOE_TOKENS,
    default_prefill,
    megamoe_tokens,
    page_of,
    prefill_tokens,
)
from dsv4_shard.engines.sglang.parameters import keeps_o_a_fp8

MODEL_PATH = "--model-path"

DRAFT_PATH = "--speculative-draft-model-path"


def is_stock(context: Context) -> bool:
    """Whether SGLang's own `sharded_state` loads the shards: if nothing is repacked after loading.

    It does not compare the places of experts, so it is not used where these are not in order, and its file names have
    no pipeline stage.
    """
    deployment = context.deployment
    in_order = not deployment.redundant_experts and deployment.expert_locations == IDENTITY
    return in_order and deployment.pp == 1 and deployment.experts == "FP8" and deployment.gpu.sm in SM_90


FP4_EXPERTS = "SGLANG_DSV4_FP4_EXPERTS"

FP8_O_A = "SGLANG_OPT_FP8_WO_A_GEMM"


def environment_of(context: Context) -> dict[str, str]:
    """Variables that SGLang needs to build the deployment's model; often empty."""
    deployment = context.deployment
    environment = {}
    if deployment.shared == "whole" and not deployment.a2a:
        environment["SGLANG_SHARED_EXPERT_TP1"] = "1"
    if deployment.experts == "FP8":
        environment[FP4_EXPERTS] = "0"
    if deployment.a2a == "megamoe":
        tokens = megamoe_tokens(
            deployment.gpu, deployment.dp, deployment.attention_tp, page_of(context.inventory.family)
        )
        environment |= {MEGAMOE_TOKENS: str(tokens)} if tokens else {}
    if deployment.gpu.sm in SM_10X and not keeps_o_a_fp8(context):
        environment[FP8_O_A] = "0"  # SGLang refuses a BF16 wo_a otherwise
    return environment


def launch(context: Context, model_path: str, sharded: bool) -> Launch:
    """`sglang serve` for each node, on shards or on the checkpoint.

    Shards that the stock loader cannot load need this package installed next to SGLang, as its plugin.
    """
    deployment = context.deployment
    options: Options = {"--trust-remote-code": None, MODEL_PATH: model_path, "--tp": str(deployment.tp)}
    if deployment.pp > 1:
        options["--pp-size"] = str(deployment.pp)
    if deployment.ep > 1 and not deployment.a2a:
        options["--ep-size"] = str(deployment.ep)
    if deployment.dp > 1:
        options["--attn-dp-size"] = str(deployment.dp)
        options |= _prefill(context)
    if deployment.redundant_experts:
        options["--ep-num-redundant-experts"] = str(deployment.redundant_experts)
    if deployment.locations:
        options["--init-expert-location"] = shlex.quote(deployment.locations.path)
    if deployment.head_group != "tp":
        options["--enable-dp-lm-head"] = None
    if deployment.a2a:
        options["--moe-a2a-backend"] = deployment.a2a
    if context.served_session:
        options["--context-length"] = str(context.served_session)
    if deployment.runner not in ("auto", "triton"):
        options["--moe-runner-backend"] = deployment.runner
    if sharded:
        options["--load-format"] = "sharded_state" if is_stock(context) else LOAD_FORMAT
    draft = _draft_options(context, model_path, sharded)
    if deployment.serves_draft:
        options |= draft
    if deployment.nodes > 1:
        options |= {"--nnodes": str(deployment.nodes), NODE_RANK: "0", "--dist-init-addr": f"{FIRST_NODE}:30300"}
    return Launch(
        environment_of(context) | partition_variable(context, "SGLANG_PP_LAYER_PARTITION", rest_to_the_last),
        Command("sglang serve", options),
        node_options=node_ranks(deployment.nodes),
        draft_options="" if deployment.draft else " ".join(settings_of(draft)),
        needs_plugin=sharded and not is_stock(context),
    )


def launch_by_plan(context: Context, model_path: str) -> Launch:
    """`sglang serve` on the checkpoint, of which each rank loads its part by a plan, and of the draft too."""
    return by_plan(launch(context, model_path, False))


def drafted_context(context: Context) -> Context:
    """The context of the draft model: beside NVFP4 experts, SGLang builds FP4 ones with Mxfp4FlashinferTrtllmMoEMethod.

    It does so on every GPU; only Blackwell has that method's kernels (`HybridFp8NvFp4Config`).
    """
    return drafted(context, "flashinfer_mxfp4") if context.deployment.gpu.sm in SM_10X else context


_EAGLE: Options = {
    "--speculative-algorithm": "EAGLE",
    "--speculative-num-steps": "3",
    "--speculative-eagle-topk": "1",
    "--speculative-num-draft-tokens": str(EAGLE_TOKENS),
}
"""SGLang's options for an MTP block. It takes only EAGLE with one token a step, and DSPARK, for V4."""


def _draft_options(context: Context, model_path: str, sharded: bool) -> Options:
    """Options for the draft model; none where SGLang does not run it, or where the shards lack it."""
    if context.deployment.pp > 1 or clashes_with_a2a(context) or (sharded and left_out_draft(context)):
        return {}
    if context.deployment.experts == NVFP4 and context.deployment.gpu.sm in SM_90:
        return {}  # beside NVFP4 experts, SGLang builds the draft's with Mxfp4FlashinferTrtllmMoEMethod on every GPU
    options: Options = dict(_EAGLE)
    if context.inventory.draft.dspark:
        options = {"--speculative-algorithm": "DSPARK"}
        options |= {"--enable-dp-lm-head": None} if needs_other_head(context) else {}
    if sharded:
        options[DRAFT_PATH] = f"{model_path}/draft"
        options["--speculative-draft-load-format"] = LOAD_FORMAT
    return options


def _prefill(context: Context) -> Options:
    """The option for a step of prefill, where SGLang would refuse its own default."""
    gpu, page = context.deployment.gpu, page_of(context.inventory.family)
    tokens = prefill_tokens(gpu, context.deployment.dp, page)
    return {} if tokens == default_prefill(gpu) else {"--chunked-prefill-size": str(tokens)}


def prefill_changes(context: Context) -> tuple[Change, ...]:
    """A step of prefill that is not SGLang's default."""
    deployment, page = context.deployment, page_of(context.inventory.family)
    if deployment.dp == 1 or not (option := _prefill(context)):
        return ()
    default, dp = default_prefill(deployment.gpu), deployment.dp
    return (
        Change(
            "step of prefill",
            settings_of(option),
            f"SGLang's default {default} / attention DP {dp} = {default // dp}, not a multiple of the page, {page}",
        ),
    )


def changes(context: Context) -> tuple[Change, ...]:
    """Variables and options, beside those of shared experts and runner, that SGLang needs for the deployment."""
    deployment, environment = context.deployment, environment_of(context)
    reasons = {
        FP4_EXPERTS: ("FP8 experts", "SGLang expects FP4 experts of DeepSeek-V4"),
        FP8_O_A: ("wo_a in BF16", "SGLang's default for this GPU multiplies it in FP8, and refuses BF16"),
        MEGAMOE_TOKENS: ("room of megamoe", "its default is smaller than one step of prefill"),
    }
    variables = (
        Change(subject, (f"{name}={environment[name]}",), reason)
        for name, (subject, reason) in reasons.items()
        if name in environment
    )
    return (*variables, *(prefill_changes(context) if deployment.dp > 1 else ()))
