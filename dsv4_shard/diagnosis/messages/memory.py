"""Messages about memory: of the GPU, of the KV cache, and of the host."""

from collections.abc import Iterable, Iterator

from dsv4_shard.catalog.gpus import gpus_with
from dsv4_shard.diagnosis.known_model import KnownModel
from dsv4_shard.diagnosis.messages.message import OWN_FILES, Evidence, Message, say
from dsv4_shard.diagnosis.origin import KV_PLANNING, LOADING
from dsv4_shard.engines import BOTH, SGLANG, VLLM, Context, Request, engine_for
from dsv4_shard.errors import UsageError
from dsv4_shard.models import TARGET, Role
from dsv4_shard.planning import choose, options_of, outcome_of
from dsv4_shard.text.units import gib, size

_ROOM = ("dsv4-shard plan REPO --tp N --gpu GPU: the bytes per GPU, and the nearest layouts that fit",
         "experts spread or cut over more GPUs: --ep, --tp", "less beside the weights: a shorter context, fewer "
         "requests and CUDA graphs")  # fmt: skip

_TABLES_TO_HOST = "SGLANG_ENABLE_DSV41_ENGRAM_HOST_TABLE=1: V4.1's engram tables in the host's memory, not the GPU's"


def _room(evidence: Evidence) -> Iterator[str]:
    yield from _ROOM
    roles = {group.role for group in evidence.model.inventory.groups} if evidence.model is not None else ()
    if Role.ENGRAM_EMBED in roles and evidence.likely_engine == SGLANG[0]:
        yield _TABLES_TO_HOST


_TPS = (1, 2, 4, 8, 16, 32, 64)

_MODELS = 2
"""Models that are weighed if none is named."""


def _out_of_memory(evidence: Evidence) -> Iterator[str]:
    """Explain that memory is short; name the GPUs with the printed memory, and the ranks that the weights need."""
    yield "the weights do not fit into the GPU's memory, or leave too little for KV cache and activations"
    if not evidence.groups["total"]:
        return
    total = float(evidence.groups["total"])
    names = " or ".join(gpu.title for gpu in gpus_with(total))
    yield f"{total:g} GiB is what CUDA counts on" + (f": {names}" if names else ", no GPU of the plan's table")
    for model in evidence.models if evidence.model else evidence.models[:_MODELS]:
        yield from _ranks_needed(model, evidence, int(total * (1 << 30)))


def _ranks_needed(model: KnownModel, evidence: Evidence, memory: int) -> Iterator[str]:
    engine = evidence.likely_engine
    whole = sum(group.nbytes * count for group, count in model.inventory.groups.items() if group.stage in TARGET)
    guess = "" if model.given else " (a guess)"
    pinned, _ = _pinned_bytes(model, 1, engine)
    beside = f" beside {size(pinned)} in the host's memory" if pinned else ""
    whole -= pinned
    needs = f"{model.label}{guess} has {size(whole)} of weights{beside}, at least {-(-whole // memory)} such GPUs"
    tps = sorted({*_TPS, *((evidence.clues.tp,) if evidence.clues.tp else ())})
    fits = None
    for tp in tps:
        try:
            outcome = outcome_of(model.inventory, Request(tp, engine=engine))
        except UsageError:
            continue
        weights = outcome.weights
        if weights is None:
            continue
        if tp == evidence.clues.tp:
            doubt = "" if outcome.runs else " (not verified)"
            yield f"weights of a rank at TP {tp}: {gib(weights)}{doubt}, before KV cache, graphs and buffers"
        if fits is None and weights < 0.9 * memory:
            fits = tp, weights
    if fits is not None:
        needs += f"; {options_of(Request(fits[0], engine=engine))} is the smallest TP that leaves a tenth: "
        needs += f"{gib(fits[1])} per rank"
    yield needs


def _too_long(evidence: Evidence) -> Iterator[str]:
    groups = evidence.groups
    yield (f"the weights fit; a context of {int(groups['wanted']):,} tokens does not: it needs {groups['need']} GiB of "
           f"KV cache, and {groups['have']} GiB are left beside the weights")  # fmt: skip
    if groups["most"]:
        yield f"the longest context that fits by the engine's own accounting is {int(groups['most']):,} tokens"


def _shorter(evidence: Evidence) -> Iterator[str]:
    most = evidence.groups["most"]
    yield f"--max-model-len {most}, or less, so that more requests fit" if most else "a shorter --max-model-len"
    yield "more room: a higher --gpu-memory-utilization, or more GPUs, so that a rank's weights are less"
    if not evidence.models:
        return
    yield ("data parallelism in place of TP: DeepSeek's models have one KV head, so TP does not divide the cache; each "
           "replica of DP serves requests of its own")  # fmt: skip


