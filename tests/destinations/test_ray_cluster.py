"""`reshard --ray`: on a real cluster of several node processes, shares are byte by byte what one run writes."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
from rich.console import Console
from support.checkpoints.small import open_folder
from support.folders import apart_from_statements, contents
from support.paths import TESTS
from support.schemas import validator
from typer.testing import CliRunner

from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, write_checkpoint
from dsv4_shard.cli import app
from dsv4_shard.destinations import ray_cluster as cluster
from dsv4_shard.destinations import ray_connection
from dsv4_shard.destinations.ray_cluster import _BUSY_SECONDS, _TRIES, _Driver, _nodes, _Share
from dsv4_shard.destinations.ray_connection import Connection, Node
from dsv4_shard.destinations.share_worker import (
    ShareAdvanced,
    ShareBegun,
    ShareEnded,
    ShareFailed,
    ShareTask,
    _Work,
    carry_out,
)
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import (
    AccessRefused,
    ExitCode,
    NodesLost,
    NotFound,
    OutputBusy,
    OutputNotEmpty,
    Unreachable,
    UsageError,
)
from dsv4_shard.opening import open_checkpoint
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.journal import read_journal
from dsv4_shard.sharding.manifest import load_manifest
from dsv4_shard.sharding.progress import Reporter, Task
from dsv4_shard.terminal import progress
from dsv4_shard.terminal.progress import ProgressBars
from dsv4_shard.verification.result_folder import verify

TP = 8
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}


def on_ray(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that takes part in one cluster, which is enough for all of these."""
    return pytest.mark.ray(pytest.mark.xdist_group("ray")(test))


needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")


class RayCluster(NamedTuple):
    """Its address, the process numbers of its nodes and of its head's servers, and the folders of its nodes."""

    address: str
    raylets: list[int]
    head: dict[str, int]
    homes: list[Path]


