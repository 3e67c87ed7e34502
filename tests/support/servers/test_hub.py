"""The Hub on loopback: huggingface_hub itself is its client, and meets each fault as the Hub's own."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from httpx2 import Response
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]
from support.checkpoints.skeletons import write_skeleton
from support.servers.hub import INDEX, STRANGER, HubServer, fake_digest, sha256_of
from support.servers.loopback import Fault

from dsv4_shard.tensors.header import build_header

REPO = "org/name"
FILE = "model-00001-of-00002.safetensors"
WEIGHTS = bytes(range(256)) * 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository of two weight files, an index, a config and a file in a folder."""
    folder = tmp_path / "repo"
    (folder / "inference").mkdir(parents=True)
    weight_map = {}
    for number, name in enumerate((FILE, "model-00002-of-00002.safetensors")):
        header, _ = build_header({f"w{number}": ("U8", (len(WEIGHTS),))})
        (folder / name).write_bytes(header + WEIGHTS)
        weight_map[f"w{number}"] = name
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 2 * len(WEIGHTS)}, "weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    (folder / "inference" / "model.py").write_text("pass")
    return folder


@pytest.fixture
def server(hub_server: HubServer, folder: Path) -> HubServer:
    hub_server.add_repo(REPO, {"main": folder})
    return hub_server


@pytest.fixture
def api(server: HubServer) -> HfApi:
    return HfApi(endpoint=server.url, token=False)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """How long huggingface_hub would have waited."""
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    return pauses


def url_of(server: HubServer, file: str = FILE, revision: str = "main") -> str:
    return f"{server.url}/{REPO}/resolve/{revision}/{file}"


def fetch(server: HubServer, span: str | None = None, file: str = FILE, **options: Any) -> Response:
    """The last answer to a GET through huggingface_hub's own session, which follows redirects."""
    return get_session().get(url_of(server, file), headers={"Range": f"bytes={span}"} if span else {}, **options)


def download(server: HubServer, cache: Path, file: str = FILE, **options: Any) -> bytes:
    options = {"token": False, **options}
    return Path(hf_hub_download(REPO, file, endpoint=server.url, cache_dir=cache, **options)).read_bytes()


# --- the routes ----------------------------------------------------------------------------------------------------


