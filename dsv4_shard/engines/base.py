"""What an engine is to the plan: rules, placements, and how it is launched, as data.

A *rule* is a condition that the engine's code puts on a module, with its arithmetic. Most say that a size must fall
into equal parts, and each part into whole units; `Divides` is that sentence. A rule that the engine itself does not
check is marked by an empty `quote`: there the tool is the only one who warns.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from dsv4_shard.catalog.gpus import GPUS, Gpu
from dsv4_shard.checkpoint.formats import PACKED, Format
from dsv4_shard.checkpoint.inventory import Group, Inventory
from dsv4_shard.models.family import Family, ModelConfig
from dsv4_shard.models.names import Names
from dsv4_shard.models.roles import Module, Part, Role, TensorName
from dsv4_shard.models.v3 import V3Config
from dsv4_shard.models.v4 import V4Config
from dsv4_shard.tensors.geometry import Block
from dsv4_shard.tensors.header import DTYPE_BITS, Tensor
from dsv4_shard.text.units import quotient

ASSUMED_GPU = GPUS["h200"]
"""Stands for Hopper where no GPU is named; its memory is then not looked at."""

ANY_ENGINE = "for any engine"
"""Stands for an engine's version where no engine is claimed; then there is no GPU to name either."""


# --- what is asked for, and what it resolves to --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """The parallelism and options that a user asks for; None leaves the choice to the engine."""

    tp: int
    ep: int | None = None
    dp: int = 1
    engine: str = "sglang"
    runner: str | None = None
    a2a: str | None = None
    shared: str = "auto"
    gpu: str | None = None
    nodes: int | None = None
    expert_dtype: str | None = None
    engine_version: str | None = None
    gpu_memory: str | None = None

    @property
    def names_gpu(self) -> bool:
        """Whether a GPU's memory is known, and to be looked at."""
        return self.gpu is not None or self.gpu_memory is not None


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
    at: Deployment

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
        return self.at.ep * self.at.moe_tp

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


# --- rules ---------------------------------------------------------------------------------------------------------

UNCLAIMED = "nothing is claimed of it"
"""The consequence of a rule that breaks where nothing is known: neither that it runs nor that it does not."""

REFUSED = "{engine} refuses it"

NO_OPTION = "{engine} has no such option"

SILENT = "{engine} does not say so: "
"""Consequences, in which `engine` is what it is called: it ends with an error, be its words known or not; it cannot be
asked; it starts, and what then becomes of it."""

