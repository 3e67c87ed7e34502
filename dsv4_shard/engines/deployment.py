"""Request → Deployment: `Request`, `Deployment`, `Context`, and the one function that fills in a Deployment."""

from dataclasses import dataclass

from dsv4_shard.catalog.gpus import GPUS, Gpu, find_gpu, gpu_with
from dsv4_shard.catalog.request import Request
from dsv4_shard.checkpoint.formats import Format
from dsv4_shard.checkpoint.inventory import Inventory
from dsv4_shard.models.family import ModelConfig
from dsv4_shard.models.roles import Role
from dsv4_shard.models.v3 import V3Config
from dsv4_shard.models.v4 import V4Config
from dsv4_shard.tensors.geometry import Block

__all__ = [
    "ANY_ENGINE", "ASSUMED_GPU", "GPUS_PER_NODE", "Context", "Deployment", "Request", "fewest_nodes", "pick_gpu",
    "pick_nodes",
]  # fmt: skip

ASSUMED_GPU = GPUS["h200"]
"""Stands for Hopper where no GPU is named; its memory is then not looked at."""

ANY_ENGINE = "for any engine"
"""Stands for an engine's version where no engine is claimed; then there is no GPU to name either."""


# --- what is asked for, and what it resolves to --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Deployment:
    """A request with every choice made.

    `world` is the number of GPUs, `attention_tp` and `moe_tp` the ranks that share one attention and one routed
    expert, `shared_parts` the ranks that share one shared expert. `shared` is how: whole, split, pad or subgroup.
    `experts` is the format in which the engine holds the routed experts (FP4, FP8). `version` is the engine's.
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
    gpu: Gpu
    gpu_named: bool
    nodes: int
    version: str

    def readers(self, by_node: bool) -> int:
        """How many ranks the files are for: GPUs, or nodes."""
        return self.nodes if by_node else self.world

    def group(self, name: str) -> int:
        """How many ranks cut a module that is split over `name`."""
        return {"tp": self.tp, "attention": self.attention_tp, "moe": self.moe_tp, "shared": self.shared_parts}[name]


@dataclass(frozen=True, slots=True)
class Context:
    """What a rule looks at."""

    inventory: Inventory
    deployment: Deployment

    @property
    def config(self) -> ModelConfig:
        return self.inventory.config

    @property
    def v4(self) -> V4Config:
        """The config of a model of V4's generation (V4 and V4.1), whose engines' rules look at its attention."""
        assert isinstance(self.config, V4Config), "engines are looked up by family"
        return self.config

    @property
    def v3(self) -> V3Config:
        """The config of a model of V3's generation (V3 and V3.2)."""
        assert isinstance(self.config, V3Config), "engines are looked up by family"
        return self.config

    @property
    def experts_ranks(self) -> int:
        """Ranks that hold a part of the routed experts: EP × MoE TP."""
        return self.deployment.ep * self.deployment.moe_tp

    @property
    def o_a_format(self) -> str:
        """How o_a is stored, in words."""
        return str(self.format(Role.O_A))

    @property
    def q_rows(self) -> int:
        """Rows of q_b: all heads' queries."""
        return self.v4.q_rows

    @property
    def o_cols(self) -> int:
        """Columns of o_b: all output groups' low-rank features."""
        return self.v4.o_cols

    @property
    def shared_intermediate(self) -> int:
        """Intermediate size of the shared experts taken together."""
        return self.config.shared_intermediate

    def format(self, role: Role) -> Format:
        """How `role` is stored in the checkpoint; plain where it has no such tensor."""
        return self.inventory.format(role) or Format("BF16")

    def block(self, role: Role) -> Block:
        """The block of `role`; 1×1 where it is not quantized."""
        return self.format(role).block or Block(1, 1)


def resolve(
    request: Request,
    inventory: Inventory,
    *,
    engine: str,
    version: str,
    ep: int,
    runner: str,
    shared: str,
    shared_parts: int,
    world: int | None = None,
    attention_tp: int | None = None,
    moe_tp: int | None = None,
) -> Deployment:
    """The deployment of a request: the one place that fills in all fields.

    An engine passes what it decides itself: its name and `version`, the `ep` and `runner` that it takes, its own way
    to keep shared experts (a request for another way goes before `shared`), and over how many ranks it cuts one.
    The defaults are those of engines whose attention DP divides the GPUs of TP: `world` is TP, attention TP is TP / DP
    and MoE TP is TP / EP, each at least 1.
    """
    world = request.tp if world is None else world
    gpu = pick_gpu(request)
    return Deployment(
        engine=engine,
        tp=request.tp,
        ep=ep,
        dp=request.dp,
        world=world,
        attention_tp=request.tp // request.dp or 1 if attention_tp is None else attention_tp,
        moe_tp=request.tp // ep or 1 if moe_tp is None else moe_tp,
        runner=runner,
        a2a=request.a2a,
        shared=shared if request.shared_experts == "auto" else request.shared_experts,
        shared_parts=shared_parts,
        experts=experts_of(request, inventory),
        gpu=gpu,
        gpu_named=request.names_gpu,
        nodes=pick_nodes(request, world, gpu),
        version=request.engine_version or version,
    )


def experts_of(request: Request, inventory: Inventory) -> str:
    """The format in which the routed experts are asked for, else that of the checkpoint: FP4, FP8."""
    return (request.expert_dtype or inventory.routed.name).upper()


GPUS_PER_NODE = {"gb200": 4, "gb300": 4, "gb10": 1, "ascend-910c": 16}
"""GPUs of one host where it is not eight."""


def pick_gpu(request: Request) -> Gpu:
    """The GPU that the request names or whose memory it gives, or the one that stands for Hopper."""
    if request.gpu_memory is not None:
        return gpu_with(request.gpu_memory)
    return find_gpu(request.gpu) if request.gpu else ASSUMED_GPU


def pick_nodes(request: Request, world: int, gpu: Gpu) -> int:
    """Hosts: as asked for, else as few as hold the GPUs, as many on each."""
    if request.nodes:
        return request.nodes
    return next(nodes for nodes in range(fewest_nodes(world, gpu), world + 1) if world % nodes == 0)


def fewest_nodes(world: int, gpu: Gpu) -> int:
    """Hosts that `world` GPUs need at least."""
    return -(-world // GPUS_PER_NODE.get(gpu.name, 8))
