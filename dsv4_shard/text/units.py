"""Sizes and numbers as people write them."""

_BINARY = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))

_UNITS = ("B", "kB", "MB", "GB", "TB")


def size(nbytes: int) -> str:
    """Return bytes in decimal units (`60.53 GB`), as for disks and checkpoints."""
    number, unit = float(nbytes), 0
    while number >= 1000 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{nbytes} B" if unit == 0 else f"{number:.2f} {_UNITS[unit]}"


def gib(nbytes: int) -> str:
    """Return bytes in GiB (`56.4 GiB`), as for GPU memory; small numbers in MiB, KiB or B."""
    name, unit = binary_unit(nbytes)
    return f"{nbytes / unit:.1f} {name}" if unit > 1 else f"{nbytes} B"


def binary_unit(nbytes: int) -> tuple[str, int]:
    """Return name and bytes of the largest unit, up to GiB, in which `nbytes` is at least 0.1."""
    return next((unit for unit in _BINARY if 10 * nbytes >= unit[1]), ("B", 1))


def quotient(number: float, divisor: int = 1) -> str:
    """Return `number / divisor` as text: exact if four decimals are enough, else rounded to two decimals.

    Inexact values below 1 get four significant digits. A fraction never looks like a whole number, for divisors up to
    10,000.
    """
    value = number / divisor
    if value < 1 and round(value, 4) != value:
        return f"{value:.4g}"
    is_rounded = round(value, 4) != value and round(value, 2) != round(value)
    return f"{value:.{2 if is_rounded else 4}f}".rstrip("0").rstrip(".")


def counted(number: int, noun: str) -> str:
    """Return the number with its noun, which gets an `s` for any number but 1."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def rounded(number: int) -> str:
    """Return a large number in words for people: `1.75 million`, `12,300`."""
    if number >= 1_000_000:
        return f"{number / 1e6:.3g} million"
    return f"{int(float(f'{number:.3g}')):,}"
