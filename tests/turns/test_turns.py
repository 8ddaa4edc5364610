"""One turn: stored before it is acknowledged, alone in its session, ended in every way, and never in the way of the
next."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from session_core.model.demo import chunk, completion
from session_core.stores.files import FileStorage
from session_core.turns.event_log import MAX_EVENTS
from storage import Storage
from tests.support.client import BreakableStorage, Client, Stream, error_of, json_of, storages
from tests.support.model_server import (
    BREAK,
    HEADERS,
    RESET,
    STALL,
    ModelServer,
    Piece,
    ReplyTo,
    answer,
    body,
    frames,
    nobody_listens,
    pause,
    raw,
    status,
    tool_call,
    tool_calls,
    wait,
)
from tests.support.server import TIMEOUT, Server, wait_until

AT_ONCE = {"Retry-After": "0"}  # of a failure that is tried again
CALCULATION = tool_call("calculator", {"expression": "15 * 23"}, text="Let me see.")


@pytest.fixture(params=["memory", "files"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return storages(tmp_path)[request.param]()


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can, so that what one does too late is seen by another."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


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


@pytest.fixture
def tool() -> Iterator[Tool]:
    tool = Tool()
    yield tool
    tool.go.set()


def on_disk(directory: Path) -> dict[str, Any]:
    """The only session in the directory, as its file has it."""
    [file] = directory.glob("*.json")
    session: dict[str, Any] = json.loads(file.read_bytes())
    return session


def fields(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages without what differs from turn to turn."""
    return [{name: message[name] for name in message if name not in ("id", "created_at")} for message in messages]


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


# --- stored first ---


def test_the_message_is_on_disk_before_the_model_is_asked(tmp_path: Path) -> None:
    seen = []

    def look(request: dict[str, Any]) -> Any:
        seen.append([message["content"] for message in on_disk(tmp_path)["messages"]])
        return answer("Hello")(request)

    with Client(look, look, storage=FileStorage(str(tmp_path))) as client:
        session_id = client.create()
        client.run(session_id, "one")
        client.stream(session_id, "two").rest()
    assert seen == [["one"], ["one", "Hello", "two"]]


def test_the_message_is_on_disk_when_stream_start_is_seen(tmp_path: Path) -> None:
    with Client(answer(STALL), storage=FileStorage(str(tmp_path))) as client:
        stream = client.stream(client.create(), "Hi")
        assert stream.next()["type"] == "stream_start"
        assert [message["content"] for message in on_disk(tmp_path)["messages"]] == ["Hi"]


def test_a_tool_call_is_on_disk_when_it_is_seen(tmp_path: Path, tool: Tool) -> None:
    with Client(tool_call("slow", {}), storage=FileStorage(str(tmp_path)), tools=[tool.function]) as client:
        stream = client.stream(client.create(), "Hi")
        event = stream.next("stream_tool_call")
        stored = on_disk(tmp_path)["messages"][-1]
        assert stored["tool_calls"][0]["id"] == event["data"]["id"]
        tool.go.set()
        stream.rest()


def test_a_tool_result_is_on_disk_when_it_is_seen(tmp_path: Path) -> None:
    with Client(CALCULATION, answer(STALL), storage=FileStorage(str(tmp_path))) as client:
        stream = client.stream(client.create(), "Hi")
        stream.next("stream_tool_result")
        stored = on_disk(tmp_path)["messages"][-1]
        assert (stored["role"], stored["content"]) == ("tool", "345")


def test_tool_messages_are_on_disk_before_the_model_is_asked_again(tmp_path: Path) -> None:
    seen: list[str] = []

    def look(request: dict[str, Any]) -> Any:
        seen.extend(message["role"] for message in on_disk(tmp_path)["messages"])
        return answer("345")(request)

    with Client(CALCULATION, look, storage=FileStorage(str(tmp_path))) as client:
        client.run(client.create())
    assert seen == ["user", "assistant", "tool"]


def test_the_answer_is_on_disk_when_its_end_is_seen(tmp_path: Path) -> None:
    with Client(storage=FileStorage(str(tmp_path))) as client:
        session_id = client.create()
        event = client.stream(session_id).next("stream_end")
        assert on_disk(tmp_path)["messages"][-1]["id"] == event["data"]["message_id"]
        message = json_of(client.run(session_id))["message"]
        assert on_disk(tmp_path)["messages"][-1]["id"] == message["id"]


def test_a_message_that_cannot_be_stored_is_503_and_the_model_is_not_asked() -> None:
    storage = BreakableStorage()
    with Client(storage=storage) as client:
        session_id = client.create()
        storage.broken = True
        assert error_of(client.run(session_id)) == (503, "storage_unavailable")
        stream = client.stream(session_id)
        assert (stream.status, stream.json["code"]) == (503, "storage_unavailable")
        assert client.messages(session_id) == []
        assert client.model.requests == []


@pytest.mark.parametrize("way", ["run", "stream"])
@pytest.mark.parametrize("kept", [1, 3])
def test_a_store_that_fails_during_the_turn_ends_it_and_keeps_what_it_had(way: str, kept: int) -> None:
    storage = BreakableStorage()

    def full(request: dict[str, Any]) -> Any:
        storage.broken = True
        return (answer("345") if len(request["messages"]) > 1 else CALCULATION)(request)

    with Client(*([CALCULATION] if kept == 3 else []), full, storage=storage) as client:
        session_id = client.create()
        assert outcome(getattr(client, way)(session_id))[:2] == (503, "storage_unavailable")
        assert len(client.messages(session_id)) == kept
        storage.broken = False
        assert client.run(session_id, "again").status_code == 200
        assert_well_formed(client.model.requests[-1]["messages"])