def test_model_info_tells_commit_sizes_and_digests(server: HubServer, api: HfApi, folder: Path) -> None:
    info = api.model_info(REPO, files_metadata=True)
    assert (info.sha, info.gated, info.private) == (server.head(REPO), False, False)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings}
    assert set(siblings) == {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    weights = siblings[FILE]
    assert (weights.size, weights.lfs.size) == ((folder / FILE).stat().st_size,) * 2
    assert weights.lfs.sha256 == sha256_of(folder / FILE)
    assert siblings["config.json"].lfs is None
    assert siblings["config.json"].blob_id == "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # Git's, of {}


def test_names_alone_come_without_sizes(api: HfApi) -> None:
    assert {sibling.size for sibling in api.model_info(REPO).siblings} == {None}


def test_a_branch_a_commit_and_a_quoted_revision_are_found(hub_server: HubServer, folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "config.json").write_text('{"other": 1}')
    commits = hub_server.add_repo(REPO, {"main": folder, "refs/pr/1": other})
    api = HfApi(endpoint=hub_server.url, token=False)
    assert api.model_info(REPO, revision="refs/pr/1").sha == commits["refs/pr/1"] != commits["main"]
    assert api.model_info(REPO, revision=commits["main"]).sha == commits["main"]
    assert download(hub_server, tmp_path / "cache", "config.json", revision="refs/pr/1") == b'{"other": 1}'


def test_a_branch_that_moved_keeps_its_former_commit(server: HubServer, api: HfApi, folder: Path) -> None:
    former = server.head(REPO)
    (folder / "added.json").write_text("{}")
    moved = server.move_branch(REPO, "main", folder)
    assert api.model_info(REPO).sha == moved != former
    assert "added.json" not in {s.rfilename for s in api.model_info(REPO, revision=former).siblings}


def test_the_tree_comes_in_pages(server: HubServer, api: HfApi, folder: Path) -> None:
    server.page_size = 2
    entries = list(api.list_repo_tree(REPO, recursive=True))
    assert [entry.path for entry in entries] == sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
    assert len(server.seen(route="tree")) == 3
    assert next(e for e in entries if e.path == FILE).lfs.sha256 == sha256_of(folder / FILE)
    assert [e.path for e in api.list_repo_tree(REPO, "inference")] == ["inference/model.py"]
    assert "inference/model.py" not in [e.path for e in api.list_repo_tree(REPO)]


def test_paths_info_leaves_out_what_is_not_there(api: HfApi) -> None:
    found = api.get_paths_info(REPO, ["config.json", "inference", "nothing"])
    assert [entry.path for entry in found] == ["config.json", "inference"]


def test_headers_of_all_files_come_in_one_request(server: HubServer, api: HfApi) -> None:
    metadata = api.get_sharded_safetensors_metadata(REPO)
    assert len(server.requests) == 1
    assert metadata.metadata == {"total_size": 2 * len(WEIGHTS)}
    assert metadata.files_metadata[FILE].tensors["w0"].shape == [len(WEIGHTS)]
    assert metadata.weight_map == {"w0": FILE, "w1": "model-00002-of-00002.safetensors"}


def test_headers_come_by_ranges_too(server: HubServer, api: HfApi) -> None:
    assert api.get_safetensors_metadata(REPO).weight_map.keys() == {"w0", "w1"}
    assert {request.range for request in server.seen(route="cdn")} == {"bytes=0-100000"}


def test_a_file_in_lfs_comes_from_the_cdn_and_the_token_does_not_go_there(
    server: HubServer, folder: Path, tmp_path: Path
) -> None:
    assert download(server, tmp_path / "cache", token=server.token) == (folder / FILE).read_bytes()
    assert [r.authorized for r in server.seen(route="resolve")] == [True]
    assert server.bytes_sent(host="cdn") == (folder / FILE).stat().st_size
    assert not server.token_leaked


def test_a_token_at_the_cdn_is_noticed(server: HubServer) -> None:
    location = get_session().head(url_of(server), follow_redirects=False).headers["Location"]
    get_session().get(location, headers={"Authorization": "Bearer hf_reader"})
    assert server.token_leaked


def test_a_small_file_comes_from_the_hub_itself(server: HubServer, tmp_path: Path) -> None:
    assert download(server, tmp_path / "cache", "config.json") == b"{}"
    assert not server.seen(host="cdn")


@pytest.mark.slow
def test_a_snapshot_is_taken_through_hf_endpoint(server: HubServer, folder: Path, tmp_path: Path) -> None:
    command = f"import huggingface_hub; print(huggingface_hub.snapshot_download({REPO!r}))"
    environment = {**os.environ, **server.env(tmp_path / "home")}
    run = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True)
    snapshot = Path(run.stdout.strip())
    assert snapshot.name == server.head(REPO)
    for path in folder.rglob("*"):
        assert path.is_dir() or (snapshot / path.relative_to(folder)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("span", "start", "stop"), [("0-7", 0, 8), ("40-", 40, None), ("-5", -5, None), ("5-9999", 5, None)]
)
@pytest.mark.parametrize("file", [FILE, INDEX])
def test_a_range_is_answered_exactly(
    server: HubServer, folder: Path, span: str, start: int, stop: int | None, file: str
) -> None:
    content = (folder / file).read_bytes()
    wanted = content[start:stop]
    response = fetch(server, span, file)
    assert (response.status_code, response.content) == (206, wanted)
    first = start % len(content)
    assert response.headers["Content-Range"] == f"bytes {first}-{first + len(wanted) - 1}/{len(content)}"
    assert server.requests[-1].sent == len(wanted)


def test_a_range_beyond_the_end_is_refused_with_the_size(server: HubServer, folder: Path) -> None:
    size = (folder / FILE).stat().st_size
    response = fetch(server, f"{size}-{size}")
    assert (response.status_code, response.headers["Content-Range"]) == (416, f"bytes */{size}")


def test_a_connection_is_used_again(server: HubServer) -> None:
    for _ in range(3):
        fetch(server, "0-7", "config.json")
    assert len(server.connections) == 1


@pytest.mark.slow
def test_a_full_size_file_of_holes_is_served_by_ranges(hub_server: HubServer, tmp_path: Path) -> None:
    folder = write_skeleton(tmp_path / "flash", "DeepSeek-V4-Flash")
    hub_server.add_repo(REPO, {"main": folder}, digest=fake_digest)
    info = HfApi(endpoint=hub_server.url, token=False).model_info(REPO, files_metadata=True)
    assert sum(sibling.size for sibling in info.siblings) > 100e9  # type: ignore[misc]
    file = next(sibling for sibling in info.siblings if sibling.lfs)
    assert fetch(hub_server, f"{file.size - 3}-{file.size - 1}", file.rfilename).content == bytes(3)


