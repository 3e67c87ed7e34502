"""The pages: examples are what is printed, generated pages are up to date, schemas fit documents, the site builds."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import doc_examples as docexamples
import jsonschema
import pytest
from doc_examples import LEFT_OUT, ROOT, Differs, examples, pages, renew, skeleton_of, workspace
from support.checkpoints.full_size import FLASH, PRO, inventory_of
from support.checkpoints.other_families import FAMILIES, write_family
from support.command_line import run
from support.deployments import DEPLOYMENTS, requested
from support.schemas import validator
from typer.main import get_command

import dsv4_shard
from docs import generate
from dsv4_shard.cli import app
from dsv4_shard.engines.deployment import Request
from dsv4_shard.planning.choice import choose

pytestmark = pytest.mark.xdist_group("docs")  # one process reads each full-size checkpoint once for all of these

# --- examples ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_is_what_is_printed(page: Path) -> None:
    assert docexamples.renewed_page(page, exactly=True) == page.read_text()


def test_pages_have_examples() -> None:
    assert sum(example.kind == "console" for page in pages() for example in examples(page.read_text())) > 60


@pytest.mark.parametrize(("model", "gpus", "gpu", "engine", "options", "flags"), DEPLOYMENTS)
def test_each_known_deployment_has_its_plan_and_launch_command_on_a_page(
    model: str, gpus: int, gpu: str, engine: str, options: dict[str, Any], flags: list[str]
) -> None:
    inventory = inventory_of(model)[1]
    wanted = choose(inventory, Request(**{"tp": gpus, "engine": engine, "gpu": gpu} | options)).deployment  # type: ignore[arg-type]
    shown = [
        " ".join(example.shown)  # type: ignore[arg-type]
        for page in ("hopper", "blackwell")
        for example in examples((ROOT / "docs" / "deployments" / f"{page}.md").read_text())
        if example.code.startswith(f"dsv4-shard plan {model} --tp ")
        and choose(inventory, requested(example.code)).deployment == wanted
    ]
    assert len(shown) == 1
    assert [flag for flag in flags if flag not in shown[0]] == []


def shell_commands(page: Path) -> list[list[str]]:
    """The commands of dsv4-shard in the ```sh blocks of a page, which are not run."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if "dsv4-shard" in line.partition("#")[0]]
    return [line[line.index("dsv4-shard") + 1 :] for line in words if "dsv4-shard" in line and "install" not in line]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_are_not_run_have_options_that_exist(page: Path) -> None:
    for name, *words in shell_commands(page):
        if name.startswith("-"):  # of dsv4-shard itself
            continue
        command = get_command(app).commands[name]  # type: ignore[attr-defined]
        known = {option for parameter in command.params for option in parameter.opts}
        assert [word for word in words if word.startswith("-") and word.partition("=")[0] not in known | {"-h"}] == []


def test_pages_have_commands_that_are_not_run() -> None:
    assert sum(len(shell_commands(page)) for page in pages()) > 60


PRINTED = ["first", "", "weights: 60.53 GB", "and more", "wrote it in 0.4 s (287.49 MB/s)"]


@pytest.mark.parametrize("shown", [
    ("first", "...", "wrote it in 3.1 s (2.3 GB/s)"),
    ("...", "weights: 60.53 GB", "..."),
    ("...", "", "weights: 60.53 GB", "and more", "", "..."),
    tuple(PRINTED),
])  # fmt: skip
def test_shown_lines_that_are_printed_stay_as_they_are(shown: tuple[str, ...]) -> None:
    assert renew(shown, PRINTED, exactly=True) == [line for line in shown if line or LEFT_OUT not in shown]


@pytest.mark.parametrize("shown", [
    ("first",),  # more is printed, and no `...` says so
    ("weights: 60.53 GB", "..."),  # not the beginning
    ("...", "and more"),  # not the end
    ("first", "...", "weights: 60.5 GB", "..."),
    ("...", "and more", "...", "weights: 60.53 GB", "..."),  # in another order
    (),
])  # fmt: skip
def test_shown_lines_that_are_not_printed_differ(shown: tuple[str, ...]) -> None:
    with pytest.raises(Differs):
        renew(shown, PRINTED, exactly=True)


def test_lines_that_changed_are_renewed_and_what_is_left_out_stays_left_out() -> None:
    shown = ("first", "...", "weights: 59.99 GB", "...")
    assert renew(shown, PRINTED, exactly=False) == ["first", "...", "weights: 60.53 GB", "..."]


def test_a_line_that_nothing_is_like_any_more_has_to_be_edited() -> None:
    with pytest.raises(Differs, match="edit the page"):
        renew(("...", "Nearest layouts that run", "..."), PRINTED, exactly=False)


def test_writing_a_page_renews_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_an_example_that_cannot_be_run_or_held_is_an_error(
    text: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docexamples, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(Differs, match=why):
        docexamples.renewed_page(tmp_path / "page.md", exactly=True)


# --- what is generated ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", generate.generated())
def test_a_generated_page_is_what_the_code_gives(name: str) -> None:
    """`python -m docs.generate` writes them."""
    assert (generate.FOLDER / name).read_text() == generate.generated()[name]


def test_what_a_schema_says_of_its_models_needs_no_code_to_be_understood() -> None:
    said = [json.dumps(schema) for schema in map(generate.schema_of, generate.DOCUMENTS.values())]
    assert [text for text in re.findall(r'"description": "(.*?)"[,}]', " ".join(said))
            if re.search(r"[Ss]ee `|module says", text)] == []  # fmt: skip


