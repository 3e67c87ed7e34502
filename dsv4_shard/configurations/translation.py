"""Role → the values of a request, and what became of each of its options."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dsv4_shard.catalog.gpus import gpus_called
from dsv4_shard.catalog.options import REPLACED_RUNNERS
from dsv4_shard.configurations.documents import ReadOption, Use
from dsv4_shard.configurations.meanings import (
    NEUTRAL,
    NO_EFFECT_VARIABLES,
    OWN_VARIABLES,
    SHARED_WHOLE,
    SPECIAL,
    UNPLANNED_VARIABLES,
    USED,
    USED_VARIABLES,
    is_of_engine,
    subject_of,
    unplanned,
)
from dsv4_shard.configurations.option_table import KnownOption, options_of
from dsv4_shard.configurations.programs import WRAPPERS
from dsv4_shard.configurations.role import EngineRole, GivenOption
from dsv4_shard.engines import find_engine
from dsv4_shard.text.suggest import as_option
from dsv4_shard.text.units import counted

_REPLACEMENTS = {"deep_gemm_amxf4_mega_moe": "deep_gemm_mega_moe"}
"""Runners that an engine no longer has → the one that holds the same weights."""

_NUMBERS = ("tp", "ep", "dp", "redundant_experts", "nodes", "context", "pp")

_UNSET = "its value is not a number, and the configuration does not set it"

_FALSE = ("", "0", "false", "no")


def is_on(value: str) -> bool:
    """Whether a switch with this value is on."""
    return value.lower() not in _FALSE


_NUMBER = re.compile(r"(\d{1,9})([kKmM]?)", re.ASCII)

_UNITS = {"": 1, "k": 1000, "K": 1 << 10, "m": 10**6, "M": 1 << 20}
"""Suffixes of whole numbers, as vLLM reads them."""

_VERSION = re.compile(r"[:/-]v?(\d+\.\d+\.\d+)(?![\d.])", re.ASCII)


@dataclass(slots=True)
class Translation:
    """What a role asks for: `values` by the names of `plan`'s options, and `rows` with every option of the role.

    `denied` has the reasons why no plan can be what the role asks for, each with the options of `plan` that settle it.
    """

    values: dict[str, Any] = field(default_factory=dict)
    rows: list[ReadOption] = field(default_factory=list)
    denied: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, given: GivenOption, use: Use, note: str = "", settled_by: tuple[str, ...] = ()) -> None:
        """Add a row. What cannot be planned is a reason too, unless an option in `settled_by` is given."""
        self.rows.append(ReadOption(option=given.name, value=given.value, use=use, note=note))
        if use is Use.UNPLANNED:
            self.denied[f"{self.rows[-1].written}: {note}"] = settled_by


def translated(role: EngineRole) -> Translation:
    """Return the request of a role, as far as its options are understood."""
    found = Translation()
    special: dict[str, GivenOption] = {}
    for given in _last(role):
        _read_option(role, given, found, special)
    _read_special(role, special, found)
    for name, value in sorted(role.variables.items()):
        if is_of_engine(name):
            _read_variable(role, GivenOption(name, value), found)
    _read_facts(role, found)
    return found


def _last(role: EngineRole) -> Iterator[GivenOption]:
    """Yield each option once, with its last value, since engines take that."""
    known = {plain_name(role.engine, given.name): given for given in role.options}
    yield from known.values()


def plain_name(engine: str, name: str) -> str:
    """Return an option's plain name; the name as it is written if the engine has no such option."""
    known = _known(engine, name)
    return known.name if known else name


def _known(engine: str, name: str) -> KnownOption | None:
    table = options_of(engine)
    return table.find(name) if table else KnownOption(name, "1")


