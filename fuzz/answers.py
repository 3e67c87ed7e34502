"""What must hold for any answer of the Hub or of an object store."""

import importlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any
from xml.etree import ElementTree

import safetensors

from dsv4_shard.errors import ShardError
from dsv4_shard.sources import object_store
from dsv4_shard.sources.hub import Repository, _ask_headers, _ask_listing
from dsv4_shard.tensors.header import build_header
from fuzz.mutate import mutate_json
from fuzz.target import Target, check_message, mutate_bytes

# --- the Hub -------------------------------------------------------------------------------------------------------

_COMMIT = "0123456789abcdef0123456789abcdef01234567"

_HEADER, _PLACED = build_header({"a": ("F32", (2, 3)), "b": ("BF16", (4,))}, {"format": "pt"})

_NBYTES = {"model-00001-of-00002.safetensors": len(_HEADER) + 32, "model-00002-of-00002.safetensors": len(_HEADER) + 32}

_REPOSITORY = Repository("https://hub.invalid", "org/model", "main", "org/model")


def _hub_seeds() -> list[bytes]:
    """The answer with the files, and on a second line that with the parsed headers."""
    files: list[dict[str, Any]] = [
        {"rfilename": "config.json", "size": 12, "blobId": "a" * 40},
        {"rfilename": "inference/model.py", "size": 12, "blobId": "b" * 40},
    ]
    for name, nbytes in _NBYTES.items():
        pointer = {"size": nbytes, "sha256": "d" * 64, "pointerSize": 134}
        files.append({"rfilename": name, "size": nbytes, "blobId": "c" * 40, "lfs": pointer})
    info = {
        "id": "org/model",
        "modelId": "org/model",
        "sha": _COMMIT,
        "siblings": files,
        "lastModified": "2026-01-01T00:00:00.000Z",
        "private": False,
        "gated": False,
        "downloads": 1,
        "tags": ["x"],
        "safetensors": {"parameters": {"F32": 6}, "total": 6},
    }
    parsed = json.loads(_HEADER[8:])
    headers = {"headers": dict.fromkeys(_NBYTES, parsed)}
    return [json.dumps(info).encode() + b"\n" + json.dumps(headers).encode()]


def _mutate_hub(data: bytes, random: Random) -> bytes:
    info, _, headers = data.partition(b"\n")
    if random.random() < 0.5:
        return mutate_json(info, random).replace(b"\n", b" ") + b"\n" + headers
    return info + b"\n" + mutate_json(headers, random)


