"""Pictures and files in the form that model servers take: as data in a URL, and files of text as text."""

import base64
import itertools
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import pydantic_core

from session_core.data.file_kinds import PDF, describe_part
from session_core.data.message import ContentPart, message_text
from session_core.model.capabilities import RequestForm

_ENCODED_AT_ONCE = 3 << 18  # bytes, a multiple of three
_PART_KINDS = {"image_url": "pictures", "file": "files"}  # by the type of a part of a request


class Files(Protocol):
    """The pictures and files that the messages of a run name."""

    def read(self, part: ContentPart) -> bytes | None:
        """The bytes that a part names, None where they are not there."""

    def keep(self, files: Mapping[str, bytes]) -> None:
        """Keeps further ones, by their SHA-256."""


class DataUrl:
    """A picture or a file as it goes out: `data:image/png;base64,…`, which is encoded while it is sent. `size` is in
    bytes."""

    def __init__(self, media_type: str, data: bytes) -> None:
        self._beginning = f"data:{media_type};base64,".encode()
        self._data = data
        self.size = len(self._beginning) + (len(data) + 2) // 3 * 4

    def __iter__(self) -> Iterator[bytes]:
        yield self._beginning
        for start in range(0, len(self._data), _ENCODED_AT_ONCE):
            yield base64.b64encode(self._data[start : start + _ENCODED_AT_ONCE])


class RequestBody:
    """A request as JSON, in pieces. Each `DataUrl` in it is a string. `size` is in bytes.

    The HTTP library keeps what it has sent for longer than it is needed, so `clear` lets go of it.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._urls: list[DataUrl] = []
        self._place = secrets.token_hex(16)  # of a URL in the JSON
        data = pydantic_core.to_json(request, fallback=self._put)  # four times as fast as the SDK's own encoder
        self._texts = data.split(self._place.encode()) if self._urls else [data]
        self.size = sum(map(len, self._texts)) + sum(url.size for url in self._urls)

    def __iter__(self) -> Iterator[bytes]:
        for text, url in itertools.zip_longest(self._texts, self._urls, fillvalue=()):
            if text:
                yield bytes(text)
            yield from url

    def clear(self) -> None:
        """Lets go of all that was to be sent."""
        self._texts, self._urls = [], []

    def _put(self, url: DataUrl) -> str:
        self._urls.append(url)
        return self._place


class FilesOfRun:
    """Files that are kept for one run alone."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def read(self, part: ContentPart) -> bytes | None:
        """See `Files`."""
        return self._files.get(part["sha256"])

    def keep(self, files: Mapping[str, bytes]) -> None:
        """See `Files`."""
        self._files.update(files)


def render_content(content: Sequence[ContentPart], files: Files, form: RequestForm) -> str | list[dict[str, Any]]:
    """A user's content as the API has it: a text, unless a picture or a PDF goes out. A word stands in place of what
    the model does not take, or what is not there."""
    parts = [rendered for part in content if (rendered := _render_part(part, files, form))]
    if all(part["type"] == "text" for part in parts):
        return "\n\n".join(part["text"] for part in parts)
    return parts


def sent_parts(messages: Sequence[Mapping[str, Any]]) -> set[str]:
    """The optional parts of a request, `pictures` and `files`, that stand in these messages."""
    contents = [message["content"] for message in messages if isinstance(message["content"], list)]
    return {_PART_KINDS[part["type"]] for content in contents for part in content if part["type"] in _PART_KINDS}


def forget_files(messages: Sequence[dict[str, Any]]) -> None:
    """Leaves of messages that were sent the texts alone."""
    for message in messages:
        if isinstance(message["content"], list):
            message["content"] = message_text(message)


def _render_part(part: ContentPart, files: Files, form: RequestForm) -> dict[str, Any] | None:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]} if part["text"] else None
    if "sha256" not in part:  # of a type that a later version has written
        return None
    kind = "pictures" if part["type"] == "image" else "files" if part["media_type"] == PDF else "text"
    data = files.read(part) if kind == "text" or form.has(kind) else None
    if data is None:
        return {"type": "text", "text": describe_part(part)}
    if kind == "text":
        return {"type": "text", "text": f"{describe_part(part)}\n\n{data.decode(errors='replace')}"}
    url = DataUrl(part["media_type"], data)
    if kind == "pictures":
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "file", "file": {"filename": part.get("name", "file.pdf"), "file_data": url}}
