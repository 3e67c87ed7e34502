"""vLLM 0.33.0: rules, placements, and the dtypes in which a rank holds weights.

Read from its sources and held against the parameters that its own classes declared when run (tests/data/vllm).
Attention is cut over TP; data parallelism makes more groups of TP ranks, and the routed experts go over all of them:
cut (EP off) or spread (EP on). The shared expert is cut into `ceil(blocks / TP)` blocks a rank, padded with zeros,
and kept whole only under sequence parallelism (EP with data parallelism or with a mega-MoE backend).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

from dsv4_shard.blocks import FP4_GROUP, Block
from dsv4_shard.engines.base import (
    Context,
    Deployment,
    Divides,
    Engine,
    Expert,
    Held,
    Launch,
    Pad,
    Placement,
    Replicate,
    Request,
    Requires,
    Rule,
    Split,
    held_by_rank,
)
from dsv4_shard.engines.common import (
    COLUMN_QUOTE,
    NO_CAST_RULE,
    NODES_RULE,
    attention_rules,
    pick_gpu,
    pick_nodes,
    shares_blocks_evenly,
)
from dsv4_shard.inventory import Group, Inventory
from dsv4_shard.roles import Module, Part, Role

VERSION = "0.33.0"
_TILE = 128
"""Elements to which FP4 backends round a rank's intermediate size up, and rows of an FP8 block."""
_SMALLEST_FP8_BLOCK = 32


@dataclass(frozen=True, slots=True)
class Backend:
    """An MoE backend: the format and architectures it takes, and what it does to a rank's intermediate size.

    `fit` is `tile` (rounded up to 128), `exact`, `refine` (finer FP8 blocks) or `pad` (whole FP8 blocks).
    """

    experts: str
    fit: str
    blackwell_only: bool = False
    sequence_parallel: bool = False


BACKENDS: dict[str, Backend] = {
    "marlin": Backend("FP4", "tile"),
    "flashinfer_cutlass": Backend("FP4", "tile"),
    "flashinfer_trtllm": Backend("FP4", "tile", blackwell_only=True),
    "deep_gemm": Backend("FP4", "tile", blackwell_only=True),
    "triton_unfused": Backend("FP4", "exact"),
    "deep_gemm_mega_moe": Backend("FP4", "exact", blackwell_only=True, sequence_parallel=True),
}
BACKENDS_FP8: dict[str, Backend] = {
    "triton": Backend("FP8", "refine"),
    "flashinfer_cutlass": Backend("FP8", "pad"),
    "flashinfer_trtllm": Backend("FP8", "pad", blackwell_only=True),
    "deep_gemm": Backend("FP8", "pad"),
    "marlin": Backend("FP8", "pad"),
}
"""By `--moe-backend`; one name may do different things to FP4 and FP8 experts."""

_ROUTED = (Role.ROUTED_GATE, Role.ROUTED_UP, Role.ROUTED_DOWN)
_SHARED_AXIS = {Role.SHARED_GATE: 0, Role.SHARED_UP: 0, Role.SHARED_DOWN: 1}


def backend_of(context: Context) -> Backend | None:
    """The row for a deployment's runner, or None where it does not take the experts' format."""
    return _table(context.at.experts).get(context.at.runner)


def _table(experts: str) -> dict[str, Backend]:
    return {"FP4": BACKENDS, "FP8": BACKENDS_FP8}.get(experts, {})


def _default_backend(experts: str, sm: int, ep: int) -> str:
    """What vLLM's `auto` resolves to."""
    if experts == "FP4":
        return "marlin" if sm == 90 else "flashinfer_trtllm"
    return "triton" if ep == 1 or sm != 90 else "flashinfer_cutlass"


