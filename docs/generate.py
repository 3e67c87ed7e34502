"""Writes the reference pages that follow from the code: commands, errors, GPUs, JSON documents and their schemas.

    python -m docs.generate

The pages are committed, so that they can be read and a change of them shows; `make test` fails where they are stale.
"""

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import typer.main
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from dsv4_shard import errors
from dsv4_shard.catalog.gpus import GPUS, MIB, Gpu
from dsv4_shard.checkpoint.exports import EXPORTERS
from dsv4_shard.checkpoint.folders import KINDS
from dsv4_shard.cli import app
from dsv4_shard.configurations import PlannedDeployment
from dsv4_shard.destinations.documents import ClusterOutcome, DryRun, Uploaded
from dsv4_shard.diagnosis.document import Explanation
from dsv4_shard.errors import ExitCode, ShardError
from dsv4_shard.inspection.known_family import Inspection
from dsv4_shard.inspection.unknown_family import UnknownInspection
from dsv4_shard.limits import TABLE
from dsv4_shard.planning.compare import PlanComparison
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.fewest import Fewest
from dsv4_shard.planning.search import Search
from dsv4_shard.reassembly.merge_job import Merged
from dsv4_shard.sharding.manifest import Manifest
from dsv4_shard.sharding.outcome import Outcome
from dsv4_shard.sharding.statement import Statement
from dsv4_shard.signing import Signed
from dsv4_shard.terminal.error_document import ErrorDocument
from dsv4_shard.terminal.gpu_list import GpuList
from dsv4_shard.terminal.help import EXIT_CODES, examples_of, exit_codes_of, grouped
from dsv4_shard.terminal.progress_lines import ProgressLines
from dsv4_shard.verification.documents import SharesVerification, Verification

FOLDER = Path(__file__).parent / "reference"
_NOTE = "<!-- Written by `python -m docs.generate`: edit the code, or docs/generate.py. -->"


class Document(NamedTuple):
    """A JSON document: its model, and where it is met."""

    model: type[BaseModel]
    met: str


DOCUMENTS = {
    "plan": Document(Plan, "`plan --tp N --json`, `plan -o FILE`, and `plan.json` in a result"),
    "manifest": Document(Manifest, "`manifest.json` in a result"),
    "inspection": Document(Inspection, "`inspect --json`"),
    "unknown-inspection": Document(UnknownInspection, "`inspect --json` of a family that is not known"),
    "deployment": Document(PlannedDeployment, "`plan --from FILE --json`, `plan --prefill … --decode … --json`"),
    "search": Document(Search, "`plan --gpus N --json`"),
    "fewest": Document(Fewest, "`plan --json` without a layout"),
    "comparison": Document(PlanComparison, "`plan --compare A B --json`"),
    "verification": Document(Verification, "`verify OUT --json`"),
    "together": Document(SharesVerification, "`verify OUT OUT… --json`"),
    "signed": Document(Signed, "`sign --json`"),
    "provenance": Document(Statement, "`provenance.json` in a result"),
    "explanation": Document(Explanation, "`explain --json`"),
    "reshard": Document(Outcome, "`reshard --json` into a folder"),
    "reshard-store": Document(Uploaded, "`reshard --json` into an object store"),
    "reshard-cluster": Document(ClusterOutcome, "`reshard --ray --json`"),
    "dry-run": Document(DryRun, "`reshard --dry-run --json` and `merge --dry-run --json`"),
    "merge": Document(Merged, "`merge --json`"),
    "gpus": Document(GpuList, "`gpus --json`"),
    "error": Document(ErrorDocument, "any command with `--json`, in place of its result"),
}
"""Name of the schema file → the document."""

_ALONE = ("plan", "manifest", "provenance")
"""Documents with a page of their own; the others share one."""


