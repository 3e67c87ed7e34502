"""Translates tensor names of other tools into the family's own names, and splits stacked experts.

Tools that export DeepSeek-V4 rename its tensors, and Transformers also stacks the experts of a layer. A dialect is a
table of rules that turn native names into a tool's names. Applied to all names of the family, the rules give the native
name of each tensor in the checkpoint. A stacked tensor is split into one tensor per expert and projection, each a
contiguous range of its bytes. Later modules see native names only. The dialect is detected from the names alone.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from dsv4_shard.errors import BadStack, DuplicateTensor, MixedDialects
from dsv4_shard.limits import HEADERS
from dsv4_shard.models.families import family_of
from dsv4_shard.models.family import Family, ModelConfig
from dsv4_shard.models.names import EXPERT, index_of
from dsv4_shard.models.roles import Part, Stage
from dsv4_shard.models.v4 import V4
from dsv4_shard.tensors.header import DTYPE_BITS
from dsv4_shard.text.sanitize import short, short_name

if TYPE_CHECKING:
    from dsv4_shard.tensors.header import Tensor

Rules = tuple[tuple[str, str], ...]
"""Pairs (regular expression, replacement) for names, applied in order."""

NATIVE = "native"
"""Name of the dialect of a checkpoint with its family's own names."""

MAX_UNSTACKED = HEADERS.count
"""Most tensors that stacks are split into: as many as are read one by one. Those of V4-Pro give 140,544."""


@dataclass(frozen=True, slots=True)
class BlockNaming:
    """How a tool names MTP blocks (or layers).

    Attributes:
        prefix: Text before the number.
        follows: Whether the numbers of MTP blocks continue those of the layers.
        rules: Rules that apply before the dialect's rules for layers.
    """

    prefix: str
    follows: bool = False
    rules: Rules = ()


@dataclass(frozen=True, slots=True, eq=False)
class Dialect:
    """The tensor names of a tool.

    Attributes:
        name: Short name.
        title: Name in messages.
        model: Rules for names outside of layers.
        layer: Rules for names within a layer, without its prefix and number.
        layers: Text before the number of a layer.
        mtp: Ways in which the tool names MTP blocks.
        stacks: Name within a layer of a tensor that stacks all experts → native names of its projections, in the order
            of their rows.
        lost: Regular expression for names that the tool writes by mistake in place of the experts' scales.
        f32_norms: Whether the tool stores norms in F32 if the experts are not quantized.
    """

    name: str
    title: str
    model: Rules
    layer: Rules
    layers: str = "model.layers."
    mtp: tuple[BlockNaming, ...] = ()
    stacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lost: str = r"(?!)"
    f32_norms: bool = False


_OUTER: Rules = (
    (r"^embed\.", "model.embed_tokens."),
    (r"^head\.", "lm_head."),
    (r"^norm\.", "model.norm."),
)

_HF_LAYER: Rules = (
    (r"^attn\.", "self_attn."),
    (r"^ffn\.", "mlp."),
    (r"^attn_norm\.", "input_layernorm."),
    (r"^ffn_norm\.", "post_attention_layernorm."),
    (r"\.gate\.bias$", ".gate.e_score_correction_bias"),
)

_HF_MLP: Rules = ((r"\.w1\.", ".gate_proj."), (r"\.w2\.", ".down_proj."), (r"\.w3\.", ".up_proj."))

_FOLLOWING: Rules = (
    (r"^emb\.tok_emb\.", "embed_tokens."),
    (r"^norm\.", "shared_head.norm."),
    (r"^head\.", "shared_head.head."),
    (r"^(e_proj|h_proj)\.scale$", r"\1.weight_scale_inv"),
)
"""Names in SGLang's draft model for tensors of an MTP block that a layer does not have."""

_HF_MODEL: Rules = (*_OUTER, (r"^hc_head_", "model.hc_head_"))

_EITHER_MTP = (BlockNaming("mtp."), BlockNaming("model.layers.", follows=True, rules=_FOLLOWING))

