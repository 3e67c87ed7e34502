"""Shell text as its commands: what bash and shlex make of the same text; and nothing of the process's own variables."""

import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv4_shard.configurations.shell_text import commands_of
from dsv4_shard.errors import UsageError

WORDS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8), min_size=1, max_size=6)

SCRIPTS = [
    "print a  b\tc",
    "print 'a b' \"c d\" e\\ f g'h'\"i\"",
    "print a \\\n  b # c\nprint d",
    "A=1; B=$A; print $A ${B} x${A}y \"$A\" '$A'",
    "A=2\nexport B=3 C=4\nprint $((A * B)) $((A*B+C)) $(( ${D:-5} * A ))",
    'print ${X:-x y} "${X:-x y}"',
    "A=1 print $A; A=7 true; print b",
    "print '{\"a\": [1,\n 2]}' --x=1",
    'print "a\\"b\\\\c\\$d" && print e || print f',
    "print a#b '#c'",
]


def in_bash(script: str) -> list[list[str]]:
    """The words of each `print` in bash, in an empty environment."""
    text = f"print() {{ printf '%s\\0' \"$@\"; printf '\\1'; }}\n{script}"
    found = subprocess.run(["bash", "--norc", "-c", text], env={}, capture_output=True, check=True).stdout.decode()
    return [call.split("\0")[:-1] for call in found.split("\1")[:-1]]


@pytest.mark.parametrize("script", [script for script in SCRIPTS if not script.startswith(("print ${X", "A=1 print"))])
def test_words_are_those_of_bash(script: str) -> None:
    """All branches count, so that `||` has its command too."""
    ours = [command.words[1:] for command in commands_of(script, {}) if command.words[0] == "print"]
    theirs = in_bash(script.replace(" || print f", "; print f"))
    assert ours == theirs


@given(WORDS)
def test_quoted_words_come_back(words: list[str]) -> None:
    [command] = commands_of(shlex.join(["run", *words]), {})
    assert command.words == ["run", *words]


def test_variables_of_a_command_are_its_own() -> None:
    first, second = commands_of("A=1 run a; run b", {"C": "3"})
    assert first.variables == {"A": "1", "C": "3"}
    assert second.variables == {"C": "3"}


@pytest.mark.parametrize("word", ["$HOME", "${PATH}", "$(id)", "`id`", "$((UNSET * 2))", "~", "*"])
def test_nothing_is_run_or_taken_from_this_process(word: str) -> None:
    [command] = commands_of(f"run {word}", {})
    assert command.words == ["run", word]


@pytest.mark.parametrize("text", [
    "A=xxxxxxxx\n" + "A=$A$A\n" * 100 + "run $A",
    f"A={'x' * 1000}\nrun \"{'$A' * 100_000}\"",
    f"A={'x' * 1000}\nrun{' $A' * 60_000}",
])  # fmt: skip
def test_variables_do_not_let_a_text_grow_without_end(text: str) -> None:
    with pytest.raises(UsageError, match="more than 262,144 characters"):
        list(commands_of(text, {}))


def test_arithmetic_beyond_64_bits_stays_as_it_is_written() -> None:
    product = "$((" + "999999999*" * 600 + "1))"
    [command] = commands_of(f"run {product} $((999999999 * 999999999))", {})
    assert command.words == ["run", product, "999999998000000001"]


@pytest.mark.parametrize("text", ["run 'a", 'x\nrun "a'])
def test_an_open_quote_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(UsageError, match=rf"line {text.count(chr(10)) + 1}: a quote is not closed"):
        list(commands_of(text, {}))
