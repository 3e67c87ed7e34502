"""SGLang 0.5.23: rules in the order of its start, placements, and the dtypes in which a rank holds weights.

Read from its sources, and verified against verdicts and parameters of its own classes (tests/data/sglang). Attention is
cut over attention TP = tp / attention DP, routed experts over EP and MoE TP = tp / ep. The shared expert is cut over
the whole TP group, also under attention DP, unless `SGLANG_SHARED_EXPERT_TP1=1` keeps it whole.
"""

import itertools
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from dsv4_shard.catalog.gpus import Gpu
from dsv4_shard.catalog.options import A2A, LOAD_FORMAT, OTHER_RUNNERS, VERSIONS
from dsv4_shard.catalog.options import RUNNERS as RUNNER_NAMES
from dsv4_shard.catalog.sms import EVERY_SM, FROM_HOPPER, SM_10X, SM_12X, SM_90
from dsv4_shard.checkpoint import NVFP4, Inventory, TensorGroup
from dsv4_shard.engines.bytes_sent import by_backend
from dsv4_shard.engines.deployment import Context, Deployment, Request, experts_of, pick_gpu, resolve
from dsv4_shard.engines.engine import Engine
from dsv4_shard.engines.expert_locations import IDENTITY
from dsv4_shard.engines.host_memory import SGLANG_HOST
from dsv4_shard.engines.launch import FIRST_NODE, NODE_RANK, Command, Launch, Options, node_ranks, settings_of
from dsv4_shard.engines.nvfp4 import is_nvfp4, nvfp4_tensor, second_copy
from dsv4_shard.engines.parallelism import divisors, ep_option
from dsv4_shard.engines.placement import Expert, Placement, RankTensor, Replicate, Split, rank_tensor
from dsv4_shard.engines.remarks import Change
from dsv4_shard.engines.remedies import (
    ANY_DP,
    ANY_EP,
    DEEPEP,
    FULL_DP,
    MARLIN,
    MORE_DP,
    MORE_EP,
    REDUNDANT,
    WHOLE_SHARED,
    for_engine,
    leave_out,
)
from dsv4_shard.engines.rules import NO_OPTION, NOT_VERIFIED, SILENT, Divides, Remedy, Requires, Rule, Symptom, in_stage
from dsv4_shard.engines.sglang.kv_cache import (
    MEGAMOE_TOKENS,
    cache_of,
    default_prefill,
    megamoe_tokens,
    memory_share,
    page_of,
    prefill_tokens,
)
from dsv4_shard.engines.shared_rules import (
    ADDED_IN_PARTS,
    COLUMN_QUOTE,
    DOWN_QUOTE,
    EXPERTS,
    EXPERTS_RULE,
    GATE_UP_QUOTE,
    INDIVISIBLE_QUOTE,
    NO_CAST_RULE,
    NODES_RULE,
    O_A_DECODING_RULE,
    attention_rules,
    draft_losses,
    is_dspark,
    is_left_out,
    left_out_draft,
    needs_other_head,
    version_rule,
    vocab_placement,
    vocab_rule,
)
from dsv4_shard.engines.stages import StartStage
from dsv4_shard.models import V4, Module, Part, Role, Stage
from dsv4_shard.tensors.geometry import FP4_GROUP, NVFP4_GROUP
from dsv4_shard.text.units import gib

VERSION = VERSIONS["sglang"][0]

MODEL_PATH = "--model-path"


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
replaces `auto`, and so does `_runners`. Blackwell's flashinfer_mxfp4 pads after loading, so only whole FP4 groups
count. For NVFP4 experts `auto` becomes flashinfer_trtllm_routed, which Hopper does not have.
"""

RUNNERS = {name: _ROWS[name] for name in RUNNER_NAMES["sglang"]}
"""The runners that `--runner` accepts."""

_DEFAULT_RUNNERS = {"FP4": ("flashinfer_mxfp4", "marlin"), "FP8": ("triton",), NVFP4: ("auto", "marlin")}
"""SGLang's choice for each format, also for `auto`, then the runners that the plan tries if that choice fails."""

_TOPOLOGY_QUOTE = (
    "ValueError: parallel topology is inconsistent (set by override_permanently):\ntp_size == moe_ep_size * "
    "moe_dp_size * moe_tp_size\n  {size} != {parts} * 1 * {part} (= {context.topology_ranks})"
)

_WRONG_SILENTLY = f"{SILENT}starts, and computes garbage or fails in the first forward"


def runner_of(context: Context) -> Runner | None:
    """The runner of a deployment; None if it does not support the deployment's format or GPU."""
    return find_runner(context.deployment.runner, context.deployment.experts, context.deployment.gpu)


