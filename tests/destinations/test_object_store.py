"""A result in an object store is the folder's, with its manifest last, however often its upload ended early."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import xxhash
from support.checkpoints.small import open_folder, small_config
from support.command_line import run
from support.documents import as_of_other_version, reseal
from support.schemas import validator
from support.servers.loopback import Fault
from typer.testing import Result

from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.destinations import object_store as upload
from dsv4_shard.destinations.scratch_folder import run_digest, scratch_path
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import ExitCode, SourceChanged
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.manifest import read_manifest
from dsv4_shard.sources import object_store as stores
from dsv4_shard.storage.locks import LockedFolder
from dsv4_shard.version import __version__

if TYPE_CHECKING:
    from support.servers.store import StoreServer


URL = "s3://bucket/shards/tp4"
TP4 = ("--tp", "4", "--gpu", "h100")
TP2 = ("--tp", "2", "--gpu", "h100")
SHARED = "model-rank-0-part-1.safetensors"
_QUICK = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=2)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("upload") / "small", small_config(), seed=5)


@pytest.fixture(scope="module")
def local(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The result as a folder has it."""
    folder = tmp_path_factory.mktemp("upload") / "shards"
    assert run("reshard", checkpoint, folder, *TP4).exit_code == 0
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(stores, "_RETRIES", {"max_retries": 2, "backoff": _QUICK})


@pytest.fixture
def server(store_server: "StoreServer") -> "StoreServer":
    return store_server


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 64 KiB, as if the rank files were large."""
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)
    monkeypatch.setattr(stores, "PART_BYTES", 64 << 10)
    monkeypatch.setattr(upload, "PART_BYTES", 64 << 10)


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "OBJECTS_AT_ONCE", 1)


@pytest.fixture
def patient_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not repeat a request after 30 s without an answer."""
    monkeypatch.setenv("AWS_TIMEOUT", "1h")


def put(checkpoint: Path, *options: str | Path, url: str = URL) -> Result:
    return run("reshard", checkpoint, url, *TP4, *options)


def objects(server: "StoreServer", prefix: str = "shards/tp4") -> dict[str, bytes]:
    return {key.removeprefix(f"{prefix}/"): content for key, content in server.objects().items() if "shards" in key}


def load_manifest_of(server: Any) -> Any:
    """The manifest that was put."""
    return read_manifest(objects(server)["manifest.json"], "there")


def writes(server: "StoreServer") -> list[str]:
    """The names of objects in the order in which they were made or removed."""
    made = [request for request in server.requests if request.route in ("put", "complete")]
    return [request.file.removeprefix("shards/tp4/") for request in made if request.status == 200]


def scratch(folder: str = ".") -> list[str]:
    return sorted(os.listdir(folder))


# --- what is there then --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_objects_are_the_folders_files_and_nothing_else_is_left(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes]
) -> None:
    result = put(checkpoint)
    assert result.exit_code == 0, result.stderr
    assert objects(server) == local
    assert scratch() == []
    assert f"into {URL}" in result.stdout


@pytest.mark.slow
def test_the_manifest_is_put_when_all_else_is_there_and_was_looked_at(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes]
) -> None:
    put(checkpoint)
    assert writes(server)[-1] == "manifest.json"
    assert sorted(writes(server)) == sorted(local)
    assert [request.route for request in server.requests][-2:] == ["list", "put"]


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
def test_large_files_go_in_parts_and_leave_none_behind(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes]
) -> None:
    assert put(checkpoint).exit_code == 0
    assert objects(server) == local
    assert len(server.seen(route="part")) > 20
    assert max(request.received for request in server.seen(route="part")) == 64 << 10
    assert server.uploads() == 0


@pytest.mark.slow
def test_what_all_ranks_share_is_sent_once_and_copied_there(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes]
) -> None:
    document = json.loads(put(checkpoint, "--json").stdout)
    shared = [content for name, content in local.items() if "rank-0-part-1" in name]
    total = sum(map(len, local.values()))
    copied = 3 * sum(map(len, shared))
    assert document["copied"] == copied
    assert server.bytes_received(method="PUT") == total - copied
    assert document["sent"] == total - copied - len(local["manifest.json"])


@pytest.mark.slow
def test_a_copy_that_is_none_is_sent(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores.Store, "copy", lambda store, name, twin: store.put(twin, b""))
    assert put(checkpoint).exit_code == 0
    assert objects(server) == local


