"""Pictures and files that come in: the bodies that may be larger for them, and their parts in all dialects."""

import binascii
import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from flask import request

from session_core.data.file_kinds import MAX_FILES, file_part
from session_core.data.message import SHA256, Content, ContentPart, content_text, file_parts
from session_core.data.text import as_object, utf8_text
from session_core.turns.turn import Overloaded
from session_core.web.bodies import json_body, parse_json
from session_core.web.errors import ApiError
from session_core.web.hardened_waitress import MAX_BODY_BYTES, max_file_body

_LARGE_BODIES = threading.BoundedSemaphore(2)  # that are in memory at once
_WAIT_SECONDS = 20.0  # for others to be read
_MIN_BLOB = 1024  # characters, from which a text in base64 is set aside
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_DATA_URL = re.compile(r"data:([\w.+/-]{0,100})(?:;[\w.+/=\"-]{1,100}){0,5};base64,", re.ASCII | re.IGNORECASE)
_OWN_ADDRESS = re.compile(r"[^?#]{0,2000}/sessions/session-[0-9a-z-]{1,64}/files/([0-9a-f]{64})")
_FILE_TYPES = ("image", "file", "image_url")
_TOO_MUCH_ELSE = "The request is larger than 1 MiB without its pictures and files."


class Uploads:
    """The pictures and files of one request. `files` are their bytes by SHA-256, and `taken` is how long their texts
    were."""

    def __init__(self, max_bytes: int) -> None:
        self.files: dict[str, bytes] = {}
        self.taken = 0
        self._max_bytes = max_bytes

    def parse_content(self, content: str | Sequence[Any] | None, where: str) -> Content:
        """The content that a text or a list of parts is. Without a picture or a file, a text. Raises ApiError."""
        if not isinstance(content, list):
            return content if isinstance(content, str) else ""
        parts = [self._part(part, f"{where}[{index}]") for index, part in enumerate(content)]
        files = file_parts(parts)
        if len(files) > MAX_FILES:
            raise ApiError("invalid_request", f"{where} has more than {MAX_FILES} pictures and files.")
        return parts if files else content_text(parts)

    def add(self, where: str, data: str, label: Any = None, name: Any = None) -> ContentPart:
        """The part for a picture or a file in base64. Raises ApiError."""
        self.taken += len(data)
        if len(data) // 4 * 3 - data[-2:].count("=") > self._max_bytes:
            raise ApiError("request_too_large", f"{where} is larger than {self._max_bytes} bytes.")
        try:
            decoded = binascii.a2b_base64(data, strict_mode=True)
        except ValueError:
            raise ApiError("invalid_request", f"{where} is not in base64.") from None
        try:
            made = file_part(decoded, utf8_text(label), utf8_text(name))
        except ValueError as error:
            raise ApiError("invalid_request", f"{where} {error}.") from None
        self.files[made["sha256"]] = decoded
        return made

    def add_url(self, where: str, url: str, label: Any = None, name: Any = None) -> ContentPart:
        """The part for a data URL, or for an address of this server, which names what the session has. No other
        address is taken. Raises ApiError."""
        if own := _OWN_ADDRESS.fullmatch(url):
            return {"type": "image", "sha256": own[1]}
        found = _DATA_URL.match(url)
        if not found:
            raise ApiError("invalid_request", f"{where} must be a data URL in base64: no address is fetched.")
        return self.add(where, url[found.end() :], label or found[1], name)

    def skip(self, part: Any) -> None:
        """Takes nothing of a part that is a client's own copy."""
        url = as_object(as_object(part).get("image_url")).get("url") or as_object(part).get("url")
        self.taken += len(utf8_text(url))

    def parse_messages(self, messages: Any) -> Any:
        """The messages of a conversation, of which those with pictures and files have the content that is stored.
        Raises ApiError."""
        if not isinstance(messages, list):
            return messages
        return [self._parse_message(message, f"messages[{index}].content") for index, message in enumerate(messages)]

    def _parse_message(self, message: Any, where: str) -> Any:
        if not isinstance(message, dict) or not has_files(message.get("content")):
            return message
        content = self.parse_content(message["content"], where)
        if any("media_type" not in part for part in file_parts(content)):
            raise ApiError("invalid_request", f"{where} names a picture or a file without its data.")
        return {**message, "content": content}

    def _part(self, part: Any, where: str) -> ContentPart:
        match part:
            case {"type": "text", "text": str(text)}:
                return {"type": "text", "text": text}
            case {"type": "image" | "file" as kind, "data": str(data)}:
                made = self.add(where, data, part.get("media_type"), part.get("name"))
                if made["type"] != kind:
                    raise ApiError("invalid_request", f"{where} is no {kind}: its bytes are {made['media_type']}.")
                return made
            case {"type": "image" | "file" as kind, "sha256": str(name)} if SHA256.fullmatch(name):
                return {"type": kind, "sha256": name}
            case {"type": "image_url", "image_url": str(url) | {"url": str(url)}}:
                return self.add_url(where, url)
            case {"type": "file", "file": {"file_data": str(url), **others}}:
                return self.add_url(where, url, name=others.get("filename"))
            case {"type": "image" | "file" | "image_url"}:
                raise ApiError("invalid_request", f"{where} must have its data in base64: no address is fetched.")
        raise ApiError("invalid_request", f"{where} must be a part of the type text, image or file.")


