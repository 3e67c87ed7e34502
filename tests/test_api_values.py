"""Values that the verbs are called with: those of a type that an option has, and those that are refused, by name."""

import doctest
import inspect
import re
import subprocess
import sys
import textwrap
import traceback
import typing
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest
from support.paths import ROOT

import dsv4_shard
from dsv4_shard.errors import ReadFailed, UsageError

MESSAGE = "Weight output_partition_size = 192 is not divisible by weight quantization block_n = 128."
VERBS = [name for name in dsv4_shard.__all__ if inspect.isfunction(getattr(dsv4_shard, name))]
LAYOUT: dict[str, typing.Any] = {"tp": 2, "engine": "reference"}


@pytest.fixture
def out(tmp_path: Path) -> typing.Any:
    return tmp_path / "out"


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verb", "options", "said"), [
    ("plan", {"tp": True}, "tp=True: must be a whole number, not bool"),
    ("plan", {"tp": "16"}, "tp='16': must be a whole number, not str"),
    ("plan", {"tp": 16.0}, "tp=16.0: must be a whole number, not float"),
    ("plan", {}, "tp: must be given"),
    ("plan", {"tp": 2, "dp": None}, "dp=None: must be a whole number, not NoneType"),
    ("plan", {"tp": 2, "engine": None}, "engine=None: must be a name, not NoneType"),
    ("plan", {"tp": 2, "gpu_memory": 96}, "gpu_memory=96: must be text such as '96GB', '95GiB' or '97285MiB', not int"),
    ("plan", {"tp": 2, "gpu_memory": "96T"}, "gpu_memory='96T': not an amount of memory"),
    ("plan", {"tp": 2, "runner": "x" * 101}, "must be a name of at most 100 characters"),
    ("plan", {"tp": 2, "refresh": 1}, "refresh=1: must be True or False, not int"),
    ("plan", {"tp": 2, "output": 3}, "output=3: must be a name or a path, not int"),
    ("inspect", {"tp": []}, "tp: there is nothing in it"),
    ("inspect", {"tp": [0]}, "tp=0: must be from 1 to 4096"),
    ("inspect", {"tp": [True]}, "tp=True: must be a whole number, not bool"),
    ("inspect", {"tp": "8"}, "tp='8': must be a whole number or several whole numbers, not str"),
    ("search", {"gpus": 0}, "gpus=0: must be from 1 to 4096"),
    ("search", {"gpus": 2, "engine": []}, "engine: there is nothing in it"),
    ("search", {"gpus": 2, "engine": [None]}, "engine=None: must be a name, not NoneType"),
    ("search", {"gpus": 2, "rank_by": "x"}, "rank_by='x': must be weights, tokens or sent"),
    ("report", {"gpus": 8, "tp": 8}, "gpus and tp: the search tries them all"),
    ("report", {"tpp": 8}, "tpp: there is no such option"),
    ("report", {"ep": 8}, "ep without tp or gpus"),
    ("report", {"rank_by": "sent"}, "rank_by without gpus"),
    ("report", {"repo": "model"}, "repo: the source is no plan file"),
])  # fmt: skip
def test_a_value_of_another_kind_is_refused_by_its_parameter(
    verb: str, options: typing.Any, said: str, tiny_checkpoint: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        getattr(dsv4_shard, verb)(tiny_checkpoint, **options)
    assert said in str(caught.value)
    assert "--" not in str(caught.value)


@pytest.mark.parametrize(("verb", "options", "said"), [
    ("reshard", LAYOUT | {"ranks": [True]}, "ranks=True: must be numbers, or text such as '0-7' or 'auto', not bool"),
    ("reshard", LAYOUT | {"ranks": [1.0]}, "ranks=1.0: must be numbers"),
    ("reshard", LAYOUT | {"ranks": 3}, "ranks=3: must be numbers"),
    ("reshard", LAYOUT | {"ranks": ["0"]}, "ranks='0': must be numbers"),
    ("reshard", LAYOUT | {"ranks": []}, "ranks: there is nothing in it"),
    ("reshard", LAYOUT | {"ranks": [-1]}, "ranks=-1: must be from 0 to 4095"),
    ("reshard", LAYOUT | {"ranks": "0-"}, "ranks='0-': not a list of ranks"),
    ("reshard", LAYOUT | {"ep": 2.0}, "ep=2.0: must be a whole number, not float"),
    ("reshard", LAYOUT | {"jobs": 0}, "jobs=0: must be at least 1"),
    ("reshard", LAYOUT | {"ray": True}, "ray: there is no such option"),
    ("reshard", {"plan": {}}, "plan: must be a plan or the path of a plan file, not dict"),
    ("reshard", {"plan": ' {"schema_version": 1}'}, "plan: that is the text of a plan, not the path of its file"),
    ("reshard", {"plan": "plan.json", "dp": 1}, "plan and dp: the plan says it already"),
    ("reshard", {}, "neither plan nor tp"),
    ("reshard", LAYOUT | {"progress": print}, "progress: must be an object of a subclass of dsv4_shard.Progress"),
    ("reshard_on_cluster", LAYOUT | {"ray": True}, "ray=True: must be a name, not bool"),
    ("merge", {"overwrite": "no"}, "overwrite='no': must be True or False, not str"),
])  # fmt: skip
def test_a_verb_that_writes_refuses_it_before_it_writes(
    verb: str, options: typing.Any, said: str, tiny_checkpoint: Path, out: typing.Any
) -> None:
    with pytest.raises(UsageError) as caught:
        getattr(dsv4_shard, verb)(tiny_checkpoint, out, **options)
    assert said in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize(("call", "said"), [
    (lambda plan: dsv4_shard.compare(plan, {}), "b: must be a plan or the path of a plan file, not dict"),  # type: ignore[arg-type]
    (lambda plan: dsv4_shard.compare(plan.to_json(), plan), "a: that is the text of a plan"),
    (lambda plan: dsv4_shard.compare(plan), "b: must be given"),  # type: ignore[call-arg]
    (lambda plan: dsv4_shard.report(plan.to_json()), "source: that is the text of a plan"),
    (lambda plan: dsv4_shard.report(3), "source: must be a plan, or the path of a plan file or checkpoint, not int"),  # type: ignore[arg-type]
    (lambda plan: dsv4_shard.report(plan, dp=1), "dp beside a plan: the plan says it already"),
    (lambda plan: dsv4_shard.inspect(3), "repo=3: must be a name or a path, not int"),  # type: ignore[arg-type]
    (lambda plan: dsv4_shard.explain(3), "text: must be text, bytes, a Path, an open file or an exception, not int"),  # type: ignore[arg-type]
    (lambda plan: dsv4_shard.explain(b" "), "nothing to explain"),
    (lambda plan: dsv4_shard.verify("out", layer=True), "layer=True: must be a whole number, not bool"),
    (lambda plan: dsv4_shard.verify_shares("out"), "folders: one folder, not a sequence"),
    (lambda plan: dsv4_shard.verify_shares([3]), "folders=3: must be a name or a path, not int"),  # type: ignore[list-item]
    (lambda plan: dsv4_shard.verify_shares(3), "folders: must be a sequence of folders, not int"),  # type: ignore[arg-type]
])  # fmt: skip
def test_what_a_verb_works_on_is_refused_by_its_name(call: typing.Any, said: str, tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError) as caught:
        call(dsv4_shard.plan(tiny_checkpoint, **LAYOUT))
    assert said in str(caught.value)


# --- taken -----------------------------------------------------------------------------------------------------------


def test_numbers_of_numpy_are_numbers(tiny_checkpoint: Path, out: typing.Any) -> None:
    plan = dsv4_shard.plan(tiny_checkpoint, tp=np.int64(2), engine="reference")  # type: ignore[arg-type]
    assert plan.to_json() == dsv4_shard.plan(tiny_checkpoint, **LAYOUT).to_json()
    outcome = dsv4_shard.reshard(tiny_checkpoint, out, plan=plan, ranks=np.arange(2))
    assert list(outcome.ranks) == [0, 1]


def test_one_size_is_a_size(tiny_checkpoint: Path) -> None:
    assert dsv4_shard.inspect(tiny_checkpoint, tp=8) == dsv4_shard.inspect(tiny_checkpoint, tp=[8])


@pytest.mark.slow
def test_text_bytes_files_and_exceptions_are_explained(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f"started\n{MESSAGE}\n")
    try:
        raise ValueError(MESSAGE)
    except ValueError as error:
        raised = error
    with (tmp_path / "log").open() as text, (tmp_path / "log").open("rb") as binary:
        for one in (MESSAGE, MESSAGE.encode(), tmp_path / "log", text, binary, StringIO(MESSAGE), raised,
                    BytesIO(MESSAGE.encode())):  # fmt: skip
            assert dsv4_shard.explain(one).meaning == dsv4_shard.explain(MESSAGE).meaning


def test_a_log_that_is_no_text_says_how_to_open_it(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"\xff\xff")
    with (tmp_path / "log").open(encoding="utf-8") as file, pytest.raises(ReadFailed, match="not text of utf-8"):
        dsv4_shard.explain(file)


def test_a_report_has_its_page(tiny_checkpoint: Path, tmp_path: Path) -> None:
    made = dsv4_shard.report(tiny_checkpoint, **LAYOUT, output=tmp_path / "a.html")
    assert made.to_html() == (tmp_path / "a.html").read_text()


# --- what a caller sees ----------------------------------------------------------------------------------------------


def test_a_traceback_has_the_hint_in_words_of_python(tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError) as caught:
        dsv4_shard.report(tiny_checkpoint, gpus=2, tp=2)
    assert traceback.format_exception_only(caught.value)[1:] == ["Leave out tp, or gpus.\n"]
    with pytest.raises(UsageError) as caught:
        dsv4_shard.plan(tiny_checkpoint, tp=2, gpu="H20")
    assert "Did you mean h20-96" in "".join(traceback.format_exception_only(caught.value))


@pytest.mark.parametrize("name", VERBS)
def test_the_types_of_a_verb_are_known_and_its_options_are_in_its_docstring(name: str) -> None:
    verb = getattr(dsv4_shard, name)
    hints, signature = typing.get_type_hints(verb), inspect.signature(verb)
    assert hints.keys() == {*signature.parameters, "return"}
    assert not any(isinstance(hint, str | typing.ForwardRef) for hint in hints.values())
    options = [one for one in signature.parameters.values() if one.kind is one.KEYWORD_ONLY]
    documented = re.findall(r"^ {8}(\w+): ", str(verb.__doc__), re.MULTILINE)
    assert documented == [one.name for one in options]


@pytest.mark.slow
def test_type_checkers_know_the_options(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for name in VERBS:
        examples = doctest.DocTestParser().get_examples(str(getattr(dsv4_shard, name).__doc__))
        body = textwrap.indent("".join(example.source for example in examples) or "pass", "    ")
        code += f"\n\ndef example_of_{name}() -> None:\n{body}"
    right = tmp_path / "right.py"
    right.write_text(code)
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import dsv4_shard\n\ndsv4_shard.plan('m', tpp=16)\ndsv4_shard.plan('m', tp='16').no_such\n"
                     "dsv4_shard.reshard('m', 'out', plan=3)\n")  # fmt: skip
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file", "", right, wrong]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout  # type: ignore[arg-type]
    errors = re.findall(r"(right|wrong)\.py:(\d+): error", found)
    assert [line for name, line in errors if name == "right"] == [], found
    assert {int(line) for _, line in errors} == {3, 4, 5}


@pytest.mark.slow
def test_the_modules_of_verbs_give_the_verbs() -> None:
    for name in ("plan", "inspect", "report", "explain", "reshard", "verify"):
        code = f"import dsv4_shard.{name} as module; print(type(module).__name__)"
        assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "function\n"
