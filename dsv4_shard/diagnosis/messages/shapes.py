"""Messages of two shapes that do not match: which tensor has both, under two dtypes or two numbers of ranks."""

import re
from collections.abc import Iterable, Iterator

from dsv4_shard.diagnosis.messages.experts import EXPERT_DTYPE
from dsv4_shard.diagnosis.messages.message import INSPECT, Evidence, Message, by_engine, say
from dsv4_shard.diagnosis.origin import LOADING, SERVING
from dsv4_shard.diagnosis.tensor_shapes import FP8, Pair, pairs
from dsv4_shard.engines import BOTH, PRESHARDED, RUNAI_SHARDED, SGLANG, SHARDED_STATE, VLLM
from dsv4_shard.models import Module, Part

_SHOWN = 3

_RANK_FILES = (SHARDED_STATE, RUNAI_SHARDED, PRESHARDED)
"""Loaders of files that were cut for one TP."""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _sides(evidence: Evidence) -> tuple[tuple[int, ...], tuple[int, ...], int | None]:
    """The engine's shape, the files' shape, and the axis."""
    groups = evidence.groups
    axis = int(groups["axis"]) if groups.get("axis") else None
    return _numbers(groups["mine"]), _numbers(groups["theirs"]), axis


def _found(evidence: Evidence) -> list[Pair]:
    mine, theirs, axis = _sides(evidence)
    engine = evidence.likely_engine
    if not mine or not theirs or mine == theirs:
        return []
    spread = (evidence.clues.told_ep or 1) > 1 or "EP" in evidence.clues.ranks
    for at in dict.fromkeys((axis, None)):
        found = pairs(evidence.models, engine, mine, theirs, at, evidence.clues.tp, spread)
        if found:
            of_files = evidence.origin.loader in _RANK_FILES
            return sorted(found, key=lambda pair: pair.by_dtype == of_files)
    return []


def _guess(evidence: Evidence, pair: Pair) -> str:
    guess = "" if pair.engine.model.given else " (the model: a guess)"
    return f"in {pair.engine.model.label}{guess}"


