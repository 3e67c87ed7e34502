"""Runs jobs (`oracle`, `load`, `contract`, `kv_cache`) with vLLM: see `conformance.jobs`."""

import importlib
import os
from typing import Any

from conformance.jobs import Function, run_jobs
from conformance.vllm import stubs

MODELS = tuple(f"vllm.models.deepseek_v4.nvidia.{module}" for module in ("model", "mtp", "dspark"))
"""Slow to import: before jobs are forked."""


def main() -> None:
    """Pretend the GPUs, import vLLM, then fork for each job."""
    sm = int(os.environ["CONFORMANCE_SM"])
    stubs.install(sm)
    importlib.import_module("vllm")  # before its platform can be replaced
    stubs.install_platform(sm)
    flashinfer: Any = importlib.import_module("vllm.utils.flashinfer")
    flashinfer.has_flashinfer_sparse_mla_sm120_config = lambda *_: True  # as a FlashInfer for sm_120 answers
    for module in MODELS:
        importlib.import_module(module)
    from conformance.vllm import bringup
    from conformance.vllm.contracts import contract
    from conformance.vllm.first_stop import first_stop
    from conformance.vllm.kv_cache import kv_cache
    from conformance.vllm.load import load
    from conformance.vllm.options import options
    from conformance.vllm.oracle import oracle

    bringup.install()
    jobs: dict[str, Function] = {"oracle": oracle, "load": load, "contract": contract, "kv_cache": kv_cache}
    jobs |= {"first_stop": first_stop, "options": options}
    run_jobs(jobs, "vllm", lambda job: None)


main()
