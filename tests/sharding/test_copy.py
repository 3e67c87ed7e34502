"""Copying puts what numpy slices, reads each source byte once, hashes what it puts, and stops at the first trouble."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints.small import raw
from support.random_work import ALL, FILES, TARGETS, Maker, MemorySink, Pending, Work, add_cast, random_work

from dsv4_shard.errors import IncompleteCheckpoint, InexactCast, ReadFailed, SourceChanged
from dsv4_shard.sharding import mover as moving
from dsv4_shard.sharding.copy import CopyResult, Listeners, copy
from dsv4_shard.sharding.recipe import Recipe, Slice, Step
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.tensors.geometry import Rectangle, slice_rectangle, split, whole_rectangle

CHUNKS = (1, 7, 100, 1000, 4096, 8 << 20)


def row_cuts(rows: int, cols: int) -> list[tuple[Slice, tuple[int, ...]]]:
    return [(Slice(slice_rectangle("U8", (rows, cols), 0, *split(rows, FILES, i))), (i,)) for i in ALL]


def moved_work(folder: Path, tensors: int = 20) -> Work:
    """Tensors that are only moved, 4000 bytes each, rows over the files."""
    folder.mkdir()
    maker = Maker(folder, np.random.default_rng(1))
    for _ in range(tensors):
        maker.move(maker.tensor("U8", (40, 100)), row_cuts(40, 100))
    return maker.work()


def assert_right(work: Work, sink: MemorySink, result: CopyResult) -> None:
    """Everything that a run promises."""
    headers = [len(file.header) for file in work.recipe.files]
    for content, times, header, expected in zip(sink.files, sink.times, headers, work.expected, strict=True):
        assert bytes(content[header:]) == expected[header:]
        assert (times[header:] == 1).all()
        assert not times[:header].any(), "headers are not copying's affair"
    assert result.digests == work.digests
    assert list(result.digests) == sorted(work.digests)
    assert result.bytes_read == work.nbytes
    assert result.inexact == work.inexact


def assert_copied(work: Work, workers: int = 1) -> None:
    """Copy, and hold all promises."""
    sink = work.sink()
    assert_right(work, sink, copy(work.recipe, work.source, sink, workers))


@pytest.mark.slow
@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    tensors=st.integers(0, 8),
    chunk=st.sampled_from(CHUNKS),
    workers=st.sampled_from([1, 2, 5]),
)
def test_files_digests_and_counts_are_those_of_numpy_slicing(
    seed: int, tensors: int, chunk: int, workers: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    work = random_work(tmp_path_factory.mktemp("copy") / "source", seed, tensors)
    sink = work.sink()
    progress: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving, "CHUNK_BYTES", chunk)
        result = copy(work.recipe, work.source, sink, workers, Listeners(progress.append))
    assert_right(work, sink, result)
    assert sum(progress) == sum(file.payload for file in work.recipe.files)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("width", [1, 2, 3, 5, 16, 31, 96])
def test_narrow_columns_are_numpys(width: int, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "CHUNK_BYTES", chunk)
    maker = Maker(tmp_path, np.random.default_rng(width))
    columns = 96 + width
    tensor = maker.tensor("U8", (50, columns))
    starts = [0, width, 7, 96]
    maker.move(tensor, [(Slice(Rectangle(0, 50, start, start + width)), (i,)) for i, start in enumerate(starts)])
    assert_copied(maker.work())


def test_many_workers_give_what_one_gives(tmp_path: Path) -> None:
    work = random_work(tmp_path / "source", 42, 25)
    results = []
    for workers in (1, 2, 3, 8, 40):
        sink = work.sink()
        results.append(copy(work.recipe, work.source, sink, workers))
        assert_right(work, sink, results[-1])
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("chunk", [1, 1000, 8 << 20])
def test_some_of_the_files_need_no_more_than_their_sources_bytes(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "CHUNK_BYTES", chunk)
    work = random_work(tmp_path / "source", 3, 12)
    for wanted in ({0}, {1, 2}, {0, 3}):
        steps = [step for step in (only(step, wanted) for step in work.recipe.steps) if step.landings]
        sink = work.sink()
        recipe = replace(work.recipe, steps=tuple(steps), fixed=())
        result = copy(recipe, work.source, sink, 2)
        assert result.bytes_read <= sum(step.source.nbytes + (step.scale.nbytes if step.scale else 0) for step in steps)
        fixed = {(one.file, one.tensor) for one in work.recipe.fixed}
        assert result.digests == {k: v for k, v in work.digests.items() if k[0] in wanted and k not in fixed}
        for file, name in result.digests:
            info, start = work.recipe.files[file].tensors[name], work.recipe.offset(file, name)
            assert sink.files[file][start : start + info.nbytes] == work.expected[file][start : start + info.nbytes]
        assert not any(times.any() for file, times in enumerate(sink.times) if file not in wanted)


def only(step: Step, wanted: set[int]) -> Step:
    """What of a step is for some files."""
    landings = []
    for landing in step.landings:
        spread = tuple(
            (cut, some) for cut, files in landing.spread if (some := tuple(file for file in files if file in wanted))
        )
        if spread:
            landings.append(landing._replace(spread=spread))
    return replace(step, landings=tuple(landings))


def test_rows_that_no_file_wants_are_not_read(tmp_path: Path) -> None:
    maker = Maker(tmp_path, np.random.default_rng(0))
    tensor = maker.tensor("U8", (100, 10))
    maker.move(tensor, [(Slice(Rectangle(30, 40, 2, 5)), (0,)), (Slice(Rectangle(50, 60, 0, 3)), (1,))])
    work = maker.work()
    work.nbytes = 200
    assert_copied(work)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_tensor_without_bytes_has_the_digest_of_nothing(workers: int, tmp_path: Path) -> None:
    maker = Maker(tmp_path, np.random.default_rng(0))
    for shape in ((0, 4), (4, 0), (0,)):
        tensor = maker.tensor("F32", shape)
        pending = Pending(tensor, fill=bytes(4))
        maker.land(pending, maker.new_output(), [(Slice(whole_rectangle("F32", shape)), (0,), b"")])
        maker.steps.append(pending)
    work = maker.work()
    progress: list[int] = []
    result = copy(work.recipe, work.source, work.sink(), workers, Listeners(progress.append))
    assert set(result.digests.values()) == {xxhash.xxh3_128_hexdigest(b"")}
    assert len(result.digests) == 3
    assert (result.bytes_read, progress) == (0, [])


def test_an_empty_recipe_does_nothing(tmp_path: Path) -> None:
    result = copy(Recipe((), (), (), {}), LocalSource(tmp_path, "none"), MemorySink([]), 4)
    assert result == CopyResult({}, {}, 0)


# --- conversions, padding, repeats, pieces -------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("dtype", TARGETS)
def test_conversions_are_torchs_whole_and_cut(
    dtype: str, axis: int | None, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "CHUNK_BYTES", chunk)
    maker = Maker(tmp_path, np.random.default_rng(8))
    shape = (24, 44)
    cuts = [(Slice(whole_rectangle(dtype, shape)), ALL)]
    if axis is not None:
        cuts = [(Slice(slice_rectangle(dtype, shape, axis, *split(shape[axis], FILES, i))), (i,)) for i in ALL]
    maker.move(maker.tensor(dtype, shape), cuts, conversion=TARGETS[dtype])
    assert_copied(maker.work())


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**40])
def test_a_table_with_a_value_beyond_32_bits_is_refused(value: int, workers: int, tmp_path: Path) -> None:
    maker = Maker(tmp_path, np.random.default_rng(0))
    table = np.arange(300, dtype=np.int64)
    table[299] = value
    tensor = maker.tensor("I64", (50, 6), table.tobytes())
    cuts = [(Slice(whole_rectangle("I64", (50, 6))), ALL)]
    maker.move(tensor, cuts, conversion="I32")
    work = maker.work()
    with pytest.raises(IncompleteCheckpoint, match="beyond 32 bits"):
        copy(work.recipe, work.source, work.sink(), workers)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("pad_cols", "pad_rows"), [(0, 3), (5, 0), (5, 3)])
@pytest.mark.parametrize(("dtype", "conversion", "fill"), [
    ("I8", None, b"\x07"),
    ("F32", None, np.float32("-inf").tobytes()),
    ("F8_E8M0", None, b"\x7f"),
    ("F8_E8M0", "F32", b"\x7f"),
    ("F8_E8M0", "F32", b"\x00"),
    ("BF16", "F32", b"\x80\xff"),
    ("I64", "I32", np.int64(-1).tobytes()),
])  # fmt: skip
def test_padding_is_the_fill_right_of_each_row_and_below_the_last(
    dtype: str,
    conversion: str | None,
    fill: bytes,
    pad_cols: int,
    pad_rows: int,
    chunk: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(moving, "CHUNK_BYTES", chunk)
    maker = Maker(tmp_path, np.random.default_rng(9))
    area = whole_rectangle(dtype, (11, 6))
    maker.move(
        maker.tensor(dtype, (11, 6)),
        [(Slice(area, pad_cols * len(fill), pad_rows), (0, 2))],
        conversion=conversion,
        fill=fill,
    )
    assert_copied(maker.work())


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("conversion", [None, "F32"])
def test_a_rank_may_get_nothing_but_padding(conversion: str | None, axis: int, workers: int, tmp_path: Path) -> None:
    maker = Maker(tmp_path, np.random.default_rng(9))
    shape, each = (6, 6), 3
    cuts = []
    for index in range(FILES):
        start, stop = min(index * each, 6), min((index + 1) * each, 6)
        pad = each - (stop - start)
        area = slice_rectangle("F8_E8M0", shape, axis, start, stop)
        cuts.append((Slice(area, pad_rows=pad) if axis == 0 else Slice(area, pad_cols=pad), (index,)))
    maker.move(maker.tensor("F8_E8M0", shape), cuts, conversion=conversion, fill=b"\x7f")  # type: ignore[arg-type]
    work = maker.work()
    one = b"\x7f" if conversion is None else np.float32(1).tobytes()
    assert work.expected[3] == work.recipe.files[3].header + one * 18
    assert_copied(work, workers)


def test_a_file_of_nothing_but_padding_below_reads_no_source(tmp_path: Path) -> None:
    maker = Maker(tmp_path, np.random.default_rng(9))
    maker.move(maker.tensor("BF16", (6, 4)), [(Slice(Rectangle(6, 6, 0, 8), pad_rows=3), (1,))], fill=b"ab")
    work = maker.work()
    work.nbytes = 0
    assert_copied(work)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("dtype", "conversion"), [("F8_E8M0", None), ("F8_E8M0", "F32"), ("F32", None)])
def test_a_scale_is_repeated_along_both_axes_before_it_is_cut(
    dtype: str, conversion: str | None, axis: int, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "CHUNK_BYTES", chunk)
    maker = Maker(tmp_path, np.random.default_rng(9))
    repeated = (12, 20)
    cuts = [(Slice(slice_rectangle(dtype, repeated, axis, *split(repeated[axis], FILES, i))), (i,)) for i in ALL]
    maker.move(maker.tensor(dtype, (3, 5)), cuts, conversion=conversion, repeat=4)  # type: ignore[arg-type]
    assert_copied(maker.work())


def test_repeats_are_those_of_torch(tmp_path: Path) -> None:
    maker = Maker(tmp_path, np.random.default_rng(9))
    tensor = maker.tensor("F32", (3, 5))
    maker.move(tensor, [(Slice(whole_rectangle("F32", (6, 10))), (0,))], repeat=2)
    work = maker.work()
    values = torch.frombuffer(bytearray(maker.bytes_of(tensor)), dtype=torch.int32).view(3, 5)
    assert work.expected[0] == raw(values.repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert_copied(work)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_tensor_of_several_sources_is_their_bytes_in_slot_order_whatever_the_order_of_reading(
    workers: int, tmp_path: Path
) -> None:
    maker = Maker(tmp_path, np.random.default_rng(11))
    sources = [maker.tensor("U8", (4, width)) for width in (3, 50, 1, 20)]
    output = maker.new_output()
    for source in reversed(sources):
        maker.move(source, [(Slice(whole_rectangle("U8", source.shape)), (2,))], output)
    work = maker.work()
    pieces = [maker.bytes_of(source) for source in reversed(sources)]
    assert work.expected[2] == work.recipe.files[2].header + b"".join(pieces)
    digests = b"".join(xxhash.xxh3_128(piece).digest() for piece in pieces)
    assert work.digests == {(2, output): xxhash.xxh3_128(digests).hexdigest()}
    assert_copied(work, workers)


def test_the_digest_of_one_piece_is_that_of_its_bytes_as_they_were_put(tmp_path: Path) -> None:
    maker = Maker(tmp_path, np.random.default_rng(11))
    tensor = maker.tensor("BF16", (4, 4))
    maker.move(tensor, [(Slice(whole_rectangle("BF16", (4, 4)), 2, 1), (1,))], conversion="F32", fill=b"ab")
    work = maker.work()
    assert_copied(work)
    put = work.expected[1][len(work.recipe.files[1].header) :]
    assert len(put) == 5 * 5 * 4
    assert work.digests[1, "o0.weight"] == xxhash.xxh3_128_hexdigest(put)


def test_sixteen_byte_tensors_of_several_pieces_are_not_taken_for_their_own_digests(tmp_path: Path) -> None:
    maker = Maker(tmp_path, np.random.default_rng(11))
    output = maker.new_output()
    for _ in range(2):
        maker.move(maker.tensor("U8", (1, 8)), [(Slice(whole_rectangle("U8", (1, 8))), ALL)], output)
    assert_copied(maker.work())


def test_runs_of_equal_pieces_are_counted_as_pieces(tmp_path: Path) -> None:
    maker = Maker(tmp_path, np.random.default_rng(12))
    output = maker.new_output()
    for cols in (5, 5, 5, 9):
        maker.move(maker.tensor("U8", (4, cols)), row_cuts(4, cols), output)
    work = maker.work()
    files = tuple(replace(file, pieces={output: ((3, 5), (1, 9))}) for file in work.recipe.files)
    work.recipe = replace(work.recipe, files=files)
    assert_copied(work)


def test_a_source_that_lands_twice_is_read_once(tmp_path: Path) -> None:
    maker = Maker(tmp_path, np.random.default_rng(13))
    maker.move(maker.tensor("U8", (8, 10)), row_cuts(8, 10), maker.new_output(), maker.new_output())
    work = maker.work()
    assert work.nbytes == 80
    assert sum(map(len, work.expected)) == 160 + sum(len(file.header) for file in work.recipe.files)
    assert_copied(work)


@pytest.mark.parametrize("workers", [1, 3])
def test_fixed_tensors_are_put_hashed_and_counted_without_any_source(workers: int, tmp_path: Path) -> None:
    maker = Maker(tmp_path, np.random.default_rng(14))
    for file in (0, 1, 1, 3):
        maker.fix(file, maker.random.bytes(4 + file))
    work = maker.work()
    assert work.nbytes == 0
    progress: list[int] = []
    sink = work.sink()
    result = copy(work.recipe, work.source, sink, workers, Listeners(progress.append))
    assert_right(work, sink, result)
    assert sum(progress) == 4 + 5 + 5 + 7


# --- casts that round ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 8 << 20])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_cast_that_rounds_is_raised_with_tensor_and_count(
    workers: int, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "CHUNK_BYTES", chunk)
    maker = Maker(tmp_path, np.random.default_rng(5))
    cast = add_cast(maker, 90)
    work = maker.work()
    allowed = copy(work.recipe, work.source, sink := work.sink(), workers, allow_inexact=True)
    name, count = next(iter(allowed.inexact.items()))
    assert name == cast
    assert count > 0
    work.inexact = {name: count}
    assert_right(work, sink, allowed)
    with pytest.raises(InexactCast, match=rf"^{name}: {count:,} of its values"):
        copy(work.recipe, work.source, work.sink(), workers)


# --- trouble -------------------------------------------------------------------------------------------------------


class Hook(MemorySink):
    """Does something at the n-th put."""

    def __init__(self, work: Work, at: int, action: Callable[[], None]) -> None:
        super().__init__([len(content) for content in work.expected])
        self.puts = 0
        self._at = at
        self._action = action
        self._count = threading.Lock()

    def put(self, file: int, offset: int, data: memoryview) -> None:
        with self._count:
            self.puts += 1
            puts = self.puts
        if puts == self._at:
            self._action()
        elif puts > self._at:
            time.sleep(0.002)  # what comes after the action is slow, so that one can see it being cut short
        super().put(file, offset, data)


class Boom(Exception):
    pass


def raise_boom() -> None:
    raise Boom("sink")


@pytest.mark.parametrize("workers", [1, 2, 6])
def test_an_exception_in_the_sink_stops_the_run_and_is_raised(workers: int, tmp_path: Path) -> None:
    work = moved_work(tmp_path / "source", tensors=200)
    sink = Hook(work, 3, raise_boom)
    with pytest.raises(Boom, match="sink"):
        copy(work.recipe, work.source, sink, workers)
    assert sink.puts < 800
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("copy")]


def test_an_exception_in_the_sink_stops_a_single_worker_at_once(tmp_path: Path) -> None:
    work = moved_work(tmp_path / "source")
    sink = Hook(work, 3, raise_boom)
    with pytest.raises(Boom):
        copy(work.recipe, work.source, sink, 1)
    assert sink.puts == 3


def test_an_exception_in_the_progress_callback_is_raised(tmp_path: Path) -> None:
    work = moved_work(tmp_path / "source")

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    for workers in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            copy(work.recipe, work.source, work.sink(), workers, Listeners(stop))


def changes(folder: Path) -> dict[str, Callable[[], None]]:
    """What may happen to the first source file while it is read."""
    path = folder / "0.bin"

    def replace() -> None:
        before = path.stat()
        twin = folder / "twin"
        twin.write_bytes(path.read_bytes())
        os.utime(twin, ns=(before.st_atime_ns, before.st_mtime_ns))
        twin.rename(path)

    def write_one_byte() -> None:
        with path.open("r+b") as file:
            file.write(b"x")
        os.utime(path, ns=(1, 1))

    def grow() -> None:
        with path.open("ab") as file:
            file.write(b"x")

    return {"replaced": replace, "written": write_one_byte, "grown": grow, "gone": path.unlink}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("what", ["replaced", "written", "grown", "gone"])
def test_a_source_that_changes_during_the_run_is_found(what: str, workers: int, tmp_path: Path) -> None:
    work = moved_work(tmp_path / "source")
    sink = Hook(work, 5, changes(work.source.root)[what])
    with pytest.raises(SourceChanged, match=r"0\.bin"):
        copy(work.recipe, work.source, sink, workers)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_source_truncated_meanwhile_is_named_with_the_offset(workers: int, tmp_path: Path) -> None:
    work = moved_work(tmp_path / "source")
    sink = Hook(work, 1, lambda: [os.truncate(work.source.root / f"{n}.bin", 4050) for n in (0, 1)])  # type: ignore[arg-type, func-returns-value]
    with pytest.raises(ReadFailed, match=r"\d\.bin: ends at byte \d+, \d+ bytes too early"):
        copy(work.recipe, work.source, sink, workers)


def test_a_source_that_is_gone_before_the_run_is_named(tmp_path: Path) -> None:
    work = moved_work(tmp_path / "source")
    (work.source.root / "0.bin").unlink()
    with pytest.raises(ReadFailed, match=r"0\.bin: No such file"):
        copy(work.recipe, work.source, work.sink(), 2)


def test_no_file_stays_open_after_a_run_that_failed(tmp_path: Path) -> None:
    work = moved_work(tmp_path / "source")
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(Boom):
        copy(work.recipe, work.source, Hook(work, 1, raise_boom), 3)
    assert len(os.listdir("/proc/self/fd")) <= len(before)
