"""The bytes of a rank from the files that `reshard` wrote."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from dsv4_shard.loading.checks import Shapes, check_file, find_manifest, rank_files, readers_of
from dsv4_shard.loading.filling import RankFile, fill
from dsv4_shard.text.units import counted


class WrittenFiles:
    """The rank files in a folder, or those of its draft model. See `loading.load.WeightOrigin`."""

    def __init__(self, folder: Path, *, verify: bool) -> None:
        """Read the manifest; with `verify`, `fill` compares the digest of every tensor. Raises NotAResult."""
        self._manifest, self._root, self._inner = find_manifest(folder)
        self._verify = verify
        self._files: list[RankFile] = []
        self.identity: Mapping[str, str] = self._manifest.identity
        self.is_draft = bool(self._inner)

    def open(self, rank: int) -> Shapes:
        """Check the files of a rank, and return the dtype and shape of each tensor. Raises LoadRefused."""
        found = {self._root / name: entry for name, entry in rank_files(self._manifest, self._inner, rank)}
        readers = readers_of(self.identity, self._manifest.world, rank)
        self._files = [RankFile(path, entry, check_file(path, entry, rank, readers)) for path, entry in found.items()]
        return {n: (i.dtype, i.shape) for file in self._files for n, i in file.header.tensors.items()}

    def fill(self, targets: Mapping[str, torch.Tensor], threads: int, on_progress: Callable[[int], None]) -> None:
        """Fill contiguous tensors. Raises LoadRefused if a digest differs, or ReadFailed."""
        fill(self._files, targets, threads, verify=self._verify, on_progress=on_progress)

    def summary(self) -> str:
        """What was read, and what of it was verified."""
        return f"{counted(len(self._files), 'file')}, {'bytes' if self._verify else 'headers'} verified"
