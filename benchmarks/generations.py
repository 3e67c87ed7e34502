"""The generations of DeepSeek's converter, told apart by their scripts: a checkpoint for each, and how it is called."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv4_shard.demo import DEMO_CONFIG, DSPARK_CONFIG, V41_CONFIG, write_checkpoint


@dataclass(frozen=True, slots=True)
class Generation:
    """`mark` stands in no script of an earlier generation; `config` is of a checkpoint that it takes.

    Scripts that do not count the experts themselves are told `experts`.
    """

    title: str
    mark: str
    config: dict[str, Any]
    mtp_blocks: int = 1
    dspark: bool = False
    experts: int | None = None

    def write(self, folder: Path, seed: int) -> Path:
        """A small checkpoint for the converter in the new folder `folder`."""
        return write_checkpoint(folder, self.config, seed, self.mtp_blocks, dspark=self.dspark)


GENERATIONS = (
    Generation("V4.1", "infer_num_experts", V41_CONFIG, 2, dspark=True),
    Generation("V4 with DSpark", "markov_w1", DSPARK_CONFIG, 3, dspark=True, experts=DSPARK_CONFIG["n_routed_experts"]),
    Generation("V4", "", DEMO_CONFIG, experts=DEMO_CONFIG["n_routed_experts"]),
)
"""Newest first: a script is of the first one whose mark is in it."""


def generation_of(converter: Path) -> Generation:
    """The generation of a script."""
    script = converter.read_text()
    return next(generation for generation in GENERATIONS if generation.mark in script)


def command(converter: Path, source: Path, out: Path, ranks: int, dtype: str, experts: int | None) -> list[str]:
    """The converter's command line."""
    options = ["--hf-ckpt-path", str(source), "--save-path", str(out), "--model-parallel", str(ranks)]
    if experts is not None:
        options += ["--n-experts", str(experts)]
    return [sys.executable, str(converter), *options, "--expert-dtype", dtype]
