"""Sizes in the units that people use for them."""

GIB = 1 << 30
_UNITS = ("B", "kB", "MB", "GB", "TB")


def size(nbytes: int) -> str:
    """Bytes in decimal units, as disks and checkpoints are sold."""
    number, unit = float(nbytes), 0
    while number >= 1000 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{nbytes} B" if unit == 0 else f"{number:.2f} {_UNITS[unit]}"


def gib(nbytes: int) -> str:
    """Bytes in GiB, as GPUs' memory is counted."""
    return f"{nbytes / GIB:.1f} GiB"
