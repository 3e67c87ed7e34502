"""What the commands print fits the terminal: its width, its signs, its colours; and pictures show what grids say."""

import io
import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from rich.console import Console
from support.checkpoints.full_size import FLASH, PRO, V3, inventory_of
from support.checkpoints.other_families import FAMILIES, write_family

from dsv4_shard.cli import app
from dsv4_shard.engines.deployment import Request
from dsv4_shard.models.roles import Module
from dsv4_shard.planning.block_grid import BlockGrid
from dsv4_shard.planning.document import Plan
from dsv4_shard.planning.plan_builder import make_plan
from dsv4_shard.terminal.ascii import show_signs
from dsv4_shard.terminal.screens.block_picture import show_broken, show_placed
from dsv4_shard.terminal.screens.plan import show_plan
from dsv4_shard.terminal.screens.plan_details import show_details
from dsv4_shard.terminal.tables import Table
from dsv4_shard.terminal.text import wrap

SAID = "ValueError: Weight output_partition_size = 192 is not divisible by weight quantization block_n = 128."
COMMANDS = {
    "inspect": "inspect model",
    "inspect, unknown": "inspect Kimi-K2-Instruct",
    "plan": "plan model --tp 2",
    "plan, whole": "plan model --tp 4",
    "plan, padded": "plan model --tp 4 --engine vllm",
    "plan, broken": "plan model --tp 4 --shared-experts split",
    "plan, broken elsewhere": "plan model --tp 8",
    "plan --gpus": "plan model --gpus 2",
    "plan --compare": "plan --compare a.json b.json",
    "reshard --dry-run": "reshard model out --tp 2 --dry-run",
    "reshard": "reshard model out-{n} --tp 2",
    "merge": "merge ranks merged-{n}",
    "verify": "verify ranks --against model --numerics",
    "verify, damaged": "verify damaged",
    "explain": f"explain '{SAID}'",
    "explain, not known": "explain nothing",
    "help": "--help",
    "help of plan": "plan --help",
}
_COPIED = re.compile(r"  +(\$ )?([A-Z0-9_]+=\S+|dsv4-shard .*|--?[\w-]+ \S+|\S+|export .*|pip install .*)( \\)?$")
"""Commands to be copied are broken between options alone, and not their comments."""