SGLANG = Dialect(
    name="sglang",
    title="SGLang and miles",
    model=_HF_MODEL,
    layer=(
        *_HF_LAYER,
        (r"^((?:self_attn|mlp)\..+)\.scale$", r"\1.weight_scale_inv"),
        (r"\.gate\.tid2eid$", ".topk.tid2eid"),
        *_HF_MLP,
    ),
    mtp=_EITHER_MTP,
)
"""Names of `remap_weight_name_to_dpsk_hf_format` in SGLang 0.5.23, with and without `is_nextn`, and of miles."""

HF_V3 = Dialect(
    name="v3",
    title="DeepSeek-V3",
    model=_HF_MODEL,
    layer=(
        *_HF_LAYER,
        (r"\.scale$", ".weight_scale_inv"),
        (r"\.wq_a\.", ".q_a_proj."),
        (r"^self_attn\.q_norm\.", "self_attn.q_a_layernorm."),
        (r"^self_attn\.wq_b\.", "self_attn.q_b_proj."),
        (r"^self_attn\.kv_norm\.", "self_attn.kv_a_layernorm."),
        *_HF_MLP,
    ),
    mtp=_EITHER_MTP,
)
"""Names of DeepSeek-V3 that the first converter of DeepSeek-V4 still accepts."""

TRANSFORMERS = Dialect(
    name="transformers",
    title="Transformers",
    model=(*_OUTER, (r"^hc_head_", "model.hc_head.hc_")),
    layer=(
        (r"\.scale$", ".weight_scale_inv"),
        (r"^attn\.indexer\.compressor\.", "attn.compressor.indexer."),
        (r"^attn\.indexer\.weights_proj\.", "attn.compressor.indexer.scorer.weights_proj."),
        (r"^attn\.indexer\.wq_b\.", "attn.compressor.indexer.q_b_proj."),
        *_HF_LAYER,
        (r"^hc_(attn|ffn)_", r"\1_hc."),
        (r"\.attn_sink$", ".sinks"),
        (r"\.norm\.", ".kv_norm."),
        (r"\.ape$", ".position_bias"),
        (r"\.wq_a\.", ".q_a_proj."),
        (r"\.wq_b\.", ".q_b_proj."),
        (r"\.wkv\.", ".kv_proj."),
        (r"\.wgate\.", ".gate_proj."),
        (r"\.wo_a\.", ".o_a_proj."),
        (r"\.wo_b\.", ".o_b_proj."),
        (r"\.q_norm\.", ".q_a_norm."),
        *_HF_MLP,
    ),
    stacks={
        "mlp.experts.gate_up_proj": ("ffn.experts.*.w1.weight", "ffn.experts.*.w3.weight"),
        "mlp.experts.gate_up_proj_scale_inv": ("ffn.experts.*.w1.scale", "ffn.experts.*.w3.scale"),
        "mlp.experts.down_proj": ("ffn.experts.*.w2.weight",),
        "mlp.experts.down_proj_scale_inv": ("ffn.experts.*.w2.scale",),
    },
    f32_norms=True,
)
"""Names of `conversion_mapping.py` in Transformers 5.20; `save_pretrained(save_original_format=False)` writes them."""

RESAVED = Dialect(
    name="transformers-resaved",
    title="Transformers' default save_pretrained",
    model=(
        (r"^embed\.", "model.embed_tokens."),
        (r"^norm\.", "model.norm."),
        (r"^hc_head_", "model.hc_head.hc_"),
    ),
    layer=((r"^attn\.kv_norm\.", "attn.norm."),),
    lost=r"\.experts\.\d+\.w[123]\.weight",
    f32_norms=True,
)
"""Names that Transformers writes when it reverses that mapping: native ones, except for these."""

DIALECTS: dict[str, tuple[Dialect, ...]] = {V4.name: (SGLANG, HF_V3, TRANSFORMERS, RESAVED)}
"""Family name → dialects. If two fit a checkpoint equally well, the first one is used."""

_FOREIGN_PREFIXES = ("model.", "lm_head.", ".experts.")
"""Prefixes that occur in each dialect, but not in V4's native names."""


class Stack(NamedTuple):
    """A tensor that holds all experts of a layer: native names of its projections, `*` for the expert's number."""

    parts: tuple[str, ...]


