"""The layouts that are compared with the engines: every way of cutting a model that an engine has and a CPU can build.

Standard library only: the engines' environments import this module too.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

GPU_OF_SM = {90: "h200", 100: "b200"}
"""A GPU of each architecture, under its name in `dsv4-shard --gpu`."""

LOCATIONS = Path(__file__).parent.parent / "tests" / "data" / "locations"
"""Maps of the experts of the three layers of `tiny.CONFIG` to slots."""

BF16_O_A = ("fp8", "fp8-odd")
"""Variants with wo_a in BF16: SGLang refuses to load them on Blackwell, unless it is told to hold wo_a in BF16."""


@dataclass(frozen=True, slots=True)
class Case:
    """One layout of one tiny checkpoint.

    `variant` is a key of `tiny.VARIANTS`, `runner` the MoE backend as the engine calls it (`auto`: its own choice),
    `dp` SGLang's attention DP, or vLLM's replicas. `shared` is whole or split; vLLM leaves no choice (`auto`). `draft`
    looks at the MTP model instead of the target. `dp_lm_head` and `redundant` are options of SGLang,
    `locations` the name of a map in LOCATIONS. `pp` is the number of pipeline stages; `partition` has the layers of
    each, if the engine does not divide them by itself.
    """

    engine: str
    variant: str
    runner: str = "auto"
    tp: int = 1
    ep: int = 1
    dp: int = 1
    shared: str = "auto"
    a2a: str | None = None
    draft: bool = False
    sm: int = 90
    dp_lm_head: bool = False
    redundant: int = 0
    locations: str | None = None
    pp: int = 1
    partition: str | None = None

    @property
    def name(self) -> str:
        """Name of the case's file, unique within an engine."""
        words = [self.variant, self.runner, f"tp{self.tp}"]
        words += [f"ep{self.ep}"] if self.ep > 1 else []
        words += [f"dp{self.dp}"] if self.dp > 1 else []
        words += [self.shared] if self.shared != "auto" else []
        words += [self.a2a] if self.a2a else []
        words += ["dphead"] if self.dp_lm_head else []
        words += [f"red{self.redundant}"] if self.redundant else []
        words += [self.locations] if self.locations else []
        words += [f"pp{self.pp}"] if self.pp > 1 else []
        words += [self.partition.replace(",", "_")] if self.partition else []
        words += ["draft"] if self.draft else []
        return "-".join([*words, f"sm{self.sm}"])

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks looked at.

        Of 4, rank 1 tells blocks of ranks from strides; of 8, rank 3 is the last that has one of 4 blocks. vLLM's are
        counted through its replicas. With pipeline stages, the first and the last rank of each; a draft is on the last.
        """
        if self.pp > 1:
            firsts = [stage * self.tp for stage in range(self.pp)]
            return tuple(sorted({rank for first in firsts[-self.draft :] for rank in (first, first + self.tp - 1)}))
        world = self.tp * self.dp if self.engine == "vllm" else self.tp
        return {1: (0,), 2: (0, 1), 3: (0, 1, 2), 4: (0, 1, 3), 8: (0, 3, 7)}[world]

    @property
    def locations_file(self) -> str | None:
        """The file of the map of experts."""
        return str(LOCATIONS / f"{self.locations}.json") if self.locations else None

    @property
    def is_mega(self) -> bool:
        """Whether experts are in the order of vLLM's MegaMoE kernel, which its stock loader cannot load."""
        return self.runner == "deep_gemm_mega_moe"

    @property
    def fp8_experts(self) -> bool:
        return "fp8" in self.variant

    @property
    def dspark(self) -> bool:
        """Whether the checkpoint's draft is DSpark's stages."""
        return self.variant.startswith("dspark-")

    @property
    def is_static(self) -> bool:
        """Whether SGLang takes DSpark only with SGLANG_RAGGED_VERIFY_MODE=static, its default: no confidence head."""
        return self.a2a is not None and self.dp > 1

    @property
    def request(self) -> dict[str, Any]:
        """What a user of dsv4-shard asks for: the fields of `catalog.request.Request`."""
        return {
            "engine": self.engine,
            "tp": self.tp,
            "ep": self.ep,
            "dp": self.dp,
            "runner": None if self.runner == "auto" else self.runner,
            "a2a": self.a2a,
            "shared_experts": self.shared,
            "gpu": GPU_OF_SM[self.sm],
            "dp_lm_head": self.dp_lm_head,
            "redundant_experts": self.redundant,
            "expert_locations": self.locations_file,
            "pp": self.pp,
            "pp_partition": self.partition,
        }

    @property
    def environment(self) -> dict[str, str]:
        """Variables that must be set before the engine is imported: cases that agree on them share a process."""
        variables = {"CONFORMANCE_SM": str(self.sm)}
        if self.partition:
            variables[f"{self.engine.upper()}_PP_LAYER_PARTITION"] = self.partition
        if self.engine == "sglang":
            variables["SGLANG_SHARED_EXPERT_TP1"] = str(int(self.shared == "whole" and not self.a2a))
            if self.fp8_experts:
                variables["SGLANG_DSV4_FP4_EXPERTS"] = "0"
            if self.sm == 100 and self.variant.removeprefix("dspark-") in BF16_O_A:
                variables["SGLANG_OPT_FP8_WO_A_GEMM"] = "0"
            if self.draft and self.dspark:
                variables["SGLANG_RAGGED_VERIFY_MODE"] = "static" if self.is_static else "compact"
        return variables

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _sglang_product(variant: str, runner: str) -> Iterator[Case]:
    """A runner over EP, shared way, attention DP and NextN: all of it at TP 2, a selection at TP 1 and 4."""
    layouts = [(1, 1, 1, "split", draft) for draft in (False, True)]
    layouts += [
        (2, ep, dp, shared, draft)
        for ep in (1, 2)
        for dp in (1, 2)
        for shared in ("split", "whole")
        for draft in (False, True)
    ]
    layouts += [
        (4, 1, 1, "split", False),
        (4, 1, 1, "whole", False),
        (4, 2, 2, "split", False),
        (4, 2, 2, "whole", False),
        (4, 2, 2, "split", True),
        (4, 4, 1, "split", False),
        (4, 4, 4, "whole", False),
    ]
    for tp, ep, dp, shared, draft in layouts:
        yield Case("sglang", variant, runner, tp, ep, dp, shared, draft=draft)


