"""The strict header reader and the exact writer, compared with the safetensors library as the oracle."""

import copy
import json
import math
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from dsv4_shard import errors
from dsv4_shard.errors import (
    BadTensorEntry,
    BadTensorOffsets,
    DuplicateKey,
    GitLfsPointer,
    HeaderError,
    HeaderNotJson,
    HeaderTooLarge,
    NotSafetensors,
    TruncatedFile,
)
from dsv4_shard.limits import HEADER
from dsv4_shard.tensors import header as headers
from dsv4_shard.tensors.header import (
    DTYPE_BITS,
    Header,
    TensorInfo,
    build_header,
    nbytes_of,
    read_header,
)

FILE = "model-00001-of-00002.safetensors"
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 5368709120\n"
)


class Memory:
    """A file in memory that remembers the ranges read from it; it may claim to be larger than it is."""

    def __init__(self, data: Any, nbytes: Any = None) -> None:
        self.data = data
        self.nbytes = len(data) if nbytes is None else nbytes
        self.reads: list[Any] = []

    def read(self, start: Any, stop: Any) -> Header:
        self.reads.append((start, stop))
        assert 0 <= start <= stop <= len(self.data), "read beyond the file"
        return self.data[start:stop]


def blob(header: str | bytes, data: int | bytes = b"", length: int | None = None) -> bytes:
    """A file: the header's length (or a false one), the header, the data (bytes, or how many)."""
    raw = header if isinstance(header, bytes) else header.encode()
    data = bytes(data) if isinstance(data, int) else data
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(dtype: str = "F32", shape: str = "[2]", offsets: str = "[0,8]", more: str = "") -> str:
    more = more and "," + more
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}{more}}}'


def one(
    dtype: str = "F32", shape: str = "[2]", offsets: str = "[0,8]", more: str = "", name: str = "a", metadata: str = ""
) -> str:
    """The header of one tensor."""
    metadata = metadata and f'"__metadata__":{metadata},'
    return f'{{{metadata}"{name}":{entry(dtype, shape, offsets, more)}}}'


def many(*entries: tuple[str, str]) -> str:
    """The header of several tensors, as (name, entry)."""
    return "{" + ",".join(f'"{name}":{text}' for name, text in entries) + "}"


def aligned(header: str) -> str:
    return header + " " * (-len(header.encode()) % 8)


def read(file_bytes: bytes) -> Header:
    return read_header(Memory(file_bytes), FILE)  # type: ignore[arg-type]


def oracle(file_bytes: bytes) -> dict[str, Any] | None:
    """What the library makes of the file, as name → (dtype, shape, data); None where it refuses it."""
    try:
        tensors = safetensors.deserialize(file_bytes)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return None
    return {name: (info["dtype"], tuple(info["shape"]), bytes(info["data"])) for name, info in tensors}


def assert_at_least_as_strict(file_bytes: bytes) -> None:
    """Whatever the library refuses we refuse, and what both accept is the same."""
    theirs = oracle(file_bytes)
    if theirs is None:
        with pytest.raises(HeaderError):
            read(file_bytes)
        return
    try:
        header = read(file_bytes)
    except HeaderError:
        return
    data = file_bytes[header.data_start :]
    assert {n: (i.dtype, i.shape, data[i.start : i.stop]) for n, i in header.tensors.items()} == theirs


# --- what is refused: the class, the file's name, the numbers ------------------------------------------------------

ONE = one()
TWO = many(("a", entry()), ("b", entry(offsets="[8,16]")))

