"""What a message of an engine is about, by its words: the cause and the remedies of its kind.

These answers are general. They name the options and numbers of the message, and where the engine raises it.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass

from dsv4_shard.diagnosis.arithmetic import divisors
from dsv4_shard.diagnosis.clues import Clues
from dsv4_shard.text.units import quotient

_OPTION = re.compile(r"--[a-z][a-z0-9-]{2,60}")

_VARIABLE = re.compile(r"\b(?:VLLM|SGLANG|CUDA|NCCL|TORCH|PYTORCH)_[A-Z0-9_]{3,60}\b")

_FIELD = re.compile(r"\b[a-z]+(?:_[a-z0-9]+)+\b")

_NOT_OPTIONS = frozenset(("is_not", "not_in"))

_PLAN = "dsv4-shard plan REPO --tp N --engine ENGINE: a launch whose options go together, for the layout at hand"


@dataclass(frozen=True, slots=True)
class Answer:
    """The cause of a message and its remedies. `known` is false if only the place of the message is known."""

    meaning: tuple[str, ...]
    remedies: tuple[str, ...]
    known: bool = True


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of message: the words that tell it, and what they mean."""

    regex: str
    explain: Callable[[str, Clues], Answer]


def options_in(text: str) -> list[str]:
    """The options, environment variables and arguments that a message names."""
    found = [*_OPTION.findall(text), *_VARIABLE.findall(text)]
    plain = {option.removeprefix("--").replace("-", "_") for option in found}
    found += [name for name in _FIELD.findall(text) if name not in plain | _NOT_OPTIONS]
    return list(dict.fromkeys(found))[:5]


def _named(text: str) -> str:
    return ", ".join(options_in(text))


def _package(text: str, clues: Clues) -> Answer:
    command = re.search(r"(?:uv )?pip install [^`'\"\n.;)]{2,80}", text)
    return Answer(
        ("the engine's own environment lacks a Python package, or has another version of it than this option needs",),
        (f"where the engine runs: {command[0].strip()}" if command else "install it where the engine runs",
         "or the engine's own container image, which has what its options need"),
    )  # fmt: skip


def _division(text: str, clues: Clues) -> Answer:
    numbers = [int(number) for number in re.findall(r"(?<![\w.])\d{1,9}(?![\w.])", text)]
    pairs = [(a, b) for a, b in itertools.pairwise(numbers) if b > 1 and a % b]
    meaning = [f"{a} / {b} = {quotient(a, b)}: not whole; {a} divides by {', '.join(map(str, divisors(a)))}"
               for a, b in pairs[:2]]  # fmt: skip
    names = _named(text)
    return Answer(
        (*meaning, "a size must divide into equal parts" + (f": {names}" if names else "")),
        ("a TP, EP or DP that divides the size, or the size that the message asks for", _PLAN),
    )


def _hardware(text: str, clues: Clues) -> Answer:
    names = _named(text)
    return Answer(
        ("the GPU, its driver or this build lacks what the choice needs" + (f": {names}" if names else ""),),
        (f"leave {names} out, so that the engine picks what the GPU has" if names else
         "leave out the option that asks for it, so that the engine picks what the GPU has",
         "dsv4-shard plan REPO --tp N --gpu GPU: the runner that the engine picks on this GPU"),
    )  # fmt: skip


def _options(text: str, clues: Clues) -> Answer:
    names = _named(text)
    told = [f"{name} {value}" for name in options_in(text) if (value := clues.argument(name)) is not None]
    return Answer(
        (
            f"these arguments do not go together, or one has a value that the engine does not take: {names}",
            *((f"the log has {', '.join(told)}",) if told else ()),
        ),
        (f"leave out, or change as the message says: {names}", _PLAN),
    )


def _processes(text: str, clues: Clues) -> Answer:
    return Answer(
        ("the processes of the ranks do not find each other, or one has ended: another rank's own error, an address or "
         "a port, or fewer GPUs than ranks",),
        ("the first traceback of any rank, on any node: give that log",
         "on every node the same version and options, but for --node-rank; an address and ports that all nodes reach"),
    )  # fmt: skip


def _place(text: str, clues: Clues) -> Answer:
    return Answer(
        ("the message names no option, and its cause is not known here: an untested combination of options, a mixed "
         "installation and a fault of this version all show so",),
        ("the lines above it, of every rank: give the whole log",
         "leave unusual options out one at a time: speculative decoding, offload, context parallelism, graphs",
         "another version of the engine, or its own image; report it with version, arguments and this place"),
        known=False,
    )  # fmt: skip


KINDS = (
    Kind(r"(?i)pip install|please install|is not installed", _package),
    Kind(r"(?i)divisib|multiple of|evenly divide", _division),
    Kind(r"(?i)compute capability|\bsm_?\d{2,3}\b|\bhopper\b|\bblackwell\b|requires? .{0,40}\b(?:GPUs?|CUDA|ROCm)\b|"
         r"only (?:supported|available) on (?:CUDA|ROCm|NVIDIA|AMD)", _hardware),
    Kind(r"--[a-z][a-z0-9-]{2}|\b(?:VLLM|SGLANG)_[A-Z]{2}", _options),
    Kind(r"(?i)timed? ?out|rendezvous|\bnccl\b|address already|connection (?:refused|reset|closed)|died|"
         r"(?:ranks?|nodes?|world_size|world size) .{0,80}(?:mismatch|exceed|must|larger|smaller|out of)", _processes),
)  # fmt: skip
"""The kinds, in the order in which they are tried."""

_ARGUMENTS = re.compile(r"/(?:arg_groups|config|configs)/|/arg_utils\.py|/server_args\.py")
"""Modules that check arguments: names with underscores in their messages are arguments."""


def answer_for(text: str, line: str, place: str, clues: Clues) -> Answer:
    """The answer for a message, by its text in the engine's source, the line of the log, and its file."""
    for kind in KINDS:
        if re.search(kind.regex, text):
            return kind.explain(line, clues)
    if _ARGUMENTS.search(place) and options_in(text) and not text.startswith("assert "):
        return _options(line, clues)
    return _place(line, clues)