class Dictionary:
    """Maps the names of a dialect to native names, for the model of one config."""

    def __init__(self, dialect: Dialect, family: Family, config: ModelConfig) -> None:
        self.dialect = dialect
        names, native = family.names(config), family.grammar.prefixes
        self._outer = {_renamed(name, dialect.model): name for name in names.templates(Stage.MODEL)}
        self._layers = config.num_hidden_layers
        self._experts = _renamed(family.grammar.experts, dialect.layer)
        layer_words = {_renamed(name, dialect.layer): name for name in names.templates(Stage.LAYER)}
        if dialect.stacks:
            layer_words = {word: name for word, name in layer_words.items() if EXPERT not in name}
        self._namings = [(BlockNaming(dialect.layers), native[Stage.LAYER], layer_words)]
        for naming in dialect.mtp:
            rules = (*naming.rules, *dialect.layer)
            words = {_renamed(name, rules): name for name in names.templates(Stage.MTP)}
            self._namings.append((naming, native[Stage.MTP], words))
        self._follows = any(naming.follows for naming in dialect.mtp)

    def native(self, name: str) -> str | Stack | None:
        """Return the native name of a tensor, or the Stack that it is. None if the dialect has no such name."""
        if name in self._outer:
            return self._outer[name]
        for naming, prefix, words in self._namings:
            if not name.startswith(naming.prefix):
                continue
            text, _, word = name[len(naming.prefix) :].partition(".")
            number = index_of(text)
            if number is None:
                return None
            if naming.prefix == self.dialect.layers and self._follows:
                if naming.follows is not (number >= self._layers):
                    continue
                number -= self._layers if naming.follows else 0
            found = self._in_block(word, words)
            if isinstance(found, Stack):
                return Stack(tuple(f"{prefix}{number}.{part}" for part in found.parts))
            return found and f"{prefix}{number}.{found}"
        return None

    def _in_block(self, word: str, words: Mapping[str, str]) -> str | Stack | None:
        """Return the native name, or the Stack, of the tensor `word` within a layer or block, None if there is none."""
        if word in self.dialect.stacks:
            return Stack(self.dialect.stacks[word])
        if not word.startswith(self._experts):
            return words.get(word) if EXPERT not in word else None
        text, _, rest = word[len(self._experts) :].partition(".")
        found = words.get(f"{self._experts}{EXPERT}.{rest}")
        return found and found.replace(EXPERT, text) if index_of(text) is not None else None


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


@dataclass(frozen=True, slots=True)
class View:
    """A checkpoint's tensors under native names.

    Attributes:
        tensors: Native name → tensor. A tensor whose name the dialect does not know keeps its name.
        dialect: The dialect of the files, None if their names are native.
        lost: Names of tensors that stand in place of the experts' scales. They are not in `tensors`.
    """

    tensors: "dict[str, Tensor]"
    dialect: Dialect | None = None
    lost: tuple[str, ...] = ()


def native_view(config: ModelConfig, tensors: "dict[str, Tensor]") -> View:
    """Return `tensors`, keyed by their names in the files, under the family's own names.

    Raises MixedDialects if the names are of two dialects, DuplicateTensor if two names mean the same tensor, and
    BadStack if a stacked tensor cannot be split.
    """
    family = family_of(config)
    dialects = DIALECTS.get(family.name, ())
    if not dialects or not any(name.startswith(_FOREIGN_PREFIXES) for name in tensors):
        return View(tensors)
    dictionaries = [Dictionary(dialect, family, config) for dialect in dialects]
    best = max(dictionaries, key=lambda dictionary: sum(dictionary.native(name) is not None for name in tensors))
    unknown = [name for name in tensors if best.native(name) is None]
    parse = family.names(config).parse
    if sum(parse(name) is not None for name in tensors) >= len(tensors) - len(unknown):
        _refuse_mixing((name for name in tensors if parse(name) is None), dictionaries, "DeepSeek's own")
        return View(tensors)
    for name in unknown:
        if parse(name) is not None:
            raise MixedDialects(_mixing(name, "DeepSeek's own", best.dialect.title))
    _refuse_mixing(unknown, [other for other in dictionaries if other is not best], best.dialect.title)
    lost = tuple(name for name in unknown if re.fullmatch(best.dialect.lost, name))
    return View(_translated(config, tensors, best, frozenset(lost)), best.dialect, lost)


