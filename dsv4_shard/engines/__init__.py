"""Serving engines as tables: rules, placements, file layouts, launch commands."""

from dsv4_shard.engines.deployment import (
    ANY_ENGINE,
    ASSUMED_GPU,
    Context,
    Deployment,
    Request,
    fewest_nodes,
    pick_gpu,
    pick_nodes,
)
from dsv4_shard.engines.engine import Engine
from dsv4_shard.engines.expert_places import places_of
from dsv4_shard.engines.launch import (
    FIRST_NODE,
    NODE_RANK,
    PLAN_FILE,
    Command,
    Launch,
    Options,
    commands_of,
    on_every_node,
    settings_of,
)
from dsv4_shard.engines.layout import Constant, ConverterLayout, Layout, LeftOut, TargetTensor
from dsv4_shard.engines.log_words import (
    BOTH,
    LOADER_CLASSES,
    LOG_WORDS,
    PRESHARDED,
    RUNAI_SHARDED,
    SGLANG,
    SHARDED_STATE,
    VLLM,
    LogWords,
)
from dsv4_shard.engines.parallelism import ep_option
from dsv4_shard.engines.parameters import DRAFT_FOLDER, TOKENIZER_FILES
from dsv4_shard.engines.pipeline import counts_on, layers_on, stages_of
from dsv4_shard.engines.placement import (
    Expert,
    Pad,
    Placement,
    RankTensor,
    Replicate,
    Shares,
    Split,
    local_size,
    say_placement,
)
from dsv4_shard.engines.registry import DEEPSEEK, ENGINES, engine_for, find_engine, serving, title_of
from dsv4_shard.engines.remarks import Change, Loss
from dsv4_shard.engines.rules import NOT_VERIFIED, Breach, Divides, Remedy, Requires, Rule, Symptom
from dsv4_shard.engines.stages import StartStage
from dsv4_shard.engines.stock_loaders import StockLoader
from dsv4_shard.engines.unverified import UNKNOWN_FAMILY, UNKNOWN_GPU
from dsv4_shard.engines.verdict import Verdict
from dsv4_shard.engines.vllm.backends import BACKENDS, BACKENDS_FP8

__all__ = [
    "ANY_ENGINE",
    "ASSUMED_GPU",
    "BACKENDS",
    "BACKENDS_FP8",
    "BOTH",
    "DEEPSEEK",
    "DRAFT_FOLDER",
    "ENGINES",
    "FIRST_NODE",
    "LOADER_CLASSES",
    "LOG_WORDS",
    "NODE_RANK",
    "NOT_VERIFIED",
    "PLAN_FILE",
    "PRESHARDED",
    "RUNAI_SHARDED",
    "SGLANG",
    "SHARDED_STATE",
    "TOKENIZER_FILES",
    "UNKNOWN_FAMILY",
    "UNKNOWN_GPU",
    "VLLM",
    "Breach",
    "Change",
    "Command",
    "Constant",
    "Context",
    "ConverterLayout",
    "Deployment",
    "Divides",
    "Engine",
    "Expert",
    "Launch",
    "Layout",
    "LeftOut",
    "LogWords",
    "Loss",
    "Options",
    "Pad",
    "Placement",
    "RankTensor",
    "Remedy",
    "Replicate",
    "Request",
    "Requires",
    "Rule",
    "Shares",
    "Split",
    "StartStage",
    "StockLoader",
    "Symptom",
    "TargetTensor",
    "Verdict",
    "commands_of",
    "counts_on",
    "engine_for",
    "ep_option",
    "fewest_nodes",
    "find_engine",
    "layers_on",
    "local_size",
    "on_every_node",
    "pick_gpu",
    "pick_nodes",
    "places_of",
    "say_placement",
    "serving",
    "settings_of",
    "stages_of",
    "title_of",
]