@pytest.mark.slow
def test_what_the_store_does_not_copy_is_sent(server: "StoreServer", checkpoint: Path, local: dict[str, bytes]) -> None:
    server.faults.append(Fault("status", status=501, match=lambda request: request.received == 0, route="put"))
    assert put(checkpoint).exit_code == 0
    assert server.faults[0].hits == 1
    assert objects(server) == local


@pytest.mark.slow
def test_what_is_too_large_to_be_copied_is_sent(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "COPIED_BYTES", 0)
    assert put(checkpoint).exit_code == 0
    assert objects(server) == local
    assert server.bytes_received(method="PUT") == sum(map(len, local.values()))


@pytest.mark.slow
def test_google_storage_goes_the_same_way(
    server: "StoreServer",
    checkpoint: Path,
    local: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_parts: None,
) -> None:
    for name, value in server.google_env(tmp_path / "account.json").items():
        monkeypatch.setenv(name, value)
    result = put(checkpoint, url=URL.replace("s3:", "gs:"))
    assert result.exit_code == 0, result.stderr
    assert objects(server) == local


@pytest.mark.slow
def test_from_one_store_into_another(server: "StoreServer", checkpoint: Path, local: dict[str, bytes]) -> None:
    server.upload(checkpoint, "models/small")
    assert run("reshard", "s3://bucket/models/small", URL, *TP4).exit_code == 0
    there = objects(server)
    assert {name for name, content in local.items() if there[name] != content} == {
        "README.md",
        "plan.json",
        "provenance.json",
        "manifest.json",
    }


@pytest.mark.slow
def test_a_share_goes_into_a_place_of_its_own(server: "StoreServer", checkpoint: Path, local: dict[str, bytes]) -> None:
    assert put(checkpoint, "--ranks", "0-1", url=f"{URL}/a").exit_code == 0
    assert put(checkpoint, "--ranks", "2-3", url=f"{URL}/b").exit_code == 0
    there = objects(server)
    for rank, share in enumerate("aabb"):
        name = f"model-rank-{rank}-part-0.safetensors"
        assert there[f"{share}/{name}"] == local[name]
    refused = put(checkpoint, "--ranks", "2-3", url=f"{URL}/a")
    assert (refused.exit_code, "holds a result" in refused.stderr) == (ExitCode.IO, True)


@pytest.mark.slow
def test_json_is_one_document(server: "StoreServer", checkpoint: Path, local: dict[str, bytes]) -> None:
    document = json.loads(put(checkpoint, "--json").stdout)
    validator("reshard-store").validate(document)
    assert document["out"] == URL
    assert document["objects"] == len(local)
    assert document["bytes"] == document["sent"] + document["copied"]
    assert document["written"]["files"] == 10


@pytest.mark.slow
def test_dry_run_looks_and_leaves_nothing(server: "StoreServer", checkpoint: Path) -> None:
    result = put(checkpoint, "--dry-run")
    assert (result.exit_code, f"Would write into {URL}" in result.stdout) == (0, True)
    assert scratch() == []
    assert [request.route for request in server.requests] == ["list"]
    put(checkpoint)
    assert "already complete" in put(checkpoint, "--dry-run").stderr
    assert run("reshard", checkpoint, URL, *TP2, "--dry-run").exit_code == ExitCode.IO
    assert put(checkpoint, "--dry-run", "--overwrite").exit_code == 0


# --- what ends early -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 7, 18, 24])
def test_an_upload_that_ended_early_goes_on_and_sends_nothing_twice(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes], after: int, one_at_a_time: None
) -> None:
    server.faults.append(Fault("forbidden", route="put", after=after, times=None))
    first = put(checkpoint)
    assert first.exit_code == ExitCode.NETWORK
    assert "the same command resumes the upload" in first.stderr
    assert "manifest.json" not in objects(server)
    before = writes(server)
    assert len(before) == after
    server.reset()
    second = put(checkpoint)
    assert second.exit_code == 0, second.stderr
    assert "wrote" not in second.stdout
    assert objects(server) == local
    assert not set(before) & set(writes(server))
    assert sorted(before + writes(server)) == sorted(local)
    assert scratch() == []
    assert ("Resuming:" in second.stderr) == (after > 0)


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts", "one_at_a_time")
def test_a_file_that_ended_midway_leaves_no_parts_and_is_sent_again(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes]
) -> None:
    server.faults.append(Fault("forbidden", route="part", after=5))
    assert put(checkpoint).exit_code == ExitCode.NETWORK
    assert server.uploads() == 0
    server.reset()
    assert put(checkpoint).exit_code == 0
    assert objects(server) == local