REFUSED = {
    "empty file": (b"", NotSafetensors, ["0 bytes"]),
    "shorter than its length field": (b"\x08\0\0\0\0\0\0", NotSafetensors, ["7 bytes"]),
    "header of no bytes": (bytes(8), NotSafetensors, ["b''"]),
    "header is an array": (blob("[]"), NotSafetensors, ["b'[]'"]),
    "space before the brace": (blob(" " + ONE, 8), NotSafetensors, ["b' {\"a'"]),
    "byte order mark before the brace": (blob("\ufeff" + ONE, 8), NotSafetensors, ["\\xef\\xbb\\xbf"]),
    "Git-LFS pointer": (POINTER, GitLfsPointer, [str(len(POINTER))]),
    "header beyond the file": (blob(ONE, 8, length=200), HeaderTooLarge, ["200", str(len(ONE) + 8)]),
    "header one byte beyond the file": (blob(ONE, length=len(ONE) + 1), HeaderTooLarge, [str(len(ONE) + 1)]),
    "header of 2^63 bytes": (blob(ONE, 8, length=2**63), HeaderTooLarge, [f"{2**63:,}", "33,554,432"]),
    "header of 2^64 - 1 bytes": (blob(ONE, 8, length=2**64 - 1), HeaderTooLarge, [f"{2**64 - 1:,}", "33,554,432"]),
    "header over 100 MB": (blob(ONE, 8, length=100_000_001), HeaderTooLarge, ["100,000,001", "33,554,432"]),
    "not UTF-8": (blob(b'{"a\xff":' + entry().encode() + b"}", 8), HeaderNotJson, ["UTF-8", "byte 3"]),
    "JSON cut short": (blob(ONE[:-1], 8), HeaderNotJson, [f"char {len(ONE) - 1}"]),
    "text after the object": (blob(ONE + "{}", 8), HeaderNotJson, [f"char {len(ONE)}"]),
    "padded with NUL": (blob(ONE + "\0\0", 8), HeaderNotJson, [f"char {len(ONE)}"]),
    "raw control character in a name": (blob(one(name="a\x01"), 8), HeaderNotJson, ["control character"]),
    "NaN": (blob(one(shape="[NaN]"), 8), HeaderNotJson, ["NaN"]),
    "Infinity": (blob(one(more='"x":-Infinity'), 8), HeaderNotJson, ["-Infinity"]),
    "metadata value not a string": (blob(one(metadata='{"x":1}'), 8), HeaderNotJson,
                                    ["__metadata__"]),
    "metadata not an object": (blob(one(metadata='[]'), 8), HeaderNotJson, ["__metadata__"]),
    "lone surrogate in metadata": (blob(one(metadata='{"x":"\\ud800"}'), 8), HeaderNotJson,
                                   ["surrogate"]),
    "lone surrogate in a name": (blob(one(name="\\ud800"), 8), HeaderNotJson, ["surrogate", "\\ud800"]),
    "name twice with the same value": (blob(many(("a", entry()), ("a", entry())), 8), DuplicateKey, ["'a'"]),
    "name twice with different values": (blob(many(("a", entry()), ("a", entry(offsets="[8,16]"))), 16), DuplicateKey,
                                         ["'a'"]),
    "name twice, once escaped": (blob(many(("a", entry()), ("\\u0061", entry())), 8), DuplicateKey, ["'a'"]),
    "field twice": (blob(one(more='"dtype":"F32"'), 8), DuplicateKey, ["'dtype'"]),
    "metadata key twice": (blob(one(metadata='{"k":"1","k":"1"}'), 8), DuplicateKey, ["'k'"]),
    "entry not an object": (blob('{"a":null}', 8), BadTensorEntry, ["'a'", "data_offsets"]),
    "entry as an array": (blob('{"a":["F32",[2],[0,8]]}', 8), BadTensorEntry, ["'a'", "data_offsets"]),
    "field missing": (blob('{"a":{"dtype":"F32","shape":[2]}}', 8), BadTensorEntry, ["'a'", "data_offsets"]),
    "unknown dtype": (blob(one("F128"), 8), BadTensorEntry, ["'a'", "'F128'"]),
    "dtype in lower case": (blob(one("f32"), 8), BadTensorEntry, ["'a'", "'f32'"]),
    "negative size": (blob(one(shape="[-2]"), 8), BadTensorEntry, ["'a'", "[-2]"]),
    "size as a float": (blob(one(shape="[2.0]"), 8), BadTensorEntry, ["'a'", "[2.0]"]),
    "size as a boolean": (blob(one("F32", "[true,2]"), 8), BadTensorEntry, ["'a'", "[True, 2]"]),
    "size over 64 bits": (blob(one(shape=f"[{2**64},0]", offsets="[0,0]")), BadTensorEntry,
                          ["'a'", str(2**64)]),
    "product of sizes overflows": (blob(one(shape="[4294967296,4294967296]"), 8), BadTensorEntry,
                                   ["'a'", "4294967296", "overflows"]),
    "product overflows before a zero": (
        blob(one(shape="[4294967296,4294967296,0]", offsets="[0,0]")), BadTensorEntry,
        ["'a'", "4294967296", "overflows"]),
    "reversed offsets": (blob(one(offsets="[8,0]"), 8), BadTensorEntry, ["'a'", "[8, 0]", "reversed"]),
    "negative offset": (blob(one(offsets="[-8,0]"), 8), BadTensorEntry, ["'a'", "[-8, 0]"]),
    "three offsets": (blob(one(offsets="[0,8,8]"), 8), BadTensorEntry, ["'a'", "[0, 8, 8]"]),
    "offsets that do not fit the shape": (blob(one(offsets="[0,12]"), 12), BadTensorEntry,
                                          ["'a'", "F32 [2]", "8 bytes", "12"]),
    "F4 with an odd number of elements": (blob(one("F4", "[3]", "[0,2]"), 2), BadTensorEntry,
                                          ["'a'", "F4 [3]", "12 bits"]),
    "F4 with one element": (blob(one("F4", "[1]", "[0,0]")), BadTensorEntry, ["'a'", "4 bits"]),
    "overlap": (blob(many(("a", entry()), ("b", entry(offsets="[4,12]"))), 12), BadTensorOffsets,
                ["'b'", "byte 4", "overlaps", "ends at 8"]),
    "two tensors in one place": (blob(many(("a", entry()), ("b", entry())), 8), BadTensorOffsets,
                                 ["'b'", "byte 0", "overlaps", "ends at 8"]),
    "hole": (blob(many(("a", entry()), ("b", entry(offsets="[12,20]"))), 20), BadTensorOffsets,
             ["'b'", "byte 12", "hole", "ends at 8"]),
    "hole before the first tensor": (blob(one(offsets="[4,12]"), 12), BadTensorOffsets,
                                     ["'a'", "byte 4", "hole", "ends at 0"]),
    "empty tensor inside another": (blob(many(("a", entry()), ("z", entry(shape="[0]", offsets="[4,4]"))), 8),
                                    BadTensorOffsets, ["'z'", "byte 4", "ends at 8"]),
    "bytes after the last tensor": (blob(TWO, 19), BadTensorOffsets, ["3 bytes follow", "ends at 16"]),
    "bytes without any tensor": (blob("{}", 5), BadTensorOffsets, ["5 bytes follow", "ends at 0"]),
    "truncated": (blob(TWO, 11), TruncatedFile, ["16 bytes", "holds 11", "5 missing"]),
    "truncated right after the header": (blob(TWO), TruncatedFile, ["16 bytes", "holds 0", "16 missing"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_and_says_what_where_and_how_much(case: str) -> None:
    file_bytes, error, said = REFUSED[case]
    with pytest.raises(error) as caught:
        read(file_bytes)
    assert type(caught.value) is error
    message = str(caught.value)
    assert message.startswith(FILE)
    assert [words for words in said if words not in message] == []


@pytest.mark.parametrize(("name", "bad"), [
    ("b", entry(shape="[2.0]", offsets="[8,16]")),
    ("b", entry(shape="[2,true]", offsets="[8,16]")),
    ("b", entry(shape='"2"', offsets="[8,16]")),
    ("b", entry(shape="2", offsets="[8,16]")),
    ("b", entry(shape="[[2]]", offsets="[8,16]")),
    ("b", entry(offsets="[8.0,16]")),
    ("b", entry(offsets="[8,16.0]")),
    ("b", entry(offsets="[8,16,24]")),
    ("b", entry(offsets="[-8,0]")),
    ("b", entry(offsets="[16,8]")),
    ("b", entry(offsets="[8,20]")),
    ("b", entry(offsets='{"8":16}')),
    ("b", entry(offsets=f"[{2**63 - 4},{2**63 + 4}]")),
    ("b", entry(offsets="[8,16]", more='"x":"\\ud800"')),
    ("b", entry(offsets="[8,16]").replace('"F32"', '["F32"]')),
    ("b", entry(offsets="[8,16]").replace('"dtype"', '"type"')),
    ("\\ud800", entry(offsets="[8,16]")),
])  # fmt: skip
def test_an_entry_is_refused_in_the_same_words_after_a_sound_one_that_is_equal_but_for_it(name: str, bad: str) -> None:
    with pytest.raises(HeaderError) as alone:
        read(blob(many((name, bad)), 16))
    with pytest.raises(HeaderError) as after:
        read(blob(many(("a", entry()), ("one", entry(shape="[2,1]")), (name, bad)), 16))
    assert (type(after.value), str(after.value)) == (type(alone.value), str(alone.value))


def test_every_header_error_has_a_test_and_a_hint() -> None:
    classes = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HeaderError)}
    assert {error for _, error, _ in REFUSED.values()} == classes - {HeaderError}
    assert all(kind.hint and kind.exit_code == 3 for kind in classes)


@pytest.mark.parametrize("length", [HEADER.nbytes + 1, 2**40, 2**63])
def test_header_over_the_limit_is_refused_before_it_is_read(length: int) -> None:
    file = Memory(blob(ONE, 64, length=length), nbytes=2**42)
    with pytest.raises(HeaderTooLarge):
        read_header(file, FILE)  # type: ignore[arg-type]
    assert max(stop for _, stop in file.reads) < 32


def test_header_beyond_the_end_of_the_file_is_refused_before_it_is_read() -> None:
    file = Memory(blob(ONE, 8, length=HEADER.nbytes))
    with pytest.raises(HeaderTooLarge):
        read_header(file, FILE)  # type: ignore[arg-type]
    assert max(stop for _, stop in file.reads) < 32


def test_reads_nothing_but_the_header() -> None:
    file = Memory(blob(TWO), nbytes=len(TWO) + 8 + 16)
    assert list(read_header(file, FILE).tensors) == ["a", "b"]  # type: ignore[arg-type]


# --- what is accepted: as the library does, with a warning where it is odd -----------------------------------------

ACCEPTED = {
    "no tensors": (blob(aligned("{}")), []),
    "two tensors": (blob(aligned(TWO), bytes(range(16))), []),
    "tensors in another order than their bytes": (
        blob(aligned(many(("b", entry(offsets="[8,16]")), ("a", entry()))), bytes(range(16))), []),
    "0-d tensor": (blob(aligned(one(shape="[]", offsets="[0,4]")), 4), []),
    "0-size tensor": (blob(aligned(one(shape="[3,0]", offsets="[0,0]"))), []),
    "0-size tensor between two": (
        blob(aligned(many(("a", entry()), ("z", entry(shape="[0]", offsets="[8,8]")), ("b", entry(offsets="[8,16]")))),
             16), []),
    "F4": (blob(aligned(one("F4", "[3,2]", "[0,3]")), 3), []),
    "metadata": (blob(aligned(one(metadata='{"format":"pt"}')), 8), []),
    "empty name": (blob(aligned(one(name="")), 8), []),
    "name that looks like a path": (blob(aligned(one(name="../../etc/x")), 8), []),
    "control characters in a name": (blob(aligned(one(name="\\u0000\\u001b[31m")), 8), []),
    "escaped pair of surrogates": (blob(aligned(one(name="\\ud83d\\ude00")), 8), []),
    "white space inside": (blob(aligned(ONE.replace(":", " :\n\t ").replace(",", " ,\r\n")), 8), []),
    "padded with a line break": (blob(ONE + "\n", 8), ["padded"]),
    "padded with blanks, then a line break": (blob(ONE + "  \n", 8), ["padded"]),
    "padded with a line break, then blanks": (blob(ONE + "\n  ", 8), ["padded"]),
    "padded with a tab": (blob(ONE + "\t", 8), ["padded"]),
    "metadata null": (blob(aligned(one(metadata='null')), 8), ["empty __metadata__"]),
    "metadata empty": (blob(aligned(one(metadata='{}')), 8), ["empty __metadata__"]),
    "extra field in an entry": (blob(aligned(one(more='"x":[1.5,{}]')), 8), ["unknown fields"]),
    "header not padded to eight bytes": (blob(aligned(ONE) + " ", 8), ["not aligned"]),
    "tensor not aligned to its element": (
        blob(aligned(many(("b", entry("U8", "[1]", "[0,1]")), ("a", entry(offsets="[1,9]")))), 9), ["not aligned"]),
}  # fmt: skip


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepts_what_the_library_accepts_and_warns_of_what_is_odd(case: str) -> None:
    file_bytes, warned = ACCEPTED[case]
    header = read(file_bytes)
    data = file_bytes[header.data_start :]
    ours = {n: (i.dtype, i.shape, data[i.start : i.stop]) for n, i in header.tensors.items()}
    assert ours == oracle(file_bytes)
    for words in warned:
        assert any(words in line and line.startswith(FILE) for line in header.warnings), header.warnings
    assert warned or header.warnings == ()


def test_metadata_null_and_empty_read_as_empty() -> None:
    assert read(ACCEPTED["metadata null"][0]).metadata == read(ACCEPTED["metadata empty"][0]).metadata == {}
    assert read(ACCEPTED["metadata"][0]).metadata == {"format": "pt"}


def test_a_kind_of_warning_is_one_line_with_a_count() -> None:
    entries = [(f"t{i}", entry("U8", "[1]", f"[{i},{i + 1}]", '"x":0')) for i in range(9)]
    (line,) = read(blob(aligned(many(*entries)), 9)).warnings
    assert "'t0'" in line
    assert "8 more" in line


HOSTILE = "\\u001b[2J\\u0007\\u202e"


@pytest.mark.parametrize(
    "file_bytes",
    [
        blob(one("F128", name=HOSTILE), 8),
        blob(one(HOSTILE), 8),
        blob(many((HOSTILE, entry()), (HOSTILE, entry())), 8),
        blob(one(shape="[-1]", name=HOSTILE), 8),
        blob(one(offsets="[4,12]", name=HOSTILE), 12),
        blob(one(more='"x":0', name=HOSTILE), 8),
        blob(" \x1b[2J\x07", 8),
    ],
    ids=["entry", "dtype", "duplicate", "shape", "offsets", "warning", "first bytes"],
)
def test_control_characters_of_a_file_never_reach_the_terminal(file_bytes: bytes) -> None:
    try:
        said = "\n".join(read(file_bytes).warnings)
    except HeaderError as error:
        said = str(error)
    assert said
    assert all(char.isprintable() or char == "\n" for char in said)


def test_knows_every_dtype_of_the_library_in_its_order() -> None:
    with pytest.raises(safetensors.SafetensorError) as caught:
        safetensors.deserialize(blob(one("no such dtype"), 8))  # type: ignore[no-untyped-call]
    listed = str(caught.value).partition("expected one of ")[2].partition(" at line")[0]
    assert [name.strip("`") for name in listed.split(", ")] == list(DTYPE_BITS)


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_element_sizes_are_those_of_the_library(dtype: str) -> None:
    nbytes = DTYPE_BITS[dtype]  # of eight elements
    assert nbytes_of(dtype, [2, 4]) == nbytes
    good = blob(aligned(one(dtype, "[2,4]", f"[0,{nbytes}]")), nbytes)
    assert oracle(good) == {"a": (dtype, (2, 4), bytes(nbytes))}
    assert read(good).tensors == {"a": TensorInfo(dtype, (2, 4), 0, nbytes)}


# --- at least as strict as the library -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*REFUSED, *ACCEPTED])
def test_tables_agree_with_the_library(case: str) -> None:
    assert_at_least_as_strict((REFUSED | ACCEPTED)[case][0])


@pytest.mark.parametrize(
    "value",
    [
        "-0", "01", "+1", "1.", ".5", "0x1", "1e400", "-1e400", "1" + "0" * 400, "1" + "0" * 5000, "1e-400",
        '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83dx"', '["\\ud800"]', '{"\\ud800":0}', '"\\x41"', '"\t"', "'a'",
        "[" * 200 + "]" * 200, '{"x":' * 200 + "0" + "}" * 200, "[" * 120 + "]" * 120, "[" * 100_000 + "]" * 100_000,
        "[1,]", "[,1]", '{"x":1,}', "nan", "None", "True", "// x\n1", "\x0b1", "\u00a01",
    ],
    ids=lambda value: value[:12].encode("unicode_escape").decode() + (f" ({len(value)})" if len(value) > 12 else ""),
)  # fmt: skip
@pytest.mark.parametrize("place", ["unknown field", "shape", "offset", "metadata", "entry"])
def test_a_value_that_the_library_refuses_is_refused_everywhere(value: str, place: str) -> None:
    text = {
        "unknown field": one(more=f'"x":{value}'),
        "shape": one(shape=f"[{value}]", offsets="[0,0]"),
        "offset": one(offsets=f"[{value},8]"),
        "metadata": one(metadata=f'{{"x":{value}}}'),
        "entry": f'{{"a":{value}}}',
    }[place]
    assert_at_least_as_strict(blob(text, 0 if place == "shape" else 8))


class Pairs(list):  # type: ignore[type-arg]
    """A JSON object that may hold a key twice."""


class Raw(str):
    """Text that stands in the JSON as it is."""


def dump(node: Any) -> str:
    if isinstance(node, Raw):
        return str(node)
    if isinstance(node, Pairs):
        return "{" + ",".join(f"{dump(key)}:{dump(value)}" for key, value in node) + "}"
    if isinstance(node, list):
        return "[" + ",".join(map(dump, node)) + "]"
    return json.dumps(node, ensure_ascii=False)


def is_object(node: Any) -> bool:
    return isinstance(node, Pairs)


def places(node: list[int | str | list[int]] | Pairs) -> Iterator[Any]:
    """Every (container, position) in a tree; a pair's position is that of its value."""
    for at, child in enumerate(node):
        value = child[1] if is_object(node) else child
        yield node, at
        if isinstance(value, list):
            yield from places(value)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 3) | st.just(8), max_size=3)