@contextmanager
def cluster_of(homes: list[Path], *options: str) -> Iterator[RayCluster]:
    """A cluster with a node that takes tasks in each folder. With `--head`, the first one is the driver's."""
    command = [sys.executable, str(TESTS / "support/ray/nodes.py"), *options, *map(str, homes)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        yield RayCluster(started["address"], started["raylets"], started["head"], homes)
        process.stdin.close()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A cluster of three nodes: for two shares, one to spare."""
    with cluster_of([tmp_path_factory.mktemp(f"node-{number}") for number in range(3)]) as three:
        yield three


@pytest.fixture
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A cluster of its own, of as many nodes as there are shares."""
    with cluster_of([tmp_path_factory.mktemp(f"of-two-{number}") for number in range(2)]) as two:
        yield two


@pytest.fixture
def with_driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A cluster of its own, of two nodes; the driver is on the first."""
    homes = [tmp_path_factory.mktemp(f"with-driver-{number}") for number in range(2)]
    with cluster_of(homes, "--head") as two:
        yield two


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that cuts for every layout. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("model") / "model", DEMO_CONFIG, 5)


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one run on one machine writes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert CliRunner().invoke(app, ["reshard", str(model), str(out), *options()]).exit_code == 0
    return apart_from_statements(contents(out))


def options() -> list[str]:
    return ["--tp", str(TP), "--nodes", "2"]


def reshard_on(nodes: RayCluster, model: Path, out: Path | str, *more: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own: Ray's threads would stay in this one."""
    command = [sys.executable, "-m", "dsv4_shard", "reshard", str(model), str(out), *options(), "--ray", nodes.address]
    return subprocess.run([*command, *more], capture_output=True, text=True, env=ENVIRONMENT)


def order_for(model: Path, out: Path, ranks: tuple[int, ...], **more: Any) -> ShareTask:
    plan = make_plan(*open_folder(model), Request(tp=TP))
    return ShareTask(str(model), None, plan.to_json(), out, open_checkpoint, ranks, **more)


# --- on a cluster --------------------------------------------------------------------------------------------------


@on_ray
def test_shares_in_one_folder_are_what_one_run_writes_and_a_second_run_finds_them_there(
    nodes: RayCluster, model: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    for said in ("wrote 18 rank files", "ranks 4-7 on"), ("wrote 0 rank files", "was there"):
        ran = reshard_on(nodes, model, tmp_path / "out")
        assert (ran.returncode, ran.stderr) == (0, "")
        assert all(text in ran.stdout for text in (*said, "in one folder for all nodes", "together: ranks 0-7 of 8"))
        assert ran.stdout.endswith("no problems found\n")
        assert apart_from_statements(contents(tmp_path / "out")) == expected
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


@on_ray
def test_nodes_with_disks_of_their_own_keep_their_shares(nodes: RayCluster, model: Path, tmp_path: Path) -> None:
    """The folder is another one in each process that names it: here the current one, elsewhere a local disk."""
    ran = reshard_on(nodes, model, "/proc/self/cwd/out", "--json")
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    validator("reshard-cluster").validate(document)
    assert (document["one_folder"], document["verification"]["ok"]) == (False, True)
    assert (document["verification"]["ranks"], document["verification"]["missing"]) == (list(range(TP)), [])
    folders = [home / "out" for home in nodes.homes if (home / "out").exists()]
    assert sorted(load_manifest(folder).ranks for folder in folders) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    shown = CliRunner().invoke(app, ["verify", *map(str, folders), "--against", str(model)])
    assert shown.exit_code == 0


@on_ray
def test_an_error_on_a_node_comes_back_as_it_is_and_says_where(nodes: RayCluster, model: Path, tmp_path: Path) -> None:
    ran = reshard_on(nodes, model, tmp_path / "nowhere" / "out")
    assert ran.returncode == ExitCode.IO
    assert ran.stderr.splitlines()[:2] == [
        f"error: {tmp_path / 'nowhere'}: no such folder",
        f"  Make it first: `mkdir -p {tmp_path / 'nowhere'}`.",
    ]
    assert "That was ranks " in ran.stderr
    assert "Traceback" not in ran.stderr


ONLY_HERE = """
import sys, types
module = types.ModuleType("only_here")
exec("def opener(repo, config): ...", module.__dict__)
sys.modules["only_here"] = module
from support.ray import slow_share
slow_share.open_slowly = module.opener
slow_share.main(*sys.argv[1:])
"""


@on_ray
def test_a_node_that_lacks_a_package_is_said(nodes: RayCluster, model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ONLY_HERE, nodes.address, str(model), str(tmp_path / "out"), str(TP)]
    ran = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    document = json.loads(ran.stdout)
    assert (document["error"], ran.returncode) == ("UsageError", ExitCode.USAGE)
    assert "No module named 'only_here'" in document["says"][0]
    assert "Install this version of dsv4-shard on every node" in document["says"][1]


@pytest.fixture
def hold(model: Path) -> Iterator[Path]:
    """While this file is there, shares that were started slowly do not end."""
    file = model.with_name("hold")
    file.touch()
    yield file
    file.unlink(missing_ok=True)


def start_slowly(nodes: RayCluster, model: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(TESTS / "support/ray/slow_share.py"), nodes.address, str(model), str(out), str(TP)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def wait_for_work(staging: Path, process: subprocess.Popen[str]) -> int:
    """Until the journal of a share says that something is done; returns the process that writes it."""
    while True:
        found = read_journal(staging / "journal")
        if found is not None and (found.finished or found.unconfirmed):
            return int((staging / ".dsv4-shard-staging").read_text().split()[1])
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@on_ray
@pytest.mark.usefixtures("interruptible")
def test_a_run_that_is_interrupted_goes_on_from_what_its_nodes_have_saved(
    nodes: RayCluster, model: Path, hold: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    with start_slowly(nodes, model, tmp_path / "out") as process:
        stagings = [tmp_path / f".out.ranks-{span}.partial" for span in ("0-3", "4-7")]
        for staging in stagings:
            wait_for_work(staging, process)
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate()
        assert process.returncode == ExitCode.INTERRUPTED
    (said,) = json.loads(stdout)["says"]
    assert said.startswith(f"Kept for {tmp_path / 'out'}: ranks 0-3 on ")
    assert said.endswith("The same command resumes.")
    assert len(re.findall(r"ranks \d-\d on [\d.]+ \([\d.]+ M?B of [\d.]+ MB written\)", said)) == 2
    assert all((staging / "journal").exists() for staging in stagings)
    ran = reshard_on(nodes, model, tmp_path / "out")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("Resuming:") == 2
    assert apart_from_statements(contents(tmp_path / "out")) == expected


@on_ray
@pytest.mark.parametrize("where", ["nodes", "two_nodes"])
def test_a_share_whose_node_is_killed_is_gone_on_with_elsewhere(
    where: str, request: pytest.FixtureRequest, model: Path, hold: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    nodes: RayCluster = request.getfixturevalue(where)
    with start_slowly(nodes, model, tmp_path / "out") as process:
        worker = wait_for_work(tmp_path / ".out.ranks-4-7.partial", process)
        raylet = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        assert raylet in nodes.raylets
        for pid in (raylet, worker):
            os.kill(pid, signal.SIGKILL)
        hold.unlink()
        stdout, stderr = process.communicate()
        assert process.returncode == 0, stderr
    document = json.loads(stdout)
    (first, there), (second, resumed) = document["shares"]
    assert (first, there, second) == ([0, 1, 2, 3], 0, [4, 5, 6, 7])
    assert resumed > 0
    assert (document["ok"], document["one_folder"]) == (True, True)
    assert re.search(r"^ranks 4-7 on [\d.]+: lost, its (node|process) died$", stderr, re.MULTILINE)
    assert re.search(r"^ranks 4-7 on [\d.]+: written again, after it was lost on [\d.]+$", stderr, re.MULTILINE)
    assert "Resuming:" in stderr
    assert "from an earlier run; written again, after it was lost on " in stderr
    rank_files = [path for path in (tmp_path / "out").rglob("*.safetensors") if path.is_file()]
    assert f"wrote {len({path.stat().st_ino for path in rank_files})} rank files" in stderr
    assert apart_from_statements(contents(tmp_path / "out")) == expected
    assert verify(tmp_path / "out", open_folder(model)).ok
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def kill(*processes: int) -> None:
    for pid in processes:
        os.kill(pid, signal.SIGKILL)


@on_ray
@pytest.mark.parametrize(
    "servers", [["raylet"], ["raylet", "gcs_server"], pytest.param(["gcs_server"], marks=pytest.mark.slow)]
)
def test_a_run_whose_own_node_dies_ends_says_what_to_do_and_can_go_on(
    servers: list[str], with_driver: RayCluster, model: Path, hold: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    with start_slowly(with_driver, model, tmp_path / "out") as process:
        for span in ("0-3", "4-7"):
            wait_for_work(tmp_path / f".out.ranks-{span}.partial", process)
        kill(*(with_driver.head[name] for name in servers))
        stdout, stderr = process.communicate(timeout=90)
        assert process.returncode == ExitCode.NETWORK, stderr
    document = json.loads(stdout)
    assert document["error"] == "Unreachable"
    message, hint, kept = document["says"]
    lost = "the Ray node of this machine" if "raylet" in servers else "the head of the Ray cluster"
    how = "has ended" if "raylet" in servers else r"gave no sign of life for 40 s"
    assert re.fullmatch(rf"{lost} \([\d.:]+\) {how}: Connection refused", message)
    assert "Start it again with `ray start`. Then the same command resumes." in hint
    assert kept.startswith(f"Kept for {tmp_path / 'out'}: ranks 0-3 on ")
    hold.unlink()
    if servers == ["raylet"]:  # the cluster is there, and this machine has another node
        ran = reshard_on(with_driver, model, tmp_path / "out")
        assert ran.returncode == 0, ran.stderr
        assert "Resuming:" in ran.stderr
    else:
        for ranks in ("0-3", "4-7"):
            shared = ["reshard", str(model), str(tmp_path / "out"), *options(), "--ranks", ranks]
            assert CliRunner().invoke(app, shared).exit_code == 0
    assert apart_from_statements(contents(tmp_path / "out")) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


IN_A_PROGRAM = """
import sys
import ray
import dsv4_shard

address, other, model, out = sys.argv[1:]
class Shown(dsv4_shard.Progress):
    def begin(self, task, total_bytes):
        print("begins", task.work)

ray.init(address=address, log_to_driver=False)
for _ in range(2):
    done = dsv4_shard.reshard_on_cluster(model, out, tp=8, nodes=2, ray="auto", progress=Shown())
    print("shares", [share.written is not None for share in done.shares], done.verification.ok)
print("connected", ray.is_initialized(), ray.get(ray.remote(lambda: 7).remote()))
print("named", dsv4_shard.reshard_on_cluster(model, out, tp=8, nodes=2, ray=address).files)
try:
    dsv4_shard.reshard_on_cluster(model, out, tp=8, nodes=2, ray=other)
except dsv4_shard.errors.UsageError as error:
    print("refused", error)
"""


@on_ray
def test_a_program_that_is_connected_keeps_its_connection_and_its_output(
    nodes: RayCluster, model: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", IN_A_PROGRAM, nodes.address, "127.0.0.1:1", str(model), str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines.count("begins reshard") == lines.count("begins verify") == 4
    assert "shares [True, True] True" in lines
    assert "shares [False, False] True" in lines
    assert lines[-3:] == [
        "connected True 7",
        "named 0",
        f"refused ray='127.0.0.1:1': this process is connected to another cluster, at {nodes.address}",
    ]
    assert apart_from_statements(contents(tmp_path / "out")) == expected


# --- without one ---------------------------------------------------------------------------------------------------


def refused(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["reshard", *arguments])
    return result.exit_code, result.stderr


def test_without_ray_it_is_said_how_to_install_it(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, said = refused(str(model), str(tmp_path / "out"), "--tp", "8", "--ray", "auto")
    assert code == ExitCode.USAGE
    assert "Ray is not installed here" in said
    assert "pip install 'dsv4-shard[ray]'" in said


@needs_ray
def test_an_address_where_nothing_answers_is_unreachable_at_once(model: Path, tmp_path: Path) -> None:
    code, said = refused(str(model), str(tmp_path / "out"), "--tp", "8", "--ray", "127.0.0.1:1")
    assert code == ExitCode.NETWORK
    assert "--ray '127.0.0.1:1': no Ray cluster can be reached" in said


@needs_ray
def test_an_address_that_takes_a_connection_and_is_silent_is_unreachable_in_time(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_connection, "_CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        code, said = refused(str(model), str(tmp_path / "out"), "--tp", "8", "--ray", address)
    assert code == ExitCode.NETWORK
    assert f"--ray '{address}': no Ray cluster can be reached: no answer within 0.3 s" in said


def test_a_machine_without_a_cluster_is_said(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nMore")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, is_initialized=lambda: False))
    code, said = refused(str(model), str(tmp_path / "out"), "--tp", "8", "--ray", "auto")
    assert code == ExitCode.NETWORK
    assert "--ray 'auto': no Ray cluster can be reached: Could not find any running Ray instance.\n" in said


def test_rays_client_is_refused(model: Path, tmp_path: Path) -> None:
    code, said = refused(str(model), str(tmp_path / "out"), "--tp", "8", "--ray", "ray://head:10001")
    assert code == ExitCode.USAGE
    assert "Run the command on a node of the cluster" in said


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        (("--ranks", "0-3"), "Leave out --ranks"),
        (("--overwrite",), "Remove an earlier result"),
        (("--download",), "Leave out --download"),
    ],
)
def test_options_of_one_share_are_refused_for_all_and_before_anything_is_read(
    option: tuple[str, ...], hint: str
) -> None:
    code, said = refused("nowhere", "out", "--tp", "8", "--ray", "auto", *option)
    assert code == ExitCode.USAGE
    assert f"--ray and {option[0]}" in said
    assert hint in said


def nodes_of(*found: dict[str, Any]) -> Connection:
    """A connection to a cluster with these nodes."""
    return cast(
        Connection,
        SimpleNamespace(ray=SimpleNamespace(nodes=lambda: list(found)), call=lambda call: call(), look=lambda: None),
    )


def test_a_cluster_whose_nodes_take_no_tasks_is_refused() -> None:
    head = {"NodeID": "a", "NodeManagerAddress": "10.0.0.1", "Alive": True, "Resources": {"memory": 1.0}}
    dead = {"NodeID": "b", "NodeManagerAddress": "10.0.0.2", "Alive": False, "Resources": {"CPU": 8.0}}
    with pytest.raises(NodesLost, match="no node of the Ray cluster takes tasks"):
        _nodes(nodes_of(head, dead))


def test_nodes_are_counted_by_address() -> None:
    addresses = ["10.0.0.10", "10.0.0.9", "192.168.0.1", "10.0.0.100"]
    there = [{"NodeID": str(n), "NodeManagerAddress": address, "Alive": True, "Resources": {"CPU": 1.0}}
             for n, address in enumerate(addresses)]  # fmt: skip
    found = _nodes(nodes_of(*there))
    assert [node.address for node in found] == ["10.0.0.9", "10.0.0.10", "10.0.0.100", "192.168.0.1"]


def driver_and_share(tries: int) -> tuple[_Driver, _Share]:
    node = Node("a", "10.0.0.1")
    share = _Share((0, 1), node, node, tries)
    return _Driver(nodes_of(), ShareTask("", None, "", Path(), open_checkpoint), [share], Reporter(None)), share


def test_a_share_that_is_lost_again_and_again_is_given_up() -> None:
    driver, share = driver_and_share(_TRIES - 1)
    driver._lose(share, "NodeDiedError")
    share.tries += 1
    with pytest.raises(NodesLost, match=r"ranks 0-1: lost 3 times with their node, last ranks 0-1 on 10\.0\.0\.1"):
        driver._lose(share, "NodeDiedError")


def test_the_lock_of_a_lost_share_is_waited_for_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(cluster, "time", SimpleNamespace(monotonic=lambda: now[0]))
    driver, share = driver_and_share(2)
    for now[0] in (100.0, 99.0 + _BUSY_SECONDS):
        driver._fail(share, OutputBusy("busy"))
        assert share.waits_until > now[0]
        share.tries = 2
    now[0] = 100.0 + _BUSY_SECONDS
    with pytest.raises(OutputBusy):
        driver._fail(share, OutputBusy("busy"))


def test_a_share_that_someone_else_is_writing_is_not_waited_for() -> None:
    driver, share = driver_and_share(1)
    with pytest.raises(OutputBusy):
        driver._fail(share, OutputBusy("busy"))


@pytest.mark.parametrize("error", [AccessRefused("401"), NotFound("no bucket")])
def test_what_a_node_cannot_reach_is_said_with_whose_environment_counts(error: Unreachable) -> None:
    driver, share = driver_and_share(1)
    with pytest.raises(type(error)) as raised:
        driver._fail(share, error)
    where, why = raised.value.__notes__
    assert where == "That was ranks 0-1 on 10.0.0.1."
    assert "the environment of its `ray start`" in why


# --- what a node does ----------------------------------------------------------------------------------------------


def test_bytes_are_told_between_what_came_before_and_after_them(model: Path, tmp_path: Path) -> None:
    work = _Work(order_for(model, tmp_path / "out", (2, 3)))
    work._tell(ShareBegun("reshard", 100))
    work._advance(7)
    assert work._take_advanced() is None, "not before it is told that it has begun"
    work._advance(3)
    work._tell(ShareBegun("verify", 50))
    work._advance(4)
    failed = ShareFailed(UsageError("the end"))
    work._tell(failed)
    told = [ShareBegun("reshard", 100), ShareAdvanced(10), ShareBegun("verify", 50), ShareAdvanced(4), failed]
    assert list(work.messages()) == told


@pytest.mark.slow
def test_a_node_tells_of_each_byte_and_of_the_end(model: Path, tmp_path: Path) -> None:
    messages = list(carry_out(order_for(model, tmp_path / "out", (2, 3))))
    begun = [message for message in messages if isinstance(message, ShareBegun)]
    assert [message.work for message in begun] == ["reshard", "verify"]
    assert sum(message.nbytes for message in messages if isinstance(message, ShareAdvanced)) == sum(
        b.total for b in begun
    )
    ended = messages[-1]
    assert isinstance(ended, ShareEnded)
    assert ended.outcome is not None
    assert ended.verification.ok
    assert (ended.verification.ranks, ended.outcome.ranks) == ((2, 3), (2, 3))
    again = list(carry_out(order_for(model, tmp_path / "out", (2, 3))))[-1]
    assert isinstance(again, ShareEnded)
    assert again.outcome is None
    assert again.verification == ended.verification


@pytest.mark.slow
def test_a_node_looks_at_its_own_ranks_alone(model: Path, tmp_path: Path) -> None:
    for ranks in ((0, 1), (2, 3)):
        list(carry_out(order_for(model, tmp_path / "out", ranks)))
    with (tmp_path / "out/model-rank-1-part-0.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    found = [list(carry_out(order_for(model, tmp_path / "out", ranks)))[-1] for ranks in ((0, 1), (2, 3))]
    assert [message.verification.ok for message in found if isinstance(message, ShareEnded)] == [False, True]


def test_a_node_tells_an_error_as_it_was_raised(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years of work")
    last = list(carry_out(order_for(model, tmp_path / "out", (0,))))[-1]
    assert isinstance(last, ShareFailed)
    assert isinstance(last.error, OutputNotEmpty)
    assert "thesis" in str([path.name for path in (tmp_path / "out").iterdir()])


def test_a_node_with_another_version_refuses(model: Path, tmp_path: Path) -> None:
    (last,) = carry_out(order_for(model, tmp_path / "out", (0,), version="0.0.9"))
    assert isinstance(last, ShareFailed)
    assert isinstance(last.error, UsageError)
    assert "the driver has 0.0.9" in str(last.error)


def test_a_node_does_not_hide_a_bug(model: Path, tmp_path: Path) -> None:
    def opener(*_: object) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(carry_out(replace(order_for(model, tmp_path / "out", (0,)), opener=opener)))


def test_a_node_stops_when_nobody_listens(model: Path, tmp_path: Path) -> None:
    before = threading.active_count()
    messages = carry_out(order_for(model, tmp_path / "out", (0, 1)))
    assert isinstance(next(messages), ShareBegun)
    messages.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert not (tmp_path / "out").exists() or load_manifest(tmp_path / "out").ranks == (0, 1)


# --- progress ------------------------------------------------------------------------------------------------------


FIRST, SECOND = Task("reshard", "ranks 0-7"), Task("reshard", "ranks 8-15")


def test_progress_of_all_shares_is_one_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    text = io.StringIO()
    with ProgressBars(Console(file=text), quiet=False) as shown:
        shown.begin(FIRST, 200)
        shown.begin(SECOND, 400)
        shown.resume(SECOND, 100)
        shown.advance(FIRST, 20)
        now[0] = 31.0
        shown.advance(SECOND, 100)
        shown.advance(SECOND, 100)
        shown.lost(FIRST, "its node died")
        now[0] = 62.0
        shown.advance(SECOND, 100)
    assert text.getvalue() == (
        "ranks 8-15: Resuming: 100 B of 400 B already written (25 %)\n"
        "reshard ranks 0-7 10 %; reshard ranks 8-15 50 %\n"
        "ranks 0-7: lost, its node died\n"
        "reshard ranks 8-15 100 %\n"
    )


def test_on_a_terminal_each_share_has_a_bar() -> None:
    text = io.StringIO()
    with ProgressBars(Console(file=text, force_terminal=True, width=100), quiet=False) as shown:
        shown.begin(FIRST, 200)
        shown.begin(SECOND, 400)
        shown.resume(SECOND, 100)
        shown.lost(FIRST, "its node died")
        shown.advance(SECOND, 100)
    last = text.getvalue().rpartition("reshard ranks 8-15")
    assert "200/400 bytes" in last[2]
    assert "reshard ranks 0-7" in text.getvalue()
    assert "ranks 0-7: lost, its node died" in text.getvalue()


@pytest.mark.slow
def test_quiet_progress_says_only_what_must_be_said() -> None:
    text = io.StringIO()
    with ProgressBars(Console(file=text), quiet=True) as shown:
        shown.begin(FIRST, 200)
        shown.advance(FIRST, 20)
        shown.lost(FIRST, "\x1b[2J")
    assert text.getvalue() == "ranks 0-7: lost, \\x1b[2J\n"
