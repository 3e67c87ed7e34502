"""What each tensor is to the model: names → roles, and the shapes and places that a role must have.

One row a tensor kind. The names are those of DeepSeek's own V4 checkpoints (`layers.3.ffn.shared_experts.w1.scale`);
w1 is the gate, w3 the up and w2 the down projection in all of them. The shapes follow the constructors of DeepSeek's
reference `inference/model.py`, and are held against the complete inventories of the real checkpoints in the tests.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from dsv4_shard.config import ModelConfig

OVERLAP_RATIO = 4
"""Layers compressed 4:1 overlap two windows, so their compressor is twice as wide; they also have an indexer."""


class Module(StrEnum):
    """The module classes that plans and tables speak of."""

    EMBEDDING = "embedding"
    HEAD = "head"
    ATTENTION = "attention"
    COMPRESSOR = "compressor"
    INDEXER = "indexer"
    NORMS = "norms"
    HYPER = "hyper-connections"
    ROUTER = "router"
    ROUTED = "routed experts"
    SHARED = "shared experts"
    MTP = "MTP projections"


class Role(StrEnum):
    """What a tensor is to the model. A weight and its scale have one role and differ in their part."""

    EMBED = "embed"
    HEAD = "head"
    FINAL_NORM = "final_norm"
    HC_HEAD_FN = "hc_head.fn"
    HC_HEAD_BASE = "hc_head.base"
    HC_HEAD_SCALE = "hc_head.scale"
    ATTN_NORM = "attn_norm"
    FFN_NORM = "ffn_norm"
    Q_A = "q_a"
    Q_NORM = "q_norm"
    Q_B = "q_b"
    KV = "kv"
    KV_NORM = "kv_norm"
    O_A = "o_a"
    O_B = "o_b"
    ATTN_SINK = "attn_sink"
    COMPRESSOR_APE = "compressor.ape"
    COMPRESSOR_KV = "compressor.kv"
    COMPRESSOR_GATE = "compressor.gate"
    COMPRESSOR_NORM = "compressor.norm"
    INDEXER_Q_B = "indexer.q_b"
    INDEXER_WEIGHTS = "indexer.weights"
    INDEXER_APE = "indexer.compressor.ape"
    INDEXER_KV = "indexer.compressor.kv"
    INDEXER_GATE = "indexer.compressor.gate"
    INDEXER_NORM = "indexer.compressor.norm"
    HC_ATTN_FN = "hc_attn.fn"
    HC_ATTN_BASE = "hc_attn.base"
    HC_ATTN_SCALE = "hc_attn.scale"
    HC_FFN_FN = "hc_ffn.fn"
    HC_FFN_BASE = "hc_ffn.base"
    HC_FFN_SCALE = "hc_ffn.scale"
    ROUTER = "router"
    ROUTER_BIAS = "router.bias"
    ROUTER_HASH = "router.tid2eid"
    ROUTED_GATE = "routed_expert.gate"
    ROUTED_UP = "routed_expert.up"
    ROUTED_DOWN = "routed_expert.down"
    SHARED_GATE = "shared_expert.gate"
    SHARED_UP = "shared_expert.up"
    SHARED_DOWN = "shared_expert.down"
    MTP_E_PROJ = "mtp.e_proj"
    MTP_H_PROJ = "mtp.h_proj"
    MTP_ENORM = "mtp.enorm"
    MTP_HNORM = "mtp.hnorm"
    MTP_EMBED = "mtp.embed"
    MTP_HEAD = "mtp.head"


class Part(StrEnum):
    """Which of a role's tensors: the weight itself, or the scales of its blocks."""

    WEIGHT = "weight"
    SCALE = "scale"


class Stage(StrEnum):
    """Where in the model: outside the layers, in a layer of the target model, or in an MTP (draft) block."""

    MODEL = "model"
    LAYER = "layer"
    MTP = "mtp"


class TensorName(NamedTuple):
    """A parsed name. `layer` is the layer's or MTP block's number, `expert` the routed expert's; -1 for none."""

    role: Role
    part: Part
    stage: Stage
    layer: int = -1
    expert: int = -1


class LayerKind(NamedTuple):
    """What decides which tensors a layer has: its compression ratio, and whether it routes by token hash."""

    ratio: int
    hashed: bool


def _every(kind: LayerKind) -> bool:
    return True


def _compressed(kind: LayerKind) -> bool:
    return kind.ratio != 0


def _indexed(kind: LayerKind) -> bool:
    return kind.ratio == OVERLAP_RATIO


def _hashed(kind: LayerKind) -> bool:
    return kind.hashed


def _scored(kind: LayerKind) -> bool:
    return not kind.hashed


