"""Names and quotes in commands, compared with a shell's own reading."""

import shlex

from hypothesis import given
from hypothesis import strategies as st

from dsv4_shard.text.shell import replace_unquoted, shell_word, unquoted

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["$NODE0", "a $NODE0 b", "it's $NODE0", "\"$NODE0\"", "-$NODE0"]
)  # fmt: skip


@given(NAMES)
def test_what_is_in_quotes_is_not_replaced(name: str) -> None:
    command = f"serve {shell_word(name)} --at $NODE0:80"
    _, word, _, address = shlex.split(replace_unquoted(command, "$NODE0", "$PREFILL0"))
    assert word == (f"./{name}" if name.startswith("-") else name)
    assert address == "$PREFILL0:80"


@given(NAMES)
def test_without_quotes_only_the_commands_own_variables_are_left(name: str) -> None:
    assert unquoted(f"serve {shell_word(name)} --at $NODE0").count("$") == 1
