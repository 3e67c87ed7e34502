"""The benchmarks run from end to end on small checkpoints, measure every case, and clean up behind them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, is_dataclass
from pathlib import Path

import pytest
from support.checkpoints.small import load_tensors, open_folder, raw, small_config
from support.paths import ROOT

from benchmarks import (
    back,
    converter,
    disk,
    gpu_loading,
    growth,
    headers,
    loading,
    machines,
    moves,
    network,
    nginx,
    page_cache,
    shares,
    together,
    workers,
)
from benchmarks.running import ChildFailed, run, tool
from benchmarks.settings import NotMeasured, Settings, Skipped, require_room
from benchmarks.sized import WIDTH, config_for, tensor_bytes, write_least
from dsv4_shard.checkpoint.synthetic import tensors_of, write_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.run import reshard
from dsv4_shard.tensors.header import nbytes_of

MAY_BE_ZERO = {"disk_read", "cp_disk_read", "disk_written"}
"""What the page cache served, or a file system in memory took."""


def bench(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks", *arguments]


def settings(tmp_path: Path, **changes: object) -> Settings:
    values = {"scratch": tmp_path, "nbytes": 1 << 20, "rounds": 1, "cold": False, "converter": None,
              "converter_nbytes": 1 << 20}  # fmt: skip
    return Settings(**values | changes)  # type: ignore[arg-type]


def numbers(document: object, name: str = "") -> list[tuple[str, float]]:
    """Every number of a JSON document, with the key it stands under."""
    if is_dataclass(document):
        document = asdict(document)  # type: ignore[arg-type]
    if isinstance(document, dict):
        return [one for key, value in document.items() for one in numbers(value, key)]
    if isinstance(document, list):
        return [one for value in document for one in numbers(value, name)]
    return [(name, document)] if isinstance(document, int | float) else []


def not_above_zero(document: object) -> list[tuple[str, float]]:
    return [(key, value) for key, value in numbers(document) if value <= 0 and key not in MAY_BE_ZERO]


@pytest.mark.slow
def test_command_measures_every_case_of_moves_and_writes_json(tmp_path: Path) -> None:
    """The whole command; it reads the checkpoint once, at most the output to hash it, and writes the output once."""
    file, scratch = tmp_path / "bench.json", tmp_path / "scratch"
    scratch.mkdir()
    command = bench("--only", "disk,moves", "--gb", "0.01", "--rounds", "1", "--json", str(file))
    done = subprocess.run([*command, "--scratch", str(scratch)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text())
    assert set(document) == {"machine", "disk", "moves"}
    assert [row["case"] for row in document["moves"]] == list(moves.CASES)
    assert {row["case"] for row in document["disk"]} <= set(disk.WAYS)
    assert not_above_zero(document) == []
    for row in document["moves"]:
        assert 0.98 < row["read_over_needed"] < 1.02 + row["output_bytes"] / row["source_bytes"], row
        assert row["written_over_output"] == pytest.approx(1, abs=0.02)
        assert row["case"].split(",")[0] in done.stdout
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_the_way_back_reads_every_rank_once_and_leaves_nothing(tmp_path: Path) -> None:
    rows = back.measure(settings(tmp_path))
    assert [row.case for row in rows] == list(back.CASES)
    assert not_above_zero(rows) == []
    assert all(row.read_over_ranks > 0.9 for row in rows)
    assert back.table(rows).row_count == len(rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_growth_has_sizes_and_ranks_and_skips_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "SIZES", (1, 1 << 40))
    monkeypatch.setattr(growth, "RANKS", {64: growth.RANKS[64]})
    small, large, ranks = growth.measure(settings(tmp_path))
    assert (small.tp, ranks.tp) == (16, 64)
    assert not_above_zero([small, ranks]) == []
    assert isinstance(large, Skipped)
    assert "needed" in large.skipped
    assert growth.table([small, large, ranks]).row_count == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_loading_has_every_way_of_every_engine(tmp_path: Path) -> None:
    rows = loading.measure(settings(tmp_path))
    assert [row.case for row in rows] == [f"{engine}, {way}" for engine in loading.ENGINES for way in loading.WAYS]
    assert not_above_zero(rows) == []
    assert loading.table(rows).row_count == len(rows)


@pytest.mark.slow
def test_headers_has_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    rows = headers.measure(settings(tmp_path))
    assert [row.case.split()[0] for row in rows] == ["--help", "inspect", "plan", "plan", "plan"]
    assert not_above_zero(rows) == []
    assert headers.table(rows).row_count == len(rows)


needs_nginx = pytest.mark.skipif(not nginx.found() or not shutil.which("curl"), reason="no nginx or no curl")


@pytest.mark.slow
@needs_nginx
def test_network_reads_every_case_beside_curl(tmp_path: Path) -> None:
    rows = network.measure(settings(tmp_path))
    assert [row.case for row in rows] == list(network.CASES)
    assert not_above_zero(rows) == []
    assert network.table(rows).row_count == len(rows)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["cache"]


@pytest.mark.slow
@needs_nginx
def test_shares_fetch_less_than_each_alone(tmp_path: Path) -> None:
    rows = together.measure(settings(tmp_path, nbytes=150 << 20))
    assert [row.processes for row in rows] == list(together.PROCESSES)
    assert not_above_zero(rows) == []
    one, two, four = (row.fetched.median for row in rows)
    assert one == pytest.approx(1, abs=0.02)
    assert two < 1.3, "1.35 without sharing"
    assert four < 1.6, "2 without sharing"
    assert together.table(rows).row_count == len(rows)


@pytest.mark.slow
def test_shares_read_what_is_reckoned_and_no_byte_twice(tmp_path: Path) -> None:
    rows = shares.measure(settings(tmp_path))
    assert [(row.case, row.shares) for row in rows] == [(case, n) for case in shares.CASES for n in shares.SHARES]
    assert not_above_zero(rows) == []
    assert all(row.counted == row.reckoned >= row.used for row in rows)
    assert all(row.most == 1 for row in rows if "FP4" not in row.case)
    assert shares.table(rows).row_count == len(rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_machines_on_paper_are_what_the_documentation_says(tmp_path: Path) -> None:
    """Its table is that of the real headers and of the rates that it names."""
    document = machines.DOCUMENT.read_text()
    rates = machines.rates_in(document)
    found = machines.readings_of(tmp_path)
    rows = machines.estimates(machines.shares_of(found), rates)
    assert machines.into(document, machines.markdown(rows, rates, found)) == document
    assert not_above_zero(rows) == []
    assert machines.table(rows).row_count == len(machines.NODES)
    assert rows[0].read == pytest.approx(864.7e9, rel=0.001)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_machines_measures_the_rates_that_are_not_given(tmp_path: Path) -> None:
    rates = machines.measure_rates(settings(tmp_path), {"network": 1.0})
    assert min(rates.disk, rates.machine, rates.cpus) > 0
    assert rates.network == 1.0
    given = {"disk": 2.0, "machine": 3.0, "cpus": 4}
    assert machines.measure_rates(settings(tmp_path), given) == machines.Rates(2.0, 3.0, 4)
    assert list(tmp_path.iterdir()) == []


def test_more_machines_stop_to_pay_where_what_they_share_is_the_limit() -> None:
    shares = [machines.Share(nodes, 10**12 // nodes, 10**12 // nodes) for nodes in machines.NODES]
    rows = machines.estimates(shares, machines.Rates(disk=1.0, machine=80.0, cpus=8, network=10.0, shared=4.0))
    assert machines._pays(rows) == {
        "own links, own disks": 16, "shared source, own disks": 4, "shared source and output": 1,
    }  # fmt: skip


@pytest.mark.parametrize("engine", loading.ENGINES)
def test_whole_checkpoint_narrowed_gives_what_the_own_files_hold(tmp_path: Path, engine: str) -> None:
    """Both ways of reading the whole checkpoint take the very bytes that a rank's files have."""
    source, out = tmp_path / "checkpoint", tmp_path / "out"
    write_checkpoint(source, small_config(num_nextn_predict_layers=0, compress_ratios=[128, 4]), mtp_blocks=0)
    checkpoint, inventory = open_folder(source)
    reshard(
        prepare(checkpoint, inventory, make_plan(checkpoint, inventory, Request(tp=4, engine=engine))), checkpoint, out
    )
    files = loading.rank_files(source, out, engine, 4, 3)
    own, slices = load_tensors(*files.own), loading.load_slices(files)
    for part, tensor in zip(files.parts, slices, strict=True):
        held = raw(own[part.tensor]) if part.tensor else b""
        assert held[part.at : part.at + tensor.nbytes] == raw(tensor) or not part.tensor, part.name
    assert sum(tensor.nbytes for part, tensor in zip(files.parts, slices, strict=True) if part.tensor) > 1 << 17
    assert sorted(map(raw, slices)) == sorted(map(raw, loading.load_all(files)))
    assert sorted(map(raw, loading.load_own(files))) == sorted(map(raw, own.values()))


