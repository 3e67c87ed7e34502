"""vLLM's MoE backends: the formats, architectures and sizes that each takes, and the one that vLLM picks."""

from dataclasses import dataclass

from dsv4_shard.catalog.options import RUNNERS
from dsv4_shard.catalog.sms import EVERY_SM, FROM_ADA, FROM_HOPPER, SM_10X, SM_12X, SM_90
from dsv4_shard.checkpoint import NVFP4
from dsv4_shard.engines.deployment import Context

TILE = 128
"""FP4 backends round a rank's intermediate size up to this number of elements; also the rows of an FP8 block."""


@dataclass(frozen=True, slots=True)
class Backend:
    """An MoE backend.

    Attributes:
        experts: Format of the routed experts that it supports.
        fit: How it fits a rank's intermediate size: `tile` (rounded up to `tile` elements), `exact`, `refine` (finer
            FP8 blocks) or `pad` (whole FP8 blocks).
        sms: GPU architectures (compute capability × 10) whose kernels it has.
        sequence_parallel: Whether it runs under sequence parallelism.
        tile: Elements to which `tile` rounds up.
        hidden_tile: Elements to which the hidden size is rounded up.
        enum: Name in vLLM's messages.
    """

    experts: str
    fit: str
    sms: frozenset[int] = EVERY_SM
    sequence_parallel: bool = False
    tile: int = TILE
    hidden_tile: int = 1
    enum: str = ""


MEGA = "deep_gemm_mega_moe"

_FP4: dict[str, Backend] = {
    "marlin": Backend("FP4", "tile", hidden_tile=256, enum="MARLIN"),
    "flashinfer_cutlass": Backend("FP4", "tile", FROM_HOPPER, hidden_tile=128, enum="FLASHINFER_CUTLASS_MXFP4_MXFP8"),
    "flashinfer_trtllm": Backend("FP4", "tile", SM_10X, hidden_tile=256, enum="FLASHINFER_TRTLLM_MXFP4_MXFP8"),
    "deep_gemm": Backend("FP4", "tile", SM_10X | SM_12X, hidden_tile=128, enum="DEEPGEMM_MXFP4"),
    "triton_unfused": Backend("FP4", "tile", FROM_HOPPER, tile=64, hidden_tile=64, enum="TRITON_UNFUSED"),
    MEGA: Backend("FP4", "exact", SM_10X, sequence_parallel=True),
    "flashinfer_moe_ep_cutedsl": Backend("FP4", "exact", SM_10X, sequence_parallel=True),
    "flashinfer_moe_ep_mega_deep_gemm": Backend("FP4", "exact", SM_10X, sequence_parallel=True),
}

_FP8: dict[str, Backend] = {
    "triton": Backend("FP8", "refine", FROM_ADA, enum="TRITON"),
    "flashinfer_cutlass": Backend("FP8", "pad", SM_90, enum="FLASHINFER_CUTLASS"),
    "flashinfer_trtllm": Backend("FP8", "pad", SM_10X, enum="FLASHINFER_TRTLLM"),
    "deep_gemm": Backend("FP8", "pad", FROM_HOPPER, enum="DEEPGEMM"),
    "marlin": Backend("FP8", "pad", enum="MARLIN"),
}
"""Backends by `--moe-backend`; one name may treat FP4 and FP8 experts differently.

The architectures are those that vLLM's own selection accepts when run: `tests/data/gpus/vllm.json`
(`experts/*.py`, `_supports_current_device` and `_supports_quant_scheme`).
"""

_NVFP4: dict[str, Backend] = {
    "marlin": Backend(NVFP4, "exact", enum="MARLIN"),
    "flashinfer_trtllm": Backend(NVFP4, "exact", SM_10X, enum="FLASHINFER_TRTLLM"),
}
"""Backends of NVFP4 experts that vLLM chooses itself. Verified are TRTLLM's kernels on sm_10x, and Marlin on Hopper."""

BACKENDS = {name: _FP4[name] for name in RUNNERS["vllm"] if name in _FP4}

BACKENDS_FP8 = {name: _FP8[name] for name in RUNNERS["vllm"] if name in _FP8}
"""The backends that `--runner` accepts, for FP4 and for FP8 experts."""


def backend_of(context: Context) -> Backend | None:
    """The backend of a deployment; None if its runner does not support the experts' format."""
    return table_of(context.deployment.experts).get(context.deployment.runner)


def is_mega(context: Context) -> bool:
    """Whether experts are those of vLLM's own DeepGEMM MegaMoE: it keeps them in the order of its kernel."""
    return context.deployment.runner == MEGA


def misreads_scales(context: Context) -> bool:
    """Whether vLLM's own loader misreads scales: it views every E8M0 expert scale as bytes, also for F32 parameters."""
    return (context.deployment.experts, context.inventory.routed.scale_dtype) == ("FP8", "F8_E8M0")


def table_of(experts: str) -> dict[str, Backend]:
    """The backends for a format of routed experts; empty for one that vLLM has none for."""
    return {"FP4": BACKENDS, "FP8": BACKENDS_FP8, NVFP4: _NVFP4}.get(experts, {})


def default_backend(experts: str, sm: int, ep: int, aligned: bool) -> str:
    """vLLM's resolution of `auto`; `aligned`: a rank holds whole blocks of the routed experts."""
    order = _OWN_ORDER.get(experts, ())
    if experts == "FP8" and sm == 90:
        order = ("triton",) if ep == 1 else ("flashinfer_cutlass",)
    table = table_of(experts)
    takes = (name for name in order if sm in table[name].sms and (aligned or table[name].fit != "pad"))
    return next(takes, order[-1] if order else "")


_OWN_ORDER = {
    "FP4": ("flashinfer_trtllm", "deep_gemm", "marlin"),
    "FP8": ("flashinfer_trtllm", "deep_gemm", "triton", "marlin"),
    NVFP4: ("flashinfer_trtllm", "marlin"),
}
"""vLLM's order of preference (`oracle/mxfp4.py`, `fp8.py`: `_get_priority_backends`), with the DeepGEMM of its wheel.

On Hopper it prefers triton for FP8 experts, and flashinfer_cutlass under expert parallelism.
"""


def fits(context: Context, fit: str) -> bool:
    """Whether the backend of a deployment fits a rank's intermediate size in the way `fit` (`Backend.fit`)."""
    backend = backend_of(context)
    return backend is not None and backend.fit == fit


def is_aligned(context: Context) -> bool:
    """Whether a rank holds whole tiles of the routed experts."""
    return context.config.moe_intermediate_size % (context.deployment.moe_tp * TILE) == 0