WILD = st.one_of(
    st.integers(-1, 64),
    st.sampled_from([2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63)]),
    st.sampled_from(["F32", "F4", "BF16", "f32", "", "x", "__metadata__", "dtype"]),
    st.sampled_from([[], [0], [0, 8], [2, 4], [0, 8, 8], [[2]], Pairs(), Pairs([("dtype", "F32")])]).map(copy.deepcopy),
    st.sampled_from(
        [
            *("-0", "-0.0", "2.0", "8e0", "1e400", "1" + "0" * 400, "NaN", "-Infinity", "true", "null", "01", "", ","),
            *('"\\ud800"', '"\\ud83d\\ude00"', '"\\udc00\\ud83d"', '"\\u0000"', '"\x07"', "\ufeff1"),
            "[" * 130 + "]" * 130,
        ]
    ).map(Raw),
)


@st.composite
def layouts(draw: DrawFn, dtypes: Any = tuple(DTYPE_BITS)) -> Any:
    """Tensors of a well-formed file: name → (dtype, shape); sub-byte tensors end on a byte."""
    names = draw(st.lists(NAMES, max_size=4, unique=True))
    tensors = {}
    for name in names:
        dtype, shape = draw(st.sampled_from(dtypes)), draw(SHAPES)
        if math.prod(shape) * DTYPE_BITS[dtype] % 8:
            shape = [*shape[:-1], 8]
        tensors[name] = (dtype, tuple(shape))
    return tensors


