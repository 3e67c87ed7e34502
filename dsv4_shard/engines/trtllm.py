"""TensorRT-LLM (modeling_deepseekv4.py at 02586bf): plan only, since it has no file format of its own for shards.

It cuts its shared expert over a subgroup of `gcd(blocks, TP)` ranks. TP / gcd ranks hold each part, and the output is
scaled by gcd / TP before the all-reduce. Attention data parallelism is all or nothing. The rules for routed experts are
arithmetic (FP4 groups and FP8 blocks stay whole), not read from its kernels.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import gcd

from dsv4_shard.catalog.options import VERSIONS
from dsv4_shard.checkpoint import Inventory, TensorGroup
from dsv4_shard.engines.deployment import Context, Deployment, Request, resolve
from dsv4_shard.engines.drafts import DRAFT_OPTION_RULE
from dsv4_shard.engines.engine import Engine
from dsv4_shard.engines.launch import Command, Launch, Options
from dsv4_shard.engines.parallelism import Pairs, divisors, ep_option, pairs
from dsv4_shard.engines.pipeline_rules import NO_PIPELINE_RULE
from dsv4_shard.engines.placement import Expert, Placement, RankTensor, Replicate, Split, rank_tensor
from dsv4_shard.engines.remedies import ANY_EP, FULL_DP, MORE_EP, NO_DP, leave_out
from dsv4_shard.engines.rules import NO_OPTION, SILENT, Divides, Requires, Rule, Symptom
from dsv4_shard.engines.shared_rules import (
    EXPERTS_RULE,
    NO_CAST_RULE,
    NODES_RULE,
    SGLANG_OPTIONS_RULE,
    attention_rules,
    nvfp4_rule,
    version_rule,
)
from dsv4_shard.models import V4, Module, Role

VERSION = VERSIONS["trtllm"][0]

OPTIONS_FILE = "extra-llm-api-options.yaml"


def candidates(inventory: Inventory, request: Request) -> Iterator[Deployment]:
    """The only deployment: whole shared experts under attention DP, else a subgroup."""
    fmt = inventory.shared
    block = fmt.block.rows if fmt is not None and fmt.block is not None else 1
    blocks = inventory.config.shared_intermediate // block
    parts = 1 if request.dp > 1 else gcd(blocks, request.tp)
    own_way = "whole" if parts == 1 else "split" if parts == request.tp else "subgroup"
    yield resolve(
        request, inventory, engine="trtllm", version=VERSION, ep=request.ep or 1, runner=request.runner or "auto",
        shared=own_way, shared_parts=parts,
    )  # fmt: skip


def _own_way(context: Context) -> str:
    parts = context.deployment.shared_parts
    return "whole" if parts == 1 else "split" if parts == context.deployment.tp else "subgroup"


_UNREAD = Symptom(consequence="{engine} refuses it or computes garbage: its checks were not read", remedies=(FULL_DP,))

RULES: tuple[Rule, ...] = (
    version_rule(VERSION),
    NODES_RULE,
    nvfp4_rule("TensorRT-LLM's own classes were not run with NVFP4 experts"),
    NO_CAST_RULE,
    Requires(
        "options", Module.ROUTED, lambda c: c.deployment.a2a is None and c.deployment.runner == "auto",
        "--runner and --a2a are not known for TensorRT-LLM", consequence=NO_OPTION,
        remedies=(leave_out("runner", "a2a"),), fatal=True,
    ),
    DRAFT_OPTION_RULE,
    NO_PIPELINE_RULE,
    SGLANG_OPTIONS_RULE,
    Requires(
        "attention-dp", Module.ATTENTION, lambda c: c.deployment.dp in (1, c.deployment.tp),
        "attention DP is off or as wide as TP {at.tp}, so {at.dp} is not possible",
        consequence=NO_OPTION, remedies=(NO_DP, FULL_DP), fatal=True,
    ),
    Divides("ep", Module.ROUTED, lambda c: c.deployment.tp, "TP", lambda c: c.deployment.ep, "EP", fatal=True,
            uneven=Symptom(remedies=(ANY_EP,))),
    Requires(
        "shared-way", Module.SHARED, lambda c: c.deployment.shared == _own_way(c),
        "TensorRT-LLM offers no choice: here {context.deployment.shared_parts} of {at.tp} ranks share one shared "
        "expert",
        consequence=NO_OPTION, remedies=(leave_out("shared_experts"),), fatal=True,
    ),
    Divides("vocab", Module.EMBEDDING, lambda c: c.config.vocab_size, "vocab_size", lambda c: c.deployment.attention_tp,
            "attention TP"),
    *(
        rule if rule.name == "o_groups" else replace(rule, uneven=_UNREAD, cut=_UNREAD)
        for rule in attention_rules(
            (FULL_DP,), None, _UNREAD,
            Symptom(consequence=f"{SILENT}starts with {{part}} output groups per rank, then fails or computes "
            "garbage"),
        )
    ),
    EXPERTS_RULE,
    Divides(
        "routed-blocks", Module.ROUTED, lambda c: c.config.moe_intermediate_size, "moe_intermediate_size",
        lambda c: c.deployment.moe_tp, "MoE TP", lambda c: c.block(Role.ROUTED_DOWN).cols, "blocks",
        Symptom(consequence="an expert would be cut unevenly", remedies=(MORE_EP,)),
        Symptom(consequence="a scale would be cut", remedies=(MORE_EP,)),
    ),
)  # fmt: skip


def place(role: Role, context: Context) -> Placement:
    """TensorRT-LLM's placement of `role`."""
    deployment = context.deployment
    match role:
        case Role.SHARED_GATE | Role.SHARED_UP | Role.SHARED_DOWN:
            return (
                Replicate() if deployment.shared_parts == 1 else Split(1 if role is Role.SHARED_DOWN else 0, "shared")
            )
        case Role.ROUTED_GATE | Role.ROUTED_UP | Role.ROUTED_DOWN:
            return Expert(Replicate() if deployment.moe_tp == 1 else Split(1 if role is Role.ROUTED_DOWN else 0, "moe"))
        case Role.Q_B | Role.O_A | Role.ATTN_SINK | Role.EMBED | Role.HEAD:
            return Split(0, "attention")
        case Role.O_B:
            return Split(1, "attention")
    return Replicate()


