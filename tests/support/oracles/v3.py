"""What DeepSeek's V3 and V3.2 converters make of a checkpoint, told again in whole tensors.

Written from what the converters do and not from dsv4_shard: a name is cut at its dots, each word is looked up, and a
tensor is cut where the word of its module says so.
"""

import torch

ROWS, COLUMNS, WHOLE = 0, 1, None
WORDS = {
    "embed_tokens": ("embed", ROWS),
    "lm_head": ("head", ROWS),
    "norm": ("norm", WHOLE),
    "input_layernorm": ("attn_norm", WHOLE),
    "post_attention_layernorm": ("ffn_norm", WHOLE),
    "q_a_proj": ("wq_a", WHOLE),
    "q_a_layernorm": ("q_norm", WHOLE),
    "q_b_proj": ("wq_b", ROWS),
    "kv_a_proj_with_mqa": ("wkv_a", WHOLE),
    "kv_a_layernorm": ("kv_norm", WHOLE),
    "kv_b_proj": ("wkv_b", ROWS),
    "o_proj": ("wo", COLUMNS),
    "gate": ("gate", WHOLE),
    "gate_proj": ("w1", ROWS),
    "up_proj": ("w3", ROWS),
    "down_proj": ("w2", COLUMNS),
    "wq_b": ("wq_b", WHOLE),
    "wk": ("wk", WHOLE),
    "k_norm": ("k_norm", WHOLE),
    "weights_proj": ("weights_proj", WHOLE),
}
"""A module's word in the checkpoint → the converter's, and the axis on which it is cut over the ranks."""

PLAIN = {"self_attn": "attn", "mlp": "ffn", "weight_scale_inv": "scale", "e_score_correction_bias": "bias"}


def shards(tensors: dict[str, torch.Tensor], mp: int, layers: int) -> list[dict[str, torch.Tensor]]:
    """The tensors of each of `mp` ranks; what is numbered from `layers` on is the MTP layer's, which no rank gets."""
    experts = 1 + max(int(name.split(".")[5]) for name in tensors if ".mlp.experts." in name)
    ranks: list[dict[str, torch.Tensor]] = [{} for _ in range(mp)]
    for name, tensor in tensors.items():
        words = name.removeprefix("model.").split(".")
        if words[0] == "layers" and int(words[1]) >= layers:
            continue
        module, axis = WORDS[words[-2]]
        renamed = ".".join([*(PLAIN.get(word, word) for word in words[:-2]), module, PLAIN.get(words[-1], words[-1])])
        if "experts" in words:
            ranks[int(words[4]) // (experts // mp)][renamed] = tensor
            continue
        parts = tensor.chunk(mp, axis) if axis is not None else [tensor] * mp
        assert len(parts) == mp
        for rank, part in zip(ranks, parts, strict=True):
            rank[renamed] = part.contiguous()
    return ranks
