"""The model card: read by huggingface_hub, the same for every run and share, and deaf to what a checkpoint says."""

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints.release import CARD, RELEASE
from support.checkpoints.small import open_folder, small_config
from support.paths import DATA

from dsv4_shard import limits
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.engines.deployment import Request
from dsv4_shard.planning import Plan
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.sharding.model_card import base_model, license_of, model_card

COMMIT = "0123456789abcdef0123456789abcdef01234567"

REQUESTS = {
    "sglang": Request(tp=2),
    "vllm": Request(tp=2, engine="vllm"),
    "reference": Request(tp=2, engine="reference"),
    "node": Request(tp=4, engine="node", nodes=2),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("card") / "model", small_config() | {"hidden_size": 256}, 5)


def plan_for(model: Path, engine: str = "sglang", label: str = "deepseek-ai/DeepSeek-V4-Pro",
             revision: str | None = COMMIT) -> Plan:  # fmt: skip
    plan = make_plan(*open_folder(model), REQUESTS[engine], label)
    return plan.model_copy(update={"source": plan.source.model_copy(update={"revision": revision})})


def card_of(plan: Plan, source_card: str = CARD, names: tuple[str, ...] = tuple(RELEASE)) -> ModelCard:
    return ModelCard(model_card(plan, source_card.encode(), names, by_node=plan.layout == "node").decode())


def data_of(card: ModelCard) -> dict[str, Any]:
    """The metadata that huggingface_hub reads."""
    return dict(card.data.to_dict())  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("engine", REQUESTS)
def test_huggingface_hub_reads_its_metadata(engine: str, model: Path) -> None:
    card = card_of(plan_for(model, engine))
    assert data_of(card) == {
        "base_model": "deepseek-ai/DeepSeek-V4-Pro",
        "base_model_relation": "quantized",
        "license": "mit",
        "library_name": "dsv4-shard",
        "tags": [engine, f"tp-{REQUESTS[engine].tp}"],
    }
    assert data_of(ModelCard(str(card))) == data_of(card)


@pytest.mark.parametrize("engine", REQUESTS)
def test_it_tells_where_the_files_come_from_and_what_to_do_with_them(engine: str, model: Path) -> None:
    plan = plan_for(model, engine)
    text = card_of(plan).text
    assert plan.reshard
    for said in (COMMIT, plan.source.config_digest, plan.reshard, plan.tool_version, "`LICENSE`", "`README.source.md`",
                 f"dsv4-shard verify . --against deepseek-ai/DeepSeek-V4-Pro@{COMMIT}", "starting an engine",
                 plan.launch.on_every_node[0].replace(str(plan.out), "$SHARDS")):  # fmt: skip
        assert said in text, said
    assert "export SHARDS=" in text
    assert ("pip install dsv4-shard" in text) == (engine == "sglang")
    assert ("`inference/generate.py`" in text) == (engine == "reference")
    assert "no licence file" not in text


def test_changes_from_the_defaults_are_the_plans(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", small_config() | {"moe_intermediate_size": 384}, 5)
    plan = make_plan(*open_folder(model), Request(tp=2), "model")
    assert plan.changes
    text = card_of(plan).text
    for change in plan.changes:
        assert f"- `{' '.join(change.settings)}`, {change}" in text


def test_no_licence_and_no_commit_are_said(model: Path) -> None:
    card = card_of(plan_for(model, revision=None, label="./model"), "", ("tokenizer.json",))
    assert "- Commit: not known\n" in card.text
    assert "The checkpoint has no licence file." in card.text
    assert data_of(card).keys() == {"library_name", "tags"}


@pytest.mark.parametrize(
    ("label", "revision", "found"),
    [
        ("org/name", COMMIT, "org/name"),
        ("org/name@main", COMMIT, "org/name"),
        (f"/home/me/.cache/huggingface/hub/models--org--name/snapshots/{COMMIT}", COMMIT, "org/name"),
        (f"models--org--name--more/snapshots/{COMMIT}/", COMMIT, "org/name--more"),
        (f"snapshots/{COMMIT}", COMMIT, None),
        ("./org/name", COMMIT, None),
        ("org/name", None, None),
        ("/data/name", COMMIT, None),
        ("s3://bucket/name", None, None),
        ("model", None, None),
        ("org/na`me\n", COMMIT, None),
    ],
)
def test_the_base_model_is_a_repository_or_not_named(
    label: str, revision: str | None, found: str | None, model: Path
) -> None:
    assert base_model(plan_for(model, label=label, revision=revision)) == found


# --- what a checkpoint's own card says -----------------------------------------------------------------------------


def test_the_licence_is_that_of_the_checkpoints_card() -> None:
    other = (
        b"\xef\xbb\xbf---\r\nlicense: other # see below\r\nlicense_name: 'deep-1.0'\r\nlicense_link: LICENSE\r\n---\r\n"
    )
    found = {"license": "other", "license_name": "deep-1.0", "license_link": "LICENSE"}
    assert license_of(other, ["LICENSE"]) == found
    assert license_of(other, []) == found | {"license_link": None}
    link = "license_link: https://example.org/a?b=c"
    assert license_of(f"---\nlicense: other\n{link}\n---".encode(), [])["license_link"] == "https://example.org/a?b=c"
    assert license_of(b"---\nlicense:\n- mit\n- apache-2.0\n---\n", [])["license"] == ["mit", "apache-2.0"]
    assert license_of(b"---\nlicense: MIT\n---\n", [])["license"] == "mit"


BOMB = "\n".join(["a0: &a0 {x: y}", *(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 60))])

