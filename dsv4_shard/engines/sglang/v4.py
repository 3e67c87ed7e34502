"""SGLang 0.5.23 with V4: its rules in the order of its start, its choices, and the table of the engine.

Read from its sources, and verified against verdicts and parameters of its own classes (tests/data/sglang). Attention is
cut over attention TP = tp / attention DP, routed experts over EP and MoE TP = tp / ep. The shared expert is cut over
the whole TP group, also under attention DP, unless `SGLANG_SHARED_EXPERT_TP1=1` keeps it whole.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from dsv4_shard.catalog.options import A2A, OTHER_RUNNERS, VERSIONS
from dsv4_shard.catalog.options import RUNNERS as RUNNER_NAMES
from dsv4_shard.checkpoint import NVFP4, Inventory
from dsv4_shard.engines.bytes_sent import by_backend
from dsv4_shard.engines.deployment import Context, Deployment, Request, experts_of, pick_gpu, resolve
from dsv4_shard.engines.drafts import SGLANG_LOADING, draft_losses
from dsv4_shard.engines.engine import Engine
from dsv4_shard.engines.host_memory import SGLANG_HOST
from dsv4_shard.engines.nvfp4 import second_copy
from dsv4_shard.engines.parallelism import divisors, ep_option
from dsv4_shard.engines.pipeline import rest_to_the_last
from dsv4_shard.engines.pipeline_rules import SGLANG_PIPELINE_RULES
from dsv4_shard.engines.remedies import MORE_DP
from dsv4_shard.engines.rules import SILENT, Divides, Rule, Symptom, in_stage
from dsv4_shard.engines.sglang.kv_cache import cache_of, memory_share
from dsv4_shard.engines.sglang.launch import changes, drafted_context, launch, launch_by_plan
from dsv4_shard.engines.sglang.parameters import (
    decodes_no_o_a,
    has_trtllm_nvfp4,
    keeps_o_a_fp8,
    place,
    store,
)
from dsv4_shard.engines.sglang.rules import (
    BACKEND_RULES,
    CHOICES,
    CONFIGURATION_RULES,
    MARLIN_GROUPS_RULE,
    MARLIN_RULE,
    NVFP4_RULES,
    QUANTIZED_MOE_RULE,
    ROUTED_RULE,
    RUNNER_RULES,
    SHARED_RULE,
    TP_EXPERTS_RULE,
    VERSION,
    WRONG_SILENTLY,
)
from dsv4_shard.engines.sglang.runners import RUNNERS, runners_to_try
from dsv4_shard.engines.shared_rules import (
    ADDED_IN_PARTS,
    COLUMN_QUOTE,
    INDIVISIBLE_QUOTE,
    NO_CAST_RULE,
    O_A_DECODING_RULE,
    attention_rules,
    vocab_rule,
)
from dsv4_shard.engines.stages import StartStage
from dsv4_shard.models import V4
from dsv4_shard.text.units import gib


def candidates(inventory: Inventory, request: Request) -> Iterator[Deployment]:
    """SGLang's own choice first (shared experts split, its default runner), then its other options."""
    gpu, experts = pick_gpu(request), experts_of(request, inventory)
    ep = request.ep if request.ep is not None else (request.tp if request.a2a else 1)
    ways = {"auto": ("whole",) if request.a2a else ("split", "whole")}.get(
        request.shared_experts, (request.shared_experts,)
    )
    for runner, shared in itertools.product(runners_to_try(request, experts, gpu), ways):
        parts = request.tp if shared == "split" else 1
        yield resolve(
            request, inventory, engine="sglang", version=VERSION, ep=ep, runner=runner, shared=shared,
            shared_parts=parts, split=rest_to_the_last,
        )  # fmt: skip


def _o_a_blocks(rule: Divides) -> Divides:
    """`rule` of o_a's blocks, which stop SGLang only where it keeps them: elsewhere it decodes o_a before it cuts."""
    if rule.name != "o_a-blocks":
        return rule
    cut = replace(
        rule.cut, quote=lambda c: COLUMN_QUOTE if keeps_o_a_fp8(c) else None, quotes=(COLUMN_QUOTE,),
        consequence="{engine} refuses it, or o_b, which is cut alike",
    )  # fmt: skip
    return replace(rule, cut=cut)


