"""`EngineRole`: one engine of a configuration with its options, as all formats give it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class GivenOption(NamedTuple):
    """An option as it is written, with its values joined by blanks; None if it has none."""

    name: str
    value: str | None = None


@dataclass(frozen=True, slots=True)
class EngineRole:
    """One engine of a configuration.

    Attributes:
        name: What it is called there: `prefill`, `decode`, `aggregated`, or the program.
        engine: Name of the engine, as in `--engine`.
        options: Its options in order; of an option that is given twice the last one counts.
        variables: Environment variables that are set for it.
        model: The checkpoint that it names; empty if it names none.
        gpu: The GPU as the configuration calls it; empty if it names none.
        gpus_per_node: GPUs of one node; None if that is not said.
        nodes: Number of nodes of one such engine; None if that is not said.
        replicas: Number of such engines.
        image: The container's image; empty if there is none.
        wrapped: Whether a program around the engine, which has options of its own, starts it.
        sized_by_launcher: Whether the launcher adds the number of data-parallel replicas.
    """

    name: str
    engine: str
    options: tuple[GivenOption, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    gpu: str = ""
    gpus_per_node: int | None = None
    nodes: int | None = None
    replicas: int = 1
    image: str = ""
    wrapped: bool = False
    sized_by_launcher: bool = False
