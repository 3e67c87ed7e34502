"""Two plan files → what differs between them: in what was asked, the verdict, the placements, the bytes, the launch.

Nothing is planned again: the files are taken at their word. What no section shows is under `rest`, so that two plans
without a difference in any section are the same document.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Literal

from dsv4_shard.checkpoint.fingerprint import differences
from dsv4_shard.models.roles import Module
from dsv4_shard.planning.document import Plan, PlanModule
from dsv4_shard.text.document import Document

_SHOWN = {"source", "request", "engine_version", "deployment", "feasible", "breaches", "choices", "modules", "totals",
          "memory", "launch", "layout", "reshard"}  # fmt: skip
"""Parts of a plan that have a section; what the others differ in is said as it stands."""

_SECTIONS = ("checkpoint", "request", "deployment", "verdicts", "placements", "bytes_per_rank", "environment",
             "options", "commands", "rest")  # fmt: skip

_OF_GPU = ("memory of the GPU", "left of it")
"""Bytes that a plan does not know without a GPU."""


class Difference(Document):
    """Something that the plans say differently; None where a plan does not say it."""

    name: str
    a: str | int | bool | None
    b: str | int | bool | None


class PlacementDifference(Document):
    """A role that is placed or held differently; None where a plan has no such role."""

    part_of: Literal["target", "draft"]
    module: Module
    role: str
    a: str | None
    b: str | None


class BytesDifference(Document):
    """Bytes on the heaviest rank that differ; 0 where a plan has none. `difference` is b - a."""

    name: str
    a: int
    b: int
    difference: int


class Verdict(Document):
    """Whether a plan's layout runs: the rules that break, else what was chosen for it."""

    feasible: bool
    verdict: str
    breaches: tuple[str, ...]
    choices: tuple[str, ...]


class PlanComparison(Document):
    """What differs between plans `a` and `b`, `same` where nothing does.

    `checkpoint` says how their checkpoints differ; `verdicts` are empty where they are the same. `options` are those of
    the first node's command; `rest` is what differs in no section.
    """

    schema_version: Literal[1] = 1
    a: str
    b: str
    same: bool
    checkpoint: tuple[str, ...]
    request: tuple[Difference, ...]
    deployment: tuple[Difference, ...]
    verdicts: tuple[Verdict, ...]
    placements: tuple[PlacementDifference, ...]
    bytes_per_rank: tuple[BytesDifference, ...]
    environment: tuple[Difference, ...]
    options: tuple[Difference, ...]
    commands: tuple[tuple[str, ...], ...]
    rest: tuple[Difference, ...]

    @property
    def only_rest(self) -> bool:
        """Whether what differs is in no section of its own: an edited plan's may be."""
        return not any(getattr(self, section) for section in _SECTIONS if section != "rest")

    def in_short(self) -> str:
        """The plans, and how many differences each section has."""
        counts = {section: len(getattr(self, section)) for section in _SECTIONS}
        differ = ", ".join(f"{count} in {section}" for section, count in counts.items() if count)
        return f"{'same' if self.same else differ}: {self.a}, {self.b}"


def compare_plans(a: Plan, b: Plan, names: tuple[str, str]) -> PlanComparison:
    """What differs between two plans, called by `names`."""
    documents = [plan.model_dump(mode="json") for plan in (a, b)]
    asked = (asdict(plan.request) | {"engine_version": plan.engine_version} for plan in (a, b))
    request = tuple(_differences(*asked))
    verdicts = [_verdict(plan) for plan in (a, b)]
    commands = tuple(plan.launch.commands for plan in (a, b))
    shown = _SHOWN if a.reshard == b.reshard else _SHOWN | {"out"}  # the command names it
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
    """Keys whose values differ, but for those that are `known` to."""
    for name in dict.fromkeys((*a, *b)):
        one, other = a.get(name), b.get(name)
        if one != other and name not in known:
            yield Difference(name=name, a=_plain(one), b=_plain(other))


def _plain(value: Any) -> str | int | bool | None:
    return value if value is None or isinstance(value, str | int) else str(value)


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every value of a JSON document by its path; of lists of rules, by the rule's name."""
    if isinstance(value, dict):
        items = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [(f"{path}[{item.get('rule', n) if isinstance(item, dict) else n}]", item)
                 for n, item in enumerate(value)]  # fmt: skip
    else:
        return {path: value}
    return {name: leaf for place, item in items for name, leaf in _leaves(item, place).items()}


def _verdict(plan: Plan) -> Verdict:
    breaches = tuple(map(str, plan.breaches))
    return Verdict(feasible=plan.feasible, verdict=plan.verdict, breaches=breaches, choices=plan.choices)


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
    """Bytes on the heaviest rank: by module, then the sums, then what is within them and what is left of the GPU."""
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
    """What the launch says, as name → value: the first node's options, and all that is not in the command."""
    launch, options = plan.launch, dict[str, str]()
    for name, part in (("launcher", launch.launcher), ("command", launch.program)):
        if part is not None:
            options |= {name: part.program} | {name: value or "given" for name, value in part.options.items()}
    options |= {"nodes' commands": str(len(launch.commands))} | dict(launch.files)
    beside = {"draft model": launch.draft_options, "shards for": plan.layout, "shards by": plan.reshard}
    return options | {name: value for name, value in beside.items() if value}
