"""Native checkpoints under other tools' names: the tables of names, written down word by word, and what they make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from support.checkpoints.full_size import Tensors
from support.checkpoints.small import load_checkpoint

if TYPE_CHECKING:
    import torch

_SGLANG_LAYER = {
    "attn.attn_sink": "self_attn.attn_sink",
    "attn.wq_a.weight": "self_attn.wq_a.weight",
    "attn.wq_a.scale": "self_attn.wq_a.weight_scale_inv",
    "attn.q_norm.weight": "self_attn.q_norm.weight",
    "attn.wq_b.weight": "self_attn.wq_b.weight",
    "attn.wq_b.scale": "self_attn.wq_b.weight_scale_inv",
    "attn.wkv.weight": "self_attn.wkv.weight",
    "attn.wkv.scale": "self_attn.wkv.weight_scale_inv",
    "attn.kv_norm.weight": "self_attn.kv_norm.weight",
    "attn.wo_a.weight": "self_attn.wo_a.weight",
    "attn.wo_a.scale": "self_attn.wo_a.weight_scale_inv",
    "attn.wo_b.weight": "self_attn.wo_b.weight",
    "attn.wo_b.scale": "self_attn.wo_b.weight_scale_inv",
    "attn.compressor.ape": "self_attn.compressor.ape",
    "attn.compressor.norm.weight": "self_attn.compressor.norm.weight",
    "attn.compressor.wkv.weight": "self_attn.compressor.wkv.weight",
    "attn.compressor.wgate.weight": "self_attn.compressor.wgate.weight",
    "attn.indexer.wq_b.weight": "self_attn.indexer.wq_b.weight",
    "attn.indexer.wq_b.scale": "self_attn.indexer.wq_b.weight_scale_inv",
    "attn.indexer.weights_proj.weight": "self_attn.indexer.weights_proj.weight",
    "attn.indexer.compressor.ape": "self_attn.indexer.compressor.ape",
    "attn.indexer.compressor.norm.weight": "self_attn.indexer.compressor.norm.weight",
    "attn.indexer.compressor.wkv.weight": "self_attn.indexer.compressor.wkv.weight",
    "attn.indexer.compressor.wgate.weight": "self_attn.indexer.compressor.wgate.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "hc_attn_fn": "hc_attn_fn",
    "hc_attn_base": "hc_attn_base",
    "hc_attn_scale": "hc_attn_scale",
    "hc_ffn_fn": "hc_ffn_fn",
    "hc_ffn_base": "hc_ffn_base",
    "hc_ffn_scale": "hc_ffn_scale",
    "ffn.gate.weight": "mlp.gate.weight",
    "ffn.gate.bias": "mlp.gate.e_score_correction_bias",
    "ffn.gate.tid2eid": "mlp.topk.tid2eid",
    "ffn.experts.*.w1.weight": "mlp.experts.*.gate_proj.weight",
    "ffn.experts.*.w1.scale": "mlp.experts.*.gate_proj.weight_scale_inv",
    "ffn.experts.*.w2.weight": "mlp.experts.*.down_proj.weight",
    "ffn.experts.*.w2.scale": "mlp.experts.*.down_proj.weight_scale_inv",
    "ffn.experts.*.w3.weight": "mlp.experts.*.up_proj.weight",
    "ffn.experts.*.w3.scale": "mlp.experts.*.up_proj.weight_scale_inv",
    "ffn.shared_experts.w1.weight": "mlp.shared_experts.gate_proj.weight",
    "ffn.shared_experts.w1.scale": "mlp.shared_experts.gate_proj.weight_scale_inv",
    "ffn.shared_experts.w2.weight": "mlp.shared_experts.down_proj.weight",
    "ffn.shared_experts.w2.scale": "mlp.shared_experts.down_proj.weight_scale_inv",
    "ffn.shared_experts.w3.weight": "mlp.shared_experts.up_proj.weight",
    "ffn.shared_experts.w3.scale": "mlp.shared_experts.up_proj.weight_scale_inv",
}

_V3_LAYER = _SGLANG_LAYER | {
    "attn.wq_a.weight": "self_attn.q_a_proj.weight",
    "attn.wq_a.scale": "self_attn.q_a_proj.weight_scale_inv",
    "attn.q_norm.weight": "self_attn.q_a_layernorm.weight",
    "attn.wq_b.weight": "self_attn.q_b_proj.weight",
    "attn.wq_b.scale": "self_attn.q_b_proj.weight_scale_inv",
    "attn.kv_norm.weight": "self_attn.kv_a_layernorm.weight",
    "ffn.gate.tid2eid": "mlp.gate.tid2eid",
}

_TRANSFORMERS_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "hc_attn_fn": "attn_hc.fn",
    "hc_attn_base": "attn_hc.base",
    "hc_attn_scale": "attn_hc.scale",
    "hc_ffn_fn": "ffn_hc.fn",
    "hc_ffn_base": "ffn_hc.base",
    "hc_ffn_scale": "ffn_hc.scale",
    "attn.attn_sink": "self_attn.sinks",
    "attn.wq_a.weight": "self_attn.q_a_proj.weight",
    "attn.wq_a.scale": "self_attn.q_a_proj.weight_scale_inv",
    "attn.q_norm.weight": "self_attn.q_a_norm.weight",
    "attn.wq_b.weight": "self_attn.q_b_proj.weight",
    "attn.wq_b.scale": "self_attn.q_b_proj.weight_scale_inv",
    "attn.wkv.weight": "self_attn.kv_proj.weight",
    "attn.wkv.scale": "self_attn.kv_proj.weight_scale_inv",
    "attn.kv_norm.weight": "self_attn.kv_norm.weight",
    "attn.wo_a.weight": "self_attn.o_a_proj.weight",
    "attn.wo_a.scale": "self_attn.o_a_proj.weight_scale_inv",
    "attn.wo_b.weight": "self_attn.o_b_proj.weight",
    "attn.wo_b.scale": "self_attn.o_b_proj.weight_scale_inv",
    "attn.compressor.ape": "self_attn.compressor.position_bias",
    "attn.compressor.norm.weight": "self_attn.compressor.kv_norm.weight",
    "attn.compressor.wkv.weight": "self_attn.compressor.kv_proj.weight",
    "attn.compressor.wgate.weight": "self_attn.compressor.gate_proj.weight",
    "attn.indexer.wq_b.weight": "self_attn.compressor.indexer.q_b_proj.weight",
    "attn.indexer.wq_b.scale": "self_attn.compressor.indexer.q_b_proj.weight_scale_inv",
    "attn.indexer.weights_proj.weight": "self_attn.compressor.indexer.scorer.weights_proj.weight",
    "attn.indexer.compressor.ape": "self_attn.compressor.indexer.position_bias",
    "attn.indexer.compressor.norm.weight": "self_attn.compressor.indexer.kv_norm.weight",
    "attn.indexer.compressor.wkv.weight": "self_attn.compressor.indexer.kv_proj.weight",
    "attn.indexer.compressor.wgate.weight": "self_attn.compressor.indexer.gate_proj.weight",
    "ffn.gate.weight": "mlp.gate.weight",
    "ffn.gate.bias": "mlp.gate.e_score_correction_bias",
    "ffn.gate.tid2eid": "mlp.gate.tid2eid",
    "ffn.shared_experts.w1.weight": "mlp.shared_experts.gate_proj.weight",
    "ffn.shared_experts.w1.scale": "mlp.shared_experts.gate_proj.weight_scale_inv",
    "ffn.shared_experts.w2.weight": "mlp.shared_experts.down_proj.weight",
    "ffn.shared_experts.w2.scale": "mlp.shared_experts.down_proj.weight_scale_inv",
    "ffn.shared_experts.w3.weight": "mlp.shared_experts.up_proj.weight",
    "ffn.shared_experts.w3.scale": "mlp.shared_experts.up_proj.weight_scale_inv",
    "ffn.experts.*.w1.weight": "mlp.experts.gate_up_proj",
    "ffn.experts.*.w1.scale": "mlp.experts.gate_up_proj_scale_inv",
    "ffn.experts.*.w3.weight": "mlp.experts.gate_up_proj",
    "ffn.experts.*.w3.scale": "mlp.experts.gate_up_proj_scale_inv",
    "ffn.experts.*.w2.weight": "mlp.experts.down_proj",
    "ffn.experts.*.w2.scale": "mlp.experts.down_proj_scale_inv",
}

_RESAVED_LAYER = {name: name for name in _SGLANG_LAYER} | {"attn.kv_norm.weight": "attn.norm.weight"}

LAYERS = {
    "sglang": _SGLANG_LAYER,
    "sglang, mtp. prefix": _SGLANG_LAYER,
    "v3": _V3_LAYER,
    "transformers": _TRANSFORMERS_LAYER,
    "transformers-resaved": _RESAVED_LAYER,
}
"""By dialect, in which names of MTP blocks may differ: native name within a layer → the dialect's."""

