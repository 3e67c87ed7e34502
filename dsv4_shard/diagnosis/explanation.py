"""`explain`: an engine's message → the rule that broke and its layout, in numbers, and how to fix it.

The rules themselves give the answer. For the given checkpoint or the releases, and for the parallelism in the log or
the usual ones, each layout that breaks the rule with exactly the numbers of the message is a case of it. Anything that
neither the message nor the log contains is a guess and marked as such.
"""

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal

from dsv4_shard.catalog.gpus import Gpu, gpus_with, say_memory
from dsv4_shard.diagnosis.cases import Hit, KnownModel, engines_of, hits_of, pattern_sources, shows_as
from dsv4_shard.diagnosis.log_scan import EngineLog, FoundMessage, read_log
from dsv4_shard.diagnosis.patterns import SHORT, PatternSource
from dsv4_shard.diagnosis.releases import RELEASES, find_release, inventory_of
from dsv4_shard.engines import ENGINES, Context, Divides, Request, Requires, Rule, Symptom, engine_for
from dsv4_shard.errors import UsageError
from dsv4_shard.models import TARGET, Module
from dsv4_shard.planning import choose, nearest, options_of, rank_nbytes, ways_out, words
from dsv4_shard.text.document import Document
from dsv4_shard.text.units import counted, quotient

_CASES = 3

_ALSO = 5

_FIELD = re.compile(r"{[^}]*}")

_MAX_CHARS = 400


class Case(Document):
    """A layout in which the message appears. `guessed` names what neither the message nor the log contains."""

    model: str
    engine: str
    options: str
    rule: str
    module: Module
    arithmetic: str
    guessed: tuple[str, ...]
    remedies: tuple[str, ...]


class WayOut(Document):
    """The plan for the GPUs of the first case: whether it `runs`, or the `nearest` layouts that do.

    `notes` are changes that it needs; if it does not run, they are the rules that it breaks. `command` is null if it
    does not run. `next` is the `plan` command to run next.
    """

    options: str
    runs: bool
    notes: tuple[str, ...]
    environment: dict[str, str]
    command: str | None
    nearest: tuple[str, ...]
    next: str


class EngineMessage(Document):
    """A message as it appears in the log. Escape its text before you show it."""

    text: str
    line: int
    times: int


class Explanation(Document):
    """The explanation of a text or log.

    `recognised` is false if it contains no known message; then `hint` says what to provide. `message` is the first
    grave message, `engines` are those that print it, and `also` lists other known messages. `meaning` describes the
    fault. `remedies` follow from the rules, `way` from the plan.
    """

    schema_version: Literal[1] = 1
    recognised: bool
    lines: int
    message: EngineMessage | None = None
    engines: tuple[str, ...] = ()
    meaning: tuple[str, ...] = ()
    cases: tuple[Case, ...] = ()
    remedies: tuple[str, ...] = ()
    way: WayOut | None = None
    also: tuple[EngineMessage, ...] = ()
    hint: str | None = None

    def in_short(self) -> str:
        """Engines, number of cases and fixes, and the message in one line."""
        if self.message is None:
            return f"not recognised, {counted(self.lines, 'line')}"
        ways = f"{counted(len(self.cases), 'case')}, {counted(len(self.remedies), 'way')} out"
        return f"{', '.join(self.engines)}: {ways}, line {self.message.line}: {self.message.text!r}"


def explain(lines: Iterable[tuple[int, str]], model: KnownModel | None = None) -> Explanation:
    """Explain the first grave message among the numbered `lines`; `model` is the checkpoint to match it with."""
    log = read_log(lines)
    models = _models(log, model)
    in_order = sorted(log.found, key=lambda one: (not one.pattern.grave, one.line, one.pattern.vague))
    for found in in_order:
        hits = hits_of(found, log, models)
        if hits or not found.pattern.vague:
            break
    else:
        return Explanation(recognised=False, lines=log.lines, hint=_hint(log))
    told = hits if found.pattern.fields or "tp" in log.clues or _divides(found) else []
    cases = tuple(_case(hit) for hit in told[:_CASES])
    also = {_shown(one): one for one in in_order if not (one.pattern.vague or _same_rule(one, found))}
    return Explanation(
        recognised=True,
        lines=log.lines,
        message=_message(found),
        engines=_titles(found, log, hits),
        meaning=tuple(_meaning(found, hits, pattern_sources(found, log, models), models)),
        cases=cases,
        remedies=cases[0].remedies if cases else _remedies(found, pattern_sources(found, log, models), models),
        way=_way(found, told, log, models),
        also=tuple(_message(one) for one in list(also.values())[:_ALSO]),
    )