@contextmanager
def _hub_that_answers(info: bytes, headers: bytes) -> Iterator[None]:
    """Put a transport without network under huggingface_hub's client inside the block."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils._http import default_client_factory

    # huggingface_hub 1 uses httpx, 2 uses httpx2. Its own error class derives from the one in use.
    base = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    library: Any = importlib.import_module(base.__module__.partition(".")[0])

    def answer(request: Any) -> Any:
        is_headers = "safetensors-metadata" in str(request.url)
        return library.Response(200, content=headers if is_headers else info)

    transport = library.MockTransport(answer)
    set_client_factory(lambda: library.Client(transport=transport, follow_redirects=True, trust_env=False))
    try:
        yield
    finally:
        set_client_factory(default_client_factory)


def _check_hub(data: bytes) -> None:
    """A listing that is accepted is that of the JSON, and a header that is accepted is read by the library."""
    info, _, headers = data.partition(b"\n")
    with _hub_that_answers(info, headers):
        _check_listing(info)
        _check_headers(headers)


def _check_listing(info: bytes) -> None:
    try:
        commit, listing = _ask_listing(_REPOSITORY)
    except ShardError as error:
        check_message(error)
        return
    document = json.loads(info)
    assert commit == document["sha"]
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    files = document.get("siblings") or ()
    theirs = {one["rfilename"]: one["size"] for one in files}
    assert {name: listed.nbytes for name, listed in listing.items()} == theirs
    assert all({"", ".", ".."}.isdisjoint(name.split("/")) for name in listing)
    assert not any(re.search(r"[\\\x00-\x1f\x7f-\x9f]", name) for name in listing if "/" not in name)
    for listed in listing.values():
        assert type(listed.stamp) is str, "an ETag is compared, and kept in a file"
        assert listed.sha256 is None or type(listed.sha256) is str


def _check_headers(answer: bytes) -> None:
    try:
        found = _ask_headers(_REPOSITORY, _NBYTES)
    except ShardError as error:
        check_message(error)
        return
    if found is None:
        return
    parsed = json.loads(answer)["headers"]
    for name, header in found.items():
        assert len(header) == 8 + int.from_bytes(header[:8], "little") <= _NBYTES[name]
        tensors = {key: value for key, value in json.loads(header[8:]).items() if key != "__metadata__"}
        asked = {key: value for key, value in parsed[name].items() if key != "__metadata__"}
        assert {
            key: {field: value[field] for field in ("dtype", "shape", "data_offsets")} for key, value in asked.items()
        } == tensors
        try:
            safetensors.deserialize(header + bytes(_NBYTES[name] - len(header)))  # type: ignore[no-untyped-call]
        except safetensors.SafetensorError:
            continue  # refused later, as any header is


# --- object stores -------------------------------------------------------------------------------------------------

_EMPTY = b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"></ListBucketResult>'


def _store_seeds() -> list[bytes]:
    entries = "".join(
        f"<Contents><Key>model/{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;e{size}&quot;</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for name, size in (("config.json", 12), ("a.safetensors", 900), ("folder/b", 0), ("", 0))
    )
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    rest = "<Name>bucket</Name><Prefix>model/</Prefix><KeyCount>4</KeyCount><MaxKeys>1000</MaxKeys>"
    return [
        f"{head}{rest}<IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode(),
        f"{head}{rest}<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>{entries}"
        "</ListBucketResult>".encode(),
    ]


_PIECE = re.compile(rb"<[^<>]*>|[^<>]+")

_HOSTILE = (
    *(b"-1", b"1e9", b"18446744073709551616", b"9223372036854775808", b"", b"0", b"true", b"2026", b"\xff"),
    *(
        b"model/../x",
        b"model//x",
        b"/",
        b"other/x",
        b"model/a&#0;b",
        b"model/&#x1b;[31m",
        b"%2e%2e",
        b"model/" + b"x" * 2000,
    ),
    *(b"&amp;", b"&x;", b"<![CDATA[<x>]]>", b"<!-- -->", b"<Contents/>", b"<!DOCTYPE x [<!ENTITY y 'z'>]>"),
    "model/\u202e".encode(),
)


def _mutate_store(data: bytes, random: Random) -> bytes:
    """Other texts, elements lost, repeated or in another place; or bytes."""
    pieces = _PIECE.findall(data)
    if not pieces or random.random() < 0.2:
        return mutate_bytes(data, random)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(pieces))
        match random.randrange(4):
            case 0:
                pieces[at] = random.choice(_HOSTILE)
            case 1:
                del pieces[at : at + random.choice((1, 3))]
            case 2:
                pieces[at:at] = pieces[at : at + random.choice((1, 3, 17))]
            case _:
                pieces.insert(at, random.choice(pieces))
        if not pieces:
            break
    return b"".join(pieces)


class _Store(BaseHTTPRequestHandler):
    """Answers the first request for a listing with `body`, later ones with an empty page."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    body = b""

    def do_GET(self) -> None:
        body, type(self).body = type(self).body, _EMPTY
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@cache
def _store() -> object_store.Store:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Store)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_SKIP_SIGNATURE": "true",
    }
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        return object_store.connect("s3://bucket/model")
    finally:
        os.environ.clear()
        os.environ.update(before)


def _check_store(data: bytes) -> None:
    """Objects of a listing that is accepted are those that an XML parser finds in it, with their sizes and ETags."""
    store = _store()
    _Store.body = data
    try:
        listing = store.everything()
    except ShardError as error:
        check_message(error)
        return
    assert all(type(one.nbytes) is int and one.nbytes >= 0 and one.stamp.endswith('"') for one in listing.values())
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError):
        return  # obstore's parser is not strict; its names are checked as any others
    sizes = {"".join(one.itertext()).strip().lstrip("+").lstrip("0") or "0" for one in root.iter() if _is_size(one)}
    assert {str(one.nbytes) for one in listing.values()} <= sizes


def _is_size(element: ElementTree.Element) -> bool:
    return str(element.tag).rpartition("}")[2].rpartition(":")[2] == "Size"


TARGETS = {
    "hub": Target(_hub_seeds, _mutate_hub, _check_hub),
    "store": Target(_store_seeds, _mutate_store, _check_store),
}
