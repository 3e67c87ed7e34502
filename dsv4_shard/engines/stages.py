"""Stages of an engine's start, in their order."""

from enum import StrEnum


class StartStage(StrEnum):
    """A stage of an engine's start; a check of an earlier stage stops the engine before those of later stages.

    `CONVERSION` is DeepSeek's converter, which runs before the reference model. `LOADING` includes what an engine
    checks once the weights are loaded, `SERVING` is the first forward pass and later ones.
    """

    CONVERSION = "conversion"
    CONFIGURATION = "configuration"
    CONSTRUCTION = "construction"
    LOADING = "loading"
    KV_PLANNING = "KV planning"
    SERVING = "serving"

    @property
    def order(self) -> int:
        """Position among the stages."""
        return list(StartStage).index(self)
