"""`explain`: an engine's message → the rule that broke and its layout, in numbers, and how to fix it.

The rules themselves give the answer. For the given checkpoint or the releases, and for the parallelism in the log or
the usual ones, each layout that breaks the rule with exactly the numbers of the message is a case of it. Nothing that
the log says is replaced: a model that it names and that is not known gets an answer from the message's numbers alone.
Anything that neither the message nor the log contains is a guess and marked as such.
"""

from collections.abc import Iterable, Iterator

from dsv4_shard.diagnosis.cases import Hit, engine_told, engines_of, found_origin, hits_of, pattern_sources, shows_as
from dsv4_shard.diagnosis.document import Case, EngineMessage, Explanation, LogFacts, WayOut
from dsv4_shard.diagnosis.engine_messages import EngineText, find_at, find_text
from dsv4_shard.diagnosis.known_model import KnownModel, OtherFamily, models_for
from dsv4_shard.diagnosis.log_scan import EngineLog, FoundMessage, read_log
from dsv4_shard.diagnosis.meaning import Diagnosis
from dsv4_shard.diagnosis.message_kinds import answer_for
from dsv4_shard.diagnosis.origin import Frame, origin_of, stage_of_path
from dsv4_shard.diagnosis.way_out import asked, way_for
from dsv4_shard.engines import ENGINES, LOADER_CLASSES, Divides, StartStage, Verdict
from dsv4_shard.errors import UsageError
from dsv4_shard.planning import options_of, outcome_of, ways_out, words
from dsv4_shard.text.units import counted

_CASES = 3

_ALSO = 5

_MAX_CHARS = 400


def explain(lines: Iterable[tuple[int, str]], given: KnownModel | OtherFamily | None = None) -> Explanation:
    """Explain the first grave message among the numbered `lines`; `given` is the checkpoint to match it with."""
    log = read_log(lines)
    models = models_for(log.clues, given)
    in_order = sorted(log.found, key=lambda one: (not one.pattern.grave, one.line, one.pattern.vague))
    for found in in_order:
        hits = hits_of(found, log, models)
        if hits or not found.pattern.vague or _is_ranks(found, log, models):
            break
    else:
        return _of_engine(log, models, given)
    told = hits if found.pattern.fields or log.clues.tp or _divides(found) else []
    cases = tuple(_case(hit) for hit in told[:_CASES])
    also = {_shown(one): one for one in in_order if not (one.pattern.vague or _same_rule(one, found))}
    diagnosis = Diagnosis(found, hits, log, models, given if isinstance(given, OtherFamily) else None)
    return Explanation(
        recognised=True,
        lines=log.lines,
        message=_message(found),
        engines=_titles(found, log, hits),
        log=_facts(found, log, models, given),
        notes=tuple(_notes(engine_told(found, log), log, models, given)),
        basis="table" if found.pattern.known is not None else "rule",
        meaning=tuple(diagnosis.meaning()),
        cases=cases,
        remedies=cases[0].remedies if cases else diagnosis.remedies(),
        way=_way(found, told, log, models),
        also=tuple(_message(one) for one in list(also.values())[:_ALSO]),
    )


def _way(found: FoundMessage, hits: list[Hit], log: EngineLog, models: tuple[KnownModel, ...]) -> WayOut | None:
    """The plan, unless it calls a layout good that the engine has just refused for a reason that no rule has."""
    way = way_for(found, hits, log, models)
    unexplained = way is not None and way.verdict.is_good and not hits and found.pattern.known is None
    return None if unexplained else way


def _of_engine(log: EngineLog, models: tuple[KnownModel, ...], given: KnownModel | OtherFamily | None) -> Explanation:
    """The answer for a log without a known message: by the engines' own texts, by kind, if one is in it."""
    for error in log.errors:
        origin = origin_of(error.frames, log.clues.load_format)
        engine = origin.engine or log.clues.engine
        placed = find_at(error.frames)
        at = placed is not None and placed.error in error.text
        found = (placed, error.text) if placed is not None and at else find_text((error.text,), engine)
        if found is None:
            continue
        said, line = found
        answer = answer_for(said, line, log.clues)
        title = ENGINES[said.engine].title
        return Explanation(
            recognised=True,
            lines=log.lines,
            message=EngineMessage(text=line[:_MAX_CHARS], line=error.line, times=1),
            engines=(title,),
            log=_facts(None, log, models, given).model_copy(
                update={"engine": said.engine, "loader": loader_of(said), "stage": origin.stage or stage_of(said)}
            ),
            notes=tuple(_notes(said.engine, log, models, given)),
            basis=answer.basis,
            meaning=(f"{title} {said.version} says so in {said.function} ({said.place})", *answer.meaning),
            remedies=answer.remedies,
        )
    return Explanation(recognised=False, lines=log.lines, hint=_hint(log), log=_facts(None, log, models, given))


def stage_of(said: EngineText) -> str | None:
    """The stage in which an engine raises a message, by its place."""
    path, function = said.place.rpartition(":")[0], said.function.rpartition(".")[2]
    return origin_of((Frame(path, function, 0),), None).stage or stage_of_path(path)


