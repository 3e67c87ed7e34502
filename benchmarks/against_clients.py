"""HTTP clients beside each other: ranges of one file from nginx on loopback into buffers, and what CPU time that takes.

    python -m benchmarks.against_clients [--gb 2] [--rounds 3] [--tls]

Needs nginx and curl; clients that are not installed are left out (`pip install pycurl urllib3`). Ranges are of 8 MiB,
16 at a time, each client in a process of its own, in turns. `http.client` is how `sources/direct_http.py` reads,
obstore's is its HTTP store, httpx is the client of huggingface_hub. hf_xet is not among them: it needs the Hub's own
content store.
"""

import argparse
import importlib
import importlib.util
import json
import os
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from benchmarks.nginx import FileServer, serving
from benchmarks.running import run, run_for_output
from benchmarks.settings import say
from benchmarks.spread import spread

RANGE_BYTES, AT_ONCE = 8 << 20, 16

Read = Callable[[int, memoryview], None]
"""Fills a buffer with the file's bytes from an offset on."""


def http_client(url: str, trust: ssl.SSLContext) -> Callable[[], Read]:
    from dsv4_shard.sources.direct_http import Connections, route_to

    connections, route = Connections(lambda: trust), route_to(url)
    assert route is not None

    def read(start: int, buffer: memoryview) -> None:
        done = 0
        with connections.get(url, route, _range(start, buffer), 10) as answer:
            while count := answer.receive(buffer[done:]):
                done += count
        assert done == len(buffer)

    return lambda: read


def httpx(url: str, trust: ssl.SSLContext) -> Callable[[], Read]:
    import httpx2

    client = httpx2.Client(verify=trust, limits=httpx2.Limits(max_connections=AT_ONCE))

    def read(start: int, buffer: memoryview) -> None:
        with client.stream("GET", url, headers=_range(start, buffer)) as answer:
            _fill(buffer, answer.iter_raw())

    return lambda: read


def obstore(url: str, trust: ssl.SSLContext) -> Callable[[], Read]:
    import obstore
    from obstore.store import HTTPStore

    place, _, name = url.rpartition("/")
    options: Any = {"allow_http": True, "allow_invalid_certificates": True, "http1_only": True}
    store = HTTPStore.from_url(place, client_options=options)

    def read(start: int, buffer: memoryview) -> None:
        answer = obstore.get(store, name, options={"range": (start, start + len(buffer))})
        _fill(buffer, answer.stream(min_chunk_size=1 << 20))

    return lambda: read


def pycurl(url: str, trust: ssl.SSLContext) -> Callable[[], Read]:
    def of_thread() -> Read:
        library = importlib.import_module("pycurl")
        curl = library.Curl()
        curl.setopt(library.BUFFERSIZE, 512 << 10)
        curl.setopt(library.SSL_VERIFYPEER, 0)

        def read(start: int, buffer: memoryview) -> None:
            done = 0

            def take(piece: bytes) -> None:
                nonlocal done
                buffer[done : done + len(piece)] = piece
                done += len(piece)

            curl.setopt(library.URL, url)
            curl.setopt(library.RANGE, _range(start, buffer)["Range"].removeprefix("bytes="))
            curl.setopt(library.WRITEFUNCTION, take)
            curl.perform()
            assert done == len(buffer)

        return read

    return of_thread


def urllib3(url: str, trust: ssl.SSLContext) -> Callable[[], Read]:
    import urllib3 as library

    pool = library.PoolManager(maxsize=AT_ONCE, ssl_context=trust)

    def read(start: int, buffer: memoryview) -> None:
        answer: Any = pool.request("GET", url, headers=_range(start, buffer), preload_content=False)
        _fill(buffer, iter(lambda: answer.read1(1 << 20), b""))
        answer.release_conn()

    return lambda: read


CLIENTS = {"http.client": http_client, "urllib3": urllib3, "pycurl": pycurl, "obstore": obstore, "httpx": httpx}
MODULES = {"http.client": "http", "urllib3": "urllib3", "pycurl": "pycurl", "obstore": "obstore", "httpx": "httpx2"}


