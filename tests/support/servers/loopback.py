"""What the servers of the tests have in common: the requests that they saw, and faults to switch on."""

import select
import socket
import threading
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch

REFUSALS = {
    "unauthorized",
    "forbidden",
    "gated",
    "repo_not_found",
    "revision_not_found",
    "entry_not_found",
    "no_route",
    "too_many",
    "status",
    "other_region",
    "redirect",
}
RANGE_FAULTS = {"ignore_range", "wrong_range", "wrong_total", "short_range", "long_range"}
BODY_FAULTS = {"stall_body", "cut", "corrupt"}
KINDS = {*REFUSALS, *RANGE_FAULTS, *BODY_FAULTS, "stall", "expired", "call", "ignore_match", "damage"}


@dataclass(slots=True)
class Request:
    """One request as it came in, and what was sent for it so far."""

    host: str
    """Which of the server's hosts it came to."""
    method: str
    route: str
    """What it asks for, as the server calls it."""
    repo: str = ""
    revision: str = "main"
    file: str = ""
    range: str | None = None
    authorized: bool = False
    """Whether it came with an Authorization header."""
    status: int = 0
    """0 when no answer began."""
    sent: int = 0
    """Bytes of the answer's body."""
    received: int = 0
    """Bytes of the request's own body."""


@dataclass(slots=True)
class Fault:
    """What goes wrong with the requests that match: from the `after`-th on, `times` of them (None: all).

    | kind | what the client sees |
    | --- | --- |
    | `unauthorized`, `forbidden`, `gated` | 401, 403, 403 with the Hub's code for a gated repository |
    | `repo_not_found`, `revision_not_found`, `entry_not_found`, `no_route` | 404, the last without a code |
    | `too_many` | 429, with Retry-After where `retry_after` is set |
    | `status` | `status` |
    | `other_region` | 400, as S3 says that the bucket is elsewhere |
    | `redirect` | 307 to the same place, for ever |
    | `stall` | no answer until `release` or the client leaves, then the right one |
    | `stall_body`, `cut`, `corrupt` | after `at` bytes of the body (None: half): a pause, the end, a byte flipped |
    | `ignore_range` | 200 with the whole file |
    | `wrong_range` | a Content-Range one byte off |
    | `wrong_total` | a Content-Range whose total is one byte more |
    | `short_range` | the first half of the range, said so |
    | `long_range` | the whole file, said to be the range |
    | `ignore_match` | the object as it is, whatever If-Match names |
    | `damage` | what it sent, taken with a byte flipped |
    | `expired` | 403 from the CDN, until `resolve` is asked again |
    | `call` | the right answer, after `call` was called: a branch that moves, say |

    Without a `route`, faults of bodies and ranges are for the contents of files only.
    """

    kind: str
    route: str | None = None
    method: str | None = None
    file: str = "*"
    after: int = 0
    times: int | None = 1
    at: int | None = None
    status: int = 503
    retry_after: int | None = None
    call: Callable[[], object] = lambda: None
    match: Callable[[Request], bool] = lambda request: True
    matched: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is no fault: {', '.join(sorted(KINDS))}")

    @property
    def hits(self) -> int:
        """How often it struck."""
        past = max(self.matched - self.after, 0)
        return past if self.times is None else min(past, self.times)

    def strikes(self, request: Request) -> bool:
        if self.route not in (None, request.route) or self.method not in (None, request.method):
            return False
        if not fnmatch(request.file, self.file) or not self.match(request):
            return False
        before = self.hits
        self.matched += 1
        return self.hits > before


class Recorder:
    """The requests that a server saw, and its faults. Both may be read and changed while it runs."""

    def __init__(self, latency: float) -> None:
        self.latency = latency
        """Seconds before each answer."""
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        self.released = threading.Event()

    def seen(self, **wanted: object) -> list[Request]:
        """The requests with these fields: `seen(route="resolve", method="HEAD")`."""
        with self.lock:
            return [r for r in self.requests if all(getattr(r, key) == value for key, value in wanted.items())]

    def bytes_sent(self, **wanted: object) -> int:
        """The bytes of the answers' bodies, without headers."""
        return sum(request.sent for request in self.seen(**wanted))

    def bytes_received(self, **wanted: object) -> int:
        """The bytes of the requests' bodies, without headers."""
        return sum(request.received for request in self.seen(**wanted))

    def reset(self) -> None:
        """Forgets requests and faults."""
        with self.lock:
            self.requests.clear()
            self.faults.clear()
        self.released.clear()

    def release(self) -> None:
        """Stalled answers go on, and none stalls any more until `reset`."""
        self.released.set()

    def record(self, request: Request) -> None:
        with self.lock:
            self.requests.append(request)

    def strike(self, request: Request, kinds: Set[str], *, named: bool = False) -> Fault | None:
        """The fault of these kinds that strikes; with `named` only one that names the route."""
        with self.lock:
            faults = [fault for fault in self.faults if fault.kind in kinds and (fault.route or not named)]
            return next((fault for fault in faults if fault.strikes(request)), None)

    def stall(self, connection: socket.socket) -> None:
        """Waits until all are released, or the client leaves."""
        while not self.released.wait(0.01):
            readable, _, _ = select.select([connection], [], [], 0)
            if readable and not connection.recv(1, socket.MSG_PEEK):
                raise ConnectionResetError("the client left")


def shut(connection: socket.socket) -> None:
    with suppress(OSError):  # it may have ended by itself
        connection.shutdown(socket.SHUT_RDWR)
