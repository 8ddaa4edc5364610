"""The result of a call of an MCP tool, read part by part, and as text for the model."""

from __future__ import annotations

import json
import re
from typing import Any

import mcp_types
import pydantic_core

from session_core.data.text import utf8_text

_KNOWN_FIELDS = {"content", "structuredContent", "isError", "_meta", "resultType"}
_TYPES = {
    "iVBORw0KGgo": "image/png",
    "/9j/": "image/jpeg",
    "R0lGOD": "image/gif",
    "UklGR": "image/webp",
    "JVBERi0": "application/pdf",
    "UEsDB": "application/zip",
    "SUQz": "audio/mpeg",
    "T2dnUw": "audio/ogg",
}  # by what base64 of such a file begins with
_LONG_BASE64 = 1024  # characters, above which it is no id, cursor or hash any more

# One long word, or lines of one length as in a mail. JSON inside a text may write `\/` and `\n` there.
_BASE64 = re.compile(
    r"[A-Za-z0-9+/\\_-]{40,}(?:\r?\n[A-Za-z0-9+/\\_-]{40,})*(?:\r?\n[A-Za-z0-9+/\\_-]{1,76}(?![^\s=]))?={0,2}"
)
_DATA_URL = re.compile(r"data:([\w.+/-]{0,99})(?:;[\w.+/=-]{1,99}){0,5};base64,([A-Za-z0-9+/\\_-]*={0,2})")


def read_result(raw: dict[str, Any]) -> dict[str, Any]:
    """A result with parts that the SDK takes: text, pictures and sound, whatever the server sent.

    Structured content is text, as JSON, where there is no text. All that is not understood is named by type and size.
    """
    if raw.get("resultType") == "input_required":
        return raw
    content = raw.get("content")
    given = content if isinstance(content, list) else [] if content is None else [content]
    parts = [_part(part) for part in given]
    structured = raw.get("structuredContent")
    if structured is None and content is None:
        structured = {key: value for key, value in raw.items() if key not in _KNOWN_FIELDS} or None
    if structured is not None and not any(text for text, _ in parts):
        parts.insert(0, (True, _text_part(_json(_without_data(structured)))))
    is_error = raw.get("isError") in (True, "true")
    return {"content": [part for _, part in parts], "isError": is_error, "resultType": "complete"}


def mcp_result_text(result: mcp_types.CallToolResult) -> str:
    """The text of a result, with pictures and sound named by type and size, and nothing in base64."""
    datas = [part for part in result.content if isinstance(part, mcp_types.ImageContent | mcp_types.AudioContent)]
    text = "\n".join(
        part.text if isinstance(part, mcp_types.TextContent) else _named(part.type, part.mime_type, part.data)
        for part in result.content
        if isinstance(part, mcp_types.TextContent | mcp_types.ImageContent | mcp_types.AudioContent)
    )
    for part in datas:
        if len(part.data) > 32:
            text = text.replace(part.data, _named(part.type, part.mime_type, part.data))
    return without_base64(text)


def without_base64(text: str) -> str:
    """The text with what stands in base64 in it named by type and size. Short words are no base64."""
    text = _DATA_URL.sub(lambda found: _named("data", found[1] or "unknown type", found[2]), utf8_text(text))
    return _BASE64.sub(_replaced, text)


def _replaced(found: re.Match[str]) -> str:
    data = found[0]
    lines = data.split()
    if any(len(line) != len(lines[0]) for line in lines[:-1]):
        return data
    kind = next((kind for start, kind in _TYPES.items() if data.startswith((start, start.replace("/", "\\/")))), "")
    mixed = all(re.search(characters, data) for characters in ("[A-Z]", "[a-z]", "[0-9]"))
    if not kind and not (mixed and len(data) >= _LONG_BASE64):
        return data
    return _named("data", kind or "unknown type", "".join(lines))


def _part(part: Any) -> tuple[bool, dict[str, Any]]:
    """A part as the SDK takes it, and whether it holds text of the server."""
    if isinstance(part, str):
        return True, _text_part(part)
    fields = part if isinstance(part, dict) else {}
    kind = _string(fields, "type", "unknown part")
    inner = fields["resource"] if isinstance(fields.get("resource"), dict) else fields
    if isinstance(inner.get("text"), str):
        return True, _text_part(inner["text"])
    media_type, data = _string(inner, "mimeType", "unknown type"), _data(inner)
    family = kind if kind in ("image", "audio") else media_type.partition("/")[0]
    if data is not None and family in ("image", "audio"):
        return False, {"type": family, "data": data, "mimeType": media_type}
    where = f" {inner['uri']}" if isinstance(inner.get("uri"), str) else ""
    if kind == "resource_link":
        size = f", {inner['size']} bytes" if isinstance(inner.get("size"), int) else ""
        return False, _text_part(f"[link to{where}, {media_type}{size}]")
    if data is not None:
        return False, _text_part(_named(kind + where, media_type, data))
    return False, _text_part(f"[{kind}{where}, {len(_json(part).encode())} bytes]")


def _without_data(value: Any) -> Any:
    """Structured content in which the name of each file stands in place of its object."""
    if isinstance(value, list):
        return [_without_data(item) for item in value]
    if not isinstance(value, dict):
        return value
    data, kind = _data(value), _string(value, "type", "data")
    if data is not None and (kind in ("image", "audio") or "mimeType" in value):
        return _named(kind, _string(value, "mimeType", "unknown type"), data)
    return {key: _without_data(item) for key, item in value.items()}


def _data(fields: dict[str, Any]) -> str | None:
    return next((fields[key] for key in ("data", "blob") if isinstance(fields.get(key), str)), None)


def _string(fields: dict[str, Any], key: str, default: str) -> str:
    value = fields.get(key)
    return value if isinstance(value, str) else default


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _json(value: Any) -> str:
    try:
        return pydantic_core.to_json(value, inf_nan_mode="null", serialize_unknown=True).decode()
    except ValueError:  # nested too deep
        return json.dumps(value, ensure_ascii=False)


def _named(kind: str, media_type: str, base64: str) -> str:
    return f"[{kind}, {media_type}, {len(base64.rstrip('=')) * 3 // 4} bytes]"
