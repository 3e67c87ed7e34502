"""The answer for a message of an engine's source, by its kind: what its words or its condition tell, and what to do.

These answers are general. They name the options and numbers of the message, the engine's own condition, and the part of
the engine that it is of.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass

from dsv4_shard.diagnosis.areas import Area, area_of
from dsv4_shard.diagnosis.arithmetic import divisors
from dsv4_shard.diagnosis.clues import Clues
from dsv4_shard.diagnosis.document import Basis
from dsv4_shard.diagnosis.engine_messages import EngineText
from dsv4_shard.text.units import quotient

_OPTION = re.compile(r"--[a-z][a-z0-9-]{2,60}")

_VARIABLE = re.compile(r"\b(?:VLLM|SGLANG|CUDA|NCCL|TORCH|PYTORCH)_[A-Z0-9_]{3,60}\b")

_FIELD = re.compile(r"\b[a-z]+(?:_[a-z0-9]+)+\b")

_NOT_OPTIONS = frozenset(("is_not", "not_in"))

_PLAN = "dsv4-shard plan REPO --tp N --engine ENGINE: a launch whose options go together, for the layout at hand"

_REPORT = "another version of the engine, or its own image; report it with version, arguments and this place"

_LOG = "the lines above it, of every rank: give the whole log"


@dataclass(frozen=True, slots=True)
class Answer:
    """The cause of a message and its remedies; `basis` is that of the explanation."""

    meaning: tuple[str, ...]
    remedies: tuple[str, ...]
    basis: Basis = "kind"


@dataclass(frozen=True, slots=True)
class Said:
    """A message in a log: the engine's text, the line of the log, the deployment, and the area."""

    source: EngineText
    line: str
    clues: Clues
    area: Area | None

    @property
    def named(self) -> str:
        """The options, variables and arguments that the line names."""
        return ", ".join(options_in(self.line))

    def choices(self) -> tuple[str, ...]:
        """Remedies: the area's options, with the values that the log has."""
        options = self.area.options.get(self.source.engine, ()) if self.area is not None else ()
        told = [f"{name} {value}" for name in options if (value := self.clues.argument(name)) is not None]
        if told:
            return (f"leave {', '.join(told)} out, so that the engine picks",)
        return (f"leave {' and '.join(options)} out, or try another value",) if options else ()


Explain = Callable[[Said], Answer]


def options_in(text: str) -> list[str]:
    """The options, environment variables and arguments that a message names."""
    found = [*_OPTION.findall(text), *_VARIABLE.findall(text)]
    plain = {option.removeprefix("--").replace("-", "_") for option in found}
    found += [name for name in _FIELD.findall(text) if name not in plain | _NOT_OPTIONS]
    return list(dict.fromkeys(found))[:5]


def _general(cause: str, *remedies: str, choices: bool = True) -> Explain:
    """An answer with one sentence about the cause; `choices`: the area's options are among the remedies."""
    return lambda said: Answer((cause,), (*remedies, *(said.choices() if choices else ())))


def _package(said: Said) -> Answer:
    command = re.search(r"(?:uv )?pip install [^`'\"\n.;)]{2,80}", said.line)
    return Answer(
        ("the engine's own environment lacks a Python package, or has another version of it than this choice needs",),
        (f"where the engine runs: {command[0].strip()}" if command else "install it where the engine runs",
         "or the engine's own container image, which has what its options need", *said.choices()),
    )  # fmt: skip


def _division(said: Said) -> Answer:
    numbers = [int(number) for number in re.findall(r"(?<![\w.])\d{1,9}(?![\w.])", said.line)]
    pairs = [(a, b) for a, b in itertools.pairwise(numbers) if b > 1 and a % b]
    meaning = [f"{a} / {b} = {quotient(a, b)}: not whole; {a} divides by {', '.join(map(str, divisors(a)))}"
               for a, b in pairs[:2]]  # fmt: skip
    return Answer(
        (*meaning, "a size must divide into equal parts" + (f": {said.named}" if said.named else "")),
        ("a TP, EP or DP that divides the size, or the size that the message asks for", _PLAN),
    )


def _hardware(said: Said) -> Answer:
    names = said.named
    return Answer(
        ("the GPU, its driver or this build lacks what the choice needs" + (f": {names}" if names else ""),),
        (f"leave {names} out, so that the engine picks what the GPU has" if names else
         "leave out the option that asks for it, so that the engine picks what the GPU has",
         "dsv4-shard plan REPO --tp N --gpu GPU: the runner that the engine picks on this GPU"),
    )  # fmt: skip


