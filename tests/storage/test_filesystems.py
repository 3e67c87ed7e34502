"""Real faults of real file systems: small disks that fill up, quotas, read-only mounts, disks that stop reading.

They need root, loop devices and mkfs: where these are missing, the tests say so and are skipped.
"""

import fcntl
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.checkpoints.small import contents, job_for, open_folder, reshard_folder, small_config, with_bf16_o_a

from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import ExitCode, NotEnoughDisk, ReadFailed, ShardError, WriteFailed
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding import journal
from dsv4_shard.sharding.job import Job, prepare
from dsv4_shard.sharding.run import reshard
from dsv4_shard.storage import linux_io as syscalls
from dsv4_shard.storage import staging as commit
from dsv4_shard.verification.result_folder import verify

STAGING = ".out.partial"
MIB = 1 << 20
MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
}
LEAST_NBYTES = {"ext4": 32 * MIB, "btrfs": 160 * MIB, "xfs": 320 * MIB, "tmpfs": 32 * MIB}

Mount = Callable[..., Path]

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint without anything to decode. Only to be read."""
    return with_bf16_o_a(write_checkpoint(tmp_path_factory.mktemp("small") / "model", small_config(), 41))


@pytest.fixture(scope="module")
def expected(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run writes for two ranks."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    reshard_folder(small, out, 2)
    return contents(out)


@pytest.fixture(autouse=True)
def saved_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal is appended to several times in a run."""
    monkeypatch.setattr(journal, "SAVE_BYTES", 300_000)


