"""Request → Deployment: `Deployment`, `Context`, and `resolve`, the only function that fills in a Deployment."""

from collections.abc import Callable
from dataclasses import dataclass

from dsv4_shard.catalog.gpus import GPUS, Gpu, find_gpu, gpu_with
from dsv4_shard.catalog.options import NO_DRAFT
from dsv4_shard.catalog.request import Request
from dsv4_shard.checkpoint import Format, Inventory
from dsv4_shard.engines.expert_locations import IDENTITY, Locations, name_of, read_locations
from dsv4_shard.models import ModelConfig, Role, Stage, V3Config, V4Config
from dsv4_shard.tensors.geometry import Block

__all__ = [
    "ANY_ENGINE", "ASSUMED_GPU", "GPUS_PER_NODE", "Context", "Deployment", "Request", "fewest_nodes", "pick_gpu",
    "pick_nodes",
]  # fmt: skip

ASSUMED_GPU = GPUS["h200"]
"""Default GPU, which represents Hopper if none is named; its memory is then ignored."""

ANY_ENGINE = "for any engine"
"""Version placeholder for layouts that are not made for a certain engine; they name no GPU either."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A request with every choice made.

    Attributes:
        engine: Name of the engine.
        tp, ep, dp: Tensor, expert and data parallelism, within a pipeline stage.
        world: Number of GPUs.
        attention_tp: Ranks that share one attention module.
        moe_tp: Ranks that share one routed expert.
        runner: MoE runner.
        a2a: All-to-all backend, None without one.
        shared: How shared experts are held: whole, split, pad or subgroup.
        shared_parts: Ranks that share one shared expert.
        experts: Format in which the engine holds the routed experts (FP4, FP8).
        gpu: The GPU, or `ASSUMED_GPU`.
        gpu_named: Whether the request names the GPU.
        nodes: Number of hosts.
        version: Version of the engine.
        redundant_experts: SGLang's slots of a layer beyond one for each expert.
        locations: The expert in each slot, if SGLang gets a map.
        dp_lm_head: Whether SGLang is asked to cut the head over attention TP, and not over TP.
        draft: The draft model that is asked for: mtp, dspark or none. None: files may hold it, and no command has it.
        pp: Number of pipeline stages.
        stage_layers: Layers of each stage; empty without stages.
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
    dp_lm_head: bool = False
    redundant_experts: int = 0
    locations: Locations | None = None
    draft: str | None = None
    pp: int = 1
    stage_layers: tuple[int, ...] = ()

    @property
    def serves_draft(self) -> bool:
        """Whether the engine is started with a draft model."""
        return self.draft not in (None, NO_DRAFT)

    @property
    def stage_world(self) -> int:
        """Ranks of a pipeline stage: all, without stages."""
        return self.world // self.pp

    @property
    def partition(self) -> str:
        """The layers of the stages as text, `31,30`; empty without stages."""
        return ",".join(map(str, self.stage_layers))

    @property
    def head_group(self) -> str:
        """The group over which the head is cut. Without attention DP, SGLang drops the option that changes it."""
        return "attention" if self.dp_lm_head and self.dp > 1 else "tp"

    @property
    def expert_locations(self) -> str:
        """Name of the order of experts in SGLang's slots."""
        return IDENTITY if self.locations is None else name_of(self.locations.rows)

    def readers(self, by_node: bool) -> int:
        """Number of ranks that get files: GPUs, or nodes if `by_node`."""
        return self.nodes if by_node else self.world

    def group(self, name: str) -> int:
        """Number of ranks in the group `name`, over which a module is split."""
        sizes = {
            "tp": self.tp,
            "attention": self.attention_tp,
            "moe": self.moe_tp,
            "shared": self.shared_parts,
            "one": 1,
        }
        return sizes[name]