def _sglang() -> Iterator[Case]:
    yield from _sglang_product("fp4", "marlin")
    yield from _sglang_product("fp4", "flashinfer_mxfp4")
    yield from _sglang_product("fp8", "triton")
    for variant in ("fp4", "fp8"):
        yield Case("sglang", variant, tp=2, shared="split")
        for tp, ep, dp in ((2, 2, 2), (4, 4, 4), (4, 4, 1)):
            yield Case("sglang", variant, tp=tp, ep=ep, dp=dp, shared="whole", a2a="deepep")
        yield Case("sglang", variant, tp=2, ep=2, dp=2, shared="whole", a2a="deepep", draft=True)
    for variant in ("fp8e8", "fp8f32"):  # wo_a in FP8
        for draft in (False, True):
            yield Case("sglang", variant, "triton", 2, shared="split", draft=draft)
    yield Case("sglang", "fp8", "deep_gemm", 2, shared="split")
    yield Case("sglang", "fp8", "deep_gemm", 2, ep=2, shared="whole")
    for variant, runner, tp, ep, dp, shared, a2a in (
        ("fp4", "marlin", 4, 1, 2, "split", None),
        ("fp4", "marlin", 2, 2, 2, "whole", None),
        ("fp8", "triton", 4, 2, 4, "whole", None),
        ("fp4", "auto", 4, 4, 4, "whole", "deepep"),
        ("fp4", "marlin", 2, 1, 1, "split", None),
    ):
        yield Case("sglang", variant, runner, tp, ep, dp, shared, a2a, dp_lm_head=True)
    yield from _sglang_places()
    for draft in (False, True):
        yield Case("sglang", "fp4-vocab", "marlin", 2, shared="split", draft=draft)
    yield Case("sglang", "fp8-vocab", "triton", 4, 4, 2, "whole")
    yield Case("sglang", "fp4-vocab", "marlin", 2, 2, 2, "whole", dp_lm_head=True)
    for dp_lm_head in (False, True):
        yield Case("sglang", "fp4-thirds", "auto", 3, 3, 3, "whole", "deepep", dp_lm_head=dp_lm_head)
    # as V4-Pro at TP 16: one and a half blocks a rank
    for draft in (False, True):
        yield Case("sglang", "fp4-odd", "marlin", 2, shared="whole", draft=draft)
    yield Case("sglang", "fp4-odd", "marlin", 4, shared="whole")
    for runner in ("marlin", "flashinfer_mxfp4"):
        yield Case("sglang", "fp4-odd", runner, 2, ep=2, shared="whole")
    yield Case("sglang", "fp8-odd", "triton", 2, ep=2, shared="whole")
    for variant in ("fp4", "fp8", "fp8e8"):
        for tp, ep, dp, shared, draft in (
            (1, 1, 1, "split", False),
            (2, 1, 1, "split", False),
            (2, 1, 1, "whole", False),
            (2, 2, 2, "whole", False),
            (2, 1, 1, "split", True),
            (4, 2, 2, "split", False),
        ):
            yield Case("sglang", variant, "auto", tp, ep, dp, shared, draft=draft, sm=100)
    yield Case("sglang", "fp4", "flashinfer_mxfp4", 2, shared="split", sm=100)
    yield Case("sglang", "fp4", tp=2, ep=2, dp=2, shared="whole", a2a="deepep", sm=100)
    for dp_lm_head in (False, True):
        yield Case("sglang", "fp4", "auto", 4, 4, 4, "whole", "megamoe", sm=100, dp_lm_head=dp_lm_head)
    yield Case("sglang", "fp4", "auto", 4, 4, 4, "whole", "megamoe", sm=100, dp_lm_head=True, redundant=4)
    for draft in (False, True):
        yield Case("sglang", "fp4-odd", tp=2, shared="whole", draft=draft, sm=100)
    yield from _sglang_stages()
    yield from _sglang_dspark()
    for tp, ep, shared, sm in (
        (1, 1, "split", 90), (2, 1, "split", 90), (2, 2, "whole", 90), (4, 2, "whole", 90), (8, 1, "whole", 90),
        (1, 1, "split", 100), (2, 1, "split", 100), (4, 4, "whole", 100), (4, 2, "split", 100),
    ):  # fmt: skip
        yield Case("sglang", "nvfp4", "marlin" if sm == 90 else "auto", tp, ep, shared=shared, sm=sm)
    for tp, ep, shared in ((1, 1, "split"), (2, 1, "split"), (2, 2, "whole"), (4, 2, "whole"), (4, 4, "split")):
        yield Case("sglang", "nvfp4", "auto", tp, ep, shared=shared, draft=True, sm=100)


