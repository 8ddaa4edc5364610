"""The model server of the tests: a real HTTP server on loopback that answers as the test says, faults included.

    with ModelServer(tool_call("calculator", {"expression": "1+1"}), answer("It is", " 2.")) as model:
        ...                                   # use model.base_url
        assert model.requests[1]["messages"][-1]["content"] == "2"

Each request gets the next reply in line, later ones `model.default`, which is `answer("OK")`; `model.then(...)` puts
more in line. A reply is a function from the request's body to a `demo.ScriptedReply`, so a test can write its own.

    answer("Hello", " world")                 text, each piece a chunk; whole where the request asks for that
    tool_call("calculator", {"expression": "1+1"}, id="call_1")
    tool_calls(("calculator", {...}), ("calculator", {...}))
    frames({...}, "[DONE]")                   just these events: dicts as JSON, text as it is; bytes are sent raw
    whole({...})                              a JSON body with status 200
    body(b"<html>", "text/html")              any body with status 200
    status(429, {"error": "slow down"}, {"Retry-After": "1"})
    raw(b"SSH-2.0-x", *steps)                 bytes in place of an HTTP response, then the steps, then the end

Between the pieces of `answer` and `frames`, and before them, may stand steps:

    STALL            nothing more comes until the client leaves
    BREAK            the connection ends here; RESET: with a reset
    HEADERS          status and headers leave now; without it they leave with the first piece
    wait(event)      goes on when the threading.Event is set, 60 s at most
    pause(0.1)       goes on after that many seconds
    tell(event)      sets the threading.Event

`answer(STALL)` says nothing at all, `answer("Hel", STALL)` stops in mid-answer, `answer("Hel", wait(go), "lo")` goes
on when the test says so.

What the server saw: `requests` (bodies), `headers` (of each request, names in lower case), `paths`, `connections`
(how many were opened), and `closed`, an Event that is set when a client left before its answer was complete, at most
0.2 s after it did. `wait_for(n)` waits until n requests have come.
"""

import itertools
import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Any

from session_core.model.demo import ScriptedReply, chunk, completion, event
from tests.support import scripted_server
from tests.support.scripted_server import Exchange

Step = Callable[[Exchange], object]
Piece = str | bytes | Mapping[str, Any] | Step
ReplyTo = Callable[[dict[str, Any]], ScriptedReply]

HEADERS = b""


def STALL(exchange: Exchange) -> None:
    exchange.wait(3600)


def BREAK(exchange: Exchange) -> None:
    raise _Broken


def RESET(exchange: Exchange) -> None:
    exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.connection.close()
    raise _Broken


def wait(event: threading.Event) -> Step:
    return lambda exchange: exchange.wait(60, until=event)


def pause(seconds: float) -> Step:
    return lambda exchange: exchange.wait(seconds)


def tell(event: threading.Event) -> Step:
    return lambda exchange: event.set()


def answer(*pieces: Piece, finish_reason: str | None = "stop", usage: Mapping[str, Any] | None = None) -> ReplyTo:
    """Text, a chunk for each string. Usage is told where it is given, asked or not."""

    def reply(request: dict[str, Any]) -> ScriptedReply:
        if not request.get("stream"):
            text = "".join(piece for piece in pieces if isinstance(piece, str))
            steps = [piece for piece in pieces if callable(piece)]
            data = completion({"content": text}, finish_reason or "", usage or {})
            return ScriptedReply([*steps, json.dumps(data).encode()], headers={"Content-Type": "application/json"})
        sent: list[Piece] = [chunk({"content": piece}) if isinstance(piece, str) else piece for piece in pieces]
        if pieces and isinstance(pieces[0], str):
            sent.insert(0, chunk({"role": "assistant", "content": ""}))
        sent.append(chunk({}, finish_reason))
        if usage:
            sent.append({**chunk({}), "choices": [], "usage": usage})
        return frames(*sent, "[DONE]")(request)

    return reply


def tool_call(
    name: str,
    arguments: Mapping[str, Any] | str,
    *,
    id: str = "call_1",
    text: str = "",
    finish_reason: str | None = "tool_calls",
    usage: Mapping[str, Any] | None = None,
) -> ReplyTo:
    """One tool call; arguments that are a string are sent as they stand."""
    return tool_calls((name, arguments), ids=[id], text=text, finish_reason=finish_reason, usage=usage)


