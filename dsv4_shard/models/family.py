"""What a family of models is to this tool: a config, tables of tensors, names, and the dimensions that engines cut."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from dsv4_shard.models.names import Grammar, Names, Specs
from dsv4_shard.models.roles import Module, Place, Role, Spec, Stage, TensorName

Count = Annotated[int, Field(gt=0, lt=2**31, strict=True)]

Natural = Annotated[int, Field(ge=0, lt=2**31, strict=True)]

Few = Annotated[int, Field(ge=0, lt=2**13, strict=True)]
"""Of what the checks go through one by one: no model has 8,192 layers or experts, a hostile config may say so."""

Word = Annotated[str, Field(max_length=100)]


class QuantizationConfig(BaseModel):
    """What config.json claims of the quantization; the headers decide."""

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
    swiglu_limit: Annotated[float, Field(strict=True)] | None = None
    quantization_config: QuantizationConfig | None = None

    @property
    def declared_block(self) -> tuple[int, int] | None:
        """`weight_block_size`, where the config has one."""
        return self.quantization_config.weight_block_size if self.quantization_config else None

    @property
    def declared_experts(self) -> str | None:
        """`expert_dtype`, which V4.1 has in its quantization_config; before it `moe_quant_algo`, which NVIDIA adds."""
        said = self.quantization_config
        if said is None:
            return self.expert_dtype
        return said.moe_quant_algo or self.expert_dtype or said.expert_dtype

    @property
    def declared_by(self) -> str:
        """The key that `declared_experts` comes from."""
        said = self.quantization_config
        return "moe_quant_algo" if said and said.moe_quant_algo else "expert_dtype"

    @property
    def shared_intermediate(self) -> int:
        """Intermediate size of the shared experts taken together."""
        return self.moe_intermediate_size * self.n_shared_experts

    def blocks_in(self, stage: Stage) -> int:
        """Numbered blocks of a stage that is neither layers nor MTP: none, where the family has no such stage."""
        return 0

    def experts_in(self, stage: Stage) -> int:
        """Routed experts of each layer or block of a stage."""
        return self.n_routed_experts


@dataclass(frozen=True, slots=True)
class Dimension:
    """A dimension that engines cut, of `size` elements: of a role's weight along `axis`, or of none (heads)."""

    module: Module
    name: str
    size: Callable[[Any], int]
    role: Role | None = None
    axis: int = 0
    stage: Stage = Stage.LAYER


@dataclass(frozen=True, eq=False)
class Family:
    """A family: which config.json is one of its, what tensors it has, and which of its dimensions are cut.

    `architectures` and `model_types` are those of its configs; `text` is the key under which config.json nests the
    language model's part, if it does.
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
        """The names of a model with this config."""
        return _names(self, config.num_hidden_layers)

    @cached_property
    def rows(self) -> Mapping[tuple[Stage, Role], Spec]:
        """Every row of the tables, by stage and role."""
        return {(stage, spec.role): spec for stage, specs in self.specs.items() for spec in specs}

    def may_be(self, config: ModelConfig, place: Place, role: Role) -> bool:
        """Whether the layer or block has such a tensor: no indexer without a ratio of 4, no bias in a hash layer."""
        spec = self.rows[place.stage, role]
        return spec.optional or spec.present(config, place)


@lru_cache(maxsize=64)
def _names(family: Family, layers: int) -> Names:
    return Names(family.grammar, family.specs, layers)


def release_file(at: TensorName | None, layers: int) -> int:
    """The number of the file, from 1, in which DeepSeek's releases have a tensor of a model with `layers` layers.

    The embedding, one file a layer, what is outside of them (and what is of no known role, None), the MTP blocks.
    """
    if at is not None and at.stage is Stage.LAYER:
        return 2 + at.layer
    if at is not None and at.stage is Stage.MTP:
        return layers + 3
    return 1 if at is not None and at.role is Role.EMBED else layers + 2


def hidden(c: ModelConfig, _: Place) -> tuple[int, ...]:
    """A vector of the hidden size."""
    return (c.hidden_size,)


def vocab(c: ModelConfig, _: Place) -> tuple[int, ...]:
    """A row for each token of the vocabulary."""
    return (c.vocab_size, c.hidden_size)


def gate_or_up(c: ModelConfig, _: Place) -> tuple[int, ...]:
    """The gate or up projection of a routed expert."""
    return (c.moe_intermediate_size, c.hidden_size)


def down(c: ModelConfig, _: Place) -> tuple[int, ...]:
    """The down projection of a routed expert."""
    return (c.hidden_size, c.moe_intermediate_size)


def shared_gate_or_up(c: ModelConfig, _: Place) -> tuple[int, ...]:
    """The gate or up projection of the shared experts."""
    return (c.shared_intermediate, c.hidden_size)


def shared_down(c: ModelConfig, _: Place) -> tuple[int, ...]:
    """The down projection of the shared experts."""
    return (c.hidden_size, c.shared_intermediate)


def has_shared(c: ModelConfig, _: Place) -> bool:
    """Whether the model has shared experts."""
    return c.n_shared_experts > 0