BREAKS_TOO = "breaks as well: {engine} has stopped by then"
"""Of a rule beside the one at which the engine stops: what would come of it alone does not come."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """A way out that is an option of this tool.

    `words` say it in general; `tries` are the requests that take it, the likeliest first; `said`, a template over
    `asked`, says it of the one that helps (empty: `words`).
    """

    words: str
    tries: Callable[[Request], Iterable[Request]]
    said: str = ""

    def say(self, asked: Request) -> str:
        """What it is for the request that helps."""
        return (self.said or self.words).format(asked=asked, attention_tp=asked.tp // asked.dp)


Remedies = tuple[Remedy | str, ...]
"""Ways out; those that are no option of this tool are words alone."""


@dataclass(frozen=True, slots=True)
class Breach:
    """A rule that a deployment breaks.

    `reason` is the arithmetic. `quote` is what the engine itself prints, None where it prints nothing, its words are
    not known, or it has stopped at another rule; `consequence` says which. `remedies` are ways out, of which not each
    helps every deployment.
    """

    rule: str
    module: Module
    reason: str
    quote: str | None
    consequence: str
    remedies: Remedies

    @property
    def stops(self) -> bool:
        """Whether the engine ends here, with an error; else it starts, or nothing is claimed of it."""
        return self.quote is not None or self.consequence == REFUSED

    @property
    def unknown(self) -> bool:
        """Whether it says that nothing is known, and not that it does not run."""
        return self.consequence == UNCLAIMED


def _always(_: Context) -> bool:
    return True


def _one(_: Context) -> int:
    return 1


Words = str | Callable[[Context], str | None] | None
"""A template, or a function that picks one for a deployment."""


def _pick(words: Words, context: Context) -> str | None:
    return words(context) if callable(words) else words


@dataclass(frozen=True, slots=True)
class Shows:
    """How a breach shows.

    `quote` is what the engine prints: a template over `size`, `parts`, `part`, `unit` and `context`, or a function that
    picks one of `quotes`; None where it prints nothing, or its words are not known, and `consequence` says which.
    `heard` are other messages by which it shows: those of other versions, and of checks before and after it.
    """

    quote: Words = None
    consequence: str = REFUSED
    remedies: Remedies = ()
    heard: tuple[str, ...] = ()
    quotes: tuple[str, ...] = ()

    @property
    def messages(self) -> tuple[str, ...]:
        """Every template by which the breach shows."""
        return (*((self.quote,) if isinstance(self.quote, str) else self.quotes), *self.heard)

    def says(self, template: str, context: Context) -> bool:
        """Whether `template` is of this breach in a deployment."""
        return template in self.heard or template == _pick(self.quote, context)


@dataclass(frozen=True, slots=True)
class Divides:
    """`size / parts` must be whole and a multiple of `unit`.

    `size_name`, `parts_name` and `unit_name` are the words of the arithmetic. It breaks in two ways that have nothing
    else in common: `uneven` is how it shows where the parts are not whole, `cut` where they are, and cut a unit. A
    `fatal` rule is one without which the later ones make no sense.
    """

    name: str
    module: Module
    size: Callable[[Context], int]
    size_name: str
    parts: Callable[[Context], int]
    parts_name: str
    unit: Callable[[Context], int] = _one
    unit_name: Words = ""
    uneven: Shows = Shows()
    cut: Shows = Shows()
    when: Callable[[Context], bool] = _always
    fatal: bool = False

    @property
    def messages(self) -> tuple[str, ...]:
        """Every template by which the rule shows."""
        return (*self.cut.messages, *self.uneven.messages)

    def unit_word(self, context: Context) -> str:
        """What the units are called, in the plural; empty where they are single elements."""
        return _pick(self.unit_name, context) or ""

    def explain(self, context: Context) -> str | None:
        """The arithmetic in words, or None where the rule does not apply."""
        if not self.when(context):
            return None
        size, parts, unit = self.size(context), self.parts(context), self.unit(context)
        part, rest = divmod(size, parts)
        head = f"{self.size_name} {size} / {self.parts_name} {parts} = "
        if rest:
            return f"{head}{quotient(size, parts)}: not whole"
        if unit == 1:
            return f"{head}{part}"
        return f"{head}{part}, which is {quotient(part, unit)} {self.unit_word(context)} of {unit}"

    def shows(self, context: Context) -> Shows | None:
        """How it breaks, or None where the rule holds or does not apply."""
        if not self.when(context):
            return None
        part, rest = divmod(self.size(context), self.parts(context))
        if rest:
            return self.uneven
        return self.cut if part % self.unit(context) else None

    def check(self, context: Context) -> Breach | None:
        """Breach with the numbers, or None where the rule holds or does not apply."""
        shows, reason = self.shows(context), self.explain(context)
        if shows is None or reason is None:
            return None
        size, parts, unit = self.size(context), self.parts(context), self.unit(context)
        words, numbers = (
            _pick(shows.quote, context),
            {"size": size, "parts": parts, "part": size // parts, "unit": unit},
        )
        quote = words.format(**numbers, context=context) if words else None
        consequence = shows.consequence.format(**numbers, engine="{engine}")
        return Breach(self.name, self.module, reason, quote, consequence, shows.remedies)


@dataclass(frozen=True, slots=True)
class Requires:
    """A condition that is not a division. `reason` and `quote` are templates over `at` (the deployment).

    The rest is as in `Shows`.
    """

    name: str
    module: Module
    holds: Callable[[Context], bool]
    reason: str
    quote: str | None = None
    consequence: str = REFUSED
    remedies: Remedies = ()
    fatal: bool = False
    heard: tuple[str, ...] = ()

    @property
    def messages(self) -> tuple[str, ...]:
        """Every template by which the rule shows."""
        return tuple(words for words in (self.quote, *self.heard) if words)

    def explain(self, context: Context) -> str | None:
        """None: there is no arithmetic in it."""
        return None

    def check(self, context: Context) -> Breach | None:
        """Breach, or None where the condition holds."""
        if self.holds(context):
            return None
        words = {"at": context.at, "config": context.config, "context": context}
        quote = self.quote.format(**words) if self.quote else None
        return Breach(self.name, self.module, self.reason.format(**words), quote, self.consequence, self.remedies)


Rule = Divides | Requires

# --- placements ----------------------------------------------------------------------------------------------------


AXIS_NAMES = ("rows", "columns")

GROUP_NAMES = {"tp": "TP", "attention": "attention TP", "moe": "MoE TP", "shared": "a TP subgroup"}


@dataclass(frozen=True, slots=True)
class Replicate:
    """The whole tensor on every rank."""

    def __str__(self) -> str:
        return "whole on every rank"


@dataclass(frozen=True, slots=True)
class Split:
    """Equal parts along `axis` over the ranks of `group`, each filled up to a multiple of `fill_to` elements."""

    axis: int
    group: str
    fill_to: int = 1

    def __str__(self) -> str:
        filled = f", filled up to {self.fill_to}" if self.fill_to > 1 else ""
        return f"{AXIS_NAMES[self.axis]} over {GROUP_NAMES[self.group]}{filled}"


@dataclass(frozen=True, slots=True)
class Pad:
    """Whole units of `unit` elements along `axis`, `ceil(units / ranks)` on each rank of `group`; zeros at the end."""

    axis: int
    group: str
    unit: int

    def __str__(self) -> str:
        how = f"padded to {self.unit}" if self.unit > 1 else "rounded up"
        return f"{AXIS_NAMES[self.axis]} over {GROUP_NAMES[self.group]}, {how}"


@dataclass(frozen=True, slots=True)
class Expert:
    """Routed experts: a contiguous block of experts for each EP rank, and `inner` over the MoE-TP ranks."""

    inner: "Replicate | Split | Pad"

    def __str__(self) -> str:
        return "experts over EP" if isinstance(self.inner, Replicate) else f"experts over EP, {self.inner}"


Placement = Replicate | Split | Pad | Expert


@dataclass(frozen=True, slots=True)
class Held:
    """How a rank holds a tensor: dtype (FP4 for packed FP4), shape in elements, bytes, and how many are padding."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    padding: int = 0


