"""The engines that dsv4-shard plans for: one module each, tables first."""

import difflib
from dataclasses import replace

from dsv4_shard.engines.base import Engine, unknown_to
from dsv4_shard.engines.node import NODE
from dsv4_shard.engines.node_any import NODE_ANY
from dsv4_shard.engines.reference import REFERENCE
from dsv4_shard.engines.reference_v41 import REFERENCE_V41
from dsv4_shard.engines.sglang import SGLANG
from dsv4_shard.engines.sglang_layout import SglangLayout
from dsv4_shard.engines.trtllm import TRTLLM
from dsv4_shard.engines.vllm import VLLM
from dsv4_shard.engines.vllm_layout import VllmLayout
from dsv4_shard.errors import UsageError
from dsv4_shard.families.base import Family
from dsv4_shard.families.v4 import V4
from dsv4_shard.families.v41 import V41

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (replace(SGLANG, layout=SglangLayout()), replace(VLLM, layout=VllmLayout()), REFERENCE, TRTLLM, NODE)
}

SERVING = tuple(name for name in ENGINES if name != NODE.name)
"""Those that run a model; `node` makes folders that two of them load."""

_BY_FAMILY: dict[tuple[str, str], Engine] = {
    **{(engine.name, V4.name): engine for engine in ENGINES.values()},
    (REFERENCE.name, V41.name): REFERENCE_V41,
    (NODE.name, V41.name): NODE_ANY,
}


def engine_for(name: str, family: Family) -> Engine:
    """The engine called `name` as it treats `family`; one that refuses it where that is not known.

    Raises UsageError as `find_engine`.
    """
    engine = find_engine(name)
    return _BY_FAMILY.get((engine.name, family.name)) or unknown_to(engine, family)


def find_engine(name: str) -> Engine:
    """The engine called `name`. Raises UsageError with the names that come near."""
    engine = ENGINES.get(name.lower())
    if engine is None:
        near = difflib.get_close_matches(name.lower(), ENGINES, n=1) or list(ENGINES)
        raise UsageError(f"no engine called {name!r}", hint=f"Did you mean {', '.join(near)}?")
    return engine
