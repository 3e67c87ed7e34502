"""Where the numbers in `sglang/` and `vllm/` of tests/data come from.

    python tools/derive_contracts.py CONTRACTS

CONTRACTS is a folder with `sglang-0.5.23/` and `vllm-0.33.0/`: for each layout the parameters that the engine's own
model class declared when it was built (name, shape, dtype), and for SGLang the verdict of its constructors. Written
here are the verdicts without what no test looks at, and of each contract its bytes by module class. The classes are
told from the engines' parameter names, so nothing of dsv4_shard is used or needed.

`v3/sglang/` and `v3/vllm/` have the same of V3 and V3.2 with their first four layers: in `*.jsonl` one attempt a line,
with the name of its contract where the model was built.
"""

import json
import math
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "tests" / "data"

DTYPE_BYTES = {
    "bfloat16": 2,
    "float32": 4,
    "float8_e4m3fn": 1,
    "float8_e8m0fnu": 1,
    "int32": 4,
    "int64": 8,
    "int8": 1,
    "uint8": 1,
}

MODULES = (
    (r"(attn_m[qh]a\.|\._)(k|v|q|prob)_scale$", None),  # of the KV cache: in no checkpoint
    (r"embed_tokens\.", "embedding"),
    (r"(^lm_head|shared_head\.head)\.", "head"),
    (r"hc_(attn|ffn|head)_", "hyper-connections"),
    (r"\.shared_experts\.|\._shared_experts\.", "shared experts"),
    (r"\.(gate\.weight|e_score_correction_bias|tid2eid)$", "router"),
    (r"\.experts\.(routed_experts\.)?w(13|2)_", "routed experts"),
    (r"\.indexer\.", "indexer"),
    (r"\.compressor\.", "compressor"),
    (r"\.(self_attn|attn)\.", "attention"),
    (r"\.(e_proj|h_proj|eh_proj|enorm|hnorm)\.", "MTP projections"),
    (r"\.mlp\.(gate_up_proj|down_proj)\.", "dense MLP"),
    (r"norm\.weight$", "norms"),
)
"""The first pattern found in a parameter's name gives its module class."""

VERDICT_KEYS = ("model", "runner", "tp", "ep", "dp", "a2a", "shared", "rank", "nextn", "n_local_groups", "ok", "error")


def module_of(name: str) -> str | None:
    for pattern, module in MODULES:
        if re.search(pattern, name):
            return module
    raise ValueError(f"no module class for {name}")


