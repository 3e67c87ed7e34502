"""The JSON schemas that are published with the docs, as validators."""

import json
from functools import cache
from pathlib import Path

import jsonschema

FOLDER = Path(__file__).parents[1] / "docs" / "reference"


@cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    """Of the committed schema of that name."""
    document = json.loads((FOLDER / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)
