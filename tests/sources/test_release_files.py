"""Which files travel with the weights: each rule and each limit, and one step beyond."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints.release import RELEASE, STAYS, add_release

from dsv4_shard.errors import ReadFailed, SourceChanged
from dsv4_shard.limits import COMPANION, TREE
from dsv4_shard.sharding.manifest import ManifestCompanion
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.sources.release_files import is_legal, is_license, read_release, release_of, travelling

MIB = 1 << 20


def test_the_release_of_v4_travels_and_what_is_not_part_of_it_stays(tmp_path: Path) -> None:
    source = LocalSource(add_release(tmp_path, RELEASE | dict.fromkeys(STAYS, "x")), "model")
    found = release_of(source)
    assert found.sizes.keys() == RELEASE.keys()
    assert {name.rstrip("/") for name in found.left_behind} == {name.rstrip("/") for name in STAYS.values()}
    assert {name: content.decode() for name, content in read_release(source, found.sizes).items()} == RELEASE


def test_config_index_and_weights_of_the_checkpoint_are_not_spoken_of() -> None:
    names = ("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "LICENSE")
    assert travelling(dict.fromkeys(names, 1)) == ({"LICENSE": 1}, {})


LIMITS = {
    "bytes of a file": ({"a": COMPANION.nbytes}, {"a": COMPANION.nbytes + 1}),
    "bytes in all": ({"a": 32 * MIB, "b": 32 * MIB}, {"a": 32 * MIB, "b": 32 * MIB, "c": 1}),
    "files": ({f"f{n}": 0 for n in range(1_000)}, {f"f{n}": 0 for n in range(1_001)}),
    "folders": ({"/".join("abcdefghi"): 1}, {"/".join("abcdefghij"): 1}),
    "name": ({"n" * 200: 1}, {"n" * 201: 1}),
    "bytes of a name": ({"é" * 100: 1}, {"é" * 100 + "e": 1}),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_each_limit_holds_and_one_step_beyond_is_named(limit: str) -> None:
    within, beyond = LIMITS[limit]
    assert travelling(within) == (within, {})
    assert len(travelling(beyond).left_behind) == 1


def test_limits_are_used_up_by_the_licence_first_and_by_large_files_last() -> None:
    large = {f"a{n}": 40 * MIB for n in range(3)}
    small = {"z/LICENSE": 1, "README.md": 2, "encoding/a.py": 3, "tokenizer.json": 16 * MIB}
    assert list(travelling(large | small).sizes) == ["README.md", "z/LICENSE", "tokenizer.json", "encoding/a.py", "a0"]


@pytest.mark.parametrize("name", ["../up", "a/../b", "/etc/passwd", "a//b", "C:\\x", "a\x1b[31m", "a\u202eb", "a/.b",
                                  "a\nb", "trailing ", " leading", "-x", "a/-x", ""])  # fmt: skip
def test_no_name_leads_elsewhere_or_hides(name: str) -> None:
    found = travelling({name: 1})
    assert found.sizes == {}
    assert all(text.isprintable() for text in found.left_behind)


def test_a_file_and_a_folder_of_one_name_do_not_both_travel() -> None:
    """As an object store may list them."""
    assert travelling({"a": 1, "a/b": 1}) == ({"a": 1}, {"a/b": "in a folder that is also a file"})


def test_a_result_of_reshard_within_the_checkpoint_stays_behind() -> None:
    tree = {"out/manifest.json": 1, "out/source.zip": 1, "out/LICENSE": 1, "out/node-0/config.json": 1}
    assert travelling(tree) == ({}, {"out/": "another checkpoint"})


@given(st.dictionaries(st.lists(st.text(max_size=6), min_size=1, max_size=4).map("/".join), st.integers(0, 1 << 27)))
def test_a_name_that_travels_is_one_that_manifests_take(tree: dict[str, int]) -> None:
    for name in travelling(tree).sizes:
        assert ManifestCompanion(name=f"node-4095/{name}", nbytes=0, sha256=None, digest="").name.endswith(name)


@pytest.mark.parametrize("name", ["LICENSE", "LICENSE.md", "License-MODEL", "LICENCE.txt", "COPYING"])
def test_licences_are_known_by_their_names(name: str) -> None:
    assert is_license(name)
    assert is_legal(name)
    assert not is_license(f"inference/{name}")


def test_legal_files_are_more_than_licences() -> None:
    assert all(map(is_legal, ("NOTICE", "Notice.txt", "README.md", "THIRD_PARTY_NOTICES", "encoding/LICENSE")))
    assert not any(map(is_legal, ("tokenizer.json", "config.json")))


# --- folders -------------------------------------------------------------------------------------------------------


def test_links_pipes_and_closed_folders_are_named_and_not_followed(tmp_path: Path) -> None:
    outside = add_release(tmp_path / "outside", {"secret.txt": "x"})
    model = add_release(tmp_path / "model", {"LICENSE": "x", "encoding/a.py": "x"})
    (model / "linked").symlink_to(outside)
    (model / "self").symlink_to("self")
    (model / "gone").symlink_to("nowhere")
    (model / "inner.txt").symlink_to("encoding/a.py")
    os.mkfifo(model / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(model / "socket"))
        found = release_of(LocalSource(model, "model"))
    assert found.sizes == {"LICENSE": 1, "encoding/a.py": 1, "inner.txt": 1}
    assert found.left_behind.keys() == {"linked", "self", "gone", "pipe", "socket"}


def test_a_tree_without_end_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4_shard.sources.local.TREE", replace(TREE, count=20))
    model = add_release(tmp_path, {f"{folder}/{n}": "" for folder in "ab" for n in range(15)} | {"z" * 9: ""})
    found = release_of(LocalSource(model, "model"))
    assert found.left_behind == {"b/": "beyond 20 files in folders"}
    assert len(found.sizes) == 16


def test_folders_too_deep_are_named_and_not_looked_at(tmp_path: Path) -> None:
    model = add_release(tmp_path, {"/".join("abcdefghi"): "", "/".join("abcdefghkl"): ""})
    found = release_of(LocalSource(model, "model"))
    assert found == ({"a/b/c/d/e/f/g/h/i": 0}, {"a/b/c/d/e/f/g/h/k": "deeper than 8 folders"})


def test_a_folder_that_is_gone_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ReadFailed, match="model: No such file or directory"):
        LocalSource(tmp_path / "model", "model").tree()


def test_a_file_that_grows_after_it_was_listed_is_not_read(tmp_path: Path) -> None:
    source = LocalSource(add_release(tmp_path, {"LICENSE": "MIT"}), "model")
    with pytest.raises(SourceChanged, match="model/LICENSE: 2 bytes when listed, 3 now"):
        read_release(source, {"LICENSE": 2})
