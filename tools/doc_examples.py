"""Examples of README.md and docs/: run here, and compared with what the pages show, or written into them anew.

A ```console block has commands of dsv4-shard after `$ `, and below each what it prints; a line `...` stands for lines
that are left out. `; echo $?` after a command shows its exit code. A ```python block is run, and what it prints is in
the ```text block that follows, if there is one. The examples of a page run in order in one folder, in which the
checkpoints that they name are: the real ones from skeletons, others from `other_families.py`.

    python tools/doc_examples.py            what differs
    python tools/doc_examples.py --write    put what is printed now into the pages
"""

import argparse
import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher, unified_diff
from pathlib import Path
from typing import Any
from unittest.mock import patch

import search_path  # noqa: F401 - first, for what is imported from the repository
from support.checkpoints.full_size import inventory_of, real_checkpoints_read_once
from support.checkpoints.other_families import FAMILIES, write_family
from support.paths import DATA
from support.paths import ROOT as ROOT
from support.scratch import remove_process_folder
from typer.testing import CliRunner

from dsv4_shard.cli import app

LEFT_OUT = "..."
_COMMAND = "$ "
_EXIT_CODE = "; echo $?"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_VOLATILE = re.compile(r"in \d+\.\d s \([\d.]+ [kMGT]?B/s\)|relative error \d\.\de-\d\d")
"""How long a run took, and what the order of a sum's terms makes of it: kept as the page has them."""

_LIKE = 0.6
"""A line that is no longer printed is taken for the likeliest one that is, if so much of it is the same."""


class Differs(AssertionError):
    """A page shows what is not printed."""


@dataclass(frozen=True, slots=True)
class Example:
    """Code, and what it prints at lines `start:stop` of a page; None where the page does not show that."""

    kind: str
    code: str
    start: int
    stop: int
    shown: tuple[str, ...] | None


def pages() -> list[Path]:
    """README and all of docs/ that is Markdown."""
    return [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts)]


def examples(text: str) -> Iterator[Example]:
    """Examples of a page, with the places of what they show."""
    blocks = [(text[: match.start(2)].count("\n"), match[1], match[2].splitlines(), match.span())
              for match in _FENCE.finditer(text)]  # fmt: skip
    for number, (line, language, body, (_, end)) in enumerate(blocks):
        if language == "python":
            following = blocks[number + 1] if number + 1 < len(blocks) else None
            if following and following[1] == "text" and not text[end : following[3][0]].strip():
                at, shown = following[0], following[2]
                yield Example("python", "\n".join(body), at, at + len(shown), tuple(shown))
            else:
                yield Example("python", "\n".join(body), line, line, None)
        elif language == "console":
            starts = [index for index, row in enumerate(body) if row.startswith(_COMMAND)]
            if not starts or starts[0] != 0:
                raise Differs(f"line {line + 1}: a console block that does not begin with a command")
            for start, stop in zip(starts, [*starts[1:], len(body)], strict=True):
                shown = tuple(body[start + 1 : stop])
                command = body[start].removeprefix(_COMMAND)
                yield Example("console", command, line + start + 1, line + stop, shown)


# --- running -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def workspace(folder: Path) -> Iterator[None]:
    """Run within in `folder`, for a terminal of 80 columns, with full-size checkpoints read once a process."""
    with (
        contextlib.chdir(folder),
        patch.dict(os.environ, _environment(folder)),
        real_checkpoints_read_once(),
    ):
        yield


def _environment(folder: Path) -> dict[str, str]:
    """One thread for torch, which takes twice the time with several where tests run side by side."""
    return {"COLUMNS": "80", "XDG_STATE_HOME": str(folder / ".state"), "OMP_NUM_THREADS": "1"}


def skeleton_of(model: str) -> Path:
    """The folder of a full-size checkpoint, which commands within a `workspace` need not read again."""
    return Path(str(inventory_of(model)[0].source.root)).resolve()


def _put_checkpoints(words: list[str], folder: Path) -> None:
    """The checkpoints that a command names, where it looks for them."""
    for word in words:
        if word in FAMILIES and not (folder / word).exists():
            write_family(folder / word, *FAMILIES[word])
        elif (DATA / word / "config.json").is_file() and not (folder / word).exists():
            (folder / word).symlink_to(skeleton_of(word))


