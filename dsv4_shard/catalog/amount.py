"""Amounts of memory and sizes of files, as users write them."""

import re
from decimal import Decimal

_UNITS = {"": 10**9, "g": 10**9, "gb": 10**9, "mb": 10**6, "gib": 1 << 30, "mib": 1 << 20}

_AMOUNT = re.compile(r"([0-9]{1,7}(?:\.[0-9]{1,3})?)(?: ?(GB|MB|GiB|MiB|G))?", re.IGNORECASE | re.ASCII)


def bytes_of(amount: str) -> int | None:
    """Return the bytes of `96GB`, `96`, `95GiB`, `500MB` or `97285MiB`; None for other text."""
    match = _AMOUNT.fullmatch(amount)
    return int(Decimal(match[1]) * _UNITS[(match[2] or "").lower()]) if match else None
