"""The engines that dsv4-shard plans for: one module each, tables first."""

from collections.abc import Iterable
from dataclasses import replace

from dsv4_shard.engines.engine import Engine, unknown_to
from dsv4_shard.engines.node.any_family import NODE_ANY
from dsv4_shard.engines.node.known_family import NODE, NODE_V3
from dsv4_shard.engines.reference.v3 import REFERENCE_V3, REFERENCE_V32
from dsv4_shard.engines.reference.v4 import REFERENCE
from dsv4_shard.engines.reference.v41 import REFERENCE_V41
from dsv4_shard.engines.sglang.files import SglangLayout
from dsv4_shard.engines.sglang.v3 import SGLANG_V3
from dsv4_shard.engines.sglang.v4 import SGLANG
from dsv4_shard.engines.trtllm import TRTLLM
from dsv4_shard.engines.vllm.files import VllmLayout
from dsv4_shard.engines.vllm.v3 import VLLM_V3
from dsv4_shard.engines.vllm.v4 import VLLM
from dsv4_shard.errors import UsageError
from dsv4_shard.models.family import Family
from dsv4_shard.models.v3 import V3, V32
from dsv4_shard.models.v4 import V4
from dsv4_shard.models.v41 import V41
from dsv4_shard.text.suggest import did_you_mean

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (replace(SGLANG, layout=SglangLayout()), replace(VLLM, layout=VllmLayout()), REFERENCE, TRTLLM, NODE)
}

SERVING = tuple(name for name in ENGINES if name != NODE.name)
"""Those that run a model; `node` makes folders that two of them load."""

_KNOWN: tuple[tuple[Family, Iterable[Engine]], ...] = (
    (V4, ENGINES.values()),
    (V41, (REFERENCE_V41, NODE_ANY)),
    (V3, (SGLANG_V3, VLLM_V3, REFERENCE_V3, NODE_V3)),
    (V32, (SGLANG_V3, VLLM_V3, REFERENCE_V32, NODE_V3)),
)
"""Engines whose rules for a family were held against their own code."""

_BY_FAMILY: dict[tuple[str, str], Engine] = {
    (engine.name, family.name): engine for family, engines in _KNOWN for engine in engines
}


def engine_for(name: str, family: Family) -> Engine:
    """The engine called `name` as it treats `family`; one that refuses it where that is not known.

    Raises UsageError as `find_engine`.
    """
    engine = find_engine(name)
    return _BY_FAMILY.get((engine.name, family.name)) or unknown_to(engine, family)


def title_of(name: str, version: str) -> str:
    """What the engine is called that a plan's `name` and `version` mean. Raises UsageError as `find_engine`."""
    titles = (engine.title for engine in _BY_FAMILY.values() if (engine.name, engine.version) == (name, version))
    return next(titles, find_engine(name).title)


def find_engine(name: str) -> Engine:
    """The engine called `name`. Raises UsageError with the names that come near."""
    engine = ENGINES.get(name.lower())
    if engine is None:
        several = "Several engines are for --gpus: they are searched." if "," in name else None
        raise UsageError(f"no engine called {name!r}", hint=several or did_you_mean(name, ENGINES))
    return engine