# --- one at a time ---


@pytest.mark.parametrize("way", ["run", "run_stream"])
def test_of_twelve_messages_at_once_one_is_taken_and_eleven_are_told_409(storage: Storage, way: str) -> None:
    go, together = threading.Event(), threading.Barrier(12)
    with Client(answer(wait(go), "Hello"), storage=storage) as client:
        path = f"/sessions/{client.create()}/{way}"

        def send(number: int) -> TestResponse:
            together.wait(TIMEOUT)
            response = client.request("POST", path, {"message": f"message {number}"})
            if response.status_code == 409 and next(refused) == 10:
                go.set()
            return response

        refused = iter(range(12))
        responses = [sent.result(TIMEOUT) for sent in [client.later(send, number) for number in range(12)]]
        assert Counter(response.status_code for response in responses) == {200: 1, 409: 11}
        for response in responses:
            if response.status_code == 409:
                assert error_of(response) == (409, "session_busy")
                assert response.headers["Retry-After"] == "1"
        assert len(client.model.requests) == 1
        assert len(client.messages(path.split("/")[2])) == 2


def test_turns_in_different_sessions_run_side_by_side(storage: Storage) -> None:
    go = threading.Event()
    with Client(default=answer("Hel", wait(go), "lo"), storage=storage) as client:
        streams = [client.stream(client.create()) for _ in range(10)]
        for stream in streams:
            stream.next("stream_chunk")
        go.set()
        assert [stream.last()["data"]["complete_text"] for stream in streams] == ["Hello"] * 10


@pytest.mark.usefixtures("restless")
def test_the_session_is_free_before_stream_end_is_seen(storage: Storage) -> None:
    with Client(storage=storage) as client:
        session_id = client.create()
        for _ in range(60):
            stream = client.stream(session_id)
            assert stream.status == 200, stream.json
            assert stream.next("stream_end")
        assert len(client.messages(session_id)) == 120


@pytest.mark.usefixtures("restless")
def test_the_session_is_free_before_run_answers(storage: Storage) -> None:
    with Client(storage=storage) as client:
        session_id = client.create()
        assert {client.run(session_id).status_code for _ in range(60)} == {200}


@pytest.mark.usefixtures("restless")
def test_the_session_is_free_before_an_error_is_seen(storage: Storage) -> None:
    with Client(default=answer("Hel", BREAK), storage=storage) as client:
        session_id = client.create()
        for _ in range(50):
            stream = client.stream(session_id)
            assert stream.status == 200, stream.json
            assert stream.next("error")


@pytest.mark.usefixtures("restless")
def test_the_session_is_free_before_cancel_answers(storage: Storage) -> None:
    with Client(default=answer("Hel", STALL), storage=storage) as client:
        session_id = client.create()
        for _ in range(30):
            stream = client.stream(session_id)
            assert stream.status == 200, stream.json
            assert client.cancel(session_id) is True
            stream.close()


def test_readers_never_cost_a_turn_its_session(tmp_path: Path) -> None:
    with Client(storage=FileStorage(str(tmp_path))) as client, Client(storage=FileStorage(str(tmp_path))) as other:
        session_id = client.create()
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                for path in (f"/sessions/{session_id}", "/sessions", "/sessions?details=true", "/ready"):
                    assert other.get(path).status_code == 200

        asked = [client.later(ask) for _ in range(2)]
        try:
            assert {client.run(session_id).status_code for _ in range(30)} == {200}
        finally:
            over.set()
        for one in asked:
            one.result(TIMEOUT)


@pytest.mark.parametrize(
    ("method", "path", "data"),
    [
        ("POST", "/run", {"message": "x"}),
        ("POST", "/run_stream", {"message": "x"}),
        ("GET", "/run_stream", None),
        ("POST", "/cancel", None),
        ("PATCH", "", {"title": "x"}),
        ("DELETE", "", None),
    ],
)
def test_a_turn_of_another_server_on_the_same_directory_is_409(
    tmp_path: Path, method: str, path: str, data: object
) -> None:
    go = threading.Event()
    storages = [FileStorage(str(tmp_path)) for _ in range(2)]
    with Client(answer("Hel", wait(go), "lo"), storage=storages[0]) as client, Client(storage=storages[1]) as other:
        session_id = client.create()
        stream = client.stream(session_id)
        stream.next("stream_chunk")
        response = other.request(method, f"/sessions/{session_id}{path}", data)
        assert error_of(response) == (409, "session_busy")
        assert response.headers["Retry-After"] == "1"
        go.set()
        assert stream.last()["data"]["complete_text"] == "Hello"
        assert len(client.messages(session_id)) == 2


def test_running_tells_of_turns_of_another_server(tmp_path: Path) -> None:
    go = threading.Event()
    storages = [FileStorage(str(tmp_path)) for _ in range(2)]
    with Client(answer("Hel", wait(go), "lo"), storage=storages[0]) as client, Client(storage=storages[1]) as other:
        session_id = client.create()
        stream = client.stream(session_id)
        stream.next("stream_chunk")
        assert other.session(session_id)["running"] is True
        assert json_of(other.get("/sessions?details=true"))["sessions"][0]["running"] is True
        go.set()
        stream.next("stream_end")
        assert other.session(session_id)["running"] is False
        assert other.run(session_id).status_code == 200


