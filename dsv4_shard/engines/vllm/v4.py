"""vLLM 0.33.0: rules, placements, and the dtypes in which a rank holds weights.

Read from its sources, and verified against the parameters that its own classes declare when run (tests/data/vllm).
Attention is cut over TP. Data parallelism adds more groups of TP ranks, and the routed experts go over all of them: cut
(EP off) or spread (EP on). The shared expert is cut into `ceil(blocks / TP)` blocks per rank, padded with zeros; it is
whole only under sequence parallelism (EP with data parallelism or with a mega-MoE backend).
"""

from collections.abc import Iterator
from dataclasses import replace
from math import gcd

from dsv4_shard.catalog.options import OTHER_RUNNERS, RUNNERS, VERSIONS, VLLM_BROKEN_VERSIONS, VLLM_VERSIONS
from dsv4_shard.catalog.sms import EVERY_SM, SM_10X, SM_12X, SM_90
from dsv4_shard.checkpoint import NVFP4, PACKED, Inventory, TensorGroup
from dsv4_shard.engines.bytes_sent import added_up, all_to_all
from dsv4_shard.engines.deployment import Context, Deployment, Request, experts_of, pick_gpu, resolve
from dsv4_shard.engines.drafts import VLLM_CONSTRUCTION, VLLM_LOADING, draft_choices, draft_losses, drafted, is_left_out
from dsv4_shard.engines.engine import Engine
from dsv4_shard.engines.host_memory import VLLM_HOST
from dsv4_shard.engines.nvfp4 import is_nvfp4, nvfp4_tensor
from dsv4_shard.engines.parallelism import ep_off_or_all
from dsv4_shard.engines.pipeline import HYPER_HEAD, rest_before_the_last
from dsv4_shard.engines.pipeline_rules import STAGES_OF_REPLICAS_RULE, VLLM_PIPELINE_RULES, unverified_stages
from dsv4_shard.engines.placement import Expert, Pad, Placement, RankTensor, Replicate, Split, rank_tensor
from dsv4_shard.engines.remedies import FEWER_RANKS, FULL_EP, for_engine, leave_out
from dsv4_shard.engines.rules import NO_OPTION, NOT_VERIFIED, SILENT, Divides, Requires, Rule, Symptom, in_stage
from dsv4_shard.engines.shared_rules import (
    ADDED_IN_PARTS,
    COLUMN_QUOTE,
    DOWN_QUOTE,
    GATE_UP_QUOTE,
    INDIVISIBLE_QUOTE,
    NO_CAST_RULE,
    NODES_RULE,
    ROW_QUOTE,
    SGLANG_OPTIONS_RULE,
    attention_rules,
    heads_rule,
    shares_blocks_evenly,
    version_rule,
    vocab_placement,
    vocab_rule,
)
from dsv4_shard.engines.stages import StartStage
from dsv4_shard.engines.vllm.backends import (
    TILE,
    backend_of,
    default_backend,
    fits,
    is_aligned,
    is_mega,
    misreads_scales,
    table_of,
)
from dsv4_shard.engines.vllm.kv_cache import cache_of, memory_share
from dsv4_shard.engines.vllm.launch import launch, launch_by_plan
from dsv4_shard.engines.vllm.loaders import stock_loaders
from dsv4_shard.models import V4, Module, Part, Role
from dsv4_shard.tensors.geometry import FP4_GROUP, NVFP4_GROUP
from dsv4_shard.text.units import quotient

VERSION = VLLM_VERSIONS[0]

_SMALLEST_FP8_BLOCK = 32

_SINK_TILE = 64
"""FlashMLA's kernels need 64 or 128 heads; a rank's attention sinks are padded to that."""


_OTHER_NVFP4 = ("flashinfer_cutlass", "flashinfer_moe_ep_cutedsl")
"""Further values of `--runner` that vLLM takes for NVFP4 experts (`oracle/nvfp4.py`, `map_nvfp4_backend`)."""

_ROUTED = (Role.ROUTED_GATE, Role.ROUTED_UP, Role.ROUTED_DOWN)

_SHARED_AXIS = {Role.SHARED_GATE: 0, Role.SHARED_UP: 0, Role.SHARED_DOWN: 1}


