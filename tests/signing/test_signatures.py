"""Signatures of results: model_signing verifies ours, we verify its own, and nothing else passes."""

import base64
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from support.checkpoints.small import reshard_folder, small_config
from support.command_line import run
from support.documents import checkpoint, result
from support.folders import contents

pytest.importorskip("model_signing")

from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from model_signing import _cli, hashing, signing, verifying
from support.keys import DAY, NOW, Authority, Pair, write_key

import dsv4_shard
from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, write_checkpoint
from dsv4_shard.errors import (
    BadKey,
    BadSignature,
    DamagedResult,
    ExitCode,
    NotAResult,
    OutputNotEmpty,
    ShardError,
    SignatureRefused,
    Unreachable,
    UsageError,
)
from dsv4_shard.limits import SIGSTORE
from dsv4_shard.sharding.manifest import Manifest, load_manifest
from dsv4_shard.sharding.progress import Progress, Task
from dsv4_shard.signing import library
from dsv4_shard.storage import MANIFEST_NAME

RANK = "model0-mp2.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("signed") / "model", small_config(), 5)


@pytest.fixture(scope="module")
def clean(model: Path) -> Path:
    """Its shards for two ranks. Only to be read."""
    reshard_folder(model, model.parent / "clean", 2)
    return model.parent / "clean"


@pytest.fixture
def out(clean: Path, tmp_path: Path) -> Path:
    """A copy of them, to be signed and damaged."""
    return shutil.copytree(clean, tmp_path / "out")


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result whose ranks share files by hard links. Only to be read."""
    folder = tmp_path_factory.mktemp("linked")
    write_checkpoint(folder / "model", DEMO_CONFIG, 5)
    dsv4_shard.reshard(folder / "model", folder / "out", tp=4)
    return folder / "out"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Keys on every curve, and one of somebody else."""
    folder = tmp_path_factory.mktemp("keys")
    curves = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1(), "other": ec.SECP256R1()}
    return {name: write_key(folder, name, ec.generate_private_key(curve)) for name, curve in curves.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "root")


@pytest.fixture(scope="module")
def between(root: Authority) -> Authority:
    return Authority(root.folder, "between", root)


@pytest.fixture(scope="module")
def leaf(between: Authority) -> Pair:
    return between.issue("leaf")


class Counting(Progress):
    """The bytes of each task."""

    def __init__(self) -> None:
        self.total: dict[str, int] = {}
        self.moved: dict[str, int] = {}

    def begin(self, task: Task, total_bytes: int) -> None:
        self.total[task.work] = total_bytes

    def advance(self, task: Task, nbytes: int) -> None:
        self.moved[task.work] = self.moved.get(task.work, 0) + nbytes

    def resume(self, task: Task, nbytes: int) -> None:
        raise AssertionError("nothing is resumed")

    def end(self, task: Task) -> None:
        assert self.moved.get(task.work, 0) == self.total[task.work]

    def lost(self, task: Task, reason: str) -> None:
        raise AssertionError("there is no cluster")

    def written(self, outcome: object) -> None:
        raise AssertionError("nothing is written")


def unique_nbytes(folder: Path) -> int:
    return sum({path.stat().st_ino: path.stat().st_size for path in folder.rglob("*") if path.is_file()}.values())


def small_nbytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors")


def theirs(*arguments: object) -> Result:
    """A command of model_signing, whose process would start anew for 0.7 s each time."""
    return CliRunner().invoke(_cli.main, [str(argument) for argument in arguments])


def one_problem(out: Path, key: Pair, file: str) -> str:
    """The message of the only problem of a signed folder, which is about `file`."""
    found = dsv4_shard.verify(out, signature=out / "model.sig", public_key=key.public)
    assert not found.ok
    assert [problem.file for problem in found.problems] == [file]
    return found.problems[0].message


# --- both ways -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", ["p256", "p384", "p521"])
def test_model_signing_verifies_our_signature_and_we_its_own_with_a_key(
    curve: str, out: Path, keys: dict[str, Pair], tmp_path: Path
) -> None:
    pair = keys[curve]
    signed = dsv4_shard.sign(out, key=pair.key)
    assert signed.out == str(out / "model.sig")
    verifying.Config().use_elliptic_key_verifier(public_key=pair.public).verify(out, out / "model.sig")
    command = theirs("verify", "key", out, "--signature", out / "model.sig", "--public_key", pair.public)
    assert command.exit_code == 0, command.output
    ours = dsv4_shard.verify(out, signature=out / "model.sig", public_key=pair.public)
    assert ours.ok
    assert ours.notes == ()

    (out / "model.sig").unlink()
    command = theirs("sign", "key", out, "--signature", out / "model.sig", "--private_key", pair.key)
    assert command.exit_code == 0, command.output
    found = dsv4_shard.verify(out, signature=out / "model.sig", public_key=pair.public)
    assert found.ok
    assert found.signature == ours.signature
    assert found.signature is not None
    assert found.signature.files == len(contents(out)) - 1
    assert found.signature.by == signed.by


