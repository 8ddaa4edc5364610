"""Requests that nobody should send, to a real server process.

Each is answered as HTTP and the contract allow, or its connection is closed. After each test a conversation goes
well with the same process, and the log tells of no fault of the server's own.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from session_core.web.errors import ERRORS
from session_core.web.hardened_waitress import MAX_BODY_BYTES
from session_core.web.page_files import PAGE_FILES
from tests.support.model_server import ModelServer
from tests.support.server import SERVER, TIMEOUT, Server, wait_until

MEGABYTE = 1 << 20
JSON = b"Content-Type: application/json"
CHUNKED = b"Transfer-Encoding: chunked"
PATHS = ["/", "/health", "/ready", "/openapi.json", "/sessions", "/sessions/session-x"]


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class _Received(io.BytesIO):
    """What came over a connection, in the place of the socket that `http.client` reads answers from."""

    def makefile(self, mode: str) -> _Received:
        return self

    def close(self) -> None:
        pass


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT)


def read_to_the_end(connection: socket.socket) -> bytes:
    received = b""
    try:
        while data := connection.recv(1 << 16):
            received += data
    except ConnectionError:  # what the server has not read when it closes, resets the connection
        pass
    return received


def send(server: Server, data: bytes, *, cut: bool = False) -> bytes:
    """What comes back until the server closes the connection; `cut` says that nothing more will be sent."""
    with connect(server) as connection:
        try:
            connection.sendall(data)
            if cut:
                connection.shutdown(socket.SHUT_WR)
        except ConnectionError:  # refused before all was sent
            pass
        return read_to_the_end(connection)


def parsed(received: bytes, method: str = "GET") -> list[Answer]:
    """The answers in what came, each of a form that HTTP and the contract allow."""
    stream = _Received(received)
    answers = []
    while stream.tell() < len(received):
        response = http.client.HTTPResponse(stream, method=method)  # type: ignore[arg-type]
        response.begin()
        answers.append(Answer(response.status, response.headers, response.read()))
        if method != "HEAD":
            _check(answers[-1])
    return answers


def _check(answer: Answer) -> None:
    if answer.headers.get_content_type() == "text/plain":  # not from the app
        assert answer.status in (400, 413, 431, 501)
        assert "close" in answer.headers.get_all("Connection", [])
    elif answer.status >= 400:
        assert set(answer.json) == {"error", "code"}
        assert ERRORS[answer.json["code"]][0] == answer.status
        assert answer.status < 500


def ask(server: Server, data: bytes, method: str = "GET", *, cut: bool = False) -> Answer:
    """The one answer to this."""
    (answer,) = parsed(send(server, data, cut=cut), method)
    return answer


def request(line: bytes, *headers: bytes, body: bytes = b"", host: bytes | None = b"localhost") -> bytes:
    hosts = () if host is None else (b"Host: " + host,)
    return b"\r\n".join([line, *hosts, b"Connection: close", *headers, b"", body])


def post(path: str, body: bytes, *headers: bytes) -> bytes:
    length = b"Content-Length: %d" % len(body)
    return request(b"POST %b HTTP/1.1" % path.encode(), JSON, length, *headers, body=body)


def converse(server: Server) -> None:
    """What everybody else does."""
    session_id = server.create()
    events = list(server.say(session_id, "Hello").events())
    assert events[-1]["data"]["status"] == "completed"
    assert [message["content"] for message in server.messages(session_id)] == ["Hello", "OK"]
    assert server.request("DELETE", f"/sessions/{session_id}").status == 200


def session_count(server: Server) -> int:
    return len(server.request("GET", "/sessions").json["sessions"])


@contextmanager
def started(log: Path, *flags: str, command: Sequence[str] = SERVER) -> Iterator[Server]:
    with ModelServer() as model, Server(f"-base_url={model.base_url}", *flags, log=log, command=command) as server:
        yield server


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("hostile") / "server.log") as server:
        yield server


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    begin = running.log.stat().st_size
    yield running
    converse(running)
    with running.log.open() as log:
        log.seek(begin)
        faults = [line for line in log if " ERROR " in line or "Traceback" in line or "uncaptured" in line]
    assert not faults


# --- what is no HTTP/1 request ---

GET = b"GET /sessions HTTP/1.1"
POST = b"POST /sessions HTTP/1.1"
CANCEL = b"POST /sessions/session-x/cancel HTTP/1.1"  # which takes no files
BROKEN: dict[str, tuple[bytes, int]] = {
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32) + b"\r\n\r\n", 400),
    "a request line of one word": (b"GET\r\n\r\n", 400),
    "no version": (request(b"GET /sessions"), 400),
    "version 2.0": (request(b"GET /sessions HTTP/2.0"), 400),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "version x": (request(b"GET /sessions HTTP/x"), 400),
    "two spaces": (request(b"GET  /sessions HTTP/1.1"), 400),
    "a method in lower case": (request(b"get /sessions HTTP/1.1"), 400),
    "a method with a colon": (request(b"GE:T /sessions HTTP/1.1"), 400),
    "bytes beyond ASCII in the path": (request("GET /sessions/é HTTP/1.1".encode()), 400),
    "half an IPv6 address as the target": (request(b"GET http://[::1/sessions HTTP/1.1"), 400),
    "a bare CR in a header": (request(GET, b"X-A: a\rb"), 400),
    "a bare LF in a header": (request(GET, b"X-A: a\nb"), 400),
    "NUL in a header": (request(GET, b"X-A: a\0b"), 400),
    "a space before the colon": (request(GET, b"X-A : a"), 400),
    "a header without a colon": (request(GET, b"X-A"), 400),
    "a header without a name": (request(GET, b": a"), 400),
    "a header that begins folded": (b"GET /sessions HTTP/1.1\r\n Host: localhost\r\n\r\n", 400),
    "two Host headers": (request(GET, b"Host: localhost"), 400),
    "two different Host headers": (request(GET, b"host: example.org"), 400),
    "headers of 100 KB": (request(GET, *[b"X-A: " + b"a" * 1000] * 100), 431),
    "a header of 100 KB": (request(GET, b"X-A: " + b"a" * 100_000), 431),
    "a path of 100 KB": (request(b"GET /" + b"a" * 100_000 + b" HTTP/1.1"), 431),
    "a length below zero": (request(POST, b"Content-Length: -1"), 400),
    "a length with a plus": (request(POST, b"Content-Length: +2", body=b"{}"), 400),
    "a length in hex": (request(POST, b"Content-Length: 0x2", body=b"{}"), 400),
    "a length with an underscore": (request(POST, b"Content-Length: 1_0", body=b"{}"), 400),
    "a length in other digits": (request(POST, "Content-Length: ２".encode(), body=b"{}"), 400),
    "an empty length": (request(POST, b"Content-Length:"), 400),
    "a length of 5,000 digits": (request(POST, b"Content-Length: " + b"1" * 5000), 400),
    "two lengths": (request(POST, b"Content-Length: 2", b"Content-Length: 20", body=b"{}"), 400),
    "the same length twice": (request(POST, b"Content-Length: 2", b"Content-Length: 2", body=b"{}"), 400),
    "a list of lengths": (request(POST, b"Content-Length: 2, 2", body=b"{}"), 400),
    "length and chunks": (request(POST, JSON, b"Content-Length: 4", CHUNKED, body=b"2\r\n{}\r\n0\r\n\r\n"), 400),
    "chunks and length": (request(POST, JSON, CHUNKED, b"Content-Length: 4", body=b"2\r\n{}\r\n0\r\n\r\n"), 400),
    "chunks in HTTP/1.0": (request(b"POST /sessions HTTP/1.0", JSON, CHUNKED, body=b"2\r\n{}\r\n0\r\n\r\n"), 400),
    "gzip, then chunks": (request(POST, b"Transfer-Encoding: gzip, chunked"), 501),
    "chunks, then gzip": (request(POST, b"Transfer-Encoding: chunked, gzip"), 501),
    "a transfer coding that looks like chunks": (request(POST, b"Transfer-Encoding: xchunked"), 501),
    "a transfer coding behind a tab that is none": (request(POST, b"Transfer-Encoding: \x0bchunked"), 400),
    "a chunk of no number": (request(POST, JSON, CHUNKED, body=b"zz\r\n{}\r\n0\r\n\r\n"), 400),
    "a chunk below zero": (request(POST, JSON, CHUNKED, body=b"-2\r\n{}\r\n0\r\n\r\n"), 400),
    "a chunk that is longer than it says": (request(POST, JSON, CHUNKED, body=b"1\r\n{}\r\n0\r\n\r\n"), 400),
    "chunks of 10 MB": (request(CANCEL, JSON, CHUNKED, body=b"A00000\r\n" + b" " * 10 * MEGABYTE), 413),
    "a body of 10 MB": (post("/sessions/session-x/cancel", b" " * 10 * MEGABYTE), 413),
    "chunks of 60 MB": (request(POST, JSON, CHUNKED, body=b"3C00000\r\n" + b" " * 60 * MEGABYTE), 413),
    "a body of 60 MB": (post("/sessions", b" " * 60 * MEGABYTE), 413),
    "3 GB that are declared": (request(POST, JSON, b"Content-Length: 3000000000", body=b"{"), 413),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_request_is_refused(server: Server, name: str) -> None:
    data, status = BROKEN[name]
    received = send(server, data)
    if len(data) < MEGABYTE or received:  # else the answer may be lost with the rest of the body
        assert [answer.status for answer in parsed(received)] == [status]


@pytest.mark.parametrize(
    "first",
    [
        request(POST, JSON, b"Content-Length: 4", CHUNKED).replace(b"close", b"keep-alive"),
        request(b"POST /sessions HTTP/1.0", JSON, CHUNKED).replace(b"close", b"keep-alive"),
        request(POST, JSON, b"Content-Length: 0", b"Content-Length: 60").replace(b"close", b"keep-alive"),
    ],
    ids=["length and chunks", "chunks in HTTP/1.0", "two lengths"],
)
def test_no_request_can_hide_in_the_body_of_another(server: Server, first: bytes) -> None:
    before = session_count(server)
    assert ask(server, first + b"0\r\n\r\n" + post("/sessions", b"{}")).status == 400
    assert session_count(server) == before


def test_a_request_without_an_empty_line_gets_no_answer(server: Server) -> None:
    assert send(server, b"GET /sessions HTTP/1.1\nHost: localhost\n\n", cut=True) == b""


def test_a_request_that_is_cut_short_does_nothing(server: Server) -> None:
    before = session_count(server)
    for whole in (
        post("/sessions", b'{"a": 1}'),
        request(POST, JSON, CHUNKED, body=b"8\r\n" + b'{"a": 1}' + b"\r\n0\r\n\r\n"),
    ):
        for length in range(0, len(whole), 3):
            assert send(server, whole[:length], cut=True) == b""
    assert session_count(server) == before


# --- requests that are odd, and still requests ---

ODD: dict[str, tuple[bytes, int]] = {
    "empty lines first": (b"\r\n\r\n" + request(GET), 200),
    "HTTP/1.0": (request(b"GET /sessions HTTP/1.0"), 200),
    "no Host": (request(GET, host=None), 403),
    "an empty Host": (request(GET, host=b""), 403),
    "a Host in half brackets": (request(GET, host=b"[::1"), 403),
    "a Host with a port that is none": (request(GET, host=b"localhost:99999999"), 403),
    "a Host with a user": (request(GET, host=b"localhost@example.org"), 403),
    "two hosts in one": (request(GET, host=b"localhost, example.org"), 403),
    "an Origin that is no address": (request(GET, b"Origin: http://["), 403),
    "an Origin of odd bytes": (request(GET, b"Origin: \xff\xfe"), 403),
    "the Origin null": (request(GET, b"Origin: null"), 403),
    "a folded header": (request(GET, b"X-A: a\r\n b"), 200),
    "1,000 headers": (request(GET, *[b"X-%d: a" % number for number in range(1000)]), 200),
    "the whole address": (request(b"GET http://localhost/sessions HTTP/1.1"), 200),
    "the whole address of another host": (request(b"GET http://example.org/sessions HTTP/1.1"), 403),
    "the whole address, and another Host": (request(b"GET http://localhost/sessions HTTP/1.1", host=b"a.org"), 200),
    "two slashes first": (request(b"GET //sessions HTTP/1.1"), 200),
    "two slashes within": (request(b"GET /sessions//session-x HTTP/1.1"), 404),
    "a fragment": (request(b"GET /sessions#limit=0 HTTP/1.1"), 200),
    "an upgrade": (request(GET, b"Upgrade: h2c, websocket"), 200),
    "no expectation that is known": (request(GET, b"Expect: the-unexpected"), 200),
    "a method by another header": (post("/sessions/session-x", b"", b"X-HTTP-Method-Override: DELETE"), 405),
    "a length of 3,000 zeros and two": (
        request(POST, JSON, b"Content-Length: " + b"0" * 3000 + b"2", body=b"{}"),
        201,
    ),
    "chunks": (request(POST, JSON, CHUNKED, body=b"1;a=b\r\n{\r\n1\r\n}\r\n0\r\nX-A: a\r\n\r\n"), 201),
    "more than the length": (post("/sessions", b"") + b"GET / HTTP/9.9\r\n\r\n", 201),
    "a Content-Type of odd bytes": (post("/sessions", b"{}").replace(b"json", b'json; charset="\xff'), 201),
    "OPTIONS of everything": (request(b"OPTIONS * HTTP/1.1"), 404),
    "a tunnel": (request(b"CONNECT localhost:80 HTTP/1.1"), 404),
    "a path upwards": (request(b"GET /sessions/../../../etc/passwd HTTP/1.1"), 404),
    "a hidden path upwards": (request(b"GET /sessions/%2e%2e%2f%2e%2e%2fetc%2fpasswd HTTP/1.1"), 404),
    "a file of the package": (request(b"GET /__init__.py HTTP/1.1"), 404),
    "percent signs of no meaning": (request(b"GET /sessions/%zz%1% HTTP/1.1"), 404),
    "bytes that are no UTF-8": (request(b"GET /sessions/%ff%fe HTTP/1.1"), 404),
    "half a character": (request(b"GET /sessions/%ed%a0%80 HTTP/1.1"), 404),
    "NUL in the path": (request(b"GET /sessions/%00 HTTP/1.1"), 404),
    "a line break in the path": (request(b"GET /sessions/a%0d%0aSet-Cookie:%20a=b HTTP/1.1"), 404),
    "an id in capitals": (request(b"GET /sessions/SESSION-X HTTP/1.1"), 404),
    "an id of 60,000 letters": (request(b"GET /sessions/session-" + b"a" * 60_000 + b" HTTP/1.1"), 404),
    "a limit of 5,000 digits": (request(b"GET /sessions?limit=" + b"9" * 5000 + b" HTTP/1.1"), 400),
    "a limit in other digits": (request(b"GET /sessions?limit=%EF%BC%92 HTTP/1.1"), 400),
    "a limit that is none": (request(b"GET /sessions?limit=1e1 HTTP/1.1"), 400),
    "a limit of NUL": (request(b"GET /sessions?limit=%00 HTTP/1.1"), 400),
    "a query of nothing": (request(b"GET /sessions?&&=&==;&%&%zz HTTP/1.1"), 200),
    "a query that is no UTF-8": (request(b"GET /sessions?after=%ff HTTP/1.1"), 400),
    "10,000 values in a query": (request(b"GET /sessions?" + b"a=&" * 10_000 + b" HTTP/1.1"), 200),
    "an event id of odd bytes": (
        request(b"GET /sessions/session-x/run_stream HTTP/1.1", b"Last-Event-ID: \xff"),
        404,
    ),
    "two keys": (post("/sessions/session-x/run", b'{"message": "a"}', *[b"Idempotency-Key: a"] * 2), 400),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_request_is_answered(server: Server, name: str) -> None:
    data, status = ODD[name]
    answer = parsed(send(server, data))[0]
    assert answer.status == status
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("path", [*PATHS, *(f"/{name}" for name in PAGE_FILES)])
def test_head_is_get_without_the_body(server: Server, path: str) -> None:
    line = f"{path} HTTP/1.1".encode()
    whole = ask(server, request(b"GET " + line))
    head = ask(server, request(b"HEAD " + line), "HEAD")
    assert (head.status, head.body) == (whole.status, b"")
    for name in ("Content-Type", "Content-Length"):
        assert head.headers[name] == whole.headers[name]


def test_head_of_a_stream_is_refused(server: Server) -> None:
    path = f"/sessions/{server.create()}/run_stream"
    answer = ask(server, request(f"HEAD {path} HTTP/1.1".encode()), "HEAD")
    assert (answer.status, answer.headers["Allow"], answer.body) == (405, "GET, OPTIONS, POST", b"")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["TRACE", "PUT", "PROPFIND", "BREW", "M-SEARCH", "A" * 10_000])
def test_an_unknown_method_is_refused(server: Server, method: str, path: str) -> None:
    answer = ask(server, request(f"{method} {path} HTTP/1.1".encode(), b"Cookie: secret=1"))
    assert answer.status == 405
    assert "OPTIONS" in answer.headers["Allow"]
    assert b"secret" not in answer.body


@pytest.mark.parametrize("path", PATHS)
def test_options_tells_the_methods(server: Server, path: str) -> None:
    answer = ask(server, request(f"OPTIONS {path} HTTP/1.1".encode()))
    assert (answer.status, answer.body) == (200, b"")
    assert {"GET", "OPTIONS"} <= set(answer.headers["Allow"].split(", "))


@pytest.mark.parametrize("given", [b"", b"a b", b"\xff", b"a" * 129, b"a\tb"])
def test_a_request_id_of_another_form_is_not_taken_over(server: Server, given: bytes) -> None:
    answer = ask(server, request(GET, b"X-Request-Id: " + given))
    assert answer.headers["X-Request-Id"].startswith("req-")


def test_a_stream_over_http_1_0_is_not_chunked(server: Server) -> None:
    path = f"/sessions/{server.create()}/run_stream"
    answer = ask(server, post(path, b'{"message": "Hello"}').replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert "Transfer-Encoding" not in answer.headers
    assert answer.body.endswith(b"\n\n")


# --- bodies ---

BODIES: dict[str, tuple[bytes, str]] = {
    "100,000 brackets": (b"[" * 100_000, "invalid_request"),
    "100,000 brackets and their ends": (b"[" * 100_000 + b"]" * 100_000, "invalid_request"),
    "100,000 objects": (b'{"a":' * 100_000, "invalid_request"),
    "a thousand brackets in a field": (
        b'{"message": "a", "b": ' + b"[" * 1000 + b"]" * 1000 + b"}",
        "invalid_request",
    ),
    "NaN": (b'{"message": "a", "b": NaN}', "invalid_request"),
    "a number beyond all numbers": (b'{"message": "a", "b": 1e999}', "invalid_request"),
    "Infinity": (b'{"message": "a", "b": -Infinity}', "invalid_request"),
    "a lone surrogate": (rb'{"message": "\ud800"}', "invalid_request"),
    "a lone surrogate in a field": (rb'{"message": "a", "b": "\udfff"}', "invalid_request"),
    "a lone surrogate as a name": (rb'{"message": "a", "\ud800": 1}', "invalid_request"),
    "a surrogate in UTF-8": (b'{"message": "\xed\xa0\x80"}', "invalid_request"),
    "half a character": (b'{"message": "\xc3"}', "invalid_request"),
    "UTF-16": ('{"message": "a"}'.encode("utf-16"), "invalid_request"),
    "a byte order mark": (b'\xef\xbb\xbf{"message": "a"}', "invalid_request"),
    "NUL": (b'{"message": "a\0"}', "invalid_request"),
    "NUL behind it": (b'{"message": "a"}\0', "invalid_request"),
    "two objects": (b'{"message": "a"}{"message": "b"}', "invalid_request"),
    "nothing": (b"", "invalid_request"),
    "a list": (b'["message"]', "invalid_request"),
    "a number for the message": (b'{"message": 1e999}', "invalid_request"),
    "an object for the message": (b'{"message": {"message": "a"}}', "invalid_request"),
    "no message": (b'{"Message": "a"}', "invalid_request"),
    "blanks of many kinds": (rb'{"message": " \t\n\u00a0\u2003\u3000"}', "invalid_request"),
    "a little over 1 MiB": (b'{"message": "' + b"a" * MAX_BODY_BYTES + b'"}', "request_too_large"),
}


@pytest.mark.parametrize("operation", ["run", "run_stream"])
@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_cannot_be_taken_is_refused_and_stores_nothing(server: Server, name: str, operation: str) -> None:
    body, code = BODIES[name]
    session_id = server.create()
    assert ask(server, post(f"/sessions/{session_id}/{operation}", body)).json["code"] == code
    assert server.messages(session_id) == []


TAKEN: dict[str, tuple[bytes, str]] = {
    "one name twice: the last counts": (b'{"message": "a", "message": "b"}', "b"),
    "NUL, escaped": (rb'{"message": "a\u0000b"}', "a\0b"),
    "two surrogates": (rb'{"message": "\ud83d\ude00"}', "😀"),
    "characters that are none": (rb'{"message": "\uffff\ufffe"}', "\uffff\ufffe"),
    "line ends of JavaScript": ('{"message": "a\u2028b\u2029c\x85d"}'.encode(), "a\u2028b\u2029c\x85d"),
    "10,000 names": (b'{%b"message": "a"}' % b"".join(b'"%d": 0, ' % number for number in range(10_000)), "a"),
    "nearly 1 MiB": (b'{"message": "' + b"a" * (MAX_BODY_BYTES - 15) + b'"}', "a" * (MAX_BODY_BYTES - 15)),
}


@pytest.mark.parametrize("name", TAKEN)
def test_an_odd_message_is_stored_as_it_was_sent(server: Server, name: str) -> None:
    body, text = TAKEN[name]
    session_id = server.create()
    assert ask(server, post(f"/sessions/{session_id}/run", body)).status == 200
    assert server.messages(session_id)[0]["content"] == text


def test_a_body_that_comes_byte_by_byte_is_taken(server: Server) -> None:
    with connect(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in post("/sessions", b"{}"):
            connection.sendall(bytes([byte]))
        (answer,) = parsed(read_to_the_end(connection))
    assert answer.status == 201


def test_a_body_that_is_announced_is_asked_for(server: Server) -> None:
    head, _, body = post("/sessions", b"{}", b"Expect: 100-continue").rpartition(b"\r\n\r\n")
    with connect(server) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        (answer,) = parsed(read_to_the_end(connection))
    assert answer.status == 201


def test_a_body_that_is_announced_too_large_is_not_asked_for(server: Server) -> None:
    received = send(server, request(POST, JSON, b"Expect: 100-continue", b"Content-Length: 3000000000"))
    assert received.startswith(b"HTTP/1.1 413 ")


def test_an_announcement_of_no_body_is_answered_at_once(server: Server) -> None:
    assert send(server, request(GET, b"Expect: 100-continue")).startswith(b"HTTP/1.1 200 ")


# --- many at once ---


def test_pipelined_requests_are_answered_in_their_order(server: Server) -> None:
    lines = [b"GET /sessions HTTP/1.1", b"DELETE /health HTTP/1.1", b"GET /sessions/session-x HTTP/1.1"] * 20
    sent = [b"%b\r\nHost: localhost\r\nX-Request-Id: %d\r\n\r\n" % (line, n) for n, line in enumerate(lines)]
    answers = parsed(send(server, b"".join(sent) + request(GET, b"X-Request-Id: 60")))
    assert [answer.headers["X-Request-Id"] for answer in answers] == [str(number) for number in range(61)]
    assert [answer.status for answer in answers] == [200, 405, 404] * 20 + [200]


def test_nothing_behind_a_broken_request_is_done(server: Server) -> None:
    before = session_count(server)
    first = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answers = parsed(send(server, first + request(b"GET  / HTTP/1.1") + post("/sessions", b"{}")))
    assert [answer.status for answer in answers] == [200, 400]
    assert session_count(server) == before


def test_slow_senders_by_the_hundred_hold_back_nobody(server: Server) -> None:
    with many_connections(server, 400) as connections:
        stages = (b"", b"POST /sess", b"POST /sessions HTTP/1.1\r\nHost: local", post("/sessions", b"{}")[:-1])
        for number, connection in enumerate(connections):
            connection.sendall(stages[number % 4])
        converse(server)
        for number, connection in enumerate(connections):
            connection.sendall(post("/sessions", b"{}")[len(stages[number % 4]) :][:1])
        converse(server)


def test_clients_that_read_nothing_hold_back_nobody(server: Server) -> None:
    with many_connections(server, 50) as connections:
        for connection in connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        converse(server)


def test_connections_that_are_reset_at_once_hurt_nobody(server: Server) -> None:
    path = f"/sessions/{server.create()}/run_stream"
    for number in range(200):
        connection = connect(server)
        connection.sendall(post(path, b'{"message": "Hello"}')[: number * 2])
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


def test_connections_beyond_the_limit_wait_and_the_others_are_served(tmp_path: Path) -> None:
    few_files = ("sh", "-c", 'ulimit -n 256 && exec "$@"', "sh", *SERVER)
    with started(tmp_path / "server.log", f"-session_dir={tmp_path}", command=few_files) as server:
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)) as earlier:
            earlier.connect()
            with many_connections(server, 400):
                for _ in range(20):
                    earlier.request("POST", "/sessions")
                    response = earlier.getresponse()
                    assert (response.status, response.read() != b"") == (201, True)
        converse(server)
        assert "Traceback" not in server.log.read_text()


@contextmanager
def many_connections(server: Server, count: int) -> Iterator[list[socket.socket]]:
    """So many connections; when this ends the server has let go of them all."""
    before = open_files(server)
    with ExitStack() as stack:
        yield [stack.enter_context(connect(server)) for _ in range(count)]
    wait_until(lambda: open_files(server) <= before + 5)


def open_files(server: Server) -> int:
    folder = f"/proc/{server.process.pid}/fd"
    return len(os.listdir(folder)) if os.path.isdir(folder) else 0


TAKING_FILES = ["/sessions", "/sessions/session-x/run", "/sessions/session-x/run_stream", "/ui/chat"]
TAKING_FILES += ["/v1/chat/completions", "/v1/responses", "/v1/responses/compact", "/v1/conversations"]


@pytest.mark.parametrize("path", TAKING_FILES)
def test_a_route_that_takes_files_reads_a_large_body(server: Server, path: str) -> None:
    received = send(server, post(path, b'{"message": "' + b"a b" * MEGABYTE + b'"}'))
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"without its pictures and files" in received  # and not the words of the WSGI server


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured in /proc")
def test_memory_is_bounded_whatever_comes(server: Server) -> None:
    status = Path(f"/proc/{server.process.pid}/status")

    def most_megabytes() -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) // 1024

    converse(server)
    before = most_megabytes()
    too_much = [
        request(CANCEL, JSON, CHUNKED, body=b"A00000\r\n" + b" " * 10 * MEGABYTE),
        post("/sessions", b" " * 10 * MEGABYTE),
        post("/sessions", b" " * int(1.9 * MEGABYTE)),
        post("/sessions", b"[" * 100_000),
    ]
    senders = [threading.Thread(target=send, args=[server, data]) for data in too_much * 10]
    with many_connections(server, 200) as connections:
        for number, connection in enumerate(connections):
            unfinished = post("/sessions", b" " * MEGABYTE)[: MEGABYTE // 2]
            connection.sendall(unfinished if number % 4 == 0 else b"GET / HTTP/1.1\r\nX-A: " + b"a" * 60_000)
        for sender in senders:
            sender.start()
        converse(server)
        for sender in senders:
            sender.join()
    assert most_megabytes() - before < 200


# --- the token ---


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer secre",
        b"Bearer secret2",
        b"Bearer secret, Bearer secret",
        b"Basic secret",
        b"secret",
        b"Bearer \xff",
        b"Bearer s\xe9cret",
        b"Bearer " + b"a" * 60_000,
    ],
    ids=lambda given: given[:30].decode("latin-1"),
)
def test_nobody_comes_in_with_a_token_that_is_nearly_right(token_server: Server, given: bytes) -> None:
    answer = ask(token_server, request(GET, b"Authorization: " + given))
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")


def test_two_tokens_are_none(token_server: Server) -> None:
    assert ask(token_server, request(GET, *[b"Authorization: Bearer secret"] * 2)).status == 401


def test_a_token_lets_in_by_any_host(token_server: Server) -> None:
    assert ask(token_server, request(GET, b"Authorization: Bearer secret", host=b"chat.example.org")).status == 200


@pytest.fixture(scope="module")
def token_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("token") / "server.log", "-auth_token=secret") as server:
        yield server
