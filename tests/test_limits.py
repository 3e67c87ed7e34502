"""The table of limits: an input at each limit is taken, and one step beyond it is refused with one line."""

import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from io import BytesIO
from itertools import islice
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.servers.redirecting import Handler, Server

from dsv4_shard import errors, limits
from dsv4_shard.checkpoint import reader
from dsv4_shard.configurations import read_configuration
from dsv4_shard.destinations import ray_cluster, ray_connection, upload_journal
from dsv4_shard.destinations.ray_connection import Node
from dsv4_shard.destinations.share_worker import ShareEnded
from dsv4_shard.diagnosis import log_scan
from dsv4_shard.engines.expert_locations import parse_locations
from dsv4_shard.limits import TABLE, Limit
from dsv4_shard.models.config import parse_document
from dsv4_shard.planning.plan_file import read_plan
from dsv4_shard.sharding import journal, recipe
from dsv4_shard.sharding.header_archive import read_skeleton
from dsv4_shard.sharding.manifest import read_manifest
from dsv4_shard.sharding.model_card import license_of
from dsv4_shard.sharding.progress import Reporter
from dsv4_shard.sharding.recipe import OutputFile, Recipe, Step
from dsv4_shard.sharding.statement import read_statement
from dsv4_shard.signing import keys, library, result_signature
from dsv4_shard.signing.bundle import Bundle
from dsv4_shard.sources import hub, hub_files, local, object_store, remote_headers, retry
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE, INDEX_FILE
from dsv4_shard.sources.deadline import Deadline
from dsv4_shard.sources.gate import Gate
from dsv4_shard.sources.hub import Repository, _ask_headers, _ask_listing
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.sources.release_files import travelling
from dsv4_shard.sources.remote import Listed
from dsv4_shard.sources.remote_headers import HeaderCache
from dsv4_shard.sources.retry import Transient
from dsv4_shard.tensors.decoding import TRANSFORMS
from dsv4_shard.tensors.header import Tensor, build_header, parse_header, read_header
from dsv4_shard.terminal import last_inspected
from dsv4_shard.text.strict_json import BadJson
from fuzz import results
from fuzz.checkpoints import MemoryFile, MemorySource, _folder, small_checkpoint

MEASURES = ("nbytes", "count", "seconds", "depth")
NAMES = {id(value): name for name, value in vars(limits).items() if isinstance(value, Limit)}
WHERE = "input.json"


@dataclass
class Trial:
    """What a try may use."""

    path: Path
    monkeypatch: pytest.MonkeyPatch
    lowered: dict[str, Limit] = field(default_factory=dict)

    def lower(self, module: Any, name: str, **numbers: float) -> Limit:
        """Lower a limit where a module takes it from the table, for inputs that would take minutes to make."""
        if name not in self.lowered:
            assert getattr(module, name) is getattr(limits, name), "the module takes it from the table"
            self.lowered[name] = replace(getattr(limits, name), **numbers)
            self.monkeypatch.setattr(module, name, self.lowered[name])
        return self.lowered[name]


Tries = Callable[[Trial, int], object]

TRIES: dict[tuple[str, str], tuple[Tries, type[Exception] | None]] = {}
"""(limit, measure) → what reads an input of so many steps beyond the limit, and the error; None: a value that tells."""


def tries(name: str, measure: str, error: type[Exception] | None) -> Callable[[Tries], Tries]:
    def add(function: Tries) -> Tries:
        TRIES[name, measure] = function, error
        return function

    return add


CASES = [(NAMES[id(limit)], measure) for limit in TABLE for measure in MEASURES if getattr(limit, measure)]


def test_every_limit_is_tried() -> None:
    assert set(TRIES) == set(CASES)
    assert {field.name for field in fields(Limit)} >= set(MEASURES)


