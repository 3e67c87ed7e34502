"""obstore beside fsspec's s3fs: ranges of one large object from an S3 server on loopback that costs next to nothing.

    python benchmarks/against_fsspec.py [--gb 4] [--rounds 3]

Needs obstore and s3fs, which do not go into one environment with boto3: `pip install obstore s3fs` in one of its own.
Reads 8 MiB ranges, 16 at a time, as stores.py does: obstore from threads, s3fs by its own event loop (`cat_ranges`) and
from threads (`cat_file`). The clients run in turns, each in a process of its own, whose CPU time is shown too.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RANGE_BYTES, AT_ONCE = 8 << 20, 16


class Handler(BaseHTTPRequestHandler):
    """One object, whatever is asked for, sent by the kernel."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fd, nbytes = -1, 0

    def do_HEAD(self) -> None:
        self._head(200, self.nbytes)

    def do_GET(self) -> None:
        first, _, last = (self.headers["Range"] or f"bytes=0-{self.nbytes - 1}").removeprefix("bytes=").partition("-")
        start, stop = int(first), int(last) + 1
        self._head(206, stop - start, f"bytes {start}-{stop - 1}/{self.nbytes}")
        self.wfile.flush()
        while start < stop:
            start += os.sendfile(self.connection.fileno(), self.fd, start, stop - start)

    def _head(self, status: int, nbytes: int, span: str | None = None) -> None:
        self.send_response(status)
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("Content-Length", str(nbytes))
        if span:
            self.send_header("Content-Range", span)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def obstore_threads(url: str, starts: list[int]) -> None:
    import obstore
    from obstore.store import S3Store

    store = S3Store("bucket", endpoint=url, skip_signature=True, region="x", client_options={"allow_http": True})

    def read(start: int) -> int:
        got = obstore.get(store, "object", options={"if_match": '"1"', "range": (start, start + RANGE_BYTES)})
        return sum(len(piece) for piece in got.stream(min_chunk_size=1 << 20))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert sum(pool.map(read, starts)) == len(starts) * RANGE_BYTES


def s3fs_ranges(url: str, starts: list[int]) -> None:
    import s3fs

    fs = s3fs.S3FileSystem(anon=True, endpoint_url=url)
    for first in range(0, len(starts), AT_ONCE):  # as much memory as the others take
        some = starts[first : first + AT_ONCE]
        found = fs.cat_ranges(["bucket/object"] * len(some), some, [start + RANGE_BYTES for start in some])
        assert sum(map(len, found)) == len(some) * RANGE_BYTES


def s3fs_threads(url: str, starts: list[int]) -> None:
    import s3fs

    fs = s3fs.S3FileSystem(anon=True, endpoint_url=url)

    def read(start: int) -> int:
        return len(fs.cat_file("bucket/object", start=start, end=start + RANGE_BYTES))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert sum(pool.map(read, starts)) == len(starts) * RANGE_BYTES


CLIENTS: dict[str, Callable[[str, list[int]], None]] = {
    "obstore, threads": obstore_threads,
    "s3fs, cat_ranges": s3fs_ranges,
    "s3fs, threads": s3fs_threads,
}


def main() -> None:
    """Serve, and run each client in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    starts = list(range(0, int(arguments.gb * 1e9) // RANGE_BYTES * RANGE_BYTES, RANGE_BYTES))
    if arguments.client:
        began = time.monotonic()
        CLIENTS[arguments.client](arguments.url, starts)
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(time.monotonic() - began, used.ru_utime + used.ru_stime)
        return
    with tempfile.TemporaryFile() as file:
        file.write(os.urandom(1 << 20) * (len(starts) * RANGE_BYTES >> 20))
        file.flush()
        Handler.fd, Handler.nbytes = file.fileno(), len(starts) * RANGE_BYTES
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in CLIENTS}
        for _ in range(arguments.rounds):
            for name, rounds in found.items():
                command = [sys.executable, __file__, "--gb", str(arguments.gb), "--client", name, "--url", url]
                seconds, cpu = map(float, subprocess.run(command, check=True, capture_output=True).stdout.split())
                rounds.append((seconds, cpu))
    fastest = statistics.median(seconds for seconds, _ in found["obstore, threads"])
    for name, rounds in found.items():
        seconds, cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(
            f"{name:18} {Handler.nbytes / seconds / 1e9:5.2f} GB/s, {seconds / fastest:4.2f} times, {cpu:5.1f} s of CPU"
        )


if __name__ == "__main__":
    main()