def find_runner(name: str, experts: str, gpu: Gpu) -> Runner | None:
    """The runner for a name, format and GPU; None if there is none."""
    rows = RUNNERS.get(name, ())
    return next((row for row in rows if experts in row.formats and gpu.sm in row.sms), None)


def candidates(inventory: Inventory, request: Request) -> Iterator[Deployment]:
    """SGLang's own choice first (shared experts split, its default runner), then its other options."""
    gpu, experts = pick_gpu(request), experts_of(request, inventory)
    ep = request.ep if request.ep is not None else (request.tp if request.a2a else 1)
    ways = {"auto": ("whole",) if request.a2a else ("split", "whole")}.get(
        request.shared_experts, (request.shared_experts,)
    )
    for runner, shared in itertools.product(_runners(request, experts, gpu), ways):
        parts = request.tp if shared == "split" else 1
        yield resolve(
            request, inventory, engine="sglang", version=VERSION, ep=ep, runner=runner, shared=shared,
            shared_parts=parts,
        )  # fmt: skip


def _runners(request: Request, experts: str, gpu: Gpu) -> tuple[str, ...]:
    """Runners to try: the requested one, else SGLang's own. `auto` requests SGLang's own, and no other."""
    if request.a2a or request.runner not in (None, "auto"):
        return (request.runner or "auto",)
    names = _DEFAULT_RUNNERS.get(experts, ())
    own = tuple(name for name in names if name == "auto" or find_runner(name, experts, gpu)) or ("auto",)
    return own[:1] if request.runner else own


def _built(context: Context) -> Runner | None:
    """The row of the method that SGLang builds, also for a runner that does not support the experts or the GPU.

    Only Marlin and flashinfer_mxfp4 have methods of their own for FP4 experts; any other gets that of FP8 experts.
    """
    deployment = context.deployment
    rows = RUNNERS["marlin"] if _is_mxfp4(context, "marlin") else ()
    return runner_of(context) or next(iter(rows), find_runner("auto", deployment.experts, deployment.gpu))


def _is_mxfp4(context: Context, runner: str) -> bool:
    """Whether `runner` has to compute with packed FP4 experts."""
    return (context.deployment.runner, context.deployment.experts) == (runner, "FP4")


def _moe_unit(context: Context) -> int:
    row = _built(context)
    return row.unit if row else 1


def _moe_unit_name(context: Context) -> str | None:
    row = _built(context)
    return row.unit_name if row else None


def _moe_quote(context: Context) -> str | None:
    row = _built(context)
    return row.quote if row else None


A2A_SMS = {
    "megamoe": SM_90 | SM_10X,
    "flashinfer_megamoe": SM_10X,
}
"""All-to-all backends that some NVIDIA GPUs do not have: SGLang's `mega_moe_hook.py` refuses other architectures."""

A2A_MAKERS = {"ascend_fuseep": "Ascend", "mori": "AMD"}
"""All-to-all backends of other makers than NVIDIA.

`ascend_fuseep` calls Ascend's kernels (`hardware_backend/npu/moe/fuseep.py`), `mori` is a package for AMD
(`layers/moe/token_dispatcher/moriep.py`).
"""


CHOICES: tuple[Rule, ...] = (
    version_rule(VERSION),
    Requires(
        "a2a-ep", Module.ROUTED, lambda c: c.deployment.a2a is None or c.deployment.ep == c.deployment.tp,
        "all-to-all backend {at.a2a} sets EP = TP = {at.tp}, so EP {at.ep} is not possible",
        consequence="{engine} sets EP = TP", remedies=(leave_out("ep"),), fatal=True,
    ),
    Requires(
        "shared-way", Module.SHARED, lambda c: c.deployment.shared in ("whole", "split"),
        "SGLang keeps shared experts whole or splits them; it has no way to {at.shared} them", consequence=NO_OPTION,
        remedies=(leave_out("shared_experts"), for_engine("vllm", ", which pads")), fatal=True,
    ),
    Requires(
        "a2a-shared", Module.SHARED, lambda c: not (c.deployment.a2a and c.deployment.shared != "whole"),
        "all-to-all backend {at.a2a} keeps shared experts whole",
        consequence="{engine} keeps them whole", remedies=(leave_out("shared_experts"),), fatal=True,
    ),
)  # fmt: skip
"""What SGLang cannot be asked for."""

_NO_KERNELS = "all-to-all backend {at.a2a} has no kernels for {at.gpu.family} (sm_{at.gpu.sm})"


