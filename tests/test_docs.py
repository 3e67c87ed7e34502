"""The pages: what their examples show is what is printed, and what is generated is up to date."""

import re

import docexamples
import pytest
from docexamples import LEFT_OUT, ROOT, Differs, examples, pages, renew

# --- examples ------------------------------------------------------------------------------------------------------


@pytest.mark.xdist_group("docs")  # one process reads the full-size checkpoints once for all pages
@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_is_what_is_printed(page):
    assert docexamples.renewed_page(page, exactly=True) == page.read_text()


def test_pages_have_examples():
    assert sum(example.kind == "console" for page in pages() for example in examples(page.read_text())) > 4


PRINTED = ["first", "", "weights: 60.53 GB", "and more", "wrote it in 0.4 s (287.49 MB/s)"]


@pytest.mark.parametrize("shown", [
    ("first", "...", "wrote it in 3.1 s (2.3 GB/s)"),
    ("...", "weights: 60.53 GB", "..."),
    ("...", "", "weights: 60.53 GB", "and more", "", "..."),
    tuple(PRINTED),
])  # fmt: skip
def test_shown_lines_that_are_printed_stay_as_they_are(shown):
    assert renew(shown, PRINTED, exactly=True) == [line for line in shown if line or LEFT_OUT not in shown]


@pytest.mark.parametrize("shown", [
    ("first",),  # more is printed, and no `...` says so
    ("weights: 60.53 GB", "..."),  # not the beginning
    ("...", "and more"),  # not the end
    ("first", "...", "weights: 60.5 GB", "..."),
    ("...", "and more", "...", "weights: 60.53 GB", "..."),  # in another order
    (),
])  # fmt: skip
def test_shown_lines_that_are_not_printed_differ(shown):
    with pytest.raises(Differs):
        renew(shown, PRINTED, exactly=True)


def test_lines_that_changed_are_renewed_and_what_is_left_out_stays_left_out():
    shown = ("first", "...", "weights: 59.99 GB", "...")
    assert renew(shown, PRINTED, exactly=False) == ["first", "...", "weights: 60.53 GB", "..."]


def test_a_line_that_nothing_is_like_any_more_has_to_be_edited():
    with pytest.raises(Differs, match="edit the page"):
        renew(("...", "Nearest layouts that run", "..."), PRINTED, exactly=False)


def test_writing_a_page_renews_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(docexamples, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "```console\n$ dsv4-shard --version\nold\n\n$ dsv4-shard plan --tp 0; echo $?\n...\n```\n\n"
        "```python\nprint(6 * 7)\n```\n\n```text\n41\n```\n"
    )
    renewed = docexamples.renewed_page(page, exactly=False)
    assert re.search(r"--version\ndsv4-shard [\d.]+\n\n\$ dsv4-shard plan --tp 0; echo \$\?\n\.\.\.\n", renewed)
    assert renewed.endswith("```text\n42\n```\n")
    page.write_text(renewed)
    assert docexamples.renewed_page(page, exactly=True) == renewed


@pytest.mark.parametrize(("text", "why"), [
    ("```console\n$ rm -rf x\n```\n", "only commands of dsv4-shard"),
    ("```console\ndsv4-shard plan\n```\n", "does not begin with a command"),
    ("```python\nprint(1)\n```\n", "no text block follows"),
])  # fmt: skip
def test_an_example_that_cannot_be_run_or_held_is_an_error(text, why, tmp_path, monkeypatch):
    monkeypatch.setattr(docexamples, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(Differs, match=why):
        docexamples.renewed_page(tmp_path / "page.md", exactly=True)
