"""Names as words of commands, for bash, and what of a command is in quotes."""

import re
import shlex

_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")


def shell_word(name: object) -> str:
    """Return a name as one word of a command, quoted where bash would read more into it.

    A name with a leading dash begins with `./`, since it would be an option.
    """
    text = str(name)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def unquoted(command: str) -> str:
    """Return a command without what is in quotes, such as a path with blanks or `$`."""
    return _QUOTED.sub("", command)


def replace_unquoted(command: str, old: str, new: str) -> str:
    """Return a command with a text replaced by another where it is not in quotes."""
    pattern = re.compile(f"{_QUOTED.pattern}|({re.escape(old)})")
    return pattern.sub(lambda match: new if match[1] else match[0], command)
