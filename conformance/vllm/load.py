"""Loads a rank's files with vLLM's stock ShardedStateLoader or our loader, into poisoned parameters.

The stock loader only warns where a tensor does not fit or has another dtype, and copies a corner or converts. Here a
warning is a failure.
"""

import copy
import json
from typing import Any

from vllm.config import LoadConfig, set_current_vllm_config
from vllm.model_executor.model_loader import get_model_loader, sharded_state_loader
from vllm.plugins import load_general_plugins

from conformance.cases import Case
from conformance.digests import differences
from conformance.states import POISONS, describe, poison
from conformance.vllm.bringup import bring_up, build, parameters_of
from dsv4_shard.catalog.options import LOAD_FORMAT


def load(job: dict[str, Any]) -> dict[str, Any]:
    """Load a folder and compare with `want`: the `loader`, how many were `compared`, `differences`, `warnings`."""
    case = Case(**job["case"])
    config, model_config = bring_up(case, job["rank"], job["model"])
    model = build(config, model_config, "cpu")
    poison(model.parameters(), POISONS[0])
    warnings: list[str] = []
    sharded_state_loader.logger.warning = lambda message, *args, **_: warnings.append(message % args)
    here = copy.copy(model_config)
    here.model, here.model_weights = job["draft"] if case.draft else job["model"], None
    load_general_plugins()
    loader = get_model_loader(_load_config(job, case))
    with set_current_vllm_config(config):
        loader.load_weights(model, here)
    got = describe(parameters_of(model))
    return {
        "loader": f"{type(loader).__module__}.{type(loader).__name__}",
        "compared": len(job["want"]),
        "differences": differences(job["want"], got),
        "warnings": warnings,
    }


def _load_config(job: dict[str, Any], case: Case) -> LoadConfig:
    """As of a command line. Stock vLLM does not know replicas: each one's command names the pattern of its files."""
    extra = json.loads(job.get("options", {}).get("model_loader_extra_config", "{}"))
    if job["load_format"] != LOAD_FORMAT and case.dp > 1:
        replica = job["rank"] // case.tp
        extra = {"pattern": f"model-dp-{replica}-rank-{{rank}}-part-{{part}}.safetensors"}
    return LoadConfig(load_format=job["load_format"], model_loader_extra_config=extra)