def _refuse_mixing(unknown: Iterator[str] | list[str], dictionaries: list[Dictionary], others: str) -> None:
    """Raise MixedDialects if a name that the checkpoint's dialect does not know is in one of `dictionaries`."""
    for name in unknown:
        for dictionary in dictionaries:
            if dictionary.native(name) is not None:
                raise MixedDialects(_mixing(name, dictionary.dialect.title, others))


def _mixing(name: str, dialect: str, others: str) -> str:
    return f"{short_name(name)} is a name of {dialect}, most of the others are names of {others}"


def _translated(
    config: ModelConfig, tensors: "dict[str, Tensor]", dictionary: Dictionary, lost: frozenset[str]
) -> "dict[str, Tensor]":
    """Return `tensors` without `lost`, by native name. Raises DuplicateTensor or BadStack as `native_view` does."""
    view: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    for name, tensor in tensors.items():
        if name in lost:
            continue
        found = dictionary.native(name)
        if isinstance(found, Stack):
            if len(view) + config.n_routed_experts * len(found.parts) > MAX_UNSTACKED:
                raise BadStack(
                    f"{short_name(name)}: with it, stacks hold more than {MAX_UNSTACKED:,} tensors of experts"
                )
            views = _unstacked(tensor, found.parts, config)
        else:
            views = iter((tensor._replace(name=found or name),))
        for native in views:
            if native.name in view:
                raise DuplicateTensor(
                    f"{short_name(origins[native.name])} (in {view[native.name].file}) and {short_name(name)} (in "
                    f"{tensor.file}) are both {native.name}"
                )
            view[native.name], origins[native.name] = native, name
    return view


def _unstacked(tensor: "Tensor", parts: tuple[str, ...], config: ModelConfig) -> "Iterator[Tensor]":
    """Yield a tensor `[rows / len(parts), columns]` per expert and projection of a stack `[experts, rows, columns]`.

    `parts` are the native names of the projections, in the order of their rows. Raises BadStack if the stack does not
    have the shape of the config's experts.
    """
    where = f"{short_name(tensor.name)} {short(list(tensor.shape))}"
    if len(tensor.shape) != 3:
        raise BadStack(f"{where}: {len(tensor.shape)} axes, a stack of experts has 3: experts, rows, columns")
    experts, rows, cols = tensor.shape
    if experts != config.n_routed_experts:
        raise BadStack(f"{where}: a stack of {experts} experts, config.json has {config.n_routed_experts}")
    each = rows // len(parts)
    if rows % len(parts) or each * cols * DTYPE_BITS[tensor.dtype] % 8:
        raise BadStack(f"{where}: {rows} rows do not fall into {len(parts)} projections")
    if len(parts) > 1 and parts[0].endswith(Part.SCALE) and _crosses(each, config):
        raise BadStack(
            f"{where}: {each} rows of scales for {config.moe_intermediate_size} of the gate projection: a block would "
            "lie across gate and up"
        )
    nbytes = each * cols * DTYPE_BITS[tensor.dtype] // 8
    start = tensor.start
    for expert in range(experts):
        for part in parts:
            name = part.replace(EXPERT, str(expert))
            yield tensor._replace(name=name, shape=(each, cols), start=start, stop=start + nbytes)
            start += nbytes


def _crosses(rows: int, config: ModelConfig) -> bool:
    """Return whether a scale block crosses from one projection into the next, if each has `rows` rows of scales."""
    size, declared = config.moe_intermediate_size, config.declared_block
    if rows in (0, size):
        return False
    return size % rows != 0 or (declared is not None and size % declared[0] != 0)


def is_transformers_config(config: ModelConfig, document: Mapping[str, object]) -> bool:
    """Return whether config.json has the keys of Transformers 5, which differ from DeepSeek-V4's own."""
    return family_of(config) is V4 and "compress_ratios" not in document
