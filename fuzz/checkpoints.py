"""What must hold for any bytes in a header, an index, a config or a plan.

Each target has documents that are valid, a way to damage them that keeps most of their structure, and a check. A check
passes where the input is refused by a ShardError, and where it is accepted and says the same to another reader.
Anything else is a finding: another exception, a difference, a hang or more memory than the limits give.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import safetensors

from dsv4_shard.checkpoint.inventory import Inventory, take_inventory
from dsv4_shard.checkpoint.reader import Checkpoint, read_checkpoint, read_unknown
from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, V41_CONFIG, Tensors, by_file, tensors_of
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import ShardError, UnsupportedFamily
from dsv4_shard.inspection.known_family import inspect
from dsv4_shard.inspection.unknown_family import inspect_unknown
from dsv4_shard.models.config import parse_config
from dsv4_shard.models.family import ModelConfig
from dsv4_shard.models.roles import Stage
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.planning.plan_file import check_plan, load_plan
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE, INDEX_FILE
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.tensors.header import LENGTH_BYTES, build_header, read_header
from fuzz.mutate import mutate_json
from fuzz.target import Target, check_message, memory_folder

CONFIG: dict[str, Any] = DEMO_CONFIG | {
    "hidden_size": 128,
    "num_hidden_layers": 1,
    "num_nextn_predict_layers": 0,
    "num_hash_layers": 0,
    "compress_ratios": [4],
    "vocab_size": 256,
    "num_attention_heads": 2,
    "o_groups": 2,
    "index_n_heads": 2,
    "moe_intermediate_size": 256,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "hc_mult": 1,
}
"""One layer with an indexer: 50 tensors, in three files."""

V3_CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV32ForCausalLM"],
    "model_type": "deepseek_v32",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 1,
    "vocab_size": 256,
    "num_attention_heads": 2,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 64,
    "intermediate_size": 256,
    "moe_intermediate_size": 256,
    "n_routed_experts": 2,
    "n_shared_experts": 1,
    "num_experts_per_tok": 1,
    "index_n_heads": 2,
    "index_head_dim": 128,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}

REQUESTS = (Request(1), Request(2, engine="reference"), Request(2, engine="vllm"), Request(3))
_MAX_TENSORS = 2_000


class MemoryFile:
    """A file of zeros, `nbytes` long, that begins with `data`."""

    def __init__(self, data: bytes, nbytes: int) -> None:
        self._data, self.nbytes, self.mtime_ns = data, nbytes, 0

    def read(self, start: int, stop: int) -> bytes:
        assert 0 <= start <= stop <= self.nbytes, "read beyond the file"
        return self._data[start:stop].ljust(stop - start, b"\0")


class MemorySource(LocalSource):
    """A folder that is nowhere; whoever opens what is not in it has followed a hostile name."""

    __slots__ = ("files",)
    files: dict[str, MemoryFile]

    @classmethod
    def of(cls, files: Mapping[str, MemoryFile]) -> "MemorySource":
        source = cls(Path("/nowhere"), "in-memory")
        object.__setattr__(source, "files", dict(files))
        return source

    def sizes(self) -> dict[str, int]:
        return {name: file.nbytes for name, file in self.files.items()}

    def dangling_links(self) -> list[str]:
        return []

    def unfinished_downloads(self) -> list[str]:
        return []

    def links_outside(self, names: list[str]) -> list[str]:
        return []

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        yield self.files[name]


def _weights(tensors: Tensors, document: dict[str, Any]) -> tuple[dict[str, MemoryFile], dict[str, str]]:
    """The weight files of a checkpoint, and where each tensor is."""
    files: dict[str, MemoryFile] = {}
    weight_map: dict[str, str] = {}
    for name, members in by_file(tensors, document).items():
        header, placed = build_header(members)
        files[name] = MemoryFile(header, len(header) + max(info.stop for info in placed.values()))
        weight_map |= dict.fromkeys(members, name)
    return files, weight_map


@cache
def _folder() -> dict[str, MemoryFile]:
    """A whole checkpoint. Not to be changed."""
    files, weight_map = _weights(tensors_of(CONFIG, 0), CONFIG)
    total = sum(file.nbytes - len(_header_of(file)) for file in files.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return files | {CONFIG_FILE: _file(CONFIG), INDEX_FILE: _file(index)}


def _file(document: Any) -> MemoryFile:
    raw = json.dumps(document).encode()
    return MemoryFile(raw, len(raw))


def _header_of(file: MemoryFile) -> bytes:
    return file.read(0, LENGTH_BYTES + int.from_bytes(file.read(0, LENGTH_BYTES), "little"))


def _open_with(**changed: bytes) -> tuple[Checkpoint, Inventory]:
    """The checkpoint with files replaced by these bytes. Raises a ShardError."""
    files = {name: MemoryFile(data, len(data)) for name, data in changed.items()}
    checkpoint = read_checkpoint(MemorySource.of(_folder() | files))
    return checkpoint, take_inventory(checkpoint)


@cache
def small_checkpoint() -> tuple[Checkpoint, Inventory]:
    return _open_with()


@contextmanager
def without_search(module: ModuleType, left_out: bool) -> Iterator[None]:
    """Skip a module's search for nearby layouts: it takes a second, and reads no part of the input."""
    search = vars(module)["nearest"]
    if left_out:
        vars(module)["nearest"] = lambda *_: iter(())
    try:
        yield
    finally:
        vars(module)["nearest"] = search


