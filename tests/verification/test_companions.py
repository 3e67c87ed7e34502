"""`verify --against` derives everything in a folder again: a manifest that was sealed with a lie does not hide it."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.small import open_folder, small_config
from support.folders import contents

from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.manifest import Manifest
from dsv4_shard.sharding.run import reshard
from dsv4_shard.storage import MANIFEST_NAME, digest_of
from dsv4_shard.verification.result_folder import verify

STATEMENT = "provenance.json"

INDEX = "model.safetensors.index.json"

REQUESTS = {
    "sglang": Request(tp=2),
    "vllm": Request(tp=2, engine="vllm"),
    "reference": Request(tp=2, engine="reference"),
    "node": Request(tp=4, engine="node", nodes=2),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with a tokenizer. Only to be read."""
    folder = write_checkpoint(tmp_path_factory.mktemp("companions") / "model", small_config() | {"hidden_size": 256}, 5)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_text("{}")
    return folder


def result(engine: str, model: Path, out: Path) -> Path:
    checkpoint, inventory = open_folder(model)
    reshard(prepare(checkpoint, inventory, make_plan(checkpoint, inventory, REQUESTS[engine])), checkpoint, out)
    return out


def seal(out: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> None:
    """Make manifest and statement agree with the small files that are there, and with themselves."""
    manifest = json.loads((out / MANIFEST_NAME).read_bytes())
    change(manifest)
    names = {entry["name"] for entry in manifest["companions"]}
    statement = json.loads((out / STATEMENT).read_bytes())
    for subject in statement["subject"]:
        if subject["name"] in names:
            subject["digest"]["sha256"] = hashlib.sha256((out / subject["name"]).read_bytes()).hexdigest()
    (out / STATEMENT).write_text(json.dumps(statement, indent=1) + "\n")
    for entry in manifest["companions"]:
        raw = (out / entry["name"]).read_bytes()
        entry |= {"nbytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest(), "digest": digest_of(raw)}
    (out / MANIFEST_NAME).write_bytes(Manifest.model_validate_json(json.dumps(manifest)).sealed().to_bytes())


def found(out: Path, model: Path) -> list[tuple[str, str]]:
    assert verify(out).ok, "the lie is sealed: without the source it cannot be known"
    return [(problem.kind, problem.file) for problem in verify(out, open_folder(model)).problems]


@pytest.mark.parametrize("engine", REQUESTS)
def test_each_small_file_is_compared(engine: str, model: Path, tmp_path: Path) -> None:
    out = result(engine, model, tmp_path / "out")
    names = [entry["name"] for entry in json.loads((out / MANIFEST_NAME).read_bytes())["companions"]]
    assert len(names) >= 4
    assert STATEMENT in names
    for name in set(names) - {"plan.json", STATEMENT}:
        before = (out / name).read_bytes()
        (out / name).write_bytes(before + b" ")
        seal(out)
        assert found(out, model) == [("differs-from-source", name)]
        (out / name).write_bytes(before)
        seal(out)
    assert found(out, model) == []


def test_a_small_file_that_is_gone_or_new_is_named(model: Path, tmp_path: Path) -> None:
    out = result("sglang", model, tmp_path / "out")
    (out / "tokenizer.json").unlink()
    (out / "modeling_x.py").write_text("import os")

    def change(manifest: dict[str, Any]) -> None:
        kept = [entry for entry in manifest["companions"] if entry["name"] != "tokenizer.json"]
        manifest["companions"] = [*kept, {"name": "modeling_x.py", "nbytes": 0, "sha256": None, "digest": ""}]

    seal(out, change)
    assert [name for _, name in found(out, model)] == ["modeling_x.py", "tokenizer.json", STATEMENT]


def repacked(raw: bytes, level: int, change: Callable[[str, bytes], bytes] = lambda _, content: content) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(zipfile.ZipInfo(name), change(name, old.read(name)), zipfile.ZIP_DEFLATED, level)
    return packed.getvalue()


def test_the_archive_of_headers_is_compared_by_what_it_holds(model: Path, tmp_path: Path) -> None:
    out = result("node", model, tmp_path / "out")
    raw = (out / "source.zip").read_bytes()
    (out / "source.zip").write_bytes(repacked(raw, 9))
    seal(out)
    assert (out / "source.zip").read_bytes() != raw
    assert found(out, model) == []

    def noted(name: str, content: bytes) -> bytes:
        return json.dumps(json.loads(content) | {"note": "not the checkpoint's"}).encode() if name == INDEX else content

    (out / "source.zip").write_bytes(repacked(raw, 1, noted))
    seal(out)
    assert found(out, model) == [("differs-from-source", "source.zip")]


FIELDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "layout": lambda manifest: manifest.update(layout="sglang-other"),
    "plan_digest": lambda manifest: manifest.update(plan_digest="0" * 32),
    "left_out": lambda manifest: manifest["left_out"].update({"layers.0.more.weight": "of no use"}),
    "identity": lambda manifest: manifest["identity"].update(runner="another"),
    "source": lambda manifest: manifest["source"].update(config_digest="0" * 64),
    "payload": lambda manifest: manifest["files"][0].update(payload=manifest["files"][0]["payload"] - 1),
}


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_of_the_manifest_is_compared(field: str, model: Path, tmp_path: Path) -> None:
    out = result("sglang", model, tmp_path / "out")
    before = contents(out)
    seal(out, FIELDS[field])
    assert (out / MANIFEST_NAME).read_bytes() != before[MANIFEST_NAME]
    assert ("wrong-manifest", MANIFEST_NAME) in found(out, model)
