"""`python -m conformance.compact CONTRACTS`: contracts as templates, in tests/data/contracts/{sglang,vllm}.json.

CONTRACTS is a folder as `python -m conformance contracts` makes it. An engine's file holds

    layers      sets of layers: [[0, 1, 2], [2, 4], ...]
    parameters  [name, dtype, shape, set]: a parameter, or one that is the same in each layer of a set. The name then
                has `{}` for the layer's number, and `set` is an index into `layers`; else `set` is null
    contracts   name of a layout → indices into `parameters`

with dtypes as in safetensors files. Names of layouts are those of the contract files without `.json`; the same names
stand in tests/data/{sglang,vllm}/contracts.json, with what each layout is. `backends-sm90/...` and `-sm100` (vLLM,
`<experts>-<backend>-tp<N>[-ep]`) hold only the expert layers of V4-Pro's layer 3, and `tid2eid` of layer 0.
`read_contracts` expands a file again.
"""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from conformance.contracts import FOLDERS
from conformance.engines import ROOT

COMPACT = ROOT / "tests" / "data" / "contracts"

_DTYPES = {
    "bfloat16": "BF16",
    "float32": "F32",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
    "int8": "I8",
    "uint8": "U8",
    "int32": "I32",
    "int64": "I64",
}
_LAYER = re.compile(r"(?<=\b(?:layers|stages)\.)\d+")

Declared = dict[str, tuple[str, list[int]]]
"""name → (dtype, shape)"""


def read_contracts(engine: str) -> dict[str, Declared]:
    """The parameters of every layout, by the layout's name."""
    document = json.loads((COMPACT / f"{engine}.json").read_text())
    expanded = [list(_expand(entry, document["layers"])) for entry in document["parameters"]]
    return {
        layout: {name: (dtype, shape) for index in indices for name, dtype, shape in expanded[index]}
        for layout, indices in document["contracts"].items()
    }


def _expand(entry: list[Any], layers: list[list[int]]) -> Iterator[tuple[str, str, list[int]]]:
    template, dtype, shape, index = entry
    names = [template] if index is None else [template.format(layer) for layer in layers[index]]
    return ((name, dtype, shape) for name in names)


def main() -> None:
    """Write both engines' files."""
    contracts = Path(sys.argv[1])
    COMPACT.mkdir(parents=True, exist_ok=True)
    for engine, folder in FOLDERS.items():
        layouts = dict(_read_all(contracts / folder))
        path = COMPACT / f"{engine}.json"
        path.write_text(_to_json(layouts))
        assert read_contracts(engine) == layouts, "nothing may get lost"
        print(f"{path}: {len(layouts)} contracts, {path.stat().st_size:,} bytes")


def _read_all(folder: Path) -> Iterator[tuple[str, Declared]]:
    for file in sorted(folder.rglob("*-rank0*.json")):
        document = json.loads(file.read_text())
        parameters = document["params"] if isinstance(document, dict) else document
        yield (
            str(file.relative_to(folder).with_suffix("")),
            _declared((p["name"], p["shape"], p["dtype"]) for p in parameters),
        )
    for file in sorted(folder.glob("backends-sm*.json")):
        for entry in json.loads(file.read_text()):
            if "error" not in entry:
                yield f"{file.stem}/{_backend_name(entry)}", _declared(_of_backend(entry))


def _backend_name(entry: dict[str, Any]) -> str:
    return f"{entry['kind']}-{entry['backend_arg']}-tp{entry['tp']}" + ("-ep" if entry["ep"] else "")


def _of_backend(entry: dict[str, Any]) -> Iterator[tuple[str, list[int], str]]:
    for name, (shape, dtype) in entry["ffn3"].items():
        yield f"model.layers.3.ffn.{name}", shape, dtype
    for name, (shape, dtype) in entry["tid2eid"].items():
        yield name, shape, dtype


def _declared(parameters: Iterable[tuple[str, list[int], str]]) -> Declared:
    return {name: (_DTYPES[dtype], shape) for name, shape, dtype in parameters}


def _to_json(layouts: dict[str, Declared]) -> str:
    """One entry a line, so that a change shows in a diff."""
    sets: dict[tuple[int, ...], int] = {}
    entries: dict[str, int] = {}
    contracts = {}
    for layout, declared in layouts.items():
        lines = [json.dumps(entry) for entry in _templates(declared, sets)]
        contracts[layout] = [entries.setdefault(line, len(entries)) for line in lines]
    parts: dict[str, Iterable[str]] = {
        "layers": map(json.dumps, sets),
        "parameters": entries,
        "contracts": (f"{json.dumps(layout)}: {json.dumps(indices)}" for layout, indices in contracts.items()),
    }
    blocks = []
    for key, part in parts.items():
        opening, closing = "{}" if key == "contracts" else "[]"
        blocks.append(f'"{key}": {opening}\n' + ",\n".join(part) + f"\n{closing}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def _templates(declared: Declared, sets: dict[tuple[int, ...], int]) -> Iterator[list[Any]]:
    """`declared` by template; sets of layers that are not in `sets` yet are added."""
    found: defaultdict[tuple[str, str, tuple[int, ...]], list[int]] = defaultdict(list)
    for name, (dtype, shape) in declared.items():
        match = _LAYER.search(name)
        template = _LAYER.sub("{}", name, count=1) if match else name
        found[template, dtype, tuple(shape)] += [int(match[0])] if match else []
    for (template, dtype, sizes), layers in found.items():
        index = sets.setdefault(tuple(sorted(layers)), len(sets)) if layers else None
        yield [template, dtype, list(sizes), index]


if __name__ == "__main__":
    main()
