"""What a message's numbers imply without a model: the whole size, its blocks, and the ranks that divide it."""

from collections.abc import Iterator

from dsv4_shard.diagnosis.clues import Clues
from dsv4_shard.engines import LOG_WORDS, find_engine
from dsv4_shard.models import Module
from dsv4_shard.text.units import counted, quotient

_MOST_RANKS = 64

_EXPERTS = (Module.ROUTED,)


def divisors(number: int, most: int = _MOST_RANKS) -> list[int]:
    """The numbers up to `most` that divide `number`."""
    return [n for n in range(1, min(number, most) + 1) if number % n == 0]


def ranks_of(clues: Clues, engine: str | None, modules: frozenset[Module]) -> tuple[int, str] | None:
    """How many ranks share what the message is about, and how this number is made; None if the log does not say.

    Routed experts are cut over TP / EP (SGLang), or over TP × DP with expert parallelism off (vLLM).
    """
    if clues.tp is None:
        return None
    dp, ep, name = max(clues.dps), clues.told_ep or 1, f"TP {clues.tp}"
    if not modules or not modules <= set(_EXPERTS):
        return clues.tp, name
    if engine is not None and find_engine(engine).dp_multiplies:
        world = clues.tp * dp
        return max(1, world // ep), name + (f" × DP {dp}" if dp > 1 else "") + (f" / EP {ep}" if ep > 1 else "")
    return max(1, clues.tp // ep), name + (f" / EP {ep}" if ep > 1 else "")


def part_of_blocks(part: int, unit: int, ranks: tuple[int, str] | None) -> Iterator[str]:
    """A rank's part that is not whole blocks: the size in all, and the numbers of ranks that give whole blocks."""
    if ranks is None:
        yield f"{part} = {quotient(part, unit)} blocks of {unit}: a rank's part must be whole blocks, with a scale each"
        halves = next((n for n in range(2, 2 * unit + 1) if part * n % unit == 0), None)
        if halves:
            blocks = counted(part * halves // unit, "block")
            yield f"{part} × TP is the whole; 1/{halves} of that TP gives {blocks} per rank"
        return
    count, name = ranks
    whole = part * count
    blocks = quotient(whole, unit)
    yield f"{part} × {count} = {whole} in all ({name}), {blocks} blocks of {unit}, {quotient(part, unit)} per rank"
    if whole % unit:
        yield f"{blocks} blocks are not whole: no TP gives whole blocks"
        return
    fit = ", ".join(map(str, divisors(whole // unit)))
    plain = name == f"TP {count}"
    yield f"whole blocks at TP {fit}" if plain else f"whole blocks over {fit} ranks (here {count} = {name})"


def size_over_parts(size: int, parts: int) -> Iterator[str]:
    """A size that does not divide: the quotient, and the numbers of ranks that divide it."""
    yield f"{size} / {parts} = {quotient(size, parts)}: not whole"
    yield f"{size} divides over {', '.join(map(str, divisors(size)))} ranks" + (
        " (up to 64)" if size > _MOST_RANKS else ""
    )


def without_cut(modules: frozenset[Module], engine: str | None) -> Iterator[str]:
    """Ways in which engines do not cut what the message is about."""
    options = {name: words.expert_parallel for name, words in LOG_WORDS.items() if words.expert_parallel}
    every = ", ".join(f"{find_engine(name).title} {option}" for name, option in options.items())
    option = options.get(engine, every) if engine is not None else every
    if not modules or modules & set(_EXPERTS):
        only = "" if modules and modules <= set(_EXPERTS) else ", if it is of a routed expert"
        yield f"expert parallelism, which does not cut experts: {option}{only}"
    yield "fewer ranks in a TP group, with data parallelism for the others"


def without_blocks() -> Iterator[str]:
    """Remedies for a size that is no whole number of blocks to begin with."""
    yield "no parallelism helps, expert parallelism neither: the whole size is no whole number of blocks"
    yield "an export of the model in another format (BF16, or scales per channel), or an engine version that pads"
