"""Local files that are read exactly or not at all, and finding the folder that holds them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dsv4_shard.checkpoint.findings import Severity
from dsv4_shard.checkpoint.reader import read_checkpoint
from dsv4_shard.errors import ReadFailed, Unreachable, UsageError
from dsv4_shard.opening import open_source
from dsv4_shard.sources.local import LocalFile, LocalSource

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DATA = bytes(range(100))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def file(path: Path) -> Iterator[LocalFile]:
    file = LocalFile(path, path.name)
    yield file
    file.close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache that holds `org/name` at one commit, as huggingface_hub lays it out."""
    home = tmp_path / "hub"
    repo = home / "models--org--name"
    snapshot = repo / "snapshots" / COMMIT
    for folder in (snapshot, repo / "blobs", repo / "refs"):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "blobs" / "b10b").write_bytes(DATA)
    (snapshot / "model.safetensors").symlink_to("../../blobs/b10b")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return home


# --- one file ------------------------------------------------------------------------------------------------------


def test_reads_exactly_the_range_asked_for(file: LocalFile) -> None:
    assert file.nbytes == 100
    assert file.read(0, 100) == DATA
    assert file.read(10, 13) == DATA[10:13]
    assert file.read(100, 100) == b""


def test_fills_a_buffer_in_place(file: LocalFile) -> None:
    buffer = bytearray(6)
    file.readinto(40, memoryview(buffer)[1:5])
    assert buffer == b"\0" + DATA[40:44] + b"\0"


def test_reads_that_come_in_pieces_are_put_together(file: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: whole(fd, [buffers[0][:7]], offset))
    assert file.read(5, 95) == DATA[5:95]


def test_no_call_asks_for_more_than_the_system_moves_at_once(file: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4_shard.sources.local.MAX_CALL_BYTES", 16)
    sizes = []
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, b, offset: sizes.append(len(b[0])) or whole(fd, b, offset))  # type: ignore[func-returns-value]
    assert file.read(0, 100) == DATA
    assert max(sizes) == 16


def test_a_read_beyond_the_end_fails_with_the_offset(file: LocalFile, path: Path) -> None:
    with pytest.raises(ReadFailed, match=r"ends at byte 100, 5 bytes too early") as caught:
        file.read(90, 105)
    assert str(path) in str(caught.value)


def test_a_file_cut_after_it_was_opened_fails_with_the_offset(file: LocalFile, path: Path) -> None:
    os.truncate(path, 60)
    assert file.read(50, 60) == DATA[50:60]
    with pytest.raises(ReadFailed, match=r"ends at byte 60, 20 bytes too early"):
        file.read(50, 80)


def test_an_error_of_the_disk_is_named_with_the_offset_it_came_at(
    file: LocalFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.preadv

    def fails_at_64(fd: Any, buffers: Any, offset: Any) -> Any:
        if offset >= 64:
            raise OSError(5, "Input/output error")
        return whole(fd, [buffers[0][:32]], offset)

    monkeypatch.setattr(os, "preadv", fails_at_64)
    with pytest.raises(ReadFailed, match=r"read at byte 64 failed: Input/output error") as caught:
        file.read(0, 100)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReadFailed, match="No such file") as caught:
        LocalFile(tmp_path / "gone.safetensors", "gone.safetensors")
    assert str(tmp_path / "gone.safetensors") in str(caught.value)


def test_a_loop_of_links_is_a_read_that_failed(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ReadFailed, match="loop"):
        LocalFile(tmp_path / "loop", "loop")