@pytest.mark.slow
def test_an_object_that_was_put_but_not_noted_is_sent_again(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes], one_at_a_time: None
) -> None:
    server.faults.append(Fault("forbidden", route="put", after=5, times=None))
    put(checkpoint)
    [folder] = scratch()
    with open(f"{folder}/journal", "r+b") as journal:
        journal.truncate(os.path.getsize(f"{folder}/journal") - 5)
    server.reset()
    assert put(checkpoint).exit_code == 0
    assert objects(server) == local
    assert len(writes(server)) == len(local) - 4


@pytest.mark.slow
def test_an_object_that_was_replaced_since_it_was_put_is_sent_again(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes], one_at_a_time: None
) -> None:
    server.faults.append(Fault("forbidden", route="put", after=5, times=None))
    put(checkpoint)
    name = writes(server)[0]
    server.put(f"shards/tp4/{name}", bytes(len(local[name])))
    server.reset()
    assert put(checkpoint).exit_code == 0
    assert name in writes(server)
    assert objects(server) == local


@pytest.mark.slow
def test_an_answer_that_is_lost_at_the_end_of_an_upload_costs_a_second_one(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes], small_parts: None
) -> None:
    server.faults.append(Fault("cut", route="complete"))
    first = put(checkpoint)
    assert (first.exit_code, "broke off" in first.stderr) == (ExitCode.NETWORK, True)
    assert put(checkpoint).exit_code == 0
    assert objects(server) == local


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("route", ["put", "part"])
def test_what_is_damaged_on_its_way_to_s3_is_refused_there_and_sent_again(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes], route: str
) -> None:
    server.faults.append(Fault("damage", route=route, after=2))
    result = put(checkpoint)
    assert (result.exit_code, "answered 400 XAmzContentSHA256Mismatch" in result.stderr) == (ExitCode.NETWORK, True)
    assert "manifest.json" not in objects(server)
    assert put(checkpoint).exit_code == 0
    assert objects(server) == local


@pytest.mark.slow
def test_what_lasts_a_moment_is_not_noticed(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes], small_parts: None
) -> None:
    server.faults += [Fault("status", route="part", after=3, times=2), Fault("too_many", route="list", times=2)]
    assert put(checkpoint).exit_code == 0
    assert objects(server) == local


def test_a_store_that_refuses_is_known_before_anything_is_written(server: "StoreServer", checkpoint: Path) -> None:
    server.faults.append(Fault("forbidden", times=None))
    result = put(checkpoint)
    assert (result.exit_code, "refused access (403" in result.stderr) == (ExitCode.NETWORK, True)
    assert scratch() == []


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible", "patient_client")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_an_upload_that_stalls_and_the_next_run_goes_on(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes], how: signal.Signals
) -> None:
    stall = Fault("stall", route="put", after=3, times=None)
    server.faults.append(stall)
    command = [sys.executable, "-m", "dsv4_shard", "reshard", checkpoint, URL, *TP4]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:  # type: ignore[arg-type]
        # Every thread waits for an answer: the objects before are put and noted, and none is under way.
        while stall.hits < upload.OBJECTS_AT_ONCE and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(how)
        _, said = process.communicate()
    assert process.returncode == (ExitCode.INTERRUPTED if how == signal.SIGINT else 128 + how), said
    assert "the same command resumes the upload" in said
    before = writes(server)
    server.reset()
    assert put(checkpoint).exit_code == 0
    assert objects(server) == local
    assert len(before) == 3
    assert not set(before) & set(writes(server))


# --- what is there already -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_result_is_refused_unless_it_is_to_be_overwritten(server: "StoreServer", checkpoint: Path) -> None:
    put(checkpoint)
    before = server.objects()
    result = run("reshard", checkpoint, URL, *TP2)
    assert (result.exit_code, "--overwrite" in result.stderr) == (ExitCode.IO, True)
    assert server.objects() == before
    assert scratch() == []


