"""What only a GPU can tell: how fast a rank's files reach it, and whether split experts add up in its FP8 units.

    python benchmarks/on_gpu.py --scratch /on/a/local/disk --json on_gpu.json

It needs a CUDA GPU that multiplies FP8 (compute capability 8.9 or later) with 16 GiB free, PyTorch with CUDA, 16 GiB of
memory (with less, `warm` is not), 20 GiB of disk, and three minutes or so. It exits with 2 where GPU, PyTorch or disk
will not do, and with 1 where bytes differ. As root it empties the page cache between loads; otherwise it asks the
kernel to drop the files that it reads. Nothing else in this project needs a GPU.

Loading: a checkpoint with V4-Pro's structure and FP8 experts is written to disk, and resharded for SGLang and for
DeepSeek's reference at TP 8. Then some ranks are brought to the GPU one at a time, four ways: from the rank's own files
straight to the GPU, from them by way of the parameters as `--load-format sharded_state` does it, and from the whole
checkpoint narrowed, as engines load by default (`safe_open` and `get_tensor` for every tensor of every file, which maps
them) and with files read instead of mapped (pread). All four must put the same bytes there. `cold` and `warm` say
whether the page cache held the files; `cold, 8 ranks` is all ranks one after another, of which only the first finds it
empty: ranks of one machine share what they read. How much of a mapped file is read for nothing depends on the disk's
read-ahead: safetensors touches each tensor that it hands out, and asks for sequential reads.

Numerics: one MoE layer on random tokens, in products of FP8 codes whose blocks of 128 are scaled and added up in
float32, with activations quantized in groups of 128, as engines do it. Parts from the rank files against the whole.
"""

import argparse
import gc
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
import torch.nn.functional as functional
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from dsv4_shard.checkpoint.inventory import take_inventory
from dsv4_shard.checkpoint.reader import Checkpoint, read_checkpoint
from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, write_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.models.names import scale_name
from dsv4_shard.opening import open_source
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.recipe import Recipe
from dsv4_shard.sharding.run import reshard
from dsv4_shard.tensors.header import DTYPE_BITS

TP = 8
RANKS = (0, 2, 5, 7)
"""The ranks that are loaded."""

NEEDS_CAPABILITY = (8, 9)
NEEDS_DISK, NEEDS_GPU_MEMORY = 20 << 30, 16 << 30
NEEDS = "a CUDA GPU with FP8 products (sm_89 or later) and 16 GiB free, PyTorch with CUDA, 16 GiB memory, 20 GiB disk"
CONFIG = DEMO_CONFIG | {
    "expert_dtype": "fp8",
    "hidden_size": 2048,
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 0,
    "compress_ratios": [128, 128, 4, 128],
}
LAYOUTS = {
    "SGLang TP8": Request(tp=TP, engine="sglang", gpu="h100"),
    "reference TP8": Request(tp=TP, engine="reference", gpu="h100"),
}
"""The first cuts every expert over the ranks, shared and routed; the second spreads whole ones."""

BLOCK = 128
TOKENS = 64
SEED = 20_480
E4M3_MAX = 448.0
DTYPES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu, "BF16": torch.bfloat16,
          "F32": torch.float32, "I64": torch.int64, "I32": torch.int32}  # fmt: skip

Tensors = dict[str, torch.Tensor]


# --- what it needs -------------------------------------------------------------------------------------------------


def refuse(reason: str) -> None:
    """Say what is missing and what is needed, and exit with 2."""
    print(f"on_gpu: {reason}\nIt needs {NEEDS}.", file=sys.stderr)
    sys.exit(2)


def check_needs(scratch: Path) -> None:
    """Refuse a machine that cannot run this, before anything is written."""
    if not torch.cuda.is_available():
        refuse("no CUDA GPU here" if torch.version.cuda else "this PyTorch is built without CUDA")
    capability = torch.cuda.get_device_capability()
    if capability < NEEDS_CAPABILITY:
        refuse(f"{torch.cuda.get_device_name()} has compute capability {'{}.{}'.format(*capability)}")
    rooms = {
        "free on the GPU": (torch.cuda.mem_get_info()[0], NEEDS_GPU_MEMORY),
        f"free under {scratch}": (shutil.disk_usage(scratch).free, NEEDS_DISK),
    }
    for what, (there, needed) in rooms.items():
        if there < needed:
            refuse(f"{there / 2**30:.1f} GiB {what}")


# --- where a rank's tensors come from ------------------------------------------------------------------------------