def _has_kernels(context: Context) -> bool:
    """Whether the all-to-all backend has kernels for the GPU, as far as that is verified."""
    gpu = context.deployment.gpu
    return not gpu.verified or gpu.sm in A2A_SMS.get(context.deployment.a2a or "", EVERY_SM)


def _megamoe(name: str, holds: Callable[[Context], bool], reason: str, quote: str, *remedies: Remedy) -> Requires:
    """A condition of `handle_a2a_moe` on flashinfer_megamoe."""
    return Requires(
        name, Module.ROUTED, lambda c: c.deployment.a2a != "flashinfer_megamoe" or holds(c), reason, quote,
        remedies=remedies,
    )  # fmt: skip


_MEGAMOE_RULES = (
    _megamoe(
        "megamoe-experts", lambda c: c.deployment.experts in ("FP4", NVFP4),
        "flashinfer_megamoe takes FP4 and NVFP4 experts, and these are {at.experts}",
        "ValueError: FlashInfer MegaMOE currently supports only MXFP8, ModelOpt NVFP4, FP4-expert", DEEPEP,
    ),
    _megamoe(
        "megamoe", lambda c: c.deployment.dp == c.deployment.tp > 1,
        "flashinfer_megamoe needs attention DP = TP, here {at.dp} and {at.tp}",
        "AssertionError: FlashInfer MegaMOE is only supported with --attn-dp-size equal to --tp-size", DEEPEP, FULL_DP,
    ),
    _megamoe(
        "megamoe-runner", lambda c: c.deployment.runner == "auto",
        "flashinfer_megamoe has its own runner, here {at.runner} is asked for",
        "AssertionError: FlashInfer MegaMOE a2a backend requires --moe-runner-backend flashinfer_megamoe",
        leave_out("runner"),
    ),
    _megamoe(
        "megamoe-gpu", _has_kernels, _NO_KERNELS,
        "ValueError: FlashInfer MegaMOE currently requires an SM100-family", leave_out("a2a"), DEEPEP,
    ),
)  # fmt: skip

CONFIGURATION_RULES = in_stage(
    StartStage.CONFIGURATION,
    Requires(
        "a2a", Module.ROUTED, lambda c: c.deployment.a2a is None or c.deployment.a2a in A2A,
        "SGLang has no all-to-all backend {at.a2a!r}; it has " + ", ".join(A2A), fatal=True,
    ),
    Requires(
        "a2a-gpu", Module.ROUTED, lambda c: _has_kernels(c) or c.deployment.a2a != "megamoe", _NO_KERNELS,
        "ValueError: --moe-a2a-backend megamoe needs a CUDA SM90 GPU (block-FP8 experts)",
        remedies=(leave_out("a2a"), DEEPEP), fatal=True,
    ),
    Divides(
        "attention-dp", Module.DEPLOYMENT, lambda c: c.deployment.tp, "TP", lambda c: c.deployment.dp,
        "attention DP", fatal=True,
        uneven=Symptom(
            "assert cfg.tp_size % cfg.attn_dp_size == 0", remedies=(ANY_DP,),
            heard=("assert self.tp_size % self.dp_size == 0",),
        ),
    ),
    *_MEGAMOE_RULES,
    replace(NODES_RULE, uneven=Symptom(
        "AssertionError: tp_size must be divisible by number of nodes", remedies=(leave_out("nodes"),),
    )),
    Divides(
        "ep", Module.ROUTED, lambda c: c.deployment.tp, "TP", lambda c: c.deployment.ep, "EP",
        fatal=True,
        uneven=Symptom(
            _TOPOLOGY_QUOTE, remedies=(ANY_EP,),
            heard=("ValueError: tp_size {size} must be divisible by ep_size {parts}",),
        ),
    ),
    replace(EXPERTS_RULE, uneven=replace(
        EXPERTS, quote="assert num_physical_experts % ep_size == 0", remedies=(ANY_EP, REDUNDANT),
        heard=("assert self._num_global_routed % self.moe_ep_size == 0",),
    ), when=lambda c: not c.deployment.redundant_experts),
    Divides(
        "physical-experts", Module.ROUTED, lambda c: c.slots, "experts and redundant ones", lambda c: c.deployment.ep,
        "EP", uneven=Symptom("assert num_physical_experts % ep_size == 0", remedies=(ANY_EP, REDUNDANT)),
        when=lambda c: c.deployment.redundant_experts > 0,
    ),
    Requires(
        "expert-locations", Module.ROUTED, lambda c: c.locations_fault is None,
        "the map of --expert-locations: {context.locations_fault}",
        consequence=f"{SILENT}does not check the map: it leaves slots uninitialised, or stops in an assertion",
        remedies=(leave_out("expert_locations"),), fatal=True,
    ),
)  # fmt: skip
"""SGLang's conditions before it builds a model of any generation.

In the order of `handle_mega_moe`, `handle_data_parallelism`, `handle_a2a_moe`, `check_server_args`, the topology, and
the first places of the experts.
"""