def tool_calls(
    *calls: tuple[str, Mapping[str, Any] | str],
    ids: list[str] | None = None,
    text: str = "",
    finish_reason: str | None = "tool_calls",
    usage: Mapping[str, Any] | None = None,
) -> ReplyTo:
    """Several tool calls in one answer, with the ids call_1, call_2, … where none are given."""
    names = iter(ids) if ids else (f"call_{number}" for number in itertools.count(1))
    made = [
        {
            "id": id,
            "type": "function",
            "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)},
        }
        for (name, given), id in zip(calls, names, strict=False)
    ]

    def reply(request: dict[str, Any]) -> ScriptedReply:
        if not request.get("stream"):
            return whole(completion({"content": text, "tool_calls": made}, finish_reason or "", usage or {}))(request)
        pieces: list[Piece] = [chunk({"role": "assistant", "content": text})]
        pieces += [chunk({"tool_calls": [{"index": index, **call}]}) for index, call in enumerate(made)]
        pieces.append(chunk({}, finish_reason))
        if usage:
            pieces.append({**chunk({}), "choices": [], "usage": usage})
        return frames(*pieces, "[DONE]")(request)

    return reply


def frames(*pieces: Piece) -> ReplyTo:
    """A stream of just these events, with nothing added."""
    parts = [piece if isinstance(piece, bytes) or callable(piece) else event(piece) for piece in pieces]
    return lambda request: ScriptedReply(parts)


def body(content: bytes, content_type: str = "text/event-stream", **headers: str) -> ReplyTo:
    return lambda request: ScriptedReply([content], headers={"Content-Type": content_type, **headers})


def whole(data: object) -> ReplyTo:
    return body(json.dumps(data).encode(), "application/json")


def status(code: int, data: object = None, headers: Mapping[str, str] | None = None) -> ReplyTo:
    """A refusal: `data` as JSON, or as it stands if it is bytes."""
    content = data if isinstance(data, bytes) else json.dumps(data).encode()
    content_type = "text/html" if isinstance(data, bytes) else "application/json"
    return lambda request: ScriptedReply([content], code, {"Content-Type": content_type, **(headers or {})})


def raw(content: bytes, *steps: Step) -> ReplyTo:
    return lambda request: ScriptedReply([lambda exchange: exchange.wfile.write(content), *steps, BREAK])


def nobody_listens() -> str:
    """An address of a model server that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}/v1"


class _Broken(Exception):
    """Ends the connection."""


class _Exchange(Exchange):
    server: "ModelServer"

    def do_POST(self) -> None:
        self.server.paths.append(self.path)
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        try:
            super().do_POST()
        except _Broken:
            self.close_connection = True

    def do_GET(self) -> None:
        """The list of models, where there is one."""
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "x"} for name in self.server.listed]
        data = json.dumps({"object": "list", "data": models}).encode()
        self.send(ScriptedReply([data], 200 if models else 404, {"Content-Type": "application/json"}))


class ModelServer(scripted_server.ModelServer):
    """A model server with replies in line; see the module."""

    def __init__(self, *replies: ReplyTo, default: ReplyTo | None = None) -> None:
        super().__init__(self._next, _Exchange)
        self.default = default or answer("OK")
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.connections = 0
        self.listed: list[str] = []  # names of models
        self.closed = threading.Event()
        self._replies = list(replies)
        self._asked = threading.Condition()

    @property
    def workers(self) -> list[threading.Thread]:
        """The threads that serve a connection, one for each that is open."""
        return list(self._connections)

    def then(self, *replies: ReplyTo) -> None:
        with self._asked:
            self._replies.extend(replies)

    def forget(self) -> None:
        """Drops the requests that came and the replies that are still in line."""
        with self._asked:
            self.requests.clear()
            self._replies.clear()

    def wait_for(self, count: int, timeout: float = 30) -> None:
        """Returns when that many requests have come. Raises AssertionError if they do not."""
        with self._asked:
            assert self._asked.wait_for(lambda: len(self.requests) >= count, timeout), "the model was not asked"

    def client_left(self, exchange: Exchange) -> None:
        self.closed.set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)

    def _next(self, request: dict[str, Any]) -> ScriptedReply:
        with self._asked:
            self.requests.append(request)
            reply = self._replies.pop(0) if self._replies else self.default
            self._asked.notify_all()
        return reply(request)
