"""DeepSeek-V4.1: V4's attention in 32×32 blocks, engram tables, DSpark with its own experts, a vision tower.

Its config.json nests the language model's sizes in `text_config`. The shapes follow DeepSeek's reference
`inference/model.py` and agree with the complete inventory of V4.1-Flash.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dsv4_shard.models.family import Count, Dimension, Family, Few, Natural, hidden, vocab
from dsv4_shard.models.names import NATIVE_PARTS, Grammar
from dsv4_shard.models.roles import Module, Place, Role, Spec, Stage
from dsv4_shard.models.v4 import (
    ATTENTION_DIMENSIONS,
    ATTENTION_SPECS,
    DSPARK_SPECS,
    EXPERT_DIMENSIONS,
    HC_SPECS,
    NORM_SPECS,
    OUTER_SPECS,
    ROUTED_SPECS,
    SHARED_SPECS,
    V4Config,
    dspark_last,
    markov,
)
from dsv4_shard.tensors.geometry import Block

ENGRAM_BLOCK = Block(1, 32)
"""Block of engram tables: each row has its own scales, independent of the checkpoint's block."""

_COLORS = 3

_MAX_TABLES = 64
"""Most engram layers. Real models have two; each place of the model is looked up among them."""


class VisionConfig(BaseModel):
    """The vision tower. Sizes in elements, `patch_size` in pixels."""

    model_config = ConfigDict(frozen=True)

    num_hidden_layers: Few
    hidden_size: Count
    intermediate_size: Count
    patch_size: Count
    downsample_ratio: Count


class V41Config(V4Config):
    """The dimensions of a DeepSeek-V4.1 model: `text_config` of its config.json, and `vision_config` beside it."""

    kv_source_layer_ids: frozenset[Natural]
    index_source_layer_ids: frozenset[Natural]
    engram_layer_ids: Annotated[tuple[Natural, ...], Field(max_length=_MAX_TABLES)] = ()
    engram_num_embeddings: Annotated[tuple[Count, ...], Field(max_length=_MAX_TABLES)] = ()
    engram_vocab_size: Count | None = None
    engram_head_dim: Count = 256
    engram_n_heads: Count = 8
    engram_max_ngram_size: Count = 4
    dspark_n_routed_experts: Few
    vision_config: VisionConfig | None = None

    @model_validator(mode="after")
    def _tables_fit_layers(self) -> "V41Config":
        if len(self.engram_layer_ids) != len(self.engram_num_embeddings):
            raise ValueError(
                f"engram_layer_ids has {len(self.engram_layer_ids)} entries, engram_num_embeddings "
                f"{len(self.engram_num_embeddings)}"
            )
        return self

    def experts_in(self, stage: Stage) -> int:
        """Return the number of routed experts. The stages of DSpark have another number than the layers."""
        return self.dspark_n_routed_experts if stage is Stage.MTP else self.n_routed_experts

    def blocks_in(self, stage: Stage) -> int:
        """Return the number of blocks of the vision tower, 0 for other stages."""
        return self.vision_config.num_hidden_layers if stage is Stage.VISION and self.vision_config else 0

    @property
    def vision(self) -> VisionConfig:
        """The vision tower. Only for models that have one."""
        assert self.vision_config is not None, "asked only where vision tensors are present"
        return self.vision_config


def _kv_source(c: V41Config, p: Place) -> bool:
    """Return whether other layers share this layer's compressed KV."""
    return p.stage is Stage.LAYER and p.layer in c.kv_source_layer_ids


def _gated(c: V41Config, p: Place) -> bool:
    """Return whether the layer's compressor has a gate: it compresses its own KV by more than 1."""
    return _kv_source(c, p) and p.layer < c.num_hidden_layers and c.compress_ratios[p.layer] > 1


def _index_source(c: V41Config, p: Place) -> bool:
    return p.stage is Stage.LAYER and p.layer in c.index_source_layer_ids


def _engram(c: V41Config, p: Place) -> bool:
    return p.stage is Stage.LAYER and p.layer in c.engram_layer_ids


def _engram_rows(c: V41Config, p: Place) -> int:
    """Return the rows of the layer's engram table, 0 if it has none."""
    return dict(zip(c.engram_layer_ids, c.engram_num_embeddings, strict=True)).get(p.layer, 0)


def _has_vision(c: V41Config, _: Place) -> bool:
    return c.vision_config is not None


_SPARSE_SPECS = (
    Spec(Role.COMPRESSOR_KV, "attn.compressor.wkv", lambda c, _: (c.head_dim, c.hidden_size), _kv_source),
    Spec(Role.COMPRESSOR_GATE, "attn.compressor.wgate", lambda c, _: (c.head_dim, c.hidden_size), _gated),
    Spec(Role.COMPRESSOR_NORM, "attn.compressor.norm", lambda c, _: (c.head_dim,), _kv_source),
    Spec(Role.INDEXER_K, "attn.indexer.wk", lambda c, _: (c.index_head_dim, c.head_dim), _kv_source),
    Spec(Role.INDEXER_K_NORM, "attn.indexer.k_norm", lambda c, _: (c.index_head_dim,), _kv_source),
    Spec(Role.INDEXER_Q_B, "attn.indexer.wq_b",
         lambda c, _: (c.index_n_heads * c.index_head_dim, c.q_lora_rank), _index_source, quantized=True),
    Spec(Role.INDEXER_WEIGHTS, "attn.indexer.weights_proj",
         lambda c, _: (c.index_n_heads, c.hidden_size), _index_source),
)  # fmt: skip

