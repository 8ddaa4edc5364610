"""One connection to the model server, whose sockets a cancel can shut."""

from __future__ import annotations

import importlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import openai

from session_core.model.chunked_body import ChunkedBody

# The HTTP library under the SDK, and its connections: httpx2 and httpcore2, or httpx and httpcore below older ones.
http_library: Any = sys.modules[openai.DefaultHttpxClient.__mro__[1].__module__]
http_core: Any = importlib.import_module(http_library.__name__.partition(".")[0].replace("httpx", "httpcore"))

_MAX_HELD_BYTES = 64 << 10  # of a request, that wait for the rest of it


class Stop:
    """Ends one run, from any thread and at any time, also while the model server is silent. Never blocks."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.RLock()  # a signal handler may interrupt its own thread in here
        self._sockets: list[socket.socket] = []

    def set(self) -> None:
        """Ends the run."""
        with self._lock:
            self._event.set()
            for sock in self._sockets:
                _shut_down(sock)

    def is_set(self) -> bool:
        """Whether `set` was called."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Waits for `set`, at most that long. Returns `is_set()`."""
        return self._event.wait(seconds)

    def watch(self, sock: socket.socket) -> None:
        """Has `set` shut this socket down."""
        with self._lock:
            self._sockets.append(sock)
            if self._event.is_set():
                _shut_down(sock)

    def release(self) -> bool:
        """Lets the sockets go. Returns whether they still work."""
        with self._lock:
            self._sockets = []
            return not self._event.is_set()


def _shut_down(sock: socket.socket) -> None:
    with suppress(OSError):  # closed by now
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # SSLSocket.shutdown would break a thread that reads from it


class ModelConnection:
    """At most one connection to the model server at a time, for one run after the other.

    `new_pool` gives the HTTP library's pool over a network backend. Only its making of connections is used, since a
    run that has a connection to itself needs no search for a free one.
    """

    def __init__(self, new_pool: Callable[[Any], Any]) -> None:
        self._pool = new_pool(_Backend(self._add_socket))
        self._connection: Any = None
        self._socket: socket.socket | None = None
        self._stop = Stop()
        self.idle_since = time.monotonic()

    def attach(self, stop: Stop) -> None:
        """Has this stop shut the sockets from now on."""
        self._stop = stop
        if self._socket is not None:
            stop.watch(self._socket)

    def send(self, request: Any) -> Any:
        """The response to a request, both of the HTTP library. Raises the HTTP library's errors."""
        url = request.url
        sent = http_core.Request(
            method=request.method,
            url=http_core.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _translated_errors():
            response = self._connection_to(sent.url.origin).handle_request(sent)
        return http_library.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_ResponseStream(response.stream),
            extensions=response.extensions,
        )

    def close(self) -> None:
        """Closes the sockets."""
        if self._connection is not None:
            self._connection.close()
        if self._socket is not None:
            self._socket.close()

    def _connection_to(self, origin: Any) -> Any:
        last = self._connection
        usable = last is not None and last.can_handle_request(origin) and last.is_available()
        if not usable or last.has_expired():
            self.close()
            self._connection = self._pool.create_connection(origin)
        return self._connection

    def _add_socket(self, sock: socket.socket) -> None:
        self._socket = sock
        self._stop.watch(sock)


class _Backend:
    """The network under the HTTP library's connections, whose sockets become known as soon as they exist."""

    def __init__(self, on_socket: Callable[[socket.socket], None]) -> None:
        self._network = http_core.SyncBackend()
        self._on_socket = on_socket

    def connect_tcp(self, *args: Any, **options: Any) -> _Wire:
        return _Wire(self._network.connect_tcp(*args, **options), self._on_socket)

    def sleep(self, seconds: float) -> None:
        self._network.sleep(seconds)


class _Wire:
    """A network stream of the HTTP library. The head and the body of a request leave together."""

    def __init__(self, stream: Any, on_socket: Callable[[socket.socket], None]) -> None:
        self._stream = stream
        self._on_socket = on_socket
        self._held: list[bytes] = []
        self.chunked = ChunkedBody(stream)
        on_socket(stream.get_extra_info("socket"))

    def write(self, data: bytes, timeout: float | None = None) -> None:
        self._held.append(data)
        self._timeout = timeout
        if sum(map(len, self._held)) > _MAX_HELD_BYTES:
            self._flush()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with suppress(http_core.WriteError):  # the server may have answered without reading all
            self._flush()
        return self.chunked.read(max_bytes, timeout)

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> _Wire:
        sock = self._stream.get_extra_info("socket")
        # The handshake takes the descriptor away from its socket.
        with socket.fromfd(sock.fileno(), sock.family, sock.type) as watched:
            self._on_socket(watched)
            stream = self._stream.start_tls(ssl_context, server_hostname, timeout)
        return _Wire(stream, self._on_socket)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def close(self) -> None:
        self._held.clear()
        self._stream.close()

    def _flush(self) -> None:
        held, self._held = self._held, []
        if sum(map(len, held)) <= _MAX_HELD_BYTES:
            held = [b"".join(held)]  # else the body would be copied once more
        for data in filter(None, held):
            self._stream.write(data, self._timeout)


class _ResponseStream(http_library.SyncByteStream):  # type: ignore[misc]
    """The body of a response, with the HTTP library's errors."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        with _translated_errors():
            yield from self._stream

    def close(self) -> None:
        self._stream.close()


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Turns the errors of connections into those of the HTTP library, which have the same names."""
    try:
        yield
    except (
        http_core.TimeoutException,
        http_core.NetworkError,
        http_core.ProtocolError,
        http_core.ProxyError,
        http_core.UnsupportedProtocol,
    ) as error:
        raise getattr(http_library, type(error).__name__)(str(error)) from error
