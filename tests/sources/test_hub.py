"""Checkpoints from a Hub on loopback: what is asked, what is kept, and each fault of the way told once."""

import filecmp
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard, snapshot_download
from support.checkpoints.full_size import PRO
from support.checkpoints.release import RELEASE, add_release
from support.checkpoints.skeletons import write_skeleton
from support.checkpoints.small import small_config
from support.documents import reseal
from support.servers import loopback
from support.servers.hub import STRANGER, Answer, HubServer, fake_digest
from support.servers.loopback import Fault
from support.servers.redirecting import Handler, Server
from typer.testing import CliRunner, Result

from dsv4_shard.checkpoint.reader import read_checkpoint
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.cli import app
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import BadAnswer, ExitCode
from dsv4_shard.opening import open_source
from dsv4_shard.sharding.recipe import spans
from dsv4_shard.sources import hub as hub_source
from dsv4_shard.sources import hub_errors, hub_files, hub_http
from dsv4_shard.sources import remote_headers as heads
from dsv4_shard.sources import retry as persistence
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.sources.remote import Listed, RemoteSource
from dsv4_shard.storage import digest_of
from dsv4_shard.tensors.header import LENGTH_BYTES

REPO = "org/name"
TP = ("--tp", "4")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint of five files. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("hub") / "model", small_config(), seed=5)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The next commit: other weights under the same names."""
    return write_checkpoint(tmp_path_factory.mktemp("hub") / "model", small_config(), seed=6)


@pytest.fixture
def hub(hub_server: HubServer, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A Hub that holds the checkpoint, which this process takes for the real one; nobody waits long."""
    hub_server.add_repo(REPO, {"main": checkpoint})
    constants = {
        "ENDPOINT": hub_server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub_server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DOWNLOAD_TIMEOUT": 1.0,
        "HF_HUB_ETAG_TIMEOUT": 1.0,
    }
    for name, value in constants.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(persistence, "_FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(persistence, "LONGEST_WAIT_SECONDS", 0.02)
    return hub_server


def download(hub: HubServer, patterns: list[str] | None = None) -> Path:
    """What huggingface_hub itself puts into its cache."""
    return Path(snapshot_download(REPO, endpoint=hub.url, allow_patterns=patterns))


def asked(hub: HubServer) -> list[loopback.Request]:
    """The requests for something that a Hub has: on a port that was another's, strangers may knock."""
    return [request for request in hub.requests if request.route != "unknown"]


def hub_folder(hub: HubServer) -> Path:
    """The folder that main is at."""
    return next(iter(hub._repos[REPO].commits[hub.head(REPO)].values())).path.parent


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeeds(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(code: ExitCode, *arguments: object) -> str:
    """What a command says that must fail: one error, perhaps a hint and a note, nothing else."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True] + [False] * (len(lines) - 1)
    assert all(line.startswith("  ") for line in lines[1:])
    return result.stderr


def weight_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))


def assert_same_weights(one: Path, two: Path) -> None:
    names = weight_files(one)
    assert names
    assert names == weight_files(two)
    assert filecmp.cmpfiles(one, two, names, shallow=False)[0] == names


@pytest.fixture
def local(checkpoint: Path, tmp_path: Path) -> Path:
    """What resharding the folder itself gives."""
    succeeds("reshard", checkpoint, tmp_path / "local", *TP)
    return tmp_path / "local"


# --- provenance ------------------------------------------------------------------------------------------------------


def inputs(out: Path) -> list[dict[str, Any]]:
    """What a result says that it was made from."""
    statement = json.loads((out / "provenance.json").read_bytes())
    found: list[dict[str, Any]] = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    return found


def test_a_result_states_the_commit_and_the_sha256_that_the_hub_lists(
    hub: HubServer, checkpoint: Path, local: Path, tmp_path: Path
) -> None:
    succeeds("reshard", REPO, tmp_path / "streamed", *TP)
    download(hub)
    succeeds("reshard", REPO, tmp_path / "cached", *TP)
    place, config, *files = inputs(tmp_path / "streamed")
    commit = hub.head(REPO)
    assert place == {
        "name": "checkpoint",
        "uri": f"pkg:huggingface/{REPO}@{commit}?repository_url={hub.url}",
        "digest": {"gitCommit": commit},
    }
    assert config["name"] == "config.json"
    assert {file["name"]: file["digest"]["sha256"] for file in files} == {
        name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in weight_files(checkpoint)
    }
    assert (tmp_path / "streamed/provenance.json").read_bytes() == (tmp_path / "cached/provenance.json").read_bytes()
    assert [file["digest"].keys() for file in inputs(local)[1:]] == [{"headerXxh3128"}] * len(files)
    succeeds("verify", tmp_path / "streamed", "--against", REPO)


def test_a_sha256_that_the_hub_does_not_list_is_found_in_a_statement(hub: HubServer, tmp_path: Path) -> None:
    succeeds("reshard", REPO, tmp_path / "out", *TP)
    claimed = tmp_path / "out/provenance.json"
    statement = json.loads(claimed.read_bytes())
    statement["predicate"]["buildDefinition"]["resolvedDependencies"][2]["digest"]["sha256"] = "0" * 64
    claimed.write_text(json.dumps(statement, indent=1) + "\n")
    manifest = json.loads((tmp_path / "out/manifest.json").read_bytes())
    for entry in manifest["companions"]:
        if entry["name"] == claimed.name:
            raw = claimed.read_bytes()
            entry |= {"nbytes": len(raw), "digest": digest_of(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    reseal(tmp_path / "out", **manifest)
    result = run("verify", tmp_path / "out", "--against", REPO, "--json")
    assert result.exit_code == ExitCode.NO
    (problem,) = json.loads(result.stdout)["problems"]
    assert "resolvedDependencies.2.digest.sha256" in problem["message"]


# --- inspect and plan ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_inspect_shows_what_the_folder_shows(hub: HubServer, checkpoint: Path) -> None:
    def shown(repo: object) -> dict[str, Any]:
        return json.loads(succeeds("inspect", repo, "--json"))

    afar, here = shown(REPO), shown(checkpoint)
    assert afar["identity"].pop("revision") == hub.head(REPO)
    assert [finding["code"] for finding in afar.pop("findings")] == ["source"]
    here["identity"] = {**here["identity"], "label": REPO}
    del here["identity"]["revision"]
    assert here == {**afar, "findings": []}


def test_inspect_asks_for_the_commit_first_and_four_times_in_all(hub: HubServer) -> None:
    succeeds("inspect", REPO)
    assert asked(hub)[0].route == "info"
    assert sorted(request.route for request in asked(hub)) == ["headers", "info", "resolve", "resolve"]


@pytest.mark.slow
def test_a_second_inspect_and_a_plan_ask_nothing(hub: HubServer) -> None:
    first = succeeds("inspect", REPO)
    hub.reset()
    assert succeeds("inspect", REPO) == first
    succeeds("plan", REPO, *TP)
    succeeds("plan", f"{REPO}@{hub.head(REPO)}", *TP)
    assert asked(hub) == []


def test_the_headers_of_one_answer_are_those_of_the_files(hub: HubServer, checkpoint: Path) -> None:
    source = open_source(REPO)
    assert hub.seen(route="headers")
    assert not hub.seen(host="cdn")
    assert (
        read_checkpoint(source).files[0].header_digest
        == read_checkpoint(LocalSource(checkpoint, "")).files[0].header_digest
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "status"),
    [("no_route", 0), ("cut", 0), ("too_many", 0)]
    + [("status", status) for status in (400, 401, 403, 406, 410, 415, 451, 500, 501, 503, 520)],
)
def test_without_that_answer_two_requests_a_file_do(hub: HubServer, fault: str, status: int) -> None:
    hub.faults.append(Fault(fault, route="headers", times=None, status=status))
    succeeds("inspect", REPO)
    for name in weight_files(hub_folder(hub)):
        assert [r.route for r in hub.seen(file=name)] == ["resolve", "cdn"]


def test_an_answer_too_deep_to_be_read_is_none(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_safetensors", lambda *_: b"[" * 100_000)
    succeeds("inspect", REPO)
    assert hub.seen(host="cdn")


@pytest.mark.parametrize(
    ("answer", "said"),
    [(b"[" * 100_000, "is not the Hub's"), (b"[]", "is not the Hub's"),
     (b'{"id": "org/name"}', "names no commit"),
     (b'{"id": "org/name", "sha": "%s", "siblings": [{"rfilename": null}]}' % (b"0" * 40), "a file without a name"),
     (b'{"id": "org/name", "sha": "%s", "siblings": [{"rfilename": "a"}]}' % (b"0" * 40), "has no size for a")],
)  # fmt: skip
def test_an_answer_that_is_none_of_a_hub_is_told(
    answer: bytes, said: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "answer_hub", lambda *_: Answer(200, {"Content-Type": "application/json"}, answer))
    assert said in fails(ExitCode.NETWORK, "inspect", REPO)


def test_an_answer_for_other_files_is_not_taken(hub: HubServer, other: Path, tmp_path: Path) -> None:
    """The answer is for main, which moved after the commit was pinned, to files of other sizes."""
    wider = write_checkpoint(tmp_path / "wider", small_config(vocab_size=512), seed=5)
    commit = hub.head(REPO)
    hub.faults.append(Fault("call", route="resolve", call=lambda: hub.move_branch(REPO, "main", wider)))
    shown = json.loads(succeeds("inspect", REPO, "--json"))
    assert shown["identity"]["revision"] == commit
    assert hub.seen(host="cdn"), "the headers came from the files of the pinned commit"


@pytest.mark.slow
def test_the_whole_of_v4_pro_is_inspected_by_four_requests_and_by_two_a_file_elsewhere(
    hub: HubServer, tmp_path: Path
) -> None:
    hub.add_repo("org/pro", {"main": write_skeleton(tmp_path / "pro", PRO)}, digest=fake_digest)
    shown = succeeds("inspect", "org/pro")
    assert "145,116" in shown
    assert len(asked(hub)) == 4
    hub.reset()
    assert succeeds("inspect", "org/pro") == shown
    assert asked(hub) == []
    hub.faults.append(Fault("no_route", route="headers", times=None))
    shutil.rmtree(tmp_path / "cache")
    assert succeeds("inspect", "org/pro") == shown
    assert len(asked(hub)) == 4 + 2 * 64


@pytest.mark.parametrize("edge", [-1, 0, 1])
def test_a_header_may_end_at_the_edge_of_the_first_range(
    edge: int, hub: HubServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = weight_files(checkpoint)[1]
    raw = (checkpoint / name).read_bytes()
    length = LENGTH_BYTES + int.from_bytes(raw[:LENGTH_BYTES], "little")
    monkeypatch.setattr(heads, "_MIN_FIRST_BYTES", length + edge)
    monkeypatch.setattr(heads, "_ENTRY_BYTES", 0)
    hub.faults.append(Fault("no_route", route="headers", times=None))
    source = open_source(REPO)
    assert isinstance(source, RemoteSource)
    assert source.headers[name] == raw[:length]
    assert len(hub.seen(host="cdn", file=name)) == (2 if edge < 0 else 1)


@pytest.mark.slow
def test_a_branch_is_asked_for_again_where_that_is_wanted(hub: HubServer, other: Path) -> None:
    succeeds("inspect", REPO)
    moved = hub.move_branch(REPO, "main", other)
    assert moved not in succeeds("inspect", REPO, "--json")
    assert moved in succeeds("inspect", REPO, "--refresh", "--json")
    assert moved in succeeds("inspect", REPO, "--json")


@pytest.mark.slow
def test_a_cache_that_is_damaged_or_cannot_be_written_is_no_cache(hub: HubServer, tmp_path: Path) -> None:
    first = succeeds("inspect", REPO)
    for path in (tmp_path / "cache").rglob("*.zip"):
        path.write_bytes(path.read_bytes()[:-100])
    hub.reset()
    assert succeeds("inspect", REPO) == first
    assert hub.seen(route="headers")


def test_files_in_folders_of_the_repository_are_none_of_the_checkpoint(
    hub: HubServer, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "with"
    (folder / "inference").mkdir(parents=True)
    for path in checkpoint.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "inference" / "model.safetensors").write_bytes(b"no weights")
    hub.add_repo("org/with", {"main": folder})
    assert "error" not in succeeds("inspect", "org/with")


def release_of(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint with the small files of a release, and others that do not travel."""
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).symlink_to(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    return add_release(folder, RELEASE | dict.fromkeys(STAY, "x"))


STAY = (".gitattributes", "consolidated.bin", "fp8/model.safetensors")


@pytest.mark.parametrize("options", [(), ("--download",)], ids=["streamed", "downloaded"])
def test_the_small_files_of_a_release_are_asked_once_and_by_reshard_alone(
    options: tuple[str, ...], hub: HubServer, checkpoint: Path, tmp_path: Path
) -> None:
    hub.add_repo("org/with", {"main": release_of(checkpoint, tmp_path / "with")})
    succeeds("plan", "org/with", *TP)
    assert not {request.file for request in asked(hub)} & {*RELEASE, *STAY}
    hub.reset()
    succeeds("reshard", "org/with", tmp_path / "out", *TP, *options)
    if not options:
        assert Counter(request.file for request in asked(hub) if request.file in RELEASE) == Counter(
            name for name, content in RELEASE.items() if content
        )
    assert not {request.file for request in asked(hub)} & set(STAY)
    out = tmp_path / "out"
    found = {name: (out / ("README.source.md" if name == "README.md" else name)).read_text() for name in RELEASE}
    assert found == RELEASE
    card = ModelCard.load(out / "README.md").data.to_dict()
    assert (card["base_model"], card["base_model_relation"], card["license"]) == ("org/with", "quantized", "mit")
    assert hub.head("org/with") in (out / "README.md").read_text()
    succeeds("verify", out, "--against", "org/with")


def test_files_that_a_download_of_weights_left_out_are_fetched(
    hub: HubServer, checkpoint: Path, tmp_path: Path
) -> None:
    hub.add_repo("org/with", {"main": release_of(checkpoint, tmp_path / "with")})
    snapshot_download("org/with", allow_patterns=["model*", "config.json"])
    commit = hub.head("org/with")
    for out, repo in (("pinned", f"org/with@{commit}"), ("out", "org/with")):
        succeeds("reshard", repo, tmp_path / out, *TP)
        assert (tmp_path / out / "LICENSE").read_text() == RELEASE["LICENSE"]
        assert (tmp_path / out / "encoding/encoding_dsv4.py").is_file()


@pytest.mark.parametrize("name", ["encoding/../../x", "a//b", "/x", "a/", "./x"])
def test_a_name_in_a_folder_that_is_none_is_refused(name: str) -> None:
    listed = [SimpleNamespace(rfilename=name, size=1, lfs=None, blob_id="0")]
    with pytest.raises(BadAnswer, match="which is not a file name"):
        dict(hub_source._listed(listed, REPO))


# --- tokens, refusals ----------------------------------------------------------------------------------------------


def test_a_token_opens_a_gated_repository_and_goes_nowhere_else(
    hub: HubServer, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("org/gated", {"main": checkpoint}, access="gated")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    succeeds("reshard", "org/gated", tmp_path / "out", *TP)
    assert hub.seen(host="cdn")
    assert not hub.token_leaked


@pytest.mark.slow
def test_a_redirect_of_the_hub_to_itself_keeps_the_token(
    hub: HubServer, checkpoint: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.small_elsewhere = True
    hub.add_repo("org/gated", {"main": checkpoint}, access="gated")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    succeeds("reshard", "org/gated", tmp_path / "out", *TP)
    assert {request.file for request in hub.seen(route="cache")} >= {"config.json", "tokenizer.json"}
    assert_same_weights(tmp_path / "out", local)


@pytest.mark.slow
def test_a_process_finds_the_hub_by_its_environment(hub: HubServer, local: Path, tmp_path: Path) -> None:
    """As HF_ENDPOINT and HF_TOKEN are read when huggingface_hub is imported, this has a process of its own."""
    hub.add_repo("org/gated", {"main": hub_folder(hub)}, access="gated")
    environment = os.environ | hub.env(tmp_path / "home") | {"HF_TOKEN": hub.token}
    command = [sys.executable, "-m", "dsv4_shard", "reshard", "org/gated", tmp_path / "out", *TP]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert_same_weights(tmp_path / "out", local)


@pytest.mark.parametrize("command", ["inspect", "reshard"])
def test_a_gated_repository_without_a_token_says_where_to_ask(
    command: str, hub: HubServer, checkpoint: Path, tmp_path: Path
) -> None:
    hub.add_repo("org/gated", {"main": checkpoint}, access="gated")
    said = fails(ExitCode.NETWORK, *([command, "org/gated"] + [tmp_path / "out", *TP] * (command == "reshard")))
    assert "gated, and no token is set" in said
    assert f"{hub.url}/org/gated" in said
    assert "HF_TOKEN" in said


def test_an_account_that_was_not_granted_access_is_told_so(
    hub: HubServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("org/gated", {"main": checkpoint}, access="gated")
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    said = fails(ExitCode.NETWORK, "inspect", "org/gated")
    assert "was not granted access (403)" in said
    assert f"Ask for access at {hub.url}/org/gated" in said


@pytest.mark.parametrize("endpoint", ["hub.example", "ftp://hub.example", "https://", "https://[::bad"])
def test_an_endpoint_that_is_none_is_not_asked(endpoint: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    assert "not the address of a server" in fails(ExitCode.USAGE, "inspect", REPO)


def test_an_endpoint_with_a_password_is_refused_and_not_shown(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url.replace("//", "//user:secret@"))
    said = fails(ExitCode.USAGE, "inspect", REPO)
    assert "HF_ENDPOINT has a user name or password" in said
    assert "secret" not in said


def test_a_token_that_can_be_none_is_told(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_t\u00f6ken")
    assert "is not ASCII, so it is not a token" in fails(ExitCode.USAGE, "inspect", REPO)


@pytest.mark.parametrize("name", ["org/a--b", "org/x.git", "org/n\u00e4me", "org/-a"])
def test_a_name_that_no_repository_has_is_not_asked_for(name: str, hub: HubServer) -> None:
    assert f"{name}: not the name of a repository" in fails(ExitCode.USAGE, "inspect", name)
    assert asked(hub) == []


def test_a_revision_may_be_called_as_versions_are(hub: HubServer, checkpoint: Path) -> None:
    hub.add_repo("org/versions", {"v1.0+cu12": checkpoint})
    succeeds("inspect", "org/versions@v1.0+cu12")


def test_other_names_are_offered_only_where_one_is_not_there(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    succeeds("inspect", REPO)
    assert f"Did you mean {REPO}?" in fails(ExitCode.NETWORK, "inspect", "org/nane")
    hub.faults.append(Fault("forbidden", times=None))
    assert "Did you mean" not in fails(ExitCode.NETWORK, "inspect", "org/nane")


REFUSALS = {
    "unauthorized": r"refused access (401): Invalid credentials",
    "forbidden": r"refused access (403): You have been denied access",
    "repo_not_found": r"no such repository at 127.0.0.1",
    "revision_not_found": r"no such revision at 127.0.0.1",
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_is_told_once_with_what_to_do(kind: str, hub: HubServer) -> None:
    hub.faults.append(Fault(kind, times=None))
    said = fails(ExitCode.NETWORK, "inspect", REPO)
    assert REFUSALS[kind] in said
    assert len(said.splitlines()) == 2, "an error and a hint"
    assert len(asked(hub)) == 1, "refusals are not tried again"


def test_a_repository_that_is_not_there(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "org/absent@main: no such repository" in fails(ExitCode.NETWORK, "inspect", "org/absent")
    assert "no such revision" in fails(ExitCode.NETWORK, "inspect", f"{REPO}@absent")


def test_a_file_that_is_gone_from_the_server(hub: HubServer, tmp_path: Path) -> None:
    hub.faults.append(Fault("entry_not_found", file="*2-of*", times=None))
    assert "model-00002-of-00005.safetensors: not there" in fails(
        ExitCode.NETWORK, "reshard", REPO, tmp_path / "out", *TP
    )


# --- failures that pass, and that do not ---------------------------------------------------------------------------

PASSING = [
    Fault("too_many", retry_after=0, times=3),
    Fault("status", status=500, times=3),
    Fault("status", status=502, route="cdn", times=3),
    Fault("status", status=503, route="resolve", times=3),
    Fault("status", status=524, route="cdn", times=3),
    Fault("status", status=425, route="cdn", times=3),
    Fault("cut", times=5),
    Fault("cut", times=5, at=0),
    Fault("cut", times=3, at=1),
    Fault("stall", times=2),
    Fault("stall_body", times=2),
    Fault("short_range", times=5),
    Fault("expired", times=3),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.kind}-{fault.route}-{fault.status}-{fault.at}")
def test_what_passes_costs_nothing_but_time(fault: Fault, hub: HubServer, local: Path, tmp_path: Path) -> None:
    hub.faults.append(fault)
    succeeds("reshard", REPO, tmp_path / "out", *TP)
    assert fault.hits == fault.times
    assert_same_weights(tmp_path / "out", local)


STAYING = {
    "too_many": (Fault("too_many", times=None, retry_after=0), "answered 429, after 8 tries"),
    "much too many": (Fault("too_many", times=None, retry_after=4000), "It asks for a pause of 4000 s"),
    "5xx": (Fault("status", times=None), "answered 503, after 8 tries"),
    "stall": (Fault("stall", times=None), "TimeoutError: timed out"),
    "cut": (Fault("cut", times=None, at=0), "after 8 tries"),
    "ignores Range": (Fault("ignore_range", times=None), "ignores Range"),
    "wrong range": (Fault("wrong_range", times=None), "answered 206, 'bytes"),
    "wrong total": (Fault("wrong_total", times=None), "answered 206, 'bytes"),
    "bytes one by one": (
        Fault("cut", times=None, at=1),
        "the connection broke again and again, last at byte 8, after 8 tries",
    ),
    "what a server does not do": (Fault("status", times=None, status=501), "answered 501"),
    "a refusal that stays": (Fault("expired", times=None), "answered 403, where 127.0.0.1"),
}


@pytest.mark.parametrize("name", STAYING)
def test_what_stays_is_told_once(name: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    fault, words = STAYING[name]
    fault.route = "cdn"
    hub.faults.append(fault)
    said = fails(ExitCode.NETWORK, "reshard", REPO, tmp_path / "out", *TP)
    assert words in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file:///etc/passwd", "http://[::bad", "https://", "http://cdn/\u00e9"])
def test_a_redirect_to_no_server_is_told(place: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults.append(Fault("no_route", route="headers", times=None))
    monkeypatch.setattr(hub, "sign", lambda *_: place)
    said = fails(ExitCode.NETWORK, "inspect", REPO)
    assert "which is not an address" in said
    assert not hub.seen(host="cdn")


def test_a_redirect_in_a_circle_is_told_at_once(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults.append(Fault("no_route", route="headers", times=None))
    answer = Answer(302, {"Location": f"{hub.cdn_url}/again"})
    monkeypatch.setattr(hub, "answer_cdn", lambda _: answer)
    assert "more than 5 redirects" in fails(ExitCode.NETWORK, "inspect", REPO)
    assert len(hub.seen(host="cdn")) < 6 * len(weight_files(hub_folder(hub)))


@pytest.mark.parametrize("asked", ["0.5", "Wed, 21 Oct 2015 07:28:00 GMT", "-1", "soon", ""])
def test_a_wait_that_is_over_or_makes_no_sense_is_none(asked: str) -> None:
    assert hub_errors._asked_wait(SimpleNamespace(headers={"Retry-After": asked})) in (None, 0)


def test_a_wait_may_be_told_as_a_time() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
    wait = hub_errors._asked_wait(SimpleNamespace(headers={"Retry-After": later}))
    assert wait is not None
    assert 290 < wait <= 300


def test_a_server_that_ignores_ranges_does_not_send_the_file_for_nothing(hub: HubServer) -> None:
    hub.faults += [Fault("no_route", route="headers", times=None), Fault("ignore_range", route="cdn", times=None)]
    said = fails(ExitCode.NETWORK, "inspect", REPO)
    assert "--download" in said


def test_no_server_at_all(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Perhaps a folder was meant."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    said = fails(ExitCode.NETWORK, "inspect", REPO)
    assert "127.0.0.1:9" in said
    assert "after 4 tries" in said
    assert f"No folder here is called {REPO}" in said


def test_a_server_that_is_no_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults.append(Fault("no_route", times=None))
    assert "answered 404" in fails(ExitCode.NETWORK, "inspect", REPO)


@pytest.mark.slow
def test_a_byte_that_was_changed_on_its_way_is_found(hub: HubServer, tmp_path: Path) -> None:
    succeeds("inspect", REPO)
    open_source(REPO, exact=True)  # headers are sound
    hub.faults.append(Fault("corrupt", route="cdn", file="*3-of*"))
    said = fails(ExitCode.NETWORK, "reshard", REPO, tmp_path / "out", *TP)
    assert "model-00003-of-00005.safetensors: the received bytes have SHA-256" in said
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == [], "nothing of it is kept"


# --- reshard -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rank_files_are_those_of_the_folder_and_each_file_has_its_sha256(
    hub: HubServer, local: Path, tmp_path: Path
) -> None:
    outcome = json.loads(succeeds("reshard", REPO, tmp_path / "out", *TP, "--json"))
    assert outcome["intact"] == 5
    assert_same_weights(tmp_path / "out", local)
    assert "no problems found" in succeeds("verify", tmp_path / "out", "--against", REPO)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["vllm", "reference", "node"])
def test_rank_files_of_every_layout_are_those_of_the_folder(
    engine: str, hub: HubServer, checkpoint: Path, tmp_path: Path
) -> None:
    layout = ("--engine", engine, *TP, *(("--nodes", "2") if engine == "node" else ()))
    wide = write_checkpoint(tmp_path / "wide", small_config(hidden_size=256), seed=5)
    hub.add_repo("org/wide", {"main": wide})
    succeeds("reshard", wide, tmp_path / "local", *layout)
    succeeds("reshard", "org/wide", tmp_path / "out", *layout)
    assert_same_weights(tmp_path / "out", tmp_path / "local")


@pytest.mark.parametrize("ranks", ["0-3", "0", "1-2", "0,3"])
@pytest.mark.parametrize("engine", ["sglang", "reference", "node"])
def test_no_more_comes_than_the_ranks_need(
    engine: str, ranks: str, hub: HubServer, checkpoint: Path, tmp_path: Path
) -> None:
    from dsv4_shard.checkpoint.inventory import take_inventory
    from dsv4_shard.planning.plan_builder import make_plan
    from dsv4_shard.sharding.job import prepare

    nodes = 4 if engine == "node" else None
    request = Request(4, engine=engine, nodes=nodes)
    open_source(REPO, exact=True)  # headers are there
    hub.reset()
    succeeds(
        "reshard",
        REPO,
        tmp_path / "out",
        *TP,
        "--engine",
        engine,
        "--ranks",
        ranks,
        *(("--nodes", "4") if nodes else ()),
    )
    here = read_checkpoint(LocalSource(checkpoint, ""))
    inventory = take_inventory(here)
    wanted = tuple(range(4)) if ranks == "0-3" else tuple({"0": (0,), "1-2": (1, 2), "0,3": (0, 3)}[ranks])
    job = prepare(here, inventory, make_plan(here, inventory, request), wanted)
    needed = sum(span.stop - span.start for alike in spans(job.recipe.steps) for span in alike)
    probes = sum(1 for _ in hub.seen(route="resolve", range="bytes=0-0"))
    assert needed <= hub.bytes_sent(host="cdn") <= 1.02 * needed
    assert hub.bytes_sent(host="hub") <= 5_000 + 100 * probes


@pytest.mark.slow
def test_two_processes_on_shares_fetch_less_than_each_alone(hub: HubServer, tmp_path: Path) -> None:
    wide = write_checkpoint(tmp_path / "wide", small_config(hidden_size=1024), seed=5)
    hub.add_repo("org/wide", {"main": wide})
    environment = os.environ | hub.env(tmp_path / "home") | {"TMPDIR": str(tmp_path)}

    def begin(ranks: str, out: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "dsv4_shard", "reshard", "org/wide", str(tmp_path / out), "--tp", "4"]
        return subprocess.Popen([*command, "--ranks", ranks], env=environment, stderr=subprocess.PIPE, text=True)

    def sent(*ranks: str, out: str) -> int:
        hub.reset()
        processes = [begin(one, out) for one in ranks]
        assert [process.communicate()[1] for process in processes] == [""] * len(ranks)
        assert [process.returncode for process in processes] == [0] * len(ranks)
        return sum(request.sent for request in hub.seen(host="cdn") if request.range != "bytes=0-0")

    whole = sent("0-3", out="alone")
    apart = sent("0-1", out="one") + sent("2-3", out="two")
    hub.latency = 0.5  # so that the first is not done before the second begins
    together = sent("0-1", "2-3", out="shares")
    assert apart > 1.3 * whole, "what both need is much"
    # Each reads the headers. Of small tensors, pages of which the first to begin wants a part are many.
    assert together - whole < 0.6 * (apart - whole)
    assert_same_weights(tmp_path / "shares", tmp_path / "alone")


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on_where_it_was(
    hub: HubServer, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsv4_shard.sharding.journal.SAVE_BYTES", 100_000)
    open_source(REPO, exact=True)
    hub.reset()
    hub.faults.append(Fault("status", route="cdn", file="*4-of*", times=None))
    assert "the same command resumes" in fails(ExitCode.NETWORK, "reshard", REPO, tmp_path / "out", *TP)
    first = hub.bytes_sent(host="cdn")
    hub.reset()
    outcome = json.loads(run("reshard", REPO, tmp_path / "out", *TP, "--json").stdout)
    assert outcome["bytes_resumed"] > 0
    assert hub.bytes_sent(host="cdn") < first
    assert_same_weights(tmp_path / "out", local)


def test_a_branch_that_moves_during_the_run_changes_nothing(
    hub: HubServer, other: Path, local: Path, tmp_path: Path
) -> None:
    commit = hub.head(REPO)
    hub.faults.append(Fault("call", route="cdn", after=6, call=lambda: hub.move_branch(REPO, "main", other)))
    succeeds("reshard", REPO, tmp_path / "out", *TP)
    assert hub.head(REPO) != commit
    assert_same_weights(tmp_path / "out", local)
    assert commit in (tmp_path / "out" / "manifest.json").read_text()


@pytest.mark.slow
def test_a_plan_pins_the_commit_that_it_was_made_for(hub: HubServer, other: Path, local: Path, tmp_path: Path) -> None:
    succeeds("plan", REPO, *TP, "-o", tmp_path / "plan.json")
    hub.move_branch(REPO, "main", other)
    succeeds("inspect", REPO, "--refresh")
    succeeds("reshard", REPO, tmp_path / "out", "--plan", tmp_path / "plan.json")
    assert_same_weights(tmp_path / "out", local)


@pytest.mark.slow
def test_work_for_another_commit_is_refused_with_its_name(
    hub: HubServer, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsv4_shard.sharding.journal.SAVE_BYTES", 100_000)
    commit = hub.head(REPO)
    open_source(REPO, exact=True)
    hub.faults.append(Fault("status", route="cdn", file="*4-of*", times=None))
    run("reshard", REPO, tmp_path / "out", *TP)
    hub.reset()
    hub.move_branch(REPO, "main", other)
    open_source(REPO, refresh=True)
    assert f"{REPO}@{commit}" in fails(ExitCode.IO, "reshard", REPO, tmp_path / "out", *TP)


# --- what this machine has -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_repository_in_the_hub_cache_is_read_there(hub: HubServer, local: Path, tmp_path: Path) -> None:
    download(hub)
    hub.reset()
    succeeds("reshard", REPO, tmp_path / "out", *TP)
    assert [request.route for request in asked(hub)] == ["info"]
    assert_same_weights(tmp_path / "out", local)


@pytest.mark.slow
def test_a_commit_in_the_hub_cache_asks_nothing(hub: HubServer) -> None:
    download(hub)
    hub.reset()
    succeeds("inspect", f"{REPO}@{hub.head(REPO)}")
    assert asked(hub) == []


@pytest.mark.slow
def test_files_that_the_hub_cache_has_are_not_fetched(hub: HubServer, local: Path, tmp_path: Path) -> None:
    download(hub, ["*.json", "*-0000[23]-of*"])
    hub.reset()
    succeeds("reshard", REPO, tmp_path / "out", *TP)
    assert {request.file[:11] for request in hub.seen(host="cdn")} == {"model-00001", "model-00004", "model-00005"}
    assert_same_weights(tmp_path / "out", local)


@pytest.mark.slow
def test_a_cached_file_of_another_size_is_not_taken(hub: HubServer, local: Path, tmp_path: Path) -> None:
    folder = download(hub, ["*-00002-of*"])
    blob = next(folder.glob("*-00002-of*")).resolve()
    blob.write_bytes(blob.read_bytes()[:-1])
    succeeds("reshard", REPO, tmp_path / "out", *TP)
    assert_same_weights(tmp_path / "out", local)


@pytest.mark.slow
def test_download_keeps_what_is_needed_in_the_hub_cache(hub: HubServer, local: Path, tmp_path: Path) -> None:
    succeeds("reshard", REPO, tmp_path / "out", *TP, "--download")
    assert_same_weights(tmp_path / "out", local)
    hub.reset()
    succeeds("reshard", REPO, tmp_path / "again", *TP)
    assert not hub.seen(host="cdn")


@pytest.mark.slow
def test_a_download_that_was_changed_on_its_way_is_found_and_removed(
    hub: HubServer, local: Path, tmp_path: Path
) -> None:
    open_source(REPO, exact=True)  # headers are sound
    hub.faults.append(Fault("corrupt", route="cdn", file="*3-of*"))
    result = run("reshard", REPO, tmp_path / "out", *TP, "--download")
    assert result.exit_code == ExitCode.NETWORK
    assert "error: model-00003-of-00005.safetensors: the received bytes have SHA-256" in result.stderr
    assert not (tmp_path / "out").exists()
    outcome = json.loads(succeeds("reshard", REPO, tmp_path / "out", *TP, "--download", "--json"))
    assert outcome["intact"] == 1, "the others were there"
    assert_same_weights(tmp_path / "out", local)


def test_a_download_that_broke_off_tells_nobody_the_signed_address(
    hub: HubServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults.append(Fault("cut", route="cdn", times=2))
    succeeds("reshard", REPO, tmp_path / "out", *TP, "--download")
    assert "Signature" not in capfd.readouterr().err + caplog.text


def test_download_of_a_folder_is_a_contradiction(hub: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    assert "--download" in fails(ExitCode.USAGE, "reshard", checkpoint, tmp_path / "out", *TP, "--download")


def test_offline_what_was_inspected_can_be_planned_and_not_read(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_source(REPO, exact=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.reset()
    succeeds("plan", REPO, *TP)
    assert "HF_HUB_OFFLINE is set" in fails(ExitCode.NETWORK, "reshard", REPO, tmp_path / "out", *TP)
    assert asked(hub) == []


@pytest.mark.slow
def test_without_a_connection_what_was_inspected_is_where_the_branch_was_last(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeeds("inspect", REPO)
    for path in (tmp_path / "cache").rglob("refs/*"):
        os.utime(path, (time.time() - 7200, time.time() - 7200))
    hub.faults.append(Fault("status", times=None))
    succeeds("plan", REPO, *TP)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.reset()
    succeeds("plan", REPO, *TP)
    assert asked(hub) == []


def test_offline_and_nothing_known_says_what_to_download(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = fails(ExitCode.NETWORK, "inspect", f"{REPO}@v1")
    assert "`hf download org/name --revision v1`" in said


def test_without_a_connection_the_hub_cache_serves(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    download(hub)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert hub.head(REPO) in succeeds("inspect", REPO, "--json")


@pytest.mark.parametrize(
    "name", ["..", ".", "", "\x00x", "a\x1b[31m", "x" * 5000, "..\\evil", "C:\\x", "a\nb", "\u202ex"]
)
def test_a_listing_with_what_is_no_file_name_is_refused(name: str, hub: HubServer) -> None:
    entry = SimpleNamespace(rfilename=name, size=1, lfs=None, blob_id="b")
    with pytest.raises(BadAnswer, match="not a file name"):
        list(hub_source._listed([entry], "org/name@main"))


def test_a_connection_that_brings_next_to_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps every timeout of a connection away."""
    monkeypatch.setattr(hub_files, "_SLOW_SECONDS", 0.05)

    def drip(handler: Handler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", "bytes 0-9999/10000")
        handler.send_header("Content-Length", "10000")
        handler.end_headers()
        while True:
            time.sleep(0.01)
            handler.wfile.write(b"x")

    with Server(drip) as server:
        files = hub_files.HubFiles(server.url, REPO, "0" * 40, {"f": Listed(10_000, "x", None)})
        place = hub_http.Location(f"{server.url}/f", False)
        came = files._read("f", place, 0, memoryview(bytearray(10_000)), Event())
    assert 0 < came < 100


# --- repositories of other tools -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("Q4_K_M/a-00001-of-00002.gguf", "README.md"), "GGUF files (Q4_K_M/a-00001-of-00002.gguf)"),
        (("a.gguf", "config.json"), "GGUF files (a.gguf)"),
        (("adapter_config.json", "adapter_model.safetensors"), "a LoRA adapter for org/base"),
        (("pytorch_model.bin", "config.json"), "PyTorch files (pytorch_model.bin)"),
    ],
)
def test_a_repository_of_another_tools_files_is_named(
    files: tuple[str, ...], said: str, hub: HubServer, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / "other" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "other" / name).write_text('{"base_model_name_or_path": "org/base"}')
    hub.add_repo("org/other", {"main": tmp_path / "other"})
    result = CliRunner().invoke(app, ["inspect", "org/other"])
    assert result.exit_code == ExitCode.CHECKPOINT
    assert said in result.stderr
