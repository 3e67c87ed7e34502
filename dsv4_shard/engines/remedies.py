"""Remedies that are options of this tool: their words, and the requests that apply them.

`dsv4_shard.planning.remedies` finds out whether a remedy helps a request, by planning with it.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from dsv4_shard.catalog.option import fields_of
from dsv4_shard.engines.deployment import Request
from dsv4_shard.engines.rules import Remedy
from dsv4_shard.text.suggest import as_option


def _options(**options: Any) -> Callable[[Request], tuple[Request, ...]]:
    """Return a function that sets these options in a request, whatever their values were."""
    return lambda request: (replace(request, **options),)


def _divisors(number: int, above: int = 0) -> Iterator[int]:
    return (n for n in range(above + 1, number + 1) if number % n == 0)


def leave_out(*options: str) -> Remedy:
    """Remedy: leave out options. The engine then chooses EP and how shared experts are held."""
    words = " and ".join(map(as_option, options))
    defaults = {field.name: field.default for field in fields_of(Request) if field.name in options}
    return Remedy(f"leave {words} out", _options(**defaults), left_out=options)


MORE_DP = Remedy(
    "attention DP: --dp N, so that attention TP = TP / N divides",
    lambda request: (replace(request, dp=dp) for dp in _divisors(request.tp, request.dp)),
    "attention DP: --dp {asked.dp}, for attention TP {attention_tp}",
)

ANY_DP = Remedy(
    "an attention DP that divides TP: --dp N",
    lambda request: (replace(request, dp=dp) for dp in _divisors(request.tp)),
    "an attention DP that divides TP: --dp {asked.dp}",
)

NO_DP = Remedy("--dp 1", _options(dp=1))

FULL_DP = Remedy("attention DP: --dp = TP", lambda request: (replace(request, dp=request.tp),), "--dp {asked.dp}")

MORE_EP = Remedy(
    "more EP: --ep N, so that fewer ranks share one expert",
    lambda request: (replace(request, ep=ep) for ep in _divisors(request.tp, request.ep or 1)),
    "more EP: --ep {asked.ep}, so that fewer ranks share one expert",
)

ANY_EP = Remedy(
    "an EP that divides TP and the number of experts: --ep N",
    lambda request: (replace(request, ep=ep) for ep in _divisors(request.tp)),
    "an EP that divides TP and the number of experts: --ep {asked.ep}",
)

REDUNDANT = Remedy(
    "redundant experts, so that the slots divide by EP: --redundant-experts N",
    lambda request: (replace(request, redundant_experts=n) for n in range(1, request.ep or request.tp)),
    "redundant experts, so that the slots divide by EP: --redundant-experts {asked.redundant_experts}",
)

FULL_EP = Remedy(
    "expert parallelism: --ep = TP × DP",
    lambda request: (replace(request, ep=request.tp * request.dp),),
    "expert parallelism: --ep {asked.ep}",
)

FEWER_RANKS = Remedy(
    "fewer ranks in a TP group: --tp N with --dp M",
    lambda request: (
        replace(request, tp=tp, dp=request.tp * request.dp // tp) for tp in reversed([*_divisors(request.tp)][:-1])
    ),
    "fewer ranks in a TP group: --tp {asked.tp} --dp {asked.dp}",
)

MARLIN = Remedy("--runner marlin (FP4 on Hopper)", _options(runner="marlin"), "--runner marlin")

DP_LM_HEAD = Remedy("--dp-lm-head", _options(dp_lm_head=True))

DRAFT_OF_RELEASE = Remedy(
    "the release's own draft: --draft mtp or dspark",
    lambda request: (replace(request, draft="dspark" if request.draft == "mtp" else "mtp"),),
    "the release's own draft: --draft {asked.draft}",
)

WHOLE_SHARED = Remedy("SGLANG_SHARED_EXPERT_TP1=1: --shared-experts whole", _options(shared_experts="whole"))

DEEPEP = Remedy(
    "an all-to-all backend: --a2a deepep",
    lambda request: (replace(request, a2a="deepep"),) if request.shared_experts in ("auto", "whole") else (),
)


def for_engine(name: str, why: str = "") -> Remedy:
    """Remedy: use another engine with the same request."""
    return Remedy(f"--engine {name}{why}", _options(engine=name))