BACKEND_RULES = in_stage(
    StartStage.CONSTRUCTION,
    Requires(
        "a2a-maker", Module.ROUTED,
        lambda c: c.deployment.gpu.title.startswith(A2A_MAKERS.get(c.deployment.a2a or "", "")),
        "all-to-all backend {at.a2a} has kernels of another maker's GPUs, and none for {at.gpu.title}",
        consequence="{engine} stops where it needs these kernels", remedies=(leave_out("a2a"), DEEPEP), fatal=True,
    ),
    Requires(
        "marlin-a2a", Module.ROUTED, lambda c: not (c.deployment.runner == "marlin" and c.deployment.a2a),
        "runner marlin is for tensor parallelism, not for the all-to-all backend {at.a2a}",
        "NotImplementedError: Runner backend MoeRunnerBackend.MARLIN requires a fused func for a2a backend {at.a2a}, "
        "but none is registered.",
        remedies=(leave_out("runner"), leave_out("a2a")),
    ),
)  # fmt: skip

MARLIN_RULE = Requires(
    "marlin-gpu", Module.ROUTED, lambda c: not _is_mxfp4(c, "marlin") or runner_of(c) is not None,
    "runner marlin does not take FP4 experts on {at.gpu.family} (sm_{at.gpu.sm})",
    "RuntimeError: MXFP4 Marlin requires SM90 or SM120.", remedies=(leave_out("runner"),),
)  # fmt: skip

RUNNER_RULES: tuple[Rule, ...] = (
    Requires(
        "triton-fp4", Module.ROUTED, lambda c: not _is_mxfp4(c, "triton"),
        "runner triton does not take FP4 experts: it takes two packed values for one, so half the hidden size",
        "AssertionError: Hidden size mismatch", stage=StartStage.SERVING,
        remedies=(MARLIN, leave_out("runner"), "a checkpoint with FP8 experts, with SGLANG_DSV4_FP4_EXPERTS=0"),
    ),
    Requires(
        "runner", Module.ROUTED,
        lambda c: runner_of(c) is not None or _is_mxfp4(c, "marlin") or _is_mxfp4(c, "triton"),
        "SGLang's own classes were not run with runner {at.runner} and {at.experts} experts on {at.gpu.family} "
        "(sm_{at.gpu.sm})",
        consequence=NOT_VERIFIED, remedies=(leave_out("runner"),),
    ),
    Requires(
        "a2a-runner", Module.ROUTED,
        lambda c: c.deployment.a2a is None or c.deployment.experts != "FP4" or c.deployment.runner in ("auto",
        "marlin"),
        "SGLang's own classes were not run with runner {at.runner} and all-to-all backend {at.a2a}",
        consequence=NOT_VERIFIED, remedies=(leave_out("runner"),),
    ),
)  # fmt: skip
"""What SGLang's `fused_moe.py` refuses in the first forward, and runners that are not verified."""


ROUTED_RULE = Divides(
    "routed-blocks", Module.ROUTED, lambda c: c.config.moe_intermediate_size, "moe_intermediate_size",
    lambda c: c.deployment.moe_tp, "MoE TP", _moe_unit, _moe_unit_name,
    uneven=Symptom(
        "assert intermediate_size % self.moe_tp_size == 0",
        remedies=(MORE_EP,),
    ),
    cut=Symptom(
        _moe_quote, _WRONG_SILENTLY,
        (MARLIN, MORE_EP),
        (DOWN_QUOTE,),
        tuple(dict.fromkeys(row.quote for rows in RUNNERS.values() for row in rows if row.quote)),
    ),
)  # fmt: skip

_MARLIN_GROUPS_RULE = Divides(
    "marlin-groups", Module.ROUTED, lambda c: c.config.moe_intermediate_size, "moe_intermediate_size",
    lambda c: c.deployment.moe_tp, "MoE TP", lambda _: FP4_GROUP, "FP4 groups",
    cut=Symptom("RuntimeError: Current MXFP4 MoE layer does not satisfy Marlin constraints.", remedies=(MORE_EP,)),
    when=lambda c: _is_mxfp4(c, "marlin"),
)  # fmt: skip
"""What Marlin's `process_weights_after_loading` says of the groups that `ROUTED_RULE` has for plans."""

_WHOLE_SHARED = (WHOLE_SHARED, DEEPEP)

