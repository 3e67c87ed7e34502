"""The engines that dsv4-shard plans for: one module each, tables first."""

import difflib
from dataclasses import replace

from dsv4_shard.engines.base import Engine
from dsv4_shard.engines.node import NODE
from dsv4_shard.engines.reference import REFERENCE
from dsv4_shard.engines.sglang import SGLANG
from dsv4_shard.engines.sglang_layout import SglangLayout
from dsv4_shard.engines.trtllm import TRTLLM
from dsv4_shard.engines.vllm import VLLM
from dsv4_shard.engines.vllm_layout import VllmLayout
from dsv4_shard.errors import UsageError

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (replace(SGLANG, layout=SglangLayout()), replace(VLLM, layout=VllmLayout()), REFERENCE, TRTLLM, NODE)
}

SERVING = tuple(name for name in ENGINES if name != NODE.name)
"""Those that run a model; `node` makes folders that two of them load."""


def find_engine(name: str) -> Engine:
    """The engine called `name`. Raises UsageError with the names that come near."""
    engine = ENGINES.get(name.lower())
    if engine is None:
        near = difflib.get_close_matches(name.lower(), ENGINES, n=1) or list(ENGINES)
        raise UsageError(f"no engine called {name!r}", hint=f"Did you mean {', '.join(near)}?")
    return engine
