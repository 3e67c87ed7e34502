"""Keys, certificates and tokens that the user names: read within limits, and checked before the library gets them.

The library's own messages for what is wrong with them differ from release to release, and some say nothing.
"""

import contextlib
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv4_shard.errors import BadKey, ReadFailed, SignatureRefused
from dsv4_shard.limits import KEY, TRUST, Limit
from dsv4_shard.signing.library import first_line
from dsv4_shard.storage import read_regular
from dsv4_shard.text.sanitize import short_name

if TYPE_CHECKING:
    from cryptography import x509

CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""The curves that model_signing signs with."""

_MAKE_KEY = "Make one: `openssl ecparam -name prime256v1 -genkey -noout -out key.pem`."


def name_of_key(key: Any) -> str:
    """Return the SHA-256 of a public key's PEM form, by which model_signing names it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    raw = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return f"key {hashlib.sha256(raw).hexdigest()}"


def name_of_certificate(certificate: "x509.Certificate") -> str:
    """Return the subject of a certificate, for messages."""
    return short_name(certificate.subject.rfc4514_string())


def content(path: Path, limit: Limit = KEY) -> bytes:
    """Return the content of a file that the user named. Raises BadKey if it cannot be read or is beyond the limit."""
    try:
        return read_regular(path, limit)
    except ReadFailed as error:
        raise BadKey(str(error), hint="Name a readable file with a key, a certificate or a token.") from None


def private_key(path: Path) -> Any:
    """Return the private key of a PEM file. Raises BadKey if it is none, is encrypted, or is on no curve of CURVES."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(content(path), None)
    except BadKey:
        raise
    except TypeError:
        raise BadKey(f"{path}: encrypted with a password, which model_signing cannot ask for",
                     hint="Sign with a copy without one: `openssl pkey -in KEY -out COPY`.") from None  # fmt: skip
    except Exception as error:
        raise BadKey(f"{path}: not a private key in PEM form: {first_line(error)}") from None
    return _on_a_curve(key, path)


def public_key(path: Path) -> Any:
    """Return the public key of a PEM file. Raises BadKey if it is none, or is on no curve of CURVES."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(content(path))
    except BadKey:
        raise
    except Exception as error:
        raise BadKey(f"{path}: not a public key in PEM form: {first_line(error)}") from None
    return _on_a_curve(key, path)


def _on_a_curve(key: Any, path: Path) -> Any:
    name = getattr(getattr(key, "curve", None), "name", None)
    if name not in CURVES:
        kind = name or type(key).__name__.removesuffix("PrivateKey").removesuffix("PublicKey").strip("_")
        raise BadKey(f"{path}: a key of {kind}; model_signing takes {', '.join(CURVES)}",
                     hint=_MAKE_KEY)  # fmt: skip
    return key


def certificates(path: Path) -> "list[x509.Certificate]":
    """Return the certificates of a PEM file, in its order. Raises BadKey if there are none."""
    from cryptography.x509 import load_pem_x509_certificates

    try:
        return load_pem_x509_certificates(content(path))
    except BadKey:
        raise
    except Exception as error:
        raise BadKey(f"{path}: no certificate in PEM form: {first_line(error)}") from None


def parsed(raw: bytes, where: Path) -> "x509.Certificate":
    """Return the certificate in DER form of a signature. Raises SignatureRefused, with `where`, if it is damaged."""
    from cryptography.x509 import load_der_x509_certificate

    try:
        return load_der_x509_certificate(raw)
    except Exception as error:
        raise SignatureRefused(f"{where}: holds a damaged certificate: {first_line(error)}") from None


def fault_of(certificate: "x509.Certificate") -> str | None:
    """Return why a certificate is not valid today; None if it is. model_signing does not look at today's date."""
    now = datetime.now(UTC)
    name = name_of_certificate(certificate)
    if now > certificate.not_valid_after_utc:
        return f"the certificate of {name} expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
    if now < certificate.not_valid_before_utc:
        return f"the certificate of {name} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} on"
    return None


def may_sign(certificate: "x509.Certificate") -> bool:
    """Return whether model_signing will accept signatures by this certificate."""
    from cryptography import x509

    with contextlib.suppress(x509.ExtensionNotFound):
        if certificate.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            return True
    with contextlib.suppress(x509.ExtensionNotFound):
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        return x509.oid.ExtendedKeyUsageOID.CODE_SIGNING in uses
    return False


def token_in(path: Path) -> str:
    """Return the OpenID Connect token in a file. Raises BadKey if it cannot be read or is not ASCII."""
    try:
        return content(path).decode("ascii").strip()
    except UnicodeDecodeError:
        raise BadKey(f"{path}: not a token: it is not ASCII") from None


def check_trust(path: Path | None) -> None:
    """Raise BadKey if a trust configuration is named that cannot be read or is beyond the limit."""
    if path is not None:
        content(path, TRUST)
