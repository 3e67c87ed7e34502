"""SGLang's conditions on a deployment that its models of several generations share, in the order of its start."""

from collections.abc import Callable
from dataclasses import replace

from dsv4_shard.catalog.options import A2A, VERSIONS
from dsv4_shard.catalog.sms import EVERY_SM, SM_10X, SM_90
from dsv4_shard.checkpoint import NVFP4
from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.drafts import SGLANG_CONFIGURATION, draft_choices
from dsv4_shard.engines.pipeline_rules import STAGES_ON_NODES_RULE, unverified_stages
from dsv4_shard.engines.remedies import (
    ANY_DP,
    ANY_EP,
    DEEPEP,
    FULL_DP,
    MARLIN,
    MORE_EP,
    REDUNDANT,
    WHOLE_SHARED,
    for_engine,
    leave_out,
)
from dsv4_shard.engines.rules import NO_OPTION, NOT_VERIFIED, SILENT, Divides, Remedy, Requires, Rule, Symptom, in_stage
from dsv4_shard.engines.sglang.runners import RUNNERS, built, is_mxfp4, runner_of
from dsv4_shard.engines.shared_rules import COLUMN_QUOTE, DOWN_QUOTE, EXPERTS, EXPERTS_RULE, NODES_RULE, version_rule
from dsv4_shard.engines.stages import StartStage
from dsv4_shard.models import V41, Module, Role
from dsv4_shard.tensors.geometry import FP4_GROUP

VERSION = VERSIONS["sglang"][0]

_TOPOLOGY_QUOTE = (
    "ValueError: parallel topology is inconsistent (set by override_permanently):\ntp_size == moe_ep_size * "
    "moe_dp_size * moe_tp_size\n  {size} != {parts} * 1 * {part} (= {context.topology_ranks})"
)

WRONG_SILENTLY = f"{SILENT}starts, and computes garbage or fails in the first forward"


def _moe_unit(context: Context) -> int:
    row = built(context)
    return row.unit if row else 1


def _moe_unit_name(context: Context) -> str | None:
    row = built(context)
    return row.unit_name if row else None


def _moe_quote(context: Context) -> str | None:
    row = built(context)
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
    unverified_stages("SGLang"),
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
    *draft_choices("sglang"),
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
        "pp-v41", Module.DEPLOYMENT, lambda c: c.deployment.pp == 1 or c.inventory.family is not V41,
        "SGLang does not support pipeline parallelism for V4.1",
        "ValueError: DeepSeek-V4.1 does not support pipeline parallelism yet; disable it to serve this model.",
        remedies=(leave_out("pp", "pp_partition"),), fatal=True,
    ),
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
    STAGES_ON_NODES_RULE,
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
    *SGLANG_CONFIGURATION,
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
    "marlin-gpu", Module.ROUTED, lambda c: not is_mxfp4(c, "marlin") or runner_of(c) is not None,
    "runner marlin does not take FP4 experts on {at.gpu.family} (sm_{at.gpu.sm})",
    "RuntimeError: MXFP4 Marlin requires SM90 or SM120.", remedies=(leave_out("runner"),),
)  # fmt: skip

RUNNER_RULES: tuple[Rule, ...] = (
    Requires(
        "triton-fp4", Module.ROUTED, lambda c: not is_mxfp4(c, "triton"),
        "runner triton does not take FP4 experts: it takes two packed values for one, so half the hidden size",
        "AssertionError: Hidden size mismatch", stage=StartStage.SERVING,
        remedies=(MARLIN, leave_out("runner"), "a checkpoint with FP8 experts, with SGLANG_DSV4_FP4_EXPERTS=0"),
    ),
    Requires(
        "runner", Module.ROUTED,
        lambda c: runner_of(c) is not None or is_mxfp4(c, "marlin") or is_mxfp4(c, "triton"),
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
        _moe_quote, WRONG_SILENTLY,
        (MARLIN, MORE_EP),
        (DOWN_QUOTE,),
        tuple(dict.fromkeys(row.quote for rows in RUNNERS.values() for row in rows if row.quote)),
    ),
)  # fmt: skip

MARLIN_GROUPS_RULE = Divides(
    "marlin-groups", Module.ROUTED, lambda c: c.config.moe_intermediate_size, "moe_intermediate_size",
    lambda c: c.deployment.moe_tp, "MoE TP", lambda _: FP4_GROUP, "FP4 groups",
    cut=Symptom("RuntimeError: Current MXFP4 MoE layer does not satisfy Marlin constraints.", remedies=(MORE_EP,)),
    when=lambda c: is_mxfp4(c, "marlin"),
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
    lambda c: c.block(Role.SHARED_GATE).rows if c.deployment.shared == "split" else 1, "multiples",
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


NVFP4_RULES = (
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
