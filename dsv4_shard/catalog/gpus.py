"""GPUs by name: architecture, the memory that a process can use, and the source of that figure.

The memory is the total that CUDA reports, in bytes (`torch.cuda.get_device_properties().total_memory`, the denominator
of out-of-memory messages). It is 0.4 to 0.7 % below the figure of `nvidia-smi`, and well below the number in the
product's name. A GPU that is not in the table can be given by its memory alone.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from dsv4_shard.catalog.amount import bytes_of
from dsv4_shard.errors import UnknownGpu, UsageError
from dsv4_shard.text.suggest import did_you_mean
from dsv4_shard.text.units import counted, gib

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        name: Value of `--gpu`.
        title: Product name.
        sm: Compute capability × 10. If `unverified_family` is set, that of the GPU whose rules are used to compute
            weights: then it says nothing about what runs.
        memory: Bytes that CUDA reports as total.
        source: Source of the memory figure.
        unverified_family: Name of the architecture if the rules of no engine are verified for it, else empty.
        smi_mib: MiB that nvidia-smi reports, from which SGLang computes its defaults; 0 if not known.
    """

    name: str
    title: str
    sm: int
    memory: int
    source: str
    unverified_family: str = ""
    smi_mib: int = 0

    @property
    def verified(self) -> bool:
        """Whether engines' rules are verified on this GPU's architecture."""
        return not self.unverified_family

    @property
    def maker(self) -> str:
        """The GPU's maker, the first word of its title: NVIDIA, AMD, or Ascend."""
        return self.title.partition(" ")[0]

    @property
    def family(self) -> str:
        """The architecture. Hopper (sm_90) and Blackwell (sm_100 and later) differ in what engines keep in FP8."""
        return self.unverified_family or self.stands_for

    @property
    def full_title(self) -> str:
        """The title, with the architecture unless the title begins with it."""
        return self.title if self.title.startswith(self.family) else f"{self.title} ({self.family})"

    @property
    def stands_for(self) -> str:
        """The architecture whose rules are used to compute weights."""
        return "Hopper" if self.sm < 100 else "Blackwell"


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h20-96", "NVIDIA H20 96 GB", 90, 97285 * MIB, "CUDA total in logs; nvidia-smi", smi_mib=97871),
        Gpu("h20-141", "NVIDIA H20-3e 141 GB", 90, 143156 * MIB, "as H200: nvidia-smi, sglang#6418", smi_mib=143771),
        Gpu("h100", "NVIDIA H100 80 GB", 90, 81082 * MIB, "CUDA total in logs; nvidia-smi", smi_mib=81559),
        Gpu("h100-nvl", "NVIDIA H100 NVL 94 GB", 90, 95232 * MIB, "93.00 GiB in out-of-memory logs, ali-vilab/VACE#56",
            smi_mib=95830),
        Gpu("gh200", "NVIDIA GH200 96 GB", 90, 96768 * MIB, "94.50 GiB in out-of-memory logs of vLLM", smi_mib=97871),
        Gpu("h800", "NVIDIA H800 80 GB", 90, 81082 * MIB, "as H100: nvidia-smi", smi_mib=81559),
        Gpu("h200", "NVIDIA H200 141 GB", 90, 143156 * MIB, "CUDA total in logs; nvidia-smi (sglang#3196)",
            smi_mib=143771),
        Gpu("b200", "NVIDIA B200", 100, 182631 * MIB, "CUDA total in logs; nvidia-smi, sglang#27487", smi_mib=183359),
        Gpu("b300", "NVIDIA B300", 103, 274115 * MIB, "267.69 GiB in out-of-memory logs; nvidia-smi", smi_mib=275040),
        Gpu("gb200", "NVIDIA GB200", 100, 188733 * MIB, "184.31 GiB in out-of-memory logs; nvidia-smi", smi_mib=189471),
        Gpu("gb300", "NVIDIA GB300", 103, 283136 * MIB, "276.50 GiB in out-of-memory logs; nvidia-smi", smi_mib=284208),
        Gpu("rtx-pro-6000", "NVIDIA RTX PRO 6000", 120, 97250 * MIB, "CUDA total in logs; nvidia-smi", smi_mib=97887),
        Gpu("rtx-5090", "NVIDIA RTX 5090", 120, 32123 * MIB, "31.37 GiB in out-of-memory logs, Wan-Video/Wan2.1#465",
            smi_mib=32607),
        Gpu("gb10", "NVIDIA GB10 (DGX Spark, shared with the CPU)", 121, 124611 * MIB,
            "121.69 GiB in vLLM's logs, unified with the CPU; MiaAI-Lab/GLM-5.3-Flash-EXL3-2x-DGX-Sparks#47", "sm_121"),
        Gpu("a100-80", "NVIDIA A100 80 GB", 90, 81152 * MIB, "79.25 GiB in out-of-memory logs", "sm_80"),
        Gpu("a100-40", "NVIDIA A100 40 GB", 90, 40437 * MIB, "39.49 GiB in out-of-memory logs", "sm_80"),
        Gpu("l40s", "NVIDIA L40S", 90, 45455 * MIB, "44.39 GiB in out-of-memory logs", "sm_89"),
        Gpu("l20", "NVIDIA L20", 90, 45455 * MIB, "as L40S: nvidia-smi 46068 MiB", "sm_89"),
        Gpu("rtx-4090", "NVIDIA RTX 4090", 90, 24207 * MIB, "23.64 GiB in out-of-memory logs", "sm_89"),
        Gpu("mi300x", "AMD MI300X", 90, 196588 * MIB, "191.98 GiB in out-of-memory logs (ROCm's tutorials)", "gfx942"),
        Gpu("mi325x", "AMD MI325X", 90, 262124 * MIB, "255.98 GiB in reports on vLLM 0.20.2 with V4-Flash", "gfx942"),
        Gpu("mi355x", "AMD MI355X", 90, 294892 * MIB, "287.98 GiB in out-of-memory logs, ROCm/TheRock#2118", "gfx950"),
        Gpu("ascend-910b", "Ascend 910B 64 GB", 90, 62423 * MIB,
            "60.96 GiB in out-of-memory logs, vllm-ascend#1670", "Ascend 910B"),
        Gpu("ascend-910c", "Ascend 910C (one of its two dies)", 90, 62740 * MIB,
            "61.27 GiB in out-of-memory logs of an Atlas A3, whose devices are dies; sglang#29838", "Ascend 910C"),
    )
}  # fmt: skip


