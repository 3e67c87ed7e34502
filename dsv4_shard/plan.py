"""`plan()`, `search()` and `compare()`: the verbs that make plans.

The commands call the verbs, and show what these return: nothing in a verb prints, asks or exits. A result says no by
`has_errors`, `feasible`, `best` or `recognised`. An error is raised, as a ShardError of `dsv4_shard.errors`, whose
`hint` says what to do next. Sizes are in bytes, shapes in elements.

A verb imports what it needs when it is called: this module is imported with the package, and so by every
`dsv4-shard --version` and completion.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from dsv4_shard.catalog.option import Options
from dsv4_shard.catalog.request import PlanOptions, SearchOptions
from dsv4_shard.catalog.verb import Later, verb

if TYPE_CHECKING:
    from dsv4_shard.planning import compare as comparing
    from dsv4_shard.planning import document
    from dsv4_shard.planning import search as searching
else:
    comparing = Later("dsv4_shard.planning.compare")
    document = Later("dsv4_shard.planning.document")
    searching = Later("dsv4_shard.planning.search")


@verb(PlanOptions)
def plan(repo: str | Path, options: PlanOptions) -> "document.Plan":
    """Where every module goes on the ranks, what it weighs, whether it runs, and how it is launched.

    Reads headers only; `repo` is as in `inspect`. None leaves a choice to the engine. `output` is a file to write the
    plan to as well, which `reshard` takes on another machine. A layout that does not run is a plan too: `feasible` is
    False, `breaches` has the rules that break, and `alternatives` the nearest layouts that do run.

    Raises UsageError for a request that means nothing, IncompleteCheckpoint and what `inspect` raises, and WriteFailed.

    >>> plan = dsv4_shard.plan("model", tp=16, gpu="h20-96", output="plan.json")
    >>> plan.feasible, plan.deployment.shared, plan.deployment.runner
    (True, 'whole', 'marlin')
    """
    from dsv4_shard.opening import open_checkpoint
    from dsv4_shard.planning.make_plan import make_plan
    from dsv4_shard.planning.plan_file import save_plan
    from dsv4_shard.planning.request import request_of
    from dsv4_shard.storage.runtime import collector_paused

    request = request_of(options)
    with collector_paused():
        made = make_plan(*open_checkpoint(str(repo), refresh=options.refresh, exact=False), request)
    if options.output is not None:
        save_plan(made, Path(options.output))
    return made


@verb(SearchOptions)
def search(repo: str | Path, options: SearchOptions) -> "searching.Search":
    """Every layout that runs on so many GPUs, the lightest first: `plan --gpus`. `rank_by`: weights, tokens or sent.

    `engine` are those to search, by commas or as a sequence; default: all that serve. `output` is a file for the plan
    of the first layout, if that fits. `best` is None where nothing fits; `elsewhere` then says what else would do.

    Raises what `plan` raises.

    >>> found = dsv4_shard.search("model", gpus=16, gpu="h20-96", engine=["sglang", "vllm"])
    >>> found.layouts[0].options
    '--tp 16 --ep 16 --engine vllm --gpu h20-96'
    """
    from dsv4_shard.opening import open_checkpoint
    from dsv4_shard.planning.plan_file import save_plan
    from dsv4_shard.planning.search import plan_best, search_for

    checkpoint, inventory = open_checkpoint(str(repo), refresh=options.refresh, exact=False)
    found = search_for(checkpoint, inventory, options)
    if options.output is not None and found.best is not None:
        save_plan(plan_best(checkpoint, inventory, found), Path(options.output))
    return found


@verb(Options)
def compare(a: "str | Path | document.Plan", b: "str | Path | document.Plan", _: Options) -> "comparing.PlanComparison":
    """What differs between two plans, or plan files: in request, verdict, placement, bytes a rank, and launch.

    Plans are taken at their word, nothing is planned again. Raises BadPlan for a file that is none.

    >>> dsv4_shard.compare("plan.json", dsv4_shard.plan("model", tp=8, gpu="h20-96")).request[0]
    Difference(name='tp', a=16, b=8)
    """
    from dsv4_shard.planning.compare import compare_plans
    from dsv4_shard.planning.document import Plan
    from dsv4_shard.planning.plan_file import plan_of

    names = tuple(name if isinstance(one, Plan) else str(one) for name, one in (("a", a), ("b", b)))
    return compare_plans(plan_of(a, "a"), plan_of(b, "b"), (names[0], names[1]))