def test_both_sign_the_same_digests(out: Path, keys: dict[str, Pair]) -> None:
    dsv4_shard.sign(out, key=keys["p256"].key)
    ours = payload(out / "model.sig")
    (out / "model.sig").unlink()
    command = theirs("sign", "key", out, "--signature", out / "model.sig", "--private_key", keys["p256"].key)
    assert command.exit_code == 0, command.output
    their = payload(out / "model.sig")
    for statement in (ours, their):
        statement["predicate"]["serialization"]["ignore_paths"].sort()
    assert ours == their


def payload(signature: Path) -> Any:
    return json.loads(base64.b64decode(json.loads(signature.read_bytes())["dsseEnvelope"]["payload"]))


@pytest.mark.parametrize("chained", ["leaf", "chain"])
def test_model_signing_verifies_our_signature_and_we_its_own_with_a_certificate(
    chained: str, out: Path, root: Authority, between: Authority, leaf: Pair
) -> None:
    trusted = root.certificate
    chain: dict[str, Any] = {"certificate_chain": between.certificate}
    if chained == "leaf":  # the verifier has the intermediate certificate
        trusted, chain = root.folder / "both.crt", {}
        trusted.write_bytes(root.certificate.read_bytes() + between.certificate.read_bytes())
    signed = dsv4_shard.sign(out, key=leaf.key, certificate=leaf.certificate, **chain)
    assert (signed.how, signed.by) == ("certificate", "CN=leaf")
    verifying.Config().use_certificate_verifier(certificate_chain=[trusted]).verify(out, out / "model.sig")
    command = theirs("verify", "certificate", out, "--signature", out / "model.sig", "--certificate_chain", trusted)
    assert command.exit_code == 0, command.output
    found = dsv4_shard.verify(out, signature=out / "model.sig", certificate_chain=trusted)
    assert found.ok
    assert found.signature is not None
    assert (found.signature.how, found.signature.by) == ("certificate", "CN=leaf")

    (out / "model.sig").unlink()
    config = signing.Config().use_certificate_signer(
        private_key=leaf.key, signing_certificate=leaf.certificate, certificate_chain=[between.certificate]
    )
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=["model.sig"])).sign(out, out / "model.sig")
    assert dsv4_shard.verify(out, signature=out / "model.sig", certificate_chain=trusted).ok


WAYS: dict[str, Callable[[hashing.Config], hashing.Config]] = {
    "blake3": lambda config: config.use_file_serialization(hashing_algorithm="blake3"),
    "shards": lambda config: config.use_shard_serialization(shard_size=100_000),
}


@pytest.mark.parametrize("way", WAYS)
def test_other_digests_of_model_signing_are_verified_too(
    way: str, linked: Path, keys: dict[str, Pair], tmp_path: Path
) -> None:
    out = with_links(linked, tmp_path / "out")
    config = signing.Config().use_elliptic_key_signer(private_key=keys["p256"].key)
    config.set_hashing_config(WAYS[way](hashing.Config())).sign(out, tmp_path / "model.sig")
    counting = Counting()
    found = dsv4_shard.verify(out, signature=tmp_path / "model.sig", public_key=keys["p256"].public, progress=counting)
    assert found.ok, found.problems
    flip(out / "plan.json", 5)
    found = dsv4_shard.verify(out, signature=tmp_path / "model.sig", public_key=keys["p256"].public)
    assert [problem.file for problem in found.problems] == ["plan.json"]


def with_links(folder: Path, out: Path) -> Path:
    """A copy of a folder that keeps its hard links."""
    subprocess.run(["cp", "-a", folder, out], check=True)
    return out


# --- each file once --------------------------------------------------------------------------------------------------


def test_rank_files_are_signed_by_the_digests_of_the_manifest_without_being_read(
    linked: Path, keys: dict[str, Pair], tmp_path: Path
) -> None:
    out, counting = with_links(linked, tmp_path / "out"), Counting()
    signed = dsv4_shard.sign(out, key=keys["p256"].key, progress=counting)
    assert signed.hashed == counting.total["sign"] == counting.moved["sign"] == small_nbytes(linked)
    assert signed.bytes == unique_nbytes(linked)
    assert signed.files == len(contents(linked))
    command = theirs("verify", "key", out, "--signature", out / "model.sig", "--public_key", keys["p256"].public)
    assert command.exit_code == 0, command.output


