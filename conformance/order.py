"""The first stop of each engine on layouts that break several rules, for tests/data/order.

The engine's own code checks the arguments, builds the model, and loads weights that have shapes and no memory. The
models are the real ones, cut to their first five layers, which are of every kind.
"""

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conformance.cases import Case
from conformance.engines import ROOT, Engine
from dsv4_shard.catalog.gpus import find_gpu
from dsv4_shard.engines.sglang.kv_cache import MEGAMOE_TOKENS, megamoe_tokens, page_of, prefill_tokens, smi_mib
from dsv4_shard.models import family_of, parse_config

sys.path.insert(0, str(ROOT / "tests"))

from support.checkpoints.skeletons import expand

COMMITTED = ROOT / "tests" / "data" / "order"

_LAYERS = 5


def check_order(engine: Engine, words: list[str], *, update: bool) -> int:
    """Compare the engine's first stops with the committed ones, or write them. Returns the number of differences."""
    jobs = [job for job in _jobs(engine) if not words or any(word in json.dumps(job["asked"]) for word in words)]
    found = [_entry(result) for result in engine.run(jobs)]
    path = COMMITTED / f"{engine.name}.json"
    committed: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    if update:
        renewed = [one["asked"] for one in found]
        kept = [one for one in committed if words and one["asked"] not in renewed]
        entries = sorted((*kept, *found), key=lambda one: json.dumps(one["asked"]))
        path.parent.mkdir(exist_ok=True)
        path.write_text("[\n" + ",\n".join(json.dumps(one) for one in entries) + "\n]\n")
        return 0
    differ = [one for one in found if one not in committed]
    for one in differ:
        print(f"{engine.name} {one}: not in {path.name}")
    print(f"{engine.name}: {len(found)} first stops, {len(differ)} differ")
    return len(differ)


def _entry(result: dict[str, Any]) -> dict[str, Any]:
    stop: dict[str, Any] = {key: result[key] for key in ("stage", "error", "line", "where") if key in result}
    if "error" in stop:
        stop = {"stage": "configuration"} | stop  # raised before the job's own steps
        stop["error"] = " ".join(stop["error"].split())[:_LONGEST]
    return {"asked": result["job"]["asked"], **stop}


_LONGEST = 400


def _jobs(engine: Engine) -> Iterator[dict[str, Any]]:
    for asked in _asked(engine.name):
        more = {key: asked[key] for key in ("tp", "ep", "dp", "runner", "shared", "a2a", "sm") if key in asked}
        case = Case(engine.name, asked["model"], **more)
        folder = _folder(asked["model"], engine)
        yield {
            "do": "first_stop", "case": case.to_dict(), "rank": 0, "model": str(folder), "asked": asked,
            "weights": str(folder / "weights.json"), "options": _options(engine.name, asked),
            "variables": _variables(engine.name, asked), "memory": int(smi_mib(find_gpu(GPUS[asked["sm"]]))),
        }  # fmt: skip


def _asked(engine: str) -> Iterator[dict[str, Any]]:
    """What is asked of an engine: a fixed sample of all layouts, half of them on the axes that break most rules."""
    for model in MODELS:
        layouts = _sglang(model) if engine == "sglang" else _vllm(model)
        yield from (one for one in layouts if _is_sampled(one, engine))
        yield from _default_prefill(model) if engine == "sglang" else ()


def _is_sampled(asked: dict[str, Any], engine: str) -> bool:
    """Whether a layout is in the sample, by its own hash."""
    plain, special = _SHARES[engine]
    is_plain = (asked["runner"], asked["sm"], asked["nodes"]) == ("auto", 90, 1) and "a2a" not in asked
    share = plain if is_plain else special
    return int(hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8], 16) % share == 0


_SHARES = {"sglang": (24, 200), "vllm": (6, 100)}
"""One in so many layouts is in the sample: with the engine's own runner on one Hopper node, and of all others."""

_TP = (2, 3, 6, 8, 12, 16, 24, 32, 36, 48, 64, 96, 128, 160, 256, 512)

_VLLM = ("auto", "marlin", "flashinfer_cutlass", "flashinfer_trtllm", "deep_gemm")

_RUNNERS = {
    ("sglang", True): ("auto", "marlin", "flashinfer_mxfp4", "triton"),
    ("sglang", False): ("auto", "triton", "deep_gemm", "marlin"),
    ("vllm", True): (*_VLLM, "triton_unfused", "deep_gemm_mega_moe"),
    ("vllm", False): (*_VLLM, "triton"),
}
"""By engine, and whether the experts are FP4."""


def _sglang(model: str) -> Iterator[dict[str, Any]]:
    runners = _RUNNERS["sglang", _has_fp4(model)]
    for tp, runner, shared, sm, nodes in itertools.product(_TP, runners, ("split", "whole"), GPUS, (1, 5)):
        pairs = ((1, 1), (2, 1), (3, 1), (5, 1), (tp, 1), (1, 2), (tp, 2), (2, 3), (3, tp), (tp, tp))
        for ep, dp in dict.fromkeys(pairs):
            yield {"model": model, "tp": tp, "ep": ep, "dp": dp, "runner": runner, "shared": shared, "sm": sm,
                   "nodes": nodes}  # fmt: skip
    for tp, runner, sm, a2a in itertools.product(_TP, runners[:2], GPUS, ("deepep", "megamoe", "flashinfer_megamoe")):
        for dp in dict.fromkeys((1, 2, 3, tp)):
            yield {"model": model, "tp": tp, "ep": tp, "dp": dp, "runner": runner, "shared": "whole", "a2a": a2a,
                   "sm": sm, "nodes": 1}  # fmt: skip