def bytes_by_module(parameters: list[dict[str, Any]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for parameter in parameters:
        module = module_of(parameter["name"])
        if module is not None:
            counts[module] += math.prod(parameter["shape"]) * DTYPE_BYTES[parameter["dtype"]]
    return dict(sorted(counts.items()))


def sglang_verdicts(folder: Path) -> list[dict[str, Any]]:
    """One entry an attempt, in the order of the files; sm_100 last."""
    verdicts = []
    for file in (*sorted(folder.glob("verdicts*.jsonl")), folder / "sm100" / "verdicts.jsonl"):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            entry["ep"] = entry.get("ep_resolved", entry["ep"])
            sm = 100 if file.parent.name == "sm100" else 90
            verdicts.append({"sm": sm} | {key: entry[key] for key in VERDICT_KEYS if key in entry})
    return verdicts


def sglang_contracts(folder: Path) -> list[dict[str, Any]]:
    """Contracts by name: `<model>-<runner>-tp<N>[-ep | -ep<K>][-attndp<D>][-a2a_x]-sharedtp1-<0|1>-rank0[-nextn]`."""
    contracts = []
    for file in sorted(folder.rglob("*-rank0*.json")):
        match = re.fullmatch(
            r"(?P<model>\w+-fp[48])-(?P<runner>\w+)-tp(?P<tp>\d+)(-ep(?P<ep>\d*))?(-attndp(?P<dp>\d+))?"
            r"(-a2a_(?P<a2a>\w+))?-sharedtp1-(?P<shared>[01])-rank0(?P<nextn>-nextn)?",
            file.stem,
        )
        assert match is not None, file.name
        tp, ep = int(match["tp"]), match["ep"]
        contracts.append(
            {
                "name": str(file.relative_to(folder).with_suffix("")),
                "model": match["model"],
                "runner": match["runner"],
                "sm": 100 if file.parent.name == "sm100" else 90,
                "tp": tp,
                "ep": 1 if ep is None else int(ep or tp),
                "dp": int(match["dp"] or 1),
                "a2a": match["a2a"],
                "shared": int(match["shared"]),
                "nextn": match["nextn"] is not None,
                "bytes": bytes_by_module(json.loads(file.read_text())),
            }
        )
    return contracts


def vllm_contracts(folder: Path) -> list[dict[str, Any]]:
    """Contracts of rank 0, which are those kept; shapes do not depend on the rank."""
    contracts = []
    for entry in json.loads((folder / "_index.json").read_text()):
        if entry["rank"] != 0:
            continue
        by_module = bytes_by_module(json.loads((folder / entry["file"]).read_text())["params"])
        assert sum(by_module.values()) == entry["bytes"], entry["file"]
        contracts.append(
            {
                "name": entry["file"].removesuffix(".json"),
                "model": entry["model"],
                "sm": entry["sm"],
                "tp": entry["tp"],
                "ep": entry["ep"],
                "mtp": entry["file"].endswith("-mtp.json"),
                "layers": entry["layers"],
                "backend": entry["moe"]["backend"].partition(".")[2].lower(),
                "runs": entry["INVALID"] is None,
                "bytes": by_module,
            }
        )
    return contracts


def vllm_backends(folder: Path) -> list[dict[str, Any]]:
    """One entry a `--moe-backend` tried with V4-Pro, with the bytes of one layer's experts where it was built."""
    backends = []
    for sm in (90, 100):
        for entry in json.loads((folder / f"backends-sm{sm}.json").read_text()):
            result: dict[str, Any] = {"experts": entry["kind"], "runner": entry["backend_arg"]} | {
                k: entry[k] for k in ("sm", "tp", "ep")
            }
            if "error" in entry:
                backends.append(result | {"error": entry["error"]})
                continue
            parameters = [
                {"name": "." + name, "shape": shape, "dtype": dtype} for name, (shape, dtype) in entry["ffn3"].items()
            ]
            backends.append(
                result
                | {
                    "backend": entry["moe"]["backend"].partition(".")[2].lower(),
                    "sequence_parallel": entry["seq_parallel"],
                    "bytes": bytes_by_module(parameters),
                }
            )
    return backends


V3_KEYS = {
    "sglang": ("model", "tp", "ep", "dp", "a2a", "shared", "nofuse", "dense1", "nextn"),
    "vllm": ("model", "sm", "tp", "ep", "mtp", "backend_arg"),
}


def v3_attempts(folder: Path, engine: str) -> list[dict[str, Any]]:
    """One entry an attempt: what was asked for, and what the engine said, or the bytes that its model declared."""
    attempts = []
    for file in sorted(folder.rglob("*.jsonl")):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            error = entry.get("error") or ""
            if "WorkspaceManager" in error:  # of the harness
                continue
            result: dict[str, Any] = {}
            if engine == "sglang":
                result["sm"] = 100 if "sm100" in file.parts else 90
            result |= {key: entry[key] for key in V3_KEYS[engine] if entry.get(key) is not None}
            if entry.get("extra") or entry.get("wide"):
                result["intermediate_size"] = 32768
            if entry["ok"]:
                declared = json.loads((file.parent / entry["file"]).read_text())
                result["fused"] = bool(entry.get("fused"))
                result["bytes"] = bytes_by_module(declared if engine == "sglang" else declared["params"])
            else:
                said = re.search(r"Value error, [^\[]*", error)
                result["error"] = said[0].strip() if said else error
            attempts.append(result)
    return attempts


def write(name: str, entries: list[dict[str, Any]]) -> None:
    """One entry a line, so that a change shows in a diff."""
    path = DATA / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n")
    print(f"{path}: {len(entries)} entries")


if __name__ == "__main__":
    contracts = Path(sys.argv[1])
    write("sglang/verdicts.json", sglang_verdicts(contracts / "sglang-0.5.23"))
    write("sglang/contracts.json", sglang_contracts(contracts / "sglang-0.5.23"))
    write("vllm/contracts.json", vllm_contracts(contracts / "vllm-0.33.0"))
    write("vllm/backends.json", vllm_backends(contracts / "vllm-0.33.0"))
    for engine in V3_KEYS:
        write(f"{engine}/v3.json", v3_attempts(contracts / "v3" / engine, engine))