@pytest.mark.slow
def test_what_is_overwritten_is_gone_its_manifest_first(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes]
) -> None:
    run("reshard", checkpoint, URL, "--tp", "8", "--gpu", "h100")
    assert len(objects(server)) > len(local)
    server.reset()
    removed = []
    server.faults.append(Fault("call", route="delete", times=2, call=lambda: removed.append(set(objects(server)))))
    assert put(checkpoint, "--overwrite").exit_code == 0
    assert removed[0] - removed[1] == {"manifest.json"}
    assert objects(server) == local
    routes = [request.route for request in server.requests]
    assert routes.index("delete") < routes.index("put")


@pytest.mark.slow
@pytest.mark.parametrize("route", ["delete", "put"])
@pytest.mark.parametrize("after", [0, 1])
def test_an_overwriting_that_ended_early_goes_on(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes], route: str, after: int
) -> None:
    first = run("reshard", checkpoint, URL, *TP2)
    assert first.exit_code == 0, first.stderr
    server.faults.append(Fault("forbidden", route=route, after=after))
    ended = put(checkpoint, "--overwrite")
    assert ended.exit_code == ExitCode.NETWORK, ended.stderr
    assert ("manifest.json" in objects(server)) == (route == "delete" and after == 0)
    server.reset()
    assert put(checkpoint, "--overwrite").exit_code == 0
    assert objects(server) == local


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
@pytest.mark.parametrize("has_result", [False, True])
def test_what_is_of_others_is_neither_joined_nor_removed(
    server: "StoreServer", checkpoint: Path, options: tuple[str, ...], has_result: bool
) -> None:
    if has_result:
        put(checkpoint)
    server.put("shards/tp4/notes/todo.txt", b"mine")
    before = server.objects()
    result = run("reshard", checkpoint, URL, *TP2, *options)
    assert result.exit_code == ExitCode.IO
    assert server.objects() == before
    assert scratch() == []


@pytest.mark.slow
def test_a_manifest_that_is_replaced_before_it_is_read_is_not_taken_for_the_one_that_was_listed(
    server: "StoreServer", checkpoint: Path
) -> None:
    put(checkpoint)
    other = bytes(len(objects(server)["manifest.json"]))
    server.faults += [
        Fault("ignore_match", times=None),
        Fault("call", route="get", call=lambda: server.put("shards/tp4/manifest.json", other)),
    ]
    result = run("reshard", checkpoint, URL, *TP2, "--overwrite")
    assert result.exit_code == SourceChanged.exit_code
    assert f"{URL}/manifest.json: replaced by another object since it was listed" in result.stderr
    assert objects(server)["manifest.json"] == other


def test_a_manifest_that_is_not_known_is_not_overwritten(server: "StoreServer", checkpoint: Path) -> None:
    server.put("shards/tp4/manifest.json", b"{}")
    result = put(checkpoint, "--overwrite")
    assert (result.exit_code, f"{URL}/manifest.json: damaged" in result.stderr) == (ExitCode.IO, True)
    assert objects(server) == {"manifest.json": b"{}"}


@pytest.mark.parametrize("options", [(), ("--restart",), ("--overwrite",)])
def test_what_an_upload_left_whose_scratch_folder_is_lost_is_put_again(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes], options: tuple[str, ...]
) -> None:
    server.faults.append(Fault("forbidden", route="put", after=3, times=None))
    assert put(checkpoint).exit_code == ExitCode.NETWORK
    left = objects(server)
    assert 0 < len(left) < len(local)
    server.reset()
    shutil.rmtree(scratch()[0])
    again = put(checkpoint, *options)
    assert again.exit_code == ExitCode.DONE, again.output
    assert objects(server) == local


@pytest.mark.parametrize("name", ["tokenizer.json", "model-rank-0-part-0.safetensors", "other.bin"])
def test_an_object_that_the_upload_did_not_put_is_never_taken_for_its_remains(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes], name: str
) -> None:
    """Of the same name and size, with other content: somebody else's."""
    server.put(f"shards/tp4/{name}", bytes(len(local.get(name, b"1"))))
    for options in ((), ("--restart",), ("--overwrite",)):
        refused = put(checkpoint, *options)
        assert (refused.exit_code, f"1 object that is not this result's: {name}" in refused.stderr) == (
            ExitCode.IO,
            True,
        )
        assert f"`aws s3 rm --recursive {URL}`" in refused.stderr


