"""A turn that has come to a certain point and stays there, and what a turn came to."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from tests.support.client import Client, Stream, json_of
from tests.support.model_server import HEADERS, STALL, answer, status, tool_call
from tests.support.server import TIMEOUT, wait_until

AT_ONCE = {"Retry-After": "0"}  # of a failure that is tried again
CALCULATION = tool_call("calculator", {"expression": "15 * 23"}, text="Let me see.")


class Tool:
    """A tool that works until it is told to go on."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.go = threading.Event()
        self.done = threading.Event()

    def __call__(self) -> str:
        self.called.set()
        self.go.wait(TIMEOUT)
        self.done.set()
        return "late"

    @property
    def function(self) -> Callable[[], str]:
        def slow() -> str:
            """Takes its time."""
            return self()

        return slow


def outcome(response: TestResponse | Stream) -> tuple[Any, ...]:
    """What a turn came to, the same for `run` and `run_stream`."""
    if isinstance(response, TestResponse):
        if response.status_code != 200:
            return (response.status_code, json_of(response)["code"], json_of(response)["error"])
        message = json_of(response)["message"]
        return (200, message["content"], message.get("status", "completed"), message.get("reason"))
    last = response.last()
    data = last["data"]
    if last["type"] == "error":
        return (data["status"], data["code"], data["error"])
    return (200, data["complete_text"], data["status"], data.get("reason"))


class FullBacklog:
    """A listener that nobody can connect to any more, and nobody is refused by."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.port = self._listener.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self._clients = [socket.socket() for _ in range(8)]
        for client in self._clients:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", self.port))
        self._ours = self.connecting()

    def connecting(self) -> int:
        """How many connections are being made to it."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(1 for row in rows if row[2] == f"0100007F:{self.port:04X}" and row[3] == "02")

    def wait_for_a_client(self) -> None:
        wait_until(lambda: self.connecting() > self._ours)

    def close(self) -> None:
        for one in (self._listener, *self._clients):
            one.close()


class Logged(logging.Handler):
    """Waits for a line of a module's log."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._logger = logging.getLogger(module)
        self._event = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self._event.set()

    def wait(self) -> None:
        assert self._event.wait(TIMEOUT)

    def __enter__(self) -> Logged:
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)


class Phase:
    """A turn that has come to a certain point and stays there."""

    def __init__(self, client: Client, reached: Callable[[], object], text: str = "", connected: bool = True) -> None:
        self.client = client
        self.reached = reached
        self.text = text  # of the answer so far
        self.connected = connected  # to the model server


@contextlib.contextmanager
def phase(name: str, tool: Tool, **more: Any) -> Iterator[Phase]:
    with contextlib.ExitStack() as stack:
        if name == "while connecting":
            backlog = FullBacklog()
            client = stack.enter_context(Client(base_url=backlog.base_url, **more))
            stack.callback(backlog.close)
            yield Phase(client, backlog.wait_for_a_client, connected=False)
        elif name == "before the headers":
            client = stack.enter_context(Client(answer(STALL), **more))
            yield Phase(client, lambda: client.model.wait_for(1))
        elif name == "after the headers":
            client = stack.enter_context(Client(answer(HEADERS, STALL), **more))
            yield Phase(client, lambda: client.model.wait_for(1))
        elif name == "in mid-answer":
            gone = threading.Event()
            client = stack.enter_context(Client(answer("Hel", lambda _: gone.set(), STALL), **more))
            yield Phase(client, lambda: gone.wait(TIMEOUT), "Hel")
        elif name == "while a tool works":
            client = stack.enter_context(
                Client(tool_call("slow", {}, text="One moment."), tools=[tool.function], **more)
            )
            stack.callback(tool.go.set)
            yield Phase(client, lambda: tool.called.wait(TIMEOUT), connected=False)
        elif name == "after a tool":
            gone = threading.Event()
            replies = CALCULATION, answer("It", lambda _: gone.set(), STALL)
            client = stack.enter_context(Client(*replies, **more))
            yield Phase(client, lambda: gone.wait(TIMEOUT), "It")
        else:
            assert name == "between two tries"
            logged = stack.enter_context(Logged("session_core.model"))
            client = stack.enter_context(Client(status(500, {"error": "oh"}, {"Retry-After": "30"}), **more))
            yield Phase(client, logged.wait, connected=False)


PHASES = (
    "while connecting",
    "before the headers",
    "after the headers",
    "in mid-answer",
    "while a tool works",
    "after a tool",
    "between two tries",
)


every_phase = pytest.mark.parametrize("where", PHASES)
