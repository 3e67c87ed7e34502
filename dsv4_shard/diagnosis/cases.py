"""Which layouts break the rule with the message's numbers."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from string import Formatter

from dsv4_shard.catalog.rank_ranges import MAX_RANKS
from dsv4_shard.checkpoint import Inventory
from dsv4_shard.diagnosis.log_scan import EngineLog, FoundMessage
from dsv4_shard.diagnosis.patterns import SHORT, PatternSource
from dsv4_shard.engines import ENGINES, Breach, Context, Divides, Engine, Request, Requires, Rule, Symptom, serving
from dsv4_shard.models import Family, Module

_USUAL = (2, 4, 8, 16, 32, 64)

_UNUSUAL = (3, 6, 12, 24, 48, 96, 128, 256)

_SAY_TP = {"parts", "at.tp", "context.deployment.tp"}

_TELL_TP = {"part", *_SAY_TP}
"""`_SAY_TP`: fields of a template that name TP. `_TELL_TP`: fields from which TP can be computed."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that a message may be about. `given`: the user or the log named it."""

    label: str
    inventory: Inventory
    given: bool


@dataclass(frozen=True, slots=True)
class Hit:
    """A layout that breaks a rule with the numbers of the message. `tp_said`: the message or the log names its TP."""

    model: KnownModel
    engine: Engine
    request: Request
    breach: Breach
    tp_said: bool


def engines_of(found: FoundMessage, log: EngineLog) -> tuple[str, ...]:
    """The engines that print the message; only the log's engine if it is one of them."""
    known = found.pattern.known
    names = known.engines if known else dict.fromkeys(source.engine.name for source in found.pattern.sources)
    told = log.clues.get("engine")
    return (told,) if told is not None and told in names else tuple(names)


def pattern_sources(found: FoundMessage, log: EngineLog, models: tuple[KnownModel, ...]) -> list[PatternSource]:
    """The rules behind the message, for these engines and models."""
    names, families = engines_of(found, log), [model.inventory.family for model in models]
    return [one for one in found.pattern.sources if one.engine.name in names and one.family in families]


def hits_of(found: FoundMessage, log: EngineLog, models: tuple[KnownModel, ...]) -> list[Hit]:
    """Every layout that breaks a rule with the numbers of the message: the likeliest first, each division once."""
    by_engine: dict[tuple[str, Family], tuple[Engine, list[PatternSource]]] = {}
    for source in pattern_sources(found, log, models):
        key = source.engine.name, source.family
        by_engine.setdefault(key, (source.engine, []))[1].append(source)
    ranked: list[tuple[tuple[object, ...], Hit]] = []
    requests = list(_requests(found, log))
    asked_of = {name: [replace(one, engine=name) for one in requests] for name in {key[0] for key in by_engine}}
    said = not _SAY_TP.isdisjoint(found.pattern.fields)
    for order, model in enumerate(models):
        for engine, sources in (pair for key, pair in by_engine.items() if key[1] is model.inventory.family):
            names = {source.rule.name for source in sources}
            for asked in asked_of[engine.name]:
                hinted = log.clues.get("tp") == str(asked.tp)
                for breach in _broken(found, engine, names, model.inventory, asked, hinted):
                    if hinted or asked.tp in _USUAL or not _TELL_TP.isdisjoint(found.pattern.fields):
                        hit = Hit(model, engine, asked, breach, said or hinted)
                        ranked.append((_rank(log, asked, order, breach), hit))
    ranked.sort(key=lambda pair: pair[0])
    once: dict[tuple[str, str, tuple[int, int] | str], Hit] = {}
    for _, hit in ranked:
        once.setdefault((hit.engine.name, hit.breach.rule, hit.breach.division or hit.breach.reason), hit)
    hits = list(once.values())
    return [hit for hit in hits if _as_told(hit, log) == _as_told(hits[0], log)]


def _as_told(hit: Hit, log: EngineLog) -> tuple[bool, ...]:
    """Which parts of a layout are known and not guessed. Layouts with more guesses than the best one are dropped."""
    return hit.model.given, hit.tp_said, log.clues.get("engine") == hit.engine.name