@pytest.mark.parametrize(("name", "measure"), CASES, ids=["-".join(case) for case in CASES])
def test_at_a_limit_an_input_is_taken_and_one_step_beyond_refused(
    name: str, measure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt, error = TRIES[name, measure]
    trial = Trial(tmp_path, monkeypatch)
    if error is None:
        assert attempt(trial, 0)
        assert not attempt(trial, 1)
        return
    attempt(trial, 0)
    with pytest.raises(error) as raised:
        attempt(trial, 1)
    assert len(str(raised.value)) < 1000
    if issubclass(error, errors.ShardError):
        assert "\n" not in str(raised.value)
        assert raised.value.hint  # type: ignore[attr-defined]
        named = {getattr(errors, one) for one in getattr(limits, name).error.split(", ") if one.isidentifier()}
        assert any(issubclass(error, one) for one in named), "the table names the error"


# --- documents -----------------------------------------------------------------------------------------------------


def padded(document: bytes, nbytes: int) -> bytes:
    """The document with blanks behind it, `nbytes` long."""
    return document + b" " * (nbytes - len(document))


def of_values(count: int) -> bytes:
    """A list that counts as so many values."""
    return b"[" + b"0," * (count - 2) + b"0]"


def nested(depth: int) -> bytes:
    """Lists within lists, so many in all."""
    return b"[" * depth + b"]" * depth


def raw_header(raw: bytes) -> object:
    return parse_header(raw, 8 + len(raw), "model.safetensors")


@tries("HEADER", "nbytes", errors.HeaderTooLarge)
def _header_bytes(trial: Trial, beyond: int) -> object:
    raw = padded(b"{}", limits.HEADER.nbytes + beyond)
    return read_header(MemoryFile(len(raw).to_bytes(8, "little") + raw, 8 + len(raw)), "model.safetensors")


@tries("HEADER", "count", errors.HeaderNotJson)
def _header_values(trial: Trial, beyond: int) -> object:
    # The document, __metadata__ and its strings.
    count = limits.HEADER.count - 2 + beyond
    return raw_header(b'{"__metadata__":{' + b",".join(b'"%x":""' % n for n in range(count)) + b"}}")


@tries("HEADER", "depth", errors.BadTensorEntry)
def _header_depth(trial: Trial, beyond: int) -> object:
    more = nested(limits.HEADER.depth + beyond)
    return raw_header(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":' + more + b"}}")


def with_file(name: str, raw: bytes) -> object:
    return reader.read_checkpoint(MemorySource.of(_folder() | {name: MemoryFile(raw, len(raw))}))


def whole(name: str) -> bytes:
    file = _folder()[name]
    return file.read(0, file.nbytes)


@tries("INDEX", "nbytes", errors.BadIndex)
def _index_bytes(trial: Trial, beyond: int) -> object:
    return with_file(INDEX_FILE, padded(whole(INDEX_FILE), limits.INDEX.nbytes + beyond))


def index_with(value: bytes) -> bytes:
    return whole(INDEX_FILE)[:-1] + b',"x":' + value + b"}"


@tries("INDEX", "count", errors.BadIndex)
def _index_values(trial: Trial, beyond: int) -> object:
    own = index_with(b"0")
    values = 1 + sum(own.count(char) for char in b",[{")
    return with_file(INDEX_FILE, index_with(of_values(limits.INDEX.count - values + 1 + beyond)))


@tries("INDEX", "depth", errors.BadIndex)
def _index_depth(trial: Trial, beyond: int) -> object:
    return with_file(INDEX_FILE, index_with(nested(limits.INDEX.depth - 1 + beyond)))


@tries("CONFIG", "nbytes", errors.BadConfig)
def _config_bytes(trial: Trial, beyond: int) -> object:
    return with_file(CONFIG_FILE, padded(whole(CONFIG_FILE), limits.CONFIG.nbytes + beyond))


@tries("CONFIG", "count", errors.BadConfig)
def _config_values(trial: Trial, beyond: int) -> object:
    return parse_document(b'{"a":' + of_values(limits.CONFIG.count - 1 + beyond) + b"}", WHERE)


@tries("CONFIG", "depth", errors.BadConfig)
def _config_depth(trial: Trial, beyond: int) -> object:
    return parse_document(b'{"a":' + nested(limits.CONFIG.depth - 1 + beyond) + b"}", WHERE)


_MAP = b'{"physical_to_logical_map":[[0]],"x":'


@tries("CONFIGURATION", "nbytes", errors.ReadFailed)
def _configuration_bytes(trial: Trial, beyond: int) -> object:
    path = trial.path / "serve.sh"
    path.write_bytes(padded(b"vllm serve M\n", limits.CONFIGURATION.nbytes + beyond))
    return read_configuration(str(path))


@tries("CONFIGURATION", "count", errors.UsageError)
def _configuration_values(trial: Trial, beyond: int) -> object:
    path = trial.path / "options.yaml"
    others = ",".join(["1"] * (limits.CONFIGURATION.count - 5 + beyond))
    path.write_text(f"tensor-parallel-size: 8\nx: [{others}]\n")
    return read_configuration(str(path), "vllm")


@tries("CONFIGURED_ROLES", "count", errors.UsageError)
def _configured_roles(trial: Trial, beyond: int) -> object:
    return read_configuration("; ".join(f"vllm serve M{n}" for n in range(limits.CONFIGURED_ROLES.count + beyond)))


@tries("CONFIGURED_OPTIONS", "count", errors.UsageError)
def _configured_options(trial: Trial, beyond: int) -> object:
    return read_configuration("vllm serve M" + " --x" * (limits.CONFIGURED_OPTIONS.count + beyond))


