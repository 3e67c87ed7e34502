"""Messages that name a parameter: what the name is of tells why the engine and the files disagree about it."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dsv4_shard.diagnosis.messages.message import INSPECT, SHARDS, Evidence, Message, by_engine, say
from dsv4_shard.diagnosis.origin import CONFIGURATION, LOADING
from dsv4_shard.engines import BOTH, DEEPSEEK, PRESHARDED, RUNAI_SHARDED, SGLANG, SHARDED_STATE, VLLM
from dsv4_shard.models import TensorName

_RANK_LOADERS = (SHARDED_STATE, RUNAI_SHARDED, PRESHARDED)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of parameter.

    Attributes:
        regex: Regular expression for its names.
        means: Why an engine has no such parameter.
        ways: Remedies.
    """

    regex: str
    means: str
    ways: tuple[str, ...] = ()


_QUANTIZATION = (
    "quantization_config of the checkpoint's own config.json (quant_method fp8, weight_block_size): put it back, and "
    "leave --quantization and overrides of it out",
    "an engine version with block FP8 for this model",
    INSPECT,
)

_MAKER = ("the release as its maker published it, or an engine that knows this export", INSPECT)

_KINDS = (
    _Kind(r"\.experts\.\d+\.\w+\.(?:scale|weight_scale|weight_scale_inv)$|experts\.(?:routed_experts\.)?w(?:13|"
          r"2)_\w*scale\w*$",
          "an expert's scale, whose name depends on the experts' dtype: FP4 experts have weight_scale, FP8 experts in "
          "blocks weight_scale_inv; the engine built experts of the other dtype",
          ("config.json's expert_dtype as the tensors are (fp4 or fp8); SGLANG_DSV4_FP4_EXPERTS=0 for FP8 on SGLang",
           INSPECT)),
    _Kind(r"\.(?:weight_scale_inv|scale)$",
          "a block scale of an FP8 weight: the checkpoint has it, and the engine built this layer without "
          "quantization. quantization_config is missing from config.json, or overridden, or this version has no block "
          "FP8 for the layer",
          _QUANTIZATION),
    _Kind(r"\.(?:weight_offset|deq_scale|quant_bias|input_offset)$",
          "a tensor of ModelSlim's INT8 quantization, which vllm-ascend loads and NVIDIA's engines do not", _MAKER),
    _Kind(r"\.(?:weight_scale_2|input_scale)$",
          "a scale of NVFP4 or of static FP8 (Model Optimizer): the engine built the layer for another quantization",
          ("--quantization modelopt_fp4, or leave it out so that config.json decides", *_MAKER)),
    _Kind(r"\.(?:qweight|qzeros|g_idx|scales|biases)$",
          "a tensor of an integer quantization (AWQ, GPTQ or MLX): the engine built the layer for another one", _MAKER),
    _Kind(r"\.(?:weight_packed|weight_shape|weight_zero_point|weight_g_idx)$",
          "a tensor of compressed-tensors: the engine built the layer for another quantization", _MAKER),
    _Kind(r"\.(?:weight_scale|k_scale|v_scale|q_scale|absmax|quant_map|quant_state[\w.]*)$",
          "a scale of another quantization than the engine built the layer for", _QUANTIZATION),
    _Kind(r"(?:gate_up_proj|w13_weight|w2_weight|wqkv_a|fused_wqa_wkv|fused_wkv_wgate|wkv_gate|fused_qkv_a_proj\w*|"
          r"qkv_proj|w13|routed_experts)",
          "a name of fused tensors, as engines hold them in memory: the files are an engine's own dump, or an export "
          "that stacks tensors, and not a checkpoint that this loader reads",
          ("the original checkpoint, or --load-format sharded_state for rank files of this very version", INSPECT)),
)  # fmt: skip
"""Kinds of parameters that a model may lack; the first that fits counts."""

_DSPARK = re.compile(r"(?:main_norm|main_proj|markov_head|confidence_head)\b")

_CLASSIC = re.compile(r"(?:\.|^)(?:e_proj|h_proj|eh_proj|enorm|hnorm|shared_head)\b")

_DSPARK_ON = by_engine(
    vllm=("""--speculative-config '{"method": "dspark", "num_speculative_tokens": 5}' (dspark_block_size), or none""",),
    sglang=("--speculative-algorithm DSPARK, or none",),
)

_CLASSIC_ON = by_engine(
    vllm=("""--speculative-config '{"method": "mtp", "num_speculative_tokens": 1}', or none""",),
    sglang=("--speculative-algorithm EAGLE, or none",),
)

_OWN_FOLDER = "vLLM's draft model wants a folder of its own: draft_load_config, as the plan's launch has it"

_DRAFT = re.compile(r"^(?:mtp|draft)\.|mtp_block|nextn|^model\.decoder\.")


def _key(evidence: Evidence) -> str:
    return evidence.groups["key"]


def _from_rank_files(evidence: Evidence) -> bool:
    return evidence.origin.loader in _RANK_LOADERS


