"""The colours of a report: each has one meaning on the whole page, in light and in dark."""

from dataclasses import dataclass

from dsv4_shard.models import Module


@dataclass(frozen=True, slots=True)
class Colour:
    """A colour: its name in the style sheet, its meaning, and its value in the light and in the dark scheme."""

    name: str
    meaning: str
    light: str
    dark: str


VERDICTS = (
    Colour("runs", "runs", "#19764f", "#52c08f"),
    Colour("changes", "runs with changes", "#8a5a00", "#dba53f"),
    Colour("fails", "does not run", "#b3202d", "#f4747d"),
    Colour("unverified", "not verified", "#60676f", "#9aa3ad"),
)
"""Colours of the four verdicts. That of *does not run* also marks the dimension that fails."""

KINDS = (
    Colour("routed", "routed experts", "#2b6cb0", "#5b9ce0"),
    Colour("shared", "shared experts", "#b8338c", "#dd6fd3"),
    Colour("attention", "attention", "#35a9cc", "#8fdcf2"),
    Colour("engram", "engram tables", "#0e6f78", "#2f9aa0"),
    Colour("ends", "embedding and head", "#6b46b8", "#9a76ea"),
    Colour("rest", "other modules", "#16345c", "#c3cfe6"),
    Colour("draft", "MTP draft model", "#b3a6ea", "#5a4f9c"),
)
"""Colours of bytes: one for each class of modules, and one for the draft model, whatever its modules are."""

DRAFT = "draft"

REST = "rest"

_KIND_OF = {
    Module.ROUTED: "routed",
    Module.SHARED: "shared",
    Module.ATTENTION: "attention",
    Module.COMPRESSOR: "attention",
    Module.INDEXER: "attention",
    Module.ENGRAM: "engram",
    Module.EMBEDDING: "ends",
    Module.HEAD: "ends",
}


def kind_of(module: Module) -> str:
    """Return the name of the colour of a module's bytes."""
    return _KIND_OF.get(module, REST)


def variables(scheme: str) -> str:
    """Return the declarations of the colours in a scheme: `light` or `dark`."""
    return " ".join(f"--{colour.name}: {getattr(colour, scheme)};" for colour in (*VERDICTS, *KINDS))
