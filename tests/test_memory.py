"""No command needs more than 512 MiB: the peak of real commands on the most hostile input of each kind."""

import gzip
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.skeletons import DATA
from support.checkpoints.small import least_config, reshard_folder
from support.servers.redirecting import Handler, Server

from dsv4_shard import limits
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from fuzz.results import _sealed

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


def folder(path: Path, files: dict[str, bytes]) -> Path:
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


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, OTHER], ids=["known family", "unknown family"])
@pytest.mark.parametrize("case", HEADERS)
def test_inspect_of_one_file(case: str, config: bytes, tmp_path: Path) -> None:
    files = {"config.json": config, "model.safetensors": file_with(HEADERS[case]())}
    nbytes, code, said = peak("inspect", folder(tmp_path / "model", files))
    assert nbytes < MOST, f"{nbytes >> 20} MiB"
    assert code in (0, 3), said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, OTHER], ids=["known family", "unknown family"])
@pytest.mark.parametrize("command", [("inspect",), ("plan", "--tp", "2")])
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
    nbytes, code, said = peak(command[0], folder(tmp_path / "model", files), *command[1:])
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
    nbytes, code, said = peak("inspect", folder(tmp_path / "model", files))
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
    out = folder(tmp_path / "out", {"manifest.json": raw, "a.safetensors": file_with("{}")})
    for command in (("verify", out), ("merge", out, tmp_path / "merged")):
        nbytes, code, said = peak(*command)
        assert nbytes < MOST, f"{nbytes >> 20} MiB: {said[-300:]}"
        assert code in (1, 3), said[-300:]


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
    out = folder(tmp_path / "out", {path.name: path.read_bytes() for path in result.iterdir() if path.is_file()})
    manifest = json.loads((out / "manifest.json").read_text())
    for entry in manifest["companions"]:
        if entry["name"] == "source.zip":
            entry |= {"nbytes": len(raw), "digest": digest_of(raw)}
    folder(out, {"source.zip": raw, "manifest.json": _sealed(json.dumps(manifest).encode())})
    nbytes, code, said = peak("merge", out, tmp_path / "merged")
    assert (nbytes < MOST, code) == (True, 3), f"{nbytes >> 20} MiB: {said}"
    assert "source.zip" in said


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