DIALECTS = tuple(LAYERS)

_OUTER = {
    "embed.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "norm.weight": "model.norm.weight",
    "hc_head_fn": "model.hc_head_fn",
    "hc_head_base": "model.hc_head_base",
    "hc_head_scale": "model.hc_head_scale",
}

_HC_HEAD = {
    "hc_head_fn": "model.hc_head.hc_fn",
    "hc_head_base": "model.hc_head.hc_base",
    "hc_head_scale": "model.hc_head.hc_scale",
}

OUTER = {
    "sglang": _OUTER,
    "sglang, mtp. prefix": _OUTER,
    "v3": _OUTER,
    "transformers": _OUTER | _HC_HEAD,
    "transformers-resaved": _OUTER | _HC_HEAD | {"head.weight": "head.weight"},
}

BESIDE = {
    "e_proj.weight": "e_proj.weight",
    "e_proj.scale": "e_proj.weight_scale_inv",
    "h_proj.weight": "h_proj.weight",
    "h_proj.scale": "h_proj.weight_scale_inv",
    "enorm.weight": "enorm.weight",
    "hnorm.weight": "hnorm.weight",
    "norm.weight": "shared_head.norm.weight",
    "hc_head_fn": "hc_head_fn",
    "hc_head_base": "hc_head_base",
    "hc_head_scale": "hc_head_scale",
    "emb.tok_emb.weight": "embed_tokens.weight",
    "head.weight": "shared_head.head.weight",
}
"""What an MTP block has beside its layer, where it is numbered on after the layers."""