_ENGRAM_SPECS = (
    Spec(Role.ENGRAM_EMBED, "engram.embed", lambda c, p: (_engram_rows(c, p), c.engram_head_dim), _engram,
         quantized=True, block=ENGRAM_BLOCK),
    Spec(Role.ENGRAM_KV, "engram.wkv",
         lambda c, _: ((c.hc_mult + 1) * c.hidden_size,
                       (c.engram_max_ngram_size - 1) * c.engram_n_heads * c.engram_head_dim), _engram, quantized=True),
    Spec(Role.ENGRAM_Q_WEIGHT, "engram.q_weight", lambda c, _: (c.hc_mult, c.hidden_size), _engram, bare=True),
    Spec(Role.ENGRAM_K_WEIGHT, "engram.k_weight", lambda c, _: (c.hc_mult, c.hidden_size), _engram, bare=True),
)  # fmt: skip

_ROUTER_SPECS = (
    Spec(Role.ROUTER, "ffn.gate", lambda c, p: (c.experts_in(p.stage), c.hidden_size)),
    Spec(Role.ROUTER_BIAS, "ffn.gate.bias", lambda c, p: (c.experts_in(p.stage),), bare=True, dtype="F32"),
    Spec(Role.ROUTER_BIAS_VL, "ffn.gate.bias_vl", lambda c, p: (c.experts_in(p.stage),), bare=True, dtype="F32"),
)

_LAYER_SPECS = (
    *ATTENTION_SPECS,
    *_SPARSE_SPECS,
    *_ENGRAM_SPECS,
    *NORM_SPECS,
    *HC_SPECS,
    *_ROUTER_SPECS,
    *SHARED_SPECS,
    *ROUTED_SPECS,
)

_MTP_SPECS = (
    *_LAYER_SPECS,
    *DSPARK_SPECS,
    Spec(Role.DSPARK_MARKOV_EMBED, "markov_head.embed", markov, dspark_last),
    Spec(Role.DSPARK_MARKOV_HEAD, "markov_head.head", markov, dspark_last),
    Spec(Role.FINAL_NORM, "norm", hidden, dspark_last),
    Spec(Role.MTP_EMBED, "embed", vocab, optional=True),
    Spec(Role.MTP_HEAD, "head", vocab, optional=True),
)


def _vision(role: Role, name: str, *sizes: str, bias: Role | None = None) -> tuple[Spec, ...]:
    """Return the row of a tensor of the vision tower, and the row of its bias if it has one.

    `sizes` are keys of `_VISION_SIZES`, one per axis.
    """
    weight = Spec(role, name, lambda c, _: tuple(_VISION_SIZES[size](c) for size in sizes), _has_vision)
    if bias is None:
        return (weight,)
    return weight, Spec(bias, f"{name}.bias", lambda c, _: (_VISION_SIZES[sizes[0]](c),), _has_vision, bare=True)


_VISION_SIZES = {
    "dim": lambda c: c.vision.hidden_size,
    "3 dim": lambda c: 3 * c.vision.hidden_size,
    "inter": lambda c: c.vision.intermediate_size,
    "2 inter": lambda c: 2 * c.vision.intermediate_size,
    "pixels": lambda c: _COLORS * c.vision.patch_size**2,
    "patches": lambda c: c.vision.hidden_size * c.vision.downsample_ratio**2,
    "hidden": lambda c: c.hidden_size,
}

_VISION_SPECS = (
    *_vision(Role.VISION_QKV, "attn.wqkv", "3 dim", "dim", bias=Role.VISION_QKV_BIAS),
    *_vision(Role.VISION_O, "attn.wo", "dim", "dim", bias=Role.VISION_O_BIAS),
    *_vision(Role.VISION_GATE_UP, "mlp.w1", "2 inter", "dim"),
    *_vision(Role.VISION_DOWN, "mlp.w2", "dim", "inter"),
    *_vision(Role.VISION_NORM_1, "norm1", "dim"),
    *_vision(Role.VISION_NORM_2, "norm2", "dim"),
)

_MODEL_SPECS = (
    *OUTER_SPECS,
    *_vision(Role.VISION_PATCH, "vision.patch_embed.proj", "dim", "pixels", bias=Role.VISION_PATCH_BIAS),
    *_vision(Role.VISION_NORM, "vision.norm", "dim"),
    *_vision(Role.ALIGNER_1, "aligner.w1", "hidden", "patches", bias=Role.ALIGNER_1_BIAS),
    *_vision(Role.ALIGNER_2, "aligner.w2", "hidden", "hidden", bias=Role.ALIGNER_2_BIAS),
    *(
        Spec(role, name, hidden, _has_vision, bare=True)
        for role, name in (
            (Role.IMAGE_START, "image_start"),
            (Role.IMAGE_END, "image_end"),
            (Role.IMAGE_NEWLINE, "image_newline"),
        )
    ),
)

V41 = Family(
    name="v41",
    title="DeepSeek-V4.1",
    architectures=("DeepseekV41ForCausalLM",),
    model_types=("deepseek_v41",),
    config=V41Config,
    specs={
        Stage.MODEL: _MODEL_SPECS,
        Stage.LAYER: _LAYER_SPECS,
        Stage.MTP: _MTP_SPECS,
        Stage.VISION: _VISION_SPECS,
    },
    grammar=Grammar(
        {Stage.LAYER: "layers.", Stage.MTP: "mtp.", Stage.VISION: "vision.blocks."}, "ffn.experts.", NATIVE_PARTS
    ),
    dimensions=(
        *ATTENTION_DIMENSIONS,
        *EXPERT_DIMENSIONS,
        Dimension(Module.ROUTED, "DSpark experts (EP)", lambda c: c.dspark_n_routed_experts),
    ),
    text="text_config",
)
