"""JSON as it is stored, sent and read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from session_core.data.strict_json import MAX_DEPTH, from_json, to_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_written_is_read_again(value: Any) -> None:
    found = from_json(to_json(value))
    assert (found, repr(found)) == (value, repr(value))  # repr tells -0.0 from 0.0 and 1 from True


@given(VALUES, st.booleans())
def test_json_is_read_as_the_standard_library_reads_it(value: Any, ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii)
    assert repr(from_json(text.encode())) == repr(json.loads(text))


PIECES = st.sampled_from(
    [*'{}[],:"\\01-.eE+ \n\0é😀', r"\ud83d", r"\ude00", "1e400", "-0", "null", "true", "NaN", '"a"', '{"a":1,"a":']
).map(str.encode) | st.sampled_from([b"\xff", b"\xed\xa0\x80", b"1" * 4301])


@given(st.lists(PIECES, max_size=8).map(b"".join))
@settings(max_examples=1000, deadline=None)
def test_broken_json_is_refused_where_the_standard_library_refuses_it(data: bytes) -> None:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        expected = json.loads(data.decode(), parse_constant=refuse)
        to_json(expected)
    except ValueError:
        with pytest.raises(ValueError):
            from_json(data)
    else:
        assert repr(from_json(data)) == repr(expected)


@pytest.mark.parametrize(
    "data",
    [
        *(b"NaN", b"[Infinity]", b'{"a":{"b":[1e999]}}', b"-1e999", b"1" * 400 + b".5"),
        *(rb'"\ud800"', rb'["\ude00\ud83d"]', b"\xff", b'"\x00"', b"[" * 300 + b"1e999" + b"]" * 300),
        *(b"[1,]", b"", b'{"a":1', b"01"),
    ],
)
def test_what_could_not_be_written_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        from_json(data)


def nested(levels: int, inner: str = "") -> bytes:
    """Lists and objects by turns, of so many levels."""
    pairs = [("[", "]"), ('{"a":', "}")] * levels
    opening, closing = zip(*pairs[:levels], strict=True)
    return ("".join(opening) + (inner or '""') + "".join(reversed(closing))).encode()


@pytest.mark.parametrize("levels", [199, 200, 201, 300, 799, MAX_DEPTH])
def test_json_may_be_nested_as_deep_as_the_bound_says(levels: int) -> None:
    assert to_json(from_json(nested(levels))) == nested(levels)


@pytest.mark.parametrize("levels", [MAX_DEPTH + 11, 1_000, 3_000, 100_000])
def test_json_that_is_nested_deeper_is_refused_by_every_python(levels: int) -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        from_json(nested(levels))


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 3_000, 100_000])
def test_what_is_nested_too_deep_to_be_read_is_not_written(levels: int) -> None:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    with pytest.raises(ValueError, match="nested too deep"):
        to_json(value)
    with pytest.raises(ValueError, match="nested too deep"):
        to_json({"a": value})


def test_what_may_be_written_may_be_read_within_a_session() -> None:
    line = nested(MAX_DEPTH)
    assert from_json(b'{"messages":[{"extra":' + line + b"}]}")["messages"][0]["extra"] == from_json(line)


def test_json_is_read_as_it_is_written() -> None:
    assert from_json(b'{"a":1,"a":2}') == {"a": 2}
    assert from_json(rb'"\ud83d\ude00"') == "\U0001f600"