def loader_of(said: EngineText) -> str | None:
    """The loader whose class raises a message."""
    return LOADER_CLASSES.get(said.function.partition(".")[0])


def _hint(log: EngineLog) -> str:
    if log.bare is not None:
        return (
            f"`{log.bare[:80]}` alone is the class of an error, not its message: give the traceback above it as well."
        )
    return (
        "dsv4-shard knows messages of SGLang, vLLM, TensorRT-LLM and DeepSeek's reference about how a model is cut, "
        "loaded and held. Give the whole log (dsv4-shard explain LOG, or pipe it), from the first traceback on. "
        "`dsv4-shard plan REPO --tp N --engine ENGINE` checks the layout itself."
    )


def _is_ranks(found: FoundMessage, log: EngineLog, models: tuple[KnownModel, ...]) -> bool:
    """Whether a vague message about a model that is not known divides by the ranks of an engine's log."""
    return not models and engine_told(found, log) is not None and str(log.clues.tp) in found.values


def _stage_of_rules(found: FoundMessage, log: EngineLog, models: tuple[KnownModel, ...]) -> StartStage | None:
    """The stage in which the rules that say the message are checked; None if they differ, or if only others say it."""
    template = found.pattern.template
    stages = {
        source.rule.stage
        for source in pattern_sources(found, log, models)
        for shows in shows_as(source.rule)
        if template in shows.messages and template not in shows.heard
    }
    return stages.pop() if len(stages) == 1 else None


def _facts(
    found: FoundMessage | None, log: EngineLog, models: tuple[KnownModel, ...], given: KnownModel | OtherFamily | None
) -> LogFacts:
    clues = log.clues
    origin = found_origin(found, log) if found is not None else None
    stage = origin.stage if origin is not None else None
    if stage is None and found is not None and found.pattern.known is not None:
        stage = found.pattern.known.stage or None
    if stage is None and found is not None:
        stage = _stage_of_rules(found, log, models)
    named = clues.named
    model = models[0] if models and models[0].given else None
    engine = engine_told(found, log) if found is not None else clues.engine
    dp = max(clues.dps) if clues.dp or clues.attn_dp else None
    return LogFacts(
        model=named,
        known=None if named is None else model is not None or given is not None,
        sizes=model.sizes or None if model is not None else None,
        engine=engine,
        engine_version=clues.version if engine == clues.engine else None,
        tp=clues.tp,
        ep=clues.told_ep,
        dp=dp,
        pp=clues.pp,
        loader=origin.loader if origin is not None else None,
        stage=stage,
    )


def _notes(
    engine: str | None, log: EngineLog, models: tuple[KnownModel, ...], given: KnownModel | OtherFamily | None
) -> Iterator[str]:
    """What the answer does not take from the log."""
    clues = log.clues
    errors = given.errors if isinstance(given, OtherFamily) else ()
    if isinstance(given, KnownModel):
        errors = tuple(finding.message for finding in given.inventory.errors)
    if given is not None and errors:
        count = counted(len(errors), "error")
        yield f"{given.label} has {count} (dsv4-shard inspect lists them), the first: {errors[0]}"
    if given is not None and clues.named is not None and clues.named.rstrip("/") != given.label.rstrip("/"):
        yield f"the log names {clues.named}; the sizes are those of --repo {given.label}"
    elif not models and given is None:
        yield f"{clues.named} is not a model that is known here: the answer is from the message's numbers alone"
    elif models and models[0].given and models[0].sizes:
        yield f"{models[0].label}: {models[0].sizes}"
    if clues.version is not None and engine is not None and engine == clues.engine:
        table = ENGINES[engine]
        if clues.version not in (table.version, *table.versions):
            yield f"the log is of {table.title} {clues.version}, the rules are those of {table.version}"
    if clues.pp is not None and clues.pp > 1:
        yield f"PP {clues.pp}: each pipeline stage is cut as told here; `plan --pp {clues.pp}` has the bytes of each"


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
    names = [hit.engine.name for hit in hits] if found.pattern.vague and hits else engines_of(found, log)
    return tuple(ENGINES[name].title for name in dict.fromkeys(names))


def _remedies(hit: Hit) -> tuple[str, ...]:
    """The remedies that help; in general words for an engine that is not verified for the model."""
    found = ways_out(hit.model.inventory, hit.request, hit.breach)
    try:
        is_verified = outcome_of(hit.model.inventory, hit.request).verdict is not Verdict.UNVERIFIED
    except UsageError:  # more GPUs than any plan has
        is_verified = True
    return found if found or is_verified else words(hit.breach.remedies)


def _case(hit: Hit) -> Case:
    return Case(
        model=hit.model.label,
        engine=hit.engine.name,
        options=options_of(asked(hit.request)),
        rule=hit.breach.rule,
        module=hit.breach.module,
        arithmetic=hit.breach.reason,
        guessed=hit.guessed,
        remedies=_remedies(hit),
    )