@tries("CONFIGURED_VARIABLES", "count", errors.UsageError)
def _configured_variables(trial: Trial, beyond: int) -> object:
    names = (f"A{n}=1; " for n in range(limits.CONFIGURED_VARIABLES.count + beyond))
    return read_configuration("".join(names) + "vllm serve M")


@tries("LOCATIONS", "nbytes", errors.UsageError)
def _locations_bytes(trial: Trial, beyond: int) -> object:
    return parse_locations(padded(_MAP + b"0}", limits.LOCATIONS.nbytes + beyond), WHERE)


@tries("LOCATIONS", "count", errors.UsageError)
def _locations_values(trial: Trial, beyond: int) -> object:
    values = 1 + sum(_MAP.count(char) for char in b",[{")
    return parse_locations(_MAP + of_values(limits.LOCATIONS.count - values + 1 + beyond) + b"}", WHERE)


def plan(raw: bytes) -> object:
    """Read a plan that is none otherwise: only a limit may be what is wrong with it."""
    try:
        return read_plan(raw, WHERE)
    except errors.BadPlan as error:
        if "not a plan of dsv4-shard" not in str(error):
            raise
        return None


@tries("PLAN", "nbytes", errors.BadPlan)
def _plan_bytes(trial: Trial, beyond: int) -> object:
    return plan(padded(b"{}", limits.PLAN.nbytes + beyond))


@tries("PLAN", "count", errors.BadPlan)
def _plan_values(trial: Trial, beyond: int) -> object:
    return plan(of_values(limits.PLAN.count + beyond))


@tries("PLAN", "depth", errors.BadPlan)
def _plan_depth(trial: Trial, beyond: int) -> object:
    return plan(nested(limits.PLAN.depth + beyond))


def manifest(identity: dict[str, str]) -> bytes:
    document = json.loads(results._manifest_seeds()[0])
    return results._sealed(json.dumps(document | {"identity": identity}).encode())


@tries("MANIFEST", "nbytes", errors.NotAResult)
def _manifest_bytes(trial: Trial, beyond: int) -> object:
    long = limits.MANIFEST.nbytes - len(manifest({"a": ""})) + beyond
    return read_manifest(manifest({"a": "x" * long}), WHERE)


@tries("MANIFEST", "count", errors.NotAResult)
def _manifest_values(trial: Trial, beyond: int) -> object:
    own = manifest({"a": ""})
    more = limits.MANIFEST.count - 1 - sum(own.count(char) for char in b",[{") + beyond
    return read_manifest(manifest({f"{n:x}": "" for n in range(more + 1)}), WHERE)


# --- journals ------------------------------------------------------------------------------------------------------


def read_journal(trial: Trial, *entries: bytes) -> object:
    (trial.path / "journal").write_bytes(results._journal(list(entries)))
    found = journal.read_journal(trial.path / "journal")
    assert found is not None
    return found


def run_entry() -> bytes:
    return results._entries_of(results._journal_seeds()[0])[0]


@tries("JOURNAL", "nbytes", errors.OtherRun)
def _journal_bytes(trial: Trial, beyond: int) -> object:
    digests = limits.JOURNAL.nbytes - len(run_entry()) - 2 * 24 - 24 + beyond
    return read_journal(trial, run_entry(), struct.pack("<IIQQ", 0, digests, 0, 0) + bytes(digests))


@tries("JOURNAL", "count", errors.OtherRun)
def _journal_steps(trial: Trial, beyond: int) -> object:
    return read_journal(trial, run_entry(), bytes(24) * (limits.JOURNAL.count + beyond))


@tries("JOURNAL_ENTRY", "nbytes", errors.OtherRun)
def _entry_bytes(trial: Trial, beyond: int) -> object:
    return read_journal(trial, padded(run_entry(), limits.JOURNAL_ENTRY.nbytes + beyond))


def entry_with(files: int) -> bytes:
    return json.dumps(json.loads(run_entry()) | {"files": dict.fromkeys(map(str, range(files)), 1)}).encode()


@tries("JOURNAL_ENTRY", "count", errors.OtherRun)
def _entry_values(trial: Trial, beyond: int) -> object:
    own = 1 + sum(entry_with(1).count(char) for char in b",[{")
    return read_journal(trial, entry_with(limits.JOURNAL_ENTRY.count - own + 1 + beyond))


@tries("JOURNAL_ENTRY", "depth", None)
def _entry_depth(trial: Trial, beyond: int) -> object:
    deep = json.loads(nested(limits.JOURNAL_ENTRY.depth - 1 + beyond))
    try:
        read_journal(trial, json.dumps(json.loads(run_entry()) | {"schema_version": 5, "x": deep}).encode())
    except errors.NewerSchema:
        return True
    except errors.OtherRun:
        return False
    raise AssertionError


def upload(path: Path) -> upload_journal.UploadJournal:
    return upload_journal.UploadJournal(path)


