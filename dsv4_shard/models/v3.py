"""DeepSeek-V3, V3.1, R1, and V3.2 with its indexer: config, tensors, names.

The names are Hugging Face's (`model.layers.3.mlp.shared_experts.gate_proj.weight_scale_inv`). The first layers have a
dense MLP instead of experts. The MTP block is one more layer after the last.
"""

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from dsv4_shard.models.family import (
    Count,
    Dimension,
    Family,
    Few,
    ModelConfig,
    down,
    gate_or_up,
    has_shared,
    hidden,
    shared_down,
    shared_gate_or_up,
    vocab,
)
from dsv4_shard.models.names import Grammar
from dsv4_shard.models.roles import NORM_ROLES, Module, Part, Place, Role, Spec, Stage


class V3Config(ModelConfig):
    """The dimensions of a DeepSeek-V3 model, under the names of its config.json. Sizes in elements."""

    intermediate_size: Count
    first_k_dense_replace: Few = 0
    moe_layer_freq: Annotated[int, Field(ge=1, le=1, strict=True)] = 1
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count

    @property
    def q_rows(self) -> int:
        """Rows of q_b: the queries of all heads."""
        return self.num_attention_heads * (self.qk_nope_head_dim + self.qk_rope_head_dim)

    @property
    def kv_rows(self) -> int:
        """Rows of kv_b: the keys and values of all heads."""
        return self.num_attention_heads * (self.qk_nope_head_dim + self.v_head_dim)

    @property
    def o_cols(self) -> int:
        """Columns of o: the outputs of all heads."""
        return self.num_attention_heads * self.v_head_dim


class V32Config(V3Config):
    """The dimensions of a DeepSeek-V3.2 model: those of V3, and the sizes of the indexer."""

    index_n_heads: Count
    index_head_dim: Count


def _dense(c: V3Config, p: Place) -> bool:
    """Return whether the layer has a dense MLP instead of experts: the first ones do."""
    return p.stage is Stage.LAYER and p.layer < c.first_k_dense_replace


def _sparse(c: V3Config, p: Place) -> bool:
    """Return whether the layer or block has experts."""
    return not _dense(c, p)


def _sparse_and_shared(c: V3Config, p: Place) -> bool:
    return _sparse(c, p) and has_shared(c, p)


_ATTENTION_SPECS = (
    Spec(Role.Q_A, "self_attn.q_a_proj", lambda c, _: (c.q_lora_rank, c.hidden_size), quantized=True),
    Spec(Role.Q_NORM, "self_attn.q_a_layernorm", lambda c, _: (c.q_lora_rank,)),
    Spec(Role.Q_B, "self_attn.q_b_proj", lambda c, _: (c.q_rows, c.q_lora_rank), quantized=True),
    Spec(Role.KV_A, "self_attn.kv_a_proj_with_mqa",
         lambda c, _: (c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size), quantized=True),
    Spec(Role.KV_NORM, "self_attn.kv_a_layernorm", lambda c, _: (c.kv_lora_rank,)),
    Spec(Role.KV_B, "self_attn.kv_b_proj", lambda c, _: (c.kv_rows, c.kv_lora_rank), quantized=True),
    Spec(Role.O_PROJ, "self_attn.o_proj", lambda c, _: (c.hidden_size, c.o_cols), quantized=True),
)  # fmt: skip

_INDEXER_SPECS = (
    Spec(Role.INDEXER_Q_B, "self_attn.indexer.wq_b",
         lambda c, _: (c.index_n_heads * c.index_head_dim, c.q_lora_rank), quantized=True),
    Spec(Role.INDEXER_K, "self_attn.indexer.wk", lambda c, _: (c.index_head_dim, c.hidden_size), quantized=True),
    Spec(Role.INDEXER_K_NORM, "self_attn.indexer.k_norm", lambda c, _: (c.index_head_dim,), dtype="F32"),
    Spec(Role.INDEXER_K_NORM_BIAS, "self_attn.indexer.k_norm.bias", lambda c, _: (c.index_head_dim,), bare=True,
         dtype="F32"),
    Spec(Role.INDEXER_WEIGHTS, "self_attn.indexer.weights_proj", lambda c, _: (c.index_n_heads, c.hidden_size)),
)  # fmt: skip

_MLP_SPECS = (
    Spec(Role.ATTN_NORM, "input_layernorm", hidden),
    Spec(Role.FFN_NORM, "post_attention_layernorm", hidden),
    Spec(Role.DENSE_GATE, "mlp.gate_proj", lambda c, _: (c.intermediate_size, c.hidden_size), _dense, quantized=True),
    Spec(Role.DENSE_UP, "mlp.up_proj", lambda c, _: (c.intermediate_size, c.hidden_size), _dense, quantized=True),
    Spec(Role.DENSE_DOWN, "mlp.down_proj", lambda c, _: (c.hidden_size, c.intermediate_size), _dense, quantized=True),
    Spec(Role.ROUTER, "mlp.gate", lambda c, _: (c.n_routed_experts, c.hidden_size), _sparse),
    Spec(Role.ROUTER_BIAS, "mlp.gate.e_score_correction_bias", lambda c, _: (c.n_routed_experts,), _sparse, bare=True,
         dtype="F32"),
    Spec(Role.SHARED_GATE, "mlp.shared_experts.gate_proj", shared_gate_or_up, _sparse_and_shared, quantized=True),
    Spec(Role.SHARED_UP, "mlp.shared_experts.up_proj", shared_gate_or_up, _sparse_and_shared, quantized=True),
    Spec(Role.SHARED_DOWN, "mlp.shared_experts.down_proj", shared_down, _sparse_and_shared, quantized=True),
    Spec(Role.ROUTED_GATE, "gate_proj", gate_or_up, _sparse, quantized=True),
    Spec(Role.ROUTED_UP, "up_proj", gate_or_up, _sparse, quantized=True),
    Spec(Role.ROUTED_DOWN, "down_proj", down, _sparse, quantized=True),
)  # fmt: skip

