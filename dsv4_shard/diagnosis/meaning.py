"""The cause of a message and its remedies: by a layout that has its numbers, by the table, or by its numbers alone."""

import re
from collections.abc import Iterator

from dsv4_shard.diagnosis.arithmetic import part_of_blocks, ranks_of, size_over_parts, without_blocks, without_cut
from dsv4_shard.diagnosis.cases import Hit, engine_told, found_origin, pattern_sources, shows_as
from dsv4_shard.diagnosis.known_model import KnownModel, OtherFamily
from dsv4_shard.diagnosis.log_scan import EngineLog, FoundMessage
from dsv4_shard.diagnosis.messages import Evidence
from dsv4_shard.diagnosis.other_family import explain_division, explain_part, part_sizes
from dsv4_shard.diagnosis.patterns import SHORT, PatternSource
from dsv4_shard.engines import Divides, Requires, Rule, Symptom
from dsv4_shard.models import Module
from dsv4_shard.planning import words

_MOST = 5

_FIELD = re.compile(r"{[^}]*}")


class Diagnosis:
    """One message, with everything that may explain it."""

    def __init__(
        self,
        found: FoundMessage,
        hits: list[Hit],
        log: EngineLog,
        models: tuple[KnownModel, ...],
        other: OtherFamily | None,
    ) -> None:
        self.found, self.hits, self.log, self.models, self.other = found, hits, log, models, other
        self.sources = pattern_sources(found, log, models)
        self.evidence = Evidence(found.groups, log.clues, found_origin(found, log), models)
        self.said = {name: int(value) for name, value in zip(found.pattern.fields, found.values, strict=False) if value}

    @property
    def is_of_another(self) -> bool:
        """Whether a message that fits no layout has numbers, so that it cannot be about the given model."""
        return bool(self.found.pattern.fields and self.models and self.models[0].given)

    def meaning(self) -> Iterator[str]:
        """The arithmetic of the likeliest case; without a case, that of the message's own numbers."""
        known = self.found.pattern.known
        if known is not None:
            yield from known.means(self.evidence)
        elif self.hits:
            yield f"{self.hits[0].breach.module}: {self.hits[0].breach.reason}"
        elif self.other is not None:
            yield from self._of_other_family(self.other)
        elif self.said.get("part") and self.said.get("unit"):
            yield from self._of_no_model()
            yield from part_of_blocks(self.said["part"], self.said["unit"], self._ranks())
            yield from self._sizes("it is a part of one of: ")
        elif self.said.get("size") and self.said.get("parts"):
            yield from self._of_no_model()
            yield from size_over_parts(self.said["size"], self.said["parts"])
            yield from self._sizes("it is one of: ")
        else:
            yield from self._without_numbers()

    def _of_other_family(self, model: OtherFamily) -> Iterator[str]:
        said, engine = self.said, engine_told(self.found, self.log)
        family = model.inspection.identity.family
        if not model.errors:
            yield f"{model.label} is {family}, a family whose rules are not known: only its headers"
        if said.get("part") and said.get("unit"):
            ranks = ranks_of(self.log.clues, engine, self._modules())
            yield from explain_part(model, said["part"], said["unit"], ranks[0] if ranks else None)
        elif said.get("size") and said.get("parts"):
            yield from explain_division(model, said["size"], said["parts"])
            yield from size_over_parts(said["size"], said["parts"])
        else:
            yield from self._without_numbers()

    def _of_no_model(self) -> Iterator[str]:
        if self.is_of_another:
            at = f" at TP {self.log.clues.tp}" if self.log.clues.tp else ""
            yield f"no cut of {self.models[0].label}{at} that the rules know gives these numbers: by the message alone"

    def _ranks(self) -> tuple[int, str] | None:
        return ranks_of(self.log.clues, engine_told(self.found, self.log), self._modules())

    def _modules(self) -> frozenset[Module]:
        return frozenset(source.rule.module for source in self.found.pattern.sources)

    def _rules(self) -> list[Divides]:
        """The rules of divisions behind the message, unless it is about another model than theirs."""
        if self.is_of_another or not self.models:
            return []
        return [source.rule for source in self.sources if isinstance(source.rule, Divides)]

    def _sizes(self, before: str) -> Iterator[str]:
        sizes = ", ".join(dict.fromkeys(rule.size_name for rule in self._rules()))
        if sizes:
            yield before + sizes

    def _without_numbers(self) -> Iterator[str]:
        rules = [source.rule for source in self.found.pattern.sources]
        divisions = [rule for rule in rules if isinstance(rule, Divides)]
        if divisions:
            sizes = ", ".join(dict.fromkeys(rule.size_name for rule in divisions))
            number = f" {self.said['size']}" if "size" in self.said else ""
            yield f"{sizes}{number} must divide by {', '.join(dict.fromkeys(rule.parts_name for rule in divisions))}"
            return
        others = [rule for rule in rules if isinstance(rule, Requires)]
        yield from dict.fromkeys(f"{rule.module}: {_FIELD.sub('...', rule.reason)}" for rule in others)

    def remedies(self) -> tuple[str, ...]:
        """Remedies of a message that no case has."""
        known = self.found.pattern.known
        if known is not None:
            return known.remedies(self.evidence)
        if self.is_of_another or not self.models:
            return (*self._of_numbers(), *self._inspect())
        shows = (one for source in self.sources for one in shows_as(source.rule) if self._is_of(one, source))
        return words(remedy for one in shows for remedy in one.remedies)[:_MOST]

    def _of_numbers(self) -> Iterator[str]:
        part, unit, ranks = self.said.get("part"), self.said.get("unit"), self._ranks()
        wholes = self.other and part and part_sizes(self.other, part, ranks[0] if ranks else None)
        if part and unit and (wholes or ranks):
            wholes = wholes or {part * ranks[0] if ranks else part}
            if all(whole % unit for whole in wholes):
                yield from without_blocks()
                return
        if self.said:
            yield from without_cut(self._modules(), engine_told(self.found, self.log))

    def _inspect(self) -> Iterator[str]:
        if self.models or self.other is not None:
            return
        name = self.log.clues.named
        if name is not None:
            yield f"dsv4-shard inspect {name}: its weights, and the TP at which each is whole blocks; or --repo with it"

    def _is_of(self, shows: Symptom | Requires, source: PatternSource) -> bool:
        """Whether the message is a symptom of a rule, in any deployment.

        The short forms of blocks belong to the symptom `cut`.
        """
        rule: Rule = source.rule
        template = self.found.pattern.template
        return template in shows.messages or (template in SHORT and isinstance(rule, Divides) and shows is rule.cut)
