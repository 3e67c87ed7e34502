"""Contracts: the parameters that the engines declare for the real models' configs, and what their constructors refuse.

Written to `OUT/sglang-0.5.23/` and `OUT/vllm-0.33.0/`: for each layout that builds, the parameters of rank 0 (shapes do
not depend on the rank). Verdicts are lines of `verdicts.jsonl` (SGLang), or entries of `_index.json` and, for backends
that were asked for by name, of `backends-sm90.json` and `-sm100` (vLLM). For SGLang the models are cut to their first 5
layers, which are of every kind. `compact` and `tools/derive_contracts.py` make of all this what the tests read.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conformance.cases import Case
from conformance.engines import ROOT, Engine

FOLDERS = {"sglang": "sglang-0.5.23", "vllm": "vllm-0.33.0"}
_LAYERS = {"sglang": 5, "vllm": None}
_MODELS = {"pro": "DeepSeek-V4-Pro", "flash": "DeepSeek-V4-Flash"}


def write_contracts(engine: Engine, out: Path, words: list[str]) -> int:
    """Build every layout whose name has one of `words`. A refusal is a verdict, not a failure: returns 0."""
    folder = out / FOLDERS[engine.name]
    (folder / "sm100").mkdir(parents=True, exist_ok=True)
    layouts = dict.fromkeys(_sglang_layouts() if engine.name == "sglang" else _vllm_layouts())
    jobs = [
        {"do": "contract", "case": case.to_dict(), "rank": 0, "model": str(config_folder(case, engine.work))}
        for case in layouts
        if not words or any(word in case.name for word in words)
    ]
    results = []
    for result in engine.run(jobs):
        case = Case(**result["job"]["case"])
        print(f"{engine.name} {case.name}: {result.get('error', 'ok')}", flush=True)
        results.append((case, result))
    write = _write_sglang if engine.name == "sglang" else _write_vllm
    write(folder, results)
    return 0


Results = list[tuple[Case, dict[str, Any]]]


def _write_sglang(folder: Path, results: Results) -> None:
    verdicts: dict[str, list[str]] = {}
    for case, result in results:
        verdict: dict[str, Any] = {"model": case.variant, "runner": case.runner, "rank": 0, "ok": "error" not in result}
        verdict |= {"tp": case.tp, "ep": case.ep, "dp": case.dp, "shared": int(case.shared == "whole")}
        verdict |= ({"a2a": case.a2a} if case.a2a else {}) | ({"nextn": 1} if case.draft else {})
        verdict |= result.get("facts", {}) | {key: result[key] for key in ("error", "where") if key in result}
        if verdict["ok"]:
            verdict["file"] = f"{file_name(case)}.json"
            (folder / verdict["file"]).write_text(json.dumps(result["contract"], indent=0))
        verdicts.setdefault("sm100/" if case.sm == 100 else "", []).append(json.dumps(verdict) + "\n")
    for prefix, lines in verdicts.items():
        (folder / f"{prefix}verdicts.jsonl").write_text("".join(lines))


def _write_vllm(folder: Path, results: Results) -> None:
    index = []
    backends: dict[int, list[dict[str, Any]]] = {90: [], 100: []}
    for case, result in results:
        meta = {"tp": case.tp, "ep": case.ep > 1, "sm": case.sm} | result.get("facts", {})
        meta |= {key: result[key] for key in ("error", "where") if key in result}
        if case.runner != "auto":
            kind = case.variant.partition("-")[2]
            backends[case.sm].append({"kind": kind, "backend_arg": case.runner} | meta | _experts_of(result))
            continue
        name, model = f"{file_name(case)}.json", case.variant.capitalize()
        meta = {"file": name, "model": model, "rank": 0, "layers": "full"} | meta
        index.append(meta | {"INVALID": None if meta.get("n_local_groups") else "no output group on a rank"})
        if "error" not in meta:
            (folder / name).write_text(json.dumps({"meta": meta, "params": result["contract"]}, indent=0))
    (folder / "_index.json").write_text(json.dumps(index, indent=1))
    for sm, entries in backends.items():
        (folder / f"backends-sm{sm}.json").write_text(json.dumps(entries, indent=1))


def _experts_of(result: dict[str, Any]) -> dict[str, Any]:
    """What depends on the backend: the expert layers of layer 3, and `tid2eid` of layer 0."""
    if "error" in result:
        return {}
    every = {one["name"]: [one["shape"], one["dtype"]] for one in result["contract"]}
    prefix = "model.layers.3.ffn."
    return {
        "ffn3": {name.removeprefix(prefix): one for name, one in every.items() if name.startswith(prefix)},
        "tid2eid": {name: one for name, one in every.items() if ".0.ffn." in name and name.endswith("tid2eid")},
    }


def file_name(case: Case) -> str:
    """Names of contracts, which say how a layout is asked for in the engine's own terms."""
    if case.engine == "vllm":
        words = [case.variant.capitalize(), f"tp{case.tp}", *(["ep"] if case.ep > 1 else []), "rank0"]
        words += ["mtp"] if case.draft else []
        return "-".join(words + (["sm100"] if case.sm == 100 else []))
    words = [case.variant, case.runner, f"tp{case.tp}"]
    if case.ep > 1:
        words.append("ep" if case.ep == case.tp else f"ep{case.ep}")
    words += [f"attndp{case.dp}"] if case.dp > 1 else []
    words += [f"a2a_{case.a2a}"] if case.a2a else []
    words += [f"sharedtp1-{int(case.shared == 'whole')}", "rank0", *(["nextn"] if case.draft else [])]
    return ("sm100/" if case.sm == 100 else "") + "-".join(words)


