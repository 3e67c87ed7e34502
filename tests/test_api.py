"""The verbs as functions: each does what the command of its name does, and returns or raises what that shows."""

import doctest
import inspect as introspection
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints.small import contents
from support.paths import ROOT
from typer.testing import CliRunner

import dsv4_shard
from dsv4_shard import errors
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.cli import app
from dsv4_shard.errors import ShardError
from dsv4_shard.inspection.known_family import Inspection
from dsv4_shard.reporting.page import to_html
from dsv4_shard.verification.documents import SharesVerification, Verification

VERBS = ("compare", "explain", "fewest", "inspect", "merge", "merge_dry_run", "plan", "plan_from", "plan_pair",
         "report", "reshard", "reshard_dry_run", "reshard_on_cluster", "reshard_to_store", "search", "sign", "verify",
         "verify_shares")  # fmt: skip
MODULES = {"plan_from": "plan", "plan_pair": "plan", "search": "plan", "fewest": "plan", "compare": "plan",
           "merge": "reshard", "merge_dry_run": "reshard", "reshard_dry_run": "reshard",
           "reshard_on_cluster": "reshard", "reshard_to_store": "reshard", "verify_shares": "verify"}  # fmt: skip
"""Of verbs that have no module of their own name."""

REFERENCE: dict[str, Any] = {"tp": 2, "engine": "reference"}
MESSAGE = "Weight output_partition_size = 192 is not divisible by weight quantization block_n = 128."
HEAVY = {
    "torch",
    "ray",
    "model_signing",
    "cryptography",
    "obstore",
    "huggingface_hub",
    "numpy",
    "pydantic",
    "rich",
    "typer",
}


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="module")
def shards(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the small checkpoint for two ranks. Only to be read."""
    out = tmp_path_factory.mktemp("shards") / "out"
    dsv4_shard.reshard(tiny_checkpoint, out, **REFERENCE)
    return out


@pytest.fixture
def shares(tiny_checkpoint: Path, tmp_path: Path) -> list[Path]:
    """The shares of two ranks in a folder each."""
    for rank in range(2):
        dsv4_shard.reshard(tiny_checkpoint, tmp_path / f"share-{rank}", ranks=[rank], **REFERENCE)
    return [tmp_path / "share-0", tmp_path / "share-1"]


class Seen(dsv4_shard.Progress):
    """What was begun, ended and moved."""

    def __init__(self) -> None:
        self.begun: dict[dsv4_shard.Task, int] = {}
        self.moved: Counter[dsv4_shard.Task] = Counter()
        self.ended: list[dsv4_shard.Task] = []

    def begin(self, task: dsv4_shard.Task, total_bytes: int) -> None:
        self.begun[task] = total_bytes

    def advance(self, task: dsv4_shard.Task, nbytes: int) -> None:
        self.moved[task] += nbytes

    def end(self, task: dsv4_shard.Task) -> None:
        self.ended.append(task)


def document(*arguments: str | Path | int) -> dict[str, Any]:
    """What a command prints with --json."""
    return json.loads(CliRunner().invoke(app, [*map(str, arguments), "--json"]).stdout)


def in_a_fresh_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


# --- the package ---------------------------------------------------------------------------------------------------


def test_the_package_gives_the_verbs_and_the_errors_and_the_reference_names_them_all() -> None:
    assert dsv4_shard.__all__ == sorted(("Progress", "Task", "__version__", "errors", *VERBS))
    reference = (ROOT / "docs/reference/api.md").read_text()
    assert set(VERBS) <= set(re.findall(r"`(\w+)`", reference))
    assert "`dsv4_shard.errors`" in reference


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_a_function_with_its_options_and_a_docstring_whatever_was_imported_first(verb: str) -> None:
    module = "dsv4_shard." + MODULES.get(verb, verb)
    first = f"import {module}, dsv4_shard"
    last = f"import dsv4_shard; from dsv4_shard import {verb}; import {module}"
    inner = f"import dsv4_shard.cli, sys; from {module} import __doc__ as _; import importlib"
    for order in (first, last, inner):
        says = f"{order}\nimport dsv4_shard\nprint(type(dsv4_shard.{verb}).__name__, dsv4_shard.{verb}.__module__)"
        kind, where = in_a_fresh_process(says).split()
        assert (kind, where) == ("function", module)
    function = getattr(dsv4_shard, verb)
    assert introspection.signature(function).return_annotation


@pytest.mark.slow
def test_a_module_that_a_verb_shares_its_name_with_is_imported_as_any_other() -> None:
    code = "import importlib, dsv4_shard; module = importlib.import_module('dsv4_shard.inspect'); "
    code += "print(module.__name__, module.inspect is dsv4_shard.inspect)"
    assert in_a_fresh_process(code).split() == ["dsv4_shard.inspect", "True"]


@pytest.mark.slow
def test_importing_the_package_imports_nothing_that_takes_time() -> None:
    code = f"import sys, dsv4_shard; print(sorted({HEAVY!r} & {{name.partition('.')[0] for name in sys.modules}}))"
    assert in_a_fresh_process(code) == "[]\n"


# --- what a command prints with --json -------------------------------------------------------------------------------


@pytest.mark.parametrize("tp", [None, (3, 6)])
def test_inspect_returns_what_the_command_prints(tiny_checkpoint: Path, tp: tuple[int, int] | None) -> None:
    options = [] if tp is None else ["--tp", ",".join(map(str, tp))]
    found = dsv4_shard.inspect(tiny_checkpoint, tp=tp)
    assert isinstance(found, Inspection)
    assert found.model_dump(mode="json") == document("inspect", tiny_checkpoint, *options)


def test_plan_returns_what_the_command_prints_and_writes_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    made = dsv4_shard.plan(
        tiny_checkpoint, tp=2, ep=2, engine="SGLang", shared_experts="whole", gpu="h200", output=tmp_path / "plan.json"
    )
    options = ("--tp", 2, "--ep", 2, "--engine", "SGLang", "--shared-experts", "whole", "--gpu", "h200")
    assert made.model_dump(mode="json") == document("plan", tiny_checkpoint, *options)
    assert (tmp_path / "plan.json").read_text() == made.to_json()


def test_search_returns_what_the_command_prints_and_writes_the_plan_of_the_best(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    found = dsv4_shard.search(
        tiny_checkpoint, gpus=2, gpu="h200", engine=["vllm", "sglang"], output=tmp_path / "plan.json"
    )
    options = ("--gpus", 2, "--gpu", "h200", "--engine", "vllm,sglang")
    assert found.model_dump(mode="json") == document("plan", tiny_checkpoint, *options)
    assert found == dsv4_shard.search(tiny_checkpoint, gpus=2, gpu="h200", engine="vllm,sglang")
    assert found.best is not None
    assert json.loads((tmp_path / "plan.json").read_text())["request"] == asdict(found.best.request)


def test_compare_returns_what_the_command_prints_of_files_and_takes_plans_as_well(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    plans = [dsv4_shard.plan(tiny_checkpoint, tp=tp, output=file) for tp, file in zip((1, 2), files, strict=True)]
    assert dsv4_shard.compare(*files).model_dump(mode="json") == document("plan", "--compare", *files)
    names = {"a": str(files[0]), "b": str(files[1])}
    assert dsv4_shard.compare(*plans).model_copy(update=names) == dsv4_shard.compare(*files)


@pytest.mark.slow
def test_report_makes_the_page_that_the_command_writes(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1796000000")
    pages = [tmp_path / name for name in ("a.html", "b.html")]
    made = dsv4_shard.report(tiny_checkpoint, tp=2, gpu="h200", output=pages[0])
    CliRunner().invoke(app, ["report", str(tiny_checkpoint), "--tp", "2", "--gpu", "h200", "-o", str(pages[1])])
    assert pages[0].read_text() == pages[1].read_text() == to_html(made)
    assert "2026-11-30 00:53 UTC" in pages[0].read_text()
    assert made.plan == dsv4_shard.plan(tiny_checkpoint, tp=2, gpu="h200")
    assert dsv4_shard.report(made.plan) == made


@pytest.mark.slow
def test_explain_returns_what_the_command_prints_of_a_text_a_log_and_a_stream(tmp_path: Path) -> None:
    expected = document("explain", MESSAGE)
    (tmp_path / "log").write_text(MESSAGE)
    for text in (MESSAGE, tmp_path / "log", BytesIO(MESSAGE.encode())):
        assert dsv4_shard.explain(text).model_dump(mode="json") == expected


def test_reshard_writes_what_the_command_writes_and_returns_what_that_prints(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    printed = document("reshard", tiny_checkpoint, tmp_path / "b", "--tp", 2, "--engine", "reference")
    outcome = dsv4_shard.reshard(
        str(tiny_checkpoint), tmp_path / "a", plan=dsv4_shard.plan(tiny_checkpoint, **REFERENCE)
    )
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert outcome.model_dump(mode="json") == printed | {"out": str(tmp_path / "a")}


def test_a_dry_run_returns_what_the_command_prints_and_writes_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    found = dsv4_shard.reshard_dry_run(tiny_checkpoint, tmp_path / "out", **REFERENCE)
    printed = document("reshard", tiny_checkpoint, tmp_path / "out", "--tp", 2, "--engine", "reference", "--dry-run")
    assert found.model_dump(mode="json") == printed | {"free": found.free}
    assert found.fits
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_merge_writes_what_the_command_writes_and_returns_what_that_prints(shards: Path, tmp_path: Path) -> None:
    merged = dsv4_shard.merge(shards, tmp_path / "a")
    printed = document("merge", shards, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert merged.model_dump(mode="json") == printed | {"out": str(tmp_path / "a")}


def test_a_dry_run_of_merge_returns_what_the_command_prints(shards: Path, tmp_path: Path) -> None:
    found = dsv4_shard.merge_dry_run(shards, tmp_path / "a")
    assert found.model_dump(mode="json") == document("merge", shards, tmp_path / "a", "--dry-run") | {
        "free": found.free
    }
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_verify_of_a_folder_returns_what_the_command_prints(tiny_checkpoint: Path, shards: Path) -> None:
    found = dsv4_shard.verify(str(shards), against=tiny_checkpoint, numerics=True, layer=1)
    printed = document("verify", shards, "--against", tiny_checkpoint, "--numerics", "--layer", 1)
    assert isinstance(found, Verification)
    assert found.numerics is not None
    assert printed == found.model_dump(mode="json")
    assert (printed["ok"], printed["numerics"]["ranks"]) == (True, 2)


def test_verify_of_several_folders_returns_what_the_command_prints(shares: list[Path]) -> None:
    found = dsv4_shard.verify_shares(shares)
    assert isinstance(found, SharesVerification)
    assert found.model_dump(mode="json") == document("verify", *shares)
    assert len(dsv4_shard.verify_shares(shares[:1]).folders) == 1


@pytest.mark.slow
def test_a_result_is_not_ok_where_its_experts_do_not_add_up(
    tiny_checkpoint: Path, shards: Path, shares: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsv4_shard.verification.documents.TOLERANCE", -1.0)
    for verb, out in ((dsv4_shard.verify, shards), (dsv4_shard.verify_shares, shares)):
        found = verb(out, against=tiny_checkpoint, numerics=True)  # type: ignore[arg-type]
        assert (found.problems, found.ok) == ((), False)
    command = ["verify", str(shards), "--against", str(tiny_checkpoint), "--numerics"]
    assert CliRunner().invoke(app, command).exit_code == errors.ExitCode.NO


# --- how a verb says no, and how far it is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda repo, out: dsv4_shard.inspect("/nowhere"), errors.UsageError, "no such folder"),
        (lambda repo, out: dsv4_shard.inspect(repo, tp=[0]), errors.UsageError, "tp=0: must be"),
        (lambda repo, out: dsv4_shard.plan(repo, tp=2, engine="sglng"), errors.UsageError, "no engine called"),
        (lambda repo, out: dsv4_shard.plan(repo, tp=2, output=out / "in" / "none"), errors.WriteFailed, "No such file"),
        (lambda repo, out: dsv4_shard.search(repo, gpus=0), errors.UsageError, "must be from 1"),
        (lambda repo, out: dsv4_shard.compare(out, out), errors.BadPlan, "No such file"),
        (lambda repo, out: dsv4_shard.explain(" \n"), errors.UsageError, "nothing to explain"),
        (lambda repo, out: dsv4_shard.explain(out), errors.ReadFailed, "No such file"),
        (lambda repo, out: dsv4_shard.reshard(repo, out), errors.UsageError, "neither plan nor tp"),
        (lambda repo, out: dsv4_shard.reshard(repo, out, plan=out, dp=1), errors.UsageError, "plan and dp: "),
        (lambda repo, out: dsv4_shard.reshard(repo, "s3://b/x", tp=2), errors.UsageError, "not a folder"),
        (lambda repo, out: dsv4_shard.reshard_to_store(repo, str(out), tp=2), errors.UsageError, "not the URL"),
        (lambda repo, out: dsv4_shard.reshard(repo, out, tp=2, jobs=0), errors.UsageError, "jobs=0: must be"),
        (lambda repo, out: dsv4_shard.reshard(repo, out, tp=2, ranks=[]), errors.UsageError, "ranks: there is nothing"),
        (lambda repo, out: dsv4_shard.reshard(repo, out, ranks=[2], **REFERENCE), errors.UsageError, "rank 2 of 2"),
        (lambda repo, out: dsv4_shard.reshard(repo, repo, **REFERENCE), errors.OutputInsideInput, "is the checkpoint"),
        (lambda repo, out: dsv4_shard.reshard_on_cluster(repo, "s3://b/x", tp=2), errors.UsageError, "not a URL"),
        (
            lambda repo, out: dsv4_shard.reshard_dry_run(repo, "s3://b/x", ranks="auto"),
            errors.UsageError,
            "one manifest",
        ),
        (lambda repo, out: dsv4_shard.merge(repo, out), errors.UsageError, "a checkpoint, not the shards"),
        (lambda repo, out: dsv4_shard.merge(repo, "s3://b/x"), errors.UsageError, "not a URL"),
        (lambda repo, out: dsv4_shard.verify(out), errors.UsageError, "no such folder"),
        (lambda repo, out: dsv4_shard.verify_shares([]), errors.UsageError, "no folder"),
        (lambda repo, out: dsv4_shard.verify_shares(str(out)), errors.UsageError, "not a sequence"),
        (lambda repo, out: dsv4_shard.verify(out, numerics=True), errors.UsageError, "numerics needs against"),
        (lambda repo, out: dsv4_shard.verify(out, layer=1), errors.UsageError, "layer needs numerics"),
    ],
)
def test_what_a_command_stops_at_is_raised(
    call: Callable[..., Any],
    error: type[ShardError],
    match: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(error, match=match):
        call(tiny_checkpoint, tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("rank", "world"), [("2", "3"), ("0", "2")])
def test_a_process_whose_launcher_leaves_nothing_to_it_is_told(
    rank: str, world: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    dsv4_shard.reshard(tiny_checkpoint, tmp_path / "out", ranks=[0], **REFERENCE)
    with pytest.raises(errors.NothingToDo, match="nothing to do"):
        dsv4_shard.reshard(tiny_checkpoint, tmp_path / "out", ranks="auto", **REFERENCE)
    again = dsv4_shard.reshard(tiny_checkpoint, tmp_path / "out", ranks=[0], **REFERENCE)
    assert (again.wrote, again.ranks, again.was_complete) == ((), (0,), True)


@pytest.mark.slow
def test_verbs_print_nothing_remember_nothing_and_tell_how_far_they_are(
    tiny_checkpoint: Path, shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = Seen()
    told: dict[str, Any] = {"progress": seen, "jobs": 1}
    dsv4_shard.inspect(tiny_checkpoint)
    dsv4_shard.reshard(tiny_checkpoint, tmp_path / "out", **REFERENCE, **told)
    dsv4_shard.merge(shards, tmp_path / "again", **told)
    dsv4_shard.verify(shards, **told)
    assert [str(task) for task in seen.begun] == ["reshard", "merge", "verify"]
    assert seen.ended == list(seen.begun)
    assert seen.moved == seen.begun
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("error", [ValueError("enough"), KeyboardInterrupt()])
def test_what_progress_raises_ends_the_run_and_the_same_call_goes_on(
    error: type[ShardError], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    class Ends(dsv4_shard.Progress):
        def advance(self, task: dsv4_shard.Task, nbytes: int) -> None:
            raise error

    with pytest.raises(type(error)):  # type: ignore[type-var]
        dsv4_shard.reshard(tiny_checkpoint, tmp_path / "out", progress=Ends(), **REFERENCE)
    assert not (tmp_path / "out").exists()
    dsv4_shard.reshard(tiny_checkpoint, tmp_path / "out", progress=None, **REFERENCE)
    with pytest.raises(type(error)):  # type: ignore[type-var]
        dsv4_shard.verify(tmp_path / "out", progress=Ends())
    assert dsv4_shard.verify(tmp_path / "out").ok


# --- what the docs show ----------------------------------------------------------------------------------------------


def code_of(page: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return code


@pytest.mark.slow
def test_the_examples_of_the_docstrings_and_of_the_pages_give_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "model")
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    printed: list[str] = []
    for verb in ("inspect", "plan", "search", "compare", "report", "explain", "reshard_dry_run", "reshard", "merge",
                 "merge_dry_run", "verify", "verify_shares"):  # fmt: skip
        (example,) = finder.find(getattr(dsv4_shard, verb), verb, globs={"dsv4_shard": dsv4_shard})
        assert example.examples, f"{verb} has no example"
        runner.run(example, out=printed.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(printed)
    exec(code_of("README.md").replace("DeepSeek-V4-Pro", "model").replace('"shards"', '"others"'), {})
    names: dict[str, Any] = {}
    exec(code_of("docs/reference/api.md"), names)
    dsv4_shard.verify("shards", progress=names["Percent"]())
    assert capsys.readouterr().out.endswith("verify: 100 %\n")
