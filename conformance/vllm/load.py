"""Loads a rank's files with vLLM's stock ShardedStateLoader, into poisoned parameters.

The loader only warns where a tensor does not fit or has another dtype, and copies a corner or converts. Here a warning
is a failure.
"""

import copy
from typing import Any

from vllm.config import LoadConfig, set_current_vllm_config
from vllm.model_executor.model_loader import sharded_state_loader
from vllm.model_executor.model_loader.sharded_state_loader import ShardedStateLoader

from conformance.cases import Case
from conformance.digests import differences
from conformance.states import POISONS, describe, poison
from conformance.vllm.bringup import bring_up, build


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
    with set_current_vllm_config(config):
        ShardedStateLoader(LoadConfig(load_format="sharded_state")).load_weights(model, here)
    got = describe(ShardedStateLoader._filter_subtensors(model.state_dict()))
    return {
        "loader": "vllm ShardedStateLoader",
        "compared": len(job["want"]),
        "differences": differences(job["want"], got),
        "warnings": warnings,
    }