def candidates(inventory: Inventory, request: Request) -> Iterator[Deployment]:
    """The only deployment of vLLM for a request: the user cannot choose what is padded or kept whole."""
    gpu, experts = pick_gpu(request), experts_of(request, inventory)
    world = request.tp * request.dp
    ep = request.ep or 1
    aligned = ep > 1 or inventory.config.moe_intermediate_size % (world * TILE) == 0
    runner = request.runner or default_backend(experts, gpu.sm, ep, aligned)
    backend = table_of(experts).get(runner)
    spread = ep > 1 and (request.dp > 1 or (backend is not None and backend.sequence_parallel))
    whole = spread or (request.tp == 1 and request.dp > 1)
    own_way = "whole" if whole else "split" if shares_blocks_evenly(inventory, request.tp) else "pad"
    yield resolve(
        request, inventory, engine="vllm", version=VERSION, ep=ep, runner=runner, shared=own_way,
        shared_parts=1 if whole else request.tp, world=world, attention_tp=request.tp, moe_tp=world if ep == 1 else 1,
        split=rest_before_the_last,
    )  # fmt: skip


def _whole_shared(context: Context) -> bool:
    """Whether each of several ranks holds whole shared experts."""
    return context.deployment.shared_parts == 1 and context.deployment.stage_world > 1


def misloads(context: Context) -> str | None:
    """Fault of vLLM's own loader with the checkpoint, which shards avoid; None without one."""
    if misreads_scales(context):
        return "its own loader reads the E8M0 scales of FP8 experts as plain bytes (2^-7 becomes 120)"
    return None


CHOICES: tuple[Rule, ...] = (
    Requires(
        "broken-version", Module.HYPER, lambda c: c.deployment.version not in VLLM_BROKEN_VERSIONS,
        "vLLM {at.version} loads sharded_state and then fails in the first forward (hc_attn_fn_broadcast is not set)",
        "AssertionError", fatal=True,
        remedies=(leave_out("engine_version"), "vLLM 0.29.0 and later mend it (upstream PR 51368)"),
        heard=("hc_attn_fn_broadcast…AssertionError",), stage=StartStage.SERVING,
    ),
    version_rule(*VLLM_VERSIONS),
    unverified_stages("vLLM"),
    STAGES_OF_REPLICAS_RULE,
    Requires(
        "ep", Module.ROUTED, lambda c: c.deployment.ep in (1, c.deployment.stage_world),
        "vLLM's expert parallelism is off or spans all {at.stage_world} GPUs (TP × DP), so EP {at.ep} is not possible",
        consequence=NO_OPTION, remedies=(leave_out("ep"), FULL_EP), fatal=True,
    ),
    Requires(
        "a2a", Module.ROUTED, lambda c: c.deployment.a2a is None, "--a2a is SGLang's; vLLM picks its own (--runner)",
        consequence=NO_OPTION, remedies=(leave_out("a2a"),), fatal=True,
    ),
    SGLANG_OPTIONS_RULE,
    *draft_choices("vllm"),
)  # fmt: skip
"""What vLLM cannot be asked for, and versions whose rules are not these."""

_HEADS = "Total number of attention heads ({size}) must be divisible by tensor parallel size ({parts})."

CONFIGURATION_RULES = in_stage(
    StartStage.CONFIGURATION,
    replace(NODES_RULE, uneven=Symptom(
        "ValueError: Invalid data-parallel launch options: `--nnodes {parts}` must evenly divide the total world size "
        "({size}).", remedies=(leave_out("nodes"),),
    )),
    heads_rule(Symptom(
        f"Value error, {_HEADS}", remedies=(FEWER_RANKS,),
        heard=("assert n_heads % tp_size == 0", "Attention sink heads ({size}) must be divisible by tp_size"),
    )),
)  # fmt: skip
"""vLLM's conditions before it builds a model of any generation: `arg_utils.py`, then `config/model.py`."""

_UNSUPPORTED = "does not support the deployment configuration since kernel does not support"


