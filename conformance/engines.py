"""The engines' environments, and jobs sent to them: one process for all jobs that agree on environment variables."""

import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conformance.cases import Case
from conformance.jobs import Job

ROOT = Path(__file__).parent.parent
HERE = Path(__file__).parent
ENGINES = ("sglang", "vllm")


@dataclass(frozen=True)
class Engine:
    """An engine's environment, and a folder for what is exchanged with it. `log` is where its own output goes."""

    name: str
    environment: Path
    work: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def log(self) -> Path:
        return self.work / f"{self.name}.log"

    def run(self, jobs: Iterable[Job]) -> Iterator[dict[str, Any]]:
        """Results of all jobs, as each process ends."""
        groups: dict[tuple[tuple[str, str], ...], list[Job]] = {}
        for job in jobs:
            variables = Case(**job["case"]).environment | job.get("variables", {})
            groups.setdefault(tuple(sorted(variables.items())), []).append(job)
        for number, (items, group) in enumerate(groups.items(), 1):
            print(f"{self.name}: process {number} of {len(groups)}, {len(group)} jobs", file=sys.stderr)
            yield from self._run_process(dict(items), group)

    def _run_process(self, variables: dict[str, str], jobs: list[Job]) -> list[dict[str, Any]]:
        number = next(self._numbers)
        jobs_file, results_file = (self.work / f"{self.name}-{number}.{end}" for end in ("jobs.json", "results.jsonl"))
        jobs_file.write_text(json.dumps(jobs))
        results_file.unlink(missing_ok=True)
        python = self.environment / "bin" / "python"
        command: list[str | Path] = [python, "-m", f"conformance.{self.name}", jobs_file, results_file]
        path = os.pathsep.join(map(str, (_entry_points(self.work), ROOT)))
        with self.log.open("ab") as log:
            status = subprocess.run(
                command, env=os.environ | {"PYTHONPATH": path} | variables, stdout=log, stderr=log, cwd=self.work
            ).returncode
        lines = results_file.read_text().splitlines() if results_file.exists() else []
        if status or len(lines) != len(jobs):
            done = f"{len(lines)} of {len(jobs)} jobs"
            raise SystemExit(f"{self.name} ended with status {status} after {done}: see {self.log}")
        return [json.loads(line) for line in lines]


def _entry_points(work: Path) -> Path:
    """A folder by which an engine finds dsv4-shard's plugins, as if it were installed in the engine's environment."""
    distribution = importlib.metadata.distribution("dsv4-shard")
    folder = work / "entry-points"
    info = folder / f"dsv4_shard-{distribution.version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    for name in ("METADATA", "entry_points.txt"):
        (info / name).write_text(distribution.read_text(name) or "")
    return folder


def make_environment(name: str, folder: Path) -> Path:
    """A virtual environment with an engine in it, made if it is not there: some GB, and a few minutes."""
    ready = folder / ".ready"
    if not ready.exists():
        print(f"installing {name} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "-r", str(HERE / name / "requirements-nodeps.txt")], check=True)
        # The engine's GPU packages are left out on purpose, so pip need not list them.
        subprocess.run([*pip, "--no-warn-conflicts", "-r", str(HERE / name / "requirements.txt")], check=True)
        ready.touch()
    return folder
