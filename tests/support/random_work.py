"""Random recipes to copy by, and what each output file must hold in the end."""

import threading
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from support.checkpoints.small import raw
from support.oracles import v4 as oracle

from dsv4_shard.sharding.recipe import Destination, Fixed, OutputFile, Recipe, Slice, SliceMap, Step
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.tensors.decoding import TRANSFORMS
from dsv4_shard.tensors.dtype_casts import CONVERSIONS
from dsv4_shard.tensors.geometry import Rectangle, slice_rectangle, split, whole_rectangle
from dsv4_shard.tensors.header import DTYPE_BITS, Tensor, TensorInfo

FILES = 4
ALL = tuple(range(FILES))
TARGETS = dict(CONVERSIONS.keys())
TORCH = {"F8_E8M0": torch.float8_e8m0fnu, "BF16": torch.bfloat16, "I64": torch.int64,
         "F32": torch.float32, "I32": torch.int32}  # fmt: skip

Cut = tuple[Slice, tuple[int, ...]]
"""A cut, and the files that get it."""

Grid = npt.NDArray[np.void]
"""A tensor's matrix of elements, whatever they are."""


class MemorySink:
    """Output files in memory, with a count of how often each byte was put."""

    def __init__(self, sizes: list[int]) -> None:
        self.files = [bytearray(size) for size in sizes]
        self.times = [np.zeros(size, np.uint8) for size in sizes]
        self._lock = threading.Lock()

    def put(self, file: int, offset: int, data: memoryview) -> None:
        assert offset + len(data) <= len(self.files[file])
        with self._lock:
            self.files[file][offset : offset + len(data)] = data
            self.times[file][offset : offset + len(data)] += 1


@dataclass
class Work:
    """A source, the recipe over it, what each file must be in the end, and how many source bytes that needs."""

    source: LocalSource
    recipe: Recipe
    expected: list[bytes]
    digests: dict[tuple[int, str], str]
    nbytes: int
    inexact: dict[str, int] = field(default_factory=dict)

    def sink(self) -> MemorySink:
        return MemorySink([len(content) for content in self.expected])


@dataclass
class Pending:
    """A step that is not finished: its landings so far."""

    source: Tensor
    landings: list[Destination] = field(default_factory=list)
    conversion: str | None = None
    repeat: int = 1
    fill: bytes = b"\0"
    transform: str | None = None
    scale: Tensor | None = None

    def step(self) -> Step:
        return Step(
            self.source,
            tuple(self.landings),
            CONVERSIONS[self.source.dtype, self.conversion] if self.conversion else None,
            self.repeat,
            self.fill,
            TRANSFORMS[self.transform] if self.transform else None,
            self.scale,
        )


