"""Runs jobs (`oracle`, `load`, `contract`, `kv_cache`, `signatures`) with SGLang: see `conformance.jobs`."""

import os

from conformance.jobs import Function, run_jobs
from conformance.sglang import stubs


def main() -> None:
    """Pretend the GPU, import SGLang, then fork for each job."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    stubs.install(int(os.environ["CONFORMANCE_SM"]))
    from conformance.sglang.bringup import prepare
    from conformance.sglang.contracts import contract
    from conformance.sglang.kv_cache import kv_cache
    from conformance.sglang.load import load
    from conformance.sglang.oracle import oracle
    from conformance.sglang.signatures import record

    jobs: dict[str, Function] = {
        "oracle": oracle, "load": load, "contract": contract, "kv_cache": kv_cache, "signatures": record,
    }  # fmt: skip
    run_jobs(jobs, "sglang", prepare)


main()
