"""`Converter`: a generation of DeepSeek's converter, and the config of its inference code."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from dsv4_shard.models import Draft

CONFIG_NAME = "inference_config.json"

_MISSING = object()


@dataclass(frozen=True, slots=True)
class Converter:
    """A generation of DeepSeek's converter and model.

    Attributes:
        version: Version of the rules.
        decodings: Transforms of wo_a, by the side of its square blocks.
        cast: Transform of FP4 experts to FP8.
        cast_block: Rows and columns of the FP8 blocks after the cast.
        config_keys: `ModelArgs` of inference/model.py ← config.json (a path of keys), in the order of the released
            inference/config.json.
        nullable: Keys of `config_keys` that may be null.
    """

    version: str
    decodings: Mapping[int, str]
    cast: str
    cast_block: int
    config_keys: Mapping[str, str]
    nullable: tuple[str, ...] = ()


def inference_config(
    converter: Converter, document: dict[str, object], experts: str, draft: Draft
) -> dict[str, object]:
    """config.json with the keys of DeepSeek's inference code. A key that config.json lacks keeps its default.

    `n_mtp_layers` counts the blocks, since config.json has 1 for DSpark's three; a classic draft model has no such key.
    """
    result: dict[str, object] = {}
    for key, path in converter.config_keys.items():
        value = value_at(document, path, _MISSING)
        if key == "expert_dtype":
            value = "fp4" if experts == "FP4" else None
        if key == "n_mtp_layers":
            value = draft.blocks if draft.dspark else None
        if value is not _MISSING and (value is not None or key in converter.nullable):
            result[key] = value
    return result


def value_at(document: dict[str, object], path: str, missing: object = None) -> object:
    """The value at a path of keys with dots between them, or `missing`."""
    value: object = document
    for part in path.split("."):
        value = value.get(part, missing) if isinstance(value, dict) else missing
    return value


def config_file(values: dict[str, object]) -> dict[str, bytes]:
    """The file for generate.py's `--config`."""
    return {CONFIG_NAME: (json.dumps(values, indent=4) + "\n").encode()}
