"""Maps obstore's errors to errors of this package, with hints."""

import re

from dsv4_shard.errors import (
    AccessRefused,
    BadAnswer,
    NotFound,
    ServerFailed,
    ShardError,
    SourceChanged,
    Throttled,
    Unreachable,
)
from dsv4_shard.limits import STORE_ANSWER
from dsv4_shard.sources.client_environment import variable_in
from dsv4_shard.sources.gate import Gate
from dsv4_shard.sources.proxies import ServerOrigin
from dsv4_shard.text.sanitize import short_name

VARIABLES = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}
"""Scheme → prefix of the environment variables that configure its client."""

CREDENTIALS = {
    "s3": "Set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION (`aws configure export-credentials --format "
    "env` prints those of a profile), or AWS_SKIP_SIGNATURE=true for a public bucket.",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS to a file of credentials, or GOOGLE_SKIP_SIGNATURE=true for a public "
    "bucket.",
    "az": "Set AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN.",
}

_STATUS = re.compile(r"non-2xx status code: (\d{3})")

_CODE = re.compile(r"<Code>(\w{1,60})</Code>")

_RETRIED = re.compile(r"after ([1-9]\d*) retries")

_REGION = re.compile(r"region\b[^<]{0,60} is wrong; expecting '([\w-]{1,40})'")

_BROKEN = re.compile(r"\bkind: (Timeout|Connect|Interrupted)\b")

_IDENTITY = re.compile(
    r"://169\.254\.|/latest/(api/token|meta-data)|/computeMetadata/|/metadata/identity|token request"
)
"""Pattern of a failed request to a cloud's metadata service, which gives its machines their credentials."""

_FAILURES = {
    "Timeout": "no answer in time",
    "Connect": "no connection",
    "Interrupted": "connections broke off",
}

_THROTTLED = ("SlowDown", "TooManyRequests", "RequestLimitExceeded", "ServerBusy")


def translate(
    error: Exception, what: str, place: str, waited: float, unreachable: tuple[ServerOrigin, str] | None = None
) -> ShardError:
    """Return the error to raise for an error of obstore.

    Its own text is shown only in part, because it has addresses that may contain signatures.

    Args:
        error: obstore's error.
        what: The URL that was requested.
        place: URL of the bucket.
        waited: Seconds since the last sign of life.
        unreachable: The server to which there was no connection, and why.
    """
    text = str(error)
    scheme = place.partition(":")[0]
    found = {key: match[1] for key, pattern in _FOUND.items() if (match := pattern.search(text))}
    status, code = int(found.get("status", 0)), found.get("code", "")
    answer = f"{status} {code}".strip()
    tried = f", after {found['retries']} retries" if "retries" in found else ""
    if waited >= 1:
        tried = f"{tried} in {waited:.0f} s" if tried else f", after {waited:.0f} s"
    if _IDENTITY.search(text):
        return AccessRefused(f"{what}: no credentials for {scheme}:// are set", hint=CREDENTIALS[scheme])
    if unreachable:
        origin, why = unreachable
        return ServerFailed(f"{what}: no connection to {origin}: {why}{tried}", hint=f"{AGAIN} {VARIABLES[scheme]}"
                            "_ENDPOINT_URL sets the endpoint; the default is the cloud's.")  # fmt: skip
    if (refused := _of_answer(error, status, code, what, place, answer, tried)) is not None:
        return refused
    if "non-partial" in text:
        return BadAnswer(f"{what}: the server ignores Range: it gave the whole object", hint="Reading parts of an "
                         "object needs it. Use another endpoint, or download the checkpoint.")  # fmt: skip
    if "BadScheme" in text:
        variable = f"{VARIABLES[scheme]}_ALLOW_HTTP"
        return Unreachable(f"{what}: its endpoint is http://, without encryption", hint=f"Set {variable}=true.")
    if (misconfigured := _of_redirect(status, found.get("region"), text, what, place)) is not None:
        return misconfigured
    if broken := found.get("broken"):
        return ServerFailed(f"{what}: {_FAILURES[broken]}{tried}", hint=f"{AGAIN} {VARIABLES[scheme]}"
                            "_ENDPOINT_URL sets the endpoint; the default is the cloud's.")  # fmt: skip
    if (named_by := variable_in(text)) is not None:
        return AccessRefused(f"{what}: {first_line(error)}", hint=f"{named_by} names it: correct or unset it.")
    return BadAnswer(f"{what}: {place} answered {answer}" if status else f"{what}: {first_line(error)}")