def _sglang_dspark() -> Iterator[Case]:
    """DSpark's stages as drafts, and one target beside them."""
    yield Case("sglang", "dspark-fp4", "marlin", 2, shared="split")
    for variant, runner, tp, ep, dp, shared, sm in (
        ("fp4", "marlin", 1, 1, 1, "split", 90),
        ("fp4", "marlin", 2, 1, 1, "split", 90),
        ("fp4", "marlin", 2, 1, 1, "whole", 90),
        ("fp4", "marlin", 2, 2, 1, "split", 90),
        ("fp4", "marlin", 8, 2, 1, "whole", 90),
        ("fp4", "flashinfer_mxfp4", 2, 1, 1, "split", 90),
        ("fp4", "flashinfer_mxfp4", 4, 4, 1, "whole", 90),
        ("fp4-odd", "marlin", 2, 1, 1, "whole", 90),
        ("fp8", "triton", 2, 1, 1, "split", 90),
        ("fp8f32", "triton", 4, 4, 1, "whole", 90),
        ("fp4", "auto", 1, 1, 1, "split", 100),
        ("fp4", "auto", 2, 1, 1, "split", 100),
        ("fp4", "auto", 4, 4, 1, "whole", 100),
        ("fp8", "auto", 2, 1, 1, "split", 100),
    ):
        yield Case("sglang", f"dspark-{variant}", runner, tp, ep, dp, shared, draft=True, sm=sm)
    yield Case("sglang", "dspark-fp4", tp=2, ep=2, shared="whole", a2a="deepep", draft=True)
    for variant, runner, tp, ep, dp, shared, a2a, sm in (
        ("fp4", "marlin", 2, 1, 2, "split", None, 90),
        ("fp4", "marlin", 4, 1, 2, "whole", None, 90),
        ("fp4", "flashinfer_mxfp4", 4, 4, 4, "whole", None, 90),
        ("fp8", "triton", 4, 2, 2, "split", None, 90),
        ("fp4", "auto", 4, 4, 4, "whole", None, 100),
        ("fp4", "auto", 4, 4, 4, "whole", "megamoe", 100),
    ):
        yield Case("sglang", f"dspark-{variant}", runner, tp, ep, dp, shared, a2a, draft=True, sm=sm, dp_lm_head=True)


