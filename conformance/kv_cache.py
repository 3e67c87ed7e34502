"""What the engines' own code makes of memory: defaults, KV-cache pools and groups, for tests/data/kv_cache.

SGLang resolves its arguments for a GPU of the named memory, and its pool configurator turns budgets into tokens. vLLM
builds the model without memory, and groups the caches of its layers into blocks. Configs are those of the real models,
and some with other ratios, so that no formula fits two models by chance.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conformance.cases import Case
from conformance.engines import ROOT, Engine

COMMITTED = ROOT / "tests" / "data" / "kv_cache"

_MODELS = {
    "pro": "DeepSeek-V4-Pro", "flash": "DeepSeek-V4-Flash", "v3": "DeepSeek-V3", "v32": "DeepSeek-V3.2",
    "pro-0813": "DeepSeek-V4-Pro-0813", "flash-0731": "DeepSeek-V4-Flash-0731",
}  # fmt: skip

_LATENT = ("v3", "v32")
"""Models of V3's generation, which cache one latent row for each token and layer."""

_SERVED, _SERVED_LATENT = {"block_size": 256}, {"kv_cache_dtype": "auto"}
"""What `dsv4-shard plan` prints for `vllm serve` with V4, and with V3's generation."""

_DRAFTS: dict[str, dict[str, dict[str, Any]]] = {
    "sglang": {
        "mtp": {
            "speculative_algorithm": "EAGLE", "speculative_num_steps": 3, "speculative_eagle_topk": 1,
            "speculative_num_draft_tokens": 4,
        },
        "dspark": {"speculative_algorithm": "DSPARK"},
    },
    "vllm": {
        "mtp": {"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}},
        "dspark": {"speculative_config": {"method": "dspark", "num_speculative_tokens": 5}},
    },
}  # fmt: skip
"""Draft models, with the options that `dsv4-shard plan --draft` prints."""

RATIOS: dict[str, list[int]] = {
    "few": [0, 4, 128, 4, 128, 4],
    "even": [4, 128] * 6,
    "windows": [0] * 9 + [4, 128] * 3,
    "fours": [4] * 7,
    "long": [128] * 20 + [4] * 3,
}
"""Further ratios, by name; the other dimensions are Flash's."""

GPUS = {
    "h100": (90, 81559), "h20-96": (90, 97871), "h200": (90, 143771), "b200": (100, 183359), "b300": (103, 275040),
    "rtx-pro-6000": (120, 97887),
}  # fmt: skip
"""Compute capability, and the memory that nvidia-smi reports, in MiB."""

BUDGETS = (4, 9, 20, 45, 100)
"""Room for the KV cache, in GiB."""

CONTEXTS = (100, 4096, 13528, 30000, 121344, 131072, 1048576)


def check_kv_cache(engine: Engine, *, update: bool) -> int:
    """Compare what the engine says with the committed answers, or write them. Returns the number of differences."""
    found = sorted((_entry(result) for result in engine.run(_jobs(engine))), key=lambda one: json.dumps(one["asked"]))
    text = "[\n" + ",\n".join(json.dumps(one) for one in found) + "\n]\n"
    path = COMMITTED / f"{engine.name}.json"
    if update:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return 0
    committed = {json.dumps(one["asked"]): one for one in json.loads(path.read_text())}
    differ = [one for one in found if committed.get(json.dumps(one["asked"])) != one]
    for one in differ:
        print(f"{engine.name} {one['asked']}: differs from {path.name}")
    print(f"{engine.name}: {len(found)} cases, {len(differ)} differ")
    return len(differ)


def _entry(result: dict[str, Any]) -> dict[str, Any]:
    said = {key: value for key, value in result.items() if key != "job"}
    return {"asked": result["job"]["asked"], **said}


def _jobs(engine: Engine) -> Iterator[dict[str, Any]]:
    cases = _sglang() if engine.name == "sglang" else _vllm()
    for model, gpu, case, draft in cases:
        asked = {"model": model, "gpu": gpu, "tp": case.tp, "ep": case.ep, "dp": case.dp, "a2a": case.a2a}
        asked |= {"draft": draft} if draft else {}
        folder = _config_folder(model, engine.work)
        options = _DRAFTS[engine.name][draft] if draft else {}
        yield {"do": "kv_cache", "case": case.to_dict(), "rank": 0, "model": str(folder), "asked": asked,
               "served": (_SERVED_LATENT if model in _LATENT else _SERVED) | options, "options": options,
               "memory": GPUS[gpu][1], "budgets": BUDGETS, "contexts": CONTEXTS}  # fmt: skip


_Asked = tuple[str, str, Case, str | None]
"""Model, GPU, layout and draft."""


def _sglang() -> Iterator[_Asked]:
    layouts = ((2, 1, 1, None), (8, 1, 1, None), (16, 1, 1, None), (8, 1, 2, None), (8, 8, 8, None), (16, 16, 16, None))
    deepep = ((16, 16, 1, "deepep"), (16, 16, 16, "deepep"), (8, 8, 8, "deepep"))
    for gpu, (tp, ep, dp, a2a) in itertools.product(GPUS, (*layouts, *deepep)):
        yield "flash", gpu, Case("sglang", "flash-fp4", tp=tp, ep=ep, dp=dp, a2a=a2a, sm=GPUS[gpu][0]), None
    for model in ("pro", *RATIOS):
        yield model, "h200", Case("sglang", "pro-fp4", tp=8, sm=90), None
    for model, gpu, (tp, ep, dp, a2a) in itertools.product(_LATENT, GPUS, (*layouts[1:3], *layouts[4:5], *deepep[1:2])):
        yield model, gpu, Case("sglang", "pro-fp8", tp=tp, ep=ep, dp=dp, a2a=a2a, sm=GPUS[gpu][0]), None
    yield from _sglang_drafts()


def _sglang_drafts() -> Iterator[_Asked]:
    for draft, flash, pro in (("mtp", "flash", "pro"), ("dspark", "flash-0731", "pro-0813")):
        for gpu, (tp, ep, dp) in itertools.product(("h200", "b200"), ((2, 1, 1), (8, 1, 1), (8, 8, 8), (16, 16, 2))):
            yield (
                flash,
                gpu,
                Case("sglang", "flash-fp4", tp=tp, ep=ep, dp=dp, dp_lm_head=dp > 1, sm=GPUS[gpu][0]),
                draft,
            )
        yield pro, "h20-96", Case("sglang", "pro-fp4", tp=16, sm=90), draft
    for model in RATIOS:
        yield model, "h200", Case("sglang", "pro-fp4", tp=8, sm=90), "mtp"


def _vllm() -> Iterator[_Asked]:
    for model in ("flash", "pro", *RATIOS):
        yield model, "h200", Case("vllm", "pro-fp4", tp=8, sm=90), None
    for gpu in ("h100", "b200", "b300"):
        yield "flash", gpu, Case("vllm", "flash-fp4", tp=4, sm=GPUS[gpu][0]), None
    for model, gpu in itertools.product(_LATENT, ("h200", "h100", "b200", "b300")):
        yield model, gpu, Case("vllm", "pro-fp8", tp=16 if gpu == "h100" else 8, sm=GPUS[gpu][0]), None
    for draft, models in (("mtp", ("flash", "pro", *RATIOS)), ("dspark", ("flash-0731", "pro-0813"))):
        for model, gpu in itertools.product(models, ("h200", "b200")):
            yield model, gpu, Case("vllm", "pro-fp4", tp=8, sm=GPUS[gpu][0]), draft


def _config_folder(model: str, work: Path) -> Path:
    folder = work / "kv-configs" / model
    folder.mkdir(parents=True, exist_ok=True)
    source = ROOT / "tests" / "data" / _MODELS.get(model, _MODELS["flash"]) / "config.json"
    document = json.loads(source.read_text())
    document.pop("auto_map", None)  # code that is not in this folder
    if model in RATIOS:
        document |= {"compress_ratios": RATIOS[model] + [0], "num_hidden_layers": len(RATIOS[model])}
    (folder / "config.json").write_text(json.dumps(document, indent=1))
    return folder
