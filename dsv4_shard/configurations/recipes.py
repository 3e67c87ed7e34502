"""Recipes of Slurm launchers, and option files of the engines → roles.

srt-slurm's recipes, which InferenceX has too, name a backend, a mapping of options for each role, and the nodes and
workers of each. InferenceX's recipes for llm-d have a few options for each role, and the rest as a command line.
An option file (`--config` of SGLang and vLLM) is one mapping of options.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from dsv4_shard.configurations.option_table import options_of
from dsv4_shard.configurations.programs import Program, name_of, parsed
from dsv4_shard.configurations.role import EngineRole, GivenOption
from dsv4_shard.configurations.shell_text import commands_of
from dsv4_shard.configurations.yaml_documents import mapping, number_at, text_at

_ROLES = {"prefill": "prefill", "decode": "decode", "aggregated": "agg"}
"""Key of a role's options in srt-slurm → the word for it in `resources`."""


def is_srt_slurm(document: Any) -> bool:
    """Whether a document is a recipe of srt-slurm."""
    engine = text_at(document, "backend", "type")
    return bool(engine) and bool(mapping(document, "backend", f"{engine}_config"))


def srt_slurm_roles(document: Any) -> Iterator[EngineRole]:
    """Yield the roles of a recipe of srt-slurm."""
    backend, resources = mapping(document, "backend"), mapping(document, "resources")
    engine = text_at(backend, "type")
    repo, revision = text_at(document, "identity", "model", "repo"), text_at(document, "identity", "model", "revision")
    for name, word in _ROLES.items():
        given = mapping(backend, f"{engine}_config", name)
        if not given:
            continue
        workers, nodes = number_at(resources, f"{word}_workers"), number_at(resources, f"{word}_nodes")
        yield EngineRole(
            name=name,
            engine=engine,
            options=options_from(given, engine),
            variables=_texts(mapping(backend, f"{name}_environment")),
            model=(f"{repo}@{revision}" if revision else repo) or text_at(document, "model", "path"),
            gpu=text_at(resources, "gpu_type"),
            gpus_per_node=number_at(resources, "gpus_per_node"),
            nodes=max(1, nodes // workers) if nodes and workers else None,
            replicas=workers or 1,
            image=text_at(document, "model", "container"),
        )


def is_llm_d(document: Any) -> bool:
    """Whether a document is InferenceX's recipe for llm-d."""
    return text_at(document, "kind") == "EndpointPickerConfig" and any(
        "extra-args" in mapping(document, name) for name in _ROLES
    )


def llm_d_roles(document: Any) -> Iterator[EngineRole]:
    """Yield the roles of InferenceX's recipe for llm-d. Its launcher adds the number of replicas."""
    for name in _ROLES:
        given = mapping(document, name)
        if not given:
            continue
        variables = _texts(mapping(given, "env"))
        options = [GivenOption("--tensor-parallel-size", text_at(given, "tp"))] if "tp" in given else []
        options += [GivenOption("--enable-expert-parallel")] if given.get("enable-expert-parallel") is True else []
        for command in commands_of(text_at(given, "extra-args"), variables):
            options += parsed(command.words, Program((), "vllm"))[1]
        is_spread = given.get("enable-expert-parallel") is True
        yield EngineRole(name, "vllm", tuple(options), variables, sized_by_launcher=is_spread)


def option_file_role(document: Any, engine: str | None) -> EngineRole | None:
    """Return the role of an option file; None if its keys are not options of one engine.

    Without `engine`, it is the one that has the most keys among its options, if only one has.
    """
    if not isinstance(document, dict):
        return None
    known = {name: _known_keys(document, name) for name in ((engine,) if engine else ("sglang", "vllm"))}
    most = max(known.values())
    best = [name for name, number in known.items() if number == most]
    if most == 0 or len(best) > 1:
        return None
    options = options_from(document, best[0])
    models = [option.value for option in options if option.name in ("--model-path", "--model") and option.value]
    role = EngineRole("", best[0], options, model=models[-1] if models else "")
    return EngineRole(name_of(role), role.engine, role.options, model=role.model)


def _known_keys(document: Mapping[Any, Any], engine: str) -> int:
    table = options_of(engine)
    return sum(table.find(f"--{key}") is not None for key in document) if table else 0


def options_from(given: Mapping[str, Any], engine: str) -> tuple[GivenOption, ...]:
    """Return a mapping as options: a true value is an option alone, a false one none, a mapping or list is JSON."""
    options = []
    for key, value in given.items():
        name = str(key) if engine == "trtllm" else f"--{key}"
        if value is True and engine != "trtllm":
            options.append(GivenOption(name))
        elif value is not False and value is not None:
            is_text = isinstance(value, str | int | float) and not isinstance(value, bool)
            options.append(GivenOption(name, str(value) if is_text else json.dumps(value, default=str)))
    return tuple(options)


def _texts(given: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in given.items() if isinstance(value, str | int | float)}
