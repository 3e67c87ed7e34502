"""What people serve with: engines' command lines, option files, manifests and recipes → a plan for each role."""

from dsv4_shard.configurations.documents import PlannedDeployment, PlannedRole, ReadOption, Use
from dsv4_shard.configurations.formats import read_configuration
from dsv4_shard.configurations.planned import planned

__all__ = ["PlannedDeployment", "PlannedRole", "ReadOption", "Use", "planned", "read_configuration"]
