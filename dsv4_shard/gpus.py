"""GPUs by name: architecture, and the memory that a process can really use.

`memory` is what CUDA reports as total (`torch.cuda.get_device_properties().total_memory`, the denominator of
out-of-memory messages), in bytes; it is 0.4 to 0.7 % below what `nvidia-smi` prints, and well below the number in the
product's name. Each row says where the figure was seen.
"""

import difflib
from dataclasses import dataclass

from dsv4_shard.errors import UsageError

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. `sm` is the compute capability × 10; `memory` in bytes; `source` tells where the figure is from."""

    name: str
    title: str
    sm: int
    memory: int
    source: str

    @property
    def family(self) -> str:
        """Hopper (sm_90) and Blackwell (sm_100 and later) differ in what engines keep in FP8."""
        return "Hopper" if self.sm < 100 else "Blackwell"


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h20-96", "NVIDIA H20 96 GB", 90, 97285 * MIB, "CUDA total in out-of-memory logs; nvidia-smi 97871 MiB"),
        Gpu("h20-141", "NVIDIA H20-3e 141 GB", 90, 143156 * MIB, "as H200: nvidia-smi 143771 MiB, sglang#6418"),
        Gpu("h100", "NVIDIA H100 80 GB", 90, 81082 * MIB, "CUDA total in logs; nvidia-smi 81559 MiB"),
        Gpu("h800", "NVIDIA H800 80 GB", 90, 81082 * MIB, "as H100: nvidia-smi 81559 MiB"),
        Gpu("h200", "NVIDIA H200 141 GB", 90, 143156 * MIB, "CUDA total in logs; nvidia-smi 143771 MiB, sglang#3196"),
        Gpu("b200", "NVIDIA B200", 100, 182631 * MIB, "CUDA total in logs; nvidia-smi 183359 MiB, sglang#27487"),
        Gpu("b300", "NVIDIA B300", 103, 274115 * MIB, "267.69 GiB in out-of-memory logs; nvidia-smi 275040 MiB"),
        Gpu("gb200", "NVIDIA GB200", 100, 188733 * MIB, "184.31 GiB in out-of-memory logs; nvidia-smi 189471 MiB"),
        Gpu("gb300", "NVIDIA GB300", 103, 283136 * MIB, "276.50 GiB in out-of-memory logs; nvidia-smi 284208 MiB"),
        Gpu("rtx-pro-6000", "NVIDIA RTX PRO 6000", 120, 97250 * MIB, "CUDA total in logs; nvidia-smi 97887 MiB"),
    )
}


def gpus_with(gib: float) -> tuple[Gpu, ...]:
    """GPUs whose memory is what an out-of-memory message counts on, in GiB."""
    return tuple(gpu for gpu in GPUS.values() if abs(gpu.memory / (MIB << 10) - gib) < 0.005 * gib)


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`. Raises UsageError with the names that come near."""
    gpu = GPUS.get(name.lower())
    if gpu is None:
        near = difflib.get_close_matches(name.lower(), GPUS, n=3, cutoff=0.4) or list(GPUS)
        raise UsageError(f"no GPU called {name!r}", hint=f"Did you mean {', '.join(near)}? Known: {', '.join(GPUS)}.")
    return gpu
