"""Failures and answers of the Hub → our errors, and whether a retry may help."""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.parse import urlsplit

from dsv4_shard.errors import (
    AccessRefused,
    BadAnswer,
    NoRepository,
    NotFound,
    ShardError,
    Unreachable,
)
from dsv4_shard.limits import HUB_ANSWER, Limit
from dsv4_shard.sources.client_environment import check_client_environment
from dsv4_shard.sources.proxies import environment_proxy, origin_of
from dsv4_shard.sources.response_limits import limited_bodies
from dsv4_shard.sources.retry import Transient
from dsv4_shard.text.sanitize import short_name

_TRANSIENT_STATUSES = (408, 425, 429)
"""Client errors after which a retry may succeed."""

_PERMANENT_STATUSES = (501, 505)
"""Server errors that mean that the server lacks a feature. After all others, also of proxies, a retry may succeed."""

_PERMANENT_FAILURES = ("TooManyRedirects", "UnsupportedProtocol")
"""Exceptions of httpx for which a retry is useless."""

AGAIN = "Run again when the server answers: finished work is kept."


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence huggingface_hub inside the block: its warnings about broken connections show signed URLs."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def transport_errors(host: str, limit: Limit | None = None) -> Iterator[None]:
    """Turn connection failures inside the block into Transient, and offline mode into Unreachable.

    Bodies are limited by `limit`, HUB_ANSWER if it is None.

    Raises BadAnswer for failures for which a retry is useless.
    """
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    http_error = client_error()
    try:
        with limited_bodies(limit or HUB_ANSWER):
            yield
    except OfflineModeIsEnabled:
        raise offline_error(host) from None
    except HfHubHTTPError:
        raise
    except (ImportError, ValueError):
        check_client_environment(hub=True)
        raise
    except (http_error, OSError) as error:
        check_client_environment(hub=True)
        if not isinstance(error, http_error):
            raise
        if type(error).__name__ in _PERMANENT_FAILURES:
            raise BadAnswer(f"{host}: {type(error).__name__}: {error}".rstrip(": ")) from None
        raise Transient(f"{host}{_by_proxy(host)}: {type(error).__name__}: {error}".rstrip(": ")) from None


def client_error() -> type[Exception]:
    """Return the base of the errors of `_httpx`, from which huggingface_hub's own error derives."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")


def _by_proxy(place: str) -> str:
    """Return the words for the proxy that the environment names for a host or an endpoint; empty without one."""
    try:
        found = environment_proxy(origin_of(place if "://" in place else f"https://{place}"))
        if found is None:
            return ""
        proxy = urlsplit(found if "://" in found else f"http://{found}")
        return f" through the proxy {proxy.hostname}:{proxy.port or 80}"
    except ValueError:
        return ""


def offline_error(host: str) -> Unreachable:
    return Unreachable(
        f"{host}: not asked: HF_HUB_OFFLINE is set",
        hint="Unset it, or name a folder or a repository that is complete in this machine's Hub cache.",
    )


def refuse(response: Any, what: str, endpoint: str, repo_id: str) -> None:
    """Raise the error for an answer's status, if it is one: Transient, NotFound, AccessRefused or BadAnswer.

    Args:
        response: The answer.
        what: What was requested, for the message.
        endpoint: URL of the Hub.
        repo_id: The repository, for hints.
    """
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    if response.status_code < 400:
        return
    try:
        hf_raise_for_status(response)
    except HfHubHTTPError as error:
        raise_for(error, what, endpoint, repo_id)


def raise_for(error: Any, what: str, endpoint: str, repo_id: str) -> NoReturn:
    """Raise the error for an error of huggingface_hub. See `refuse`."""
    raise _meaning(error, what, endpoint, repo_id) from None


def _meaning(error: Any, what: str, endpoint: str, repo_id: str) -> ShardError | Transient:
    from huggingface_hub import get_token
    from huggingface_hub.errors import (
        DisabledRepoError,
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code
    host = urlsplit(str(error.response.url)).netloc
    has_token = get_token() is not None
    log_in = "Set HF_TOKEN, or `hf auth login`, to an account that may read it."
    refused = "The token that is set (HF_TOKEN, or of `hf auth login`) was refused: `hf auth whoami` says whose it is."
    match error:
        case GatedRepoError() if has_token:
            return AccessRefused(
                f"{what}: gated, and this token's account was not granted access ({status})",
                hint=f"Ask for access at {endpoint}/{repo_id}, then run again.",
            )
        case GatedRepoError():
            return AccessRefused(
                f"{what}: gated, and no token is set ({status})",
                hint=f"Ask for access at {endpoint}/{repo_id}, then set HF_TOKEN, or `hf auth login`.",
            )
        case DisabledRepoError():
            return AccessRefused(f"{what}: the Hub has disabled this repository ({status})")
        case RevisionNotFoundError():
            short = re.fullmatch(r"[0-9a-f]{6,39}", what.rpartition("@")[2])
            digits = "A commit has 40 digits; fewer name only a commit that was read on this machine. " if short else ""
            return NotFound(f"{what}: no such revision at {host}", hint=f"{digits}See {endpoint}/{repo_id}/tree/main.")
        case RepositoryNotFoundError():
            hint = (
                "Check the name." if has_token else f"Check the name; if it is private: {log_in[0].lower()}{log_in[1:]}"
            )
            return NoRepository(f"{what}: no such repository at {host}, or it is private ({status})", hint=hint)
        case EntryNotFoundError():
            return NotFound(f"{what}: not there at {host} ({status})", hint="The repository does not have this file.")
    if status in (401, 403):
        reason = (error.server_message or "").strip().splitlines()
        why = f": {short_name(reason[0])}" if reason else ""
        return AccessRefused(f"{what}: {host} refused access ({status}){why}", hint=refused if has_token else log_in)
    if status in _TRANSIENT_STATUSES or (status >= 500 and status not in _PERMANENT_STATUSES):
        return Transient(f"{what}: {host} answered {status}", _asked_wait(error.response), throttled=status == 429)
    return BadAnswer(f"{what}: {host} answered {status}")


def _asked_wait(response: Any) -> float | None:
    """Return the seconds that a server asks to wait, by Retry-After (RFC 9110, 10.2.3) or its rate-limit headers."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    asked = response.headers.get("Retry-After", "")
    if asked.isdecimal():
        return float(asked)
    with suppress(ValueError, OverflowError):
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    limit = parse_ratelimit_headers(response.headers)
    return float(limit.reset_in_seconds) if limit and limit.remaining == 0 else None
