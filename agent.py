"""A model that may call tools, as a stream of events.

agent = Agent(api_key="sk-…", model="gpt-4o-mini", tools=[calculator])
for event in agent.run([{"role": "user", "content": "What is 15 * 23?"}], Stop()):
    print(event)
"""

import collections
import email.utils
import functools
import inspect
import ipaddress
import itertools
import json
import logging
import math
import os
import random
import re
import secrets
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import openai
import pydantic

_log = logging.getLogger(__name__)
_http: Any = sys.modules[openai.DefaultHttpxClient.__mro__[1].__module__]  # httpx2; httpx under older releases

_MAX_ROUNDS = 10  # of tool calls in one run
_MAX_CALLS = 64  # in one answer
_MAX_ANSWER = 8 << 20  # bytes of text, tool calls and reasoning in one run
_MAX_RESULT = 1 << 20  # characters of one tool's result
_MAX_LINE = 4096  # bytes of the line before a chunk
_MAX_REFUSAL = 64 << 10  # bytes of a body that is no answer
_MAX_RETRIES = 2
_MAX_IDLE = 16  # clients that wait for the next runs
_IDLE_SECONDS = 30.0
_CONNECT_SECONDS = 10.0
_TAIL_SECONDS = 0.01  # how long the end of a body may take after "[DONE]"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the answer's text, never empty."""

    content: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model wants a tool. `arguments` is what it sent, which should be a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What came of a call: a result, or an error that the model has been told."""

    id: str
    name: str
    result: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """A complete message for the history: the assistant's with tool calls, or a tool's.

    `usage` is summed over the model calls of the run so far, if the model server tells it.
    """

    data: dict[str, Any]
    usage: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The last event of a run that ended well, with the text after the last tool call.

    `reason` is why the answer is not complete: `length`, `content_filter` or `no_finish_reason`.
    """

    content: str
    finish_reason: str | None
    reason: str | None
    usage: dict[str, Any] | None


Event = Chunk | ToolCall | ToolResult | Message | Answer


class ModelError(Exception):
    """There is no answer. The text is a sentence for people, without any of the model server's own words.

    `code` is `context_length_exceeded`, `model_rate_limited`, `model_error`, `model_unauthorized`,
    `too_many_tool_rounds` or `model_timeout`. `retry_after` is the model server's header, if it limits the rate.
    """

    def __init__(self, code: str, sentence: str, retry_after: str | None = None) -> None:
        super().__init__(sentence)
        self.code = code
        self.retry_after = retry_after


class Stopped(Exception):
    """The run was ended by its `Stop`."""


