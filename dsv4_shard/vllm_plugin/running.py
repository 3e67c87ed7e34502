"""What of a running vLLM decides which bytes a rank needs, and what the files are made for: one table.

`python -m conformance files` runs it in vLLM: its own loader loads the checkpoint, and ours the files.
"""

from collections.abc import Mapping
from functools import partial
from operator import attrgetter

import torch
import vllm
from vllm.config import get_current_vllm_config
from vllm.distributed import get_dp_group, get_pcp_group, get_pp_group, get_tp_group

from dsv4_shard.engines.expert_places import in_order
from dsv4_shard.engines.vllm.files import LAYOUT
from dsv4_shard.errors import LoadRefused
from dsv4_shard.loading.checks import check_fact
from dsv4_shard.loading.facts import Fact, Running, check_facts
from dsv4_shard.vllm_plugin.mega_moe import mega_layers

RUNNING = Running("vLLM", vllm.__version__)


def _version() -> str:
    return f"vllm {vllm.__version__.partition('+')[0]}"


def _ep() -> int:
    """Ranks over which experts are spread: all of them, or 1 without expert parallelism."""
    parallel = get_current_vllm_config().parallel_config
    return get_tp_group().world_size * get_dp_group().world_size if parallel.enable_expert_parallel else 1


def _redundant() -> int:
    return int(get_current_vllm_config().parallel_config.eplb_config.num_redundant_experts)


FACTS = (
    Fact("engine", _version, "install that version, or reshard for this one"),
    Fact("tp", lambda: get_tp_group().world_size),
    Fact("dp", lambda: get_dp_group().world_size, usual="1"),
    Fact("ep", _ep),
    Fact(
        "pp", lambda: get_pp_group().world_size,
        "start vLLM with the plan's --pipeline-parallel-size, none if it has none", usual="1",
    ),
    Fact("prefill CP", lambda: get_pcp_group().world_size, "start vLLM without --prefill-context-parallel-size", "1"),
    Fact("redundant experts", _redundant, "start vLLM without num_redundant_experts in --eplb-config", "0"),
)  # fmt: skip
"""Read before a file is opened, in this order."""


def check_running(identity: Mapping[str, str], *, is_draft: bool) -> int:
    """Compare the table with what the files were made for, and return the rank of this process.

    Ranks are counted through the replicas, `dp_rank * tp + tp_rank`, or likewise through the pipeline stages: no files
    have both. Raises LoadRefused with the first difference.
    """
    layout = identity.get("layout", "no layout")
    check_fact("layout", layout.partition(",")[0], LAYOUT, "reshard with --engine vllm of this release")
    check_facts(FACTS, identity, RUNNING, is_draft=is_draft)
    tp, dp, pp = get_tp_group(), get_dp_group(), get_pp_group()
    outer = RUNNING.told("rank", lambda: dp.rank_in_group * pp.world_size + pp.rank_in_group)
    return int(outer * tp.world_size + RUNNING.told("rank", lambda: tp.rank_in_group))


def check_experts(identity: Mapping[str, str], rank: int, model: torch.nn.Module) -> None:
    """Check in every layer that this rank holds the experts, and the part of each, that its files hold.

    Raises LoadRefused, also if no layer has routed experts.
    """
    ranks, ep = int(identity["tp"]) * int(identity.get("dp", "1")), int(identity["ep"])
    rank %= ranks  # within its pipeline stage
    layers = {path: module for path, module in model.named_modules() if hasattr(module, "expert_map_manager")}
    mega = mega_layers(model)
    if not layers and not mega:
        raise LoadRefused("experts: no module of the model has routed experts (expert_map_manager, MegaMoE)")
    for path, module in mega.items():
        own = in_order(module.num_logical_experts, ep).experts[rank]
        found = (module.experts_start_idx, module.num_local_experts)
        check_fact(f"first expert, experts in {path}", (own[0], len(own)), found, RUNNING.as_planned)
    for path, module in layers.items():
        manager = RUNNING.told("experts", partial(attrgetter("expert_map_manager"), module))
        place = (manager.ep_size, manager.ep_rank, manager.tp_size, manager.tp_rank)
        due = (ep, rank, 1, 0) if ep > 1 else (1, 0, ranks, rank)
        check_fact(f"EP size, EP rank, MoE TP size, MoE TP rank in {path}", due, place, RUNNING.as_planned)
        if ep > 1:
            experts = manager.expert_map.cpu()
            held = tuple((experts >= 0).nonzero().flatten().tolist())
            slots = experts[list(held)].tolist()
            own = in_order(len(experts), ep).experts[rank]
            if held != own or slots != list(range(len(own))):
                raise LoadRefused(
                    f"experts: rank {rank} has experts {own[0]} to {own[-1]} in its files, and vLLM has others in "
                    f"{path}: start vLLM with --expert-placement-strategy linear"
                )