RULES: tuple[Rule, ...] = (
    *CHOICES,
    *CONFIGURATION_RULES,
    NO_CAST_RULE,
    *SGLANG_PIPELINE_RULES,
    *in_stage(
        StartStage.CONSTRUCTION,
        *map(
            _o_a_blocks,
            attention_rules(
                (MORE_DP,),
                INDIVISIBLE_QUOTE,
                Symptom(consequence=WRONG_SILENTLY),
                Symptom(
                    consequence=SILENT
                    + "starts with {part} output groups per rank, then computes garbage or divides by zero"
                ),
            ),
        ),
        TP_EXPERTS_RULE,
        *BACKEND_RULES,
        *NVFP4_RULES,
        ROUTED_RULE,
        SHARED_RULE,
    ),
    *in_stage(
        StartStage.LOADING,
        replace(O_A_DECODING_RULE, holds=lambda c: decodes_no_o_a(c) or O_A_DECODING_RULE.holds(c)),
        SGLANG_LOADING,
        MARLIN_RULE,
        QUANTIZED_MOE_RULE,
    ),
    *RUNNER_RULES,
)  # fmt: skip

OTHERS: tuple[Rule, ...] = (
    *in_stage(
        StartStage.CONSTRUCTION,
        vocab_rule(Symptom(INDIVISIBLE_QUOTE, remedies=(f"SGLang {VERSION}, which pads the vocabulary to 64 × TP",))),
    ),
    *in_stage(StartStage.LOADING, MARLIN_GROUPS_RULE),
)
"""Rules that only explain messages.

Before PR 31801 the vocabulary had to divide: if padding to 64 does not, 0.5.23 pads to 64 × TP.
"""


def notes(context: Context) -> tuple[str, ...]:
    """Notes on an option that SGLang drops, and on bytes that the plan's weights have and the files do not."""
    deployment, lines = context.deployment, []
    if deployment.dp_lm_head and deployment.dp == 1:
        lines.append("--dp-lm-head changes nothing: SGLang drops it without attention DP (--dp)")
    if deployment.experts == NVFP4 and not has_trtllm_nvfp4(context):
        nbytes = second_copy(context, lambda group: store(group, place(group.role, context), context))
        lines.append(
            f"weights have {gib(nbytes)} of group scales twice, as SGLang holds them while it loads; files, once"
        )
    return tuple(lines)


def addition(context: Context) -> str:
    """Describe how the shared expert's output joins the sum."""
    deployment = context.deployment
    if deployment.shared != "whole" or deployment.tp == 1:
        return ADDED_IN_PARTS
    complete = f"The shared expert's output is complete on each of the {deployment.tp} ranks, so"
    if deployment.a2a:
        return (
            f"{complete} each adds it once to the routed output that {deployment.a2a} brings back: no all-reduce "
            "follows."
        )
    return (
        f"{complete} it is added once: after the all-reduce of the routed output, or on rank 0 before it; added on "
        f"every rank before it, it would count {deployment.tp} times."
    )


_SEARCHED_A2A = (None, "deepep", "megamoe")
"""All-to-all backends that a search tries: the others have the same placements as these.

SGLang then chooses the runner: which other runners work with these backends is not verified.
"""


def search_requests(asked: Request) -> Iterator[Request]:
    """Every all-to-all backend, EP, DP, runner and way to hold shared experts; SGLang's own choices come first."""
    gpus = asked.tp
    for a2a, ep, dp in itertools.product(_SEARCHED_A2A, divisors(gpus), divisors(gpus)):
        if a2a is None or ep == gpus:
            parallel = replace(asked, dp=dp, ep=None if a2a else ep_option(ep), a2a=a2a)
            runners = (None,) if a2a else (None, *RUNNERS)
            for runner, shared in itertools.product(runners, ("auto", "split", "whole")):
                yield replace(parallel, runner=runner, shared_experts=shared)


SGLANG = Engine(
    name="sglang",
    title="SGLang",
    version=VERSION,
    families=(V4,),
    candidates=candidates,
    rules=RULES,
    place=place,
    store=store,
    launch=launch,
    addition=addition,
    notes=notes,
    changes=changes,
    drafted=drafted_context,
    losses=draft_losses,
    launch_by_plan=launch_by_plan,
    others=OTHERS,
    runners=RUNNER_NAMES["sglang"],
    other_runners=OTHER_RUNNERS["sglang"],
    versions=VERSIONS["sglang"],
    a2a=A2A,
    search_requests=search_requests,
    bytes_sent=by_backend,
    kv_cache=cache_of,
    memory_share=memory_share,
    host=SGLANG_HOST,
    log_word="sglang",
    logs_count_replicas=True,
)
