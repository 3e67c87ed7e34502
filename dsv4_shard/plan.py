"""Verbs that read headers, as functions: `inspect`, `plan`, `search`, `compare`, `report`, `explain`. Others are in
`moving`.

The commands call them, and show what they return: nothing here prints, asks or exits. What a command says no to is in
the result (`has_errors`, `feasible`, `best`, `recognised`); what it stops at is raised, as a ShardError of
`dsv4_shard.errors`, whose `hint` says what to do next. Options have the names that they have on the command line, and
errors call them by these. Sizes are in bytes, shapes in elements.

What the verbs need is imported when they are called: this module is imported with the package, and so by every
`dsv4-shard --version` and completion.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsv4_shard.planning.compare import PlanComparison
    from dsv4_shard.planning.document import Plan
    from dsv4_shard.planning.search import Search


def plan(
    repo: str | Path,
    *,
    tp: int,
    ep: int | None = None,
    dp: int = 1,
    engine: str = "sglang",
    runner: str | None = None,
    a2a: str | None = None,
    shared_experts: str = "auto",
    gpu: str | None = None,
    gpu_memory: str | None = None,
    nodes: int | None = None,
    expert_dtype: str | None = None,
    engine_version: str | None = None,
    refresh: bool = False,
    output: str | Path | None = None,
) -> "Plan":
    """Where every module goes on the ranks, what it weighs, whether it runs, and how it is launched.

    Reads headers only; `repo` is as in `inspect`. None leaves a choice to the engine. `output` is a file to write the
    plan to as well, which `reshard` takes on another machine. A layout that does not run is a plan too: `feasible` is
    False, `breaches` has the rules that break, and `alternatives` the nearest layouts that do run.

    Raises UsageError for a request that means nothing, IncompleteCheckpoint and what `inspect` raises, and WriteFailed.

    >>> plan = dsv4_shard.plan("model", tp=16, gpu="h20-96", output="plan.json")
    >>> plan.feasible, plan.deployment["shared"], plan.totals.target_bytes_per_rank_max
    (True, 'whole', 17420900)
    """
    from dsv4_shard.opening import open_checkpoint
    from dsv4_shard.planning.make_plan import make_plan
    from dsv4_shard.planning.plan_file import save_plan
    from dsv4_shard.planning.request import request_of
    from dsv4_shard.storage.runtime import collector_paused

    request = request_of(
        tp, ep=ep, dp=dp, engine=engine, runner=runner, a2a=a2a, shared_experts=shared_experts, gpu=gpu, nodes=nodes,
        expert_dtype=expert_dtype, engine_version=engine_version, gpu_memory=gpu_memory,
    )  # fmt: skip
    with collector_paused():
        made = make_plan(*open_checkpoint(str(repo), refresh=refresh, exact=False), request)
    if output is not None:
        save_plan(made, Path(output))
    return made


def search(
    repo: str | Path,
    *,
    gpus: int,
    engine: str | Iterable[str] | None = None,
    gpu: str | None = None,
    gpu_memory: str | None = None,
    nodes: int | None = None,
    expert_dtype: str | None = None,
    engine_version: str | None = None,
    rank_by: str = "weights",
    refresh: bool = False,
    output: str | Path | None = None,
) -> "Search":
    """Every layout that runs on so many GPUs, the lightest first: `plan --gpus`. `rank_by`: weights, tokens or sent.

    `engine` are those to search, by commas or as a sequence; default: all that serve. `output` is a file for the plan
    of the first layout, if that fits. `best` is None where nothing fits; `elsewhere` then says what else would do.

    Raises what `plan` raises.

    >>> found = dsv4_shard.search("model", gpus=16, gpu="h20-96", engine=["sglang", "vllm"])
    >>> found.best.options
    '--tp 16 --ep 16 --engine vllm --gpu h20-96'
    """
    from dsv4_shard.opening import open_checkpoint
    from dsv4_shard.planning.plan_file import save_plan
    from dsv4_shard.planning.search import plan_best, search_for

    checkpoint, inventory = open_checkpoint(str(repo), refresh=refresh, exact=False)
    found = search_for(checkpoint, inventory, gpus, engine, gpu=gpu, gpu_memory=gpu_memory, nodes=nodes,
                    expert_dtype=expert_dtype, engine_version=engine_version, rank_by=rank_by)  # fmt: skip
    if output is not None and found.best is not None:
        save_plan(plan_best(checkpoint, inventory, found), Path(output))
    return found


def compare(a: "str | Path | Plan", b: "str | Path | Plan") -> "PlanComparison":
    """What differs between two plans, or plan files: in request, verdict, placement, bytes a rank, and launch.

    Plans are taken at their word, nothing is planned again. Raises BadPlan for a file that is none.

    >>> dsv4_shard.compare("plan.json", dsv4_shard.plan("model", tp=8, gpu="h20-96")).request[0]
    Difference(name='tp', a=16, b=8)
    """
    from dsv4_shard.planning.compare import compare_plans
    from dsv4_shard.planning.document import Plan
    from dsv4_shard.planning.plan_file import plan_of

    names = tuple(name if isinstance(one, Plan) else str(one) for name, one in (("a", a), ("b", b)))
    return compare_plans(plan_of(a), plan_of(b), (names[0], names[1]))