def test_schemas_speak_of_values_in_json_not_of_their_names_in_python() -> None:
    said = [json.dumps(schema) for schema in map(generate.schema_of, generate.DOCUMENTS.values())]
    assert [found for text in said for found in re.findall(r"\bNone\b|    [A-Z_]+: ", text)] == []
    verdict = generate.schema_of(generate.DOCUMENTS["plan"])["$defs"]["Verdict"]
    assert [f'    "{value}": ' in verdict["description"] for value in verdict["enum"]] == [True] * 4


def test_every_command_option_and_error_is_on_its_page() -> None:
    commands = (generate.FOLDER / "commands.md").read_text()
    assert re.findall(r"^## (\w+)", commands, re.MULTILINE) == [
        "inspect", "plan", "report", "reshard", "merge", "verify", "sign", "explain", "gpus", "demo"
    ]  # fmt: skip
    for option in ("--gpus", "--shared-experts", "--ranks", "--numerics", "--repo", "-o, --output", "-V, --version"):
        assert f"`{option}" in commands
    errors = (generate.FOLDER / "errors.md").read_text()
    for error in ("GitLfsPointer", "InfeasiblePlan", "ForeignPlan", "NotEnoughDisk", "Throttled"):
        assert f"| `{error}` |" in errors


def test_every_verb_is_on_the_page_of_the_python_api() -> None:
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    documented = re.findall(r"auto(?:function|class):: dsv4_shard\.(\w+)", page)
    assert sorted(documented) == sorted(set(dsv4_shard.__all__) - {"__version__", "errors"})
    rows = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted(set(documented) - {"Progress", "Task"})


# --- schemas -------------------------------------------------------------------------------------------------------