def _unsupported(context: Context) -> str | None:
    """What vLLM says of a backend that has no kernels for the GPU (`oracle/mxfp4.py`, `oracle/fp8.py`)."""
    backend = backend_of(context)
    if backend is not None and backend.experts == NVFP4:
        return None
    if backend is None or is_mega(context):
        return "NotImplementedError: DeepGEMM MegaMoE requires SM100 GPUs." if backend else None
    if backend.experts == "FP4":
        return f"ValueError: Mxfp4 MoE backend '{backend.enum}' {_UNSUPPORTED} current device cuda."
    return f"ValueError: FP8 MoE backend {backend.enum} {_UNSUPPORTED}"


def _unmapped(context: Context) -> str | None:
    """What vLLM says of a backend that it does not have for NVFP4 experts (`oracle/nvfp4.py`)."""
    deployment = context.deployment
    if deployment.experts != NVFP4:
        return None
    return f"ValueError: moe_backend='{deployment.runner}' is not supported for NvFP4 MoE."


def _is_known_nvfp4(context: Context) -> bool:
    """Whether the backend of NVFP4 experts, if they are, is one that was run for the GPU."""
    deployment = context.deployment
    known = {"marlin": SM_90, "flashinfer_trtllm": SM_10X}.get(deployment.runner, frozenset())
    return deployment.experts != NVFP4 or deployment.gpu.sm in known


BACKEND_RULES: tuple[Rule, ...] = (
    Requires(
        "runner-known", Module.ROUTED, lambda c: c.deployment.runner not in OTHER_RUNNERS["vllm"],
        "vLLM's own classes were not run with MoE backend {at.runner}", consequence=NOT_VERIFIED,
        remedies=(leave_out("runner"),), fatal=True,
    ),
    Requires(
        "runner", Module.ROUTED,
        lambda c: backend_of(c) is not None or (c.deployment.experts == NVFP4 and c.deployment.runner in _OTHER_NVFP4),
        "vLLM has no MoE backend {at.runner!r} for {at.experts} experts", _unmapped,
        remedies=(leave_out("runner"),), fatal=True,
    ),
    Requires(
        "runner-gpu", Module.ROUTED,
        lambda c: c.deployment.gpu.sm in getattr(backend_of(c), "sms", EVERY_SM),
        "MoE backend {at.runner} does not take {at.experts} experts on {at.gpu.family} (sm_{at.gpu.sm})", _unsupported,
        remedies=(leave_out("runner"),), fatal=True,
    ),
    Requires(
        "nvfp4-backend", Module.ROUTED, _is_known_nvfp4,
        "vLLM's own loader was not run with NVFP4 experts and backend {at.runner} on {at.gpu.family} "
        "(sm_{at.gpu.sm})",
        consequence=NOT_VERIFIED, remedies=(leave_out("runner"),), fatal=True,
    ),
)  # fmt: skip
"""vLLM's conditions on an MoE backend, which it checks while it builds the experts."""

_MEGA_RULE = Requires(
    "mega-ep", Module.ROUTED, lambda c: not getattr(backend_of(c), "sequence_parallel", False)
    or c.deployment.ep > 1,
    "MoE backend {at.runner} needs expert parallelism",
    "NotImplementedError: DeepSeek V4 MegaMoE currently requires expert parallel.", remedies=(FULL_EP,), fatal=True,
)  # fmt: skip

_MEGA_EXPERTS_RULE = Divides(
    "mega-experts", Module.ROUTED, lambda c: c.config.n_routed_experts, "n_routed_experts", lambda c: c.deployment.ep,
    "EP", uneven=Symptom(
        "AssertionError: n_physical_experts={size} must be divisible by ep_size={parts}. Adjust "
        "num_redundant_experts.", remedies=(leave_out("runner"),),
    ), when=is_mega,
)  # fmt: skip

VOCAB_RULE = vocab_rule(Symptom(remedies=(FEWER_RANKS,), heard=(INDIVISIBLE_QUOTE,)))

_PADS = Symptom(consequence="{engine} has no such option: it pads them", remedies=(leave_out("shared_experts"),))

_GROUPS = Symptom(
    consequence=f"{SILENT}starts with {{part}} output groups per rank, then ZeroDivisionError or garbage (vllm#43174)",
    heard=(
        "r = wq.size(0) // bmm_batch_size",
        "ZeroDivisionError…deepgemm_post_process_fp8_weight_block",
        "deepgemm_post_process_fp8_weight_block…ZeroDivisionError",
    ),
)


