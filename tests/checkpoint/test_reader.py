"""Checkpoints that are damaged, incomplete, mixed or odd: index and files first, then the model's tensors."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
from support.checkpoints.tiny import TINY_CONFIG

from dsv4_shard.checkpoint.findings import Finding, Severity
from dsv4_shard.checkpoint.inventory import Inventory, take_inventory
from dsv4_shard.checkpoint.reader import Checkpoint, read_checkpoint
from dsv4_shard.errors import (
    BadConfig,
    BadIndex,
    DuplicateTensor,
    GitLfsPointer,
    IndexMismatch,
    MissingFile,
    ShardError,
    TruncatedFile,
    UnsafeFileName,
    UnsupportedFamily,
)
from dsv4_shard.limits import CONFIG, INDEX
from dsv4_shard.opening import open_source
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE, INDEX_FILE, SINGLE_FILE
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.tensors.header import build_header

FIRST, SECOND, LAST = (f"model-0000{number}-of-00005.safetensors" for number in (1, 2, 5))
EMBED = "embed.weight"
WO_A = "layers.0.attn.wo_a"
WQ_A = "layers.0.attn.wq_a"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 5368709120\n"


def read(folder: Path) -> Checkpoint:
    return read_checkpoint(LocalSource(folder, "some/model"))


def refusal(folder: Path, error: type[ShardError]) -> str:
    """The message and hint of the error that reading ends with, which must be of exactly this class."""
    with pytest.raises(ShardError) as caught:
        read(folder)
    assert type(caught.value) is error, caught.value
    assert caught.value.exit_code == 3
    return str(caught.value)


def finding(checkpoint: Checkpoint | Inventory, code: str) -> Finding:
    (found,) = [one for one in checkpoint.findings if one.code == code]
    return found


def index_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / INDEX_FILE).read_text())


def write_index(folder: Path, weight_map: dict[str, str], **metadata: Any) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))


def change_map(folder: Path, **changes: Any) -> None:
    """Point tensors at other files in the index; None takes one out."""
    weight_map = index_of(folder)["weight_map"] | changes
    write_index(folder, {name: file for name, file in weight_map.items() if file is not None})


def stored(path: Path) -> dict[str, Any]:
    """Name → (dtype, shape, data) of a file, as the library reads it."""
    return {
        name: (info["dtype"], tuple(info["shape"]), bytes(info["data"]))
        for name, info in safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    }


def store(path: Path, tensors: dict[str, Any]) -> None:
    header, placed = build_header({name: (dtype, shape) for name, (dtype, shape, _) in tensors.items()})
    path.write_bytes(header + b"".join(tensors[name][2] for name in placed))


def change_file(path: Path, **changes: Any) -> None:
    """Put tensors into a file, replace them, or take them out with None."""
    store(path, {name: tensor for name, tensor in (stored(path) | changes).items() if tensor is not None})


# --- what is sound -------------------------------------------------------------------------------------------------


def test_a_sound_checkpoint_is_read_without_a_finding(tiny_checkpoint: Path) -> None:
    checkpoint = read(tiny_checkpoint)
    assert checkpoint.findings == ()
    assert checkpoint.document == TINY_CONFIG
    assert [file.name for file in checkpoint.files] == sorted(
        path.name for path in tiny_checkpoint.glob("*.safetens*s")
    )
    assert {name: tensor.file for name, tensor in checkpoint.tensors.items()} == index_of(tiny_checkpoint)["weight_map"]
    assert take_inventory(checkpoint).findings == ()


def test_every_tensor_is_where_the_library_finds_it(tiny_checkpoint: Path) -> None:
    checkpoint = read(tiny_checkpoint)
    for file in checkpoint.files:
        raw = (tiny_checkpoint / file.name).read_bytes()
        ours = {t.name: (t.dtype, t.shape, raw[t.start : t.stop]) for t in checkpoint.tensors.values()
                if t.file == file.name}  # fmt: skip
        assert ours == stored(tiny_checkpoint / file.name)
        assert file.nbytes == len(raw)


def test_the_digest_of_a_file_tells_headers_apart_and_ignores_the_data(tiny_checkpoint: Path, folder: Path) -> None:
    before = {file.name: file.header_digest for file in read(tiny_checkpoint).files}
    raw = bytearray((folder / FIRST).read_bytes())
    raw[-1] ^= 1
    (folder / FIRST).write_bytes(raw)
    assert {file.name: file.header_digest for file in read(folder).files} == before
    dtype, shape, data = stored(folder / FIRST)[EMBED]
    change_file(folder / FIRST, **{EMBED: ("F16", shape, data)})
    after = {file.name: file.header_digest for file in read(folder).files}
    assert {name for name in before if before[name] != after[name]} == {FIRST}
    assert dtype == "BF16"


def test_no_file_stays_open_whether_reading_succeeds_or_fails(folder: Path) -> None:
    before = os.listdir("/proc/self/fd")
    read(folder)
    os.truncate(folder / LAST, 50_000)
    refusal(folder, TruncatedFile)
    assert os.listdir("/proc/self/fd") == before


def test_reading_looks_at_headers_only(folder: Path) -> None:
    """Holes in place of the weights read the same: the data may be terabytes."""
    expected = read(folder).tensors
    for path in folder.glob("*.safetensors"):
        nbytes = path.stat().st_size
        os.truncate(path, 8 + int.from_bytes(path.read_bytes()[:8], "little"))
        os.truncate(path, nbytes)
    assert read(folder).tensors == expected


# --- index and files -----------------------------------------------------------------------------------------------


def test_one_file_needs_no_index(folder: Path) -> None:
    tensors: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= stored(path)
        path.unlink()
    store(folder / SINGLE_FILE, tensors)
    (folder / INDEX_FILE).unlink()
    checkpoint = read(folder)
    assert checkpoint.tensors.keys() == tensors.keys()
    assert [file.name for file in checkpoint.files] == [SINGLE_FILE]
    assert checkpoint.findings == ()


def test_several_files_without_an_index_are_refused(folder: Path) -> None:
    (folder / INDEX_FILE).unlink()
    message = refusal(folder, BadIndex)
    assert "some/model" in message
    assert INDEX_FILE in message
    assert SINGLE_FILE in message


def test_files_that_the_index_names_and_that_are_absent_are_counted_and_named(folder: Path) -> None:
    (folder / FIRST).unlink()
    (folder / LAST).unlink()
    message = refusal(folder, MissingFile)
    assert "names 5 files, 2 of them not there" in message
    assert FIRST in message
    assert LAST in message
    assert SECOND not in message


def test_only_the_first_absent_files_are_named_and_the_rest_counted(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    message = refusal(folder, MissingFile)
    assert "5 of them not there" in message
    assert "and 2 more" in message
    assert LAST not in message


@pytest.mark.parametrize(
    "make", [os.mkdir, os.mkfifo, lambda path: os.symlink(path, path)], ids=["dir", "fifo", "loop"]
)
def test_what_stands_in_place_of_a_file_and_is_none_counts_as_absent(folder: Path, make: Callable[..., Any]) -> None:
    """Neither read nor waited for."""
    (folder / LAST).unlink()
    make(folder / LAST)
    assert LAST in refusal(folder, MissingFile)


def test_tensors_that_the_index_lacks_are_counted_and_named_with_their_file(folder: Path) -> None:
    change_file(folder / SECOND, **{"a.stray": ("U8", (1,), b"x"), "b.stray": ("U8", (1,), b"x")})
    message = refusal(folder, IndexMismatch)
    assert "2 tensors" in message
    assert "a.stray" in message
    assert "b.stray" in message
    assert SECOND in message


def test_tensors_that_no_file_has_are_counted_and_named_with_their_file(folder: Path) -> None:
    change_file(folder / SECOND, **{f"{WQ_A}.weight": None, f"{WQ_A}.scale": None})
    message = refusal(folder, IndexMismatch)
    assert "2 tensors" in message
    assert f"{WQ_A}.weight" in message
    assert f"{WQ_A}.scale" in message
    assert SECOND in message


def test_a_tensor_in_another_file_than_the_index_says_is_named_with_both(folder: Path) -> None:
    """Files of two revisions, or an index that was edited."""
    change_map(folder, **{f"{WQ_A}.weight": LAST})
    message = refusal(folder, IndexMismatch)
    assert f"{WQ_A}.weight" in message
    assert f"puts it in {LAST}" in message
    assert f"stands in {SECOND}" in message


def test_a_tensor_in_two_files_is_named_with_both(folder: Path) -> None:
    change_file(folder / LAST, **{EMBED: stored(folder / FIRST)[EMBED]})
    message = refusal(folder, DuplicateTensor)
    assert EMBED in message
    assert FIRST in message
    assert LAST in message


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "/etc/x.safetensors", "../x.safetensors", "..", ".", "", "sub/x.safetensors", "sub\\x.safetensors",
     "..\\x.safetensors", "C:\\x.safetensors", "x\0.safetensors", "x.safetensors\0", "x.safetensors\n",
     "x\n.safetensors", " x.safetensors", ".x.safetensors", "-x.safetensors", "x.bin", "x.safetensors.incomplete",
     "é.safetensors", "x\u202e.safetensors", "\x1b[2Jx.safetensors", "~/x.safetensors", "file:x.safetensors"],
    ids=ascii,
)  # fmt: skip
def test_a_file_name_that_is_no_plain_name_is_refused_and_nothing_is_opened(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    whole = LocalSource.open
    monkeypatch.setattr(LocalSource, "open", lambda self, name: opened.append(name) or whole(self, name))  # type: ignore[func-returns-value]
    change_map(folder, **{EMBED: name})
    message = refusal(folder, UnsafeFileName)
    assert opened == [CONFIG_FILE, INDEX_FILE]
    assert message.startswith(f"some/model/{INDEX_FILE}: ")
    assert message.isprintable()
    assert repr(name)[1:-1] in message


def test_file_names_that_differ_only_in_case_are_refused(folder: Path) -> None:
    """On a file system that folds case they are one file."""
    other = FIRST.replace("model", "MODEL")
    shutil.copy(folder / FIRST, folder / other)
    change_map(folder, another=other)
    message = refusal(folder, UnsafeFileName)
    assert FIRST in message
    assert other in message
    assert "case" in message


def test_links_out_of_the_folder_are_read_and_noted(folder: Path, tmp_path: Path) -> None:
    (folder / LAST).rename(tmp_path / "elsewhere")
    (folder / LAST).symlink_to(tmp_path / "elsewhere")
    note = finding(read(folder), "links")
    assert note.severity is Severity.NOTE
    assert "1 weight files" in note.message
    assert LAST in note.message


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"weight_map": {', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (POINTER, "not JSON"),
        (b"[]", "weight_map"),
        (b"{}", "weight_map"),
        (b'{"weight_map": []}', "weight_map"),
        (b'{"weight_map": null}', "weight_map"),
        (b'{"weight_map": {"a": 1}}', "weight_map"),
        (b'{"weight_map": {"a": null}}', "weight_map"),
        (b'{"weight_map": {"a": ["model.safetensors"]}}', "weight_map"),
        (b'{"weight_map": {}}', "empty"),
        (b'{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}', "'a' stands twice"),
        (b'{"weight_map": {"a": "\\ud800.safetensors"}}', "lone surrogate"),
        (b'{"weight_map": {"\\udc00": "x.safetensors"}}', "lone surrogate"),
        (b'{"weight_map": {"a": NaN}}', "NaN"),
        (b'{"metadata": {"total_size": 1e999}, "weight_map": {"a": "x.safetensors"}}', "1e999"),
        (b'{"weight_map": {}, "weight_map": {"a": "x.safetensors"}}', "'weight_map' stands twice"),
    ],
    ids=lambda value: value[:40].decode("ascii", "replace") if isinstance(value, bytes) else "",
)
def test_an_index_that_is_no_weight_map_is_refused(folder: Path, raw: bytes, said: str) -> None:
    (folder / INDEX_FILE).write_bytes(raw)
    message = refusal(folder, BadIndex)
    assert message.startswith(f"some/model/{INDEX_FILE}: ")
    assert said in message


def test_an_index_of_absurd_size_is_refused_before_it_is_read(folder: Path) -> None:
    os.truncate(folder / INDEX_FILE, INDEX.nbytes + 1)
    message = refusal(folder, BadIndex)
    assert f"{INDEX.nbytes + 1} bytes, over {INDEX.nbytes}" in message


@pytest.mark.parametrize("times", [2, 0.5])
def test_a_wrong_total_size_is_a_warning_with_both_numbers(folder: Path, times: float) -> None:
    index = index_of(folder)
    total = int(index["metadata"]["total_size"] * times)
    write_index(folder, index["weight_map"], total_size=total)
    warning = finding(read(folder), "total-size")
    assert warning.severity is Severity.WARNING
    assert f"{total:,}" in warning.message


@pytest.mark.parametrize("total", [None, "many", 1.5, True, {}])
def test_a_total_size_that_is_no_number_is_ignored(folder: Path, total: Any) -> None:
    write_index(folder, index_of(folder)["weight_map"], total_size=total)
    assert read(folder).findings == ()


def test_an_index_needs_no_metadata(folder: Path) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": index_of(folder)["weight_map"]}))
    assert read(folder).findings == ()


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint in a Hub cache: links by name into blobs that are named by their hash."""
    repo = tmp_path / "hub" / "models--some--model"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(repo / "blobs" / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


@pytest.mark.parametrize("by_id", [True, False], ids=["by id", "by folder"])
def test_a_hub_cache_with_its_links_reads_as_the_files_do(hub: Path, tiny_checkpoint: Path, by_id: bool) -> None:
    checkpoint = read_checkpoint(open_source("some/model" if by_id else str(hub)))
    assert checkpoint.source.revision == COMMIT
    assert checkpoint.findings == ()
    assert checkpoint.tensors == read(tiny_checkpoint).tensors
    assert checkpoint.files == read(tiny_checkpoint).files


def test_a_link_whose_blob_is_gone_is_called_that(hub: Path) -> None:
    (hub / LAST).resolve().unlink()
    message = refusal(hub, MissingFile)
    assert "1 of them not there" in message
    assert f"{LAST}: a link whose target is gone" in message


def test_a_git_lfs_pointer_is_called_that(folder: Path) -> None:
    (folder / SECOND).write_bytes(POINTER)
    message = refusal(folder, GitLfsPointer)
    assert message.startswith(SECOND)
    assert f"{len(POINTER)} bytes" in message


def test_a_file_that_was_downloaded_in_part_is_called_truncated_with_the_bytes_that_lack(folder: Path) -> None:
    os.truncate(folder / LAST, (folder / LAST).stat().st_size - 1000)
    message = refusal(folder, TruncatedFile)
    assert message.startswith(LAST)
    assert "1000 missing" in message


@pytest.mark.parametrize("suffix", [".0a1b2c.incomplete", ".part", ".aria2"])
def test_what_an_unfinished_download_leaves_is_a_warning_that_names_it(folder: Path, suffix: str) -> None:
    (folder / (LAST + suffix)).write_bytes(b"half")
    warning = finding(read(folder), "partial-download")
    assert warning.severity is Severity.WARNING
    assert LAST + suffix in warning.message


@pytest.mark.parametrize("place", [".cache/huggingface/download", "../../blobs"], ids=["local folder", "cache"])
def test_an_unfinished_download_is_found_where_the_hub_client_keeps_it(hub: Path, place: str) -> None:
    (hub / place).mkdir(parents=True, exist_ok=True)
    (hub / place / f"{'ab' * 32}.0a1b2c3d.incomplete").write_bytes(b"half")
    warning = finding(read(hub), "partial-download")
    assert warning.severity is Severity.WARNING
    assert "0a1b2c3d.incomplete" in warning.message


def test_another_format_in_the_folder_is_left_alone_with_a_warning(folder: Path) -> None:
    (folder / "consolidated.safetensors").write_bytes(b"never looked at")
    checkpoint = read(folder)
    warning = finding(checkpoint, "unindexed-files")
    assert warning.severity is Severity.WARNING
    assert "1 safetensors file that the index does not name" in warning.message
    assert "consolidated.safetensors" in warning.message
    assert "consolidated.safetensors" not in {file.name for file in checkpoint.files}


def test_the_index_comes_before_a_single_file(folder: Path, tiny_checkpoint: Path) -> None:
    (folder / SINGLE_FILE).write_bytes(b"never looked at")
    checkpoint = read(folder)
    assert checkpoint.tensors == read(tiny_checkpoint).tensors
    assert SINGLE_FILE in finding(checkpoint, "unindexed-files").message


@pytest.mark.parametrize(
    "name", ["model.safetensors-00001-of-00005.safetensors", "part+1.safetensors", "0.safetensors"]
)
def test_files_may_have_any_plain_name(folder: Path, name: str) -> None:
    (folder / FIRST).rename(folder / name)
    change_map(folder, **{EMBED: name})
    checkpoint = read(folder)
    assert checkpoint.tensors[EMBED].file == name
    assert checkpoint.findings == ()


def test_shards_of_an_older_revision_are_left_alone_with_a_warning(folder: Path) -> None:
    stale = [f"model-{number:05d}-of-00007.safetensors" for number in range(1, 8)]
    for name in stale:
        shutil.copy(folder / FIRST, folder / name)
    checkpoint = read(folder)
    warning = finding(checkpoint, "unindexed-files")
    assert "7 safetensors files" in warning.message
    assert stale[0] in warning.message
    assert "and 4 more" in warning.message
    assert not {file.name for file in checkpoint.files} & set(stale)


def test_a_shard_of_another_revision_under_the_same_name_is_a_mismatch(folder: Path) -> None:
    shutil.copy(folder / SECOND, folder / "model-00003-of-00005.safetensors")
    assert "model-00003-of-00005.safetensors" in refusal(folder, DuplicateTensor)


# --- the model -----------------------------------------------------------------------------------------------------


def test_a_folder_without_a_config_is_refused(folder: Path) -> None:
    (folder / CONFIG_FILE).unlink()
    assert f"some/model: no {CONFIG_FILE}" in refusal(folder, BadConfig)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", POINTER])
def test_a_config_that_is_no_json_object_is_refused(folder: Path, raw: bytes) -> None:
    (folder / CONFIG_FILE).write_bytes(raw)
    assert refusal(folder, BadConfig).startswith(f"some/model/{CONFIG_FILE}: not ")


def test_a_config_that_lacks_a_size_is_refused_with_its_name(folder: Path) -> None:
    document = {key: value for key, value in TINY_CONFIG.items() if key != "o_groups"}
    (folder / CONFIG_FILE).write_text(json.dumps(document))
    assert "o_groups" in refusal(folder, BadConfig)


def test_a_config_of_absurd_size_is_refused_before_it_is_read(folder: Path) -> None:
    os.truncate(folder / CONFIG_FILE, CONFIG.nbytes + 1)
    assert f"{CONFIG.nbytes + 1} bytes, over {CONFIG.nbytes}" in refusal(folder, BadConfig)


@pytest.mark.parametrize(
    ("architecture", "model_type", "family"),
    [
        ("DeepseekV3ForCausalLM", "kimi_k2", "Kimi-K2"),
        ("Qwen3MoeForCausalLM", "qwen3_moe", "Qwen3 MoE"),
        ("MiniMaxM2ForCausalLM", "minimax_m2", "MiniMax-M2"),
    ],
)
def test_another_family_is_refused_by_its_name_before_any_weight_is_opened(
    folder: Path, architecture: str, model_type: str, family: str
) -> None:
    document = {"architectures": [architecture], "model_type": model_type, "hidden_size": 7168}
    (folder / CONFIG_FILE).write_text(json.dumps(document))
    (folder / INDEX_FILE).unlink()
    message = refusal(folder, UnsupportedFamily)
    assert f"{family} " in message
    assert model_type in message
    assert architecture in message


def store_wo_a_as_bf16(folder: Path) -> None:
    """As the FP8 re-releases do: the scale is gone from the file and still in the index."""
    _, (rows, cols), _ = stored(folder / SECOND)[f"{WO_A}.weight"]
    plain = ("BF16", (rows, cols), bytes(rows * cols * 2))
    change_file(folder / SECOND, **{f"{WO_A}.weight": plain, f"{WO_A}.scale": None})


def test_a_stale_index_entry_for_the_scale_of_a_bf16_wo_a_is_only_a_finding(folder: Path) -> None:
    """The exception that the FP8 re-releases need."""
    store_wo_a_as_bf16(folder)
    checkpoint = read(folder)
    note = finding(checkpoint, "stale-index")
    assert note.severity is Severity.NOTE
    assert "1 index entries" in note.message
    assert f"{WO_A}.scale" in note.message
    assert f"{WO_A}.scale" not in checkpoint.tensors


def test_a_scale_that_an_fp8_wo_a_needs_is_not_taken_for_stale(folder: Path) -> None:
    change_file(folder / SECOND, **{f"{WO_A}.scale": None})
    assert f"{WO_A}.scale" in refusal(folder, IndexMismatch)


def test_stale_entries_do_not_hide_lost_tensors(folder: Path) -> None:
    store_wo_a_as_bf16(folder)
    change_file(folder / SECOND, **{f"{WQ_A}.scale": None})
    message = refusal(folder, IndexMismatch)
    assert "1 tensors" in message
    assert f"{WQ_A}.scale" in message
    assert WO_A not in message


def test_the_scale_of_another_plain_weight_is_not_taken_for_stale(folder: Path) -> None:
    plain = ("BF16", (128, 128), bytes(128 * 128 * 2))
    change_file(folder / SECOND, **{f"{WQ_A}.weight": plain, f"{WQ_A}.scale": None})
    assert f"{WQ_A}.scale" in refusal(folder, IndexMismatch)


def test_a_weight_without_its_scale_is_an_error_that_names_it(folder: Path) -> None:
    change_file(folder / SECOND, **{f"{WQ_A}.scale": None})
    change_map(folder, **{f"{WQ_A}.scale": None})
    error = finding(take_inventory(read(folder)), "missing-scales")
    assert error.severity is Severity.ERROR
    assert f"{WQ_A}.weight" in error.message


def test_a_scale_of_another_shape_than_its_blocks_give_is_an_error_with_both_shapes(folder: Path) -> None:
    change_file(folder / SECOND, **{f"{WO_A}.scale": ("F8_E8M0", (5, 1), bytes(5))})
    error = finding(take_inventory(read(folder)), "odd-scales")
    assert error.severity is Severity.ERROR
    assert f"{WO_A}.scale [5, 1], due [4, 1]" in error.message


def test_a_weight_and_its_scale_may_stand_in_different_files(folder: Path) -> None:
    scale = stored(folder / SECOND)[f"{WQ_A}.scale"]
    change_file(folder / SECOND, **{f"{WQ_A}.scale": None})
    change_file(folder / LAST, **{f"{WQ_A}.scale": scale})
    change_map(folder, **{f"{WQ_A}.scale": LAST})
    checkpoint = read(folder)
    assert (checkpoint.tensors[f"{WQ_A}.weight"].file, checkpoint.tensors[f"{WQ_A}.scale"].file) == (SECOND, LAST)
    assert take_inventory(checkpoint).findings == ()
