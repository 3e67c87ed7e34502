"""The verbs `plan`, `plan_from`, `plan_pair`, `search`, `fewest` and `compare`: a layout, those of a configuration, of
prefill and decode, all on some GPUs, the fewest GPUs, and differences.

Nothing in a verb prints, asks or exits; the commands show the results. Sizes are in bytes, shapes in elements.

Every `dsv4-shard --version` and every completion imports this module, so a verb imports its dependencies when it is
called.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dsv4_shard.catalog.option import Options
from dsv4_shard.catalog.request import (
    ConfigurationOptions,
    FewestOptions,
    PairOptions,
    PlanOptions,
    SearchOptions,
)
from dsv4_shard.catalog.verb import Later, verb
from dsv4_shard.errors import UsageError

if TYPE_CHECKING:
    from dsv4_shard import configurations
    from dsv4_shard.checkpoint import Checkpoint, Inventory
    from dsv4_shard.planning import compare as comparing
    from dsv4_shard.planning import document
    from dsv4_shard.planning import fewest as fewest_gpus
    from dsv4_shard.planning import search as searching
else:
    configurations = Later("dsv4_shard.configurations")
    comparing = Later("dsv4_shard.planning.compare")
    document = Later("dsv4_shard.planning.document")
    fewest_gpus = Later("dsv4_shard.planning.fewest")
    searching = Later("dsv4_shard.planning.search")


@verb(PlanOptions)
def plan(repo: str | Path, options: PlanOptions) -> "document.Plan":
    """Plan a layout: the placement of every module, bytes per rank, whether the engine runs it, and how to launch it.

    `repo` is as in `inspect`; only headers are read. An option of None leaves the choice to the engine. `context`
    is the number of tokens of a session: `memory.kv_cache` says whether it fits, and how many fit at once. `output`
    is a file to write the plan to as well, which `reshard` reads on any machine; a folder, or a name that ends with a
    slash, also gets run scripts for each node and Kubernetes manifests.

    Returns a Plan, also for a layout that does not run: then `verdict` says so, `breaches` has the broken rules, and
    `alternatives` the nearest layouts that run.

    Raises:
        - UsageError: an option is unknown, out of range, or contradicts another.
        - IncompleteCheckpoint: the checkpoint has errors.
        - The other errors of `inspect`.
        - WriteFailed: `output` cannot be written.

    >>> plan = dsv4_shard.plan("model", tp=16, gpu="h20-96", output="plan.json")
    >>> plan.feasible, plan.deployment.shared, plan.deployment.runner
    (True, 'whole', 'marlin')
    """
    from dsv4_shard.opening import open_checkpoint
    from dsv4_shard.planning import make_plan, request_of
    from dsv4_shard.storage import collector_paused

    request = request_of(options)
    with collector_paused():
        made = make_plan(
            *open_checkpoint(str(repo), refresh=options.refresh, exact=False), request, session=options.context
        )
    if options.output is not None:
        _write({"": made}, options.output)
    return made


def _write(
    plans: "dict[str, document.Plan]", output: str | Path, pair: "configurations.PlannedPair | None" = None
) -> None:
    """Write the plan of the one role to a file; into a folder, the plans of all roles with their launch files.

    Raises:
        UsageError: `output` is a file, and there are several plans.
    """
    from dsv4_shard.launch_files import is_folder, write_launch_files
    from dsv4_shard.planning import save_plan

    if is_folder(output):
        connected = {name: getattr(pair, name) for name in ("prefill", "decode", "router")} if pair else {}
        named = plans if len(plans) > 1 else {"": next(iter(plans.values()))}
        write_launch_files(Path(output), named, connected, _about_pair(pair) if pair else ())
        return
    if len(plans) > 1:
        hint = f"Name one with --role: {' or '.join(plans)}. Or name a folder: launch/."
        raise UsageError("{output} with several roles", hint=hint, parameters={"output": ...})
    for plan in plans.values():
        save_plan(plan, Path(output))


def _about_pair(pair: "configurations.PlannedPair") -> tuple[str, ...]:
    variables = "PREFILL0 and DECODE0: the address of each role's node 0. NODE_RANK: this node's number in its role."
    return (variables, *pair.notes)


@verb(ConfigurationOptions)
def plan_from(configuration: str | Path, options: ConfigurationOptions) -> "configurations.PlannedDeployment":
    """Plan the roles of a configuration: how an engine is started today.

    `configuration` is a file (a script, an option file of SGLang or vLLM, a manifest of Kubernetes, a recipe of
    srt-slurm or InferenceX) or a command line. Nothing in it is run. `repo` is the checkpoint, as in `inspect`, in
    place of the one that the configuration names. `role` is the name of the one role to plan. Options of a layout that
    are given count in place of the configuration's. `output` is a file for the plan of the one role, or a folder for
    all of them, as in `plan`.

    Returns a PlannedDeployment: `roles` has each role with its plan, what became of each of its options, and what it
    lacks to start.

    Raises:
        - UsageError: the configuration starts no engine, is malformed or too large, or names no checkpoint.
        - The errors of `plan`.

    >>> found = dsv4_shard.plan_from("sglang serve --model-path model --tp 16", gpu="h20-96")
    >>> found.roles[0].lacks
    ('SGLANG_SHARED_EXPERT_TP1=1', '--moe-runner-backend marlin')
    """
    from dsv4_shard.configurations import planned, read_configuration, with_pair
    from dsv4_shard.opening import open_checkpoint
    from dsv4_shard.storage import collector_paused

    beside = {name: getattr(options, name) for name in options.given - {"repo", "role", "output", "refresh"}}
    read = read_configuration(str(configuration), beside.get("engine"))
    opened: dict[str, tuple[Checkpoint, Inventory]] = {}

    def open_model(named: str) -> "tuple[Checkpoint, Inventory]":
        repo = options.repo or _model_of(named, read.source)
        if repo not in opened:
            opened[repo] = open_checkpoint(repo, refresh=options.refresh, exact=False)
        return opened[repo]

    with collector_paused():
        found = with_pair(planned(read, options.role, beside, open_model))
    if options.output is not None:
        for role in found.roles:
            if role.plan is None:
                raise UsageError(f"no plan of {role.name} to write: {role.reason}", hint="Name another with --role.")
        _write({role.name: role.plan for role in found.roles if role.plan is not None}, options.output, found.pair)
    return found


def _model_of(named: str, source: str) -> str:
    """Return the checkpoint that a configuration names, if it can be opened from here.

    Raises:
        UsageError: It names none, or a folder that is not here.
    """
    from dsv4_shard.sources.hub_names import hub_id
    from dsv4_shard.text.sanitize import short_name

    if named and (os.path.isdir(named) or (hub_id(named) is not None and not named.startswith(("/", ".")))):
        return named
    what = f"names the checkpoint {short_name(named)}, which is not here" if named else "names no checkpoint"
    raise UsageError(f"{source}: {what}", hint="Name it: `dsv4-shard plan REPO --from ...`.")


@verb(PairOptions)
def plan_pair(repo: str | Path, options: PairOptions) -> "configurations.PlannedDeployment":
    """Plan prefill and decode as one deployment: two plans, what their shards have in common, and the router.

    `repo` is as in `inspect`. `prefill` and `decode` have options of `plan` as text. Other options hold for both,
    unless a role has its own. `output` is a folder for the plans and the launch files of both, as in `plan`.

    Returns a PlannedDeployment with the roles `prefill` and `decode`; `pair` has the commands, if both run.

    Raises:
        - UsageError: an option is unknown or out of range, or the roles are for two engines.
        - The errors of `plan`.

    >>> found = dsv4_shard.plan_pair("model", prefill="--tp 8", decode="--tp 16 --dp 16 --a2a megamoe", gpu="b200")
    >>> [str(role.plan.verdict) for role in found.roles if role.plan]
    ['runs', 'runs']
    """
    from dsv4_shard.configurations import own_options, planned_roles, refuse_two_engines
    from dsv4_shard.opening import open_checkpoint
    from dsv4_shard.storage import collector_paused

    both = {name: getattr(options, name) for name in options.given - {"prefill", "decode", "output", "refresh"}}
    texts = {"prefill": options.prefill, "decode": options.decode}
    roles = {name: both | own_options(text, f"--{name}") for name, text in texts.items()}
    refuse_two_engines(roles)
    with collector_paused():
        found = planned_roles(*open_checkpoint(str(repo), refresh=options.refresh, exact=False), roles)
    if options.output is not None:
        _write({role.name: role.plan for role in found.roles if role.plan is not None}, options.output, found.pair)
    return found


@verb(SearchOptions)
def search(repo: str | Path, options: SearchOptions) -> "searching.Search":
    """Find every layout that runs on a number of GPUs, the best first, as `plan --gpus` does.

    `repo` is as in `inspect`. `rank_by` is the order: weights, tokens or sent. `engine` names the engines to
    search, as a sequence or with commas (default: all that serve). `ep`, `dp`, `runner`, `a2a` and `shared_experts`
    narrow the search to layouts that have them (default: all are tried). `context` is as in `plan`. `output` is a file
    for the plan of the best layout, if one fits.

    Returns a Search: `layouts` has every layout, `best` the first one. If no layout fits, `best` is None and
    `elsewhere` lists other GPUs that fit.

    Raises:
        - The errors of `plan`.

    >>> found = dsv4_shard.search("model", gpus=16, gpu="h20-96", engine=["sglang", "vllm"])
    >>> found.layouts[0].options
    '--tp 16 --ep 16 --engine vllm --gpu h20-96'
    """
    from dsv4_shard.opening import open_checkpoint
    from dsv4_shard.planning import plan_best, search_for

    checkpoint, inventory = open_checkpoint(str(repo), refresh=options.refresh, exact=False)
    found = search_for(checkpoint, inventory, options)
    if options.output is not None and found.best is not None:
        _write({"": plan_best(checkpoint, inventory, found)}, options.output)
    return found


@verb(FewestOptions)
def fewest(repo: str | Path, options: FewestOptions) -> "fewest_gpus.Fewest":
    """Find the fewest GPUs that hold the weights, of each known kind or of one, as `plan` without a layout does.

    `repo` is as in `inspect`. `gpu` or `gpu_memory` names one kind of GPU (default: every kind that is known). `engine`
    and `context` are as in `search`: with `context`, a layout whose KV cache is known to be too small for one such
    session does not count.

    Returns a Fewest: `kinds` has the number of GPUs of each kind with the best layout and its command, and says which
    numbers were tried.

    Raises:
        - The errors of `plan`.

    >>> found = dsv4_shard.fewest("model", gpu="h100")
    >>> found.kinds[0].gpus, found.kinds[0].command
    (1, 'dsv4-shard plan model --tp 1 --engine vllm --gpu h100')
    """
    from dsv4_shard.opening import open_checkpoint
    from dsv4_shard.planning import fewest_for

    return fewest_for(*open_checkpoint(str(repo), refresh=options.refresh, exact=False), options)


@verb(Options)
def compare(a: "str | Path | document.Plan", b: "str | Path | document.Plan", _: Options) -> "comparing.PlanComparison":
    """Compare two plans, or plan files: request, verdict, placement, bytes per rank, and launch.

    The plans are not made again: their content is compared unchecked.

    Returns a PlanComparison; `same` is True if nothing differs.

    Raises:
        - BadPlan: a file is not a plan.

    >>> dsv4_shard.compare("plan.json", dsv4_shard.plan("model", tp=8, gpu="h20-96")).request[0]
    Difference(name='tp', a=16, b=8)
    """
    from dsv4_shard.planning import Plan, compare_plans, plan_of

    names = tuple(name if isinstance(one, Plan) else str(one) for name, one in (("a", a), ("b", b)))
    return compare_plans(plan_of(a, "a"), plan_of(b, "b"), (names[0], names[1]))