def _width(kind: LayerKind) -> int:
    return 2 if kind.ratio == OVERLAP_RATIO else 1


Shape = Callable[[ModelConfig, LayerKind], tuple[int, ...]]
"""Shape of a role's weight in elements, for one kind of layer."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One row of the tables below: a role, the name of its tensors, where it must be, and its shape.

    `name` is what stands between the layer's prefix and the part; a name with no part (`attn_sink`) is written with
    `bare`. `quantized` roles may be stored in blocks with a scale; others never are. `optional` ones may be missing.
    """

    role: Role
    module: Module
    name: str
    shape: Shape
    present: Callable[[LayerKind], bool] = _every
    quantized: bool = False
    bare: bool = False
    optional: bool = False

    @property
    def dtype(self) -> str:
        """The dtype in which every V4 checkpoint stores the role, if it is not quantized."""
        if self.role is Role.ROUTER_HASH:
            return "I64"
        return "F32" if self.bare else "BF16"


def _hidden(c: ModelConfig, _: LayerKind) -> tuple[int, ...]:
    return (c.hidden_size,)


def _vocab(c: ModelConfig, _: LayerKind) -> tuple[int, ...]:
    return (c.vocab_size, c.hidden_size)


def _mix(c: ModelConfig) -> int:
    """Mixing coefficients of a hyper-connection: pre and post weights of each copy, and the copies' square matrix."""
    return (2 + c.hc_mult) * c.hc_mult


def _gate_or_up(c: ModelConfig, _: LayerKind) -> tuple[int, ...]:
    return (c.moe_intermediate_size, c.hidden_size)


def _down(c: ModelConfig, _: LayerKind) -> tuple[int, ...]:
    return (c.hidden_size, c.moe_intermediate_size)


def _shared_gate_or_up(c: ModelConfig, _: LayerKind) -> tuple[int, ...]:
    return (c.moe_intermediate_size * c.n_shared_experts, c.hidden_size)


def _shared_down(c: ModelConfig, _: LayerKind) -> tuple[int, ...]:
    return (c.hidden_size, c.moe_intermediate_size * c.n_shared_experts)


_HC_HEAD = (
    Spec(Role.HC_HEAD_FN, Module.HYPER, "hc_head_fn", lambda c, _: (c.hc_mult, c.hc_mult * c.hidden_size), bare=True),
    Spec(Role.HC_HEAD_BASE, Module.HYPER, "hc_head_base", lambda c, _: (c.hc_mult,), bare=True),
    Spec(Role.HC_HEAD_SCALE, Module.HYPER, "hc_head_scale", lambda c, _: (1,), bare=True),
)

MODEL_SPECS = (
    Spec(Role.EMBED, Module.EMBEDDING, "embed", _vocab),
    Spec(Role.HEAD, Module.HEAD, "head", _vocab),
    Spec(Role.FINAL_NORM, Module.NORMS, "norm", _hidden),
    *_HC_HEAD,
)

