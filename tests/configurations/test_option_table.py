"""The table of the engines' options: names are found as the engines' parsers find them."""

import argparse

import pytest

from dsv4_shard.configurations.meanings import (
    NO_EFFECT,
    SPECIAL,
    UNPLANNED,
    USED,
    subject_of,
    unplanned,
)
from dsv4_shard.configurations.option_table import EngineOptions, options_of

ENGINES = ("sglang", "vllm")

PRESHARDED_KEY = {
    "--tp-size", "--dp-size", "--ep-size", "--pp-size", "--moe-dense-tp-size", "--moe-dp-size", "--enable-dp-lm-head",
    "--dtype", "--quantization", "--ep-num-redundant-experts", "--enable-eplb", "--init-expert-location",
}  # fmt: skip
"""Options in the key of the cache of SGLang's `presharded` loader: they decide what a rank holds."""


def table(engine: str) -> EngineOptions:
    found = options_of(engine)
    assert found is not None
    return found


def parser_of(engine: str) -> argparse.ArgumentParser:
    """argparse's parser with the names of an engine's options."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    names: dict[str, list[str]] = {}
    for name, option in table(engine).options.items():
        names.setdefault(option.name if not option.denies else f"no {option.name}", []).append(name)
    for dest, aliases in names.items():
        parser.add_argument(*aliases, dest=dest, nargs="?", const="given")
    return parser


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [
    "--tp", "--dp", "--pp", "--ep", "--speculative-algo", "--tensor-parallel", "--cuda-graph-max-bs", "--max-model",
    "--moe-runner", "--no-such", "--nnodes", "-tp",
])  # fmt: skip
def test_the_beginning_of_a_name_is_found_as_argparse_finds_it(engine: str, name: str) -> None:
    try:
        known, unknown = parser_of(engine).parse_known_args([name])
    except (argparse.ArgumentError, SystemExit):  # ambiguous
        known, unknown = argparse.Namespace(), [name]
    theirs = None if unknown else next(dest for dest, value in vars(known).items() if value is not None)
    ours = table(engine).find(name)
    assert (ours and ours.name) == theirs


def test_only_vllm_takes_underscores_and_dots() -> None:
    assert table("vllm").find("--kv_transfer_config") == table("vllm").find("--kv-transfer-config")
    dotted = table("vllm").find("--compilation-config.mode")
    assert dotted is not None
    assert dotted.name == "--compilation-config"
    assert table("sglang").find("--tp_size") is None


@pytest.mark.parametrize("engine", ENGINES)
def test_every_option_that_is_used_is_one_of_the_engine(engine: str) -> None:
    plain = {option.name for option in table(engine).options.values()}
    assert plain >= {*USED[engine], *SPECIAL[engine]}


@pytest.mark.parametrize("engine", ENGINES)
def test_an_option_has_one_meaning(engine: str) -> None:
    for name in {option.name for option in table(engine).options.values()}:
        meant = [name in USED[engine], name in SPECIAL[engine], bool(unplanned(engine, name))]
        assert sum(meant) <= 1, name


@pytest.mark.parametrize("engine", ENGINES)
def test_every_subject_and_reason_is_of_some_option(engine: str) -> None:
    plain = {option.name for option in table(engine).options.values()}
    assert {subject_of(engine, name) for name in plain} >= {one.about for one in NO_EFFECT[engine]}
    assert {unplanned(engine, name) for name in plain} >= {one.why for one in UNPLANNED[engine]}


def test_what_decides_a_rank_in_sglangs_own_cache_is_used_or_cannot_be_planned() -> None:
    """But for EPLB, which moves experts after loading, and dense layers, which V4 has not."""
    other = {name for name in PRESHARDED_KEY if name not in (*USED["sglang"], *SPECIAL["sglang"])}
    other = {name for name in other if unplanned("sglang", name) is None}
    assert other == {"--enable-eplb", "--moe-dense-tp-size"}
