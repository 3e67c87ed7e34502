"""Options of `plan` in a text, such as `--tp 8 --gpu h200`, → values by their names in Python."""

import re
import shlex
from typing import Any

from dsv4_shard.catalog.option import Field, fields_of
from dsv4_shard.catalog.request import LayoutOptions, PlanOptions
from dsv4_shard.errors import UsageError
from dsv4_shard.text.suggest import as_option, did_you_mean

_NUMBER = re.compile(r"\d{1,9}", re.ASCII)


def own_options(text: str, where: str) -> dict[str, Any]:
    """Return the options in a text. The values are checked where they are used.

    Args:
        text: Options of a layout, as on the command line of `plan`.
        where: What the text is, for messages: `--prefill`.

    Raises:
        UsageError: An option is unknown, or has no value; or a quote is not closed.
    """
    known = {as_option(field.name): field for field in fields_of(PlanOptions) if field.name in _NAMES}
    try:
        words = shlex.split(text)
    except ValueError:
        raise UsageError(f"{where}: a quote is not closed", hint="Write it as --prefill '--tp 8 --gpu h200'.") from None
    values: dict[str, Any] = {}
    while words:
        name, equals, value = words.pop(0).partition("=")
        field = known.get(name)
        if field is None:
            raise UsageError(f"{where}: {name} is no option of a layout", hint=did_you_mean(name, known))
        if bool in field.kinds:
            values[field.name] = True
        elif not equals and not words:
            raise UsageError(f"{where}: {name} has no value", hint="Write it as --prefill '--tp 8 --gpu h200'.")
        else:
            values[field.name] = _value(field, value if equals else words.pop(0))
    return values


_NAMES = {field.name for field in fields_of(LayoutOptions)} | {"tp", "context"}


def _value(field: Field, text: str) -> Any:
    return int(text) if int in field.kinds and _NUMBER.fullmatch(text) else text