# --- output layouts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A source tensor that no rank gets, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a source tensor goes in the rank files, and what is done to it on the way.

    It becomes (a part of) the tensor `name` in `folder`; empty: its own name, alone. Several tensors of one name are
    joined along their rows, by ascending `order`; with `stacked`, the experts come first, one after the other along a
    new first axis. A `dtype` other than the source's is an elementwise conversion where there is one (`conversions`),
    else the same bytes under another name; `transform` names a decoding together with the scale. `repeat` repeats each
    scale for blocks cut finer. `fill` is one element of the source's dtype, with which padding is filled (empty:
    zeros). `file` is the file that it stands in, for layouts whose ranks have files of many names (empty: as
    `Layout.file_name` says). `names` are those that tensors are called by which go alone (None: their own).
    """

    name: str
    dtype: str
    folder: str = ""
    order: int = 0
    stacked: bool = False
    transform: str | None = None
    repeat: int = 1
    fill: bytes = b""
    file: str = ""
    names: Names | None = None


Fate = tuple[Kept, ...] | LeftOut


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that the engine wants in its files and no checkpoint has: of one rank, or of all (`rank` -1)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes
    folder: str = ""
    rank: int = -1


class Layout(Protocol):
    """The files that an engine reads: names, and what becomes of each tensor of the checkpoint."""

    name: str
    shares_files: bool
    """Whether a rank may have several files, so that what all ranks share is written once and linked."""
    by_node: bool
    """Whether the files are those of a node: a rank is then a node and has a folder, and tensors stay whole."""

    def file_name(self, rank: int, part: int, at: Deployment) -> str:
        """Name of a rank's file; part 0 is its own, part 1 what it shares with all others. By node: its folder."""
        ...

    def refusal(self, context: Context) -> str | None:
        """Why no files can be written for a deployment that runs; None where they can."""
        ...

    def fate(self, tensor: Tensor, name: TensorName, context: Context) -> Fate:
        """What becomes of `tensor`: one answer for all that differ only in their expert's number."""
        ...

    def constants(self, context: Context) -> tuple[Constant, ...]:
        """Tensors that are in no checkpoint."""
        ...

    def identity(self, context: Context) -> dict[str, str]:
        """What the files were made for, as far as shapes cannot tell; also in every file's header, if not empty.

        Files that tensors name (`Kept.file`) are ordinary files of a checkpoint, and their headers say nothing of it.
        """
        ...

    def companions(self, document: dict[str, object], context: Context) -> dict[str, bytes]:
        """Files beside the ranks' that the engine reads: name → content. By node: in each node's folder."""
        ...

    def copied(self, context: Context) -> dict[str, str]:
        """Small files that are copied where they exist: name in the output → name in the checkpoint.

        By node: into each node's folder.
        """
        ...


