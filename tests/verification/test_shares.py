"""Shares in several folders, each on its node, are verified as one result."""

import json
import shutil
from pathlib import Path

import pytest
from support.checkpoints.small import open_folder
from typer.testing import CliRunner

from dsv4_shard.checkpoint.synthetic import DEMO_CONFIG, write_checkpoint
from dsv4_shard.cli import app
from dsv4_shard.engines.deployment import Request
from dsv4_shard.errors import ExitCode, NotAResult, UsageError
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.run import reshard
from dsv4_shard.verification.documents import SharesVerification
from dsv4_shard.verification.moe_numerics import check_numerics
from dsv4_shard.verification.shares import verify_together

REQUESTS = {
    "sglang": Request(tp=8, engine="sglang"),
    "vllm": Request(tp=8, engine="vllm"),
    "reference": Request(tp=8, engine="reference"),
    "node": Request(tp=16, engine="node", nodes=2),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that cuts for every layout. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("model") / "model", DEMO_CONFIG, 5)


def write(model: Path, out: Path, layout: str, ranks: tuple[int, ...]) -> Path:
    checkpoint, inventory = open_folder(model)
    job = prepare(checkpoint, inventory, make_plan(checkpoint, inventory, REQUESTS[layout]), ranks)
    reshard(job, checkpoint, out, workers=1)
    return out


def halves(model: Path, folder: Path, layout: str) -> tuple[Path, Path]:
    """Two folders with one half of the ranks each."""
    shares = ((0,), (1,)) if layout == "node" else (tuple(range(4)), tuple(range(4, 8)))
    first, second = (write(model, folder / name, layout, ranks) for name, ranks in zip("ab", shares, strict=True))
    return first, second


def messages(found: SharesVerification) -> list[str]:
    return [problem.message for problem in found.problems]


