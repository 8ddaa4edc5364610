"""One SDK client whose sockets a cancel can shut."""

from __future__ import annotations

import functools
import ipaddress
import socket
import ssl
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import openai

from model.chunked_body import ChunkedBody

# The HTTP library under the SDK: httpx2, or httpx under older releases.
http_library: Any = sys.modules[openai.DefaultHttpxClient.__mro__[1].__module__]

IDLE_SECONDS = 30.0  # for which an unused connection stays open

_MAX_REFUSAL_BYTES = 64 << 10  # of a body that is no answer


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
        """Waits for `set`, at most that long. Gives `is_set()`."""
        return self._event.wait(seconds)

    def watch(self, sock: socket.socket) -> None:
        """Has `set` shut this socket down."""
        with self._lock:
            self._sockets.append(sock)
            if self._event.is_set():
                _shut_down(sock)

    def release(self) -> bool:
        """Lets the sockets go. Gives whether they still work."""
        with self._lock:
            self._sockets = []
            return not self._event.is_set()


def _shut_down(sock: socket.socket) -> None:
    with suppress(OSError):  # closed by now
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # SSLSocket.shutdown would break a thread that reads from it


class ModelConnection:
    """An SDK client with a connection pool of its own. It knows its sockets, so that a Stop can shut them.

    Raises ImportError, ValueError or the HTTP library's InvalidURL where the address or the proxy settings cannot be
    used.
    """

    def __init__(self, api_key: str, base_url: str) -> None:
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError("the address of a model server begins with http:// or https:// and a host")
        if address.path.rstrip("/").endswith("/chat/completions"):
            raise ValueError("leave /chat/completions out of the address")
        http = openai.DefaultHttpxClient(
            verify=_tls_context(),
            trust_env=not _is_this_machine(address.hostname),  # a proxy has no way to this machine
            limits=http_library.Limits(keepalive_expiry=IDLE_SECONDS),
            event_hooks={"request": [self._on_request], "response": [_cut_refusal]},
        )
        self.client = openai.OpenAI(
            api_key=api_key,
            base_url=address._replace(query="").geturl(),
            default_query=dict(parse_qsl(address.query, keep_blank_values=True)),  # of every request
            max_retries=0,
            http_client=http,
        )
        self.idle_since = time.monotonic()
        self._sockets: list[socket.socket] = []
        self._stop = Stop()

    def attach(self, stop: Stop) -> None:
        """Has this stop shut the sockets from now on."""
        self._stop = stop
        for sock in self._sockets:
            stop.watch(sock)

    def close(self) -> None:
        """Closes all sockets."""
        self.client.close()
        for sock in self._sockets:
            sock.close()

    def _on_request(self, request: Any) -> None:
        request.extensions["trace"] = self._on_trace

    def _on_trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            ChunkedBody(info["return_value"])
        if event.endswith("connect_tcp.complete"):
            self._add_socket(info["return_value"].get_extra_info("socket"))
        elif event.endswith("start_tls.started"):  # which takes the descriptor away from its socket
            sock = self._sockets[-1]
            self._add_socket(socket.fromfd(sock.fileno(), sock.family, sock.type))
        elif event.endswith("start_tls.complete"):
            self._sockets.pop().close()
            self._add_socket(info["return_value"].get_extra_info("socket"))

    def _add_socket(self, sock: socket.socket) -> None:
        self._sockets = [*(known for known in self._sockets if known.fileno() >= 0), sock]
        self._stop.watch(sock)


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """The context that all clients share, since reading the certificates takes long."""
    context: ssl.SSLContext = http_library.create_ssl_context()
    return context


def _cut_refusal(response: Any) -> None:
    """Reads the beginning of a body that is no answer, so that the rest takes no memory."""
    if response.status_code >= 300:
        head = b""
        for part in response.stream:
            head += part
            if len(head) > _MAX_REFUSAL_BYTES:
                break
        response.stream.close()
        response.stream = http_library.ByteStream(head[:_MAX_REFUSAL_BYTES])


def _is_this_machine(host: str) -> bool:
    """Whether a connection to this host stays on this machine. 0.0.0.0 does, which no Host header may name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified
