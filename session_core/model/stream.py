"""Bytes of a response to frames of JSON."""

from __future__ import annotations

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
    """The data of each server-sent event in a body. Raises NotAnAnswer where the body holds none.

    The SDK's own iterator bounds no line, takes 20 µs more a chunk, and gives the connection up.
    """
    pending: list[bytes] = []  # of a line whose end has not come
    data: list[bytes] = []
    held = 0
    head: bytes | None = b""
    for part in itertools.chain(parts, [b"\n\n"]):  # not every server ends its last event
        budget.remaining()
        held += len(part)
        if held > _MAX_HELD_BYTES:
            raise ModelError("model_error", "The model's answer is too long.")
        if head is not None and len(head) < _MAX_HEAD_BYTES:
            head += part
        pending.append(part)
        if b"\n" not in part:
            continue
        *lines, rest = b"".join(pending).split(b"\n")
        pending = [rest]
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].lstrip(b" "))
            elif not line:
                held = len(rest)
                if data:
                    head = None
                    yield b"\n".join(data)
                    data.clear()
    if head is not None:
        if not head.strip():
            raise NoEvent(None)
        try:
            raise NotAnAnswer(json.loads(head))
        except json.JSONDecodeError:
            raise NotAnAnswer(None) from None


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