def _options(said: Said) -> Answer:
    told = [f"{name} {value}" for name in options_in(said.line) if (value := said.clues.argument(name)) is not None]
    return Answer(
        (
            f"these arguments do not go together, or one has a value that the engine does not take: {said.named}",
            *((f"the log has {', '.join(told)}",) if told else ()),
        ),
        (f"leave out, or change as the message says: {said.named}", _PLAN),
    )


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of message: the words that tell it, and its answer."""

    regex: str
    explain: Explain


KINDS = (
    Kind(r"(?i)pip install|please install|is not installed|could not import|failed to import|no module named|"
         r"could not be imported|use \w+ version|^(?!.*UVA).{0,60} is (?:not available|unavailable|required)\.?$",
         _package),
    Kind(r"(?i)divisib|multiple of|evenly divide|divide evenly|divides? .{0,40}evenly|aligned (?:to|with)|not aligned|"
         r"align to|misaligned|-aligned", _division),
    Kind(r"(?i)compute capability|\bsm_?\d{2,3}\b|\bhopper\b|\bblackwell\b|"
         r"requires? .{0,40}\b(?:GPUs?|ROCm|CUDA(?![ -]graph))\b|"
         r"only (?:supported|available) on (?:CUDA|ROCm|NVIDIA|AMD)|current (?:device|platform|GPU)|on this "
         r"(?:device|platform|GPU)|does not support UVA|UVA is not", _hardware),
    Kind(r"--[a-z][a-z0-9-]{2}|\b(?:VLLM|SGLANG)_[A-Z]{2}", _options),
    Kind(r"(?i)timed? ?out\b(?! must)|rendezvous|\bnccl\w*\b|address already|connection (?:refused|reset|closed)|"
         r"\bdied\b|\bdead\b|hit an exception|failed (?:during|to) (?:startup|start|kill)|"
         r"process(?:es)? .{0,40}(?:failed|exit|terminated)|no available port|port .{0,40}in use|"
         r"(?:ranks?|nodes?|world_size|world size) .{0,80}(?:mismatch|exceed|larger|smaller|out of)", _general(
             "the processes of the ranks do not find each other, or one has ended: another rank's own error, an "
             "address or a port, or fewer GPUs than ranks",
             "the first traceback of any rank, on any node: give that log",
             "on every node the same version and options, but for --node-rank; an address and ports that all nodes "
             "reach", choices=False)),
    Kind(r"(?i)out of memory|not enough|insufficient|no room|too small|no free|exceeds? .{0,60}(?:memory|capacity|"
         r"budget|buffer|limit)|memory .{0,60}(?:exceed|larger|less)|reduce .{0,40}(?:batch|length|size)", _general(
             "something is larger than the room that was set aside for it: memory, a pool or a buffer",
             "a shorter context, fewer requests at once, or more GPUs", "dsv4-shard plan REPO --tp N --gpu GPU: what a "
             "rank weighs, and what is left")),
    Kind(r"(?i)(?:file|folder|directory|path|repo\w*|checkpoint|config)\b.{0,80}(?:not found|not exist|missing|"
         r"not writable|is empty|cannot be (?:read|opened)|invalid)|no such file|cannot find|"
         r"could not find .{0,40}file|failed to (?:load|read|parse|open|download)|"
         r"no (?:safetensors|weights|files?)\b", _general(
             "a file or folder that the engine reads is missing, empty or not what it expects",
             "the path as the engine sees it (in a container: inside it), and who may read it",
             "dsv4-shard inspect REPO: what is missing or odd in a checkpoint", choices=False)),
    Kind(r"(?i)(?:load(?:ed|ing)? |checkpoint|safetensors|state[ _]dict|presharded)\b.{0,80}(?:shape|size|dtype|weight|"
         r"tensor|param|key|layer|rank)|weights? .{0,60}missing|no module or parameter", _general(
             "a tensor of the checkpoint does not fit the parameter that the engine made for it: another name, dtype "
             "or cut",
             "dsv4-shard inspect REPO: the checkpoint's tensors, dtypes and scales",
             "files that reshard wrote: dsv4-shard verify OUT, and the TP, EP and version that manifest.json names")),
    Kind(r"(?i)support|unknown|unrecogni|not implemented|\bNYI\b|not (?:wired|compatible|available|valid)|invalid|"
         r"unavailable|must be (?:one of|in)\b|expected one of|unexpected|only .{0,60}(?:are|is|for|with)\b|"
         r"is disabled|was removed|deprecat|does not (?:implement|have|take|exist)|"
         r"no .{0,60}(?:backend|path|method|registered|kernel)|is not registered|not valid|does not satisfy|"
         r"sub ?class|unreachable|no (?:separate|common|emulated)\b|has no |align it with|"
         r"not published|instead\.$", _general(
             "the engine has no code for this choice with this model, format or GPU", _PLAN)),
    Kind(r"(?i)captur|cuda ?graph|compil|warm-?up", _general(
        "the engine cannot record or compile its steps in advance for this combination", _LOG)),
    Kind(r"(?i)initiali[sz]|already|not (?:set|been)|before|unset|has no entry|destroyed|twice|duplicate|overwrit|"
         r"was not|inconsistent|is (?:None|empty)|lost|double free|stale", _general(
             "the engine's own state is not what its next step needs: parts were set up in another order, twice or not "
             "at all, which a configuration that nobody tested, a plugin or a fault of this version can do",
             _LOG, _REPORT)),
    Kind(r"(?i)\bmust\b|\bshould\b|requires?\b|required|cannot|can't|can not|expect|needs?\b|incompatible|mismatch|"
         r"conflict|at least|at most|not match|differ|between|greater|less than|larger|smaller|exceed|equal|one of|"
         r"either|only\b|out of range|negative|positive|nonzero|non-zero|[<>=]=|has \{\}|got \{\}", _general(
             "a value is not what this step of the engine requires; the message says which", _PLAN)),
    Kind(r"(?i)fail|error|exception|unable|couldn't|could not|no valid|not found|missing|problem", _general(
        "a step of the start has failed; the message has what the step itself said", _LOG)),
)  # fmt: skip
"""The kinds, in the order in which they are tried."""

_CONDITIONS = (
    (r"%", "a size that does not divide into equal parts"),
    (r"\bdtype\b|torch\.\w*(?:float|int|uint)\d*", "the dtype of a tensor"),
    (r"\.shape|\.dim\(|\.ndim|\.size\(|numel|stride|contiguous|\blen\(", "the shape or layout of a tensor or list"),
    (r"(?:tp|ep|dp|pp|cp|world)_?(?:size|rank)|\brank\b|num_ranks", "the number of ranks"),
    (r"is None|is not None|isinstance|hasattr|issubclass", "a part that is set, or of another kind, where it must "
                                                           "not be, or the other way round"),
    (r"except ", "another error, which stands above it in the log"),
    (r"[<>]|==|!=| in ", "a value out of the range that this step takes"),
)  # fmt: skip
"""(regular expression for the engine's condition, what it is about)."""

_ARGUMENTS = re.compile(r"/(?:arg_groups|config|configs)/|/arg_utils\.py|/server_args\.py")
"""Modules that check arguments: names with underscores in their messages are arguments."""

_NO_TEXT = ("", "{}")


def answer_for(source: EngineText, line: str, clues: Clues) -> Answer:
    """The answer for a message of the source, by its text, condition and file, and the line of the log."""
    said = Said(source, line, clues, area_of(source.place))
    if source.bare or source.text in _NO_TEXT:
        return _assertion(said)
    for kind in KINDS:
        if re.search(kind.regex, source.text):
            return _with_condition(said, kind.explain(said))
    if _ARGUMENTS.search(source.place) and options_in(source.text):
        return _with_condition(said, _options(said))
    return _assertion(said) if source.condition else _place(said)


def _with_condition(said: Said, answer: Answer) -> Answer:
    meaning = (*answer.meaning, *_area(said), *_condition(said.source))
    return Answer(meaning, tuple(dict.fromkeys(answer.remedies)) or (_LOG,), answer.basis)


def _assertion(said: Said) -> Answer:
    """The answer for an internal check that has no words of its own: the condition, what it is about, and the area."""
    condition = said.source.condition
    about = next((words for regex, words in _CONDITIONS if re.search(regex, condition)), None)
    if said.source.error == "NotImplementedError":
        cause = "the engine has no code for this combination"
    else:
        cause = "an internal check of the engine fails" + (f", about {about}" if about else "")
    remedies = (*said.choices(), _LOG, _PLAN, _REPORT)
    return Answer((cause, *_area(said), *_condition(said.source)), remedies, "assertion")


def _area(said: Said) -> tuple[str, ...]:
    return (f"it is of {said.area.title}",) if said.area is not None else ()


def _condition(source: EngineText) -> tuple[str, ...]:
    if not source.condition:
        return ()
    if source.condition.startswith("except "):
        return (f"it says so after {source.condition.removeprefix('except ')}, whose own text stands above it",)
    when = "what must hold there" if source.error == "AssertionError" else "when it says so"
    return (f"{when}, in its own words: {source.condition}",)


def _place(said: Said) -> Answer:
    return Answer(
        ("the message names no option, and its cause is not known here: an untested combination of options, a mixed "
         "installation and a fault of this version all show so", *_area(said)),
        (_LOG, "leave unusual options out one at a time: speculative decoding, offload, context parallelism, graphs",
         _REPORT),
        "place",
    )  # fmt: skip