MERGED_QUOTE = "assert all(output_size % tp_size == 0 for output_size in output_sizes)"
"""What `MergedColumnParallelLinear` asserts of gate and up, without a text."""

SHARED_RULE = Divides(
    "shared-blocks", Module.SHARED, lambda c: c.shared_intermediate, "shared intermediate size",
    lambda c: c.deployment.shared_parts, "TP", lambda c: c.block(Role.SHARED_GATE).rows, "blocks",
    Symptom(MERGED_QUOTE, remedies=_WHOLE_SHARED), Symptom(COLUMN_QUOTE, remedies=_WHOLE_SHARED),
    when=lambda c: c.config.n_shared_experts > 0,
)  # fmt: skip

QUANTIZED_MOE_RULE = Divides(
    "quantized-moe", Module.ROUTED, lambda c: c.config.moe_intermediate_size, "moe_intermediate_size",
    lambda c: c.deployment.moe_tp, "MoE TP",
    lambda c: c.block(Role.SHARED_GATE).rows if c.deployment.shared == "split" else 1, "blocks",
    Symptom(
        "ValueError: moe_intermediate_size {size} must be divisible by moe_tp_size ({parts}) which is tp_size "
        "({context.deployment.tp}) divided by moe_ep_size ({context.deployment.ep}).", remedies=(MORE_EP,),
    ),
    Symptom(
        "ValueError: For quantized MoE models, please make sure (moe_intermediate_size={size} / moe_tp_size={parts}) % "
        "weight_block_size_n={unit} == 0 where moe_tp_size is equal to tp_size ({context.deployment.tp}) divided by "
        "ep_size "
        "({context.deployment.ep}).", remedies=(WHOLE_SHARED, MORE_EP),
    ),
    when=lambda c: c.block(Role.SHARED_GATE).rows > 1,
)  # fmt: skip
"""`check_quantized_moe_compatibility`, which runs once the weights are loaded.

It requires whole blocks of routed experts even for runners that could do without; SGLANG_SHARED_EXPERT_TP1=1 skips it.
"""

_TP_EXPERTS_QUOTE = (
    "ValueError: Tensor parallel size {at.tp} is greater than the number of experts {config.n_routed_experts}."
)

TP_EXPERTS_RULE = Requires(
    "tp-experts", Module.ROUTED, lambda c: c.deployment.tp <= c.config.n_routed_experts,
    "TP {at.tp} exceeds the {config.n_routed_experts} routed experts",
    _TP_EXPERTS_QUOTE, heard=(_TP_EXPERTS_QUOTE,),
)  # fmt: skip


_NVFP4_RULES = (
    Requires(
        "nvfp4-runner", Module.ROUTED,
        lambda c: c.deployment.experts != NVFP4 or c.deployment.gpu.sm not in SM_90 or c.deployment.runner == "marlin",
        "on {at.gpu.family}, NVFP4 experts need runner marlin, here {at.runner}",
        "ValueError: Current platform does not support NVFP4 quantization with the selected MoE backend. Please use "
        "Blackwell and above, or use moe_runner_backend=marlin on SM80+.",
        remedies=(MARLIN,),
    ),
    Requires(
        "nvfp4-a2a", Module.ROUTED, lambda c: c.deployment.experts != NVFP4 or c.deployment.a2a is None,
        "SGLang's own loader was not run with NVFP4 experts and an all-to-all backend",
        consequence=NOT_VERIFIED, remedies=(leave_out("a2a"),),
    ),
)  # fmt: skip
"""`ModelOptNvFp4FusedMoEMethod.__init__`, and what is not verified of it."""


def keeps_o_a_fp8(context: Context, stage: Stage = Stage.LAYER) -> bool:
    """Whether SGLang holds o_a in FP8: on sm_120 it does only if SGLANG_OPT_FP8_WO_A_GEMM asks for it.

    DSpark's stages have it in BF16 on every GPU (`DSparkAttention`).
    """
    is_fp8 = context.deployment.gpu.sm in SM_10X and context.format(Role.O_A).name == "FP8"
    return is_fp8 and not is_dspark(stage, context)


def _decodes_no_o_a(context: Context) -> bool:
    """Whether SGLang holds every o_a as it is stored, in FP8."""
    return all(keeps_o_a_fp8(context, stage) for stage in (Stage.LAYER, Stage.MTP))


def _o_a_blocks(rule: Divides) -> Divides:
    """`rule` of o_a's blocks, which stop SGLang only where it keeps them: elsewhere it decodes o_a before it cuts."""
    if rule.name != "o_a-blocks":
        return rule
    cut = replace(
        rule.cut, quote=lambda c: COLUMN_QUOTE if keeps_o_a_fp8(c) else None, quotes=(COLUMN_QUOTE,),
        consequence="{engine} refuses it, or o_b, which is cut alike",
    )  # fmt: skip
    return replace(rule, cut=cut)


