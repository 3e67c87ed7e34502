"""A Hub of this machine's folders: the routes that huggingface_hub asks, on loopback, with faults to switch on.

Files in LFS are served by a second host, as the Hub's are by a CDN: `resolve` answers with a redirect to a signed URL.
Every request is recorded with the bytes of its answer. Repositories may be sparse files of full size: no weights are
read whole.
"""

import base64
import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlencode, urlsplit

from support.servers.loopback import BODY_FAULTS, RANGE_FAULTS, REFUSALS, Fault, Recorder, Request, shut

HUB_HOST, CDN_HOST = "127.0.0.1", "127.0.0.2"
STRANGER = "hf_stranger"
"""A valid token whose user was granted nothing."""
CHUNK_BYTES = 1 << 18
UPLOAD_ROUTES = {"create", "validate", "preupload", "commit"}
LFS_SUFFIXES = (".safetensors", ".bin")
INDEX = "model.safetensors.index.json"

ANSWERS = {
    "unauthorized": (401, "", "Invalid credentials in Authorization header"),
    "forbidden": (403, "", "You have been denied access to this resource"),
    "gated": (403, "GatedRepo", "Access to model {repo} is restricted and you are not in the authorized list."),
    "repo_not_found": (404, "RepoNotFound", "Repository not found"),
    "revision_not_found": (404, "RevisionNotFound", "Invalid rev id: {revision}"),
    "entry_not_found": (404, "EntryNotFound", "Entry not found"),
    "no_route": (404, "", "Sorry, we can't find the page you are looking for."),
    "too_many": (429, "", "Too many requests"),
    "status": (0, "", "Internal Error - We're working hard to fix this as soon as possible!"),
}
"""kind of fault → status, X-Error-Code, X-Error-Message"""


@dataclass(frozen=True, slots=True)
class Blob:
    """A file of a commit."""

    path: Path
    size: int
    oid: str
    """Git's name for it, or for its LFS pointer."""
    sha256: str | None
    """None: not in LFS."""


@dataclass(slots=True)
class Repo:
    access: str
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes | Blob = b""

    @property
    def size(self) -> int:
        return self.body.size if isinstance(self.body, Blob) else len(self.body)


def sha256_of(path: Path) -> str:
    """What the Hub says of an LFS file; worked out once for each state of the file."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fake_digest(path: Path) -> str:
    """For sparse files of full size: of the file's name and size."""
    return hashlib.sha256(f"{path.name} {path.stat().st_size}".encode()).hexdigest()


def _blob(path: Path, digest: Callable[[Path], str]) -> Blob:
    size = path.stat().st_size
    if path.suffix not in LFS_SUFFIXES:
        content = path.read_bytes()
        return Blob(path, size, _git_oid(content), None)
    sha256 = digest(path)
    return Blob(path, size, _git_oid(_pointer(sha256, size)), sha256)


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def span_of(header: str, size: int) -> tuple[int, int] | None:
    """The half-open range that a Range header asks of `size` bytes; None where it lies outside."""
    first, _, last = header.removeprefix("bytes=").partition("-")
    if not first:
        return (max(size - int(last), 0), size) if int(last) and size else None
    start = int(first)
    stop = min(int(last) + 1, size) if last else size
    return (start, stop) if start < stop else None


