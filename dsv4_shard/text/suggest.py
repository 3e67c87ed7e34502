""" "Did you mean …?" for a misspelt name."""

import difflib
from collections.abc import Iterable

_MOST = 3

_LONGEST = 100


def as_option(parameter: str) -> str:
    """A parameter of the verbs as the command line has it."""
    return "--" + parameter.replace("_", "-")


def near(name: str, known: Iterable[str]) -> list[str]:
    """Of `known`, those that `name` may have been meant for, the nearest first; `org/name` also by its last part."""
    wanted = name[:_LONGEST].lower()
    parts = {one.lower(): one for one in known} if "/" in wanted else {}
    parts = parts or {part: one for one in known for part in (one.lower().rpartition("/")[2], one.lower())}
    begun = [part for part in parts if wanted and part.startswith(wanted)]
    found = dict.fromkeys(parts[part] for part in [*begun, *difflib.get_close_matches(wanted, parts, n=_MOST)])
    return list(found)[:_MOST]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for who gave a name that is not known: those that come near, then all that there are."""
    known = list(dict.fromkeys(known))
    meant = near(name, known)
    listed = f"Known: {', '.join(known)}."
    return f"Did you mean {' or '.join(meant)}? {listed}" if meant else listed
