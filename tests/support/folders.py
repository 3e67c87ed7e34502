"""What a folder holds."""

import json
from pathlib import Path

from dsv4_shard.sharding.statement import is_statement


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder and its folders."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def apart_from_statements(found: dict[str, bytes]) -> dict[str, bytes]:
    """What a folder holds without its statements of provenance: each run writes its own, and shares keep theirs."""
    manifest = json.loads(found["manifest.json"])
    kept = [entry for entry in manifest["companions"] if not is_statement(entry["name"])]
    rest = {name: content for name, content in found.items() if not is_statement(name)}
    return rest | {"manifest.json": json.dumps(manifest | {"companions": kept, "digest": ""}).encode()}
