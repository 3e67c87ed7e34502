"""Every target: valid documents, a way to damage them that keeps most of their structure, and a check.

A check passes where the input is refused by a ShardError, and where it is accepted and says the same to another reader.
Anything else is a finding: another exception, a difference, a hang or more memory than the limits give.
"""

from fuzz import answers, checkpoints, configurations, logs, results
from fuzz.target import Target

TARGETS: dict[str, Target] = (
    checkpoints.TARGETS | results.TARGETS | answers.TARGETS | logs.TARGETS | configurations.TARGETS
)
