"""Checkpoint + request → plan: choice of deployment, weights and memory, search, nearby layouts, plan files."""

from dsv4_shard.planning.block_grid import BlockCut, BlockGrid, broken_grids, shared_grid
from dsv4_shard.planning.cache_changes import cache_breach, cache_changes
from dsv4_shard.planning.choice import Choice, changes_of, choose
from dsv4_shard.planning.compare import Difference, PlacementDifference, PlanComparison, compare_plans
from dsv4_shard.planning.document import (
    Plan,
    PlanBreach,
    PlanCache,
    PlanChange,
    PlanHost,
    PlanLaunch,
    PlanMemory,
    PlanModule,
    PlanTotals,
    PlanWay,
)
from dsv4_shard.planning.earlier_plans import request_from_1
from dsv4_shard.planning.fewest import Fewest, fewest_for
from dsv4_shard.planning.nearby import nearest
from dsv4_shard.planning.plan_builder import MEMORY_RULE, make_plan, memory_breach, refuse_infeasible, unknown_gpu
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
from dsv4_shard.planning.weights import beyond_roles, loads, memory_of, rank_nbytes, totals_of, weights_of

__all__ = [
    "MEMORY_RULE",
    "BlockCut",
    "BlockGrid",
    "Choice",
    "Difference",
    "Fewest",
    "PlacementDifference",
    "Plan",
    "PlanBreach",
    "PlanCache",
    "PlanChange",
    "PlanComparison",
    "PlanHost",
    "PlanLaunch",
    "PlanMemory",
    "PlanModule",
    "PlanTotals",
    "PlanWay",
    "Search",
    "beyond_roles",
    "broken_grids",
    "cache_breach",
    "cache_changes",
    "changes_of",
    "check_plan",
    "check_request",
    "choose",
    "compare_plans",
    "decisions",
    "fewest_for",
    "load_plan",
    "loads",
    "make_plan",
    "memory_breach",
    "memory_of",
    "nearest",
    "options_of",
    "plan_best",
    "plan_given",
    "plan_of",
    "rank_nbytes",
    "read_plan",
    "refuse_infeasible",
    "request_from_1",
    "request_of",
    "save_plan",
    "search_for",
    "shared_grid",
    "totals_of",
    "unknown_gpu",
    "ways_out",
    "weights_of",
    "words",
]