class Stop:
    """Ends one run, from any thread and at any time, also while the model server is silent. Never blocks."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.RLock()  # a signal handler may interrupt its own thread in here
        self._sockets: list[socket.socket] = []

    def set(self) -> None:
        with self._lock:
            self._event.set()
            for sock in self._sockets:
                _shut_down(sock)

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Waits for `set()`, at most that long. Gives `is_set()`."""
        return self._event.wait(seconds)

    def _watch(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.append(sock)
            if self._event.is_set():
                _shut_down(sock)

    def _release(self) -> bool:
        """Lets the sockets go. Gives whether they are unharmed."""
        with self._lock:
            self._sockets = []
            return not self._event.is_set()


def _shut_down(sock: socket.socket) -> None:
    with suppress(OSError):  # closed by now
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # that of SSLSocket takes away what its reader works with


class Agent:
    """A model and its tools. One agent serves any number of runs at once, and keeps nothing between them.

    `base_url` is OpenAI's own if None. `stream=False` asks for whole answers. `max_history` is how many of the
    newest messages before the current turn go to the model, cut between turns (0: all). `timeout` is in seconds,
    for a whole run.

    A tool is a plain function. The model is told its name, its docstring and what its annotations say of the
    arguments, and what it asks for is checked against them. What the function returns goes to the model as text,
    as JSON if it is not a string. So does the text of a ValueError; of other exceptions only the type.

    Raises ValueError if a tool, the address or the proxy settings cannot be used.
    """

    def __init__(
        self,
        *,
        api_key: str,
        base_url: str | None = None,
        model: str,
        stream: bool = True,
        system_prompt: str = "",
        tools: Sequence[Callable[..., Any]] = (),
        max_history: int = 0,
        timeout: float = 120.0,
    ) -> None:
        self._api_key = api_key
        self._base_url = base_url or "https://api.openai.com/v1"
        self._model = model
        self._stream = stream
        self._system = [{"role": "system", "content": _text(system_prompt)}] if system_prompt else []
        self._tools = {tool.name: tool for tool in map(_Tool, tools)}
        if len(self._tools) < len(tools):
            raise ValueError("two tools have the same name")
        self._max_history = max_history
        self._timeout = timeout
        self._ask_usage = stream
        self._idle = collections.deque([self._new_line()])
        self._closed = False
        self._lock = threading.Lock()

    def run(self, history: Sequence[Mapping[str, Any]], stop: Stop) -> Generator[Event, None, None]:
        """Answers the last user message of `history`, calling tools as the model asks.

        `history` is the stored messages, oldest first; whatever state they are in, the request is well formed. An
        assistant message with tool calls comes first as a `Message`, then all its `ToolCall`s, then for each the
        tool's `Message` and its `ToolResult`. The last event is the `Answer`.

        Raises ModelError, and Stopped after `stop.set()`. A model server that falls silent just before the time is
        up can take up to twice the timeout; `stop.set()` ends that at once.
        """
        run = _Run(stop, self._timeout)
        conversation = _Conversation(history, self._max_history)
        with self._borrowed_client(stop) as client:
            answer = yield from self._rounds(client, conversation, run)
        yield answer

    def close(self) -> None:
        """Closes the connections; those of runs that still go on, when they end."""
        with self._lock:
            self._closed = True
            idle = list(self._idle)
            self._idle.clear()
        for line in idle:
            line.close()

    def _rounds(
        self, client: openai.OpenAI, conversation: "_Conversation", run: "_Run"
    ) -> Generator[Event, None, Answer]:
        rounds = 0
        while True:
            reply = yield from self._ask(client, conversation, run)
            text, reason = "".join(reply.text), reply.finish_reason or "no_finish_reason"
            complete = reason not in ("length", "content_filter", "no_finish_reason")
            calls = reply.calls(conversation) if complete else []
            if not calls:
                return Answer(text, reply.finish_reason, None if complete else reason, run.usage)
            if rounds == _MAX_ROUNDS:
                raise ModelError("too_many_tool_rounds", f"The model wanted tools more than {_MAX_ROUNDS} times.")
            yield conversation.add(_assistant(text, calls), run)
            yield from calls
            for call in calls:
                run.remaining()
                result = self._call_tool(call)
                content = result.result if result.error is None else f"error: {result.error}"
                message = {"role": "tool", "tool_call_id": call.id, "name": call.name, "content": content}
                yield conversation.add(message, run)
                yield result
            rounds += 1

    def _call_tool(self, call: ToolCall) -> ToolResult:
        tool = self._tools.get(call.name)
        if tool is None:
            known = ", ".join(self._tools) or "none"
            return ToolResult(call.id, call.name, error=f"there is no tool of this name; the tools are: {known}")
        try:
            return ToolResult(call.id, call.name, result=tool(call.arguments))
        except ValueError as error:
            return ToolResult(call.id, call.name, error=_text(str(error))[:_MAX_RESULT] or "the tool failed")
        except (Exception, SystemExit) as error:  # noqa: BLE001  a tool is anybody's code
            _log.warning("Tool %s failed with %s", call.name, type(error).__name__)
            return ToolResult(call.id, call.name, error=f"the tool failed ({type(error).__name__})")

    def _ask(
        self, client: openai.OpenAI, conversation: "_Conversation", run: "_Run"
    ) -> Generator[Event, None, "_Reply"]:
        """One answer, asked for again where that may help and nothing of it has been seen."""
        retries = 0
        without_usage = False
        while True:
            body = self._body(conversation)
            try:
                return (yield from self._answer(client, body, run))
            except _Failure as failure:
                if failure.begun:
                    raise
                if failure.code == "context_length_exceeded" and conversation.halve():
                    continue
                if failure.code == "model_error" and failure.status in (400, 422):
                    self._ask_usage = without_usage and self._stream  # refused without it too: it was something else
                    without_usage = not without_usage
                    if "stream_options" in body:
                        continue
                delay = failure.delay if failure.delay is not None else random.uniform(0.4, 0.6) * 2**retries
                if not failure.passing or retries == _MAX_RETRIES or delay >= run.remaining():
                    raise
            retries += 1
            if run.stop.wait(delay):
                raise Stopped

    def _body(self, conversation: "_Conversation") -> dict[str, Any]:
        body: dict[str, Any] = {"model": self._model, "messages": [*self._system, *conversation.messages()]}
        if self._tools:
            body["tools"] = [tool.schema for tool in self._tools.values()]
        body["stream"] = self._stream
        if self._ask_usage:
            body["stream_options"] = {"include_usage": True}
        return body

    def _answer(self, client: openai.OpenAI, body: dict[str, Any], run: "_Run") -> Generator[Event, None, "_Reply"]:
        """One request, and its answer as it comes."""
        reply = _Reply(run)
        left = run.remaining()
        begun = False
        asked = time.monotonic()
        _log.debug("Asking %s with %d messages, %.0f s left", self._model, len(body["messages"]), left)
        try:
            with client.post(
                "/chat/completions",
                body=body,
                cast_to=object,
                stream=True,
                stream_cls=openai.Stream[object],
                options={"timeout": openai.Timeout(left, connect=min(left, _CONNECT_SECONDS))},
            ) as stream:
                # The SDK's own iterator bounds no line, costs 20 µs more a chunk, and gives the connection up.
                parts = _body(stream.response)
                for data in _frames(parts, run) if self._stream else _whole(parts, run):
                    if data.startswith(b"[DONE]"):
                        _read_tail(stream.response)
                        break
                    if text := reply.add(json.loads(data.decode())):
                        begun = True
                        yield Chunk(text)
            if text := reply.end():
                yield Chunk(text)
        except (openai.OpenAIError, _http.HTTPError, OSError, ValueError, RuntimeError) as error:
            if run.stop.is_set():
                raise Stopped from None
            sent = [self._api_key, *(message["content"] for message in body["messages"])]
            raise _failure(error, begun or reply.has_calls, sent) from None  # its text is not for every log
        run.usage = _summed(run.usage, reply.usage)
        _log.debug("Answered after %.3f s: %r", time.monotonic() - asked, reply.finish_reason)
        return reply

    @contextmanager
    def _borrowed_client(self, stop: Stop) -> Iterator[openai.OpenAI]:
        """A client for one run. Goes back only after a run that ended well: else nobody knows its connections."""
        with self._lock:
            line = self._idle.pop() if self._idle else None
        line = line or self._new_line()
        ended_well = False
        try:
            line.attach(stop)
            yield line.client
            ended_well = True
        finally:
            if stop._release() and ended_well:
                self._give_back(line)
            else:
                line.close()

    def _give_back(self, line: "_Line") -> None:
        line.idle_since = time.monotonic()
        surplus = []
        with self._lock:
            self._idle.append(line)
            limit = 0 if self._closed else _MAX_IDLE
            oldest = line.idle_since - _IDLE_SECONDS
            while len(self._idle) > limit or (self._idle and self._idle[0].idle_since < oldest):
                surplus.append(self._idle.popleft())
        for unused in surplus:
            unused.close()

    def _new_line(self) -> "_Line":
        try:
            return _Line(self._api_key, self._base_url)
        except (ImportError, ValueError, _http.InvalidURL) as error:
            raise ValueError(f"{self._base_url} cannot be used as it is set up: {error}") from error


class _Run:
    """The bounds of one run, and what it has used."""

    def __init__(self, stop: Stop, timeout: float) -> None:
        self.stop = stop
        self.usage: dict[str, Any] | None = None
        self._deadline = time.monotonic() + timeout
        self._size = 0

    def remaining(self) -> float:
        """The seconds that are left. Raises Stopped, or ModelError when there are none."""
        if self.stop.is_set():
            raise Stopped
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise ModelError("model_timeout", "The model server did not answer in time.")
        return left

    def grow(self, size: int) -> None:
        self._size += size
        if self._size > _MAX_ANSWER:
            raise ModelError("model_error", "The model's answer is too long.")


class _Line:
    """A client of the SDK with a connection pool of its own, whose sockets are known to the run that uses it."""

    def __init__(self, api_key: str, base_url: str) -> None:
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError("the address of a model server begins with http:// or https:// and a host")
        http = openai.DefaultHttpxClient(
            verify=_tls_context(),
            trust_env=not _is_loopback(address.hostname),  # a proxy has no way to this machine
            limits=_http.Limits(keepalive_expiry=_IDLE_SECONDS),
            event_hooks={"request": [self._on_request], "response": [_shorten_refusal]},
        )
        self.client = openai.OpenAI(api_key=api_key, base_url=base_url, max_retries=0, http_client=http)
        self.idle_since = time.monotonic()
        self._sockets: list[socket.socket] = []
        self._stop = Stop()

    def attach(self, stop: Stop) -> None:
        self._stop = stop
        for sock in self._sockets:
            stop._watch(sock)

    def close(self) -> None:
        self.client.close()
        for sock in self._sockets:
            sock.close()

    def _on_request(self, request: Any) -> None:
        request.extensions["trace"] = self._on_trace

    def _on_trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            _Tap(info["return_value"])
        if event.endswith("connect_tcp.complete"):
            self._note(info["return_value"].get_extra_info("socket"))
        elif event.endswith("start_tls.started"):  # takes the descriptor away from its socket
            sock = self._sockets[-1]
            self._note(socket.fromfd(sock.fileno(), sock.family, sock.type))
        elif event.endswith("start_tls.complete"):
            self._sockets.pop().close()
            self._note(info["return_value"].get_extra_info("socket"))

    def _note(self, sock: socket.socket) -> None:
        self._sockets = [*(known for known in self._sockets if known.fileno() >= 0), sock]
        self._stop._watch(sock)


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """What all clients share, since reading the certificates takes long."""
    context: ssl.SSLContext = _http.create_ssl_context()
    return context


def _shorten_refusal(response: Any) -> None:
    """Reads the beginning of a body that is no answer, so that the rest takes no memory."""
    if response.status_code >= 300:
        head = b""
        for part in response.stream:
            head += part
            if len(head) > _MAX_REFUSAL:
                break
        response.stream.close()
        response.stream = _http.ByteStream(head[:_MAX_REFUSAL])


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


# Reading an answer


class _Tap:
    """The reading end of a connection, for a body that comes in many small chunks (RFC 9112, section 7.1).

    The HTTP library is given the headers of a response and no more, then the chunks are taken apart here, for 1 µs
    each in place of 15, and last it is given the end of the body, so that it uses the connection again.
    """

    def __init__(self, stream: Any) -> None:
        self._stream_read = stream.read
        self._socket: socket.socket = stream.get_extra_info("socket")
        self._held = b""  # has been read, and not been given to anybody
        self._seen = b""  # the last bytes that the library was given
        self._after_headers = False
        stream.read = self.read

    @classmethod
    def of(cls, response: Any) -> "_Tap | None":
        """The one that a chunked body is to be read through, from its first byte; None for any other body."""
        headers = response.headers
        if headers.get("transfer-encoding", "").lower() != "chunked" or "content-encoding" in headers:
            return None
        stream = response.extensions.get("network_stream")
        tap = getattr(getattr(stream, "read", None), "__self__", None)
        if not isinstance(tap, cls) or not tap._after_headers:
            return None
        in_tunnel = stream.get_extra_info("ssl_object") and not isinstance(tap._socket, ssl.SSLSocket)
        return None if in_tunnel else tap  # TLS within the TLS of a proxy is no socket's

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """What the library reads: up to an empty line, where headers end, and no further."""
        data: bytes = self._held or self._stream_read(max_bytes, timeout)
        end = (self._seen + data).find(b"\r\n\r\n") + 4 - len(self._seen)
        self._after_headers = end > 3 - len(self._seen)
        self._held = data[end:] if self._after_headers else b""
        data = data[:end] if self._after_headers else data
        self._seen = b"" if self._after_headers else data[-3:]
        return data

    def _receive_within(self, timeout: float | None) -> Callable[[int], bytes]:
        """How to read, for so many seconds at most at a time. A plain socket is left to the kernel's own clock: one
        system call a piece in place of two, and so one wait less for the interpreter lock."""
        if isinstance(self._socket, ssl.SSLSocket) or os.name != "posix":
            self._socket.settimeout(timeout)
            return self._socket.recv
        microseconds = 0 if timeout is None else max(1, int(timeout * 1e6))  # 0 is for ever
        self._socket.settimeout(None)
        timeval = struct.pack("ll", *divmod(microseconds, 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        return self._receive

    def _receive(self, size: int) -> bytes:
        try:
            return self._socket.recv(size)
        except BlockingIOError:
            raise TimeoutError("nothing came in time") from None

    def body(self, timeout: float | None) -> Iterator[bytes]:
        """The chunks as they come, those that come together joined. Raises OSError if they break off."""
        receive = self._receive_within(timeout)
        data, left = self._held, 0  # of the chunk that has begun, the line end behind it included
        while True:
            at = 0
            parts = []
            while at < len(data):
                if not left:
                    line_end = data.find(b"\r\n", at)
                    size = int(data[at:line_end].partition(b";")[0], 16) if line_end >= 0 else -1
                    if size <= 0:
                        break
                    at, left = line_end + 2, size + 2
                piece = data[at : at + left]
                parts.append(piece[: left - 2])
                at, left = at + len(piece), left - len(piece)
            data = data[at:]
            self._held = b"" if left else data
            if parts:
                yield b"".join(parts)
            if data and (size == 0 or size < -1 or len(data) > _MAX_LINE):
                break
            more = receive(1 << 16)
            if not more:
                raise ConnectionError("the body is not complete")
            data += more
        if size:
            raise ValueError("a chunk without a size")


def _body(response: Any) -> Iterator[bytes]:
    """The body of a response, in pieces as they come."""
    if tap := _Tap.of(response):
        yield from tap.body(response.request.extensions["timeout"]["read"])
        _read_tail(response)
    else:
        yield from response.iter_bytes()


def _frames(parts: Iterable[bytes], run: _Run) -> Iterator[bytes]:
    """The data of each server-sent event in a body. Raises _NotAnAnswer where there is none."""
    pending: list[bytes] = []  # of a line whose end has not come
    data: list[bytes] = []
    held = 0
    head: bytes | None = b""
    for part in itertools.chain(parts, [b"\n\n"]):  # not every server ends its last event
        run.remaining()
        held += len(part)
        if held > 2 * _MAX_ANSWER:
            raise ModelError("model_error", "The model's answer is too long.")
        if head is not None and len(head) < _MAX_REFUSAL:
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
        try:
            raise _NotAnAnswer(json.loads(head))
        except json.JSONDecodeError:
            raise _NotAnAnswer(None) from None


def _whole(parts: Iterable[bytes], run: _Run) -> Iterator[bytes]:
    """The body as one frame."""
    body = bytearray()
    for part in parts:
        run.remaining()
        body += part
        if len(body) > 2 * _MAX_ANSWER:
            raise ModelError("model_error", "The model's answer is too long.")
    yield bytes(body)


def _read_tail(response: Any) -> None:
    """Reads the end of a body, if it is there, so that the connection can be used again.

    A new iterator over the raw stream takes the timeout anew from the request.
    """
    response.request.extensions["timeout"]["read"] = _TAIL_SECONDS
    with suppress(_http.HTTPError, OSError):
        for _ in itertools.islice(response.stream, 16):
            pass


class _Call:
    """A tool call that is arriving."""

    def __init__(self, id: str, name: str) -> None:
        self.id = id
        self.name = name
        self.arguments: list[str] = []


class _Reply:
    """One answer of the model, put together from its frames."""

    def __init__(self, run: _Run) -> None:
        self.text: list[str] = []
        self.finish_reason: str | None = None
        self.usage: Any = None
        self._run = run
        self._half = ""  # of a character that was split over two frames
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}

    def add(self, frame: Any) -> str:
        """Takes in one frame, a chunk or a whole completion. Gives the text that it brought."""
        if not isinstance(frame, dict):
            raise ValueError("a frame is not a JSON object")
        if frame.get("error") or frame.get("object") == "error":
            raise _NotAnAnswer(frame)
        if usage := frame.get("usage"):
            self.usage = usage
        choices = frame.get("choices")
        if not choices or not isinstance(choices, list):
            return ""
        choice = choices[0]
        if not isinstance(choice, dict) or choice.get("index"):
            return ""
        if reason := choice.get("finish_reason"):
            self.finish_reason = _text(str(reason))[:100]
        delta = choice.get("delta") or choice.get("message")
        if not isinstance(delta, dict):
            return ""
        text = delta.get("content")
        if text and not isinstance(text, str):
            self._run.grow(len(str(text)))
            text = _text_of_parts(text)
        if text:
            if self._half or not text.isascii():
                text = self._whole_characters(text)
            self._run.grow(len(text) if text.isascii() else len(text.encode()))
            self.text.append(text)
        if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
            self._run.grow(len(str(reasoning)))
        if calls := delta.get("tool_calls"):
            self._add_calls(calls)
        return text or ""

    @property
    def has_calls(self) -> bool:
        return bool(self._calls)

    def end(self) -> str:
        """The last text, if any is left. Raises ValueError if nothing has come at all."""
        rest, self._half = _text(self._half), ""
        self.text.append(rest)
        if self.finish_reason is None and not any(call.name for call in self._calls) and not any(self.text):
            raise ValueError("nothing in the answer")
        return rest

    def calls(self, conversation: "_Conversation") -> list[ToolCall]:
        """The tool calls, each with an id that is unique in the conversation."""
        return [
            ToolCall(conversation.unique_id(_text(call.id)), _text(call.name), _text("".join(call.arguments)) or "{}")
            for call in self._calls
            if call.name
        ]

    def _whole_characters(self, text: str) -> str:
        text = self._half + text
        self._half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
        return _text(text[:-1] if self._half else text)

    def _add_calls(self, pieces: Any) -> None:
        for piece in pieces if isinstance(pieces, list) else ():
            if not isinstance(piece, dict):
                continue
            function = piece.get("function")
            function = function if isinstance(function, dict) else {}
            id, name, arguments = piece.get("id"), function.get("name"), function.get("arguments")
            id, name = id if isinstance(id, str) else "", name if isinstance(name, str) else ""
            if not isinstance(arguments, str):
                arguments = "" if arguments is None else json.dumps(arguments)
            self._run.grow(len(id) + len(name) + len(arguments))
            call = self._call_of(piece.get("index"), id, name)
            call.id = call.id or id
            call.name = call.name or name
            if arguments:
                call.arguments.append(arguments)

    def _call_of(self, index: Any, id: str, name: str) -> _Call:
        """The call that a piece belongs to: by index where there is one, else by what the piece begins."""
        last = self._calls[-1] if self._calls else None
        if isinstance(index, int):
            call = self._by_index.get(index)
            new = call is None or bool(id and name and call.id and id != call.id)
        else:
            call = last
            new = call is None or (id != call.id if id else bool(name))
        if call is None or new:
            if len(self._calls) == _MAX_CALLS:
                raise ModelError("model_error", "The model asked for too many tools at once.")
            call = _Call(id, name)
            self._calls.append(call)
            if isinstance(index, int):
                self._by_index[index] = call
        return call


def _text_of_parts(parts: Any) -> str:
    """The text in a list of content parts, without the reasoning."""
    texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return "".join(text for text in texts if isinstance(text, str))


def _text(value: object) -> str:
    """A string that UTF-8 can hold: halves of a character are joined, or replaced. Empty if it is no string."""
    if not isinstance(value, str) or value.isascii():
        return value if isinstance(value, str) else ""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def _summed(before: dict[str, Any] | None, usage: Any, depth: int = 0) -> dict[str, Any] | None:
    """The numbers of two usages added up, those of their details too."""
    total = dict(before or {})
    for key, value in list(usage.items())[:50] if isinstance(usage, dict) else ():
        known = total.get(key := _text(key)[:100])
        if isinstance(value, dict) and depth < 3:
            total[key] = _summed(known if isinstance(known, dict) else None, value, depth + 1) or {}
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15:
            total[key] = value + (known if isinstance(known, (int, float)) else 0)
    return total or None


# Tools


class _Tool:
    """A function as the model sees it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = getattr(function, "__name__", "")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self.name) or inspect.iscoroutinefunction(function):
            raise ValueError(f"{function!r} cannot be a tool: it is no plain function with a name")
        target: Any = function  # takes functions too, which its annotation does not tell
        self._adapter = pydantic.TypeAdapter(target)
        parameters = self._adapter.json_schema()
        if parameters["type"] != "object":
            raise ValueError(f"{self.name} cannot be a tool: its arguments need names")
        description = inspect.getdoc(function) or ""
        self.schema = {
            "type": "function",
            "function": {"name": self.name, "description": description, "parameters": parameters},
        }

    def __call__(self, arguments: str) -> str:
        """Calls the function. Raises ValueError, in words for the model, if the arguments do not fit."""
        if _json_object(arguments) is None:
            raise ValueError("the arguments are not a JSON object")
        try:
            result = self._adapter.validate_json(arguments)
        except pydantic.ValidationError as error:
            faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise ValueError("invalid arguments: " + "; ".join(faults)) from None
        text = _text(result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str))
        return text if len(text) <= _MAX_RESULT else text[:_MAX_RESULT] + " … (cut off)"


def _json_object(text: object) -> dict[str, Any] | None:
    """The object that a JSON text stands for, or None where it is not one that every server can read."""
    if not isinstance(text, str):
        return None
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# What goes out


class _Conversation:
    """A history as the model is to see it: the turns before, which may be cut, and the current one."""

    def __init__(self, history: Sequence[Mapping[str, Any]], max_history: int) -> None:
        self._history = [message for message in history if type(message) is dict or isinstance(message, Mapping)]
        turns: list[list[Mapping[str, Any]]] = [[]]
        for message in self._history:
            if message.get("role") == "user" and turns[-1]:
                turns.append([])
            turns[-1].append(message)
        *self._earlier, self._current = turns
        self._halved = False
        self._ids: set[str] = set()
        if max_history:
            self._keep_newest(max_history, len)

    def add(self, data: dict[str, Any], run: _Run) -> Message:
        self._current.append(data)
        return Message(data, run.usage)

    def unique_id(self, id: str) -> str:
        """This id, or a new one where it is missing or taken."""
        self._ids = self._ids or {call.id for message in self._history for call in tool_calls_of(message)}
        return _add_id(id, self._ids)

    def halve(self) -> bool:
        """Keeps the newest half of the text before the current turn. Gives whether that made a difference."""
        if self._halved or not self._earlier:
            return False
        self._halved = True
        self._keep_newest(sum(map(_size, self._earlier)) // 2, _size)
        return True

    def _keep_newest(self, limit: int, measure: Callable[[list[Mapping[str, Any]]], int]) -> None:
        sizes = itertools.accumulate(map(measure, reversed(self._earlier)))
        kept = sum(1 for size in sizes if size <= limit)
        self._earlier = self._earlier[len(self._earlier) - kept :]

    def messages(self) -> list[dict[str, Any]]:
        """The messages in the form that every server takes, mended where the history is not."""
        sent: list[dict[str, Any]] = []
        ids: set[str] = set()
        for turn in (*self._earlier, self._current):
            results: dict[str, list[str]] | None = None
            for message in turn:
                role, text = message.get("role"), _text(message.get("content"))
                last = sent[-1]["role"] if sent else None
                if role == "user":
                    if last == "tool":
                        sent.append({"role": "assistant", "content": "(interrupted)"})
                    elif last == "user":
                        text = _joined(sent.pop()["content"], text)
                    sent.append({"role": "user", "content": text})
                elif role == "assistant":
                    calls = tool_calls_of(message) if "tool_calls" in message else []
                    if not calls and not text.strip():
                        continue
                    if last == "assistant":
                        text = _joined(sent.pop()["content"], text)
                    if calls:
                        results = _results(turn) if results is None else results
                        sent.extend(_sendable(text, calls, results, ids))
                    else:
                        sent.append(_assistant(text, []))
        return sent


def _results(turn: list[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What the tools gave in a turn, by the ids of their calls."""
    results: dict[str, list[str]] = {}
    for message in turn:
        if message.get("role") == "tool":
            results.setdefault(_text(message.get("tool_call_id")), []).append(_text(message.get("content")))
    return results


def _sendable(
    text: str, calls: list[ToolCall], results: dict[str, list[str]], ids: set[str]
) -> Iterator[dict[str, Any]]:
    """An assistant's message, each call in it with a name, an id and arguments that servers take, and its result."""
    contents = [results[call.id].pop(0) if results.get(call.id) else "error: interrupted" for call in calls]
    named = [
        ToolCall(
            _add_id(call.id, ids),
            re.sub(r"[^A-Za-z0-9_-]", "_", call.name)[:64],
            call.arguments if _json_object(call.arguments) is not None else "{}",
        )
        for call in calls
    ]
    yield _assistant(text, named)
    for call, content in zip(named, contents, strict=True):
        yield {"role": "tool", "tool_call_id": call.id, "content": content}


def _add_id(id: str, ids: set[str]) -> str:
    """Adds an id, or a new one if it is empty or there already. Gives the one that was added."""
    while not id or id in ids:
        id = secrets.token_hex(5)[:9]  # nine letters or digits are what Mistral takes
    ids.add(id)
    return id


def _assistant(text: str, calls: list[ToolCall]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return message


def tool_calls_of(message: Mapping[str, Any]) -> list[ToolCall]:
    """The tool calls of a stored message, as far as they have a name."""
    found = []
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and (name := _text(function.get("name"))):
            found.append(ToolCall(_text(call.get("id")), name, _text(function.get("arguments"))))
    return found


def _joined(one: str, other: str) -> str:
    return "\n\n".join(filter(None, (one, other)))


def _size(turn: list[Mapping[str, Any]]) -> int:
    texts = (len(_text(message.get("content"))) for message in turn)
    return sum(texts) + sum(len(call.arguments) for message in turn for call in tool_calls_of(message))


# What goes wrong

_OVERFLOW = re.compile(
    r"context|prompt is (too long|longer)|prompt \(length|too many tokens|maximum (model|sequence) length"
    r"|input token count|reduce the length",
    re.IGNORECASE,
)
_BAD_KEY = re.compile(r"api[ _-]?key|auth\w*[ _-]error|authenticat|unauthori[sz]ed", re.IGNORECASE)
_SECRET = re.compile(
    r"bearer\s+\S+|\b(?:sk|pk|rk|gsk|xai|hf|key)[-_][^\s'\",;]+|(?=[\w+/*-]*\d)[\w+/*-]{24,}={0,2}"
    r"|(?:key|token|secret|password)\w*\)?\s*[:=]\s*\S+",
    re.IGNORECASE,
)


class _NotAnAnswer(ValueError):
    """Something else where an answer or a piece of it should be, such as an error."""

    def __init__(self, body: object) -> None:
        super().__init__("not an answer")
        self.body = body


class _Failure(ModelError):
    """A failed request: `begun` if some of the answer was there, `passing` if it may go better after `delay`."""

    begun = False
    passing = False
    status: int | None = None
    delay: float | None = None


def _failure(error: Exception, begun: bool, sent: list[str]) -> _Failure:
    """What an error of the SDK, of HTTP or of the answer's form means. The model server's own words go to the log,
    but for what they repeat of what was `sent`."""
    timed_out = isinstance(error, (openai.APITimeoutError, _http.TimeoutException, TimeoutError))
    unreachable = isinstance(error, (openai.APIConnectionError, _http.HTTPError, OSError))
    headers: Mapping[str, str] = error.response.headers if isinstance(error, openai.APIStatusError) else {}
    body = getattr(error, "body", None)
    words = _words(body)
    status: int | None = getattr(error, "status_code", None) or _status_within(body)
    said = words or ("" if status else str(error.__cause__ or error))
    _log.warning("Model server: %s %s %r", type(error).__name__, status or "", _masked(said, sent))

    code = "model_error"
    if status == 413 or (status in (None, 400, 422, 500) and _OVERFLOW.search(words)):
        code, sentence = "context_length_exceeded", "The conversation is too long for the model."
    elif status in (401, 403) or (status == 400 and _BAD_KEY.search(words)):
        code, sentence = "model_unauthorized", "The model server does not accept the API key: check api_key."
    elif timed_out or status in (408, 504):
        code, sentence = "model_timeout", "The model server did not answer in time."
    elif status == 429:
        code, sentence = "model_rate_limited", "The model server takes no more requests for now."
    elif status == 404:
        sentence = "The model server knows no such model or address (status 404): check model and base_url."
    elif status:
        sentence = f"The model server answered with an error (status {status})."
    elif unreachable and begun:
        sentence = "The connection to the model server broke."
    elif unreachable:
        sentence = "The model server could not be reached: check base_url, and whether it runs."
    elif words:
        sentence = "The model server answered with an error."
    else:
        sentence = "The model server sent something that is not an answer: check base_url."

    failure = _Failure(code, sentence)
    failure.begun, failure.status, failure.delay = begun, status, _delay(headers)
    failure.passing = code in ("model_rate_limited", "model_timeout") or (
        code == "model_error" and (unreachable or (status or 0) >= 500)
    )
    if code == "model_rate_limited" and failure.delay is not None:
        failure.retry_after = str(math.ceil(failure.delay))
    return failure


def _status_within(body: object) -> int | None:
    """The status that an error in a stream tells in its code, if it does."""
    error = body.get("error") if isinstance(body, dict) else None
    code = str(error.get("code")) if isinstance(error, dict) else ""
    return int(code) if re.fullmatch("[45][0-9][0-9]", code) else None


def _words(body: object, depth: int = 0) -> str:
    """What an error's body says, wherever servers put it; nothing else of the body, which may echo the request."""
    if isinstance(body, (str, int)):
        return str(body)[:2000]
    if isinstance(body, list) and depth < 5:
        return " ".join(_words(item, depth + 1) for item in body[:5])
    if isinstance(body, dict) and depth < 5:
        keys = ("code", "type", "message", "msg", "detail", "error")
        return " ".join(_words(body[key], depth + 1) for key in keys if body.get(key))
    return ""


def _masked(words: str, sent: list[str]) -> str:
    """One short line without anything that looks like a key, or repeats eight characters of what was sent."""
    words = _SECRET.sub("***", " ".join(words.split()))[:300]
    text = " ".join(" ".join(sent).split())
    starts = (start for start in range(len(words) - 7) if words[start : start + 8] in text)
    repeated = {place for start in starts for place in range(start, start + 8)}
    return re.sub("\0+", "…", "".join("\0" if place in repeated else letter for place, letter in enumerate(words)))


def _delay(headers: Mapping[str, str]) -> float | None:
    """The seconds that the server asks to wait, if it does (RFC 9110, section 10.2.3)."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        with suppress(ValueError, KeyError):
            seconds = float(headers[name]) / unit
            if 0 <= seconds < math.inf:
                return seconds
    with suppress(ValueError, KeyError):
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    return None
