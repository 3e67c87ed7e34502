"""The bytes of a rank from the checkpoint itself, made as a plan says: no rank files on disk.

The recipe that `reshard` follows fills the parameters, so they hold the same bytes as from rank files. A rank reads the
rows that it needs, while the engines' own loaders read the whole checkpoint on every rank.
"""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from dsv4_shard.engines import DRAFT_FOLDER, find_engine
from dsv4_shard.errors import LoadRefused
from dsv4_shard.loading.checks import Shapes
from dsv4_shard.loading.device_copies import DeviceCopier, device_of, flat_bytes
from dsv4_shard.opening import open_checkpoint, pinned
from dsv4_shard.planning import check_plan, load_plan
from dsv4_shard.sharding.into_memory import Write, load
from dsv4_shard.sharding.job import deploy
from dsv4_shard.sharding.recipe import Recipe
from dsv4_shard.sharding.recipe_builder import make_recipe
from dsv4_shard.storage import collector_paused
from dsv4_shard.text.units import size

_SLOT_BYTES = 8 << 20


class PlannedCheckpoint:
    """A checkpoint and the plan of a deployment of it. See `loading.load.WeightOrigin`."""

    def __init__(self, repo: str, plan: Path, engine: str, *, is_draft: bool) -> None:
        """Read the plan and the checkpoint's headers, and make the plan again from them.

        `repo` is a folder, a Hub repository or a URL, `engine` the one that runs.

        Raises:
            LoadRefused: The plan is for another engine.
            ShardError: The plan or the checkpoint cannot be read, the plan is for another checkpoint, was edited, or
                breaks a rule.
        """
        with collector_paused():
            followed = load_plan(plan)
            if followed.request.engine != engine:
                raise LoadRefused(
                    f"{plan}: a plan for {followed.request.engine}, and this is {find_engine(engine).title}"
                )
            self._checkpoint, inventory = open_checkpoint(pinned(repo, followed))
            made = check_plan(followed, self._checkpoint, inventory)
            self._engine, layout, self._context = deploy(made, inventory)
        self._recipe: Recipe | None = None
        self._bytes_read = 0
        self.identity: Mapping[str, str] = layout.identity(self._context)
        self.is_draft = is_draft

    def open(self, rank: int) -> Shapes:
        """Make the recipe of a rank, and return the dtype and shape of each tensor. Raises LoadRefused without one."""
        with collector_paused():
            recipe = make_recipe(self._checkpoint, self._engine, self._context, (rank,))
        files = [file for file in recipe.files if file.name.startswith(DRAFT_FOLDER) == self.is_draft]
        if not files:
            raise LoadRefused(f"{self._checkpoint.source.label}: the plan has no draft model")
        self._recipe = recipe
        return {n: (i.dtype, i.shape) for file in files for n, i in file.tensors.items()}

    def fill(self, targets: Mapping[str, torch.Tensor], threads: int, on_progress: Callable[[int], None]) -> None:
        """Fill contiguous tensors.

        Raises:
            SourceChanged: A file of the checkpoint changed meanwhile.
            ReadFailed: It cannot be read.
        """
        assert self._recipe is not None, "it was opened"
        drafts = [file.name.startswith(DRAFT_FOLDER) for file in self._recipe.files]
        files = [number for number, is_draft in enumerate(drafts) if is_draft == self.is_draft]
        copies = _Copies(device_of(targets.values()))
        memory = {name: copies.into(flat_bytes(tensor)) for name, tensor in targets.items()}
        result = load(self._recipe, files, self._checkpoint.source, memory, threads, on_progress)
        copies.finish()
        self._bytes_read += result.bytes_read

    def summary(self) -> str:
        """What was read, and what of it was verified."""
        return f"{size(self._bytes_read)} of the checkpoint, plan and headers verified"


class _Copies:
    """Copies of many threads to one device, each through a copier of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._own = threading.local()
        self._copiers: list[DeviceCopier] = []

    def into(self, target: torch.Tensor) -> Write:
        """Return what copies bytes to an offset of `target`, flat uint8. Its bytes are taken when it returns."""

        def write(offset: int, data: memoryview) -> None:
            for start in range(0, len(data), _SLOT_BYTES):
                part = data[start : start + _SLOT_BYTES]
                copier = self._copier()
                copier.slot()[: len(part)] = part
                copier.copy(0, len(part), target, offset + start)
                copier.sent()

        return write

    def finish(self) -> None:
        """Wait for the copies of all threads."""
        for copier in self._copiers:
            copier.finish()

    def _copier(self) -> DeviceCopier:
        copier: DeviceCopier | None = getattr(self._own, "copier", None)
        if copier is None:
            copier = self._own.copier = DeviceCopier(self._device, _SLOT_BYTES)
            self._copiers.append(copier)
        return copier
