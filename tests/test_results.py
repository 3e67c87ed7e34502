"""Results of the verbs: they survive JSON and pickle, are what `--json` prints, and have a short `repr`."""

import html
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

import dsv4_shard
from dsv4_shard.cli import app
from dsv4_shard.destinations.documents import ClusterOutcome, ClusterShare, Uploaded
from dsv4_shard.signing.documents import Signed
from dsv4_shard.text.document import MAX_REPR_CHARS, Document, html_table
from dsv4_shard.verification.documents import Problem, SharesVerification, Verification

MESSAGE = "Weight output_partition_size = 192 is not divisible by weight quantization block_n = 128."
LINE = MAX_REPR_CHARS + 20
"""With the name of the class."""


class Results:
    """Each result, made when it is first asked for."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.of: Callable[[str], Document] = cache(lambda name: getattr(self, name)())

    def inspect(self) -> Document:
        return dsv4_shard.inspect(self.model)

    def plan(self) -> Document:
        return dsv4_shard.plan(self.model, tp=16, gpu="h20-96")

    def plan_from(self) -> Document:
        return dsv4_shard.plan_from(f"sglang serve --model-path {self.model} --tp 2", gpu="h200")

    def plan_pair(self) -> Document:
        return dsv4_shard.plan_pair(self.model, prefill="--tp 2", decode="--tp 4", gpu="h200")

    def plan_that_does_not_run(self) -> Document:
        return dsv4_shard.plan(self.model, tp=3)

    def search(self) -> Document:
        return dsv4_shard.search(self.model, gpus=2, gpu="h20-96")

    def fewest(self) -> Document:
        return dsv4_shard.fewest(self.model)

    def compare(self) -> Document:
        return dsv4_shard.compare(dsv4_shard.plan(self.model, tp=1), dsv4_shard.plan(self.model, tp=2))

    def report(self) -> Document:
        return dsv4_shard.report(self.model, tp=2, gpu="h20-96")

    def report_of_a_checkpoint(self) -> Document:
        return dsv4_shard.report(self.model)

    def explain(self) -> Document:
        return dsv4_shard.explain(MESSAGE)

    def explain_nothing(self) -> Document:
        return dsv4_shard.explain("nothing\nto\x1b[2J see")

    def reshard(self) -> Document:
        return dsv4_shard.reshard(self.model, self.folder / "shards", tp=2)

    def reshard_dry_run(self) -> Document:
        return dsv4_shard.reshard_dry_run(self.model, self.folder / "none", tp=2)

    def reshard_to_store(self) -> Document:
        outcome: Any = self.of("reshard")
        return Uploaded(out="s3://b/x", ranks=(0, 1), world=2, objects=7, bytes=10, sent=8, copied=1, resumed=1,
                        written=outcome.written)  # fmt: skip

    def reshard_on_cluster(self) -> Document:
        outcome: Any = self.of("reshard")
        shares = (ClusterShare(ranks=(0,), node="10.0.0.1", written=outcome.written, lost_on=()),
                  ClusterShare(ranks=(1,), node="10.0.0.2", written=None, lost_on=("10.0.0.1",)))  # fmt: skip
        together: Any = self.of("verify_shares")
        return ClusterOutcome(shares=shares, one_folder=True, files=7, bytes=10, verification=together)

    def merge(self) -> Document:
        self.of("reshard")
        return dsv4_shard.merge(self.folder / "shards", self.folder / "merged")

    def merge_dry_run(self) -> Document:
        self.of("reshard")
        return dsv4_shard.merge_dry_run(self.folder / "shards", self.folder / "none")

    def verify(self) -> Document:
        self.of("reshard")
        return dsv4_shard.verify(self.folder / "shards", against=self.model, numerics=True)

    def sign(self) -> Document:
        return Signed(
            out="shards/model.sig", how="key", by="key 0f", files=7, bytes=10, hashed=3, others=("README.md",)
        )

    def verify_shares(self) -> Document:
        self.of("reshard")
        return dsv4_shard.verify_shares([self.folder / "shards"])

    def verify_what_is_not_right(self) -> Document:
        found: Any = self.of("verify")
        problem = Problem(kind="damaged-tensor", file="model.safetensors", tensor="x" * 1000, message="differs")
        return found.model_copy(update={"problems": (problem,) * 1000})


NAMES = tuple(name for name, method in vars(Results).items() if callable(method) and not name.startswith("_"))
IN_HTML = ("inspect", "plan", "plan_that_does_not_run", "report", "report_of_a_checkpoint", "search", "fewest")


@pytest.fixture(scope="module")
def results(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(tiny_checkpoint, tmp_path_factory.mktemp("results"))


def test_every_verb_is_here() -> None:
    assert set(NAMES) >= set(dsv4_shard.__all__) - {"Progress", "Task", "__version__", "errors"}


@pytest.mark.parametrize("name", NAMES)
def test_a_result_survives_json_and_pickle_and_has_a_short_repr(name: str, results: Results) -> None:
    found = results.of(name)
    kind = type(found)
    assert kind.model_validate_json(found.model_dump_json()) == found
    assert kind.model_validate_json(found.to_json()) == found
    assert kind.model_validate(found.model_dump()) == found
    assert pickle.loads(pickle.dumps(found)) == found
    assert len(repr(found)) <= LINE
    assert repr(found).isprintable()
    assert repr(found).startswith(f"{kind.__name__}(")
    assert repr(found) == str(found)


@pytest.mark.parametrize("name", NAMES)
def test_a_result_takes_no_unknown_field_and_does_not_change(name: str, results: Results) -> None:
    found = results.of(name)
    with pytest.raises(ValidationError):
        type(found).model_validate(found.model_dump() | {"colour": "red"})
    with pytest.raises(ValidationError):
        setattr(found, next(iter(type(found).model_fields)), None)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("inspect", "inspect MODEL"),
        ("plan", "plan MODEL --tp 16 --gpu h20-96"),
        ("search", "plan MODEL --gpus 2 --gpu h20-96"),
        ("fewest", "plan MODEL"),
        ("explain", f"explain {MESSAGE!r}"),
        ("reshard", "reshard MODEL FOLDER/again --tp 2"),
        ("reshard_dry_run", "reshard MODEL FOLDER/none --tp 2 --dry-run"),
        ("merge", "merge FOLDER/shards FOLDER/merged-again"),
        ("merge_dry_run", "merge FOLDER/shards FOLDER/none --dry-run"),
        ("verify", "verify FOLDER/shards --against MODEL --numerics"),
        ("verify_shares", "verify FOLDER/shards FOLDER/twin"),
    ],
)
def test_what_a_command_prints_is_read_as_the_result(name: str, command: str, results: Results) -> None:
    kind = type(results.of(name))
    results.of("reshard")
    if name == "verify_shares":
        shutil.copytree(results.folder / "shards", results.folder / "twin", dirs_exist_ok=True)
    words = [MESSAGE] if name == "explain" else command.split()[1:]
    words = [word.replace("MODEL", str(results.model)).replace("FOLDER", str(results.folder)) for word in words]
    printed = CliRunner().invoke(app, [command.split()[0], *words, "--json"]).stdout
    assert kind.model_validate_json(printed).to_json() == printed


@pytest.mark.parametrize("name", IN_HTML)
def test_a_notebook_gets_a_small_table(name: str, results: Results) -> None:
    found: Any = results.of(name)
    page = found._repr_html_()
    assert page.startswith("<table>")
    assert page.endswith("</table>")
    assert html.escape(str(results.model)) in page or name in ("search", "fewest")
    assert len(page) < 10_000


def test_tables_escape_what_comes_from_files() -> None:
    page = html_table("<script>", ["&"], [["\x1b[2J", 1000, True]])
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<td>\\x1b[2J</td><td>1,000</td><td>True</td>" in page


@pytest.mark.parametrize("name", ["verify", "verify_shares", "verify_what_is_not_right"])
def test_an_ok_that_does_not_follow_is_refused(name: str, results: Results) -> None:
    found: Any = results.of(name)
    assert isinstance(found, Verification | SharesVerification)
    document = found.model_dump()
    assert type(found).model_validate({key: value for key, value in document.items() if key != "ok"}) == found
    for wrong in (not found.ok, int(found.ok), None):
        with pytest.raises(ValidationError, match="does not follow"):
            type(found).model_validate(document | {"ok": wrong})


@pytest.mark.slow
def test_verbs_run_in_a_pool_of_processes(results: Results) -> None:
    results.of("reshard")
    shards = results.folder / "shards"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        merged = pool.submit(dsv4_shard.merge, shards, results.folder / "pool").result()
        verified = pool.submit(dsv4_shard.verify, shards).result()
    assert merged.model_copy(update={"out": ""}) == results.of("merge").model_copy(update={"out": ""})
    assert verified == dsv4_shard.verify(shards)