def gpus_with(gib: float) -> tuple[Gpu, ...]:
    """Return the GPUs whose memory is within 0.5 % of `gib`, the total in an out-of-memory message, in GiB."""
    return tuple(gpu for gpu in GPUS.values() if abs(gpu.memory / (MIB << 10) - gib) < 0.005 * gib)


ALIASES = {
    "h20-3e": "h20-141", "h200-nvl": "h200", "h100-80": "h100", "h100-94": "h100-nvl", "a800": "a100-80",
    "a800-80": "a100-80", "l40": "l40s", "mi350x": "mi355x", "mi308x": "mi300x", "dgx-spark": "gb10", "spark": "gb10",
    "4090": "rtx-4090", "rtx4090": "rtx-4090", "5090": "rtx-5090", "rtx5090": "rtx-5090",
    "rtx-6000-pro": "rtx-pro-6000", "rtx6000-pro": "rtx-pro-6000", "pro-6000": "rtx-pro-6000", "910b": "ascend-910b",
    "910b1": "ascend-910b", "910b2": "ascend-910b", "910b3": "ascend-910b", "910c": "ascend-910c",
    "atlas-a3": "ascend-910c",
}  # fmt: skip
"""Further names of a GPU, and of others with its memory and architecture."""

_NOISE = frozenset({
    "nvidia", "amd", "instinct", "geforce", "tesla", "huawei", "gpu", "sxm", "sxm2", "sxm3", "sxm4", "sxm5", "hbm2e",
    "hbm3", "hbm3e", "oam", "blackwell", "server", "workstation", "edition",
})  # fmt: skip
"""Words in names of GPUs, as nvidia-smi and sellers write them, that do not say which it is."""

_COUNT = re.compile(r"(\d{1,5})\s*[x×*]\s*(?=\D)(.+)|(.+?)\s*[x×*]\s*(\d{1,5})", re.IGNORECASE | re.ASCII)

_GLUED = re.compile(r"(?<=ascend)(?=9)|(?<=rtx)(?=\d)|(?<=h20)(?=3e)")


