"""FP4 → FP8 and FP8 → BF16 are DeepSeek's converter's arithmetic, bit for bit, and every rounded value is counted."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints.small import raw
from support.oracles import v4 as oracle

from dsv4_shard.tensors.decoding import TRANSFORMS, Transform
from dsv4_shard.verification.dequantize import dequantize

CAST = TRANSFORMS["fp4_to_fp8"]
CAST_32 = TRANSFORMS["fp4_to_fp8_32"]
DECODE = TRANSFORMS["fp8_to_bf16"]
DECODE_32 = TRANSFORMS["fp8_32_to_bf16"]
FP4 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def fp8_values() -> np.ndarray:
    """E4M3 code → value, from the format's definition."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    values[(codes & 0x7F) == 0x7F] = np.nan
    return np.where(codes & 0x80, -values, values)


FP8 = fp8_values()


def e8m0_values(codes: np.ndarray) -> np.ndarray:
    """E8M0 codes → values in float64."""
    return np.where(codes == 255, np.nan, 2.0 ** (codes.astype(np.float64) - 127))


def random_fp4(seed: int, rows: int, cols: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """A packed weight of `rows` × `cols` values, and scale codes from `low` to `high`."""
    random = np.random.default_rng(seed)
    weight = random.integers(0, 256, (rows, cols // 2), dtype=np.uint8)
    return weight, random.integers(low, high + 1, (rows, cols // 32), dtype=np.uint8)


def cast_by_oracle(weight: np.ndarray, scale: np.ndarray, block: int = 128) -> tuple[bytes, bytes]:
    """The cast's two tensors, as the converter's torch arithmetic gives them."""
    cast, new = oracle.fp4_to_fp8(
        torch.from_numpy(weight).view(torch.int8), torch.from_numpy(scale).view(torch.float8_e8m0fnu), block
    )
    return raw(cast), raw(new)


def values_that_differ(weight: np.ndarray, scale: np.ndarray, cast: np.ndarray, new: np.ndarray) -> int:
    """How many values are not what they were, in float64: a NaN is never what it was."""
    codes = np.stack([weight & 15, weight >> 4], axis=-1).reshape(weight.shape[0], -1)
    before = FP4[codes] * np.repeat(e8m0_values(scale), 32, axis=1)
    block = len(cast) // len(new)
    after = FP8[cast] * np.repeat(np.repeat(e8m0_values(new), block, axis=0), block, axis=1)
    return int(np.count_nonzero(before != after))


def rescale(transform: Transform, scale: np.ndarray) -> np.ndarray:
    """The new scales of a transform that makes some."""
    assert transform.rescale is not None
    return transform.rescale(scale)


def assert_cast_is_the_oracles(weight: np.ndarray, scale: np.ndarray, transform: Transform = CAST) -> int:
    """Bytes equal the oracle's, and the count of inexact values is right; returns it."""
    decoded, rescaled = transform.apply(weight, scale, "F8_E8M0"), rescale(transform, scale)
    cast, new = cast_by_oracle(weight, scale, transform.block)
    assert decoded.weight.tobytes() == cast
    assert rescaled.tobytes() == new
    assert decoded.inexact == values_that_differ(weight, scale, decoded.weight, rescaled)
    return decoded.inexact


@pytest.mark.parametrize(("rows", "cols"), [(128, 128), (128, 512), (384, 256)])
@pytest.mark.parametrize("seed", range(3))
def test_cast_is_the_oracles_bit_for_bit_while_scales_are_near(seed: int, rows: int, cols: int) -> None:
    assert assert_cast_is_the_oracles(*random_fp4(seed, rows, cols, 110, 124)) == 0


@pytest.mark.parametrize("spread", [14, 15, 16, 17, 20, 40, 120])
def test_cast_counts_the_values_that_a_wide_spread_rounds(spread: int) -> None:
    inexact = assert_cast_is_the_oracles(*random_fp4(spread, 256, 256, 124 - spread, 124))
    assert (inexact > 0) == (spread > 14)


@pytest.mark.slow
@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, 254), st.integers(0, 254), st.sampled_from([128, 256]))
def test_cast_is_the_oracles_for_any_range_of_scales(seed: int, one: int, other: int, cols: int) -> None:
    assert_cast_is_the_oracles(*random_fp4(seed, 128, cols, min(one, other), max(one, other)))


@settings(max_examples=60)
@given(
    st.integers(0, 2**32), st.integers(0, 254), st.integers(0, 254), st.integers(1, 6), st.sampled_from([32, 96, 256])
)
def test_cast_to_blocks_of_32_is_the_oracles_for_any_range_of_scales(
    seed: int, one: int, other: int, blocks: int, cols: int
) -> None:
    """Also where rows are no multiple of those that are cast at a time."""
    assert_cast_is_the_oracles(*random_fp4(seed, 32 * blocks, cols, min(one, other), max(one, other)), CAST_32)


@settings(max_examples=60)
@given(st.binary(min_size=64, max_size=64), st.lists(st.integers(0, 254), min_size=4, max_size=4))
def test_cast_is_the_oracles_for_any_codes(codes: bytes, scales: list[int]) -> None:
    weight = np.tile(np.frombuffer(codes, np.uint8), (128, 1))
    assert_cast_is_the_oracles(weight, np.tile(np.array(scales, np.uint8), (128, 1)))


@pytest.mark.parametrize("distance", range(20))
def test_each_code_at_each_distance_is_the_oracles(distance: int) -> None:
    weight = np.tile(np.arange(256, dtype=np.uint8).reshape(4, 64), (32, 1))
    scale = np.full((128, 4), 120 - distance, np.uint8)
    scale[::2, 0] = 120
    assert_cast_is_the_oracles(weight, scale)


def test_a_negative_zero_becomes_a_positive_one_and_is_not_counted() -> None:
    weight = np.full((128, 64), 0x88, np.uint8)
    decoded = CAST.apply(weight, np.full((128, 4), 120, np.uint8), "F8_E8M0")
    assert not decoded.weight.any()
    assert decoded.inexact == 0


@pytest.mark.parametrize("largest", range(9))
def test_scales_too_small_for_e8m0_are_the_oracles_and_counted(largest: int) -> None:
    inexact = assert_cast_is_the_oracles(*random_fp4(largest, 128, 256, 0, largest))
    assert (inexact > 0) == (largest < 6)


def test_only_the_block_whose_scale_is_too_small_is_counted() -> None:
    weight, scale = random_fp4(1, 256, 256, 110, 120)
    scale[128:, 4:] = 3
    inexact = assert_cast_is_the_oracles(weight, scale)
    assert inexact == np.count_nonzero(weight[128:, 64:] & 0x07) + np.count_nonzero(weight[128:, 64:] & 0x70)


@pytest.mark.parametrize("others", [(110, 120), (250, 254), (0, 5), (0, 254)])
def test_a_scale_that_is_not_a_number_spoils_its_block_and_only_that(others: tuple[int, int]) -> None:
    weight, scale = random_fp4(2, 256, 256, 110, 120)
    scale[:128, :4] = np.random.default_rng(3).integers(others[0], others[1] + 1, (128, 4), dtype=np.uint8)
    scale[5, 2] = 255
    decoded = CAST.apply(weight, scale, "F8_E8M0")
    cast, new = cast_by_oracle(weight, scale)
    assert rescale(CAST, scale).tobytes() == new
    assert np.isnan(FP8[decoded.weight[:128, :128]]).all()
    theirs = np.frombuffer(cast, np.uint8).reshape(256, 256)
    # Which of the two NaNs an arithmetic gives is the processor's choice: only being one is compared.
    assert np.isnan(FP8[theirs[:128, :128]]).all()
    assert np.array_equal(decoded.weight[128:], theirs[128:])
    assert np.array_equal(decoded.weight[:, 128:], theirs[:, 128:])
    assert decoded.inexact == 128 * 128


def test_not_a_number_is_the_oracles_to_the_byte() -> None:
    weight, scale = random_fp4(4, 128, 128, 110, 120)
    scale[0, 0] = 255
    assert CAST.apply(weight, scale, "F8_E8M0").weight.tobytes() == cast_by_oracle(weight, scale)[0]


@pytest.mark.parametrize("low", [100, 115])
def test_cast_by_stripes_is_the_cast_of_the_whole(low: int) -> None:
    weight, scale = random_fp4(5, 512, 384, low, 124)
    whole = CAST.apply(weight, scale, "F8_E8M0")
    stripes = [CAST.apply(weight[r : r + 128], scale[r : r + 128], "F8_E8M0") for r in range(0, 512, 128)]
    assert np.array_equal(np.concatenate([s.weight for s in stripes]), whole.weight)
    scales = [rescale(CAST, scale[r : r + 128]) for r in range(0, 512, 128)]
    assert np.array_equal(np.concatenate(scales), rescale(CAST, scale))
    assert sum(s.inexact for s in stripes) == whole.inexact


def test_cast_shapes_are_those_of_the_oracle() -> None:
    weight, scale = random_fp4(6, 256, 384, 115, 120)
    cast, new = oracle.fp4_to_fp8(
        torch.from_numpy(weight).view(torch.int8), torch.from_numpy(scale).view(torch.float8_e8m0fnu)
    )
    assert CAST.weight_shape(weight.shape) == tuple(cast.shape)
    assert CAST.scale_shape(scale.shape) == tuple(new.shape)
    assert CAST_32.scale_shape(scale.shape) == (256 // 32, 384 // 32)


# --- FP8 → BF16 ----------------------------------------------------------------------------------------------------


def random_scales(random: np.random.Generator, dtype: str, rows: int, cols: int) -> np.ndarray:
    """Raw scales of every magnitude, as bytes `[rows, cols × itemsize]`: NaN, infinity and subnormals among them."""
    if dtype == "F8_E8M0":
        return random.integers(0, 256, (rows, cols), dtype=np.uint8)
    scales = random.integers(0, 2**32, (rows, cols), dtype=np.uint32)
    scales[0, 0] = 0x7F7FFFFF
    scales[-1, -1] = 0x00000001
    return scales.view(np.uint8)


def as_scale(scale: np.ndarray, dtype: str) -> torch.Tensor:
    """Raw scale bytes as torch sees them."""
    return torch.from_numpy(scale.copy()).view({"F8_E8M0": torch.float8_e8m0fnu, "F32": torch.float32}[dtype])


def same_bf16(one: bytes, other: bytes) -> bool:
    """Equal bytes, where any NaN equals any other: their signs are the processor's choice."""
    a, b = np.frombuffer(one, np.uint16), np.frombuffer(other, np.uint16)
    nan = [(x & 0x7FFF) > 0x7F80 for x in (a, b)]
    return bool(np.array_equal(*nan) and np.array_equal(a[~nan[0]], b[~nan[0]]))  # type: ignore[arg-type]


@pytest.mark.parametrize("transform", [DECODE, DECODE_32], ids=["128", "32"])
@settings(max_examples=40)
@given(
    st.integers(0, 2**32), st.sampled_from(["F8_E8M0", "F32"]), st.integers(1, 3), st.sampled_from([64, 128, 200, 384])
)
def test_decode_is_torchs_for_all_codes_and_scales(
    transform: Transform, seed: int, dtype: str, block_rows: int, cols: int
) -> None:
    random = np.random.default_rng(seed)
    weight = random.integers(0, 256, (block_rows * transform.block, cols), dtype=np.uint8)
    scale = random_scales(random, dtype, block_rows, -(-cols // transform.block))
    decoded = transform.apply(weight, scale, dtype)
    expected = oracle.dequantize_fp8(torch.from_numpy(weight).view(torch.float8_e4m3fn), as_scale(scale, dtype))
    assert same_bf16(decoded.weight.tobytes(), raw(expected))
    assert transform.rescale is None
    assert decoded.inexact == 0


@pytest.mark.parametrize(("code", "scale", "expected"), [
    (0x7E, 254, 0x7F80),  # 448 · 2^127: infinity
    (0xFE, 254, 0xFF80),
    (0x38, 254, 0x7F00),  # 1 · 2^127
    (0x38, 0, 0x0040),  # 1 · 2^-127: BF16 is subnormal there
    (0x01, 0, 0x0000),  # 2^-9 · 2^-127: below BF16's smallest, 2^-133
    (0x81, 0, 0x8000),
    (0x08, 0, 0x0001),  # 2^-6 · 2^-127
    (0x00, 120, 0x0000),
    (0x80, 120, 0x8000),
    (0x39, 127, 0x3F90),  # 1.125
])  # fmt: skip
def test_decode_at_the_ends_of_bf16(code: int, scale: int, expected: int) -> None:
    weight = np.full((128, 128), code, np.uint8)
    decoded = DECODE.apply(weight, np.array([[scale]], np.uint8), "F8_E8M0")
    assert set(decoded.weight.view(np.uint16).flatten().tolist()) == {expected}


@pytest.mark.parametrize(("code", "scale"), [(0x7F, 120), (0xFF, 120), (0x38, 255), (0x00, 255)])
def test_decode_of_not_a_number_is_not_a_number(code: int, scale: int) -> None:
    decoded = DECODE.apply(np.full((128, 128), code, np.uint8), np.array([[scale]], np.uint8), "F8_E8M0")
    bits = decoded.weight.view(np.uint16)
    assert ((bits & 0x7FFF) > 0x7F80).all()


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F32"])
def test_decode_by_stripes_is_the_decoding_of_the_whole(dtype: str) -> None:
    random = np.random.default_rng(8)
    weight = random.integers(0, 256, (512, 256), dtype=np.uint8)
    scale = random_scales(random, dtype, 4, 2)
    whole = DECODE.apply(weight, scale, dtype).weight.tobytes()
    stripes = [DECODE.apply(weight[128 * i : 128 * i + 128], scale[i : i + 1], dtype) for i in range(4)]
    assert b"".join(s.weight.tobytes() for s in stripes) == whole


# --- dequantize ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["I8", "U8", "F4"])
def test_dequantize_of_fp4_is_a_naive_loop(dtype: str) -> None:
    weight, scale = random_fp4(9, 6, 96, 100, 140)
    found = dequantize(weight.tobytes(), dtype, 6, scale[:, :, None].copy(), "F8_E8M0")
    assert found.shape == (6, 96)
    for row in range(6):
        for col in range(96):
            code = weight[row, col // 2] >> 4 if col % 2 else weight[row, col // 2] & 15
            assert found[row, col].item() == FP4[code] * 2.0 ** (int(scale[row, col // 32]) - 127)


@pytest.mark.parametrize("scale_dtype", ["F8_E8M0", "F32"])
def test_dequantize_of_fp8_is_a_naive_loop(scale_dtype: str) -> None:
    random = np.random.default_rng(10)
    weight = random.integers(0, 256, (256, 384), dtype=np.uint8)
    weight[(weight & 0x7F) == 0x7F] = 0
    if scale_dtype == "F32":
        factors = random.standard_normal((2, 3), dtype=np.float32)
        scale = factors.view(np.uint8).reshape(2, 3, 4)
    else:
        scale = random.integers(110, 130, (2, 3, 1), dtype=np.uint8)
        factors = e8m0_values(scale[:, :, 0]).astype(np.float32)
    found = dequantize(weight.tobytes(), "F8_E4M3", 256, scale, scale_dtype)
    for row in range(0, 256, 5):
        for col in range(0, 384, 7):
            expected = np.float32(FP8[weight[row, col]]) * factors[row // 128, col // 128]
            assert found[row, col].item() == expected
