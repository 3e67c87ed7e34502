"""The options and variables that an engine has, by its own parser: `engine_options.json`.

`python -m conformance options --update` makes the table with the engines that are installed for it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

from dsv4_shard.text.suggest import near


@dataclass(frozen=True, slots=True)
class KnownOption:
    """An option of an engine.

    Attributes:
        name: Its plain name: `--tp-size` for `--tensor-parallel-size`.
        values: Number of its values as argparse writes it: `0`, `1`, `?`, `*` or `+`.
        denies: Whether it sets the option `name` to false: `--no-enable-prefix-caching`.
    """

    name: str
    values: str
    denies: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class EngineOptions:
    """All options of a version of an engine, by each of their names, and the variables that it reads.

    `hyphenates`: the parser takes underscores in names for hyphens, and what follows a dot for a part of the value.
    """

    version: str
    hyphenates: bool
    options: Mapping[str, KnownOption]
    variables: frozenset[str]

    def find(self, name: str) -> KnownOption | None:
        """Return the option that the engine's parser takes a name for; None if there is none, or several begin so.

        Like argparse, it takes the beginning of one option's name.
        """
        if self.hyphenates and name.startswith("--"):
            name = name.partition(".")[0].replace("_", "-")
        if name in self.options:
            return self.options[name]
        return _begun(self, name) if name.startswith("--") else None

    def resembling(self, name: str) -> list[str]:
        """Return up to three names of options that `name` may be meant for, closest first."""
        return near(name.replace("_", "-"), [known for known in self.options if known.startswith("--")])


_HYPHENATING = ("vllm",)


@lru_cache(maxsize=4096)
def _begun(table: EngineOptions, name: str) -> KnownOption | None:
    """Return the only option that has a name with this beginning; None if there is none, or several."""
    begun = {option for known, option in table.options.items() if known.startswith(name)}
    return begun.pop() if len(begun) == 1 else None


@cache
def options_of(engine: str) -> EngineOptions | None:
    """Return the options of an engine; None if they were not collected."""
    document = json.loads((files(__package__) / "engine_options.json").read_text()).get(engine)
    if document is None:
        return None
    options = {
        name: KnownOption(denied[0] if denied else names[0], values, bool(denied))
        for names, values, *denied in document["options"]
        for name in names
    }
    return EngineOptions(document["version"], engine in _HYPHENATING, options, frozenset(document["variables"].split()))
