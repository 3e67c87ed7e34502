"""The load format `dsv4_shard`, with which vLLM loads rank files. `register` is the entry point.

vLLM finds `register` through the entry point `vllm.general_plugins` and calls it in every process, some twice.
"""

import logging

from dsv4_shard.catalog.options import LOAD_FORMAT, VLLM_LOADER_VERSIONS

logger = logging.getLogger(__name__)


def register() -> None:
    """Register the load format.

    A vLLM that the loader is not verified with gets no load format, and a warning: then it refuses the name itself.
    """
    import vllm

    verified, found = " or ".join(VLLM_LOADER_VERSIONS), getattr(vllm, "__version__", "no version")
    # A build number, as in 0.33.0+cu129, is the packager's; .dev and .post versions have other code.
    if found.partition("+")[0] not in VLLM_LOADER_VERSIONS:
        logger.warning("no load format %s: it is verified with vLLM %s, found %s", LOAD_FORMAT, verified, found)
        return
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER, register_model_loader

    if LOAD_FORMAT not in _LOAD_FORMAT_TO_MODEL_LOADER:
        from dsv4_shard.vllm_plugin.loader import VllmRankFileLoader

        register_model_loader(LOAD_FORMAT)(VllmRankFileLoader)
