"""From a case to vLLM's own config and model, as a worker of one rank makes them.

`stubs` must be installed before this module is imported. Faked here: process groups (EP = TP × DP), and tensors asked
for on CUDA, which come to lie on the CPU.
"""

from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from vllm.config import ModelConfig, VllmConfig
from vllm.config.compilation import PassConfig
from vllm.distributed import parallel_state
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.fused_moe.deep_gemm_mega_moe import DeepGemmMegaMoEExperts
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models import registry
from vllm.usage.usage_lib import UsageContext
from vllm.utils.torch_utils import set_default_torch_dtype

from conformance.cases import Case
from conformance.vllm.stubs import native_operators


class _ProcessGroup(NamedTuple):
    """What constructors read of torch's own process group."""

    world_size: int
    of_rank: int

    def size(self) -> int:
        return self.world_size

    def rank(self) -> int:
        return self.of_rank


class _Group:
    """What constructors and loaders read of a process group."""

    def __init__(self, name: str, size: int, rank: int) -> None:
        self.unique_name = name
        self.world_size = size
        self.rank = self.rank_in_group = self.local_rank = rank
        self.ranks = list(range(size))
        self.first_rank, self.last_rank = 0, size - 1
        self.is_first_rank, self.is_last_rank = rank == 0, rank == size - 1
        self.device = torch.device("cpu")
        self.device_group = self.cpu_group = _ProcessGroup(size, rank)
        self.device_communicator = self.mq_broadcaster = None
        self.use_device_communicator = False

    def barrier(self) -> None:
        """Nobody to wait for."""


def _fake_groups(case: Case, rank: int) -> None:
    """Groups as seen by a rank, which is counted through the replicas, or through the pipeline stages."""
    tp, dp, pp = case.tp, case.dp, case.pp
    sizes = {"_WORLD": tp * dp * pp, "_TP": tp, "_EP": tp * dp, "_DP": dp, "_PP": pp, "_PCP": 1, "_DCP": 1}
    ranks = {"_WORLD": rank, "_TP": rank % tp, "_EP": rank % (tp * dp), "_DP": rank // tp % dp, "_PP": rank // tp % pp}
    for name, size in sizes.items():
        setattr(parallel_state, name, _Group(name, size, ranks.get(name, 0)))
    parallel_state._EPLB = None


def _inspect_in_process(self: Any) -> Any:
    return registry._ModelInfo.from_model_cls(self.load_model_cls())


def install() -> None:
    """Keep vLLM from starting a process of its own to look at a model class, and from asking for native schemas."""
    registry._LazyRegisteredModel.inspect_model_cls = _inspect_in_process
    PassConfig.default_fi_allreduce_fusion_max_size_mb = staticmethod(dict)
    # As the DeepGEMM of vLLM's wheel answers, which is a stub here.
    DeepGemmMegaMoEExperts._kernel_fuses_shared_experts = lambda self, spec: True


_BRIEF = {"max_model_len": 4096, "max_num_batched_tokens": 4096, "max_num_seqs": 8}
"""For jobs that look at weights alone."""


def bring_up(
    case: Case, rank: int, model: str, *, served: dict[str, Any] | None = None, draft: str | None = None, **more: Any
) -> tuple[VllmConfig, ModelConfig]:
    """The config of `vllm serve` for a case, and that of its target or draft model.

    `served` are options for jobs that look at memory, which have vLLM's defaults in all else. `draft` is the folder of
    the draft model if it is not the target's.
    """
    _fake_groups(case, rank)
    options: dict[str, Any] = {"kv_cache_dtype": "fp8"} | more | (_BRIEF if served is None else served)
    if case.draft:
        method, tokens = ("dspark", 5) if case.dspark else ("mtp", 1)
        options["speculative_config"] = {"method": method, "num_speculative_tokens": tokens}
        options["speculative_config"] |= {"model": draft} if draft else {}
    if case.dp > 1:
        options |= {"data_parallel_size": case.dp, "data_parallel_rank": rank // case.tp, "data_parallel_size_local": 1}
    config = EngineArgs(
        model=model,
        tensor_parallel_size=case.tp,
        pipeline_parallel_size=case.pp,
        enable_expert_parallel=case.ep > 1,
        load_format="auto",
        skip_tokenizer_init=True,
        enforce_eager=True,
        moe_backend=case.runner,
        distributed_executor_backend="mp" if case.tp * case.pp > 1 else "uni",
        **options,
    ).create_engine_config(UsageContext.OPENAI_API_SERVER)
    return config, config.speculative_config.draft_model_config if case.draft else config.model_config


class InsteadOfCuda(TorchFunctionMode):
    """Sends every tensor that is made on CUDA to another device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if "cuda" in str(kwargs.get("device")):
            kwargs["device"] = self.device
        return func(*args, **kwargs)


def build(config: VllmConfig, model_config: ModelConfig, device: str) -> torch.nn.Module:
    """The model, uninitialised; `device` is cpu, or meta for shapes alone."""
    with (
        native_operators(),
        set_default_torch_dtype(model_config.dtype),
        torch.device(device),
        InsteadOfCuda(device),
    ):
        model: torch.nn.Module = initialize_model(vllm_config=config, model_config=model_config)
    return model


def parameters_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state without aliases and empty tensors, as ShardedStateLoader takes it; works without memory too."""
    names: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if tensor.numel():
            names[id(tensor)] = min(name, names.get(id(tensor), name))
    return {name: tensor for name, tensor in state.items() if names.get(id(tensor)) == name}


def method_of(model: torch.nn.Module) -> str:
    """Quantization method and backend of the routed experts: what `--moe-backend` has come to."""
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        for attribute in ("mxfp4_backend", "fp8_backend", "nvfp4_backend"):
            if hasattr(method, attribute):
                return f"{type(method).__name__} {getattr(method, attribute)}"
    return next((type(module).__name__ for module in model.modules() if "MegaMoE" in type(module).__name__), "none")