def _sglang_layouts() -> Iterator[Case]:
    runners = {"pro-fp4": ("marlin", "flashinfer_mxfp4", "auto"), "flash-fp4": ("marlin", "flashinfer_mxfp4")}
    runners |= {"pro-fp8": ("auto",), "flash-fp8": ("auto",)}
    for model, names in runners.items():
        for runner, tp, shared in itertools.product(names, (1, 4, 8, 16), ("split", "whole")):
            for ep in sorted({1, tp}):
                yield Case("sglang", model, runner, tp, ep, shared=shared)
    every = ((2, 1, 1), (16, 4, 1), (16, 8, 1), (8, 8, 8), (12, 1, 1), (32, 32, 1), (32, 32, 2), (8, 3, 1), (64, 1, 4))
    several = ((16, 2, 1), (16, 1, 2), (16, 16, 2), (16, 16, 16), (24, 1, 1))
    wide = (
        ("pro-fp4", "marlin", every + several),
        ("pro-fp4", "flashinfer_mxfp4", several),
        ("flash-fp4", "marlin", several),
        ("pro-fp8", "auto", several),
    )
    for model, runner, layouts in wide:
        for (tp, ep, dp), shared in itertools.product(layouts, ("split", "whole")):
            yield Case("sglang", model, runner, tp, ep, dp, shared)
    for model in ("pro-fp4", "pro-fp8"):
        yield Case("sglang", model, "auto", 16, 16, 16, "split", a2a="deepep")
        yield Case("sglang", model, "auto", 8, shared="split", sm=100)
    yield Case("sglang", "pro-fp4", "auto", 16, shared="whole", sm=100)
    for model, runner, tp, ep, shared in (
        ("pro-fp4", "marlin", 8, 1, "split"),
        ("pro-fp4", "marlin", 16, 1, "whole"),
        ("flash-fp4", "marlin", 8, 1, "split"),
        ("pro-fp8", "auto", 8, 8, "split"),
    ):
        yield Case("sglang", model, runner, tp, ep, shared=shared, draft=True)


_VLLM_BACKENDS = {
    "pro-fp4": (
        "marlin",
        "flashinfer_cutlass",
        "flashinfer_trtllm",
        "triton_unfused",
        "deep_gemm",
        "deep_gemm_mega_moe",
    ),
    "pro-fp8": ("triton", "deep_gemm", "flashinfer_cutlass", "flashinfer_trtllm", "marlin"),
}


def _vllm_layouts() -> Iterator[Case]:
    for model, tp in itertools.product(("pro-fp4", "flash-fp4", "pro-fp8", "flash-fp8"), (1, 4, 8, 16)):
        for ep, draft in itertools.product(sorted({1, tp}), (False, True)):
            yield Case("vllm", model, "auto", tp, ep, draft=draft)
            if tp != 4 and not draft:
                yield Case("vllm", model, "auto", tp, ep, sm=100)
    for model, backends in _VLLM_BACKENDS.items():
        for backend, (tp, ep), sm in itertools.product(backends, ((8, 1), (16, 1), (16, 16)), (90, 100)):
            yield Case("vllm", model, backend, tp, ep, sm=sm)


def config_folder(case: Case, work: Path) -> Path:
    """A folder with a real model's config.json, cut to its first layers where the engine's contracts are."""
    model, _, experts = case.variant.partition("-")
    folder = work / "configs" / case.engine / case.variant
    folder.mkdir(parents=True, exist_ok=True)
    document = json.loads((ROOT / "tests" / "data" / _MODELS[model] / "config.json").read_text())
    document["expert_dtype"] = experts
    if case.engine == "sglang" and experts == "fp8":
        del document["expert_dtype"]  # as in the FP8 re-releases
    layers, cut = document["num_hidden_layers"], _LAYERS[case.engine]
    if cut is not None:
        document["compress_ratios"] = document["compress_ratios"][:cut] + document["compress_ratios"][layers:]
        document["num_hidden_layers"] = cut
    (folder / "config.json").write_text(json.dumps(document, indent=1))
    return folder
