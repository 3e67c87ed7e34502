"""What stands in a rank's files, and what must: the comparison of `reshard`'s output with an oracle.

Independent of dsv4_shard, also in reading the files. `tests/test_oracles.py` uses it too.
"""

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

from conformance import mega_moe
from conformance.cases import Case
from conformance.digests import DIGEST_DIGITS, Oracle, Param, Params, differences

DRAFT_FOLDER = "draft"
"""Files of the draft model stand in this folder of the output."""

_CONFIDENCE = "confidence_head.proj.weight"
"""Files of DSpark hold it for every mode of SGLang."""

_CACHE_SCALE = re.compile(r".*\.self_attn\.attn(_mqa)?\.[kv]_scale")
"""In no checkpoint; SGLang's stock loader wants them in files, its model starts with them at -1."""

_SHARED_WITH_TARGET = re.compile(r"(.*\.)?(?P<role>shared_head\.head|lm_head|embed_tokens)\.weight")
"""Parameters of a draft model in vLLM that no checkpoint has, and that its stock loader wants in files."""

_SOURCE_OF = {"shared_head.head": "head.weight", "lm_head": "head.weight", "embed_tokens": "embed.weight"}
_VOCAB_UNIT = 64
"""vLLM pads the vocabulary with zeros to a multiple of this number of rows."""

_HEADER_LENGTH = struct.Struct("<Q")


def folder_of(case: Case, out: Path) -> Path:
    """Where the files of a case's model stand in reshard's output."""
    return out / DRAFT_FOLDER if case.draft else out


def compare_rank(oracle: Oracle, rank: int, checkpoint: Path, out: Path) -> list[str]:
    """Differences between the files of one rank and what the engine loads."""
    got = read_rank(folder_of(oracle.case, out), rank, oracle.case)
    if oracle.case.is_static:
        got.pop(_CONFIDENCE, None)
    cache_scales = {name: got.pop(name) for name in list(got) if _CACHE_SCALE.fullmatch(name)}
    wrong = [f"{name}: not 1.0 in F32" for name, param in cache_scales.items() if param != _ONE]
    return wrong + differences(wanted(oracle, rank, checkpoint), got)


def wanted(oracle: Oracle, rank: int, checkpoint: Path) -> Params:
    """What a rank's files must hold: the oracle, and rows of the target that vLLM's stock loader wants for a draft."""
    params = dict(oracle.ranks[rank])
    if oracle.case.engine == "vllm":
        for name in oracle.unloaded:
            params[name] = _rows(checkpoint, name, rank % oracle.case.tp, oracle.case.tp)
    return params


def _rows(checkpoint: Path, parameter: str, rank: int, tp: int) -> Param:
    """A rank's rows of the target's embedding or head."""
    match = _SHARED_WITH_TARGET.fullmatch(parameter)
    assert match is not None, parameter
    name = _SOURCE_OF[match["role"]]
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    (dtype, shape), data = read_file(checkpoint / index["weight_map"][name])[name]
    rows = -(-shape[0] // _VOCAB_UNIT) * _VOCAB_UNIT // tp
    size = rows * len(data) // shape[0]
    own = bytes(data[rank * size : (rank + 1) * size]).ljust(size, b"\0")
    return dtype, [rows, *shape[1:]], _digest(own)


def read_rank(folder: Path, rank: int, case: Case) -> Params:
    """Every tensor of a rank's files. vLLM's replicas have files of their own, and so have pipeline stages."""
    params: Params = {}
    name = f"rank-{rank}"
    if case.engine == "vllm" and case.dp > 1:
        name = f"dp-{rank // case.tp}-rank-{rank % case.tp}"
    if case.pp > 1:
        name = f"pp-{rank // case.tp}-tp-{rank % case.tp}"
    for file in sorted(folder.glob(f"model-{name}-part-*.safetensors")):
        for tensor, ((dtype, shape), data) in read_file(file).items():
            if tensor in params:
                raise ValueError(f"{tensor}: in two files of rank {rank}")
            params[tensor] = (dtype, shape, _digest(data))
            if case.is_mega and (turned := mega_moe.in_kernel_order(tensor, shape, data)):
                del params[tensor]
                params[turned.name] = (turned.dtype, turned.shape, _digest(turned.data))
    return params


def read_file(file: Path) -> dict[str, tuple[tuple[str, list[int]], memoryview]]:
    """A safetensors file: name → ((dtype, shape), bytes)."""
    header, data = _parse_header(memoryview(file.read_bytes()))
    tensors = {}
    for name, info in header.items():
        start, stop = info["data_offsets"]
        tensors[name] = ((info["dtype"], info["shape"]), data[start:stop])
    return tensors


def _parse_header(content: memoryview) -> tuple[dict[str, Any], memoryview]:
    """A file's header, and its data."""
    (length,) = _HEADER_LENGTH.unpack_from(content)
    end = _HEADER_LENGTH.size + length
    header = json.loads(bytes(content[_HEADER_LENGTH.size : end]))
    header.pop("__metadata__", None)
    return header, content[end:]


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGEST_DIGITS]


_ONE: Param = ("F32", [], _digest(struct.pack("<f", 1.0)))
