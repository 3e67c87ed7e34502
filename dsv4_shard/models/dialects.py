"""Checkpoints of a known family under other tools' names, seen under the family's own.

Tools that export DeepSeek-V4 rename its tensors, and Transformers also stacks the experts of a layer. A dialect is a
table of rules that turn native names into a tool's; applied to all names of the family, they tell the native name of
each tensor that is found. A stacked tensor becomes one for each expert and projection, which are contiguous ranges of
its bytes, so that nothing after this module knows of it. Which dialect a checkpoint is in is told by its names alone.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from dsv4_shard.errors import BadStack, DuplicateTensor, MixedDialects
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
"""(regular expression, replacement) for names, applied in order."""

NATIVE = "native"
"""The dialect of a checkpoint in its family's own names."""

MAX_UNSTACKED = 1 << 20
"""Tensors that stacks may become; V4-Pro's become 140,544."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A way to name MTP blocks: the prefix before their number, and rules that come before those of layers.

    With `follows` they are numbered on after the layers.
    """

    prefix: str
    follows: bool = False
    rules: Rules = ()


@dataclass(frozen=True, slots=True, eq=False)
class Dialect:
    """What a tool calls tensors. `model` has the rules for names outside of layers, `layer` for those within.

    `stacks` names tensors that hold all experts of a layer, and what of each expert, one below the other. `lost` are
    names that the tool writes by mistake in place of experts' scales. With `f32_norms` it stores the norms of a model
    without quantized experts in F32.
    """

    name: str
    title: str
    model: Rules
    layer: Rules
    layers: str = "model.layers."
    mtp: tuple[Blocks, ...] = ()
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
"""What SGLang's draft model calls what stands beside the block's layer."""

_HF_MODEL: Rules = (*_OUTER, (r"^hc_head_", "model.hc_head_"))

_EITHER_MTP = (Blocks("mtp."), Blocks("model.layers.", follows=True, rules=_FOLLOWING))

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
"""`remap_weight_name_to_dpsk_hf_format` of SGLang 0.5.23, with and without `is_nextn`, and what miles writes."""

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
"""The aliases that the first converter of DeepSeek-V4 still takes from DeepSeek-V3's."""

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
"""`conversion_mapping.py` of Transformers 5.20: what `save_pretrained(save_original_format=False)` writes."""

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
"""Its reversal of that mapping, which comes back to native names below `model.`, but for these."""

DIALECTS: dict[str, tuple[Dialect, ...]] = {V4.name: (SGLANG, HF_V3, TRANSFORMERS, RESAVED)}
"""By family. Where two fit a checkpoint equally well, the first is taken."""

_MARKS = ("model.", "lm_head.", ".experts.")
"""Each dialect has names that begin with one of these, native ones of V4 never do."""


class Stack(NamedTuple):
    """All experts of a layer in one tensor: what of each, as native names with `*` for the expert's number."""

    parts: tuple[str, ...]


class Dictionary:
    """A dialect's names for a model of `layers` layers."""

    def __init__(self, dialect: Dialect, family: Family, config: ModelConfig) -> None:
        self.dialect = dialect
        names, native = family.names(config), family.grammar.prefixes
        self._outer = {_renamed(name, dialect.model): name for name in names.templates(Stage.MODEL)}
        self._layers = config.num_hidden_layers
        self._experts = _renamed(family.grammar.experts, dialect.layer)
        layer_words = {_renamed(name, dialect.layer): name for name in names.templates(Stage.LAYER)}
        if dialect.stacks:
            layer_words = {word: name for word, name in layer_words.items() if EXPERT not in name}
        self._ways = [(Blocks(dialect.layers), native[Stage.LAYER], layer_words)]
        for way in dialect.mtp:
            rules = (*way.rules, *dialect.layer)
            words = {_renamed(name, rules): name for name in names.templates(Stage.MTP)}
            self._ways.append((way, native[Stage.MTP], words))
        self._follows = any(way.follows for way in dialect.mtp)

    def native(self, name: str) -> str | Stack | None:
        """The native name of the tensor called `name`, or what it stacks; None where the dialect has no such name."""
        if name in self._outer:
            return self._outer[name]
        for way, prefix, words in self._ways:
            if not name.startswith(way.prefix):
                continue
            text, _, word = name[len(way.prefix) :].partition(".")
            number = index_of(text)
            if number is None:
                return None
            if way.prefix == self.dialect.layers and self._follows:
                if way.follows is not (number >= self._layers):
                    continue
                number -= self._layers if way.follows else 0
            found = self._in_block(word, words)
            if isinstance(found, Stack):
                return Stack(tuple(f"{prefix}{number}.{part}" for part in found.parts))
            return found and f"{prefix}{number}.{found}"
        return None

    def _in_block(self, word: str, words: Mapping[str, str]) -> str | Stack | None:
        """What is called `word` in a layer or block."""
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


