"""Messages that engines print and that belong to no rule: the cause and the remedies."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dsv4_shard.catalog.gpus import gpus_with
from dsv4_shard.engines.vllm.v4 import BACKENDS, BACKENDS_FP8
from dsv4_shard.text.units import quotient


@dataclass(frozen=True, eq=False, slots=True)
class OtherMessage:
    """A message that belongs to no rule.

    Attributes:
        engines: Names of the engines that print it.
        regex: Regular expression with named groups.
        means: Returns sentences about the cause, with numbers computed from the groups.
        ways: Remedies.
        grave: Whether the message ends the run.
        anchor: Plain text within the message, for a `regex` that does not begin with plain text.
    """

    engines: tuple[str, ...]
    regex: str
    means: Callable[[dict[str, str]], Iterable[str]]
    ways: tuple[str, ...] = ()
    grave: bool = True
    anchor: str = ""


def _say(*sentences: str) -> Callable[[dict[str, str]], Iterable[str]]:
    return lambda groups: (sentence.format(**groups) for sentence in sentences)


def _memory(groups: dict[str, str]) -> Iterable[str]:
    """Explain that memory is short, and name the GPUs with the printed memory."""
    yield "the GPU's memory does not hold the weights that this layout gives a rank, or what is left is too little"
    if groups["total"]:
        total = float(groups["total"])
        names = " or ".join(gpu.title for gpu in gpus_with(total)) or "none that is known"
        yield f"{total:g} GiB is what CUDA counts on: {names}"


def _narrowed(groups: dict[str, str]) -> Iterable[str]:
    start, length, size = (int(groups[name]) for name in ("start", "length", "size"))
    rank = f" (part {start // length} of parts of {length})" if length and start % length == 0 else ""
    yield f"a loader wants elements {start} to {start + length}{rank} of {size}: {start + length - size} too many"
    yield ("it counts in parts that were rounded up, but the checkpoint's tensor is not: a shared expert or an MTP "
           "block that is padded, or MXFP4 experts whose part of the intermediate size is filled up before it is cut "
           "(sglang#32781, vllm#47273, vllm#49415)")  # fmt: skip


def _start(groups: dict[str, str]) -> Iterable[str]:
    start, size = int(groups["start"]), int(groups["size"])
    yield f"a loader wants elements from {start} on, of {size}: the part begins {start - size} after the end"
    yield ("it counts in parts that were rounded up, but the checkpoint's tensor is not: a shared expert or an MTP "
           "block that is padded (vllm#47273, vllm#49415)")  # fmt: skip


def _experts(groups: dict[str, str]) -> Iterable[str]:
    experts, ep = int(groups["experts"]), int(groups["ep"])
    if ep:
        divisors = ", ".join(str(n) for n in range(1, experts + 1) if experts % n == 0 and n <= 4 * ep)
        yield f"{experts} experts / EP {ep} = {quotient(experts, ep)}: not whole; EP {divisors} are"
    yield "redundant experts count: n_physical_experts is the routed experts and their copies"


def _backend(groups: dict[str, str]) -> Iterable[str]:
    experts = "FP4" if groups["format"].lower().startswith("mxfp4") else "FP8"
    table = BACKENDS if experts == "FP4" else BACKENDS_FP8
    yield f"MoE backend {groups['name']} does not take {experts} experts here: {groups['reason'].strip()[:200]}"
    yield f"backends for {experts} experts whose layout is known: {', '.join(table)}"


def _missing(groups: dict[str, str]) -> Iterable[str]:
    name = groups["names"]
    first = f", the first is {name[1:-1]}" if name.startswith("'") else ""
    yield f"the engine has parameters that none of the files holds{first}"
    yield ("the files were written for another version, another layout or another way to cut it, or a rank's files are "
           "not all there")  # fmt: skip


def _prefetch(groups: dict[str, str]) -> Iterable[str]:
    have, need = (float(groups[name] or 0) for name in ("ram", "total"))
    if have and need:
        yield f"a checkpoint of {need:g} GiB against {have:g} GiB of memory: {need / have:.1f} times as much"
    yield "every rank reads its part of every file over the network, and nothing is read ahead: slow, not wrong"


_SHARDS = ("dsv4-shard verify OUT: is every file what was written",
           "make them again for the version that runs: dsv4-shard reshard ... --engine-version VERSION")  # fmt: skip

_ROOM = ("dsv4-shard plan REPO --tp N --gpu GPU: what a rank weighs, and the nearest layouts that fit",
         "experts spread or cut over more GPUs: --ep, --tp", "less beside the weights: a shorter context, fewer "
         "requests and CUDA graphs")  # fmt: skip

_OWN_FILES = ("dsv4-shard reshard: each rank reads a file of its own, once, in order",)

OTHERS = (
    OtherMessage(("sglang", "vllm"),
    r"(?:CUDA out of memory|CUDA error: out of memory|HIP out of memory|NPU out of memory)"
          r"(?:.{0,120}?total capacity of (?P<total>\d{1,4}(?:\.\d+)?) GiB)?", _memory, _ROOM),
    OtherMessage(("sglang",), r"Not enough memory. Please try to increase --mem-fraction-static",
          _say("the weights leave no room for the KV cache within --mem-fraction-static"), _ROOM),
    OtherMessage(("vllm",), r"No available memory for the cache blocks",
          _say("the weights leave no room for the KV cache within --gpu-memory-utilization"), _ROOM),
    OtherMessage(("sglang", "vllm"), r"Missing keys \((?P<names>'[^']{1,200}'|[^)]{0,200}\) in loaded state)", _missing,
          ("SGLang: --load-format dsv4_shard, which says what does not fit before it copies a byte", *_SHARDS)),
    OtherMessage(("vllm",), r"KeyError: '(?P<key>(?:mtp\.|(?:model|draft)\.)[\w.]{1,200})'",
          _say("the files of a rank hold {key}, which the engine's model does not have (or the other way round)",
               "sharded_state takes every file that its pattern finds: the target's must not hold the draft's tensors, "
               "and names are those of one version"),
          ("vLLM's draft model wants a folder of its own: draft_load_config, as the plan's launch has it", *_SHARDS)),
    OtherMessage(("reference",), r"KeyError: '(?P<key>layers\.\d+\.attn\.wo_a\.scale)'",
          _say("DeepSeek's converter asks for {key}, and the FP8 re-releases have wo_a in BF16, without a scale"),
          ("dsv4-shard reshard REPO OUT --engine reference, which takes either",)),
    OtherMessage(("sglang", "vllm"),
    r"start \((?P<start>\d{1,9})\) \+ length \((?P<length>\d{1,9})\) exceeds dimension size "
          r"\((?P<size>\d{1,9})\)", _narrowed,
          ("SGLang: another version than 0.5.16, of which it is reported (0.5.13 loads)",
           "vLLM: a version with PR 49415"), anchor="exceeds dimension size"),
    OtherMessage(("vllm",), r"start out of range \(expected to be in range of \[-(?P<size>\d{1,9}), \d{1,9}\], but got "
          r"(?P<start>\d{1,9})\)", _start, ("vLLM: a version with PR 49415",)),
    OtherMessage(("vllm",), r"n_physical_experts=(?P<experts>\d{1,6}) must be divisible by ep_size=(?P<ep>\d{1,6})",
    _experts,
          ("an EP that divides, or MoE backends that take uneven experts (without EPLB)",)),
    OtherMessage(("vllm",), r"Block-aligned FP8 TP sharding requires (?P<unit>\d{1,6})-aligned global expert "
    r"dimensions",
          _say("this MoE backend pads a rank's part of FP8 experts to whole blocks of {unit}, and only under plain TP, "
               "without LoRA and bias, for sizes that are multiples of {unit}"),
          ("--runner triton, which cuts the blocks finer", "expert parallelism: --ep = TP × DP")),
    OtherMessage(("vllm",), r"Unsupported DeepSeek V4 expert_dtype=(?P<dtype>[\w'.-]{1,40})",
          _say("config.json says expert_dtype {dtype}; vLLM knows fp4 and fp8"),
          ("dsv4-shard inspect REPO: what the experts' own tensors say",
           """--hf-overrides '{"expert_dtype": "fp8"}', or fp4, as the tensors are""")),
    OtherMessage(("vllm",), r"(?P<format>Mxfp4|FP8) MoE backend '?(?P<name>\w{1,60})'? does not support the deployment "
          r"configuration since (?P<reason>.{0,400})", _backend, ("leave --moe-backend out: --runner of the plan",),
          anchor="does not support the deployment"),
    OtherMessage(("vllm",), r"vLLM CUTLASS FP8 MoE backend is disabled for this configuration",
          _say("vLLM's own CUTLASS kernels do not take FP8 experts in this configuration"),
          ("leave --moe-backend out: --runner of the plan",)),
    OtherMessage(("sglang", "vllm"), r"Cannot access accelerator device when none is available",
          _say("the process sees no GPU"), ("nvidia-smi, CUDA_VISIBLE_DEVICES, --gpus of the container",)),
    OtherMessage(("vllm",), r"(?:checkpoint total size |exceeds 90% of available RAM)(?:\((?P<total>[\d.]{1,9}) "
    r"GiB\) exceeds "
          r"\d+% of )?(?:available\s+RAM \((?P<ram>[\d.]{1,9}) GiB\))?", _prefetch,
          ("--safetensors-load-strategy prefetch", *_OWN_FILES), grave=False),
    OtherMessage(("sglang",), r"Some weights are not initialized from checkpoints",
          _say("SGLang goes on with parameters that nothing was loaded into: what it computes is garbage, unless they "
               "are not used"),
          ("dsv4-shard inspect REPO: which tensors are missing", *_SHARDS[:1]), grave=False),
)  # fmt: skip
