"""waitress as this program needs it: threads on demand, a strict parser, bounds, an end that loses no request."""

import copy
import re
import socket
import threading
from typing import Any

from flask import Flask
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import create_server
from waitress.task import ThreadedTaskDispatcher, WSGITask
from waitress.wasyncore import dispatcher

from session_core.web.settings import Settings, raise_open_file_limit

MAX_BODY_BYTES = 1 << 20  # of a request
FILES_AT_ONCE = 4  # of the largest, in the body of a request that may have any
BACKLOG = 2048  # connections that wait to be accepted

_TAKES_FILES = re.compile(
    r"/sessions(/[^/]+/run(_stream)?)?|/ui/chat|/v1/(chat/completions|responses(/compact)?|conversations(/[^/]+/items)?)"
)
_SPARE_THREADS = 16  # for plain requests, beside the threads of responses and watchers
_STOP_SECONDS = 2.0  # to wait for the thread that accepts connections
_IDLE_SECONDS = 60  # after which a connection without a request is closed


def max_file_body(max_file_bytes: int) -> int:
    """How large the body of a request may be that may have pictures and files of so many bytes each, in base64."""
    return MAX_BODY_BYTES + FILES_AT_ONCE * (max_file_bytes + 2) * 4 // 3


def hardened_server(app: Flask, listener: socket.socket, settings: Settings) -> Any:
    """A waitress server over this socket, with bounds on connections, headers and bodies. `run()` serves."""
    threads = settings.max_responses + settings.max_watchers + _SPARE_THREADS
    server: Any = create_server(
        app,
        sockets=[listener],
        threads=0,  # _ThreadsOnDemand starts them
        # However many clients wait, each turn finds files free for its session, its journal and the model server.
        connection_limit=min(threads + 1000, max(16, raise_open_file_limit() - 3 * settings.max_streams - 100)),
        backlog=BACKLOG,  # waitress calls listen once more
        asyncore_use_poll=True,
        channel_request_lookahead=1,  # so that waitress notices clients that leave
        outbuf_high_watermark=1 << 20,
        max_request_body_size=2 * MAX_BODY_BYTES,
        max_request_header_size=1 << 16,
        channel_timeout=_IDLE_SECONDS,
        cleanup_interval=10,
        clear_untrusted_proxy_headers=not settings.trusted_proxies,  # ProxyFix reads them
        log_socket_errors=False,  # a client that is cut off is no error
        ident=None,
    )
    server.channel_class, server.ending = _StrictChannel, False
    server.adj.larger_body = MAX_BODY_BYTES + max_file_body(settings.max_file_bytes)
    server.task_dispatcher = _ThreadsOnDemand(threads)
    return server


class _ThreadsOnDemand(ThreadedTaskDispatcher):
    """Starts a thread when a request finds none idle. A thousand idle threads from the start would cost 17 MB."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def add_task(self, task: Any) -> None:
        with self.lock:
            short = len(self.queue) >= len(self.threads) - self.active_count and len(self.threads) < self._most
        if short:
            self.set_thread_count(len(self.threads) + 1)
        super().add_task(task)


class _StrictParser(HTTPRequestParser):
    """Refuses what a proxy could take for another request, or for one to another host (RFC 9112, sections 2.3, 3.2
    and 6.3). waitress alone accepts it."""

    headers: dict[str, str]
    adj: Any
    proxy_netloc: str
    path = ""  # waitress logs it, also of a request line that it could not read

    def received(self, data: bytes) -> int:
        consumed = super().received(data)
        if self.completed:
            self.expect_continue = False  # the request has no body, or is refused already
        return consumed

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError:  # a length of thousands of digits, half an IPv6 address
            raise ParsingError("Number or address is invalid") from None
        if header_plus.startswith(b"POST ") and _TAKES_FILES.fullmatch(self.path):  # a large body is kept on the disk
            self.adj = copy.copy(self.adj)
            self.adj.max_request_body_size = self.adj.larger_body
        names = re.findall(rb"\n(host|content-length|transfer-encoding):", header_plus.lower())
        if self.version not in ("1.0", "1.1"):
            raise ParsingError("HTTP version is not supported")
        if names.count(b"host") > 1:
            raise ParsingError("More than one Host")
        if b"transfer-encoding" in names and (self.version == "1.0" or b"content-length" in names):
            raise ParsingError("Length of the body is not clear")
        if self.proxy_netloc:
            self.headers["HOST"] = self.proxy_netloc


class _ClosingTask(WSGITask):
    """Tells the client of a server that ends to use the connection no more. A proxy that sent its next request into a
    connection that is closed could not know whether to send it again."""

    channel: Any
    request: Any

    def build_response_header(self) -> bytes:
        if self.channel.server.ending:
            self.request.headers["CONNECTION"] = "close"
        header: bytes = super().build_response_header()
        return header


class _StrictChannel(HTTPChannel):
    parser_class = _StrictParser
    task_class = _ClosingTask


def stop_listening(server: Any) -> None:
    """Has the server take the connections that wait, and then no more. Those that come are refused, and a proxy asks
    another server."""
    done = threading.Event()

    def stop() -> None:
        before = -1
        while len(server.active_channels) != before:
            before = len(server.active_channels)
            server.handle_accept()
        dispatcher.close(server)
        done.set()

    server.trigger.pull_trigger(stop)
    done.wait(_STOP_SECONDS)
