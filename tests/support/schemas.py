"""The JSON schemas that are published with the docs, as validators."""

import json
from functools import cache

import jsonschema
from support.paths import ROOT

FOLDER = ROOT / "docs" / "reference"


@cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    """Of the committed schema of that name."""
    document = json.loads((FOLDER / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)
