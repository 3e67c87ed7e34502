"""What one release wrote, later ones read: documents are accepted by their schema version, not by the tool's."""

import json
import struct
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import xxhash
from support import documents
from support.checkpoints.small import open_folder
from support.documents import OTHER_VERSION, PLANS

import dsv4_shard
from dsv4_shard.errors import BadPlan, ExitCode, NewerSchema, OtherDeployment, OtherRun
from dsv4_shard.loading.checks import find_manifest
from dsv4_shard.loading.parameters import meta_tensor
from dsv4_shard.loading.rank_files import WrittenFiles
from dsv4_shard.planning import document as plan_document
from dsv4_shard.planning.plan_file import decisions, load_plan, read_plan
from dsv4_shard.sharding import journal, manifest
from dsv4_shard.sharding.earlier_run import recipe_digest
from dsv4_shard.sharding.job import prepare
from dsv4_shard.sharding.journal import read_journal
from dsv4_shard.sharding.manifest import load_manifest
from dsv4_shard.version import __version__

SCHEMAS = (1, 2)
RESULTS = ("reference", "sglang", "node")
NEWEST = {"plan": plan_document.SCHEMA_VERSION, "manifest": manifest.SCHEMA_VERSION, "run": journal.SCHEMA_VERSION}

pytestmark = pytest.mark.parametrize("schema", SCHEMAS)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The checkpoint that all documents were made from, called as they call it."""
    documents.checkpoint(tmp_path)
    monkeypatch.chdir(tmp_path)
    return "model"


def saved(raw: bytes) -> Path:
    path = Path("plan.json")
    path.write_bytes(raw)
    return path


def said_by_newer(what: str, schema: int, error: NewerSchema) -> None:
    """One sentence: what was found, what is read, and what to do."""
    expected = (
        f"this {what} has schema version {schema}, and the newest that this version reads is {NEWEST[what.split()[-1]]}"
        ": upgrade dsv4-shard"
    )
    assert str(error).partition(": ")[2] == expected


# --- plans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_of_an_earlier_schema_says_what_the_same_plan_of_today_says(schema: int, name: str, model: str) -> None:
    then = load_plan(saved(documents.plan_text(schema, name)))
    asked = documents.asked_by(name)
    if asked.get("engine", "sglang") in ("sglang", "vllm"):
        asked = asked | {"part_size": None}
    now = dsv4_shard.plan(model, **asked)
    assert decisions(then) == decisions(now)
    assert (then.feasible, then.out, then.reshard) == (now.feasible, now.out, now.reshard)
    assert then.launch.environment == now.launch.environment


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("tool_version", [__version__, OTHER_VERSION])
def test_reshard_follows_a_plan_of_an_earlier_schema_to_the_same_bytes(
    schema: int, name: str, tool_version: str, model: str
) -> None:
    raw = documents.plan_text(schema, name)
    plan = saved(raw if tool_version == __version__ else documents.by_version(raw))
    dsv4_shard.reshard(model, "out", plan=plan)
    then = documents.result(schema, name, Path("then"))
    assert documents.rank_files(Path("out")) == documents.rank_files(then)
    assert len(documents.rank_files(then)) >= 2


def test_a_plan_of_another_version_may_say_the_same_in_other_words(schema: int, model: str) -> None:
    words = {"assumptions": ["other"], "shared_expert_addition": "", "alternatives": []}
    plan = documents.by_version(documents.plan_text(schema, "reference"), **words)
    dsv4_shard.reshard(model, "out", plan=saved(plan))
    assert load_plan(Path("out/plan.json")).tool_version == __version__


@pytest.mark.parametrize("field", ["shape", "rank_shape", "bytes_per_rank", "placement"])
def test_a_plan_of_another_version_that_places_modules_in_another_way_is_refused(
    schema: int, field: str, model: str
) -> None:
    raw = documents.plan_text(schema, "reference")
    modules = json.loads(raw)["modules"]
    modules[0][field] = {"placement": "elsewhere", "bytes_per_rank": 1}.get(field, [1, 1])
    with pytest.raises(BadPlan, match=rf"or dsv4-shard 9\.9\.9 planned it in another way: modules\[0\]\.{field}"):
        dsv4_shard.reshard(model, "out", plan=saved(documents.by_version(raw, modules=modules)))


def test_an_infeasible_plan_of_another_version_still_breaks_the_same_rules(schema: int, model: str) -> None:
    raw = documents.plan_text(schema, "infeasible")
    with pytest.raises(dsv4_shard.errors.InfeasiblePlan):
        dsv4_shard.reshard(model, "out", plan=saved(documents.by_version(raw)))
    breaches = json.loads(raw)["breaches"][:-1]
    with pytest.raises(BadPlan, match="planned it in another way: breaches"):
        dsv4_shard.reshard(model, "out", plan=saved(documents.by_version(raw, breaches=breaches)))


def test_launch_lines_that_no_engine_writes_do_not_make_an_earlier_plan_unreadable(schema: int) -> None:
    if schema > 1:
        pytest.skip("later schemas have the parts of the commands")
    raw = documents.plan_text(schema, "reference")
    launch = json.loads(raw)["launch"] | {"commands": ["a b -c d e -f g h -i"]}
    plan = read_plan(documents.by_version(raw, launch=launch), "plan.json")
    assert (plan.launch.commands, plan.launch.program) == ((), None)


@pytest.mark.parametrize("more", [1, 7])
def test_a_plan_of_a_newer_schema_is_refused_in_one_sentence(schema: int, more: int) -> None:
    newer = NEWEST["plan"] + more
    with pytest.raises(NewerSchema) as caught:
        read_plan(documents.by_version(documents.plan_text(schema, "vllm"), schema_version=newer), "plan.json")
    said_by_newer("plan", newer, caught.value)
    assert caught.value.exit_code is ExitCode.CHECKPOINT


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("other", [False, True], ids=["as-written", "of-another-version"])
def test_a_result_of_an_earlier_schema_verifies_and_merges_to_the_same_bytes(
    schema: int, name: str, other: bool, model: str
) -> None:
    folder = documents.result(schema, name, Path("then"))
    if other:
        documents.as_of_other_version(folder)
    assert load_manifest(folder).written_by == {OTHER_VERSION if other else "0.1.0": (0, 1)}
    assert dsv4_shard.verify(folder, against=model).ok
    dsv4_shard.merge(folder, "again")
    assert dsv4_shard.verify("again").ok
    again = {name: sha256(content).hexdigest() for name, content in documents.rank_files(Path("again")).items()}
    assert again == documents.merged(schema, name)


def test_the_plugin_takes_files_of_another_version(schema: int, tmp_path: Path) -> None:
    folder = documents.as_of_other_version(documents.result(schema, "sglang", tmp_path / "then"))
    files = WrittenFiles(folder, verify=True)
    held = files.open(1)
    assert held
    files.fill({name: meta_tensor(*kind).new_empty(kind[1], device="cpu") for name, kind in held.items()}, 1, print)
    _, _, inner = find_manifest(folder / "draft")
    assert inner == "draft/"


@pytest.mark.parametrize("other", [False, True], ids=["as-written", "of-another-version"])
def test_shares_of_two_versions_are_one_result_whose_manifest_says_who_wrote_which(
    schema: int, other: bool, model: str
) -> None:
    out = documents.result(schema, "share", Path("out"))
    if other:
        documents.as_of_other_version(out)
    plan = (out / "plan.json").read_bytes()
    dsv4_shard.reshard(model, out, tp=2, engine="reference", ranks=[1])
    joined = load_manifest(out)
    assert joined.ranks == (0, 1)
    assert joined.written_by == ({OTHER_VERSION: (0,), __version__: (1,)} if other else {__version__: (0, 1)})
    assert (out / "plan.json").read_bytes() == plan
    assert documents.rank_files(out) == documents.rank_files(documents.result(schema, "reference", Path("then")))
    assert dsv4_shard.verify(out, against=model).ok


def test_a_share_of_another_version_is_not_joined_by_another_plan(schema: int, model: str) -> None:
    out = documents.as_of_other_version(documents.result(schema, "share", Path("out")))
    with pytest.raises(OtherDeployment, match="it follows another plan"):
        dsv4_shard.reshard(model, out, tp=2, engine="reference", ranks=[1], nodes=2)


def test_shares_of_two_versions_in_two_folders_verify_as_one(schema: int, model: str) -> None:
    documents.as_of_other_version(documents.result(schema, "share", Path("0")))
    dsv4_shard.reshard(model, "1", tp=2, engine="reference", ranks=[1])
    found = dsv4_shard.verify_shares(["0", "1"], against=model)
    assert (found.ok, found.missing) == (True, ())


@pytest.mark.parametrize("more", [1, 7])
def test_a_manifest_of_a_newer_schema_is_refused_in_one_sentence(schema: int, more: int, tmp_path: Path) -> None:
    folder, newer = documents.result(schema, "share", tmp_path / "then"), NEWEST["manifest"] + more
    documents.reseal(folder, schema_version=newer, written_by_whom={}, tool_version=OTHER_VERSION)
    with pytest.raises(NewerSchema) as caught:
        load_manifest(folder)
    said_by_newer("manifest", newer, caught.value)


# --- unfinished runs -------------------------------------------------------------------------------------------------


def relabel(path: Path, **fields: object) -> None:
    """Change fields of a journal's first entry, as a version that wrote them so would have."""
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    first = json.dumps(json.loads(raw[8 : 8 + length]) | fields).encode()
    path.write_bytes(struct.pack("<Q", len(first)) + first + xxhash.xxh3_128_digest(first) + raw[8 + length + 16 :])


