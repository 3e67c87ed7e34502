"""Reads all weights of a checkpoint by its source's `reading`, and writes them nowhere; prints what that took, as JSON.

    python -m benchmarks.reading REPO

Two threads read what was fetched, in the order of the files, as those of `reshard` do.
"""

import json
import os
import sys
import threading
import time

from dsv4_shard.checkpoint.reader import read_checkpoint
from dsv4_shard.opening import open_source
from dsv4_shard.sources.base import CHUNK_BYTES, Span, open_all
from dsv4_shard.tensors.header import header_nbytes


def main() -> None:
    """Read."""
    checkpoint = read_checkpoint(open_source(sys.argv[1], exact=True))
    source, sizes = checkpoint.source, checkpoint.source.sizes()
    names = [file.name for file in checkpoint.files]
    with open_all(source, names) as opened:
        spans = [[Span(name, header_nbytes(file), sizes[name])] for name, file in opened.items()]
    chunks = iter(
        [
            (span.file, start, min(start + CHUNK_BYTES, span.stop))
            for (span,) in spans
            for start in range(span.start, span.stop, CHUNK_BYTES)
        ]
    )
    lock = threading.Lock()
    began, spent = time.monotonic(), sum(os.times()[:2])
    with source.reading(names, spans) as files:

        def work() -> None:
            buffer = memoryview(bytearray(CHUNK_BYTES))
            while True:
                with lock:
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                name, start, stop = chunk
                files[name].readinto(start, buffer[: stop - start])

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    nbytes = sum(span.stop - span.start for (span,) in spans)
    seconds, cpu = time.monotonic() - began, sum(os.times()[:2]) - spent
    print(json.dumps({"seconds": seconds, "cpu": cpu, "nbytes": nbytes, "checked": len(source.sha256_verified)}))


if __name__ == "__main__":
    main()