def _text(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _mismatch(evidence: Evidence) -> Iterator[str]:
    mine, theirs, _ = _sides(evidence)
    found = _found(evidence)
    if not found:
        yield from _unknown_sizes(evidence, mine, theirs)
        return
    by_ranks = [pair for pair in found if not pair.by_dtype]
    if found[0].by_dtype:
        yield from _by_dtype(evidence, found[0], mine, theirs)
        if by_ranks and by_ranks[0].engine.model is found[0].engine.model:
            pair = by_ranks[0]
            yield (
                f"{_text(mine)} and {_text(theirs)} may also be {_whose(pair)} at TP {pair.engine.parts} and at TP "
                f"{pair.files.parts}, if the files were cut for that TP"
            )
        return
    seen: dict[str, Pair] = {}
    for pair in by_ranks:
        seen.setdefault(f"{pair.engine.role} {pair.engine.part} {pair.engine.parts} {pair.files.parts}", pair)
    for pair in list(seen.values())[:_SHOWN]:
        yield (f"{_text(mine)} is a rank's part of {_whose(pair)} at TP {pair.engine.parts}, {_text(theirs)} at TP "
               f"{pair.files.parts}, {_guess(evidence, pair)}")  # fmt: skip
    yield "the files were cut for another TP than the engine runs with, or are whole where it expects a part"


def _whose(pair: Pair) -> str:
    what = "scale" if pair.engine.part is Part.SCALE else "weight"
    return f"{pair.engine.role}'s {what} ({pair.engine.role.module})"


def _by_dtype(evidence: Evidence, pair: Pair, mine: tuple[int, ...], theirs: tuple[int, ...]) -> Iterator[str]:
    at = f" at TP {pair.engine.parts}" if pair.engine.parts > 1 else ""
    yield (f"{_text(mine)} is {_whose(pair)} in {pair.engine.dtype}{at}, {_text(theirs)} the same in "
           f"{pair.files.dtype}, "
           f"{_guess(evidence, pair)}")  # fmt: skip
    if pair.engine.part is Part.SCALE:
        yield "FP4 has a row of scales for each row, FP8 one for each block of 128 rows, NVFP4 one for 16 columns"
    else:
        yield "packed FP4 holds two values in a byte, so its last axis is half as long"
    yield f"the engine built {pair.engine.dtype} experts, and the checkpoint's are {pair.files.dtype}"


def _unknown_sizes(evidence: Evidence, mine: tuple[int, ...], theirs: tuple[int, ...]) -> Iterator[str]:
    yield f"the engine's tensor has {_text(mine)}, the files' {_text(theirs)}"
    if len(mine) == len(theirs) == 1 and mine[0] and theirs[0]:
        large, small = max(mine[0], theirs[0]), min(mine[0], theirs[0])
        ratio = large / small
        if ratio in (128, 32, 64):
            yield (f"{large} / {small} = {ratio:.0f}: rows against blocks of {ratio:.0f} rows, so scales of two "
                   f"formats (FP4 "
                   "has a scale row for each row, FP8 one for each block), or a weight for a scale")  # fmt: skip
        elif ratio == 2:
            yield f"{large} is twice {small}: packed FP4 against one value a byte, two fused tensors, or half the TP"
        elif large % small == 0:
            yield f"{large} / {small} = {ratio:.0f}: parts over {ratio:.0f} times as many ranks, or a whole tensor"
    if evidence.model is not None:
        yield f"no tensor of {evidence.model.label} has both, in any dtype or at any TP: other sizes than config.json's"
    elif not evidence.models and evidence.clues.named:
        yield f"the sizes of {evidence.clues.named} are not known: --repo, with the checkpoint, looks them up"


def _ways(evidence: Evidence) -> Iterable[str]:
    found = _found(evidence)
    if found and found[0].by_dtype:
        other = "FP8" if found[0].files.dtype == FP8 else found[0].files.dtype
        yield from EXPERT_DTYPE(evidence)
        yield f"or the release whose experts are not {other}"
        return
    if found or evidence.origin.loader in _RANK_FILES:
        yield "launch with the TP that the files were cut for"
        yield "or dsv4-shard reshard REPO OUT --tp N, for the TP at hand"
        return
    yield INSPECT
    yield "give the log from the start on, or --repo: the sizes of the model and its TP are needed"


def _narrowed(evidence: Evidence) -> Iterator[str]:
    start, length, size = (evidence.number(name) for name in ("start", "length", "size"))
    rank = f" (part {start // length} of parts of {length})" if length and start % length == 0 else ""
    yield f"a loader wants elements {start} to {start + length}{rank} of {size}: {start + length - size} too many"
    dtypes = _other_dtype(evidence, length, size)
    if dtypes is not None:
        yield from _by_dtype(evidence, dtypes, (length,), (size,))
        return
    yield ("it counts in parts that were rounded up, but the checkpoint's tensor is not: a shared expert or an MTP "
           "block that is padded, or MXFP4 experts whose part of the intermediate size is filled up before it is cut "
           "(sglang#32781, vllm#47273, vllm#49415)")  # fmt: skip


def _other_dtype(evidence: Evidence, length: int, size: int) -> Pair | None:
    """The tensor that is `length` long per rank in the engine's dtype, and `size` long in the dtype of the files."""
    tp, engine = evidence.clues.tp, evidence.likely_engine
    for parts in (tp,) if tp else (1, 2, 4, 8, 16, 32):
        for pair in pairs(evidence.models, engine, (length * parts,), (size,)):
            if pair.by_dtype and pair.engine.parts == 1 and pair.engine.role.module is Module.ROUTED:
                return pair if length * parts > 2 * size else None
    return None


_PADDED = by_engine(
    sglang=("SGLang: another version than 0.5.16, of which it is reported (0.5.13 loads)",),
    vllm=("vLLM: a version with PR 49415",),
)


def _narrow_ways(evidence: Evidence) -> Iterable[str]:
    if _other_dtype(evidence, evidence.number("length"), evidence.number("size")) is not None:
        yield from EXPERT_DTYPE(evidence)
        return
    yield from _PADDED(evidence)


def _start(evidence: Evidence) -> Iterator[str]:
    start, size = evidence.number("start"), evidence.number("size")
    yield f"a loader wants elements from {start} on, of {size}: the part begins {start - size} after the end"
    yield ("it counts in parts that were rounded up, but the checkpoint's tensor is not: a shared expert or an MTP "
           "block that is padded (vllm#47273, vllm#49415)")  # fmt: skip


def _bare(evidence: Evidence) -> Iterator[str]:
    yield ("a parameter and the tensor for it have different shapes; the assertion names neither. Most often the "
           "experts "
           "are of another dtype than the engine built (FP4 and FP8), or the files are of another TP")  # fmt: skip
    if evidence.origin.loader is not None:
        yield f"loader: {evidence.origin.loader}"


_SHAPE = r"(?:torch\.Size\()?\[?\(?(?P<{}>[\d, ]{{1,60}})\)?\]?\)?"

SHAPES = (
    Message(BOTH, r"The size of tensor a \((?P<mine>\d{1,9})\) must match the size of tensor b \((?P<theirs>\d{1,9})\)"
            r"(?: at non-singleton dimension (?P<axis>\d))?", _mismatch, _ways, LOADING),
    Message(BOTH, r"The expanded size of the tensor \((?P<mine>\d{1,9})\) must match the existing size "
            r"\((?P<theirs>\d{1,9})\)(?: at non-singleton dimension (?P<axis>\d))?", _mismatch, _ways, LOADING),
    Message(BOTH, r"size mismatch for (?P<name>[\w.]{1,200}): copying a param with shape "
            + _SHAPE.format("theirs") + r" from checkpoint, the shape in current model is " + _SHAPE.format("mine"),
            _mismatch, _ways, LOADING),
    Message(BOTH,
          r"Attempted to load weight \(" + _SHAPE.format("theirs") + r"\) into parameter \(" + _SHAPE.format("mine"),
            _mismatch, _ways, LOADING),
    Message(BOTH, r"Tried to load weights of size " + _SHAPE.format("theirs") + r"\s?to a parameter of size "
            + _SHAPE.format("mine"), _mismatch, _ways, LOADING),
    Message(SGLANG, r"loading tensor of shape " + _SHAPE.format("theirs") + r" into parameter "
                                                                            r"'(?P<name>[^'\n]{1,200})' of shape "
            + _SHAPE.format("mine"), _mismatch, _ways, LOADING, grave=False),
    Message(SGLANG, r"param(?:_data)?\.shape=" + _SHAPE.format("mine") + r"(?: param\.dtype=\S{1,40})?(?: !=)? "
                                                                         r"loaded_weight\.shape="
            + _SHAPE.format("theirs"), _mismatch, _ways, LOADING, anchors=("loaded_weight.shape=",)),
    Message(VLLM, r"MegaMoE (?P<name>\w{1,40}) weight shape " + _SHAPE.format("theirs") + r" does not match the "
                                                                                          r"kernel shard "
            + _SHAPE.format("mine"), _mismatch, _ways, LOADING),
    Message(BOTH, r"assert (?:self|param|param_data)\.?(?:data)?\.(?:shape|size\(\)) == "
                  r"loaded_weight\.(?:shape|size\(\))", _bare,
            ("give the log from the start on, with the model and the TP; --repo looks up what the tensors have",
             "dsv4-shard inspect REPO: the dtype of the experts, against expert_dtype in config.json"), LOADING,
            grave=True, anchors=("== loaded_weight.",)),
    Message(BOTH, r"expected (?:mat1 and mat2|m1 and m2) to have the same dtype, but got: (?P<mine>[\w:]{1,40}) != "
                  r"(?P<theirs>[\w:]{1,40})",
            say("a layer computes with {mine} and its weight is {theirs}: a module that the checkpoint stores in "
                "another dtype than this engine version builds it in, or --dtype converts one of them"),
            ("leave --dtype out, so that config.json's own is taken",
             "dsv4-shard inspect REPO: the dtype of each module, against what the release has",
             "an engine version that knows the release"), SERVING, anchors=("to have the same dtype, but got",)),
    Message(BOTH, r"start \((?P<start>\d{1,9})\) \+ length \((?P<length>\d{1,9})\) exceeds dimension size "
            r"\((?P<size>\d{1,9})\)", _narrowed, _narrow_ways, LOADING, anchors=("exceeds dimension size",)),
    Message(VLLM, r"start out of range \(expected to be in range of \[-(?P<size>\d{1,9}), \d{1,9}\], but got "
            r"(?P<start>\d{1,9})\)", _start, ("vLLM: a version with PR 49415",), LOADING),
)  # fmt: skip