@tries("UPLOAD_JOURNAL", "nbytes", errors.OtherRun)
def _upload_bytes(trial: Trial, beyond: int) -> object:
    path = trial.path / "upload"
    path.write_bytes(b'{"run":"x"}\n')
    os.truncate(path, limits.UPLOAD_JOURNAL.nbytes + beyond)
    assert upload(path).run == "x"
    return path


@tries("UPLOAD_JOURNAL", "count", errors.OtherRun)
def _upload_entries(trial: Trial, beyond: int) -> object:
    lowered = trial.lower(upload_journal, "UPLOAD_JOURNAL", count=500)
    (trial.path / "upload").write_bytes(b'{"run":"x"}\n' * (lowered.count + beyond))
    return upload(trial.path / "upload")


# --- archives and small files --------------------------------------------------------------------------------------


def zipped(*entries: tuple[str, bytes], stored: bool = False) -> bytes:
    import zipfile

    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return packed.getvalue()


def header_of(nbytes: int) -> bytes:
    return (nbytes - 8).to_bytes(8, "little") + bytes(nbytes - 8)


@tries("ARCHIVE", "nbytes", errors.BadSkeleton)
def _archive_bytes(trial: Trial, beyond: int) -> object:
    name = "a.safetensors"
    own = len(zipped(("config.json", b"{}"), (name, header_of(8)), stored=True))
    content = header_of(8 + limits.ARCHIVE.nbytes - own + beyond)
    return read_skeleton(zipped(("config.json", b"{}"), (name, content), stored=True), "source.zip")


@tries("ARCHIVE", "count", errors.BadSkeleton)
def _archive_entries(trial: Trial, beyond: int) -> object:
    names = (f"{number}.safetensors" for number in range(limits.ARCHIVE.count - 1 + beyond))
    return read_skeleton(zipped(("config.json", b"{}"), *((name, bytes(8)) for name in names)), "source.zip")


@tries("UNPACKED", "nbytes", errors.BadSkeleton)
def _unpacked_bytes(trial: Trial, beyond: int) -> object:
    left, parts = limits.UNPACKED.nbytes - 2 + beyond, []
    while left:
        parts.append(min(left, limits.HEADER.nbytes))
        left -= parts[-1]
    files = ((f"{number}.safetensors", header_of(nbytes)) for number, nbytes in enumerate(parts))
    return read_skeleton(zipped(("config.json", b"{}"), *files), "source.zip")


def cached(trial: Trial, *entries: tuple[str, bytes], stored: bool = False) -> object:
    cache = HeaderCache("https://hub", "org/model")
    path = cache._archive("a" * 40)
    path.parent.mkdir(parents=True, exist_ok=True)
    listing = json.dumps({"rebuilt": False, "files": {}}).encode()
    path.write_bytes(zipped(("tree.json", listing), *entries, stored=stored))
    return cache.load("a" * 40)


@tries("CACHED", "nbytes", None)
def _cached_bytes(trial: Trial, beyond: int) -> object:
    trial.monkeypatch.setenv("XDG_CACHE_HOME", str(trial.path))
    assert cached(trial, ("a", b""), stored=True), "an empty one is read"
    own = HeaderCache("https://hub", "org/model")._archive("a" * 40).stat().st_size
    return cached(trial, ("a", bytes(limits.CACHED.nbytes - own + beyond)), stored=True)


@tries("CACHED", "count", None)
def _cached_entries(trial: Trial, beyond: int) -> object:
    trial.monkeypatch.setenv("XDG_CACHE_HOME", str(trial.path))
    return cached(trial, *((f"{number}", b"") for number in range(limits.CACHED.count - 1 + beyond)))


@tries("NAME", "nbytes", None)
def _name_bytes(trial: Trial, beyond: int) -> object:
    trial.monkeypatch.setenv("XDG_STATE_HOME", str(trial.path))
    path = last_inspected._state_file()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * (limits.NAME.nbytes + beyond))
    return last_inspected.recall()


def travels(tree: dict[str, int]) -> bool:
    """Whether every file travels with the weights."""
    return not travelling(tree).left_behind


@tries("COMPANION", "nbytes", None)
def _companion_bytes(trial: Trial, beyond: int) -> object:
    return travels({"tokenizer.json": limits.COMPANION.nbytes + beyond})


@tries("COMPANION", "depth", None)
def _companion_folders(trial: Trial, beyond: int) -> object:
    return travels({"a/" * (limits.COMPANION.depth + beyond) + "b": 1})


@tries("COMPANIONS", "nbytes", None)
def _companions_bytes(trial: Trial, beyond: int) -> object:
    half = limits.COMPANIONS.nbytes // 2
    return travels({"a": half, "b": half - 1, "c": 1 + beyond})


