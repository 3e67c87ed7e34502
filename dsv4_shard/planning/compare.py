"""Compare two plans: request, verdict, placements, bytes and launch.

The plans are not made again: their content is compared unchecked. `rest` has the differences outside of all sections,
so two plans without any difference are the same document.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Literal

from dsv4_shard.checkpoint import differences
from dsv4_shard.engines import Verdict
from dsv4_shard.models import Module
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.layout_documents import PlanModule
from dsv4_shard.text.document import Document
from dsv4_shard.version import __version__

_SHOWN = {"source", "request", "engine_version", "deployment", "verdict", "breaches", "changes", "modules", "totals",
          "memory", "ways", "layout"}  # fmt: skip
"""Parts of a plan that have a section of the comparison; differences in other parts go to `rest`."""

_SECTIONS = ("checkpoint", "request", "deployment", "verdicts", "placements", "bytes_per_rank", "environment",
             "options", "commands", "rest")  # fmt: skip

_OF_GPU = ("memory of the GPU", "left of it")
"""Names of bytes that a plan without a GPU does not have."""


class Difference(Document):
    """A value that differs between the plans; None if a plan does not have it."""

    name: str
    a: str | int | bool | None
    b: str | int | bool | None


class PlacementDifference(Document):
    """A role with different placements; None if a plan does not have the role."""

    part_of: Literal["target", "draft"]
    module: Module
    role: str
    a: str | None
    b: str | None


class BytesDifference(Document):
    """Different bytes on the heaviest rank; 0 if a plan has none. `difference` is b - a."""

    name: str
    a: int
    b: int
    difference: int


class PlanVerdict(Document):
    """Whether a plan's layout runs: the rules that break, or the changes from the engine's defaults."""

    verdict: Verdict
    breaches: tuple[str, ...]
    changes: tuple[str, ...]


class PlanComparison(Document):
    """Differences between plans `a` and `b`; `same` if there are none.

    `checkpoint` describes how their checkpoints differ. `verdicts` is empty if they are equal. `options` are those of
    the first node's command. `rest` has the differences outside of all sections.
    """

    kind: Literal["comparison"] = "comparison"
    schema_version: Literal[2] = 2
    tool_version: str = __version__
    a: str
    b: str
    same: bool
    checkpoint: tuple[str, ...]
    request: tuple[Difference, ...]
    deployment: tuple[Difference, ...]
    verdicts: tuple[PlanVerdict, ...]
    placements: tuple[PlacementDifference, ...]
    bytes_per_rank: tuple[BytesDifference, ...]
    environment: tuple[Difference, ...]
    options: tuple[Difference, ...]
    commands: tuple[tuple[str, ...], ...]
    rest: tuple[Difference, ...]

    @property
    def only_rest(self) -> bool:
        """Whether all differences are outside of the sections, as an edited plan's may be."""
        return not any(getattr(self, section) for section in _SECTIONS if section != "rest")

    def in_short(self) -> str:
        """The plans' names, and the number of differences in each section."""
        counts = {section: len(getattr(self, section)) for section in _SECTIONS}
        differ = ", ".join(f"{count} in {section}" for section, count in counts.items() if count)
        return f"{'same' if self.same else differ}: {self.a}, {self.b}"


def compare_plans(a: Plan, b: Plan, names: tuple[str, str]) -> PlanComparison:
    """Return the differences between two plans; `names` are their names in the comparison."""
    documents = [plan.model_dump(mode="json") for plan in (a, b)]
    asked = (asdict(plan.request) | {"engine_version": plan.engine_version} for plan in (a, b))
    request = tuple(_differences(*asked))
    verdicts = [_verdict(plan) for plan in (a, b)]
    commands = tuple(plan.launch.commands for plan in (a, b))
    shown = _SHOWN if a.reshard == b.reshard else _SHOWN | {"out"}  # the command names the folder
    left = [_leaves({key: value for key, value in document.items() if key not in shown}) for document in documents]
    comparison = PlanComparison(
        a=names[0],
        b=names[1],
        same=documents[0] == documents[1],
        checkpoint=tuple(_checkpoints(a, b)),
        request=request,
        deployment=tuple(
            _differences(a.deployment.model_dump(), b.deployment.model_dump(), {one.name for one in request})
        ),
        verdicts=tuple(verdicts) if verdicts[0] != verdicts[1] else (),
        placements=tuple(_placements(a.modules, b.modules)),
        bytes_per_rank=tuple(_bytes(_weights(a), _weights(b))),
        environment=tuple(_differences(a.launch.environment, b.launch.environment)),
        options=tuple(_differences(_options(a), _options(b))),
        commands=commands if commands[0] != commands[1] else (),
        rest=tuple(_differences(*left)),
    )
    if comparison.same or any(getattr(comparison, section) for section in _SECTIONS):
        return comparison
    return comparison.model_copy(update={"rest": tuple(_differences(*map(_leaves, documents)))})