@pytest.mark.parametrize("tool_version", ["0.1.0", OTHER_VERSION])
def test_a_run_that_another_version_left_is_continued(schema: int, tool_version: str, model: str) -> None:
    folder = documents.unfinished(schema, Path("unfinished"))
    relabel(folder / "journal", tool_version=tool_version)
    outcome = dsv4_shard.reshard(model, "unfinished", tp=2, engine="reference")
    assert outcome.bytes_resumed > 100_000
    then = documents.result(schema, "reference", Path("then"))
    assert documents.rank_files(Path("unfinished")) == documents.rank_files(then)
    assert dsv4_shard.verify("unfinished", against=model).ok


@pytest.mark.parametrize("field", ["recipe_digest", "files", "times"])
def test_a_run_of_another_recipe_is_not_continued_whoever_left_it(schema: int, field: str, model: str) -> None:
    folder = documents.unfinished(schema, Path("unfinished"))
    relabel(folder / "journal", tool_version=OTHER_VERSION, **{field: {"recipe_digest": "0" * 32}.get(field, {})})
    with pytest.raises(OtherRun, match=r"have another layout|was modified since"):
        dsv4_shard.reshard(model, "unfinished", tp=2, engine="reference")


def test_a_run_of_a_newer_schema_is_refused_in_one_sentence(schema: int, model: str) -> None:
    folder, newer = documents.unfinished(schema, Path("unfinished")), NEWEST["run"] + 1
    relabel(folder / "journal", schema_version=newer, more={})
    with pytest.raises(NewerSchema) as caught:
        dsv4_shard.reshard(model, "unfinished", tp=2, engine="reference")
    said_by_newer("unfinished run", newer, caught.value)
    assert dsv4_shard.reshard(model, "unfinished", tp=2, engine="reference", restart=True).bytes_resumed == 0