def test_a_verification_reads_each_file_once_whatever_its_names(
    linked: Path, keys: dict[str, Pair], tmp_path: Path
) -> None:
    out, counting = with_links(linked, tmp_path / "out"), Counting()
    dsv4_shard.sign(out, key=keys["p256"].key, signature=tmp_path / "model.sig")
    found = dsv4_shard.verify(out, signature=tmp_path / "model.sig", public_key=keys["p256"].public, progress=counting)
    assert found.ok
    payload = sum(entry.payload for entry in load_manifest(out).files)
    assert counting.moved == {"signature": small_nbytes(linked), "verify": payload}
    assert len({path.stat().st_ino for path in out.rglob("*.safetensors")}) < len(list(out.rglob("*.safetensors")))


@pytest.mark.parametrize("name", ["reference", "node"])
def test_files_without_a_digest_in_the_manifest_are_read_once(name: str, keys: dict[str, Pair], tmp_path: Path) -> None:
    out, counting = result(1, name, tmp_path / "out"), Counting()
    signed = dsv4_shard.sign(out, key=keys["p256"].key, signature=tmp_path / "model.sig", progress=counting)
    assert signed.hashed == counting.moved["sign"] == unique_nbytes(out)
    assert dsv4_shard.verify(out, signature=tmp_path / "model.sig", public_key=keys["p256"].public).ok
    command = theirs("verify", "key", out, "--signature", tmp_path / "model.sig", "--public_key", keys["p256"].public)
    assert command.exit_code == 0, command.output


# --- what is not as it was signed ------------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.unlink()
    path.write_bytes(raw)


CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a rank file": (RANK, lambda out: flip(out / RANK, -3)),
    "a header": (RANK, lambda out: flip(out / RANK, 30)),
    "a small file": ("plan.json", lambda out: flip(out / "plan.json", 40)),
    "a statement": ("provenance.json", lambda out: flip(out / "provenance.json", 40)),
    "a file that is gone": (RANK, lambda out: (out / RANK).unlink()),
    "a small file that is gone": ("source.zip", lambda out: (out / "source.zip").unlink()),
    "a file more": ("evil.py", lambda out: (out / "evil.py").write_text("import os")),
    "a file more in a folder": ("more/evil.py", lambda out: added(out / "more/evil.py")),
    "a link more": ("tmp", lambda out: (out / "tmp").symlink_to("/tmp")),
    "a pipe for a file": ("tokenizer.json", lambda out: piped(out / "tokenizer.json")),
    "another signed file": ("WORDS.md", lambda out: (out / "WORDS.md").write_text("# Other words")),
}


