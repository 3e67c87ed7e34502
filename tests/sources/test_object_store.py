"""A checkpoint in an object store is the one in the folder; what is needed is asked once; each fault is said once."""

import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from huggingface_hub import ModelCard
from support.checkpoints.release import RELEASE
from support.checkpoints.small import small_config
from support.command_line import run
from support.servers.loopback import Fault

from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.errors import (
    AccessRefused,
    BadAnswer,
    ExitCode,
    NotFound,
    ServerFailed,
    SourceChanged,
    Throttled,
    Unreachable,
    UsageError,
)
from dsv4_shard.limits import STORE_LISTING
from dsv4_shard.opening import open_source
from dsv4_shard.sources import object_store as stores
from dsv4_shard.sources import remote_headers as heads
from dsv4_shard.sources.gate import Gate
from dsv4_shard.sources.object_store import connect, open_store
from dsv4_shard.tensors.header import LENGTH_BYTES

if TYPE_CHECKING:
    from support.servers.store import StoreServer


URL = "s3://bucket/models/small"
REFERENCE = ("--tp", "4", "--engine", "reference")
WEIGHTS = "model-00002-of-*"
_QUICK = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=2)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("stores") / "small", small_config(), seed=3)


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(stores, "_RETRIES", {"max_retries": 2, "backoff": _QUICK})


@pytest.fixture
def server(store_server: "StoreServer", checkpoint: Path) -> "StoreServer":
    store_server.upload(checkpoint, "models/small")
    return store_server


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def weights(folder: Path) -> dict[str, bytes]:
    """Bytes of its rank files."""
    return {name: content for name, content in files(folder).items() if name.endswith(".safetensors")}


def test_the_small_files_of_a_release_come_from_a_store(server: "StoreServer", tmp_path: Path) -> None:
    for name, content in RELEASE.items():
        server.put(f"models/small/{name}", content.encode())
    run("plan", URL, *REFERENCE)
    assert not {request.file for request in server.requests} & {f"models/small/{name}" for name in RELEASE}
    assert run("reshard", URL, tmp_path / "out", *REFERENCE).exit_code == 0
    found = files(tmp_path / "out")
    there = {name: found["README.source.md" if name == "README.md" else name].decode() for name in RELEASE}
    assert there == RELEASE
    assert "base_model" not in ModelCard.load(tmp_path / "out/README.md").data.to_dict()
    assert run("verify", tmp_path / "out", "--against", URL).exit_code == 0


def test_keys_that_are_no_paths_stay_in_the_store(server: "StoreServer", tmp_path: Path) -> None:
    server.put("models/small/encoding/", b"")
    for name in ("encoding/a.py", "both", "both/x", "a b /c", ".hidden/x", "back\\slash", "-x"):
        server.put(f"models/small/{name}", b"x")
    found = json.loads(run("reshard", URL, tmp_path / "out", *REFERENCE, "--dry-run", "--json").stdout)
    assert found["left_behind"].keys() == {"both/x", "a b /c", ".hidden/", "back\\\\slash", "-x"}
    assert run("reshard", URL, tmp_path / "out", *REFERENCE).exit_code == 0
    found = files(tmp_path / "out")
    assert (found["encoding/a.py"], found["both"]) == (b"x", b"x")


# --- what is said of it --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("command", [("inspect",), ("plan", *REFERENCE)])
def test_what_is_said_of_a_checkpoint_is_what_is_said_of_its_folder(
    server: "StoreServer", checkpoint: Path, command: tuple[str, ...]
) -> None:
    afar, here = run(command[0], URL, *command[1:], "--json"), run(command[0], checkpoint, *command[1:], "--json")
    assert (afar.exit_code, here.exit_code) == (0, 0)
    assert afar.stdout.replace(URL, "it") == here.stdout.replace(str(checkpoint), "it")


def test_inspect_lists_once_and_asks_each_file_once_for_its_head(server: "StoreServer", checkpoint: Path) -> None:
    run("inspect", URL)
    asked = [(request.route, request.file.rpartition("/")[2]) for request in server.requests]
    small = ["config.json", "model.safetensors.index.json"]
    assert asked[0] == ("list", "")
    assert sorted(name for _, name in asked[1:]) == sorted(small + [p.name for p in checkpoint.glob("*.safetensors")])
    assert {route for route, _ in asked[1:]} == {"get"}


@pytest.mark.slow
def test_the_second_command_reads_no_object(server: "StoreServer") -> None:
    run("inspect", URL)
    server.reset()
    assert run("plan", URL, *REFERENCE).exit_code == 0
    assert [request.route for request in server.requests] == ["list"]


