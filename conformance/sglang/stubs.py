"""Lets SGLang's own sources be imported without CUDA, and believe that they run on one GPU. Nothing is computed here.

A module under one of ROOTS that is not installed becomes a stub: any attribute of it is made on demand, as an inert
class. CUDA's answers about the device are those of a Hopper or Blackwell GPU.
"""

import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any

import torch

ROOTS = frozenset(
    {
        "IPython", "av", "blobfile", "build", "cuda", "cudnn", "cutlass", "cutlass_library", "datasets", "decord",
        "deep_ep", "deep_gemm", "deep_gemm_cpp", "deepseek_recipe", "distro", "easydict", "flash_attn",
        "flash_mla", "flashinfer", "grpc", "humming", "kernels", "llguidance", "lmcache", "mistral_common",
        "modelscope", "mooncake", "ninja", "nixl", "numba", "nvshmem", "nvtx", "outlines", "py_spy", "pynvml",
        "quack", "sgl_deep_gemm", "sgl_flash_mla", "sgl_kernel", "smg_grpc_servicer", "soundfile", "tilelang",
        "timm", "tml_renderers", "torch_memory_saver", "torchaudio", "torchvision", "vllm", "watchfiles",
    }
)  # fmt: skip
"""Packages that SGLang imports and that loading weights does without."""


def _is_definition(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a stub is called as a decorator: then it gives back what it decorates."""
    return len(args) == 1 and not kwargs and isinstance(args[0], types.FunctionType | type)


def _stub_class(qualified_name: str) -> type:
    module, _, name = qualified_name.rpartition(".")
    return _StubMeta(name, (_Stub,), {"__module__": module, "_is_stub": True})


class _StubMeta(type):
    """A class that has every attribute, and whose values may be compared and subscripted while modules are imported."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _stub_class(f"{cls.__module__}.{cls.__name__}.{name}")
        setattr(cls, name, value)
        return value

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if "_is_stub" not in cls.__dict__:
            return super().__call__(*args, **kwargs)
        return args[0] if _is_definition(args, kwargs) else super().__call__()

    def __iter__(cls) -> Any:
        return iter(())

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__

    def __getitem__(cls, key: Any) -> Any:
        return cls

    def __int__(cls) -> int:
        return 0

    def __lt__(cls, other: Any) -> bool:
        return False

    __gt__ = __le__ = __ge__ = __lt__


class _Stub(metaclass=_StubMeta):
    """An inert value: false, empty, and callable as a decorator or for nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stub_class(f"stub.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if _is_definition(args, kwargs) else None

    def __iter__(self) -> Any:
        return iter(())

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __getitem__(self, key: Any) -> Any:
        return _stub_class("stub.item")

    def __int__(self) -> int:
        return 0

    __index__ = __int__

    def __bool__(self) -> bool:
        return False


class _StubModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            return "99.0.0"
        if name.startswith("__"):
            raise AttributeError(name)
        value = _stub_class(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Comes last on the path: only what is not installed is made up."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.partition(".")[0] not in ROOTS:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: Any) -> Any:
        module = _StubModule(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: Any) -> None:
        pass


class _Stream:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.cuda_stream = 0

    def wait_stream(self, *args: Any) -> None:
        pass

    synchronize = wait_event = wait_stream

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def install(sm: int) -> None:
    """Stub what is missing, and pretend a GPU of compute capability `sm` / 10."""
    sys.meta_path.append(_Finder())
    torch.version.cuda = "12.9"
    capability = divmod(sm, 10)
    properties = types.SimpleNamespace(
        major=capability[0],
        minor=capability[1],
        multi_processor_count=78,
        total_memory=96 << 30,
        name="NVIDIA H20",
        warp_size=32,
        shared_memory_per_block_optin=232448,
        max_threads_per_multi_processor=2048,
        L2_cache_size=60 << 20,
        regs_per_multiprocessor=65536,
        uuid="x",
        pci_bus_id=0,
        gcnArchName="",
    )
    answers = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "get_device_capability": capability,
        "get_device_name": properties.name,
        "get_device_properties": properties,
        "mem_get_info": (90 << 30, 96 << 30),
        "synchronize": None,
        "empty_cache": None,
        "max_memory_allocated": 0,
        "memory_allocated": 0,
        "memory_reserved": 0,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    torch.cuda.Stream = _Stream
    torch.cuda.Event = _Stub
    torch.cuda.current_stream = torch.cuda.default_stream = lambda *_: _Stream()
    torch.cuda.stream = lambda stream: stream if stream is not None else _Stream()
