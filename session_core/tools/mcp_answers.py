"""What MCP servers answer, read as loosely as can be without guessing."""

import binascii
import json
import re
from contextlib import suppress
from typing import Any

import mcp_types
import pydantic_core

from session_core.data.file_kinds import PICTURES, detect_kind
from session_core.data.text import as_object, utf8_text

MAX_MESSAGE_BYTES = 8 << 20  # of one message of an MCP server

_RESULT_FIELDS = {"content", "structuredContent", "isError", "_meta", "resultType"}
_FILES = {
    "iVBORw0KGg": "image/png",
    "/9j/": "image/jpeg",
    "R0lGOD": "image/gif",
    "UklGR": "image/webp",
    "JVBERi0": "application/pdf",
    "UEsDB": "application/zip",
    "SUQz": "audio/mpeg",
    "T2dnUw": "audio/ogg",
}  # by what base64 of such a file begins with
_LONG_BASE64 = 1024  # characters, above which it is no id, cursor or hash any more
_DATA_URL = re.compile(r"data:([\w.+/-]{0,99})(?:;[\w.+/=-]{1,99}){0,5};base64,([A-Za-z0-9+/\\_-]*={0,2})")
# One long word, or lines of one length as in a mail. JSON inside a text may write `\/` and `\n` there.
_BASE64 = re.compile(
    r"[A-Za-z0-9+/\\_-]{40,}(?:\r?\n[A-Za-z0-9+/\\_-]{40,})*(?:\r?\n[A-Za-z0-9+/\\_-]{1,76}(?![^\s=]))?={0,2}"
)


def read_messages(text: str) -> list[dict[str, Any]]:
    """The JSON-RPC messages of a line, an event or a body, in the form that the protocol has for them.

    Several may stand in one text, or in an array, and rubbish before and behind them. Halves of a character are
    joined or replaced. An answer without an id that can be one has the id None. What stands in an answer in place of
    a result is its result. Empty where nothing is understood.
    """
    return [message for value in _values(text) if (message := _message(as_object(value)))]


def failed_answer(id: object, message: str) -> dict[str, Any]:
    """An answer in place of one that cannot be read."""
    return {"jsonrpc": "2.0", "id": id, "error": {"code": mcp_types.INTERNAL_ERROR, "message": message}}


def _values(text: str) -> list[Any]:
    with suppress(ValueError):
        value = pydantic_core.from_json(text)
        return value if isinstance(value, list) else [value]
    found, end = [], 0
    with suppress(ValueError, RecursionError):
        while (start := text.find('{"', end)) >= 0:
            value, end = json.JSONDecoder().raw_decode(text, start)
            found.append(json.loads(utf8_text(json.dumps(value, ensure_ascii=False))))
    return found


def _message(given: dict[str, Any]) -> dict[str, Any]:
    id = given.get("id")
    known = {"id": id} if isinstance(id, int | str) and not isinstance(id, bool) else {}
    if isinstance(given.get("method"), str):
        params = {"params": given["params"]} if isinstance(given.get("params"), dict) else {}
        return {"jsonrpc": "2.0", **known, "method": given["method"], **params}
    if "jsonrpc" not in given and not ("id" in given and given.keys() & {"result", "error"}):
        return {}
    if given.get("error") is not None:
        return {"jsonrpc": "2.0", "id": None, **known, "error": _error(given["error"])}
    rest = {key: value for key, value in given.items() if key not in ("jsonrpc", "id", "error")}
    result = {} if rest.get("result", rest) is None else rest.get("result", rest)
    return {
        "jsonrpc": "2.0",
        "id": None,
        **known,
        "result": result if isinstance(result, dict) else {"content": result},
    }


def _error(error: Any) -> dict[str, Any]:
    fields = as_object(error)
    code, message = fields.get("code"), fields.get("message", error)
    return {
        "code": code if isinstance(code, int) and not isinstance(code, bool) else mcp_types.INTERNAL_ERROR,
        "message": message if message and isinstance(message, str) else json.dumps(error, ensure_ascii=False),
        "data": fields.get("data"),
    }


