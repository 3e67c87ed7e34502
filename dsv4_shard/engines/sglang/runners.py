"""SGLang's MoE runner backends: experts, GPUs and units of each, and the ones that a request tries."""

from dataclasses import dataclass

from dsv4_shard.catalog.gpus import Gpu
from dsv4_shard.catalog.options import RUNNERS as RUNNER_NAMES
from dsv4_shard.catalog.sms import FROM_HOPPER, SM_10X, SM_12X, SM_90
from dsv4_shard.checkpoint import NVFP4
from dsv4_shard.engines.deployment import Context, Request
from dsv4_shard.engines.shared_rules import GATE_UP_QUOTE
from dsv4_shard.tensors.geometry import FP4_GROUP, NVFP4_GROUP


@dataclass(frozen=True, slots=True)
class Runner:
    """An MoE runner backend.

    Attributes:
        formats: Formats of the routed experts that it supports.
        sms: GPU architectures that it supports.
        unit: Elements of the intermediate size that a rank must keep whole.
        unit_name: Name of the unit in the plural.
        quote: Error text if a unit is cut.
        scales: Dtype to which a rank converts the scales of the routed experts (None: unchanged).
        up_first: Whether w13 holds the up projection before the gate projection.
    """

    formats: tuple[str, ...]
    sms: frozenset[int]
    unit: int
    unit_name: str
    quote: str | None
    scales: str | None = None
    up_first: bool = False


_CUTLASS = SM_90 | SM_12X

_CUTLASS_QUOTE = (
    "ValueError: Mxfp4FlashinferCutlassMoEMethod requires hidden_size and intermediate_size_per_partition to be "
    "multiples of {unit} (got hidden={context.config.hidden_size}, intermediate={part})."
)

_ROWS: dict[str, tuple[Runner, ...]] = {
    "flashinfer_mxfp4": (
        Runner(("FP4",), _CUTLASS, 128, "tiles", _CUTLASS_QUOTE, up_first=True),
        Runner(("FP4",), SM_10X, FP4_GROUP, "FP4 groups", None, "F32"),
    ),
    "marlin": (
        Runner(("FP4",), _CUTLASS, FP4_GROUP, "FP4 groups", None),
        Runner((NVFP4,), SM_90, NVFP4_GROUP, "NVFP4 groups", None),
    ),
    "triton": (Runner(("FP8",), FROM_HOPPER, 128, "blocks", GATE_UP_QUOTE, "F32"),),
    "deep_gemm": (Runner(("FP8",), FROM_HOPPER, 128, "blocks", GATE_UP_QUOTE, "F32"),),
    "auto": (
        Runner(("FP4", "FP8"), FROM_HOPPER, 128, "blocks", GATE_UP_QUOTE, "F32"),
        Runner((NVFP4,), SM_10X, NVFP4_GROUP, "NVFP4 groups", None, up_first=True),
    ),
}
"""Runners by `--moe-runner-backend`; a runner may differ by architecture.

`auto` is the value that all-to-all backends keep: the FP8 method, also for FP4 experts. Without such a backend SGLang
replaces `auto`, and so does `runners_to_try`. Blackwell's flashinfer_mxfp4 pads after loading, so only whole FP4 groups
count. For NVFP4 experts `auto` becomes flashinfer_trtllm_routed, which Hopper does not have.
"""

RUNNERS = {name: _ROWS[name] for name in RUNNER_NAMES["sglang"]}
"""The runners that `--runner` accepts."""

_DEFAULT_RUNNERS = {"FP4": ("flashinfer_mxfp4", "marlin"), "FP8": ("triton",), NVFP4: ("auto", "marlin")}
"""SGLang's choice for each format, also for `auto`, then the runners that the plan tries if that choice fails."""


def runner_of(context: Context) -> Runner | None:
    """The runner of a deployment; None if it does not support the deployment's format or GPU."""
    return find_runner(context.deployment.runner, context.deployment.experts, context.deployment.gpu)


def find_runner(name: str, experts: str, gpu: Gpu) -> Runner | None:
    """The runner for a name, format and GPU; None if there is none."""
    rows = RUNNERS.get(name, ())
    return next((row for row in rows if experts in row.formats and gpu.sm in row.sms), None)


def runners_to_try(request: Request, experts: str, gpu: Gpu) -> tuple[str, ...]:
    """Runners to try: the requested one, else SGLang's own. `auto` requests SGLang's own, and no other."""
    if request.a2a or request.runner not in (None, "auto"):
        return (request.runner or "auto",)
    names = _DEFAULT_RUNNERS.get(experts, ())
    own = tuple(name for name in names if name == "auto" or find_runner(name, experts, gpu)) or ("auto",)
    return own[:1] if request.runner else own


def built(context: Context) -> Runner | None:
    """The row of the method that SGLang builds, also for a runner that does not support the experts or the GPU.

    Only Marlin and flashinfer_mxfp4 have methods of their own for FP4 experts; any other gets that of FP8 experts.
    """
    deployment = context.deployment
    rows = RUNNERS["marlin"] if is_mxfp4(context, "marlin") else ()
    return runner_of(context) or next(iter(rows), find_runner("auto", deployment.experts, deployment.gpu))


def is_mxfp4(context: Context, runner: str) -> bool:
    """Whether `runner` has to compute with packed FP4 experts."""
    return (context.deployment.runner, context.deployment.experts) == (runner, "FP4")
