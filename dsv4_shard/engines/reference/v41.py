"""DeepSeek's own inference code for V4.1: the differences from V4's.

It casts to blocks of 32×32, and decodes wo_a in these or in blocks of 128×128. The experts of the layers and those of
DSpark are each spread over all ranks. The rows of an engram table are rounded up to equal parts; padding rows are zeros
with scales of 1. Engram projections, the vision tower and the aligner are whole on every rank.
"""

from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.reference.converter import Converter
from dsv4_shard.engines.reference.v4 import experts_rule, ranks, reference
from dsv4_shard.engines.rules import Divides, Symptom
from dsv4_shard.models import V41, Module, Stage

_KEYS = {
    "vocab_size": "text_config.vocab_size",
    "dim": "text_config.hidden_size",
    "moe_inter_dim": "text_config.moe_intermediate_size",
    "n_layers": "text_config.num_hidden_layers",
    "n_mtp_layers": "",
    "dspark_block_size": "text_config.dspark_block_size",
    "dspark_noise_token_id": "text_config.dspark_noise_token_id",
    "dspark_target_layer_ids": "text_config.dspark_target_layer_ids",
    "dspark_markov_rank": "text_config.dspark_markov_rank",
    "dspark_n_routed_experts": "text_config.dspark_n_routed_experts",
    "dspark_n_activated_experts": "text_config.dspark_num_experts_per_tok",
    "n_heads": "text_config.num_attention_heads",
    "n_routed_experts": "text_config.n_routed_experts",
    "n_shared_experts": "text_config.n_shared_experts",
    "n_activated_experts": "text_config.num_experts_per_tok",
    "score_func": "text_config.scoring_func",
    "route_scale": "text_config.routed_scaling_factor",
    "swiglu_limit": "text_config.swiglu_limit",
    "q_lora_rank": "text_config.q_lora_rank",
    "head_dim": "text_config.head_dim",
    "rope_head_dim": "text_config.qk_rope_head_dim",
    "norm_eps": "text_config.rms_norm_eps",
    "o_groups": "text_config.o_groups",
    "o_lora_rank": "text_config.o_lora_rank",
    "window_size": "text_config.sliding_window",
    "kv_source_layers": "text_config.kv_source_layer_ids",
    "index_source_layers": "text_config.index_source_layer_ids",
    "original_seq_len": "text_config.rope_scaling.original_max_position_embeddings",
    "rope_theta": "text_config.rope_theta",
    "rope_factor": "text_config.rope_scaling.factor",
    "beta_fast": "text_config.rope_scaling.beta_fast",
    "beta_slow": "text_config.rope_scaling.beta_slow",
    "index_n_heads": "text_config.index_n_heads",
    "index_head_dim": "text_config.index_head_dim",
    "index_topk": "text_config.index_topk",
    "candidate_source_layer": "text_config.candidate_source_layer_id",
    "candidate_topk_blocks": "text_config.candidate_topk_blocks",
    "candidate_block_size": "text_config.candidate_block_size",
    "hc_mult": "text_config.hc_mult",
    "hc_sinkhorn_iters": "text_config.hc_sinkhorn_iters",
    "hc_eps": "text_config.hc_eps",
    "engram_layer_ids": "text_config.engram_layer_ids",
    "engram_vocab_size": "text_config.engram_vocab_size",
    "engram_num_embeddings": "text_config.engram_num_embeddings",
    "engram_max_ngram_size": "text_config.engram_max_ngram_size",
    "engram_pad_id": "text_config.engram_pad_token_id",
    "engram_compressed_vocab_size": "text_config.engram_compressed_vocab_size",
    "dtype": "quantization_config.quant_method",
    "expert_dtype": "",
    "compress_rope_theta": "text_config.compress_rope_theta",
    "compress_ratios": "text_config.compress_ratios",
    "vision_n_layers": "vision_config.num_hidden_layers",
    "vision_dim": "vision_config.hidden_size",
    "vision_n_heads": "vision_config.num_attention_heads",
    "vision_inter_dim": "vision_config.intermediate_size",
    "vision_patch_size": "vision_config.patch_size",
    "vision_downsample_ratio": "vision_config.downsample_ratio",
    "vision_max_n_token": "vision_config.max_image_tokens",
    "vision_min_pixels": "vision_config.min_pixels",
    "vision_max_wh_ratio": "vision_config.max_wh_ratio",
    "image_token_id": "image_token_id",
    "engram_n_heads": "text_config.engram_n_heads",
    "engram_head_dim": "text_config.engram_head_dim",
    "vision_rope_theta": "vision_config.rope_theta",
}


def _draft_experts(context: Context) -> int:
    return context.config.experts_in(Stage.MTP)


def _experts_quote(context: Context) -> str:
    """Return the converter's error text. It uses the layers' number of experts for a draft model without experts."""
    experts = context.config.n_routed_experts
    draft = _draft_experts(context) if context.inventory.mtp_blocks else experts
    return f"AssertionError: ({experts}, {draft}, {context.deployment.tp})"


V41_CONVERTER = Converter(
    version="V4.1",
    decodings={32: "fp8_32_to_bf16", 128: "fp8_to_bf16"},
    cast="fp4_to_fp8_32",
    cast_block=32,
    config_keys=_KEYS,
    nullable=("vision_max_wh_ratio",),
)

REFERENCE_V41 = reference(
    V41,
    V41_CONVERTER,
    experts_rule(_experts_quote),
    Divides(
        "draft-experts", Module.ROUTED, _draft_experts, "dspark_n_routed_experts", ranks, "ranks",
        uneven=Symptom(_experts_quote), when=lambda c: c.inventory.mtp_blocks > 0,
    ),
)  # fmt: skip
