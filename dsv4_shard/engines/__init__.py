"""Serving engines as tables: rules, placements, file layouts, launch commands."""

from dsv4_shard.engines.deployment import ANY_ENGINE, ASSUMED_GPU, Context, Deployment, Request, fewest_nodes, pick_gpu
from dsv4_shard.engines.engine import UNKNOWN_FAMILY, UNKNOWN_GPU, Command, Engine, Launch, Options, commands_of
from dsv4_shard.engines.layout import Constant, ConverterLayout, Layout, LeftOut, TargetTensor
from dsv4_shard.engines.other_messages import OTHERS, OtherMessage
from dsv4_shard.engines.parallelism import ep_option
from dsv4_shard.engines.parameters import DRAFT_FOLDER, TOKENIZER_FILES
from dsv4_shard.engines.placement import Expert, Pad, Placement, RankTensor, Replicate, Split, local_size, say_placement
from dsv4_shard.engines.registry import DEEPSEEK, ENGINES, engine_for, find_engine, serving, title_of
from dsv4_shard.engines.rules import NOT_VERIFIED, Breach, Divides, Remedy, Requires, Rule, Symptom

__all__ = [
    "ANY_ENGINE",
    "ASSUMED_GPU",
    "DEEPSEEK",
    "DRAFT_FOLDER",
    "ENGINES",
    "NOT_VERIFIED",
    "OTHERS",
    "TOKENIZER_FILES",
    "UNKNOWN_FAMILY",
    "UNKNOWN_GPU",
    "Breach",
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
    "Options",
    "OtherMessage",
    "Pad",
    "Placement",
    "RankTensor",
    "Remedy",
    "Replicate",
    "Request",
    "Requires",
    "Rule",
    "Split",
    "Symptom",
    "TargetTensor",
    "commands_of",
    "engine_for",
    "ep_option",
    "fewest_nodes",
    "find_engine",
    "local_size",
    "pick_gpu",
    "say_placement",
    "serving",
    "title_of",
]