def _word(word: str, table: dict[str, str]) -> str:
    head, found, rest = word.partition("ffn.experts.")
    if not found or head:
        return table[word]
    number, _, part = rest.partition(".")
    return table[f"ffn.experts.*.{part}"].replace("*", number)


def dialect_name(name: str, dialect: str, layers: int) -> str | None:
    """What `dialect` calls the tensor with the native `name`; None where it has none (MTP in Transformers)."""
    if name in OUTER[dialect]:
        return OUTER[dialect][name]
    stage, number, word = name.split(".", 2)
    table = LAYERS[dialect]
    if stage == "layers":
        return f"model.layers.{number}.{_word(word, table)}"
    if dialect.startswith("transformers"):
        return None
    if dialect == "sglang, mtp. prefix":
        return f"mtp.{number}.{word if word in BESIDE else _word(word, table)}"
    return f"model.layers.{layers + int(number)}.{BESIDE.get(word) or _word(word, table)}"


def renamed(tensors: Tensors, dialect: str, layers: int) -> Tensors:
    """Headers of a native checkpoint as `dialect` has them: experts stacked, where it stacks."""
    result: Tensors = {}
    stacks: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, (dtype, shape) in tensors.items():
        other = dialect_name(name, dialect, layers)
        if other is None:
            continue
        if ".mlp.experts." in other and dialect == "transformers":
            stacks.setdefault(other, []).append((dtype, shape))
        else:
            result[other] = (dtype, shape)
    for other, members in stacks.items():
        (dtype, (rows, cols)), each = members[0], 2 if "gate_up" in other else 1
        result[other] = (dtype, (len(members) // each, rows * each, cols))
    return result


def write_dialect(folder: Path, native: Path, dialect: str) -> Path:
    """The checkpoint in `native` with `dialect`'s names and stacks, in two files that its own library wrote."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((native / "config.json").read_text())
    layers, experts = config["num_hidden_layers"], config["n_routed_experts"]
    tensors = load_checkpoint(native)
    written: dict[str, torch.Tensor] = {}
    for name in tensors:
        other = dialect_name(name, dialect, layers)
        if other is None or other in written:
            continue
        written[other] = tensors[name]
        if dialect == "transformers" and ".ffn.experts." in name:
            layer, part = name.split(".ffn.experts.")[0], name.rpartition(".")[2]
            projections = ("w1", "w3") if "gate_up" in other else ("w2",)
            written[other] = torch.stack([
                torch.cat([tensors[f"{layer}.ffn.experts.{e}.{p}.{part}"].view(torch.uint8) for p in projections])
                for e in range(experts)
            ]).view(tensors[name].dtype)  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(written)
    weight_map: dict[str, str] = {}
    for number, some in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: written[name].contiguous() for name in some}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(some, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for companion in native.glob("tokenizer*.json"):
        (folder / companion.name).write_bytes(companion.read_bytes())
    return folder