def read_result(raw: dict[str, Any]) -> dict[str, Any]:
    """The result of a call with parts that the SDK takes: text, pictures and sound, whatever the server sent.

    Structured content is text, as JSON, where there is no text. All that is not understood is named by type and size.
    """
    content = raw.get("content")
    given = content if isinstance(content, list) else [] if content is None else [content]
    parts = [_part(part) for part in given]
    rest = {key: value for key, value in raw.items() if key not in _RESULT_FIELDS} if content is None else {}
    structured = raw.get("structuredContent") if raw.get("structuredContent") is not None else rest or None
    if structured is not None and all(_said(part) is None for part in given):
        parts.insert(0, {"type": "text", "text": _json(_without_files(structured))})
    return {"content": parts, "isError": raw.get("isError") in (True, "true"), "resultType": "complete"}


def _part(part: Any) -> dict[str, Any]:
    text, inner = _said(part), _inner(part)
    media_type = str(inner.get("mimeType") or "unknown type")
    kind = next(
        (kind for kind in ("image", "audio") if as_object(part).get("type") == kind), media_type.split("/")[0]
    )
    if text is None and isinstance(data := inner.get("data", inner.get("blob")), str) and kind in ("image", "audio"):
        return {"type": kind, "data": data, "mimeType": media_type}
    return {"type": "text", "text": _name(part) if text is None else text}


def _said(part: Any) -> str | None:
    text = part if isinstance(part, str) else _inner(part).get("text")
    return text if isinstance(text, str) else None


def _inner(part: Any) -> dict[str, Any]:
    """A part, or the resource that stands in it."""
    return as_object(as_object(part).get("resource")) or as_object(part)


def _name(part: Any) -> str:
    """A part by its type and size."""
    inner, kind = _inner(part), str(as_object(part).get("type") or "data")
    data = inner.get("data", inner.get("blob"))
    size = _size(data) if isinstance(data, str) else inner.get("size", len(_json(part).encode()))
    where = f" {inner['uri']}" if inner.get("uri") else ""
    kind = "link to" if kind == "resource_link" else kind
    return f"[{kind}{where}, {inner.get('mimeType') or 'unknown type'}, {size} bytes]"


def _without_files(value: Any) -> Any:
    """Structured content in which the name of each file stands in place of its object."""
    if isinstance(value, list):
        return [_without_files(item) for item in value]
    fields = as_object(value)
    if isinstance(fields.get("data", fields.get("blob")), str) and fields.keys() & {"mimeType", "type"}:
        return _name(fields)
    return {key: _without_files(item) for key, item in fields.items()} if fields else value


def mcp_result_text(result: mcp_types.CallToolResult) -> str:
    """The text of a result, with pictures and sound named by type and size, and nothing in base64."""
    names = {
        part.data: f"[{part.type}, {part.mime_type}, {_size(part.data)} bytes]"
        for part in result.content
        if isinstance(part, mcp_types.ImageContent | mcp_types.AudioContent)
    }
    text = "\n".join(getattr(part, "text", "") or names[getattr(part, "data", "")] for part in result.content)
    for data, name in names.items():
        text = text.replace(data, name) if len(data) > 32 else text
    return without_base64(text)


def mcp_pictures(result: mcp_types.CallToolResult) -> list[bytes]:
    """The bytes of the pictures of a result, as far as they are what a message may have."""
    found = []
    for part in result.content:
        if isinstance(part, mcp_types.ImageContent):
            with suppress(ValueError):
                found.append(binascii.a2b_base64(part.data))
    return [data for data in found if detect_kind(data) in PICTURES]


def without_base64(text: str) -> str:
    """The text with what stands in base64 in it named by type and size. A short word is no base64."""
    text = _DATA_URL.sub(
        lambda found: f"[data, {found[1] or 'unknown type'}, {_size(found[2])} bytes]", utf8_text(text)
    )
    return _BASE64.sub(_replaced, text)


def _replaced(found: re.Match[str]) -> str:
    data = found[0]
    lines = data.split()
    even = all(len(line) == len(lines[0]) for line in lines[:-1])
    mixed = len(data) >= _LONG_BASE64 and all(re.search(kind, data) for kind in ("[A-Z]", "[a-z]", "[0-9]"))
    media_type = next((kind for start, kind in _FILES.items() if data.replace("\\/", "/", 3).startswith(start)), None)
    return f"[data, {media_type or 'unknown type'}, {_size(data)} bytes]" if even and (mixed or media_type) else data


def _size(base64: str) -> int:
    """The bytes that a base64 text stands for."""
    return len("".join(base64.split()).rstrip("=")) * 3 // 4


def _json(value: Any) -> str:
    return pydantic_core.to_json(value, inf_nan_mode="null", serialize_unknown=True).decode()
