"""Turns that wait where a test wants them, and what is compared of two answers."""

from __future__ import annotations

import threading
from typing import Any

from flask import Flask
from werkzeug.test import TestResponse

from session_core.model.demo import Exchange
from session_core.stores.files import FileStorage
from storage import LockedSession, MemoryStorage
from tests.support.client import Client, Stream, json_of
from tests.support.model_server import ReplyTo, answer, status, tool_call, wait
from tests.support.server import TIMEOUT

KEY = {"Idempotency_Key": "key-1"}
TOOL = tool_call("calculator", {"expression": "1+1"}, text="Let me see. ")
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


class _Slow:
    """A storage that begins to store a message, and goes on when the test says so."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.error: Exception | None = None

    def _lock(self, session_id: str, turn: bool) -> LockedSession | None:
        locked: LockedSession | None = super()._lock(session_id, turn)  # type: ignore[misc]
        if locked is not None:
            append = locked._append

            def slowly(*arguments: Any) -> None:
                self.begun.set()
                assert self.go_on.wait(TIMEOUT)
                if self.error is not None:
                    raise self.error
                append(*arguments)

            locked._append = slowly  # type: ignore[method-assign, assignment]
        return locked


class SlowMemory(_Slow, MemoryStorage):
    pass


class SlowFiles(_Slow, FileStorage):
    pass


class Arrivals:
    """Counts the requests that have come in."""

    def __init__(self, app: Flask) -> None:
        self._count = 0
        self._changed = threading.Condition()
        app.before_request(self._came)

    def _came(self) -> None:
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._count >= count, TIMEOUT)


class Gate:
    """A step of the model that says when it is reached, and waits until the test opens it."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._opened = threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        self.reached.set()
        wait(self._opened)(exchange)

    def open(self) -> None:
        self._opened.set()


def halted(client: Client, message: str = "Hi") -> tuple[str, Stream, Gate]:
    """A session with a turn of KEY, in which the model says "One" and, when the gate is opened, " two."; and its
    stream, of which two events are read."""
    gate = Gate()
    client.model.then(answer("One", gate, " two."))
    session = client.create()
    stream = client.stream(session, message, **KEY)
    stream.next("stream_chunk")
    return session, stream, gate


def failed(client: Client, *replies: ReplyTo) -> str:
    """A session whose last turn, of KEY, has failed."""
    client.model.then(*(replies or [status(404, {"error": "no"})]))
    session = client.create()
    assert client.run(session, **KEY).status_code >= 400
    return session


def contents(client: Client, session: str) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in client.messages(session)]


def sent(client: Client, number: int = -1) -> list[tuple[str, str]]:
    """What the model was sent."""
    return [(message["role"], message["content"]) for message in client.model.requests[number]["messages"]]


def answered(response: TestResponse) -> Any:
    assert response.status_code == 200, response.text
    return json_of(response)["message"]


def replayed(response: TestResponse | Stream) -> bool:
    return response.headers.get("Idempotency-Replayed") == "true"


def bare(events: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """Events without their ids and times."""
    return [(event["type"], event.get("data")) for event in events]


# Trying again what failed

TOO_LONG = status(400, {"error": {"message": "too long", "code": "context_length_exceeded"}})
FAILURES: dict[str, list[ReplyTo]] = {
    "model_error": [status(404, {"error": "no such model"})],
    "model_unauthorized": [status(401, {"error": "no such key"})],
    "model_rate_limited": [status(429, {"error": "slow down"}, {"Retry-After": "9999"})],
    "model_timeout": [status(504, {"error": "busy"}, {"Retry-After": "0"})] * 3,
    "context_length_exceeded": [TOO_LONG],
    "too_many_tool_rounds": [TOOL] * 11,
}