def test_a_recipe_that_cuts_in_another_way_is_another_though_headers_and_order_are_the_same(
    schema: int, model: str
) -> None:
    checkpoint, inventory = open_folder(Path(model))
    plan = read_plan(documents.plan_text(schema, "reference"), "plan.json")
    recipe = prepare(checkpoint, inventory, plan).recipe
    at, step = next((at, step) for at, step in enumerate(recipe.steps) if len(step.landings[0].spread) > 1)
    landing = step.landings[0]
    (first, its_files), (second, others), *rest = landing.spread
    exchanged = landing._replace(spread=((second, its_files), (first, others), *rest))
    steps = (*recipe.steps[:at], replace(step, landings=(exchanged, *step.landings[1:])), *recipe.steps[at + 1 :])
    changed = replace(recipe, steps=steps)
    assert recipe_digest(changed) != recipe_digest(recipe)
    assert recipe_digest(changed, 1) == recipe_digest(recipe, 1)


def test_an_unfinished_run_says_whose_it_is(schema: int, tmp_path: Path) -> None:
    found = read_journal(documents.unfinished(schema, tmp_path / "out") / "journal")
    assert found is not None
    assert (found.run.request.engine, found.run.tool_version) == ("reference", "0.1.0")
    assert sum(step.nbytes for step in found.finished) > 100_000
