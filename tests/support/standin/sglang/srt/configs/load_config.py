"""How a model is loaded."""

import enum
import json
from dataclasses import dataclass, field
from typing import Any


class LoadFormat(str, enum.Enum):  # noqa: UP042
    AUTO = "auto"
    SHARDED_STATE = "sharded_state"


@dataclass
class LoadConfig:
    load_format: Any = LoadFormat.AUTO
    model_loader_extra_config: Any = field(default_factory=dict)

    def __post_init__(self) -> None:
        extra = self.model_loader_extra_config or {}
        if isinstance(extra, str):
            self.model_loader_extra_config = json.loads(extra)
        self._verify_load_format()

    def _verify_load_format(self):
        if isinstance(self.load_format, str):
            self.load_format = LoadFormat(self.load_format.lower())
