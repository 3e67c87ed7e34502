"""JSON that nobody vouches for: what is refused before it is parsed, what after, and what it may cost."""

import json
import subprocess
import sys
from typing import Any

import pytest

from dsv4_shard.limits import HEADER, Limit
from dsv4_shard.text.sanitize import clean, short, short_name
from dsv4_shard.text.strict_json import BadJson, DuplicateJsonKey, is_plain, parse_json


@pytest.mark.parametrize("text", ["null", "[]", '{"a": [1, -2.5, true, "\\u00e9"]}', '{"😀": {"": "\\ud83d\\ude00"}}'])
def test_a_document_is_what_the_standard_library_reads(text: str) -> None:
    assert parse_json(text.encode()) == json.loads(text)


REFUSED = {
    "nothing": (b"", "not JSON"),
    "cut short": (b'{"a":', "not JSON"),
    "text after it": (b"{} {}", "Extra data"),
    "not UTF-8": (b'["\xff"]', "byte 2"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "byte 0"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "not JSON"),
    "NaN": (b"[NaN]", "NaN"),
    "infinity": (b"[-Infinity]", "-Infinity"),
    "a float beyond every double": (b"[1e999]", "1e999"),
    "minus zero": (b"[-0]", "-0"),
    "an integer of 5,000 digits": (b"[" + b"9" * 5000 + b"]", "not JSON"),
    "a key twice": (b'{"a": {"k": 1, "k": 1}}', "'k' stands twice"),
    "a key twice, once escaped": (b'{"a": 1, "\\u0061": 2}', "'a' stands twice"),
    "a lone surrogate as a value": (b'["\\ud800"]', "surrogate"),
    "a lone surrogate as a key": (b'{"\\udfff": 1}', "surrogate"),
    "surrogates in the wrong order": (b'["\\udc00\\ud83d"]', "surrogate"),
    "a lone surrogate deep inside": (b'[[{"a": ["x\\uD8FFy"]}]]', "surrogate"),
    "a hundred thousand brackets": (b"[" * 100_000, "nested too deeply"),
    "a hundred thousand objects": (b'{"a":' * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_readers_could_read_otherwise_is_refused_in_words_that_fit_a_terminal(case: str) -> None:
    raw, said = REFUSED[case]
    with pytest.raises(BadJson) as caught:
        parse_json(raw)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
    assert isinstance(caught.value, DuplicateJsonKey) == ("twice" in said)


@pytest.mark.parametrize("depth", [10, 64, 500, 900])
def test_a_lone_surrogate_is_found_however_deep_it_stands(depth: int) -> None:
    with pytest.raises(BadJson):
        parse_json(b"[" * depth + b'"\\ud800"' + b"]" * depth)


def test_values_are_counted_before_they_are_made() -> None:
    assert parse_json(b"[1,2,3]", Limit("", "", nbytes=99, count=4)) == [1, 2, 3]
    with pytest.raises(BadJson, match="up to 5 values, more than the 4 that are read"):
        parse_json(b"[1,2,3,4]", Limit("", "", nbytes=99, count=4))
    with pytest.raises(BadJson, match="more than the 2 "):
        parse_json(b'{"a":{"b":{}}}', Limit("", "", nbytes=99, count=2))


def test_bytes_are_counted_before_they_are_parsed() -> None:
    assert parse_json(b"[1,2]", Limit("", "", nbytes=5, count=9)) == [1, 2]
    with pytest.raises(BadJson, match="6 bytes, too large: at most 5 are read"):
        parse_json(b"[1,2] ", Limit("", "", nbytes=5, count=9))


def test_a_header_of_all_tensors_of_the_largest_model_is_well_within_the_count() -> None:
    """As if V4-Pro came in one file."""
    entry = '"layers.60.ffn.experts.383.w2.weight":{"dtype":"I8","shape":[7168,1536],"data_offsets":[0,1]},'
    assert sum(entry.count(char) for char in ",[{") * 145_116 < HEADER.count


HUNDRED_MEGABYTES = {
    "brackets": "b'[' * n",
    "empty lists": "b'[' + b'[],' * (n // 3)",
    "empty objects": "b'[' + b'{},' * (n // 3)",
    "tiny keys": "b'{' + b'\"key\":1,' * (n // 8)",
    "ones": "b'{\"a\":[' + b'1,' * (n // 2)",
    "one string": "b'{\"a\":\"' + b'x' * n + b'\"}'",
}


@pytest.mark.slow
@pytest.mark.parametrize("case", HUNDRED_MEGABYTES)
def test_a_hundred_megabytes_cost_no_gigabyte(case: str) -> None:
    """Address space is the limit, so that a failure is a MemoryError and not a machine that swaps."""
    code = f"""
import resource
from dsv4_shard.text.strict_json import BadJson, parse_json
n = 100_000_000
raw = {HUNDRED_MEGABYTES[case]}
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (600 << 20),) * 2)
try:
    parse_json(raw)
except BadJson:
    pass
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


@pytest.mark.slow
def test_as_many_values_as_are_read_cost_less_than_half_a_gigabyte() -> None:
    code = f"""
import resource
from dsv4_shard.text.strict_json import parse_json
raw = b'{{' + b','.join(b'"%x":{{}}' % i for i in range({HEADER.count} // 2 - 1)) + b'}}'
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (512 << 20),) * 2)
parse_json(raw)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def nested(depth: Any) -> Any:
    value = 0
    for _ in range(depth):
        value = [value]  # type: ignore[assignment]
    return value


@pytest.mark.parametrize("value", [0, -1, 2**1000, 1.5, "x", None, True, [], {}, nested(64), {"a": nested(63)}])
def test_what_every_reader_takes_is_plain(value: Any) -> None:
    assert is_plain(value)


@pytest.mark.parametrize("value", [10**400, -(10**400), [[10**400]], nested(65), {"a": nested(64)}])
def test_numbers_and_nesting_beyond_that_are_not(
    value: int | list[list[int | list[list[list[list[Any]]]]]] | dict[str, Any],
) -> None:
    assert not is_plain(value)


# --- what messages show --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["\x1b[31m", "a\nb", "\r", "\x00", "\x9b1m", "\u202e", "\u2066", "\ud800", "\x7f", "\u200b", "\U000e0001"]
)
def test_what_could_control_a_terminal_is_escaped(text: str) -> None:
    for shown in (clean(text), short(text), short_name(text), short([text]), short({text: 1})):
        assert shown.isprintable()
        assert "\\" in shown


@pytest.mark.parametrize("text", ["layers.0.attn_norm.weight", "é日本", "[red]x[/red]", "1×32 … 'x'"])
def test_ordinary_text_is_shown_as_it_is(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize("value", ["x" * 10**6, "\x1b" * 10**6, [0] * 10**6, nested(900), {i: i for i in range(10**5)},
                                   10**4000, None], ids=lambda value: type(value).__name__)  # fmt: skip
def test_no_value_makes_a_message_long(value: Any) -> None:
    assert len(short(value)) <= 80
    assert len(short_name(str(value)[:10_000])) <= 200