def _hint(log: EngineLog) -> str:
    if log.bare is not None:
        return (
            f"`{log.bare[:80]}` alone is the class of an error, not its message: give the traceback above it as well."
        )
    return (
        "Known are the messages of SGLang, vLLM, TensorRT-LLM and DeepSeek's reference about how a model is cut, "
        "loaded and held. Give the whole log (dsv4-shard explain LOG, or pipe it), from the first traceback on; with "
        "`dsv4-shard plan REPO --tp N --engine ENGINE` the layout itself is checked."
    )


def _models(log: EngineLog, model: KnownModel | None) -> tuple[KnownModel, ...]:
    """The given checkpoint, else the release that the log names, else every release."""
    if model is not None:
        return (model,)
    named = find_release(log.clues["model"]) if "model" in log.clues else None
    return tuple(KnownModel(release.repo, inventory_of(release), release is named)
                 for release in ((named,) if named else RELEASES))  # fmt: skip


def _message(found: FoundMessage) -> EngineMessage:
    return EngineMessage(text=_shown(found), line=found.line, times=found.times)


def _shown(found: FoundMessage) -> str:
    return found.text[:_MAX_CHARS]


def _divides(found: FoundMessage) -> bool:
    """Whether the rules of a message can identify a layout although the message has no number."""
    return any(isinstance(source.rule, Divides) for source in found.pattern.sources)


def _same_rule(one: FoundMessage, other: FoundMessage) -> bool:
    if one is other:
        return True
    names = [{(source.engine.name, source.rule.name) for source in found.pattern.sources} for found in (one, other)]
    return bool(names[0] & names[1])


def _titles(found: FoundMessage, log: EngineLog, hits: list[Hit]) -> tuple[str, ...]:
    """Titles of the engines that print the message; for a vague message, those whose layouts fit it."""
    names = [hit.engine.name for hit in hits] if found.pattern.vague else engines_of(found, log)
    return tuple(ENGINES[name].title for name in dict.fromkeys(names))


def _case(hit: Hit) -> Case:
    guessed = (() if hit.model.given else ("the model",)) + (() if hit.tp_said else ("TP",))
    return Case(
        model=hit.model.label,
        engine=hit.engine.name,
        options=options_of(_asked(hit.request)),
        rule=hit.breach.rule,
        module=hit.breach.module,
        arithmetic=hit.breach.reason,
        guessed=guessed,
        remedies=ways_out(hit.model.inventory, hit.request, hit.breach),
    )


def _asked(request: Request) -> Request:
    """A request without the choices that the plan makes."""
    return replace(request, runner=None, shared_experts="auto", ep=None if request.ep == 1 else request.ep)


def _is_of_another(found: FoundMessage, models: tuple[KnownModel, ...]) -> bool:
    """Whether a message that fits no layout has numbers, so that it cannot be about the given model."""
    return bool(found.pattern.fields) and models[0].given