# --- the view ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class View:
    """A checkpoint's tensors under native names; what no dialect knows keeps its own. `dialect` is None if all do.

    `lost` are tensors that stand where the experts' scales should, and are left out.
    """

    tensors: "dict[str, Tensor]"
    dialect: Dialect | None = None
    lost: tuple[str, ...] = ()


def native_view(config: ModelConfig, tensors: "dict[str, Tensor]") -> View:
    """`tensors`, which have their names on disk, under the family's own names.

    Raises MixedDialects where names of two dialects stand beside each other, DuplicateTensor where two names mean one
    tensor, and BadStack where a stacked tensor cannot be taken apart.
    """
    family = family_of(config)
    dialects = DIALECTS.get(family.name, ())
    if not dialects or not any(name.startswith(_MARKS) for name in tensors):
        return View(tensors)
    books = [Dictionary(dialect, family, config) for dialect in dialects]
    book = max(books, key=lambda one: sum(one.native(name) is not None for name in tensors))
    strangers = [name for name in tensors if book.native(name) is None]
    parse = family.names(config).parse
    if sum(parse(name) is not None for name in tensors) >= len(tensors) - len(strangers):
        _refuse_mixing((name for name in tensors if parse(name) is None), books, "DeepSeek's own")
        return View(tensors)
    for name in strangers:
        if parse(name) is not None:
            raise MixedDialects(_mixing(name, "DeepSeek's own", book.dialect.title))
    _refuse_mixing(strangers, [one for one in books if one is not book], book.dialect.title)
    lost = tuple(name for name in strangers if re.fullmatch(book.dialect.lost, name))
    return View(_translated(config, tensors, book, frozenset(lost)), book.dialect, lost)


def _refuse_mixing(strangers: Iterator[str] | list[str], books: list[Dictionary], others: str) -> None:
    """Raise MixedDialects where one of `strangers` to a checkpoint's dialect is of another."""
    for name in strangers:
        for book in books:
            if book.native(name) is not None:
                raise MixedDialects(_mixing(name, book.dialect.title, others))


def _mixing(name: str, one: str, others: str) -> str:
    return f"{short_name(name)} is a name of {one}, most of the others are names of {others}"


def _translated(
    config: ModelConfig, tensors: "dict[str, Tensor]", book: Dictionary, lost: frozenset[str]
) -> "dict[str, Tensor]":
    view: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    for name, tensor in tensors.items():
        if name in lost:
            continue
        found = book.native(name)
        if isinstance(found, Stack):
            if len(view) + config.n_routed_experts * len(found.parts) > MAX_UNSTACKED:
                raise BadStack(
                    f"{short_name(name)}: with it, stacks hold more than {MAX_UNSTACKED:,} tensors of experts"
                )
            views = _unstacked(tensor, found.parts, config)
        else:
            views = iter((tensor._replace(name=found or name),))
        for one in views:
            if one.name in view:
                raise DuplicateTensor(
                    f"{short_name(origins[one.name])} (in {view[one.name].file}) and {short_name(name)} (in "
                    f"{tensor.file}) are both {one.name}"
                )
            view[one.name], origins[one.name] = one, name
    return view


def _unstacked(tensor: "Tensor", parts: tuple[str, ...], config: ModelConfig) -> "Iterator[Tensor]":
    """A tensor for each expert of a stack `[experts, rows, columns]` and each of `parts`, which share its rows.

    Raises BadStack.
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
    """Whether blocks of which a projection has `rows` do not end where it does, so that the next begins within one."""
    size, declared = config.moe_intermediate_size, config.declared_block
    if rows in (0, size):
        return False
    return size % rows != 0 or (declared is not None and size % declared[0] != 0)


def is_transformers_config(config: ModelConfig, document: Mapping[str, object]) -> bool:
    """Whether config.json was written by Transformers 5, which has other keys than DeepSeek-V4's own."""
    return family_of(config) is V4 and "compress_ratios" not in document
