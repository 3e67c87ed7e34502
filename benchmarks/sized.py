"""Checkpoints with V4-Pro's structure and the real widths of its experts, of about any size.

One layer with as many routed experts as fit: that is where a real checkpoint's bytes are (384 experts a layer), and
what every rank gets whole stays a small part. Under TP 16, `w2` in FP4 is cut into columns of 96 bytes, as in V4-Pro.
"""

import json
from pathlib import Path
from typing import Any

from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, tensors_of, write_checkpoint
from dsv4_shard.sources.checkpoint_files import INDEX_FILE
from dsv4_shard.tensors.header import nbytes_of

WIDTH = 7168
"""V4-Pro's hidden_size. Only checkpoints smaller than their least number of experts are narrower."""

WIDTH_STEP = 128
EXPERTS = 16
"""Routed experts come in multiples of this, for up to TP 16."""

BASE: dict[str, Any] = DEMO_CONFIG | {
    "num_hidden_layers": 1,
    "num_nextn_predict_layers": 0,
    "num_hash_layers": 0,
    "compress_ratios": [4],
    "vocab_size": 4096,
}
MANY_RANKS: dict[str, Any] = {"num_attention_heads": 64, "o_groups": 64, "index_n_heads": 64}
"""Heads and groups for up to TP 64."""


def config_for(nbytes: int, experts: int = EXPERTS, **changes: Any) -> dict[str, Any]:
    """A config.json for about `nbytes` of tensors, with a multiple of `experts`."""
    base = BASE | changes
    least = {width: _size(base, width, experts) for width in range(WIDTH, 0, -WIDTH_STEP)}
    width = next((width for width, size in least.items() if size <= nbytes), WIDTH_STEP)
    each = _size(base, width, 2 * experts) - least[width]
    multiple = 1 + max(0, round((nbytes - least[width]) / each))
    return _config(base, width, multiple * experts)


def write_sized(folder: Path, nbytes: int, experts: int = EXPERTS, **changes: Any) -> Path:
    """Write such a checkpoint into the new folder."""
    return write_checkpoint(folder, config_for(nbytes, experts, **changes), mtp_blocks=0)


def write_least(folder: Path) -> Path:
    """Write the least one: what a command takes for it is its start-up."""
    return write_sized(folder, 0)


def tensor_bytes(checkpoint: Path) -> int:
    """Bytes of all tensors. Each goes into some file of every layout that is measured here."""
    total: int = json.loads((checkpoint / INDEX_FILE).read_text())["metadata"]["total_size"]
    return total


def _config(base: dict[str, Any], width: int, experts: int) -> dict[str, Any]:
    return base | {"hidden_size": width, "n_routed_experts": experts}


def _size(base: dict[str, Any], width: int, experts: int) -> int:
    return sum(nbytes_of(*tensor) for tensor in tensors_of(_config(base, width, experts), mtp_blocks=0).values())