class Piece(NamedTuple):
    """Part of a source tensor, in elements of its matrix, and where it stands in a rank's parameter."""

    parameter: str
    at: int
    rows: slice
    cols: slice

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.cols.stop - self.cols.start

    def within(self, parameters: Tensors) -> torch.Tensor:
        """Where it stands, as a matrix."""
        rows, cols = self.shape
        return parameters[self.parameter].view(-1)[self.at : self.at + rows * cols].view(rows, cols)

    def narrowed(self, source: torch.Tensor) -> torch.Tensor:
        """What goes there."""
        return source.reshape(source.shape[0] if source.dim() else 1, -1)[self.rows, self.cols]


@dataclass(frozen=True, slots=True)
class RankFiles:
    """What a rank holds: its files, the parameters in them, and the pieces of source tensors that make these."""

    layout: str
    rank: int
    source: Path
    whole: tuple[Path, ...]
    own: tuple[Path, ...]
    shapes: dict[str, tuple[str, tuple[int, ...]]]
    pieces: dict[str, list[Piece]]
    fixed: dict[str, bytes]

    def empty(self) -> Tensors:
        """The parameters, as a model allocates them."""
        tensors = {
            name: torch.empty(shape, dtype=DTYPES[dtype], device="cuda") for name, (dtype, shape) in self.shapes.items()
        }
        for name, data in self.fixed.items():
            tensors[name].copy_(torch.frombuffer(bytearray(data), dtype=tensors[name].dtype).view(tensors[name].shape))
        return tensors