class Maker:
    """Collects tensors and where they go."""

    def __init__(self, folder: Path, random: np.random.Generator) -> None:
        self.folder = folder
        self.random = random
        self.content = [bytearray(random.bytes(13)), bytearray(random.bytes(5))]
        self.outputs: dict[str, dict[int, list[bytes]]] = {}
        self.steps: list[Pending] = []
        self.fixed: list[tuple[int, str, bytes]] = []
        self.nbytes = 0

    def number(self, start: int, stop: int) -> int:
        return int(self.random.integers(start, stop))

    def tensor(self, dtype: str, shape: tuple[int, ...], data: bytes | None = None) -> Tensor:
        """A tensor at the end of one of the source files."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * DTYPE_BITS[dtype] // 8
        if data is None and dtype == "I64":
            data = self.random.integers(-(2**31), 2**31, nbytes // 8).tobytes()
        if data is None and dtype == "F8_E8M0":
            data = self.random.integers(0, 255, nbytes, np.uint8).tobytes()  # the bits of NaN are test_conversions'
        data = self.random.bytes(nbytes) if data is None else data
        assert len(data) == nbytes
        number = self.number(0, 2)
        start = len(self.content[number])
        self.content[number] += data
        self.nbytes += nbytes
        return Tensor(f"t{len(self.steps)}.weight", dtype, shape, f"{number}.bin", start, start + nbytes)

    def bytes_of(self, tensor: Tensor) -> bytes:
        return bytes(self.content[int(tensor.file[0])][tensor.start : tensor.stop])

    def new_output(self) -> str:
        name = f"o{len(self.outputs)}.weight"
        self.outputs[name] = {}
        return name

    def land(self, pending: Pending, output: str, parts: list[tuple[Slice, tuple[int, ...], bytes]]) -> None:
        """Cuts of a step become the next piece of `output` in each of their files; `parts` has what they must be."""
        held = self.outputs.setdefault(output, {})
        places = {
            (sum(map(len, held.get(file, []))), len(held.get(file, []))) for _, files, _ in parts for file in files
        }
        assert len(places) == 1, "a landing is at the same place in each of its files"
        for _, files, data in parts:
            for file in files:
                held.setdefault(file, []).append(data)
        spread: SliceMap = tuple((cut, files) for cut, files, _ in parts)
        pending.landings.append(Destination(output, *places.pop(), spread))

    def move(
        self,
        tensor: Tensor,
        cuts: list[Cut],
        *outputs: str,
        conversion: str | None = None,
        repeat: int = 1,
        fill: bytes = b"",
    ) -> None:
        """Cuts of `tensor` go to files as pieces of each of `outputs`: by numpy's slicing, by torch's conversions."""
        fill = fill or bytes(DTYPE_BITS[tensor.dtype] // 8)
        grid = grid_of(self.bytes_of(tensor), tensor.shape, len(fill), repeat)
        pending = Pending(tensor, [], conversion, repeat, fill)
        parts = [(cut, files, piece_of(grid, cut, fill, tensor.dtype, conversion)) for cut, files in cuts]
        for output in outputs or (self.new_output(),):
            self.land(pending, output, parts)
        self.steps.append(pending)

    def fix(self, file: int, data: bytes) -> None:
        """A tensor that comes from no source."""
        output = self.new_output()
        self.outputs[output] = {file: [data]}
        self.fixed.append((file, output, data))

    def work(self) -> Work:
        for number, content in enumerate(self.content):
            (self.folder / f"{number}.bin").write_bytes(content)
        files = [self._file(number) for number in ALL]
        expected = [
            file.header + b"".join(b"".join(self.outputs[name][number]) for name in file.tensors)
            for number, file in enumerate(files)
        ]
        digests = {
            (number, name): digest_of(self.outputs[name][number])
            for number, file in enumerate(files)
            for name in file.tensors
        }
        steps = sorted((pending.step() for pending in self.steps), key=lambda s: (s.source.file, s.source.start))
        recipe = Recipe(tuple(files), tuple(steps), tuple(Fixed(*fixed) for fixed in self.fixed), {})
        return Work(LocalSource(self.folder, "source"), recipe, expected, digests, self.nbytes)

    def _file(self, number: int) -> OutputFile:
        tensors, pieces, stop = {}, {}, 0
        for name, held in self.outputs.items():
            if number in held:
                start, stop = stop, stop + sum(map(len, held[number]))
                tensors[name] = TensorInfo("U8", (stop - start,), start, stop)
                if len(held[number]) > 1:
                    pieces[name] = tuple((1, len(piece)) for piece in held[number])
        return OutputFile(f"{number}.out", (number,), b"h" * (3 * number), tensors, pieces)


def grid_of(data: bytes, shape: tuple[int, ...], width: int, repeat: int = 1) -> Grid:
    """A tensor as the matrix of its elements, each repeated along both axes."""
    grid = np.frombuffer(data, f"V{width}").reshape(shape[0] if shape else 1, -1 if 0 not in shape else 0)
    return grid.repeat(repeat, 0).repeat(repeat, 1)


def piece_of(grid: Grid, cut: Slice, fill: bytes, dtype: str, conversion: str | None) -> bytes:
    """What a cut must become: a rectangle in a frame of fill, then converted."""
    width, area = len(fill), cut.rectangle
    part = grid[area.row_start : area.row_stop, area.start // width : area.stop // width]
    whole = np.full((cut.rows, cut.row_nbytes // width), np.frombuffer(fill, f"V{width}")[0])
    whole[: part.shape[0], : part.shape[1]] = part
    if conversion is None:
        return whole.tobytes()
    values = torch.frombuffer(bytearray(whole.tobytes()), dtype=torch.uint8).view(TORCH[dtype])
    return raw(values.to(TORCH[conversion]))


def digest_of(pieces: list[bytes]) -> str:
    """One piece: its own; several: that of their digests in order."""
    if len(pieces) == 1:
        return xxhash.xxh3_128_hexdigest(pieces[0])
    return xxhash.xxh3_128_hexdigest(b"".join(xxhash.xxh3_128_digest(piece) for piece in pieces))


def random_cuts(maker: Maker, dtype: str, shape: tuple[int, ...]) -> list[Cut]:
    """A matrix split over the files by rows or columns, padded or not, or whole on all, or shared by pairs."""
    rows, cols = shape
    parts = int(maker.random.choice([2, FILES]))
    files = [tuple(file for file in ALL if file % parts == index) for index in range(parts)]
    item = DTYPE_BITS[dtype] // 8
    match maker.random.choice(["whole", "rows", "columns", "pad rows", "pad columns", "frame"]):
        case "rows" if rows % parts == 0:
            return [(Slice(slice_rectangle(dtype, shape, 0, *split(rows, parts, i))), files[i]) for i in range(parts)]
        case "columns" if cols % parts == 0:
            return [(Slice(slice_rectangle(dtype, shape, 1, *split(cols, parts, i))), files[i]) for i in range(parts)]
        case "pad rows":
            each = -(-rows // parts) + maker.number(0, 3)
            edges = [min(i * each, rows) for i in range(parts + 1)]
            return [
                (Slice(slice_rectangle(dtype, shape, 0, a, b), pad_rows=each - (b - a)), files[i])
                for i, (a, b) in enumerate(pairwise(edges))
            ]
        case "pad columns":
            each = -(-cols // parts) + maker.number(0, 3)
            edges = [min(i * each, cols) for i in range(parts + 1)]
            return [
                (Slice(slice_rectangle(dtype, shape, 1, a, b), pad_cols=(each - (b - a)) * item), files[i])
                for i, (a, b) in enumerate(pairwise(edges))
            ]
        case "frame":
            return [(Slice(whole_rectangle(dtype, shape), maker.number(0, 5) * item, maker.number(0, 5)), ALL)]
        case _:
            return [(Slice(whole_rectangle(dtype, shape)), ALL)]


def add_random_tensor(maker: Maker) -> None:
    """One output tensor or a few: of one source or several, moved, converted, padded, repeated, cast or decoded."""
    match maker.random.choice(["one", "one", "joined", "twice", "line", "scalar", "uneven", "cast", "decode", "fixed"]):
        case "one":
            add_matrix(maker, maker.new_output())
        case "joined":
            output = maker.new_output()
            for _ in range(maker.number(2, 6)):
                add_matrix(maker, output)
        case "twice":
            first, second = maker.new_output(), maker.new_output()
            for _ in range(maker.number(1, 3)):
                add_matrix(maker, first, second)
            add_matrix(maker, second)
        case "line":
            shape = (FILES * maker.number(1, 50),)
            dtype = str(maker.random.choice(["F32", "BF16"]))
            fill = maker.random.bytes(DTYPE_BITS[dtype] // 8)
            pad = maker.number(0, 9)
            areas = [slice_rectangle(dtype, shape, 0, *split(shape[0], FILES, i)) for i in range(FILES)]
            cuts: list[Cut] = [(Slice(area, pad_rows=pad), (i,)) for i, area in enumerate(areas)]
            maker.move(maker.tensor(dtype, shape), cuts, fill=fill)
        case "scalar":
            maker.move(maker.tensor("F32", ()), [(Slice(Rectangle(0, 1, 0, 4)), ALL)])
        case "uneven":
            add_uneven(maker)
        case "cast":
            add_cast(maker, 115)
        case "decode":
            add_decoded(maker)
        case "fixed":
            maker.fix(maker.number(0, FILES), maker.random.bytes(maker.number(1, 50)))


def add_matrix(maker: Maker, *outputs: str) -> None:
    """A matrix that becomes the next piece of each of `outputs` in every file."""
    random = maker.random
    dtype = str(random.choice(["I8", "BF16", "F32", "F8_E8M0", "I64"]))
    conversion = TARGETS.get(dtype) if random.integers(2) else None
    repeat = int(random.choice([1, 1, 2, 4])) if dtype in ("F8_E8M0", "F32") else 1
    stored = (FILES * maker.number(1, 12), FILES * maker.number(1, 12))
    if random.integers(2):
        stored = (maker.number(1, 40), maker.number(1, 40))
    width = DTYPE_BITS[dtype] // 8
    fill = (
        random.integers(0, 100, 1, np.int64).tobytes()
        if dtype == "I64"
        else random.integers(0, 255, width, np.uint8).tobytes()
    )
    tensor = maker.tensor(dtype, stored)
    cuts = random_cuts(maker, dtype, (stored[0] * repeat, stored[1] * repeat))
    maker.move(tensor, cuts, *outputs, conversion=conversion, repeat=repeat, fill=fill)


def add_uneven(maker: Maker) -> None:
    """Rectangles of all sizes: each is a landing of its own."""
    rows, cols = maker.number(2, 40), maker.number(4, 90)
    tensor = maker.tensor("U8", (rows, cols))
    grid = grid_of(maker.bytes_of(tensor), (rows, cols), 1)
    edges = [0, *sorted(maker.random.permutation(np.arange(1, cols))[: FILES - 1].tolist()), cols]
    middle = maker.number(1, rows)
    cuts = [(i, Slice(Rectangle(0, middle, edges[i], edges[i + 1]))) for i in range(FILES)]
    pending = Pending(tensor)
    for file, cut in [*cuts, (0, Slice(Rectangle(middle, rows, 0, cols)))]:
        maker.land(pending, maker.new_output(), [(cut, (file,), piece_of(grid, cut, b"\0", "U8", None))])
    maker.steps.append(pending)


def add_cast(maker: Maker, lowest: int) -> str:
    """An FP4 weight with its scale, cast to FP8 for two files; its name."""
    random = maker.random
    rows, cols = 128 * maker.number(1, 4), 128 * maker.number(1, 3)
    weight = maker.tensor("I8", (rows, cols // 2))
    codes = random.integers(lowest, 124, rows * cols // 32, dtype=np.uint8)
    scale = maker.tensor("F8_E8M0", (rows, cols // 32), codes.tobytes())._replace(name="scale")
    whole = torch.frombuffer(bytearray(maker.bytes_of(weight)), dtype=torch.int8).view(weight.shape)
    cast, new = oracle.fp4_to_fp8(whole, torch.from_numpy(codes).view(torch.float8_e8m0fnu).view(scale.shape))
    files = tuple(sorted(int(number) for number in random.permutation(FILES)[:2]))
    pending = Pending(weight, transform="fp4_to_fp8", scale=scale)
    output = maker.new_output()
    maker.land(pending, output, [(Slice(whole_rectangle("I8", weight.shape)), files, raw(cast))])
    maker.steps.append(pending)
    rescaled = Pending(scale, transform="fp4_to_fp8")
    maker.land(rescaled, output.removesuffix("weight") + "scale",
               [(Slice(whole_rectangle("F8_E8M0", scale.shape)), files, raw(new))])  # fmt: skip
    maker.steps.append(rescaled)
    maker.nbytes += scale.nbytes  # read a second time
    return weight.name


def add_decoded(maker: Maker) -> None:
    """An FP8 weight with its scale, decoded to BF16, its rows split over the files."""
    random = maker.random
    rows, cols = 128 * FILES * maker.number(1, 3), maker.number(1, 300)
    codes = random.integers(0, 0x7F, rows * cols, dtype=np.uint8)
    weight = maker.tensor("F8_E4M3", (rows, cols), codes.tobytes())
    scales = random.integers(110, 130, (rows // 128, -(-cols // 128)), dtype=np.uint8)
    scale = maker.tensor("F8_E8M0", scales.shape, scales.tobytes())._replace(name="scale")
    decoded = oracle.dequantize_fp8(
        torch.from_numpy(codes).view(torch.float8_e4m3fn).view(rows, cols),
        torch.from_numpy(scales).view(torch.float8_e8m0fnu),
    )
    parts = int(random.choice([2, FILES]))
    pending = Pending(weight, transform="fp8_to_bf16", scale=scale)
    cuts = []
    for index in range(parts):
        area = slice_rectangle("F8_E4M3", (rows, cols), 0, *split(rows, parts, index))
        files = tuple(file for file in ALL if file % parts == index)
        cuts.append((Slice(area), files, raw(decoded[area.row_start : area.row_stop])))
    maker.land(pending, maker.new_output(), cuts)
    maker.steps.append(pending)


def random_work(folder: Path, seed: int, tensors: int) -> Work:
    folder.mkdir()
    maker = Maker(folder, np.random.default_rng(seed))
    for _ in range(tensors):
        add_random_tensor(maker)
    return maker.work()
