"""JSON-RPC messages as MCP servers send them, read as loosely as can be without guessing."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import mcp_types
import pydantic_core

from session_core.data.text import utf8_text

MAX_MESSAGE_BYTES = 8 << 20  # of one message of an MCP server

_decoder = json.JSONDecoder()


def read_messages(text: str) -> list[dict[str, Any]]:
    """The messages of a line, an event or a body, in the form that the protocol has for them.

    Several may stand in one text, or in an array, and rubbish before and behind them. Halves of a character are
    joined or replaced. An answer whose id is missing or none has the id None. What stands in an answer in place of a
    result is its result. Empty where nothing is understood.
    """
    return [read for value in _values(text) if (read := _message(value)) is not None]


def failed_answer(id: int | str | None, message: str) -> dict[str, Any]:
    """An answer in place of one that cannot be given to the caller."""
    return {"jsonrpc": "2.0", "id": id, "error": {"code": mcp_types.INTERNAL_ERROR, "message": message}}


def _values(text: str) -> list[Any]:
    with suppress(ValueError):
        value = pydantic_core.from_json(text)
        return value if isinstance(value, list) else [value]
    found, end = [], 0
    with suppress(ValueError, RecursionError):
        while (start := text.find('{"', end)) >= 0:
            value, end = _decoder.raw_decode(text, start)
            found.append(json.loads(utf8_text(json.dumps(value, ensure_ascii=False))))
    return found


def _message(value: object) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    message: dict[str, Any] = {"jsonrpc": "2.0"}
    id = _id(value.get("id"))
    if isinstance(value.get("method"), str):
        params = value.get("params")
        named = {"id": id} if id is not None else {}
        return (
            message | named | {"method": value["method"]} | ({"params": params} if isinstance(params, dict) else {})
        )
    if not value.keys() & {"id", "result", "error"}:
        return None
    message["id"] = id
    if value.get("error") is not None:
        return message | {"error": _error(value["error"])}
    rest = {key: item for key, item in value.items() if key not in ("jsonrpc", "id", "error")}
    result = rest if "result" not in rest else {} if rest["result"] is None else rest["result"]
    return message | {"result": result if isinstance(result, dict) else {"content": result}}


def _id(value: object) -> int | str | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _error(error: Any) -> dict[str, Any]:
    fields = error if isinstance(error, dict) else {"message": error}
    code, message = fields.get("code"), fields.get("message")
    text = message if message and isinstance(message, str) else json.dumps(error, ensure_ascii=False)
    known = isinstance(code, int) and not isinstance(code, bool)
    return {"code": code if known else mcp_types.INTERNAL_ERROR, "message": text, "data": fields.get("data")}
