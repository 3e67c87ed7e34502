"""The engines that dsv4-shard plans for. Every engine is registered here, and nowhere else."""

from dataclasses import replace

from dsv4_shard.engines.engine import Engine
from dsv4_shard.engines.node.any_family import NODE_ANY
from dsv4_shard.engines.node.known_family import NODE, NODE_V3
from dsv4_shard.engines.reference.v3 import REFERENCE_V3, REFERENCE_V32
from dsv4_shard.engines.reference.v4 import REFERENCE
from dsv4_shard.engines.reference.v41 import REFERENCE_V41
from dsv4_shard.engines.sglang.files import SglangLayout
from dsv4_shard.engines.sglang.v3 import SGLANG_V3
from dsv4_shard.engines.sglang.v4 import SGLANG
from dsv4_shard.engines.sglang.v41 import SGLANG_V41
from dsv4_shard.engines.trtllm import TRTLLM
from dsv4_shard.engines.unverified import unknown_to
from dsv4_shard.engines.vllm.files import VllmLayout
from dsv4_shard.engines.vllm.v3 import VLLM_V3
from dsv4_shard.engines.vllm.v4 import VLLM
from dsv4_shard.engines.vllm.v41 import VLLM_V41
from dsv4_shard.errors import UsageError
from dsv4_shard.models import Family
from dsv4_shard.text.suggest import did_you_mean

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        replace(SGLANG, layout=SglangLayout(), variants=(SGLANG_V3, SGLANG_V41)),
        replace(VLLM, layout=VllmLayout(), variants=(VLLM_V3, VLLM_V41)),
        replace(REFERENCE, variants=(REFERENCE_V41, REFERENCE_V3, REFERENCE_V32)),
        TRTLLM,
        replace(NODE, variants=(NODE_ANY, NODE_V3)),
    )
}
"""Every engine by name, each with its tables for other families."""

DEEPSEEK = REFERENCE.name
"""The engine whose files DeepSeek's own converter writes."""


def serving() -> tuple[str, ...]:
    """Names of the engines that run a model; the others only lay out files for these."""
    return tuple(name for name, engine in ENGINES.items() if engine.serves)


def engine_for(name: str, family: Family) -> Engine:
    """Return the engine called `name` for `family`; if it is not verified for the family, one that refuses it.

    Raises:
        UsageError: As `find_engine`.
    """
    engine = find_engine(name)
    return engine.table_for(family) or unknown_to(engine, family)


def title_of(name: str, version: str) -> str:
    """Return the title of the engine for a plan's `name` and `version`.

    Raises:
        UsageError: As `find_engine`.
    """
    engine = find_engine(name)
    titles = (table.title for table in (engine, *engine.variants) if table.version == version)
    return next(titles, engine.title)


def find_engine(name: str) -> Engine:
    """Return the engine called `name`.

    Raises:
        UsageError: If there is none; the hint has the closest names.
    """
    engine = ENGINES.get(name.lower())
    if engine is None:
        several = "Several engines are for --gpus: they are searched." if "," in name else None
        raise UsageError(f"no engine called {name!r}", hint=several or did_you_mean(name, ENGINES))
    return engine