def has_even_parts(context: Context) -> bool:
    """Whether the ranks that share an expert hold equal parts of it."""
    return context.config.moe_intermediate_size % context.deployment.moe_tp == 0


ROUTED_PARTS_RULE = Divides(
    "routed-parts", Module.ROUTED, lambda c: c.config.moe_intermediate_size, "moe_intermediate_size",
    lambda c: c.deployment.moe_tp, "MoE TP",
    uneven=Symptom(
        "assert self.intermediate_size % tp_size == 0", remedies=(FULL_EP,),
        heard=("assert intermediate_size % self.tp_size == 0",),
    ),
)  # fmt: skip
"""`FusedMoEConfig.__post_init__`, which runs before a backend is chosen."""

RULES: tuple[Rule, ...] = (
    *CHOICES,
    Requires(
        "shared-whole", Module.SHARED, lambda c: c.deployment.shared != "whole" or _whole_shared(c)
        or c.deployment.stage_world == 1,
        "vLLM keeps shared experts whole only at TP 1 or under sequence parallelism (EP with data parallelism); under "
        "plain TP it pads them, and has no option for another way", consequence=NO_OPTION,
        remedies=(leave_out("shared_experts"), for_engine("sglang")), fatal=True,
    ),
    Requires(
        "shared-way", Module.SHARED, lambda c: c.deployment.shared == "whole" or not _whole_shared(c),
        "at TP 1 or under sequence parallelism vLLM keeps shared experts whole", consequence=NO_OPTION,
        remedies=(leave_out("shared_experts"),), fatal=True,
    ),
    *CONFIGURATION_RULES,
    NO_CAST_RULE,
    *VLLM_PIPELINE_RULES,
    *in_stage(
        StartStage.CONSTRUCTION,
        _MEGA_RULE,
        VOCAB_RULE,
        *attention_rules((FEWER_RANKS,), None, None, _GROUPS),
        Requires(
            "o_a-format", Module.ATTENTION, lambda c: c.format(Role.O_A).name == "FP8",
            "wo_a is stored in {context.o_a_format}; vLLM casts it to FP8 without a scale",
            consequence=f"{SILENT}starts, and computes garbage",
            remedies=(for_engine("sglang"), "the original FP4 checkpoint"),
        ),
        ROUTED_PARTS_RULE,
        _MEGA_EXPERTS_RULE,
        *BACKEND_RULES,
        Divides(
            "routed-groups", Module.ROUTED, lambda c: c.config.moe_intermediate_size, "moe_intermediate_size",
            lambda c: c.deployment.moe_tp, "MoE TP",
            lambda c: NVFP4_GROUP if c.deployment.experts == NVFP4 else FP4_GROUP, "FP4 groups",
            cut=Symptom(consequence=f"{SILENT}starts, and cuts scales in the wrong place", remedies=(FULL_EP,)),
            when=lambda c: c.deployment.experts in PACKED and has_even_parts(c),
        ),
        Divides(
            "routed-blocks", Module.ROUTED, lambda c: c.config.moe_intermediate_size, "moe_intermediate_size",
            lambda c: c.deployment.moe_tp, "MoE TP", lambda c: _SMALLEST_FP8_BLOCK, "refined blocks",
            cut=Symptom(GATE_UP_QUOTE.replace("{unit}", str(TILE)), remedies=(FULL_EP,)),
            when=lambda c: fits(c, "refine") and has_even_parts(c),
        ),
        Divides(
            "shared-blocks", Module.SHARED, lambda c: c.shared_intermediate, "shared intermediate size",
            lambda c: c.deployment.shared_parts, "TP", lambda c: c.block(Role.SHARED_GATE).rows, "blocks",
            _PADS, _PADS, when=lambda c: c.deployment.shared == "split",
        ),
        VLLM_CONSTRUCTION,
    ),
    *in_stage(StartStage.LOADING, VLLM_LOADING),
)  # fmt: skip

