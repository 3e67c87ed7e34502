"""A checkpoint's bytes from a server on loopback, read and dropped: against as many parallel requests of `curl`.

The server is nginx: for the Hub it is the CDN that a Hub on loopback redirects to, with and without TLS; for an object
store it answers the listing and the ranges. Ours is `Source.reading`: retries, order, read-ahead, and for the Hub's
files their SHA-256. Server and client share the CPUs. CPU seconds are the client's own.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from support.servers.hub import HubServer

from benchmarks.nginx import BUCKET, FileServer, serving
from benchmarks.running import Run, run, run_for_output
from benchmarks.settings import NotMeasured, Settings, require_room, say
from benchmarks.sized import write_sized
from benchmarks.spread import Spread, spread
from dsv4_shard.sources.prefetch import BLOCK_BYTES, CONNECTIONS

REPO, PREFIX = "org/sized", "sized"
LARGEST_BYTES = 4_000_000_000
CASES = ("Hub", "Hub, TLS", "object store")


@dataclass(frozen=True, slots=True)
class NetworkRead:
    """Rates in GB/s, `over_curl` ours over that of `curl` in the same round; CPU seconds per GB; memory in bytes."""

    case: str
    nbytes: int
    rate: Spread
    curl_rate: Spread
    over_curl: Spread
    cpu: Spread
    curl_cpu: Spread
    peak_memory: int


def measure(settings: Settings) -> list[NetworkRead]:
    """All cases in turns. Raises NotMeasured without nginx or curl."""
    if shutil.which("curl") is None:
        raise NotMeasured("network: needs curl on the PATH")
    found: dict[str, list[tuple[Ours, Run]]] = {case: [] for case in CASES}
    with serving_sized(settings, min(settings.nbytes, LARGEST_BYTES)) as (hub, server):
        weights = sorted((settings.scratch / "sized").glob("*.safetensors"))
        for number in range(settings.rounds):
            say(f"network: round {number + 1} of {settings.rounds}")
            for case in CASES:
                hub.cdn_url = server.tls_url if case == "Hub, TLS" else server.url
                found[case].append((_read(case), _curl(hub.cdn_url, weights, settings.scratch)))
    return [_row(case, rounds) for case, rounds in found.items()]


@contextmanager
def serving_sized(settings: Settings, nbytes: int, rate: int = 0) -> Iterator[tuple[HubServer, FileServer]]:
    """Serve a checkpoint of about so many bytes as REPO and in BUCKET to children, until the block ends.

    Each connection to the files gives `rate` bytes per second; 0: as many as it can.

    Raises NotMeasured without nginx.
    """
    require_room(settings.scratch, 3 * nbytes)
    checkpoint = write_sized(settings.scratch / "sized", nbytes)
    with HubServer() as hub:
        hub.add_repo(REPO, {"main": checkpoint})
        blobs = hub._repos[REPO].commits[hub.head(REPO)]
        served = {f"repos/{blob.sha256}": blob.path for blob in blobs.values() if blob.sha256}
        served |= {f"{BUCKET}/{PREFIX}/{path.name}": path for path in checkpoint.iterdir()}
        served[f"{BUCKET}.xml"] = _write_listing(checkpoint, settings.scratch / "listing.xml")
        with serving(settings.scratch / "nginx", served, rate) as server:
            hub.cdn_url = server.url
            os.environ.update(_environment(hub, server, settings.scratch))
            yield hub, server
    shutil.rmtree(checkpoint)


@dataclass(frozen=True, slots=True)
class Ours:
    """What `benchmarks.reading` says, and the peak memory of its process."""

    seconds: float
    cpu: float
    nbytes: int
    peak_memory: int


def _environment(hub: HubServer, server: FileServer, scratch: Path) -> dict[str, str]:
    """What makes children clients of both servers."""
    return hub.env(scratch / "home") | {
        "XDG_CACHE_HOME": str(scratch / "cache"),
        "SSL_CERT_FILE": str(server.certificate),
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "x",
    }


def _read(case: str) -> Ours:
    """Read a checkpoint, in a process of its own."""
    place = f"s3://{BUCKET}/{PREFIX}" if case == "object store" else REPO
    counted, output = run_for_output([sys.executable, "-m", "benchmarks.reading", place])
    said = json.loads(output)
    return Ours(said["seconds"], said["cpu"], said["nbytes"], counted.peak_memory)


def _curl(url: str, weights: list[Path], scratch: Path) -> Run:
    """Fetch the same bytes by `curl`, in the same ranges, as many at a time."""
    config = scratch / "curl"
    options = f'output = "/dev/null"\nfail\nsilent\nshow-error\ncacert = "{os.environ["SSL_CERT_FILE"]}"\n'
    requests = [
        f'url = "{url}/{BUCKET}/{PREFIX}/{weight.name}"\nrange = "{first}-{last}"\n{options}'
        for weight in weights
        for first, last in _ranges(weight.stat().st_size)
    ]
    config.write_text("next\n".join(requests))
    return run(["curl", "--parallel", "--parallel-max", str(CONNECTIONS), "-K", str(config)])


def _ranges(nbytes: int) -> Iterator[tuple[int, int]]:
    """First and last byte of each range of a file."""
    return ((start, min(start + BLOCK_BYTES, nbytes) - 1) for start in range(0, nbytes, BLOCK_BYTES))


def _write_listing(checkpoint: Path, path: Path) -> Path:
    """Write the answer to ListObjectsV2, with the ETags that nginx gives."""
    entries = "".join(
        f"<Contents><Key>{PREFIX}/{file.name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;{int(file.stat().st_mtime):x}-{file.stat().st_size:x}&quot;</ETag>"
        f"<Size>{file.stat().st_size}</Size></Contents>"
        for file in sorted(checkpoint.iterdir())
    )
    path.write_text(f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>")
    return path


def _row(case: str, rounds: list[tuple[Ours, Run]]) -> NetworkRead:
    nbytes = rounds[0][0].nbytes
    gb = nbytes / 1e9
    return NetworkRead(
        case,
        nbytes,
        spread(gb / ours.seconds for ours, _ in rounds),
        spread(gb / curl.seconds for _, curl in rounds),
        spread(curl.seconds / ours.seconds for ours, curl in rounds),
        spread(ours.cpu / gb for ours, _ in rounds),
        spread(curl.cpu / gb for _, curl in rounds),
        max(ours.peak_memory for ours, _ in rounds),
    )


def table(rows: list[NetworkRead]) -> Table:
    """For a person."""
    columns = ("from", "bytes", "GB/s", "curl", "over curl", "CPU s/GB", "curl", "peak memory")
    shown = Table(*columns, title="Read from a server on loopback")
    for row in rows:
        numbers = map(str, (row.rate, row.curl_rate, row.over_curl, row.cpu, row.curl_cpu))
        shown.add_row(row.case, f"{row.nbytes:,}", *numbers, f"{row.peak_memory >> 20} MiB")
    return shown
