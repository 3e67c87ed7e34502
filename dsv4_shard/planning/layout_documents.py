"""The parts of a plan about its layout: the deployment, and the placement of each role."""

from typing import Literal

from dsv4_shard.engines import Deployment
from dsv4_shard.models import Module
from dsv4_shard.text.document import Document


class DeploymentDocument(Document):
    """A deployment with every choice made.

    `world` is the number of GPUs. `attention_tp` ranks share one attention module, `moe_tp` ranks one routed expert,
    and `shared_parts` ranks one shared expert. `shared` is how shared experts are held: whole, split, pad or subgroup.
    `experts` is the format in which the engine holds the routed experts. `a2a` is the all-to-all backend, None without
    one. `gpu` is None if no GPU is named. `version` is the version of the engine. `dp_lm_head`: SGLang is asked to cut
    the head over attention TP, and not over TP. `redundant_experts` are its slots of a layer beyond one for each
    expert; `expert_locations` names the order of experts in the slots, with the SHA-256 of a map. `draft` is the draft
    model that is asked for: mtp, dspark or none; None if the request does not say.
    `pp` is the number of pipeline stages, `stage_layers` the layers of each, empty without stages.
    """

    engine: str
    tp: int
    ep: int
    dp: int
    world: int
    attention_tp: int
    moe_tp: int
    runner: str
    a2a: str | None
    shared: str
    shared_parts: int
    experts: str
    gpu: str | None
    nodes: int
    version: str
    dp_lm_head: bool = False
    redundant_experts: int = 0
    expert_locations: str = "identity"
    draft: str | None = None
    pp: int = 1
    stage_layers: tuple[int, ...] = ()

    @classmethod
    def of(cls, deployment: Deployment) -> "DeploymentDocument":
        """Return the document of a deployment."""
        return cls.model_validate(_deployment_fields(deployment))


class PlanDeployment(DeploymentDocument):
    """A deployment in a plan, with every choice made.

    `runner` is `?` if the kernels of the GPU are not known. `architecture` is the GPU's family, which decides which
    kernels run.
    """

    architecture: str

    @classmethod
    def of(cls, deployment: Deployment, *, is_verified: bool = True) -> "PlanDeployment":
        """Return the plan's document of a deployment."""
        fields = _deployment_fields(deployment) | {"architecture": deployment.gpu.family}
        return cls.model_validate(fields if is_verified else fields | {"runner": UNKNOWN_RUNNER})


UNKNOWN_RUNNER = "?"


def _deployment_fields(deployment: Deployment) -> dict[str, object]:
    """The fields of the document, with the GPU's name instead of the GPU."""
    fields = {name: getattr(deployment, name) for name in DeploymentDocument.model_fields}
    return fields | {"gpu": deployment.gpu.name if deployment.gpu_named else None}


class PlanModule(Document):
    """The placement of a role. Shapes are in elements; bytes are of weights and scales on the heaviest rank.

    `block` is the rows and columns that share one scale, None without scales.
    """

    part_of: Literal["target", "draft"]
    module: Module
    role: str
    format: str
    block: tuple[int, int] | None
    placement: str
    shape: tuple[int, ...]
    rank_shape: tuple[int, ...]
    rank_dtype: str
    tensors_per_rank: int
    bytes_per_rank: int
    padding_per_rank: int