def find_gpu(name: str) -> Gpu:
    """Return the GPU called `name`, in whatever case and with or without its maker and memory.

    Raises:
        UnknownGpu: No GPU is called so, the name has a number of GPUs, or several GPUs are called so.
    """
    named = gpus_called(name)
    if len(named) == 1:
        return named[0]
    if named:
        titles = " or ".join(f"{gpu.name} ({gpu.title})" for gpu in named)
        raise UnknownGpu(f"several GPUs are called {name!r}", hint=f"Did you mean {titles}?")
    if found := count_and_name(name):
        count, gpu = found
        raise UnknownGpu(
            f"no GPU called {name!r}: the number of GPUs has an option of its own",
            hint=f"Write --gpu {gpu}, and --tp {count} for a layout or --gpus {count} to search them.",
        )
    raise UnknownGpu(f"no GPU called {name!r}",
                     hint=f"{did_you_mean(name, GPUS)} `dsv4-shard gpus` lists them with their memory.")  # fmt: skip


def count_and_name(text: str) -> tuple[int, str] | None:
    """Return the number and the name of GPUs in text such as `8xH20-96`; None if it is not of this form."""
    match = _COUNT.fullmatch(text)
    named = gpus_called(match[2] or match[3]) if match else ()
    return (int(match[1] or match[4]), named[0].name) if match and len(named) == 1 else None


def gpus_called(name: str) -> tuple[Gpu, ...]:
    """Return the GPUs that a name fits, in whatever case and with or without maker and memory."""
    plain = name.strip().lower()
    titled = GPUS.get(plain) or next((gpu for gpu in GPUS.values() if gpu.title.lower() == plain), None)
    return (titled,) if titled is not None else _called_otherwise(plain)


@lru_cache(maxsize=1024)
def _called_otherwise(plain: str) -> tuple[Gpu, ...]:
    """The GPUs that a name in lower case fits, which is neither the short name nor the title of one."""
    words, memory = _words(plain)
    known = {**{gpu: gpu for gpu in GPUS}, **ALIASES}
    found = dict.fromkeys(gpu for alias, gpu in known.items() if words and words == _words(alias)[0])
    return tuple(GPUS[gpu] for gpu in found if memory is None or _is_sold_with(GPUS[gpu], int(memory)))


def _words(name: str) -> tuple[list[str], str | None]:
    """Return the words that say which GPU it is, and its memory in GB, as in `h20-96` and `H20 96GB`."""
    glued = re.sub(r"(?<=\d) (?=gi?b?\b)", "", _GLUED.sub(" ", name))
    words = [word for word in re.split(r"[\s_/(),-]+", glued) if word and word not in _NOISE]
    match = re.fullmatch(r"(\d{2,3})(g|gb|gib)?", words[-1]) if len(words) > 1 else None
    return (words[:-1], match[1]) if match else (words, None)


def _is_sold_with(gpu: Gpu, memory: int) -> bool:
    """Whether the product's name has this memory; of a name without memory, whether CUDA reports it in GB or GiB."""
    if match := re.search(r"(\d+) GB", gpu.title):
        return int(match[1]) == memory
    return any(abs(gpu.memory / unit - memory) < 0.03 * memory for unit in (10**9, MIB << 10))


def gpu_with(memory: str) -> Gpu:
    """Return a Hopper GPU with a memory such as `96GB`, `96`, `95GiB` or `97285MiB`. Raises UsageError for others."""
    nbytes = bytes_of(memory)
    if nbytes is None or nbytes < MIB:
        raise UsageError.about(
            "gpu_memory", memory, "not an amount of memory",
            hint="Give it as 96GB (10^9 bytes), 95GiB (2^30) or 97285MiB (2^20), as the driver counts it.",
        )  # fmt: skip
    return Gpu(memory, f"GPU with {memory}", 90, nbytes, "as asked for")


def gpu_title(name: str) -> str:
    """Return the title of a GPU that a request names: as people write it, or its memory."""
    known = GPUS.get(name.lower())
    return known.title if known else f"GPU with {name}"


def counted_gpus(number: int, name: str | None) -> str:
    """Return `16 × NVIDIA H20 96 GB`, or `16 GPUs` if none is named: the words of every screen and page."""
    if name is not None and name.lower() in GPUS:
        return f"{number} × {gpu_title(name)}"
    return counted(number, "GPU") + (f" with {name}" if name else "")


def say_memory(weights: int, gpu: str, capacity: int) -> str:
    """Return a sentence that compares a rank's weights with a GPU's memory, both in bytes."""
    missing = f", {gib(weights - capacity)} short" if weights > capacity else ""
    return f"{gib(weights)} of weights per GPU, {gpu} has {gib(capacity)}{missing}"
