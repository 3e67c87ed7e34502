"""VllmRankFileLoader, the loader behind `--load-format dsv4_shard`: copies rank files into vLLM's parameters.

vLLM's base class builds the model before the copy, and processes the weights for their kernels after it. `running`
compares the running engine with what the files were made for, and `loading.checks` the files with the manifest and the
model, before a byte is copied. Only vLLM imports this module.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from dsv4_shard.errors import LoadRefused
from dsv4_shard.loading.checks import check_apart, check_file, check_parameters, find_manifest, rank_files
from dsv4_shard.loading.parameters import memory_of, shapes_of
from dsv4_shard.text.sanitize import short
from dsv4_shard.vllm_plugin.mega_moe import MegaMoe
from dsv4_shard.vllm_plugin.running import RUNNING, check_experts, check_running

logger = logging.getLogger(__name__)


class VllmRankFileLoader(BaseModelLoader):  # type: ignore[misc]
    """Loads rank files; see the module. `--model-loader-extra-config '{"verify": true}'` also hashes every tensor."""

    def __init__(self, load_config: Any) -> None:
        super().__init__(load_config)
        options = load_config.model_loader_extra_config or {}
        if options not in ({}, {"verify": True}, {"verify": False}):
            raise LoadRefused(f'--model-loader-extra-config is {short(options)}: {{}} and {{"verify": true}} are known')
        self._verify = options.get("verify", False)

    def download_model(self, model_config: Any) -> None:
        """Do nothing: the files are on disk already."""

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
        """Fill the parameters of a model that vLLM has built.

        Raises NotAResult or LoadRefused before anything is copied.
        """
        manifest, root, inner = find_manifest(Path(model_config.model))
        rank = check_running(manifest.identity, is_draft=bool(inner))
        check_experts(manifest.identity, rank, model)
        files = {root / name: entry for name, entry in rank_files(manifest, inner, rank)}
        headers = {path: check_file(path, entry, rank, verify=self._verify) for path, entry in files.items()}
        held = {n: (i.dtype, i.shape) for header in headers.values() for n, i in header.tensors.items()}
        parameters = _parameters(model)
        wanted = shapes_of(parameters)
        mega = MegaMoe(model)
        check_parameters(held, mega.as_in_files(wanted), RUNNING.as_planned)
        check_apart({name: memory_of(name, parameters[name]) for name in held if name in parameters})
        for path in files:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118
                    if not mega.take(name, file.get_tensor(name)):
                        parameters[name].data.copy_(file.get_tensor(name))
        verified = "bytes" if self._verify else "headers"
        logger.info(
            "dsv4_shard: rank %d: %d parameters from %d files, %s verified", rank, len(held), len(files), verified
        )


def _parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's parameters, each under the smallest of its names, as vLLM's own sharded-state loader takes them."""
    names: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if tensor.numel():
            names[id(tensor)] = min(name, names.get(id(tensor), name))
    return {name: tensor for name, tensor in state.items() if names.get(id(tensor)) == name}