def _occupied(evidence: Evidence) -> Iterator[str]:
    free, total = (float(evidence.groups[name]) for name in ("free", "total"))
    yield (f"{free:g} of {total:g} GiB are free before anything is loaded: another process holds {total - free:.1f} "
           f"GiB "
           f"of this GPU; the engine wants {evidence.groups['wanted']} GiB")  # fmt: skip


def _killed(evidence: Evidence) -> Iterator[str]:
    yield ("a process was killed from outside (signal 9), most often by the kernel because the host's memory ran out: "
           "not the GPU's memory, but for machines whose GPU shares it")  # fmt: skip
    model = evidence.model
    if model is None:
        yield "while loading, the host holds the files' pages and pinned copies, of all its ranks at once"
        return
    whole = sum(group.nbytes * count for group, count in model.inventory.groups.items())
    yield f"{model.label} has {size(whole)} of weights: while loading, every rank maps files and makes copies of them"


_HOST = (
    "dmesg -T | grep -i oom, and the limits of the container or the Slurm job (--mem)",
    "fewer threads that load at once, no prefetch; swap off only hides it",
    OWN_FILES,
)


def _pinned(evidence: Evidence) -> Iterator[str]:
    yield ("page-locked (pinned) memory of the host is not available; CUDA calls that `out of memory` too, but it is "
           "not the GPU's")  # fmt: skip
    model, tp = evidence.model, evidence.clues.tp
    if model is None or not tp:
        return
    nbytes, note = _pinned_bytes(model, tp, evidence.likely_engine)
    if nbytes:
        yield f"{model.label} at TP {tp} pins {size(nbytes)} of every host: {note}"


def _pinned_bytes(model: KnownModel, tp: int, engine: str) -> tuple[int, str]:
    """Bytes of the checkpoint that the engine keeps in the host's memory, and by which option."""
    host = engine_for(engine, model.inventory.family).host
    try:
        deployment = choose(model.inventory, Request(tp, engine=engine)).deployment
    except UsageError:  # more ranks than any plan has
        return 0, ""
    return (host.pinned(Context(model.inventory, deployment)), host.pinned_note) if host is not None else (0, "")


_HOST_ROOM = (
    "ulimit -l (locked memory) and the limits of the container or the Slurm job; free -g while it loads",
    "less kept on the host: a smaller --cpu-offload-gb, --swap-space or hierarchical cache, or none",
)


def _prefetch(evidence: Evidence) -> Iterable[str]:
    have, need = (float(evidence.groups[name] or 0) for name in ("ram", "total"))
    if have and need:
        yield f"a checkpoint of {need:g} GiB against {have:g} GiB of memory: {need / have:.1f} times as much"
    yield "every rank reads its part of every file over the network, and nothing is read ahead: slow, not wrong"


_GIB = r"(\d{1,6}(?:\.\d{1,4})?)"


def _gib(name: str) -> str:
    return _GIB.replace("(", f"(?P<{name}>", 1)