def command(*arguments: str | Path) -> None:
    subprocess.run(arguments, check=True, capture_output=True)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a file system of so many bytes; `image` is where its blocks are, if that is given."""
    mounted: list[Path] = []

    def mount(kind: str, nbytes: int, image: Path | None = None, options: str = "defaults") -> Path:
        place = tmp_path / f"mount{len(mounted)}"
        place.mkdir()
        if kind == "tmpfs":
            call = ["mount", "-t", "tmpfs", "-o", f"size={nbytes},{options}", "none", str(place)]
        else:
            image = image or tmp_path / f"image{len(mounted)}"
            if not image.exists():
                make(kind, image, nbytes)
            call = ["mount", "-o", f"loop,{options}", str(image), str(place)]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount {kind} here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    if os.geteuid() != 0:
        pytest.skip("only root can mount file systems")
    yield mount
    for place in reversed(mounted):
        subprocess.run(["umount", str(place)], check=False, capture_output=True)


def make(kind: str, image: Path, nbytes: int) -> None:
    if shutil.which(MKFS[kind][0]) is None:
        pytest.skip(f"{MKFS[kind][0]} is not installed")
    with image.open("wb") as file:
        file.truncate(nbytes)
    command(*MKFS[kind], image)


def run_and_go_on(small: Path, out: Path, expected: dict[str, bytes]) -> int:
    """The run after the fault was mended; returns the bytes that it need not write again."""
    outcome = reshard_folder(small, out, 2)
    assert contents(out) == expected
    assert verify(out, open_folder(small)).ok
    assert not (out.parent / STAGING).exists()
    return outcome.bytes_resumed


# --- file systems as they are --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LEAST_NBYTES)
def test_the_result_is_the_same_on_every_file_system(
    kind: str, mount: Mount, small: Path, expected: dict[str, bytes]
) -> None:
    disk = mount(kind, LEAST_NBYTES[kind])
    reshard_folder(small, disk / "out", 2)
    assert contents(disk / "out") == expected
    reshard_folder(small, disk / "out", 2, overwrite=True)
    assert contents(disk / "out") == expected
    assert {path.name for path in disk.iterdir()} - {"lost+found"} == {"out"}


def test_files_that_cannot_be_links_to_another_file_system_are_copies_that_are_gone_on_with(
    mount: Mount, tmp_path: Path
) -> None:
    model = write_checkpoint(tmp_path / "model", small_config(), 42)
    job, checkpoint = node_job(model)
    assert any(file.source for file in job.recipe.files)
    reshard(job, checkpoint, tmp_path / "whole")
    disk = mount("tmpfs", 64 * MIB)
    for stop in (600_000, 2_500_000):
        with pytest.raises(KeyboardInterrupt):
            reshard(job, checkpoint, disk / "out", workers=1, on_progress=interrupt_after(stop))
    assert reshard(job, checkpoint, disk / "out").bytes_resumed > 500_000
    for path in (tmp_path / "whole").rglob("*.safetensors"):
        twin = disk / "out" / path.relative_to(tmp_path / "whole")
        assert twin.read_bytes() == path.read_bytes()


def node_job(model: Path) -> tuple[Job, Checkpoint]:
    checkpoint, inventory = open_folder(model)
    plan = make_plan(checkpoint, inventory, Request(tp=2, engine="node", nodes=2))
    return prepare(checkpoint, inventory, plan), checkpoint


def interrupt_after(nbytes: int) -> Callable[[int], None]:
    put = 0

    def progress(more: int) -> None:
        nonlocal put
        put += more
        if put >= nbytes:
            raise KeyboardInterrupt

    return progress


# --- no room -------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_refused_before_anything_is_made(mount: Mount, small: Path) -> None:
    disk = mount("tmpfs", 2 * MIB)
    with pytest.raises(NotEnoughDisk, match=r"needs [\d.]+ MB; [\d.]+ MB are free on the file system of "):
        reshard_folder(small, disk / "out", 2)
    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up_at_preallocation_leaves_nothing(
    mount: Mount, small: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = mount("ext4", 16 * MIB)
    (disk / "filler").write_bytes(bytes(10 * MIB))
    with monkeypatch.context() as patch:
        # As if another process took the room after it was looked at.
        patch.setattr(sys.modules[reshard.__module__], "check_room", lambda *_: None)
        with pytest.raises(WriteFailed, match=r"cannot make a file of \d+ bytes: No space left on device") as caught:
            reshard_folder(small, disk / "out", 2)
    assert caught.value.exit_code is ExitCode.IO
    assert {path.name for path in disk.iterdir()} == {"filler", "lost+found"}
    (disk / "filler").unlink()
    assert run_and_go_on(small, disk / "out", expected) == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_a_disk_that_fills_up_midway_is_gone_on_with_when_it_has_room(
    workers: int, mount: Mount, small: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = mount("ext4", 16 * MIB)
    (disk / "filler").write_bytes(bytes(10 * MIB))
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[reshard.__module__], "check_room", lambda *_: None)
        patch.setattr(syscalls, "fallocate", cannot_reserve)
        with pytest.raises(WriteFailed, match=r"No space left on device"):
            reshard_folder(small, disk / "out", 2, workers=workers)
    assert not (disk / "out").exists()
    (disk / "filler").unlink()
    run_and_go_on(small, disk / "out", expected)


def cannot_reserve(*_: object) -> None:
    raise OSError(commit._CANNOT_RESERVE[0], "as on a file system that reserves nothing")


@pytest.mark.parametrize("reserves", [True, False])
def test_a_quota_that_is_used_up_is_said_and_gone_on_with_when_it_is_raised(
    reserves: bool, mount: Mount, small: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = mount("btrfs", 160 * MIB)
    command("btrfs", "quota", "enable", disk)
    command("btrfs", "qgroup", "limit", "3M", disk)
    with monkeypatch.context() as patch:
        if not reserves:
            patch.setattr(syscalls, "fallocate", cannot_reserve)
        with pytest.raises(WriteFailed, match="Disk quota exceeded"):
            reshard_folder(small, disk / "out", 2, workers=1)
    assert not (disk / "out").exists()
    command("btrfs", "qgroup", "limit", "none", disk)
    run_and_go_on(small, disk / "out", expected)


def test_a_file_size_limit_is_said_with_the_size(small: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))

    done = cli(small, tmp_path / "out", preexec_fn=limit)
    assert done.returncode == ExitCode.IO
    assert "cannot make a file of" in done.stderr
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def cli(small: Path, out: Path, **options: object) -> subprocess.CompletedProcess[str]:
    arguments = ["reshard", str(small), str(out), "--tp", "2", "--engine", "reference"]
    return subprocess.run(
        [sys.executable, "-m", "dsv4_shard", *arguments], capture_output=True, text=True, check=False, **options
    )  # type: ignore[call-overload]


# --- no permission -------------------------------------------------------------------------------------------------


def test_a_read_only_file_system_serves_as_source_and_is_refused_as_output(
    mount: Mount, small: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    disk = mount("tmpfs", 64 * MIB)
    shutil.copytree(small, disk / "model")
    command("mount", "-o", "remount,ro", disk)
    with pytest.raises(WriteFailed, match=r"\.out\.partial: Read-only file system") as caught:
        reshard_folder(small, disk / "out", 2)
    assert caught.value.exit_code is ExitCode.IO
    reshard_folder(disk / "model", tmp_path / "out", 2)
    names = expected.keys() - {
        "plan.json",
        "manifest.json",
        "provenance.json",
        "README.md",
    }  # which name the checkpoint's folder
    assert {name: contents(tmp_path / "out")[name] for name in names} == {name: expected[name] for name in names}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be someone else")
def test_a_folder_of_someone_else_is_refused_as_output(small: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))  # into pytest's own, nobody but root can look
    try:
        model = shutil.copytree(small, folder / "model")
        folder.chmod(0o755)
        model.chmod(0o755)
        (model / "model.safetensors").chmod(0o644)
        job, checkpoint = job_for(model, 2)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            try:
                reshard(job, checkpoint, folder / "out")
            except ShardError as error:
                os.write(writer, str(error).encode())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        os.close(writer)
        with open(reader) as said:
            assert said.read() == f"{folder / STAGING}: Permission denied"
        assert {path.name for path in folder.iterdir()} == {"model"}
    finally:
        shutil.rmtree(folder)


# --- disks that fail -----------------------------------------------------------------------------------------------


def test_a_source_that_cannot_be_read_midway_is_named_with_the_byte_and_gone_on_with(
    mount: Mount, small: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    image = tmp_path / "image"
    disk = mount("ext4", 16 * MIB, image)
    shutil.copytree(small, disk / "model")
    command("umount", disk)
    whole = image.read_bytes()
    disk = mount("ext4", 16 * MIB, image)
    job, checkpoint = job_for(disk / "model", 2)
    middle = place_of(disk / "model/model.safetensors", 3 * MIB)
    Path("/proc/sys/vm/drop_caches").write_text("3")
    os.truncate(image, middle)  # the loop device cannot read beyond
    with pytest.raises(ReadFailed, match=r"model\.safetensors: read at byte \d+ failed: Input/output error") as caught:
        reshard(job, checkpoint, tmp_path / "out", workers=1)
    assert caught.value.exit_code is ExitCode.IO
    assert not (tmp_path / "out").exists()
    command("umount", disk)
    image.write_bytes(whole)
    disk = mount("ext4", 16 * MIB, image)
    job, checkpoint = job_for(disk / "model", 2)
    assert reshard(job, checkpoint, tmp_path / "out").bytes_resumed > 0
    for name in ("model0-mp2.safetensors", "model1-mp2.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == expected[name]


def place_of(path: Path, offset: int) -> int:
    """Where on its disk a byte of a file is."""
    fibmap = 1
    with path.open("rb") as file:
        size = os.statvfs(path).f_bsize
        (block,) = struct.unpack("i", fcntl.ioctl(file, fibmap, struct.pack("i", offset // size)))
    return int(block * size)


def test_a_disk_that_loses_what_it_took_is_found_out_when_it_is_flushed(
    mount: Mount, small: Path, expected: dict[str, bytes]
) -> None:
    store = mount("tmpfs", 4 * MIB)
    disk = mount("ext4", 32 * MIB, store / "image", "errors=continue")
    with pytest.raises(WriteFailed, match=r"Input/output error|No space left"):
        reshard_folder(small, disk / "out", 2, workers=1)
    assert not (disk / "out").exists()
    command("mount", "-o", "remount,size=64m", store)
    command("umount", disk)
    subprocess.run(["fsck.ext4", "-fy", store / "image"], check=False, capture_output=True)
    disk = mount("ext4", 32 * MIB, store / "image")
    run_and_go_on(small, disk / "out", expected)