def printed(*arguments: str | Path) -> dict[str, Any]:
    """The JSON that a command prints, whatever its exit code."""
    return json.loads(run(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def result(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two ranks, each in a folder of its own, and of both in one."""
    folder = tmp_path_factory.mktemp("result")
    options = (tiny_checkpoint, "--tp", "2", "--engine", "reference")
    run("plan", *options, "-o", folder / "plan.json")
    run("reshard", options[0], folder / "both", "--plan", folder / "plan.json")
    for rank in "01":
        run("reshard", options[0], folder / rank, "--plan", folder / "plan.json", "--ranks", rank)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [
    (PRO, "--tp", "16", "--gpu", "h20-96"), (PRO, "--tp", "8", "--gpu", "h100"), (FLASH, "--tp", "16"),
    (PRO, "--tp", "8", "--engine", "vllm", "--dp", "2", "--ep", "16"), (PRO, "--tp", "8", "--gpu", "mi355x"),
    (PRO, "--tp", "16", "--engine", "node", "--nodes", "2"), (PRO, "--tp", "8", "--engine", "trtllm", "--dp", "8"),
])  # fmt: skip
def test_plans_are_as_their_schema_says(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with workspace(tmp_path):
        validator("plan").validate(printed("plan", skeleton_of(arguments[0]), *arguments[1:]))


@pytest.mark.slow
def test_the_files_of_a_result_are_as_their_schemas_say(result: Path) -> None:
    for folder in ("both", "0", "1"):
        validator("manifest").validate(json.loads((result / folder / "manifest.json").read_text()))
        validator("plan").validate(json.loads((result / folder / "plan.json").read_text()))
    run("merge", result / "both", result / "merged")
    validator("manifest").validate(json.loads((result / "merged" / "manifest.json").read_text()))


def test_the_manifest_of_linked_files_is_as_its_schema_says(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run("reshard", tiny_checkpoint, tmp_path / "out", "--tp", "2")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert any(file["links"] for file in manifest["files"])
    validator("manifest").validate(manifest)


@pytest.mark.slow
def test_what_verify_prints_is_as_its_schemas_say(result: Path, tiny_checkpoint: Path) -> None:
    validator("verification").validate(printed("verify", result / "both"))
    against = ("--against", tiny_checkpoint, "--numerics")
    document = printed("verify", result / "both", *against)
    assert document["numerics"]["ranks"] == 2
    validator("verification").validate(document)
    validator("together").validate(printed("verify", result / "0", result / "1"))
    validator("together").validate(printed("verify", result / "0", result / "1", *against))


def test_what_verify_prints_of_damage_is_as_its_schema_says(result: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes((result / "0" / "manifest.json").read_bytes())
    document = printed("verify", tmp_path)
    assert document["problems"]
    validator("verification").validate(document)


@pytest.mark.slow
def test_what_reshard_and_merge_print_is_as_their_schemas_say(
    result: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    options = ("reshard", tiny_checkpoint, tmp_path / "out", "--plan", result / "plan.json")
    validator("dry-run").validate(printed(*options, "--dry-run"))
    validator("reshard").validate(printed(*options))
    merging = ("merge", tmp_path / "out", tmp_path / "merged")
    validator("dry-run").validate(printed(*merging, "--dry-run"))
    validator("merge").validate(printed(*merging))


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(PRO, "16", "h20-96"), (PRO, "8", "h100"), (FLASH, "8", "mi355x")])
def test_searches_are_as_their_schema_says(arguments: tuple[str, str, str], tmp_path: Path) -> None:
    model, gpus, gpu = arguments
    options = ("--gpus", gpus, "--gpu", gpu, "--engine", "sglang,vllm")
    with workspace(tmp_path):
        validator("search").validate(printed("plan", skeleton_of(model), *options))


@pytest.mark.slow
def test_inspections_are_as_their_schemas_say(tiny_checkpoint: Path, tmp_path: Path) -> None:
    validator("inspection").validate(printed("inspect", tiny_checkpoint))
    for name, family in FAMILIES.items():
        validator("unknown-inspection").validate(printed("inspect", write_family(tmp_path / name, *family)))


def test_comparisons_are_as_their_schema_says(result: Path, tiny_checkpoint: Path) -> None:
    run("plan", tiny_checkpoint, "--tp", "4", "--gpu", "h200", "-o", result / "other.json")
    for a, b in (("plan", "plan"), ("plan", "other")):
        validator("comparison").validate(printed("plan", "--compare", result / f"{a}.json", result / f"{b}.json"))


@pytest.mark.parametrize("text", [
    "nothing that is known",
    "The input_size of down's weight = 192 is not divisible by weight quantization block_k = 128.",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
])  # fmt: skip
def test_explanations_are_as_their_schema_says(text: str) -> None:
    validator("explanation").validate(printed("explain", text))


@pytest.mark.parametrize("spoil", [
    lambda plan: plan.pop("memory"), lambda plan: plan.update(more=1), lambda plan: plan.update(verdict="yes"),
    lambda plan: plan["modules"][0].update(part_of="neither"), lambda plan: plan["ways"][0]["launch"].pop("commands"),
])  # fmt: skip
def test_what_is_no_plan_is_none_by_the_schema(spoil: Callable[..., Any], result: Path) -> None:
    plan = json.loads((result / "plan.json").read_text())
    spoil(plan)
    with pytest.raises(jsonschema.ValidationError):
        validator("plan").validate(plan)


# --- the site ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    built = subprocess.run([*command, ROOT / "docs", folder], cwd=ROOT, capture_output=True, text=True)
    assert (built.returncode, built.stderr) == (0, "")
    return folder


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_has_every_page(site: Any) -> None:
    for page in pages()[1:]:
        name = page.relative_to(ROOT / "docs").with_suffix(".html")
        assert (site / name).is_file()
    assert list(site.rglob("plan.schema.json"))


class Loads(HTMLParser):
    """What a page makes a browser load by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[Any] = []

    def handle_starttag(self, tag: Any, attrs: Any) -> None:
        self.urls += [value for name, value in attrs if name == "src" or (tag == "link" and name == "href")]


@pytest.mark.slow
def test_nothing_of_the_site_is_loaded_from_elsewhere(site: Any) -> None:
    loaded = 0
    for page in site.rglob("*.html"):
        parser = Loads()
        parser.feed(page.read_text())
        loaded += len(parser.urls)
        assert [url for url in parser.urls if re.match(r"(\w+:)?//", url) and not url.startswith("data:")] == []
    assert loaded
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text())


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link.partition("#")[0]).exists()] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_headings_begin_lines_and_links_by_name_have_a_place(page: Path) -> None:
    """Neither is a warning of the site: both are shown as they stand."""
    prose = re.sub(r"^```.*?^```$|`[^`\n]+`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"^[^#\n].*##+ .*$", prose, re.MULTILINE) == []
    places = re.findall(r"^\[([^\]]+)\]: \S+$", prose, re.MULTILINE)
    assert set(re.findall(r"\]\[([^\]]+)\]", prose)) == set(places)
    assert len(places) == len(set(places))


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 8192
