"""`verify` reads every byte, or says how many it read; a sealed lie about a digest is found out."""

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.small import least_config, small_config
from support.command_line import run

import dsv4_shard
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.errors import UsageError
from dsv4_shard.sharding.manifest import Manifest, load_manifest
from dsv4_shard.verification import parse_share

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The least checkpoint. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("least") / "model", least_config(), 31, 0)


@pytest.fixture(scope="module")
def clean(model: Path) -> Path:
    """Its shards for two ranks. Only to be read."""
    dsv4_shard.reshard(model, model.parent / "clean", tp=2, engine="reference")
    return model.parent / "clean"


@pytest.fixture
def out(clean: Path, tmp_path: Path) -> Path:
    """A copy of them, to be damaged."""
    return shutil.copytree(clean, tmp_path / "out")


def seal(out: Path, change: Change) -> None:
    """Edit the manifest so that it agrees with its own digest."""
    manifest = json.loads((out / "manifest.json").read_bytes())
    change(manifest)
    (out / "manifest.json").write_bytes(Manifest.model_validate_json(json.dumps(manifest)).sealed().to_bytes())


def other_sha256(manifest: dict[str, Any]) -> None:
    manifest["files"][1]["sha256"] = "0" * 64


def other_digest(manifest: dict[str, Any]) -> None:
    tensors = manifest["files"][1]["tensors"]
    tensors[next(iter(tensors))] = "0" * 32


def other_companion_sha256(manifest: dict[str, Any]) -> None:
    manifest["companions"][0]["sha256"] = "0" * 64


@pytest.mark.parametrize("change", [other_sha256, other_digest, other_companion_sha256])
@pytest.mark.parametrize("with_source", [False, True])
def test_a_sealed_digest_that_is_not_that_of_the_bytes_is_found(
    change: Change, with_source: bool, out: Path, model: Path
) -> None:
    seal(out, change)
    found = dsv4_shard.verify(out, against=model if with_source else None)
    kinds = {problem.kind for problem in found.problems}
    assert kinds & {"wrong-manifest", "damaged-tensor", "damaged-file"}
    # With the source, the statement of provenance is found to say another SHA-256 than the manifest.
    assert kinds <= {"wrong-manifest", "damaged-tensor", "damaged-file", "differs-from-source"}


def damage_all(out: Path) -> None:
    """Change the last byte of every tensor of rank 1's file."""
    path = out / "model1-mp2.safetensors"
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    for name, info in json.loads(content[8:start]).items():
        if name != "__metadata__" and info["data_offsets"][1] > info["data_offsets"][0]:
            content[start + info["data_offsets"][1] - 1] ^= 1
    path.write_bytes(content)


def test_a_sample_reads_about_the_part_that_is_asked_for(clean: Path) -> None:
    whole = sum(file.payload for file in load_manifest(clean).files)
    found = dsv4_shard.verify(clean, sample="30%")
    assert found.ok
    assert found.sampled_bytes is not None
    assert whole * 0.3 <= found.sampled_bytes < whole


def test_every_sample_reads_something_of_every_file(out: Path) -> None:
    damage_all(out)
    found = dsv4_shard.verify(out, sample="0.001%")
    assert {problem.file for problem in found.problems} == {"model1-mp2.safetensors"}


def test_a_sample_of_everything_finds_one_damaged_byte(out: Path) -> None:
    with (out / "model0-mp2.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        byte = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([byte ^ 1]))
    (problem,) = dsv4_shard.verify(out, sample="100%").problems
    assert problem.file == "model0-mp2.safetensors"


def test_samples_differ_from_run_to_run(clean: Path) -> None:
    assert len({dsv4_shard.verify(clean, sample="10%").sampled_bytes for _ in range(20)}) > 1


@pytest.mark.parametrize(("text", "share"), [("5%", "1/20"), ("5", "1/20"), (" 2.5 %", "1/40"), ("100%", "1")])
def test_percentages_are_read(text: str, share: str) -> None:
    assert parse_share(text) == Fraction(share)


@pytest.mark.parametrize("text", ["", "0", "-5%", "101%", "five", "1/2", "5%%", "1e1", "nan", "1_0", "٥"])
def test_what_is_no_percentage_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="percentage above 0 and at most 100"):
        parse_share(text)


def test_a_sample_against_the_checkpoint_is_refused(clean: Path, model: Path) -> None:
    with pytest.raises(UsageError, match="compares every byte"):
        dsv4_shard.verify(clean, sample="5%", against=model)


def test_verify_says_what_it_cannot_know(clean: Path, model: Path) -> None:
    text = run("verify", clean).stdout
    assert "whether these are the bytes of" in text
    assert "not read" not in text
    assert "of tensors were not read" in run("verify", clean, "--sample", "10%").stdout
    assert "not known" not in run("verify", clean, "--against", model).stdout


def test_what_it_cannot_know_does_not_hide_what_it_found(out: Path) -> None:
    damage_all(out)
    text = run("verify", out).stdout
    assert "FAILED: the result differs" in text
    assert "not known" not in text


def test_a_copy_that_does_not_know_its_commit_verifies_what_the_hubs_snapshot_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--org--model" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    write_checkpoint(snapshot, small_config(), 31)
    shutil.copytree(snapshot, tmp_path / "copy")
    for source, other in ((snapshot, tmp_path / "copy"), (tmp_path / "copy", snapshot)):
        dsv4_shard.reshard(source, tmp_path / "out", tp=2, overwrite=(tmp_path / "out").exists())
        found = dsv4_shard.verify(tmp_path / "out", against=other)
        assert found.problems == ()
        assert [note for note in found.notes if "as the checkpoint's commit" in note]
        assert not dsv4_shard.verify(tmp_path / "out", against=source).notes
