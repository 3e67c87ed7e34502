"""Commands → roles: which program a command starts, and its options with their values."""

import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from dsv4_shard.configurations.option_table import EngineOptions, options_of
from dsv4_shard.configurations.role import EngineRole, GivenOption
from dsv4_shard.configurations.shell_text import ShellCommand, commands_of


class Program(NamedTuple):
    """A program that starts an engine: the last words of its name, and whether the model follows as an argument."""

    words: tuple[str, ...]
    engine: str
    names_model: bool = False
    wrapped: bool = False


PROGRAMS = (
    Program(("sglang", "serve"), "sglang", names_model=True),
    Program(("-m", "sglang.launch_server"), "sglang"),
    Program(("-m", "dynamo.sglang"), "sglang", wrapped=True),
    Program(("vllm", "serve"), "vllm", names_model=True),
    Program(("-m", "vllm.entrypoints.openai.api_server"), "vllm"),
    Program(("-m", "dynamo.vllm"), "vllm", wrapped=True),
    Program(("trtllm-serve", "serve"), "trtllm", names_model=True),
    Program(("trtllm-serve",), "trtllm", names_model=True),
    Program(("-m", "dynamo.trtllm"), "trtllm", wrapped=True),
)

WRAPPERS = {
    "--disaggregation-mode": "1", "--is-prefill-worker": "0", "--is-decode-worker": "0", "--connector": "+",
    "--endpoint": "1", "--extra-engine-args": "1", "--modality": "1", "--request-plane": "1", "--event-plane": "1",
}  # fmt: skip
"""Options of Dynamo's programs around the engines, besides those that begin with `--dyn-`: name → number of values."""

_ASSIGNMENT = re.compile(r"([A-Z_][A-Z0-9_]*)=(.*)", re.DOTALL | re.ASCII)

_OPTION = re.compile(r"--?[A-Za-z]")

_MODELS = ("--model-path", "--model")


def roles_in(text: str, variables: Mapping[str, str]) -> Iterator[EngineRole]:
    """Yield a role for each engine that a shell text starts. Commands that differ only by node are one.

    Raises:
        UsageError: The text is none that `commands_of` reads.
    """
    found = set[object]()
    for command in commands_of(text, variables):
        role = role_of(command)
        if role is not None:
            key = (role.name, role.engine, role.model, _of_all_nodes(role.options))
            if key not in found:
                yield role
            found.add(key)


def role_of(command: ShellCommand) -> EngineRole | None:
    """Return the role that a command starts; None if it starts no engine."""
    for program in PROGRAMS:
        size = len(program.words)
        for at in range(len(command.words) - size + 1):
            words = tuple(command.words[at : at + size])
            if (words[0].rpartition("/")[2], *words[1:]) == program.words:
                return _role(program, command, at)
    return None


def _role(program: Program, command: ShellCommand, at: int) -> EngineRole:
    before = (_ASSIGNMENT.fullmatch(word) for word in command.words[:at])  # of env, docker run and others
    variables = command.variables | {match[1]: match[2] for match in before if match is not None}
    model, options = parsed(command.words[at + len(program.words) :], program)
    role = EngineRole("", program.engine, options, variables, model, wrapped=program.wrapped)
    return replace(role, name=name_of(role))


def parsed(words: list[str], program: Program) -> tuple[str, tuple[GivenOption, ...]]:
    """Return the model and the options of a program's words, as the engine's parser divides them."""
    table = options_of(program.engine)
    model, options, rest = "", list[GivenOption](), deque(words)
    while rest:
        word = rest.popleft()
        if not _OPTION.match(word):
            model = model or (word if program.names_model else "")
            continue
        name, equals, value = word.partition("=")
        if equals:
            options.append(GivenOption(name, value))
            continue
        least, most = _values_of(name, program, table, rest)
        taken = list[str]()
        while rest and len(taken) < most and (len(taken) < least or not _OPTION.match(rest[0])):
            taken.append(rest.popleft())
        options.append(GivenOption(name, " ".join(taken) if taken else None))
    named = [option.value for option in options if option.name in _MODELS and option.value]
    return (named[-1] if named else model), tuple(options)


def _values_of(name: str, program: Program, table: EngineOptions | None, rest: Collection[str]) -> tuple[int, int]:
    """Return the least and the most values that an option takes. An unknown one takes one word that is no option."""
    own = WRAPPERS.get(name) if program.wrapped else None
    known = None if own else table and table.find(name)
    values = own or (known.values if known else "?")
    if known is not None and table is not None and table.hyphenates and "." in name:
        values = "1"  # a part of an option whose value is JSON
    return {"0": (0, 0), "1": (1, 1), "?": (0, 1)}.get(values, (0, len(rest)))


NODE_OPTIONS = frozenset({
    "--node-rank", "-r", "--dist-init-addr", "--nccl-init-addr", "--master-addr", "--master-port", "--headless",
    "--host", "--port", "--data-parallel-rank", "-dpn", "--data-parallel-start-rank", "-dpr", "--base-gpu-id",
    "--data-parallel-address", "-dpa", "--api-server-count", "-asc",
})  # fmt: skip
"""Options that differ between the nodes of one engine."""


def _of_all_nodes(options: Iterable[GivenOption]) -> tuple[GivenOption, ...]:
    return tuple(sorted({option for option in options if option.name not in NODE_OPTIONS}, key=str))


_MODES = {"kv_producer": "prefill", "kv_consumer": "decode"}

_KV_ROLE = re.compile(r'"kv_role"\s*:\s*"(\w+)"')


def name_of(role: EngineRole) -> str:
    """Return `prefill` or `decode` if the options say so, else `serve`."""
    given = {option.name.replace("_", "-"): option.value or "" for option in role.options}
    mode = given.get("--disaggregation-mode", "")
    if mode in ("prefill", "decode"):
        return mode
    if "--is-prefill-worker" in given:
        return "prefill"
    match = _KV_ROLE.search(given.get("--kv-transfer-config", ""))
    return _MODES.get(match[1], "serve") if match else "serve"
