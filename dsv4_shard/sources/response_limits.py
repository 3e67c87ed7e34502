"""Limits on the bodies of the Hub's answers: decoded bytes, encodings and time.

huggingface_hub reads every body whole, also of errors, and unpacks it: 3 MB of gzip may become 3 GB. Its client is the
process's own, so the limits hold only inside `limited_bodies`, and not for what it does for others.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from dsv4_shard.errors import BadAnswer
from dsv4_shard.limits import Limit
from dsv4_shard.text.strict_json import BadJson, check_size

_ENCODINGS = ("", "identity", "gzip", "deflate")
"""Content encodings that are unpacked. In others, one piece of a body may unpack to more than memory holds."""

_LIMIT: ContextVar[Limit | None] = ContextVar("_LIMIT", default=None)


@contextmanager
def limited_bodies(limit: Limit) -> Iterator[None]:
    """Limit the bodies that huggingface_hub's client reads whole inside the block, in this thread.

    A body beyond a limit raises BadAnswer. Streams that the caller reads piece by piece are not limited.
    """
    from huggingface_hub import get_session

    hooks = get_session().event_hooks
    if _limit not in hooks["response"]:
        get_session().event_hooks = {**hooks, "response": [*hooks["response"], _limit]}
    token = _LIMIT.set(limit)
    try:
        yield
    finally:
        _LIMIT.reset(token)


def _limit(response: Any) -> None:
    """Replace the method that reads a response whole. The client calls this before it reads the body."""
    if limit := _LIMIT.get():
        response.read = lambda: _read(response, limit)


def _read(response: Any, limit: Limit) -> bytes:
    """Read and decode a body within the limits, and leave it where the response's own method would."""
    if hasattr(response, "_content"):
        return bytes(response._content)
    host, encoding = urlsplit(str(response.url)).netloc, response.headers.get("Content-Encoding", "").lower()
    if encoding not in _ENCODINGS:
        raise BadAnswer(f"{host}: answered in the encoding {encoding[:40]!r}, which nobody asked for")
    parts, nbytes, deadline = [], 0, time.monotonic() + limit.seconds
    for part in response.iter_bytes():
        parts.append(part)
        nbytes += len(part)
        if nbytes > limit.nbytes:
            raise BadAnswer(f"{host}: answered more than {limit.nbytes:,} bytes, too many for a listing")
        if time.monotonic() > deadline:
            raise BadAnswer(f"{host}: the answer did not end within {limit.seconds} seconds")
    content = b"".join(parts)
    try:
        check_size(content, limit)
    except BadJson as error:
        raise BadAnswer(f"{host}: answered {error}") from None
    response._content = content
    return content