def added(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("import os")


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("what", CHANGES)
def test_each_change_is_one_line_and_exit_code_1(what: str, out: Path, keys: dict[str, Pair]) -> None:
    (out / "WORDS.md").write_text("# Words")
    (out / "tokenizer.json").touch()
    signed = dsv4_shard.sign(out, key=keys["p256"].key)
    assert "WORDS.md" in signed.others
    file, change = CHANGES[what]
    change(out)
    one_problem(out, keys["p256"], file)
    command = run("verify", out, "--signature", out / "model.sig", "--public-key", keys["p256"].public)
    assert command.exit_code == ExitCode.NO
    assert command.stderr == ""
    refused = theirs("verify", "key", out, "--signature", out / "model.sig", "--public_key", keys["p256"].public)
    assert refused.exit_code == 1
    assert isinstance(refused.exception, SystemExit), refused.exception


def test_a_lie_that_is_sealed_in_the_manifest_does_not_pass_the_signature(out: Path, keys: dict[str, Pair]) -> None:
    dsv4_shard.sign(out, key=keys["p256"].key)
    (out / "WORDS.md").write_text("no lie")
    (out / "WORDS.md").unlink()
    manifest = json.loads((out / MANIFEST_NAME).read_bytes())
    manifest["left_out"]["layers.0.more.weight"] = "of no use"
    (out / MANIFEST_NAME).write_bytes(Manifest.model_validate_json(json.dumps(manifest)).sealed().to_bytes())
    assert dsv4_shard.verify(out).ok
    assert "is not what was signed as out" in one_problem(out, keys["p256"], MANIFEST_NAME)


def test_a_signature_of_another_folder_is_one_line(
    out: Path, model: Path, keys: dict[str, Pair], tmp_path: Path
) -> None:
    reshard_folder(model, tmp_path / "four", 4)
    dsv4_shard.sign(tmp_path / "four", key=keys["p256"].key, signature=out / "model.sig")
    message = one_problem(out, keys["p256"], MANIFEST_NAME)
    assert message.startswith("is not what was signed as four: the signature is of another folder")


def test_a_signature_of_no_result_is_one_line(out: Path, model: Path, keys: dict[str, Pair]) -> None:
    config = signing.Config().use_elliptic_key_signer(private_key=keys["p256"].key)
    config.sign(model, out / "model.sig")
    assert "which was no result" in one_problem(out, keys["p256"], MANIFEST_NAME)


def test_a_file_of_the_result_that_the_signature_leaves_out_is_named(out: Path, keys: dict[str, Pair]) -> None:
    config = signing.Config().use_elliptic_key_signer(private_key=keys["p256"].key)
    ignoring = hashing.Config().set_ignored_paths(paths=["model.sig", RANK])
    config.set_hashing_config(ignoring).sign(out, out / "model.sig")
    verifying.Config().use_elliptic_key_verifier(public_key=keys["p256"].public).verify(out, out / "model.sig")
    assert one_problem(out, keys["p256"], RANK) == "is part of the result, and not signed"


def test_what_git_has_beside_a_result_is_not_signed(out: Path, keys: dict[str, Pair]) -> None:
    (out / ".git").mkdir()
    (out / ".git/HEAD").write_text("ref: refs/heads/main")
    (out / ".gitattributes").write_text("*.safetensors filter=lfs")
    assert dsv4_shard.sign(out, key=keys["p256"].key).others == ()
    (out / ".git/HEAD").write_text("ref: refs/heads/other")
    assert dsv4_shard.verify(out, signature=out / "model.sig", public_key=keys["p256"].public).ok
    command = theirs("verify", "key", out, "--signature", out / "model.sig", "--public_key", keys["p256"].public)
    assert command.exit_code == 0, command.output


def test_a_signed_result_in_a_hub_cache_is_verified_through_its_links(
    out: Path, keys: dict[str, Pair], tmp_path: Path
) -> None:
    dsv4_shard.sign(out, key=keys["p256"].key)
    (tmp_path / "snapshot").mkdir()
    for path in out.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    signature = tmp_path / "snapshot/model.sig"
    assert dsv4_shard.verify(tmp_path / "snapshot", signature=signature, public_key=keys["p256"].public).ok


# --- other signers ---------------------------------------------------------------------------------------------------


def test_another_key_is_refused(out: Path, keys: dict[str, Pair]) -> None:
    dsv4_shard.sign(out, key=keys["p256"].key)
    with pytest.raises(SignatureRefused, match="not a signature by this key: Key mismatch"):
        dsv4_shard.verify(out, signature=out / "model.sig", public_key=keys["other"].public)
    command = run("verify", out, "--signature", out / "model.sig", "--public-key", keys["other"].public)
    assert (command.exit_code, command.stdout) == (ExitCode.NO, "")
    assert command.stderr.count("\n") == 1


def test_a_forged_hint_does_not_help_another_key(out: Path, keys: dict[str, Pair]) -> None:
    dsv4_shard.sign(out, key=keys["p256"].key)
    forged = json.loads((out / "model.sig").read_bytes())
    dsv4_shard.sign(out, key=keys["other"].key, signature=out / "other.sig")
    forged["verificationMaterial"] = json.loads((out / "other.sig").read_bytes())["verificationMaterial"]
    (out / "other.sig").unlink()
    (out / "model.sig").write_text(json.dumps(forged))
    with pytest.raises(SignatureRefused, match="not a signature by this key"):
        dsv4_shard.verify(out, signature=out / "model.sig", public_key=keys["other"].public)


def test_a_certificate_of_another_root_is_refused(out: Path, between: Authority, leaf: Pair, tmp_path: Path) -> None:
    dsv4_shard.sign(out, key=leaf.key, certificate=leaf.certificate, certificate_chain=between.certificate)
    stranger = Authority(tmp_path, "stranger")
    with pytest.raises(SignatureRefused, match="not a signature by a certificate that these certificates vouch for"):
        dsv4_shard.verify(out, signature=out / "model.sig", certificate_chain=stranger.certificate)


DATES = {"expired": (NOW - 3 * DAY, NOW - DAY), "is valid from": (NOW + DAY, NOW + 3 * DAY)}


@pytest.mark.parametrize("said", DATES)
def test_a_certificate_that_is_not_valid_today_is_refused(said: str, out: Path, root: Authority) -> None:
    pair = root.issue("dated", *DATES[said])
    with pytest.raises(BadKey, match=rf"dated\.crt: the certificate of CN=dated {said}"):
        dsv4_shard.sign(out, key=pair.key, certificate=pair.certificate)
    config = signing.Config().use_certificate_signer(
        private_key=pair.key, signing_certificate=pair.certificate, certificate_chain=[pair.certificate]
    )
    config.sign(out, out / "model.sig")
    verifying.Config().use_certificate_verifier(certificate_chain=[root.certificate])
    with pytest.raises(SignatureRefused, match=f"the certificate of CN=dated {said}"):
        dsv4_shard.verify(out, signature=out / "model.sig", certificate_chain=root.certificate)


@pytest.mark.parametrize("how", ["key", "certificate"])
def test_a_signature_of_another_method_is_refused_with_the_option_that_is_needed(
    how: str, out: Path, keys: dict[str, Pair], root: Authority, leaf: Pair
) -> None:
    options: dict[str, Any] = (
        {"key": leaf.key, "certificate": leaf.certificate} if how == "certificate" else {"key": keys["p256"].key}
    )
    dsv4_shard.sign(out, **options)
    wrong: dict[str, Any] = (
        {"public_key": leaf.public} if how == "certificate" else {"certificate_chain": root.certificate}
    )
    for expected in (wrong, {"identity": "me@example.com", "identity_provider": "https://accounts.example.com"}):
        with pytest.raises(SignatureRefused, match=f"made with a {how}, to be verified with") as found:
            dsv4_shard.verify(out, signature=out / "model.sig", **expected)
        assert "--public-key" in str(found.value.hint) or "--certificate-chain" in str(found.value.hint)


# --- damaged signatures ----------------------------------------------------------------------------------------------


def test_no_damage_of_a_signature_passes_or_is_a_bug(out: Path, keys: dict[str, Pair]) -> None:
    dsv4_shard.sign(out, key=keys["p256"].key)
    whole = (out / "model.sig").read_bytes()
    maker = random.Random(7)
    for number in range(150):
        raw = bytearray(whole)
        match number % 3:
            case 0:
                raw[maker.randrange(len(raw))] = maker.randrange(256)
            case 1:
                del raw[maker.randrange(len(raw)) :]
            case _:
                at = maker.randrange(len(raw))
                raw[at : at + maker.randrange(1, 40)] = maker.randbytes(maker.randrange(40))
        if raw == whole or same_content(bytes(raw), whole):
            continue
        (out / "model.sig").write_bytes(raw)
        with pytest.raises(BadSignature) as found:
            dsv4_shard.verify(out, signature=out / "model.sig", public_key=keys["p256"].public)
        assert "\n" not in str(found.value)


def same_content(one: bytes, other: bytes) -> bool:
    """Whether the damage changed nothing that means anything: the bits of base64 that no byte takes."""
    try:
        found, due = (json.loads(raw) for raw in (one, other))
        envelopes = [document["dsseEnvelope"] for document in (found, due)]
        parts = [
            (base64.b64decode(envelope["payload"]), base64.b64decode(envelope["signatures"][0]["sig"]),
             envelope["payloadType"], document["verificationMaterial"], document["mediaType"])
            for envelope, document in zip(envelopes, (found, due), strict=True)
        ]  # fmt: skip
    except (ValueError, KeyError, TypeError, IndexError):
        return False
    return parts[0] == parts[1]


BAD: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"-----BEGIN PGP SIGNATURE-----",
    "another JSON": b'{"schema_version": 3}',
    "deep": b"[" * 100_000,
    "no object": b"[]",
    "many values": b'{"mediaType": [' + b"0," * 210_000 + b"0]}",
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_signature_is_one_line(what: str, out: Path, keys: dict[str, Pair]) -> None:
    (out / "model.sig").write_bytes(BAD[what])
    command = run("verify", out, "--signature", out / "model.sig", "--public-key", keys["p256"].public)
    assert (command.exit_code, command.stdout) == (ExitCode.NO, "")
    assert command.stderr.startswith(f"error: {out / 'model.sig'}: not a signature of model_signing: ")
    assert command.stderr.count("\n") == 2


def test_a_signature_that_is_not_there_or_endless_is_one_line(out: Path, keys: dict[str, Pair]) -> None:
    for path in ("model.sig", "/dev/zero"):
        with pytest.raises(BadSignature, match=path) as found:
            dsv4_shard.verify(out, signature=path, public_key=keys["p256"].public)
        assert "FOLDER/model.sig" in str(found.value.hint)


# --- what is not signed ----------------------------------------------------------------------------------------------


def test_only_a_sound_result_is_signed(out: Path, model: Path, keys: dict[str, Pair], tmp_path: Path) -> None:
    with pytest.raises(NotAResult, match=r"no manifest\.json"):
        dsv4_shard.sign(model, key=keys["p256"].key)
    os.truncate(out / RANK, 1000)
    with pytest.raises(DamagedResult, match=r"1,000 bytes, .* were written; not signed"):
        dsv4_shard.sign(out, key=keys["p256"].key)
    assert not (out / "model.sig").exists()
    assert run("sign", out, "--key", keys["p256"].key).exit_code == ExitCode.NO


@pytest.mark.parametrize("what", ["plan.json", "header", "gone", "link"])
def test_a_result_that_is_not_what_its_manifest_says_is_not_signed(what: str, out: Path, keys: dict[str, Pair]) -> None:
    match what:
        case "plan.json":
            flip(out / "plan.json", 10)
        case "header":
            flip(out / RANK, 20)
        case "gone":
            (out / RANK).unlink()
        case _:
            (out / RANK).rename(out.parent / "elsewhere")
            (out / RANK).symlink_to(out.parent / "elsewhere")
    with pytest.raises(DamagedResult, match="not signed"):
        dsv4_shard.sign(out, key=keys["p256"].key)
    assert not (out / "model.sig").exists()


def test_a_signature_that_is_there_is_not_replaced(out: Path, keys: dict[str, Pair]) -> None:
    dsv4_shard.sign(out, key=keys["p256"].key)
    before = (out / "model.sig").read_bytes()
    with pytest.raises(OutputNotEmpty, match=r"model\.sig: exists already, not replaced"):
        dsv4_shard.sign(out, key=keys["other"].key)
    assert (out / "model.sig").read_bytes() == before


def test_a_signed_result_is_neither_overwritten_nor_joined(model: Path, keys: dict[str, Pair], tmp_path: Path) -> None:
    out = tmp_path / "out"
    reshard_folder(model, out, 2, ranks=(0,))
    dsv4_shard.sign(out, key=keys["p256"].key)
    before = contents(out)
    with pytest.raises(OutputNotEmpty, match=r"signed; more ranks would make model\.sig invalid"):
        reshard_folder(model, out, 2, ranks=(1,))
    with pytest.raises(OutputNotEmpty, match=r"since model\.sig would be lost"):
        reshard_folder(model, out, 2, overwrite=True)
    assert contents(out) == before
    (out / "model.sig").unlink()
    reshard_folder(model, out, 2, ranks=(1,))


def test_a_signature_that_nobody_asked_about_is_said(out: Path, keys: dict[str, Pair]) -> None:
    dsv4_shard.sign(out, key=keys["p256"].key)
    assert dsv4_shard.verify(out).notes == ("model.sig is a signature that was not verified: --signature",)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_that_cannot_sign_is_one_line(
    out: Path, leaf: Pair, root: Authority, keys: dict[str, Pair], tmp_path: Path
) -> None:
    made = {
        "rsa": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "secp256k1": ec.generate_private_key(ec.SECP256K1()),
    }
    pairs = {name: write_key(tmp_path, name, key) for name, key in made.items()}
    encrypted = write_key(tmp_path, "encrypted", password=b"secret")
    useless = root.issue("useless", use=x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]))
    (tmp_path / "text.pem").write_text("no key")
    (tmp_path / "large.pem").write_bytes(b" " * (2 << 20))
    bad: list[tuple[str, dict[str, Any]]] = [
        ("a key of RSA", {"key": pairs["rsa"].key}),
        ("a key of secp256k1", {"key": pairs["secp256k1"].key}),
        ("encrypted with a password", {"key": encrypted.key}),
        ("not a private key in PEM form", {"key": tmp_path / "text.pem"}),
        ("not a private key in PEM form", {"key": keys["p256"].public}),
        (r"^[^:]*none\.pem: No such file or directory\n", {"key": tmp_path / "none.pem"}),
        ("too large", {"key": tmp_path / "large.pem"}),
        ("a directory", {"key": tmp_path}),
        ("no certificate in PEM form", {"key": leaf.key, "certificate": leaf.key}),
        ("the certificate of another key", {"key": keys["p256"].key, "certificate": leaf.certificate}),
        ("its uses do not include signatures", {"key": useless.key, "certificate": useless.certificate}),
        (
            "no certificate in PEM form",
            {"key": leaf.key, "certificate": leaf.certificate, "certificate_chain": leaf.key},
        ),
    ]
    for said, options in bad:
        with pytest.raises(BadKey, match=said) as found:
            dsv4_shard.sign(out, **options)
        assert "\n" not in str(found.value)
        assert found.value.exit_code == ExitCode.USAGE
    assert not (out / "model.sig").exists()