def test_a_folder_in_place_of_a_file_is_a_read_that_failed(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(ReadFailed, match="directory"), LocalSource(tmp_path, "x").open("x.safetensors") as file:
        file.read(0, 8)


def test_a_file_left_alone_has_not_changed(file: LocalFile) -> None:
    file.read(0, 100)
    assert file.changed() is None


def test_a_change_of_size_is_told_in_bytes(file: LocalFile, path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"more")
    assert file.changed() == f"{path}: 100 bytes when opened, 104 now"


def test_a_write_that_keeps_the_size_is_noticed_by_its_time(file: LocalFile, path: Path) -> None:
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert file.changed() == f"{path}: modified since it was opened"


def test_another_file_of_the_same_size_and_time_is_noticed(file: LocalFile, path: Path) -> None:
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(DATA)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert file.changed() == f"{path}: replaced by another file"


def test_a_file_that_is_gone_has_changed(file: LocalFile, path: Path) -> None:
    path.unlink()
    assert "No such file" in file.changed()


def test_the_block_of_open_closes_the_file(path: Path) -> None:
    source = LocalSource(path.parent, "label")
    with source.open(path.name) as file:
        assert file.read(0, 1) == DATA[:1]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file._fd)


# --- a folder ------------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_files_that_can_be_read(path: Path) -> None:
    folder = path.parent
    (folder / "subfolder").mkdir()
    (folder / "link").symlink_to(path.name)
    (folder / "dangling").symlink_to("gone")
    os.mkfifo(folder / "pipe")
    assert LocalSource(folder, "label").sizes() == {"link": 100, path.name: 100}


def test_a_link_to_itself_does_not_hide_the_other_files(path: Path) -> None:
    (path.parent / "loop").symlink_to("loop")
    source = LocalSource(path.parent, "label")
    assert source.sizes() == {path.name: 100}
    assert source.dangling_links() == ["loop"]


def test_sizes_of_a_folder_that_is_gone_is_a_read_that_failed(tmp_path: Path) -> None:
    with pytest.raises(ReadFailed, match="gone: No such file"):
        LocalSource(tmp_path / "gone", "gone").sizes()


def test_dangling_links_are_listed(path: Path) -> None:
    (path.parent / "b").symlink_to("gone")
    (path.parent / "a").symlink_to("/gone/too")
    (path.parent / "c").symlink_to(path.name)
    assert LocalSource(path.parent, "label").dangling_links() == ["a", "b"]


def test_links_out_of_the_folder_are_told_from_links_within(
    path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "weights"
    elsewhere.write_bytes(DATA)
    (path.parent / "out").symlink_to(elsewhere)
    (path.parent / "in").symlink_to(path.name)
    assert LocalSource(path.parent, "label").links_outside(["in", "out", path.name]) == ["out"]


def test_a_folder_reached_through_a_link_has_no_links_outside(
    path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    link = tmp_path_factory.mktemp("links") / "model"
    link.symlink_to(path.parent)
    assert LocalSource(link, "label").links_outside([path.name]) == []


def test_links_into_the_blobs_of_a_hub_cache_are_not_links_outside(hub: Path) -> None:
    assert open_source("org/name").links_outside(["model.safetensors"]) == []


# --- what a user may name ------------------------------------------------------------------------------------------


def test_a_folder_is_a_source_under_the_name_the_user_gave_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent.parent)
    source = open_source(path.parent.name)
    assert source.label == path.parent.name
    assert source.root.resolve() == path.parent
    assert source.revision is None
    assert source.sizes() == {path.name: 100}


def test_a_folder_comes_before_a_repository_of_the_same_name(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert open_source("org/name").root == Path("org/name")


def test_the_home_folder_may_be_written_as_a_tilde(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(path.parent.parent))
    assert open_source(f"~/{path.parent.name}").root == path.parent


def test_a_file_is_not_a_source(path: Path) -> None:
    with pytest.raises(UsageError, match="not a folder") as caught:
        open_source(str(path))
    assert str(path) in str(caught.value)
    assert "config.json" in caught.value.hint


@pytest.mark.parametrize(
    "name",
    ["/no/such/folder", "./org/name", "../org/name", "~/no-such-folder", "name", "a/b/c", "", "org/na me", "org/name\n",
     "org/name@", "a\0b", "x" * 300, "~no-such-user/x"],
    ids=lambda name: name[:16].encode("unicode_escape").decode() or "empty",
)  # fmt: skip
def test_what_is_neither_a_folder_nor_an_id_is_a_usage_error_that_names_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        open_source(name)
    assert name.strip("\0\n")[:1] in str(caught.value)


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_a_cached_repository_is_found_by_its_id(hub: Path, revision: str) -> None:
    source = open_source(f"org/name{revision}")
    assert source.root == hub / "models--org--name" / "snapshots" / COMMIT
    assert source.label == f"org/name{revision}"
    assert source.revision == COMMIT
    assert source.sizes() == {"model.safetensors": 100}


def test_a_snapshot_named_by_its_folder_knows_its_revision(hub: Path, tmp_path: Path) -> None:
    snapshot = hub / "models--org--name" / "snapshots" / COMMIT
    assert open_source(str(snapshot)).revision == COMMIT
    (tmp_path / "link").symlink_to(snapshot)
    assert open_source(str(tmp_path / "link")).revision == COMMIT


def test_a_folder_that_is_no_commit_gives_no_revision(tmp_path: Path) -> None:
    """A backup under /data/snapshots/V4-Pro is not the Hub's commit V4-Pro."""
    (tmp_path / "snapshots" / "V4-Pro").mkdir(parents=True)
    assert open_source(str(tmp_path / "snapshots" / "V4-Pro")).revision is None


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("org/other", "`hf download org/other`"),
        ("org/name@v2", "`hf download org/name --revision v2`"),
        ("org/name@refs/pr/1", "`hf download org/name --revision refs/pr/1`"),
    ],
)
def test_what_is_not_cached_is_unreachable_and_the_hint_is_the_command_that_fetches_it(
    hub: Path, name: str, command: str
) -> None:
    with pytest.raises(Unreachable) as caught:
        open_source(name)
    assert str(caught.value).startswith(f"{name}: ")
    assert command in caught.value.hint
    assert caught.value.exit_code == 5