def generated() -> dict[str, str]:
    """Every generated file of docs/reference, with its content."""
    schemas = {name: schema_of(document) for name, document in DOCUMENTS.items()}
    others = [name for name in DOCUMENTS if name not in _ALONE]
    files = {
        "commands.md": _page(_commands()),
        "errors.md": _page(_errors()),
        "exports.md": _page(_exports()),
        "gpus.md": _page(_gpus()),
        "limits.md": _page(_limits()),
        "outputs.md": _page(_outputs([(name, schemas[name]) for name in others])),
    }
    for name in _ALONE:
        files[f"{name}.md"] = _page(_alone(name, schemas[name]))
    for name, schema in schemas.items():
        files[f"{name}.schema.json"] = json.dumps(schema, indent=2) + "\n"
    return files


def _page(lines: Iterator[str]) -> str:
    title, *rest = lines
    return "\n".join([title, "", _NOTE, *rest]) + "\n"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield ""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def _code(text: object) -> str:
    return f"`{text}`"


def _flat(text: str | None) -> str:
    """A docstring on one line."""
    return " ".join((text or "").split())


# --- commands ------------------------------------------------------------------------------------------------------


def _commands() -> Iterator[str]:
    group: Any = typer.main.get_command(app)
    context = group.make_context(app.info.name, [], resilient_parsing=True)
    yield "# Commands"
    yield ""
    yield from (group.help or "", "")
    yield "Results go to stdout, everything else to stderr. Every command has `-h` and `--help`."
    yield from _parameters(group, context)
    yield from _exit_codes([(str(code.value), meaning) for code, meaning in EXIT_CODES.items()])
    for name, command in group.commands.items():
        inner = command.make_context(name, [], parent=context, resilient_parsing=True)
        yield f"## {name}"
        yield ""
        yield "```text"
        yield command.get_usage(inner).removeprefix("Usage: ")
        yield "```"
        yield ""
        yield inspect.cleandoc(command.help or "")
        yield from _parameters(command, inner)
        yield "```sh"
        yield from examples_of(name)
        yield "```"
        yield from _exit_codes(exit_codes_of(name))


def _parameters(command: Any, context: Any) -> Iterator[str]:
    """Arguments and options as `--help` has them: groups, values, text, defaults."""
    for heading, records in grouped(command, context):
        rows = [(_code(name), _flat(text).replace("[", "\\[")) for name, text in records]
        yield from _table((heading.lower(), "what it is"), rows)


def _exit_codes(codes: list[tuple[str, str]]) -> Iterator[str]:
    yield ""
    yield f"Exit codes: {', '.join(f'{code} {meaning}' for code, meaning in codes)}."
    yield ""


# --- errors --------------------------------------------------------------------------------------------------------


def _errors() -> Iterator[str]:
    yield "# Exit codes and errors"
    yield ""
    yield (
        "An error is a message on stderr that says what is wrong, where and why, and below it a hint of what to do "
        "next. In Python it is an exception of `dsv4_shard.errors`; all are subclasses of `ShardError`."
    )
    yield ""
    yield (
        "With `--json`, it is also a document on stdout, by [error.schema.json](error.schema.json). Its `code` is one "
        "of those below, `interrupted` (exit code 130, after Ctrl-C) or `terminated` (143, after SIGTERM, which Slurm "
        "and Kubernetes send). Codes are stable; sentences are not."
    )
    rows = [(str(code.value), _code(code.name), EXIT_CODES[code]) for code in ExitCode]
    yield from _table(("exit code", "`ExitCode`", "meaning"), rows)
    found = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    classes = [kind for kind in found if issubclass(kind, ShardError)]
    for code in ExitCode:
        mine = [kind for kind in classes if kind.exit_code is code and kind is not ShardError]
        if not mine:
            continue
        yield f"## Exit code {code.value}: {EXIT_CODES[code]}"
        described = []
        for kind in mine:
            parent = kind.__bases__[0]
            inherited = kind.hint is not None and kind.hint == vars(parent).get("hint")
            hint = f"that of {_code(parent.__name__)}" if inherited else kind.hint or "goes with the message"
            described.append(
                (_code(kind.code()), _code(kind.__name__), _code(parent.__name__), _flat(kind.__doc__), hint)
            )
        yield from _table(("code", "error", "is a", "when", "hint, unless the message has its own"), described)