def tree_of(tensors: dict[str, Any], metadata: dict[str, str] | None) -> tuple[Pairs, int]:
    tree, at = Pairs(), 0
    if metadata is not None:
        tree.append(("__metadata__", Pairs(metadata.items())))
    for name, (dtype, shape) in tensors.items():
        stop = at + nbytes_of(dtype, shape)
        tree.append((name, Pairs([("dtype", dtype), ("shape", list(shape)), ("data_offsets", [at, stop])])))
        at = stop
    return tree, at


@st.composite
def damaged(draw: DrawFn) -> Any:
    """A well-formed file with up to three changes of structure."""
    metadata = draw(st.none() | st.dictionaries(NAMES, NAMES, max_size=2))
    tree, nbytes = tree_of(draw(layouts()), metadata)
    lead, pad = "", draw(st.sampled_from(["", " ", "   "]))
    length_off = 0
    for change in draw(st.lists(st.sampled_from([0, 0, 1, 1, 2, 3, 3, 4, 5, 6, 7, 8]), min_size=1, max_size=3)):
        spots = list(places(tree))
        objects = [tree, *(node[at][1] for node, at in spots if is_object(node) and is_object(node[at][1]))]
        holder = draw(st.sampled_from(objects))
        if change == 0 and spots:
            node, at = draw(st.sampled_from(spots))
            node[at] = (node[at][0], draw(WILD)) if is_object(node) else draw(WILD)
        elif change == 1 and holder:
            key, value = draw(st.sampled_from(holder))
            again = draw(st.just(value).map(copy.deepcopy) | WILD)
            holder.insert(draw(st.integers(0, len(holder))), (key, again))
        elif change == 2 and holder:
            del holder[draw(st.integers(0, len(holder) - 1))]
        elif change == 3:
            key = draw(NAMES | st.sampled_from([Raw('"\\ud800"'), Raw('"\\u0061"'), Raw("1"), "__metadata__"]))
            holder.insert(draw(st.integers(0, len(holder))), (key, draw(WILD)))
        elif change == 4:
            pairs = [v for node in objects for key, v in node if key == "data_offsets" and isinstance(v, list)]
            if pairs:
                pair, by = draw(st.sampled_from(pairs)), draw(st.integers(-3, 3))
                pair[:] = [edge + by if isinstance(edge, int) else edge for edge in pair]
        elif change == 5:
            lead = draw(st.sampled_from([" ", "\n", "\ufeff", "\0"]))
        elif change == 6:
            pad += draw(st.sampled_from(["\n", "\t", "\r", "\0", "\x0b", "\x0c", "\u00a0", "}", "{}"]))
        elif change == 7:
            nbytes = max(nbytes + draw(st.integers(-3, 3)), 0)
        elif change == 8:
            length_off = draw(st.sampled_from([-1, 1, 2, 8, 2**32, 2**63, -10_000]))
        if draw(st.booleans()):
            draw(st.randoms(use_true_random=False)).shuffle(tree)
    raw = (lead + dump(tree) + pad).encode()
    return blob(raw, bytes(i % 251 for i in range(nbytes)), length=max(len(raw) + length_off, 0))


