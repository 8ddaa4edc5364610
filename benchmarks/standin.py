"""A model server that answers as fast as it can, or at a given pace: `python -m benchmarks.standin`.

The text of the last message says what it answers: `chunks=50 delay=0.1` is 50 chunks, each 0.1 s after the one before
it; without delay they come as fast as they are read. The first chunk tells when the whole request had come, as
`received=` and nanoseconds of the clock that all processes share (`time.monotonic_ns`).
"""

import asyncio
import json
import re
import time

from benchmarks.processes import allow_many_files

_ASKED = re.compile(rb"chunks=(\d+) delay=([\d.]+)")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_BLOCK = 100  # chunks that are written at once, where there is no pace


SPIN = "call the tool spin"  # the message that asks for a call of that tool, and for a chunk when it is done


def asking(chunks: int, delay: float = 0.0) -> str:
    """The message that asks for an answer of so many chunks, with so many seconds between them."""
    return f"chunks={chunks} delay={delay}"


def _framed(data: bytes) -> bytes:
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


def _chunk(delta: dict[str, object], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return _framed(json.dumps(chunk).encode())


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_TOKEN = _chunk({"content": " token"})
_TOKENS = _TOKEN * _BLOCK
_CALL = _chunk(
    {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "spin", "arguments": "{}"}}]}, "tool_calls"
)
_END = _chunk({}, "stop") + _framed(b"[DONE]") + b"0\r\n\r\n"


class _Connection(asyncio.Protocol):
    """One connection, and the one answer that is going out on it."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._missing: int | None = None  # bytes of the request, once its head has come
        self._left = 0  # chunks of the answer
        self._writable = True
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=1 << 20)

    def connection_lost(self, exc: Exception | None) -> None:
        self._left = 0
        if self._timer:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        if self._missing is None:
            head, end, body = b"".join(self._parts).partition(b"\r\n\r\n")
            if not end:
                return
            length = _LENGTH.search(head)
            self._missing = (int(length[1]) if length else 0) - len(body)
        else:
            self._missing -= len(data)
        if self._missing <= 0:
            received = time.monotonic_ns()
            request = b"".join(self._parts)
            self._parts, self._missing = [], None
            self._answer(request, received)

    def _answer(self, request: bytes, received: int) -> None:
        if request.rfind(SPIN.encode()) > request.rfind(b'"role":"tool"'):
            self._transport.write(_HEAD + _CALL + _framed(b"[DONE]") + b"0\r\n\r\n")
            return
        asked = _ASKED.match(request, max(0, request.rfind(b"chunks=")))
        chunks, delay = (int(asked[1]), float(asked[2])) if asked else (1, 0.0)
        self._transport.write(_HEAD + _chunk({"content": f"received={received}"}))
        self._left = chunks - 1
        if delay:
            self._pace(asyncio.get_running_loop().time(), delay)
        else:
            self._flood()

    def _pace(self, last: float, delay: float) -> None:
        if not self._left:
            self._transport.write(_END)
            return
        self._timer = asyncio.get_running_loop().call_at(last + delay, self._write_next, last + delay, delay)

    def _write_next(self, now: float, delay: float) -> None:
        self._left -= 1
        self._transport.write(_TOKEN)
        self._pace(now, delay)

    def _flood(self) -> None:
        while self._left and self._writable:
            self._transport.write(_TOKENS if self._left >= _BLOCK else _TOKEN * self._left)
            self._left -= min(self._left, _BLOCK)
        if not self._left:
            self._transport.write(_END)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self._left and not self._timer:
            self._flood()


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0, backlog=4096)
    print(f"listens on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    allow_many_files()
    asyncio.run(_serve())
