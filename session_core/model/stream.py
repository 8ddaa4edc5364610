"""Bytes of a response to frames of JSON."""

import codecs
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Self

from session_core.model.budget import MAX_ANSWER_BYTES, Budget
from session_core.model.chunked_body import ChunkedBody
from session_core.model.connection import http_library
from session_core.model.events import ModelError
from session_core.model.failures import NoEvent, NotAnAnswer

_MAX_HELD_BYTES = 2 * MAX_ANSWER_BYTES  # of one frame, or of a whole answer
_MAX_HEAD_BYTES = 64 << 10  # of a body without an event, which may hold an error
_TAIL_SECONDS = 0.01  # for the end of a body after "[DONE]"


class Body:
    """The body of a response, in pieces as they come."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self._reader = ChunkedBody.find(response)
        self._until: float | None = None
        self._timer: threading.Timer | None = None

    def __iter__(self) -> Iterator[bytes]:
        if self._reader:
            parts = self._reader.body(self._response.request.extensions["timeout"]["read"])
        else:
            parts = self._response.iter_bytes()
        for part in parts:
            yield part
            if self._until is not None and time.monotonic() > self._until:
                return
        if self._reader:
            read_tail(self._response)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer:
            self._timer.cancel()

    def end_within(self, seconds: float) -> None:
        """Ends the body so many seconds from now at the latest, with an error where it is silent then."""
        if self._until is None:
            self._until = time.monotonic() + seconds
            if self._reader:
                self._reader.set_timeout(seconds)
            else:
                self._timer = threading.Timer(seconds, self._shut_down)
                self._timer.start()

    def _shut_down(self) -> None:
        sock = self._response.extensions["network_stream"].get_extra_info("socket")
        with suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def sse_data(parts: Iterable[bytes], budget: Budget) -> Iterator[bytes]:
    """The data of each server-sent event in a body, as the HTML Standard says (section 9.2.6).

    Raises NotAnAnswer for an event `error`, and where the body holds no event. Old llama.cpp has a field `error`. The
    SDK's own iterator bounds no line, takes 20 µs more a chunk, and gives the connection up.
    """
    data: list[bytes] = []
    is_error = False
    head = bytearray()  # lines before the first event, which may hold an error
    no_event = True
    for line in _lines(parts, budget):
        if line.startswith(b"data:"):
            data.append(line[5:].lstrip(b" "))
        elif not line:
            if event := b"\n".join(data).strip():
                if is_error:
                    raise NotAnAnswer(_read_error(event))
                no_event = False
                yield event
            data.clear()
            is_error = False
        elif line.startswith((b"error:", b"event:")):
            name, _, value = line.partition(b":")
            is_error = name == b"error" or value.strip() == b"error"
            data += [value] if name == b"error" else []
        elif no_event and len(head) < _MAX_HEAD_BYTES and not line.startswith((b":", b"id:", b"retry:")):
            head += line + b"\n"
    if no_event:
        raise NotAnAnswer(_read_error(bytes(head))) if head.strip() else NoEvent(None)


def _lines(parts: Iterable[bytes], budget: Budget) -> Iterator[bytes]:
    """The lines of a body, which end in LF, CR or both. The last one needs no end. A byte order mark is left out."""
    pending: list[bytes] = []  # of a line whose end has not come
    held = 0  # bytes since the last empty line
    after_cr = False
    begun = False
    for part in itertools.chain(parts, [b"\n\n"]):
        budget.remaining()
        held += len(part)
        if held > _MAX_HELD_BYTES:
            raise ModelError("model_error", "The model's answer is too long.")
        if after_cr and part.startswith(b"\n"):
            part = part[1:]
        after_cr = part.endswith(b"\r") or (after_cr and not part)
        pending.append(part)
        if b"\n" not in part and b"\r" not in part:
            continue
        text = b"".join(pending)
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        pending = [rest]
        if not begun:
            begun = True
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
        if b"" in lines:
            held = len(rest)
        yield from lines


def _read_error(data: bytes) -> object:
    """The body of an error, None where it is no JSON."""
    with suppress(ValueError):
        return json.loads(data)
    return None


def whole(parts: Iterable[bytes], budget: Budget) -> Iterator[bytes]:
    """The whole body as one frame."""
    body = bytearray()
    for part in parts:
        budget.remaining()
        body += part
        if len(body) > _MAX_HELD_BYTES:
            raise ModelError("model_error", "The model's answer is too long.")
    yield bytes(body)


def read_tail(response: Any) -> None:
    """Reads the end of a body, if it is there, so that the connection can be used again.

    A new iterator over the raw stream reads the timeout anew from the request.
    """
    response.request.extensions["timeout"]["read"] = _TAIL_SECONDS
    with suppress(http_library.HTTPError, OSError):
        for _ in itertools.islice(response.stream, 16):
            pass