OTHERS: tuple[Rule, ...] = in_stage(
    StartStage.CONSTRUCTION,
    Divides(
        "unpadded-shared-blocks", Module.SHARED, lambda c: c.shared_intermediate, "shared intermediate size",
        lambda c: c.deployment.shared_parts, "TP", lambda c: c.block(Role.SHARED_GATE).rows, "blocks",
        cut=Symptom(
            COLUMN_QUOTE, remedies=(f"a vLLM with PR 46001, as {VERSION}: it pads the shared experts",),
            heard=(ROW_QUOTE,),
        ),
    ),
    Divides(
        "unrefined-routed-blocks", Module.ROUTED, lambda c: c.config.moe_intermediate_size, "moe_intermediate_size",
        lambda c: c.deployment.moe_tp, "MoE TP", lambda c: c.block(Role.ROUTED_GATE).rows, "blocks",
        cut=Symptom(
            GATE_UP_QUOTE, remedies=(f"vLLM {VERSION}, which cuts blocks of FP8 experts finer or pads them", FULL_EP),
            heard=(DOWN_QUOTE,),
        ),
        when=lambda c: c.deployment.experts == "FP8",
    ),
)  # fmt: skip
"""Before PR 46001 shared experts were not padded; 0.26.0 refused FP8 experts in partial blocks."""

_PLACEMENTS: dict[Role, Placement] = {
    Role.Q_B: Split(0, "attention"),
    Role.O_A: Split(0, "attention"),
    Role.O_B: Split(1, "attention"),
    Role.ATTN_SINK: Split(0, "attention", _SINK_TILE),
}


def place(role: Role, context: Context) -> Placement:
    """vLLM's placement of `role`."""
    deployment = context.deployment
    if role in (Role.EMBED, Role.HEAD):
        return vocab_placement(context)
    if role in _SHARED_AXIS:
        axis = _SHARED_AXIS[role]
        if deployment.shared_parts == 1:
            return Replicate()
        return Pad(axis, "tp", context.block(role)[axis]) if deployment.shared == "pad" else Split(axis, "tp")
    if role in _ROUTED:
        if deployment.moe_tp == 1:
            return Expert(Replicate())
        axis = 1 if role is Role.ROUTED_DOWN else 0
        if fits(context, "pad") and not is_aligned(context):
            return Expert(Pad(axis, "moe", TILE))
        backend = backend_of(context)
        return Expert(Split(axis, "moe", backend.tile if backend is not None and backend.fit == "tile" else 1))
    return _PLACEMENTS.get(role, Replicate())


def store(group: TensorGroup, placement: Placement, context: Context) -> RankTensor | None:
    """vLLM's parameter dtypes: FP4 models keep E8M0 scales, FP8 models hold F32, in finer blocks if needed."""
    if group.role in (Role.MTP_EMBED, Role.MTP_HEAD) or is_left_out(group.stage, context):
        return None
    if is_nvfp4(group, context):
        return nvfp4_tensor(group, placement, context, scales_twice=False, all_inputs=holds_all_inputs(context))
    repeat = scale_repeat(group.role, group.part, context)
    if repeat > 1:
        rows, cols = group.shape
        group = group._replace(shape=(rows * repeat, cols * repeat), nbytes=group.nbytes * repeat * repeat)
    dtype = parameter_dtype(group.role, group.part, context)
    return rank_tensor(group, placement, context, None if dtype == "U8" else dtype)


def holds_all_inputs(context: Context) -> bool:
    """Whether a rank holds the input scales of all NVFP4 experts: with Blackwell's kernels."""
    return context.deployment.gpu.sm in SM_10X


def scale_repeat(role: Role, part: Part, context: Context) -> int:
    """How often each scale of FP8 experts is repeated on both axes, for blocks that vLLM cuts finer."""
    if role not in _ROUTED or part is not Part.SCALE or not fits(context, "refine") or is_aligned(context):
        return 1
    block, config = context.block(role), context.config
    return block.rows // gcd(config.moe_intermediate_size // context.deployment.moe_tp, block.rows, config.hidden_size)


def parameter_dtype(role: Role, part: Part, context: Context) -> str | None:
    """The dtype of vLLM's parameter; None if it is the checkpoint's."""
    if role is Role.ROUTER_HASH:
        return None if is_mega(context) else "I32"
    if role is Role.DSPARK_CONFIDENCE:
        return "F32"
    if role in _ROUTED and context.deployment.experts == "FP4":
        return None if is_mega(context) and part is Part.WEIGHT else "U8"
    return "F32" if part is Part.SCALE and context.deployment.experts == "FP8" else None


