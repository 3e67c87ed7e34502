"""dsv4-shard: from a DeepSeek-V4 checkpoint to a deployment plan to per-rank shards.

The commands as functions, which return what the commands show, and raise `errors` instead of exiting:

    import dsv4_shard

    plan = dsv4_shard.plan("deepseek-ai/DeepSeek-V4-Pro", tp=16, gpu="h20-96")
    dsv4_shard.reshard("deepseek-ai/DeepSeek-V4-Pro", "shards", plan=plan)
    assert dsv4_shard.verify("shards").ok
"""

import sys
from types import FunctionType, ModuleType
from typing import Any

from dsv4_shard import errors
from dsv4_shard.api import compare, explain, inspect, plan, report, search
from dsv4_shard.moving import merge, reshard, verify
from dsv4_shard.version import __version__

__all__ = [
    "__version__",
    "compare",
    "errors",
    "explain",
    "inspect",
    "merge",
    "plan",
    "report",
    "reshard",
    "search",
    "verify",
]


class _Package(ModuleType):
    """Keeps a verb under its name where a module has the same.

    When `dsv4_shard.plan` is first imported, whoever does it, Python puts that module into the package in place of the
    function. `importlib.import_module` gives the module itself.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and isinstance(self.__dict__.get(name), FunctionType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