def store(group: TensorGroup, placement: Placement, context: Context) -> RankTensor | None:
    """Dtype and shape as in the checkpoint: TensorRT-LLM's own dtypes were not read."""
    return None if group.role in (Role.MTP_EMBED, Role.MTP_HEAD) else rank_tensor(group, placement, context)


def launch(context: Context, model_path: str, sharded: bool) -> Launch:
    """`trtllm-serve`, under srun for more than one node."""
    deployment = context.deployment
    options: Options = {"--tp_size": str(deployment.tp), "--ep_size": str(deployment.ep)}
    files, program, launcher = {}, f"trtllm-serve {model_path}", None
    if deployment.dp > 1:
        options["--config"] = OPTIONS_FILE
        files[OPTIONS_FILE] = "enable_attention_dp: true\n"
    if deployment.nodes > 1:
        each = str(deployment.tp // deployment.nodes)
        tasks: Options = {"-N": str(deployment.nodes), "--ntasks": str(deployment.tp), "--ntasks-per-node": each}
        launcher = Command("srun", tasks | {"--mpi=pmix": None})
        program = f"trtllm-llmapi-launch {program}"
    return Launch({}, Command(program, options), launcher, files=files)


def addition(context: Context) -> str:
    """Describe how the shared expert's output joins the sum."""
    deployment = context.deployment
    if deployment.shared_parts == 1:
        return f"The shared expert's output is complete on each rank and is added once, not {deployment.tp} times."
    return (
        f"Each part of the shared expert is held by {deployment.tp // deployment.shared_parts} of {deployment.tp} "
        "ranks: its output is scaled "
        f"by {deployment.shared_parts}/{deployment.tp} = {deployment.shared_parts / deployment.tp:g} before the "
        "all-reduce, so the sum counts it once."
    )


def parallelism(world: int) -> Pairs:
    """Pairs in which attention DP is off or as wide as TP. EP over all GPUs is left out of nearby layouts."""
    return pairs((1, world), (1, *divisors(world)[1:-1]))


def search_requests(asked: Request) -> Iterator[Request]:
    """Requests with attention DP off or as wide as TP, and every EP."""
    for dp, ep in pairs((1, asked.tp), divisors(asked.tp)):
        yield replace(asked, dp=dp, ep=ep_option(ep))


TRTLLM = Engine(
    name="trtllm",
    title="TensorRT-LLM",
    short_title="TRT-LLM",
    version=VERSION,
    families=(V4,),
    not_for=("AMD", "Ascend"),
    versions=VERSIONS["trtllm"],
    parallelism=parallelism,
    search_requests=search_requests,
    candidates=candidates,
    rules=RULES,
    place=place,
    store=store,
    launch=launch,
    addition=addition,
)
