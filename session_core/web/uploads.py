"""Pictures and files that come in: the bodies that may be larger for them, and their parts in all dialects."""

from __future__ import annotations

import binascii
import contextlib
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from flask import request

from session_core.data.file_kinds import MAX_FILES, file_part
from session_core.data.message import SHA256, Content, ContentPart, content_text, file_parts
from session_core.data.text import as_object
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
    """The pictures and files of one request. `files` are their bytes by SHA-256."""

    def __init__(self, max_bytes: int, blobs: dict[str, memoryview] | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self._max_bytes = max_bytes
        self._blobs = blobs or {}  # texts that were set aside, by what stands in their place

    @property
    def all_taken(self) -> bool:
        """Whether each text that was set aside was a picture or a file."""
        return not self._blobs

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
        return self._added(where, self._text(data), label, name)

    def add_url(self, where: str, url: str, label: Any = None, name: Any = None) -> ContentPart:
        """The part for a data URL, or for an address of this server, which names what the session has. No other
        address is taken. Raises ApiError."""
        if own := _OWN_ADDRESS.fullmatch(url):
            return {"type": "image", "sha256": own[1]}
        blob = self._text(url)
        found = _DATA_URL.match(bytes(blob[:1000]).decode("latin-1"))
        if not found:
            raise ApiError("invalid_request", f"{where} must be a data URL in base64: no address is fetched.")
        return self._added(where, blob[found.end() :], label or found[1], name)

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

    def _text(self, text: str) -> memoryview:
        """A text of the body, in the bytes that stand there."""
        return self._blobs.pop(text) if text in self._blobs else memoryview(text.encode())

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

    def _added(self, where: str, base64: memoryview, label: Any, name: Any) -> ContentPart:
        if len(base64) // 4 * 3 - bytes(base64[-2:]).count(b"=") > self._max_bytes:
            raise ApiError("request_too_large", f"{where} is larger than {self._max_bytes} bytes.")
        try:
            data = binascii.a2b_base64(base64, strict_mode=True)
        except binascii.Error:
            raise ApiError("invalid_request", f"{where} is not in base64.") from None
        try:
            made = file_part(data, label if isinstance(label, str) else "", name if isinstance(name, str) else "")
        except ValueError as error:
            raise ApiError("invalid_request", f"{where} {error}.") from None
        self.files[made["sha256"]] = data
        return made


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
        data, blobs = _set_aside(request.get_data(cache=False))
        uploads = Uploads(max_file_bytes, blobs)
        yield parse_json(data, optional=optional), uploads
        if not uploads.all_taken:
            raise ApiError("request_too_large", _TOO_MUCH_ELSE)
    finally:
        _LARGE_BODIES.release()


def _set_aside(data: bytes) -> tuple[bytes, dict[str, memoryview]]:
    """A JSON text, in which a name stands in place of each long text in base64, and these texts.

    Raises ApiError where more than the largest body of other requests is left. Takes time in proportion to what is
    left, and hardly any for the rest.
    """
    view, token = memoryview(data), secrets.token_hex(16)
    blobs: dict[str, memoryview] = {}
    kept: list[bytes] = []
    size = start = end = 0
    while (begin := data.find(b'"', end)) >= 0:
        end = _end_of_text(data, begin + 1)
        text = data[begin + 1 : end] if end - begin > _MIN_BLOB else b""
        if text and _is_base64(text):
            name = f"{token}-{len(blobs)}"
            blobs[name] = view[begin + 1 : end] if b"\\" not in text else memoryview(text.replace(b"\\/", b"/"))
            kept += [data[start : begin + 1], name.encode()]
            size += begin - start
            start = end
        end += 1
        if size + end - start > MAX_BODY_BYTES:
            raise ApiError("request_too_large", _TOO_MUCH_ELSE)
    if size + len(data) - start > MAX_BODY_BYTES:
        raise ApiError("request_too_large", _TOO_MUCH_ELSE)
    return b"".join([*kept, data[start:]]), blobs


def _end_of_text(data: bytes, begin: int) -> int:
    """Where the text of JSON ends that begins here."""
    end = data.find(b'"', begin)
    while end >= 0:
        at = end
        while data[at - 1] == 92 and at > begin:  # a backslash
            at -= 1
        if (end - at) % 2 == 0:
            return end
        end = data.find(b'"', end + 1)
    return len(data)


def _is_base64(text: bytes) -> bool:
    """Whether a text of JSON is in base64, or a data URL."""
    prefix = _DATA_URL.match(text[:1000].decode("latin-1"))
    rest = text[prefix.end() :] if prefix else text
    return not rest.replace(b"\\/", b"/").translate(None, _BASE64)
