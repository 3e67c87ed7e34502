"""RankFileLoader, the loader behind `--load-format dsv4_shard`: fills SGLang's parameters with what a rank needs.

The bytes come from rank files, or from the checkpoint itself by a plan. `running` compares the running engine with what
they were made for, and `loading.checks` their shapes with the model, before a byte is copied. The steps after the copy
are SGLang's own, in the order of its default loader: `post_load_weights`, then the processing of each quantization
method. Only SGLang imports this module.
"""

from typing import Any

import torch
from sglang.srt.model_loader import loader as stock

from dsv4_shard.engines.sglang.files import CONFIDENCE
from dsv4_shard.loading.checks import check_apart, check_layers, check_parameters
from dsv4_shard.loading.load import load
from dsv4_shard.loading.options import LoadOptions, origin_of
from dsv4_shard.loading.parameters import memory_of, shapes_of
from dsv4_shard.sglang_plugin.running import RUNNING, check_place, check_runner, check_running, identity_of, is_draft

_NEVER_LOADED = (
    *(f".{attention}.{which}_scale" for attention in ("attn_mqa", "attn") for which in ("k", "v")),
    *(f".{which}_blockscale_swizzled" for which in ("w13", "w2")),
)
"""Parameters that are in no checkpoint: SGLang sets them itself."""

_NOT_ALWAYS_BUILT = frozenset({CONFIDENCE})
"""Parameters of files that a model has only in some modes of SGLang."""

_SHARED_WITH_TARGET = frozenset({"model.embed_tokens.weight", "lm_head.weight"})
"""Parameters that a draft model takes from its target after loading."""


class RankFileLoader(stock.BaseModelLoader):  # type: ignore[misc]
    """Loads rank files, or a checkpoint by a plan; see the module.

    `--model-loader-extra-config` takes what `loading.options` has.
    """

    def __init__(self, load_config: Any) -> None:
        super().__init__(load_config)
        self._options = LoadOptions.of(load_config.model_loader_extra_config)

    def download_model(self, model_config: Any) -> None:
        """Do nothing: the files are on disk already."""

    def load_model(self, *, model_config: Any, device_config: Any) -> torch.nn.Module:
        """Build the model, fill its parameters, and finish it as SGLang's default loader does.

        Raises NotAResult, LoadRefused, or another error of the files or the plan; before anything is copied, except
        where bytes differ from their digests or cannot be read.
        """
        origin = origin_of(self._options, model_config.model_path, "sglang", is_draft=is_draft(model_config))
        check_running(origin.identity, is_draft=origin.is_draft)
        rank = check_place(origin.identity)
        device = torch.device(device_config.device)
        quant_config = stock._get_quantization_config(model_config, self.load_config)
        with stock.set_default_torch_dtype(model_config.dtype):
            with device:
                model = stock._initialize_model(model_config, self.load_config, quant_config)
            check_runner(identity_of(origin.identity, is_draft=origin.is_draft), model)
            parameters = model.state_dict()
            check_layers(origin.identity, rank // int(origin.identity["tp"]), parameters, "SGLANG_PP_LAYER_PARTITION")
            unused = _NOT_ALWAYS_BUILT - parameters.keys()
            held = {name: kind for name, kind in origin.open(rank).items() if name not in unused}
            optional = _optional(parameters, is_draft=origin.is_draft)
            check_parameters(held, shapes_of(parameters), RUNNING.as_planned, optional)
            check_apart({name: memory_of(name, parameters[name]) for name in held})
            load(origin, rank, {name: parameters[name] for name in held})
            stock.post_load_weights(model)
            prewarm = None if origin.is_draft else getattr(model, "_prewarm_mhc_kernels", None)
            if prewarm is not None:
                prewarm()
            stock.DefaultModelLoader.postprocess_weights(model, device)
        finished: torch.nn.Module = model.eval()
        return finished


def _optional(parameters: dict[str, torch.Tensor], *, is_draft: bool) -> frozenset[str]:
    never = frozenset(name for name in parameters if name.endswith(_NEVER_LOADED))
    return never | (_SHARED_WITH_TARGET if is_draft else frozenset())
