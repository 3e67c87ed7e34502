"""The bytes of a rank from the files that `reshard` wrote."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from dsv4_shard.loading.checks import Shapes, check_file, find_manifest, rank_files


class WrittenFiles:
    """The rank files in a folder, or those of its draft model.

    Attributes:
        identity: What the files are made for.
        is_draft: Whether they are a draft model's.
    """

    def __init__(self, folder: Path, *, verify: bool) -> None:
        """Read the manifest; with `verify`, `open` compares the digest of every tensor. Raises NotAResult."""
        self._manifest, self._root, self._inner = find_manifest(folder)
        self._verify = verify
        self._paths: list[Path] = []
        self.identity: Mapping[str, str] = self._manifest.identity
        self.is_draft = bool(self._inner)

    def open(self, rank: int) -> Shapes:
        """Check the files of a rank, and return the dtype and shape of each tensor. Raises LoadRefused."""
        files = {self._root / name: entry for name, entry in rank_files(self._manifest, self._inner, rank)}
        headers = {path: check_file(path, entry, rank, verify=self._verify) for path, entry in files.items()}
        self._paths = list(files)
        return {n: (i.dtype, i.shape) for header in headers.values() for n, i in header.tensors.items()}

    def fill(self, parameters: Mapping[str, torch.Tensor]) -> str:
        """Copy each tensor into the parameter of its name, if it is there; return what was read, for the log."""
        for path in self._paths:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in filter(parameters.__contains__, file.keys()):
                    parameters[name].data.copy_(file.get_tensor(name))
        return f"{len(self._paths)} files, {'bytes' if self._verify else 'headers'} verified"
