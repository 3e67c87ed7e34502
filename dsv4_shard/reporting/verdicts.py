"""The four verdicts on a page: words, sign, and the name of the colour."""

from dataclasses import dataclass

from dsv4_shard.engines import Verdict
from dsv4_shard.inspection import MatrixCell
from dsv4_shard.planning import Plan

UNWEIGHED = "unweighed"
"""In place of a colour where memory was not checked: without a GPU, no verdict is good news."""

_COLOURS = {
    Verdict.RUNS: "runs",
    Verdict.CHANGED: "changes",
    Verdict.FAILS: "fails",
    Verdict.UNVERIFIED: "unverified",
}

_SIGNS = {Verdict.RUNS: "✓", Verdict.CHANGED: "✓*", Verdict.FAILS: "✗", Verdict.UNVERIFIED: "?"}


@dataclass(frozen=True, slots=True)
class Shown:
    """How a verdict is shown. `colour` is a name in `colours.VERDICTS`, or UNWEIGHED."""

    words: str
    sign: str
    colour: str


def shown(verdict: Verdict, *, is_weighed: bool, otherwise: bool = False) -> Shown:
    """Return how a verdict is shown.

    Args:
        verdict: The verdict.
        is_weighed: Whether memory was checked.
        otherwise: Whether other options run on as many GPUs.
    """
    if otherwise:
        return Shown(f"{verdict}; runs with the options below", "✗*", _COLOURS[verdict])
    if verdict.is_good and not is_weighed:
        return Shown(f"{verdict}, by its rules; memory was not checked", _SIGNS[verdict], UNWEIGHED)
    return Shown(str(verdict), _SIGNS[verdict], _COLOURS[verdict])


def of_cell(cell: MatrixCell, gpu: str | None) -> Shown:
    """Return how a cell of the matrix is shown, for the GPU whose memory was checked."""
    return shown(cell.verdict, is_weighed=gpu is not None, otherwise=cell.otherwise)


def of_plan(plan: Plan) -> Shown:
    """Return how the plan's verdict is shown."""
    return shown(plan.verdict, is_weighed=plan.memory is not None)