def drafted_context(context: Context) -> Context:
    """The context of the draft model: beside NVFP4 experts, FP4 ones with vLLM's own choice of backend for them."""
    at = context.deployment
    return drafted(context, default_backend("FP4", at.gpu.sm, at.ep, is_aligned(context)))


def addition(context: Context) -> str:
    """Describe how the shared expert's output joins the sum."""
    if context.deployment.shared == "whole" and context.deployment.stage_world > 1:
        once = "each rank runs the whole shared expert on its own tokens and adds it once"
        if context.deployment.tp == 1:
            return f"Under data parallelism {once}."
        return f"Under sequence parallelism {once}; summed over ranks it would count {context.deployment.tp} times."
    return ADDED_IN_PARTS


def notes(context: Context) -> tuple[str, ...]:
    """Notes on padding, and on the ranks that hold only padding."""
    deployment, config = context.deployment, context.config
    lines = []
    if deployment.shared == "pad" and deployment.shared_parts > 1:
        unit = context.block(Role.SHARED_GATE).rows
        lines.append(_padded("shared experts", -(-context.shared_intermediate // unit), unit, deployment.tp))
    if deployment.moe_tp > 1:
        local, backend = config.moe_intermediate_size // deployment.moe_tp, backend_of(context)
        if backend is not None and backend.fit == "tile" and local % backend.tile:
            padded = -(-local // backend.tile) * backend.tile
            lines.append(f"routed experts padded: {local} rows per rank, rounded up to {padded}")
        elif fits(context, "pad") and not is_aligned(context):
            lines.append(_padded("routed experts", config.moe_intermediate_size // TILE, TILE, deployment.moe_tp))
    if deployment.runner == "deep_gemm" and deployment.gpu.sm in SM_12X:
        other = "marlin" if deployment.experts == "FP4" else "triton"
        lines.append(f"runner deep_gemm: where DeepGEMM's kernels for sm_12x are missing, vLLM takes {other}")
    if misreads_scales(context):
        lines.append(
            "routed experts: vLLM's own loader reads these E8M0 scales as plain bytes (2^-7 becomes 120); the shards "
            "hold the right values, so serve them and not the checkpoint"
        )
    if config.n_routed_experts % deployment.ep:
        least, more = divmod(config.n_routed_experts, deployment.ep)
        lines.append(f"routed experts uneven: {more} ranks hold {least + 1}, the others {least} (not with EPLB)")
    return tuple(lines)


def _padded(what: str, blocks: int, unit: int, ranks: int) -> str:
    """Describe `ceil(blocks / ranks)` blocks per rank, and the ranks that hold only zeros."""
    each = -(-blocks // ranks)
    used = -(-blocks // each)
    zeros = f"; ranks {used}-{ranks - 1} hold only zeros" if used < ranks else ""
    return (
        f"{what} padded: {blocks} blocks of {unit} / TP {ranks} = {quotient(blocks, ranks)}, so {each} "
        f"({each * unit} rows) per rank{zeros}"
    )


def bytes_sent(context: Context) -> int:
    """Bytes of an all-to-all with mega-MoE backends, else of an all-reduce over all GPUs."""
    backend = backend_of(context)
    spread = context.deployment.a2a or (backend is not None and backend.sequence_parallel)
    return all_to_all(context) if spread else added_up(context)


VLLM = Engine(
    name="vllm",
    title="vLLM",
    version=VERSION,
    families=(V4,),
    candidates=candidates,
    rules=RULES,
    place=place,
    store=store,
    launch=launch,
    addition=addition,
    notes=notes,
    drafted=drafted_context,
    losses=draft_losses,
    misloads=misloads,
    launch_by_plan=launch_by_plan,
    stock_loaders=stock_loaders,
    others=OTHERS,
    runners=RUNNERS["vllm"],
    other_runners=OTHER_RUNNERS["vllm"],
    versions=VERSIONS["vllm"],
    failing_versions=VLLM_BROKEN_VERSIONS,
    dp_multiplies=True,
    parallelism=ep_off_or_all,
    bytes_sent=bytes_sent,
    kv_cache=cache_of,
    memory_share=memory_share,
    host=VLLM_HOST,
    on_every_stage=HYPER_HEAD,
    log_word="vllm",
)
