"""Names as words of the commands that messages suggest, for bash."""

import shlex


def shell_word(name: object) -> str:
    """Return a name as one word of a command, quoted where bash would read more into it.

    A name with a leading dash begins with `./`, since it would be an option.
    """
    text = str(name)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
