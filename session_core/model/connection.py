"""One connection to the model server, whose socket a cancel can shut."""

import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import openai

from session_core.model.chunked_body import ChunkedBody

# The HTTP library under the SDK: httpx2, or httpx below older ones.
http_library: Any = sys.modules[openai.DefaultHttpxClient.__mro__[1].__module__]


class ModelConnection:
    """At most one connection to the model server at a time, for one run after the other.

    `transport` is the HTTP library's, for one connection. A run that has it to itself needs no search for a free one.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._lock = threading.RLock()  # a signal handler may interrupt its own thread in here
        self._socket: socket.socket | None = None
        self._duplicate: socket.socket | None = None  # of a socket whose TLS handshake goes on
        self.is_shut = False  # whether `shut_down` was called
        self.idle_since = time.monotonic()

    def send(self, request: Any) -> Any:
        """The response to a request, both of the HTTP library. Raises the HTTP library's errors."""
        request.extensions = {**request.extensions, "trace": self._trace}
        return self._transport.handle_request(request)

    def shut_down(self) -> None:
        """Ends what waits for the model server, and all that is sent later. May be called from any thread."""
        with self._lock:
            self.is_shut = True
            for sock in filter(None, (self._socket, self._duplicate)):
                with suppress(OSError):  # closed by now
                    # SSLSocket.shutdown would break a thread that reads from it.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the sockets."""
        self._transport.close()
        for sock in filter(None, (self._socket, self._duplicate)):
            sock.close()

    def _trace(self, name: str, info: dict[str, Any]) -> None:
        """Hears of each step of the HTTP library by its extension `trace`."""
        step = name.partition(".")[2]
        if step in ("connect_tcp.complete", "start_tls.complete"):
            stream = info["return_value"]
            ChunkedBody.read_through(stream)
            self._watch(stream.get_extra_info("socket"))
        elif step == "start_tls.started" and self._socket is not None:
            self._watch(self._socket, self._socket.dup())  # the handshake takes the descriptor from its socket

    def _watch(self, sock: socket.socket, duplicate: socket.socket | None = None) -> None:
        with self._lock:
            if self._duplicate is not None:
                self._duplicate.close()
            self._socket, self._duplicate = sock, duplicate
            if self.is_shut:
                self.shut_down()