RULES: tuple[Rule, ...] = (
    *CHOICES,
    *CONFIGURATION_RULES,
    NO_CAST_RULE,
    *in_stage(
        StartStage.CONSTRUCTION,
        *map(
            _o_a_blocks,
            attention_rules(
                (MORE_DP,),
                INDIVISIBLE_QUOTE,
                Symptom(consequence=_WRONG_SILENTLY),
                Symptom(
                    consequence=SILENT
                    + "starts with {part} output groups per rank, then computes garbage or divides by zero"
                ),
            ),
        ),
        TP_EXPERTS_RULE,
        *BACKEND_RULES,
        *_NVFP4_RULES,
        ROUTED_RULE,
        SHARED_RULE,
    ),
    *in_stage(
        StartStage.LOADING,
        replace(O_A_DECODING_RULE, holds=lambda c: _decodes_no_o_a(c) or O_A_DECODING_RULE.holds(c)),
        MARLIN_RULE,
        QUANTIZED_MOE_RULE,
    ),
    *RUNNER_RULES,
)  # fmt: skip

OTHERS: tuple[Rule, ...] = (
    *in_stage(
        StartStage.CONSTRUCTION,
        vocab_rule(Symptom(INDIVISIBLE_QUOTE, remedies=(f"SGLang {VERSION}, which pads the vocabulary to 64 × TP",))),
    ),
    *in_stage(StartStage.LOADING, _MARLIN_GROUPS_RULE),
)
"""Rules that only explain messages.

Before PR 31801 the vocabulary had to divide: if padding to 64 does not, 0.5.23 pads to 64 × TP.
"""

_PLACEMENTS: dict[Role, Placement] = {
    Role.Q_B: Split(0, "attention"),
    Role.O_A: Split(0, "attention"),
    Role.O_B: Split(1, "attention"),
    Role.ROUTED_GATE: Expert(Split(0, "moe")),
    Role.ROUTED_UP: Expert(Split(0, "moe")),
    Role.ROUTED_DOWN: Expert(Split(1, "moe")),
}
"""Placements by role. Other roles are whole, except embedding and shared experts, which depend on the deployment."""


def place(role: Role, context: Context) -> Placement:
    """SGLang's placement of `role`."""
    deployment = context.deployment
    if role is Role.HEAD:
        return vocab_placement(context, deployment.head_group)
    if role is Role.EMBED:
        return vocab_placement(context, "tp" if deployment.dp == 1 else "one")
    if deployment.shared == "split" and role in (Role.SHARED_GATE, Role.SHARED_UP, Role.SHARED_DOWN):
        return Split(1 if role is Role.SHARED_DOWN else 0, "tp")
    placement = _PLACEMENTS.get(role, Replicate())
    if isinstance(placement, Expert) and deployment.moe_tp == 1:
        return Expert(Replicate())
    return placement


def store(group: TensorGroup, placement: Placement, context: Context) -> RankTensor | None:
    """SGLang's parameter dtypes: FP8 scales in F32; o_a in BF16 on Hopper and in DSpark's stages, without its scale."""
    if group.role in (Role.MTP_EMBED, Role.MTP_HEAD) or is_left_out(group.stage, context):
        return None
    if group.role is Role.O_A and group.part is Part.SCALE and not keeps_o_a_fp8(context, group.stage):
        return None
    if is_nvfp4(group, context):
        return nvfp4_tensor(group, placement, context, scales_twice=not _has_trtllm_nvfp4(context), all_inputs=True)
    return rank_tensor(group, placement, context, parameter_dtype(group.role, group.part, context, group.stage))


def _has_trtllm_nvfp4(context: Context) -> bool:
    """Whether NVFP4 experts run on TRTLLM's kernels: SGLang's own choice on sm_10x, and for no other GPU."""
    return context.deployment.gpu.sm in SM_10X and context.deployment.runner == "auto"


_DTYPES = {
    Role.ROUTER_HASH: "I32",
    **dict.fromkeys((Role.COMPRESSOR_NORM, Role.INDEXER_NORM, Role.DSPARK_CONFIDENCE), "F32"),
}