def _sglang_places() -> Iterator[Case]:
    """Redundant experts, and experts in other slots: maps with slots for redundant ones, and without."""
    for tp, ep, dp, shared, a2a, redundant, locations in (
        (2, 2, 1, "whole", None, 2, None),
        (2, 2, 1, "whole", None, 0, "strided"),
        (2, 2, 1, "whole", None, 2, "strided-ten"),
        (2, 1, 1, "split", None, 2, "strided-ten"),
        (4, 4, 4, "whole", "deepep", 4, "strided-twelve"),
        (4, 2, 2, "whole", None, 4, None),
    ):
        runner = "auto" if a2a else "marlin"
        yield Case("sglang", "fp4", runner, tp, ep, dp, shared, a2a, redundant=redundant, locations=locations)
    yield Case("sglang", "fp4", "marlin", 2, 2, shared="whole", draft=True, redundant=2, locations="strided-ten")
    yield Case("sglang", "fp8", "triton", 2, 2, shared="whole", redundant=2, locations="strided-ten")


def _sglang_stages() -> Iterator[Case]:
    """Pipeline stages of the three layers: 1 and 2, as SGLang divides them, 2 and 1, and one each."""
    for variant, runner, tp, ep, dp, shared, a2a, pp, partition in (
        ("fp4", "marlin", 1, 1, 1, "split", None, 2, None),
        ("fp4", "marlin", 2, 1, 1, "split", None, 2, None),
        ("fp4", "marlin", 2, 1, 1, "whole", None, 2, "2,1"),
        ("fp4", "marlin", 2, 2, 2, "whole", None, 3, None),
        ("fp4", "flashinfer_mxfp4", 4, 2, 1, "split", None, 2, None),
        ("fp4", "auto", 2, 2, 2, "whole", "deepep", 2, "2,1"),
        ("fp8", "triton", 2, 1, 1, "split", None, 2, None),
        ("fp8", "triton", 2, 2, 2, "whole", None, 3, None),
        ("fp8e8", "triton", 1, 1, 1, "split", None, 3, None),
    ):
        yield Case("sglang", variant, runner, tp, ep, dp, shared, a2a, pp=pp, partition=partition)
    yield Case("sglang", "fp4", "marlin", 2, 2, shared="whole", redundant=2, locations="strided-ten", pp=2)
    yield Case("sglang", "fp4", "marlin", 2, 2, 2, "whole", dp_lm_head=True, pp=2)
    yield Case("sglang", "fp4", "auto", 2, shared="split", sm=100, pp=2)
    yield Case("sglang", "fp4", "auto", 2, 2, 2, "whole", "megamoe", sm=100, dp_lm_head=True, pp=2)


def _vllm_stages() -> Iterator[Case]:
    """Pipeline stages of the three layers: 2 and 1, as vLLM divides them, 1 and 2, and one each."""
    for variant, tp, ep, pp, partition, draft in (
        ("fp4", 1, 1, 2, None, False),
        ("fp4", 1, 1, 2, None, True),
        ("fp4", 2, 1, 2, None, False),
        ("fp4", 2, 1, 2, None, True),
        ("fp4", 2, 1, 2, "1,2", False),
        ("fp4", 2, 2, 3, None, False),
        ("fp4", 2, 2, 3, None, True),
        ("fp4-odd", 4, 1, 2, None, False),
        ("fp8f32", 2, 1, 2, None, False),
        ("fp8f32", 2, 2, 2, "1,2", True),
        ("fp8e8-odd", 2, 1, 3, None, False),
    ):
        yield Case("vllm", variant, "auto", tp, ep, draft=draft, pp=pp, partition=partition)
    for tp, ep, draft in ((2, 1, False), (2, 2, True)):
        yield Case("vllm", "fp4", "auto", tp, ep, draft=draft, sm=100, pp=2)
    yield Case("vllm", "dspark-fp4", "auto", 2, pp=2)


