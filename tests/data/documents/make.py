"""Write documents of the version that is installed into the new folder `schema-N` beside this file.

    python tests/data/documents/make.py N

Run it before a schema version goes up, with the code as it is then, and commit what it writes: later versions have to
read it. The checkpoint (`checkpoint.zip`) is always the same one, so that what is made from it can be compared.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import dsv4_shard

HERE = Path(__file__).parent

MTIME = 1_700_000_000
"""The checkpoint's files have it when they are unpacked: journals note the times."""

PLANS = {
    "reference": {"engine": "reference", "tp": 2},
    "sglang": {"engine": "sglang", "tp": 2, "ep": 2, "gpu": "h20-96"},
    "sglang-nodes": {"engine": "sglang", "tp": 2, "ep": 2, "nodes": 2, "shared_experts": "whole"},
    "vllm": {"engine": "vllm", "tp": 2, "ep": 2, "nodes": 2},
    "trtllm": {"engine": "trtllm", "tp": 2, "nodes": 2, "gpu_memory": "96GB"},
    "node": {"engine": "node", "tp": 2, "nodes": 2},
    "infeasible": {"engine": "sglang", "tp": 4},
}

RESULTS = {"reference": None, "sglang": None, "node": None, "share": (0,)}
"""Results by the plan that they follow, with their ranks; `share` is the first rank of the reference's."""


class Stop(Exception):
    """Ends a run early."""


def unpack(archive: Path, folder: Path) -> Path:
    """What `pack` packed, with the checkpoint's times."""
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    for path in folder.rglob("*"):
        os.utime(path, (MTIME, MTIME))
    return folder


def pack(folder: Path, archive: Path) -> None:
    """All files of a folder, with nothing in the archive that is not in them."""
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                info = zipfile.ZipInfo(str(path.relative_to(folder)))
                packed.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED, compresslevel=9)


class StopAfter(dsv4_shard.Progress):
    """Ends the run when so many bytes were put."""

    def __init__(self, nbytes: int) -> None:
        self.left = nbytes

    def advance(self, task: str, nbytes: int) -> None:
        self.left -= nbytes
        if self.left <= 0:
            raise Stop


def make(out: Path) -> None:
    """Write all documents, from a folder in which the checkpoint is called `model`."""
    plans = {name: dsv4_shard.plan("model", **asked) for name, asked in PLANS.items()}
    Path("plans").mkdir()
    for name, plan in plans.items():
        Path(f"plans/{name}.json").write_text(plan.to_json())
    pack(Path("plans"), out / "plans.zip")
    for name, ranks in RESULTS.items():
        dsv4_shard.reshard("model", name, plan=plans.get(name, plans["reference"]), ranks=ranks)
        pack(Path(name), out / f"result-{name}.zip")
    merged = {}
    for name in ("reference", "sglang", "node"):
        dsv4_shard.merge(name, f"merged-{name}")
        files = sorted(Path(f"merged-{name}").glob("*.safetensors"))
        merged[name] = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    (out / "merged.json").write_text(json.dumps(merged, indent=1) + "\n")
    try:
        dsv4_shard.reshard("model", "unfinished", plan=plans["reference"], jobs=1, progress=StopAfter(150_000))
    except Stop:
        pack(Path(".unfinished.partial"), out / "unfinished.zip")


def main() -> None:
    """The command."""
    out = HERE / f"schema-{sys.argv[1]}"
    out.mkdir()
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    try:
        unpack(HERE / "checkpoint.zip", Path("model"))
        make(out)
    finally:
        os.chdir(HERE)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
