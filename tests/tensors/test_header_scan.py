"""The fast reading of headers: it gives what the JSON reader gives, or leaves the header to it."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dsv4_shard.errors import HeaderError
from dsv4_shard.tensors import header as headers
from dsv4_shard.tensors.header import DTYPE_BITS, LENGTH_BYTES, build_header, parse_header
from dsv4_shard.tensors.header_scan import scan

DTYPES = sorted(dtype for dtype, bits in DTYPE_BITS.items() if bits >= 8)
NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'), min_size=1, max_size=12)
SHAPES = st.lists(st.integers(0, 70), max_size=3).map(tuple)
TENSORS = st.dictionaries(NAMES.filter(lambda name: name != "__metadata__"), st.tuples(st.sampled_from(DTYPES), SHAPES),
                          min_size=1, max_size=6)  # fmt: skip
METADATA = st.none() | st.dictionaries(NAMES, st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8),
                                       min_size=1, max_size=3)  # fmt: skip


def written(tensors: Any, metadata: dict[str, str] | None = None) -> tuple[bytes, int]:
    """The JSON part of a header as the writer has it, and the size of its file."""
    raw, placed = build_header(tensors, metadata)
    return raw[LENGTH_BYTES:], len(raw) + max(info.stop for info in placed.values())


def by_json(raw: bytes, nbytes: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the JSON reader alone gives, or the error that it raises."""
    with monkeypatch.context() as patch:
        patch.setattr(headers, "scan", lambda *_: None)
        return outcome(raw, nbytes)


def outcome(raw: bytes, nbytes: int) -> Any:
    try:
        return parse_header(raw, nbytes, "f")
    except HeaderError as error:
        return type(error), str(error)


@given(TENSORS, METADATA)
def test_what_the_writer_writes_is_read_as_json_reads_it(tensors: Any, metadata: dict[str, str] | None) -> None:
    raw, nbytes = written(tensors, metadata)
    found = scan(raw, DTYPE_BITS)
    with pytest.MonkeyPatch.context() as monkeypatch:
        slow = by_json(raw, nbytes, monkeypatch)
    assert parse_header(raw, nbytes, "f") == slow
    if found is not None:
        assert found[0] == {name: tuple(info) for name, info in slow.tensors.items()}
        assert found[1] == slow.metadata
    else:
        assert any(char in json.dumps(metadata) for char in "\\")


def test_a_header_of_the_writer_is_read_fast() -> None:
    raw, _ = written({"a": ("F32", (2, 3)), "b": ("BF16", ()), "c": ("F8_E8M0", (0, 4))}, {"format": "pt"})
    found = scan(raw, DTYPE_BITS)
    assert found is not None
    assert list(found[0].values()) == [("F32", (2, 3), 0, 24), ("BF16", (), 24, 26), ("F8_E8M0", (0, 4), 26, 26)]
    assert found[1] == {"format": "pt"}


BASE, SIZE = written({"a": ("F32", (2, 3)), "bb": ("BF16", (4,)), "c.d": ("I64", (1, 1))}, {"format": "pt"})
PIECES = [b'"', b"{", b"}", b",", b":", b"[", b"]", b" ", b"\n", b"0", b"-0", b"1.0", b"1e3", b"true", b"null", b"\\",
          b"\xff", b'"a":', b'"__metadata__":', b"01", b"\xc3\xa9", b'"dtype":"F32",', b"\x00"]  # fmt: skip


@given(st.integers(0, len(BASE)), st.integers(0, 3), st.lists(st.sampled_from(PIECES), max_size=3).map(b"".join))
@example(1, 0, b'"z":{"dtype":"F32","shape":[],"data_offsets":[0,0]},')
@example(0, 0, b" ")
@example(len(BASE.rstrip()), 0, b"\n")
@example(len(BASE.rstrip()) - 1, 0, b',"a":{"dtype":"F32","shape":[0],"data_offsets":[48,48]}')
@example(len(BASE.rstrip()) - 1, 0, b',"__metadata__":{"dtype":"F32","shape":[0],"data_offsets":[48,48]}')
def test_whatever_is_damaged_is_read_or_refused_as_json_does(at: int, dropped: int, put: bytes) -> None:
    raw = BASE[:at] + put + BASE[at + dropped :]
    with pytest.MonkeyPatch.context() as monkeypatch:
        slow = by_json(raw, SIZE + len(raw) - len(BASE), monkeypatch)
    assert outcome(raw, SIZE + len(raw) - len(BASE)) == slow


@pytest.mark.parametrize(
    "entry",
    [
        '{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,0]}',
        '{"dtype":"F32","shape":[3037000500,3037000500,0],"data_offsets":[0,0]}',
        '{"dtype":"F32","shape":[1],"data_offsets":[4,0]}',
        '{"dtype":"F4","shape":[1],"data_offsets":[0,0]}',
        '{"dtype":"X9","shape":[1],"data_offsets":[0,4]}',
        '{"dtype":"F32","shape":[01],"data_offsets":[0,4]}',
        '{"dtype":"F32","shape":[1,],"data_offsets":[0,4]}',
        '{"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":1}',
        '{"shape":[1],"dtype":"F32","data_offsets":[0,4]}',
    ],
)
def test_what_breaks_a_rule_or_the_form_is_left_to_json(entry: str) -> None:
    assert scan(f'{{"a":{entry}}}'.encode(), DTYPE_BITS) is None
