"""How to sign, and what to expect of a signature: a key, a certificate, or an identity that Sigstore vouches for."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dsv4_shard.errors import BadKey, SignatureRefused
from dsv4_shard.signing.bundle import Bundle, How
from dsv4_shard.signing.keys import (
    certificates,
    check_trust,
    fault_of,
    may_sign,
    name_of_certificate,
    name_of_key,
    parsed,
    private_key,
    public_key,
    token_in,
)
from dsv4_shard.signing.library import already_hashed, as_file, ask_sigstore, library_errors

if TYPE_CHECKING:
    from model_signing import signing, verifying
    from model_signing.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Signer:
    """The signer's key, with or without a certificate; without a key, an identity.

    Attributes:
        key: Private key on one of `CURVES`, PEM.
        certificate: The certificate of the key, PEM.
        chain: Certificates between it and the root, PEM.
        token: File with an OpenID Connect token; default: that of the environment, else a browser asks for one.
        trust: Trust configuration of a Sigstore instance of one's own; default: the public one.
    """

    key: Path | None = None
    certificate: Path | None = None
    chain: Path | None = None
    token: Path | None = None
    trust: Path | None = None

    @property
    def how(self) -> How:
        """The method."""
        return "sigstore" if self.key is None else "certificate" if self.certificate else "key"

    @property
    def name(self) -> str:
        """Who signs, as `Expected.verify` says it; of an identity, only the signature tells. Raises BadKey."""
        if self.key is None:
            return "an identity of Sigstore"
        if self.certificate is None:
            return name_of_key(private_key(self.key).public_key())
        return name_of_certificate(certificates(self.certificate)[0])

    def check(self) -> None:
        """Raise BadKey if key or certificate cannot be used, or do not belong together."""
        if self.key is None:
            return
        public = private_key(self.key).public_key()
        if self.certificate is None:
            return
        (certificate, *_) = certificates(self.certificate)
        if certificate.public_key() != public:
            raise BadKey(f"{self.certificate}: the certificate of another key than {self.key}")
        if fault := fault_of(certificate):
            raise BadKey(f"{self.certificate}: {fault}")
        if not may_sign(certificate):
            raise BadKey(f"{self.certificate}: its uses do not include signatures", hint=_MAKE_ONE)
        if self.chain is not None:
            certificates(self.chain)

    def sign(self, manifest: "Manifest") -> bytes:
        """Sign a manifest of model_signing; return the signature.

        Raises:
            BadKey: The identity is refused.
            Unreachable: Sigstore does not answer.
        """
        from model_signing import signing

        with library_errors(BadKey, "signing failed"), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.sig"
            config, known = signing.Config(), already_hashed(manifest)
            _by(self.how, lambda: self._configured(config).set_hashing_config(known).sign(folder, path))
            return path.read_bytes()

    def _configured(self, config: "signing.Config") -> "signing.Config":
        if self.key is None:
            token = token_in(self.token) if self.token is not None else None
            check_trust(self.trust)
            return config.use_sigstore_signer(
                use_ambient_credentials=token is None, identity_token=token, trust_config=self.trust
            )
        if self.certificate is None:
            return config.use_elliptic_key_signer(private_key=self.key)
        return config.use_certificate_signer(
            private_key=self.key,
            signing_certificate=self.certificate,
            certificate_chain=[self.chain or self.certificate],  # the library cannot read an empty chain
        )


@dataclass(frozen=True, slots=True)
class Expected:
    """What a signature must have been made with.

    Attributes:
        key: The signer's public key, PEM.
        chain: Certificates that are trusted, the root among them, PEM.
        identity: The signer's name in a certificate of Sigstore, such as a mail address.
        provider: URL of the OpenID Connect provider that vouched for it.
        trust: As in `Signer`.
    """

    key: Path | None = None
    chain: Path | None = None
    identity: str | None = None
    provider: str | None = None
    trust: Path | None = None

    @property
    def how(self) -> How:
        """The method."""
        return "key" if self.key else "certificate" if self.chain else "sigstore"

    def check(self) -> None:
        """Raise BadKey if a key or certificate cannot be used."""
        if self.key is not None:
            public_key(self.key)
        if self.chain is not None:
            certificates(self.chain)

    def verify(self, bundle: Bundle, manifest: "Manifest", where: Path) -> str:
        """Verify that the expected signer signed `manifest`; return who that is.

        `where` names the signature in errors.

        Raises:
            SignatureRefused: It is another signer's, expired, or of other files than `manifest`.
            Unreachable: Sigstore does not answer.
        """
        from model_signing import verifying

        if bundle.how != self.how:
            raise SignatureRefused(f"{where}: made with {_METHODS[bundle.how]}, to be verified with "
                                   f"{_METHODS[self.how]}", hint=_OPTIONS[bundle.how])  # fmt: skip
        for raw in bundle.certificates:
            if fault := fault_of(parsed(raw, where)):
                raise SignatureRefused(f"{where}: {fault}, and nothing proves when the signature was made")
        with library_errors(SignatureRefused, f"{where}: {_REFUSED[self.how]}"), as_file(bundle.raw) as path:
            config, known = verifying.Config(), already_hashed(manifest)
            _by(self.how, lambda: self._configured(config).set_hashing_config(known).verify(path.parent, path))
        return self._signer(bundle, where)

    def _configured(self, config: "verifying.Config") -> "verifying.Config":
        if self.key is not None:
            return config.use_elliptic_key_verifier(public_key=self.key)
        if self.chain is not None:
            return config.use_certificate_verifier(certificate_chain=[self.chain])
        check_trust(self.trust)
        return config.use_sigstore_verifier(
            identity=self.identity or "", oidc_issuer=self.provider or "", trust_config=self.trust
        )

    def _signer(self, bundle: Bundle, where: Path) -> str:
        if self.key is not None:
            return name_of_key(public_key(self.key))
        if self.chain is not None:
            return name_of_certificate(parsed(bundle.certificates[0], where))
        return f"{self.identity}, says {self.provider}"


def _by(how: How, call: Callable[[], object]) -> None:
    """Call `call`, in time if the method asks Sigstore."""
    if how == "sigstore":
        ask_sigstore(call)
    else:
        call()


_METHODS = {"key": "a key", "certificate": "a certificate", "sigstore": "an identity of Sigstore"}

_OPTIONS = {
    "key": "Name the signer's public key: --public-key FILE.",
    "certificate": "Name the certificates that you trust: --certificate-chain FILE.",
    "sigstore": "Name the signer: --identity NAME --identity-provider URL.",
}

_REFUSED = {
    "key": "not a signature by this key",
    "certificate": "not a signature by a certificate that these certificates vouch for",
    "sigstore": "not a signature by this identity",
}

_MAKE_ONE = "The certificate needs the key usage digitalSignature, or the extended key usage codeSigning."