@dataclass(frozen=True, slots=True)
class Context:
    """Input of the rules: the checkpoint's inventory and a deployment; and the tokens of a session, if asked for."""

    inventory: Inventory
    deployment: Deployment
    session: int | None = None

    @property
    def longest_session(self) -> int | None:
        """The model's longest context in tokens, None if its config does not say."""
        return self.config.max_position_embeddings

    @property
    def served_session(self) -> int | None:
        """The length of a session to start the engine with; None for its own choice. Engines refuse longer ones."""
        longest = self.longest_session
        return self.session if self.session and (longest is None or self.session <= longest) else None

    @property
    def config(self) -> ModelConfig:
        return self.inventory.config

    @property
    def v4(self) -> V4Config:
        """The config of a model of V4's generation (V4 and V4.1)."""
        assert isinstance(self.config, V4Config), "engines are looked up by family"
        return self.config

    @property
    def v3(self) -> V3Config:
        """The config of a model of V3's generation (V3 and V3.2)."""
        assert isinstance(self.config, V3Config), "engines are looked up by family"
        return self.config

    @property
    def topology_ranks(self) -> int:
        """SGLang's EP × (TP / EP, rounded down), which must be TP."""
        return self.deployment.ep * (self.deployment.tp // self.deployment.ep)

    @property
    def slots(self) -> int:
        """Slots of a layer for routed experts: SGLang has more than experts if it is asked for redundant ones."""
        return self.config.n_routed_experts + self.deployment.redundant_experts

    @property
    def locations_fault(self) -> str | None:
        """What is wrong with the map of experts for the model; None if nothing is, or without a map."""
        at, config = self.deployment, self.config
        if at.locations is None:
            return None
        return at.locations.fault(config.num_hidden_layers, config.n_routed_experts, at.redundant_experts)

    @property
    def draft_experts(self) -> int:
        """Routed experts of an MTP block or DSpark stage."""
        return self.config.experts_in(Stage.MTP)

    @property
    def o_a_format(self) -> str:
        """Storage format of o_a, in words."""
        return str(self.format(Role.O_A))

    @property
    def q_rows(self) -> int:
        """Rows of q_b: the queries of all heads."""
        return self.v4.q_rows

    @property
    def o_cols(self) -> int:
        """Columns of o_b: the low-rank features of all output groups."""
        return self.v4.o_cols

    @property
    def shared_intermediate(self) -> int:
        """Intermediate size of all shared experts together."""
        return self.config.shared_intermediate

    def format(self, role: Role, stage: Stage = Stage.LAYER) -> Format:
        """Storage format of `role` in the checkpoint; plain if the checkpoint has no such tensor."""
        return self.inventory.format(role, stage) or Format("BF16")

    def block(self, role: Role, stage: Stage = Stage.LAYER) -> Block:
        """Quantization block of `role`; 1×1 if it is not quantized."""
        return self.format(role, stage).block or Block(1, 1)


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
    split: Callable[[int, int], tuple[int, ...]] | None = None,
) -> Deployment:
    """Return the deployment of a request. No other function fills in the fields.

    The defaults suit engines whose attention DP divides the GPUs of TP.

    Args:
        request: The request.
        inventory: The checkpoint's inventory.
        engine: Name of the engine.
        version: Version of the engine.
        ep: Expert parallelism that the engine uses.
        runner: MoE runner that the engine uses.
        shared: How the engine holds shared experts by default; a choice in `request` takes precedence.
        shared_parts: Ranks over which the engine cuts a shared expert.
        world: Number of GPUs of a pipeline stage (default: TP).
        attention_tp: Ranks per attention module (default: TP / DP, at least 1).
        moe_tp: Ranks per routed expert (default: TP / EP, at least 1).
        split: Returns the layers of each stage for a number of layers and of stages; None for engines without stages.
    """
    world = (request.tp if world is None else world) * request.pp
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
        dp_lm_head=request.dp_lm_head,
        redundant_experts=request.redundant_experts,
        draft=request.draft,
        locations=read_locations(request.expert_locations) if request.expert_locations else None,
        pp=request.pp,
        stage_layers=_stage_layers(request, inventory, split),
    )


def _stage_layers(
    request: Request, inventory: Inventory, split: Callable[[int, int], tuple[int, ...]] | None
) -> tuple[int, ...]:
    """Layers of each pipeline stage: as asked for, else as the engine divides them; none without stages."""
    if request.pp == 1 or split is None:
        return ()
    return request.partition or split(inventory.config.num_hidden_layers, request.pp)


def experts_of(request: Request, inventory: Inventory) -> str:
    """Format of the routed experts (FP4, FP8): the requested one, else the checkpoint's."""
    return (request.expert_dtype or inventory.routed.name).upper()


GPUS_PER_NODE = {"gb200": 4, "gb300": 4, "gb10": 1, "gh200": 1, "ascend-910c": 16}
"""GPUs per host, for GPUs that do not come as eight per host."""


def pick_gpu(request: Request) -> Gpu:
    """The GPU that the request names or whose memory it gives; else `ASSUMED_GPU`."""
    if request.gpu_memory is not None:
        return gpu_with(request.gpu_memory)
    return find_gpu(request.gpu) if request.gpu else ASSUMED_GPU


def pick_nodes(request: Request, world: int, gpu: Gpu) -> int:
    """Number of hosts: as requested, else the fewest that hold the GPUs with equally many on each."""
    if request.nodes:
        return request.nodes
    return next(nodes for nodes in range(fewest_nodes(world, gpu), world + 1) if world % nodes == 0)


def fewest_nodes(world: int, gpu: Gpu) -> int:
    """Smallest number of hosts that hold `world` GPUs."""
    return -(-world // GPUS_PER_NODE.get(gpu.name, 8))
