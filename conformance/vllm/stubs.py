"""Lets vLLM's own sources be imported without CUDA, and believe that they run on CUDA GPUs. Nothing is computed here.

Native modules and kernel packages become stubs whose attributes are made on demand; capabilities are those of a Hopper
or Blackwell GPU. `install` must run before vLLM is imported, `install_platform` right after.
"""

import contextlib
import importlib.abc
import importlib.machinery
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch

NATIVE = frozenset(
    {
        "vllm._C", "vllm._C_stable_libtorch", "vllm._deepselect_C", "vllm._flashkda_C", "vllm._flashmla_C",
        "vllm._flashmla_extension_C", "vllm._moe_C", "vllm._moe_C_stable_libtorch", "vllm._qutlass_C",
        "vllm.third_party.deep_gemm._C_extension", "vllm.vllm_flash_attn._vllm_fa2_C",
        "vllm.vllm_flash_attn._vllm_fa3_C",
    }
)  # fmt: skip
"""Extensions of vLLM that are linked against CUDA."""

PACKAGES = (
    "cuda", "cudnn", "cutlass", "cv2", "deep_gemm", "flashinfer", "humming", "llguidance", "lmformatenforcer",
    "nvtx", "pynvml", "quack", "tilelang", "tokenspeed_mla", "torchaudio", "torchvision", "tvm", "tvm_ffi",
    "uvloop", "vllm.third_party.deep_gemm", "vllm.third_party.flashmla", "xgrammar",
)  # fmt: skip
"""Packages that vLLM imports and that loading weights does without."""

DEVICES = 1024
"""GPUs that this machine seems to have: more than any layout asks for."""

SUPPORTED = (
    "cutlass_group_gemm_supported",
    "cutlass_scaled_mm_supports_block_fp8",
    "cutlass_scaled_mm_supports_fp4",
    "cutlass_scaled_mm_supports_fp8",
)
"""Questions to native code about the GPU, which are answered with yes."""

ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "VLLM_PLUGINS": "dsv4_shard",
}
"""Without visible devices vLLM takes triton's word for it that it works."""


class _Anything:
    """Callable, subscriptable, with every attribute; gives back what it decorates."""

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "_name", name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and callable(args[0]) and not isinstance(args[0], _Anything):
            return args[0]
        return _Anything(self._name + "()")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return _Anything(f"{self._name}.{name}")

    def __getitem__(self, key: Any) -> Any:
        return _Anything(f"{self._name}[]")

    def __mro_entries__(self, bases: Any) -> Any:
        return ()

    def __iter__(self) -> Any:
        return iter(())

    def __bool__(self) -> bool:
        return True

    def __or__(self, other: Any) -> Any:
        return _Anything("|")

    __ror__ = __or__


class _StubModule(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012 - what makes a module a package
    __version__ = "99.0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        qualified = f"{self.__name__}.{name}"
        return sys.modules.get(qualified) or _Anything(qualified)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Comes first on the path: vLLM's wheel has the native modules, but they cannot be loaded."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name in NATIVE or any(name == package or name.startswith(package + ".") for package in PACKAGES):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        module = _StubModule(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: Any) -> None:
        pass


class _Stream:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def install(sm: int) -> None:
    """Stub what is native or missing, and pretend GPUs of compute capability `sm` / 10."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    sys.meta_path.insert(0, _Finder())
    torch.cuda.Stream = torch.cuda.Event = _Stream
    torch.cuda.current_stream = lambda *_, **__: _Stream()
    torch.cuda.is_available = lambda: False  # torch itself must stay away from CUDA
    torch.cuda.get_device_capability = lambda *_, **__: divmod(sm, 10)
    torch.cuda.get_device_name = lambda *_, **__: _device_name(sm)
    torch.cuda.device_count = torch.accelerator.device_count = lambda: DEVICES
    torch.accelerator.current_device_index = lambda: 0
    if torch.version.cuda is None:
        torch.version.cuda = "13.0"
    for name in SUPPORTED:
        setattr(torch.ops._C, name, lambda *_, **__: True)


@contextlib.contextmanager
def native_operators() -> Iterator[None]:
    """Within, every native operator is found: constructors look some up, nothing calls one before loading is done."""
    namespace = torch._ops._OpNamespace
    real = namespace.__getattr__

    def lookup(self: Any, name: str) -> Any:
        """As torch looks up, but that operators of vLLM's own kernels are all there."""
        try:
            return real(self, name)
        except AttributeError:
            if self.name.startswith(("_C", "_moe_C", "_vllm", "_flashmla")):
                return _Anything(f"torch.ops.{self.name}.{name}")
            raise

    namespace.__getattr__ = lookup
    try:
        yield
    finally:
        namespace.__getattr__ = real


def _device_name(sm: int) -> str:
    return "NVIDIA H20" if sm == 90 else "NVIDIA B200"


def install_platform(sm: int) -> None:
    """Make vLLM's platform that of many CUDA GPUs."""
    import vllm.platforms
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    answers = {
        "get_device_capability": DeviceCapability(*divmod(sm, 10)),
        "get_device_name": _device_name(sm),
        "get_device_total_memory": 141 << 30,
        "get_device_uuid": "GPU-0",
        "is_fully_connected": True,
        "device_count": DEVICES,
        "num_compute_units": 78 if sm == 90 else 148,
        "get_device_numa_node": None,
        "get_all_device_numa_nodes": None,
        "is_pin_memory_available": False,
        "log_warnings": None,
    }
    methods = {name: classmethod(lambda cls, *_, answer=answer, **__: answer) for name, answer in answers.items()}
    vllm.platforms._current_platform = type("PretendedCudaPlatform", (CudaPlatformBase,), methods)()


def set_total_memory(nbytes: int) -> None:
    """Pretend that each GPU has so many bytes."""
    import vllm.platforms

    platform: Any = type(vllm.platforms.current_platform)
    platform.get_device_total_memory = classmethod(lambda cls, *_, **__: nbytes)
