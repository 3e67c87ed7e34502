"""Deployments of SGLang other than the one that files were made for, and what the loader must do with the files there.

Standard library only: SGLang's environment imports this module too.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from conformance.cases import Case

_TP = Case("sglang", "fp4", "marlin", 2, shared="split")
_EP = Case("sglang", "fp4", "marlin", 2, ep=2, shared="whole")
_DP = Case("sglang", "fp4", "marlin", 2, ep=2, dp=2, shared="whole")
_FOUR = Case("sglang", "fp4", "marlin", 4, ep=2, shared="whole")
_DP_HEAD = Case("sglang", "fp4", "marlin", 2, ep=2, dp=2, shared="whole", dp_lm_head=True)
_REDUNDANT = Case("sglang", "fp4", "marlin", 2, ep=2, shared="whole", redundant=2)
_STRIDED = Case("sglang", "fp4", "marlin", 2, ep=2, shared="whole", locations="strided")
_STAGES = Case("sglang", "fp4", "marlin", 2, shared="whole", pp=2, partition="2,1")
_DRAFT = Case("sglang", "fp4", "marlin", 2, ep=2, shared="whole", draft=True)
_FP8 = Case("sglang", "fp8", "triton", 2, ep=2, shared="whole")
_DSPARK = Case("sglang", "dspark-fp4", "marlin", 2, ep=2, shared="split", draft=True)


@dataclass(frozen=True)
class Variation:
    """One deployment.

    Attributes:
        name: Unique.
        case: The deployment of the files; the last rank loads.
        refused: A regular expression for the reason of the refusal; None if the files must be loaded.
        options: Arguments of `ServerArgs` beside the case's.
        variables: Environment variables beside the case's.
        stage: Pipeline stage of the process.
        placed: Whether the locations of experts are set before the model is loaded, as they are in SGLang.
        version: What SGLang gives as its version; None: its own.
    """

    name: str
    case: Case
    refused: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    stage: int = 0
    placed: bool = True
    version: str | None = None

    def to_job(self) -> dict[str, Any]:
        """The keys of a job in this deployment."""
        return {
            "variation": self.name,
            "case": self.case.to_dict(),
            "rank": self.case.tp * self.case.pp - 1,
            "options": self.options,
            "variables": self.variables,
            "stage": self.stage,
            "placed": self.placed,
            "version": self.version,
        }


_ALONE = {"SGLANG_PP_LAYER_PARTITION": "1,1,1"}

_IDENTITY = [list(range(8))] * 3
_REVERSED = [list(reversed(range(8)))] * 3
_LAST_LAYER = [*_IDENTITY[:-1], [0, 1, 2, 3, 4, 5, 7, 6]]
"""Experts in the slots of the three layers of `tiny.CONFIG`."""


def _at(rows: list[list[int]]) -> dict[str, Any]:
    return {"init_expert_location": json.dumps({"physical_to_logical_map": rows})}


_COUNTS = {"init_expert_location": json.dumps({"logical_count": [list(range(1, 9))] * 3})}

_MOVED = r"expert locations: the files are for identity, found expert {} in slot {} of layer {}, SHA-256 \w+: start"


def _loaded() -> Iterator[Variation]:
    yield Variation("planned", _EP)
    yield Variation("locations-identity", _EP, options=_at(_IDENTITY))
    yield Variation("stages", _STAGES)
    yield Variation("locations-none", _EP, placed=False)
    yield Variation("eplb", _DP, options={"enable_eplb": True})
    yield Variation("draft-beside-moved-target", _DRAFT, options=_at(_REVERSED))
    yield Variation("draft-beside-redundant-target", _DRAFT, options={"ep_num_redundant_experts": 2})
    yield Variation("head-without-attention-dp", _EP, options={"enable_dp_lm_head": True})
    yield Variation("decode-cp", _TP, options={"dcp_size": 2})
    yield Variation("dense-tp-1", _EP, options={"moe_dense_tp_size": 1})
    yield Variation("fp32-head", _EP, options={"enable_fp32_lm_head": True})
    yield Variation("fusion-off", _EP, options={"disable_shared_experts_fusion": True})
    yield Variation("fusion-on", _EP, options={"enforce_shared_experts_fusion": True})
    yield Variation("shared-attention-tp", _FOUR, options={"enable_shared_experts_attn_tp": True})
    yield Variation("dense-attention-tp", _FOUR, options={"enable_dense_mlp_attn_tp": True})
    yield Variation("quantization-named", _EP, options={"quantization": "fp8"})
    yield Variation("fp8-deep-gemm", _FP8, options={"moe_runner_backend": "deep_gemm"})
    yield Variation("fp8-cutlass-by-triton", _FP8, options={"moe_runner_backend": "flashinfer_cutlass"})
    yield Variation("fp8-deepep", _FP8, options={"moe_a2a_backend": "deepep"})
    yield Variation("local-build", _EP, version="0.5.23+cu130")
    yield Variation("dspark", _DSPARK)
    yield Variation("dspark-without-confidence", _DSPARK, variables={"SGLANG_RAGGED_VERIFY_MODE": "static"})


def _refused() -> Iterator[Variation]:
    yield Variation("locations-reversed", _EP, _MOVED.format(7, 0, 0), _at(_REVERSED))
    yield Variation("locations-reversed-fp8", _FP8, _MOVED.format(7, 0, 0), _at(_REVERSED))
    yield Variation("locations-reversed-tp", _TP, _MOVED.format(7, 0, 0), _at(_REVERSED))
    yield Variation("locations-last-layer", _EP, _MOVED.format(7, 6, 2), _at(_LAST_LAYER))
    yield Variation("locations-by-counts", _EP, _MOVED.format(r"\d", r"\d", 0), _COUNTS)
    yield Variation(
        "locations-too-late", _EP, "expert locations: .* found an --init-expert-location that is not applied yet",
        _at(_REVERSED), placed=False,
    )  # fmt: skip
    redundant = (
        "redundant experts: the files are for 0, found 2: start SGLang with the plan's --ep-num-redundant-experts"
    )
    yield Variation(
        "not-redundant", _REDUNDANT, "redundant experts: .* for 2, found 0", {"ep_num_redundant_experts": 0}
    )
    other = "expert locations: the files are for expert 3 in slot 1 of layer 0, SHA-256 .* found {}: start SGLang with"
    trivial = {"init_expert_location": "trivial"}
    yield Variation("locations-trivial", _STRIDED, other.format("identity"), trivial)
    yield Variation("locations-other", _STRIDED, other.format("expert 7 in slot 0 of layer 0, .*"), _at(_REVERSED))
    yield Variation("redundant", _EP, redundant, {"ep_num_redundant_experts": 2})
    yield Variation("redundant-tp", _TP, redundant, {"ep_num_redundant_experts": 2})
    for stage in (0, 1):
        reason = "pp: the files are for 1, found 2: start SGLang with the plan's --pp-size, none if it has none"
        yield Variation(f"stage-{stage}", _EP, reason, {"pp_size": 2}, stage=stage)
    yield Variation("other-stages", _STAGES, "pp: the files are for 2, found 3", {"pp_size": 3}, _ALONE)
    reason = "layers of stage 1: the files are for 2, found 1-2"
    yield Variation("other-layers", _STAGES, reason, variables={"SGLANG_PP_LAYER_PARTITION": "1,2"})
    yield Variation("moe-dp", _FOUR, "MoE DP: the files are for 1, found 2", {"attn_cp_size": 2, "moe_dp_size": 2})
    yield Variation("attention-cp", _EP, "attention CP: the files are for 1, found 2", {"attn_cp_size": 2})
    elastic = {"elastic_ep_backend": "mooncake", "moe_a2a_backend": "mooncake"}
    yield Variation("elastic", _DP, "elastic EP: the files are for none, found mooncake", elastic)
    yield Variation("tp", _EP, "tp: the files are for 2, found 4: start SGLang as", {"tp_size": 4, "ep_size": 4})
    yield Variation("ep", _EP, "ep: the files are for 2, found 1", {"ep_size": 1})
    yield Variation("attention-dp", _EP, "attention_dp: the files are for 1, found 2", {"attn_dp_size": 2})
    head = "lm_head: the files are for {}, found {}: start SGLang as"
    yield Variation("head-over-attention-tp", _DP, head.format("TP", "attention TP"), {"enable_dp_lm_head": True})
    yield Variation("head-over-tp", _DP_HEAD, head.format("attention TP", "TP"), {"enable_dp_lm_head": False})
    yield Variation("dwdp", _DP, head.format("TP", "attention TP"), {"dwdp_size": 2})
    yield from _refused_by_kernel()
    yield from _refused_by_shape()
    for version in ("0.5.24", "0.5.22", "0.5.23.post1", "0.5.24.dev3+gacee17e", "0.0.0.dev0"):
        reason = rf"engine: this loader is verified with SGLang 0\.5\.23, found {version}".replace("+", r"\+")
        yield Variation(f"version-{version}", _EP, reason, version=version)


def _refused_by_kernel() -> Iterator[Variation]:
    """Other kernels take the same shapes in another order."""
    other = "moe_runner: the files are for {}, found {} with {} in model.layers.0.mlp.experts: start SGLang as"
    for runner in ("flashinfer_trtllm", "flashinfer_trtllm_routed", "triton_kernel", "cutlass"):
        reason = other.format("triton", "Fp8MoEMethod", runner)
        yield Variation(f"fp8-{runner}", _FP8, reason, {"moe_runner_backend": runner})
    flashinfer = other.format("marlin", "Mxfp4FlashinferCutlassMoEMethod", "flashinfer_mxfp4")
    yield Variation("flashinfer", _EP, flashinfer, {"moe_runner_backend": "flashinfer_mxfp4"})
    dequantised = {"SGLANG_DSV4_FP4_DEQUANT": "1"}
    reason = other.format("marlin", "Fp8MoEMethod", "triton")
    yield Variation("dequantised", _EP, reason, {"moe_runner_backend": "auto"}, dequantised)
    family = "gpu_family: the files are for Hopper, found {}: reshard with --gpu"
    yield Variation("blackwell", _EP, family.format("Blackwell"), variables={"CONFORMANCE_SM": "100"})
    yield Variation("ada", _EP, family.format("sm_89"), variables={"CONFORMANCE_SM": "89"})


def _refused_by_shape() -> Iterator[Variation]:
    """No fact of the table: a name, shape, dtype or place in memory shows it."""
    shape = r"{} is .* in the file, .* in the model"
    yield Variation("float16", _EP, shape.format(".*layernorm.weight"), {"dtype": "float16"})
    yield Variation("split", _EP, shape.format(".*shared_experts.*"), variables={"SGLANG_SHARED_EXPERT_TP1": "0"})
    yield Variation("fp8-experts", _EP, "moe_runner: .* found Fp8MoEMethod", variables={"SGLANG_DSV4_FP4_EXPERTS": "0"})
    missing = r"\d+ parameters of the model are in no file: .*{}"
    eagle = {"speculative_algorithm": "EAGLE", "speculative_eagle_topk": 1, "speculative_num_steps": 1}
    yield Variation(
        "eagle-on-dspark", _DSPARK, missing.format("model.decoder"), eagle | {"speculative_num_draft_tokens": 2}
    )
    yield Variation("unfused", _EP, missing.format("self_attn.wkv"), variables={"SGLANG_OPT_FUSE_WQA_WKV": "0"})
    yield Variation("fp8-wo-a", _EP, missing.format("wo_a.weight"), variables={"SGLANG_OPT_FP8_WO_A_GEMM": "1"})
    tied = {"json_model_override_args": '{"tie_word_embeddings": true}'}
    one = "lm_head.weight and model.embed_tokens.weight are one parameter in the model and two in the files"
    yield Variation("tied", _TP, one, tied)


VARIATIONS: tuple[Variation, ...] = (*_loaded(), *_refused())
