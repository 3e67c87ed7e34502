"""`coverage`: how many messages of the table explain answers, and by what."""

from collections import Counter
from typing import Any

import dsv4_shard
from engine_messages.logs import log_of

ANSWERS = ("rule", "table", "kind", "assertion", "place", "none")
"""What an answer is from, the most specific first; `none`: not recognised."""


def coverage(table: dict[str, Any]) -> Counter[tuple[str, str, str]]:
    """(engine, stage, what the answer is from) → number of messages."""
    count: Counter[tuple[str, str, str]] = Counter()
    for engine, document in table.items():
        for file, entries in document["messages"].items():
            for entry in entries:
                answer = dsv4_shard.explain(log_of(engine, file, entry))
                how = "none" if not answer.recognised else str(answer.basis)
                count[engine, answer.log.stage or "not told", how] += 1
    return count


def show(table: dict[str, Any], count: Counter[tuple[str, str, str]]) -> None:
    """Print the coverage by engine and stage."""
    for engine, document in table.items():
        stages = sorted({stage for name, stage, _ in count if name == engine})
        print(f"{engine} {document['version']}: {len(document['modules'])} modules")
        print(f"  {'stage':16}" + "".join(f"{answer:>11}" for answer in ANSWERS) + f"{'all':>8}")
        for stage in [*stages, "all"]:
            row = [sum(number for (name, at, how), number in count.items()
                       if name == engine and how == answer and stage in (at, "all")) for answer in ANSWERS]  # fmt: skip
            print(f"  {stage:16}" + "".join(f"{number:11,}" for number in row) + f"{sum(row):8,}")
