"""Licence, notices, README, tokenizer and the release's own folders reach every result, and come back by merge."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import documents
from support.checkpoints.release import RELEASE, STAYS, add_release
from support.checkpoints.small import small_config
from support.command_line import run
from support.folders import apart_from_statements, contents

import dsv4_shard
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.errors import BadRanks, OtherDeployment
from dsv4_shard.sharding.manifest import Manifest, load_manifest
from dsv4_shard.sharding.model_card import SOURCE_CARD
from dsv4_shard.storage import MANIFEST_NAME, digest_of

LAYOUTS: dict[str, dict[str, Any]] = {
    "sglang": {"tp": 2},
    "vllm": {"tp": 2, "engine": "vllm"},
    "reference": {"tp": 2, "engine": "reference"},
    "node": {"tp": 4, "engine": "node", "nodes": 2},
}

FOLDERS = {"node": ("node-0/", "node-1/")}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights and config of a small checkpoint. Only to be read."""
    folder = tmp_path_factory.mktemp("companions") / "bare"
    write_checkpoint(folder, small_config() | {"hidden_size": 256}, 5, o_a="FP8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    return folder


@pytest.fixture
def model(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The checkpoint, with links to its weights, in the working folder."""
    monkeypatch.chdir(tmp_path)
    checkpoint(bare, tmp_path / "model")
    return "model"


def checkpoint(bare: Path, folder: Path, files: dict[str, str] = RELEASE) -> Path:
    folder.mkdir()
    for path in bare.iterdir():
        (folder / path.name).hardlink_to(path)
    return add_release(folder, files)


def released(folder: Path) -> dict[str, bytes]:
    """The small files of a checkpoint, by name."""
    return {name: found for name, found in contents(folder).items() if name in RELEASE}


def name_in_result(name: str) -> str:
    return SOURCE_CARD if name == "README.md" else name


# --- every file, every layout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_file_of_the_release_is_in_each_folder_and_comes_back(layout: str, model: str) -> None:
    add_release(Path(model), dict.fromkeys(STAYS, "x"))
    due = released(Path(model))
    assert due.keys() == RELEASE.keys()
    dsv4_shard.reshard(model, "out", **LAYOUTS[layout])
    there = contents(Path("out"))
    for folder in FOLDERS.get(layout, ("",)):
        for name, content in due.items():
            assert there[folder + name_in_result(name)] == content, name
        assert there[f"{folder}README.md"] == there["README.md"] != due["README.md"]
    for name in ("LICENSE", "NOTICE.txt", SOURCE_CARD):
        assert name in there, "where the card is, so is the licence that it names"
    assert not {name for name in there if name.rpartition("node-0/")[2] in STAYS}
    assert set(there) == load_manifest(Path("out")).names | {MANIFEST_NAME}
    assert dsv4_shard.verify("out").notes == ()
    assert dsv4_shard.verify("out", against=model).ok
    dsv4_shard.merge("out", "again")
    assert released(Path("again")) == due
    assert contents(Path("again")).keys() == contents(Path(model)).keys() - STAYS.keys() | {
        MANIFEST_NAME,
        "provenance.json",
    }
    if layout in ("node", "vllm"):
        assert dsv4_shard.verify("again", against=model).ok


NAMES = st.from_regex(r"[A-Za-z_é][A-Za-z0-9_.+ é-]{0,6}[a-z]", fullmatch=True)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@settings(max_examples=15, suppress_health_check=list(HealthCheck), deadline=None)
@given(st.dictionaries(PATHS, st.text(max_size=20), max_size=12), st.sampled_from(sorted(LAYOUTS)))
def test_what_a_checkpoint_has_is_in_the_result_or_is_said_to_stay(
    bare: Path, tmp_path_factory: pytest.TempPathFactory, files: dict[str, str], layout: str
) -> None:
    names = {name for name in files if not any(f"{name}/" in other for other in files)} - {"config.json"}
    root = tmp_path_factory.mktemp("drawn")
    folder = checkpoint(bare, root / "model", {name: files[name] for name in names})
    said = dsv4_shard.reshard_dry_run(folder, root / "out", **LAYOUTS[layout]).left_behind
    dsv4_shard.reshard(folder, root / "out", **LAYOUTS[layout])
    dsv4_shard.merge(root / "out", root / "again")
    again = contents(root / "again")
    assert {name for name in names if name not in again} == said.keys() & names
    assert all(again[name] == files[name].encode() for name in names if name in again)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_that_a_result_needs_are_its_own(layout: str, model: str) -> None:
    own = ["plan.json", "manifest.json", "source.zip", SOURCE_CARD]
    own += {"sglang": ["draft/config.json"], "reference": ["inference_config.json"]}.get(layout, [])
    add_release(Path(model), dict.fromkeys(own, "theirs") | {"draft/tokens.txt": "theirs", "node-0/x": "theirs"})
    found = dsv4_shard.reshard_dry_run(model, "out", **LAYOUTS[layout])
    assert set(found.left_behind) == set(own)
    dsv4_shard.reshard(model, "out", **LAYOUTS[layout])
    assert dsv4_shard.verify("out", against=model).ok
    dsv4_shard.merge("out", "again")
    again = contents(Path("again"))
    assert (again["draft/tokens.txt"], again["node-0/x"]) == (b"theirs", b"theirs")
    assert not again.keys() & (set(own) - {MANIFEST_NAME})


def test_a_file_called_as_a_folder_of_the_result_stays_behind(model: str) -> None:
    add_release(Path(model), {"draft": "a file"})
    assert dsv4_shard.reshard_dry_run(model, "out", tp=2).left_behind.keys() == {"draft"}
    dsv4_shard.reshard(model, "out", tp=2)


def test_shards_of_shards_carry_the_release_on(model: str) -> None:
    dsv4_shard.reshard(model, "out", tp=2)
    dsv4_shard.reshard("out", "others", tp=4, engine="reference")
    there = contents(Path("others"))
    assert {name: there[name_in_result(name)] for name in RELEASE} == released(Path(model))


# --- what is said --------------------------------------------------------------------------------------------------


def test_a_dry_run_names_what_stays_and_a_licence_that_is_not_there(model: str) -> None:
    add_release(Path(model), dict.fromkeys(STAYS, "x"))
    found = dsv4_shard.reshard_dry_run(model, "out", tp=2)
    assert {name.rstrip("/") for name in found.left_behind} == {name.rstrip("/") for name in STAYS.values()}
    assert found.notes == ()
    (Path(model) / "LICENSE").unlink()
    (note,) = dsv4_shard.reshard_dry_run(model, "out", tp=2).notes
    assert note.startswith("the checkpoint has no licence file")
    shown = run("reshard", model, "out", "--tp", "2", "--dry-run")
    assert (shown.exit_code, "no licence file" in shown.stdout) == (0, True)
    assert "stays behind (hidden): .cache, .gitattributes, encoding/__pycache__" in shown.stdout
    assert "encoding/tests/test_input_1.json" in shown.stdout


def test_a_link_out_of_the_checkpoint_is_said(model: str, tmp_path: Path) -> None:
    add_release(tmp_path / "elsewhere", {"key": "secret"})
    (Path(model) / "encoding/key.txt").symlink_to(tmp_path / "elsewhere/key")
    found = dsv4_shard.reshard_dry_run(model, "out", tp=2)
    assert found.notes == (
        "links to files outside the checkpoint; their content is copied into the result: encoding/key.txt",
    )


def test_statements_and_signatures_of_the_source_stay_behind(model: str) -> None:
    theirs = ("model.sig", "provenance.json", "provenance.ranks-7.json")
    add_release(Path(model), dict.fromkeys(theirs, "of another result") | {"docs/provenance.json": "travels"})
    assert dsv4_shard.reshard_dry_run(model, "out", tp=2).left_behind.keys() >= set(theirs)
    dsv4_shard.reshard(model, "out", tp=2)
    assert not Path("out/model.sig").exists()
    assert Path("out/provenance.json").read_text() != "of another result"
    assert Path("out/docs/provenance.json").read_text() == "travels"
    assert dsv4_shard.verify("out", against=model).problems == ()


# --- runs and shares -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shares_that_join_are_one_run(layout: str, model: str) -> None:
    dsv4_shard.reshard(model, "whole", **LAYOUTS[layout])
    for rank in (1, 0):
        dsv4_shard.reshard(model, "joined", ranks=[rank], **LAYOUTS[layout])
        dsv4_shard.reshard(model, f"own{rank}", ranks=[rank], **LAYOUTS[layout])
    joined, whole = contents(Path("joined")), contents(Path("whole"))
    assert apart_from_statements(joined) == apart_from_statements(whole)
    assert dsv4_shard.verify_shares(["own0", "own1"], against=model).ok


def test_a_share_of_a_checkpoint_with_another_licence_does_not_join(model: str) -> None:
    dsv4_shard.reshard(model, "out", tp=2, ranks=[0])
    (Path(model) / "LICENSE").write_text("another")
    with pytest.raises(OtherDeployment, match="its LICENSE differs from what the checkpoint gives now"):
        dsv4_shard.reshard(model, "out", tp=2, ranks=[1])


def test_overwriting_removes_the_folders_of_the_release_with_the_result(model: str) -> None:
    dsv4_shard.reshard(model, "out", tp=2)
    before = contents(Path("out"))
    dsv4_shard.reshard(model, "out", tp=2, overwrite=True)
    assert contents(Path("out")) == before
    (Path("out") / "encoding/tests/mine.txt").write_text("of somebody else")
    with pytest.raises(dsv4_shard.errors.OutputNotEmpty, match=r"did not write encoding/tests/mine\.txt"):
        dsv4_shard.reshard(model, "out", tp=2, overwrite=True)
    assert dsv4_shard.verify("out").notes == ("encoding/tests/mine.txt is not part of the result",)


@pytest.mark.parametrize("name", ["LICENSE", "encoding/encoding_dsv4.py", "README.md", SOURCE_CARD])
def test_a_changed_or_missing_file_is_found(name: str, model: str) -> None:
    dsv4_shard.reshard(model, "out", tp=2)
    path = Path("out") / name
    path.write_bytes(path.read_bytes() + b"x")
    assert [(one.kind, one.file) for one in dsv4_shard.verify("out").problems] == [("damaged-file", name)]
    path.unlink()
    assert [(one.kind, one.file) for one in dsv4_shard.verify("out").problems] == [("lost-file", name)]


# --- what others wrote ---------------------------------------------------------------------------------------------


def sealed(out: Path, **companions: str) -> None:
    """Put files into a result, and make its manifest name them."""
    manifest = json.loads((out / MANIFEST_NAME).read_bytes())
    for name, content in companions.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(content)
        raw = content.encode()
        sha256 = hashlib.sha256(raw).hexdigest()
        manifest["companions"].append({"name": name, "nbytes": len(raw), "sha256": sha256, "digest": digest_of(raw)})
    (out / MANIFEST_NAME).write_bytes(Manifest.model_validate_json(json.dumps(manifest)).sealed().to_bytes())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "sub/model.safetensors", "a" * 201])
def test_merge_takes_no_file_that_reshard_does_not_carry(name: str, model: str) -> None:
    dsv4_shard.reshard(model, "out", tp=2)
    sealed(Path("out"), **{name: "x"})
    with pytest.raises(BadRanks, match="which no result holds"):
        dsv4_shard.merge("out", "again")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", ".x", "a/.x", "a//b", "a\\b", "a\nb", "-x"])
def test_a_manifest_names_no_file_elsewhere(name: str) -> None:
    with pytest.raises(ValueError, match="String should match pattern"):
        dsv4_shard.sharding.manifest.ManifestCompanion(name=name, nbytes=0, sha256=None, digest="")


def test_a_share_joins_a_result_without_a_release_as_that_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_release(documents.checkpoint(tmp_path), {"LICENSE": "MIT", "README.md": "", "encoding/a.py": ""})
    monkeypatch.chdir(tmp_path)
    before = documents.result(1, "share", Path("out"))
    names = load_manifest(before).names
    dsv4_shard.reshard("model", "out", tp=2, engine="reference", ranks=[1])
    assert load_manifest(Path("out")).names == names | {"model1-mp2.safetensors", "provenance.ranks-1.json"}
    assert dsv4_shard.verify("out").notes == ()
    dsv4_shard.reshard("model", "own", tp=2, engine="reference", ranks=[1])
    assert "LICENSE" in load_manifest(Path("own")).names