def candidates(inventory: Inventory, request: Request) -> Iterator[Deployment]:
    """The one way that vLLM has for a request: what it pads and what it keeps whole is not the user's choice."""
    gpu = pick_gpu(request)
    world = request.tp * request.dp
    ep = request.ep or 1
    experts = (request.expert_dtype or inventory.routed.name).upper()
    runner = request.runner or _default_backend(experts, gpu.sm, ep)
    backend = _table(experts).get(runner)
    whole = ep > 1 and (request.dp > 1 or (backend is not None and backend.sequence_parallel))
    own_way = "whole" if whole else "split" if shares_blocks_evenly(inventory, request.tp) else "pad"
    at = Deployment(
        engine="vllm",
        tp=request.tp,
        ep=ep,
        dp=request.dp,
        world=world,
        attention_tp=request.tp,
        moe_tp=world if ep == 1 else 1,
        runner=runner,
        a2a=request.a2a,
        shared=own_way if request.shared == "auto" else request.shared,
        shared_parts=1 if whole else request.tp,
        experts=experts,
        gpu=gpu,
        gpu_named=request.gpu is not None,
        nodes=pick_nodes(request, world, gpu),
    )
    yield at


def _sequence_parallel(context: Context) -> bool:
    return context.at.shared_parts == 1 and context.at.world > 1


def _fits(context: Context, fit: str) -> bool:
    backend = backend_of(context)
    return backend is not None and backend.fit == fit