def _checkpoints(a: Plan, b: Plan) -> Iterator[str]:
    if a.source.label != b.source.label:
        yield f"called {a.source.label} in one, {b.source.label} in the other"
    yield from differences(a.source, b.source)


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], known: Iterable[str] = ()) -> Iterator[Difference]:
    """Yield the keys whose values differ, except those in `known`."""
    for name in dict.fromkeys((*a, *b)):
        one, other = a.get(name), b.get(name)
        if one != other and name not in known:
            yield Difference(name=name, a=_plain(one), b=_plain(other))


def _plain(value: Any) -> str | int | bool | None:
    return value if value is None or isinstance(value, str | int) else str(value)


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Return every value of a JSON document by its path; for lists of rules, the rule's name is in the path."""
    if isinstance(value, dict):
        items = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [(f"{path}[{item.get('rule', n) if isinstance(item, dict) else n}]", item)
                 for n, item in enumerate(value)]  # fmt: skip
    else:
        return {path: value}
    return {name: leaf for place, item in items for name, leaf in _leaves(item, place).items()}


def _verdict(plan: Plan) -> PlanVerdict:
    breaches = tuple(map(str, plan.breaches))
    return PlanVerdict(verdict=plan.verdict, breaches=breaches, changes=tuple(map(str, plan.changes)))


def _placements(a: Iterable[PlanModule], b: Iterable[PlanModule]) -> Iterator[PlacementDifference]:
    rows, others = ({(row.part_of, row.module, row.role): row for row in rows} for rows in (a, b))
    for key in dict.fromkeys((*rows, *others)):
        one, other = (_placed(side.get(key)) for side in (rows, others))
        if one != other:
            yield PlacementDifference(part_of=key[0], module=key[1], role=key[2], a=one, b=other)


def _placed(row: PlanModule | None) -> str | None:
    if row is None:
        return None
    shape = "×".join(map(str, row.rank_shape))
    return f"{row.placement}: {row.tensors_per_rank:,} of {shape} {row.rank_dtype}"


def _weights(plan: Plan) -> dict[str, int]:
    """Bytes on the heaviest rank: by module, the sums, the parts of the sums, and the rest of the GPU's memory."""
    totals, memory, weights = plan.totals, plan.memory, dict[str, int]()
    for row in plan.modules:
        name = f"{row.module} (draft)" if row.part_of == "draft" else str(row.module)
        weights[name] = weights.get(name, 0) + row.bytes_per_rank
    if totals is not None:
        weights |= {
            "weights": totals.target_bytes_per_rank_max,
            "weights, lightest rank": totals.target_bytes_per_rank_min,
            "draft model": totals.draft_bytes_per_rank,
            "in no module": totals.other_target_bytes_per_rank,
            "in no module (draft)": totals.other_draft_bytes_per_rank,
            "shared experts": totals.shared_experts_bytes_per_rank,
            "shared experts' weights a layer": totals.shared_experts_weight_bytes_per_layer,
            "whole on every rank": totals.replicated_bytes_per_rank,
            "padding": totals.padding_bytes_per_rank,
        }
    if memory is not None:
        weights |= dict(zip(_OF_GPU, (memory.capacity, memory.left), strict=True))
    return weights


def _bytes(a: Mapping[str, int], b: Mapping[str, int]) -> Iterator[BytesDifference]:
    for name in dict.fromkeys((*a, *b)):
        one, other = a.get(name, 0), b.get(name, 0)
        is_known = name not in _OF_GPU or (name in a and name in b)
        if one != other and is_known:
            yield BytesDifference(name=name, a=one, b=other, difference=other - one)


def _options(plan: Plan) -> dict[str, str]:
    """The launch as name → value: the first node's options, and everything outside of the command."""
    launch, options = plan.launch, dict[str, str]()
    for name, part in (("launcher", launch.launcher), ("command", launch.program)):
        if part is not None:
            options |= {name: part.program} | {name: value or "given" for name, value in part.options.items()}
    options |= {"nodes' commands": str(len(launch.commands))} | dict(launch.files)
    beside = {"draft model": launch.draft_options, "shards for": plan.layout, "shards by": plan.reshard}
    return options | {name: value for name, value in beside.items() if value}