def _kind(key: str) -> _Kind | None:
    return next((kind for kind in _KINDS if re.search(kind.regex, key)), None)


_RENAMES = (
    (r"^model\.(?=layers|mtp|embed|norm|hc_)", ""), (r"self_attn\.", "attn."), (r"\bmlp\.", "ffn."),
    (r"\.(?:weight_scale_inv|weight_scale)$", ".scale"), (r"gate_proj", "w1"), (r"up_proj", "w3"),
    (r"down_proj", "w2"), (r"mtp_block\.", ""), (r"^embed_tokens", "embed"), (r"^lm_head", "head"),
)  # fmt: skip


def _plain(name: str, layers: int) -> str:
    """A name in the terms of DeepSeek's own names, as far as prefixes and suffixes go."""
    for regex, plain in _RENAMES:
        name = re.sub(regex, plain, name)
    match = re.match(r"layers\.(\d{1,4})\.(.*)", name)
    return f"mtp.{int(match[1]) - layers}.{match[2]}" if match and int(match[1]) >= layers else name


def in_checkpoint(key: str, names: dict[str, TensorName], layers: int) -> str | None:
    """The checkpoint's tensor that `key` is a name of; None if there is none."""
    if key in names:
        return key
    wanted = _plain(key, layers)
    return next((name for name in names if _plain(name, layers) == wanted), None)


def _whose(evidence: Evidence) -> Iterator[str]:
    """Which side has the name: the files, or the engine alone."""
    key, model = _key(evidence), evidence.model
    if model is not None and model.inventory.names:
        held = in_checkpoint(key, model.inventory.names, model.inventory.config.num_hidden_layers)
        if held is None:
            yield f"{model.label} has no tensor of this name: the engine made the name, or loads other files"
        else:
            also = f" ({held})" if held != key else ""
            yield f"{model.label} has it{also}, and the engine's model has no such parameter"
    else:
        yield f"the files hold {key}, and the engine's model has no such parameter"


def _key_error(evidence: Evidence) -> Iterator[str]:
    key, origin = _key(evidence), evidence.origin
    yield from _whose(evidence)
    if "attn_mha.kv_b_proj" in key or "attn_mqa.kv_b_proj" in key:
        yield ("SGLang's attention keeps a second name for kv_b_proj from the first forward pass on: this "
               "sharded_state "
               "folder was saved after one, and a model that has not run yet does not have the name")  # fmt: skip
    elif _from_rank_files(evidence):
        yield (f"{origin.loader} takes every file that its pattern finds, whose names must be those of this version "
               f"and "
               "layout: the target's folder must not hold the draft's tensors, or a whole checkpoint's")  # fmt: skip
    elif _is_dspark(evidence):
        yield ("it is of a DSpark draft (stages mtp.* with main_norm, main_proj, markov_head), and the engine built a "
               "classic MTP block for it")  # fmt: skip
    elif _CLASSIC.search(key):
        yield "it is of a classic MTP block, and the engine built another draft, or none"
    elif (kind := _kind(key)) is not None:
        yield kind.means
    elif _DRAFT.search(key):
        yield ("it is of the draft model: vLLM's target does not hold it; if the files are rank files, the draft's "
               "must be in a folder of their own")  # fmt: skip
    else:
        yield ("a tensor that this model class does not have: another export of the model, a later release than this "
               "engine knows, or config.json of another one")  # fmt: skip


def _is_dspark(evidence: Evidence) -> bool:
    model = evidence.model
    of_dspark = model is not None and model.inventory.draft.dspark and bool(_DRAFT.search(_key(evidence)))
    return bool(_DSPARK.search(_key(evidence))) or of_dspark


def _key_ways(evidence: Evidence) -> Iterator[str]:
    key = _key(evidence)
    if "attn_mha.kv_b_proj" in key or "attn_mqa.kv_b_proj" in key:
        yield "the folder is not loadable as it is: save it again, before the first forward pass"
        yield "or make shards from the original checkpoint"
    elif _from_rank_files(evidence):
        if _DRAFT.search(key) or _DSPARK.search(key):
            yield _OWN_FOLDER
        yield from SHARDS
    elif _is_dspark(evidence):
        yield from _DSPARK_ON(evidence)
    elif _CLASSIC.search(key):
        yield from _CLASSIC_ON(evidence)
        if not evidence.origin.frames and evidence.origin.loader is None:
            yield f"of rank files: {_OWN_FOLDER}"
    elif (kind := _kind(key)) is not None:
        yield from kind.ways
    elif _DRAFT.search(key):
        yield _OWN_FOLDER
        yield "leave speculative decoding out"
    else:
        yield INSPECT
        yield "an engine version that knows the release; dsv4-shard plan REPO names those that are verified"


def _names(text: str) -> list[str]:
    return re.findall(r"'([^'\n]{1,200})'", text)


def _not_initialized(evidence: Evidence) -> Iterator[str]:
    names = _names(evidence.groups["names"])
    first = names[0] if names else evidence.groups["names"].strip("{}")
    yield f"the engine has parameters that no tensor came for, such as {first}"
    kind = _kind(first)
    if kind is not None and re.search(r"scale", first):
        yield ("it is a scale: the checkpoint's scales have another name, or it has none (weights of another dtype "
               "than config.json says)")  # fmt: skip
    yield "names of another export, files that are missing, or layers that the export left out"