def _of_answer(
    error: Exception, status: int, code: str, what: str, place: str, answer: str, tried: str
) -> ShardError | None:
    """Return the error that the store's status and code mean; None if they do not say. `answer` shows both."""
    if status in (401, 403):
        return AccessRefused(f"{what}: {place} refused access ({answer})", hint=CREDENTIALS[place.partition(":")[0]])
    if code == "NoSuchUpload":
        return ServerFailed(f"{what}: the upload broke off at its end", hint=AGAIN)
    if code in ("NoSuchBucket", "ContainerNotFound"):
        return NotFound(f"{what}: no bucket {place} ({answer})", hint="Check the name, the region and endpoint.")
    if status == 404 or isinstance(error, FileNotFoundError):
        return NotFound(f"{what}: not there", hint="It was listed before. Another program may write to this place.")
    if status == 412:
        return replaced(what)
    if status == 429 or code in _THROTTLED:
        return Throttled(f"{what}: {place} answered {answer}{tried}", hint="The store limits the number of "
                         "requests. Run again later: finished work is kept.")  # fmt: skip
    if status == 408 or status >= 500:
        return ServerFailed(f"{what}: {place} answered {answer}{tried}", hint=AGAIN)
    return None


def _of_redirect(status: int, region: str | None, text: str, what: str, place: str) -> ShardError | None:
    """Return the error for a store that refers to another server; None if it does not. `region` is the bucket's own."""
    if region is not None or "redirect without LOCATION" in text:
        where = f", {region}" if region is not None else ""
        return BadAnswer(f"{what}: {place} is in another region{where}", hint="Set AWS_REGION to the bucket's.")
    if 300 <= status < 400:
        return BadAnswer(
            f"{what}: {place} redirects ({status}); redirects are not followed", hint="Check endpoint and region."
        )
    if "redirect" in text:
        return BadAnswer(f"{what}: {place} answers only with redirects", hint="Check endpoint and region.")
    return None


def gate_error(gate: Gate, url: str) -> BadAnswer:
    """Return the error for a gate that is `stopped`: the store at `url` redirects elsewhere, or floods."""
    if gate.refused is None:
        return BadAnswer(f"{url}: {gate.flooded} answered a request with more than {STORE_ANSWER.nbytes:,} bytes")
    scheme = url.partition(":")[0]
    return BadAnswer(
        f"{url}: its server redirects to {gate.refused}; not followed, since credentials and data go only to "
        f"{' and '.join(sorted(map(str, gate.origins)))}",
        hint="Set AWS_REGION if the bucket is in another region, or AWS_ENDPOINT_URL if that server is the store's."
        if scheme == "s3"
        else f"Check {VARIABLES[scheme]}_* in the environment: they name the store's server.",
    )


def replaced(what: str) -> SourceChanged:
    """Return the error for an object that changed since it was listed."""
    return SourceChanged(f"{what}: replaced by another object since it was listed")


_FOUND = {"status": _STATUS, "code": _CODE, "retries": _RETRIED, "region": _REGION, "broken": _BROKEN}

AGAIN = "Run again when the store answers: finished work is kept."


def first_line(error: Exception) -> str:
    """Return the first line of an error, without the parts of addresses that may be secret."""
    line = re.sub(r"\?\S*|^Generic \w+ error: ", "", str(error).partition("\n")[0])
    return short_name(re.sub(r"://[^\s/]*@", "://", line))
