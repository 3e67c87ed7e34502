"""Documents of earlier schema versions → the newest, a step for each version.

A document is accepted by its `schema_version`, whatever version of the tool wrote it. `docs/reference/versions.md` says
what a schema version guarantees.
"""

from collections.abc import Callable, Mapping
from typing import Any

from dsv4_shard.errors import NewerSchema
from dsv4_shard.text.sanitize import short
from dsv4_shard.text.strict_json import BadJson

JsonObject = dict[str, Any]

Steps = Mapping[int, Callable[[JsonObject], JsonObject]]
"""For each earlier schema version, what makes a document of the next version of it."""


def check_schema(version: object, what: str, where: object, newest: int) -> int:
    """The schema version of a document. Raises NewerSchema, and BadJson for what no version is.

    `what` and `where` say in the message which document it is.
    """
    if type(version) is int and version > newest:
        raise NewerSchema(
            f"{where}: this {what} has schema version {short(version)}, and the newest that this version reads is "
            f"{newest}: upgrade dsv4-shard"
        )
    if type(version) is not int or version < 1:
        raise BadJson(f"{what} schema {short(version)}: there is no such version")
    return version


def upgraded(document: JsonObject, version: int, steps: Steps) -> JsonObject:
    """A document of schema `version` as the newest version has it. A malformed one stays so."""
    while version in steps:
        document, version = steps[version](document), version + 1
    return document
