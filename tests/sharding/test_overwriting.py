"""`--overwrite` deletes the files of a result and nothing else, whoever put something beside them, and whenever."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.checkpoints.small import open_folder, reshard_folder, small_config, with_bf16_o_a
from support.folders import contents

from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import OutputNotEmpty
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.overwriting import names_to_overwrite
from dsv4_shard.sharding.run import reshard
from dsv4_shard.storage import staging


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint without anything to decode. Only to be read."""
    return with_bf16_o_a(write_checkpoint(tmp_path_factory.mktemp("small") / "model", small_config(), 41))


@pytest.fixture
def out(small: Path, tmp_path: Path) -> Path:
    """A result of two ranks."""
    reshard_folder(small, tmp_path / "out", 2)
    return tmp_path / "out"


def put(name: str) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("years of work")

    return change


def edited(out: Path) -> None:
    config = json.loads((out / "inference_config.json").read_text())
    (out / "inference_config.json").write_text(json.dumps(config | {"dtype": "mine"}))


def linked(out: Path) -> None:
    name = next(out.glob("*.safetensors"))
    name.rename(out.parent / "moved.safetensors")
    name.symlink_to(out.parent / "moved.safetensors")


def sealed_by_others(out: Path) -> None:
    (out / "manifest.json").write_text('{"manifest_version": 3, "name": "my extension"}')


STRANGERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a file": (put("NOTES.md"), r"not overwritten, because dsv4-shard did not write NOTES\.md$"),
    "a file in a folder": (put("logs/server.log"), r"logs/"),
    "a hidden file": (put(".env"), r"\.env"),
    "an empty folder": (lambda out: (out / "cache").mkdir(), r"cache/"),
    "a link": (lambda out: (out / "latest").symlink_to("/etc"), "latest"),
    "a pipe": (lambda out: os.mkfifo(out / "pipe"), "pipe"),
    "a link in place of a rank file": (linked, r"model\d-mp2\.safetensors"),
    "a small file that was edited": (edited, r"inference_config\.json: changed since the result was written"),
    "the manifest of another tool": (sealed_by_others, r"manifest\.json: .*not overwritten"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_what_is_of_others_is_named_and_stays(kind: str, small: Path, out: Path, tmp_path: Path) -> None:
    change, why = STRANGERS[kind]
    change(out)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(OutputNotEmpty, match=why):
        reshard_folder(small, out, 1, overwrite=True)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_many_strangers_are_not_all_named(out: Path) -> None:
    for number in range(50):
        put(f"note-{number:02}.txt")(out)
    with pytest.raises(OutputNotEmpty, match=r"note-00\.txt, note-01\.txt, note-02\.txt and more$"):
        names_to_overwrite(out)


def test_a_damaged_rank_file_is_overwritten(small: Path, out: Path, tmp_path: Path) -> None:
    expected = contents(out)
    next(out.glob("*.safetensors")).write_bytes(b"cut short")
    (out / "generation_config.json").unlink(missing_ok=True)
    reshard_folder(small, out, 2, overwrite=True)
    assert contents(out) == expected


@pytest.mark.parametrize("can_exchange", [True, False])
def test_what_comes_at_the_last_moment_stays_too(
    can_exchange: bool, small: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the folder and its exchange, somebody puts a file there."""
    if not can_exchange:
        monkeypatch.setattr(staging.Staging, "_swap", lambda self: False)
    real = staging.Staging._rename

    def rename(self: staging.Staging, replaces: object) -> None:
        put("NOTES.md")(out)
        real(self, replaces)  # type: ignore[arg-type]

    before = contents(out)
    monkeypatch.setattr(staging.Staging, "_rename", rename)
    with pytest.raises(OutputNotEmpty, match=r"NOTES\.md"):
        reshard_folder(small, out, 1, overwrite=True)
    assert contents(out) == before | {"NOTES.md": b"years of work"}


def test_a_share_does_not_replace_a_file_that_it_did_not_write(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reshard_folder(small, out, 2, ranks=(0,))
    theirs = out / "model1-mp2.safetensors"
    theirs.write_text("years of work")
    checkpoint, inventory = open_folder(small)
    plan = make_plan(checkpoint, inventory, Request(tp=2, engine="reference"))
    with pytest.raises(OutputNotEmpty, match=r"model1-mp2\.safetensors, which dsv4-shard did not write"):
        reshard(prepare(checkpoint, inventory, plan, (1,)), checkpoint, out)
    assert theirs.read_text() == "years of work"