@pytest.fixture
def pair(model: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two halves for SGLang, to be changed."""
    return halves(model, tmp_path, "sglang")


@pytest.mark.slow
@pytest.mark.parametrize("layout", REQUESTS)
def test_shares_are_one_result_alone_against_their_source_and_in_numbers(
    layout: str, model: Path, tmp_path: Path
) -> None:
    folders = halves(model, tmp_path, layout)
    for source in (None, open_folder(model)):
        found = verify_together(folders, source)
        assert found.ok
        assert (found.layout, found.world, found.missing) == (layout, len(found.ranks), ())
        assert found.ranks == tuple(range(found.world))
        assert [one.folder for one in found.folders] == list(map(str, folders))
    sums = check_numerics(folders, *open_folder(model))
    assert sums.ok
    one = write(model, tmp_path / "one", layout, found.ranks)
    assert sums == check_numerics([one], *open_folder(model))


@pytest.mark.slow
def test_ranks_that_are_in_none_of_the_folders_are_named(model: Path, tmp_path: Path) -> None:
    folders = [write(model, tmp_path / str(rank), "sglang", (rank,)) for rank in (1, 4)]
    found = verify_together(folders)
    assert found.ok
    assert (found.ranks, found.missing) == ((1, 4), (0, 2, 3, 5, 6, 7))
    with pytest.raises(UsageError, match="hold 2 of 8 ranks"):
        check_numerics(folders, *open_folder(model))


@pytest.mark.slow
def test_ranks_that_are_in_two_folders_are_equal_or_a_problem(model: Path, tmp_path: Path) -> None:
    here = shutil.copytree(model, tmp_path / "x" / "model")
    first, twin = (write(here, tmp_path / name, "reference", (0, 1)) for name in ("one", "twin"))
    assert verify_together([first, twin]).ok
    shutil.rmtree(here)
    write_checkpoint(here, DEMO_CONFIG, 6)
    other = write(here, tmp_path / "other", "reference", (1, 2))
    assert messages(verify_together([first, other])) == [
        f"is not what {first}/model1-mp8.safetensors holds, and should be"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["sglang", "vllm", "node"])
def test_what_all_ranks_share_is_equal_in_all_folders_or_a_problem(layout: str, model: Path, tmp_path: Path) -> None:
    """The second share is of other weights in the same places, under the same name."""
    here = shutil.copytree(model, tmp_path / "x" / "model")
    shares = ((0,), (1,)) if layout == "node" else ((0, 1), (2,))
    first = write(here, tmp_path / "a", layout, shares[0])
    shutil.rmtree(here)
    write_checkpoint(here, DEMO_CONFIG, 6)
    second = write(here, tmp_path / "b", layout, shares[1])
    found = verify_together([first, second])
    assert all(one.ok for one in found.folders)
    assert not found.ok
    assert {problem.kind for problem in found.problems} == {"shares-differ"}
    assert all(str(second) in problem.file and problem.tensor for problem in found.problems)


@pytest.mark.slow
def test_another_deployment_among_them_is_a_problem(model: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    stranger = write(model, tmp_path / "c", "vllm", (4,))
    found = verify_together([pair[0], stranger, pair[1]])
    assert f"is not of the deployment that {pair[0]} is of: its layout is sglang, this run's is vllm" in messages(found)
    assert all(str(stranger) in problem.file for problem in found.problems)


@pytest.mark.slow
def test_a_small_file_that_differs_between_folders_is_a_problem(model: Path, tmp_path: Path) -> None:
    here = shutil.copytree(model, tmp_path / "x" / "model")
    first = write(here, tmp_path / "a", "sglang", (0,))
    (here / "tokenizer.json").write_text("{}")
    second = write(here, tmp_path / "b", "sglang", (1,))
    problems = verify_together([first, second]).problems
    assert {problem.message for problem in problems} == {f"is another one in {first}"}
    assert [problem.file for problem in problems] == [f"{second}/draft/tokenizer.json", f"{second}/tokenizer.json"]


@pytest.mark.slow
def test_damage_in_one_of_them_is_found_where_it_is(pair: tuple[Path, Path]) -> None:
    with (pair[1] / "model-rank-5-part-0.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    found = verify_together(pair)
    assert [one.ok for one in found.folders] == [True, False]
    assert not found.ok


@pytest.mark.slow
def test_a_folder_that_is_no_result_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(NotAResult):
        verify_together([*pair, tmp_path])


@pytest.mark.slow
def test_the_command_takes_folders_together(model: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    run = CliRunner().invoke
    folders = list(map(str, pair))
    shown = run(app, ["verify", *folders, "--against", str(model), "--numerics"])
    assert shown.exit_code == 0
    text = " ".join(shown.stdout.split())
    assert "together: ranks 0-7 of 8, layout sglang" in text
    assert text.endswith("no problems found")
    document = json.loads(run(app, ["verify", *folders, "--json"]).stdout)
    assert (document["ok"], document["ranks"], document["missing"]) == (True, list(range(8)), [])
    assert [one["folder"] for one in document["folders"]] == folders
    alone = run(app, ["verify", folders[0]])
    assert alone.exit_code == 0
    assert "ranks 0-3 of 8" in alone.stdout
    assert "missing: ranks 4-7 of 8, not in this folder" in alone.stdout
    assert "ranks 0-3 are as written; ranks 4-7 missing" in alone.stdout
    assert "no problems found" not in alone.stdout
    document = json.loads(run(app, ["verify", folders[0], "--json"]).stdout)
    assert (document["ok"], document["missing"]) == (True, [4, 5, 6, 7])
    (pair[1] / "config.json").write_text("{}")
    refused = run(app, ["verify", *folders])
    assert refused.exit_code == 1
    assert "FAILED: the result differs" in refused.stdout


@pytest.mark.slow
def test_the_command_names_ranks_that_are_missing(model: Path, tmp_path: Path) -> None:
    folders = [str(write(model, tmp_path / str(rank), "sglang", (rank,))) for rank in (0, 7)]
    shown = CliRunner().invoke(app, ["verify", *folders]).stdout
    assert "missing: ranks 1-6 of 8, in none of these folders" in shown
    assert "ranks 0,7 are as written; ranks 1-6 missing" in shown
    assert "no problems found" not in shown


@pytest.mark.parametrize("name", ["a", "./a", "b/../a", "link", "link/"])
def test_a_folder_that_is_named_twice_is_refused_before_it_is_read(name: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    (tmp_path / "link").symlink_to("a")
    folders = [str(tmp_path / "a"), str(tmp_path / "b"), f"{tmp_path}/{name}"]
    refused = CliRunner().invoke(app, ["verify", *folders])
    assert refused.exit_code == ExitCode.USAGE
    said = "named twice" if name in ("a", "./a") else f"the same folder as {tmp_path / 'a'}"
    assert said in refused.stderr