_MTP_SPECS = (
    Spec(Role.MTP_ENORM, "enorm", hidden),
    Spec(Role.MTP_HNORM, "hnorm", hidden),
    Spec(Role.MTP_EH_PROJ, "eh_proj", lambda c, _: (c.hidden_size, 2 * c.hidden_size)),
    Spec(Role.FINAL_NORM, "shared_head.norm", hidden),
    Spec(Role.MTP_EMBED, "embed_tokens", vocab, optional=True),
    Spec(Role.MTP_HEAD, "shared_head.head", vocab, optional=True),
)

_MODEL_SPECS = (
    Spec(Role.EMBED, "model.embed_tokens", vocab),
    Spec(Role.HEAD, "lm_head", vocab),
    Spec(Role.FINAL_NORM, "model.norm", hidden),
)

_DIMENSIONS = (
    Dimension(Module.ATTENTION, "attention heads", lambda c: c.num_attention_heads),
    Dimension(Module.EMBEDDING, "vocabulary", lambda c: c.vocab_size),
    Dimension(Module.ATTENTION, "q_b rows", lambda c: c.q_rows, Role.Q_B),
    Dimension(Module.ATTENTION, "kv_b rows", lambda c: c.kv_rows, Role.KV_B),
    Dimension(Module.ATTENTION, "o columns", lambda c: c.o_cols, Role.O_PROJ, 1),
    Dimension(Module.DENSE, "dense gate and up rows", lambda c: c.intermediate_size, Role.DENSE_GATE),
    Dimension(Module.DENSE, "dense down columns", lambda c: c.intermediate_size, Role.DENSE_DOWN, 1),
    Dimension(Module.ROUTED, "routed experts (EP)", lambda c: c.n_routed_experts),
    Dimension(Module.ROUTED, "routed gate rows", lambda c: c.moe_intermediate_size, Role.ROUTED_GATE),
    Dimension(Module.ROUTED, "routed up rows", lambda c: c.moe_intermediate_size, Role.ROUTED_UP),
    Dimension(Module.ROUTED, "routed down columns", lambda c: c.moe_intermediate_size, Role.ROUTED_DOWN, 1),
    Dimension(Module.SHARED, "shared gate rows", lambda c: c.shared_intermediate, Role.SHARED_GATE),
    Dimension(Module.SHARED, "shared up rows", lambda c: c.shared_intermediate, Role.SHARED_UP),
    Dimension(Module.SHARED, "shared down columns", lambda c: c.shared_intermediate, Role.SHARED_DOWN, 1),
)

_INDEXER_DIMENSIONS = (
    Dimension(Module.INDEXER, "index heads", lambda c: c.index_n_heads),
    Dimension(Module.INDEXER, "indexer q_b rows", lambda c: c.index_n_heads * c.index_head_dim, Role.INDEXER_Q_B),
)


def _in_f32(specs: tuple[Spec, ...]) -> tuple[Spec, ...]:
    """Return the rows with F32 as the dtype of norms, as in V3.2."""
    return tuple(replace(spec, dtype="F32") if spec.role in NORM_ROLES else spec for spec in specs)


_GRAMMAR = Grammar(
    {Stage.LAYER: "model.layers."},
    "mlp.experts.",
    {Part.WEIGHT: "weight", Part.SCALE: "weight_scale_inv"},
    mtp_follows=True,
)

V3 = Family(
    name="v3",
    title="DeepSeek-V3",
    architectures=("DeepseekV3ForCausalLM",),
    model_types=("deepseek_v3",),
    config=V3Config,
    specs={
        Stage.MODEL: _MODEL_SPECS,
        Stage.LAYER: (*_ATTENTION_SPECS, *_MLP_SPECS),
        Stage.MTP: (*_ATTENTION_SPECS, *_MLP_SPECS, *_MTP_SPECS),
    },
    grammar=_GRAMMAR,
    dimensions=_DIMENSIONS,
)

V32 = Family(
    name="v32",
    title="DeepSeek-V3.2",
    architectures=("DeepseekV32ForCausalLM",),
    model_types=("deepseek_v32",),
    config=V32Config,
    specs={
        Stage.MODEL: _in_f32(_MODEL_SPECS),
        Stage.LAYER: _in_f32((*_ATTENTION_SPECS, *_INDEXER_SPECS, *_MLP_SPECS)),
        Stage.MTP: _in_f32((*_ATTENTION_SPECS, *_INDEXER_SPECS, *_MLP_SPECS, *_MTP_SPECS)),
    },
    grammar=_GRAMMAR,
    dimensions=(*_DIMENSIONS, *_INDEXER_DIMENSIONS),
)
