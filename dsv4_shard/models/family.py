"""A model family: config schema, tables of tensors, names, and the dimensions that engines cut.

Shape functions that several generations share are here too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from dsv4_shard.models.names import Grammar, Names, Specs
from dsv4_shard.models.roles import Module, Place, Role, Spec, Stage, TensorName

Count = Annotated[int, Field(gt=0, lt=2**31, strict=True)]
"""A positive 31-bit number."""

Natural = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
"""A 31-bit number that may be 0."""

Few = Annotated[int, Field(ge=0, lt=2**13, strict=True)]
"""A count that checks iterate over. The bound keeps a hostile config from stalling them: no model has 8,192 layers."""

Word = Annotated[str, Field(max_length=100)]


class QuantizationConfig(BaseModel):
    """`quantization_config` of config.json. It is compared with the headers, which decide."""

    model_config = ConfigDict(frozen=True)

    quant_method: Word | None = None
    scale_fmt: Word | None = None
    weight_block_size: tuple[Count, Count] | None = None
    expert_dtype: Word | None = None
    moe_quant_algo: Word | None = None
    group_size: Any = None
    ignore: Any = None


class ModelConfig(BaseModel):
    """The dimensions that every family has, under the names of config.json. Sizes in elements."""

    model_config = ConfigDict(frozen=True)

    model_type: Word
    architectures: tuple[Word, ...] = ()
    hidden_size: Count
    num_hidden_layers: Annotated[Few, Field(gt=0)]
    num_nextn_predict_layers: Few = 0
    vocab_size: Count
    num_attention_heads: Count
    q_lora_rank: Count
    moe_intermediate_size: Count
    n_routed_experts: Annotated[Few, Field(gt=0)]
    n_shared_experts: Few
    num_experts_per_tok: Count
    expert_dtype: Word | None = None
    max_position_embeddings: Count | None = None
    swiglu_limit: Annotated[float, Field(strict=True)] | None = None
    quantization_config: QuantizationConfig | None = None

    @property
    def declared_block(self) -> tuple[int, int] | None:
        """`weight_block_size` (rows, columns) in elements, None if the config has none."""
        return self.quantization_config.weight_block_size if self.quantization_config else None

    @property
    def declared_experts(self) -> str | None:
        """The declared format of the experts: NVIDIA's `moe_quant_algo` if present, else `expert_dtype`.

        V4.1 has `expert_dtype` in its quantization_config.
        """
        quantization = self.quantization_config
        if quantization is None:
            return self.expert_dtype
        return quantization.moe_quant_algo or self.expert_dtype or quantization.expert_dtype

    @property
    def declared_by(self) -> str:
        """The key that `declared_experts` comes from."""
        quantization = self.quantization_config
        return "moe_quant_algo" if quantization and quantization.moe_quant_algo else "expert_dtype"

    @property
    def shared_intermediate(self) -> int:
        """Intermediate size of all shared experts together, in elements."""
        return self.moe_intermediate_size * self.n_shared_experts

    def blocks_in(self, stage: Stage) -> int:
        """Return the number of blocks of a stage other than LAYER and MTP; 0 if the family has no such stage."""
        return 0

    def experts_in(self, stage: Stage) -> int:
        """Return the number of routed experts in each layer or block of a stage."""
        return self.n_routed_experts


@dataclass(frozen=True, slots=True)
class Dimension:
    """A dimension that engines cut.

    Attributes:
        module: Module class that it belongs to.
        name: Name in tables.
        size: Maps the family's config to the size in elements.
        role: The weight that has this dimension, None if no weight has it (heads).
        axis: Axis of that weight.
        stage: Stage of that weight.
    """

    module: Module
    name: str
    size: Callable[[Any], int]
    role: Role | None = None
    axis: int = 0
    stage: Stage = Stage.LAYER


@dataclass(frozen=True, eq=False)
class Family:
    """A model family.

    Attributes:
        name: Short name, such as `v41`.
        title: Name in messages.
        architectures: `architectures` of its config.json files.
        model_types: `model_type` of its config.json files.
        config: Schema of its config.
        specs: Its tensors, by stage.
        grammar: How its tensor names are built.
        dimensions: The dimensions that engines cut.
        text: Key under which config.json nests the language model's part, empty if it does not.
    """

    name: str
    title: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    config: type[ModelConfig]
    specs: Specs
    grammar: Grammar
    dimensions: tuple[Dimension, ...]
    text: str = ""

    def names(self, config: ModelConfig) -> Names:
        """Return the tensor names of a model with this config."""
        return _names(self, config.num_hidden_layers)

    @cached_property
    def rows(self) -> Mapping[tuple[Stage, Role], Spec]:
        """(stage, role) → row of the tables."""
        return {(stage, spec.role): spec for stage, specs in self.specs.items() for spec in specs}

    def may_have(self, config: ModelConfig, place: Place, role: Role) -> bool:
        """Return whether a layer or block may have a tensor of `role`: a hash layer has no router bias, for example."""
        spec = self.rows[place.stage, role]
        return spec.optional or spec.present(config, place)


@lru_cache(maxsize=64)
def _names(family: Family, layers: int) -> Names:
    return Names(family.grammar, family.specs, layers)


def release_file(name: TensorName | None, layers: int) -> int:
    """Return the number, from 1, of the file that holds a tensor in DeepSeek's releases.

    `layers` is the number of layers of the model. The first file has the embedding. One file per layer follows, then
    one with the other tensors outside of layers (and those of unknown role: None), then one with the MTP blocks.
    """
    if name is not None and name.stage is Stage.LAYER:
        return 2 + name.layer
    if name is not None and name.stage is Stage.MTP:
        return layers + 3
    return 1 if name is not None and name.role is Role.EMBED else layers + 2


def hidden(c: ModelConfig, _: Place) -> tuple[int, ...]:
    """Shape of a vector of the hidden size."""
    return (c.hidden_size,)


def vocab(c: ModelConfig, _: Place) -> tuple[int, ...]:
    """Shape of the embedding and the head: one row per token of the vocabulary."""
    return (c.vocab_size, c.hidden_size)


def gate_or_up(c: ModelConfig, _: Place) -> tuple[int, ...]:
    """Shape of the gate or up projection of a routed expert."""
    return (c.moe_intermediate_size, c.hidden_size)


def down(c: ModelConfig, _: Place) -> tuple[int, ...]:
    """Shape of the down projection of a routed expert."""
    return (c.hidden_size, c.moe_intermediate_size)


def shared_gate_or_up(c: ModelConfig, _: Place) -> tuple[int, ...]:
    """Shape of the gate or up projection of the shared experts."""
    return (c.shared_intermediate, c.hidden_size)


def shared_down(c: ModelConfig, _: Place) -> tuple[int, ...]:
    """Shape of the down projection of the shared experts."""
    return (c.hidden_size, c.shared_intermediate)


def has_shared(c: ModelConfig, _: Place) -> bool:
    """Return whether the model has shared experts."""
    return c.n_shared_experts > 0
