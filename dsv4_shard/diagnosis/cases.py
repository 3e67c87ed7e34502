"""Which layouts break the rule with the message's numbers."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from string import Formatter

from dsv4_shard.catalog.rank_ranges import MAX_RANKS
from dsv4_shard.checkpoint import Inventory
from dsv4_shard.diagnosis.known_model import KnownModel
from dsv4_shard.diagnosis.log_scan import EngineLog, FoundMessage
from dsv4_shard.diagnosis.origin import MessageOrigin, origin_of
from dsv4_shard.diagnosis.patterns import SHORT, PatternSource
from dsv4_shard.diagnosis.releases import Release, inventory_of
from dsv4_shard.engines import (
    ENGINES,
    Breach,
    Context,
    Deployment,
    Divides,
    Engine,
    Request,
    Requires,
    Rule,
    Symptom,
    engine_for,
    serving,
)
from dsv4_shard.models import Family, Module

_USUAL = (2, 4, 8, 16, 32, 64)

_UNUSUAL = (3, 6, 12, 24, 48, 96, 128, 256)

_SAY_TP = {"parts", "at.tp", "context.deployment.tp"}

_TELL_TP = {"part", *_SAY_TP}
"""`_SAY_TP`: fields of a template that name TP. `_TELL_TP`: fields from which TP can be computed."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A layout that breaks a rule with the numbers of the message. `tp_said`: the message or the log names its TP."""

    model: KnownModel
    engine: Engine
    request: Request
    breach: Breach
    tp_said: bool

    @property
    def guessed(self) -> tuple[str, ...]:
        """What neither the message nor the log contains."""
        return (() if self.model.given else ("the model",)) + (() if self.tp_said else ("TP",))


def found_origin(found: FoundMessage, log: EngineLog) -> MessageOrigin:
    """Where a message comes from, by its traceback and the log."""
    return origin_of(found.frames, log.clues.load_format)


def engine_told(found: FoundMessage, log: EngineLog) -> str | None:
    """The engine that the traceback or the log shows."""
    return found_origin(found, log).engine or log.clues.engine


def engines_of(found: FoundMessage, log: EngineLog) -> tuple[str, ...]:
    """The log's engine; if it shows none, the engines that print the message."""
    told = engine_told(found, log)
    if told is not None:
        return (told,)
    known = found.pattern.known
    return tuple(known.engines if known else dict.fromkeys(source.engine.name for source in found.pattern.sources))


def pattern_sources(found: FoundMessage, log: EngineLog, models: tuple[KnownModel, ...]) -> list[PatternSource]:
    """The rules behind the message, for these engines and models."""
    names, families = engines_of(found, log), [model.inventory.family for model in models]
    return [one for one in found.pattern.sources if one.engine.name in names and one.family in families]


def hits_of(found: FoundMessage, log: EngineLog, models: tuple[KnownModel, ...]) -> list[Hit]:
    """Every layout that breaks a rule with the numbers of the message: the likeliest first, each division once.

    Layouts that the engine stops in for an earlier reason count only if there are no others: versions differ in their
    order of checks.
    """
    by_engine: dict[tuple[str, Family], tuple[Engine, list[PatternSource]]] = {}
    for source in pattern_sources(found, log, models):
        key = source.engine.name, source.family
        by_engine.setdefault(key, (source.engine, []))[1].append(source)
    plain = list(_requests(found, log))
    requests = {name: [replace(one, engine=name) for one in plain] for name in {key[0] for key in by_engine}}
    for any_order in (False, True) if found.pattern.fields else (False,):
        ranked: list[tuple[tuple[object, ...], Hit]] = []
        for order, model in enumerate(models):
            for engine, sources in (pair for key, pair in by_engine.items() if key[1] is model.inventory.family):
                names, tried = {source.rule.name for source in sources}, set[Deployment]()
                for asked in requests[engine.name]:
                    new = [one for one in _candidates(engine, model, asked) if one not in tried]
                    if not new:
                        continue
                    tried.update(new)
                    for breach in _broken(found, engine, names, model.inventory, new, log, any_order):
                        hit = Hit(model, engine, asked, breach, _tp_said(found, log))
                        ranked.append((_rank(log, asked, order, breach), hit))
        if ranked:
            return _best(ranked, log)
    return []


def _candidates(engine: Engine, model: KnownModel, request: Request) -> tuple[Deployment, ...]:
    if model.release is None:
        return tuple(engine.candidates(model.inventory, request))
    return _of_release(engine.name, model.release, request)