@pytest.mark.slow
@given(damaged())
@settings(max_examples=200)
def test_at_least_as_strict_whatever_happened_to_the_structure(file_bytes: bytes) -> None:
    assert_at_least_as_strict(file_bytes)


SYNTAX = [bytes([byte]) for byte in b'0123456789-+.eE{}[]",:\\ \n\0']


@st.composite
def bitten(draw: DrawFn) -> Any:
    """A well-formed file with bytes overwritten, put in, taken out, or its end cut off."""
    header, placed = build_header(draw(layouts()), draw(st.none() | st.dictionaries(NAMES, NAMES, max_size=1)))
    data = bytearray(header) + bytes(sum(info.nbytes for info in placed.values()))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        new = draw(
            st.binary(max_size=2) | st.sampled_from(list(b'0123456789-+.eE{}[]",:\\ \n\0')).map(lambda b: bytes([b]))
        )
        kind = draw(st.sampled_from(["overwrite", "insert", "delete", "cut"]))
        if kind == "cut":
            del data[at:]
        else:
            data[at : at + {"overwrite": len(new), "insert": 0, "delete": 1}[kind]] = b"" if kind == "delete" else new
    return bytes(data)


@pytest.mark.slow
@given(bitten())
@example(POINTER)
@settings(max_examples=200)
def test_at_least_as_strict_whatever_happened_to_the_bytes(file_bytes: bytes) -> None:
    assert_at_least_as_strict(file_bytes)