def _absent(evidence: Evidence) -> Iterator[str]:
    key = _key(evidence)
    yield f"the checkpoint has a tensor {key}, which {evidence.groups['model']} does not have: another tool's export"
    if re.search(r"\.wo_a\.\d+$", key):
        yield "wo_a in numbered parts is MLX's, whose quantization none of the engines here loads"
    elif (kind := _kind(key)) is not None:
        yield kind.means


def _config_key(evidence: Evidence) -> Iterator[str]:
    key = evidence.groups["key"]
    if re.fullmatch(r"deepseek_v\d+\w*", key):
        yield f"Transformers does not know the model type {key}: it is too old, or the engine did not register its own"
    else:
        yield f"config.json (or a dict made of it) has no {key}: it is of another release, or of another tool"


MODEL_TYPES = ("a newer Transformers: pip install -U transformers, or the engine's own image",
               "an engine version that knows the model: SGLang 0.5.23 and vLLM 0.33.0 bring their own config classes",
               "--trust-remote-code, where the repository brings its code")  # fmt: skip

_CONFIG_KEYS = ("the config.json of the release, unchanged", INSPECT)


def _config_ways(evidence: Evidence) -> Iterable[str]:
    return MODEL_TYPES if evidence.groups["key"].startswith("deepseek_v") else _CONFIG_KEYS


NAMES = (
    Message((DEEPSEEK,), r"KeyError: '(?P<key>layers\.\d+\.attn\.wo_a\.scale)'\s*\Z",
            say("DeepSeek's converter asks for {key}, and the FP8 re-releases have wo_a in BF16, without a scale"),
            ("dsv4-shard reshard REPO OUT --engine reference, which takes either",), LOADING),
    Message(BOTH, r"KeyError: ['\"](?P<key>[A-Za-z_][\w-]{0,60}(?:\.[\w-]{1,60}){2,12})['\"]", _key_error,
            _key_ways, LOADING),
    Message(BOTH, r"KeyError: ['\"](?P<key>deepseek_v\d\w{0,12}|expert_dtype|quantization_config|weight_block_size|"
            r"n_routed_experts|moe_intermediate_size|compress_ratios|rope_scaling|rope_theta|num_nextn_predict_layers|"
            r"hc_mult|quant_method|num_hash_layers|index_topk|q_lora_rank)['\"]",
            _config_key, _config_ways, CONFIGURATION),
    Message(VLLM, r"Following weights were not initialized from checkpoint: (?P<names>.{1,300})", _not_initialized,
            (INSPECT, "the release as its maker published it"), LOADING),
    Message(VLLM, r"There is no module or parameter named '(?P<key>[^'\n]{1,200})' in (?P<model>\w{1,80})", _absent,
            (INSPECT, "the release as its maker published it, or an engine that knows this export"), LOADING),
    Message(VLLM, r"Attempted to load nested weight '(?P<key>[^'\n]{1,200})' into a single parameter",
            say("the checkpoint has {key} below a name that is a single parameter for the engine: another tool's "
                "export"),
            (INSPECT, "the release as its maker published it"), LOADING),
    Message(SGLANG, r"Parameter (?P<key>[\w.]{3,200}) not found in (?:params_dict|the model)",
            say("the checkpoint has {key}, which SGLang's model does not have: it goes on without "
                "it"), (INSPECT,), LOADING,
            grave=False),
    Message(SGLANG, r"(?P<key>[\w.]{5,200}) not found in params_dict",
            say("the checkpoint has {key}, which SGLang's model does not have: it goes on without it, and if the "
                "tensor "
                "matters, computes garbage"), (INSPECT,), LOADING, grave=False, anchors=("not found in params_dict",)),
    Message(SGLANG, r"Some weights are not initialized from checkpoints",
            say("SGLang goes on with parameters that nothing was loaded into: what it computes is garbage, unless they "
                "are not used"),
            ("dsv4-shard inspect REPO: which tensors are missing", *SHARDS[:1]), LOADING, grave=False),
    Message(BOTH, r"The checkpoint you are trying to load has model type `(?P<type>[\w-]{1,60})` but Transformers "
                  r"does not "
            r"recognize this architecture",
            say("Transformers does not know the model type {type}: it is too old for the model, or the engine, which "
                "brings its own class for it, was not reached"), MODEL_TYPES, CONFIGURATION),
    Message(BOTH, r"Model architectures \[(?P<names>[^\]\n]{1,200})\] (?:failed to be inspected|are not supported)",
            say("this engine version has no class for {names}, or it failed to import"), MODEL_TYPES, CONFIGURATION),
    Message(BOTH, r"Cannot find model module. '(?P<name>\w{1,80})' is not a registered model",
            say("this engine version has no class for {name}"), MODEL_TYPES, CONFIGURATION),
)  # fmt: skip
