"""JSON in UTF-8, as it is stored, sent and read: without NaN and without lone surrogates."""

import json
import math
from collections.abc import Iterator
from typing import Any

import pydantic_core

MAX_DEPTH = 800  # levels of lists and objects; below what each version of Python can encode and decode on any stack
_READ_DEPTH = MAX_DEPTH + 10  # what is written may stand some levels deep in a file or an answer
_TOO_DEEP = "it is nested too deep"
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def to_json(value: Any) -> bytes:
    """JSON on one line, characters as themselves. Raises ValueError for NaN, for lone surrogates, and for more than
    `MAX_DEPTH` levels."""
    try:
        text = _encode(value)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise ValueError(_TOO_DEEP)
    return text.encode()


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError("a number in it is not finite")
    return value


JSON_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def from_json(data: bytes) -> Any:
    """What JSON in UTF-8 stands for. Raises ValueError for what `to_json` refuses, but for some levels more."""
    try:
        value = pydantic_core.from_json(data, allow_inf_nan=False, cache_strings="keys")  # in half the time
    except ValueError:  # broken, with lone surrogates, or nested more than 200 levels deep
        return _from_odd_json(data)
    for level in _levels(value):
        if float in map(type, level) and not all(math.isfinite(item) for item in level if type(item) is float):
            raise ValueError("a number in it is not finite")  # too large for a float, such as 1e999
    return value


def _from_odd_json(data: bytes) -> Any:
    try:
        value = JSON_DECODER.decode(data.decode())
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if _depth(value) > _READ_DEPTH:
        raise ValueError(_TOO_DEEP)
    _encode(value).encode()  # escapes can hide lone surrogates
    return value


def _depth(value: Any) -> int:
    """How many levels of lists and objects a value has; 0 for one that is neither."""
    return sum(any(type(item) in (dict, list) for item in level) for level in _levels(value))


def _levels(value: Any) -> Iterator[list[Any]]:
    """The items of a value, level by level: itself, then what stands in it, and so on. Strings are left out."""
    level = [value]
    while level:
        yield level
        inner = (item.values() if type(item) is dict else item for item in level if type(item) in (dict, list))
        level = [item for items in inner for item in items if type(item) is not str]
