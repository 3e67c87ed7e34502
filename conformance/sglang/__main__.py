"""Runs jobs (`oracle`, `load`, `contract`, `kv_cache`, `signatures`) with SGLang: see `conformance.jobs`."""

import importlib.util
import os
from pathlib import Path

from conformance.jobs import Function, run_jobs
from conformance.sglang import stubs


def main() -> None:
    """Pretend the GPU, import SGLang, then fork for each job."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("SGLANG_DISABLED_MODEL_ARCHS", ",".join(_other_models()))
    stubs.install(int(os.environ["CONFORMANCE_SM"]))
    from conformance.sglang.bringup import prepare
    from conformance.sglang.contracts import contract
    from conformance.sglang.first_stop import first_stop
    from conformance.sglang.kv_cache import kv_cache
    from conformance.sglang.load import load
    from conformance.sglang.options import options
    from conformance.sglang.oracle import oracle
    from conformance.sglang.signatures import record

    jobs: dict[str, Function] = {
        "oracle": oracle, "load": load, "contract": contract, "kv_cache": kv_cache, "signatures": record,
        "first_stop": first_stop, "options": options,
    }  # fmt: skip
    run_jobs(jobs, "sglang", prepare)


def _other_models() -> list[str]:
    """Modules of other models, which SGLang's registry would import for each case."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.origin is not None
    names = (path.stem for path in (Path(spec.origin).parent / "srt" / "models").glob("*.py"))
    return [name for name in names if not name.startswith(("deepseek_v", "deepseek_nextn"))]


main()