def _default_prefill(model: str) -> Iterator[dict[str, Any]]:
    """Attention DP without the option that `dsv4-shard plan` adds to it, each of them in the sample."""
    for tp, dp in ((8, 8), (12, 3), (32, 32), (64, 64)):
        for sm in GPUS:
            yield {"model": model, "tp": tp, "ep": tp, "dp": dp, "runner": "auto", "shared": "whole", "sm": sm,
                   "nodes": 1, "default_prefill": True}  # fmt: skip


def _vllm(model: str) -> Iterator[dict[str, Any]]:
    for tp, dp, runner, sm, nodes in itertools.product(_TP, (1, 2, 3), _RUNNERS["vllm", _has_fp4(model)], GPUS, (1, 5)):
        for ep in dict.fromkeys((1, tp * dp)):
            yield {"model": model, "tp": tp, "ep": ep, "dp": dp, "runner": runner, "sm": sm, "nodes": nodes}


def _has_fp4(model: str) -> bool:
    return "V4" in model and not _has_fp8(model)


def _has_fp8(model: str) -> bool:
    return model.endswith(("-FP8", "-Base"))


def _options(engine: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Options beside those of `Case`, as `dsv4-shard plan` prints them."""
    options: dict[str, Any] = {}
    if asked["nodes"] > 1:
        options = {"nnodes": asked["nodes"], "node_rank": 0}
        options |= {"dist_init_addr": "127.0.0.1:30300"} if engine == "sglang" else {"master_addr": "127.0.0.1"}
    if engine == "sglang" and asked["dp"] > 1 and not asked.get("default_prefill"):
        gpu, page = find_gpu(GPUS[asked["sm"]]), _page(asked["model"], engine)
        options["chunked_prefill_size"] = prefill_tokens(gpu, asked["dp"], page)
    if (engine, asked["runner"]) == ("sglang", "triton"):
        options["moe_runner_backend"] = "triton"  # `Case` leaves it to SGLang, which picks it for FP8 experts alone
    return options


def _page(model: str, engine: str) -> int:
    return page_of(family_of(parse_config(json.dumps(_config(model, engine)).encode(), "config.json")[0]))


GPUS = {90: "h200", 100: "b200", 120: "rtx-pro-6000"}
"""The GPU of each architecture, under its name in `dsv4-shard --gpu`."""


def _variables(engine: str, asked: dict[str, Any]) -> dict[str, str]:
    if engine == "vllm":
        return {}
    variables = {}
    if asked.get("a2a") == "megamoe":
        attention_tp = asked["tp"] // asked["dp"] or 1
        tokens = megamoe_tokens(find_gpu(GPUS[asked["sm"]]), asked["dp"], attention_tp, _page(asked["model"], engine))
        variables = {MEGAMOE_TOKENS: str(tokens)} if tokens else {}
    if not _has_fp8(asked["model"]):
        return variables
    variables["SGLANG_DSV4_FP4_EXPERTS"] = "0"
    return variables | ({"SGLANG_OPT_FP8_WO_A_GEMM": "0"} if asked["sm"] == 100 else {})


MODELS = (
    "DeepSeek-V4-Pro", "DeepSeek-V4-Flash", "DeepSeek-V4-Pro-FP8", "DeepSeek-V4-Flash-Base", "DeepSeek-V4-Flash-0731",
    "DeepSeek-V4-Pro-NVFP4", "DeepSeek-V4.1-Flash", "DeepSeek-V3", "DeepSeek-V3.2",
)  # fmt: skip


def _folder(model: str, engine: Engine) -> Path:
    """A folder with the model's config.json and the shapes of its weights; of V4 and V3, its first layers alone."""
    folder = engine.work / "order" / model
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    document = _config(model, engine.name)
    layers = _cut(document)
    kept = {name: tensor for name, tensor in expand(model).items() if _is_kept(name, layers)}
    (folder / "config.json").write_text(json.dumps(document, indent=1))
    (folder / "weights.json").write_text(json.dumps(kept))
    return folder


def _config(model: str, engine: str) -> dict[str, Any]:
    """The model's config.json; for FP8 re-releases DeepSeek's own, with the experts' dtype as the engine is told it."""
    own = json.loads((ROOT / "tests" / "data" / model.removesuffix("-FP8") / "config.json").read_text())
    if model.endswith("-FP8"):
        own["expert_dtype"] = "fp8"
        if engine == "sglang":
            del own["expert_dtype"]
    return dict(own)


def _cut(document: dict[str, Any]) -> int:
    """Cut the config to its first layers; returns their number. V4.1's stays whole: some of its layers are unique."""
    document.pop("auto_map", None)
    if "text_config" in document:
        return int(document["text_config"]["num_hidden_layers"])
    layers, document["num_hidden_layers"] = document["num_hidden_layers"], _LAYERS
    if ratios := document.get("compress_ratios"):
        document["compress_ratios"] = ratios[:_LAYERS] + ratios[layers:]
    if "dspark_target_layer_ids" in document:
        document["dspark_target_layer_ids"] = list(range(_LAYERS))[-3:]
    return _LAYERS


_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


_EXPERT = re.compile(r"\.experts\.(\d+)\.")


def _is_kept(name: str, layers: int) -> bool:
    """Whether a tensor is of the kept layers, and of an expert on the first rank: the others have the same shapes."""
    layer, expert = _LAYER.search(name), _EXPERT.search(name)
    return (
        not name.startswith("mtp.")
        and (layer is None or int(layer[1]) < layers)
        and (expert is None or int(expert[1]) == 0)
    )
