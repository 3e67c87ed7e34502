"""No command needs more than 512 MiB: the peak of real commands on the most hostile input of each kind."""

import base64
import gzip
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.skeletons import DATA
from support.checkpoints.small import least_config, reshard_folder, small_config
from support.keys import write_key
from support.servers.redirecting import Handler, Server
from support.servers.store import StoreServer

from dsv4_shard import limits
from dsv4_shard.checkpoint.synthetic import by_file, tensors_of, write_checkpoint
from dsv4_shard.sharding.manifest import read_manifest
from dsv4_shard.tensors.header import build_header
from fuzz.results import _entries_of, _journal, _journal_seeds, _sealed

MOST = 512 << 20
WIDE = "\U0001f600"
"""Takes four bytes in the file, and makes every character of its string take four in memory."""
CONFIG = (DATA / "DeepSeek-V4-Pro" / "config.json").read_bytes()
OTHER = json.dumps({"model_type": "other", "architectures": ["Other"]}).encode()

MEASURE = """
import os, sys
child = os.posix_spawn(sys.executable, [sys.executable, "-m", "dsv4_shard", *sys.argv[1:]], os.environ)
_, status, used = os.wait4(child, 0)
print(f"peak {used.ru_maxrss << 10} {os.waitstatus_to_exitcode(status)}", file=sys.stderr)
"""
"""Starts a command from a small process: a child's peak begins with that of the process that starts it."""


def peak(*command: object, env: dict[str, str] | None = None) -> tuple[int, int, str]:
    """Return the peak of a command's resident memory in bytes, its exit code and what it said."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, command)],
        capture_output=True, text=True, env=os.environ | (env or {}), timeout=250,
    )  # fmt: skip
    said, _, measured = done.stderr.rpartition("peak ")
    nbytes, code = map(int, measured.split())
    return nbytes, code, said + done.stdout


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


def folder_with(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def file_with(header: str) -> bytes:
    raw = header.encode()
    return len(raw).to_bytes(8, "little") + raw


def members(count: int, value: str, name: str = "") -> str:
    """An object of so many members."""
    return "{" + ",".join(f'"{name}{number:x}":{value}' for number in range(count)) + "}"


EMPTY = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'

# --- checkpoints ---------------------------------------------------------------------------------------------------

MANY = 194_000
"""Tensors up to which every command needs less than 512 MiB. NVFP4's 285,660 take more where files are written."""

