"""Placements + layout → recipe: the destination of each byte of each source tensor.

Every offset is known before the first byte moves. A recipe contains nothing of engines: it has output files with
finished headers, and steps in the order of the source's bytes. A step takes one source tensor, or a weight with its
scale if they are decoded together. For each file it names the rectangle, its offset, the cast and the padding. Tensors
of one kind share one object for their cuts and ranks, because V4-Pro's 140,544 expert tensors make 2.2 million pieces
under MoE TP16.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby
from operator import itemgetter
from typing import NamedTuple

from dsv4_shard.checkpoint import Checkpoint
from dsv4_shard.engines import (
    DRAFT_FOLDER,
    Constant,
    Context,
    Engine,
    Expert,
    Layout,
    LeftOut,
    Pad,
    Placement,
    Replicate,
    Split,
    TargetTensor,
    local_size,
    places_of,
    stages_of,
)
from dsv4_shard.models import NATIVE, Part, Role, Stage, TensorName, scale_name
from dsv4_shard.sharding.file_parts import ROLE_ORDER, FileKey, FileParts, place_of
from dsv4_shard.sharding.recipe import (
    ALL_RANKS,
    Destination,
    Fixed,
    OutputFile,
    Recipe,
    Slice,
    SliceMap,
    Step,
    part_rows,
    readers_name,
)
from dsv4_shard.storage import collector_paused
from dsv4_shard.tensors.decoding import TRANSFORMS
from dsv4_shard.tensors.dtype_casts import CONVERSIONS, Conversion
from dsv4_shard.tensors.geometry import PACKED_FP4, slice_rectangle, split, whole_rectangle
from dsv4_shard.tensors.header import DTYPE_BITS, Tensor, TensorInfo, build_header, nbytes_of

_ORDINARY = {"format": "pt"}
"""Metadata of an ordinary checkpoint file. transformers refuses files without it."""


def make_recipe(
    checkpoint: Checkpoint,
    engine: Engine,
    context: Context,
    ranks: tuple[int, ...],
    *,
    in_parts: bool = True,
    part_nbytes: int | None = None,
) -> Recipe:
    """The recipe for `ranks` of a feasible deployment.

    Large tensors are moved in parts, each of which has its own digest, unless `in_parts` is off. Where the layout's
    files may have parts, each has at most `part_nbytes` of tensors, or one larger tensor; large tensors are aligned.

    Raises ValueError if a placement does not divide. The rules refuse such a deployment earlier.
    """
    if engine.layout is None:
        raise ValueError(f"{engine.name} has no file layout")
    with collector_paused():
        return _Maker(checkpoint, engine, engine.layout, context, ranks, in_parts, part_nbytes).make()


@dataclass(frozen=True, slots=True, eq=False)
class _RankSpread:
    """Each cut with the ranks that get it, and all of these ranks. Equal tensors share one object."""

    cuts: tuple[tuple[Slice, tuple[int, ...]], ...]
    ranks: tuple[int, ...]


_Use = tuple[int, int]
"""A tensor's layer and its role's position in it."""


class _Batch(NamedTuple):
    """Tensors that differ only in their expert, and one of their destinations.

    Attributes:
        where: Role, part, stage and layer of the tensors; the expert is the first one's.
        kept: The target tensor in the layout.
        spread: The cuts and their ranks.
        nbytes: Bytes that each tensor adds to its output tensor on one rank.
        conversion: Cast to the target dtype, if it differs.
        fill: The padding element, in the source's dtype.
        tensors: The source tensors.
        slots: The slots of each expert on the ranks; None for tensors that are no experts.
    """

    where: TensorName
    kept: TargetTensor
    spread: _RankSpread
    nbytes: int
    conversion: Conversion | None
    fill: bytes
    tensors: list[Tensor]
    slots: dict[int, tuple[int, ...]] | None


class _Source(NamedTuple):
    """A source tensor with its batch. `place` = (slot of the expert, order) sorts the sources of one output tensor."""

    place: tuple[int, int]
    tensor: Tensor
    batch: _Batch


class _Output(NamedTuple):
    """Dtype and shape of an output tensor, the runs of its pieces if it has several, and whether these are in pairs."""

    dtype: str
    shape: tuple[int, ...]
    runs: tuple[tuple[int, int], ...] = ()
    paired: bool = False


class _Slots(NamedTuple):
    """Layout of the pieces of several sources in a tensor.

    Attributes:
        places: (offset in bytes, slot) of the first piece of each source.
        runs: Runs of equal pieces as (number, bytes); none if there is one piece.
        nbytes: Bytes of all.
    """

    places: tuple[tuple[int, int], ...]
    runs: tuple[tuple[int, int], ...]
    nbytes: int


class _Maker:
    """Builds one recipe.

    It works layer by layer, so the temporary data stays small. No output tensor has sources in two layers; the MTP
    blocks, which an engine may join, count as one layer.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Engine,
        layout: Layout,
        context: Context,
        ranks: tuple[int, ...],
        in_parts: bool,
        part_nbytes: int | None,
    ) -> None:
        self._checkpoint, self._layout, self._in_parts = checkpoint, layout, in_parts
        self._context, self._ranks, self._wanted = context, ranks, frozenset(ranks)
        self._world = context.deployment.readers(layout.by_node)
        self._each = self._world // context.deployment.pp
        self._shares = layout.shares_files and self._each > 1
        self._everywhere = engine.on_every_stage
        modules = {_module_of(where) for where in context.inventory.names.values()}
        self._placements = {
            (stage, role): engine.place(role, engine.context_of(stage, context)) for stage, role in modules
        }
        self._members: dict[str, list[Tensor]] = {}
        self._mixed: set[str] = set()
        if layout.by_node:
            self._placements = {key: _undivided(placement) for key, placement in self._placements.items()}
            self._look_at_files()
        self._rank_spreads: dict[object, _RankSpread] = {}
        self._spreads: dict[tuple[tuple[int, ...], _RankSpread], SliceMap] = {}
        self._narrowed: dict[tuple[int, tuple[int, int], int, int], SliceMap] = {}
        self._slots: dict[tuple[tuple[int, ...], ...], _Slots] = {}
        self._parts: dict[tuple[int, str, tuple[int, ...]], list[int]] = {}
        self._infos: dict[TensorInfo, TensorInfo] = {}
        self._left_out: dict[str, str] = {}
        self._outputs: dict[FileKey, dict[str, _Output]] = {}
        self._files = FileParts(part_nbytes if layout.has_parts else None)
        self._in_pages = layout.has_parts and part_nbytes is not None

    def make(self) -> Recipe:
        """Number the output files, assemble the output tensors layer by layer, and lay out the files."""
        layers = [list(self._batches(alike)) for _, alike in sorted(self._alike().items(), key=itemgetter(0))]
        constants = [
            (FileKey(constant.folder, rank), constant)
            for constant in self._layout.constants(self._context)
            for rank in self._readers(constant)
        ]
        for batches in layers:
            self._add_sizes(batches)
        for key, constant in constants:
            self._files.add(key, constant.name, len(constant.data))
        self._files.number()
        self._outputs = {key: {} for key in self._files.numbers}
        steps = [step for batches in layers for step in self._steps(batches)]
        del layers
        fixed = tuple(self._fixed(self._files.file_of(key, constant.name), constant) for key, constant in constants)
        # In the order of the source's bytes. Two sorts, because pairs of file and start would take 10 MB.
        steps.sort(key=lambda step: step.source.start)
        steps.sort(key=lambda step: step.source.file)
        return Recipe(tuple(map(self._file, self._files.numbers)), tuple(steps), fixed, self._left_out)

    def _add_sizes(self, batches: list[_Batch]) -> None:
        """Add the bytes of a layer's output tensors to their files."""
        names = self._context.inventory.names
        for batch in batches:
            slots = batch.slots if batch.kept.stacked else None
            copies = len(batch.tensors)
            if slots is not None:
                copies = sum(len(slots[names[tensor.name].expert]) for tensor in batch.tensors)
            for rank in batch.spread.ranks:
                self._files.add(_file_of(batch, rank), _target(batch), batch.nbytes * copies)

    def _fixed(self, key: FileKey, constant: Constant) -> Fixed:
        """The step of a constant. Records its output tensor."""
        self._outputs[key][constant.name] = _Output(constant.dtype, constant.shape)
        return Fixed(self._files.numbers[key], constant.name, constant.data)

    def _look_at_files(self) -> None:
        """Collect each checkpoint file's tensors, and the names of files with experts, which nodes do not share."""
        for name, where in self._context.inventory.names.items():
            tensor = self._checkpoint.tensors[name]
            self._members.setdefault(tensor.file, []).append(tensor)
            if isinstance(self._placements[_module_of(where)], Expert):
                self._mixed.add(tensor.file)

    def _readers(self, constant: Constant) -> tuple[int, ...]:
        """The ranks that get a constant, or ALL_RANKS for the shared file."""
        if constant.rank >= 0:
            return (constant.rank,) if constant.rank in self._wanted else ()
        return (ALL_RANKS,) if self._shares else self._ranks

    def _alike(self) -> dict[tuple[int, int], dict[tuple[_Use, object], list[Tensor]]]:
        """The tensors of each layer, by its place, grouped by their order of use and all that decides where they go.

        Experts of one rank form one group. All MTP blocks have one place.
        """
        layers: dict[tuple[int, int], dict[tuple[_Use, object], list[Tensor]]] = {}
        for name, where in self._context.inventory.names.items():
            tensor = self._checkpoint.tensors[name]
            is_expert = isinstance(self._placements[_module_of(where)], Expert)
            holders = places_of(self._context, where.stage, where.layer).holders[where.expert] if is_expert else ()
            kind = (where.part, tensor.dtype, tensor.shape, tensor.file, holders)
            use = (where.layer, ROLE_ORDER[where.role])
            layers.setdefault(place_of(where), {}).setdefault((use, kind), []).append(tensor)
        return layers

    def _batches(self, alike: dict[tuple[_Use, object], list[Tensor]]) -> Iterator[_Batch]:
        """The batches of a layer: one for each destination of a group, in the order of use.

        Records the tensors that are left out.
        """
        for _, tensors in sorted(alike.items(), key=lambda group: group[0][0]):
            tensor, where = tensors[0], self._context.inventory.names[tensors[0].name]
            fate = self._layout.fate(tensor, where, self._context)
            if isinstance(fate, LeftOut):
                self._left_out |= {one.name: fate.reason for one in tensors}
                continue
            for kept in fate:
                for owners, slots in self._owners(where, kept):
                    spread = self._spread(tensor, where, kept, self._placement(where, kept), owners)
                    if spread.ranks:
                        nbytes = _landed_nbytes(tensor, where, kept, spread)
                        conversion = None if kept.transform else CONVERSIONS.get((tensor.dtype, kept.dtype))
                        fill = kept.fill or bytes(DTYPE_BITS[tensor.dtype] // 8)
                        yield _Batch(where, kept, spread, nbytes, conversion, fill, tensors, slots)

    def _placement(self, where: TensorName, kept: TargetTensor) -> Placement:
        """The placement of a tensor. Scalars of experts are whole, on the ranks of their expert or on all."""
        placement = Replicate() if kept.everywhere else self._placements[_module_of(where)]
        return _undivided(placement) if where.part.is_scalar else placement

    def _owners(self, where: TensorName, kept: TargetTensor) -> list[tuple[range, dict[int, tuple[int, ...]] | None]]:
        """The ranks that hold a tensor: for an expert, those of each EP rank that has it, with the slots there.

        What every rank holds of all experts is in their order.
        """
        stages = [range(first, first + self._each) for first in self._first_ranks(where, kept)]
        if not isinstance(self._placements[_module_of(where)], Expert):
            return [(stage, None) for stage in stages]
        if kept.everywhere:
            experts = range(self._context.config.experts_in(where.stage))
            return [(stage, {expert: (expert,) for expert in experts}) for stage in stages]
        deployment, places = self._context.deployment, places_of(self._context, where.stage, where.layer)
        each, moe_tp = deployment.world // self._world, deployment.moe_tp
        return [
            (stage[rank * moe_tp // each : ((rank + 1) * moe_tp - 1) // each + 1], places.slots[rank])
            for stage in stages
            for rank in places.holders[where.expert]
        ]

    def _first_ranks(self, where: TensorName, kept: TargetTensor) -> list[int]:
        """The first rank of each pipeline stage that holds a tensor; the draft is on the last stage."""
        stage = Stage.MTP if kept.folder == DRAFT_FOLDER else where.stage
        found = stages_of(self._context, stage, where.layer, where.role, self._everywhere)
        return [number * self._each for number in found]

    def _steps(self, batches: list[_Batch]) -> Iterator[Step]:
        """The steps of a layer, one for each source tensor and treatment. Records the output tensors that they make."""
        joined = []
        for batch in batches:
            if batch.kept.name:
                joined.append(batch)
            else:
                yield from self._unjoined(batch)
        arrivals: dict[object, tuple[_Source, list[Destination]]] = {}
        for (_, _, name, _), sources in self._collect(joined).items():
            sources.sort(key=lambda source: source.place)
            slots = self._slots_of(tuple([self._pieces_of(source.batch) for source in sources]))
            self._note([name], _output(sources, slots), self._files_of(sources[0].batch))
            for source, (at, slot) in zip(sources, slots.places, strict=True):
                batch, kept = source.batch, source.batch.kept
                treated = (source.tensor.name, kept.dtype, kept.repeat, kept.fill, kept.transform)
                landing = Destination(name, at, slot, self._spread_over_files(batch))
                arrivals.setdefault(treated, (source, []))[1].append(landing)
        for source, landings in arrivals.values():
            yield from self._in_steps(source.tensor, source.batch, tuple(landings))

    def _unjoined(self, batch: _Batch) -> Iterator[Step]:
        """The steps of tensors that are the only source of their output tensor."""
        kept = batch.kept
        output = _output([_Source((0, 0), batch.tensors[0], batch)], self._slots_of((self._pieces_of(batch),)))
        names = [self._name_alone(tensor, kept) for tensor in batch.tensors]
        self._note(names, output, self._files_of(batch))
        spread = self._spread_over_files(batch)
        for tensor, name in zip(batch.tensors, names, strict=True):
            yield from self._in_steps(tensor, batch, (Destination(name, 0, 0, spread),))

    def _name_alone(self, tensor: Tensor, kept: TargetTensor) -> str:
        """The output name of a tensor that is not joined with others."""
        return kept.names.unparse(self._context.inventory.names[tensor.name]) if kept.names else tensor.name

    def _note(self, names: list[str], output: _Output, keys: list[FileKey]) -> None:
        """Add `output` to the files of `keys` under each of `names`."""
        for key in keys:
            there = self._outputs[key]
            for name in names:
                if there.setdefault(name, output) is not output:
                    raise ValueError(f"{name}: put together twice for rank {key.rank}")

    def _collect(self, batches: list[_Batch]) -> dict[tuple[str, str, str, tuple[int, ...]], list[_Source]]:
        """The sources of a layer's output tensors, by (folder, file, name, ranks).

        Under EP, ranks have different experts.
        """
        names = self._context.inventory.names
        outputs: dict[tuple[str, str, str, tuple[int, ...]], list[_Source]] = {}
        for batch in batches:
            kept, ranks = batch.kept, batch.spread.ranks
            for tensor in batch.tensors:
                sources = outputs.setdefault((kept.folder, kept.file, kept.name, ranks), [])
                slots = batch.slots if kept.stacked else None
                for slot in (0,) if slots is None else slots[names[tensor.name].expert]:
                    sources.append(_Source((slot, kept.order), tensor, batch))
        return outputs

    def _part_rows(self, batch: _Batch, cut: Slice) -> list[int]:
        """The rows of each part in which a cut is moved. Scales, and rows that are repeated, stay together."""
        tensor = batch.tensors[0]
        if not self._in_parts or batch.kept.repeat > 1 or batch.where.part is not Part.WEIGHT:
            return [cut.rows]
        key = (cut.rows, tensor.dtype, tensor.shape)
        if key not in self._parts:
            self._parts[key] = part_rows(*key)
        return self._parts[key]

    def _pieces_of(self, batch: _Batch) -> tuple[int, ...]:
        """Bytes of each piece that a tensor of the batch adds to its output tensor on one rank."""
        cut = batch.spread.cuts[0][0]
        parts = self._part_rows(batch, cut)
        return tuple([rows * (batch.nbytes // cut.rows) for rows in parts]) if len(parts) > 1 else (batch.nbytes,)

    def _slots_of(self, sizes: tuple[tuple[int, ...], ...]) -> _Slots:
        """Layout of the pieces of several sources, one after the other. Equal sizes share one object."""
        if sizes not in self._slots:
            flat = [nbytes for pieces in sizes for nbytes in pieces]
            starts = [0, *accumulate(flat)]
            firsts = [0, *accumulate(map(len, sizes))][:-1]
            runs = tuple((len(list(run)), nbytes) for nbytes, run in groupby(flat)) if len(flat) > 1 else ()
            self._slots[sizes] = _Slots(tuple((starts[first], first) for first in firsts), runs, starts[-1])
        return self._slots[sizes]

    def _in_steps(self, tensor: Tensor, batch: _Batch, landings: tuple[Destination, ...]) -> Iterator[Step]:
        """The step of a tensor, or one for each part of the rows of its cuts."""
        cut = landings[0].spread[0][0]
        if len(self._part_rows(batch, cut)) == 1:
            yield self._step(tensor, batch, landings)
            return
        parts: dict[tuple[int, int], list[Destination]] = {}
        for landing in landings:
            for rows, part in self._in_parts_of(landing, batch):
                parts.setdefault(rows, []).append(part)
        for number, rows in enumerate(sorted(parts)):
            yield self._step(tensor, batch, tuple(parts[rows]), number)

    def _in_parts_of(self, landing: Destination, batch: _Batch) -> Iterator[tuple[tuple[int, int], Destination]]:
        """The parts of a landing, each with its rows of the source. Cuts of the same rows stay together."""
        alike: dict[tuple[int, int], list[tuple[Slice, tuple[int, ...]]]] = {}
        for cut, files in landing.spread:
            alike.setdefault((cut.rectangle.row_start, cut.rectangle.row_stop), []).append((cut, files))
        row_nbytes = batch.nbytes // max(1, landing.spread[0][0].rows)
        for rows, cuts in alike.items():
            start = 0
            for number, count in enumerate(self._part_rows(batch, cuts[0][0])):
                spread = self._narrow(landing.spread, rows, start, start + count)
                area = spread[0][0].rectangle
                place = Destination(landing.tensor, landing.at + start * row_nbytes, landing.slot + number, spread)
                yield (area.row_start, area.row_stop), place
                start += count

    def _narrow(self, spread: SliceMap, rows: tuple[int, int], start: int, stop: int) -> SliceMap:
        """Rows `[start, stop)` of each cut that has the source's `rows`. Parts of equal tensors share one object."""
        key = (id(spread), rows, start, stop)  # self._spreads holds it, so that its id is not used again
        if key not in self._narrowed:
            self._narrowed[key] = tuple(
                (cut.part(start, stop), files)
                for cut, files in spread
                if (cut.rectangle.row_start, cut.rectangle.row_stop) == rows
            )
        return self._narrowed[key]

    def _files_of(self, batch: _Batch) -> list[FileKey]:
        """The files that a batch goes to, one for each rank of its spread."""
        target = _target(batch)
        return [self._files.file_of(_file_of(batch, rank), target) for rank in batch.spread.ranks]

    def _spread_over_files(self, batch: _Batch) -> SliceMap:
        """A batch's spread with file numbers in place of ranks. Equal batches share one object."""
        files = tuple([self._files.numbers[key] for key in self._files_of(batch)])
        key = (files, batch.spread)
        if key not in self._spreads:
            number = dict(zip(batch.spread.ranks, files, strict=True))
            self._spreads[key] = tuple((cut, tuple(number[rank] for rank in ranks)) for cut, ranks in batch.spread.cuts)
        return self._spreads[key]

    def _spread(
        self, tensor: Tensor, where: TensorName, kept: TargetTensor, placement: Placement, owners: range
    ) -> _RankSpread:
        """The cuts of `tensor` and their ranks among `owners`. Equal tensors share one object."""
        shares = self._shares and not isinstance(placement, Expert) and _original(kept.file) not in self._mixed
        key = (tensor.dtype, tensor.shape, where.role, where.part, kept.repeat, owners, shares)
        if key not in self._rank_spreads:
            self._rank_spreads[key] = self._new_spread(tensor, where, kept, placement, owners, shares)
        return self._rank_spreads[key]

    def _new_spread(
        self, tensor: Tensor, where: TensorName, kept: TargetTensor, placement: Placement, owners: range, shares: bool
    ) -> _RankSpread:
        """Compute the cuts of `tensor` and their ranks.

        Args:
            tensor: A source tensor of the kind.
            where: Its role and part.
            kept: The target tensor.
            placement: How the engine places its role.
            owners: The ranks that hold it.
            shares: Whether a replicated tensor goes into the file of all ranks.
        """
        shape = tuple(size * kept.repeat for size in tensor.shape)
        inner = placement.inner if isinstance(placement, Expert) else placement
        whole = Slice(whole_rectangle(tensor.dtype, shape))
        ranks = tuple(rank for rank in owners if rank in self._wanted)
        sharers = (ALL_RANKS - owners.start // self._each,) if ranks else ()
        if isinstance(inner, Replicate):
            ranks = sharers if shares else ranks
            return _RankSpread(((whole, ranks),), ranks)
        assert isinstance(inner, Split | Pad), "no engine with files has unequal parts"
        parts = self._context.deployment.group(inner.group)
        each = _elements_each(tensor, where, inner.axis, self._context)
        alone = parts == 1 and _cut(tensor, shape, inner, 1, 0, each) == whole
        if alone and shares:
            return _RankSpread(((whole, sharers),), sharers)
        by_index: dict[int, tuple[int, ...]] = {}
        for rank in ranks:
            by_index[rank % parts] = (*by_index.get(rank % parts, ()), rank)
        cuts = tuple((_cut(tensor, shape, inner, parts, index, each), some) for index, some in by_index.items())
        return _RankSpread(cuts, ranks)

    def _file(self, key: FileKey) -> OutputFile:
        """Lay out an output file, and release its temporary data."""
        outputs = self._outputs[key]
        is_shared = key.rank <= ALL_RANKS
        stage = range((ALL_RANKS - key.rank) * self._each, (ALL_RANKS - key.rank + 1) * self._each)
        readers = tuple(rank for rank in self._ranks if rank in stage) if is_shared else (key.rank,)
        names = []
        for rank in readers:
            own = self._files.count(FileKey(key.folder, rank)) if is_shared else 0
            name = self._layout.file_name(rank, own + key.part, self._context.deployment)
            names.append(key.folder + name + key.file)
        source = _original(key.file) if self._is_whole(key) else ""
        if source:
            header, tensors = _header_of(self._checkpoint, source, self._members[source])
        else:
            kinds = {name: (output.dtype, output.shape) for name, output in outputs.items()}
            header, tensors = build_header(kinds, self._metadata(key), in_pages=self._in_pages)
            # Files of different ranks have mostly equal entries: equal ones share one object.
            tensors = {name: self._infos.setdefault(info, info) for name, info in tensors.items()}
        pieces = {name: output.runs for name, output in outputs.items() if output.runs}
        paired = frozenset(name for name, output in outputs.items() if output.paired)
        outputs.clear()
        return OutputFile(names[0], readers, header, tensors, pieces, tuple(names[1:]), source, paired)

    def _is_whole(self, key: FileKey) -> bool:
        """Whether an output file has all tensors of the checkpoint file of that name, unchanged, names included."""
        if self._checkpoint.dialect != NATIVE:
            return False
        there = {
            tensor.name: _Output(tensor.dtype, tensor.shape) for tensor in self._members.get(_original(key.file), ())
        }
        return bool(key.file) and there == {n: output._replace(runs=()) for n, output in self._outputs[key].items()}

    def _metadata(self, key: FileKey) -> dict[str, str]:
        """The metadata of a file's header. A rank's file names the target that it was made for."""
        identity = self._layout.identity(self._context)
        if key.file or not identity:
            return _ORDINARY if key.file else {}
        if key.rank > ALL_RANKS:
            return identity | {"rank": str(key.rank)}
        stage = ALL_RANKS - key.rank if self._context.deployment.pp > 1 else None
        return identity | {"rank": readers_name(stage)}

    def _step(self, tensor: Tensor, batch: _Batch, landings: tuple[Destination, ...], part: int = 0) -> Step:
        if batch.kept.transform is not None:
            is_weight = batch.where.part is Part.WEIGHT
            scale = self._checkpoint.tensors[scale_name(tensor.name)] if is_weight else None
            return Step(tensor, landings, transform=TRANSFORMS[batch.kept.transform], scale=scale, part=part)
        return Step(tensor, landings, batch.conversion, batch.kept.repeat, batch.fill, part=part)


def _module_of(where: TensorName) -> tuple[Stage, Role]:
    """The role of a tensor, and whether it is of the draft model (MTP) or of the target, whose stages are alike."""
    return (Stage.MTP if where.stage is Stage.MTP else Stage.LAYER), where.role


def _original(file: str) -> str:
    """The checkpoint's file with the tensors of a file; a draft's is in a folder of its own."""
    return file.removeprefix(DRAFT_FOLDER)


def _file_of(batch: _Batch, rank: int) -> FileKey:
    """The file that a batch goes to on a rank, without the part."""
    return FileKey(batch.kept.folder, rank, batch.kept.file)


def _target(batch: _Batch) -> Hashable:
    """Identifies the output tensor of a batch, or its output tensors if it is not joined with others."""
    return batch.kept.name or id(batch)


def _undivided(placement: Placement) -> Placement:
    """The placement for whole tensors: experts keep their ranks, everything else is replicated."""
    return Expert(Replicate()) if isinstance(placement, Expert) else Replicate()


def _header_of(checkpoint: Checkpoint, file: str, tensors: list[Tensor]) -> tuple[bytes, dict[str, TensorInfo]]:
    """The header of a checkpoint file, byte for byte, and the places of its tensors."""
    begin = min(tensor.start for tensor in tensors)
    with checkpoint.source.open(file) as opened:
        header = opened.read(0, begin)
    places = sorted(tensors, key=lambda tensor: tensor.start)
    return header, {t.name: TensorInfo(t.dtype, t.shape, t.start - begin, t.stop - begin) for t in places}


def _elements_each(tensor: Tensor, where: TensorName, axis: int, context: Context) -> int:
    """Weight elements per stored element along `axis`: the block size for a scale, 2 for packed FP4."""
    if where.part in (Part.SCALE, Part.GROUP_SCALE):
        return context.block(where.role, where.stage)[axis]
    return 2 if axis == 1 and tensor.dtype in PACKED_FP4 else 1


def _cut(tensor: Tensor, shape: tuple[int, ...], placement: Split | Pad, parts: int, index: int, each: int) -> Slice:
    """Part `index` of `parts` along the placement's axis, with its padding. For `each` see `_elements_each`."""
    axis, size = placement.axis, shape[placement.axis]
    local = local_size(size, placement, parts, each)
    if isinstance(placement, Pad):
        start, stop = min(index * local, size), min((index + 1) * local, size)
    else:
        start, stop = split(size, parts, index)
    area = slice_rectangle(tensor.dtype, shape, axis, start, stop)
    pad = local - (stop - start)
    return Slice(area, pad_rows=pad) if axis == 0 else Slice(area, pad_cols=pad * DTYPE_BITS[tensor.dtype] // 8)


def _converted_nbytes(tensor: Tensor, kept: TargetTensor, nbytes: int) -> int:
    """Bytes of `nbytes` of the source after the cast to the target dtype."""
    conversion = CONVERSIONS.get((tensor.dtype, kept.dtype))
    return conversion.nbytes(nbytes) if conversion else nbytes


def _landed_nbytes(tensor: Tensor, where: TensorName, kept: TargetTensor, spread: _RankSpread) -> int:
    """Bytes that a source adds to its output tensor on one rank."""
    cut = spread.cuts[0][0]
    if kept.transform is None:
        return _converted_nbytes(tensor, kept, cut.rows * cut.row_nbytes)
    rows, cols = _transformed_shape(tensor, where, kept, cut.rows)
    return rows * cols * DTYPE_BITS[kept.dtype] // 8


def _transformed_shape(tensor: Tensor, where: TensorName, kept: TargetTensor, rows: int) -> tuple[int, int]:
    """Shape of a decoded weight, or of its new scale, with `rows` rows of the source."""
    transform = TRANSFORMS[kept.transform or ""]
    shape = (rows, tensor.shape[1])
    return transform.weight_shape(shape) if where.part is Part.WEIGHT else transform.scale_shape(shape)


def _output(sources: list[_Source], slots: _Slots) -> _Output:
    """The output tensor that `sources` form on one rank."""
    dtype, shape = sources[0].batch.kept.dtype, _output_shape(sources)
    if slots.nbytes != nbytes_of(dtype, shape):
        raise ValueError(f"{sources[0].tensor.name}: {slots.nbytes} bytes land in {dtype} {list(shape)}")
    return _Output(dtype, shape, slots.runs, sources[0].batch.kept.paired)


def _output_shape(sources: list[_Source]) -> tuple[int, ...]:
    """Shape of the output tensor that `sources` form on one rank."""
    _, tensor, first = sources[0]
    kept, cut = first.kept, first.spread.cuts[0][0]
    rows = sum(source.batch.spread.cuts[0][0].rows for source in sources)
    if not tensor.shape:
        return _stacked_scalars(sources) if kept.stacked else ()
    if len(tensor.shape) < 2:
        return (rows,)
    if kept.transform is not None:
        return _transformed_shape(tensor, first.where, kept, rows)
    cols = _converted_nbytes(tensor, kept, cut.row_nbytes) * 8 // DTYPE_BITS[kept.dtype]
    if not kept.stacked:
        return (rows, cols)
    experts = len({source.place[0] for source in sources})
    return (experts, rows // experts, cols)


def _stacked_scalars(sources: list[_Source]) -> tuple[int, ...]:
    """Shape of the scalars of experts: a row for each expert if it has several."""
    experts = len({source.place[0] for source in sources})
    each = len(sources) // experts
    return (experts, each) if each > 1 else (experts,)