# --- clients that leave ---


def test_a_turn_goes_on_when_its_client_leaves(storage: Storage) -> None:
    go = threading.Event()
    with Client(answer("Hel", wait(go), "lo"), storage=storage) as client:
        session_id = client.create()
        stream = client.stream(session_id)
        stream.next("stream_chunk")
        stream.close()
        go.set()
        assert client.watch(session_id).last()["data"]["complete_text"] == "Hello"
        assert client.messages(session_id)[-1]["content"] == "Hello"
        assert not client.model.closed.is_set()


def test_a_turn_goes_on_when_its_client_never_reads() -> None:
    with Client(CALCULATION, answer("345")) as client:
        session_id = client.create()
        unread = client.stream(session_id)
        assert client.watch(session_id).last()["type"] == "stream_end"
        unread.close()
        roles = [message["role"] for message in client.messages(session_id)]
        assert roles == ["user", "assistant", "tool", "assistant"]


def test_a_client_that_does_not_read_holds_nobody_back() -> None:
    with Client(answer(*["x" * 1000] * 1000)) as client:
        session_id = client.create()
        unread = client.stream(session_id)
        wait_until(lambda: not client.session(session_id)["running"])
        assert client.run(session_id).status_code == 200
        assert unread.last()["data"]["complete_text"] == "x" * 1_000_000


# --- cancel ---


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


@every_phase
def test_cancel_ends_the_turn_wherever_it_is(where: str, tool: Tool, storage: Storage) -> None:
    with phase(where, tool, storage=storage) as now:
        client = now.client
        session_id = client.create()
        stream = client.stream(session_id)
        now.reached()
        if now.text:
            while stream.next("stream_chunk")["data"]["content"] != now.text:
                pass
        began = time.monotonic()
        assert client.cancel(session_id) is True
        assert time.monotonic() - began < 15
        last = stream.last()
        assert last["type"] == "stream_end"
        assert last["data"]["status"] == "cancelled"
        message = client.messages(session_id)[-1]
        assert message["id"] == last["data"]["message_id"]
        assert (message["role"], message["content"]) == ("assistant", now.text)
        assert (message["status"], message["reason"]) == ("cancelled", last["data"]["reason"])


@pytest.mark.parametrize("where", [name for name in PHASES if name not in ("while connecting", "between two tries")])
def test_the_next_message_is_answered_after_a_cancel(where: str, tool: Tool) -> None:
    with phase(where, tool) as now:
        session_id = now.client.create()
        stream = now.client.stream(session_id, "first")
        now.reached()
        assert now.client.cancel(session_id) is True
        stream.close()
        response = now.client.run(session_id, "second")
        assert outcome(response) == (200, "OK", "completed", None)
        assert_well_formed(now.client.model.requests[-1]["messages"])


@pytest.mark.parametrize("where", ["before the headers", "after the headers", "in mid-answer", "after a tool"])
def test_cancel_reaches_the_model_server_within_a_second(where: str, tool: Tool) -> None:
    with phase(where, tool) as now:
        session_id = now.client.create()
        stream = now.client.stream(session_id)
        now.reached()
        now.client.cancel(session_id)
        assert now.client.model.closed.wait(5)  # on a busy machine; else one
        stream.close()


def test_cancel_reaches_a_model_server_that_is_asked_for_whole_answers(tool: Tool) -> None:
    with phase("before the headers", tool, stream=False) as now:
        session_id = now.client.create()
        stream = now.client.stream(session_id)
        now.reached()
        assert now.client.cancel(session_id) is True
        assert now.client.model.closed.wait(5)
        assert outcome(stream)[:3] == (200, "", "cancelled")


def test_a_cancelled_turn_is_not_asked_again() -> None:
    with phase("between two tries", Tool()) as now:
        session_id = now.client.create()
        stream = now.client.stream(session_id)
        now.reached()
        now.client.cancel(session_id)
        stream.close()
        now.client.close()
        assert len(now.client.model.requests) == 1


@pytest.mark.parametrize("where", ["before the headers", "in mid-answer", "while a tool works"])
def test_run_of_a_cancelled_turn_is_200_with_the_partial_answer(where: str, tool: Tool) -> None:
    with phase(where, tool) as now:
        session_id = now.client.create()
        waiting = now.client.later(now.client.run, session_id)
        now.reached()
        if now.text:
            now.client.watch(session_id).next("stream_chunk")
        assert now.client.cancel(session_id) is True
        response: TestResponse = waiting.result(TIMEOUT)
        assert outcome(response)[:3] == (200, now.text, "cancelled")
        assert json_of(response)["message"] == now.client.messages(session_id)[-1]


def test_a_result_that_comes_after_a_cancel_is_dropped(tool: Tool, storage: Storage) -> None:
    with phase("while a tool works", tool, storage=storage) as now:
        session_id = now.client.create()
        stream = now.client.stream(session_id)
        now.reached()
        now.client.cancel(session_id)
        before = now.client.messages(session_id)
        tool.go.set()
        assert tool.done.wait(TIMEOUT)
        now.client.close()  # waits for the turn's thread
        assert now.client.messages(session_id) == before
        types = [event["type"] for event in stream]
        assert types == ["stream_start", "stream_chunk", "stream_tool_call", "stream_end"]


