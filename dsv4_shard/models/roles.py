"""The vocabulary of tensors: what a tensor is in the model, independent of its name.

Modules, roles, parts, stages and places. The module of each family (`v3`, `v4`, `v41`) has a table with the names and
shapes of its roles.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from dsv4_shard.tensors.geometry import Block


class Module(StrEnum):
    """The module classes that plans and tables name."""

    EMBEDDING = "embedding"
    HEAD = "head"
    ATTENTION = "attention"
    COMPRESSOR = "compressor"
    INDEXER = "indexer"
    ENGRAM = "engram"
    NORMS = "norms"
    HYPER = "hyper-connections"
    ROUTER = "router"
    ROUTED = "routed experts"
    SHARED = "shared experts"
    DENSE = "dense MLP"
    MTP = "MTP projections"
    VISION = "vision"
    DEPLOYMENT = "deployment"
    """Not part of the model: rules about ranks, nodes and versions."""


class Role(StrEnum):
    """A tensor's role in the model, with the module class that it belongs to.

    A weight and its scale have the same role and differ in their part.
    """

    module: Module

    def __new__(cls, name: str, module: Module) -> "Role":
        """Create the role `name` of `module`."""
        role = str.__new__(cls, name)
        role._value_ = name
        role.module = module
        return role

    EMBED = "embed", Module.EMBEDDING
    HEAD = "head", Module.HEAD
    FINAL_NORM = "final_norm", Module.NORMS
    HC_HEAD_FN = "hc_head.fn", Module.HYPER
    HC_HEAD_BASE = "hc_head.base", Module.HYPER
    HC_HEAD_SCALE = "hc_head.scale", Module.HYPER
    ATTN_NORM = "attn_norm", Module.NORMS
    FFN_NORM = "ffn_norm", Module.NORMS
    Q_A = "q_a", Module.ATTENTION
    Q_NORM = "q_norm", Module.ATTENTION
    Q_B = "q_b", Module.ATTENTION
    KV = "kv", Module.ATTENTION
    KV_NORM = "kv_norm", Module.ATTENTION
    KV_A = "kv_a", Module.ATTENTION
    KV_B = "kv_b", Module.ATTENTION
    O_A = "o_a", Module.ATTENTION
    O_B = "o_b", Module.ATTENTION
    O_PROJ = "o", Module.ATTENTION
    ATTN_SINK = "attn_sink", Module.ATTENTION
    COMPRESSOR_APE = "compressor.ape", Module.COMPRESSOR
    COMPRESSOR_KV = "compressor.kv", Module.COMPRESSOR
    COMPRESSOR_GATE = "compressor.gate", Module.COMPRESSOR
    COMPRESSOR_NORM = "compressor.norm", Module.COMPRESSOR
    INDEXER_Q_B = "indexer.q_b", Module.INDEXER
    INDEXER_WEIGHTS = "indexer.weights", Module.INDEXER
    INDEXER_APE = "indexer.compressor.ape", Module.INDEXER
    INDEXER_KV = "indexer.compressor.kv", Module.INDEXER
    INDEXER_GATE = "indexer.compressor.gate", Module.INDEXER
    INDEXER_NORM = "indexer.compressor.norm", Module.INDEXER
    INDEXER_K = "indexer.k", Module.INDEXER
    INDEXER_K_NORM = "indexer.k_norm", Module.INDEXER
    INDEXER_K_NORM_BIAS = "indexer.k_norm.bias", Module.INDEXER
    ENGRAM_EMBED = "engram.embed", Module.ENGRAM
    ENGRAM_KV = "engram.kv", Module.ENGRAM
    ENGRAM_Q_WEIGHT = "engram.q_weight", Module.ENGRAM
    ENGRAM_K_WEIGHT = "engram.k_weight", Module.ENGRAM
    HC_ATTN_FN = "hc_attn.fn", Module.HYPER
    HC_ATTN_BASE = "hc_attn.base", Module.HYPER
    HC_ATTN_SCALE = "hc_attn.scale", Module.HYPER
    HC_FFN_FN = "hc_ffn.fn", Module.HYPER
    HC_FFN_BASE = "hc_ffn.base", Module.HYPER
    HC_FFN_SCALE = "hc_ffn.scale", Module.HYPER
    ROUTER = "router", Module.ROUTER
    ROUTER_BIAS = "router.bias", Module.ROUTER
    ROUTER_BIAS_VL = "router.bias_vl", Module.ROUTER
    ROUTER_HASH = "router.tid2eid", Module.ROUTER
    ROUTED_GATE = "routed_expert.gate", Module.ROUTED
    ROUTED_UP = "routed_expert.up", Module.ROUTED
    ROUTED_DOWN = "routed_expert.down", Module.ROUTED
    SHARED_GATE = "shared_expert.gate", Module.SHARED
    SHARED_UP = "shared_expert.up", Module.SHARED
    SHARED_DOWN = "shared_expert.down", Module.SHARED
    DENSE_GATE = "dense.gate", Module.DENSE
    DENSE_UP = "dense.up", Module.DENSE
    DENSE_DOWN = "dense.down", Module.DENSE
    MTP_E_PROJ = "mtp.e_proj", Module.MTP
    MTP_H_PROJ = "mtp.h_proj", Module.MTP
    MTP_EH_PROJ = "mtp.eh_proj", Module.MTP
    MTP_ENORM = "mtp.enorm", Module.MTP
    MTP_HNORM = "mtp.hnorm", Module.MTP
    MTP_EMBED = "mtp.embed", Module.EMBEDDING
    MTP_HEAD = "mtp.head", Module.HEAD
    DSPARK_MAIN_PROJ = "dspark.main_proj", Module.MTP
    DSPARK_MAIN_NORM = "dspark.main_norm", Module.MTP
    DSPARK_MARKOV_EMBED = "dspark.markov.embed", Module.MTP
    DSPARK_MARKOV_HEAD = "dspark.markov.head", Module.MTP
    DSPARK_CONFIDENCE = "dspark.confidence", Module.MTP
    VISION_PATCH = "vision.patch", Module.VISION
    VISION_PATCH_BIAS = "vision.patch.bias", Module.VISION
    VISION_QKV = "vision.qkv", Module.VISION
    VISION_QKV_BIAS = "vision.qkv.bias", Module.VISION
    VISION_O = "vision.o", Module.VISION
    VISION_O_BIAS = "vision.o.bias", Module.VISION
    VISION_GATE_UP = "vision.gate_up", Module.VISION
    VISION_DOWN = "vision.down", Module.VISION
    VISION_NORM_1 = "vision.norm1", Module.VISION
    VISION_NORM_2 = "vision.norm2", Module.VISION
    VISION_NORM = "vision.norm", Module.VISION
    ALIGNER_1 = "aligner.1", Module.VISION
    ALIGNER_1_BIAS = "aligner.1.bias", Module.VISION
    ALIGNER_2 = "aligner.2", Module.VISION
    ALIGNER_2_BIAS = "aligner.2.bias", Module.VISION
    IMAGE_START = "image.start", Module.VISION
    IMAGE_END = "image.end", Module.VISION
    IMAGE_NEWLINE = "image.newline", Module.VISION


DSPARK = frozenset(
    {
        Role.DSPARK_MAIN_PROJ,
        Role.DSPARK_MAIN_NORM,
        Role.DSPARK_MARKOV_EMBED,
        Role.DSPARK_MARKOV_HEAD,
        Role.DSPARK_CONFIDENCE,
    }
)
"""Roles that only a DSpark draft has."""

NORM_ROLES = frozenset(
    role
    for role in Role
    if role.module is Module.NORMS
    or role in (Role.Q_NORM, Role.KV_NORM, Role.COMPRESSOR_NORM, Role.INDEXER_NORM, Role.MTP_ENORM, Role.MTP_HNORM)
)
"""Norms over features. V3.2 stores them in F32; engines keep them in the model's dtype."""