# --- engines -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start the engine: environment, one command a node, and files (name → text) that the commands name.

    `draft_options` are added to the commands to use the MTP draft model.
    """

    environment: dict[str, str]
    commands: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)
    draft_options: str = ""


def _no_notes(_: Context) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine as rules, and functions that turn requests and roles into what it does with them.

    `candidates` turns a request into deployments, the engine's own choices first; `place` gives a role's placement;
    `hold` says how a rank holds one tensor of a group; `launch` is how to start it on a path, which is that of shards
    or of the checkpoint (its last argument); `addition` is how the shared expert's output joins the sum;
    `notes` is what else a user of the deployment should know. `others` are rules of other versions, by whose messages
    logs are explained; no plan asks them.
    """

    name: str
    title: str
    version: str
    candidates: Callable[[Inventory, Request], Iterator[Deployment]]
    rules: tuple[Rule, ...]
    place: Callable[[Role, Context], Placement]
    hold: Callable[[Group, Placement, Context], Held | None]
    launch: Callable[[Context, str, bool], Launch]
    addition: Callable[[Context], str]
    notes: Callable[[Context], tuple[str, ...]] = _no_notes
    layout: Layout | None = None
    others: tuple[Rule, ...] = ()

    def held(self, group: Group, context: Context) -> Held | None:
        """How a rank holds one tensor of `group`, or None where no rank gets it."""
        return self.hold(group, self.place(group.role, context), context)

    def breaches(self, context: Context) -> list[Breach]:
        """Every rule that breaks, in the order in which the engine would meet them, but first the one where it stops.

        Of the others only the arithmetic is told then, and the ways out: the engine does not come to what it says or
        does there.
        """
        found: list[Breach] = []
        for rule in self.rules:
            breach = rule.check(context)
            if breach is not None:
                found.append(breach)
                if rule.fatal:
                    break
        stop = next((breach for breach in found if breach.stops), None)
        if stop is not None:
            others = (breach for breach in found if breach is not stop)
            found = [stop, *(replace(breach, quote=None, consequence=BREAKS_TOO) for breach in others)]
        return [replace(breach, consequence=breach.consequence.format(engine=self.title)) for breach in found]


def say_placement(placement: Placement, group: Group, held: Held, at: Deployment) -> str:
    """How the ranks hold a tensor of `group`, in words. Of a cut over one rank nothing is left, of experts spread over
    one rank only the cut within them."""
    if isinstance(placement, Expert) and at.ep == 1:
        placement = placement.inner
    whole = held.shape == group.shape and not isinstance(placement, Expert)
    return str(Replicate() if whole else placement)


def local_size(size: int, placement: Split | Pad, parts: int, block: int) -> int:
    """Elements of a rank along the axis that `placement` cuts `size` on, padding included.

    `block` is 1 for weights, and the block's size on that axis for scales, whose units are that much larger. Raises
    ValueError where a Split does not divide: the rules must have refused that.
    """
    if isinstance(placement, Pad):
        unit = max(1, placement.unit // block)
        return -(-size // (unit * parts)) * unit
    if size % parts:
        raise ValueError(f"{size} does not divide by {parts}")
    unit = max(1, placement.fill_to // block)
    return -(-(size // parts) // unit) * unit


def held_by_rank(group: Group, placement: Placement, context: Context, dtype: str | None = None) -> Held:
    """How a rank holds one tensor of `group` under `placement`, converted to `dtype` if given. Raises as local_size."""
    shape, padded = list(group.shape), 1.0
    inner = placement.inner if isinstance(placement, Expert) else placement
    if isinstance(inner, Split | Pad):
        axis, parts = inner.axis, context.at.group(inner.group)
        block = context.block(group.role)[axis] if group.part is Part.SCALE else 1
        local = local_size(shape[axis], inner, parts, block)
        padded = local * parts / shape[axis]
        shape[axis] = local
    elements = math.prod(shape)
    nbytes = elements * element_bits(group, dtype) // 8
    fmt = context.inventory.format(group.role, group.stage)
    packed = fmt is not None and fmt.name in PACKED and group.part is Part.WEIGHT
    shown = dtype or (fmt.name if fmt and packed else group.dtype)
    return Held(shown, tuple(shape), nbytes, round(nbytes * (1 - 1 / padded)))


def element_bits(group: Group, dtype: str | None) -> int:
    """Bits of one element of `group` when held as `dtype` (None: as stored)."""
    if dtype is not None:
        return 4 if dtype == "FP4" else DTYPE_BITS[dtype]
    elements = math.prod(group.shape)
    return group.nbytes * 8 // elements if elements else 0


UNKNOWN_FAMILY = "family"

UNKNOWN_GPU = "gpu"
"""Rules that break for a family or on a GPU of which nothing is known."""


def unknown_to(engine: Engine, family: Family) -> Engine:
    """`engine` where its classes for a family were never held against it: it has one rule, which always breaks."""
    known = Requires(
        UNKNOWN_FAMILY, Module.DEPLOYMENT, lambda _: False,
        f"what {engine.title} {engine.version} does with {family.title} was never held against its own classes",
        consequence=UNCLAIMED, fatal=True,
        remedies=("--engine node or reference, where they know the family",),
    )  # fmt: skip
    return replace(engine, rules=(known,), place=lambda role, context: Replicate(), notes=_no_notes, layout=None)