def test_of_many_cancels_at_once_one_ends_the_turn_and_all_answer_after_its_end() -> None:
    with Client(answer("Hel", STALL)) as client:
        session_id = client.create()
        stream = client.stream(session_id)
        stream.next("stream_chunk")
        together = threading.Barrier(12)

        def cancel() -> tuple[bool, bool]:
            together.wait(TIMEOUT)
            return client.cancel(session_id), client.session(session_id)["running"]

        answers = [one.result(TIMEOUT) for one in [client.later(cancel) for _ in range(12)]]
        assert any(cancelled for cancelled, _ in answers)
        assert not any(running for _, running in answers)
        assert len(client.messages(session_id)) == 2


@pytest.mark.usefixtures("restless")
def test_cancel_says_true_exactly_when_the_answer_is_kept_as_cancelled(storage: Storage) -> None:
    with Client(storage=storage) as client:
        session_id = client.create()
        for _ in range(40):  # a race with the end of the turn
            stream = client.stream(session_id)
            cancelled = client.cancel(session_id)
            end = stream.next("stream_end")["data"]
            assert end["status"] == ("cancelled" if cancelled else "completed")
            assert client.messages(session_id)[-1].get("status", "completed") == end["status"]


# --- time ---


@pytest.mark.parametrize("where", [name for name in PHASES if name != "between two tries"])
def test_a_turn_ends_when_its_time_is_up_wherever_it_is(where: str, tool: Tool) -> None:
    with phase(where, tool, timeout=2.0) as now:  # enough to get there on a busy machine
        session_id = now.client.create()
        last = now.client.stream(session_id).last()
        assert last["type"] == "error"
        assert (last["data"]["code"], last["data"]["status"]) == ("model_timeout", 504)
        message = now.client.messages(session_id)[-1]
        if now.text:
            assert message["id"] == last["data"]["message_id"]
            assert (message["content"], message["status"], message["reason"]) == (
                now.text,
                "incomplete",
                "model_timeout",
            )
        else:
            assert "message_id" not in last["data"]
            assert "status" not in message


def test_run_says_504_when_the_time_is_up() -> None:
    with Client(answer("Hel", STALL), timeout=0.5) as client:
        assert error_of(client.run(client.create())) == (504, "model_timeout")


def test_a_model_that_goes_on_for_ever_is_ended_when_the_time_is_up() -> None:
    endless: list[Piece] = ["x", pause(0.02)]
    with Client(answer(*endless * 2000), timeout=2.0) as client:
        session_id = client.create()
        assert client.stream(session_id).last()["data"]["code"] == "model_timeout"
        assert client.messages(session_id)[-1]["reason"] == "model_timeout"
        assert client.model.closed.wait(TIMEOUT)


def test_a_wait_that_the_model_server_asks_for_keeps_within_the_time() -> None:
    with Client(status(503, {"error": "busy"}, {"Retry-After": "3600"}), timeout=20) as client:
        began = time.monotonic()
        assert error_of(client.run(client.create())) == (502, "model_error")
        assert time.monotonic() - began < 15
        assert len(client.model.requests) == 1


def test_the_result_of_a_tool_that_was_abandoned_is_dropped(tool: Tool, storage: Storage) -> None:
    with Client(tool_call("slow", {}), tools=[tool.function], storage=storage, timeout=2.0) as client:
        session_id = client.create()
        assert error_of(client.run(session_id)) == (504, "model_timeout")
        before = client.messages(session_id)
        assert [message["role"] for message in before] == ["user", "assistant"]
        tool.go.set()
        assert tool.done.wait(TIMEOUT)
        client.close()  # waits for the turn's thread
        assert client.messages(session_id) == before


def test_the_session_is_free_while_an_abandoned_tool_still_works(tool: Tool) -> None:
    with Client(tool_call("slow", {}), tools=[tool.function], timeout=2.0) as client:
        session_id = client.create()
        assert error_of(client.run(session_id)) == (504, "model_timeout")
        assert client.run(session_id, "again").status_code == 200
        sent = client.model.requests[-1]["messages"]
        assert_well_formed(sent)
        assert "error: interrupted; the tool may have run" in [message["content"] for message in sent]
        tool.go.set()


# --- deleting while running ---


@every_phase
def test_a_running_turn_has_ended_when_its_session_is_deleted(where: str, tool: Tool, tmp_path: Path) -> None:
    with phase(where, tool, storage=FileStorage(str(tmp_path))) as now:
        client = now.client
        session_id = client.create()
        stream = client.stream(session_id)
        now.reached()
        began = time.monotonic()
        assert client.request("DELETE", f"/sessions/{session_id}").status_code == 200
        assert time.monotonic() - began < 15
        assert error_of(client.get(f"/sessions/{session_id}")) == (404, "session_not_found")
        last = stream.last()
        assert (last["type"], last["data"]["status"]) == ("stream_end", "cancelled")
        if now.connected:
            assert client.model.closed.wait(5)
        tool.go.set()
    assert error_of(client.get(f"/sessions/{session_id}")) == (404, "session_not_found")
    assert json_of(client.get("/sessions")) == {"sessions": []}
    assert list(tmp_path.iterdir()) == []


def test_run_of_a_deleted_session_answers_with_what_there_was() -> None:
    with Client(answer("Hel", STALL)) as client:
        session_id = client.create()
        waiting = client.later(client.run, session_id)
        client.model.wait_for(1)
        assert client.request("DELETE", f"/sessions/{session_id}").status_code == 200
        response: TestResponse = waiting.result(TIMEOUT)
        assert outcome(response)[2] == "cancelled"


