"""The client: any number of streams, read on one thread. It counts and times what comes, and takes nothing apart."""

import re
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from benchmarks.processes import Measured

_CHUNK = b'"content"'  # stands once in each frame of text, and in no other, in the format of every server here
_END = b"\r\n0\r\n\r\n"  # of a body in HTTP chunks
_RECEIVED = re.compile(rb'received=(\d+)"')
_BUFFER = 1 << 18


@dataclass(slots=True)
class Stream:
    """One turn as the client sees it. Times are of `time.monotonic`, None for what has not come."""

    asked: int  # chunks
    begun: float  # before connecting
    chunks: int = 0
    status: int | None = None
    received: float | None = None  # by the model: the whole request
    first: float | None = None
    ended: float | None = None
    _tail: bytes = field(default=b"", repr=False)
    _head: bytes = field(default=b"", repr=False)

    @property
    def complete(self) -> bool:
        """Whether all that was asked for has come."""
        # The floor cuts its HTTP chunks anywhere, at times in the middle of what is counted.
        return self.status == 200 and self.ended is not None and 0.97 * self.asked <= self.chunks <= self.asked

    @property
    def first_after(self) -> float:
        """The seconds to the first chunk; infinite if none came."""
        return float("inf") if self.first is None else self.first - self.begun

    @property
    def received_after(self) -> float:
        """The seconds until the model had the request; infinite if it never did."""
        return float("inf") if self.received is None else self.received - self.begun

    @property
    def seconds(self) -> float:
        """From before connecting to the end."""
        return float("inf") if self.ended is None else self.ended - self.begun

    def take_in(self, data: bytes) -> bool:
        """What has been read, b"" at the end of the connection; whether the response has ended."""
        now = time.monotonic()
        if self.status is None:
            self.status = int(data[9:12]) if data.startswith(b"HTTP/1.1 ") else 0
        if self.received is None and data:
            self._head += data
            if stamp := _RECEIVED.search(self._head):
                self.received = int(stamp[1]) / 1e9
                self._head = b""
        window = self._tail + data
        self.chunks += window.count(_CHUNK)
        self._tail = window[1 - len(_CHUNK) :]
        if self.chunks and self.first is None:
            self.first = now
        if not data or window.endswith(_END):
            self.ended = now
        return self.ended is not None


class Load:
    """Streams that are open at the same time, from one client to one server."""

    def __init__(self, port: int) -> None:
        self.streams: list[Stream] = []
        self._port = port
        self._open: dict[int, tuple[socket.socket, Stream]] = {}
        self._epoll = select.epoll()
        self._buffer = memoryview(bytearray(_BUFFER))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock, _stream in self._open.values():
            sock.close()
        self._open.clear()
        self._epoll.close()

    @property
    def running(self) -> int:
        """How many streams have not ended."""
        return len(self._open)

    def begin(self, request: bytes, chunks: int, stream: Stream | None = None) -> Stream:
        """Send a request whose answer has so many chunks."""
        stream = stream or Stream(chunks, time.monotonic())
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=60)
        sock.sendall(request)
        self._open[sock.fileno()] = sock, stream
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self.streams.append(stream)
        return stream

    def read(self, seconds: float) -> list[Stream]:
        """Take in what has come, waiting at most so long if nothing has; the streams that have ended by it."""
        ended = []
        for number, _ in self._epoll.poll(seconds):
            sock, stream = self._open[number]
            try:
                data = self._buffer[: sock.recv_into(self._buffer)].tobytes()
            except ConnectionError:
                data = b""
            if stream.take_in(data):
                self._close(number)
                ended.append(stream)
        return ended

    def read_until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Read until `done`, or until the time is up; whether it is done."""
        until = time.monotonic() + seconds
        while not done():
            if time.monotonic() > until:
                return False
            self.read(0.05)
        return True

    def finish(self, streams: Sequence[Stream], seconds: float) -> None:
        """Read until these streams have ended, or the time is up."""
        self.read_until(lambda: all(stream.ended for stream in streams), seconds)

    def leave(self, stream: Stream) -> None:
        """Close a connection in mid-stream."""
        self._close(next(number for number, (_, other) in self._open.items() if other is stream))

    def _close(self, number: int) -> None:
        self._open.pop(number)[0].close()


def run_streams(
    server: Measured, requests: Sequence[bytes], chunks: int, *, spread: float = 0.0, seconds: float = 90.0
) -> list[Stream]:
    """The streams of these requests, begun all at once or over `spread` seconds; what has not ended after `seconds`
    is given up."""
    with Load(server.port) as load:
        began = time.monotonic()
        for number, request in enumerate(requests):
            due = began + spread * number / len(requests)
            while (wait := due - time.monotonic()) > 0:
                load.read(wait)
            load.begin(request, chunks)
            load.read(0)
        load.read_until(lambda: not load.running, seconds)
        return load.streams
