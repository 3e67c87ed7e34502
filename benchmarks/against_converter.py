"""Hold reshard's `reference` files against those of DeepSeek's own converter, byte by byte, whole files included.

    python benchmarks/against_converter.py --converter path/to/inference/convert.py [--generation v3]

The converter is not part of this repository: take `inference/convert.py` from any DeepSeek-V4 release, from the
DeepSeek-V3 repository (v3) or from a DeepSeek-V3.2 release (v32). They need tqdm.
Exits with 1 at the first file that differs.
"""

import argparse
import filecmp
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv4_shard.checkpoint import CONFIG_FILE, read_checkpoint
from dsv4_shard.demo import DEMO_CONFIG, write_checkpoint
from dsv4_shard.engines.base import Request
from dsv4_shard.inventory import take_inventory
from dsv4_shard.plan import make_plan
from dsv4_shard.reshard import prepare, reshard
from dsv4_shard.sources import open_source

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
    """A converter's checkpoint: its config.json, how tensors are stored, and to what dtypes experts are converted.

    Without `dtypes` the converter has no such option.
    """

    config: dict[str, Any]
    ranks: tuple[int, ...]
    dtypes: tuple[str, ...] = ()
    stored: dict[str, Any] = field(default_factory=dict)


GENERATIONS = {
    "v4": Generation(DEMO_CONFIG, (1, 2, 4, 8, 16), ("fp4", "fp8")),
    "v3": Generation(_V3, (1, 2, 4, 8), stored={"scales": "F32", "optional": True}),
    "v32": Generation(_V32, (1, 2, 4, 8), stored={"scales": "F32", "optional": True}),
}


def convert(converter: Path, source: Path, out: Path, experts: int, ranks: int, dtype: str | None) -> float:
    """Seconds that the converter takes."""
    command = [sys.executable, str(converter), "--hf-ckpt-path", str(source), "--save-path", str(out)]
    command += ["--n-experts", str(experts), "--model-parallel", str(ranks)]
    command += ["--expert-dtype", dtype] if dtype else []
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started


def shard(source: Path, out: Path, ranks: int, dtype: str | None) -> float:
    """Seconds that reshard takes, headers to rename."""
    started = time.monotonic()
    checkpoint = read_checkpoint(open_source(str(source)))
    inventory = take_inventory(checkpoint)
    plan = make_plan(checkpoint, inventory, Request(tp=ranks, engine="reference", expert_dtype=dtype))
    reshard(prepare(checkpoint, inventory, plan), checkpoint, out)
    return time.monotonic() - started


def main() -> None:
    """Compare for every number of ranks that the checkpoint allows; V4's with FP4 kept and cast to FP8."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--converter", type=Path, required=True)
    parser.add_argument("--generation", choices=GENERATIONS, default="v4")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generation = GENERATIONS[arguments.generation]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = write_checkpoint(folder / "checkpoint", generation.config, arguments.seed, **generation.stored)
        for dtype in generation.dtypes or (None,):
            for ranks in generation.ranks:
                compare(arguments.converter, source, folder, ranks, dtype)


def compare(converter: Path, source: Path, scratch: Path, ranks: int, dtype: str | None) -> None:
    """Both results, side by side and then removed."""
    theirs, ours = scratch / "theirs", scratch / "ours"
    experts = json.loads((source / CONFIG_FILE).read_text())["n_routed_experts"]
    slow, fast = convert(converter, source, theirs, experts, ranks, dtype), shard(source, ours, ranks, dtype)
    names = sorted(path.name for path in theirs.glob("*.safetensors"))
    same = [filecmp.cmp(theirs / name, ours / name, shallow=False) for name in names]
    case = f"{dtype} mp{ranks}" if dtype else f"mp{ranks}"
    if len(names) != ranks or not all(same):
        sys.exit(f"{case}: {same.count(False)} of {len(names)} files differ")
    print(f"{case}: {len(names)} files byte-identical, {slow / fast:.1f}× the converter's speed")
    shutil.rmtree(theirs)
    shutil.rmtree(ours)


if __name__ == "__main__":
    main()
