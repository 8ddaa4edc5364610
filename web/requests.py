"""What comes in: JSON bodies and query values."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from flask import request

from web.errors import ApiError


def json_body(*, optional: bool = False) -> dict[str, Any]:
    """The request's JSON object. With `optional`, an empty one where the request has no body."""
    data = request.get_data()
    if not data and optional:
        return {}
    if data and request.mimetype != "application/json":
        raise ApiError("unsupported_media_type")
    try:
        value = json.loads(data.decode(), parse_constant=_refuse_constant)
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate can be neither stored nor sent on
    except (ValueError, RecursionError):
        raise ApiError("invalid_request", "The body is not JSON in UTF-8.") from None
    if not isinstance(value, dict):
        raise ApiError("invalid_request", "The body must be a JSON object.")
    return value


def number_argument(name: str, least: int, most: int) -> int | None:
    """A whole number of the query, None where it is not given."""
    text = request.args.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise ApiError("invalid_request", f"{name} must be a whole number from {least} to {most}.")
    return int(text)


def flag_argument(name: str) -> bool:
    """A flag of the query, false where it is not given."""
    text = request.args.get(name, "false")
    if text not in ("true", "false"):
        raise ApiError("invalid_request", f"{name} must be true or false.")
    return text == "true"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
