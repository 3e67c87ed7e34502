"""Random checkpoints and deployments, with the recipes that they give."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import lcm
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st
from support.checkpoints.small import small_config

from dsv4_shard.checkpoint.inventory import Inventory, take_inventory
from dsv4_shard.checkpoint.reader import Checkpoint
from dsv4_shard.checkpoint.synthetic import tensors_of
from dsv4_shard.engines.deployment import Context, Deployment, Request
from dsv4_shard.engines.layout import Layout
from dsv4_shard.engines.registry import find_engine
from dsv4_shard.models.config import parse_config
from dsv4_shard.planning.choice import choose
from dsv4_shard.sharding.recipe import Recipe
from dsv4_shard.sharding.recipe_builder import make_recipe
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.tensors.header import Tensor, nbytes_of


@dataclass(frozen=True)
class Case:
    """A small checkpoint that is nowhere, and a deployment of it."""

    config: dict[str, Any]
    request: Request
    mtp: int = 1
    stored: dict[str, Any] = field(default_factory=dict)
    spare: tuple[str, ...] = ()

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its tensors are dealt out to three files, each beginning at byte 1000."""
        config, document = parse_config(json.dumps(self.config).encode(), "config.json")
        every = tensors_of(document, self.mtp, **self.stored)
        every |= dict.fromkeys(self.spare, every["embed.weight"])
        ends, tensors = [1000] * 3, {}
        for index, (name, (dtype, shape)) in enumerate(every.items()):
            number = index * 7 % 3
            start, ends[number] = ends[number], ends[number] + nbytes_of(dtype, shape)
            tensors[name] = Tensor(name, dtype, shape, f"{number}.safetensors", start, ends[number])
        return Checkpoint(LocalSource(Path("/nowhere"), "nowhere"), config, document, (), tensors, ())

    @cached_property
    def context(self) -> Context:
        inventory = take_inventory(self.checkpoint)
        assert inventory.errors == ()
        choice = choose(inventory, self.request)
        assert choice.feasible, choice.breaches
        return Context(inventory, choice.deployment)

    @property
    def inventory(self) -> Inventory:
        return self.context.inventory

    @property
    def deployment(self) -> Deployment:
        return self.context.deployment

    @property
    def layout(self) -> Layout:
        layout = find_engine(self.request.engine).layout
        assert layout is not None
        return layout

    @cached_property
    def recipe(self) -> Recipe:
        """For all ranks."""
        return self.for_ranks(tuple(range(self.deployment.world)))

    def for_ranks(self, ranks: tuple[int, ...]) -> Recipe:
        return make_recipe(self.checkpoint, find_engine(self.request.engine), self.context, ranks)


def reference_case(pick: Random) -> Case:
    tp = pick.choice([1, 2, 3, 4, 8])
    experts = pick.choice(["fp4", "fp8"])
    config = random_config(
        pick,
        expert_dtype=experts,
        hidden_size=pick.choice([128, 256]),
        vocab_size=pick.randint(1, 2) * tp * 8,
        num_attention_heads=2 * tp,
        o_groups=pick.choice([tp, 2 * tp]),
        index_n_heads=pick.randint(1, 2) * tp,
        moe_intermediate_size=pick.choice([128, 256, 384]),
        n_routed_experts=pick.randint(1, 2) * tp,
    )
    cast = pick.choice([None, "fp4", "fp8"]) if experts == "fp4" else None
    request = Request(tp=tp, engine="reference", expert_dtype=cast)
    return Case(config, request, pick.randint(0, 1), random_stored(pick, experts, o_a=("FP8", "BF16")))


