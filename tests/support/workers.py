"""Which worker of a run takes which test: what is costly is made once, and the last minute is not one worker's."""

from support.checkpoints.full_size import FLASH, PRO, PRO_NVFP4, REAL_MODELS
from xdist.scheduler import LoadGroupScheduling

SLOW_MODELS = {*REAL_MODELS, PRO_NVFP4} - {PRO, FLASH}
"""Real checkpoints beside the two that most tests use."""

SPREAD = (
    "tests/test_memory.py::test_the_most_tensors_are_written",
    "tests/test_memory.py",
    "tests/sharding/test_crashes.py",
)
"""Tests that take seconds each and share nothing that does, in the order in which they begin: the longest first."""


def place_of(nodeid: str) -> int:
    """Where a test comes: 0 if it goes with its file, else by its place in `SPREAD`."""
    return next((place for place, start in enumerate(SPREAD, 1) if nodeid.startswith(start)), 0)


class Scheduling(LoadGroupScheduling):  # type: ignore[misc]
    """The tests of a file go to one worker, which makes its fixtures once, and those of a slow model to one.

    Groups of many tests come first, as xdist orders them; then, one by one, the tests that are `SPREAD`.
    """

    def _split_scope(self, nodeid: str) -> str:
        scope: str = super()._split_scope(nodeid)
        if scope != nodeid:
            return scope  # a group of its own
        if place_of(nodeid):
            return nodeid
        file, _, test = nodeid.partition("::")
        return max((model for model in SLOW_MODELS if model in test), key=len, default=file)
