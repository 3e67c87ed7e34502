"""model.sig: the files that a signature is of, and its certificates, read from untrusted JSON.

The file is a Sigstore bundle. Its DSSE envelope has an in-toto statement of model_signing with a digest for each file.
`methods` lets the library verify the envelope, and that it reads the same files in it.

    https://github.com/ossf/model-signing-spec
    https://docs.sigstore.dev/about/bundle
"""

import base64
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from dsv4_shard.errors import BadSignature
from dsv4_shard.limits import SIGNATURE
from dsv4_shard.text.document_problems import first_error
from dsv4_shard.text.sanitize import short
from dsv4_shard.text.strict_json import BadJson, parse_json

PREDICATE = "https://model_signing/signature/v1.0"

Path = Annotated[str, StringConstraints(min_length=1, max_length=4096)]

Hex = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2}){1,64}$")]


How = Literal["key", "certificate", "sigstore"]


_NAME_A_SIGNATURE = "Name a file that `dsv4-shard sign` or model_signing wrote."


class Resource(BaseModel, frozen=True):
    """A signed file, or a part of it (`NAME:START:STOP`), and its digest."""

    name: Path
    algorithm: str
    digest: Hex


class Serialization(BaseModel):
    """How the digests were made: of whole files, or of `shard_size` bytes each. `ignore_paths` are not signed."""

    method: Literal["files", "shards"]
    hash_type: Literal["sha256", "blake3"]
    allow_symlinks: bool
    shard_size: Annotated[int, Field(gt=0)] | None = None
    ignore_paths: tuple[Path, ...] = ()

    @property
    def is_of_whole_files(self) -> bool:
        """Whether each digest is the SHA-256 of a file."""
        return (self.method, self.hash_type) == ("files", "sha256")

    def file_of(self, resource: Resource) -> str:
        """Return the name of the file that a resource is, or is a part of."""
        return resource.name if self.method == "files" else resource.name.rsplit(":", 2)[0]


class _Predicate(BaseModel):
    serialization: Serialization
    resources: tuple[Resource, ...]


class _Subject(BaseModel):
    name: str


class _Statement(BaseModel):
    predicateType: str
    subject: Annotated[tuple[_Subject, ...], Field(min_length=1)]
    predicate: _Predicate


class _Raw(BaseModel):
    rawBytes: str


class _Chain(BaseModel):
    certificates: tuple[_Raw, ...]


class _Key(BaseModel):
    hint: str | None = None


class _Material(BaseModel):
    publicKey: _Key | None = None
    x509CertificateChain: _Chain | None = None
    certificate: _Raw | None = None


class _Envelope(BaseModel):
    payload: str


class _Bundle(BaseModel):
    verificationMaterial: _Material
    dsseEnvelope: _Envelope


class Bundle:
    """A signature, parsed and not verified.

    Attributes:
        raw: The bytes of the file.
        signed_as: The name of the folder that was signed.
        serialization: How the digests were made.
        resources: The signed files.
        certificates: The certificates in DER, the signer's first.
        how: The method that it was made with.
    """

    def __init__(self, raw: bytes, where: str) -> None:
        """Parse a signature. Raises BadSignature, with `where` in the message."""
        self.raw = raw
        try:
            bundle = _Bundle.model_validate(parse_json(raw, SIGNATURE))
            content = parse_json(_decoded(bundle.dsseEnvelope.payload), SIGNATURE)
            _refuse_other_predicates(content)
            statement = _Statement.model_validate(content)
            material = bundle.verificationMaterial
            chain = material.x509CertificateChain.certificates if material.x509CertificateChain else ()
            self.certificates = [_decoded(certificate.rawBytes) for certificate in chain]
        except BadJson as error:
            raise BadSignature(f"{where}: not a signature of model_signing: {error}", hint=_NAME_A_SIGNATURE) from None
        except ValidationError as error:
            raise BadSignature(
                f"{where}: not a signature of model_signing: {first_error(error)}", hint=_NAME_A_SIGNATURE
            ) from None
        self.signed_as = statement.subject[0].name
        self.serialization = statement.predicate.serialization
        self.resources = statement.predicate.resources
        self.how: How = "certificate" if chain else "key" if material.publicKey else "sigstore"


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise BadJson("its base64 is damaged") from None


def _refuse_other_predicates(statement: Any) -> None:
    kind = statement.get("predicateType") if isinstance(statement, dict) else None
    if kind != PREDICATE:
        raise BadJson(f"it states {short(kind)}, {json.dumps(PREDICATE)} is due")
