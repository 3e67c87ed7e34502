"""Parameters as digests: how oracles are kept, and how what was written is compared with them. Standard library only.

An oracle file, `tests/data/oracles/<engine>/<case>.json`, holds one parameter a line:

    {"case": {...}, "method": "Fp8MoEMethod", "ranks": [0, 1], "unloaded": [], "turned": {}, "params": {
    "model.norm.weight": ["BF16", [256], "9f2c…"],
    "lm_head.weight": ["BF16", [256, 256], ["03ab…", "77d1…"]]
    }}

The digest is the first half of a SHA-256, one for all ranks or one for each of `ranks`; so is the shape. `unloaded` are
parameters that the engine's own loader leaves as they are; they are not among `params`. `method` is what the MoE
backend resolved to, `turned` the digest of SGLang's `ape` parameters after `post_load_weights`, which changes them and
no other.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conformance.cases import Case

DIGEST_DIGITS = 32

Param = tuple[str, list[int], str]
"""dtype as in safetensors files, shape, digest"""

Params = dict[str, Param]
"""The parameters of one rank, by name."""


@dataclass
class Oracle:
    """What an engine's own loader puts into the parameters of each rank of a case."""

    case: Case
    ranks: dict[int, Params]
    method: str = ""
    unloaded: list[str] = field(default_factory=list)
    turned: dict[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Parameters of all ranks."""
        return sum(map(len, self.ranks.values()))


def write_oracle(path: Path, oracle: Oracle) -> None:
    """Write an oracle in its compact form. Raises ValueError where names or dtypes differ between ranks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {
        "case": oracle.case.to_dict(),
        "method": oracle.method,
        "ranks": list(oracle.ranks),
        "unloaded": oracle.unloaded,
        "turned": oracle.turned,
    }
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(_compact(oracle.ranks).items())]
    path.write_text(json.dumps(head)[:-1] + ', "params": {\n' + ",\n".join(lines) + "\n}}\n")


def _compact(ranks: dict[int, Params]) -> dict[str, list[Any]]:
    first, *others = ranks.values()
    entries: dict[str, list[Any]] = {}
    for name, (dtype, shape, _) in first.items():
        if any(params[name][0] != dtype for params in others):
            raise ValueError(f"{name}: not the same dtype on every rank")
        digests = [params[name][2] for params in ranks.values()]
        shapes = [params[name][1] for params in ranks.values()]
        is_even = all(one == shape for one in shapes)
        entries[name] = [dtype, shape if is_even else shapes, digests if len(set(digests)) > 1 else digests[0]]
    if any(params.keys() != first.keys() for params in others):
        raise ValueError("not the same parameters on every rank")
    return entries


def read_oracle(path: Path) -> Oracle:
    """Read what `write_oracle` wrote."""
    document = json.loads(path.read_text())
    ranks: dict[int, Params] = {rank: {} for rank in document["ranks"]}
    for name, (dtype, shape, digests) in document["params"].items():
        for index, params in enumerate(ranks.values()):
            own = shape[index] if shape and isinstance(shape[0], list) else shape
            params[name] = (dtype, own, digests if isinstance(digests, str) else digests[index])
    head = {key: document[key] for key in ("method", "unloaded", "turned")}
    return Oracle(Case(**document["case"]), ranks, **head)


def differences(want: Params, got: Params) -> list[str]:
    """One line a parameter that is missing, too many, or not the same."""
    lines = [f"{name}: missing" for name in sorted(want.keys() - got.keys())]
    lines += [f"{name}: not in the engine's model" for name in sorted(got.keys() - want.keys())]
    for name in sorted(want.keys() & got.keys()):
        (dtype, shape, digest), (other_dtype, other_shape, other_digest) = want[name], got[name]
        if (dtype, list(shape)) != (other_dtype, list(other_shape)):
            lines.append(f"{name}: {other_dtype} {list(other_shape)}, not {dtype} {list(shape)}")
        elif digest != other_digest:
            lines.append(f"{name}: other bytes")
    return lines
