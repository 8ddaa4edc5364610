"""The SDK's client, which all runs share, over connections that they do not."""

import collections
import functools
import ipaddress
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

import openai

from session_core.model.cancellation import Cancellation
from session_core.model.connection import ModelConnection, http_library

_MAX_IDLE_CONNECTIONS = 16
_IDLE_SECONDS = 30.0  # for which an unused connection stays open
_MAX_REFUSAL_BYTES = 64 << 10  # of a body that is no answer


class ModelClient:
    """A model server, as the SDK's client sees it. Every method may be called from any thread.

    Raises ImportError, ValueError or the HTTP library's InvalidURL where the address or the proxy settings cannot be
    used.
    """

    def __init__(self, api_key: str, base_url: str) -> None:
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError("the address of a model server begins with http:// or https:// and a host")
        if address.path.rstrip("/").endswith("/chat/completions"):
            raise ValueError("leave /chat/completions out of the address")
        self._transport = _Transport()
        self._sdk = openai.OpenAI(
            api_key=api_key,
            base_url=address._replace(query="").geturl(),
            default_query=dict(parse_qsl(address.query, keep_blank_values=True)),  # of every request
            max_retries=0,
            http_client=openai.DefaultHttpxClient(
                transport=self._transport, event_hooks={"response": [_cut_refusal]}
            ),
        )
        self.chat_url = f"{self._sdk.base_url}chat/completions"  # complete, so that the SDK need not join it again
        self._new_transport = _transports_to(address)
        self._new_transport()  # raises what is wrong with the settings
        self._idle: collections.deque[ModelConnection] = collections.deque()
        self._max_idle = _MAX_IDLE_CONNECTIONS
        self._lock = threading.Lock()

    def over(self, connection: ModelConnection) -> openai.OpenAI:
        """The SDK's client. The next request of this thread goes over this connection."""
        self._transport.of_thread.connection = connection
        return self._sdk

    @contextmanager
    def connection(self, cancellation: Cancellation) -> Iterator[ModelConnection]:
        """A connection for one run. Only a run that ended well gives it back: after others its state is unknown."""
        with self._lock:
            idle = self._idle.pop() if self._idle else None
        connection = idle or ModelConnection(self._new_transport())
        ended_well = False
        try:
            with cancellation.on_cancel(connection.shut_down):
                yield connection
            ended_well = not connection.is_shut
        finally:
            if ended_well:
                connection.idle_since = time.monotonic()
                self._idle.append(connection)
                self._close_surplus()
            else:
                connection.close()

    def close(self) -> None:
        """Closes the idle connections now, and those of runs when the runs end."""
        self._max_idle = 0
        self._close_surplus()

    def _close_surplus(self) -> None:
        """Closes the idle connections that are too many, and those that are too old."""
        oldest = time.monotonic() - _IDLE_SECONDS
        with self._lock:
            while len(self._idle) > self._max_idle or (self._idle and self._idle[0].idle_since < oldest):
                self._idle.popleft().close()


class _Transport(http_library.BaseTransport):  # type: ignore[misc]
    """What the SDK's client sends its requests with: the connection of the thread that asks."""

    def __init__(self) -> None:
        self.of_thread = threading.local()

    def handle_request(self, request: Any) -> Any:
        return self.of_thread.connection.send(request)


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


def _transports_to(address: SplitResult) -> Callable[[], Any]:
    """A function that returns a transport of the HTTP library for one connection, through the environment's proxy."""
    url = _proxy_url(address)
    return functools.partial(
        http_library.HTTPTransport,
        verify=_tls_context(),
        limits=http_library.Limits(max_connections=1, keepalive_expiry=_IDLE_SECONDS),
        proxy=None if url is None else http_library.Proxy(url),
    )


def _proxy_url(address: SplitResult) -> str | None:
    """The proxy that the environment names for an address, as curl reads it."""
    host = address.hostname or ""
    if _is_this_machine(host) or urllib.request.proxy_bypass(host):
        return None  # a proxy has no way to this machine
    proxies = urllib.request.getproxies()
    url = proxies.get(address.scheme) or proxies.get("all")
    return url if url is None or "://" in url else f"http://{url}"


# The context that all connections share, since reading the certificates takes long.
_tls_context = functools.cache(http_library.create_ssl_context)


def _is_this_machine(host: str) -> bool:
    """Whether a connection to this host stays on this machine. 0.0.0.0 does, which no Host header may name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified
