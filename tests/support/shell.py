"""Commands in printed text."""

import re


def joined(printed: str) -> str:
    """Printed text with each command on one line, as a shell reads it."""
    return re.sub(r" \\\n +", " ", printed)
