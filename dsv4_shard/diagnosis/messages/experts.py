"""Messages about how experts are cut, stored and computed."""

from collections.abc import Iterable, Iterator

from dsv4_shard.diagnosis.messages.message import INSPECT, Evidence, Message, by_engine, say
from dsv4_shard.diagnosis.origin import CONFIGURATION, CONSTRUCTION, LOADING
from dsv4_shard.engines import BACKENDS, BACKENDS_FP8, BOTH, SGLANG, VLLM
from dsv4_shard.text.units import quotient

EXPERT_DTYPE = by_engine(
    vllm=("the experts' own dtype in config.json (expert_dtype), or "
          """--hf-overrides '{"expert_dtype": "fp8"}', or fp4, as the tensors are""",),
    sglang=("SGLANG_DSV4_FP4_EXPERTS=0 for FP8 experts, 1 for FP4",),
    any=("dsv4-shard inspect REPO: what the experts' own tensors say",),
)  # fmt: skip


def _experts(evidence: Evidence) -> Iterable[str]:
    experts, ep = evidence.number("experts"), evidence.number("ep")
    if ep:
        divisors = ", ".join(str(n) for n in range(1, experts + 1) if experts % n == 0 and n <= 4 * ep)
        yield f"{experts} experts / EP {ep} = {quotient(experts, ep)}: not whole; EP {divisors} are"
    yield "redundant experts count: n_physical_experts is the routed experts and their copies"


def _backend(evidence: Evidence) -> Iterable[str]:
    groups = evidence.groups
    experts = "FP4" if groups["format"].lower().startswith("mxfp4") else "FP8"
    table = BACKENDS if experts == "FP4" else BACKENDS_FP8
    yield f"MoE backend {groups['name']} does not take {experts} experts here: {groups['reason'].strip()[:200]}"
    yield f"backends for {experts} experts whose layout is known: {', '.join(table)}"


_MAX_PARTS = 256


def tile_sentences(part: int, unit: int, what: str, ranks: int | None) -> Iterator[str]:
    """Explain a rank's part that is not whole tiles: the whole size, and the numbers of ranks that divide it."""
    yield f"{what}: {part} on a rank is {quotient(part, unit)} tiles of {unit}"
    if ranks is None:
        return
    whole = part * ranks
    fit = [n for n in range(1, min(whole, _MAX_PARTS) + 1) if whole % (n * unit) == 0]
    numbers = f"TP {', '.join(map(str, fit))}" if fit else "no TP at all"
    yield f"{part} × TP {ranks} = {whole} in all: whole tiles at {numbers}"


def _size_n(evidence: Evidence) -> Iterator[str]:
    axis = evidence.groups["axis"]
    what = ("columns of a linear layer's weight (gate and up together, or q and kv, where they are fused)"
            if axis == "n" else "rows of a linear layer's weight")  # fmt: skip
    yield from tile_sentences(evidence.number("part"), evidence.number("unit"), what, evidence.clues.tp)
    yield "Marlin computes it: the GPU has no FP8 of its own (below sm_89), or Marlin was asked for"


_NO_MARLIN = (
    "a TP whose parts are whole tiles: fewer ranks in a TP group, with data parallelism for the others",
    "without VLLM_TEST_FORCE_FP8_MARLIN and --linear-backend marlin, where the GPU has FP8",
)

_TRITON_FP4 = by_engine(
    sglang=("--moe-runner-backend marlin, or flashinfer_mxfp4 where the GPU has it", "a checkpoint with FP8 experts, "
                                                                                     "with "
            "SGLANG_DSV4_FP4_EXPERTS=0"),
    vllm=("--moe-backend marlin, or leave it out",),
)  # fmt: skip

