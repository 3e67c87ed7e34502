"""VllmRankFileLoader, the loader behind `--load-format dsv4_shard`: fills vLLM's parameters with what a rank needs.

The bytes come from rank files, or from the checkpoint itself by a plan. vLLM's base class builds the model before, and
processes the weights for their kernels afterwards. `running` compares the running engine with what the bytes are for,
and `loading.checks` their names and shapes with the model, before a byte is copied. Only vLLM imports this module.
"""

from typing import Any

import torch
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from dsv4_shard.errors import LoadRefused
from dsv4_shard.loading.checks import check_apart, check_layers, check_parameters
from dsv4_shard.loading.load import load
from dsv4_shard.loading.options import LoadOptions, origin_of
from dsv4_shard.loading.parameters import memory_of, shapes_of
from dsv4_shard.vllm_plugin.mega_moe import MegaMoe
from dsv4_shard.vllm_plugin.running import RUNNING, check_experts, check_running


class VllmRankFileLoader(BaseModelLoader):  # type: ignore[misc]
    """Loads rank files, or a checkpoint by a plan; see the module.

    `--model-loader-extra-config` takes what `loading.options` has.
    """

    def __init__(self, load_config: Any) -> None:
        super().__init__(load_config)
        self._options = LoadOptions.of(load_config.model_loader_extra_config)

    def download_model(self, model_config: Any) -> None:
        """Do nothing: the files are on disk already."""

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
        """Fill the parameters of a model that vLLM has built.

        Raises NotAResult, LoadRefused, or another error of the files or the plan; before anything is copied, except
        where bytes differ from their digests or cannot be read.
        """
        if self._options.plan is not None and model_config.runner_type == "draft":
            raise LoadRefused(
                "draft model: not loaded by a plan in vLLM: add "
                '"draft_load_config": {"load_format": "auto"} to --speculative-config'
            )
        origin = origin_of(self._options, model_config.model, "vllm", is_draft=False)
        rank = check_running(origin.identity, is_draft=origin.is_draft)
        check_experts(origin.identity, rank, model)
        held = origin.open(rank)
        parameters = _parameters(model)
        if not origin.is_draft:
            check_layers(origin.identity, rank // int(origin.identity["tp"]), parameters, "VLLM_PP_LAYER_PARTITION")
        mega = MegaMoe(model)
        check_parameters(held, mega.as_in_files(shapes_of(parameters)), RUNNING.as_planned)
        check_apart({name: memory_of(name, parameters[name]) for name in held if name in parameters})
        load(origin, rank, {name: parameters[name] for name in held if name not in mega.takers}, mega.takers)


def _parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's parameters, each under the smallest of its names, as vLLM's own sharded-state loader takes them."""
    names: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if tensor.numel():
            names[id(tensor)] = min(name, names.get(id(tensor), name))
    return {name: tensor for name, tensor in state.items() if names.get(id(tensor)) == name}