@tries("COMPANIONS", "count", None)
def _companions_count(trial: Trial, beyond: int) -> object:
    return travels({f"{number}": 0 for number in range(limits.COMPANIONS.count + beyond)})


@tries("TREE", "count", None)
def _tree_entries(trial: Trial, beyond: int) -> object:
    lowered = trial.lower(local, "TREE", count=40)
    (trial.path / f"{beyond}" / "folder").mkdir(parents=True)
    for number in range(lowered.count + beyond):
        (trial.path / f"{beyond}" / "folder" / str(number)).touch()
    return travels(LocalSource(trial.path / f"{beyond}", "model").tree())  # type: ignore[arg-type]


@tries("CARD", "nbytes", None)
def _card_bytes(trial: Trial, beyond: int) -> object:
    end = b"\nlicense: mit\n---"
    head = b"---\n# ".ljust(limits.CARD.nbytes - len(end) + beyond, b"x")
    return license_of(head + end, ()).get("license")


def is_parsed(read: Callable[[], object]) -> bool:
    """Whether a document that is none otherwise is refused for that, and not for its size."""
    try:
        read()
    except (BadJson, errors.BadSignature) as error:
        if "too large" not in str(error) and "more than the" not in str(error):
            return True
        if isinstance(error, errors.BadSignature):
            raise
    return False


@tries("STATEMENT", "nbytes", None)
def _statement_bytes(trial: Trial, beyond: int) -> object:
    return is_parsed(lambda: read_statement(padded(b"{}", limits.STATEMENT.nbytes + beyond)))


@tries("STATEMENT", "count", None)
def _statement_values(trial: Trial, beyond: int) -> object:
    return is_parsed(lambda: read_statement(of_values(limits.STATEMENT.count + beyond)))


@tries("SIGNATURE", "nbytes", errors.BadSignature)
def _signature_bytes(trial: Trial, beyond: int) -> object:
    path = trial.path / "model.sig"
    path.write_bytes(padded(b"{}", limits.SIGNATURE.nbytes + beyond))
    return is_parsed(lambda: result_signature._read(path))


@tries("SIGNATURE", "count", errors.BadSignature)
def _signature_values(trial: Trial, beyond: int) -> object:
    return is_parsed(lambda: Bundle(of_values(limits.SIGNATURE.count + beyond), WHERE))


@tries("KEY", "nbytes", errors.BadKey)
def _key_bytes(trial: Trial, beyond: int) -> object:
    (trial.path / "key").write_bytes(b"x" * (limits.KEY.nbytes + beyond))
    return keys.token_in(trial.path / "key")


@tries("TRUST", "nbytes", errors.BadKey)
def _trust_bytes(trial: Trial, beyond: int) -> object:
    (trial.path / "trust").write_bytes(b"x" * (limits.TRUST.nbytes + beyond))
    keys.check_trust(trial.path / "trust")
    return trial


@tries("FOLDER", "count", errors.ReadFailed)
def _folder_entries(trial: Trial, beyond: int) -> object:
    lowered = trial.lower(local, "FOLDER", count=40)
    for number in range(lowered.count + beyond):
        (trial.path / str(number)).touch()
    return LocalSource(trial.path, "folder").sizes()


# --- all headers ---------------------------------------------------------------------------------------------------


@tries("HEADERS", "nbytes", errors.CheckpointTooLarge)
def _headers_bytes(trial: Trial, beyond: int) -> object:
    own = sum(file.nbytes for name, file in _folder().items() if name.endswith(".safetensors"))
    headers = sum(file.header_digest != "" for file in small_checkpoint()[0].files)
    assert own > headers
    checkpoint = small_checkpoint()[0]
    starts = [min(t.start for t in checkpoint.tensors.values() if t.file == file.name) for file in checkpoint.files]
    trial.monkeypatch.setattr(reader, "HEADERS", replace(limits.HEADERS, nbytes=sum(starts) - beyond))
    return reader.read_checkpoint(MemorySource.of(_folder()))


@tries("HEADERS", "count", errors.CheckpointTooLarge)
def _headers_tensors(trial: Trial, beyond: int) -> object:
    tensors = len(small_checkpoint()[0].tensors)
    trial.monkeypatch.setattr(reader, "HEADERS", replace(limits.HEADERS, count=tensors - beyond))
    return reader.read_checkpoint(MemorySource.of(_folder()))