def _rank(log: EngineLog, request: Request, order: int, breach: Breach) -> tuple[object, ...]:
    """Sort key: the log's engine, TP and EP first, then usual and small layouts, then modules that break often."""
    clues = log.clues
    return (
        clues.get("engine", request.engine) != request.engine,
        "tp" in clues and str(request.tp) != clues["tp"],
        request.tp not in _USUAL,
        request.tp,
        order,
        serving().index(request.engine),
        breach.module is not Module.SHARED,
        "ep" in clues and str(request.ep or 1) != clues["ep"],
        request.ep or 0,
    )


def _requests(found: FoundMessage, log: EngineLog) -> Iterator[Request]:
    """Requests that may have caused the message: from its numbers, from the log, and the usual ones."""
    numbers = [int(value) for value in found.values if value and value.isdigit() and 1 < int(value) <= MAX_RANKS][:4]
    clues = {name: (int(log.clues[name]),) if name in log.clues else () for name in ("tp", "ep")}
    known = dict.fromkeys(name for engine in ENGINES.values() for name in engine.runners)
    named = [name for name in known if name in found.text.lower()]
    gpus = (None, "b200") if named else (None,)  # a runner's name may stand for the GPU
    for tp in dict.fromkeys((*clues["tp"], *_USUAL, *_UNUSUAL, *numbers)):
        eps = dict.fromkeys((None, *clues["ep"], *numbers, tp))
        ways = itertools.product(eps, log.dps, named or (None, "auto"), ("auto", "split"), gpus)
        for ep, dp, runner, shared, gpu in ways:
            yield Request(tp, ep=ep, dp=dp, runner=runner, shared_experts=shared, gpu=gpu)


def _broken(
    found: FoundMessage, engine: Engine, names: set[str], inventory: Inventory, request: Request, told: bool
) -> Iterator[Breach]:
    """Breaches of the message's rules with its numbers, in the layouts where the engine prints no other message first.

    The engine may run checks that are not among the rules, and skip others. So an earlier message is ignored if the log
    names the parallelism (`told`), or if the numbers of a check leave no doubt.
    """
    rules = [rule for rule in (*engine.rules, *engine.others) if rule.name in names]
    for deployment in engine.candidates(inventory, request):
        context = Context(inventory, deployment)
        fitting = [rule for rule in rules if _fits(found, rule, context)]
        if not fitting:
            continue
        yield from (breach for rule in fitting if rule in engine.others and (breach := rule.check(context)))
        for breach in engine.breaches(context):
            if any(rule.name == breach.rule for rule in fitting):
                yield breach
                break
            beside = not _SAY_TP.isdisjoint(found.pattern.fields) and _is_heard(found, rules)
            if breach.quote is not None and not (told or beside):
                break


def _is_heard(found: FoundMessage, rules: list[Rule]) -> bool:
    return any(found.pattern.template in one.heard for rule in rules for one in shows_as(rule))


def _fits(found: FoundMessage, rule: object, context: Context) -> bool:
    """Whether the message's numbers are those of a rule in a layout. Numbers that it lacks do not count."""
    values: dict[str, object] = {}
    if isinstance(rule, Divides):
        shows, template = rule.shows(context), found.pattern.template
        if shows is None or not (shows.says(template, context) or (template in SHORT and shows is rule.cut)):
            return False
        size, parts = rule.size(context), rule.parts(context)
        values |= {"size": size, "parts": parts, "part": size // parts, "unit": rule.unit(context)}
    values |= {"context": context, "at": context.deployment, "config": context.config}
    for name, said in zip(found.pattern.fields, found.values, strict=True):
        if name.partition(".")[0] not in values:
            return False
        if str(Formatter().get_field(name, (), values)[0]) != said:
            return False
    return True


def shows_as(rule: Rule) -> tuple[Symptom | Requires, ...]:
    """The symptoms of a rule: one for each way in which it breaks."""
    return (rule.uneven, rule.cut) if isinstance(rule, Divides) else (rule,)