def has_files(content: Any) -> bool:
    """Whether a content, as callers send it, has pictures or files."""
    return isinstance(content, list) and any(as_object(part).get("type") in _FILE_TYPES for part in content)


@contextlib.contextmanager
def body_with_files(max_file_bytes: int, *, optional: bool = False) -> Iterator[tuple[dict[str, Any], Uploads]]:
    """The request's JSON object, which may be as large as four pictures or files in base64. All of these must be
    taken from the uploads in this block, and what is left of the body is no larger than that of any other request.

    Raises ApiError as `json_body` does, and Overloaded where other large bodies are being read.
    """
    request.max_content_length = max_file_body(max_file_bytes)
    if (request.content_length or 0) <= MAX_BODY_BYTES and "Transfer-Encoding" not in request.headers:
        yield json_body(optional=optional), Uploads(max_file_bytes)
        return
    if not _LARGE_BODIES.acquire(timeout=_WAIT_SECONDS):
        raise Overloaded
    try:
        data = request.get_data(cache=False)
        others, size = _size_beside_base64(data), len(data)
        body = parse_json(data, optional=optional)
        del data
        uploads = Uploads(max_file_bytes)
        yield body, uploads
        if max(others, size - uploads.taken) > MAX_BODY_BYTES:
            raise ApiError("request_too_large", _TOO_MUCH_ELSE)
    finally:
        _LARGE_BODIES.release()


def _size_beside_base64(data: bytes) -> int:
    """How many bytes a JSON text has beside long texts in base64, so that it takes little memory to read.

    Raises ApiError where they are more than the largest body of other requests.
    """
    size, at = len(data), 0
    while at < len(data):
        quote = data.rfind(b'"', at, at + _MIN_BLOB)
        if quote >= 0:  # no long text begins before it
            at = quote + 1
            continue
        end = data.find(b'"', at) % (len(data) + 1)  # the end of the body where there is none
        if at > 0 and end < len(data) and _is_base64(data[at:end]):  # between quotes
            size -= end - at
        at = end + 1
    if size > MAX_BODY_BYTES:
        raise ApiError("request_too_large", _TOO_MUCH_ELSE)
    return size


def _is_base64(text: bytes) -> bool:
    """Whether a text of JSON is in base64, or a data URL."""
    prefix = _DATA_URL.match(text[:1000].decode("latin-1"))
    rest = text[prefix.end() :] if prefix else text
    others = rest.translate(None, _BASE64)  # none, or those of escaped slashes
    return not others.strip(b"\\") and len(others) == rest.count(b"\\/")