MEMORY = (
    Message(BOTH, r"(?:pin_memory|cudaHostAlloc|cudaHostRegister)[\s\S]{0,800}?CUDA error: out of memory|"
                  r"CUDA error: out of memory.{0,200}?(?:pin_memory|cudaHostAlloc|cudaHostRegister)|"
                  r"cudaHostRegister failed: (?P<code>\d{1,4})",
            _pinned, _HOST_ROOM, LOADING, anchors=("CUDA error: out of memory", "cudaHostRegister failed"), spans=True),
    Message(BOTH,
          r"(?:CUDA out of memory|CUDA error: out of memory|HIP out of memory|NPU out of memory)"
          rf"(?:.{{0,120}}?total capacity of {_gib('total')} GiB)?", _out_of_memory, _room, planned=True),
    Message(SGLANG, r"Not enough memory. Please try to increase --mem-fraction-static",
          say("the weights leave no room for the KV cache within --mem-fraction-static"), _room, KV_PLANNING,
          planned=True),
    Message(VLLM, r"No available memory for the cache blocks",
          say("the weights leave no room for the KV cache within --gpu-memory-utilization"), _ROOM, KV_PLANNING,
          planned=True),
    Message(VLLM, r"To serve at least one request with the models?'s max seq len \((?P<wanted>\d{1,12})\), \("
          rf"{_gib('need')} GiB KV cache is needed, which is larger than the available KV cache memory \("
          rf"{_gib('have')} GiB\)(?:.{{0,80}}?estimated maximum model length is (?P<most>\d{{1,12}}))?",
          _too_long, _shorter, KV_PLANNING, anchors=("To serve at least one request with the model",)),
    Message(VLLM, r"max seq len \((?P<wanted>\d{1,12})\) is larger than the maximum number of tokens that can be "
          r"stored in KV cache \((?P<most>\d{1,12})\)",
          say("the weights fit; a context of {wanted} tokens does not: {most} tokens of KV cache are left"),
          _shorter, KV_PLANNING, anchors=("is larger than the maximum number of tokens",)),
    Message(VLLM, rf"Free memory on device.{{0,60}}?\({_gib('free')}/{_gib('total')} GiB\) on startup is less than "
          rf"(?:desired GPU memory utilization|the engine's budget.{{0,80}}?)\s?\((?:[\d.]{{1,8}}, "
          rf")?{_gib('wanted')} GiB",
          _occupied, ("nvidia-smi: end the process that holds it, such as a former start",
                      "a lower --gpu-memory-utilization, if it must stay"), KV_PLANNING),
    Message(VLLM, r"Externally held weights on device.{0,200}exceed the desired GPU memory utilization",
          say("another process keeps weights on this GPU (a weight cache), and they take more than the engine may use"),
          ("a higher --gpu-memory-utilization", "end the process that keeps the weights"), KV_PLANNING,
          anchors=("Externally held weights on device",)),
    Message(VLLM, rf"Error in memory profiling. Initial free memory {_gib('before')} GiB, current free memory "
          rf"{_gib('after')} GiB", say("another process freed memory of this GPU while vLLM measured it: {before} GiB "
          "were free before, {after} GiB after, so what the weights take cannot be told"),
          ("start again when no other process of this GPU starts or ends",), KV_PLANNING),
    Message(SGLANG, r"The memory capacity is unbalanced",
          say("one GPU has less free memory than another: another process holds part of it, or a former start lives "
              "on"),
          ("nvidia-smi on every node: end what holds the memory",
           "SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK=0, if it must stay"), KV_PLANNING),
    Message(BOTH, r"(?:[Ee]xit ?code|exited with code|died with exit code)[:= "
                  r"]{0,2}(?:-9|137)(?!\d)|oom-kill|oom_kill event|OOMKilled|OOM Killed|"
          r"Out of memory: Killed process|task \d{1,6}: Out Of Memory", _killed, _HOST, LOADING,
          anchors=("xit code", "xitcode", "exited with code", "oom-kill", "oom_kill", "OOMKilled", "OOM Killed",
                   "Killed process", ": Out Of Memory")),
    Message(SGLANG, r"Rank (?P<rank>\d{1,4}) scheduler (?:is dead|died during initialization)",
          say("the process of rank {rank} has ended; its own traceback, above, has the cause"),
          ("give the whole log, from the first traceback on",), grave=False, anchors=(" scheduler ",)),
    Message(VLLM,
          r"(?:checkpoint total size |exceeds 90% of available RAM)(?:\((?P<total>[\d.]{1,9}) GiB\) exceeds "
          r"\d+% of )?(?:available\s+RAM \((?P<ram>[\d.]{1,9}) GiB\))?", _prefetch,
          ("--safetensors-load-strategy prefetch", OWN_FILES), LOADING, grave=False),
    Message(BOTH, r"(?:Cannot access accelerator device when none is available|No CUDA GPUs are available|"
          r"Found no NVIDIA driver on your system)",
          say("the process sees no GPU"), ("nvidia-smi, CUDA_VISIBLE_DEVICES, --gpus of the container",)),
    Message(BOTH, r"No space left on device",
          say("a disk is full: that of the model cache, of compiled kernels, or /dev/shm"),
          ("df -h on the node, of HF_HOME, ~/.cache and /dev/shm",
           "a larger --shm-size of the container: NCCL and workers share memory through /dev/shm")),
    Message(BOTH, r"(?:unable to allocate shared memory|[Bb]us error|insufficient shared memory)",
          say("/dev/shm of the container is too small: workers share memory through it"),
          ("--ipc=host, or --shm-size 32g; in Kubernetes an emptyDir of medium Memory on /dev/shm",),
          anchors=("unable to allocate shared memory", "us error", "insufficient shared memory")),
)  # fmt: skip
