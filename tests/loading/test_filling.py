"""Filling tensors from rank files: the bytes that safetensors reads, each once, and no damage with `verify`."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from dsv4_shard.errors import LoadRefused, ReadFailed
from dsv4_shard.loading import filling
from dsv4_shard.loading.parameters import meta_tensor
from dsv4_shard.loading.rank_files import WrittenFiles
from dsv4_shard.loading.tasks import PieceOfFile, blocks_of

RANK = 1


def loaded(folder: Path, threads: int = 1, *, verify: bool = True) -> tuple[dict[str, torch.Tensor], int]:
    """The tensors of a rank as the loader fills them, and the bytes that it counts."""
    files = WrittenFiles(folder, verify=verify)
    tensors = {
        n: torch.full(shape, 1.0).to(meta_tensor(dtype, ()).dtype) for n, (dtype, shape) in files.open(RANK).items()
    }
    counted: list[int] = []
    files.fill(tensors, threads, counted.append)
    return tensors, sum(counted)


def as_safetensors_reads(folder: Path) -> dict[str, torch.Tensor]:
    files = (load_file(path) for path in folder.glob(f"model-rank-{RANK}-part-*.safetensors"))
    return {name: tensor for file in files for name, tensor in file.items()}


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("block", [1 << 12, 5000, filling.BLOCK_BYTES])
@pytest.mark.parametrize("verify", [False, True])
def test_tensors_are_what_safetensors_reads(
    threads: int, block: int, verify: bool, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "BLOCK_BYTES", block)
    tensors, counted = loaded(result, threads, verify=verify)
    wanted = as_safetensors_reads(result)
    assert tensors.keys() == wanted.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), wanted[name].reshape(-1).view(torch.uint8)), name
    assert counted == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("part", [0, 1])
def test_damage_anywhere_is_refused_by_the_tensors_name(part: int, folder: Path) -> None:
    path = folder / f"model-rank-{RANK}-part-{part}.safetensors"
    first = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    for position in (-1, first):
        flip(path, position)
        loaded(folder, verify=False)
        with pytest.raises(LoadRefused, match=rf"^{path.name}: \S+: its bytes differ from what was written$"):
            loaded(folder, threads=2)
        flip(path, position)


def test_a_file_that_is_cut_meanwhile_is_an_error(folder: Path) -> None:
    files = WrittenFiles(folder, verify=True)
    tensors = {n: meta_tensor(*kind).new_empty(kind[1], device="cpu") for n, kind in files.open(RANK).items()}
    path = folder / f"model-rank-{RANK}-part-0.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ReadFailed, match="ends at byte"):
        files.fill(tensors, 2, lambda _: None)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 64))
def test_blocks_hold_each_byte_once_in_order_and_end_every_piece(sizes: list[int], limit: int) -> None:
    starts = [4096 + sum(sizes[:number]) for number in range(len(sizes))]
    task = [PieceOfFile("t", n, starts[n] - 4096, starts[n], starts[n] + size) for n, size in enumerate(sizes)]
    blocks = list(blocks_of(task, limit))
    parts = [part for block in blocks for part in block]
    assert [byte for part in parts for byte in range(part.start, part.stop)] == [*range(4096, 4096 + sum(sizes))]
    assert all(block[-1].stop - block[0].start <= limit for block in blocks)
    assert [part.piece.slot for part in parts if part.stop == part.piece.stop] == list(range(len(sizes)))
