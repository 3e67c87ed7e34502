"""Parameters as digests: how oracles are kept, and how what was written is compared with them. Standard library only.

An oracle file, `tests/data/oracles/<engine>/<case>.json`, holds one parameter a line:

    {"case": {...}, "method": "Fp8MoEMethod", "ranks": [0, 1], "unloaded": [], "turned": {}, "params": {
    "model.norm.weight": ["BF16", [256], "9f2c…"],
    "lm_head.weight": ["BF16", [256, 256], ["03ab…", "77d1…"]]
    }}

The digest is the first half of a SHA-256, one for all ranks or one for each of `ranks`, null for a rank of a pipeline
stage without the parameter; so is the shape. `unloaded` are
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
    """Write an oracle in its compact form. Raises ValueError where names or dtypes differ between ranks of a stage."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {
        "case": oracle.case.to_dict(),
        "method": oracle.method,
        "ranks": list(oracle.ranks),
        "unloaded": oracle.unloaded,
        "turned": oracle.turned,
    }
    compact = _compact(oracle.ranks, oracle.case.tp if oracle.case.pp > 1 else max(oracle.ranks) + 1)
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(compact.items())]
    path.write_text(json.dumps(head)[:-1] + ', "params": {\n' + ",\n".join(lines) + "\n}}\n")


def _compact(ranks: dict[int, Params], of_stage: int) -> dict[str, list[Any]]:
    """The entries of all parameters; `of_stage` ranks have the same ones. Ranks without one have None as its digest."""
    entries: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for params in ranks.values() for name in params):
        found = [params.get(name) for params in ranks.values()]
        holders = [one for one in found if one is not None]
        dtype, shape, _ = holders[0]
        if any(one[0] != dtype for one in holders):
            raise ValueError(f"{name}: not the same dtype on every rank")
        digests = [one and one[2] for one in found]
        is_even = all(one[1] == shape for one in holders)
        shapes = shape if is_even else [one and one[1] for one in found]
        entries[name] = [dtype, shapes, digests if len(set(digests)) > 1 else digests[0]]
    stages: dict[int, set[frozenset[str]]] = {}
    for rank, params in ranks.items():
        stages.setdefault(rank // of_stage, set()).add(frozenset(params))
    if any(len(names) > 1 for names in stages.values()):
        raise ValueError("not the same parameters on every rank of a stage")
    return entries


def read_oracle(path: Path) -> Oracle:
    """Read what `write_oracle` wrote."""
    document = json.loads(path.read_text())
    ranks: dict[int, Params] = {rank: {} for rank in document["ranks"]}
    for name, (dtype, shape, digests) in document["params"].items():
        for index, params in enumerate(ranks.values()):
            own = shape[index] if shape and isinstance(shape[0], list) else shape
            digest = digests if isinstance(digests, str) else digests[index]
            if digest is not None:
                params[name] = (dtype, own, digest)
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