# --- the writer ----------------------------------------------------------------------------------------------------

TORCH = {
    "BOOL": torch.bool,
    "F4": torch.float4_e2m1fn_x2,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
F6 = {"F6_E2M3", "F6_E3M2"}
"""Which torch does not have."""


def test_every_dtype_that_torch_has_is_read_as_the_library_reads_it() -> None:
    assert set(TORCH) | F6 == set(DTYPE_BITS)


def tensor_of(dtype: str, shape: tuple[int, ...], data: bytes) -> torch.Tensor:
    """A torch tensor of these bytes; two F4 elements are one element of torch's."""
    if dtype == "F4":
        shape = (*shape[:-1], shape[-1] // 2)
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return flat.view(TORCH[dtype]).reshape(shape)


def even_f4(tensors: Any) -> Any:
    """Torch packs F4 in pairs along the last axis, so it must be even there."""
    return {
        name: (dtype, (*shape[:-1], shape[-1] * 2) if shape else (2,)) if dtype == "F4" else (dtype, shape)
        for name, (dtype, shape) in tensors.items()
    }


@pytest.mark.slow
@given(
    layouts(tuple(TORCH)).map(even_f4),
    st.none() | st.tuples(NAMES, NAMES).map(lambda pair: dict([pair])),
    st.randoms(use_true_random=False),
)
@example({'é"\\\n\u2028': ("F4", (2, 2)), "é": ("F8_E8M0", ()), "z": ("I64", (0, 3))}, {"format": "pt"}, None)
@settings(max_examples=200)
def test_a_file_is_byte_for_byte_that_of_the_library(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, Any],
    metadata: dict[str, str] | None,
    random: Random | None,
) -> None:
    header, placed = build_header(tensors, metadata)
    data = {name: bytes(random.choices((0, 1), k=i.nbytes) if random else i.nbytes) for name, i in placed.items()}
    path = tmp_path_factory.getbasetemp() / "by_the_library.safetensors"
    safetensors.torch.save_file({n: tensor_of(*tensors[n], data[n]) for n in tensors}, path, metadata)  # type: ignore[call-arg]
    assert header + b"".join(data[name] for name in placed) == path.read_bytes()


@pytest.mark.slow
@given(layouts(), st.none() | st.dictionaries(NAMES, NAMES, min_size=1, max_size=3))
@settings(max_examples=200)
def test_what_is_written_reads_back_the_same_aligned_and_without_a_warning(
    tensors: dict[str, Any], metadata: dict[str, str] | None
) -> None:
    header, placed = build_header(tensors, metadata)
    file = Memory(header, nbytes=len(header) + sum(info.nbytes for info in placed.values()))
    back = read_header(file, FILE)  # type: ignore[arg-type]
    assert back.tensors == placed
    assert {name: info[:2] for name, info in placed.items()} == tensors
    assert back.metadata == (metadata or {})
    assert back.data_start == len(header)
    assert len(header) % 8 == 0
    assert back.warnings == ()


@pytest.mark.slow
@given(layouts(), st.sampled_from([8, 64]))
@settings(max_examples=200)
def test_large_tensors_stand_on_pages_and_any_reader_takes_them(tensors: dict[str, Any], page: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(headers, "PAGE_BYTES", page)
        patch.setattr(headers, "LARGE_BYTES", 1)
        header, placed = build_header(tensors, in_pages=True)
    data = bytes(sum(info.nbytes for info in placed.values()))
    assert len(header) % page == 0
    large = [name for name, (dtype, shape) in tensors.items() if (n := nbytes_of(dtype, shape)) and n % page == 0]
    assert list(placed)[: len(large)] == large
    assert all(placed[name].start % page == 0 for name in large)
    read = {name: (found["dtype"], tuple(found["shape"])) for name, found in safetensors.deserialize(header + data)}  # type: ignore[no-untyped-call]
    assert read == tensors


def test_the_order_in_which_tensors_are_given_does_not_matter() -> None:
    tensors = {"b": ("F32", (2,)), "a": ("F32", (2,)), "Z": ("U8", (1,)), "é": ("I64", (1,))}
    assert build_header(tensors)[0] == build_header(dict(reversed(tensors.items())))[0]
    assert list(build_header(tensors)[1]) == ["é", "a", "b", "Z"]


def test_refuses_to_write_a_tensor_that_does_not_end_on_a_byte() -> None:
    with pytest.raises(BadTensorEntry, match=r"F4 \[3, 5\] is 60 bits"):
        build_header({"a": ("F4", (3, 5))})