@pytest.mark.parametrize("prefix", ["run%2Fz", "p%20q", "a/b%2e"])
def test_a_prefix_that_would_be_decoded_is_refused_for_reading_and_writing(
    prefix: str, server: "StoreServer", checkpoint: Path
) -> None:
    for command in (("inspect", f"s3://bucket/{prefix}"), ("reshard", checkpoint, f"s3://bucket/{prefix}", *TP2)):
        refused = run(*command)
        assert (refused.exit_code, "which would be read as" in refused.stderr) == (ExitCode.USAGE, True)
    assert server.requests == []
    put(checkpoint, url="s3://bucket/shards run+1=%")
    assert any(key.startswith("shards run+1=%/") for key in server.objects())


# --- what others do meanwhile ----------------------------------------------------------------------------------------


def _while_it_is_put(server: "StoreServer", call: Callable[..., Any]) -> None:
    """Call this before the listing that the objects must match."""
    server.faults.append(Fault("call", route="list", after=2, call=call))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "said"),
    [(b"short", "has 5 bytes"), (None, "is not there"), (b"", "is not the object that was uploaded")],
)
def test_objects_that_are_not_what_was_put_keep_the_manifest_back(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes], content: bytes | None, said: str
) -> None:
    key = f"shards/tp4/{SHARED}"
    backend = server._backend

    def change() -> None:
        if content is None:
            backend.delete_object(server.bucket, key)
        else:
            server.put(key, content or bytes(len(local[SHARED])))

    _while_it_is_put(server, change)
    result = put(checkpoint)
    assert (result.exit_code, f"{URL}/{SHARED}: {said}" in result.stderr) == (ExitCode.NETWORK, True), result.stderr
    assert "manifest.json" not in objects(server)
    server.reset()
    assert put(checkpoint).exit_code == 0
    assert writes(server) == [SHARED, "manifest.json"]
    assert objects(server) == local


@pytest.mark.slow
def test_another_run_that_puts_into_the_same_place_is_noticed(server: "StoreServer", checkpoint: Path) -> None:
    _while_it_is_put(server, lambda: server.put("shards/tp4/model-rank-7-part-0.safetensors", b"x"))
    result = put(checkpoint)
    assert (result.exit_code, "model-rank-7-part-0" in result.stderr) == (ExitCode.IO, True)
    assert "manifest.json" not in objects(server)


# --- the scratch folder ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_scratch_folder_is_where_it_is_said_and_kept_if_asked(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    result = put(checkpoint, "--scratch", tmp_path, "--keep-scratch")
    folder = scratch_path(tmp_path, URL) / "result"
    assert f"kept in {folder}" in result.stdout
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(local)
    assert run("verify", folder, "--against", checkpoint).exit_code == 0


@pytest.mark.slow
def test_what_is_kept_and_there_is_not_sent_again(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes]
) -> None:
    put(checkpoint, "--keep-scratch")
    server.reset()
    result = put(checkpoint, "--json")
    assert (result.exit_code, json.loads(result.stdout)["sent"]) == (0, 0)
    assert writes(server) == []
    assert objects(server) == local
    assert scratch() == []


@pytest.mark.slow
def test_what_is_lost_there_is_put_again_after_the_manifest_is_gone(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes]
) -> None:
    put(checkpoint, "--keep-scratch")
    server.put(f"shards/tp4/{SHARED}", b"damaged")
    server.reset()
    assert put(checkpoint).exit_code == 0
    changes = [request.route for request in server.requests if request.route in ("put", "delete")]
    assert changes == ["delete", "put", "put"]
    assert writes(server) == [SHARED, "manifest.json"]
    assert objects(server) == local


@pytest.mark.slow
def test_the_result_of_another_run_is_kept_until_it_is_thrown_away(
    server: "StoreServer", checkpoint: Path, local: dict[str, bytes], one_at_a_time: None
) -> None:
    server.faults.append(Fault("forbidden", route="put", after=3, times=None))
    run("reshard", checkpoint, URL, *TP2)
    server.reset()
    refused = put(checkpoint)
    assert (refused.exit_code, "another run that is not uploaded yet" in refused.stderr) == (ExitCode.IO, True)
    assert len(scratch()) == 1
    assert len(objects(server)) == 3
    assert put(checkpoint, "--restart").exit_code == 0
    assert objects(server) == local