RULES: tuple[Rule, ...] = (
    NODES_RULE,
    NO_CAST_RULE,
    Requires(
        "ep", Module.ROUTED, lambda c: c.at.ep in (1, c.at.world),
        "vLLM's expert parallelism is off or spans all {at.world} GPUs (TP × DP), so EP {at.ep} cannot be had",
        consequence="vLLM has no such option", remedies=("--ep 1 or --ep = TP × DP",), fatal=True,
    ),
    Requires(
        "a2a", Module.ROUTED, lambda c: c.at.a2a is None, "--a2a is SGLang's; vLLM picks its own (--runner)",
        consequence="vLLM has no such option", remedies=("leave --a2a out",), fatal=True,
    ),
    Requires(
        "runner", Module.ROUTED, lambda c: backend_of(c) is not None,
        "vLLM has no MoE backend {at.runner!r} for {at.experts} experts", remedies=("leave --runner out",), fatal=True,
    ),
    Requires(
        "runner-gpu", Module.ROUTED,
        lambda c: not getattr(backend_of(c), "blackwell_only", False) or c.at.gpu.sm >= 100,
        "MoE backend {at.runner} needs Blackwell, not {at.gpu.family}", remedies=("leave --runner out",), fatal=True,
    ),
    Requires(
        "mega-ep", Module.ROUTED, lambda c: not getattr(backend_of(c), "sequence_parallel", False) or c.at.ep > 1,
        "MoE backend {at.runner} needs expert parallelism", remedies=("--ep = TP × DP",), fatal=True,
    ),
    Requires(
        "shared-whole", Module.SHARED, lambda c: c.at.shared != "whole" or _sequence_parallel(c) or c.at.world == 1,
        "vLLM keeps shared experts whole only under sequence parallelism (EP with data parallelism); under plain TP "
        "it pads them, and has no option for another way", consequence="vLLM has no such option",
        remedies=("--shared-experts auto", "--engine sglang"), fatal=True,
    ),
    Requires(
        "shared-way", Module.SHARED, lambda c: c.at.shared == "whole" or not _sequence_parallel(c),
        "under sequence parallelism vLLM keeps shared experts whole", consequence="vLLM has no such option",
        remedies=("--shared-experts auto",), fatal=True,
    ),
    Divides(
        "vocab", Module.EMBEDDING, lambda c: -(-c.config.vocab_size // 64) * 64, "vocab_size (padded to 64)",
        lambda c: c.at.tp, "TP",
    ),
    *attention_rules(
        ("fewer ranks in a TP group: --tp N with --dp M",),
        None,
        "refused: assert n_heads % tp_size == 0",
        "starts with no output group on a rank, then ZeroDivisionError or garbage (vllm#43174)",
    ),
    Requires(
        "o_a-format", Module.ATTENTION, lambda c: c.format(Role.O_A).name == "FP8",
        "wo_a is stored in {context.o_a_format}; vLLM casts it to FP8 without a scale",
        consequence="starts, and computes garbage", remedies=("--engine sglang", "the original FP4 checkpoint"),
    ),
    Requires(
        "routed-scales", Module.ROUTED,
        lambda c: (c.at.experts, c.inventory.routed.scale_dtype) != ("FP8", "F8_E8M0"),
        "vLLM reads the E8M0 scales of FP8 experts as plain bytes (2^-7 becomes 120)",
        consequence="starts, and computes garbage", remedies=("--engine sglang", "the original FP4 checkpoint"),
    ),
    Divides(
        "routed-groups", Module.ROUTED, lambda c: c.config.moe_intermediate_size, "moe_intermediate_size",
        lambda c: c.at.moe_tp, "MoE TP", lambda c: FP4_GROUP, "FP4 groups",
        consequence="starts, and cuts scales in the wrong place", when=lambda c: c.at.experts == "FP4",
        remedies=("expert parallelism: --ep = TP × DP",),
    ),
    Divides(
        "routed-blocks", Module.ROUTED, lambda c: c.config.moe_intermediate_size, "moe_intermediate_size",
        lambda c: c.at.moe_tp, "MoE TP", lambda c: _SMALLEST_FP8_BLOCK, "refined blocks",
        consequence="refused when the model is built", when=lambda c: _fits(c, "refine"),
        remedies=("expert parallelism: --ep = TP × DP",),
    ),
    Divides(
        "shared-blocks", Module.SHARED, lambda c: c.shared_intermediate, "shared intermediate size",
        lambda c: c.at.shared_parts, "TP", lambda c: c.block(Role.SHARED_GATE).rows, "blocks", COLUMN_QUOTE,
        when=lambda c: c.at.shared == "split", remedies=("--shared-experts pad",),
    ),
)  # fmt: skip

_PLACEMENTS: dict[Role, Placement] = {
    Role.EMBED: Split(0, "tp"),
    Role.HEAD: Split(0, "tp"),
    Role.Q_B: Split(0, "attention"),
    Role.O_A: Split(0, "attention"),
    Role.O_B: Split(1, "attention"),
    Role.ATTN_SINK: Split(0, "attention"),
}


def place(role: Role, context: Context) -> Placement:
    """Where vLLM puts `role`."""
    at = context.at
    if role in _SHARED_AXIS:
        axis = _SHARED_AXIS[role]
        if at.shared_parts == 1:
            return Replicate()
        return Pad(axis, "tp", context.block(role)[axis]) if at.shared == "pad" else Split(axis, "tp")
    if role in _ROUTED:
        if at.moe_tp == 1:
            return Expert(Replicate())
        axis = 1 if role is Role.ROUTED_DOWN else 0
        padded = (_fits(context, "tile") or _fits(context, "pad")) and not _is_aligned(context)
        return Expert(Pad(axis, "moe", _TILE) if padded else Split(axis, "moe"))
    return _PLACEMENTS.get(role, Replicate())


def _is_aligned(context: Context) -> bool:
    return context.config.moe_intermediate_size % (context.at.moe_tp * _TILE) == 0


_SINK_SIZES = (64, 128)
"""Attention sinks that FlashMLA's kernels take; a rank's heads are padded to one of them."""


def hold(group: Group, placement: Placement, context: Context) -> Held | None:
    """vLLM's parameter dtypes: FP4 models keep E8M0 scales, FP8 models hold F32, in finer blocks if need be."""
    if group.role in (Role.MTP_EMBED, Role.MTP_HEAD):
        return None
    if group.role is Role.ATTN_SINK:
        heads = group.shape[0] // context.at.attention_tp
        size = next((size for size in _SINK_SIZES if heads <= size), heads)
        return Held("F32", (size,), 4 * size, 4 * (size - heads))
    if group.role in _ROUTED and group.part is Part.SCALE and _fits(context, "refine") and not _is_aligned(context):
        return _refined_scale(group, placement, context)
    return held_by_rank(group, placement, context, _dtype(group, context))


def _refined_scale(group: Group, placement: Placement, context: Context) -> Held:
    """Scales of FP8 experts whose blocks are cut finer: `repeat_interleave` on both axes, then split."""
    block = context.block(group.role)
    config = context.config
    local = config.moe_intermediate_size // context.at.moe_tp
    unit = gcd(local, block.rows, config.hidden_size)
    finer = replace_shape(group, block, unit)
    return held_by_rank(finer, placement, context, "F32")


def replace_shape(group: Group, block: Block, unit: int) -> Group:
    """`group`, a group of scales, with each scale repeated for blocks of `unit` × `unit`."""
    rows, cols = group.shape
    shape = (rows * (block.rows // unit), cols * (block.cols // unit))
    return group._replace(shape=shape, nbytes=group.nbytes * shape[0] * shape[1] // (rows * cols))


def _dtype(group: Group, context: Context) -> str | None:
    if group.role is Role.ROUTER_HASH:
        return "I32"
    return "F32" if group.part is Part.SCALE and context.at.experts == "FP8" else None


def launch(context: Context, model_path: str) -> Launch:
    """`vllm serve` for each node; nodes other than the first serve no API."""
    at = context.at
    options = [
        "--trust-remote-code --kv-cache-dtype fp8 --block-size 256 --tokenizer-mode deepseek_v4",
        f"--tensor-parallel-size {at.tp}",
    ]
    if at.dp > 1:
        options.append(f"--data-parallel-size {at.dp}")
    if at.ep > 1:
        options.append("--enable-expert-parallel")
    if at.runner != _default_backend(at.experts, at.gpu.sm, at.ep):
        options.append(f"--moe-backend {at.runner}")
    if at.experts == "FP8" and context.config.expert_dtype != "fp8":
        options.append("""--hf-overrides '{"expert_dtype": "fp8"}'""")
    base = f"vllm serve {model_path} " + " ".join(options)
    if at.nodes == 1:
        return Launch({}, (base,))
    return Launch(
        {},
        tuple(
            f"{base} --nnodes {at.nodes} --node-rank {node} --master-addr <node0>" + (" --headless" if node else "")
            for node in range(at.nodes)
        ),
    )


def addition(context: Context) -> str:
    """How the shared expert's output joins the sum."""
    if context.at.shared == "whole" and context.at.world > 1:
        return (
            "Under sequence parallelism each rank runs the whole shared expert on its own tokens and adds it once; "
            f"summed over ranks it would count {context.at.tp} times."
        )
    return "Each rank holds a part of the shared expert: its output is summed by the same all-reduce as the routed one."


def notes(context: Context) -> tuple[str, ...]:
    """What is padded, and on which ranks there is nothing but padding."""
    at, config = context.at, context.config
    lines = []
    if at.shared == "pad":
        unit = context.block(Role.SHARED_GATE).rows
        lines.append(_padded("shared experts", context.shared_intermediate // unit, unit, at.tp))
    if at.moe_tp > 1 and not _is_aligned(context):
        local = config.moe_intermediate_size // at.moe_tp
        if _fits(context, "tile"):
            padded = -(-local // _TILE) * _TILE
            lines.append(f"routed experts padded: {local} of the intermediate size a rank, rounded up to {padded}")
        elif _fits(context, "pad"):
            lines.append(_padded("routed experts", config.moe_intermediate_size // _TILE, _TILE, at.moe_tp))
    if config.n_routed_experts % at.ep:
        least, more = divmod(config.n_routed_experts, at.ep)
        lines.append(f"routed experts uneven: {more} ranks hold {least + 1}, the others {least} (not with EPLB)")
    return tuple(lines)


def _padded(what: str, blocks: int, unit: int, ranks: int) -> str:
    """`ceil(blocks / ranks)` blocks a rank, and the ranks that are left with zeros."""
    each = -(-blocks // ranks)
    used = -(-blocks // each)
    zeros = f"; ranks {used}-{ranks - 1} hold only zeros" if used < ranks else ""
    return (
        f"{what} padded: {blocks} blocks of {unit} / TP {ranks} = {blocks / ranks:.4g}, so {each} "
        f"({each * unit} rows) on a rank{zeros}"
    )


VLLM = Engine(
    name="vllm",
    title="vLLM",
    version=VERSION,
    candidates=candidates,
    rules=RULES,
    place=place,
    hold=hold,
    launch=launch,
    addition=addition,
    notes=notes,
)
