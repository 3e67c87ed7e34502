"""Verbs that read headers, as functions: `inspect`, `plan`, `search`, `compare`, `report`, `explain`. Others are in
`moving`.

The commands call them, and show what they return: nothing here prints, asks or exits. What a command says no to is in
the result (`has_errors`, `feasible`, `best`, `recognised`); what it stops at is raised, as a ShardError of
`dsv4_shard.errors`, whose `hint` says what to do next. Options have the names that they have on the command line, and
errors call them by these. Sizes are in bytes, shapes in elements.

What the verbs need is imported when they are called: this module is imported with the package, and so by every
`dsv4-shard --version` and completion.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Unpack

from dsv4_shard.errors import ReadFailed, ShardError, UnsupportedFamily, UsageError
from dsv4_shard.planning.plan_file import _plan_given, plan_of
from dsv4_shard.planning.request import LayoutOptions, request_of
from dsv4_shard.planning.search import find_layouts
from dsv4_shard.text.suggest import as_option

if TYPE_CHECKING:
    from dsv4_shard.checkpoint.inventory import Inventory
    from dsv4_shard.checkpoint.reader import Checkpoint
    from dsv4_shard.diagnosis.explanation import Explanation
    from dsv4_shard.inspection.known_family import Inspection
    from dsv4_shard.inspection.unknown_family import UnknownInspection
    from dsv4_shard.planning.compare import PlanComparison
    from dsv4_shard.planning.document import Plan
    from dsv4_shard.planning.search import Search
    from dsv4_shard.reporting.report import Report


def inspect(
    repo: str | Path,
    *,
    tp: Iterable[int] | None = None,
    gpu: str | None = None,
    gpu_memory: str | None = None,
    refresh: bool = False,
) -> "Inspection | UnknownInspection":
    """What a checkpoint is and holds, what is wrong with it, and at which TP each engine can run it.

    `repo` is a folder (of a checkpoint, or of all its rank shards), `org/name[@revision]` on the Hub, or the URL of an
    object store. Reads headers only. `tp` are the sizes to try, by default the powers of two up to 64, on Hopper or,
    with its memory, on the GPU that `gpu` or `gpu_memory` name; `refresh` asks the Hub where a branch is, though it was
    asked within the hour. Of families that are not known, an UnknownInspection
    says what they hold, and where whole blocks divide.

    Raises UsageError where `repo` or a TP means nothing, an Unreachable where it cannot be had, and a ShardError for a
    checkpoint that contradicts itself. What is merely wrong with it is among the `findings`.

    >>> found = dsv4_shard.inspect("model", tp=[8, 16])
    >>> found.identity.family, found.has_errors
    ('DeepSeek-V4', False)
    >>> [cell.verdict for cell in found.matrix if cell.engine == "sglang"]
    ['works', 'with-options']
    """
    from dsv4_shard.checkpoint.reader import read_unknown
    from dsv4_shard.inspection.known_family import DEFAULT_TPS
    from dsv4_shard.inspection.known_family import inspect as inspect_checkpoint
    from dsv4_shard.inspection.unknown_family import inspect_unknown
    from dsv4_shard.opening import open_checkpoint, open_source
    from dsv4_shard.storage.runtime import collector_paused

    tps = DEFAULT_TPS if tp is None else tuple(tp)
    with collector_paused():
        try:
            checkpoint, inventory = open_checkpoint(str(repo), refresh=refresh, exact=False)
        except UnsupportedFamily:
            return inspect_unknown(read_unknown(open_source(str(repo))), tps)
        return inspect_checkpoint(checkpoint, inventory, tps, gpu, gpu_memory)


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
    from dsv4_shard.planning.search import plan_best

    checkpoint, inventory = open_checkpoint(str(repo), refresh=refresh, exact=False)
    found = find_layouts(checkpoint, inventory, gpus, engine, gpu=gpu, gpu_memory=gpu_memory, nodes=nodes,
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

    names = tuple(name if isinstance(one, Plan) else str(one) for name, one in (("a", a), ("b", b)))
    return compare_plans(plan_of(a), plan_of(b), (names[0], names[1]))


def report(
    source: "str | Path | Plan",
    *,
    output: str | Path | None = None,
    repo: str | Path | None = None,
    gpus: int | None = None,
    rank_by: str | None = None,
    refresh: bool = False,
    **asked: Unpack[LayoutOptions],
) -> "Report":
    """One HTML file to look at and to send: what runs and why, what each rank holds, and how it is launched.

    `source` is a plan, a plan file (`*.json`), or a checkpoint as in `inspect`; then the keywords of `plan` or, with
    `gpus`, those of `search` name the layout, and with none of these the report is of the checkpoint alone. A plan is
    held against its checkpoint, which is looked for where the plan names it, or in `repo`. `output` is the file to
    write, of some 300 kB; `to_html` gives the page itself.

    Raises UsageError for what does not go together, ForeignPlan and BadPlan, what `plan` raises, and WriteFailed.

    >>> made = dsv4_shard.report("model", tp=16, gpu="h20-96", output="report.html")
    >>> made.ranks[0].weights == made.plan.memory.weights
    True
    """
    from dsv4_shard.planning.make_plan import make_plan
    from dsv4_shard.planning.plan_file import check_plan
    from dsv4_shard.planning.search import plan_best
    from dsv4_shard.reporting.page import to_html
    from dsv4_shard.reporting.report import make_report
    from dsv4_shard.storage.output_folder import write_text

    plan, found = _plan_given(source), None
    _refuse_for_report(source, plan, repo, gpus, rank_by, asked)
    checkpoint, inventory = _open_for_report(source, plan, repo, refresh)
    if plan is not None:
        plan = check_plan(plan, checkpoint, inventory)
    elif gpus is not None:
        found = find_layouts(checkpoint, inventory, gpus, rank_by=rank_by or "weights", **asked)
        plan = plan_best(checkpoint, inventory, found) if found.best is not None else None
    elif asked:
        plan = make_plan(checkpoint, inventory, request_of(**asked))
    made = make_report(checkpoint, inventory, plan, found)
    if output is not None:
        write_text(Path(output), to_html(made))
    return made


def _refuse_for_report(
    source: object,
    plan: "Plan | None",
    repo: object,
    gpus: int | None,
    rank_by: str | None,
    asked: Mapping[str, object],
) -> None:
    """Raise UsageError for what means nothing together; `plan` is the one that `source` is, if it is one."""
    if plan is not None and (asked or gpus is not None):
        option = as_option(next(iter(asked or {"gpus": gpus})))
        raise UsageError(f"{option} beside a plan: the plan says it already", hint=f"Leave out {option}.")
    if plan is None and asked and gpus is None and "tp" not in asked:
        option = as_option(next(iter(asked)))
        raise UsageError(f"{option} without --tp or --gpus", hint="Add one of these, or name a plan file.")
    if rank_by is not None and gpus is None:
        raise UsageError("--rank-by without --gpus", hint="It orders what --gpus finds.")
    if plan is None and repo is not None:
        raise UsageError(f"--repo: {source} is no plan file, but a checkpoint itself", hint="Leave out --repo.")


def _open_for_report(
    source: object, plan: "Plan | None", repo: object, refresh: bool
) -> "tuple[Checkpoint, Inventory]":
    """The checkpoint that `source` names, or that of the plan: in `repo`, else where the plan names it."""
    from dsv4_shard.opening import open_checkpoint, pinned

    name = str(source) if plan is None else str(repo or plan.source.label)
    try:
        return open_checkpoint(pinned(name, plan), refresh=refresh, exact=False)
    except ShardError as error:
        if plan is not None and repo is None:
            error.add_note(f"the plan names its checkpoint {name}: if that is elsewhere, say where with --repo")
        raise


def explain(text: str | Path | BinaryIO, *, repo: str | Path | None = None) -> "Explanation":
    """What an engine's message means: what broke, in numbers, and the way out.

    `text` is the message itself, or a log: the Path of a file, or an open binary file, which may be a pipe. Of a log,
    the first message that ends a run counts. `repo` is the checkpoint to hold it against, by default the releases'
    sizes. `recognised` is False where nothing is known.

    Raises UsageError where there is nothing to explain, ReadFailed, and what `plan` raises for `repo`.

    >>> dsv4_shard.explain("Weight output_partition_size = 192 is not divisible by weight quantization "
    ...                    "block_n = 128.").meaning[0]
    'shared experts: shared intermediate size 3072 / TP 16 = 192, which is 1.5 blocks of 128'
    """
    from dsv4_shard.checkpoint.inventory import refuse_errors
    from dsv4_shard.diagnosis.cases import Model
    from dsv4_shard.diagnosis.explanation import explain as explain_lines
    from dsv4_shard.opening import open_checkpoint

    model = None
    if repo is not None:
        model = Model(str(repo), open_checkpoint(str(repo), exact=False)[1], given=True)
        refuse_errors(model.inventory)
    with _lines(text) as lines:
        explanation = explain_lines(lines, model)
    if not explanation.lines:
        raise _nothing()
    return explanation


@contextmanager
def _lines(text: str | Path | BinaryIO) -> Iterator[Iterator[tuple[int, str]]]:
    """Numbered lines of a message or a log. Raises UsageError, ReadFailed."""
    from dsv4_shard.diagnosis.log_scan import lines_of

    if isinstance(text, Path):
        try:
            with text.open("rb") as file:
                yield lines_of(file)
        except OSError as error:
            raise ReadFailed(f"{text}: {error.strerror}") from None
    elif not isinstance(text, str):
        yield lines_of(text)
    elif text.strip():
        yield lines_of(BytesIO(text.encode(errors="replace")))
    else:
        raise _nothing()


def _nothing() -> UsageError:
    return UsageError("nothing to explain", hint='Give the message or a log: dsv4-shard explain "TEXT", or LOG, or -')