def parameter_dtype(role: Role, part: Part, context: Context, stage: Stage = Stage.LAYER) -> str | None:
    """The dtype of SGLang's parameter; None if it is the checkpoint's."""
    if role is Role.O_A and part is Part.WEIGHT:
        return None if keeps_o_a_fp8(context, stage) else "BF16"
    if part is Part.SCALE:
        routed = role in (Role.ROUTED_GATE, Role.ROUTED_UP, Role.ROUTED_DOWN)
        row = runner_of(context)
        if context.deployment.experts == NVFP4:
            return "F32"  # the draft's FP4 experts, for which SGLang builds TRTLLM's method on every GPU
        return (row.scales if row else None) if routed else "F32"
    return _DTYPES.get(role)


def is_stock(context: Context) -> bool:
    """Whether SGLang's own `sharded_state` loads the shards: if nothing is repacked after loading.

    It does not compare the places of experts, so it is not used where these are not in order.
    """
    deployment = context.deployment
    in_order = not deployment.redundant_experts and deployment.expert_locations == IDENTITY
    return in_order and deployment.experts == "FP8" and deployment.gpu.sm in SM_90


FP4_EXPERTS = "SGLANG_DSV4_FP4_EXPERTS"

FP8_O_A = "SGLANG_OPT_FP8_WO_A_GEMM"


def environment_of(context: Context) -> dict[str, str]:
    """Variables that SGLang needs to build the deployment's model; often empty."""
    deployment = context.deployment
    environment = {}
    if deployment.shared == "whole" and not deployment.a2a:
        environment["SGLANG_SHARED_EXPERT_TP1"] = "1"
    if deployment.experts == "FP8":
        environment[FP4_EXPERTS] = "0"
    if deployment.a2a == "megamoe":
        tokens = megamoe_tokens(
            deployment.gpu, deployment.dp, deployment.attention_tp, page_of(context.inventory.family)
        )
        environment |= {MEGAMOE_TOKENS: str(tokens)} if tokens else {}
    if deployment.gpu.sm in SM_10X and not keeps_o_a_fp8(context):
        environment[FP8_O_A] = "0"  # SGLang refuses a BF16 wo_a otherwise
    return environment


def launch(context: Context, model_path: str, sharded: bool) -> Launch:
    """`sglang serve` for each node, on shards or on the checkpoint.

    Shards that the stock loader cannot load need this package installed next to SGLang, as its plugin.
    """
    deployment = context.deployment
    options: Options = {"--trust-remote-code": None, MODEL_PATH: model_path, "--tp": str(deployment.tp)}
    if deployment.ep > 1 and not deployment.a2a:
        options["--ep-size"] = str(deployment.ep)
    if deployment.dp > 1:
        options["--attn-dp-size"] = str(deployment.dp)
        options |= _prefill(context)
    if deployment.redundant_experts:
        options["--ep-num-redundant-experts"] = str(deployment.redundant_experts)
    if deployment.locations:
        options["--init-expert-location"] = shlex.quote(deployment.locations.path)
    if deployment.head_group != "tp":
        options["--enable-dp-lm-head"] = None
    if deployment.a2a:
        options["--moe-a2a-backend"] = deployment.a2a
    if context.served_session:
        options["--context-length"] = str(context.served_session)
    if deployment.runner not in ("auto", "triton"):
        options["--moe-runner-backend"] = deployment.runner
    if sharded:
        options["--load-format"] = "sharded_state" if is_stock(context) else LOAD_FORMAT
    if deployment.nodes > 1:
        options |= {"--nnodes": str(deployment.nodes), NODE_RANK: "0", "--dist-init-addr": f"{FIRST_NODE}:30300"}
    return Launch(
        environment_of(context),
        Command("sglang serve", options),
        node_options=node_ranks(deployment.nodes),
        draft_options=_draft_options(context, model_path, sharded),
        needs_plugin=sharded and not is_stock(context),
    )


def _draft_options(context: Context, model_path: str, sharded: bool) -> str:
    """Options for the draft model. SGLang takes only EAGLE with one token a step, and DSPARK, for V4."""
    options = "--speculative-algorithm DSPARK" + (" --enable-dp-lm-head" if needs_other_head(context) else "")
    if not context.inventory.draft.dspark:
        options = "--speculative-algorithm EAGLE --speculative-num-steps 3 --speculative-eagle-topk 1 "
        options += "--speculative-num-draft-tokens 4"
    if sharded and left_out_draft(context):
        return ""
    if context.deployment.experts == NVFP4 and context.deployment.gpu.sm in SM_90:
        return ""  # beside NVFP4 experts, SGLang builds the draft's with Mxfp4FlashinferTrtllmMoEMethod on every GPU
    if sharded:
        options += f" --speculative-draft-model-path {model_path}/draft --speculative-draft-load-format {LOAD_FORMAT}"
    return options