# --- headers -------------------------------------------------------------------------------------------------------


def _header_seeds() -> list[bytes]:
    small: Tensors = {"a": ("F32", (2, 3)), "b.scale": ("F8_E8M0", ()), "c": ("F4", (2, 2)), "d": ("I64", (0, 3))}
    many: Tensors = {f"layers.{n}.attn_norm.weight": ("BF16", (n,)) for n in range(20)}
    return [_zeros(small, {"format": "pt"}), _zeros(many), _zeros({})]


def _zeros(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    header, placed = build_header(tensors, metadata)
    return header + bytes(sum(info.nbytes for info in placed.values()))


def _mutate_header(data: bytes, random: Random) -> bytes:
    """Other JSON; a length that fits it, mostly; the same tensors' bytes, mostly."""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    raw = mutate_json(data[LENGTH_BYTES : LENGTH_BYTES + length], random)
    body = data[LENGTH_BYTES + length :]
    if random.random() < 0.1:
        body = body[: random.randrange(len(body) + 1)] or b"\0"
    length = len(raw) + random.choice((0,) * 20 + (-1, 1, 8, 2**32, 2**63))
    return (max(length, 0) % 2**64).to_bytes(LENGTH_BYTES, "little") + raw + body


def _check_header(data: bytes) -> None:
    """Nothing is accepted that the safetensors library refuses, and what both accept is the same."""
    try:
        header = read_header(MemoryFile(data, len(data)), "model.safetensors")
    except ShardError as error:
        check_message(error)
        return
    theirs = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    body = data[header.data_start :]
    ours = {name: (t.dtype, list(t.shape), body[t.start : t.stop]) for name, t in header.tensors.items()}
    assert ours == {name: (i["dtype"], list(i["shape"]), bytes(i["data"])) for name, i in theirs.items()}


# --- index ---------------------------------------------------------------------------------------------------------


def _check_index(data: bytes) -> None:
    """An index that is accepted puts each tensor where it is; a file that it leaves out is missed."""
    try:
        checkpoint, inventory = _open_with(**{INDEX_FILE: data})
    except ShardError as error:
        check_message(error)
        return
    weight_map = json.loads(data)["weight_map"]
    assert {name: tensor.file for name, tensor in checkpoint.tensors.items()} == weight_map
    assert all(finding.message.isprintable() for finding in inventory.findings)
    if checkpoint.files == small_checkpoint()[0].files:
        assert inventory.errors == ()
    else:
        assert inventory.errors, "a file that the index no longer names is missing"


# --- config --------------------------------------------------------------------------------------------------------


def _check_config(data: bytes) -> None:
    """Any config is refused, or judged against the tensors, or has a plan of its own tensors."""
    try:
        checkpoint, inventory = _open_with(**{CONFIG_FILE: data})
        _use(checkpoint, inventory)
        config, document = parse_config(data, CONFIG_FILE)
    except UnsupportedFamily as error:
        check_message(error)
        _check_unknown(data)
        return
    except ShardError as error:
        check_message(error)
        return
    assert document == json.loads(data)
    if _count(config) <= _MAX_TENSORS:
        tensors = tensors_of(document, min(config.num_nextn_predict_layers, 1))
        files, weight_map = _weights(tensors, document)
        files |= {CONFIG_FILE: MemoryFile(data, len(data)), INDEX_FILE: _file({"weight_map": weight_map})}
        try:
            checkpoint = read_checkpoint(MemorySource.of(files))
            _use(checkpoint, take_inventory(checkpoint))
        except ShardError as error:
            check_message(error)


def _check_unknown(data: bytes) -> None:
    """Whatever a config of another family says, the tensors are those of the headers, and all is printable."""
    checkpoint = read_unknown(MemorySource.of(_folder() | {CONFIG_FILE: MemoryFile(data, len(data))}))
    inspection = inspect_unknown(checkpoint, (2,))
    assert sum(row.tensors for row in inspection.templates) == len(checkpoint.tensors) == inspection.identity.tensors
    identity = inspection.identity
    words = (identity.family, identity.model_type or "", *identity.architectures)
    assert all(text.isprintable() for text in (*words, *(finding.message for finding in inspection.findings)))
    inspection.model_dump_json()


def _config_seeds() -> list[bytes]:
    families = [json.dumps(document).encode() for document in (V3_CONFIG, V41_CONFIG)]
    return [_whole(CONFIG_FILE), *families, _other_family()]


def _other_family() -> bytes:
    quantization = {"config_groups": {"group_0": {"weights": {"num_bits": 4, "block_structure": [128, 128]}}}}
    nested = {"hidden_size": 128, "num_experts": 2, "quantization_config": quantization}
    return json.dumps({"model_type": "kimi_k2", "architectures": ["A"], "text_config": nested}).encode()


def _count(config: ModelConfig) -> int:
    experts = max(config.experts_in(stage) for stage in Stage)
    return (config.num_hidden_layers + 1) * (40 + 6 * experts) + 8 * config.blocks_in(Stage.VISION)


def _use(checkpoint: Checkpoint, inventory: Inventory) -> None:
    """All that is said of a checkpoint."""
    assert all(finding.message.isprintable() for finding in inventory.findings)
    inspect(checkpoint, inventory, (2,)).model_dump_json()
    for request in REQUESTS:
        make_plan(checkpoint, inventory, request).to_json()


# --- plans ---------------------------------------------------------------------------------------------------------


@cache
def _plan_seeds() -> list[bytes]:
    return [make_plan(*small_checkpoint(), request).to_json().encode() for request in REQUESTS]


def _check_plan(data: bytes) -> None:
    """A plan that is accepted is the one that the rules give, but for the names by which it calls its checkpoint."""
    with tempfile.NamedTemporaryFile(dir=memory_folder(), suffix=".json") as file:
        file.write(data)
        file.flush()
        try:
            loaded = load_plan(Path(file.name))
            made = check_plan(loaded, *small_checkpoint())
        except ShardError as error:
            check_message(error)
            return
    assert loaded.source.files == made.source.files == _checkpoint_files()
    again = make_plan(*small_checkpoint(), loaded.request, loaded.source.label)
    assert again == made
    assert _canonical(loaded.model_copy(update={"source": made.source})) == _canonical(made)


def _canonical(plan: Plan) -> str:
    return json.dumps(plan.model_dump(mode="json"), sort_keys=True)


def _checkpoint_files() -> Any:
    return make_plan(*small_checkpoint(), REQUESTS[0]).source.files


TARGETS = {
    "header": Target(_header_seeds, _mutate_header, _check_header),
    "index": Target(lambda: [_whole(INDEX_FILE)], mutate_json, _check_index),
    "config": Target(_config_seeds, mutate_json, _check_config),
    "plan": Target(_plan_seeds, mutate_json, _check_plan),
}


def _whole(name: str) -> bytes:
    file = _folder()[name]
    return file.read(0, file.nbytes)