@pytest.mark.slow
def test_what_is_kept_of_a_listing_is_not_taken_for_another(server: "StoreServer", checkpoint: Path) -> None:
    run("inspect", URL)
    server.put("models/small/config.json", (checkpoint / "config.json").read_bytes().replace(b"{", b"{ ", 1))
    server.reset()
    assert run("inspect", URL).exit_code == 0
    assert server.seen(route="get", file="models/small/config.json")


def test_what_else_lies_below_the_prefix_is_no_file_of_it(server: "StoreServer") -> None:
    server.put("models/small/", b"")
    server.put("models/small/inference/model.py", b"x")
    server.put("models/smaller/config.json", b"x")
    assert "inference/model.py" not in (sizes := open_store(URL).sizes())
    assert "" not in sizes
    assert sizes == {name: len(content) for name, content in files_at(server, "models/small").items() if name in sizes}


def files_at(server: "StoreServer", prefix: str) -> dict[str, bytes]:
    return {
        key.removeprefix(f"{prefix}/"): content for key, content in server.objects().items() if key.startswith(prefix)
    }


@pytest.mark.slow
@pytest.mark.parametrize("url", [f"{URL}/", URL.replace("s3", "S3")])
def test_a_place_is_the_same_with_a_slash_at_its_end_and_with_its_scheme_in_capitals(
    server: "StoreServer", url: str
) -> None:
    run("inspect", URL)
    server.reset()
    assert open_source(url).label == URL
    assert [request.route for request in server.requests] == ["list"]


# --- reshard and verify --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rank_files_are_those_of_the_folder_and_verify_reads_the_store(
    server: "StoreServer", checkpoint: Path, tmp_path: Path
) -> None:
    assert run("reshard", URL, tmp_path / "afar", *REFERENCE).exit_code == 0
    assert run("reshard", checkpoint, tmp_path / "here", *REFERENCE).exit_code == 0
    assert weights(tmp_path / "afar") == weights(tmp_path / "here")
    server.reset()
    result = run("verify", tmp_path / "afar", "--against", URL, "--numerics")
    assert (result.exit_code, "no problems found" in result.stdout) == (0, True), result.stderr
    assert server.seen(route="get")


@pytest.mark.slow
def test_a_folder_made_from_the_store_is_verified_against_the_folder(
    server: "StoreServer", checkpoint: Path, tmp_path: Path
) -> None:
    run("reshard", URL, tmp_path / "out", *REFERENCE)
    found = run("verify", tmp_path / "out", "--against", checkpoint)
    assert found.exit_code == 0
    assert f"that the checkpoint came from '{URL}'" in " ".join(found.stdout.split())


@pytest.mark.slow
def test_a_byte_that_was_changed_on_its_way_is_found_by_comparing_with_the_store(
    server: "StoreServer", tmp_path: Path
) -> None:
    run("inspect", URL)
    server.faults.append(Fault("corrupt", route="get", file=f"*/{WEIGHTS}"))
    assert run("reshard", URL, tmp_path / "out", *REFERENCE).exit_code == 0
    assert server.faults[0].hits == 1
    assert run("verify", tmp_path / "out").exit_code == 0
    assert run("verify", tmp_path / "out", "--against", URL).exit_code == ExitCode.NO


