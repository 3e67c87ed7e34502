"""DeepSeek-V4 (Pro, Flash, and their Base, FP8 and DSpark releases): config, tensors, names.

The names are those of DeepSeek's own checkpoints (`layers.3.ffn.shared_experts.w1.scale`); w1 is the gate, w3 the up
and w2 the down projection. The shapes follow the constructors of DeepSeek's reference `inference/model.py`. Tests
compare them with the complete inventories of the released checkpoints.
"""

from collections.abc import Callable
from typing import Any

from pydantic import model_validator

from dsv4_shard.models.family import (
    Count,
    Dimension,
    Family,
    ModelConfig,
    Natural,
    down,
    gate_or_up,
    has_shared,
    hidden,
    shared_down,
    shared_gate_or_up,
    vocab,
)
from dsv4_shard.models.names import NATIVE_PARTS, Grammar
from dsv4_shard.models.roles import Module, Place, Role, Shape, Spec, Stage, everywhere

OVERLAP_RATIO = 4
"""Compression ratio of layers that overlap two windows. Their compressor is twice as wide, and they have an indexer."""


class V4Config(ModelConfig):
    """The dimensions of a DeepSeek-V4 model, under the names of its config.json. Sizes in elements."""

    num_hash_layers: Natural = 0
    head_dim: Count
    o_groups: Count
    o_lora_rank: Count
    index_n_heads: Count
    index_head_dim: Count
    qk_rope_head_dim: Count | None = None
    hc_mult: Count
    sliding_window: Count = 128
    compress_ratios: tuple[Natural, ...]
    dspark_block_size: Count = 5
    dspark_markov_rank: Count = 256
    dspark_target_layer_ids: tuple[Natural, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_transformers(cls, data: Any) -> Any:
        """Compute `compress_ratios` from `layer_types` and `compress_rates`, which Transformers 5 writes instead."""
        types, rates = data.get("layer_types"), data.get("compress_rates")
        if "compress_ratios" in data or not isinstance(types, list) or not isinstance(rates, dict):
            return data
        routers = data.get("mlp_layer_types")
        hashed = routers.count("hash_moe") if isinstance(routers, list) else 0
        ratios = [rates.get(kind, 0) if isinstance(kind, str) else 0 for kind in types]
        return {"num_hash_layers": hashed} | data | {"compress_ratios": ratios}

    @model_validator(mode="after")
    def _ratios_cover_layers(self) -> "V4Config":
        if len(self.compress_ratios) < self.num_hidden_layers:
            raise ValueError(
                f"compress_ratios has {len(self.compress_ratios)} entries for {self.num_hidden_layers} layers"
            )
        if self.num_hash_layers > self.num_hidden_layers:
            raise ValueError(f"num_hash_layers {self.num_hash_layers} exceeds {self.num_hidden_layers} layers")
        return self

    @property
    def q_rows(self) -> int:
        """Rows of q_b: the queries of all heads."""
        return self.num_attention_heads * self.head_dim

    @property
    def o_cols(self) -> int:
        """Columns of o_b: the low-rank features of all output groups."""
        return self.o_groups * self.o_lora_rank


def _ratio(c: V4Config, p: Place) -> int:
    """Return the compression ratio of a layer, 0 if it is not compressed. MTP blocks never are."""
    return c.compress_ratios[p.layer] if p.stage is Stage.LAYER and p.layer < c.num_hidden_layers else 0


def _compressed(c: V4Config, p: Place) -> bool:
    return _ratio(c, p) != 0


def _indexed(c: V4Config, p: Place) -> bool:
    return _ratio(c, p) == OVERLAP_RATIO


def _hashed(c: V4Config, p: Place) -> bool:
    """Return whether the layer routes tokens by hash. MTP blocks never do."""
    return p.stage is Stage.LAYER and p.layer < min(c.num_hash_layers, c.num_hidden_layers)


def _scored(c: V4Config, p: Place) -> bool:
    return not _hashed(c, p)


def _width(c: V4Config, p: Place) -> int:
    """Return the width of the layer's compressor, in windows."""
    return 2 if _ratio(c, p) == OVERLAP_RATIO else 1


def _classic(c: V4Config, p: Place) -> bool:
    """Return whether the draft is made of classic MTP blocks, not of DSpark's stages."""
    return not p.draft.dspark


def _classic_or_last(c: V4Config, p: Place) -> bool:
    return not p.draft.dspark or p.is_last


def dspark_first(c: V4Config, p: Place) -> bool:
    """Return whether this is DSpark's first stage, whose input is the target's hidden states."""
    return p.draft.dspark and p.layer == 0


def dspark_last(c: V4Config, p: Place) -> bool:
    """Return whether this is DSpark's last stage, whose output is tokens."""
    return p.draft.dspark and p.is_last


def _mix(c: V4Config) -> int:
    """Return the number of mixing coefficients of a hyper-connection with n = `hc_mult` copies: 2n + n².

    Each copy has a pre and a post weight, and a square matrix mixes the copies.
    """
    return (2 + c.hc_mult) * c.hc_mult


def _hc(prefix: str, fn: Role, base: Role, scale: Role) -> tuple[Spec, ...]:
    """Return the rows of a hyper-connection around attention or the MLP."""
    return (
        Spec(fn, f"{prefix}_fn", lambda c, _: (_mix(c), c.hc_mult * c.hidden_size), bare=True, dtype="F32"),
        Spec(base, f"{prefix}_base", lambda c, _: (_mix(c),), bare=True, dtype="F32"),
        Spec(scale, f"{prefix}_scale", lambda c, _: (3,), bare=True, dtype="F32"),
    )


HC_SPECS = (
    *_hc("hc_attn", Role.HC_ATTN_FN, Role.HC_ATTN_BASE, Role.HC_ATTN_SCALE),
    *_hc("hc_ffn", Role.HC_FFN_FN, Role.HC_FFN_BASE, Role.HC_FFN_SCALE),
)


def _hc_head(present: Callable[[Any, Place], bool]) -> tuple[Spec, ...]:
    """Return the rows of the hyper-connection before the head."""
    rows: tuple[tuple[Role, str, Shape], ...] = (
        (Role.HC_HEAD_FN, "hc_head_fn", lambda c, _: (c.hc_mult, c.hc_mult * c.hidden_size)),
        (Role.HC_HEAD_BASE, "hc_head_base", lambda c, _: (c.hc_mult,)),
        (Role.HC_HEAD_SCALE, "hc_head_scale", lambda c, _: (1,)),
    )
    return tuple(Spec(role, name, shape, present, bare=True, dtype="F32") for role, name, shape in rows)


OUTER_SPECS = (
    Spec(Role.EMBED, "embed", vocab),
    Spec(Role.HEAD, "head", vocab),
    Spec(Role.FINAL_NORM, "norm", hidden),
)

ATTENTION_SPECS = (
    Spec(Role.Q_A, "attn.wq_a", lambda c, _: (c.q_lora_rank, c.hidden_size), quantized=True),
    Spec(Role.Q_NORM, "attn.q_norm", lambda c, _: (c.q_lora_rank,)),
    Spec(Role.Q_B, "attn.wq_b", lambda c, _: (c.q_rows, c.q_lora_rank), quantized=True),
    Spec(Role.KV, "attn.wkv", lambda c, _: (c.head_dim, c.hidden_size), quantized=True),
    Spec(Role.KV_NORM, "attn.kv_norm", lambda c, _: (c.head_dim,)),
    Spec(Role.O_A, "attn.wo_a", lambda c, _: (c.o_cols, c.q_rows // c.o_groups), quantized=True),
    Spec(Role.O_B, "attn.wo_b", lambda c, _: (c.hidden_size, c.o_cols), quantized=True),
    Spec(Role.ATTN_SINK, "attn.attn_sink", lambda c, _: (c.num_attention_heads,), bare=True, dtype="F32"),
)

_COMPRESSOR_SPECS = (
    Spec(Role.COMPRESSOR_APE, "attn.compressor.ape",
         lambda c, p: (_ratio(c, p), _width(c, p) * c.head_dim), _compressed, bare=True, dtype="F32"),
    Spec(Role.COMPRESSOR_KV, "attn.compressor.wkv",
         lambda c, p: (_width(c, p) * c.head_dim, c.hidden_size), _compressed),
    Spec(Role.COMPRESSOR_GATE, "attn.compressor.wgate",
         lambda c, p: (_width(c, p) * c.head_dim, c.hidden_size), _compressed),
    Spec(Role.COMPRESSOR_NORM, "attn.compressor.norm", lambda c, _: (c.head_dim,), _compressed),
    Spec(Role.INDEXER_Q_B, "attn.indexer.wq_b",
         lambda c, _: (c.index_n_heads * c.index_head_dim, c.q_lora_rank), _indexed, quantized=True),
    Spec(Role.INDEXER_WEIGHTS, "attn.indexer.weights_proj", lambda c, _: (c.index_n_heads, c.hidden_size), _indexed),
    Spec(Role.INDEXER_APE, "attn.indexer.compressor.ape",
         lambda c, p: (_ratio(c, p), _width(c, p) * c.index_head_dim), _indexed, bare=True, dtype="F32"),
    Spec(Role.INDEXER_KV, "attn.indexer.compressor.wkv",
         lambda c, p: (_width(c, p) * c.index_head_dim, c.hidden_size), _indexed),
    Spec(Role.INDEXER_GATE, "attn.indexer.compressor.wgate",
         lambda c, p: (_width(c, p) * c.index_head_dim, c.hidden_size), _indexed),
    Spec(Role.INDEXER_NORM, "attn.indexer.compressor.norm", lambda c, _: (c.index_head_dim,), _indexed),
)  # fmt: skip

NORM_SPECS = (Spec(Role.ATTN_NORM, "attn_norm", hidden), Spec(Role.FFN_NORM, "ffn_norm", hidden))

SHARED_SPECS = (
    Spec(Role.SHARED_GATE, "ffn.shared_experts.w1", shared_gate_or_up, has_shared, quantized=True),
    Spec(Role.SHARED_UP, "ffn.shared_experts.w3", shared_gate_or_up, has_shared, quantized=True),
    Spec(Role.SHARED_DOWN, "ffn.shared_experts.w2", shared_down, has_shared, quantized=True),
)

ROUTED_SPECS = (
    Spec(Role.ROUTED_GATE, "w1", gate_or_up, quantized=True),
    Spec(Role.ROUTED_UP, "w3", gate_or_up, quantized=True),
    Spec(Role.ROUTED_DOWN, "w2", down, quantized=True),
)
"""Projections of each routed expert, under `ffn.experts.E.`."""

_ROUTER_SPECS = (
    Spec(Role.ROUTER, "ffn.gate", lambda c, p: (c.experts_in(p.stage), c.hidden_size)),
    Spec(Role.ROUTER_BIAS, "ffn.gate.bias", lambda c, p: (c.experts_in(p.stage),), _scored, bare=True, dtype="F32"),
    Spec(Role.ROUTER_HASH, "ffn.gate.tid2eid", lambda c, _: (c.vocab_size, c.num_experts_per_tok), _hashed, bare=True,
         dtype="I64"),
)  # fmt: skip

_LAYER_SPECS = (
    *ATTENTION_SPECS,
    *_COMPRESSOR_SPECS,
    *NORM_SPECS,
    *HC_SPECS,
    *_ROUTER_SPECS,
    *SHARED_SPECS,
    *ROUTED_SPECS,
)


def main_proj(c: V4Config, p: Place) -> tuple[int, ...]:
    """Shape of DSpark's input projection. Its columns are the concatenated hidden states of some target layers."""
    return (c.hidden_size, (len(c.dspark_target_layer_ids) or p.draft.blocks) * c.hidden_size)


DSPARK_SPECS = (
    Spec(Role.DSPARK_MAIN_PROJ, "main_proj", main_proj, dspark_first, quantized=True),
    Spec(Role.DSPARK_MAIN_NORM, "main_norm", hidden, dspark_first),
    Spec(Role.DSPARK_CONFIDENCE, "confidence_head.proj", lambda c, _: (1, c.hidden_size + c.dspark_markov_rank),
         dspark_last),
)  # fmt: skip


def markov(c: V4Config, _: Place) -> tuple[int, ...]:
    """Shape of one of the two low-rank factors of DSpark's table of next tokens."""
    return (c.vocab_size, c.dspark_markov_rank)


_MTP_SPECS = (
    *_LAYER_SPECS,
    Spec(Role.MTP_E_PROJ, "e_proj", lambda c, _: (c.hidden_size, c.hidden_size), _classic, quantized=True),
    Spec(Role.MTP_H_PROJ, "h_proj", lambda c, _: (c.hidden_size, c.hidden_size), _classic, quantized=True),
    Spec(Role.MTP_ENORM, "enorm", hidden, _classic),
    Spec(Role.MTP_HNORM, "hnorm", hidden, _classic),
    Spec(Role.FINAL_NORM, "norm", hidden, _classic_or_last),
    Spec(Role.MTP_EMBED, "emb.tok_emb", vocab, optional=True),
    Spec(Role.MTP_HEAD, "head", vocab, optional=True),
    *_hc_head(_classic_or_last),
    *DSPARK_SPECS,
    Spec(Role.DSPARK_MARKOV_EMBED, "markov_head.markov_w1", markov, dspark_last),
    Spec(Role.DSPARK_MARKOV_HEAD, "markov_head.markov_w2", markov, dspark_last),
)

NATIVE_GRAMMAR = Grammar({Stage.LAYER: "layers.", Stage.MTP: "mtp."}, "ffn.experts.", NATIVE_PARTS)

ATTENTION_DIMENSIONS = (
    Dimension(Module.ATTENTION, "attention heads", lambda c: c.num_attention_heads),
    Dimension(Module.ATTENTION, "o_groups", lambda c: c.o_groups),
    Dimension(Module.INDEXER, "index heads", lambda c: c.index_n_heads),
    Dimension(Module.EMBEDDING, "vocabulary", lambda c: c.vocab_size),
    Dimension(Module.ATTENTION, "q_b rows", lambda c: c.q_rows, Role.Q_B),
    Dimension(Module.ATTENTION, "o_a rows", lambda c: c.o_cols, Role.O_A),
    Dimension(Module.ATTENTION, "o_b columns", lambda c: c.o_cols, Role.O_B, 1),
    Dimension(Module.INDEXER, "indexer q_b rows", lambda c: c.index_n_heads * c.index_head_dim, Role.INDEXER_Q_B),
)

EXPERT_DIMENSIONS = (
    Dimension(Module.ROUTED, "routed experts (EP)", lambda c: c.n_routed_experts),
    Dimension(Module.ROUTED, "routed w1 rows", lambda c: c.moe_intermediate_size, Role.ROUTED_GATE),
    Dimension(Module.ROUTED, "routed w3 rows", lambda c: c.moe_intermediate_size, Role.ROUTED_UP),
    Dimension(Module.ROUTED, "routed w2 columns", lambda c: c.moe_intermediate_size, Role.ROUTED_DOWN, 1),
    Dimension(Module.SHARED, "shared w1 rows", lambda c: c.shared_intermediate, Role.SHARED_GATE),
    Dimension(Module.SHARED, "shared w3 rows", lambda c: c.shared_intermediate, Role.SHARED_UP),
    Dimension(Module.SHARED, "shared w2 columns", lambda c: c.shared_intermediate, Role.SHARED_DOWN, 1),
)

V4 = Family(
    name="v4",
    title="DeepSeek-V4",
    architectures=("DeepseekV4ForCausalLM",),
    model_types=("deepseek_v4", "deepseek_ref"),
    config=V4Config,
    specs={
        Stage.MODEL: (*OUTER_SPECS, *_hc_head(everywhere)),
        Stage.LAYER: _LAYER_SPECS,
        Stage.MTP: _MTP_SPECS,
    },
    grammar=NATIVE_GRAMMAR,
    dimensions=(*ATTENTION_DIMENSIONS, *EXPERT_DIMENSIONS),
)