def _vllm() -> Iterator[Case]:
    for tp in (1, 2, 4, 8):
        for ep in sorted({1, tp}):
            for draft in (False, True):
                yield Case("vllm", "fp4", "auto", tp, ep, draft=draft)
    for tp, ep, draft in ((2, 1, False), (2, 1, True), (4, 1, False), (2, 2, False), (4, 4, False), (8, 8, False)):
        yield Case("vllm", "fp4-odd", "auto", tp, ep, draft=draft)
    for runner in ("marlin", "flashinfer_cutlass", "triton_unfused"):
        yield Case("vllm", "fp4-odd", runner, 2)
    for tp, draft in ((1, False), (4, False), (4, True)):
        yield Case("vllm", "fp4-vocab", "auto", tp, draft=draft)
    yield Case("vllm", "fp4-odd", "triton_unfused", 4)
    yield Case("vllm", "fp4-odd", "triton_unfused", 2, 2)
    for runner in ("auto", "flashinfer_trtllm", "deep_gemm"):
        yield Case("vllm", "fp4-odd", runner, 2, sm=100)
    yield Case("vllm", "fp4", "auto", 2, sm=100)
    yield Case("vllm", "fp4", "auto", 4, 4, sm=100)
    for variant in ("fp8f32", "fp8e8"):
        yield from _vllm_fp8(variant)
    yield from _vllm_replicas()
    yield from _vllm_stages()
    yield from _vllm_dspark()
    for sm, tp in itertools.product((90, 100), (1, 2, 4, 8)):
        for ep, draft in itertools.product(sorted({1, tp}), (False, True)):
            yield Case("vllm", "nvfp4", "auto", tp, ep, draft=draft, sm=sm)


def _vllm_replicas() -> Iterator[Case]:
    """Data parallelism: experts over all replicas, cut or spread, also unevenly; everything else over TP."""
    for tp, ep, dp, draft in (
        (1, 4, 4, False),
        (1, 2, 2, True),
        (1, 1, 2, False),
        (2, 4, 2, False),
        (2, 4, 2, True),
        (2, 1, 2, False),
    ):
        yield Case("vllm", "fp4", "auto", tp, ep, dp, draft=draft)
    yield Case("vllm", "fp4-odd", "auto", 1, 1, 2)
    yield Case("vllm", "fp4-thirds", "auto", 2, 4, 2)
    yield Case("vllm", "fp4", "auto", 1, 4, 4, sm=100)
    for tp, ep, dp, draft in ((1, 4, 4, False), (1, 2, 2, True), (2, 4, 2, False), (2, 2, 1, False)):
        yield Case("vllm", "fp4", "deep_gemm_mega_moe", tp, ep, dp, draft=draft, sm=100)
    for runner in ("flashinfer_moe_ep_cutedsl", "flashinfer_moe_ep_mega_deep_gemm"):
        yield Case("vllm", "fp4", runner, 1, 4, 4, sm=100)
    for variant in ("fp8f32", "fp8e8"):
        yield Case("vllm", variant, "auto", 2, 4, 2)
        yield Case("vllm", f"{variant}-odd", "auto", 1, 1, 2)


def _vllm_dspark() -> Iterator[Case]:
    """DSpark's stages as drafts, and one target beside them."""
    yield Case("vllm", "dspark-fp4", "auto", 2)
    for tp in (1, 2, 4, 8):
        for ep in sorted({1, tp}):
            yield Case("vllm", "dspark-fp4", "auto", tp, ep, draft=True)
    for variant, runner, tp, ep, sm in (
        ("fp4-odd", "auto", 2, 1, 90),
        ("fp4-odd", "triton_unfused", 4, 1, 90),
        ("fp8f32", "auto", 2, 1, 90),
        ("fp8f32-odd", "auto", 2, 1, 90),
        ("fp8f32-odd", "flashinfer_cutlass", 4, 1, 90),
        ("fp8e8", "auto", 4, 4, 90),
        ("fp4", "auto", 2, 1, 100),
        ("fp8f32", "auto", 2, 2, 100),
    ):
        yield Case("vllm", f"dspark-{variant}", runner, tp, ep, draft=True, sm=sm)


def _vllm_fp8(variant: str) -> Iterator[Case]:
    for tp, ep in ((1, 1), (2, 1), (2, 2), (4, 4), (8, 1)):
        yield Case("vllm", variant, "auto", tp, ep)
    odd = f"{variant}-odd"
    for tp, ep, draft in ((2, 1, False), (2, 1, True), (2, 2, False), (4, 1, False), (8, 8, False)):
        yield Case("vllm", odd, "auto", tp, ep, draft=draft)
    for runner in ("triton", "flashinfer_cutlass", "deep_gemm", "marlin"):
        yield Case("vllm", odd, runner, 2)
    yield Case("vllm", odd, "flashinfer_cutlass", 4)
    yield Case("vllm", odd, "deep_gemm", 4, draft=True)
    for runner in ("auto", "flashinfer_trtllm"):
        yield Case("vllm", odd, runner, 2, sm=100)
    yield Case("vllm", variant, "auto", 2, sm=100)


CASES: tuple[Case, ...] = (*_sglang(), *_vllm())
