"""From a case to SGLang's own arguments, process groups, model config and model, as a worker of one rank makes them.

`stubs.install` must have run before this module is imported. Faked here: process groups (torch's own fake backend), and
tensors asked for on CUDA, which come to lie on the CPU.

The model's module decides by environment variables, when it is imported, how its parameters look; the resolution of the
arguments sets some of them. So `prepare` comes before any import of the model, in this package too.
"""

import importlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed import bootstrap, parallel_state
from sglang.srt.eplb.expert_location import (
    compute_initial_expert_location_metadata,
    set_global_expert_location_metadata,
)
from sglang.srt.layers.moe import initialize_moe_config
from sglang.srt.model_loader import loader as loaders
from sglang.srt.plugins import load_plugins
from sglang.srt.runtime_context import SpawnRanks, get_parallel, publish
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils import common
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from conformance.cases import Case
from conformance.jobs import Job

OWN_RUNNERS = ("auto", "triton")
"""What SGLang picks by itself for FP8 experts; `dsv4-shard plan` leaves the option out too."""


_COMMUNICATORS = frozenset(
    {
        "use_custom_allreduce",
        "use_message_queue_broadcaster",
        "use_mscclpp",
        "use_pynccl",
        "use_torch_symm_mem_all_reduce",
    }
)
"""Ways to talk between GPUs that a group would set up when it is made."""


class Prepared(NamedTuple):
    """Resolved arguments, and the folder of the draft model."""

    args: ServerArgs
    draft: Path


_prepared: list[Prepared] = []
"""Of the case that this process is for: the jobs of its ranks are forked with it."""


def prepare(job: Job) -> None:
    """Discover plugins, resolve the arguments of `sglang serve` for a job's case, then import the model."""
    case = Case(**job["case"])
    if "memory" in job:
        common.get_nvgpu_memory_capacity = lambda: job["memory"]
    load_plugins()
    args = _server_args(case, job["model"], job.get("load_format", "auto"), job.get("options", {}))
    args.resolve_once()
    for module in ("deepseek_v4_nextn", "deepseek_v4_dspark", "registry"):
        importlib.import_module(f"sglang.srt.models.{module}")
    _prepared.append(Prepared(args, Path(job.get("draft") or job["model"])))


def prepared_args() -> ServerArgs:
    """The resolved arguments of this process's case."""
    return _prepared[-1].args


def _server_args(case: Case, model: str, load_format: str, more: dict[str, Any]) -> ServerArgs:
    options: dict[str, Any] = {
        "model_path": model,
        "tp_size": case.tp,
        "ep_size": case.ep,
        "load_format": load_format,
        "trust_remote_code": True,
        "device": "cuda",
        "skip_tokenizer_init": True,
        "disable_custom_all_reduce": True,
        "log_level": "error",
    }
    if case.dp > 1:
        options["attn_dp_size"] = case.dp
    if case.runner not in OWN_RUNNERS:
        options["moe_runner_backend"] = case.runner
    if case.pp > 1:
        options["pp_size"] = case.pp
    if case.redundant:
        options["ep_num_redundant_experts"] = case.redundant
    if case.locations_file:
        options["init_expert_location"] = case.locations_file
    if case.dp_lm_head:
        options["enable_dp_lm_head"] = True
    if case.a2a:
        options["moe_a2a_backend"] = case.a2a
    if case.draft and case.dspark:
        options["speculative_algorithm"] = "DSPARK"
    return ServerArgs(**options | more)


def bring_up(job: Job) -> ModelConfig:
    """Publish the arguments for a job's rank, make its groups, and return the config of the target or draft model."""
    args, draft = _prepared[-1]
    world_rank = job["rank"] + args.tp_size * job.get("stage", 0)
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=world_rank, gpu_id=0))
    config = ModelConfig.from_server_args(args)
    _fake_groups()
    bootstrap._set_all_reduce_flags()
    bootstrap._init_parallel_groups(backend="nccl", dist_init_method="fake", server_args=args, gpu_id=0)
    try:
        bootstrap.init_layer_runtime(model_config=config)
    except Exception as error:  # kernels that it warms up are stubs
        print("init_layer_runtime:", type(error).__name__, error, file=sys.stderr)
    initialize_moe_config()
    if job.get("placed", True):
        _place_experts(config)
    if not job["case"]["draft"]:
        return config
    return ModelConfig.from_server_args(args, model_path=str(draft), is_draft_model=True)


def _place_experts(config: ModelConfig) -> None:
    """Set the initial location of each expert, as `ModelRunner.initialize` does before it loads the model."""
    with InsteadOfCuda("cpu"):
        locations = compute_initial_expert_location_metadata(config, get_parallel().moe_ep_rank)
    set_global_expert_location_metadata(locations)


def _fake_groups() -> None:
    """Process groups of one process: they have ranks and sizes, and nothing is ever sent."""
    real_init, real_new = torch.distributed.init_process_group, torch.distributed.new_group
    torch.distributed.init_process_group = lambda *, world_size, rank, **_: real_init(
        backend="fake", store=FakeStore(), world_size=world_size, rank=rank
    )
    torch.distributed.new_group = lambda ranks=None, **_: real_new(ranks, backend="fake")
    parallel_state._group_coordinator_device = lambda _: torch.device("cpu")
    real_constructor = parallel_state.GroupCoordinator.__init__

    def constructor(self: Any, *args: Any, **kwargs: Any) -> None:
        off = dict.fromkeys(_COMMUNICATORS & kwargs.keys(), False)
        real_constructor(self, *args, **kwargs | off)

    parallel_state.GroupCoordinator.__init__ = constructor


def build(config: ModelConfig, device: str) -> torch.nn.Module:
    """The model, uninitialised, as DefaultModelLoader makes it; `device` is cpu, or meta for shapes alone."""
    load_config = LoadConfig(load_format="auto")
    quantization = loaders._get_quantization_config(config, load_config)
    with loaders.set_default_torch_dtype(config.dtype), InsteadOfCuda(device), torch.device(device):
        model: torch.nn.Module = loaders._initialize_model(config, load_config, quantization)
    return model


def _is_cuda(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.startswith("cuda")


class InsteadOfCuda(TorchFunctionMode):
    """Sends every tensor that is asked for on CUDA to another device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = self.device
        if func is torch.device:
            return func(*args, **kwargs)
        if func is torch.Tensor.cuda:
            return args[0].to(self.device)
        return func(*(self.device if i and _is_cuda(arg) else arg for i, arg in enumerate(args)), **kwargs)