_RUN = itertools.count(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A folder with what the commands are about, under short names."""
    folder = tmp_path_factory.mktemp("terminal")
    (folder / "model").symlink_to(tiny_checkpoint)
    write_family(folder / "Kimi-K2-Instruct", *FAMILIES["Kimi-K2-Instruct"])
    for arguments in (
        "plan model --tp 2 -o a.json",
        "plan model --tp 2 --engine vllm -o b.json",
        "reshard model ranks --tp 2",
        "reshard model damaged --tp 2",
    ):
        assert shown(folder, arguments)
    damaged = next(folder.glob("damaged/*-part-0.safetensors"))
    with damaged.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    return folder


def shown(folder: Path, arguments: str, encoding: str = "utf-8", **environment: str) -> str:
    """What a command prints on streams of `encoding`, without how long it took and what is free."""
    import shlex

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LC_ALL"):
            patch.delenv(name, raising=False)
        for name, value in ({"XDG_STATE_HOME": os.devnull, "TERM": "xterm-256color"} | environment).items():
            patch.setenv(name, value)
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        for stream in streams:
            show_signs(stream)
        app(shlex.split(arguments.format(n=next(_RUN))), standalone_mode=False)
        streams[0].flush()
        raw = streams[0].buffer.getvalue()
        text = raw.decode("ascii" if environment.get("LC_ALL") == "C" else encoding)
    return re.sub(r"in \d+\.\d+\s+s\s+\([^)]*\)|(merged|out)-\d+|free:\s+\S+\s+.B", "…", text)


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def too_long(text: str, width: int) -> list[str]:
    return [line for line in text.splitlines() if len(line) > width and not _COPIED.match(line)]


# --- commands ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 40])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_fits_the_width_and_says_the_same_in_ascii_and_in_colours(
    command: str, width: int, place: Path
) -> None:
    plain = shown(place, COMMANDS[command], COLUMNS=str(width))
    helps = command.startswith("help")  # which typer makes no narrower than 50 columns
    assert too_long(plain, max(50, width) if helps else width) == []
    assert helps or not any(line.endswith(" ") for line in plain.splitlines())
    assert plain.count("\n") >= 2
    assert "\x1b" not in plain
    coloured = shown(place, COMMANDS[command], "ascii", COLUMNS=str(width), FORCE_COLOR="1")
    assert without_colours(coloured) == plain.translate(str.maketrans("×├─┼┤·✓✗", "x+-++-+x"))
    assert command.startswith(("help", "reshard")) or "\x1b[" in coloured


@pytest.mark.parametrize("command", ["inspect", "plan, broken", "verify, damaged"])
def test_no_color_leaves_no_colour_and_lc_all_c_no_signs(command: str, place: Path) -> None:
    """What is bold or dim stays so: NO_COLOR is about colours."""
    plain = shown(place, COMMANDS[command])
    bare = shown(place, COMMANDS[command], FORCE_COLOR="1", NO_COLOR="1", LC_ALL="C")
    assert "\x1b[1m" in bare
    assert re.findall(r"\x1b\[(?:[0-9]+;)*[349][0-7]", bare) == []
    assert without_colours(bare) == plain.translate(str.maketrans("×├─┼┤·✓✗", "x+-++-+x"))


def test_what_is_foreign_and_has_no_sign_in_ascii_is_escaped(tmp_path: Path) -> None:
    text = shown(tmp_path, "explain 日本 --json", "ascii")
    assert "recognised" in text
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    show_signs(stream)
    stream.write("2×日é\udc80")
    stream.flush()
    assert stream.buffer.getvalue() == rb"2x\u65e5\xe9\udc80"


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [({}, "×"), ({"LC_ALL": "C"}, "x"), ({"LC_ALL": "POSIX"}, "x"), ({"LC_ALL": "C.UTF-8"}, "×"),
     ({"LC_ALL": "C", "PYTHONIOENCODING": "utf-8"}, "×")],
)  # fmt: skip
def test_only_a_locale_without_signs_takes_them_away(
    environment: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LC_ALL", "PYTHONIOENCODING", "PYTHONUTF8"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    show_signs(stream)
    stream.write("×")
    stream.flush()
    assert stream.buffer.getvalue().decode() == wanted


@pytest.mark.slow
@pytest.mark.parametrize(("environment", "width"), [({}, 80), ({"COLUMNS": "40"}, 40), ({"COLUMNS": "120"}, 120)])
def test_into_a_pipe_lines_are_80_wide_whatever_the_window_unless_columns_says_otherwise(
    environment: dict[str, str], width: int, place: Path
) -> None:
    """In a process whose terminal is 132 wide, of which stdout alone is piped."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 132, 0, 0))
    variables = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    piped = subprocess.run([sys.executable, "-m", "dsv4_shard", "plan", "model", "--tp", "4"], cwd=place, stdin=theirs,
                           stdout=subprocess.PIPE, stderr=theirs, env=variables | environment)  # fmt: skip
    os.close(ours)
    os.close(theirs)
    text = piped.stdout.decode()
    longest = max(len(line) for line in text.splitlines() if not _COPIED.match(line))
    assert width - 15 < longest <= width
    assert "\x1b" not in text


# --- tables and paragraphs -----------------------------------------------------------------------------------------

WORDS = st.lists(st.text("abcxyz_.", min_size=1, max_size=15), max_size=6).map(" ".join)


def printed(show: Any, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False, emoji=False)
    show(console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.slow
@given(st.integers(2, 6), st.data(), st.integers(20, 120))
def test_a_table_of_any_width_says_everything_within_it(columns: int, data: DataObject, width: int) -> None:
    names = data.draw(st.lists(st.text("abc", min_size=1, max_size=8), min_size=columns, max_size=columns))
    table = Table(*names, right=data.draw(st.sets(st.integers(1, columns - 1))))
    rows = data.draw(st.lists(st.lists(WORDS, min_size=columns, max_size=columns), min_size=1, max_size=5))
    for row in rows:
        table.add(*row)
    lines = printed(table.show, width)
    assert [line for line in lines if len(line) > width or line != line.rstrip()] == []
    letters = "".join("".join(lines).split())
    for row in rows:
        for cell in row:
            assert all(word in letters for word in cell.split())


@given(st.integers(0, 40))
def test_columns_stay_columns_as_long_as_words_stay_whole(narrower: int) -> None:
    table = Table("module", "placement", "bytes a rank", right=(2,))
    table.add("embedding", "rows over TP, filled up to 128", "115.83 MB")
    lines = printed(table.show, 60 - narrower)
    if 60 - narrower >= len("embedding  rows over TP,  bytes a rank"):
        assert lines[0].split() == ["module", "placement", "bytes", "a", "rank"]
    if 60 - narrower < len("embedding placement bytes a rank"):
        assert lines[0] == "embedding"
        assert "  placement: " in lines[1]


@given(st.text("ab -", max_size=200), st.integers(1, 50))
def test_wrapped_lines_are_no_longer_than_asked_and_lose_nothing(text: str, width: int) -> None:
    lines = wrap(text, width)
    assert all(len(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_a_tensors_name_is_broken_after_a_dot() -> None:
    assert wrap("model.layers.{N}.mlp.gate_proj.weight", 20) == ["model.layers.{N}.", "mlp.gate_proj.weight"]


def test_a_path_is_not_broken_however_long() -> None:
    path = "/a/path/that/is/longer/than/the/terminal"
    assert wrap(f"into {path} and on", 20) == ["into", path, "and on"]


# --- pictures ------------------------------------------------------------------------------------------------------

SPLIT = """
Shared experts: 24 blocks of 128 do not fall into 16
  blocks ├─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┤
  ranks  ├──┼──┼──┼──┼──┼──┼──┼──┼──┼──┼──┼──┼──┼──┼──┼──┤
            ^     ^     ^     ^     ^     ^     ^     ^
  ^ inside a block, and so inside its scale: 8 of 15 cuts
"""
WHOLE = """
Shared experts: 24 blocks of 128, all on each of 16 ranks
  blocks ├─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┤
  if cut ├──┼──┼──┼──┼──┼──┼──┼──┼──┼──┼──┼──┼──┼──┼──┼──┤
            ^     ^     ^     ^     ^     ^     ^     ^
  ^ inside a block, and so inside its scale: 8 of 15 cuts
"""
PADDED = """
Shared experts: 24 blocks of 128 and 8 of zeros, 2 on each of 16 ranks
  blocks ├─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼0┼0┼0┼0┼0┼0┼0┼0┤
  ranks  ├───┼───┼───┼───┼───┼───┼───┼───┼───┼───┼───┼───┼───┼───┼───┼───┤
"""
SUBGROUP = """
Shared experts: 24 blocks of 128 in 8 parts of 3, each on 2 of 16 ranks
  blocks ├─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┤
  parts  ├─────┼─────┼─────┼─────┼─────┼─────┼─────┼─────┤
"""
EDGES = """
Shared experts: 16 blocks of 128, 2 on each of 8 ranks
  blocks ├─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┤
  ranks  ├───┼───┼───┼───┼───┼───┼───┼───┤
"""
TILES = """
Routed experts: 24 tiles of 128 do not fall into 16
  tiles ├─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┤
  ranks ├──┼──┼──┼──┼──┼──┼──┼──┼──┼──┼──┼──┼──┼──┼──┼──┤
           ^     ^     ^     ^     ^     ^     ^     ^
  ^ inside a tile: 8 of 15 cuts
"""
DENSE = """
Dense MLP: 144 blocks of 128 do not fall into 32
  blocks ├─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼ ...
  ranks  ├────────┼────────┼────────┼────────┼────────┼────────┼────────┼─── ...
                  ^                 ^                 ^                 ^
  ^ inside a block, and so inside its scale: 16 of 31 cuts
"""


@pytest.mark.parametrize(
    ("model", "request_", "picture"),
    [
        (PRO, Request(16, shared_experts="split"), SPLIT),
        (PRO, Request(16), WHOLE),
        (PRO, Request(16, engine="vllm"), PADDED),
        (PRO, Request(16, engine="trtllm"), SUBGROUP),
        (PRO, Request(16, runner="flashinfer_mxfp4"), TILES),
        (FLASH, Request(8), EDGES),
        (V3, Request(32), DENSE),
    ],
)
def test_a_plans_picture_also_of_a_plan_that_was_read_from_a_file(model: str, request_: Request, picture: str) -> None:
    plan = make_plan(*inventory_of(model), request_, model)
    for one in (plan, Plan.model_validate_json(plan.to_json())):
        lines = printed(lambda console, one=one: show_whole(console, one), 80)
        assert picture in "\n".join(lines) + "\n"


@pytest.mark.parametrize(("model", "wanted"), [(PRO, {"tp": 1}), (FLASH, {"tp": 16}), (PRO, {"tp": 3}),
                                              (FLASH, {"tp": 8, "engine": "reference"})])  # fmt: skip
def test_no_picture_where_blocks_are_not_the_question(model: str, wanted: dict[str, Any]) -> None:
    """One rank; output groups; not even whole elements; whole, though the blocks would divide."""
    lines = printed(lambda console: show_plan(console, make_plan(*inventory_of(model), Request(**wanted)), ""), 80)
    assert not any("├" in line for line in lines)


@pytest.mark.slow
@given(st.integers(2, 256), st.integers(2, 64), st.data(), st.integers(40, 120))
def test_a_mark_stands_below_a_cut_and_inside_a_block_for_every_cut_that_splits_one(
    block: int, ranks: int, data: DataObject, width: int
) -> None:
    step = data.draw(st.integers(1, 3 * block))
    grid = BlockGrid(Module.ATTENTION, "q_b rows", step * ranks, block, "blocks", "TP", ranks, ranks, "split")
    assume(not grid.fits)
    lines = printed(lambda console: show_broken(console, grid), width)
    assert all(len(line) <= width for line in lines)
    blocks, cuts = (line for line in lines if "├" in line)
    marks = lines[lines.index(cuts) + 1]
    places = [match.start() for match in re.finditer(r"\^", marks)]
    assert all(blocks[at] == "─" and cuts[at] == "┼" for at in places)
    inside = [cut for cut in grid.cuts if cut.splits]
    if blocks.endswith("┤"):
        assert blocks.count("┼") == grid.blocks - 1
        exact = grid.parts * block // math.gcd(grid.size, grid.parts * block) <= 8
        assert len(places) == len(inside) if exact else 1 <= len(places) <= len(inside)


GRIDS = st.tuples(st.integers(1, 4000), st.integers(2, 256), st.integers(2, 64))


@pytest.mark.slow
@given(GRIDS, st.integers(30, 120), st.sampled_from(["whole", "split", "pad"]))
def test_a_picture_is_short_and_narrow(numbers: tuple[int, int, int], width: int, way: str) -> None:
    size, block, ranks = numbers
    parts = 1 if way == "whole" else ranks
    grid = BlockGrid(Module.SHARED, "rows", size, block, "blocks", "TP", ranks, parts, way)  # type: ignore[arg-type]
    lines = printed(lambda console: show_placed(console, grid), width)
    assert len(lines) <= 10
    assert all(len(line) <= width for line in lines)


# --- plans ---------------------------------------------------------------------------------------------------------


def show_whole(console: Console, plan: Plan) -> None:
    """The plan's screen, and its details."""
    show_plan(console, plan, "SGLang")
    show_details(console, plan)


def refused(model: str, request: Request) -> str:
    plan = make_plan(*inventory_of(model), request)
    return "\n".join(printed(lambda console: show_plan(console, plan, "SGLang"), 100))


def test_a_message_of_several_lines_is_quoted_in_one_and_one_gpu_is_not_several() -> None:
    text = refused(PRO, Request(8, ep=3))
    assert "\\n" not in text
    assert "8 != 3 * 1 * 2 (= 6)" in " ".join(text.split())
    assert re.search(r"# 1 GPU, .*\n.* --tp 1$", refused(FLASH, Request(7)))


def test_a_way_out_is_told_once_and_so_is_the_same_arithmetic() -> None:
    assert refused(PRO, Request(12)).count("helps: attention DP: --dp 3") == 1
    assert refused(PRO, Request(7)).count("moe_intermediate_size 3072 / MoE TP 7") == 1
