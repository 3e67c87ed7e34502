"""A message against a checkpoint of a family that is not known: the weights that its headers show with the numbers."""

from collections.abc import Iterator
from dataclasses import dataclass

from dsv4_shard.diagnosis.arithmetic import divisors
from dsv4_shard.diagnosis.known_model import OtherFamily
from dsv4_shard.text.units import quotient

_SHOWN = 4

_MOST_RANKS = 256


@dataclass(frozen=True, slots=True)
class _Cut:
    """An axis of weights, over a number of ranks."""

    template: str
    axis: str
    size: int
    ranks: int
    unit: int


def _cuts(model: OtherFamily, part: int, tp: int | None) -> Iterator[_Cut]:
    """The axes of quantized weights that are `part` elements over some number of ranks, or over `tp`."""
    for row in model.inspection.quantized:
        for axis in row.axes:
            ranks, rest = divmod(axis.size, part)
            if not rest and 1 <= ranks <= _MOST_RANKS and (tp is None or ranks == tp) and axis.cut:
                yield _Cut(row.template, axis.axis, axis.size, ranks, axis.unit)


def part_sizes(model: OtherFamily, part: int, tp: int | None) -> set[int]:
    """The whole sizes of the weights that are `part` elements over some number of ranks, or over `tp`."""
    return {cut.size for cut in _cuts(model, part, tp)} or {cut.size for cut in _cuts(model, part, None)}


def explain_part(model: OtherFamily, part: int, unit: int, tp: int | None) -> Iterator[str]:
    """Explain a rank's part that is not whole blocks by the checkpoint's own weights."""
    cuts = list(_cuts(model, part, tp)) or list(_cuts(model, part, None))
    if not cuts:
        yield f"no weight of {model.label} is {part} over any number of ranks, in a way that engines cut it"
        return
    for cut in cuts[:_SHOWN]:
        blocks = f"{quotient(part, unit)} blocks of {unit}; {quotient(cut.size, unit)} blocks in all"
        yield f"{cut.template}: {cut.size} {cut.axis} / TP {cut.ranks} = {part}, {blocks}"
    sizes = {cut.size for cut in cuts}
    fit = [n for n in divisors(min(sizes), _MOST_RANKS) if all(size % (n * unit) == 0 for size in sizes)]
    yield f"whole blocks at TP {', '.join(map(str, fit))}" if fit else "no TP gives whole blocks"


def explain_division(model: OtherFamily, size: int, parts: int) -> Iterator[str]:
    """Name what in a checkpoint of an unknown family has the size that does not divide."""
    identity = model.inspection.identity
    named = {"attention heads": identity.attention_heads, "key-value heads": identity.key_value_heads,
             "routed experts": identity.routed_experts, "intermediate size": identity.intermediate_size,
             "hidden size": identity.hidden_size}  # fmt: skip
    found = [name for name, value in named.items() if value == size]
    axes = [(row.template, axis) for row in model.inspection.quantized for axis in row.axes]
    rows = [f"{template} {axis.axis}" for template, axis in axes if axis.size == size]
    what = (found + rows)[:_SHOWN]
    if what:
        yield f"{size} is {' or '.join(what)} of {model.label}, which must divide by {parts}"