class HubServer(Recorder):
    """Serves until `close`, or for a `with` block.

    Its hosts are `hub` and `cdn`; its routes `info`, `tree`, `paths-info`, `headers` (safetensors-metadata), `resolve`,
    `cache` (resolve-cache), `cdn` and `unknown`; and of uploads, which go into the folder `uploads`, `create`,
    `validate`, `preupload` and `commit`. Every file of an upload is taken as a regular one, none through Xet.
    """

    def __init__(self, *, token: str = "hf_reader", latency: float = 0.0, page_size: int = 1000) -> None:
        super().__init__(latency)
        self.token = token
        self.page_size = page_size
        self.uploads: Path | None = None
        self.small_elsewhere = False
        """Whether files that are in Git itself are at another address of the same host, as at the Hub."""
        self.failures: list[BaseException] = []
        """What went wrong in the server itself."""
        self.connections: set[socket.socket] = set()
        self._repos: dict[str, Repo] = {}
        self._signed: dict[str, tuple[str, str, Blob]] = {}
        self._expired: set[str] = set()
        self._headers: dict[tuple[str, str], bytes] = {}
        self._hosts = [_Host(self, "hub", HUB_HOST), _Host(self, "cdn", CDN_HOST)]
        self.url, self.cdn_url = (host.url for host in self._hosts)

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all connections; raises what went wrong in the server itself."""
        self.released.set()
        for host in self._hosts:
            host.shutdown()
            host.server_close()
        with self.lock:
            for connection in self.connections:
                shut(connection)
        if self.failures:
            raise self.failures[0]

    # --- what it holds ------------------------------------------------------------------------------------------------

    def add_repo(
        self,
        repo: str,
        branches: Mapping[str, Path],
        *,
        access: str = "public",
        digest: Callable[[Path], str] = sha256_of,
    ) -> dict[str, str]:
        """branch → its commit. `access` is `public`, `gated` (its files need the token) or `private`."""
        self._repos[repo] = Repo(access)
        return {branch: self.move_branch(repo, branch, folder, digest=digest) for branch, folder in branches.items()}

    def move_branch(self, repo: str, branch: str, folder: Path, *, digest: Callable[[Path], str] = sha256_of) -> str:
        """The new commit, of what `folder` holds now; the branch is made where it is not there.

        Former commits still serve the files of their own folders: what they hold must not be written over.
        """
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        blobs = {path.relative_to(folder).as_posix(): _blob(path, digest) for path in paths}
        with self.lock:
            held = self._repos[repo]
            commit = hashlib.sha1(f"{repo} {len(held.commits)}".encode()).hexdigest()
            held.commits[commit] = blobs
            held.branches[branch] = commit
        return commit

    def head(self, repo: str, branch: str = "main") -> str:
        """The commit that a branch is at."""
        return self._repos[repo].branches[branch]

    # --- what it saw --------------------------------------------------------------------------------------------------

    @property
    def token_leaked(self) -> bool:
        """Whether an Authorization header came to the CDN."""
        return bool(self.seen(host="cdn", authorized=True))

    def env(self, home: Path) -> dict[str, str]:
        """What makes huggingface_hub in another process a client of this server, with its caches under `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "",
            "HF_TOKEN_PATH": str(home / "token"),
        }

    # --- for the handlers ---------------------------------------------------------------------------------------------

    def sign(self, repo: str, file: str, blob: Blob) -> str:
        """The CDN's URL for a file."""
        with self.lock:
            signature = hashlib.sha256(f"{repo} {len(self._signed)}".encode()).hexdigest()
            self._signed[signature] = (repo, file, blob)
        query = urlencode(
            {"X-Amz-Expires": 3600, "Signature": signature, "response-content-type": "application/octet-stream"}
        )
        return f"{self.cdn_url}/repos/{blob.sha256}?{query}"

    def signed(self, signature: str) -> tuple[str, str, Blob] | None:
        return self._signed.get(signature)

    def expire(self, signature: str) -> None:
        self._expired.add(signature)

    def answer_cdn(self, signature: str) -> Answer:
        signed = self.signed(signature)
        if signed is None or signature in self._expired:
            return Answer(403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")
        blob = signed[2]
        return Answer(200, {"ETag": f'"{blob.sha256}"', "Accept-Ranges": "bytes"}, blob)

    def answer_hub(
        self, request: Request, authorization: str | None, query: dict[str, str], paths: list[str]
    ) -> Answer:
        if authorization not in (None, f"Bearer {self.token}", f"Bearer {STRANGER}"):
            return refuse("unauthorized", request)
        reader = authorization == f"Bearer {self.token}"
        repo = self._repos.get(request.repo)
        if request.route == "unknown":
            return refuse("no_route", request)
        if repo is None or (repo.access == "private" and not reader):
            # Who did not log in is not told whether it exists.
            return refuse("repo_not_found", request, status=404 if authorization else 401)
        if repo.access == "gated" and not reader and request.route in ("resolve", "cache", "headers"):
            return refuse("gated", request, status=403 if authorization else 401)
        commit = repo.branches.get(request.revision, request.revision)
        if commit not in repo.commits:
            return refuse("revision_not_found", request)
        blobs = repo.commits[commit]
        match request.route:
            case "info":
                return _json(
                    self._info(request.repo, repo, commit, with_blobs=query.get("blobs", "").lower() == "true")
                )
            case "tree":
                return self._tree(request, blobs, query)
            case "paths-info":
                entries = _entries(blobs)
                return _json([entries[path] for path in paths if path in entries])
        headers = {"X-Repo-Commit": commit}
        blob = blobs.get(request.file)
        if blob is None:
            return refuse("entry_not_found", request, headers=headers)
        if request.route == "headers":
            return Answer(200, {"Content-Type": "application/json"}, self._safetensors(request, commit, blobs))
        if blob.sha256 is None and self.small_elsewhere and request.route == "resolve":
            place = f"/api/resolve-cache/models/{request.repo}/{commit}/{request.file}"
            return Answer(307, headers | {"Location": place}, b"")
        if request.route == "cache" or blob.sha256 is None:
            return Answer(200, headers | {"ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}, blob)
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size), "ETag": f'"{blob.oid}"'}
        return Answer(302, headers | {"Location": self.sign(request.repo, request.file, blob)}, b"Found. Redirecting")

    def answer_upload(self, request: Request, authorization: str | None, content: bytes) -> Answer:
        """What a client that uploads gets; the commit is what its folder below `uploads` holds then."""
        if authorization != f"Bearer {self.token}" or self.uploads is None:
            return refuse("unauthorized", request)
        if request.route == "create":
            asked = json.loads(content)
            repo = f"{asked['organization']}/{asked['name']}"
            made = _json({"url": f"{self.url}/{repo}"})
            if repo in self._repos:
                return Answer(409, made.headers, made.body)
            (self.uploads / repo).mkdir(parents=True)
            (self.uploads / repo / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
            self.add_repo(repo, {"main": self.uploads / repo})
            return made
        if request.route == "validate":
            return _json({"errors": [], "warnings": []})
        if request.route == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(content)["files"]]  # fmt: skip
            return _json({"files": files})
        for line in map(json.loads, content.splitlines()):
            if line["key"] == "file":
                path = self.uploads / request.repo / line["value"]["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(line["value"]["content"]))
        commit = self.move_branch(request.repo, request.revision, self.uploads / request.repo)
        return _json({"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{request.repo}/commit/{commit}"})

    def _info(self, repo_id: str, repo: Repo, commit: str, *, with_blobs: bool) -> dict[str, Any]:
        siblings: list[dict[str, Any]] = []
        for name, blob in repo.commits[commit].items():
            siblings.append({"rfilename": name})
            if with_blobs:
                siblings[-1] |= {"size": blob.size, "blobId": blob.oid}
            if with_blobs and blob.sha256:
                pointer = len(_pointer(blob.sha256, blob.size))
                siblings[-1]["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": pointer}
        when = "2026-04-24T00:00:00.000Z"
        return {
            "_id": commit[:24],
            "id": repo_id,
            "modelId": repo_id,
            "author": repo_id.partition("/")[0],
            "sha": commit,
            "lastModified": when,
            "createdAt": when,
            "private": repo.access == "private",
            "gated": "manual" if repo.access == "gated" else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": ["safetensors"],
            "siblings": siblings,
        }

    def _tree(self, request: Request, blobs: dict[str, Blob], query: dict[str, str]) -> Answer:
        below = f"{request.file}/" if request.file else ""
        entries = [e for path, e in sorted(_entries(blobs).items()) if path.startswith(below)]
        if not entries:
            return refuse("entry_not_found", request)
        if query.get("recursive", "").lower() != "true":
            entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(below)]
        first = int(query.get("cursor", 0))
        last = first + min(self.page_size, int(query.get("limit", self.page_size)))
        answer = _json(entries[first:last])
        if last < len(entries):
            path = f"/api/models/{request.repo}/tree/{quote(request.revision, safe='')}/{quote(request.file)}".rstrip(
                "/"
            )
            following = f"{self.url}{path}?{urlencode(query | {'cursor': last})}"
            answer.headers["Link"] = f'<{following}>; rel="next"'
        return answer

    def _safetensors(self, request: Request, commit: str, blobs: dict[str, Blob]) -> bytes:
        """The index without its weight_map, and the header of each file it names."""
        key = (commit, request.file)
        if key not in self._headers:
            index = json.loads(blobs[request.file].path.read_bytes())
            folder = request.file.rpartition("/")[0]
            names = sorted(set(index["weight_map"].values()))
            headers = {name: _header_of(blobs[f"{folder}/{name}".lstrip("/")].path) for name in names}
            self._headers[key] = json.dumps({"index": {"metadata": index.get("metadata")}, "headers": headers}).encode()
        return self._headers[key]


def _header_of(path: Path) -> Any:
    with path.open("rb") as stream:
        return json.loads(stream.read(int.from_bytes(stream.read(8), "little")))


def _entries(blobs: dict[str, Blob]) -> dict[str, dict[str, Any]]:
    """path → file or folder, as `tree` tells it."""
    entries: dict[str, dict[str, Any]] = {}
    for name, blob in blobs.items():
        entries[name] = {"type": "file", "path": name, "size": blob.size, "oid": blob.oid}
        if blob.sha256:
            pointer = len(_pointer(blob.sha256, blob.size))
            entries[name]["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": pointer}
        for folder in Path(name).parents:
            if path := folder.as_posix().strip("."):
                entries[path] = {"type": "directory", "path": path, "size": 0, "oid": _git_oid(path.encode())}
    return entries


def _json(document: Any) -> Answer:
    return Answer(200, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(document).encode())


def refuse(
    kind: str,
    request: Request,
    *,
    status: int = 0,
    headers: Mapping[str, str] | None = None,
    retry_after: int | None = None,
) -> Answer:
    """An error as the Hub answers it."""
    usual, code, message = ANSWERS[kind]
    message = message.format(repo=request.repo, revision=request.revision)
    told = {"Content-Type": "application/json", "X-Error-Message": message, **(headers or {})}
    if code:
        told["X-Error-Code"] = code
    if retry_after is not None:
        told["Retry-After"] = str(retry_after)
    return Answer(status or usual, told, json.dumps({"error": message}).encode())


class _Host(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # a client may open many connections at once

    def __init__(self, hub: HubServer, name: str, host: str) -> None:
        self.hub = hub
        self.name = name
        super().__init__((host, 0), _Handler)
        self.url = f"http://{host}:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        raised = sys.exception()
        if raised is not None and not isinstance(raised, ConnectionError):
            self.hub.failures.append(raised)


class _Handler(BaseHTTPRequestHandler):
    server: _Host
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are sent apart

    def setup(self) -> None:
        super().setup()
        with self.server.hub.lock:
            self.server.hub.connections.add(self.connection)

    def finish(self) -> None:
        with self.server.hub.lock:
            self.server.hub.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def _handle(self) -> None:
        hub = self.server.hub
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if hub.latency:
            time.sleep(hub.latency)
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        signature = query.get("Signature", "")
        request = self._cdn_request(signature) if self.server.name == "cdn" else _hub_request(url.path)
        request.method = self.command
        request.range = self.headers.get("Range")
        request.authorized = "Authorization" in self.headers
        request.received = len(content)
        hub.record(request)
        if fault := hub.strike(request, {"call"}):
            fault.call()
        if hub.strike(request, {"stall"}):
            hub.stall(self.connection)
        if self.server.name == "cdn" and hub.strike(request, {"expired"}):
            hub.expire(signature)
        if fault := hub.strike(request, set(REFUSALS)):
            status = fault.status if fault.kind == "status" else 0
            answer = refuse(fault.kind, request, status=status, retry_after=fault.retry_after)
        elif self.server.name == "cdn":
            answer = hub.answer_cdn(signature)
        elif request.route in UPLOAD_ROUTES:
            answer = hub.answer_upload(request, self.headers.get("Authorization"), content)
        else:
            answer = hub.answer_hub(request, self.headers.get("Authorization"), query, self._paths(content))
        self._send(request, answer)

    def _cdn_request(self, signature: str) -> Request:
        repo, file, _ = self.server.hub.signed(signature) or ("", "", None)
        return Request("cdn", "", "cdn", repo=repo, file=file)

    def _paths(self, content: bytes) -> list[str]:
        if self.headers.get_content_type() == "application/json":
            return list(json.loads(content)["paths"])
        return parse_qs(content.decode()).get("paths", [])

    def _send(self, request: Request, answer: Answer) -> None:
        hub = self.server.hub
        headers = dict(answer.headers)
        status, body, start, stop = answer.status, answer.body, 0, answer.size
        content = isinstance(body, Blob)
        if content and request.range is not None:
            fault = hub.strike(request, RANGE_FAULTS) if request.method == "GET" else None
            kind = fault.kind if fault else ""
            span = span_of(request.range, stop)
            if kind == "ignore_range":
                pass
            elif span is None:
                status, headers["Content-Range"], body, start, stop = 416, f"bytes */{stop}", b"", 0, 0
            else:
                status, (start, stop) = 206, span
                if kind == "short_range":
                    stop = start + (stop - start + 1) // 2
                off, more = int(kind == "wrong_range"), int(kind == "wrong_total")
                headers["Content-Range"] = f"bytes {start + off}-{stop - 1 + off}/{answer.size + more}"
        request.status = status
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(stop - start)}.items():
            self.send_header(name, value)
        self.end_headers()
        if request.method == "HEAD":
            return
        if status in (200, 206) and (fault := hub.strike(request, BODY_FAULTS, named=not content)):
            self._send_body(request, body, start, stop, fault)
        else:
            self._send_span(request, body, start, stop)

    def _send_body(self, request: Request, body: bytes | Blob, start: int, stop: int, fault: Fault) -> None:
        at = start + ((stop - start) // 2 if fault.at is None else fault.at)
        self._send_span(request, body, start, at)
        if fault.kind == "cut":
            self._cut()
            return
        if fault.kind == "stall_body":
            self.server.hub.stall(self.connection)
        if fault.kind == "corrupt":
            self._send_span(request, body, at, at + 1, flip=0x01)
            at += 1
        self._send_span(request, body, at, stop)

    def _send_span(self, request: Request, body: bytes | Blob, start: int, stop: int, *, flip: int = 0) -> None:
        with _reader(body) as read:
            while start < stop:
                piece = read(start, min(CHUNK_BYTES, stop - start))
                if not piece:
                    raise EOFError(f"{request.file} became shorter while it was served")
                # Counted first: who has received the last byte may ask for the count at once.
                request.sent += len(piece)
                self.connection.sendall(bytes(byte ^ flip for byte in piece) if flip else piece)
                start += len(piece)

    def _cut(self) -> None:
        self.close_connection = True
        shut(self.connection)


def _hub_request(path: str) -> Request:
    """What a path of the Hub asks for; without its method and headers."""
    segments = [unquote(segment) for segment in path.split("/")[1:]]
    match segments:
        case ["api", "repos", "create"]:
            return Request("hub", "", "create")
        case ["api", "validate-yaml"]:
            return Request("hub", "", "validate")
        case ["api", "models", org, name, ("preupload" | "commit") as route, revision]:
            return Request("hub", "", route, f"{org}/{name}", revision)
        case ["api", "models", org, name]:
            return Request("hub", "", "info", f"{org}/{name}")
        case ["api", "models", org, name, "revision", revision]:
            return Request("hub", "", "info", f"{org}/{name}", revision)
        case ["api", "models", org, name, "tree", revision, *file]:
            return Request("hub", "", "tree", f"{org}/{name}", revision, "/".join(file))
        case ["api", "models", org, name, "paths-info", revision]:
            return Request("hub", "", "paths-info", f"{org}/{name}", revision)
        case ["api", "models", org, name, "safetensors-metadata", *file]:
            return Request("hub", "", "headers", f"{org}/{name}", "main", "/".join(file))
        case ["api", "resolve-cache", "models", org, name, revision, *file]:
            return Request("hub", "", "cache", f"{org}/{name}", revision, "/".join(file))
        case [org, name, "resolve", revision, *file]:
            return Request("hub", "", "resolve", f"{org}/{name}", revision, "/".join(file))
    return Request("hub", "", "unknown", file=path)


@contextmanager
def _reader(body: bytes | Blob) -> Iterator[Callable[[int, int], bytes]]:
    """Reads (start, how much) of a body."""
    if isinstance(body, bytes):
        yield lambda start, nbytes: body[start : start + nbytes]
        return
    fd = os.open(body.path, os.O_RDONLY)
    try:
        yield lambda start, nbytes: os.pread(fd, nbytes, start)
    finally:
        os.close(fd)
