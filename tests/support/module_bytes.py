"""Bytes on a rank by class of module, to compare with what an engine's model declares."""

from dataclasses import replace

from dsv4_shard.checkpoint.inventory import Inventory
from dsv4_shard.engines.deployment import Deployment
from dsv4_shard.models.roles import Stage
from dsv4_shard.planning.weights import rank_nbytes


def bytes_by_module(inventory: Inventory, deployment: Deployment, stages: tuple[Stage, ...]) -> dict[str, int]:
    """Bytes on a rank, module class by module class."""
    modules = {group.role.module for group in inventory.groups}
    result = {}
    for module in sorted(modules):
        groups = {group: count for group, count in inventory.groups.items() if group.role.module is module}
        nbytes = rank_nbytes(replace(inventory, groups=groups), deployment, stages)
        if nbytes:
            result[str(module)] = nbytes
    assert sum(result.values()) == rank_nbytes(inventory, deployment, stages)
    return result


def without_shared_tables(nbytes: dict[str, int]) -> dict[str, int]:
    """A draft model declares an embedding and a head, and gets the target's."""
    return {module: count for module, count in nbytes.items() if module not in ("embedding", "head")}