def _read_option(role: EngineRole, given: GivenOption, found: Translation, special: dict[str, GivenOption]) -> None:
    """Add an option of a role to `found`, or to `special` if it depends on others."""
    engine = role.engine
    if role.wrapped and (given.name in WRAPPERS or given.name.startswith("--dyn-")):
        found.add(given, Use.NO_EFFECT, "the program around the engine")
        return
    if engine == "vllm" and given.name.startswith("-O"):
        found.add(given, Use.NO_EFFECT, "kernels")
        return
    known = _known(engine, given.name)
    if known is None:
        found.add(given, Use.ABSENT, _absent(engine, given.name))
        return
    name = known.name
    if name in USED[engine]:
        _use(USED[engine][name], name, given, found)
    elif name in SPECIAL[engine]:
        special[name] = given._replace(value="false") if known.denies else given
    elif name == "--config":
        found.add(given, Use.UNPLANNED, "no such file beside it, so its options are not known")
    elif name in NEUTRAL and given.value == NEUTRAL[name]:
        found.add(given, Use.NO_EFFECT, "the engine's default")
    elif name == "--eplb-config" and not re.search(r'"num_redundant_experts":\s*0\b', given.value or "") \
            and "num_redundant_experts" in (given.value or ""):  # fmt: skip
        found.add(given, Use.UNPLANNED, "no plan has redundant experts of vLLM")
    elif (why := unplanned(engine, name)) is not None and not known.denies:
        found.add(given, Use.UNPLANNED, f"no plan has {why}")
    elif (about := subject_of(engine, name)) is not None or known.denies:
        found.add(given, Use.NO_EFFECT, about or "turned off")
    else:
        found.add(given, Use.UNKNOWN, f"an option of {find_engine(engine).title}, whose effect on weights is not known")


def _absent(engine: str, name: str) -> str:
    """Say that an engine has no option of this name, and which it may be meant for."""
    table, title = options_of(engine), find_engine(engine).title
    assert table is not None
    near = table.resembling(name)
    meant = f": did you mean {' or '.join(near)}?" if near else ""
    return f"not of {title} {table.version}{meant}"


def _use(option: str, name: str, given: GivenOption, found: Translation) -> None:
    """Add an option whose value the request takes over."""
    if name in NEUTRAL and given.value == NEUTRAL[name]:
        found.add(given, Use.NO_EFFECT, "the engine's default")
        return
    value: Any = _number(given.value) if option in _NUMBERS else (given.value or True)
    if value is None:
        found.add(given, Use.UNPLANNED, _UNSET, (option,))
    elif value in _REPLACEMENTS:
        found.values[option] = _REPLACEMENTS[value]
        found.add(given, Use.USED, f"{as_option(option)} {_REPLACEMENTS[value]}: {REPLACED_RUNNERS[value]}")
    else:
        found.values[option] = value
        found.add(given, Use.USED, _as_ours(option, value))


def _as_ours(option: str, value: Any) -> str:
    return as_option(option) if value is True else f"{as_option(option)} {value}"


def _number(text: str | None) -> int | None:
    match = _NUMBER.fullmatch((text or "").strip())
    return int(match[1]) * _UNITS[match[2]] if match else None


def _read_special(role: EngineRole, special: dict[str, GivenOption], found: Translation) -> None:
    """Add the options that depend on each other: the checkpoint, data parallelism, vLLM's and TensorRT-LLM's EP."""
    tp = found.values.setdefault("tp", 1)
    for name in ("--model-path", "--model", "--revision"):
        if name in special:
            found.add(special[name], Use.USED, "the checkpoint")
    if role.engine == "sglang":
        _read_sglang_dp(special, found)
    for name, option, size in (
        ("--enable-expert-parallel", "ep", tp * found.values.get("dp", 1)),
        ("enable_attention_dp", "dp", tp),
    ):
        given = special.get(name)
        if given is not None:
            on = is_on(given.value or "true")
            if on and size > 1:
                found.values[option] = size
            found.add(
                given, Use.USED if on else Use.NO_EFFECT, _as_ours(option, size) if on else "the engine's default"
            )


