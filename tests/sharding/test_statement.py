"""provenance.json says what a run wrote, from what and how, in the form of in-toto and SLSA."""

import getpass
import hashlib
import json
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage
from support.checkpoints.small import job_for, open_folder, reshard_folder, small_config
from support.command_line import run
from support.documents import checkpoint, result
from support.folders import contents
from support.merging import merge

from dsv4_shard.checkpoint.fingerprint import origin_of
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.opening import open_checkpoint
from dsv4_shard.sharding.manifest import Manifest, load_manifest
from dsv4_shard.storage import MANIFEST_NAME, digest_of
from dsv4_shard.verification.result_folder import verify
from dsv4_shard.version import __version__

NAME = "provenance.json"

ENGINES = {"sglang": [], "vllm": [], "reference": [], "node": ["--nodes", "2"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with a tokenizer. Only to be read."""
    folder = write_checkpoint(tmp_path_factory.mktemp("stated") / "model", small_config() | {"hidden_size": 256}, 5)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def parsed(path: Path) -> tuple[StatementMessage, Any]:
    """A statement and its predicate as the messages of the specification. Unknown keys and other types are errors."""
    statement = Statement.copy_from_pb(json_format.Parse(path.read_text(), StatementMessage()))
    statement.validate()
    predicate = json.loads(path.read_bytes())["predicate"]
    return statement.pb, json_format.ParseDict(predicate, Provenance())


def sha256sum(folder: Path) -> dict[str, str]:
    """What sha256sum says of every file in a folder."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, text=True, check=True).stdout
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines.splitlines())}


def written(folder: Path) -> dict[str, str]:
    """SHA-256 of what a run wrote before its statement."""
    return {name: sha256 for name, sha256 in sha256sum(folder).items() if name not in (NAME, MANIFEST_NAME)}


def subjects(message: StatementMessage) -> dict[str, str]:
    return {subject.name: subject.digest["sha256"] for subject in message.subject}


# --- what it says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_states_all_that_it_wrote_and_read(engine: str, model: Path, tmp_path: Path) -> None:
    command = run("reshard", model, tmp_path / "out", "--engine", engine, "--tp", 2, *ENGINES[engine])
    assert command.exit_code == 0, command.output
    message, provenance = parsed(tmp_path / "out" / NAME)
    assert message.predicate_type == "https://slsa.dev/provenance/v1"
    assert subjects(message) == written(tmp_path / "out")
    assert (provenance.run_details.builder.id, dict(provenance.run_details.builder.version)) == (
        "urn:dsv4-shard", {"dsv4-shard": __version__},
    )  # fmt: skip
    definition = provenance.build_definition
    assert definition.build_type == "urn:dsv4-shard:reshard:1"
    asked = json_format.MessageToDict(definition.external_parameters)
    plan = json.loads((tmp_path / "out/plan.json").read_bytes())
    assert asked["checkpoint"] == str(model)
    assert asked["ranks"] == list(range(2))
    assert asked["request"].items() >= {"tp": 2, "engine": engine}.items()
    assert asked["request"] == plan["request"]
    manifest = load_manifest(tmp_path / "out")
    assert json_format.MessageToDict(definition.internal_parameters) == {
        "layout": manifest.layout,
        "world": manifest.world,
        "identity": manifest.identity,
        "planDigest": manifest.plan_digest,
    }
    origin = origin_of(open_folder(model)[0], "")
    config, *files = definition.resolved_dependencies
    assert (config.name, dict(config.digest)) == ("config.json", {"canonicalJsonSha256": origin.config_digest})
    read = [(file.name, dict(file.digest), json_format.MessageToDict(file.annotations)) for file in files]
    assert read == [(f.name, {"headerXxh3128": f.header_digest}, {"nbytes": f.nbytes}) for f in origin.files]


def test_the_manifest_has_its_digests(model: Path, tmp_path: Path) -> None:
    reshard_folder(model, tmp_path / "out", 2)
    raw = (tmp_path / "out" / NAME).read_bytes()
    (entry,) = (entry for entry in load_manifest(tmp_path / "out").companions if entry.name == NAME)
    assert (entry.nbytes, entry.sha256, entry.digest) == (len(raw), hashlib.sha256(raw).hexdigest(), digest_of(raw))