def test_many_clients_at_once_are_all_counted(server: HubServer) -> None:
    threads = [threading.Thread(target=fetch, args=(server, f"{n}-{n + 9}")) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(server.seen(route="resolve")), server.bytes_sent(route="cdn")) == (50, 500)
    server.reset()
    assert server.seen() == []


def test_each_request_waits_for_the_latency(server: HubServer, pauses: list[Any]) -> None:
    server.latency = 0.02
    fetch(server, "0-7")
    assert pauses == [0.02, 0.02]


# --- who may read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("token", "status"), [(False, 401), (STRANGER, 403)])
def test_a_gated_repository_tells_its_files_and_keeps_them(
    hub_server: HubServer, folder: Path, tmp_path: Path, token: bool | str, status: int
) -> None:
    hub_server.add_repo(REPO, {"main": folder}, access="gated")
    api = HfApi(endpoint=hub_server.url, token=token)
    assert api.model_info(REPO).gated == "manual"
    with pytest.raises(GatedRepoError, match=f"{status} Client Error") as caught:
        api.get_sharded_safetensors_metadata(REPO)
    assert "Access to model org/name is restricted" in caught.value.server_message
    with pytest.raises(GatedRepoError):
        download(hub_server, tmp_path / "cache", token=token)
    assert download(hub_server, tmp_path / "cache", token=hub_server.token)


@pytest.mark.parametrize(("token", "status"), [(False, 401), (STRANGER, 404)])
@pytest.mark.parametrize("repo", [REPO, "org/nothing"])
def test_a_private_repository_is_as_one_that_is_not_there(
    hub_server: HubServer, folder: Path, token: bool | str, status: int, repo: str
) -> None:
    hub_server.add_repo(REPO, {"main": folder}, access="private")
    with pytest.raises(RepositoryNotFoundError, match=f"{status} Client Error"):
        HfApi(endpoint=hub_server.url, token=token).model_info(repo)
    assert HfApi(endpoint=hub_server.url, token=hub_server.token).model_info(REPO).private


def test_a_token_that_is_not_known_is_refused_everywhere(server: HubServer) -> None:
    with pytest.raises(HfHubHTTPError, match="401") as caught:
        HfApi(endpoint=server.url, token="hf_wrong").model_info(REPO)
    assert type(caught.value) is HfHubHTTPError


def test_what_is_not_there_is_said(api: HfApi, server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="nothing")
    with pytest.raises(RemoteEntryNotFoundError):
        download(server, tmp_path / "cache", "nothing.json")
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(REPO, "nothing"))


# --- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "error", "status"),
    [
        ("unauthorized", HfHubHTTPError, 401),
        ("forbidden", HfHubHTTPError, 403),
        ("gated", GatedRepoError, 403),
        ("repo_not_found", RepositoryNotFoundError, 404),
        ("revision_not_found", RevisionNotFoundError, 404),
        ("entry_not_found", RemoteEntryNotFoundError, 404),
        ("no_route", HfHubHTTPError, 404),
        ("too_many", HfHubHTTPError, 429),
        ("status", HfHubHTTPError, 502),
    ],
)
def test_a_refusal_is_the_hubs_own_error(
    server: HubServer, api: HfApi, kind: str, error: type[HfHubHTTPError], status: int
) -> None:
    server.faults.append(Fault(kind, status=502))
    with pytest.raises(error) as caught:
        api.model_info(REPO)
    assert type(caught.value) is error
    assert caught.value.response.status_code == status
    assert api.model_info(REPO).sha


def test_retry_after_is_waited_for(server: HubServer, api: HfApi, pauses: list[Any]) -> None:
    server.faults.append(Fault("too_many", route="tree", retry_after=7))
    assert list(api.list_repo_tree(REPO))
    assert pauses == [8.0]


def test_an_error_of_the_server_is_tried_again(server: HubServer, api: HfApi, pauses: list[Any]) -> None:
    server.faults.append(Fault("status", route="tree", status=503, times=3))
    assert list(api.list_repo_tree(REPO))
    assert [request.status for request in server.requests] == [503, 503, 503, 200]


def test_a_fault_strikes_what_it_names_as_often_as_it_says(server: HubServer) -> None:
    fault = Fault("status", route="resolve", method="GET", file="*.json", after=1, times=2, status=500)
    server.faults.append(fault)
    fetch(server, "0-7")
    get_session().head(url_of(server, INDEX))
    statuses = [fetch(server, None, INDEX).status_code for _ in range(4)]
    assert (statuses, fault.hits) == ([200, 500, 500, 200], 2)
    server.faults[:] = [Fault("status", times=None, match=lambda request: request.range == "bytes=1-2")]
    assert [fetch(server, span).status_code for span in ("1-2", "1-3", "1-2")] == [503, 206, 503]


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="'sttaus' is no fault"):
        Fault("sttaus")


