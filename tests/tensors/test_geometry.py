"""Blocks, splits and rectangles, compared with numpy."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, DrawFn

from dsv4_shard.tensors.geometry import (
    Block,
    Rectangle,
    agree_on_unit,
    ceil_div,
    logical_shape,
    scale_shape,
    slice_rectangle,
    split,
    whole_rectangle,
)
from dsv4_shard.tensors.header import DTYPE_BITS, nbytes_of

WHOLE_BYTES = sorted(dtype for dtype, bits in DTYPE_BITS.items() if bits % 8 == 0)
SUB_BYTE = sorted(dtype for dtype, bits in DTYPE_BITS.items() if bits % 8)

sizes = st.integers(1, 24)


def cut_out(data: bytes, dtype: str, shape: tuple[int, ...], part: Rectangle) -> bytes:
    """The bytes of a rectangle, read as the copier reads them: row by row."""
    row_nbytes = nbytes_of(dtype, shape) // shape[0]
    rows = range(part.row_start, part.row_stop)
    return b"".join(data[row * row_nbytes + part.start : row * row_nbytes + part.stop] for row in rows)


def bits_of(data: bytes, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor's elements as vectors of bits, the lowest bit of a byte first: cut without a thought for bytes."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    return bits.reshape(*shape, DTYPE_BITS[dtype])


def bytes_of(bits: np.ndarray) -> bytes:
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()


@st.composite
def tensors(draw: DrawFn, dtypes: Any) -> Any:
    dtype = draw(st.sampled_from(dtypes))
    shape = tuple(draw(st.lists(sizes, min_size=1, max_size=3)))
    assume(math.prod(shape) * DTYPE_BITS[dtype] % 8 == 0)
    return dtype, shape, draw(st.randoms(use_true_random=False)).randbytes(nbytes_of(dtype, shape))


@pytest.mark.slow
@given(tensors(WHOLE_BYTES), st.data())
def test_a_rectangle_holds_the_bytes_of_numpys_slice(
    tensor: tuple[str, tuple[int, ...], bytes], data: DataObject
) -> None:
    dtype, shape, raw = tensor
    axis = data.draw(st.sampled_from([0, 1] if len(shape) == 2 else [0]))
    start = data.draw(st.integers(0, shape[axis]))
    stop = data.draw(st.integers(start, shape[axis]))
    part = slice_rectangle(dtype, shape, axis, start, stop)
    whole = np.frombuffer(raw, np.uint8).reshape(*shape, -1)
    expected = whole[start:stop] if axis == 0 else whole[:, start:stop]
    assert cut_out(raw, dtype, shape, part) == expected.tobytes()
    assert part.nbytes == expected.nbytes


@pytest.mark.slow
@given(tensors(SUB_BYTE), st.data())
def test_a_rectangle_of_values_below_a_byte_is_numpys_slice_or_refused(
    tensor: tuple[str, tuple[int, ...], bytes], data: DataObject
) -> None:
    dtype, shape, raw = tensor
    axis = data.draw(st.sampled_from([0, 1] if len(shape) == 2 else [0]))
    start = data.draw(st.integers(0, shape[axis]))
    stop = data.draw(st.integers(start, shape[axis]))
    bits = DTYPE_BITS[dtype]
    row_bits = math.prod(shape[1:]) * bits
    cuts = (row_bits,) if axis == 0 else (row_bits, start * bits, stop * bits)
    if any(cut % 8 for cut in cuts):
        with pytest.raises(ValueError, match="byte"):
            slice_rectangle(dtype, shape, axis, start, stop)
        return
    part = slice_rectangle(dtype, shape, axis, start, stop)
    whole = bits_of(raw, dtype, shape)
    assert cut_out(raw, dtype, shape, part) == bytes_of(whole[start:stop] if axis == 0 else whole[:, start:stop])


@pytest.mark.slow
@given(tensors(WHOLE_BYTES))
def test_the_whole_rectangle_holds_every_byte(tensor: tuple[str, tuple[int, ...], bytes]) -> None:
    dtype, shape, raw = tensor
    part = whole_rectangle(dtype, shape)
    assert cut_out(raw, dtype, shape, part) == raw
    assert part.nbytes == len(raw)


@pytest.mark.slow
@given(tensors(SUB_BYTE))
def test_the_whole_rectangle_holds_every_byte_of_values_below_a_byte(
    tensor: tuple[str, tuple[int, ...], bytes],
) -> None:
    dtype, shape, raw = tensor
    assert whole_rectangle(dtype, shape).nbytes == len(raw)


@pytest.mark.parametrize("dtype", WHOLE_BYTES)
def test_a_scalar_is_one_row(dtype: str) -> None:
    assert whole_rectangle(dtype, ()) == Rectangle(0, 1, 0, DTYPE_BITS[dtype] // 8)


@pytest.mark.parametrize(("shape", "axis"), [((4,), 1), ((4, 4, 4), 1), ((4, 4, 4), 2), ((4, 4), 2), ((4, 4), -1)])
def test_an_axis_that_no_engine_cuts_is_refused(shape: tuple[int, ...], axis: int) -> None:
    with pytest.raises(ValueError, match="axis"):
        slice_rectangle("BF16", shape, axis, 0, 2)


@given(st.integers(1, 4096), st.integers(1, 64))
def test_the_parts_of_a_split_cover_the_range_once_and_are_equal(step: int, parts: int) -> None:
    ranges = [split(step * parts, parts, index) for index in range(parts)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == step * parts
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(ranges))
    assert {stop - start for start, stop in ranges} == {step}


@given(st.integers(1, 4096), st.integers(2, 64))
def test_a_size_that_does_not_divide_is_not_split(size: int, parts: int) -> None:
    assume(size % parts)
    with pytest.raises(ValueError, match=f"{size} is not divisible by {parts}"):
        split(size, parts, 0)


@given(st.integers(0, 10**6), st.integers(1, 300))
def test_ceil_div_is_the_least_number_of_units_that_cover_a_size(size: int, unit: int) -> None:
    count = ceil_div(size, unit)
    assert (count - 1) * unit < size <= count * unit


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), st.integers(1, 64))
def test_every_element_has_a_scale_and_every_scale_an_element(
    rows: int, cols: int, block_rows: int, block_cols: int
) -> None:
    blocks = {(row // block_rows, col // block_cols) for row in (0, rows - 1) for col in (0, cols - 1)}
    last = max(blocks)
    assert scale_shape((rows, cols), Block(block_rows, block_cols)) == (last[0] + 1, last[1] + 1)


@pytest.mark.parametrize(
    ("shape", "block", "scales"),
    [
        ((3072, 7168), Block(128, 128), (24, 56)),
        ((7168, 3072), Block(128, 128), (56, 24)),
        ((3072, 7168), Block(1, 32), (3072, 224)),
        ((576, 7168), Block(128, 128), (5, 56)),
        ((1, 1), Block(128, 128), (1, 1)),
    ],
)
def test_scale_shapes_of_known_weights(shape: tuple[int, ...], block: Block, scales: tuple[int, int]) -> None:
    assert scale_shape(shape, block) == scales


@pytest.mark.parametrize(
    ("dtype", "shape", "packed", "logical"),
    [
        ("I8", (3072, 3584), True, (3072, 7168)),
        ("U8", (3072, 3584), True, (3072, 7168)),
        ("I8", (3072, 3584), False, (3072, 3584)),
        ("F8_E4M3", (3072, 7168), True, (3072, 7168)),
        ("I8", (), True, ()),
    ],
)
def test_a_byte_of_packed_fp4_counts_as_two_elements(
    dtype: str, shape: tuple[int, ...], packed: bool, logical: tuple[int, ...]
) -> None:
    assert logical_shape(dtype, shape, packed) == logical


def test_a_rectangle_is_as_large_as_its_rows_times_its_bytes() -> None:
    assert Rectangle(2, 5, 8, 24).nbytes == 48


# --- finding the block ---------------------------------------------------------------------------------------------


def pair(size: int, unit: int) -> tuple[int, int]:
    return size, ceil_div(size, unit)


def telling_size(unit: int, extra: int) -> int:
    """A size over so many blocks that no other unit gives the same number of scales."""
    return unit * (unit + 1 + extra)


units = st.sampled_from([16, 32, 64, 128, 256]) | st.integers(2, 300)
some_sizes = st.lists(st.integers(1, 20_000), max_size=8)


@given(units, some_sizes, st.integers(0, 50))
def test_the_true_unit_is_found(true_unit: int, others: list[int], extra: int) -> None:
    pairs = {pair(size, true_unit): 1 for size in (telling_size(true_unit, extra), *others)}
    assert agree_on_unit(pairs, None) == true_unit


@pytest.mark.slow
@given(units, some_sizes, st.integers(0, 50), st.integers(1, 20_000), st.integers(0, 500), st.none() | units)
def test_the_true_unit_is_found_beside_one_wrong_pair_and_a_wrong_declaration(
    true_unit: int, others: list[int], extra: int, size: int, scales: int, declared: int | None
) -> None:
    telling = (telling_size(true_unit, extra), telling_size(true_unit, extra + 1))
    pairs = {pair(size, true_unit): 1 for size in (*telling, *others)}
    pairs[size, scales] = pairs.get((size, scales), 1)
    assert agree_on_unit(pairs, declared) == true_unit


@given(units)
def test_the_declared_unit_wins_where_nothing_decides(declared: int) -> None:
    assert agree_on_unit({}, declared) == declared
    assert agree_on_unit({(1, 1): 5}, declared) == declared


def test_many_tensors_outvote_few() -> None:
    assert agree_on_unit({(4096, 32): 2, (4096, 64): 3}, 128) == 64
    assert agree_on_unit({(4096, 32): 3, (4096, 64): 2}, 64) == 128