def sglang_case(pick: Random) -> Case:
    tp = pick.choice([1, 2, 4, 8])
    powers = [n for n in (1, 2, 4, 8) if tp % n == 0]
    ep, dp = pick.choice(powers), pick.choice(powers)
    experts = pick.choice(["fp4", "fp4", "fp8"])
    gpu = pick.choice(["h200", "b200"])
    runners = ["triton"] if experts == "fp8" else ["flashinfer_mxfp4"] + ["marlin"] * (gpu == "h200")
    runner: str | None = pick.choice(runners)
    a2a = "deepep" if pick.randint(0, 5) == 0 else None
    if a2a:
        runner, ep = None, tp
    fine = runner == "marlin" or (runner == "flashinfer_mxfp4" and gpu == "b200")
    intermediate = pick.randint(1, 3) * lcm(128, (32 if fine else 128) * tp // ep)
    shared = "split" if intermediate % (128 * tp) == 0 and not a2a and pick.random() < 0.5 else "whole"
    config = random_config(
        pick,
        expert_dtype=experts,
        hidden_size=pick.choice([128, 256] if experts == "fp8" or not fine else [128, 192]),
        vocab_size=pick.randint(1, 3) * 64 * tp,
        num_attention_heads=pick.randint(1, 2) * tp // dp,
        o_groups=tp // dp,
        index_n_heads=pick.randint(1, 3),
        moe_intermediate_size=intermediate,
        n_routed_experts=pick.randint(1, 2) * tp,
    )
    stored = random_stored(pick, experts, o_a=("FP8", "FP8", "BF16"))
    request = Request(tp=tp, ep=ep, dp=dp, engine="sglang", runner=runner, a2a=a2a, shared_experts=shared, gpu=gpu)
    return Case(config, request, pick.randint(0, 1), stored)


def vllm_case(pick: Random) -> Case:
    tp = pick.choice([1, 2, 4, 8])
    ep = pick.choice([1, 1, tp])
    experts = pick.choice(["fp4", "fp8"])
    gpu = pick.choice(["h200", "b200"])
    if experts == "fp4":
        runner = pick.choice(["marlin", "flashinfer_cutlass", "triton_unfused"])
        intermediate = pick.randint(1, 5) * 32 * tp // ep
    else:
        # Of 128-blocks that the ranks cut, `triton` makes finer ones; what is not a multiple of 128 it cuts wrongly.
        runner = pick.choice(["triton", "triton", "deep_gemm", "marlin"])
        intermediate = pick.randint(1, 5) * 128 * (2 if runner == "triton" and tp == 8 else 1)
    config = random_config(
        pick,
        expert_dtype=experts,
        hidden_size=256 if experts == "fp4" else pick.choice([128, 256]),
        vocab_size=pick.randint(1, 3) * 64 * tp,
        num_attention_heads=pick.choice([1, 2, 65]) * tp,
        o_groups=tp,
        index_n_heads=pick.randint(1, 3),
        moe_intermediate_size=intermediate,
        n_routed_experts=pick.randint(1, 2) * tp,
    )
    version = pick.choice(["0.33.0", "0.33.0", "0.25.0"])
    request = Request(tp=tp, ep=ep, engine="vllm", runner=runner, gpu=gpu, engine_version=version)
    case = Case(config, request, pick.randint(0, 1), random_stored(pick, experts, o_a=("FP8",)))
    assume(case.layout.refusal(case.context) is None)
    return case


def random_config(pick: Random, **sizes: Any) -> dict[str, Any]:
    """What all engines leave free, and `sizes`."""
    layers = pick.randint(1, 2)
    return small_config(
        num_hidden_layers=layers,
        num_hash_layers=pick.randint(0, layers),
        compress_ratios=[*pick.choices([0, 4, 8], k=layers), 0],
        q_lora_rank=pick.choice([128, 256]),
        num_experts_per_tok=1,
        **sizes,
    )


def random_stored(pick: Random, experts: str, o_a: tuple[str, ...]) -> dict[str, Any]:
    """F32 scales come with FP8 experts, as in the Base checkpoints."""
    scales = pick.choice(["F8_E8M0", "F32"]) if experts == "fp8" else "F8_E8M0"
    return {"scales": scales, "o_a": pick.choice(o_a)}


def drawn_by(*makers: Callable[[Random], Case]) -> st.SearchStrategy[Case]:
    """Cases of all engines alike: evenly drawn, where hypothesis itself would keep to the simplest."""
    return st.builds(lambda seed, maker: maker(Random(seed)), st.integers(0, 2**32), st.sampled_from(makers))


def cases() -> st.SearchStrategy[Case]:
    return drawn_by(reference_case, sglang_case, vllm_case)


def raw_cases() -> st.SearchStrategy[Case]:
    """Of the engines that read raw parameters."""
    return drawn_by(sglang_case, vllm_case)


def vllm_cases() -> st.SearchStrategy[Case]:
    return drawn_by(vllm_case)


@st.composite
def cases_with_ranks(draw: st.DrawFn) -> tuple[Case, tuple[int, ...]]:
    case = draw(cases())
    return case, draw(st.sets(st.integers(0, case.deployment.world - 1), min_size=1).map(sorted).map(tuple))