@pytest.mark.slow
def test_checkpoints_have_the_size_asked_for_and_v4_pro_widths() -> None:
    for gb in (1, 2, 4, 8):
        config = config_for(gb * 10**9)
        size = sum(nbytes_of(*tensor) for tensor in tensors_of(config, mtp_blocks=0).values())
        assert size == pytest.approx(gb * 1e9, rel=0.3)
        assert (config["hidden_size"], config["moe_intermediate_size"] // 16 // 2) == (WIDTH, 96)


def test_what_the_kernel_counts_is_that_of_the_command(tmp_path: Path) -> None:
    """Bytes read and written, and the memory of the command, not of the process that started it."""
    (tmp_path / "in").write_bytes(bytes(3_000_000))
    code = "import sys; data = open(sys.argv[1], 'rb').read(); open(sys.argv[2], 'wb').write(data[:1_000_000])"
    counted = run([sys.executable, "-I", "-S", "-c", code, str(tmp_path / "in"), str(tmp_path / "out")])
    assert 3_000_000 <= counted.bytes_read < 5_000_000
    assert 1_000_000 <= counted.bytes_written < 1_100_000
    assert 3_000_000 < counted.peak_memory < 64 << 20
    assert counted.seconds > 0


@pytest.mark.slow
def test_error_of_a_command_is_shown() -> None:
    with pytest.raises(ChildFailed, match=r"(?s)reshard /nowhere .* ended with .*no such"):
        run(tool("reshard", "/nowhere", "/nowhere/out", "--tp", "2"))


def test_no_room_is_said_in_numbers(tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match=r"GB free under .* 1000000\.0 GB needed"):
        require_room(tmp_path, 10**15)


def test_converter_is_refused_without_the_memory_for_it(tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match="--converter PATH"):
        converter.measure(settings(tmp_path))
    with pytest.raises(NotMeasured, match="--converter-gb"):
        converter.measure(settings(tmp_path, converter=Path("convert.py"), converter_nbytes=10**15))


@pytest.mark.slow
def test_converter_is_timed_in_turns_with_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that takes the converter's options and writes nothing."""
    monkeypatch.setattr(converter, "DTYPES", {"FP4 cast to FP8": "fp8"})
    script = tmp_path / "convert.py"
    script.write_text("import sys; assert sys.argv[1::2][:2] == ['--hf-ckpt-path', '--save-path'], sys.argv")
    rows = converter.measure(settings(tmp_path, converter=script))
    assert [row.case for row in rows] == list(converter.DTYPES)
    assert not_above_zero(rows) == []
    assert converter.table(rows).row_count == len(rows)


def test_cold_and_warm_leave_the_bytes_alone(tmp_path: Path) -> None:
    folder = write_least(tmp_path / "least")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for cold in (True, False):
        page_cache.prepare(folder, cold)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert tensor_bytes(folder) > 0


@pytest.mark.slow
def test_scratch_folder_is_removed_when_interrupted(tmp_path: Path) -> None:
    """Ended in the middle of a command: nothing is left, and that command has ended as well."""
    command = bench("--only", "moves", "--gb", "0.01", "--scratch", str(tmp_path))
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "round 1" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(path)]


def _read(path: Path) -> bytes:
    """A process's command line; none if it has ended, or is this one."""
    if path.parent.name == str(os.getpid()):
        return b""
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
def test_workers_has_every_layout_with_each_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "MEMORY", tmp_path)
    rows = workers.measure(settings(tmp_path))
    assert [(row.case, row.command, row.jobs) for row in rows] == [
        (case, command, jobs) for case in workers.CASES for command in workers.COMMANDS for jobs in workers._numbers()
    ]
    assert not_above_zero(rows) == []
    assert workers.table(rows).row_count == len(rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_gpu_loading_puts_the_same_bytes_by_every_loader_that_a_cpu_can_run(tmp_path: Path) -> None:
    place = gpu_loading.make(tmp_path, 1 << 20, "cpu")
    rows = list(gpu_loading.measure(place, 1))
    ways = {way for way, (_, package) in gpu_loading.WAYS.items() if package is None}
    assert {(row.way, row.cache) for row in rows} >= {(way, cache) for way in ways for cache in ("cold", "warm")}
    assert {row.way for row in rows if row.cache == "cold, 2 ranks"} == {*gpu_loading.TOGETHER} & ways
    assert gpu_loading.table(rows).row_count == len(rows)
