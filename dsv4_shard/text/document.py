"""`Document`: the base of the results of verbs, and of their parts. A result is what `--json` prints."""

import json
from collections.abc import Collection
from html import escape
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from dsv4_shard.text.sanitize import clean

MAX_REPR_CHARS = 180

_SHOWN_ITEMS = 3

_UNSHOWN_FIELDS = ("kind", "schema_version", "tool_version")


_COLLECTIONS = ("list", "tuple", "dict", "set", "frozenset")


def _fail_fast(schema: Any) -> None:
    if isinstance(schema, dict):
        if schema.get("type") in _COLLECTIONS:
            schema["fail_fast"] = True
        for part in schema.values():
            _fail_fast(part)
    elif isinstance(schema, list):
        for part in schema:
            _fail_fast(part)


class Untrusted(BaseModel):
    """A model of what others wrote: of a list or an object, the first error alone is collected.

    Each error that pydantic collects takes a kilobyte, so a document with a million of them would fill the memory.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _fail_fast(schema)
        return schema


class Document(Untrusted):
    """Never changes, has no unknown fields, survives JSON and pickle, and has a `repr` of one short line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> str:
        """The document as `--json` prints it."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    def in_short(self) -> str:
        """What the `repr` says in parentheses: here the fields, long collections by their length."""
        shown = {name: getattr(self, name) for name in type(self).model_fields if name not in _UNSHOWN_FIELDS}
        return ", ".join(f"{name}={_in_short(value)}" for name, value in shown.items())

    def __repr__(self) -> str:
        """One line, cut where names are long."""
        text = clean(self.in_short())
        cut = text if len(text) <= MAX_REPR_CHARS - len("...") else text[: MAX_REPR_CHARS - len("...")] + "..."
        return f"{type(self).__name__}({cut})"

    def __str__(self) -> str:
        return repr(self)


def _in_short(value: object) -> str:
    if isinstance(value, Document):
        return type(value).__name__
    if isinstance(value, Collection) and not isinstance(value, str | bytes):
        is_short = len(value) <= _SHOWN_ITEMS and not any(isinstance(one, Collection | Document) for one in value)
        return repr(value) if is_short else f"<{len(value):,}>"
    return repr(value)


def html_table(caption: str, head: Collection[str], rows: Collection[Collection[object]]) -> str:
    """A table for a notebook. All text is escaped; it may come from untrusted files."""
    lines = [f"<table><caption>{_html(caption)}</caption>"]
    lines.append(f"<thead><tr>{''.join(f'<th>{_html(one)}</th>' for one in head)}</tr></thead><tbody>")
    lines += [f"<tr>{''.join(f'<td>{_html(one)}</td>' for one in row)}</tr>" for row in rows]
    return "\n".join([*lines, "</tbody></table>"])


def _html(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return escape(clean(text))