def test_a_key_that_cannot_verify_is_one_line(out: Path, leaf: Pair, keys: dict[str, Pair], tmp_path: Path) -> None:
    dsv4_shard.sign(out, key=keys["p256"].key)
    odd = write_key(tmp_path, "rsa", rsa.generate_private_key(public_exponent=65537, key_size=2048))
    bad: list[tuple[str, dict[str, Any]]] = [
        ("not a public key in PEM form", {"public_key": keys["p256"].key}),
        ("a key of RSA", {"public_key": odd.public}),
        ("No such file", {"public_key": tmp_path / "none.pub"}),
        ("no certificate in PEM form", {"certificate_chain": leaf.public}),
    ]
    for said, options in bad:
        with pytest.raises(BadKey, match=said):
            dsv4_shard.verify(out, signature=out / "model.sig", **options)


CONTRADICTIONS: dict[str, tuple[str, ...]] = {
    "neither --key nor --keyless": ("sign",),
    "--key and --keyless: one of them signs": ("sign", "--key", "k", "--keyless"),
    "--certificate is of --key": ("sign", "--keyless", "--certificate", "c"),
    "--certificate-chain is of --certificate": ("sign", "--key", "k", "--certificate-chain", "c"),
    "--identity-token is of --keyless": ("sign", "--key", "k", "--identity-token", "t"),
    "--trust-config is of --keyless": ("sign", "--key", "k", "--trust-config", "t"),
    "--public-key is of --signature": ("verify", "--public-key", "k"),
    "--trust-config is of --signature": ("verify", "--trust-config", "k"),
    "--signature: nothing that says whose it is": ("verify", "--signature", "s"),
    "--signature: --public-key and --identity": ("verify", "--signature", "s", "--public-key", "k", "--identity", "i"),
    "--identity and --identity-provider go together": ("verify", "--signature", "s", "--identity", "i"),
    "--trust-config is of --identity": ("verify", "--signature", "s", "--public-key", "k", "--trust-config", "t"),
    "--sample and --signature": ("verify", "--signature", "s", "--public-key", "k", "--sample", "5%"),
}