def rank_files(layout: str, checkpoint: Checkpoint, recipe: Recipe, out: Path, rank: int) -> RankFiles:
    """Read from the recipe what `rank` holds."""
    numbers = [number for number, file in enumerate(recipe.files) if rank in file.ranks]
    pieces: dict[str, list[Piece]] = {}
    shapes = {name: (info.dtype, info.shape) for n in numbers for name, info in recipe.files[n].tensors.items()}
    for step in recipe.steps:
        if step.transform or step.repeat != 1:
            raise NotImplementedError(f"{step.source.name} is not only narrowed")
        size = DTYPE_BITS[step.source.dtype] // 8
        for landing in step.landings:
            for cut, files in landing.spread:
                if set(files).intersection(numbers):
                    area, stored = cut.rectangle, DTYPE_BITS[shapes[landing.tensor][0]] // 8
                    rows, cols = slice(area.row_start, area.row_stop), slice(area.start // size, area.stop // size)
                    piece = Piece(landing.tensor, landing.at // stored, rows, cols)
                    pieces.setdefault(step.source.name, []).append(piece)
    root = root_of(checkpoint)
    fixed = {one.tensor: one.data for one in recipe.fixed if one.file in numbers}
    own = tuple(out / recipe.files[number].name for number in numbers)
    return RankFiles(
        layout, rank, root, tuple(root / file.name for file in checkpoint.files), own, shapes, pieces, fixed
    )


def root_of(checkpoint: Checkpoint) -> Path:
    """The folder that a checkpoint was opened from."""
    root = checkpoint.source.root
    assert root is not None
    return root


def make_ranks(checkpoint: Checkpoint, layout: str, request: Request, out: Path) -> list[RankFiles]:
    """Plan, reshard, and say what each rank holds."""
    inventory = take_inventory(checkpoint)
    job = prepare(checkpoint, inventory, make_plan(checkpoint, inventory, request))
    reshard(job, checkpoint, out)
    return [rank_files(layout, checkpoint, job.recipe, out, rank) for rank in job.ranks]


# --- loading -------------------------------------------------------------------------------------------------------


def own_to_gpu(files: RankFiles) -> Tensors:
    """The rank's own files, straight to the GPU."""
    tensors: Tensors = {}
    for path in files.own:
        with safe_open(path, "pt", device="cuda") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def own_into_parameters(files: RankFiles) -> Tensors:
    """The rank's own files, tensor by tensor into parameters, as `sharded_state` does it."""
    parameters = files.empty()
    for path in files.own:
        with safe_open(path, "pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118
                parameters[name].copy_(file.get_tensor(name))
    return parameters


def whole_mapped(files: RankFiles) -> Tensors:
    """Every tensor of every file of the checkpoint, mapped; what the rank needs of it is copied into parameters."""
    return whole_narrowed(files, "mmap")


def whole_read(files: RankFiles) -> Tensors:
    """The same with every tensor read into memory first, as where files are not mapped, or fetched ahead."""
    return whole_narrowed(files, "pread")


def whole_narrowed(files: RankFiles, backend: str) -> Tensors:
    """As a weight loader: `get_tensor` of everything, narrow, copy."""
    parameters = files.empty()
    for path in files.whole:
        with safe_open(path, "pt", device="cpu", backend=backend) as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                for piece in files.pieces.get(name, ()):
                    piece.within(parameters).copy_(piece.narrowed(tensor))
    return parameters


WAYS: dict[str, Callable[[RankFiles], Tensors]] = {
    "own files, to the GPU": own_to_gpu,
    "own files, into parameters": own_into_parameters,
    "whole checkpoint, mapped": whole_mapped,
    "whole checkpoint, read": whole_read,
}
BASE = next(iter(WAYS))
COLD, WARM, NODE = "cold", "warm", f"cold, {TP} ranks"
ALL_RANKS = -1


@dataclass(frozen=True, slots=True)
class Load:
    """One rank brought to the GPU, or all of them one after another.

    `bytes_read` is what came from the disk, as the kernel counts it.
    """

    layout: str
    rank: int
    way: str
    cache: str
    seconds: float
    bytes_read: int
    bytes_on_gpu: int
    peak_gpu_memory: int


def drop_page_cache(folders: Iterable[Path]) -> None:
    """Make the next read come from the disk: all of the page cache as root, else these folders' files."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1\n")
    except OSError:
        for path in (path for folder in folders for path in folder.rglob("*.safetensors")):
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def bytes_read() -> int:
    """Bytes that this process has had fetched from storage, page faults included."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def load_once(files: RankFiles, way: str, cache: str) -> tuple[Load, Tensors]:
    """Bring a rank to the GPU, timed until the last byte is there."""
    gc.collect()
    torch.cuda.empty_cache()
    if cache == COLD:
        drop_page_cache((files.source, files.own[0].parent))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held, before, started = torch.cuda.memory_allocated(), bytes_read(), time.monotonic()
    tensors = WAYS[way](files)
    torch.cuda.synchronize()
    seconds, fetched = time.monotonic() - started, bytes_read() - before
    peak = torch.cuda.max_memory_allocated() - held
    on_gpu = sum(tensor.nbytes for tensor in tensors.values())
    return Load(files.layout, files.rank, way, cache, seconds, fetched, on_gpu, peak), tensors


def same_bytes(some: Tensors, others: Tensors) -> bool:
    """Whether both hold the same names, dtypes, shapes and bytes."""
    return some.keys() == others.keys() and all(
        tensor.dtype == others[name].dtype
        and tensor.shape == others[name].shape
        and torch.equal(tensor.reshape(-1).view(torch.uint8), others[name].reshape(-1).view(torch.uint8))
        for name, tensor in some.items()
    )


def measure_rank(files: RankFiles, turn: int) -> list[Load]:
    """Every way, from the disk and then from memory, in an order that `turn` rotates. Exits with 1 if bytes differ."""
    order = list(WAYS)[turn % len(WAYS) :] + list(WAYS)[: turn % len(WAYS)]
    loads = []
    wanted = own_to_gpu(files)
    for way in order:
        for cache in (COLD, WARM):
            one, tensors = load_once(files, way, cache)
            if not same_bytes(tensors, wanted):
                sys.exit(f"{files.layout} rank {files.rank}: {way} puts other bytes on the GPU")
            del tensors
            loads.append(one)
    return loads


def measure_node(ranks: list[RankFiles]) -> list[Load]:
    """All ranks one after another from an empty page cache, which they share as on one machine."""
    loads = []
    for way in WAYS:
        some = [load_once(files, way, WARM if turn else COLD)[0] for turn, files in enumerate(ranks)]
        seconds = sum(one.seconds for one in some)
        fetched, on_gpu = (sum(getattr(one, name) for one in some) for name in ("bytes_read", "bytes_on_gpu"))
        peak = max(one.peak_gpu_memory for one in some)
        loads.append(Load(ranks[0].layout, ALL_RANKS, way, NODE, seconds, fetched, on_gpu, peak))
    return loads


# --- numerics ------------------------------------------------------------------------------------------------------


class Matrix(NamedTuple):
    """FP8 codes and the float32 scales of their 128×128 blocks."""

    codes: torch.Tensor
    scales: torch.Tensor

    def exact(self, dtype: torch.dtype) -> torch.Tensor:
        """The values."""
        scales = self.scales.to(dtype).repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        return self.codes.to(dtype) * scales


Expert = tuple[Matrix, Matrix, Matrix]
"""Gate, up and down projection of an expert, or of a rank's part of it."""

Product = Callable[[torch.Tensor, Matrix], torch.Tensor]
"""Activations × a weight, transposed."""


def expert_of(read: Callable[[str], torch.Tensor | None], prefix: str) -> Expert | None:
    """The expert under `prefix`, or None where `read` has no part of it."""
    matrices = []
    for name in (f"{prefix}w1.weight", f"{prefix}w3.weight", f"{prefix}w2.weight"):
        codes, scales = read(name), read(scale_name(name))
        if codes is None or scales is None:
            return None
        matrices.append(Matrix(codes, scales.float()))
    gate, up, down = matrices
    return gate, up, down


def source_reader(checkpoint: Checkpoint) -> Callable[[str], torch.Tensor]:
    """Whole tensors of the checkpoint, on the GPU."""

    def read(name: str) -> torch.Tensor:
        with safe_open(root_of(checkpoint) / checkpoint.tensors[name].file, "pt", device="cuda") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    return read


def rank_reader(files: RankFiles) -> Callable[[str], torch.Tensor | None]:
    """What a rank's own files hold of a source tensor, on the GPU."""
    parameters = own_to_gpu(files)

    def read(name: str) -> torch.Tensor | None:
        pieces = files.pieces.get(name)
        return pieces[0].within(parameters) if pieces else None

    return read


def quantized(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """E4M3 codes and float32 scales, one for each row and 128 columns."""
    groups = values.view(len(values), -1, BLOCK)
    scales = groups.abs().amax(-1).clamp(min=1e-4) / E4M3_MAX
    return (groups / scales[..., None]).to(torch.float8_e4m3fn).flatten(1), scales


def fp8_product(values: torch.Tensor, weight: Matrix) -> torch.Tensor:
    """On the FP8 units: 128 columns at a time, each product scaled by its blocks and added in float32."""
    codes, scales = quantized(values)
    by_row = weight.scales.repeat_interleave(BLOCK, 0)
    one = torch.ones((), device="cuda")
    total = torch.zeros(len(values), len(weight.codes), device="cuda")
    for block, cols in enumerate(slice(at, at + BLOCK) for at in range(0, values.shape[1], BLOCK)):
        left, right = codes[:, cols].contiguous(), weight.codes[:, cols].contiguous()
        part = torch._scaled_mm(left, right.t(), scale_a=one, scale_b=one, out_dtype=torch.float32)
        total += part * scales[:, block, None] * by_row[:, block]
    return total


def native_fp8_product(values: torch.Tensor, weight: Matrix) -> torch.Tensor:
    """One block-scaled product of cuBLASLt (Hopper, CUDA 12.9 or later), which gives BF16.

    It wants the activations' scales column by column, and the weight's with their columns padded to a multiple of 4.
    """
    codes, scales = quantized(values)
    by_block = functional.pad(weight.scales, (0, -weight.scales.shape[1] % 4))
    product: torch.Tensor = functional.scaled_mm(
        codes,
        weight.codes.contiguous().t(),
        scales.t().contiguous().t(),
        functional.ScalingType.BlockWise1x128,
        by_block.t(),
        functional.ScalingType.BlockWise128x128,
        output_dtype=torch.bfloat16,
    )
    return product.float()


def exact_product(dtype: torch.dtype) -> Product:
    """Of dequantized weights and unquantized activations."""
    return lambda values, weight: (values.to(dtype) @ weight.exact(dtype).T).to(dtype)


def run_expert(expert: Expert, tokens: torch.Tensor, product: Product, limit: float) -> torch.Tensor:
    """SwiGLU, as `verify --numerics` computes it."""
    gate, up, down = expert
    gated = functional.silu(product(tokens, gate).clamp(max=limit))
    return product(gated * product(tokens, up).clamp(-limit, limit), down)


class Sums(NamedTuple):
    """What one layer's experts come to: the shared one, and the routed ones weighted."""

    shared: torch.Tensor
    routed: torch.Tensor


@dataclass(frozen=True, slots=True)
class Layer:
    """What is computed: tokens, and routed experts with their weights."""

    prefix: str
    tokens: torch.Tensor
    weights: dict[int, float]
    limit: float

    def sums(self, read: Callable[[str], torch.Tensor | None], product: Product) -> Sums:
        """What the experts, or the parts of them that `read` has, come to."""
        shared = expert_of(read, f"{self.prefix}shared_experts.")
        assert shared is not None, "every rank has a part of the shared expert"
        total = torch.zeros_like(self.tokens, dtype=torch.float64)
        for number, weight in self.weights.items():
            expert = expert_of(read, f"{self.prefix}experts.{number}.")
            if expert is not None:
                total += weight * run_expert(expert, self.tokens, product, self.limit).double()
        return Sums(run_expert(shared, self.tokens, product, self.limit).double(), total)


def make_layer(checkpoint: Checkpoint, read: Callable[[str], torch.Tensor]) -> Layer:
    """The last layer, 16 of its experts, and tokens that make gates of the size of a trained model's."""
    config = checkpoint.config
    prefix = f"layers.{config.num_hidden_layers - 1}.ffn."
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randn(TOKENS, config.hidden_size, generator=generator).cuda()
    shared = expert_of(read, f"{prefix}shared_experts.")
    assert shared is not None, "the checkpoint has one"
    tokens /= exact_product(torch.float32)(tokens, shared[0]).std()
    experts = range(0, config.n_routed_experts, max(config.n_routed_experts // 16, 1))
    weights = dict(zip(experts, torch.rand(len(experts), generator=generator).tolist(), strict=True))
    return Layer(prefix, tokens, weights, config.swiglu_limit or float("inf"))


def in_bfloat16(values: torch.Tensor) -> torch.Tensor:
    """Rounded as an engine's output of a rank is before the all-reduce."""
    return values.bfloat16().double()


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative error in the 2-norm."""
    return float((found - wanted).norm() / wanted.norm())


def measure_numerics(checkpoint: Checkpoint, ranks: dict[str, list[RankFiles]]) -> dict[str, dict[str, float]]:
    """Relative errors, by what is compared and by the products that are used."""
    read = source_reader(checkpoint)
    layer = make_layer(checkpoint, read)
    readers = {layout: [rank_reader(files) for files in some] for layout, some in ranks.items()}
    truth = layer.sums(read, exact_product(torch.float64))
    products = {"dequantized float32": exact_product(torch.float32), "FP8 by blocks": fp8_product}
    if has_native_product(layer):
        products["FP8 of cuBLASLt, BF16 out"] = native_fp8_product
    errors = {}
    for name, product in products.items():
        whole = layer.sums(read, product)
        split, spread = ([layer.sums(one, product) for one in readers[layout]] for layout in LAYOUTS)
        errors[name] = compare(truth, whole, split, spread)
    return errors


def has_native_product(layer: Layer) -> bool:
    """Whether this GPU and PyTorch have a product of FP8 matrices scaled by blocks."""
    weight = Matrix(torch.ones(256, 256, device="cuda").to(torch.float8_e4m3fn), torch.ones(2, 2, device="cuda"))
    try:
        native_fp8_product(layer.tokens[:, :256], weight)
    except (AttributeError, RuntimeError, ValueError) as error:
        print(f"no block-scaled product of its own: {str(error).splitlines()[0]}", file=sys.stderr)
        return False
    return True


def compare(truth: Sums, whole: Sums, split: list[Sums], spread: list[Sums]) -> dict[str, float]:
    """`split` are the ranks that hold parts of every expert, `spread` those that hold whole ones and share the shared.

    A whole shared expert counts once; `on every rank` is the mistake of adding it into every rank's sum.
    """
    parts, cut, experts = ([rank.shared for rank in split], [rank.routed for rank in split],
                           [rank.routed for rank in spread])  # fmt: skip
    layer, once = whole.routed + whole.shared, spread[0].shared
    return {
        "shared: whole / float64": relative(whole.shared, truth.shared),
        "shared: a rank's whole copy / whole": relative(once, whole.shared),
        f"shared: sum of {TP} parts / float64": relative(added(parts), truth.shared),
        f"shared: sum of {TP} parts / whole": relative(added(parts), whole.shared),
        f"shared: sum of {TP} parts, each in BF16 / whole": relative(added(parts, in_bfloat16), whole.shared),
        "routed: whole / float64": relative(whole.routed, truth.routed),
        f"routed: MoE TP {TP} sum / whole": relative(added(cut), whole.routed),
        f"routed: MoE TP {TP} sum, each in BF16 / whole": relative(added(cut, in_bfloat16), whole.routed),
        f"routed: EP {TP} sum / whole": relative(added(experts), whole.routed),
        f"routed: EP {TP} sum, each in BF16 / whole": relative(added(experts, in_bfloat16), whole.routed),
        "layer: whole shared expert counted once": relative(added(experts) + once, layer),
        f"layer: whole shared expert counted {TP} times": relative(added(experts) + TP * once, layer),
        f"layer: {TP} parts of the shared expert": relative(added(cut) + added(parts), layer),
    }


def added(values: list[torch.Tensor], rounded: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> torch.Tensor:
    """The all-reduce, in float64."""
    return torch.stack([rounded(one) for one in values]).sum(0)


# --- reports -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians over the ranks of one layout, way and state of the page cache; ratios to `BASE` rank by rank."""

    layout: str
    way: str
    cache: str
    loads: int
    seconds: float
    seconds_ratio: float
    bytes_read: int
    bytes_on_gpu: int
    peak_gpu_memory: int


def summarize(loads: list[Load]) -> list[Summary]:
    """One row for each layout, state and way."""
    groups: dict[tuple[str, str, str], list[Load]] = {}
    for one in loads:
        groups.setdefault((one.layout, one.cache, one.way), []).append(one)
    rows = []
    for layout, cache, way in itertools.product(LAYOUTS, (COLD, WARM, NODE), WAYS):
        some = groups[layout, cache, way]
        base = {one.rank: one.seconds for one in groups[layout, cache, BASE]}
        seconds = statistics.median(one.seconds for one in some)
        ratio = statistics.median(one.seconds / base[one.rank] for one in some)
        sizes = [
            int(statistics.median(getattr(one, field) for one in some))
            for field in ("bytes_read", "bytes_on_gpu", "peak_gpu_memory")
        ]
        rows.append(Summary(layout, way, cache, len(some), seconds, ratio, *sizes))
    return rows


def print_tables(summary: list[Summary], errors: dict[str, dict[str, float]]) -> None:
    """Both measurements, for a person."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table("layout", "a rank from", "page cache", "seconds", "ratio", "from disk", "on the GPU", "GPU peak")
    for row in summary:
        sizes = [f"{n / 1e9:.2f} GB" for n in (row.bytes_read, row.bytes_on_gpu, row.peak_gpu_memory)]
        table.add_row(row.layout, row.way, row.cache, f"{row.seconds:.2f}", f"{row.seconds_ratio:.2f}", *sizes)
    console.print(table)
    table = Table("relative error", *errors)
    for what in next(iter(errors.values())):
        table.add_row(what, *(f"{column[what]:.1e}" for column in errors.values()))
    console.print(table)


def machine(scratch: Path) -> dict[str, Any]:
    """What ran it. How much the kernel reads ahead decides how much of a mapped file comes from the disk."""
    device = os.stat(scratch).st_dev
    ahead = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "safetensors": safetensors.__version__,
        "read_ahead_kb": int(ahead.read_text()) if ahead.exists() else None,
    }


def main() -> None:
    """Write, reshard, load, multiply, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, dest="json_file", help="keep every number here")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where to write")
    parser.add_argument("--experts", type=int, default=64, help="routed experts a layer: 64 make 5 GB; default: 64")
    arguments = parser.parse_args()
    check_needs(arguments.scratch)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        config = CONFIG | {"n_routed_experts": arguments.experts}
        source = write_checkpoint(Path(folder) / "checkpoint", config, mtp_blocks=0, experts="FP8", o_a="BF16")
        checkpoint = read_checkpoint(open_source(str(source)))
        ranks = {
            layout: make_ranks(checkpoint, layout, request, Path(folder) / request.engine)
            for layout, request in LAYOUTS.items()
        }
        turns = [(files, turn) for some in ranks.values() for turn, files in enumerate(some[r] for r in RANKS)]
        loads = [one for files, turn in turns for one in measure_rank(files, turn)]
        loads += [one for some in ranks.values() for one in measure_node(some)]
        errors = measure_numerics(checkpoint, ranks)
    nbytes = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    about = machine(arguments.scratch)
    print(f"{about['device']}, PyTorch {about['torch']}, safetensors {about['safetensors']}; checkpoint of "
          f"{nbytes / 1e9:.2f} GB on a disk that reads {about['read_ahead_kb']} KiB ahead")  # fmt: skip
    summary = summarize(loads)
    print_tables(summary, errors)
    if arguments.json_file:
        document = about | {"checkpoint_bytes": nbytes, "relative_errors": errors}
        document |= {"summary": [asdict(row) for row in summary], "loads": [asdict(load) for load in loads]}
        arguments.json_file.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