@lru_cache(maxsize=1 << 15)
def _of_release(engine: str, release: Release, request: Request) -> tuple[Deployment, ...]:
    """The deployments of a request for a release, which never changes."""
    inventory = inventory_of(release)
    return tuple(engine_for(engine, inventory.family).candidates(inventory, request))


def _best(ranked: list[tuple[tuple[object, ...], Hit]], log: EngineLog) -> list[Hit]:
    """The likeliest layouts, each division once; those with more guesses than the best one are dropped."""
    ranked.sort(key=lambda pair: pair[0])
    once: dict[tuple[str, str, tuple[int, int] | str], Hit] = {}
    for _, hit in ranked:
        once.setdefault((hit.engine.name, hit.breach.rule, hit.breach.division or hit.breach.reason), hit)
    hits = list(once.values())
    return [hit for hit in hits if _as_told(hit, log) == _as_told(hits[0], log)]


def _tp_said(found: FoundMessage, log: EngineLog) -> bool:
    """Whether the message or the log names TP."""
    return log.clues.tp is not None or not _SAY_TP.isdisjoint(found.pattern.fields)


def _as_told(hit: Hit, log: EngineLog) -> tuple[bool, ...]:
    """Which parts of a layout are known and not guessed."""
    return hit.model.given, hit.tp_said, log.clues.engine == hit.engine.name


def _rank(log: EngineLog, request: Request, order: int, breach: Breach) -> tuple[object, ...]:
    """Sort key: the log's engine first, then usual and small layouts, then modules that break often."""
    return (
        (log.clues.engine or request.engine) != request.engine,
        request.tp not in _USUAL,
        request.tp,
        order,
        serving().index(request.engine),
        breach.module is not Module.SHARED,
        request.ep or 0,
    )


def _requests(found: FoundMessage, log: EngineLog) -> Iterator[Request]:
    """Requests that may have caused the message, none of which contradicts the log.

    TP and EP are the log's. If it does not name them, they are the message's numbers and the usual ones, not below the
    ranks that the log shows.
    """
    clues = log.clues
    numbers = [int(value) for value in found.values if value and value.isdigit() and 1 < int(value) <= MAX_RANKS][:4]
    known = dict.fromkeys(name for engine in ENGINES.values() for name in engine.runners)
    named = [name for name in known if name in found.text.lower()]
    gpus = (None, "b200") if named else (None,)  # a runner's name may stand for the GPU
    unusual = () if _TELL_TP.isdisjoint(found.pattern.fields) else (*_UNUSUAL, *numbers)
    least = clues.ranks.get("TP", 1) if _SAY_TP.isdisjoint(found.pattern.fields) else 1
    for tp in dict.fromkeys((clues.tp,) if clues.tp else (*_USUAL, *unusual)):
        if tp < least:
            continue
        told = clues.told_ep
        eps = (None if told == 1 else told,) if told else dict.fromkeys((None, *numbers, tp))
        ways = itertools.product(eps, clues.dps, named or (None, "auto"), ("auto", "split"), gpus)
        for ep, dp, runner, shared, gpu in ways:
            if (ep or 1) >= clues.ranks.get("EP", 1):
                yield Request(tp, ep=ep, dp=dp, runner=runner, shared_experts=shared, gpu=gpu)


def _broken(
    found: FoundMessage,
    engine: Engine,
    names: set[str],
    inventory: Inventory,
    deployments: list[Deployment],
    log: EngineLog,
    any_order: bool,
) -> Iterator[Breach]:
    """Breaches of the message's rules with its numbers, in the layouts where the engine prints no other message first.

    The engine may run checks that are not among the rules, and skip others. So an earlier message is ignored if the log
    names the parallelism, or if the numbers of a check leave no doubt, or with `any_order`.
    """
    rules = [rule for rule in (*engine.rules, *engine.others) if rule.name in names]
    for deployment in deployments:
        context = Context(inventory, deployment)
        fitting = [rule for rule in rules if _fits(found, rule, context)]
        if not fitting:
            continue
        if any_order:
            yield from (breach for rule in fitting if (breach := rule.check(context)))
            continue
        yield from (breach for rule in fitting if rule in engine.others and (breach := rule.check(context)))
        for breach in engine.breaches(context):
            if any(rule.name == breach.rule for rule in fitting):
                yield breach
                break
            beside = not _SAY_TP.isdisjoint(found.pattern.fields) and _is_heard(found, rules)
            if breach.quote is not None and not (log.clues.tp or beside):
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
