"""An S3 server on loopback: moto's, with every request recorded and faults to switch on. It serves gs:// too.

moto holds objects in memory and checks no signature; the access key is checked here, and bodies against the SHA-256
that they are signed with. Google's XML API, which obstore speaks, is S3's with other headers for the credentials and
for what must not be there yet: these are translated.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from moto.backends import get_backend
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from support.servers.loopback import BODY_FAULTS, RANGE_FAULTS, REFUSALS, Fault, Recorder, Request, shut
from werkzeug.datastructures import Headers
from werkzeug.serving import WSGIRequestHandler, make_server

ACCESS_KEY, SECRET_KEY, REGION = "AKIAREADER", "secret", "us-east-1"

ANSWERS = {
    "unauthorized": (403, "SignatureDoesNotMatch"),
    "forbidden": (403, "AccessDenied"),
    "entry_not_found": (404, "NoSuchKey"),
    "too_many": (429, "TooManyRequests"),
    "status": (0, "InternalError"),
    "other_region": (400, "AuthorizationHeaderMalformed"),
    "redirect": (307, "TemporaryRedirect"),
    "damage": (400, "XAmzContentSHA256Mismatch"),
}
"""kind of fault → status, code of the error"""

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class StoreServer(Recorder):
    """Serves one empty bucket until `close`, or for a `with` block. One at a time in a process: moto's state is global.

    Its routes are `get`, `head`, `put`, `list`, `delete`, `create`, `part`, `complete` and `abort` (a multipart
    upload's), and `bucket`. A request's `file` is the key.
    """

    def __init__(self, *, bucket: str = "bucket", latency: float = 0.0) -> None:
        super().__init__(latency)
        self.bucket = bucket
        self._is_google = False
        self._app = DomainDispatcherApplication(create_backend_app)
        self._backend = get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"]
        self._backend.create_bucket(bucket, REGION)
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=_Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self) -> "StoreServer":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._backend.reset()

    def env(self) -> dict[str, str]:
        """What makes obstore and boto3 clients of this server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION,
        }

    def google_env(self, account: Path) -> dict[str, str]:
        """What makes gs:// of obstore a client of this server, by an account that is written to the file `account`.

        It sends no credentials; from here on none are asked for.
        """
        self._is_google = True
        keys = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        account.write_text(json.dumps({"gcs_base_url": self.url, "disable_oauth": True, **keys}))
        return {"GOOGLE_SERVICE_ACCOUNT": str(account), "GOOGLE_ALLOW_HTTP": "true"}

    # --- what it holds, without a request -----------------------------------------------------------------------------

    def put(self, key: str, content: bytes) -> None:
        self._backend.put_object(self.bucket, key, content)

    def upload(self, folder: Path, prefix: str = "") -> None:
        """The files of a folder, below `prefix`."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}".lstrip("/"), path.read_bytes())

    def objects(self) -> dict[str, bytes]:
        """key → content, of what is whole."""
        return {key.name: key.value for key in self._backend.buckets[self.bucket].keys.values()}

    def uploads(self) -> int:
        """How many multipart uploads were begun and neither completed nor aborted."""
        return len(self._backend.buckets[self.bucket].multiparts)

    # --- its answers --------------------------------------------------------------------------------------------------

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = _request(environ, self.bucket)
        self.record(request)
        if self.latency:
            time.sleep(self.latency)
        if fault := self.strike(request, {"call"}):
            fault.call()
        # Before a stall: behind an unread body, it would not be seen that the client has left.
        sent = bytearray(environ["wsgi.input"].read(request.received))
        if self.strike(request, {"stall"}):
            self.stall(environ["werkzeug.socket"])
        refused = self.strike(request, REFUSALS)
        if sent and self.strike(request, {"damage"}):
            sent[0] ^= 0x01
        environ["wsgi.input"] = BytesIO(sent)
        if self._is_google:
            _as_s3(environ)
        signed = environ.get("HTTP_AUTHORIZATION", ""), unquote(environ.get("QUERY_STRING", ""))
        if not any(f"Credential={ACCESS_KEY}/" in place for place in signed):
            refused = refused or Fault("unauthorized")
        elif not _is_as_signed(environ.get("HTTP_X_AMZ_CONTENT_SHA256", ""), sent):
            refused = refused or Fault("damage")
        if refused:
            return self._refuse(request, refused, start_response)
        if self.strike(request, {"ignore_match"}):
            environ.pop("HTTP_IF_MATCH", None)
        spoiled = self.strike(request, RANGE_FAULTS) if request.range else None
        kind = spoiled.kind if spoiled else ""
        first, last = map(int, _RANGE.findall(request.range or "")[0]) if spoiled else (0, 0)
        if kind == "short_range":
            environ["HTTP_RANGE"] = f"bytes={first}-{(first + last) // 2}"
        elif kind in ("ignore_range", "long_range"):
            del environ["HTTP_RANGE"]

        def begin(status: str, headers: list[tuple[str, str]], raised: Any = None) -> Any:
            if kind in ("wrong_range", "wrong_total", "long_range"):
                status, headers = "206 PARTIAL CONTENT", _mislabelled(headers, kind, first, last)
            request.status = int(status.split()[0])
            return start_response(status, headers, raised)

        pieces: Iterable[bytes] = self._app(environ, begin)
        if request.method == "HEAD":
            return pieces
        return self._body(request, b"".join(pieces), environ["werkzeug.socket"])

    def _refuse(self, request: Request, fault: Fault, start_response: Any) -> list[bytes]:
        status, code = ANSWERS[fault.kind]
        request.status = fault.status if fault.kind == "status" else status
        said = (
            f"the region '{REGION}' is wrong; expecting 'eu-central-1'" if fault.kind == "other_region" else fault.kind
        )
        body = f"<Error><Code>{code}</Code><Message>{said}</Message></Error>".encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        if fault.retry_after is not None:
            headers.append(("Retry-After", str(fault.retry_after)))
        if fault.kind == "redirect":
            headers.append(("Location", f"{self.url}/{self.bucket}/{request.file}"))
        start_response(f"{request.status} Refused", headers)
        request.sent = len(body) if request.method != "HEAD" else 0
        return [body]

    def _body(self, request: Request, body: bytes, connection: Any) -> Iterator[bytes]:
        # An answer of an upload is struck only where the fault names its route.
        good = request.status in (200, 206)
        fault = self.strike(request, BODY_FAULTS, named=request.route != "get") if good else None
        at = len(body) if fault is None else len(body) // 2 if fault.at is None else fault.at
        request.sent += at
        yield body[:at]
        if fault is None:
            return
        if fault.kind == "cut":
            shut(connection)
            raise ConnectionAbortedError("cut")
        if fault.kind == "stall_body":
            self.stall(connection)
        rest = bytearray(body[at:])
        if fault.kind == "corrupt":
            rest[0] ^= 0x01
        request.sent += len(rest)
        yield bytes(rest)


def _is_as_signed(signed: str, sent: bytes | bytearray) -> bool:
    """Whether a body is the one that was signed, if it was signed at all."""
    return not _SHA256.fullmatch(signed) or signed == hashlib.sha256(sent).hexdigest()


def _mislabelled(headers: list[tuple[str, str]], kind: str, first: int, last: int) -> list[tuple[str, str]]:
    """The headers of an answer that says that it is the range, or one a byte off, or of another object."""
    told, off, more = Headers(headers), int(kind == "wrong_range"), int(kind == "wrong_total")
    nbytes = int(told.get("Content-Range", told["Content-Length"]).rpartition("/")[2])
    told["Content-Range"] = f"bytes {first + off}-{last + off}/{nbytes + more}"
    return told.to_wsgi_list()


def _as_s3(environ: dict[str, Any]) -> None:
    """A request of Google's API turned into one of S3's."""
    scope = f"{ACCESS_KEY}/20260101/{REGION}/s3/aws4_request"
    environ["HTTP_AUTHORIZATION"] = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"
    if environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None) == "0":
        environ["HTTP_IF_NONE_MATCH"] = "*"
    if source := environ.pop("HTTP_X_GOOG_COPY_SOURCE", None):
        environ["HTTP_X_AMZ_COPY_SOURCE"] = source


def _request(environ: dict[str, Any], bucket: str) -> Request:
    query = parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
    key = environ["PATH_INFO"].removeprefix(f"/{bucket}").lstrip("/")
    method = environ["REQUEST_METHOD"]
    return Request(
        "s3",
        method,
        _route(method, key, query),
        file=key,
        range=environ.get("HTTP_RANGE"),
        authorized="HTTP_AUTHORIZATION" in environ,
        received=int(environ.get("CONTENT_LENGTH") or 0),
    )


def _route(method: str, key: str, query: dict[str, list[str]]) -> str:
    if not key:
        return "list" if method == "GET" else "delete" if "delete" in query else "bucket"
    if "uploads" in query:
        return "create"
    if "uploadId" in query:
        return {"PUT": "part", "POST": "complete", "DELETE": "abort"}.get(method, "parts")
    return method.lower()


class _Handler(WSGIRequestHandler):
    disable_nagle_algorithm = True

    def log(self, type: str, message: str, *args: Any) -> None:
        pass