def run(example: Example, names: dict[str, Any]) -> list[str]:
    """What an example prints, in the current folder."""
    if example.kind == "python":
        _put_checkpoints(re.findall(r'"([\w.-]+)"', example.code), Path.cwd())
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(example.code, "example", "exec"), names)
        return _lines(printed.getvalue())
    program, *words = shlex.split(example.code.removesuffix(_EXIT_CODE))
    if program != "dsv4-shard":
        raise Differs(f"$ {example.code}: only commands of dsv4-shard are run")
    _put_checkpoints(words, Path.cwd())
    result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    code = [str(result.exit_code)] if example.code.endswith(_EXIT_CODE) else []
    return [*_lines(result.output), *code]


def _lines(text: str) -> list[str]:
    """Without the blanks with which tables fill up their lines, and blank lines at the end."""
    lines = [line.rstrip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


# --- holding against, and writing ----------------------------------------------------------------------------------


def renew(shown: tuple[str, ...], printed: list[str], *, exactly: bool) -> list[str]:
    """`shown` with the lines that are printed now; `exactly`: raise Differs where a line is not printed as it stands.

    What stands before the first `...` is the beginning of what is printed, what stands after the last one its end.
    """
    parts = _parts(shown)
    renewed: list[str] = []
    position = 0
    for number, part in enumerate(parts):
        first, last = number == 0, number == len(parts) - 1
        if not first:
            renewed.append(LEFT_OUT)
        if not part and not (first and last):
            continue
        if exactly:
            start, stop = _exact(part, printed, position, first, last)
        else:
            start = 0 if first else _likeliest(part[0], printed, position)
            stop = len(printed) if last else _likeliest(part[-1], printed, start) + 1
        kept = dict(zip(map(_steady, part), part, strict=True))
        renewed += [kept.get(_steady(line), line) for line in printed[start:stop]]
        position = stop
    return renewed


def _parts(shown: tuple[str, ...]) -> list[list[str]]:
    """What is shown between `...`, without blank lines beside them."""
    parts: list[list[str]] = [[]]
    for line in shown:
        if line == LEFT_OUT:
            parts.append([])
        elif line.strip() or parts[-1]:
            parts[-1].append(line.rstrip())
    for part in parts:
        while part and not part[-1]:
            part.pop()
    return parts


def _exact(part: list[str], printed: list[str], position: int, first: bool, last: bool) -> tuple[int, int]:
    steady = [_steady(line) for line in printed]
    wanted = [_steady(line) for line in part]
    starts = range(position, len(printed) - len(part) + 1)
    for start in starts:
        stop = start + len(part)
        if steady[start:stop] == wanted and (not first or start == 0) and (not last or stop == len(printed)):
            return start, stop
    raise Differs("\n".join(unified_diff(part, printed[position:], "shown", "printed", lineterm="", n=1)))


def _steady(line: str) -> str:
    return _VOLATILE.sub("…", line)


def _likeliest(line: str, printed: list[str], position: int) -> int:
    """Where `line` is, or the line that it became. Raises Differs where none is like it."""
    matcher = SequenceMatcher(b=line)

    def likeness(index: int) -> float:
        matcher.set_seq1(printed[index])
        return matcher.ratio()

    best = max(range(position, len(printed)), key=likeness, default=None)
    if best is None or likeness(best) < _LIKE:
        raise Differs(f"nothing like this is printed any more, edit the page: {line}")
    return best


def renewed_page(page: Path, *, exactly: bool) -> str:
    """The page with what its examples print now. Raises Differs, where `exactly`, if that is not what it shows."""
    text = page.read_text()
    lines = text.split("\n")
    names: dict[str, Any] = {"__name__": "example"}
    results = []
    with tempfile.TemporaryDirectory() as folder, workspace(Path(folder)):
        for example in examples(text):
            printed = run(example, names)
            try:
                if example.shown is None:
                    if printed:
                        raise Differs("prints something, and no text block follows")
                    continue
                results.append((example, renew(example.shown, printed, exactly=exactly)))
            except Differs as error:
                raise Differs(f"{page.relative_to(ROOT)}: {example.code}\n{error}") from None
    for example, shown in reversed(results):
        blank = [""] if example.shown and not example.shown[-1] else []  # between two commands of a block
        lines[example.start : example.stop] = [*shown, *blank]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the examples of the pages.")
    parser.add_argument("--write", action="store_true", help="put what is printed into the pages")
    parser.add_argument("pages", nargs="*", type=Path, help="default: README.md and docs/")
    asked = parser.parse_args()
    bad = 0
    for page in [path.resolve() for path in asked.pages] or pages():
        try:
            renewed = renewed_page(page, exactly=not asked.write)
        except Differs as error:
            print(error, file=sys.stderr)
            bad += 1
            continue
        if renewed != page.read_text():
            page.write_text(renewed)
            print(page.relative_to(ROOT))
    remove_process_folder()
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