HEADERS = {
    "most tensors": lambda: members(limits.HEADER.count // 7 - 1, EMPTY),
    "most tensors, wide names": lambda: members(limits.HEADER.count // 7 - 1, EMPTY, WIDE * 20),
    "most metadata": lambda: '{"__metadata__":' + members(limits.HEADER.count - 2, '""') + "}",
    "most values beside": lambda: '{"a":' + EMPTY[:-1] + ',"x":[' + "{}," * (limits.HEADER.count // 2 - 9) + "0]}}",
    "longest shape": lambda: (
        '{"a":{"dtype":"U8","shape":[0' + ",1" * (limits.HEADER.count - 9) + '],"data_offsets":[0,0]}}'
    ),
    "longest names": lambda: members(3, EMPTY, "x" * 10_000_000),
    "longest names, wide": lambda: members(3, EMPTY, WIDE * 2_500_000),
    "duplicates": lambda: '{"__metadata__":' + members(limits.HEADER.count - 3, '""')[:-1] + ',"0":":"}}',
}


DROPPED = {"most metadata", "most values beside", "duplicates"}
"""What is large in these is dropped or refused by the reader, before any family sees it."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "config"),
    [
        *(pytest.param(case, CONFIG, id=f"{case}, known family") for case in HEADERS),
        *(pytest.param(case, OTHER, id=f"{case}, unknown family") for case in HEADERS
          if case not in DROPPED),
    ],
)  # fmt: skip
def test_inspect_of_one_file(case: str, config: bytes, tmp_path: Path) -> None:
    files = {"config.json": config, "model.safetensors": file_with(HEADERS[case]())}
    nbytes, code, said = peak("inspect", folder_with(tmp_path / "model", files))
    assert nbytes < MOST, f"{nbytes >> 20} MiB"
    assert code in (0, 3), said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "command"),
    [(CONFIG, ("inspect",)), (CONFIG, ("plan", "--tp", "2")), (OTHER, ("inspect",))],
    ids=["inspect, known family", "plan, known family", "inspect, unknown family"],
)
def test_all_headers_at_once(config: bytes, command: tuple[str, ...], tmp_path: Path) -> None:
    """As many tensors as are read, with wide names, and then a file with as much metadata as is read."""
    files = {"config.json": config}
    weight_map: dict[str, str] = {}
    for number in range(3):
        names = [f"{chr(ord(WIDE) + number) * 9}{name:x}" for name in range((limits.HEADERS.count - 1) // 3)]
        files[f"m{number}.safetensors"] = file_with("{" + ",".join(f'"{name}":{EMPTY}' for name in names) + "}")
        weight_map |= dict.fromkeys(names, f"m{number}.safetensors")
    metadata = members(limits.HEADER.count - 20, '""')
    files["z.safetensors"] = file_with(f'{{"__metadata__":{metadata},"z":{EMPTY}}}')
    index = {"weight_map": weight_map | {"z": "z.safetensors"}}
    files["model.safetensors.index.json"] = json.dumps(index, ensure_ascii=False, separators=(",", ":")).encode()
    nbytes, code, said = peak(command[0], folder_with(tmp_path / "model", files), *command[1:])
    assert nbytes < MOST, f"{nbytes >> 20} MiB"
    assert code in (0, 3), said
    assert "too many" not in said


INDEXES = {
    "most entries": lambda: members(limits.INDEX.count - 2, '"m.safetensors"'),
    "most files": lambda: "{" + ",".join(f'"{n:x}":"m{n:x}.safetensors"' for n in range(limits.INDEX.count - 2)) + "}",
    "longest names": lambda: members(limits.INDEX.count // 2, '"m.safetensors"', WIDE * 6),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", INDEXES)
def test_inspect_of_an_index(case: str, tmp_path: Path) -> None:
    index = ('{"weight_map":' + INDEXES[case]() + "}").encode()
    assert len(index) < limits.INDEX.nbytes
    files = {"config.json": CONFIG, "m.safetensors": file_with("{}"), "model.safetensors.index.json": index}
    nbytes, code, said = peak("inspect", folder_with(tmp_path / "model", files))
    assert (nbytes < MOST, code) == (True, 3), f"{nbytes >> 20} MiB: {said}"


# --- what this tool wrote ------------------------------------------------------------------------------------------

_UNKNOWN = members(limits.PLAN.count // 2 - 9, "{}")
PLANS = {
    "unknown fields": _UNKNOWN[:-1] + ',"schema_version":2}',
    "unknown fields of modules": '{"schema_version":2,"modules":[' + _UNKNOWN + "]}",
    "empty modules": '{"schema_version":2,"modules":[' + "{}," * (limits.PLAN.count // 2 - 9) + "{}]}",
    "an earlier request": '{"schema_version":1,"request":' + members(limits.PLAN.count - 9, "1") + "}",
    "nesting": "[" * (limits.PLAN.count - 9),
    "one string": '{"schema_version":2,"tool_version":"' + WIDE * (limits.PLAN.nbytes // 4 - 99) + '"}',
}


@pytest.mark.slow
@pytest.mark.parametrize("case", PLANS)
def test_plans(case: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(PLANS[case])
    for command in (
        ("plan", "--compare", tmp_path / "plan.json", tmp_path / "plan.json"),
        ("report", tmp_path / "plan.json"),
    ):
        nbytes, code, said = peak(*command)
        assert (nbytes < MOST, code) == (True, 2), f"{nbytes >> 20} MiB: {said}"


FILE: dict[str, Any] = {
    "name": "a.safetensors", "ranks": [0], "nbytes": 10, "payload": 0, "header_digest": "0",
    "tensors": {}, "pieces": {}, "links": [],
}  # fmt: skip
BLANK: dict[str, Any] = {
    "schema_version": 2, "tool_version": "0.1.0", "written_by": {"0.1.0": [0]}, "digest": "", "layout": "sglang",
    "world": 1, "ranks": [0], "source": {"label": "x", "revision": None, "config_digest": "0", "files": []},
    "plan_digest": None, "identity": {}, "files": [], "companions": [], "left_out": {},
}  # fmt: skip
VALUES = limits.MANIFEST.count - 60


def numbered(count: int, value: Any) -> dict[str, Any]:
    return {f"{number:x}": value for number in range(count)}


MANIFESTS: dict[str, Callable[[], dict[str, Any]]] = {
    "most tensors": lambda: BLANK | {"files": [FILE | {"tensors": numbered(VALUES, "0" * 32)}]},
    "most tensors, schema 1": lambda: {
        key: value
        for key, value in (
            BLANK | {"schema_version": 1, "files": [FILE | {"tensors": numbered(VALUES, "0" * 32)}]}
        ).items()
        if key != "written_by"
    },
    "most pieces": lambda: (
        BLANK | {"files": [FILE | {"tensors": numbered(VALUES // 5, ""), "pieces": numbered(VALUES // 5, [[1, 1]])}]}
    ),
    "most files": lambda: BLANK | {"files": [FILE | {"name": f"{n}.safetensors"} for n in range(VALUES // 13)]},
    "most companions": lambda: (
        BLANK | {"companions": [{"name": f"{n}.json", "nbytes": 1, "digest": ""} for n in range(VALUES // 4)]}
    ),
    "wrong tensors": lambda: BLANK | {"files": [FILE | {"tensors": numbered(VALUES, 1)}]},
    "unknown fields": lambda: BLANK | numbered(VALUES // 2, {}),
    "unknown fields of a file": lambda: BLANK | {"files": [FILE | numbered(VALUES // 2, {})]},
    "one string": lambda: BLANK | {"left_out": {"a": WIDE * (limits.MANIFEST.nbytes // 4 - 999)}},
    "most ranks": lambda: BLANK | {"written_by": {"a": [0] * VALUES}},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests(case: str, tmp_path: Path) -> None:
    raw = _sealed(json.dumps(MANIFESTS[case]()).encode())
    assert len(raw) < limits.MANIFEST.nbytes
    out = folder_with(tmp_path / "out", {"manifest.json": raw, "a.safetensors": file_with("{}")})
    for command in (("verify", out), ("merge", out, tmp_path / "merged")):
        nbytes, code, said = peak(*command)
        assert nbytes < MOST, f"{nbytes >> 20} MiB: {said[-300:]}"
        assert code in (1, 3), said[-300:]
        if "manifest.json: damaged" in said:
            break  # refused by the reader that all commands have


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound result of two ranks. Not to be changed."""
    path = tmp_path_factory.mktemp("result")
    checkpoint = write_checkpoint(path / "model", least_config(), seed=1)
    reshard_folder(checkpoint, path / "out", tp=2)
    return path / "out"


def bomb(way: int, declared: int) -> bytes:
    """An archive whose config.json unpacks to 640 MiB, and declares less."""
    import io

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", way) as archive, archive.open("config.json", "w") as entry:
        for _ in range(640):
            entry.write(bytes(1 << 20))
    raw = bytearray(packed.getvalue())
    for at, field in ((raw.index(b"PK\3\4"), 22), (raw.rindex(b"PK\1\2"), 24)):
        raw[at + field : at + field + 4] = declared.to_bytes(4, "little")
    return bytes(raw)


def directory() -> bytes:
    """An archive of nothing but a directory."""
    entry = b"PK\1\2" + bytes(24) + (1).to_bytes(2, "little") + bytes(16) + b"x"
    count = limits.ARCHIVE.nbytes // len(entry) - 1
    return (
        entry * count
        + b"PK\5\6"
        + bytes(4)
        + b"\xff\xff\xff\xff"
        + (len(entry) * count).to_bytes(4, "little")
        + bytes(6)
    )


ARCHIVES = {
    "deflated": lambda: bomb(zipfile.ZIP_DEFLATED, 1000),
    "bzip2": lambda: bomb(zipfile.ZIP_BZIP2, 1000),
    "lzma": lambda: bomb(zipfile.ZIP_LZMA, 1000),
    "declared": lambda: bomb(zipfile.ZIP_DEFLATED, 1 << 30),
    "directory": directory,
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ARCHIVES)
def test_archives(case: str, result: Path, tmp_path: Path) -> None:
    """In a result whose manifest is sealed again."""
    from dsv4_shard.storage import digest_of

    raw = ARCHIVES[case]()
    out = folder_with(tmp_path / "out", {path.name: path.read_bytes() for path in result.iterdir() if path.is_file()})
    manifest = json.loads((out / "manifest.json").read_text())
    for entry in manifest["companions"]:
        if entry["name"] == "source.zip":
            entry |= {"nbytes": len(raw), "digest": digest_of(raw)}
    folder_with(out, {"source.zip": raw, "manifest.json": _sealed(json.dumps(manifest).encode())})
    nbytes, code, said = peak("merge", out, tmp_path / "merged")
    assert (nbytes < MOST, code) == (True, 3), f"{nbytes >> 20} MiB: {said}"
    assert "source.zip" in said


# --- whole runs ----------------------------------------------------------------------------------------------------

JOBS = ("--jobs", "8")
"""As many as there are by default on the largest machine."""


def within(*command: object, code: int = 0, env: dict[str, str] | None = None) -> str:
    """Run a command, hold it to its memory and its exit code, and return what it said."""
    nbytes, found, said = peak(*command, env=env)
    print(f"{nbytes >> 20} MiB: {' '.join(map(str, command))}")
    assert (nbytes < MOST, found) == (True, code), f"{nbytes >> 20} MiB: {said[-300:]}"
    return said


def sparse(path: Path, document: dict[str, Any]) -> Path:
    """A checkpoint of zeros, in as many files as a release has."""
    tensors = tensors_of(document, 0)
    path.mkdir()
    for name, members_of in by_file(tensors, document).items():
        header, placed = build_header(members_of)
        with (path / name).open("wb") as file:
            file.write(header)
            file.truncate(len(header) + max(info.stop for info in placed.values()))
    weight_map = {name: file for file, of_file in by_file(tensors, document).items() for name in of_file}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (path / "config.json").write_text(json.dumps(document))
    return path


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a third more tensors than V4-Pro has, all as small as they can be. Not to be changed."""
    layers = 4
    experts = 8070
    size = {"hidden_size": 32, "moe_intermediate_size": 32, "vocab_size": 64}
    document = least_config(num_hidden_layers=layers, compress_ratios=[0] * layers, n_routed_experts=experts, **size)
    path = sparse(tmp_path_factory.mktemp("many") / "model", document)
    assert 0.98 < len(tensors_of(document, 0)) / MANY < 1
    return path


@pytest.mark.slow
def test_the_most_tensors_are_planned_and_shown(many: Path, tmp_path: Path) -> None:
    within("plan", many, "--tp", "2", "--ep", "2", "--engine", "reference", "-o", tmp_path / "plan.json")
    for shown in (many, tmp_path / "plan.json"):
        within("report", shown, "-o", tmp_path / f"{shown.name}.html")


@pytest.mark.slow
def test_the_most_tensors_are_written_and_come_back(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    within("reshard", many, out, "--tp", "2", "--ep", "2", "--engine", "reference", *JOBS)
    within("verify", out, "--against", many, *JOBS)  # does what `verify` alone does, too
    within("merge", out, tmp_path / "merged", *JOBS)


@pytest.mark.slow
def test_the_most_small_files_and_links(tmp_path: Path) -> None:
    """A release's files as large as they may be, and a farm of links: to a file, which is one each, and to folders."""
    model = write_checkpoint(tmp_path / "model", small_config(), seed=1)
    for name in ("a.txt", "b.txt"):
        with (model / name).open("wb") as file:
            file.truncate(limits.COMPANIONS.nbytes // 2 - (1 << 20))
    (tmp_path / "large").open("wb").truncate(limits.COMPANION.nbytes)
    (model / "encoding").mkdir()
    for number in range(limits.TREE.count - 500):
        (model / "encoding" / f"{number}.txt").symlink_to(tmp_path / "large")
    for number in range(100):
        (model / f"loop{number}").symlink_to(model)
    for options in (("--tp", "2", "--ep", "2"), ("--tp", "2", "--ep", "2", "--engine", "reference")):
        out = tmp_path / options[-1]
        within("reshard", model, out, *options, *JOBS)
        assert (out / "a.txt").stat().st_size > 30 << 20
        within("verify", out, "--against", model, *JOBS)
        within("merge", out, tmp_path / f"merged-{options[-1]}", *JOBS)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [1 << 30, (limits.ROWS.nbytes >> 1) + 128])
def test_rows_that_are_too_long_are_refused(hidden: int, tmp_path: Path) -> None:
    model = sparse(tmp_path / "model", least_config(hidden_size=hidden))
    said = within("reshard", model, tmp_path / "out", "--tp", "1", "--engine", "reference", *JOBS, code=3)
    assert "bytes of its rows are needed at once" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_longest_rows_that_are_decoded(tmp_path: Path) -> None:
    """Rows of blocks of 4 MiB: of `wo_a`, which becomes BF16, and of FP4 experts, none of whose scales FP8 holds."""
    longest = limits.ROWS.nbytes // 128
    size = {"hidden_size": 2 * longest, "num_attention_heads": longest // 64, "head_dim": 128, "o_groups": 2}
    model = sparse(tmp_path / "model", least_config(**size))
    options = ("--tp", "2", "--engine", "reference", "--expert-dtype", "fp8", "--allow-inexact", *JOBS)
    within("reshard", model, tmp_path / "out", *options)
    within("verify", tmp_path / "out", "--against", model, *JOBS)


def with_result(folder: Path) -> Path:
    """A folder with as large a manifest as is read, of a result of other ranks."""
    document = MANIFESTS["most tensors"]() | {"world": 2}
    raw = read_manifest(_sealed(json.dumps(document).encode()), "manifest.json").to_bytes()
    return folder_with(folder, {"manifest.json": raw, "a.safetensors": bytes(10)})


@pytest.mark.slow
def test_results_at_the_destination(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", least_config(), seed=1)
    there = with_result(tmp_path / "there")
    asked = ("--tp", "2", "--engine", "reference")
    within("reshard", model, there, *asked, "--ranks", "1", code=4)
    within("reshard", model, there, *asked, "--overwrite")
    with StoreServer() as server:
        server.upload(with_result(tmp_path / "there2"), "there")
        said = within("reshard", model, "s3://bucket/there", *asked, "--overwrite", env=server.env())
        assert "there" in said


@pytest.mark.slow
@pytest.mark.parametrize("damage", [0, 1])
def test_journals(damage: int, tmp_path: Path) -> None:
    """As many steps, with as many digests, as are read; whole, and with the last byte damaged."""
    model = write_checkpoint(tmp_path / "model", least_config(), seed=1)
    steps = limits.JOURNAL.count - 9
    digests = (limits.JOURNAL.nbytes - (1 << 20)) // steps - 24
    step = struct.pack("<IIQQ", 0, digests, 0, 0) + bytes(digests)
    raw = bytearray(_journal([_entries_of(_journal_seeds()[0])[0], step * steps]))
    raw[-1] ^= damage
    folder_with(tmp_path / ".out.partial", {"journal": bytes(raw), ".dsv4-shard-staging": b"dsv4-shard staging\n"})
    said = within("reshard", model, tmp_path / "out", "--tp", "2", "--engine", "reference", code=4)
    assert "unfinished work of another run" in said


@pytest.mark.slow
def test_signatures(result: Path, tmp_path: Path) -> None:
    """As many values as are read, and as many bytes, in the statement that is signed; and a manifest at its limit."""
    pytest.importorskip("model_signing")
    pair = write_key(tmp_path, "signer")
    within("sign", with_result(tmp_path / "large"), "--key", pair.key, code=1)
    for payload in (
        b'{"a":[' + b"0," * (limits.SIGNATURE.count - 99) + b"0]}",
        b'{"a":"' + b"x" * (limits.SIGNATURE.nbytes * 3 // 4 - 999) + b'"}',
    ):
        signed = {"payload": base64.b64encode(payload).decode(), "payloadType": "application/vnd.in-toto+json"}
        material = {"publicKey": {"hint": "x"}, "tlogEntries": []}
        media = "application/vnd.dev.sigstore.bundle.v0.3+json"
        envelope = signed | {"signatures": [{"sig": "AAAA", "keyid": ""}]}
        bundle = {"mediaType": media, "verificationMaterial": material, "dsseEnvelope": envelope}
        (tmp_path / "model.sig").write_text(json.dumps(bundle))
        asked = ("--signature", tmp_path / "model.sig", "--public-key", pair.public)
        within("verify", result, *asked, code=1)


# --- logs and servers ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    [b"x" * 1023 + b"\n", b"x" * 1024, b"\n" * 1024, b"\\n" * 512, b"AssertionError: 7 is not divisible by 24\n" * 25],
)
def test_a_log_of_256_mib_or_of_many_lines(piece: bytes, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        for _ in range(256 if piece[0] == ord("x") else 4):
            log.write(piece * 1024)
    nbytes, code, said = peak("explain", tmp_path / "log")
    assert nbytes < MOST, f"{nbytes >> 20} MiB"
    assert code in (0, 1, 2), said


def answers() -> Iterator[tuple[str, Callable[[Handler], None]]]:
    zeros = gzip.compress(bytes(1 << 30), 1)
    files = limits.HUB_ANSWER.count // 4 - 9
    siblings = "[" + ",".join(f'{{"rfilename":"{n:x}","size":1}}' for n in range(files)) + "]"
    many = ('{"id":"o/m","sha":"' + "a" * 40 + '","siblings":' + siblings + "}").encode()
    yield "packed", lambda handler: handler.say(200, zeros, Content_Encoding="gzip")
    yield "an error, packed", lambda handler: handler.say(403, zeros, Content_Encoding="gzip")
    yield "most files", lambda handler: handler.say(200, many)
    yield (
        "a string",
        lambda handler: handler.say(200, b'"' + WIDE.encode() * (limits.HUB_ANSWER.nbytes // 4 - 9) + b'"'),
    )


@pytest.mark.slow
def test_answers_of_a_hub() -> None:
    for case, answer in answers():
        with Server(answer) as server:
            nbytes, code, said = peak("inspect", "o/m", env={"HF_ENDPOINT": server.url})
        assert nbytes < MOST, f"{case}: {nbytes >> 20} MiB"
        assert code in (3, 5), f"{case}: {said}"


def endless(status: int) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(4 << 30))
        handler.end_headers()
        while True:
            handler.wfile.write(b" " * (1 << 20))

    return answer


@pytest.mark.slow
@pytest.mark.parametrize("status", [200, 403, 500])
@pytest.mark.parametrize("command", [("inspect", "s3://b/m")])
def test_answers_of_a_store(status: int, command: tuple[str, ...]) -> None:
    with Server(endless(status)) as server:
        settings = {"ENDPOINT_URL": server.url, "ALLOW_HTTP": "true", "SKIP_SIGNATURE": "true"}
        nbytes, code, said = peak(*command, env={f"AWS_{name}": value for name, value in settings.items()})
    assert (nbytes < MOST, code) == (True, 5), f"{nbytes >> 20} MiB: {said}"
    assert f"more than {limits.STORE_ANSWER.nbytes:,} bytes" in said