# --- GPUs ----------------------------------------------------------------------------------------------------------


def _exports() -> Iterator[str]:
    yield "# Other tools' exports"
    yield ""
    yield (
        "dsv4-shard reads safetensors files, in the formats of the releases of DeepSeek and NVIDIA. An export of "
        "another tool gets one finding that names the tool, by the marks below, and says what reads it. To plan "
        "or reshard, name the checkpoint that it was made from."
    )
    yield ""
    yield "## Checkpoints in safetensors files"
    yield ""
    yield "Marks count where tensors have names or dtypes that no release has."
    yield ""
    rows = [(one.title, ", ".join(map(_code, one.methods)), ", ".join(map(_code, one.parts)), one.readers)
            for one in EXPORTERS]  # fmt: skip
    yield from _table(("tool", "`quant_method`", "last part of tensor names", "read by"), rows)
    yield ""
    yield "## Other files"
    yield ""
    yield from _table(("files", "are", "read by"), [(_code(one.files), one.what, one.readers) for one in KINDS])
    yield ""


def _gpus() -> Iterator[str]:
    yield "# GPUs"
    yield ""
    yield (
        "What `--gpu` takes. Memory is what CUDA reports as total (`torch.cuda.get_device_properties().total_memory`), "
        "which is what out-of-memory messages count on: less than `nvidia-smi` prints, and than the product's name "
        "says. A GPU that is not listed is given by its memory: `--gpu-memory 96GB`, taken for a Hopper GPU. Names may "
        "be written as drivers and sellers do (`NVIDIA H100 80GB HBM3`, `H20-3e`, `910c`), in any case. `dsv4-shard "
        "gpus` prints this list, also as JSON."
    )
    verified = [gpu for gpu in GPUS.values() if gpu.verified]
    rows = [(*_of_gpu(gpu), f"{gpu.family} (sm_{gpu.sm})", gpu.source) for gpu in verified]
    yield from _table(("`--gpu`", "GPU", "MiB", "GiB", "family", "where its memory was seen"), rows)
    yield "## Known by their memory alone"
    yield ""
    yield (
        "Not verified: no engine's own classes were run for these. Weights are computed as on the family named, and "
        "plans show whether they fit; the verdict is *not verified*."
    )
    not_verified = [gpu for gpu in GPUS.values() if not gpu.verified]
    rows = [(*_of_gpu(gpu), gpu.unverified_family, gpu.stands_for, gpu.source) for gpu in not_verified]
    yield from _table(
        ("`--gpu`", "GPU", "MiB", "GiB", "architecture", "bytes as on", "where its memory was seen"), rows
    )


def _of_gpu(gpu: Gpu) -> tuple[str, ...]:
    return _code(gpu.name), gpu.title, f"{gpu.memory // MIB:,}", f"{gpu.memory / (MIB << 10):.1f}"


# --- limits --------------------------------------------------------------------------------------------------------


def _limits() -> Iterator[str]:
    yield "# Limits"
    yield ""
    yield (
        "The largest input of each kind that is read. Bytes count decoded, before anything is made of them; an input "
        "beyond a limit is refused with one line. With as many workers as by default, no command needs more than "
        "512 MiB of memory for any input within them, except `verify --numerics`, which loads torch, and commands that "
        "read or write the weights of over 194,000 tensors: V4-Pro has 145,116, and in NVFP4 285,660. The limits stand "
        "in `dsv4_shard/limits.py`; `tests/test_limits.py` tries each, and one step beyond, and `tests/test_memory.py` "
        "measures the memory."
    )
    rows = [
        (
            limit.what,
            f"{limit.nbytes:,}" if limit.nbytes else "",
            f"{limit.count:,} {limit.counted}" if limit.count else "",
            f"{limit.seconds:,} s" if limit.seconds else "",
            str(limit.depth or ""),
            ", ".join(map(_code, limit.error.split(", "))) if limit.error[0].isupper() else limit.error,
            limit.largest,
        )
        for limit in TABLE
    ]
    yield from _table(("input", "bytes", "count", "time", "depth", "beyond it", "largest that is needed"), rows)


