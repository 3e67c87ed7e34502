"""Documents of earlier schema versions, and the checkpoint that they were made from: see `tests/data/documents`."""

import hashlib
import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

from support.paths import TESTS

from dsv4_shard.storage.digests import digest_of

DOCUMENTS = TESTS / "data/documents"

OTHER_VERSION = "9.9.9"

_SPEC = importlib.util.spec_from_file_location("make_documents", DOCUMENTS / "make.py")
assert _SPEC is not None
assert _SPEC.loader is not None
_MAKE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MAKE)

PLANS = tuple(_MAKE.PLANS)


def asked_by(name: str) -> dict[str, Any]:
    """The options of a plan."""
    return dict(_MAKE.PLANS[name])


def checkpoint(folder: Path) -> Path:
    """The checkpoint, in the folder `model` of `folder`."""
    return _MAKE.unpack(DOCUMENTS / "checkpoint.zip", folder / "model")


def plan_text(schema: int, name: str) -> bytes:
    """A plan as that schema's version wrote it."""
    with zipfile.ZipFile(DOCUMENTS / f"schema-{schema}/plans.zip") as plans:
        return plans.read(f"{name}.json")


def result(schema: int, name: str, out: Path) -> Path:
    """A result as that schema's version wrote it, in the folder `out`."""
    return _MAKE.unpack(DOCUMENTS / f"schema-{schema}/result-{name}.zip", out)


def unfinished(schema: int, out: Path) -> Path:
    """What a run into `out` left when it ended early. Returns its folder."""
    return _MAKE.unpack(DOCUMENTS / f"schema-{schema}/unfinished.zip", out.parent / f".{out.name}.partial")


def by_version(raw: bytes, **fields: Any) -> bytes:
    """A plan of another version of the tool, with further fields changed."""
    return json.dumps(json.loads(raw) | {"tool_version": OTHER_VERSION} | fields, indent=2).encode() + b"\n"


def reseal(folder: Path, **fields: Any) -> None:
    """Change fields of a result's manifest, as a version that wrote them so would have."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes()) | fields
    blank = json.dumps(manifest | {"digest": ""}, ensure_ascii=False, separators=(",", ":"))
    manifest["digest"] = digest_of(blank.encode())
    path.write_bytes(json.dumps(manifest, ensure_ascii=False, indent=1).encode() + b"\n")


def as_of_other_version(folder: Path) -> Path:
    """A result as another version of the tool would have written it: with another plan in its words."""
    plan = by_version((folder / "plan.json").read_bytes(), assumptions=["in other words"])
    (folder / "plan.json").write_bytes(plan)
    for path in folder.glob("provenance*.json"):
        path.write_bytes(_stated_by_other_version(path.read_bytes(), plan))
    companions = json.loads((folder / "manifest.json").read_bytes())["companions"]
    for entry in companions:
        raw = (folder / entry["name"]).read_bytes()
        entry |= {"nbytes": len(raw), "digest": digest_of(raw)}
        entry |= {"sha256": hashlib.sha256(raw).hexdigest()} if "sha256" in entry else {}
    fields = {"tool_version": OTHER_VERSION, "plan_digest": digest_of(plan), "companions": companions}
    manifest = json.loads((folder / "manifest.json").read_bytes())
    if "written_by" in manifest:
        fields["written_by"] = {OTHER_VERSION: manifest["ranks"]}
    reseal(folder, **fields)
    return folder


def _stated_by_other_version(raw: bytes, plan: bytes) -> bytes:
    statement = json.loads(raw)
    statement["predicate"]["runDetails"]["builder"]["version"] = {"dsv4-shard": OTHER_VERSION}
    statement["predicate"]["buildDefinition"]["internalParameters"]["planDigest"] = digest_of(plan)
    for subject in statement["subject"]:
        if subject["name"] == "plan.json":
            subject["digest"] = {"sha256": hashlib.sha256(plan).hexdigest()}
    return json.dumps(statement, indent=1, ensure_ascii=False).encode() + b"\n"


def rank_files(folder: Path) -> dict[str, bytes]:
    """The weight files of a result."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


def merged(schema: int, name: str) -> dict[str, str]:
    """SHA-256 of the weight files that a result was merged to then."""
    return json.loads((DOCUMENTS / f"schema-{schema}/merged.json").read_bytes())[name]
