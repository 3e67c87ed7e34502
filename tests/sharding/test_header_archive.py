"""source.zip gives back config, index and headers byte by byte, and an archive that is not one costs nothing."""

import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints.small import open_folder

from dsv4_shard.errors import BadSkeleton
from dsv4_shard.limits import ARCHIVE, UNPACKED
from dsv4_shard.sharding import header_archive as skeleton
from dsv4_shard.sharding.header_archive import read_skeleton, write_skeleton
from dsv4_shard.tensors.header import build_header

HEADER = build_header({"a": ("F32", (2,))})[0]


def packed(*entries: tuple[str, bytes]) -> bytes:
    content = BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return content.getvalue()


def test_what_is_written_is_what_is_read(tiny_checkpoint: Path) -> None:
    checkpoint, _ = open_folder(tiny_checkpoint)
    found = read_skeleton(write_skeleton(checkpoint), "source.zip")
    assert found.keys() == {path.name for path in tiny_checkpoint.iterdir() if "tokenizer" not in path.name}
    for name, content in found.items():
        whole = (tiny_checkpoint / name).read_bytes()
        length = 8 + int.from_bytes(whole[:8], "little") if name.endswith(".safetensors") else len(whole)
        assert content == whole[:length]


def test_the_same_checkpoint_gives_the_same_bytes(tiny_checkpoint: Path, folder: Path) -> None:
    first, second = (write_skeleton(open_folder(path)[0]) for path in (tiny_checkpoint, folder))
    assert first == second


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ((("model.safetensors", HEADER),), "no config.json"),
        ((("config.json", b"{}"), ("config.json", b"{}")), "stands twice"),
        ((("config.json", b"{}"), ("../out.safetensors", HEADER)), "not a file of a checkpoint"),
        ((("config.json", b"{}"), ("tokenizer.json", b"{}")), "not a file of a checkpoint"),
        ((("config.json", b"{}"), ("model.safetensors", HEADER + b" ")), "not its recorded length"),
        ((("config.json", b"{}"), ("model.safetensors", b"")), "not its recorded length"),
        (tuple((f"{number}.safetensors", b"") for number in range(ARCHIVE.count + 1)), "too many"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_is_no_checkpoints_is_refused(entries: tuple[tuple[str, bytes], ...], said: str) -> None:
    with pytest.raises(BadSkeleton, match=said):
        read_skeleton(packed(*entries), "source.zip")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "model.safetensors"])
def test_a_bomb_is_refused_before_it_is_unpacked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = packed(*{"config.json": b"{}", name: bytes(101 << 20)}.items())
    assert len(bomb) < 1 << 20
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(BadSkeleton, match="would unpack to"):
        read_skeleton(bomb, "source.zip")


def test_many_entries_that_are_a_bomb_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skeleton, "UNPACKED", replace(UNPACKED, nbytes=1000))
    many = packed(("config.json", b"{}"), *((f"{number}.safetensors", bytes(100)) for number in range(10)))
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(BadSkeleton, match="would unpack to"):
        read_skeleton(many, "source.zip")


def test_an_archive_that_lies_about_its_sizes_is_refused() -> None:
    honest = packed(("config.json", bytes(5000)))
    for size in (4000, 6000):
        lying = honest.replace((5000).to_bytes(4, "little"), size.to_bytes(4, "little"))
        with pytest.raises(BadSkeleton, match="damaged"):
            read_skeleton(lying, "source.zip")


@pytest.mark.slow
@given(st.data())
def test_a_damaged_archive_is_refused_or_reads_as_it_was(data: st.DataObject) -> None:
    whole = packed(("config.json", b"{}"), ("model.safetensors", HEADER))
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    del damaged[data.draw(st.integers(1, len(damaged))) :]
    try:
        found = read_skeleton(bytes(damaged), "source.zip")
    except BadSkeleton:
        return
    assert set(found.values()) == {b"{}", HEADER}