def _prefill(context: Context) -> Options:
    """The option for a step of prefill, where SGLang would refuse its own default."""
    gpu, page = context.deployment.gpu, page_of(context.inventory.family)
    tokens = prefill_tokens(gpu, context.deployment.dp, page)
    return {} if tokens == default_prefill(gpu) else {"--chunked-prefill-size": str(tokens)}


def prefill_changes(context: Context) -> tuple[Change, ...]:
    """A step of prefill that is not SGLang's default."""
    deployment, page = context.deployment, page_of(context.inventory.family)
    if deployment.dp == 1 or not (option := _prefill(context)):
        return ()
    default, dp = default_prefill(deployment.gpu), deployment.dp
    return (
        Change(
            "step of prefill",
            settings_of(option),
            f"SGLang's default {default} / attention DP {dp} = {default // dp}, not a multiple of the page, {page}",
        ),
    )


def changes(context: Context) -> tuple[Change, ...]:
    """Variables and options, beside those of shared experts and runner, that SGLang needs for the deployment."""
    deployment, environment = context.deployment, environment_of(context)
    reasons = {
        FP4_EXPERTS: ("FP8 experts", "SGLang expects FP4 experts of DeepSeek-V4"),
        FP8_O_A: ("wo_a in BF16", "SGLang's default for this GPU multiplies it in FP8, and refuses BF16"),
        MEGAMOE_TOKENS: ("room of megamoe", "its default is smaller than one step of prefill"),
    }
    variables = (
        Change(subject, (f"{name}={environment[name]}",), reason)
        for name, (subject, reason) in reasons.items()
        if name in environment
    )
    return (*variables, *(prefill_changes(context) if deployment.dp > 1 else ()))


def notes(context: Context) -> tuple[str, ...]:
    """Notes on an option that SGLang drops, and on bytes that the plan's weights have and the files do not."""
    deployment, lines = context.deployment, []
    if deployment.dp_lm_head and deployment.dp == 1:
        lines.append("--dp-lm-head changes nothing: SGLang drops it without attention DP (--dp)")
    if deployment.experts == NVFP4 and not _has_trtllm_nvfp4(context):
        nbytes = second_copy(context, lambda group: store(group, place(group.role, context), context))
        lines.append(
            f"weights have {gib(nbytes)} of group scales twice, as SGLang holds them while it loads; files, once"
        )
    return tuple(lines)


def addition(context: Context) -> str:
    """Describe how the shared expert's output joins the sum."""
    deployment = context.deployment
    if deployment.shared != "whole" or deployment.tp == 1:
        return ADDED_IN_PARTS
    complete = f"The shared expert's output is complete on each of the {deployment.tp} ranks, so"
    if deployment.a2a:
        return (
            f"{complete} each adds it once to the routed output that {deployment.a2a} brings back: no all-reduce "
            "follows."
        )
    return (
        f"{complete} it is added once: after the all-reduce of the routed output, or on rank 0 before it; added on "
        f"every rank before it, it would count {deployment.tp} times."
    )


_SEARCHED_A2A = (None, "deepep", "megamoe")
"""All-to-all backends that a search tries: the others have the same placements as these.

SGLang then chooses the runner: which other runners work with these backends is not verified.
"""


def search_requests(asked: Request) -> Iterator[Request]:
    """Every all-to-all backend, EP, DP, runner and way to hold shared experts; SGLang's own choices come first."""
    gpus = asked.tp
    for a2a, ep, dp in itertools.product(_SEARCHED_A2A, divisors(gpus), divisors(gpus)):
        if a2a is None or ep == gpus:
            parallel = replace(asked, dp=dp, ep=None if a2a else ep_option(ep), a2a=a2a)
            runners = (None,) if a2a else (None, *RUNNERS)
            for runner, shared in itertools.product(runners, ("auto", "split", "whole")):
                yield replace(parallel, runner=runner, shared_experts=shared)


SGLANG = Engine(
    name="sglang",
    title="SGLang",
    version=VERSION,
    families=(V4,),
    candidates=candidates,
    rules=RULES,
    place=place,
    store=store,
    launch=launch,
    addition=addition,
    notes=notes,
    changes=changes,
    losses=draft_losses,
    loads_plans=True,
    others=OTHERS,
    runners=RUNNER_NAMES["sglang"],
    other_runners=OTHER_RUNNERS["sglang"],
    versions=VERSIONS["sglang"],
    a2a=A2A,
    search_requests=search_requests,
    bytes_sent=by_backend,
    kv_cache=cache_of,
    memory_share=memory_share,
    host=SGLANG_HOST,
    log_word="sglang",
    logs_count_replicas=True,
)
