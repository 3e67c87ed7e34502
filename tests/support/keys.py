"""Keys and certificates for signatures, made anew for each test run."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.now(UTC)

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """Files of a key and, perhaps, of its certificate."""

    key: Path
    public: Path
    certificate: Path


def write_key(folder: Path, name: str, key: Any = None, password: bytes | None = None) -> Pair:
    """Write a private key and its public key in PEM form."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    cipher = BestAvailableEncryption(password) if password else NoEncryption()
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.pub", folder / f"{name}.crt")
    pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, cipher))
    pair.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return pair


class Authority:
    """A root or intermediate certificate that signs others."""

    def __init__(self, folder: Path, name: str, issuer: "Authority | None" = None) -> None:
        self.folder, self.key, self.name = folder, ec.generate_private_key(ec.SECP256R1()), named(name)
        signer = issuer or self
        builder = base(self.name, signer.name, self.key.public_key(), NOW - 1000 * DAY, NOW + 1000 * DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.certificate = folder / f"{name}.crt"
        self.certificate.write_bytes(builder.sign(signer.key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def issue(
        self, name: str, start: datetime = NOW - DAY, stop: datetime = NOW + DAY, use: x509.ExtensionType | None = None
    ) -> Pair:
        """A key with a certificate of this authority, valid from `start` to `stop`."""
        key = ec.generate_private_key(ec.SECP384R1())
        pair = write_key(self.folder, name, key)
        builder = base(named(name), self.name, key.public_key(), start, stop)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(
            use or x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False
        )
        pair.certificate.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM))
        return pair


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def base(subject: x509.Name, issuer: x509.Name, key: Any, start: datetime, stop: datetime) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(stop)