def test_a_stall_lasts_until_the_client_leaves_or_is_released(server: HubServer) -> None:
    import httpx2

    server.faults += [Fault("stall"), Fault("stall_body", at=10)]
    with pytest.raises(httpx2.ReadTimeout):
        fetch(server, timeout=0.2)
    with get_session().stream("GET", url_of(server), timeout=0.2) as response:
        pieces = response.iter_raw()
        assert len(next(pieces)) == 10
        with pytest.raises(httpx2.ReadTimeout):
            next(pieces)
    assert server.bytes_sent(host="cdn") == 10
    server.faults.append(Fault("stall"))
    threading.Timer(0.05, server.release).start()
    assert fetch(server).status_code == 200


def test_a_connection_cut_in_mid_body_is_taken_up_again(
    server: HubServer, folder: Path, tmp_path: Path, pauses: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)  # a piece that is not whole is dropped
    server.faults += [Fault("cut", at=1000), Fault("cut", at=200)]
    content = (folder / FILE).read_bytes()
    assert download(server, tmp_path / "cache") == content
    assert [request.range for request in server.seen(route="cdn")] == [None, "bytes=1000-", "bytes=1200-"]
    assert server.bytes_sent(host="cdn") == len(content)


def test_a_server_may_ignore_the_range(server: HubServer, folder: Path) -> None:
    server.faults.append(Fault("ignore_range"))
    response = fetch(server, "5-9")
    assert (response.status_code, response.content) == (200, (folder / FILE).read_bytes())
    assert "Content-Range" not in response.headers


def test_a_range_may_be_another_than_asked(server: HubServer, folder: Path) -> None:
    content = (folder / FILE).read_bytes()
    server.faults += [Fault("wrong_range"), Fault("wrong_total"), Fault("short_range")]
    wrong, total, short = fetch(server, "4-9"), fetch(server, "4-9"), fetch(server, "4-9")
    assert wrong.headers["Content-Range"] == f"bytes 5-10/{len(content)}"
    assert total.headers["Content-Range"] == f"bytes 4-9/{len(content) + 1}"
    assert (short.headers["Content-Range"], short.content) == (f"bytes 4-6/{len(content)}", content[4:7])


def test_one_byte_is_corrupted(server: HubServer, folder: Path) -> None:
    server.faults.append(Fault("corrupt", at=3))
    content, got = (folder / FILE).read_bytes(), fetch(server).content
    assert [n for n in range(len(content)) if content[n] != got[n]] == [3]


def test_a_body_of_the_api_is_struck_only_where_the_fault_names_its_route(server: HubServer, api: HfApi) -> None:
    import httpx2

    server.faults.append(Fault("cut"))
    assert api.model_info(REPO).sha
    server.faults[:] = [Fault("cut", route="info")]
    with pytest.raises(httpx2.RemoteProtocolError):
        api.model_info(REPO)


def test_an_expired_signature_is_refused_until_resolve_is_asked_again(server: HubServer) -> None:
    location = get_session().head(url_of(server), follow_redirects=False).headers["Location"]
    assert get_session().get(location).status_code == 200
    server.faults.append(Fault("expired"))
    assert [get_session().get(location).status_code for _ in range(2)] == [403, 403]
    assert fetch(server).status_code == 200


def test_the_headers_route_may_be_absent(server: HubServer, api: HfApi) -> None:
    server.faults.append(Fault("no_route", route="headers", times=None))
    with pytest.raises(HfHubHTTPError, match="404"):
        api.get_sharded_safetensors_metadata(REPO)
    assert api.get_safetensors_metadata(REPO).weight_map


def test_a_branch_moves_after_so_many_requests(server: HubServer, api: HfApi, folder: Path) -> None:
    former = server.head(REPO)
    server.faults.append(Fault("call", after=2, call=lambda: server.move_branch(REPO, "main", folder)))
    commits = [api.model_info(REPO).sha for _ in range(4)]
    assert commits == [former, former, server.head(REPO), server.head(REPO)]


def test_a_failure_of_the_server_itself_is_not_taken_for_a_fault(folder: Path) -> None:
    server = HubServer()
    server.add_repo(REPO, {"main": folder})
    (folder / "config.json").write_bytes(b"")
    with pytest.raises(Exception, match="peer closed connection"):
        fetch(server, None, "config.json")
    with pytest.raises(EOFError, match=r"config\.json became shorter"):
        server.close()
