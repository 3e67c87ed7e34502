"""The commands that start vLLM."""

import json
from dataclasses import replace

from dsv4_shard.catalog.options import LOAD_FORMAT, VLLM_LOADER_VERSIONS
from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.drafts import left_out_draft
from dsv4_shard.engines.launch import (
    FIRST_NODE,
    NODE_RANK,
    Command,
    Launch,
    Options,
    by_plan,
    node_ranks,
    settings_of,
)
from dsv4_shard.engines.pipeline import partition_variable, rest_before_the_last
from dsv4_shard.engines.vllm.backends import default_backend, is_aligned, is_mega, misreads_scales

STOCK_FORMAT = "sharded_state"
"""The load format of vLLM's own loader of rank files."""


def launch(context: Context, model_path: str, sharded: bool) -> Launch:
    """`vllm serve` for each node, on shards or on the checkpoint; nodes after the first serve no API."""
    deployment = context.deployment
    options: Options = {"--trust-remote-code": None, "--kv-cache-dtype": "fp8", "--block-size": "256"}
    options |= {"--tokenizer-mode": "deepseek_v4", **parallel_options(context)}
    if sharded:
        options["--load-format"] = load_format(context)
    elif deployment.experts == "FP8" and context.config.expert_dtype != "fp8":
        options["--hf-overrides"] = """'{"expert_dtype": "fp8"}'"""
    start = on_nodes(model_path, options, deployment.nodes)
    environment = partition_variable(context, "VLLM_PP_LAYER_PARTITION", rest_before_the_last)
    needs_plugin = sharded and load_format(context) == LOAD_FORMAT
    drafting = with_draft(start, context, _draft(context, model_path, sharded))
    return replace(drafting, environment=environment, needs_plugin=needs_plugin)


def launch_by_plan(context: Context, model_path: str) -> Launch | None:
    """`vllm serve` on the checkpoint, of which each rank loads its part of the target by a plan.

    A draft would come through vLLM's own loader, which reads the whole checkpoint for it: None if one is asked for.
    Where that loader misreads the checkpoint, there are no options for a draft either.
    """
    if context.deployment.version not in VLLM_LOADER_VERSIONS or context.deployment.serves_draft:
        return None
    start = by_plan(launch(context, model_path, False))
    if misreads_scales(context):
        return replace(start, draft_options="")
    draft = _draft(context, model_path, False) | {"draft_load_config": {"load_format": "auto"}}
    return with_draft(start, context, draft)


def with_draft(start: Launch, context: Context, draft: dict[str, object]) -> Launch:
    """`start` with vLLM's config of a draft model: in the command if it is asked for, else apart; empty without one."""
    assert start.program is not None, "vLLM is started by a command"
    options: Options = {"--speculative-config": f"'{json.dumps(draft)}'"} if draft else {}
    if context.deployment.serves_draft:
        return replace(start, program=replace(start.program, options=start.program.options | options))
    return replace(start, draft_options="" if context.deployment.draft else " ".join(settings_of(options)))


def load_format(context: Context) -> str:
    """The load format for shards: our plugin's for replicas, which have files of their own, and for MegaMoE."""
    return LOAD_FORMAT if context.deployment.dp > 1 or is_mega(context) else STOCK_FORMAT


def replica_pattern(replica: int | str) -> str:
    """Pattern with which stock `sharded_state` finds the files of one replica."""
    return f"model-dp-{replica}-rank-{{rank}}-part-{{part}}.safetensors"


def _draft(context: Context, model_path: str, sharded: bool) -> dict[str, object]:
    """The config of the draft model; empty where the shards lack it."""
    draft: dict[str, object] = {"method": "mtp", "num_speculative_tokens": 1}
    if context.inventory.draft.dspark:
        draft = {"method": "dspark", "num_speculative_tokens": context.v4.dspark_block_size}
    if sharded and left_out_draft(context):
        return {}
    if sharded:
        draft |= {"model": f"{model_path}/draft", "draft_load_config": {"load_format": load_format(context)}}
    return draft


def parallel_options(context: Context) -> Options:
    """Options for the parallel sizes, and the MoE backend if it is not vLLM's own choice."""
    deployment = context.deployment
    options: Options = {"--tensor-parallel-size": str(deployment.tp)}
    if deployment.pp > 1:
        options["--pipeline-parallel-size"] = str(deployment.pp)
    if context.served_session:
        options["--max-model-len"] = str(context.served_session)
    if deployment.dp > 1:
        options["--data-parallel-size"] = str(deployment.dp)
    if deployment.ep > 1:
        options["--enable-expert-parallel"] = None
    if deployment.runner != default_backend(deployment.experts, deployment.gpu.sm, deployment.ep, is_aligned(context)):
        options["--moe-backend"] = deployment.runner
    return options


def on_nodes(model_path: str, options: Options, nodes: int) -> Launch:
    """`vllm serve` on each node; nodes after the first are headless."""
    if nodes > 1:
        options = options | {"--nnodes": str(nodes), NODE_RANK: "0", "--master-addr": FIRST_NODE}
    first, *others = node_ranks(nodes)
    node_options = (first, *(own | {"--headless": None} for own in others))
    return Launch({}, Command(f"vllm serve {model_path}", options), node_options=node_options)