_ATTENTION_SPECS = (
    Spec(Role.Q_A, Module.ATTENTION, "attn.wq_a", lambda c, _: (c.q_lora_rank, c.hidden_size), quantized=True),
    Spec(Role.Q_NORM, Module.ATTENTION, "attn.q_norm", lambda c, _: (c.q_lora_rank,)),
    Spec(
        Role.Q_B,
        Module.ATTENTION,
        "attn.wq_b",
        lambda c, _: (c.num_attention_heads * c.head_dim, c.q_lora_rank),
        quantized=True,
    ),
    Spec(Role.KV, Module.ATTENTION, "attn.wkv", lambda c, _: (c.head_dim, c.hidden_size), quantized=True),
    Spec(Role.KV_NORM, Module.ATTENTION, "attn.kv_norm", lambda c, _: (c.head_dim,)),
    Spec(
        Role.O_A,
        Module.ATTENTION,
        "attn.wo_a",
        lambda c, _: (c.o_groups * c.o_lora_rank, c.num_attention_heads * c.head_dim // c.o_groups),
        quantized=True,
    ),
    Spec(Role.O_B, Module.ATTENTION, "attn.wo_b", lambda c, _: (c.hidden_size, c.o_groups * c.o_lora_rank),
         quantized=True),
    Spec(Role.ATTN_SINK, Module.ATTENTION, "attn.attn_sink", lambda c, _: (c.num_attention_heads,), bare=True),
)  # fmt: skip

_COMPRESSOR_SPECS = (
    Spec(Role.COMPRESSOR_APE, Module.COMPRESSOR, "attn.compressor.ape",
         lambda c, k: (k.ratio, _width(k) * c.head_dim), _compressed, bare=True),
    Spec(Role.COMPRESSOR_KV, Module.COMPRESSOR, "attn.compressor.wkv",
         lambda c, k: (_width(k) * c.head_dim, c.hidden_size), _compressed),
    Spec(Role.COMPRESSOR_GATE, Module.COMPRESSOR, "attn.compressor.wgate",
         lambda c, k: (_width(k) * c.head_dim, c.hidden_size), _compressed),
    Spec(Role.COMPRESSOR_NORM, Module.COMPRESSOR, "attn.compressor.norm", lambda c, _: (c.head_dim,), _compressed),
    Spec(Role.INDEXER_Q_B, Module.INDEXER, "attn.indexer.wq_b",
         lambda c, _: (c.index_n_heads * c.index_head_dim, c.q_lora_rank), _indexed, quantized=True),
    Spec(Role.INDEXER_WEIGHTS, Module.INDEXER, "attn.indexer.weights_proj",
         lambda c, _: (c.index_n_heads, c.hidden_size), _indexed),
    Spec(Role.INDEXER_APE, Module.INDEXER, "attn.indexer.compressor.ape",
         lambda c, k: (k.ratio, _width(k) * c.index_head_dim), _indexed, bare=True),
    Spec(Role.INDEXER_KV, Module.INDEXER, "attn.indexer.compressor.wkv",
         lambda c, k: (_width(k) * c.index_head_dim, c.hidden_size), _indexed),
    Spec(Role.INDEXER_GATE, Module.INDEXER, "attn.indexer.compressor.wgate",
         lambda c, k: (_width(k) * c.index_head_dim, c.hidden_size), _indexed),
    Spec(Role.INDEXER_NORM, Module.INDEXER, "attn.indexer.compressor.norm", lambda c, _: (c.index_head_dim,),
         _indexed),
)  # fmt: skip

_FFN_SPECS = (
    Spec(Role.ATTN_NORM, Module.NORMS, "attn_norm", _hidden),
    Spec(Role.FFN_NORM, Module.NORMS, "ffn_norm", _hidden),
    Spec(Role.HC_ATTN_FN, Module.HYPER, "hc_attn_fn", lambda c, _: (_mix(c), c.hc_mult * c.hidden_size), bare=True),
    Spec(Role.HC_ATTN_BASE, Module.HYPER, "hc_attn_base", lambda c, _: (_mix(c),), bare=True),
    Spec(Role.HC_ATTN_SCALE, Module.HYPER, "hc_attn_scale", lambda c, _: (3,), bare=True),
    Spec(Role.HC_FFN_FN, Module.HYPER, "hc_ffn_fn", lambda c, _: (_mix(c), c.hc_mult * c.hidden_size), bare=True),
    Spec(Role.HC_FFN_BASE, Module.HYPER, "hc_ffn_base", lambda c, _: (_mix(c),), bare=True),
    Spec(Role.HC_FFN_SCALE, Module.HYPER, "hc_ffn_scale", lambda c, _: (3,), bare=True),
    Spec(Role.ROUTER, Module.ROUTER, "ffn.gate", lambda c, _: (c.n_routed_experts, c.hidden_size)),
    Spec(Role.ROUTER_BIAS, Module.ROUTER, "ffn.gate.bias", lambda c, _: (c.n_routed_experts,), _scored, bare=True),
    Spec(Role.ROUTER_HASH, Module.ROUTER, "ffn.gate.tid2eid", lambda c, _: (c.vocab_size, c.num_experts_per_tok),
         _hashed, bare=True),
    Spec(Role.SHARED_GATE, Module.SHARED, "ffn.shared_experts.w1", _shared_gate_or_up, quantized=True),
    Spec(Role.SHARED_UP, Module.SHARED, "ffn.shared_experts.w3", _shared_gate_or_up, quantized=True),
    Spec(Role.SHARED_DOWN, Module.SHARED, "ffn.shared_experts.w2", _shared_down, quantized=True),
)  # fmt: skip

ROUTED_SPECS = (
    Spec(Role.ROUTED_GATE, Module.ROUTED, "w1", _gate_or_up, quantized=True),
    Spec(Role.ROUTED_UP, Module.ROUTED, "w3", _gate_or_up, quantized=True),
    Spec(Role.ROUTED_DOWN, Module.ROUTED, "w2", _down, quantized=True),
)
"""Under `ffn.experts.E.`: once for each expert of each layer."""

LAYER_SPECS = (*_ATTENTION_SPECS, *_COMPRESSOR_SPECS, *_FFN_SPECS)

MTP_SPECS = (
    *LAYER_SPECS,
    Spec(Role.MTP_E_PROJ, Module.MTP, "e_proj", lambda c, _: (c.hidden_size, c.hidden_size), quantized=True),
    Spec(Role.MTP_H_PROJ, Module.MTP, "h_proj", lambda c, _: (c.hidden_size, c.hidden_size), quantized=True),
    Spec(Role.MTP_ENORM, Module.MTP, "enorm", _hidden),
    Spec(Role.MTP_HNORM, Module.MTP, "hnorm", _hidden),
    Spec(Role.FINAL_NORM, Module.NORMS, "norm", _hidden),
    Spec(Role.MTP_EMBED, Module.EMBEDDING, "emb.tok_emb", _vocab, optional=True),
    Spec(Role.MTP_HEAD, Module.HEAD, "head", _vocab, optional=True),
    *_HC_HEAD,
)

SPEC: dict[tuple[Stage, Role], Spec] = {
    (stage, spec.role): spec
    for stage, specs in (
        (Stage.MODEL, MODEL_SPECS),
        (Stage.LAYER, (*LAYER_SPECS, *ROUTED_SPECS)),
        (Stage.MTP, (*MTP_SPECS, *ROUTED_SPECS)),
    )
    for spec in specs
}

MODULE: dict[Role, Module] = {role: spec.module for (_, role), spec in SPEC.items()}


def _names(specs: tuple[Spec, ...]) -> Iterator[tuple[str, tuple[Role, Part]]]:
    for spec in specs:
        if spec.bare:
            yield spec.name, (spec.role, Part.WEIGHT)
            continue
        yield f"{spec.name}.weight", (spec.role, Part.WEIGHT)
        if spec.quantized:
            yield f"{spec.name}.scale", (spec.role, Part.SCALE)


_MODEL_NAMES = dict(_names(MODEL_SPECS))
_ROUTED_NAMES = dict(_names(ROUTED_SPECS))
_BLOCK_NAMES = {Stage.LAYER: dict(_names(LAYER_SPECS)), Stage.MTP: dict(_names(MTP_SPECS))}
_PREFIXES = {"layers": Stage.LAYER, "mtp": Stage.MTP}


def parse_name(name: str) -> TensorName | None:
    """The role of the tensor called `name`, or None where no DeepSeek-V4 model has such a tensor."""
    prefix, _, rest = name.partition(".")
    stage = _PREFIXES.get(prefix)
    if stage is None:
        found = _MODEL_NAMES.get(name)
        return TensorName(*found, Stage.MODEL) if found else None
    number, _, suffix = rest.partition(".")
    layer, place = _index(number), _place(stage, suffix)
    if layer is None or place is None:
        return None
    role, part, expert = place
    return TensorName(role, part, stage, layer, expert)


@lru_cache(maxsize=8192)
def _place(stage: Stage, suffix: str) -> tuple[Role, Part, int] | None:
    """Role, part and expert of what is called `suffix` in a layer or MTP block: the same in each of them."""
    if not suffix.startswith("ffn.experts."):
        found = _BLOCK_NAMES[stage].get(suffix)
        return (*found, -1) if found else None
    number, _, rest = suffix[len("ffn.experts.") :].partition(".")
    expert, found = _index(number), _ROUTED_NAMES.get(rest)
    return (*found, expert) if found and expert is not None else None


@lru_cache(maxsize=4096)
def _index(text: str) -> int | None:
    """A layer or expert number as checkpoints write it: no sign, no leading zero."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 6) or (text[0] == "0" and len(text) > 1):
        return None
    return int(text)


def unparse_name(at: TensorName) -> str:
    """The name of the tensor at `at`; the inverse of `parse_name`."""
    spec = SPEC[at.stage, at.role]
    prefix = {Stage.MODEL: "", Stage.LAYER: f"layers.{at.layer}.", Stage.MTP: f"mtp.{at.layer}."}[at.stage]
    if at.expert >= 0:
        prefix += f"ffn.experts.{at.expert}."
    return prefix + spec.name + ("" if spec.bare else f".{at.part}")


def scale_name(weight_name: str) -> str:
    """The name of the scale that stands beside a weight."""
    return weight_name.removesuffix(Part.WEIGHT) + Part.SCALE


def weight_name(scale_name: str) -> str:
    """The name of the weight that stands beside a scale."""
    return scale_name.removesuffix(Part.SCALE) + Part.WEIGHT


def layer_kind(config: ModelConfig, stage: Stage, layer: int) -> LayerKind:
    """The kind of a layer. An MTP block is uncompressed and never hash-routed, whatever its number."""
    if stage is not Stage.LAYER or layer >= config.num_hidden_layers:
        return LayerKind(0, False)
    return LayerKind(config.compress_ratios[layer], layer < config.num_hash_layers)
