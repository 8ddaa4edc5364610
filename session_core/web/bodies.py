"""What comes in: JSON bodies, questions, settings and query values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flask import request

from session_core.data.strict_json import from_json
from session_core.turns.turn_request import TurnRequest
from session_core.web.errors import ApiError
from storage import TITLE_LENGTH

MODEL_NAME_LENGTH = 200  # characters
SYSTEM_PROMPT_BYTES = 64 << 10
KEY = re.compile(r"[\x21-\x7e]{1,255}")


def json_body(*, optional: bool = False) -> dict[str, Any]:
    """The request's JSON object. With `optional`, an empty one where the request has no body."""
    data = request.get_data()
    if not data and optional:
        return {}
    if data and request.mimetype != "application/json":
        raise ApiError("unsupported_media_type")
    try:
        value = from_json(data)
    except (ValueError, RecursionError):
        raise ApiError("invalid_request", "The body is not JSON in UTF-8.") from None
    if not isinstance(value, dict):
        raise ApiError("invalid_request", "The body must be a JSON object.")
    return value


def session_settings(body: Mapping[str, Any]) -> dict[str, str | None]:
    """The settings of a session that a body gives. None removes one. Raises ApiError for one that cannot be set."""
    settings: dict[str, str | None] = {}
    for name, most, what in (
        ("title", TITLE_LENGTH, f"at most {TITLE_LENGTH} characters"),
        ("model", MODEL_NAME_LENGTH, "the name of a model"),
        ("system_prompt", SYSTEM_PROMPT_BYTES, "at most 64 KiB of text"),
    ):
        if name in body:
            value = body[name]
            text = value.strip() if isinstance(value, str) and name != "system_prompt" else value
            if not isinstance(text, str | None):
                raise ApiError("invalid_request", f"{name} must be text, or null.")
            size = len((text or "").encode()) if name == "system_prompt" else len(text or "")
            if size > most or (name == "model" and text == ""):
                raise ApiError("invalid_request", f"{name} must be {what}, or null.")
            settings[name] = (text or None) if name == "title" else text
    return settings


def id_field(body: Mapping[str, Any], name: str, kind: str) -> str:
    """The id of this kind in a field of a body. Raises ApiError where it has another form."""
    value = body.get(name)
    if not isinstance(value, str) or not re.fullmatch(rf"{kind}-[0-9a-z-]{{1,64}}", value):
        raise ApiError("invalid_request", f"{name} must be an id that begins with {kind}-.")
    return value


def parse_turn_request(body: Mapping[str, Any]) -> TurnRequest:
    """What a body of `run` or `run_stream` asks for, with the request's key. Raises ApiError."""
    text, replaces, continues = body.get("message"), body.get("replaces"), body.get("continue", False)
    if not isinstance(continues, bool) or not isinstance(replaces, str | None):
        raise ApiError("invalid_request", "continue must be true or false, and replaces the id of a message.")
    if continues and (text is not None or replaces is not None):
        raise ApiError("invalid_request", 'A body with "continue" has neither message nor replaces.')
    blank = not isinstance(text, str) or not text.strip()
    if blank and not continues and not (text is None and replaces is not None):
        raise ApiError("invalid_request", 'The body must be {"message": "text"}, and the text not blank.')
    model = session_settings({"model": body.get("model")})["model"]
    return TurnRequest(text, replaces, continues=continues, key=idempotency_key(), model=model)


def idempotency_key() -> str | None:
    """The request's Idempotency-Key, None where it has none. Raises ApiError where it has another form."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not KEY.fullmatch(key):
        raise ApiError("invalid_request", "Idempotency-Key must be 1 to 255 visible ASCII characters.")
    return key


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
