"""Each conversion is torch's, bit by bit, over every value that its source can hold."""

import struct
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsv4_shard.errors import IncompleteCheckpoint
from dsv4_shard.tensors.dtype_casts import CONVERSIONS, Bytes
from dsv4_shard.tensors.header import DTYPE_BITS

INT32 = (-(2**31), 2**31 - 1)


def convert(source: str, target: str, values: npt.NDArray[np.generic]) -> Bytes:
    return CONVERSIONS[source, target].apply(values.view(np.uint8))


def bits_of(tensor: torch.Tensor) -> npt.NDArray[np.uint32]:
    return tensor.view(torch.int32).numpy().view(np.uint32)


def test_all_e8m0_codes_but_nan_become_torchs_float32_bit_by_bit() -> None:
    codes = np.arange(255, dtype=np.uint8)
    wanted = torch.from_numpy(codes).view(torch.float8_e8m0fnu).float()
    np.testing.assert_array_equal(convert("F8_E8M0", "F32", codes).view(np.uint32), bits_of(wanted))


@pytest.mark.parametrize(("code", "value"), [(0, 2.0**-127), (1, 2.0**-126), (127, 1.0), (254, 2.0**127)])
def test_e8m0_codes_are_powers_of_two_down_to_the_subnormal_one(code: int, value: float) -> None:
    assert convert("F8_E8M0", "F32", np.array([code], np.uint8)).tobytes() == struct.pack("<f", value)


def test_the_last_e8m0_code_alone_is_not_a_number() -> None:
    found = convert("F8_E8M0", "F32", np.arange(256, dtype=np.uint8)).view(np.float32)
    assert np.flatnonzero(np.isnan(found)).tolist() == [255]


def test_nan_has_the_bits_that_torch_gives_it() -> None:
    code = np.array([255], np.uint8)
    wanted = bits_of(torch.from_numpy(code).view(torch.float8_e8m0fnu).float())
    assert hex(convert("F8_E8M0", "F32", code).view(np.uint32)[0]) == hex(wanted[0])


def test_all_65536_bf16_patterns_become_torchs_float32_bit_by_bit() -> None:
    patterns = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    wanted = torch.from_numpy(patterns.view(np.int16)).view(torch.bfloat16).float()
    np.testing.assert_array_equal(convert("BF16", "F32", patterns).view(np.uint32), bits_of(wanted))


@pytest.mark.parametrize("value", [0, 1, -1, 383, INT32[0], INT32[1], INT32[0] + 1, INT32[1] - 1])
def test_int64_values_that_fit_survive_as_int32(value: int) -> None:
    values = np.array([0, value, value], np.int64)
    found = convert("I64", "I32", values)
    assert found.tobytes() == torch.from_numpy(values).to(torch.int32).numpy().tobytes()
    assert found.view(np.int32).tolist() == values.tolist()


@pytest.mark.parametrize("value", [INT32[0] - 1, INT32[1] + 1, 2**32, -(2**32), 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_an_int64_value_beyond_32_bits_is_refused_wherever_it_stands(value: int, place: int) -> None:
    values = np.arange(5, dtype=np.int64)
    values[place] = value
    with pytest.raises(IncompleteCheckpoint, match="beyond 32 bits"):
        convert("I64", "I32", values)


@pytest.mark.slow
@given(st.lists(st.integers(*INT32)))
def test_int64_tables_become_torchs_int32(values: list[int]) -> None:
    table = np.array(values, np.int64)
    assert convert("I64", "I32", table).view(np.int32).tolist() == values


@pytest.mark.parametrize("pair", CONVERSIONS)
def test_sizes_grow_as_the_dtypes_say(pair: tuple[str, str]) -> None:
    conversion = CONVERSIONS[pair]
    assert (conversion.source, conversion.target) == pair
    before, after = DTYPE_BITS[pair[0]] // 8, DTYPE_BITS[pair[1]] // 8
    for count in (0, 1, 7, 256):
        data = np.zeros(count * before, np.uint8)
        assert conversion.nbytes(len(data)) == count * after
        assert conversion.apply(data).nbytes == count * after


@pytest.mark.parametrize("pair", CONVERSIONS)
def test_any_piece_converts_as_it_does_within_the_whole(pair: tuple[str, str]) -> None:
    conversion = CONVERSIONS[pair]
    before = DTYPE_BITS[pair[0]] // 8
    random = np.random.default_rng(3)
    whole = random.integers(0, 1000, 40, np.int64).view(np.uint8) if pair[0] == "I64" else random.bytes(80)
    data = np.frombuffer(whole, np.uint8)
    cuts = [0, before, 9 * before, len(data)]
    parts = [conversion.apply(data[a:b]).tobytes() for a, b in pairwise(cuts)]
    assert b"".join(parts) == conversion.apply(data).tobytes()


@pytest.mark.parametrize("pair", CONVERSIONS)
def test_the_source_is_left_as_it_was_and_may_lie_unaligned(pair: tuple[str, str]) -> None:
    random = np.random.default_rng(4)
    aligned = random.integers(0, 1000, 8, np.int64).view(np.uint8)
    shifted = np.frombuffer(b"\0" + aligned.tobytes(), np.uint8)[1:]
    before = shifted.tobytes()
    assert CONVERSIONS[pair].apply(shifted).tobytes() == CONVERSIONS[pair].apply(aligned).tobytes()
    assert shifted.tobytes() == before


# --- and back ------------------------------------------------------------------------------------------------------


def back(source: str, target: str, values: npt.NDArray[np.generic]) -> Bytes:
    return CONVERSIONS[source, target].undo(values.view(np.uint8))


@pytest.mark.parametrize(
    ("source", "target", "values"),
    [
        ("F8_E8M0", "F32", np.arange(256, dtype=np.uint8)),
        ("BF16", "F32", np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)),
        ("I64", "I32", np.array([*INT32, 0, -1, 1], np.int64)),
    ],
)
def test_every_value_comes_back(source: str, target: str, values: npt.NDArray[np.generic]) -> None:
    assert back(source, target, convert(source, target, values)).tobytes() == values.tobytes()


@pytest.mark.parametrize("bits", [0, 1, 0x3F800001, 0x3FC00000, 0xBF800000, 0x7F800000, 0x7FC00000, 0x80400000])
def test_a_float32_that_is_no_power_of_two_does_not_come_back_as_a_scale(bits: int) -> None:
    values = np.array([bits], np.uint32)
    assert convert("F8_E8M0", "F32", back("F8_E8M0", "F32", values)).tobytes() != values.tobytes()


@given(st.integers(0, 2**32 - 1))
def test_a_float32_comes_back_as_bf16_where_its_lower_half_is_zero(bits: int) -> None:
    values = np.array([bits], np.uint32)
    again = convert("BF16", "F32", back("BF16", "F32", values)).tobytes()
    assert (again == values.tobytes()) == (bits & 0xFFFF == 0)
