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

_AS_CONFIG = (
    "dsv4-shard inspect REPO: dtypes and blocks of the tensors, against quantization_config and expert_dtype",
    "the config.json of the release, unchanged, with the release's own files",
)

EXPERTS = (
    Message(SGLANG, r"init para dtype and loaded weight dtype should be the same",
            say("a tensor of the checkpoint has another dtype than the engine made the parameter for: the layer is "
                "quantized in one of them alone"), _AS_CONFIG, LOADING),
    Message(BOTH, r"Expected quantized tensor dtype to be torch\.float8_e4m3fn, got (?P<dtype>[\w.]{1,40})",
            say("a layer that config.json calls FP8 holds {dtype} after loading"), _AS_CONFIG, LOADING),
    Message(BOTH, r"Expected tensor scales dtype to be torch\.float32 or torch\.float8_e8m0fnu or torch\.uint8, got "
            r"(?P<dtype>[\w.]{1,40})", say("the scales of an FP8 layer are {dtype}; block FP8 has F32 or E8M0"),
            _AS_CONFIG, LOADING),
    Message(SGLANG, r"expected (?P<wanted>fp8_e4m3fn|fp8_e8m0fnu or float32), got (?P<dtype>[\w.]{1,40})",
            say("SGLang decodes wo_a from FP8 with its scales, and finds {dtype} where it wants {wanted}: an export "
                "with another format of wo_a"), _AS_CONFIG, LOADING),
    Message(SGLANG, r"FP8 quant_config must create weight_scale_inv",
            say("the engine built an FP8 layer without block scales: weight_block_size is missing from "
                "quantization_config"), _AS_CONFIG, CONSTRUCTION),
    Message(BOTH, r"Only support per-tensor scaling factor for ?fp8(?: KV cache|-quantized Q/prob)",
            say("the checkpoint has scales of the KV cache that are no single number for a layer"),
            ("leave --kv-cache-dtype out, or fp8 without scales from the checkpoint", INSPECT), LOADING,
            anchors=("Only support per-tensor scaling factor",)),
    Message(BOTH, r"KV-cache scale expects a scalar weight, got shape (?P<shape>[^\n]{1,60})",
            say("the checkpoint has a scale of the KV cache of shape {shape}, and the engine wants one number"),
            ("leave --kv-cache-dtype out, or fp8 without scales from the checkpoint", INSPECT), LOADING),
    Message(VLLM, r"layer (?P<name>\S{1,200}): (?P<method>\w{1,80}) does not support pre-processed weights",
            say("the files hold weights as an engine keeps them after loading, and {method} of {name} cannot take "
                "them so"),
            ("the original checkpoint, or rank files from before the engine's own changes: dsv4-shard "
             "reshard",), LOADING),
    Message(VLLM, r"Shared expert weight dim (?P<size>\d{1,8}) not divisible by num_chunks (?P<count>\d{1,4})",
            say("a shared expert has {size} rows or columns, and the {count} shared experts of config.json do not "
                "divide them"), (INSPECT,), LOADING),
    Message(SGLANG, r"(?:DSparkV4MarkovHead|DSpark V4 draft) requires markov_rank > 0, got "
                    r"(?:markov_rank=)?(?P<rank>-?\d{1,6})",
            say("config.json has no dspark_markov_rank (here {rank}): the checkpoint's draft is no DSpark draft, or "
                "its config.json is of another release"),
            ("--speculative-algorithm EAGLE for a classic MTP block, or none", "the config.json of the release, "
                                                                               "unchanged"),
            CONSTRUCTION),
    Message(SGLANG, r"DSpark needs target layers for the target-hidden projection",
            say("config.json has no dspark_target_layer_ids: the checkpoint's draft is no DSpark draft, or its "
                "config.json is of another release"),
            ("--speculative-algorithm EAGLE for a classic MTP block, or none", "the config.json of the release, "
                                                                               "unchanged"),
            CONSTRUCTION),
    Message(SGLANG, r"The model fuses (?P<fused>\d{1,4}) shared experts, but this MoE block has (?P<count>\d{1,4})",
            say("SGLang fuses {fused} shared experts into the routed ones, and config.json's n_shared_experts is "
                "{count}"),
            ("--disable-shared-experts-fusion", "the config.json of the release, unchanged"), CONSTRUCTION),
    Message(VLLM, r"The `fp8` quantization method no longer supports online quantization",
            say("--quantization fp8 asks to quantize a checkpoint that is not FP8 by its config.json: "
                "quantization_config is missing, or the checkpoint is BF16"),
            ("leave --quantization out for the FP8 and FP4 releases, whose config.json says it",
             "--quantization fp8_per_tensor to quantize BF16 weights while loading"), CONSTRUCTION),
    Message(BOTH, r"(?:cutlass_fp8 MoE requires|--moe-runner-backend hpc_ops requires) (?P<what>[^\n]{1,80})",
            say("the MoE runner needs {what}"), ("leave --moe-runner-backend out: --runner of the "
                                                 "plan",), CONSTRUCTION),
    Message(SGLANG, r"Runner backend (?P<name>\S{1,60}) requires a fused func for a2a backend (?P<a2a>\S{1,60}), but "
                    r"none",
            say("MoE runner {name} does not work with the all-to-all backend {a2a}"),
            ("leave --moe-runner-backend or --moe-a2a-backend out", "dsv4-shard plan REPO --tp N --a2a NAME"),
            CONSTRUCTION),
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
    Message(BOTH, r"assert M % 128 == 0",
            say("FlashInfer's TRT-LLM runner takes a rank's expert weights in tiles of 128 rows, and gate and up "
                "together are no whole tiles in this layout"),
            ("expert parallelism, which keeps experts whole: --ep-size (SGLang), --enable-expert-parallel (vLLM)",
             "another runner: --moe-runner-backend (SGLang) or --moe-backend (vLLM)"), LOADING),
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
              "or one for another engine (vllm-ascend, MLX)"), (INSPECT, "the release as its maker published it"),
          CONFIGURATION),
    Message(BOTH, r"Quantization method specified in the model config \((?P<model>\S{1,40})\) does not match the "
                  r"quantization "
          r"method specified in the `quantization` argument \((?P<asked>\S{1,40})\)",
          say("config.json says {model}, --quantization says {asked}"), ("leave --quantization out",), CONFIGURATION),
)  # fmt: skip
