"""What people serve with: engines' command lines, option files, manifests and recipes → a plan for each role."""

from dsv4_shard.configurations.documents import PlannedDeployment, PlannedPair, PlannedRole, ReadOption, Use
from dsv4_shard.configurations.formats import read_configuration
from dsv4_shard.configurations.own_options import own_options
from dsv4_shard.configurations.pair import OPTIONS, planned_roles, refuse_two_engines, with_pair
from dsv4_shard.configurations.planned import planned

__all__ = [
    "OPTIONS",
    "PlannedDeployment",
    "PlannedPair",
    "PlannedRole",
    "ReadOption",
    "Use",
    "own_options",
    "planned",
    "planned_roles",
    "read_configuration",
    "refuse_two_engines",
    "with_pair",
]
