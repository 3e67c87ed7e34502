"""provenance.json: what a run wrote, from what and how, as an in-toto statement with SLSA provenance.

    https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
    https://slsa.dev/spec/v1.0/provenance

Each run writes one statement. Runs of some ranks have the ranks in its name, so that shares that join keep theirs. It
holds no time, host or path but the name of the checkpoint: the same run writes the same bytes. `verify --against`
derives them again.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from dsv4_shard.checkpoint import Checkpoint, Origin
from dsv4_shard.limits import STATEMENT
from dsv4_shard.text.document import Document
from dsv4_shard.text.document_problems import first_error
from dsv4_shard.text.strict_json import BadJson, check_size
from dsv4_shard.version import __version__

BUILDER: Literal["urn:dsv4-shard"] = "urn:dsv4-shard"
"""Identifies the tool. Whoever runs it is known by the signature, not by the statement."""

BuildType = Literal["urn:dsv4-shard:reshard:1", "urn:dsv4-shard:merge:1"]
"""What a run did. The number is the version of what the parameters mean."""

RESHARD: BuildType = "urn:dsv4-shard:reshard:1"

MERGE: BuildType = "urn:dsv4-shard:merge:1"

CHECKPOINT, CONFIG, RANKS = "checkpoint", "config.json", "ranks/"
"""Names of dependencies: the place of the checkpoint, its config, and the beginning of those of rank files."""

_NAME = re.compile(r"provenance(\.ranks-[0-9a-f+-]+)?\.json")


def statement_name(share: str) -> str:
    """Return the name of a run's statement. `share` names its ranks as `joining.share_name` does; empty for all."""
    return f"provenance.ranks-{share.replace(',', '+')}.json" if share else "provenance.json"


def is_statement(name: str) -> bool:
    """Return whether a file of a result is a statement, by its name."""
    return _NAME.fullmatch(name) is not None


class _Spec(Document):
    """A part of the statement, with the keys of the specification."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class ResourceDescriptor(_Spec):
    """A file, or the place of a checkpoint.

    Algorithms in `digest`: `sha256`; `gitCommit`, of the repository; `headerXxh3128`, the xxh3-128 of a weight file's
    header; `canonicalJsonSha256`, the SHA-256 of config.json with sorted keys. `nbytes` in `annotations` is the size.
    """

    name: str
    uri: str | None = None
    digest: dict[str, str] = Field(default={})
    annotations: dict[str, int] | None = None


class BuildDefinition(_Spec):
    """What was asked for, what followed from it, and what the files were made from.

    A `sha256` in `resolved_dependencies` is the one that the Hub lists for the commit, or that of the ranks' manifest.
    """

    build_type: BuildType
    external_parameters: dict[str, Any]
    internal_parameters: dict[str, Any]
    resolved_dependencies: tuple[ResourceDescriptor, ...]


class Builder(_Spec):
    """The tool and its version."""

    id: Literal["urn:dsv4-shard"]
    version: dict[str, str]


class RunDetails(_Spec):
    """Who made the files."""

    builder: Builder


class Predicate(_Spec):
    """SLSA provenance."""

    build_definition: BuildDefinition
    run_details: RunDetails


class Statement(_Spec):
    """What a run wrote (`subject`), from what and how (`predicate`)."""

    type: Literal["https://in-toto.io/Statement/v1"] = Field(default="https://in-toto.io/Statement/v1", alias="_type")
    subject: tuple[ResourceDescriptor, ...]
    predicate_type: Literal["https://slsa.dev/provenance/v1"] = "https://slsa.dev/provenance/v1"
    predicate: Predicate

    @property
    def definition(self) -> BuildDefinition:
        return self.predicate.build_definition

    @property
    def version(self) -> str | None:
        """The version of the tool that wrote the files."""
        return self.predicate.run_details.builder.version.get("dsv4-shard")

    @property
    def ranks(self) -> tuple[int, ...] | None:
        """The ranks that the run wrote; None if the statement has no list of ranks."""
        ranks = self.definition.external_parameters.get("ranks", [0])
        is_list = isinstance(ranks, list) and all(type(rank) is int for rank in ranks)
        return tuple(ranks) if is_list else None

    def to_bytes(self) -> bytes:
        """The bytes of provenance.json."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode() + b"\n"


def make_statement(
    build_type: BuildType,
    asked: Mapping[str, Any],
    followed: Mapping[str, Any],
    inputs: Sequence[ResourceDescriptor],
    sha256: Mapping[str, str],
    version: str = __version__,
) -> Statement:
    """Return the statement of a run.

    Args:
        build_type: What the run did.
        asked: Parameters of the user.
        followed: What the run derived from them.
        inputs: What it read; see `inputs_of`.
        sha256: Name -> SHA-256 of each file that it wrote.
        version: The version of the tool that wrote the files.
    """
    return Statement(
        subject=tuple(ResourceDescriptor(name=name, digest={"sha256": sha256[name]}) for name in sorted(sha256)),
        predicate=Predicate(
            build_definition=BuildDefinition(
                build_type=build_type,
                external_parameters=dict(asked),
                internal_parameters=dict(followed),
                resolved_dependencies=tuple(inputs),
            ),
            run_details=RunDetails(builder=Builder(id=BUILDER, version={"dsv4-shard": version})),
        ),
    )


def read_statement(raw: bytes) -> Statement:
    """Parse a statement. Raises BadJson for anything that `make_statement` does not make."""
    try:
        check_size(raw, STATEMENT)
        return Statement.model_validate_json(raw)
    except ValidationError as error:
        raise BadJson(first_error(error)) from None


def inputs_of(checkpoint: Checkpoint, origin: Origin) -> tuple[ResourceDescriptor, ...]:
    """Return what a run of this checkpoint reads: its place and files, and the rank files that it is put together from.

    `origin` is its fingerprint.
    """
    return (*_place(checkpoint, origin), *parts_of(checkpoint), *_files(checkpoint, origin))


def parts_of(checkpoint: Checkpoint) -> Iterator[ResourceDescriptor]:
    """Yield the rank files that a checkpoint is put together from; none if its files are there themselves."""
    for part in checkpoint.source.parts:
        digest = {"sha256": part.sha256, "headerXxh3128": part.header_digest}
        yield _described(RANKS + part.name, digest, part.nbytes)


def _place(checkpoint: Checkpoint, origin: Origin) -> Iterable[ResourceDescriptor]:
    uri = checkpoint.source.uri
    if uri is not None:
        digest = {"gitCommit": origin.revision} if origin.revision else {}
        yield ResourceDescriptor(name=CHECKPOINT, uri=uri, digest=digest)


def _files(checkpoint: Checkpoint, origin: Origin) -> Iterator[ResourceDescriptor]:
    listed = checkpoint.source.sha256_listed
    yield ResourceDescriptor(name=CONFIG, digest={"canonicalJsonSha256": origin.config_digest})
    for file in origin.files:
        digest = {"sha256": listed.get(file.name), "headerXxh3128": file.header_digest}
        yield _described(file.name, digest, file.nbytes)


def _described(name: str, digest: Mapping[str, str | None], nbytes: int) -> ResourceDescriptor:
    known = {algorithm: value for algorithm, value in digest.items() if value is not None}
    return ResourceDescriptor(name=name, digest=known, annotations={"nbytes": nbytes})
