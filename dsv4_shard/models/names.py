"""The grammar of a family's tensor names, and the conversion between names and roles."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from dsv4_shard.models.roles import Module, Part, Role, Spec, Stage, TensorName

Specs = Mapping[Stage, tuple[Spec, ...]]
"""Stage → rows of a family's table."""

EXPERT = "*"
"""Placeholder for the expert's number in a name that stands for all experts."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """How a family builds its tensor names.

    Attributes:
        prefixes: Stage → text before the number of a layer or block, for stages with numbers.
        experts: Text before the number of a routed expert.
        parts: Part → last component of a name.
        mtp_follows: Whether the MTP blocks have the prefix of the layers and continue their numbers, as in DeepSeek-V3.
    """

    prefixes: Mapping[Stage, str]
    experts: str
    parts: Mapping[Part, str]
    mtp_follows: bool = False


class Names:
    """The tensor names of one model: of one family, with `layers` layers."""

    def __init__(self, grammar: Grammar, specs: Specs, layers: int) -> None:
        self._grammar, self._specs, self._layers = grammar, specs, layers
        self._places: dict[Stage, dict[str, tuple[Role, Part, int]]] = {stage: {} for stage in specs}
        self._prefixes = [(prefix, len(prefix), stage) for stage, prefix in grammar.prefixes.items()]
        self._plain = {stage: dict(self._suffixes(stage, routed=False)) for stage in specs}
        self._routed = {stage: dict(self._suffixes(stage, routed=True)) for stage in specs}
        self._spec = {(stage, spec.role): spec for stage, rows in specs.items() for spec in rows}

    def _suffixes(self, stage: Stage, routed: bool) -> Iterator[tuple[str, tuple[Role, Part]]]:
        words = self._grammar.parts
        for spec in self._specs[stage]:
            if (spec.role.module is Module.ROUTED) is not routed:
                continue
            if spec.bare:
                yield spec.name, (spec.role, Part.WEIGHT)
                continue
            yield f"{spec.name}.{words[Part.WEIGHT]}", (spec.role, Part.WEIGHT)
            if spec.quantized:
                for part, word in words.items():
                    if part is Part.SCALE or (routed and part is not Part.WEIGHT):
                        yield f"{spec.name}.{word}", (spec.role, part)

    def parse(self, name: str) -> TensorName | None:
        """Return the parsed name, or None if no model of the family has such a tensor."""
        for prefix, length, stage in self._prefixes:
            if name.startswith(prefix):
                number, _, suffix = name[length:].partition(".")
                layer = index_of(number)
                if layer is None:
                    return None
                if layer >= self._layers and self._grammar.mtp_follows and stage is Stage.LAYER:
                    stage, layer = Stage.MTP, layer - self._layers
                place = self._places[stage].get(suffix) or self._find(stage, suffix)
                return place and tuple.__new__(TensorName, (place[0], place[1], stage, layer, place[2]))
        found = self._plain[Stage.MODEL].get(name)
        return TensorName(*found, Stage.MODEL) if found else None

    def _find(self, stage: Stage, suffix: str) -> tuple[Role, Part, int] | None:
        """Return role, part and expert for the name `suffix` within a layer or block, and cache them for the stage."""
        expert, words = -1, self._plain[stage]
        if suffix.startswith(self._grammar.experts):
            number, _, suffix_in_expert = suffix[len(self._grammar.experts) :].partition(".")
            index, words = index_of(number), self._routed[stage]
            if index is None:
                return None
            expert, found = index, words.get(suffix_in_expert)
        else:
            found = words.get(suffix)
        if found is None:
            return None
        self._places[stage][suffix] = (*found, expert)
        return (*found, expert)

    def unparse(self, parsed: TensorName) -> str:
        """Return the tensor's name as text. The inverse of `parse`."""
        spec = self._spec[parsed.stage, parsed.role]
        name = spec.name if spec.bare else f"{spec.name}.{self._grammar.parts[parsed.part]}"
        if parsed.expert >= 0:
            name = f"{self._grammar.experts}{parsed.expert}.{name}"
        if parsed.stage is Stage.MODEL:
            return name
        if self._grammar.mtp_follows and parsed.stage is Stage.MTP:
            return f"{self._grammar.prefixes[Stage.LAYER]}{self._layers + parsed.layer}.{name}"
        return f"{self._grammar.prefixes[parsed.stage]}{parsed.layer}.{name}"

    def templates(self, stage: Stage) -> Iterator[str]:
        """Yield all names of a stage, without prefix and number of the layer, with `*` for the expert's number."""
        yield from self._plain[stage]
        for word in self._routed[stage]:
            yield f"{self._grammar.experts}{EXPERT}.{word}"

    def scale_name(self, weight_name: str) -> str:
        """Return the name of a weight's scale."""
        return weight_name.removesuffix(self._grammar.parts[Part.WEIGHT]) + self._grammar.parts[Part.SCALE]

    def weight_name(self, name: str) -> str:
        """Return the name of the weight that a scale of any kind belongs to."""
        return f"{name.rpartition('.')[0]}.{self._grammar.parts[Part.WEIGHT]}"

    def part_name(self, weight_name: str, part: Part) -> str | None:
        """Return the name of a weight's `part`, or None if the family has no such part."""
        word = self._grammar.parts.get(part)
        return word and f"{weight_name.rpartition('.')[0]}.{word}"


@lru_cache(maxsize=4096)
def index_of(text: str) -> int | None:
    """Return a layer or expert number, or None if `text` is not written as in checkpoints: no sign, no leading zero."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 6) or (text[0] == "0" and len(text) > 1):
        return None
    return int(text)


NATIVE_PARTS = {
    Part.WEIGHT: "weight",
    Part.SCALE: "scale",
    Part.GROUP_SCALE: "weight_scale",
    Part.TENSOR_SCALE: "weight_scale_2",
    Part.INPUT_SCALE: "input_scale",
}
"""Last components of names since V4, also in the output of DeepSeek's converters.

The parts of NVFP4 have the names of NVIDIA's Model Optimizer.
"""


def scale_name(weight_name: str) -> str:
    """Return the name of a weight's scale, in DeepSeek's names since V4."""
    return weight_name.removesuffix(Part.WEIGHT) + Part.SCALE