EXPERTS = (
    Message(VLLM, r"n_physical_experts=(?P<experts>\d{1,6}) must be divisible by ep_size=(?P<ep>\d{1,6})", _experts,
          ("an EP that divides, or MoE backends that take uneven experts (without EPLB)",
           "--eplb-config with a num_redundant_experts that makes the sum divide"), CONSTRUCTION),
    Message(VLLM, r"Block-aligned FP8 TP sharding requires (?P<unit>\d{1,6})-aligned global expert dimensions",
          say("this MoE backend pads a rank's part of FP8 experts to whole blocks of {unit}, and only under plain TP, "
              "without LoRA and bias, for sizes that are multiples of {unit}"),
          ("--runner triton, which cuts the blocks finer", "expert parallelism: --ep = TP × DP"), CONSTRUCTION),
    Message(VLLM, r"Unsupported DeepSeek V4 expert_dtype=(?P<dtype>[\w'.-]{1,40})",
          say("config.json says expert_dtype {dtype}; vLLM knows fp4 and fp8"),
          ("dsv4-shard inspect REPO: what the experts' own tensors say",
           """--hf-overrides '{"expert_dtype": "fp8"}', or fp4, as the tensors are"""), CONFIGURATION),
    Message(VLLM, r"(?P<format>Mxfp4|FP8) MoE backend '?(?P<name>\w{1,60})'? does not support the deployment "
          r"configuration since (?P<reason>.{0,400})", _backend, ("leave --moe-backend out: --runner of the plan",),
          CONSTRUCTION, anchors=("does not support the deployment",)),
    Message(VLLM, r"vLLM CUTLASS FP8 MoE backend is disabled for this configuration",
          say("vLLM's own CUTLASS kernels do not take FP8 experts in this configuration"),
          ("leave --moe-backend out: --runner of the plan",), CONSTRUCTION),
    Message(VLLM, r"DeepSeek V4 MegaMoE only supports fp4 experts; got expert_dtype=(?P<dtype>[\w'.-]{1,40})",
          say("the mega-MoE backends take FP4 experts, and this checkpoint's are {dtype}"),
          ("leave --moe-backend out: --runner of the plan", "the FP4 release"), CONSTRUCTION),
    Message(VLLM, r"DeepSeek V4 MegaMoE (?:currently supports sqrtsoftplus routing only|requires normalized top-k)",
          say("config.json's router is not DeepSeek-V4's (scoring_func sqrtsoftplus, norm_topk_prob true), and the "
              "mega-MoE backends compute no other"),
          ("leave --moe-backend out", INSPECT), CONSTRUCTION),
    Message(BOTH, r"size_(?P<axis>[nk]) = (?P<part>\d{1,8}) is not divisible by tile_[nk]_size = "
                  r"(?P<unit>\d{1,6})", _size_n,
          _NO_MARLIN, LOADING, anchors=("is not divisible by tile_",)),
    Message(SGLANG, r"Hidden size mismatch(?P<which> w[12])?",
          say("a rank's experts are packed FP4 (two values a byte), whose last axis is half the hidden size, and the "
              "MoE "
              "runner expects one value a byte: SGLang's triton runner does not take FP4 experts"), _TRITON_FP4),
    Message(BOTH, r"(?:UnboundLocalError|local variable|cannot access local variable).{0,60}'name_mapped'",
          say("an expert's tensor has a name that vLLM maps to no parameter: another export of the model (stacked or "
              "renamed experts), or another quantization (its scales have other names)"),
          (INSPECT, "the release as its maker published it, or an engine that knows this export"), LOADING,
          anchors=("name_mapped",)),
    Message(VLLM, r"FSE shared-expert weight (?P<name>\S{1,200}) has size (?P<size>\d{1,8}) along axis \d, not "
                  r"divisible by "
          r"n_shared_experts=(?P<count>\d{1,4})",
          say("{name} has {size} rows or columns, and config.json's n_shared_experts {count} does not divide them"),
          (INSPECT,), LOADING),
    Message(BOTH, r"MTP speculative decoding layer (?P<layer>\d{1,4}) weights missing from checkpoint",
          say("the checkpoint has no MTP block (layer {layer}): it was quantized or exported without it"),
          ("leave speculative decoding out", "the release with its MTP block"), LOADING),
    Message(BOTH, r"The quantization method (?P<method>\S{1,40}) is not supported for the current GPU\. Minimum "
                  r"capability: "
          r"(?P<least>\d{1,3})\. Current capability: (?P<have>\d{1,3})",
          say("the GPU is sm_{have}, and {method} needs sm_{least} or later"),
          ("a GPU with FP8 (sm_89, sm_90 or later), or a checkpoint of another format (AWQ, GPTQ, "
           "BF16)",), CONFIGURATION),
    Message(BOTH, r"Unknown quantization method: (?P<method>\S{1,60})",
          say("config.json or --quantization names {method}, which this engine does not know: another tool's export, "
              "or "
              "one for another engine (vllm-ascend, MLX)"), (INSPECT, "the release as its maker published it"),
          CONFIGURATION),
    Message(BOTH, r"Quantization method specified in the model config \((?P<model>\S{1,40})\) does not match the "
                  r"quantization "
          r"method specified in the `quantization` argument \((?P<asked>\S{1,40})\)",
          say("config.json says {model}, --quantization says {asked}"), ("leave --quantization out",), CONFIGURATION),
)  # fmt: skip