HOSTILE = {
    "no metadata": "# Model\nlicense: mit\n",
    "not closed": "---\nlicense: mit\n",
    "a list": "---\n- license: mit\n---\n",
    "no YAML": "---\nlicense: [mit\n---\n",
    "code": "---\nlicense: !!python/object/apply:os.system ['touch here']\n---\n",
    "markup": "---\nlicense: <script>alert(1)</script>\n---\n",
    "a line break": '---\nlicense: "mit\\nbase_model: evil/model"\n---\n',
    "too long": f"---\nlicense: {'m' * 70}\n---\n",
    "too deep": f"---\nlicense: {'[' * 5000}\n---\n",
    "merged keys": f"---\n{BOMB}\nlicense: {{<<: *a59}}\n---\n",
    "late": f"---\n# {'x' * limits.CARD.nbytes}\nlicense: mit\n---\n",
    "no text": "---\nlicense: \x00\n---\n",
    "keys of lists": "---\n? [license]\n: mit\n---\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_card_that_is_none_gives_no_licence(name: str, model: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    card = card_of(plan_for(model), HOSTILE[name])
    assert data_of(card).keys() == {"base_model", "base_model_relation", "library_name", "tags"}
    assert list(tmp_path.iterdir()) == []


@given(st.binary(max_size=200))
def test_any_bytes_are_a_card_or_none(raw: bytes) -> None:
    assert license_of(b"---\nlicense: " + raw + b"\n---\n", []).keys() <= {"license", "license_name", "license_link"}


LINK = "https://example.org/) <b>"


@pytest.mark.parametrize("label", ["a`b", "```\n# Owned\n", "<img src=x onerror=alert(1)>", "a|b\x1b[31m", "[a](b)"])
def test_text_from_outside_is_quoted(label: str, model: Path) -> None:
    plan = plan_for(model, label=label, revision=None)
    plan = plan.model_copy(update={"reshard": f"dsv4-shard reshard '{label}' out", "out": label})
    text = card_of(plan, f"---\nlicense: mit\nlicense_link: {LINK}\n---\n", ("LICENSE <b>", *RELEASE)).content
    outside = _outside_code(text)
    assert "Owned" not in outside
    assert "<" not in outside
    assert "onerror" not in outside
    assert "\x1b" not in text
    assert "](" not in outside


def _outside_code(text: str) -> str:
    """A card without its code spans and blocks, by the rules of CommonMark: a fence ends at one as long."""
    kept, block = [], ""
    for line in text.splitlines():
        ticks = line[: len(line) - len(line.lstrip("`"))]
        if block:
            block = "" if line == block else block
        elif len(ticks) >= 3 and "`" not in line[len(ticks) :]:
            block = ticks
        else:
            kept.append(_without_spans(line))
    assert not block
    return "\n".join(kept)


def _without_spans(line: str) -> str:
    pieces = re.split(r"(`+)", line)
    kept, at = "", 0
    while at < len(pieces):
        if at % 2 and pieces[at] in pieces[at + 2 :: 2]:
            at = pieces.index(pieces[at], at + 2)
        else:
            kept += pieces[at]
        at += 1
    return kept


def test_words_of_the_card_do_not_change_unseen(model: Path) -> None:
    """`verify --against` makes the cards of earlier releases again: other words need a card of their own version."""
    plan = plan_for(model, "reference")
    card = model_card(plan, CARD.encode(), RELEASE, by_node=False).decode()
    kept = (DATA / "documents/card.md").read_text()
    assert card.replace(plan.source.config_digest, "DIGEST").replace(plan.tool_version, "VERSION") == kept
