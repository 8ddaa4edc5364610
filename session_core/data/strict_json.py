"""JSON in UTF-8, as it is stored, sent and read: without NaN and without lone surrogates."""

from __future__ import annotations

import json
import math
from itertools import chain
from typing import Any

import pydantic_core

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def to_json(value: Any) -> bytes:
    """JSON on one line, characters as themselves. Raises ValueError for NaN and for lone surrogates."""
    return _encode(value).encode()


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError("a number in it is not finite")
    return value


JSON_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def from_json(data: bytes) -> Any:
    """What JSON in UTF-8 stands for. Raises ValueError for what `to_json` refuses."""
    try:
        value = pydantic_core.from_json(data, allow_inf_nan=False, cache_strings="keys")  # in half the time
    except ValueError:  # broken, with lone surrogates, or nested more than 200 levels deep
        value = JSON_DECODER.decode(data.decode())
        to_json(value)  # escapes can hide lone surrogates
        return value
    _check_finite(value)
    return value


def _check_finite(value: Any) -> None:
    """Raises ValueError for a number that is too large for a float, such as 1e999."""
    level = [value]
    while level:
        if not all(map(math.isfinite, (item for item in level if type(item) is float))):
            raise ValueError("a number in it is not finite")
        level = [item for item in level if type(item) in (dict, list)]
        items = chain.from_iterable(item.values() if type(item) is dict else item for item in level)
        level = [item for item in items if type(item) is not str]