class Part(StrEnum):
    """Which of a role's tensors: the weight, the scale of its blocks, or one of the three scales of NVFP4.

    NVFP4 has a scale per group, one for the whole weight (`weight_scale_2`) and one for the layer's input.
    """

    WEIGHT = "weight"
    SCALE = "scale"
    GROUP_SCALE = "group scale"
    TENSOR_SCALE = "tensor scale"
    INPUT_SCALE = "input scale"

    @property
    def is_scalar(self) -> bool:
        """Whether the part is a scalar (shape `[]`)."""
        return self in (Part.TENSOR_SCALE, Part.INPUT_SCALE)


class Stage(StrEnum):
    """A part of the model: outside of layers, the layers, the MTP (draft) blocks, or the vision tower."""

    MODEL = "model"
    LAYER = "layer"
    MTP = "mtp"
    VISION = "vision"


TARGET = (Stage.MODEL, Stage.LAYER, Stage.VISION)
"""The stages of the target model; the rest is the draft's."""


class TensorName(NamedTuple):
    """A parsed tensor name. `layer` numbers the layer or block, `expert` the routed expert; -1 means none."""

    role: Role
    part: Part
    stage: Stage
    layer: int = -1
    expert: int = -1


class Draft(NamedTuple):
    """The draft model of a checkpoint: number of MTP blocks, and whether they are the stages of DSpark."""

    blocks: int = 0
    dspark: bool = False


class Place(NamedTuple):
    """A layer or block of a checkpoint. Presence and shape of its tensors depend on it."""

    stage: Stage
    layer: int = -1
    draft: Draft = Draft()

    @property
    def is_last(self) -> bool:
        """Whether this is the last MTP block."""
        return self.stage is Stage.MTP and self.layer == self.draft.blocks - 1


Shape = Callable[[Any, Place], tuple[int, ...]]
"""Maps the family's config and a place to the shape of a role's weight, in elements."""


def everywhere(config: object, place: Place) -> bool:
    """Return True: the role is present in every place of its stage."""
    return True


@dataclass(frozen=True, slots=True)
class Spec:
    """One row of a family's table: a role, and the name, presence and shape of its tensors.

    Attributes:
        role: The role.
        name: Name between the prefix of the layer or expert and the part.
        shape: Maps config and place to the weight's shape in elements.
        present: Maps config and place to whether the tensor must be there.
        quantized: Whether the weight may be stored in blocks with a scale. If not, it always has `dtype`.
        bare: Whether the name has no part, as in `attn_sink`.
        optional: Whether the tensor may be missing.
        dtype: Dtype of a role that is not quantized.
        block: Block of a role that does not have the checkpoint's block.
    """

    role: Role
    name: str
    shape: Shape
    present: Callable[[Any, Place], bool] = everywhere
    quantized: bool = False
    bare: bool = False
    optional: bool = False
    dtype: str = "BF16"
    block: Block | None = None
