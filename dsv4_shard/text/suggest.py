""" "Did you mean …?" for a misspelt name."""

import difflib
from collections.abc import Iterable

_MAX_MATCHES = 3

_MAX_CHARS = 100


def as_option(parameter: str) -> str:
    """Return the command-line option for a parameter of a verb: `expert_dtype` → `--expert-dtype`."""
    return "--" + parameter.replace("_", "-")


def near(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three names of `known` that `name` may be a misspelling of, closest first.

    Names that begin with it come first, whole words before longer ones. A known name `org/name` also matches by its
    last part.
    """
    wanted = name[:_MAX_CHARS].lower()
    parts = {candidate.lower(): candidate for candidate in known} if "/" in wanted else {}
    parts = parts or {
        part: candidate for candidate in known for part in (candidate.lower().rpartition("/")[2], candidate.lower())
    }
    prefixed = sorted(
        (part for part in parts if wanted and part.startswith(wanted)),
        key=lambda part: (part[len(wanted) : len(wanted) + 1].isalnum(), len(part)),
    )
    close = difflib.get_close_matches(wanted, parts, n=_MAX_MATCHES)
    found = dict.fromkeys(parts[part] for part in [*prefixed, *close])
    return list(found)[:_MAX_MATCHES]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown name: closest matches, then all valid names."""
    known = list(dict.fromkeys(known))
    matches = near(name, known)
    listed = f"Known: {', '.join(known)}."
    return f"Did you mean {' or '.join(matches)}? {listed}" if matches else listed