def _range(start: int, buffer: memoryview) -> dict[str, str]:
    return {"Range": f"bytes={start}-{start + len(buffer) - 1}", "Accept-Encoding": "identity"}


def _fill(buffer: memoryview, pieces: Any) -> None:
    done = 0
    for piece in pieces:
        buffer[done : done + len(piece)] = memoryview(piece)
        done += len(piece)
    assert done == len(buffer)


def _read_all(name: str, url: str, nbytes: int) -> None:
    """Read the file by one client, and print what that took."""
    starts = SimpleQueue[int]()
    for start in range(0, nbytes, RANGE_BYTES):
        starts.put(start)
    of_thread = CLIENTS[name](url, ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"]))

    def work() -> None:
        read, buffer = of_thread(), memoryview(bytearray(RANGE_BYTES))
        try:
            while True:
                start = starts.get_nowait()
                read(start, buffer[: min(RANGE_BYTES, nbytes - start)])
        except Empty:
            pass

    began, spent = time.monotonic(), sum(os.times()[:2])
    threads = [threading.Thread(target=work) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"seconds": time.monotonic() - began, "cpu": sum(os.times()[:2]) - spent}))


def _curl(url: str, nbytes: int, folder: Path) -> tuple[float, float]:
    """Read the file by `curl`; return seconds and CPU seconds."""
    config = folder / "curl"
    options = f'output = "/dev/null"\nsilent\ncacert = "{os.environ["SSL_CERT_FILE"]}"\n'
    ranges = ((start, min(start + RANGE_BYTES, nbytes) - 1) for start in range(0, nbytes, RANGE_BYTES))
    config.write_text("next\n".join(f'url = "{url}"\nrange = "{first}-{last}"\n{options}' for first, last in ranges))
    done = run(["curl", "--parallel", "--parallel-max", str(AT_ONCE), "-K", str(config)])
    return done.seconds, done.cpu


def _one(name: str, url: str, nbytes: int, folder: Path) -> tuple[float, float]:
    if name == "curl":
        return _curl(url, nbytes, folder)
    command = [sys.executable, "-m", "benchmarks.against_clients", "--client", name, url, str(nbytes)]
    said = json.loads(run_for_output(command)[1])
    return said["seconds"], said["cpu"]


def main() -> None:
    """Serve, and run each client in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--client", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        _read_all(arguments.client[0], arguments.client[1], int(arguments.client[2]))
        return
    nbytes = round(arguments.gb * 1e9)
    found: dict[str, list[tuple[float, float]]] = {
        name: [] for name in ("curl", *CLIENTS) if name == "curl" or importlib.util.find_spec(MODULES[name])
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "file").open("wb") as file:
            for _ in range(0, nbytes, RANGE_BYTES):
                file.write(os.urandom(RANGE_BYTES))
            file.truncate(nbytes)
        with (
            serving(folder / "nginx", {"file": folder / "file"}) as server,
            patch.dict(os.environ, SSL_CERT_FILE=str(server.certificate)),
        ):
            for number in range(arguments.rounds):
                say(f"clients: round {number + 1} of {arguments.rounds}")
                for client, rounds in found.items():
                    rounds.append(_one(client, f"{_url(server, arguments.tls)}/file", nbytes, folder))
    shown = Table("client", "GB/s", "over curl", "CPU s/GB", "CPU over curl", title="Ranges from nginx on loopback")
    for client, rounds in found.items():
        pairs = list(zip(rounds, found["curl"], strict=True))
        shown.add_row(
            client,
            str(spread(nbytes / 1e9 / seconds for seconds, _ in rounds)),
            str(spread(curl[0] / own[0] for own, curl in pairs)),
            str(spread(cpu / nbytes * 1e9 for _, cpu in rounds)),
            str(spread(own[1] / curl[1] for own, curl in pairs)),
        )
    Console(width=120).print(shown)


def _url(server: FileServer, tls: bool) -> str:
    return server.tls_url if tls else server.url


if __name__ == "__main__":
    main()