def test_the_same_run_writes_the_same_bytes_and_says_nothing_of_the_machine(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []
    for number in range(2):
        folder = tmp_path / f"machine-{number}"
        folder.mkdir()
        (folder / "model").symlink_to(model)
        monkeypatch.chdir(folder)
        assert run("reshard", "model", folder / "out", "--tp", 2).exit_code == 0
        texts.append((folder / "out" / NAME).read_text())
    assert texts[0] == texts[1]
    assert not any(word in texts[0] for word in (str(tmp_path), socket.gethostname(), f'"{getpass.getuser()}"'))


def test_a_dry_run_knows_its_size(model: Path, tmp_path: Path) -> None:
    job, _ = job_for(model, 2)
    reshard_folder(model, tmp_path / "out", 2)
    sizes = {name: len(content) for name, content in contents(tmp_path / "out").items()}
    assert job.small_files[NAME] == sizes[NAME]
    assert job.nbytes == sum(sizes.values()) - sizes[MANIFEST_NAME]


def test_a_share_states_its_own_files_and_keeps_its_statement(model: Path, tmp_path: Path) -> None:
    for ranks in ((3,), (0, 2), (1,)):
        reshard_folder(model, tmp_path / "out", 4, ranks=ranks)
    names = {"provenance.ranks-3.json": 3, "provenance.ranks-0+2.json": 0, "provenance.ranks-1.json": 1}
    assert {path.name for path in (tmp_path / "out").glob("provenance*")} == names.keys()
    there = written(tmp_path / "out")
    for name, rank in names.items():
        stated = subjects(parsed(tmp_path / "out" / name)[0])
        assert stated.items() <= there.items()
        assert f"model{rank}-mp4.safetensors" in stated
        assert "model1-mp4.safetensors" not in stated or rank == 1
    assert verify(tmp_path / "out", open_folder(model)).problems == ()


def test_a_merge_states_the_manifest_of_its_ranks(model: Path, tmp_path: Path) -> None:
    reshard_folder(model, tmp_path / "ranks", 2)
    merge(tmp_path / "ranks", tmp_path / "merged")
    message, provenance = parsed(tmp_path / "merged" / NAME)
    assert subjects(message) == written(tmp_path / "merged")
    definition = provenance.build_definition
    assert definition.build_type == "urn:dsv4-shard:merge:1"
    assert json_format.MessageToDict(definition.external_parameters) == {"folder": str(tmp_path / "ranks")}
    (ranks,) = definition.resolved_dependencies
    manifest = (tmp_path / "ranks" / MANIFEST_NAME).read_bytes()
    assert (ranks.name, dict(ranks.digest)) == ("ranks/manifest.json", {"sha256": hashlib.sha256(manifest).hexdigest()})
    assert verify(tmp_path / "merged", open_checkpoint(str(tmp_path / "ranks"))).notes == ()


def test_a_merge_of_files_of_the_converter_states_each(model: Path, tmp_path: Path) -> None:
    reshard_folder(model, tmp_path / "ranks", 2)
    for path in (tmp_path / "ranks").iterdir():
        if path.suffix != ".safetensors":
            path.unlink()
    command = run("merge", tmp_path / "ranks", tmp_path / "merged", "--config", model / "config.json")
    assert command.exit_code == 0, command.output
    read = parsed(tmp_path / "merged" / NAME)[1].build_definition.resolved_dependencies
    assert [entry.name for entry in read] == ["ranks/model0-mp2.safetensors", "ranks/model1-mp2.safetensors"]
    assert all(len(entry.digest["headerXxh3128"]) == 32 for entry in read)


# --- verify --against derives it again -------------------------------------------------------------------------------


def restate(out: Path, change: Callable[[Any], object], name: str = NAME) -> None:
    """Change a statement, and seal the manifest with the lie."""
    document = json.loads((out / name).read_bytes())
    change(document)
    (out / name).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    seal(out, {name})


def seal(out: Path, names: set[str]) -> None:
    manifest = json.loads((out / MANIFEST_NAME).read_bytes())
    kept = []
    for entry in manifest["companions"]:
        if entry["name"] in names and not (out / entry["name"]).exists():
            continue
        raw = (out / entry["name"]).read_bytes()
        kept.append(entry | {"nbytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest(), "digest": digest_of(raw)})
    manifest["companions"] = kept
    (out / MANIFEST_NAME).write_bytes(Manifest.model_validate_json(json.dumps(manifest)).sealed().to_bytes())


def definition(document: Any) -> Any:
    return document["predicate"]["buildDefinition"]


LIES: dict[str, Callable[[Any], object]] = {
    "subject.0.digest.sha256": lambda it: it["subject"][0]["digest"].update(sha256="0" * 64),
    "subject.1.name": lambda it: it["subject"].pop(1),
    "predicate.buildDefinition.externalParameters.checkpoint": lambda it: definition(it)["externalParameters"].update(
        checkpoint="deepseek-ai/DeepSeek-V4-Pro"
    ),
    "predicate.buildDefinition.externalParameters.request.tp": lambda it: definition(it)["externalParameters"][
        "request"
    ].update(tp=4),
    "predicate.buildDefinition.externalParameters.by": lambda it: definition(it)["externalParameters"].update(by="me"),
    "predicate.buildDefinition.internalParameters.layout": lambda it: definition(it)["internalParameters"].update(
        layout="another"
    ),
    "predicate.buildDefinition.resolvedDependencies.1.digest.headerXxh3128": lambda it: definition(it)[
        "resolvedDependencies"
    ][1]["digest"].update(headerXxh3128="0" * 32),
    "predicate.buildDefinition.resolvedDependencies.1.digest.sha256": lambda it: definition(it)["resolvedDependencies"][
        1
    ]["digest"].update(sha256="0" * 64),
    "predicate.buildDefinition.resolvedDependencies.1.annotations.nbytes": lambda it: definition(it)[
        "resolvedDependencies"
    ][1]["annotations"].update(nbytes=1),
    "is of ranks": lambda it: definition(it)["externalParameters"].update(ranks=[0]),
    "dsv4-shard '9.9.9' wrote": lambda it: it["predicate"]["runDetails"]["builder"].update(
        version={"dsv4-shard": "9.9.9"}
    ),
    "no statement of provenance: predicate.runDetails.builder.id": lambda it: it["predicate"]["runDetails"][
        "builder"
    ].update(id="urn:another"),
    "no statement of provenance: predicateType": lambda it: it.update(predicateType="https://slsa.dev/provenance/v0.2"),
    "no statement of provenance: time": lambda it: it.update(time="now"),
}


@pytest.mark.parametrize("said", LIES)
def test_each_word_of_a_statement_is_compared(said: str, model: Path, tmp_path: Path) -> None:
    reshard_folder(model, tmp_path / "out", 2)
    assert verify(tmp_path / "out", open_folder(model)).ok
    restate(tmp_path / "out", LIES[said])
    assert verify(tmp_path / "out").ok, "the lie is sealed: without the source it cannot be known"
    found = verify(tmp_path / "out", open_folder(model)).problems
    problems = [problem for problem in found if problem.file == NAME]
    assert len(problems) == 1
    if said == "is of ranks":
        assert "is that of provenance.ranks-0.json by its ranks" in problems[0].message
    else:
        assert said in problems[0].message or said.rpartition(".")[0] in problems[0].message


def test_other_spaces_are_no_statement_of_a_run(model: Path, tmp_path: Path) -> None:
    reshard_folder(model, tmp_path / "out", 2)
    document = json.loads((tmp_path / "out" / NAME).read_bytes())
    (tmp_path / "out" / NAME).write_text(json.dumps(document))
    seal(tmp_path / "out", {NAME})
    (problem,) = verify(tmp_path / "out", open_folder(model)).problems
    assert (problem.file, problem.message) == (NAME, "is not what source, plan and manifest give: its form")


def test_a_sha256_of_a_source_file_is_computed_where_the_source_lists_none(model: Path, tmp_path: Path) -> None:
    reshard_folder(model, tmp_path / "out", 2)

    def claim(document: Any) -> None:
        for file in definition(document)["resolvedDependencies"][1:]:
            sha256 = hashlib.sha256((model / file["name"]).read_bytes()).hexdigest()
            file["digest"] = {"sha256": sha256, **file["digest"]}

    restate(tmp_path / "out", claim)
    assert verify(tmp_path / "out", open_folder(model)).problems == ()


def test_a_rank_without_a_statement_is_named(model: Path, tmp_path: Path) -> None:
    for ranks in ((0, 1), (2,), (3,)):
        reshard_folder(model, tmp_path / "out", 4, ranks=ranks)
    (tmp_path / "out/provenance.ranks-0-1.json").unlink()
    seal(tmp_path / "out", {"provenance.ranks-0-1.json"})
    (problem,) = verify(tmp_path / "out", open_folder(model)).problems
    assert (problem.file, problem.message) == (MANIFEST_NAME, "has no statement of provenance of ranks 0-1")


def test_a_second_statement_of_a_rank_is_refused(model: Path, tmp_path: Path) -> None:
    for ranks in ((0, 1), (2, 3)):
        reshard_folder(model, tmp_path / "out", 4, ranks=ranks)
    restate(
        tmp_path / "out",
        lambda document: definition(document)["externalParameters"].update(ranks=[0, 1]),
        "provenance.ranks-2-3.json",
    )
    messages = {problem.message for problem in verify(tmp_path / "out", open_folder(model)).problems}
    assert messages == {
        "is of ranks 0-1, and so is another statement", "has no statement of provenance of ranks 2-3",
    }  # fmt: skip


def test_what_the_source_of_a_merge_cannot_know_is_noted(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", small_config(), 5, o_a="BF16")
    reshard_folder(model, tmp_path / "ranks", 2)
    merge(tmp_path / "ranks", tmp_path / "merged")
    found = verify(tmp_path / "merged", open_folder(model))
    assert found.problems == ()
    (note,) = found.notes
    assert note.startswith("provenance.json: not compared")
    assert "the rank files that the checkpoint was put together from" in note


@pytest.mark.parametrize("name", ["reference", "sglang", "node"])
def test_a_result_of_a_version_without_statements_needs_none(name: str, tmp_path: Path) -> None:
    source = open_checkpoint(str(checkpoint(tmp_path)))
    out = result(1, name, tmp_path / "out")
    assert not (out / NAME).exists()
    assert verify(out, source).problems == ()