def test_a_session_that_was_deleted_stays_so_whoever_writes_at_the_same_time(storage: Storage) -> None:
    with Client(storage=storage) as client:
        for _ in range(15):
            session_id = client.create()
            together = threading.Barrier(3)

            def at_once(
                method: str, path: str, data: object, id: str = session_id, start: threading.Barrier = together
            ) -> int:
                start.wait(TIMEOUT)
                return client.request(method, f"/sessions/{id}{path}", data).status_code

            asked = [
                client.later(at_once, "POST", "/run", {"message": "Hi"}),
                client.later(at_once, "PATCH", "", {"title": "x"}),
                client.later(at_once, "DELETE", "", None),
            ]
            answers = [one.result(TIMEOUT) for one in asked]
            assert answers[0] in (200, 404)
            assert answers[1] in (200, 404, 409)
            assert answers[2] == 200
            assert client.get(f"/sessions/{session_id}").status_code == 404
        assert json_of(client.get("/sessions")) == {"sessions": []}


# --- partial answers ---


@pytest.mark.parametrize(
    ("reply", "content", "status_", "reason"),
    [
        (answer("Hel", finish_reason="length"), "Hel", "incomplete", "length"),
        (answer("Hel", finish_reason="content_filter"), "Hel", "incomplete", "content_filter"),
        (answer("Hel", finish_reason=None), "Hel", "incomplete", "no_finish_reason"),
        (frames(chunk({"content": "Hel"})), "Hel", "incomplete", "no_finish_reason"),
        (answer("Hel", BREAK), "Hel", "incomplete", "model_error"),
        (answer("Hel", RESET), "Hel", "incomplete", "model_error"),
        (answer("Hel", {"error": {"message": "oh"}}), "Hel", "incomplete", "model_error"),
        (answer("", finish_reason="length"), "", "incomplete", "length"),
        (answer("Hello", finish_reason="stop"), "Hello", None, None),
        (answer("Hello", finish_reason="anything"), "Hello", None, None),
        (answer(""), "", None, None),
        (frames(chunk({"reasoning_content": "Hm."}), chunk({}, "stop"), "[DONE]"), "", None, None),
    ],
)
def test_an_answer_is_kept_and_marked_as_what_it_is(
    reply: ReplyTo, content: str, status_: str | None, reason: str | None
) -> None:
    with Client(reply) as client:
        session_id = client.create()
        last = client.stream(session_id).last()
        message = client.messages(session_id)[-1]
        assert (message["role"], message["content"]) == ("assistant", content)
        assert (message.get("status"), message.get("reason")) == (status_, reason)
        assert last["data"]["message_id"] == message["id"]
        beside = {"status", "reason"} if status_ else {"reasoning"}
        assert set(message) - beside == {"id", "role", "content", "model", "created_at"}


@pytest.mark.parametrize(
    "reply",
    [
        answer("", BREAK),
        frames("[DONE]"),
        body(b"<html>", "text/html"),
        status(400, {"error": "no"}),
        status(500, {"error": "oh"}, AT_ONCE),
        frames(chunk({"reasoning_content": "Hm."}), BREAK),
    ],
)
def test_a_failed_turn_without_text_leaves_no_answer(reply: ReplyTo) -> None:
    with Client(default=reply) as client:
        session_id = client.create()
        last = client.stream(session_id).last()
        assert last["type"] == "error"
        assert "message_id" not in last["data"]
        assert [message["role"] for message in client.messages(session_id)] == ["user"]


def test_a_partial_answer_holds_the_text_after_the_last_tool_call() -> None:
    with Client(CALCULATION, answer("It is", BREAK)) as client:
        session_id = client.create()
        client.run(session_id)
        contents = [message["content"] for message in client.messages(session_id)]
        assert contents == ["Hi", "Let me see.", "345", "It is"]


def test_a_failure_after_a_tool_and_before_text_leaves_no_answer() -> None:
    with Client(CALCULATION, default=status(500, {"error": "oh"}, AT_ONCE)) as client:
        session_id = client.create()
        client.run(session_id)
        assert [message["role"] for message in client.messages(session_id)] == ["user", "assistant", "tool"]


def test_tool_calls_of_an_answer_that_was_cut_off_are_not_run(tool: Tool) -> None:
    with Client(tool_call("slow", {}, text="Hm", finish_reason="length"), tools=[tool.function]) as client:
        session_id = client.create()
        assert outcome(client.run(session_id)) == (200, "Hm", "incomplete", "length")
        assert not tool.called.is_set()


# --- usage ---


def test_usage_is_summed_over_the_model_calls_of_a_turn() -> None:
    first = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12, "details": {"cached": 3}}
    second = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25, "details": {"cached": 4, "audio": 1}}
    total = {"prompt_tokens": 30, "completion_tokens": 7, "total_tokens": 37, "details": {"cached": 7, "audio": 1}}
    calling = tool_call("calculator", {"expression": "1"}, usage=first)
    with Client(*[calling, answer("1", usage=second)] * 2) as client:
        session_id = client.create()
        end = client.stream(session_id).last()
        assert end["data"]["usage"] == total
        messages = client.messages(session_id)
        assert [message.get("usage") for message in messages] == [None, None, None, total]
        assert json_of(client.run(session_id))["message"]["usage"] == total


def test_usage_is_left_out_where_the_model_server_tells_none() -> None:
    with Client() as client:
        session_id = client.create()
        assert "usage" not in client.stream(session_id).last()["data"]
        assert "usage" not in client.messages(session_id)[-1]


