"""dsv4-shard: from a DeepSeek-V4 checkpoint to a deployment plan to per-rank shards.

Each verb is a function that returns what the command of the same name shows. It raises a `dsv4_shard.errors.ShardError`
where the command exits with an error:

    import dsv4_shard

    plan = dsv4_shard.plan("deepseek-ai/DeepSeek-V4-Pro", tp=16, gpu="h20-96")
    dsv4_shard.reshard("deepseek-ai/DeepSeek-V4-Pro", "shards", plan=plan)
    assert dsv4_shard.verify("shards").ok

A verb stays a function after `import dsv4_shard.plan`; the modules behind the verbs are private to the package. Options
are keywords. They are checked before anything is read, and a UsageError names the parameter.
"""

from dsv4_shard import errors
from dsv4_shard.explain import explain
from dsv4_shard.inspect import inspect
from dsv4_shard.plan import compare, fewest, plan, plan_from, plan_pair, search
from dsv4_shard.report import report
from dsv4_shard.reshard import (
    merge,
    merge_dry_run,
    reshard,
    reshard_dry_run,
    reshard_on_cluster,
    reshard_to_store,
)
from dsv4_shard.sharding.progress import Progress, Task
from dsv4_shard.sign import sign
from dsv4_shard.verify import verify, verify_shares
from dsv4_shard.version import __version__

__all__ = [
    "Progress",
    "Task",
    "__version__",
    "compare",
    "errors",
    "explain",
    "fewest",
    "inspect",
    "merge",
    "merge_dry_run",
    "plan",
    "plan_from",
    "plan_pair",
    "report",
    "reshard",
    "reshard_dry_run",
    "reshard_on_cluster",
    "reshard_to_store",
    "search",
    "sign",
    "verify",
    "verify_shares",
]
