"""Rules of pipeline stages: what SGLang and vLLM refuse, and what was not run in their own classes."""

from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.remedies import for_engine, leave_out
from dsv4_shard.engines.rules import NO_OPTION, NOT_VERIFIED, SILENT, Requires, Rule, in_stage
from dsv4_shard.engines.stages import StartStage
from dsv4_shard.models import V4, Module

_NO_STAGES = leave_out("pp", "pp_partition")

_OWN_PARTITION = leave_out("pp_partition")

NO_PIPELINE_RULE = Requires(
    "pp", Module.DEPLOYMENT, lambda c: c.deployment.pp == 1,
    "pipeline stages are planned for SGLang and vLLM", consequence=NO_OPTION,
    remedies=(_NO_STAGES, for_engine("sglang"), for_engine("vllm")), fatal=True,
)  # fmt: skip
"""Rule of engines whose pipeline stages are not planned."""


def _count_quote(context: Context) -> str:
    at = context.deployment
    return f"ValueError: len(partitions)={len(at.stage_layers)} does not match pp_size={at.pp}."


def _sum_quote(context: Context) -> str:
    layers, own = sum(context.deployment.stage_layers), context.config.num_hidden_layers
    return f"ValueError: sum(partitions)={layers} does not match num_hidden_layers={own}."


_PARTITION_RULES = in_stage(
    StartStage.CONSTRUCTION,
    Requires(
        "pp-stages", Module.DEPLOYMENT, lambda c: c.deployment.pp in (1, len(c.deployment.stage_layers)),
        "layers are given for the stages {at.partition}, and PP is {at.pp}", _count_quote, fatal=True,
        remedies=(_OWN_PARTITION,),
    ),
    Requires(
        "pp-layers", Module.DEPLOYMENT,
        lambda c: c.deployment.pp == 1 or sum(c.deployment.stage_layers) == c.config.num_hidden_layers,
        "the stages {at.partition} have other layers than the model's {config.num_hidden_layers}", _sum_quote,
        fatal=True, remedies=(_OWN_PARTITION,),
    ),
)  # fmt: skip
"""`get_pp_indices`, which is called where the layers are built; the texts are the same in both engines."""

_EMPTY_STAGE = "PP {at.pp} leaves stages without one of the {config.num_hidden_layers} layers"

STAGES_ON_NODES_RULE = Requires(
    "pp-nodes", Module.DEPLOYMENT,
    lambda c: c.deployment.nodes % c.deployment.pp == 0 or c.deployment.pp % c.deployment.nodes == 0,
    "{at.nodes} nodes and {at.pp} stages do not divide: a node holds whole stages, or a stage whole nodes",
    consequence=f"{SILENT}starts other ranks than there are, and waits for the rest",
    remedies=(leave_out("nodes"),), fatal=True,
)  # fmt: skip
"""SGLang's `entrypoints/engine.py`, `_calculate_rank_ranges`, which rounds down."""

SGLANG_PIPELINE_RULES: tuple[Rule, ...] = (
    *in_stage(
        StartStage.CONSTRUCTION,
        Requires(
            "pp-size", Module.DEPLOYMENT, lambda c: c.deployment.pp <= c.config.num_hidden_layers, _EMPTY_STAGE,
            "assert not pp_size or num_hidden_layers >= pp_size", remedies=(_NO_STAGES,), fatal=True,
        ),
    ),
    *_PARTITION_RULES,
)  # fmt: skip
"""`make_layers`, in the construction of the model."""

STAGES_OF_REPLICAS_RULE = Requires(
    "pp-dp", Module.DEPLOYMENT, lambda c: c.deployment.pp == 1 or c.deployment.dp == 1,
    "vLLM's own classes were not run with data parallelism and pipeline stages together",
    consequence=NOT_VERIFIED, remedies=(leave_out("dp"), _NO_STAGES), fatal=True,
)  # fmt: skip

VLLM_PIPELINE_RULES: tuple[Rule, ...] = (
    Requires(
        "pp-size", Module.DEPLOYMENT, lambda c: c.deployment.pp <= c.config.num_hidden_layers, _EMPTY_STAGE,
        consequence=NOT_VERIFIED, remedies=(_NO_STAGES,), fatal=True,
    ),
    *_PARTITION_RULES,
)  # fmt: skip


def unverified_stages(title: str) -> Requires:
    """Rule: no pipeline stages for families other than V4, which were not run in `title`."""
    return Requires(
        "pp-family", Module.DEPLOYMENT, lambda c: c.deployment.pp == 1 or c.inventory.family is V4,
        f"{title}'s own classes were not run with pipeline stages of {{context.inventory.family.title}}",
        consequence=NOT_VERIFIED, remedies=(_NO_STAGES,), fatal=True,
    )  # fmt: skip