def without_card(result: Path) -> None:
    """Make a result one that was written before results had model cards."""
    (result / "README.md").unlink()
    companions = json.loads((result / "manifest.json").read_bytes())["companions"]
    reseal(result, companions=[entry for entry in companions if entry["name"] != "README.md"])


def as_of_schema_1(checkpoint: Any, version: Any) -> Any:
    """Make the unfinished upload one of schema 1 that another version of the tool began."""
    (folder,) = map(Path, scratch())
    without_card(folder / "result")
    if version is not None:
        as_of_other_version(folder / "result")
    source, inventory = open_folder(checkpoint)
    made = make_plan(source, inventory, Request(4, gpu="h100"), str(checkpoint))
    job = prepare(source, inventory, made).as_before()
    companions = job.companions | {"plan.json": (folder / "result/plan.json").read_bytes()}
    asked = [version or __version__, job.layout, asdict(job.request), job.ranks]  # type: ignore[arg-type]
    digest = xxhash.xxh3_128(json.dumps([*asked, [(file.name, file.mtime_ns) for file in source.files]]).encode())
    for name, content in sorted(companions.items()):
        digest.update(name.encode())
        digest.update(content)
    for file in job.recipe.files:
        digest.update(file.name.encode())
        digest.update(file.header)
    lines = (folder / "journal").read_text().splitlines()
    (folder / "journal").write_text("\n".join((json.dumps({"run": digest.hexdigest()}), *lines[1:])) + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("version", [None, "9.9.9"])
def test_an_upload_of_schema_1_is_continued_whatever_version_began_it(
    server: "StoreServer", checkpoint: Path, version: str | None, one_at_a_time: None
) -> None:
    server.faults.append(Fault("forbidden", route="put", after=3, times=None))
    put(checkpoint)
    folder = as_of_schema_1(checkpoint, version)
    server.reset()
    server.faults.append(Fault("forbidden", route="put", after=2, times=None))
    assert put(checkpoint).exit_code == ExitCode.NETWORK
    assert json.loads((folder / "journal").read_text().splitlines()[-1]).keys() == {"name", "nbytes", "stamp"}
    server.reset()
    assert put(checkpoint).exit_code == 0
    assert 0 < len(writes(server)) < len(objects(server)) - 3
    assert load_manifest_of(server).written_by == {version or __version__: (0, 1, 2, 3)}


def test_an_upload_that_was_begun_before_there_were_cards_is_continued(
    server: "StoreServer", checkpoint: Path, one_at_a_time: None
) -> None:
    server.faults.append(Fault("forbidden", route="put", after=3, times=None))
    put(checkpoint)
    (folder,) = map(Path, scratch())
    without_card(folder / "result")
    source, inventory = open_folder(checkpoint)
    made = make_plan(source, inventory, Request(4, gpu="h100"), str(checkpoint))
    lines = (folder / "journal").read_text().splitlines()
    before = run_digest(prepare(source, inventory, made).as_before(), source)
    (folder / "journal").write_text("\n".join((json.dumps(json.loads(lines[0]) | {"run": before}), *lines[1:])) + "\n")
    server.reset()
    assert put(checkpoint).exit_code == 0
    assert "README.md" not in objects(server)


def test_an_upload_of_schema_1_of_another_run_is_refused(
    server: "StoreServer", checkpoint: Path, one_at_a_time: None
) -> None:
    server.faults.append(Fault("forbidden", route="put", after=3, times=None))
    put(checkpoint)
    folder = as_of_schema_1(checkpoint, None)
    lines = (folder / "journal").read_text().splitlines()
    (folder / "journal").write_text("\n".join(('{"run": "0"}', *lines[1:])) + "\n")
    server.reset()
    assert "another run that is not uploaded yet" in put(checkpoint).stderr


def test_an_upload_of_a_newer_schema_is_refused_in_one_sentence(
    server: "StoreServer", checkpoint: Path, one_at_a_time: None
) -> None:
    server.faults.append(Fault("forbidden", route="put", after=3, times=None))
    put(checkpoint)
    (folder,) = map(Path, scratch())
    before = (folder / "journal").read_text()
    (folder / "journal").write_text(before.replace('"schema_version":2', '"schema_version":3'))
    refused = put(checkpoint)
    assert (refused.exit_code, "upload has schema version 3" in refused.stderr) == (ExitCode.CHECKPOINT, True)
    assert "the newest that this version reads is 2: upgrade dsv4-shard" in refused.stderr
    (folder / "journal").write_text(before)
    server.reset()
    assert put(checkpoint).exit_code == 0


@pytest.mark.slow
def test_what_an_earlier_run_put_is_not_thrown_away_where_another_result_stands_now(
    server: "StoreServer", checkpoint: Path, one_at_a_time: None
) -> None:
    server.faults.append(Fault("forbidden", route="put", after=3, times=None))
    put(checkpoint)
    server.reset()
    for key in server.objects():
        server._backend.delete_object(server.bucket, key)
    run("reshard", checkpoint, URL, *TP2, "--scratch", "..")
    before = server.objects()
    refused = put(checkpoint, "--restart")
    assert (refused.exit_code, "holds a result" in refused.stderr) == (ExitCode.IO, True)
    assert server.objects() == before


def test_a_result_of_another_checkpoint_is_not_uploaded_for_this_one(
    server: "StoreServer", checkpoint: Path, tmp_path: Path
) -> None:
    model = write_checkpoint(tmp_path / "model", small_config(), seed=6)
    server.faults.append(Fault("forbidden", route="put", times=None))
    put(model)
    server.reset()
    for path in model.glob("*.safetensors"):
        os.utime(path, ns=(1, 1))
    assert "another run" in put(model).stderr


@pytest.mark.slow
def test_two_runs_do_not_share_a_scratch_folder(server: "StoreServer", checkpoint: Path) -> None:
    other = LockedFolder(scratch_path(Path(), URL), URL)
    other.acquire()
    result = put(checkpoint)
    other.release()
    assert (result.exit_code, "another dsv4-shard is writing it" in result.stderr) == (ExitCode.IO, True)
    assert put(checkpoint).exit_code == 0


@pytest.mark.slow
def test_the_lock_of_a_scratch_folder_is_on_a_file_that_is_open_for_writing(
    server: "StoreServer", checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS asks for; a folder cannot be opened so."""
    locked, real = [], fcntl.flock

    def flock(fd: Any, operation: Any) -> None:
        locked.append(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert put(checkpoint).exit_code == 0
    assert set(locked) == {os.O_RDWR}
    assert scratch() == []


def test_a_folder_of_others_is_not_taken_for_scratch(server: "StoreServer", checkpoint: Path) -> None:
    folder = scratch_path(Path(), URL)
    folder.mkdir()
    (folder / "mine").touch()
    result = put(checkpoint, "--restart")
    assert (result.exit_code, "did not make" in result.stderr) == (ExitCode.IO, True)
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_a_scratch_folder_that_is_not_there_is_said(server: "StoreServer", checkpoint: Path) -> None:
    result = put(checkpoint, "--scratch", "nowhere")
    assert (result.exit_code, "no such folder" in result.stderr) == (ExitCode.IO, True)


@pytest.mark.parametrize("option", [("--scratch", "x"), ("--keep-scratch",)])
def test_scratch_is_for_urls(checkpoint: Path, option: tuple[str, ...]) -> None:
    assert run("reshard", checkpoint, "shards", *TP4, *option).exit_code == ExitCode.USAGE


def test_room_is_looked_at_before_anything_is_written(
    server: "StoreServer", checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsv4_shard.storage.output_folder.free_bytes", lambda out: 1000)
    result = put(checkpoint)
    assert (result.exit_code, "; 1.00 kB are free" in result.stderr) == (ExitCode.IO, True)
    assert scratch() == []


def test_other_urls_are_refused(checkpoint: Path) -> None:
    result = put(checkpoint, url="https://host/shards")
    assert (result.exit_code, "s3://bucket/prefix" in result.stderr) == (ExitCode.USAGE, True)


@pytest.mark.parametrize("command", [("verify", URL), ("merge", "shards", URL)])
def test_commands_that_need_a_folder_refuse_a_url(command: tuple[str, ...]) -> None:
    result = run(*command)
    assert (result.exit_code, f"{URL}: a folder is wanted here" in result.stderr) == (ExitCode.USAGE, True)