def test_a_partial_answer_has_the_usage_that_was_told() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    calling = tool_call("calculator", {"expression": "1"}, usage=usage)
    with Client(calling, answer("Hel", BREAK)) as client:
        session_id = client.create()
        client.run(session_id)
        assert client.messages(session_id)[-1]["usage"] == usage


# --- both ways are one ---

SCRIPTS: dict[str, list[ReplyTo]] = {
    "text": [answer("Hel", "lo")],
    "a tool": [CALCULATION, answer("It is ", "345.")],
    "a tool with no text": [tool_call("calculator", {"expression": "2+2"}), answer("4")],
    "two tools at once": [
        tool_calls(("calculator", {"expression": "1+1"}), ("calculator", {"expression": "2+2"})),
        answer("2 and 4"),
    ],
    "two rounds": [CALCULATION, tool_call("calculator", {"expression": "1+1"}, id="call_2"), answer("345 and 2")],
    "a tool that fails": [tool_call("calculator", {"expression": "1/0"}), answer("That cannot be done.")],
    "a tool that is not there": [tool_call("search", {"q": "x"}), answer("I cannot search.")],
    "arguments that are no JSON": [tool_call("calculator", '{"expression'), answer("Sorry.")],
    "too long": [answer("Hel", finish_reason="length")],
    "no reason": [answer("Hel", finish_reason=None)],
    "empty": [answer("")],
    "reasoning": [frames(chunk({"reasoning": "Hm."}), chunk({"content": "Yes"}), chunk({}, "stop"))],
    "usage": [answer("Hello", usage={"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2})],
    "a break": [answer("Hel", BREAK)],
    "a reset": [answer("Hel", RESET)],
    "a break after a tool": [CALCULATION, answer("It", BREAK)],
    "an error in the stream": [answer("Hel", {"error": {"message": "oh"}})],
    "nothing": [frames("[DONE]")],
    "HTML": [body(b"<html>hello</html>", "text/html")],
    "no HTTP": [raw(b"SSH-2.0-OpenSSH_9.2\r\n"), answer(BREAK), answer(HEADERS, BREAK)],
    "a broken frame": [frames(chunk({"content": "Hel"}), b"data: {oh\n\n")],
    "401": [status(401, {"error": "Incorrect API key"})],
    "404": [status(404, {"error": "no such model"})],
    "429": [status(429, {"error": "slow down"}, AT_ONCE)] * 3,
    "500": [status(500, {"error": "oh"}, AT_ONCE)] * 3,
    "500 once": [status(500, {"error": "oh"}, AT_ONCE), answer("Hello")],
    "context": [status(400, {"error": {"code": "context_length_exceeded", "message": "too long"}})],
    "too many rounds": [tool_call("calculator", {"expression": "1"}, id=f"call_{number}") for number in range(11)],
}
every_script = pytest.mark.parametrize("script", SCRIPTS)


@every_script
def test_run_stores_and_says_what_run_stream_does(script: str) -> None:
    with Client(*SCRIPTS[script], *SCRIPTS[script]) as client:
        one, other = client.create(), client.create()
        waited = client.run(one, "Hi")
        asked = len(client.model.requests)
        stream = client.stream(other, "Hi")
        events = stream.rest()
        assert fields(client.messages(one)) == fields(client.messages(other))
        assert client.model.requests[:asked] == client.model.requests[asked:]
        last = events[-1]
        if waited.status_code == 200:
            assert last["type"] == "stream_end"
            message = json_of(waited)["message"]
            assert last["data"]["status"] == message.get("status", "completed")
            assert last["data"].get("reason") == message.get("reason")
            assert last["data"].get("usage") == message.get("usage")
            assert client.messages(other)[-1]["content"] == message["content"]
        else:
            assert last["type"] == "error"
            data = last["data"]
            assert (data["status"], data["code"], data["error"]) == outcome(waited)


@every_script
def test_a_session_stays_usable_whatever_happened(script: str) -> None:
    with Client(*SCRIPTS[script]) as client:
        session_id = client.create()
        client.run(session_id, "first")
        stored = client.messages(session_id)
        assert outcome(client.run(session_id, "second")) == (200, "OK", "completed", None)
        assert_well_formed(client.model.requests[-1]["messages"])
        assert client.messages(session_id)[: len(stored)] == stored, "the history was changed"


def assert_well_formed(messages: list[dict[str, Any]]) -> None:
    """What every model server takes as a conversation that ends with a user's message."""
    assert messages[-1]["role"] == "user"
    expected: list[str] = []  # the tool calls that must be answered next
    before = ""
    for message in messages:
        role = message["role"]
        if role == "tool":
            assert message["tool_call_id"] == expected.pop(0)
            assert set(message) == {"role", "tool_call_id", "content"}
        else:
            assert not expected, "a tool call has no result"
            assert role != before, "two messages of the same role in a row"
            assert before != "tool" or role == "assistant", "no answer after a tool"
        assert isinstance(message["content"], str)
        if role == "assistant":
            assert message["content"] or message.get("tool_calls"), "an empty answer"
            for call in message.get("tool_calls", ()):
                expected.append(call["id"])
                assert isinstance(json.loads(call["function"]["arguments"]), dict)
        before = role
    ids = [message["tool_call_id"] for message in messages if message["role"] == "tool"]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    "script", ["text", "a tool", "two rounds", "a tool that fails", "too long", "usage", "401", "too many rounds"]
)
def test_whole_answers_give_the_same_turns_as_streams(script: str) -> None:
    with Client(*SCRIPTS[script]) as streamed, Client(*SCRIPTS[script], stream=False) as whole:
        one, other = streamed.create(), whole.create()
        assert outcome(streamed.run(one)) == outcome(whole.run(other))
        assert fields(streamed.messages(one)) == fields(whole.messages(other))
        assert not any(request["stream"] for request in whole.model.requests)


def test_a_whole_answer_is_streamed_as_one_chunk() -> None:
    with Client(answer("Hello", " ", "world"), stream=False) as client:
        types = [event["type"] for event in client.stream(client.create())]
        assert types == ["stream_start", "stream_chunk", "stream_end"]


# --- bounds ---

MIB = 1 << 20


@pytest.mark.parametrize(
    "reply",
    [
        answer(*["x" * 65536] * 130),
        answer(*["é" * 32768] * 130),
        answer("x" * (9 * MIB)),
        frames(b"data: " + b"x" * (9 * MIB)),
        frames(*[chunk({"reasoning_content": "x" * 65536})] * 130, chunk({}, "stop")),
        frames(*[chunk({"tool_calls": [{"index": 0, "function": {"arguments": "x" * 65536}}]})] * 130),
    ],
    ids=["chunks", "chunks beyond ASCII", "one chunk", "one line", "reasoning", "arguments"],
)
def test_an_answer_of_more_than_8_mib_is_a_model_error(reply: ReplyTo) -> None:
    with Client(reply) as client:
        session_id = client.create()
        assert error_of(client.run(session_id)) == (502, "model_error")
        assert sum(len(message["content"].encode()) for message in client.messages(session_id)[1:]) <= 8 * MIB
        assert client.run(session_id).status_code == 200


def test_a_whole_answer_of_more_than_8_mib_is_a_model_error() -> None:
    big = json.dumps(completion({"content": "x" * (9 * MIB)}, "stop", {})).encode()
    with Client(body(big, "application/json"), stream=False) as client:
        assert error_of(client.run(client.create())) == (502, "model_error")


def test_an_answer_of_8_mib_is_taken() -> None:
    with Client(answer(*["x" * MIB] * 8)) as client:
        session_id = client.create()
        assert client.run(session_id).status_code == 200
        assert len(client.messages(session_id)[-1]["content"]) == 8 * MIB


def test_an_answer_in_a_huge_number_of_chunks_takes_bounded_memory() -> None:
    tiny = b"".join(b"data: %b\n\n" % json.dumps(chunk({"content": "x"})).encode() for _ in range(1000))
    with Client(frames(*[tiny] * 300, chunk({}, "stop"))) as client:
        session_id = client.create()
        before = resident()
        assert error_of(client.run(session_id)) == (502, "model_error")
        assert resident() - before < 150 * MIB
        assert len(client.messages(session_id)[-1]["content"]) <= MAX_EVENTS


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_an_eleventh_round_of_tools_is_an_error() -> None:
    with Client(default=tool_call("calculator", {"expression": "1+1"})) as client:
        session_id = client.create()
        assert error_of(client.run(session_id)) == (502, "too_many_tool_rounds")
        assert len(client.model.requests) == 11
        roles = [message["role"] for message in client.messages(session_id)]
        assert roles == ["user"] + ["assistant", "tool"] * 10


def test_ten_rounds_of_tools_are_taken() -> None:
    with Client(*[tool_call("calculator", {"expression": "1+1"})] * 10) as client:
        assert outcome(client.run(client.create())) == (200, "OK", "completed", None)


def test_tool_calls_with_the_same_id_get_ids_of_their_own() -> None:
    with Client(*[tool_call("calculator", {"expression": "1+1"})] * 3) as client:
        session_id = client.create()
        client.run(session_id)
        ids = [message["tool_call_id"] for message in client.messages(session_id) if message["role"] == "tool"]
        assert len(set(ids)) == 3


def test_beyond_max_streams_a_turn_is_refused_at_once_and_plain_requests_are_answered() -> None:
    with Client(default=answer("Hel", STALL), max_streams=2) as client:
        ids = [client.create() for _ in range(3)]
        streams = [client.stream(id) for id in ids[:2]]
        for stream in streams:
            stream.next("stream_chunk")
        response = client.run(ids[2])
        assert error_of(response) == (503, "overloaded")
        assert response.headers["Retry-After"]
        refused = client.stream(ids[2])
        assert (refused.status, refused.json["code"]) == (503, "overloaded")
        assert client.messages(ids[2]) == []
        assert client.get("/health").status_code == 200
        assert len(json_of(client.get("/sessions"))["sessions"]) == 3
        assert client.cancel(ids[0]) is True
        assert client.stream(ids[2]).next("stream_chunk")


def test_a_server_at_its_limit_still_answers_plain_requests(serve: Callable[..., Server]) -> None:
    with ModelServer(default=answer("Hel", STALL)) as model:
        server = serve("-max_streams=2", f"-base_url={model.base_url}")
        ids = [server.create() for _ in range(3)]
        waiting = [server.request("POST", f"/sessions/{ids[0]}/run_stream", {"message": "Hi"})]
        waiting += [server.request("POST", f"/sessions/{ids[1]}/run_stream", {"message": "Hi"})]
        model.wait_for(2)
        while True:
            watcher = server.request("GET", f"/sessions/{ids[len(waiting) % 2]}/run_stream")
            if watcher.status != 200:
                assert (watcher.status, watcher.json["code"]) == (503, "overloaded")
                break
            waiting.append(watcher)
        assert server.say(ids[2], "Hi").status == 503
        for _ in range(20):
            assert server.request("GET", "/sessions").status == 200
            assert server.request("GET", f"/sessions/{ids[0]}").status == 200
        assert server.request("POST", f"/sessions/{ids[0]}/cancel").json == {"cancelled": True}
        for reply in waiting:
            reply.close()


def test_refused_and_failed_turns_take_no_place() -> None:
    with Client(default=status(400, {"error": "no"}), max_streams=1) as client:
        session_id = client.create()
        for _ in range(20):
            assert client.run(session_id).status_code == 502
            assert client.run("session-unknown").status_code == 404
            assert client.request("POST", f"/sessions/{session_id}/run", {}).status_code == 400
            client.stream(session_id).close()
            wait_until(lambda: not client.session(session_id)["running"])


# --- failures that may pass ---


@pytest.mark.parametrize(
    "failure",
    [
        status(408, {"error": "slow"}, AT_ONCE),
        status(429, {"error": "slow down"}, AT_ONCE),
        status(500, {"error": "oh"}, AT_ONCE),
        status(502, b"<html>", AT_ONCE),
        status(503, {"error": "busy"}, AT_ONCE),
        status(599, {"error": "busy"}, AT_ONCE),
    ],
)
def test_a_failure_that_may_pass_is_tried_again_twice(failure: ReplyTo) -> None:
    with Client(failure, failure, answer("Hello"), failure, failure, failure) as client:
        session_id = client.create()
        assert outcome(client.run(session_id))[:2] == (200, "Hello")
        assert client.run(session_id).status_code in (429, 502, 504)
        assert len(client.model.requests) == 6


def test_a_connection_that_breaks_before_the_answer_is_tried_again_twice() -> None:
    with Client(answer(BREAK), answer(HEADERS, RESET), answer("Hello")) as client:
        assert outcome(client.run(client.create()))[:2] == (200, "Hello")
        assert len(client.model.requests) == 3


@pytest.mark.parametrize("code", [401, 403, 404, 409, 413])
def test_a_failure_that_does_not_pass_is_not_tried_again(code: int) -> None:
    with Client(default=status(code, {"error": "no"}, AT_ONCE)) as client:
        assert client.run(client.create()).status_code >= 400
        assert len(client.model.requests) == 1


@pytest.mark.parametrize("break_off", [BREAK, RESET])
def test_nothing_is_asked_again_after_the_first_byte_of_an_answer(break_off: Any) -> None:
    with Client(default=answer("Hel", break_off)) as client:
        assert error_of(client.run(client.create())) == (502, "model_error")
        assert len(client.model.requests) == 1


def test_a_model_server_that_is_not_there_is_a_model_error() -> None:
    with Client(base_url=nobody_listens()) as client:
        session_id = client.create()
        assert error_of(client.run(session_id)) == (502, "model_error")
        assert [message["role"] for message in client.messages(session_id)] == ["user"]


def test_a_failure_after_a_tool_is_tried_again_without_calling_it_again() -> None:
    with Client(CALCULATION, status(500, {"error": "oh"}, AT_ONCE), answer("345")) as client:
        session_id = client.create()
        types = [event["type"] for event in client.stream(session_id)]
        assert types.count("stream_tool_call") == 1
        assert types[-1] == "stream_end"


# --- shutting down ---


def test_a_turn_that_ends_within_the_grace_is_complete(storage: Storage) -> None:
    go = threading.Event()
    with Client(answer("Hel", wait(go), "lo"), storage=storage) as client:
        session_id = client.create()
        stream = client.stream(session_id)
        stream.next("stream_chunk")
        ending: Future[None] = client.later(client.shut_down, TIMEOUT)
        wait_until(lambda: client.get("/ready").status_code == 503)
        assert error_of(client.run(client.create())) == (503, "shutting_down")
        go.set()
        ending.result(TIMEOUT)
        assert stream.last()["data"]["status"] == "completed"


@every_phase
def test_a_turn_that_outlasts_the_grace_ends_with_an_error_and_keeps_its_text(where: str, tool: Tool) -> None:
    with phase(where, tool) as now:
        client = now.client
        session_id = client.create()
        stream = client.stream(session_id)
        now.reached()
        if now.text:
            while stream.next("stream_chunk")["data"]["content"] != now.text:
                pass
        began = time.monotonic()
        client.shut_down(0.1)
        assert time.monotonic() - began < 15
        last = stream.last()
        assert last["type"] == "error"
        assert (last["data"]["code"], last["data"]["status"]) == ("shutting_down", 503)
        message = client.messages(session_id)[-1]
        if now.text:
            assert message["id"] == last["data"]["message_id"]
            assert (message["content"], message["reason"]) == (now.text, "shutting_down")
        else:
            assert message["role"] != "assistant" or message.get("tool_calls")
        tool.go.set()


def test_reading_goes_on_while_shutting_down(storage: Storage) -> None:
    with Client(storage=storage) as client:
        session_id = client.create()
        client.run(session_id)
        client.shut_down()
        assert len(client.messages(session_id)) == 2
        assert client.get("/sessions").status_code == 200
        response = client.run(session_id)
        assert error_of(response) == (503, "shutting_down")
        assert response.headers["Retry-After"]
