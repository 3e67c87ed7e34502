"""What of a running SGLang decides which bytes a rank needs, and what the files are made for: one table.

Shapes show little of it: a swapped rank, expert or half of w13 has the right shape. A fact that SGLang does not tell is
a refusal too. `python -m conformance loader` runs it in SGLang: in deployments that differ in one fact, SGLang's own
loader loads the checkpoint, and ours the files.
"""

from collections.abc import Mapping
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import sglang
import torch
from sglang.srt.eplb.expert_location import get_global_expert_location_metadata
from sglang.srt.runtime_context import get_exec, get_parallel

from dsv4_shard.catalog.gpus import GPUS
from dsv4_shard.engines.expert_locations import IDENTITY, TRIVIAL, name_of
from dsv4_shard.engines.placement import GROUP_NAMES
from dsv4_shard.engines.sglang.files import DRAFT_KEY, LAYOUT, USUAL, W13_ORDERS
from dsv4_shard.errors import LoadRefused
from dsv4_shard.loading.checks import check_fact
from dsv4_shard.loading.facts import Fact, Running, check_facts
from dsv4_shard.text.sanitize import clean

RUNNING = Running("SGLang", sglang.__version__)


def _version() -> str:
    return f"sglang {sglang.__version__.partition('+')[0]}"


_FAMILIES = {gpu.sm: gpu.family for gpu in GPUS.values() if gpu.verified}


def _gpu_family() -> str:
    """Hopper or Blackwell. AMD's GPUs report capabilities too: an MI300X is (9, 4)."""
    if torch.version.cuda is None:
        return "no CUDA"
    major, minor = torch.cuda.get_device_capability()
    sm = 10 * major + minor
    return _FAMILIES.get(sm, f"sm_{sm}")


def _head_group() -> str:
    return GROUP_NAMES["attention" if get_parallel().enable_dp_lm_head else "tp"]


def _redundant_experts() -> int:
    """As the option says, or more if the table has more slots."""
    asked, table = int(get_exec().moe.ep_num_redundant_experts), get_global_expert_location_metadata()
    if table is None:
        return asked
    experts = table.physical_to_logical_map
    return max(asked, int(experts.shape[1]) - int(experts.max()) - 1)


def _expert_locations() -> str:
    """The name of the order in which slots hold experts.

    Without a table SGLang loads the identity too, unless it has yet to apply the option.
    """
    option = get_exec().moe.init_expert_location
    table = get_global_expert_location_metadata()
    if table is None:
        return IDENTITY if option == TRIVIAL else "an --init-expert-location that is not applied yet"
    return name_of(table.physical_to_logical_map.tolist())


FACTS = (
    Fact("layout", lambda: LAYOUT, "reshard with --engine sglang of this release"),
    Fact("engine", _version, "install that version, or reshard for this one"),
    Fact("gpu_family", _gpu_family, "reshard with --gpu of this machine"),
    Fact("tp", lambda: get_parallel().tp_size),
    Fact("ep", lambda: get_parallel().moe_ep_size),
    Fact("attention_dp", lambda: get_parallel().attn_dp_size),
    Fact("lm_head", _head_group, usual=USUAL["lm_head"], of_draft=False),
    Fact(
        "pp", lambda: get_parallel().pp_size, "start SGLang with the plan's --pp-size, none if it has none",
        usual=USUAL["pp"],
    ),
    Fact("MoE DP", lambda: get_parallel().moe_dp_size, "start SGLang without --moe-dp-size", "1"),
    Fact("attention CP", lambda: get_parallel().attn_cp_size, "start SGLang without --attn-cp-size", "1"),
    Fact(
        "elastic EP", lambda: get_exec().moe.elastic_ep_backend or "none",
        "start SGLang without --elastic-ep-backend, whose recovery reads experts from a checkpoint", "none",
    ),
    Fact(
        "redundant experts", _redundant_experts,
        "start SGLang with the plan's --ep-num-redundant-experts, none if it has none",
        usual=USUAL["redundant experts"], of_draft=False,
    ),
    Fact(
        "expert locations", _expert_locations,
        "start SGLang with the plan's --init-expert-location, none if it has none",
        usual=USUAL["expert locations"], of_draft=False,
    ),
)  # fmt: skip
"""Read before the model is built, in this order."""


