"""The bytes of a rank from the checkpoint itself, made as a plan says: no rank files on disk.

The recipe that `reshard` follows fills the parameters, so they hold the same bytes as from rank files. A rank reads the
rows that it needs, while SGLang's own loader reads the whole checkpoint on every rank.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from dsv4_shard.engines import DRAFT_FOLDER, find_engine
from dsv4_shard.errors import LoadRefused
from dsv4_shard.loading.checks import Shapes
from dsv4_shard.opening import open_checkpoint, pinned
from dsv4_shard.planning import check_plan, load_plan
from dsv4_shard.sharding.into_memory import Write, load
from dsv4_shard.sharding.job import deploy
from dsv4_shard.sharding.recipe import Recipe
from dsv4_shard.sharding.recipe_builder import make_recipe
from dsv4_shard.storage import collector_paused, default_workers
from dsv4_shard.text.units import size


class PlannedCheckpoint:
    """A checkpoint and the plan of a deployment of it.

    Attributes:
        identity: What the plan is made for, as rank files have it.
        is_draft: Whether the draft model is loaded.
    """

    def __init__(self, repo: str, plan: Path, *, is_draft: bool) -> None:
        """Read the plan and the checkpoint's headers, and make the plan again from them.

        `repo` is a folder, a Hub repository or a URL.

        Raises:
            LoadRefused: The plan is for another engine.
            ShardError: The plan or the checkpoint cannot be read, the plan is for another checkpoint, was edited, or
                breaks a rule.
        """
        with collector_paused():
            followed = load_plan(plan)
            if not find_engine(followed.request.engine).loads_plans:
                raise LoadRefused(f"{plan}: a plan for {followed.request.engine}, and this is SGLang")
            self._checkpoint, inventory = open_checkpoint(pinned(repo, followed))
            made = check_plan(followed, self._checkpoint, inventory)
            self._engine, layout, self._context = deploy(made, inventory)
        deployment = self._context.deployment
        self._workers = max(1, default_workers() * deployment.nodes // deployment.world)
        self._recipe: Recipe | None = None
        self._files: dict[int, None] = {}
        self.identity: Mapping[str, str] = layout.identity(self._context)
        self.is_draft = is_draft

    def open(self, rank: int) -> Shapes:
        """Make the recipe of a rank, and return the dtype and shape of each tensor. Raises LoadRefused without one."""
        with collector_paused():
            recipe = make_recipe(self._checkpoint, self._engine, self._context, (rank,))
        is_draft = [file.name.startswith(DRAFT_FOLDER) for file in recipe.files]
        files = [number for number, draft in enumerate(is_draft) if draft == self.is_draft]
        if not files:
            raise LoadRefused(f"{self._checkpoint.source.label}: the plan has no draft model")
        self._recipe, self._files = recipe, dict.fromkeys(files)
        return {n: (i.dtype, i.shape) for number in files for n, i in recipe.files[number].tensors.items()}

    def fill(self, parameters: Mapping[str, torch.Tensor]) -> str:
        """Fill the parameters; return what was read and verified, for the log. Call `open` before.

        Raises:
            SourceChanged: A file of the checkpoint changed meanwhile.
            ReadFailed: It cannot be read.
        """
        assert self._recipe is not None, "it was opened"
        aside = {name: _on_cpu(one) for name, one in parameters.items() if not one.data.is_contiguous()}
        memory = {name: _writer(aside.get(name, one.data)) for name, one in parameters.items()}
        result = load(self._recipe, self._files, self._checkpoint.source, memory, self._workers)
        for name, filled in aside.items():
            parameters[name].data.copy_(filled)
        return f"the checkpoint, {size(result.bytes_read)} read, plan and headers verified"


def _on_cpu(parameter: torch.Tensor) -> torch.Tensor:
    """Contiguous memory for a parameter that has none, to be copied into it as a whole."""
    return torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")


def _writer(tensor: torch.Tensor) -> Write:
    """Return what copies bytes to an offset of a contiguous tensor, on any device."""
    flat = tensor.reshape(-1).view(torch.uint8)

    def write(offset: int, data: memoryview) -> None:
        held = data if not data.readonly else memoryview(bytearray(data))
        flat[offset : offset + len(data)].copy_(torch.from_numpy(np.frombuffer(held, np.uint8)))

    return write
