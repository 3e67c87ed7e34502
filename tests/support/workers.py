"""Which worker of a run takes which test: what is costly is made once, and the last minute is not one worker's."""

from support.checkpoints.full_size import FLASH, PRO, PRO_NVFP4, REAL_MODELS
from xdist.scheduler import LoadGroupScheduling

SLOW_MODELS = {*REAL_MODELS, PRO_NVFP4} - {PRO, FLASH}
"""Real checkpoints beside the two that most tests use."""

SPREAD = ("test_crashes.py", "test_memory.py")
"""Files whose tests take seconds each, and share nothing that does."""


class Scheduling(LoadGroupScheduling):  # type: ignore[misc]
    """The tests of a file go to one worker, which makes its fixtures once, and those of a slow model to one.

    Groups of many tests come first, as xdist orders them; then, one by one, the tests of files that are `SPREAD`.
    """

    def _split_scope(self, nodeid: str) -> str:
        scope: str = super()._split_scope(nodeid)
        if scope != nodeid:
            return scope  # a group of its own
        file, _, test = nodeid.partition("::")
        if file.endswith(SPREAD):
            return nodeid
        return max((model for model in SLOW_MODELS if model in test), key=len, default=file)
