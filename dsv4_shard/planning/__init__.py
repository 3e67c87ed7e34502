"""Checkpoint + request → plan: choice of deployment, weights and memory, search, nearby layouts, plan files."""

from dsv4_shard.planning.block_grid import BlockCut, BlockGrid, broken_grids, shared_grid
from dsv4_shard.planning.choice import Choice, choose
from dsv4_shard.planning.compare import Difference, PlacementDifference, PlanComparison, compare_plans
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.earlier_plans import in_one_part, request_from_1
from dsv4_shard.planning.fewest import Fewest, FewestGpus, fewest_for
from dsv4_shard.planning.launch_documents import BY_PLAN, PlanLaunch, PlanLoader, PlanWay
from dsv4_shard.planning.layout_documents import PlanModule
from dsv4_shard.planning.layouts import FoundLayout
from dsv4_shard.planning.memory_documents import PlanCache, PlanHost, PlanMemory, PlanTotals
from dsv4_shard.planning.nearby import nearest
from dsv4_shard.planning.outcome import MEMORY_RULE, LayoutOutcome, outcome_of
from dsv4_shard.planning.plan_builder import make_plan, refuse_infeasible
from dsv4_shard.planning.plan_file import (
    check_plan,
    decisions,
    load_plan,
    plan_given,
    plan_of,
    read_plan,
    save_plan,
)
from dsv4_shard.planning.remedies import ways_out, words
from dsv4_shard.planning.request import check_request, options_of, request_of
from dsv4_shard.planning.search import Search, plan_best, search_for
from dsv4_shard.planning.verdict_documents import PlanBreach, PlanChange
from dsv4_shard.planning.weights import beyond_roles, loads

__all__ = [
    "BY_PLAN",
    "MEMORY_RULE",
    "BlockCut",
    "BlockGrid",
    "Choice",
    "Difference",
    "Fewest",
    "FewestGpus",
    "FoundLayout",
    "LayoutOutcome",
    "PlacementDifference",
    "Plan",
    "PlanBreach",
    "PlanCache",
    "PlanChange",
    "PlanComparison",
    "PlanHost",
    "PlanLaunch",
    "PlanLoader",
    "PlanMemory",
    "PlanModule",
    "PlanTotals",
    "PlanWay",
    "Search",
    "beyond_roles",
    "broken_grids",
    "check_plan",
    "check_request",
    "choose",
    "compare_plans",
    "decisions",
    "fewest_for",
    "in_one_part",
    "load_plan",
    "loads",
    "make_plan",
    "nearest",
    "options_of",
    "outcome_of",
    "plan_best",
    "plan_given",
    "plan_of",
    "read_plan",
    "refuse_infeasible",
    "request_from_1",
    "request_of",
    "save_plan",
    "search_for",
    "shared_grid",
    "ways_out",
    "words",
]
