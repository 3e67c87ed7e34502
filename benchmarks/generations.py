"""The generations of DeepSeek's converter, told apart by their scripts: a checkpoint for each, and how it is called."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, DSPARK_CONFIG, V41_CONFIG, write_checkpoint

_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_size": 256,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 59,
    "vocab_size": 256,
    "num_attention_heads": 16,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 64,
    "intermediate_size": 1024,
    "moe_intermediate_size": 1024,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
}
"""As deep as V3: its converter leaves out what is called `model.layers.61`."""

_V32 = _V3 | {
    "architectures": ["DeepseekV32ForCausalLM"],
    "model_type": "deepseek_v32",
    "index_n_heads": 2,
    "index_head_dim": 128,
}


@dataclass(frozen=True, slots=True)
class Generation:
    """`mark` stands in no script of an earlier generation; `config` is of a checkpoint that it takes, `stored` how.

    Scripts that do not count the experts themselves are told `experts`; `dtypes` are those of their option for the
    experts, None where there is no such option; `ranks` are numbers that `config` cuts into.
    """

    title: str
    mark: str
    config: dict[str, Any]
    mtp_blocks: int = 1
    stored: dict[str, Any] = field(default_factory=dict)
    experts: int | None = None
    dtypes: tuple[str | None, ...] = ("fp4", "fp8")
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16)

    def write(self, folder: Path, seed: int) -> Path:
        """A small checkpoint for the converter in the new folder `folder`."""
        return write_checkpoint(folder, self.config, seed, self.mtp_blocks, **self.stored)


_DSPARK: dict[str, Any] = {"dspark": True}
_HUGGING_FACE: dict[str, Any] = {"scales": "F32", "optional": True}

GENERATIONS = (
    Generation("V4.1", "infer_num_experts", V41_CONFIG, 2, _DSPARK),
    Generation("V4 with DSpark", "markov_w1", DSPARK_CONFIG, 3, _DSPARK, DSPARK_CONFIG["n_routed_experts"]),
    Generation("V4", "cast_e2m1fn_to_e4m3fn", DEMO_CONFIG, experts=DEMO_CONFIG["n_routed_experts"]),
    Generation("V3.2", '"k_norm"', _V32, 1, _HUGGING_FACE, _V32["n_routed_experts"], (None,), (1, 2, 4, 8)),
    Generation("V3", "", _V3, 1, _HUGGING_FACE, _V3["n_routed_experts"], (None,), (1, 2, 4, 8)),
)
"""Newest first: a script is of the first one whose mark is in it."""


def generation_of(converter: Path) -> Generation:
    """The generation of a script."""
    script = converter.read_text()
    return next(generation for generation in GENERATIONS if generation.mark in script)


def command(converter: Path, source: Path, out: Path, ranks: int, dtype: str | None, experts: int | None) -> list[str]:
    """The converter's command line."""
    options = ["--hf-ckpt-path", str(source), "--save-path", str(out), "--model-parallel", str(ranks)]
    if experts is not None:
        options += ["--n-experts", str(experts)]
    options += ["--expert-dtype", dtype] if dtype is not None else []
    return [sys.executable, str(converter), *options]