def _meaning(
    found: FoundMessage, hits: list[Hit], sources: list[PatternSource], models: tuple[KnownModel, ...]
) -> Iterator[str]:
    """The arithmetic of the likeliest case; without a case, that of the message's own numbers."""
    if found.pattern.known is not None:
        yield from found.pattern.known.means(found.groups)
        return
    if hits:
        yield f"{hits[0].breach.module}: {hits[0].breach.reason}"
        return
    said = {name: int(value) for name, value in zip(found.pattern.fields, found.values, strict=True) if value}
    rules = [source.rule for source in sources if isinstance(source.rule, Divides)]
    if _is_of_another(found, models):
        yield f"no cut of {models[0].label} that the rules know gives these numbers: the message is of something else"
        rules = []
    sizes = ", ".join(dict.fromkeys(rule.size_name for rule in rules))
    if said.get("part") and said.get("unit"):
        part, unit = said["part"], said["unit"]
        yield f"{part} = {quotient(part, unit)} blocks of {unit}: a rank's part must be whole blocks, with a scale each"
        if sizes:
            yield f"it is a part of one of: {sizes}"
    elif said.get("size") and said.get("parts"):
        size, parts = said["size"], said["parts"]
        yield f"{size} / {parts} = {quotient(size, parts)}: not whole" + (f"; it is one of: {sizes}" if sizes else "")
    elif sizes:
        number = f" {said['size']}" if "size" in said else ""
        yield f"{sizes}{number} must divide by {', '.join(dict.fromkeys(rule.parts_name for rule in rules))}"
    else:
        others = [source.rule for source in sources if isinstance(source.rule, Requires)]
        yield from dict.fromkeys(f"{rule.module}: {_FIELD.sub('...', rule.reason)}" for rule in others)


def _remedies(found: FoundMessage, sources: list[PatternSource], models: tuple[KnownModel, ...]) -> tuple[str, ...]:
    if found.pattern.known is not None:
        return found.pattern.known.ways
    if _is_of_another(found, models):
        return ()
    shows = (one for source in sources for one in shows_as(source.rule) if _is_of(found, one, source.rule))
    return words(remedy for one in shows for remedy in one.remedies)[:_ALSO]


def _is_of(found: FoundMessage, shows: Symptom | Requires, rule: Rule) -> bool:
    """Whether the message is a symptom of a rule, in any deployment.

    The short forms of blocks belong to the symptom `cut`.
    """
    template = found.pattern.template
    return template in shows.messages or (template in SHORT and isinstance(rule, Divides) and shows is rule.cut)


def _way(found: FoundMessage, hits: list[Hit], log: EngineLog, models: tuple[KnownModel, ...]) -> WayOut | None:
    """The plan for the likeliest case; without a case, for the layout that the log describes."""
    gpu = _gpu(found)
    if hits:
        model, request = hits[0].model, _asked(hits[0].request)
    elif log.clues.get("tp") and len(models) == 1:
        model = models[0]
        request = Request(int(log.clues["tp"]), dp=max(log.dps), engine=engines_of(found, log)[0])
        if log.clues.get("ep") and int(log.clues["ep"]) > 1:
            request = replace(request, ep=int(log.clues["ep"]))
    else:
        return None
    try:
        return way_out(model, replace(request, gpu=gpu.name if gpu else None))
    except UsageError:  # no layout has the numbers of the log
        return None


def _gpu(found: FoundMessage) -> Gpu | None:
    """The GPU with the memory that an out-of-memory message names. H20 wins over RTX PRO 6000."""
    total = found.groups.get("total") if found.pattern.known else None
    return next(iter(gpus_with(float(total))), None) if total else None


def way_out(model: KnownModel, request: Request) -> WayOut:
    """The plan for a request: how it runs, or the nearest layouts that run."""
    inventory = model.inventory
    choice = choose(inventory, request)
    engine = engine_for(request.engine, inventory.family)
    context = Context(inventory, choice.deployment)
    notes, runs = list(choice.notes()), choice.feasible
    if runs and choice.deployment.gpu_named:
        weights, memory = rank_nbytes(inventory, choice.deployment, TARGET), choice.deployment.gpu.memory
        notes.append(say_memory(weights, choice.deployment.gpu.title, memory))
        runs = weights < memory
    label = shlex.quote(model.label)
    launch = engine.launch(context, label, False) if runs else None
    if runs:
        notes += engine.notes(context)
    else:
        notes += dict.fromkeys(f"{breach.module}: {breach.reason}" for breach in choice.breaches)
    return WayOut(
        options=options_of(request),
        runs=runs,
        notes=tuple(notes),
        environment=launch.environment if launch else {},
        command=launch.commands[0] if launch and launch.commands else None,
        nearest=() if runs else tuple(options_of(near) for near, _ in nearest(inventory, request, _CASES)),
        next=f"dsv4-shard plan {label} {options_of(request)}",
    )
