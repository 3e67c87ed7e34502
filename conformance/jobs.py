"""Runs jobs within an engine's environment, each in a process of its own: an engine is brought up once a process.

Processes are forked twice: after the engine's modules are imported, for each case; and after the case's arguments are
resolved, for each rank. What is slow is done once, and nothing is left over from one case in another. A job is a dict:
`do`, the kind of job, `case`, `rank`, and more. Its result is a line of JSON: the job, and what its function returned
or the error that stopped it.
"""

import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

Job = dict[str, Any]
Function = Callable[[Job], dict[str, Any]]

_OF_A_RANK = ("rank", "want", "turned")
"""Keys that differ between the jobs of a case's ranks."""


def run_jobs(functions: dict[str, Function], package: str, prepare: Callable[[Job], None]) -> None:
    """Run the jobs of the file named on the command line, and append their results to the one named after it.

    `prepare` is called once for all ranks of a case. `package` is the engine's own package: an error is told with the
    last of its lines on the way.
    """
    jobs_file, results_file = map(Path, sys.argv[1:3])
    jobs = json.loads(jobs_file.read_text())
    for _, group in itertools.groupby(jobs, lambda job: [job[key] for key in job if key not in _OF_A_RANK]):
        _in_child(partial(_run_ranks, list(group), functions, package, prepare, results_file))


def _run_ranks(
    jobs: list[Job],
    functions: dict[str, Function],
    package: str,
    prepare: Callable[[Job], None],
    results_file: Path,
) -> None:
    try:
        prepare(jobs[0])
    except BaseException as error:  # an engine may raise SystemExit
        for job in jobs:
            _append(results_file, {"job": job} | told(error, package))
        return
    for job in jobs:
        if _in_child(partial(_run, job, functions[job["do"]], package, results_file)):
            _append(results_file, {"job": job, "error": "its process was killed"})


def _run(job: Job, function: Function, package: str, results_file: Path) -> None:
    try:
        result = function(job)
    except BaseException as error:  # constructors raise AssertionError
        result = told(error, package)
    _append(results_file, {"job": job} | result)


def _in_child(work: Callable[[], None]) -> int:
    """Do `work` in a fork of this process; its exit status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        work()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def told(error: BaseException, package: str) -> dict[str, str]:
    """An error's text, and `file:line:function` of the innermost frame in `package`, or of the innermost of all.

    An error without a text is told with the source `line` that raised it, as its traceback shows it.
    """
    frames = traceback.extract_tb(error.__traceback__)
    frame = ([frame for frame in frames if f"/{package}/" in frame.filename] or frames)[-1]
    where = f"{frame.filename.rpartition(f'/{package}/')[2]}:{frame.lineno}:{frame.name}"
    line = {} if str(error) else {"line": str(frame.line)}
    return {"error": f"{type(error).__name__}: {error}", "where": where} | line


def _append(results_file: Path, result: dict[str, Any]) -> None:
    with results_file.open("a") as file:
        file.write(json.dumps(result) + "\n")