class Kernels(NamedTuple):
    """How SGLang runs the routed experts of a plan's runner: classes of `quant_method`, values of `runner_backend`."""

    classes: tuple[str, ...]
    backends: tuple[str, ...]


_FP8_METHOD = Kernels(("Fp8MoEMethod",), ("triton", "deep_gemm"))

RUNNERS = {
    "marlin": Kernels(("Mxfp4MarlinMoEMethod", "ModelOptNvFp4FusedMoEMethod"), ("marlin",)),
    "flashinfer_mxfp4": Kernels(
        ("Mxfp4FlashinferCutlassMoEMethod", "Mxfp4FlashinferTrtllmMoEMethod"), ("flashinfer_mxfp4",)
    ),
    "triton": _FP8_METHOD,
    "deep_gemm": _FP8_METHOD,
    "auto": Kernels(
        (*_FP8_METHOD.classes, "ModelOptNvFp4FusedMoEMethod"), (*_FP8_METHOD.backends, "flashinfer_trtllm_routed")
    ),
}
"""The same class puts up before gate in w13, or transposes it, on other backends: flashinfer_trtllm, triton_kernel."""


def is_draft(model_config: Any) -> bool:
    """Whether SGLang loads a draft model. Raises LoadRefused if it does not tell."""
    return bool(RUNNING.told("is_draft_model", lambda: model_config.is_draft_model))


def check_running(identity: Mapping[str, str], *, is_draft: bool) -> None:
    """Compare the table with what the files were made for. Raises LoadRefused with the first fact that differs."""
    check_facts(FACTS, identity, RUNNING, is_draft=is_draft)


def check_place(identity: Mapping[str, str]) -> int:
    """The rank of this process, counted through the pipeline stages.

    Raises LoadRefused if its block of experts, its part of each expert, or its part of attention is not the one that
    the files of this rank hold. `check_running` comes first.
    """
    tp, ep, attention_dp = (int(identity[key]) for key in ("tp", "ep", "attention_dp"))
    within = int(RUNNING.told("rank", lambda: get_parallel().tp_rank))
    rank = within + tp * int(RUNNING.told("pipeline stage", lambda: get_parallel().pp_rank))
    expected = {
        "moe_ep_rank": within * ep // tp,
        "moe_tp_rank": within % (tp // ep),
        "attn_tp_rank": within % (tp // attention_dp),
    }
    for name, value in expected.items():
        found = RUNNING.told(name, partial(attrgetter(name), get_parallel()))
        check_fact(f"{name} of rank {rank}", value, found, RUNNING.as_planned)
    return rank


def identity_of(identity: Mapping[str, str], *, is_draft: bool) -> dict[str, str]:
    """The properties of a target's files, or of its draft's where these have others."""
    own = {name.removeprefix(DRAFT_KEY): value for name, value in identity.items() if name.startswith(DRAFT_KEY)}
    return {**identity, **own} if is_draft else dict(identity)


def check_runner(identity: Mapping[str, str], model: torch.nn.Module) -> None:
    """Check the runner of the routed experts in every layer, and the order within w13.

    Raises LoadRefused, also if no layer has routed experts.
    """
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "w13_weight")}
    if not layers:
        raise LoadRefused("moe_runner: no module of the model has routed experts (w13_weight)")
    name = identity.get("moe_runner", "")
    kernels = RUNNERS.get(name, Kernels((), ()))
    for path, module in layers.items():
        method = RUNNING.told("moe_runner", partial(attrgetter("quant_method"), module))
        backend = RUNNING.told("moe_runner", partial(attrgetter("runner_backend.value"), module))
        if type(method).__name__ not in kernels.classes or backend not in kernels.backends:
            raise LoadRefused(
                f"moe_runner: the files are for {clean(name)}, found {type(method).__name__} with {backend} in {path}: "
                f"{RUNNING.as_planned}"
            )
        order = W13_ORDERS[bool(getattr(method, "load_up_proj_weight_first", False))]
        check_fact("w13_order", identity.get("w13_order", "no order"), order, RUNNING.as_planned)