@tries("RESULT", "count", errors.CheckpointTooLarge)
def _result_tensors(trial: Trial, beyond: int) -> object:
    most = trial.lower(recipe, "RESULT", count=10).count
    header, placed = build_header({f"{n}": ("U8", (1,)) for n in range(most // 2)})
    files = [OutputFile(f"{n}.safetensors", (n,), header, placed, {}) for n in range(2)]
    return Recipe(
        (*files, OutputFile("z.safetensors", (2,), header, dict(islice(placed.items(), beyond)), {})), (), (), {}
    )


def test_a_file_that_could_not_be_read_is_not_written() -> None:
    header, placed = build_header({f"{n:x}": ("U8", (0,)) for n in range(limits.HEADER.count // 7 + 1)})
    with pytest.raises(
        errors.CheckpointTooLarge, match=r"a\.safetensors, if it were written, would not be readable: .* va"
    ):
        Recipe((OutputFile("a.safetensors", (0,), header, placed, {}),), (), (), {})


@tries("ROWS", "nbytes", errors.CheckpointTooLarge)
def _rows_bytes(trial: Trial, beyond: int) -> object:
    wide = limits.ROWS.nbytes + beyond
    return Recipe((), (Step(Tensor("a", "U8", (1, wide), "a.safetensors", 0, wide), ()),), (), {})


@pytest.mark.parametrize(("width", "repeat", "transform"), [(262_145, 4, None), (32_769, 1, "fp8_to_bf16")])
def test_rows_that_are_repeated_or_decoded_count_as_often(width: int, repeat: int, transform: str | None) -> None:
    """Such as one row of scales that becomes 4 by 4, and 128 rows that share their scales."""
    for less in (1, 0):
        tensor = Tensor("a", "U8", (128, width - less), "a.safetensors", 0, 128 * (width - less))
        step = Step(tensor, (), repeat=repeat, transform=TRANSFORMS[transform] if transform else None, scale=tensor)
        if less:
            Recipe((), (step,), (), {})
        else:
            with pytest.raises(errors.CheckpointTooLarge, match=r"a: 4,194,\d{3} bytes of its rows are needed at once"):
                Recipe((), (step,), (), {})


def test_headers_of_a_server_are_read_within_the_limit_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_headers, "HEADERS", replace(limits.HEADERS, nbytes=100))
    budget = remote_headers._Budget("org/model")
    budget.take(60)
    budget.take(40)
    with pytest.raises(errors.CheckpointTooLarge, match="org/model: headers of over 100 bytes in all"):
        budget.take(1)


@tries("WEIGHT_FILES", "count", errors.BadIndex)
def _weight_files(trial: Trial, beyond: int) -> object:
    names = [f"{number}.safetensors" for number in range(limits.WEIGHT_FILES.count + beyond)]
    reader._check_file_names(names, dict.fromkeys(names, 8), cast(Any, None), "model.safetensors.index.json")
    return names


# --- the Hub -------------------------------------------------------------------------------------------------------


class Bodies:
    """A server whose next answer is `body`, or never ends."""

    def __init__(self, body: bytes, seconds: float = 0) -> None:
        self.body, self.seconds = body, seconds

    def __call__(self, handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(self.body)))
        handler.end_headers()
        for start in range(0, len(self.body), 1 << 20):
            handler.wfile.write(self.body[start : start + (1 << 20)])
            Event().wait(self.seconds)


INFO: dict[str, Any] = {"id": "org/model", "sha": "a" * 40, "siblings": [{"rfilename": "a", "size": 1, "blobId": "b"}]}


def listing(body: bytes, seconds: float = 0) -> object:
    with Server(Bodies(body, seconds)) as server:
        return _ask_listing(Repository(server.url, "org/model", "main", "org/model"))


def headers(trial: Trial, body: bytes, seconds: float = 0) -> object:
    with Server(Bodies(body, seconds)) as server:
        return _ask_headers(Repository(server.url, "org/model", "main", "org/model"), {}) is not None


@tries("HUB_ANSWER", "nbytes", errors.BadAnswer)
def _answer_bytes(trial: Trial, beyond: int) -> object:
    return listing(padded(json.dumps(INFO).encode(), limits.HUB_ANSWER.nbytes + beyond))


@tries("HUB_ANSWER", "count", errors.BadAnswer)
def _answer_values(trial: Trial, beyond: int) -> object:
    own = json.dumps(INFO | {"x": 0}).encode()
    more = limits.HUB_ANSWER.count - sum(own.count(char) for char in b",[{") + beyond
    return listing(json.dumps(INFO).encode()[:-1] + b',"x":' + of_values(more) + b"}")


@tries("HUB_ANSWER", "seconds", errors.ServerFailed)
def _answer_seconds(trial: Trial, beyond: int) -> object:
    if beyond:
        trial.lower(hub, "HUB_ANSWER", seconds=0.05)
    return listing(padded(json.dumps(INFO).encode(), 3 << 20), 0.1)


@tries("HUB_HEADERS", "nbytes", None)
def _headers_answer_bytes(trial: Trial, beyond: int) -> object:
    return headers(trial, padded(b'{"headers":{}}', limits.HUB_HEADERS.nbytes + beyond))


@tries("HUB_HEADERS", "count", None)
def _headers_answer_values(trial: Trial, beyond: int) -> object:
    return headers(trial, b'{"headers":{},"x":' + of_values(limits.HUB_HEADERS.count - 3 + beyond) + b"}")


@tries("HUB_HEADERS", "seconds", None)
def _headers_answer_seconds(trial: Trial, beyond: int) -> object:
    if beyond:
        trial.lower(hub, "HUB_HEADERS", seconds=0.05)
    return headers(trial, padded(b'{"headers":{}}', 3 << 20), 0.1)


@tries("HUB_RANGE", "seconds", errors.ServerFailed)
def _range_seconds(trial: Trial, beyond: int) -> object:
    """A byte of it comes now and then."""
    if beyond:
        trial.lower(hub_files, "HUB_RANGE", seconds=0.3)

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        for _ in range(10):
            handler.wfile.write(b"x")
            Event().wait(0.1)

    with Server(answer) as server:
        files = hub_files.HubFiles(server.url, "org/model", "a" * 40, {"a": Listed(10, "s")})
        buffer = bytearray(10)
        files.fetch("a", 0, memoryview(buffer), Event())
        return buffer


@tries("HUB_DOWNLOAD", "seconds", errors.ServerFailed)
def _download_seconds(trial: Trial, beyond: int) -> object:
    """Nothing of it comes for a while."""
    trial.monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(trial.path / f"{beyond}"))
    if beyond:
        trial.lower(hub_files, "HUB_DOWNLOAD", seconds=0.3)

    def answer(handler: Handler) -> None:
        if handler.command == "GET":
            Event().wait(1)
        handler.say(200, b"0123456789", ETag='"e"', X_Repo_Commit="a" * 40)

    with Server(answer) as server:
        files = hub_files.HubFiles(server.url, "org/model", "a" * 40, {"a": Listed(10, "s")})
        return (files.download(["a"]) / "a").read_bytes()


@tries("HUB_WAIT", "seconds", errors.Throttled)
def _wait_seconds(trial: Trial, beyond: int) -> object:
    asked: list[float] = []

    def wait(state: Any) -> float:
        asked.append(retry._error_of(state).wait or 0)
        return 0

    trial.monkeypatch.setattr(retry, "_wait", wait)

    def attempt() -> str:
        if asked:
            return "done"
        raise Transient("hub answered 429", limits.HUB_WAIT.seconds + beyond, throttled=True)

    return retry.retry(attempt, Event())


@tries("HUB_REDIRECTS", "count", errors.BadAnswer)
def _redirects(trial: Trial, beyond: int) -> object:
    """Each step leads to the Hub itself, the last to another host."""
    left = [limits.HUB_REDIRECTS.count + beyond]

    def answer(handler: Handler) -> None:
        left[0] -= 1
        place = f"/next{left[0]}" if left[0] else "http://127.0.0.2:9/signed"
        handler.say(302, Location=place)

    with Server(answer) as server:
        files = hub_files.HubFiles(server.url, "org/model", "a" * 40, {"a": Listed(1, "s", "0" * 64)})
        return files._resolve("a")


# --- object stores -------------------------------------------------------------------------------------------------


def store_of(trial: Trial, url: str) -> object_store.Store:
    for name, value in {"ENDPOINT_URL": url, "ALLOW_HTTP": "true", "SKIP_SIGNATURE": "true"}.items():
        trial.monkeypatch.setenv(f"AWS_{name}", value)
    trial.monkeypatch.setattr(object_store, "_RETRIES", {"max_retries": 0})
    return object_store.connect("s3://bucket/model")


@tries("STORE_ANSWER", "nbytes", errors.BadAnswer)
def _store_bytes(trial: Trial, beyond: int) -> object:
    """The bytes of head and body together."""
    empty = b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"></ListBucketResult>'
    sizes: list[int] = []

    def answer(handler: Handler) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {limits.STORE_ANSWER.nbytes:09}\r\n\r\n"
        body = padded(empty, limits.STORE_ANSWER.nbytes - len(head) + beyond)
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body):09}\r\n\r\n"
        sizes.append(len(head) + len(body))
        handler.wfile.write(head.encode() + body)

    with Server(answer) as server:
        found = store_of(trial, server.url).everything()
    assert sizes == [limits.STORE_ANSWER.nbytes]
    return found


@tries("STORE_ANSWER", "seconds", errors.ServerFailed)
def _store_seconds(trial: Trial, beyond: int) -> object:
    lowered = replace(limits.STORE_ANSWER, seconds=2) if beyond else limits.STORE_ANSWER
    trial.monkeypatch.setattr(object_store, "STORE_ANSWER", lowered)
    listing = b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"></ListBucketResult>'

    def answer(handler: Handler) -> None:
        Event().wait(3)
        handler.say(200, listing)

    with Server(answer) as server:
        return store_of(trial, server.url).everything()


@tries("STORE_CALL", "seconds", errors.ServerFailed)
def _store_call_seconds(trial: Trial, beyond: int) -> object:
    """The client itself repeats for longer."""
    if beyond:
        trial.lower(object_store, "STORE_CALL", seconds=0.2)

    def answer(handler: Handler) -> None:
        Event().wait(0.5)
        handler.say(200, ETag='"e"')

    with Server(answer) as server:
        return store_of(trial, server.url).put("a", b"x")


def entries(trial: Trial, pages: Iterator[Any]) -> object:
    store = object_store.Store("s3://bucket/model", cast(Any, None), Gate(lambda origin: None), cast(Any, None), 60)
    return list(store._entries(pages))


@tries("STORE_LISTING", "count", errors.BadAnswer)
def _listing_objects(trial: Trial, beyond: int) -> object:
    numbers = range(limits.STORE_LISTING.count + beyond)
    return entries(trial, iter([[{"path": f"f{n}", "size": 1, "e_tag": '"e"'} for n in numbers]]))


@tries("STORE_LISTING", "seconds", errors.BadAnswer)
def _listing_seconds(trial: Trial, beyond: int) -> object:
    if beyond:
        trial.lower(object_store, "STORE_LISTING", seconds=0.1)

    def pages() -> Iterator[Any]:
        Event().wait(0.3)
        yield []

    return entries(trial, pages())


@tries("GATE_HEAD", "nbytes", errors.BadAnswer)
def _gate_head(trial: Trial, beyond: int) -> object:
    from dsv4_shard.sources import gate

    class End:
        """A client that has sent a head of so many bytes."""

        def __init__(self, nbytes: int) -> None:
            self.left = b"x" * (nbytes - 4) + b"\r\n\r\n"

        def recv(self, nbytes: int, flags: int = 0) -> bytes:
            found = self.left[:nbytes]
            if not flags:
                self.left = self.left[nbytes:]
            return found

    try:
        return gate._read_head(cast(Any, End(limits.GATE_HEAD.nbytes + beyond)))
    except gate._Refused:
        raise errors.BadAnswer("refused") from None


@tries("SIGSTORE", "seconds", errors.Unreachable)
def _sigstore_seconds(trial: Trial, beyond: int) -> object:
    if beyond:
        trial.lower(library, "SIGSTORE", seconds=0.1)
    return library.ask_sigstore(lambda: Event().wait(0.3))


@tries("CLUSTER_CALL", "seconds", errors.Unreachable)
def _call_seconds(trial: Trial, beyond: int) -> object:
    """`ray.init` takes a while."""
    if beyond:
        trial.lower(ray_connection, "CLUSTER_CALL", seconds=0.1)
    ray = SimpleNamespace(init=lambda **_: Event().wait(0.3), shutdown=lambda: None)
    ray_connection._connect(ray, "auto")
    return True


@tries("CLUSTER_SHARE", "seconds", errors.NodesLost)
def _share_seconds(trial: Trial, beyond: int) -> object:
    """Its first message comes after a while."""
    if beyond:
        trial.lower(ray_cluster, "CLUSTER_SHARE", seconds=0.1)
    node, due = Node("a", "10.0.0.1"), Deadline(0.3)

    def wait(streams: list[Any], **_: object) -> tuple[list[Any], list[Any]]:
        Event().wait(0.05)
        return ([] if due.left else streams), []

    raised = SimpleNamespace(RayTaskError=KeyError)
    ray: Any = SimpleNamespace(wait=wait, get=lambda message: message, exceptions=raised)
    share = ray_cluster._Share((0, 1), node, node)
    connection: Any = SimpleNamespace(ray=ray, call=lambda call: call(), look=lambda: None)
    driver = ray_cluster._Driver(connection, cast(Any, None), [share], Reporter(None))
    driver._running[iter([ShareEnded(None, cast(Any, None))])] = share
    driver._write()
    return share.ended


# --- logs ----------------------------------------------------------------------------------------------------------


@tries("LOG", "nbytes", errors.ReadFailed)
def _log_bytes(trial: Trial, beyond: int) -> object:
    lowered = trial.lower(log_scan, "LOG", nbytes=100_000)
    return list(log_scan.lines_of(BytesIO(padded(b"x\n" * 40_000, lowered.nbytes + beyond))))


@tries("LOG_LINE", "nbytes", None)
def _log_line(trial: Trial, beyond: int) -> object:
    line = b"x" * (limits.LOG_LINE.nbytes - 1 + beyond) + b"\n"
    return len(list(log_scan.lines_of(BytesIO(line)))) == 1
