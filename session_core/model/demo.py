"""The scripted model server of `-demo`, which the tests extend.

    model = ModelServer(demo_script()).start()
    agent = Agent(api_key="demo", base_url=model.base_url, model="demo", tools=[calculator])

It speaks the Chat Completions format, streamed and whole, on a free loopback port.
"""

import itertools
import json
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from session_core.data.message import message_text
from session_core.model.summarizing import ASK, INTRODUCTION


@dataclass(frozen=True)
class ScriptedReply:
    """The answer to one request: bytes to send, and calls between them that may wait, look around, or raise.

    The first bytes send the status and the headers too. Empty bytes send only those. Others are one HTTP chunk each.
    """

    parts: Iterable["bytes | Callable[[Exchange], object]"]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "text/event-stream"})


Script = Callable[[dict[str, Any]], ScriptedReply]  # from the body of a request to its answer


class Exchange(BaseHTTPRequestHandler):
    """One request, and the connection that it came on."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "ModelServer"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send(self.server.script(request))

    def send(self, reply: ScriptedReply) -> None:
        begun = False
        for part in itertools.chain(reply.parts, [b""]):
            if callable(part):
                part(self)
                continue
            if not begun:
                begun = True
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Transfer-Encoding": "chunked"}.items():
                    self.send_header(name, value)
                self.end_headers()
            if part:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def wait(self, seconds: float, until: threading.Event | None = None) -> None:
        """Lets time pass, or waits for the event. Raises ConnectionError as soon as nobody waits for the answer."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not (until and until.is_set()):
            readable, _, _ = select.select([self.connection], [], [], min(left, 0.02 if until else 0.2))
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionAbortedError("the client has left")

    def log_message(self, format: str, *args: Any) -> None:
        """Writes nothing."""


class ModelServer(ThreadingHTTPServer):
    """A model server on loopback that answers as a script says, for as long as the process lives."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, script: Script, exchange: type[Exchange] = Exchange) -> None:
        super().__init__(("127.0.0.1", 0), exchange)
        self.script = script
        self.base_url = f"http://127.0.0.1:{self.server_port}/v1"

    def start(self) -> Self:
        """Answers from now on, on threads of its own."""
        threading.Thread(target=self.serve_forever, args=(3600,), name="model server", daemon=True).start()
        return self

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Writes nothing about a connection that broke: the client has left."""


# The wire format


def event(data: Mapping[str, Any] | str) -> bytes:
    """One server-sent event."""
    return b"data: %b\n\n" % (data if isinstance(data, str) else json.dumps(data)).encode()


def chunk(delta: Mapping[str, Any], finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    """One chunk of a streamed completion."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "model": "demo",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
        **more,
    }


def completion(message: Mapping[str, Any], finish_reason: str, usage: Mapping[str, Any]) -> dict[str, Any]:
    """A whole completion."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "demo",
        "choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}],
        "usage": usage,
    }


# The demo

_NUMBER = r"(?:\d[\d.,]*|\.\d+|pi\b|e\b)"
_OPEN = r"(?:[-+−(]|(?:sqrt|abs|round|floor|ceil|log|exp|sin|cos|tan|min|max)\s*\()"
_EXPRESSION = re.compile(
    rf"(?:{_OPEN}\s*)*{_NUMBER}[\s)]*(?:(?:\*\*|//|[-+*/%^×÷−,])\s*(?:{_OPEN}\s*)*{_NUMBER}[\s)]*)*", re.I
)


def demo_script(delay: float = 0.03) -> Script:
    """A script of a model that calculates with the tool `calculator`, and says that it is a demo.

    In a stream, each word comes `delay` seconds after the one before.
    """

    def script(request: dict[str, Any]) -> ScriptedReply:
        message = _demo_summary(request["messages"]) or _demo_message(request)
        words = len(re.findall(r"\S+", message.get("content", "")))
        prompt = sum(len(message_text(sent).split()) for sent in request["messages"])
        usage = {"prompt_tokens": prompt, "completion_tokens": words, "total_tokens": prompt + words}
        finish_reason = "tool_calls" if "tool_calls" in message else "stop"
        if not request.get("stream"):
            whole = json.dumps(completion(message, finish_reason, usage)).encode()
            return ScriptedReply([whole], headers={"Content-Type": "application/json"})
        told = (request.get("stream_options") or {}).get("include_usage")
        return ScriptedReply(_streamed(message, finish_reason, usage if told else None, delay))

    return script


def _streamed(
    message: Mapping[str, Any], finish_reason: str, usage: Any, delay: float
) -> Iterator[bytes | Callable[[Exchange], object]]:
    yield event(chunk({"role": "assistant", "content": ""}))
    for word in re.findall(r"\S+\s*", message.get("content", "")):
        yield lambda exchange: exchange.wait(delay)
        yield event(chunk({"content": word}))
    for index, call in enumerate(message.get("tool_calls", ())):
        yield event(chunk({"tool_calls": [{"index": index, **call}]}))
    yield event(chunk({}, finish_reason))
    if usage:
        yield event({**chunk({}), "choices": [], "usage": usage})
    yield event("[DONE]")


def _demo_summary(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the user has written, where the last message asks for a summary."""
    *said, asking = ["", *(message_text(message) for message in messages if message["role"] == "user")]
    if not asking.endswith(ASK):
        return None
    before = message_text(messages[0]).partition(INTRODUCTION)[2].strip()
    return {"content": "\n".join([before or "The user wrote:", *(f"- {text}" for text in said[1:])])}


def _demo_message(request: Mapping[str, Any]) -> dict[str, Any]:
    """The next message of the demo."""
    messages = request["messages"]
    said = [message_text(message) for message in messages if message["role"] == "user"]
    if messages[-1]["role"] == "tool":
        call = next(message["tool_calls"][0] for message in reversed(messages) if message.get("tool_calls"))
        expression = json.loads(call["function"]["arguments"]).get("expression")
        result = str(messages[-1]["content"])
        if result.startswith("error: "):
            return {"content": f"I could not calculate {expression}: {result.removeprefix('error: ')}."}
        return {"content": f"{expression} is {result}."}
    expression = _expression(said[-1] if said else "")
    if expression and any(tool["function"]["name"] == "calculator" for tool in request.get("tools", ())):
        call = {
            "id": f"call{len(messages):05}",
            "type": "function",
            "function": {"name": "calculator", "arguments": json.dumps({"expression": expression})},
        }
        return {"content": "", "tool_calls": [call]}
    count = "your first message" if len(said) == 1 else f"your message number {len(said)} in this conversation"
    return {
        "content": f"I am the built-in demo, not a real model: I can only calculate. This was {count}. "
        'Ask me something like "What is 15 * 23?"'
    }


def _expression(text: str) -> str:
    """The longest arithmetic expression in the beginning of a text, or nothing."""
    found = [match.group().strip(" ,.") for match in _EXPRESSION.finditer(text[:1000])]
    return max((one for one in found if re.search(r"[\d)]\D+[\d.(]|\w\(", one)), key=len, default="")