# --- JSON documents ------------------------------------------------------------------------------------------------


def schema_of(document: Document) -> dict[str, Any]:
    """The JSON schema of a document as it is written: keys with a default are there too."""
    schema = document.model.model_json_schema(mode="serialization")
    for model in (schema, *schema.get("$defs", {}).values()):
        if "properties" in model:
            model["required"] = list(model["properties"])
        if "description" in model:
            model["description"] = _in_json(model)
    return {"$schema": GenerateJsonSchema.schema_dialect} | schema


_MEMBER = re.compile(r"^    ([A-Z_]+): ", re.MULTILINE)


def _in_json(model: dict[str, Any]) -> str:
    """The description of a model, which is the docstring of its class, with JSON's values for Python's names."""
    said = re.sub(r"\bNone\b", "null", model["description"])
    if "enum" not in model:
        return said
    members = {kind.__name__: kind for kind in StrEnum.__subclasses__()}[model["title"]].__members__
    return _MEMBER.sub(lambda member: f'    "{members[member[1]].value}": ', said.replace("Attributes:", "Values:"))


def _alone(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"# {schema['title']}"
    yield ""
    yield from _document(name, schema, {schema["title"]}, "##")


def _outputs(schemas: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    yield "# Other JSON documents"
    yield ""
    yield "What `--json` prints, beside plans."
    said = {schema["title"] for _, schema in schemas}
    for name, schema in schemas:
        yield ""
        yield f"## {schema['title']}"
        yield ""
        yield from _document(name, schema, said, "###")
    yield ""
    yield "## Progress lines"
    yield ""
    yield "What `--progress json` writes to stderr while `reshard`, `merge`, `verify` and `sign` run."
    yield ""
    yield _flat(ProgressLines.__doc__)


def _document(name: str, schema: dict[str, Any], said: set[str], level: str) -> Iterator[str]:
    """A document, and below headings of `level` those of its models that were not `said` on the page already."""
    document = DOCUMENTS[name]
    yield f"{document.met}. Schema: [{name}.schema.json]({name}.schema.json)."
    yield ""
    yield _flat(schema.get("description"))
    yield from _fields(schema)
    for title, inner in sorted(schema.get("$defs", {}).items()):
        if title in said:
            continue
        said.add(title)
        yield f"{level} {title}"
        yield ""
        yield _flat(inner.get("description"))
        if "enum" in inner:
            yield ""
            yield f"One of {', '.join(_code(json.dumps(value)) for value in inner['enum'])}."
            yield ""
        else:
            yield from _fields(inner)


def _fields(schema: dict[str, Any]) -> Iterator[str]:
    required = schema.get("required", ())
    rows = [(_code(name), _type(field) + ("" if name in required else ", or not there"))
            for name, field in schema["properties"].items()]  # fmt: skip
    yield from _table(("key", "value"), rows)


def _type(field: dict[str, Any]) -> str:
    """A field's schema in words."""
    match field:
        case {"$ref": ref}:
            name = ref.rpartition("/")[2]
            return f"[{name}](#{name.lower()})"
        case {"anyOf": kinds}:
            return " or ".join(map(_type, kinds))
        case {"const": value}:
            return _code(json.dumps(value))
        case {"enum": values}:
            return " or ".join(_code(json.dumps(value)) for value in values)
        case {"type": "array", "prefixItems": items}:
            return f"[{', '.join(map(_type, items))}]"
        case {"type": "array", "items": items}:
            return f"list of {_type(items)}"
        case {"type": "object", "additionalProperties": dict(values)}:
            return f"object of {_type(values)}"
        case {"type": str(kind)}:
            bounds = [f"{sign} {field[key]}" for key, sign in _BOUNDS.items() if key in field]
            return " ".join([kind, *bounds])
    return "any value"


_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def main() -> None:
    for name, content in generated().items():
        path = FOLDER / name
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
            print(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


if __name__ == "__main__":
    main()
