"""dsv4-shard with a SHA-256 that computes nothing, for measuring what it costs: the manifests it writes are wrong.

python -m benchmarks.without_sha256 reshard ...
"""

import hashlib
from types import SimpleNamespace

from dsv4_shard.cli import main
from dsv4_shard.sharding import file_hasher


class NoHash:
    """Takes the place of a running SHA-256."""

    def __init__(self, _: bytes = b"") -> None:
        pass

    def update(self, _: object) -> None:
        pass

    def hexdigest(self) -> str:
        return hashlib.sha256().hexdigest()


def _skip(_: object, file: object, progress: "file_hasher._Progress") -> None:
    """Take the place of reading back: all that is there counts as hashed."""
    while progress.release(progress.there):
        pass


if __name__ == "__main__":
    file_hasher.hashlib = SimpleNamespace(sha256=NoHash)  # type: ignore[assignment, attr-defined]
    file_hasher.FileHasher._read_on = _skip  # type: ignore[assignment, method-assign]
    main()
