"""Text → roles: a command line, a script, an option file, a manifest or a recipe, by its content."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, count, islice
from pathlib import Path
from typing import NamedTuple

from dsv4_shard.configurations.manifests import KINDS, is_manifest, manifest_roles
from dsv4_shard.configurations.meanings import USED, is_of_engine
from dsv4_shard.configurations.programs import PROGRAMS, roles_in
from dsv4_shard.configurations.recipes import (
    is_llm_d,
    is_srt_slurm,
    llm_d_roles,
    option_file_role,
    options_from,
    srt_slurm_roles,
)
from dsv4_shard.configurations.role import EngineRole
from dsv4_shard.configurations.yaml_documents import yaml_documents
from dsv4_shard.errors import UsageError
from dsv4_shard.limits import CONFIGURATION, CONFIGURED_OPTIONS, CONFIGURED_ROLES
from dsv4_shard.storage import read_regular
from dsv4_shard.text.sanitize import short, short_name

COMMAND_LINE = "command line"

_YAML = (".yaml", ".yml", ".json")


class Configuration(NamedTuple):
    """What was read: its name, the format, and its roles, at least one."""

    source: str
    format: str
    roles: tuple[EngineRole, ...]


def read_configuration(text_or_file: str, engine: str | None = None) -> Configuration:
    """Read a file, or a command line.

    Args:
        text_or_file: The path of a file, or a command line.
        engine: The engine of an option file, if its keys do not tell.

    Raises:
        UsageError: It is too large, malformed, or starts no engine that is known.
        ReadFailed: The file cannot be read.
    """
    if any("\ud800" <= char <= "\udfff" for char in text_or_file):  # how Python passes on bytes that are not UTF-8
        raise UsageError(f"--from {short(text_or_file)}: not text in UTF-8", hint=_WANTED)
    path = Path(os.path.expanduser(text_or_file))
    if os.path.isfile(path):  # of a name that is too long, Path.is_file raises an error
        raw = read_regular(path, CONFIGURATION)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise UsageError(f"{path}: not text in UTF-8", hint=_WANTED) from None
        is_yaml = path.suffix.lower() in _YAML
        form, roles = _of_yaml(text, str(path), engine) if is_yaml else ("script", roles_in(text, {}))
        return _checked(str(path), form, (_with_option_file(role, path.parent) for role in roles))
    if not text_or_file.strip() or " " not in text_or_file.strip():
        raise UsageError(f"--from {short(text_or_file)}: no such file", hint=_WANTED)
    if len(text_or_file) > CONFIGURATION.nbytes:
        raise UsageError(
            f"--from: {len(text_or_file):,} characters, at most {CONFIGURATION.nbytes:,} are read", hint=_WANTED
        )
    given = (_with_option_file(role, None) for role in roles_in(text_or_file, {}))
    return _checked(COMMAND_LINE, COMMAND_LINE, given)


def _with_option_file(role: EngineRole, folder: Path | None) -> EngineRole:
    """Return a role with the options of its `--config` file before its own; unchanged if there is no such file.

    With `folder`, that of a configuration, other files than those in it are not read: a path beyond it is mostly one in
    a container, and what is there on this machine is another file.
    """
    given = next((option for option in role.options if option.name == "--config" and option.value), None)
    path = (folder or Path()) / (given.value or "") if given else None
    if path is None or not os.path.isfile(path) or (folder is not None and not _is_in(folder, path)):
        return role
    documents = yaml_documents(read_regular(path, CONFIGURATION).decode(errors="replace"), str(path))
    options = options_from(documents[0], role.engine) if documents and isinstance(documents[0], dict) else ()
    models = [option.value for option in options if option.name in ("--model-path", "--model") and option.value]
    own = tuple(option for option in role.options if option is not given)
    return replace(role, options=(*options, *own), model=role.model or (models[-1] if models else ""))


def _is_in(folder: Path, path: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


_WANTED = (
    "Name a script, an option file, a Kubernetes manifest or a recipe (YAML), or give a command line with one of: "
    + ", ".join(dict.fromkeys(" ".join(program.words).removeprefix("-m ") for program in PROGRAMS))
    + "."
)


def _of_yaml(text: str, where: str, engine: str | None) -> tuple[str, Iterable[EngineRole]]:
    """Return the format of YAML, and its roles."""
    documents = yaml_documents(text, where)
    for document in documents:
        if is_srt_slurm(document):
            return "srt-slurm recipe", srt_slurm_roles(document)
        if is_llm_d(document):
            return "llm-d recipe", llm_d_roles(document)
    if any(map(is_manifest, documents)):
        kinds = dict.fromkeys(document.get("kind") for document in documents if is_manifest(document))
        serving = ", ".join(str(kind) for kind in kinds if kind in KINDS) or "manifest"
        return f"Kubernetes {serving}", chain.from_iterable(map(manifest_roles, documents))
    role = option_file_role(documents[0], engine) if len(documents) == 1 else None
    if role is None:
        raise UsageError(f"{where}: neither a manifest, a recipe, nor the options of one engine",
                         hint="Name the engine of an option file with --engine. " + _WANTED)  # fmt: skip
    return "option file", [role]


def _checked(source: str, form: str, found: Iterable[EngineRole]) -> Configuration:
    """Return the configuration with a name of its own for each role."""
    try:
        roles = list(islice(found, CONFIGURED_ROLES.count + 1))
    except UsageError as error:
        raise UsageError(f"{source}: {error}", hint=error.hint) from None
    if not roles:
        raise UsageError(f"{source}: starts no engine that is known here", hint=_WANTED)
    if len(roles) > CONFIGURED_ROLES.count:
        raise UsageError(f"{source}: more roles than the {CONFIGURED_ROLES.count} that are read", hint=_FEWER)
    options = sum(len(role.options) + sum(map(is_of_engine, role.variables)) for role in roles)
    if options > CONFIGURED_OPTIONS.count:
        raise UsageError(f"{source}: {options:,} options and variables, at most {CONFIGURED_OPTIONS.count:,} are read",
                         hint=_FEWER)  # fmt: skip
    for role in roles:
        if role.engine not in USED:
            raise UsageError(f"{source}: {short_name(role.engine)} is no engine whose options are known",
                             hint=f"Known: {', '.join(USED)}.")  # fmt: skip
    return Configuration(source, form, tuple(_named_apart(roles)))


_FEWER = "Name a file with one deployment, or give the command line of one role."


def _named_apart(roles: Iterable[EngineRole]) -> Iterator[EngineRole]:
    """Yield roles with a name of its own for each: `decode`, `decode-2`."""
    taken = set[str]()
    for role in roles:
        names = chain([role.name], (f"{role.name}-{number}" for number in count(2)))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        yield replace(role, name=name)
