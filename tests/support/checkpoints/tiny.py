"""A config with V4-Pro's structure whose checkpoint takes about 2 MB: for tests that write many."""

from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG

TINY_CONFIG = DEMO_CONFIG | {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_hash_layers": 1,
    "compress_ratios": [128, 4, 0],
    "vocab_size": 256,
    "num_attention_heads": 4,
    "o_groups": 4,
    "index_n_heads": 4,
    "moe_intermediate_size": 256,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "hc_mult": 2,
}
