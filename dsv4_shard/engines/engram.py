"""V4.1's engram tables on the ranks: SGLang and vLLM cut their rows where hash columns end.

A table has a column for each n-gram size (2 to `engram_max_ngram_size`) and head. A column has a prime number of rows:
the next one above `engram_vocab_size` - 1 that no earlier column of any table has. Formulas: SGLang's
`layers/engram.py` (`EngramLayout`, `shard_range`), vLLM's `models/deepseek_v41/common/engram.py`.
"""

from collections.abc import Iterator
from functools import cache
from itertools import accumulate, count, islice

from dsv4_shard.engines.deployment import Context
from dsv4_shard.engines.placement import Placement, Shares
from dsv4_shard.models import V41Config

_MOST_ROWS, _MOST_COLUMNS = 10**8, 256
"""Largest `engram_vocab_size`, and most columns of all tables, for which primes are looked for."""


def columns_of(config: V41Config) -> int:
    """Number of hash columns of a table."""
    return (config.engram_max_ngram_size - 1) * config.engram_n_heads


def table_parts(context: Context) -> Placement:
    """The rows of each rank: `ceil(columns / TP)` whole columns, or equal parts if the config does not tell them."""
    config, ranks = context.config, context.deployment.tp
    assert isinstance(config, V41Config), "asked only for V4.1"
    columns = columns_of(config)
    each = -(-columns // ranks)
    tables = column_starts(config.engram_vocab_size or 0, len(config.engram_num_embeddings), columns)
    is_known = tuple(table[-1] for table in tables) == config.engram_num_embeddings
    if not is_known or each * (ranks - 1) >= columns:
        return equal_parts(context)
    cut = [min(rank * each, columns) for rank in range(ranks + 1)]
    return Shares("tp", tuple(tuple(table[column] for column in cut) for table in tables))


def equal_parts(context: Context) -> Placement:
    """Equal rows for each rank, as nearly as they divide."""
    config, ranks = context.config, context.deployment.tp
    assert isinstance(config, V41Config), "asked only for V4.1"
    return Shares(
        "tp", tuple(tuple(rows * rank // ranks for rank in range(ranks + 1)) for rows in config.engram_num_embeddings)
    )


@cache
def column_starts(least: int, tables: int, columns: int) -> tuple[tuple[int, ...], ...]:
    """For each table, the first row of each column and the number of all rows; empty beyond the sizes of a model."""
    if not (1 < least <= _MOST_ROWS and tables * columns <= _MOST_COLUMNS):
        return ()
    found = list(islice(_primes(least), tables * columns))
    parts = (found[start : start + columns] for start in range(0, len(found), columns))
    return tuple(tuple(accumulate(part, initial=0)) for part in parts)


def _primes(least: int) -> Iterator[int]:
    """Yield the primes from `least` on, which is at least 2."""
    return (number for number in count(least) if all(number % part for part in range(2, int(number**0.5) + 1)))