def test_no_cache_at_all_is_unreachable_too(hub: Path) -> None:
    shutil.rmtree(hub)
    with pytest.raises(Unreachable, match="org/name"):
        open_source("org/name")


@pytest.mark.slow
def test_threads_that_read_by_turns_take_no_more_from_the_disk_than_they_were_given(tmp_path: Path) -> None:
    path = tmp_path / "file"
    nbytes, chunk = 96 << 20, 3 << 20
    with path.open("wb") as file:
        for _ in range(nbytes // chunk):
            file.write(os.urandom(chunk))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    file = LocalFile(path, path.name)  # type: ignore[assignment]
    before = bytes_from_disk()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda at: file.readinto(at, memoryview(bytearray(chunk)), once=True), range(0, nbytes, chunk)))  # type: ignore[call-arg]
    taken = bytes_from_disk() - before
    file.close()
    if taken == 0:
        pytest.skip("this file system is in memory, or keeps what it is told to drop")
    assert nbytes <= taken <= 1.01 * nbytes


def bytes_from_disk() -> int:
    """What the kernel has read from disks for this process."""
    return int(re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)[1])  # type: ignore[index]


@pytest.mark.root
@pytest.mark.parametrize("closed", [".cache", ".cache/huggingface/download"])
def test_a_cache_of_another_user_is_left_alone(closed: str, tmp_path: Path) -> None:
    (tmp_path / ".cache/huggingface/download").mkdir(parents=True)
    (tmp_path / "lost").symlink_to("nowhere")
    (tmp_path / closed).chmod(0)
    code = (
        "import sys; from pathlib import Path; from dsv4_shard.sources.local import LocalSource; "
        "source = LocalSource(Path(sys.argv[1]), 'x'); print(source.unfinished_downloads(), source.dangling_links())"
    )
    privileges = "-dac_override,-dac_read_search"
    command = ["setpriv", f"--bounding-set={privileges}", f"--inh-caps={privileges}", "--"]
    done = subprocess.run([*command, sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    (tmp_path / closed).chmod(0o755)
    assert done.stdout == "[] ['lost']\n", done.stderr


def test_a_small_file_that_links_out_of_the_checkpoint_is_told(folder: Path) -> None:
    (folder.parent / "credentials").write_text("secret = 1")
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "tokenizer.json").symlink_to("../credentials")
    findings = read_checkpoint(open_source(str(folder))).findings
    (told,) = [finding for finding in findings if finding.code == "links"]
    assert told.severity is Severity.WARNING
    assert "copied into results: tokenizer.json" in told.message