@pytest.mark.parametrize("said", CONTRADICTIONS)
def test_options_that_contradict_each_other_are_refused(said: str, out: Path) -> None:
    command, *rest = CONTRADICTIONS[said]
    found = run(command, out, *rest)
    assert (found.exit_code, found.stdout) == (ExitCode.USAGE, "")
    assert found.stderr.startswith(f"error: {said}")


def test_a_signature_of_several_folders_is_refused(out: Path) -> None:
    found = run("verify", out, out, "--signature", "s", "--public-key", "k")
    assert found.exit_code == ExitCode.USAGE
    assert "--signature: a signature covers one folder" in found.stderr


def test_without_the_library_one_line_says_how_to_install_it(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for arguments in (("sign", out, "--key", "k"), ("verify", out, "--signature", "s", "--public-key", "k")):
        found = run(*arguments)
        assert found.exit_code == ExitCode.USAGE
        assert found.stderr == (
            "error: model_signing, which signs and verifies, is not installed here\n  pip install 'dsv4-shard[sign]'\n"
        )


def test_without_a_library_that_the_library_needs_one_line_says_so(out: Path) -> None:
    code = "import sys; sys.modules['OpenSSL'] = None; from dsv4_shard.cli import main; main()"
    command = [sys.executable, "-c", code, "sign", str(out), "--key", "k"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == ExitCode.USAGE
    assert found.stderr.startswith("error: model_signing, which signs and verifies, cannot be loaded: ")
    assert found.stderr.count("\n") == 2


def test_the_command_says_what_was_signed(out: Path, keys: dict[str, Pair]) -> None:
    found = run("sign", out, "--key", keys["p256"].key, "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert document["how"] == "key"
    assert document["out"] == str(out / "model.sig")
    shown = run("verify", out, "--signature", out / "model.sig", "--public-key", keys["p256"].public)
    assert "signature of" in shown.stdout
    assert "changed files and manifest together" not in shown.stdout


# --- keyless: as far as the first server that must be Sigstore's own -------------------------------------------------


class Fulcio(BaseHTTPRequestHandler):
    """Knows where one logs in, and issues no certificates. `asked` has the tokens that came."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        server = f"http://{self.headers['Host']}"
        known = {"authorization_endpoint": f"{server}/auth", "token_endpoint": f"{server}/token"}
        self._answer(200 if self.path.endswith("/.well-known/openid-configuration") else 404, known)

    def do_POST(self) -> None:
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append(document["credentials"]["oidcIdentityToken"] if "credentials" in document else
                                self.headers["Authorization"].removeprefix("Bearer "))  # fmt: skip
        self._answer(403, {"message": "no certificate for you"})

    def _answer(self, status: int, document: dict[str, str]) -> None:
        raw = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fulcio() -> Iterator[str]:
    Fulcio.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Fulcio) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def trust_config(folder: Path, server: str) -> Path:
    """The trust configuration of Sigstore's own instance, with other servers."""
    import sigstore

    store = next((Path(sigstore.__file__).parent / "_store").glob("*tuf-repo-cdn.sigstore.dev"))
    place = {"url": server, "majorApiVersion": 1, "validFor": {"start": "2022-01-01T00:00:00Z"}, "operator": "nobody"}
    config = json.loads((store / "signing_config.v0.2.json").read_bytes())
    config |= {"caUrls": [place], "oidcUrls": [place], "rekorTlogUrls": [place], "tsaUrls": []}
    document = {
        "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
        "trustedRoot": json.loads((store / "trusted_root.json").read_bytes()),
        "signingConfig": config,
    }
    (folder / "trust.json").write_text(json.dumps(document))
    return folder / "trust.json"


def token(**changes: Any) -> str:
    """An OpenID Connect token that nobody signed."""
    start = int(NOW.timestamp())
    claims = {"aud": "sigstore", "sub": "me@example.com", "email": "me@example.com", "iat": start, "nbf": start - 60,
              "exp": start + 3600, "iss": "https://accounts.example.com"} | changes  # fmt: skip
    parts = (json.dumps(part).encode() for part in ({"alg": "RS256", "typ": "JWT"}, claims))
    return ".".join([*(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts), "AAAA"])


def test_a_keyless_signature_asks_sigstore_with_the_token(out: Path, fulcio: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(token() + "\n")
    with pytest.raises(ShardError) as found:
        dsv4_shard.sign(
            out, keyless=True, identity_token=tmp_path / "token", trust_config=trust_config(tmp_path, fulcio)
        )
    assert Fulcio.asked == [token()]
    assert isinstance(found.value, BadKey | Unreachable)
    assert "\n" not in str(found.value)
    assert not (out / "model.sig").exists()


def test_sigstore_that_does_not_answer_is_one_line(out: Path, tmp_path: Path) -> None:
    trust = trust_config(tmp_path, "http://127.0.0.1:9")
    (tmp_path / "token").write_text(token())
    command = run("sign", out, "--keyless", "--identity-token", tmp_path / "token", "--trust-config", trust)
    assert (command.exit_code, command.stdout) == (ExitCode.NETWORK, "")
    assert command.stderr.startswith("error: Sigstore cannot be asked: ")
    assert "127.0.0.1" in command.stderr
    assert command.stderr.count("\n") == 2


def test_sigstore_that_stalls_is_not_waited_for_for_good(
    out: Path, fulcio: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone_on = threading.Event()
    monkeypatch.setattr(Fulcio, "do_POST", lambda handler: gone_on.wait(20))
    monkeypatch.setattr(library, "SIGSTORE", replace(SIGSTORE, seconds=3))
    (tmp_path / "token").write_text(token())
    begun = time.monotonic()
    with pytest.raises(Unreachable, match="Sigstore gave no answer within 3 s") as found:
        dsv4_shard.sign(
            out, keyless=True, identity_token=tmp_path / "token", trust_config=trust_config(tmp_path, fulcio)
        )
    assert time.monotonic() - begun < 8
    gone_on.set()
    assert "Sigstore" in (found.value.hint or "")
    assert not (out / "model.sig").exists()


@pytest.mark.parametrize("what", ["no token", "an old one"])
def test_a_token_that_is_none_is_one_line(what: str, out: Path, fulcio: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret-token" if what == "no token" else token(exp=int(NOW.timestamp()) - 900))
    with pytest.raises(BadKey, match="signing failed: Identity token is malformed") as found:
        dsv4_shard.sign(
            out, keyless=True, identity_token=tmp_path / "token", trust_config=trust_config(tmp_path, fulcio)
        )
    assert "secret" not in str(found.value)
    assert Fulcio.asked == []


def test_a_trust_config_that_is_none_is_one_line(out: Path, tmp_path: Path) -> None:
    (tmp_path / "trust.json").write_text("{}")
    with pytest.raises(BadKey, match="signing failed"):
        dsv4_shard.sign(out, keyless=True, trust_config=tmp_path / "trust.json")
    with pytest.raises(BadKey, match="No such file"):
        dsv4_shard.sign(out, keyless=True, trust_config=tmp_path / "none.json")


def test_the_options_of_verify_shares_are_its_own(out: Path) -> None:
    with pytest.raises(UsageError, match="there is no such option"):
        dsv4_shard.verify_shares([out], signature="model.sig")  # type: ignore[call-arg]


def test_an_unfinished_verification_names_the_source_of_documents(tmp_path: Path, keys: dict[str, Pair]) -> None:
    model = checkpoint(tmp_path)
    out = result(1, "reference", tmp_path / "out")
    dsv4_shard.sign(out, key=keys["p256"].key)
    found = dsv4_shard.verify(out, against=model, signature=out / "model.sig", public_key=keys["p256"].public)
    assert found.ok
    assert found.against is not None