def _read_sglang_dp(special: dict[str, GivenOption], found: Translation) -> None:
    """Data parallelism of SGLang: of attention, inside TP, if that is enabled; else replicas of the whole model."""
    size, attention = special.get("--dp-size"), special.get("--enable-dp-attention")
    if attention is not None:
        dp = found.values.get("dp") or (_number(size.value) if size else None) or 1
        found.values["dp"] = dp
        found.add(attention, Use.USED, _as_ours("dp", dp))
    if size is None:
        return
    number = _number(size.value)
    if number is None:
        found.add(size, Use.UNPLANNED, _UNSET, ("dp",))
    elif "dp" in found.values:
        found.add(size, Use.USED, _as_ours("dp", found.values["dp"]))
    elif number == 1:
        found.add(size, Use.NO_EFFECT, "the engine's default")
    else:
        found.add(size, Use.USED, f"{number} replicas of the whole model, each with the ranks of this plan")


def _read_variable(role: EngineRole, given: GivenOption, found: Translation) -> None:
    """Add a variable of the engine."""
    table, value = options_of(role.engine), (given.value or "").lower()
    if given.name == SHARED_WHOLE and role.engine == "sglang":
        whole = is_on(value)
        if whole:
            found.values["shared_experts"] = "whole"
        found.add(given, Use.USED, "--shared-experts whole" if whole else "the engine's default")
    elif given.name in USED_VARIABLES:
        _use(USED_VARIABLES[given.name], given.name, given, found)
    elif given.name in UNPLANNED_VARIABLES and is_on(value):
        found.add(given, Use.UNPLANNED, f"no plan has {UNPLANNED_VARIABLES[given.name]}")
    elif given.name in OWN_VARIABLES:
        found.add(given, Use.USED, "the plan sets it itself where the layout needs it")
    elif NO_EFFECT_VARIABLES.fullmatch(given.name) or given.name in UNPLANNED_VARIABLES:
        found.add(given, Use.NO_EFFECT, "variable")
    elif table is not None and given.name not in table.variables:
        found.add(given, Use.NO_EFFECT, f"{find_engine(role.engine).title} {table.version} does not read it")
    else:
        found.add(given, Use.UNKNOWN, "a variable of the engine, whose effect on weights is not known")


def _read_facts(role: EngineRole, found: Translation) -> None:
    """Add what a role says beside its options: hardware, and the engine's version."""
    found.values["engine"] = role.engine
    if role.nodes and role.nodes > 1:
        found.values.setdefault("nodes", role.nodes)
    _check_gpus(role, found)
    if role.sized_by_launcher and "dp" not in found.values:
        found.denied["the launcher adds the number of data-parallel replicas: add it with --dp N"] = ("dp",)
    if len(gpus := gpus_called(role.gpu)) == 1:
        found.values["gpu"] = gpus[0].name
    match = _VERSION.search(role.image.partition("@")[0])
    engine = find_engine(role.engine)
    if match is not None and not role.wrapped and engine.versions:  # a wrapper's image has the version of the wrapper
        is_known = match[1] in engine.versions
        if is_known:
            found.values["engine_version"] = match[1]
        note = f"--engine-version {match[1]}" if is_known else f"planned for {engine.title} {engine.versions[0]}"
        found.add(GivenOption("image", role.image), Use.USED if is_known else Use.UNKNOWN, note)


def _check_gpus(role: EngineRole, found: Translation) -> None:
    """Deny a layout on more GPUs than the nodes of the role have, if both are known."""
    sizes = {name: found.values.get(name, 1) for name in ("tp", "dp", "pp")}
    replicated = sizes["dp"] if find_engine(role.engine).dp_multiplies else 1
    needed = sizes["tp"] * sizes["pp"] * replicated
    nodes = found.values.get("nodes", role.nodes or 1)
    if role.gpus_per_node and needed > role.gpus_per_node * nodes:
        have = f"{counted(nodes, 'node')} of {counted(role.gpus_per_node, 'GPU')}"
        found.denied[f"the layout is for {needed} GPUs, and the configuration has {have}"] = ("nodes", "tp", "dp")
