"""The numbers that decide, as cards: name, value, and a note."""

from collections.abc import Iterator

from dsv4_shard.engines import find_engine
from dsv4_shard.planning import Plan, PlanCache, PlanHost
from dsv4_shard.text.units import gib, size

Fact = tuple[str, str, str]
"""Name, value, and a note."""


def facts_of(plan: Plan) -> Iterator[Fact]:
    """Yield the numbers of a plan: per GPU, then per node."""
    totals, memory = plan.totals, plan.memory
    if totals is not None:
        least, most = totals.target_bytes_per_rank_min, totals.target_bytes_per_rank_max
        weights = memory.weights if memory else most
        same = "the only rank" if totals.ranks == 1 else f"on each of {totals.ranks} ranks"
        yield "Weights per GPU", gib(weights), f"{gib(least)} on the lightest" if gib(least) != gib(weights) else same
        if memory is not None:
            left = ("Free per GPU", gib(memory.left)) if memory.fits else ("Short per GPU", gib(-memory.left))
            yield *left, f"of {gib(memory.capacity)}"
            yield from _cache_facts(memory.kv_cache)
        for stage in plan.stages:
            weights_there = gib(stage.target_bytes_per_rank_max)
            yield f"Stage {stage.stage}, per GPU", weights_there, stage.words.partition(": ")[2].rpartition(", ")[0]
        if totals.ranks > 1:
            yield "Same on every rank", gib(totals.replicated_bytes_per_rank), "within the weights"
        if totals.padding_bytes_per_rank:
            yield "Padding per GPU", gib(totals.padding_bytes_per_rank), "within the weights"
        if totals.draft_bytes_per_rank and not find_engine(plan.deployment.engine).draft_in_model:
            note = "per GPU, within the weights" if plan.serves_draft and memory else "more per GPU, if loaded"
            yield "MTP draft model", gib(totals.draft_bytes_per_rank), note
    yield from _host_facts(plan.host)


def _host_facts(host: PlanHost | None) -> Iterator[Fact]:
    """Yield what a node holds on its disk and in its memory."""
    if host is None:
        return
    each = "per node" if host.nodes > 1 else "of the node"
    yield f"Disk {each}", size(host.disk_bytes), host.reads
    yield f"Host memory {each} while loading", gib(host.window_bytes), "beside the page cache"
    if host.pinned:
        yield f"Pinned host memory {each}", gib(host.pinned_bytes), "while the engine runs"


def _cache_facts(cache: PlanCache | None) -> Iterator[Fact]:
    """Yield the tokens of KV cache and the sessions, where they are known."""
    if cache is None:
        return
    if cache.tokens is not None and cache.all_sessions is not None:
        yield (
            "Tokens of KV cache",
            f"{cache.tokens / 1e6:.2f} million",
            (f"in each of {cache.groups} attention groups" if cache.groups > 1 else ""),
        )
        yield f"Sessions of {cache.session:,} tokens", f"{cache.all_sessions:,}", "at once, all GPUs together"
        return
    fits = {True: "fits", False: "does not fit", None: "may not fit"}[cache.fits]
    yield f"Context of {cache.session:,} tokens", fits, f"takes {gib(cache.session_bytes)} per GPU"
