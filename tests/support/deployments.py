"""Deployments that others run, from cookbooks, recipes and pull requests."""

import re
from dataclasses import replace
from typing import Any

from support.checkpoints.full_size import FLASH, PRO, PRO_FP8

from dsv4_shard.catalog.option import fields_of
from dsv4_shard.engines.deployment import Request

FLASH_FP8 = "DeepSeek-V4-Flash-FP8"

DEPLOYMENTS: tuple[tuple[str, int, str, str, dict[str, Any], list[str]], ...] = (
    # model, GPUs, GPU, options of `plan` beside --tp, --engine and --gpu, what the launch command must have
    # SGLang PR 23911 and 23933, 2×8 H20; --dp-size N --enable-dp-attention is the older name of --attn-dp-size N
    (PRO, 16, "h20-96", "sglang", {"dp": 16, "runner": "marlin", "shared_experts": "whole"},
     ["SGLANG_SHARED_EXPERT_TP1=1", "--tp 16", "--attn-dp-size 16", "--moe-runner-backend marlin", "--nnodes 2"]),
    (PRO, 16, "h20-96", "sglang", {"dp": 2, "runner": "marlin", "shared_experts": "whole"},
     ["SGLANG_SHARED_EXPERT_TP1=1", "--tp 16", "--attn-dp-size 2", "--moe-runner-backend marlin", "--nnodes 2"]),
    # SGLang's cookbook
    (PRO, 16, "h100", "sglang", {"runner": "marlin", "shared_experts": "whole"},
     ["SGLANG_SHARED_EXPERT_TP1=1", "--tp 16", "--moe-runner-backend marlin", "--nnodes 2"]),
    (PRO_FP8, 16, "h200", "sglang", {"dp": 16, "a2a": "deepep"},
     ["SGLANG_DSV4_FP4_EXPERTS=0", "--tp 16", "--attn-dp-size 16", "--moe-a2a-backend deepep", "--nnodes 2"]),
    (PRO, 8, "h200", "sglang", {"runner": "flashinfer_mxfp4"}, ["--tp 8", "--moe-runner-backend flashinfer_mxfp4"]),
    (PRO, 8, "h200", "sglang", {"runner": "marlin"}, ["--tp 8", "--moe-runner-backend marlin"]),
    *((PRO, 8, gpu, "sglang", {"runner": "flashinfer_mxfp4"}, ["--tp 8", "--moe-runner-backend flashinfer_mxfp4"])
      for gpu in ("b200", "b300", "gb200")),
    *((PRO, 8, gpu, "sglang", {"dp": 8, "a2a": a2a}, ["--tp 8", "--attn-dp-size 8", f"--moe-a2a-backend {a2a}"])
      for gpu in ("b200", "b300") for a2a in ("deepep", "megamoe")),
    (PRO, 4, "gb300", "sglang", {}, ["--tp 4"]),
    *((FLASH, 4, gpu, "sglang", {}, ["--tp 4"]) for gpu in ("h200", "b200", "gb200", "gb300")),
    (FLASH, 8, "h100", "sglang", {"runner": "marlin"}, ["--tp 8", "--moe-runner-backend marlin"]),
    (FLASH_FP8, 4, "h200", "sglang", {}, ["SGLANG_DSV4_FP4_EXPERTS=0", "--tp 4"]),
    # vLLM's recipes: tp, tep, dep
    (PRO, 8, "h200", "vllm", {}, ["--tensor-parallel-size 8"]),
    (PRO, 8, "h200", "vllm", {"ep": 8}, ["--tensor-parallel-size 8", "--enable-expert-parallel"]),
    *((PRO, 8, gpu, "vllm", {"tp": 1, "dp": 8, "ep": 8}, ["--data-parallel-size 8", "--enable-expert-parallel"])
      for gpu in ("h200", "gb200")),
    (PRO, 8, "b200", "vllm", {"tp": 1, "dp": 8, "ep": 8, "runner": "deep_gemm_mega_moe"},
     ["--data-parallel-size 8", "--enable-expert-parallel", "--moe-backend deep_gemm_mega_moe"]),
    (FLASH, 4, "h200", "vllm", {"tp": 1, "dp": 4, "ep": 4}, ["--data-parallel-size 4", "--enable-expert-parallel"]),
    (FLASH, 8, "rtx-pro-6000", "vllm", {"ep": 8}, ["--tensor-parallel-size 8", "--enable-expert-parallel"]),
)  # fmt: skip


def requested(options: str) -> Request:
    """The request that options of `plan` stand for."""
    values: dict[str, Any] = dict(re.findall(r"--([\w-]+) (\S+)", options))
    values = {name.replace("-", "_"): int(text) if text.isdigit() else text for name, text in values.items()}
    return Request(**values)


_OPTION = re.compile(r"--([a-z0-9-]+) ([^ ,;:]+)")


def request_after(way: str, asked: Request) -> Request | None:
    """The request that a way out describes; None for what is not of this tool."""
    fields = {field.name.replace("_", "-"): field for field in fields_of(Request)}
    left_out = re.match(r"leave (.+) out(;|$)", way)
    whole = way.partition("together with the rest: ")[2]
    words = whole or (way.partition(",")[0] if not left_out else "")
    named = {name: value for name, value in _OPTION.findall(words) if name in fields}
    if not named and not left_out:
        return None
    changed: dict[str, Any] = {
        fields[name].name: int(value) if int in fields[name].kinds else value for name, value in named.items()
    }
    if whole:
        return Request(**changed)
    if left_out:
        return replace(asked, **{fields[name].name: fields[name].default for name in re.findall(r"--([a-z-]+)", way)})
    return replace(asked, **changed)
