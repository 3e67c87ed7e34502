"""Sizes in the units that people use for them, and other numbers as they are said."""

_BINARY = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))

_UNITS = ("B", "kB", "MB", "GB", "TB")


def size(nbytes: int) -> str:
    """Bytes in decimal units, as disks and checkpoints are sold."""
    number, unit = float(nbytes), 0
    while number >= 1000 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{nbytes} B" if unit == 0 else f"{number:.2f} {_UNITS[unit]}"


def gib(nbytes: int) -> str:
    """Bytes in GiB, as GPUs' memory is counted; in a smaller unit where that would show nothing."""
    name, unit = binary_unit(nbytes)
    return f"{nbytes / unit:.1f} {name}" if unit > 1 else f"{nbytes} B"


def binary_unit(nbytes: int) -> tuple[str, int]:
    """The unit of which `nbytes` are at least a tenth, at most GiB: its name, and its bytes."""
    return next((unit for unit in _BINARY if 10 * nbytes >= unit[1]), ("B", 1))


def quotient(number: float, divisor: int = 1) -> str:
    """`number / divisor`: exactly where four places are enough, else to two, or to four digits below 1.

    What is not whole never looks so, for divisors up to 10,000.
    """
    value = number / divisor
    if value < 1 and round(value, 4) != value:
        return f"{value:.4g}"
    is_short = round(value, 4) != value and round(value, 2) != round(value)
    return f"{value:.{2 if is_short else 4}f}".rstrip("0").rstrip(".")


def counted(number: int, noun: str) -> str:
    """`number` of what `noun` is called in the singular."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
