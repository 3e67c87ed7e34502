"""Which MoE backends the engines accept on each GPU, by their own code, for tests/data/gpus.

Every backend is asked for by name, and left to the engine (`auto`), for FP4 and FP8 experts on each architecture. An
answer is the method that the engine resolved, or the error of its constructor.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any

from conformance.cases import Case
from conformance.contracts import config_folder
from conformance.engines import ROOT, Engine

COMMITTED = ROOT / "tests" / "data" / "gpus"

SMS = (80, 89, 90, 100, 103, 120, 121)

_BACKENDS = {
    ("vllm", "flash-fp4"): (
        "auto", "marlin", "flashinfer_cutlass", "flashinfer_trtllm", "deep_gemm", "triton_unfused",
        "deep_gemm_mega_moe",
    ),
    ("vllm", "flash-fp8"): ("auto", "triton", "flashinfer_cutlass", "flashinfer_trtllm", "deep_gemm", "marlin"),
    ("sglang", "flash-fp4"): ("auto", "flashinfer_mxfp4", "marlin"),
    ("sglang", "flash-fp8"): ("auto", "triton"),
}  # fmt: skip

_LONGEST = 160


def check_gpus(engine: Engine, *, update: bool) -> int:
    """Compare the engine's answers with the committed ones, or write them. Returns the number of differences."""
    jobs = [
        {"do": "contract", "case": case.to_dict(), "rank": 0, "model": str(config_folder(case, engine.work))}
        for case in _cases(engine.name)
    ]
    found = sorted((_answer(result) for result in engine.run(jobs)), key=json.dumps)
    path = COMMITTED / f"{engine.name}.json"
    if update:
        path.parent.mkdir(exist_ok=True)
        path.write_text("[\n" + ",\n".join(json.dumps(one) for one in found) + "\n]\n")
        return 0
    committed = json.loads(path.read_text())
    differ = [one for one in found if one not in committed]
    for one in differ:
        print(f"{engine.name} {one}: not in {path.name}")
    print(f"{engine.name}: {len(found)} answers, {len(differ)} differ")
    return len(differ)


def _cases(engine: str) -> Iterator[Case]:
    for sm, ((name, variant), backends) in itertools.product(SMS, _BACKENDS.items()):
        if name != engine:
            continue
        for backend, ep in itertools.product(backends, (1, 4) if engine == "vllm" else (1,)):
            yield Case(engine, variant, backend, 4, ep, shared="split" if engine == "sglang" else "auto", sm=sm)


def _answer(result: dict[str, Any]) -> dict[str, Any]:
    case, facts = Case(**result["job"]["case"]), result.get("facts", {})
    answer: dict[str, Any] = {"sm": case.sm, "experts": case.variant.rpartition("-")[2].upper(), "ep": case.ep}
    answer["runner"] = case.runner
    if "error" in result:
        return answer | {"error": result["error"][:_LONGEST]}
    if case.engine == "vllm":
        return answer | {"resolved": facts["moe"]["backend"].rpartition(".")[2] or facts["moe"]["method"]}
    dtypes = {one["name"]: one["dtype"] for one in result["contract"]}
    o_a = {name.rpartition(".")[2]: dtype for name, dtype in dtypes.items() if ".0.self_attn.wo_a." in name}
    scales = dtypes.get("model.layers.3.mlp.experts.w13_weight_scale_inv")
    return answer | {
        "resolved": facts["resolved_runner"], "method": facts["moe_method"], "o_a": o_a, "scales": scales
    }  # fmt: skip