@pytest.mark.slow
@pytest.mark.parametrize("options", [REFERENCE, ("--tp", "4", "--gpu", "h100")])
def test_a_run_fetches_each_byte_once(
    server: "StoreServer", checkpoint: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    run("inspect", URL)
    server.reset()
    assert run("reshard", URL, tmp_path / "out", *options).exit_code == 0
    total = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert 0.9 * total < server.bytes_sent(route="get") <= 1.02 * total


@pytest.mark.slow
def test_a_share_fetches_what_its_ranks_need(server: "StoreServer", checkpoint: Path, tmp_path: Path) -> None:
    options = ("--engine", "node", "--tp", "4", "--nodes", "4", "--ranks", "1")
    run("inspect", URL)
    server.reset()
    assert run("reshard", URL, tmp_path / "out", *options).exit_code == 0
    needed = sum(map(len, weights(tmp_path / "out").values()))
    assert needed < 0.8 * sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    assert server.bytes_sent(route="get") <= 1.02 * needed + (64 << 10)  # tokenizer and the like


def test_google_storage_goes_the_same_way(
    server: "StoreServer", checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.google_env(tmp_path / "account.json").items():
        monkeypatch.setenv(name, value)
    assert run("reshard", URL.replace("s3:", "gs:"), tmp_path / "afar", *REFERENCE).exit_code == 0
    run("reshard", checkpoint, tmp_path / "here", *REFERENCE)
    assert weights(tmp_path / "afar") == weights(tmp_path / "here")


# --- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cut", "stall_body"])
def test_a_body_that_breaks_off_is_gone_on_with_where_it_did(
    server: "StoreServer", checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    run("inspect", URL)
    server.reset()
    monkeypatch.setenv("AWS_TIMEOUT", "1s")
    server.faults.append(Fault(kind, file=f"*/{WEIGHTS}", at=1000, times=2))
    assert run("reshard", URL, tmp_path / "afar", *REFERENCE).exit_code == 0
    assert server.faults[0].hits == 2
    total = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert server.bytes_sent(route="get") <= 1.02 * total  # not from the start
    run("reshard", checkpoint, tmp_path / "here", *REFERENCE)
    assert weights(tmp_path / "afar") == weights(tmp_path / "here")


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (Fault("forbidden", times=None), AccessRefused, "s3://bucket refused access (403 AccessDenied)"),
        (Fault("unauthorized", times=None), AccessRefused, "refused access (403 SignatureDoesNotMatch)"),
        (Fault("status", status=401, times=None), AccessRefused, "refused access (401"),
        (Fault("too_many", times=None), Throttled, "answered 429 TooManyRequests, after 2 retries"),
        (Fault("too_many", retry_after=4000, times=None), Throttled, "answered 429 TooManyRequests, after 2 retries"),
        (Fault("status", status=408, times=None), ServerFailed, "answered 408 InternalError, after 2 retries"),
        (Fault("status", status=502, times=None), ServerFailed, "answered 502 InternalError, after 2 retries"),
        (Fault("status", status=503, times=None), ServerFailed, "answered 503 InternalError, after 2 retries"),
        (Fault("status", status=500, times=None), ServerFailed, "answered 500 InternalError, after 2 retries"),
        (Fault("status", status=400, times=None), BadAnswer, "answered 400 InternalError"),
        (Fault("other_region", times=None), BadAnswer, "s3://bucket is in another region, eu-central-1"),
        (Fault("status", status=301, times=None), BadAnswer, "s3://bucket is in another region"),
        (Fault("redirect", times=None), BadAnswer, "s3://bucket answers only with redirects"),
        (Fault("entry_not_found", route="get", times=None), NotFound, "not there"),
        (Fault("ignore_range", route="get", times=None), BadAnswer, "ignores Range"),
        (Fault("wrong_range", route="get", times=None), BadAnswer, "Requested 0.."),
        (Fault("wrong_total", route="get", times=None), BadAnswer, "sent bytes 0 to "),
        (Fault("short_range", route="get", times=None), BadAnswer, "Requested 0.."),
        (Fault("long_range", route="get", times=None), BadAnswer, "sent more than the announced "),
        (Fault("cut", route="get", at=0, times=None), ServerFailed, "connections broke off"),
    ],
)
def test_each_fault_has_its_error_and_what_to_do(
    server: "StoreServer", fault: Fault, error: type[Unreachable], said: str
) -> None:
    server.faults.append(fault)
    with pytest.raises(error) as raised:
        open_store(URL)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "Debug" not in str(raised.value)
    assert raised.value.exit_code == ExitCode.NETWORK


@pytest.mark.parametrize("kind", ["stall", "stall_body"])
def test_a_stall_ends_with_the_time_that_the_environment_gives(
    server: "StoreServer", monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("AWS_TIMEOUT", "100ms")
    server.faults.append(Fault(kind, times=None))
    with pytest.raises(ServerFailed, match="no answer in time"):
        open_store(URL)
    assert server.faults[0].hits >= 3


@pytest.mark.parametrize("route", ["list", "get"])
@pytest.mark.parametrize("status", [408, 429, 502, 503])
def test_what_lasts_a_moment_is_no_fault(server: "StoreServer", route: str, status: int) -> None:
    server.faults.append(Fault("status", status=status, route=route, times=2))
    assert open_store(URL).sizes()
    assert server.faults[0].hits == 2


@pytest.mark.parametrize("edge", [-1, 0, 1])
def test_a_header_may_end_at_the_edge_of_the_first_range(
    server: "StoreServer", checkpoint: Path, monkeypatch: pytest.MonkeyPatch, edge: int
) -> None:
    path = next(checkpoint.glob(WEIGHTS))
    raw = path.read_bytes()
    length = LENGTH_BYTES + int.from_bytes(raw[:LENGTH_BYTES], "little")
    monkeypatch.setattr(heads, "_MIN_FIRST_BYTES", length + edge)
    monkeypatch.setattr(heads, "_ENTRY_BYTES", 0)
    assert open_store(URL).headers[path.name] == raw[:length]
    assert len(server.seen(file=f"models/small/{path.name}")) == (2 if edge < 0 else 1)


def test_a_command_says_it_in_one_line_with_a_hint_and_exits_with_5(server: "StoreServer") -> None:
    server.faults.append(Fault("forbidden", times=None))
    result = run("inspect", URL)
    assert (result.exit_code, result.stdout) == (ExitCode.NETWORK, "")
    assert result.stderr.splitlines()[0] == f"error: {URL}: s3://bucket refused access (403 AccessDenied)"
    assert "AWS_ACCESS_KEY_ID" in result.stderr.splitlines()[1]
    assert len(result.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://bucket/nothing", "s3://bucket/nothing: nothing there"),
        ("s3://bucket/models/small/config.json", "config.json: nothing there"),
        ("s3://nobucket/models", "no bucket s3://nobucket (404 NoSuchBucket)"),
    ],
)
def test_what_is_not_there_is_not_found(server: "StoreServer", url: str, said: str) -> None:
    with pytest.raises(NotFound) as raised:
        open_store(url)
    assert said in str(raised.value)


def test_nobody_at_the_endpoint_is_said(server: "StoreServer", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(
        ServerFailed, match=r"no connection to http://127\.0\.0\.1:9: Connection refused, after 2 retries"
    ) as raised:
        open_store(URL)
    assert "AWS_ENDPOINT_URL" in raised.value.hint


def test_an_endpoint_without_encryption_must_be_allowed(server: "StoreServer", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(Unreachable, match="without encryption") as raised:
        open_store(URL)
    assert "AWS_ALLOW_HTTP=true" in raised.value.hint


def test_no_credentials_are_said_with_where_they_are_set(
    server: "StoreServer", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(AccessRefused, match="no credentials for s3:// are set") as raised:
        open_store(URL)
    assert "AWS_ACCESS_KEY_ID" in raised.value.hint


def test_an_account_that_is_missing_is_said() -> None:
    with pytest.raises(UsageError, match="Account must be specified") as raised:
        open_store("az://container/prefix")
    assert "AZURE_STORAGE_ACCOUNT_NAME" in raised.value.hint


@pytest.mark.parametrize("url", ["http://host/x", "https://host/x", "file:///tmp", "memory://", "ftp://x/y", "s3://"])
def test_other_urls_are_refused_with_those_that_are_supported(url: str) -> None:
    with pytest.raises(UsageError) as raised:
        open_source(url)
    assert "s3://bucket/prefix" in raised.value.hint


@pytest.mark.parametrize(
    "url", ["s3://[b/x", "s3://b:80/x", "s3://b c/x", "s3://b/\udcff", "s3://b/a//b", "gs://b/../x"]
)
def test_what_is_no_url_of_a_place_is_refused_without_a_word_of_credentials(url: str) -> None:
    with pytest.raises(UsageError) as raised:
        connect(url)
    assert "AWS" not in raised.value.hint
    assert run("inspect", url).exit_code == ExitCode.USAGE


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/x", "s3://bucket/x?X-Amz-Signature=secret", "s3://b/x#secret"])
def test_a_url_with_credentials_is_refused_and_not_shown(url: str) -> None:
    result = run("inspect", url)
    assert result.exit_code == ExitCode.USAGE
    assert "credentials come from the environment" in result.stderr
    assert "secret" not in result.stderr


def test_what_is_no_url_and_may_have_credentials_is_not_shown() -> None:
    result = run("inspect", "s3://key:secret@[b/x")
    assert result.exit_code == ExitCode.USAGE
    assert "secret" not in result.stderr


def test_signatures_and_keys_are_in_no_message(server: "StoreServer", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=SECRETSIGNATURE")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "false")
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
    result = run("inspect", "az://container/prefix")
    assert result.exit_code == ExitCode.NETWORK
    assert "SECRET" not in result.stderr


def test_names_of_a_store_are_shown_escaped(server: "StoreServer") -> None:
    server.put("models/odd/config.json", b"{}")
    server.put("models/odd/\x1b[31m.safetensors", b"x")
    result = run("inspect", "s3://bucket/models/odd")
    assert result.exit_code != 0
    assert "\x1b" not in result.stderr + result.stdout


# --- changes -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["conditions count", "conditions are ignored"])
def conditions(request: pytest.FixtureRequest) -> list[Fault]:
    """A store that looks at If-Match, and one that gives what it has."""
    return [] if request.param else [Fault("ignore_match", times=None)]


@pytest.mark.slow
def test_an_object_that_is_replaced_during_the_run_ends_it_and_leaves_nothing(
    server: "StoreServer", checkpoint: Path, tmp_path: Path, conditions: list[Fault]
) -> None:
    run("inspect", URL)
    server.reset()
    server.faults += conditions
    path = next(checkpoint.glob(WEIGHTS))
    other = bytes(path.stat().st_size)
    server.faults.append(
        Fault("call", route="get", file=f"*/{path.name}", call=lambda: server.put(f"models/small/{path.name}", other))
    )
    result = run("reshard", URL, tmp_path / "out", *REFERENCE)
    assert result.exit_code == SourceChanged.exit_code
    assert f"{URL}/{path.name}: replaced by another object since it was listed" in result.stderr
    assert list(tmp_path.glob("*out*")) == []


def test_an_object_that_is_replaced_before_its_header_is_read_is_not_that_of_the_listing(
    server: "StoreServer", checkpoint: Path, conditions: list[Fault]
) -> None:
    path = next(checkpoint.glob(WEIGHTS))
    key = f"models/small/{path.name}"
    replacing = Fault("call", route="get", call=lambda: server.put(key, bytes(path.stat().st_size)))
    server.faults += [replacing, *conditions]
    with pytest.raises(SourceChanged, match=f"{path.name}: replaced by another object"):
        open_store(URL)


def test_an_object_that_is_replaced_while_a_body_breaks_off_is_not_taken_for_its_rest(
    server: "StoreServer", checkpoint: Path, conditions: list[Fault]
) -> None:
    source = open_store(URL)
    path = next(checkpoint.glob(WEIGHTS))
    key = f"models/small/{path.name}"
    server.reset()
    replacing = Fault("call", route="get", after=1, call=lambda: server.put(key, bytes(path.stat().st_size)))
    server.faults += [Fault("cut", route="get", at=1000), replacing, *conditions]
    with source.open(path.name) as file, pytest.raises(SourceChanged):
        file.read(0, file.nbytes)


def test_a_read_that_nobody_waits_for_any_more_ends(server: "StoreServer", checkpoint: Path) -> None:
    source, stopped = open_store(URL), threading.Event()
    stopped.set()
    name = next(checkpoint.glob(WEIGHTS)).name
    with pytest.raises(Unreachable, match="the run ended"):
        source.remote.fetch(name, 0, memoryview(bytearray(source.sizes()[name])), stopped)


def test_shards_in_a_store_are_not_read_as_a_checkpoint(server: "StoreServer") -> None:
    server.put("shards/manifest.json", json.dumps({}).encode())
    result = run("inspect", "s3://bucket/shards")
    assert result.exit_code == ExitCode.USAGE
    assert "read from folders only" in result.stderr


# --- listings without an end ---------------------------------------------------------------------------------------


def entries_of(pages: Iterator[list[dict[str, Any]]]) -> list[Any]:
    store = stores.Store("s3://bucket/model", cast(Any, None), Gate(lambda origin: None), cast(Any, None), 60)
    return list(store._entries(cast(Any, pages)))


def page(first: int, count: int) -> list[dict[str, Any]]:
    return [{"path": f"f{number}", "size": 1, "e_tag": '"e"'} for number in range(first, first + count)]


def test_a_listing_of_as_many_objects_as_are_read_is_taken_and_one_more_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stores, "STORE_LISTING", replace(STORE_LISTING, count=30))
    assert len(entries_of(iter([page(0, 20), page(20, 10)]))) == 30
    with pytest.raises(BadAnswer, match="lists more than 30 objects"):
        entries_of(page(n * 10, 10) for n in itertools.count())
    with pytest.raises(BadAnswer, match="lists more than 30 objects"):
        entries_of(iter([page(0, 30), page(30, 1)]))


def test_a_listing_that_repeats_itself_is_refused() -> None:
    with pytest.raises(BadAnswer, match="lists f0 twice"):
        entries_of(page(0, 10) for _ in itertools.count())


def test_a_listing_of_empty_pages_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "STORE_LISTING", replace(STORE_LISTING, seconds=0.2))

    def pages() -> Iterator[list[dict[str, Any]]]:
        threading.Event().wait()  # as the client does inside, where no page is handed out
        yield []

    with pytest.raises(BadAnswer, match=r"did not end within 0\.2 seconds"):
        entries_of(pages())
