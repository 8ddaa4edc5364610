"""A request that is sent again with its Idempotency-Key is the same turn: joined, replayed, or tried again."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from session_core.model.demo import Exchange
from session_core.stores.files import FileStorage
from storage import LockedSession, MemoryStorage, SessionBusy, StorageUnavailable
from tests.support.client import BreakableStorage, Client, Stream, error_of, json_of, storages
from tests.support.model_server import BREAK, STALL, ModelServer, ReplyTo, answer, status, tool_call, wait
from tests.support.server import TIMEOUT, Server, wait_until

KEY = {"Idempotency_Key": "key-1"}
TOOL = tool_call("calculator", {"expression": "1+1"}, text="Let me see. ")
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


@pytest.fixture(scope="module", params=["memory", "files"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(storage=storages(tmp_path_factory.mktemp("store"))[request.param]()) as client:
        yield client


@pytest.fixture
def client(shared: Client) -> Client:
    """The app, as if its model server had been asked nothing yet."""
    shared.model.requests.clear()
    return shared


@pytest.fixture
def reopen(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """Starts the app over the files of one directory; each start ends the one before."""
    running: list[Client] = []

    def start(*replies: ReplyTo, **settings: Any) -> Client:
        while running:
            running.pop().close()
        running.append(Client(*replies, storage=FileStorage(str(tmp_path / "sessions")), **settings))
        return running[0]

    yield start
    while running:
        running.pop().close()


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


def at_once(client: Client, *calls: Callable[[], Any]) -> list[Any]:
    """What the calls give, all made in the same moment."""
    barrier = threading.Barrier(len(calls))

    def make(call: Callable[[], Any]) -> Any:
        barrier.wait(TIMEOUT)
        return call()

    futures: list[Future[Any]] = [client.later(make, call) for call in calls]
    return [future.result(TIMEOUT) for future in futures]


# Joining a turn that runs


def test_a_second_stream_of_the_key_is_the_running_turn_from_its_first_event(client: Client) -> None:
    session, first, gate = halted(client)
    second = client.stream(session, **KEY)
    assert not replayed(second)
    gate.open()
    events = second.rest()
    assert [event["type"] for event in events] == ["stream_start", "stream_chunk", "stream_chunk", "stream_end"]
    assert events[2:] == first.rest()
    assert len(client.model.requests) == 1


def test_a_run_of_the_key_waits_for_the_running_turn(client: Client) -> None:
    session, first, gate = halted(client)
    arrivals = client.later(client.run, session, **KEY)
    gate.open()
    assert answered(arrivals.result(TIMEOUT))["id"] == first.last()["data"]["message_id"]
    assert len(client.model.requests) == 1


def test_who_joins_a_turn_sees_it_fail_too(client: Client) -> None:
    gate = Gate()
    client.model.then(answer("One", gate, BREAK))
    session = client.create()
    first = client.stream(session, **KEY)
    first.next("stream_chunk")
    second = client.stream(session, **KEY)
    gate.open()
    assert second.last() == first.last()


def test_who_joins_a_turn_sees_it_cancelled_too(client: Client) -> None:
    session, first, _ = halted(client)
    second = client.stream(session, **KEY)
    assert client.cancel(session)
    assert second.last()["data"]["status"] == "cancelled"
    first.close()


def test_more_may_join_a_turn_than_may_watch_it(client: Client) -> None:
    session, first, gate = halted(client)
    joined = [client.stream(session, **KEY) for _ in range(20)]
    gate.open()
    assert {stream.last()["data"]["complete_text"] for stream in (first, *joined)} == {"One two."}


def test_twelve_callers_at_once_are_one_turn(client: Client) -> None:
    session = client.create()
    for number in range(8):
        key = {"Idempotency_Key": f"key-{number}"}

        def run(key: dict[str, str] = key) -> str:
            message_id: str = answered(client.run(session, "Hi", **key))["id"]
            return message_id

        def stream(key: dict[str, str] = key) -> str:
            message_id: str = client.stream(session, "Hi", **key).last()["data"]["message_id"]
            return message_id

        assert len(set(at_once(client, *[run, stream] * 6))) == 1
        assert len(client.model.requests) == number + 1
        assert len(client.messages(session)) == 2 * (number + 1)


def test_twelve_callers_of_a_turn_that_failed_are_one_new_attempt(client: Client) -> None:
    session = failed(client)
    responses = at_once(client, *[lambda: client.run(session, **KEY)] * 12)
    assert len({answered(response)["id"] for response in responses}) == 1
    assert len(client.model.requests) == 2
    assert contents(client, session) == [("user", "Hi"), ("assistant", "OK")]


@pytest.fixture(params=["memory", "files"])
def slow(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Client, Any, Arrivals]]:
    """The app over a storage that takes its time."""
    storage = SlowMemory() if request.param == "memory" else SlowFiles(str(tmp_path / "sessions"))
    with Client(storage=storage) as client:
        yield client, storage, Arrivals(client.app)


def test_twelve_callers_are_one_turn_also_while_its_message_is_being_stored(
    slow: tuple[Client, Any, Arrivals],
) -> None:
    client, storage, arrivals = slow
    session = client.create()
    callers = [client.later(client.run, session, **KEY) for _ in range(12)]
    arrivals.wait_for(13)
    assert storage.begun.wait(TIMEOUT)
    assert not any(caller.done() for caller in callers)
    storage.go_on.set()
    assert len({answered(caller.result(TIMEOUT))["id"] for caller in callers}) == 1
    assert len(client.model.requests) == 1
    assert contents(client, session) == [("user", "Hi"), ("assistant", "OK")]


def test_another_message_under_a_key_that_is_being_stored_is_refused(slow: tuple[Client, Any, Arrivals]) -> None:
    client, storage, _ = slow
    session = client.create()
    first = client.later(client.run, session, **KEY)
    assert storage.begun.wait(TIMEOUT)
    assert error_of(client.run(session, "Other", **KEY)) == (422, "idempotency_key_reused")
    storage.go_on.set()
    answered(first.result(TIMEOUT))


def test_another_key_is_refused_while_a_message_is_being_stored(slow: tuple[Client, Any, Arrivals]) -> None:
    client, storage, _ = slow
    session = client.create()
    first = client.later(client.run, session, **KEY)
    assert storage.begun.wait(TIMEOUT)
    assert error_of(client.run(session, Idempotency_Key="key-2")) == (409, "session_busy")
    storage.go_on.set()
    answered(first.result(TIMEOUT))


def test_a_watcher_waits_while_the_message_is_being_stored(slow: tuple[Client, Any, Arrivals]) -> None:
    client, storage, arrivals = slow
    session = client.create()
    first = client.later(client.run, session)
    assert storage.begun.wait(TIMEOUT)
    watcher = client.later(client.watch, session)
    arrivals.wait_for(3)
    storage.go_on.set()
    assert watcher.result(TIMEOUT).last()["type"] == "stream_end"
    answered(first.result(TIMEOUT))


def test_all_callers_are_told_when_the_message_cannot_be_stored(slow: tuple[Client, Any, Arrivals]) -> None:
    client, storage, arrivals = slow
    storage.error = StorageUnavailable("full")
    session = client.create()
    first = client.later(client.run, session, **KEY)
    assert storage.begun.wait(TIMEOUT)
    callers = [first, *(client.later(client.run, session, **KEY) for _ in range(5))]
    arrivals.wait_for(7)
    storage.go_on.set()
    assert {error_of(caller.result(TIMEOUT)) for caller in callers} == {(503, "storage_unavailable")}
    assert client.model.requests == []


def test_a_key_whose_message_could_not_be_stored_can_be_used_again(slow: tuple[Client, Any, Arrivals]) -> None:
    client, storage, _ = slow
    storage.error = StorageUnavailable("full")
    storage.go_on.set()
    session = client.create()
    assert error_of(client.run(session, **KEY)) == (503, "storage_unavailable")
    storage.error = None
    answered(client.run(session, "Something else", **KEY))
    assert contents(client, session) == [("user", "Something else"), ("assistant", "OK")]


# Replaying a turn that has ended


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_the_same_answer_comes_again_and_says_so(client: Client, stream: bool) -> None:
    client.model.then(TOOL, answer("It is 2.", usage=USAGE))
    session = client.create()
    if stream:
        client.stream(session, **KEY).rest()
    else:
        assert not replayed(client.run(session, **KEY))
    response = client.run(session, **KEY)
    assert replayed(response)
    assert answered(response) == client.messages(session)[-1]
    assert len(client.model.requests) == 2
    assert len(client.messages(session)) == 4


def test_the_original_events_come_again_while_they_are_held(client: Client) -> None:
    client.model.then(TOOL, answer("It", " is 2.", usage=USAGE))
    session = client.create()
    original = client.stream(session, **KEY).rest()
    again = client.stream(session, **KEY)
    assert replayed(again)
    assert again.rest() == original


def test_an_answer_can_come_again_and_again(client: Client) -> None:
    session = client.create()
    first = answered(client.run(session, **KEY))
    assert [answered(client.run(session, **KEY)) for _ in range(3)] == [first] * 3
    assert len(client.model.requests) == 1


def test_after_a_restart_what_was_stored_comes_in_order_with_new_ids(reopen: Callable[..., Client]) -> None:
    fails = tool_call("calculator", {"expression": "1/0"}, id="call_2")
    client = reopen(TOOL, fails, answer("It", " is 2.", usage=USAGE))
    session = client.create()
    original = client.stream(session, **KEY).rest()
    again = reopen().stream(session, **KEY)
    assert replayed(again)
    events = again.rest()
    wanted = bare(original)
    assert wanted[6:8] == [
        ("stream_chunk", {"content": "It", "sequence": 2}),
        ("stream_chunk", {"content": " is 2.", "sequence": 3}),
    ]
    wanted[6:8] = [("stream_chunk", {"content": "It is 2.", "sequence": 2})]
    assert bare(events) == wanted
    assert not {event["id"] for event in events} & {event["id"] for event in original}


def test_after_a_restart_the_same_answer_comes_again(reopen: Callable[..., Client]) -> None:
    client = reopen(TOOL, answer("It is 2.", usage=USAGE))
    session = client.create()
    original = answered(client.run(session, **KEY))
    client = reopen()
    response = client.run(session, **KEY)
    assert replayed(response)
    assert answered(response) == original
    assert client.model.requests == []


def test_an_earlier_turn_can_be_replayed_after_later_ones(client: Client) -> None:
    client.model.then(TOOL, answer("It is 2."))
    session = client.create()
    original = client.stream(session, **KEY).rest()
    client.run(session, "And then?", Idempotency_Key="key-2")
    assert bare(client.stream(session, **KEY).rest()) == bare(original)
    assert answered(client.run(session, **KEY))["content"] == "It is 2."
    assert len(client.model.requests) == 3


@pytest.mark.parametrize(
    ("reply", "status", "reason"),
    [
        (answer("One", finish_reason="length"), "incomplete", "length"),
        (answer("One", finish_reason="content_filter"), "incomplete", "content_filter"),
        (answer("One", finish_reason=None), "incomplete", "no_finish_reason"),
    ],
    ids=["length", "content_filter", "no_finish_reason"],
)
def test_an_incomplete_answer_is_replayed_and_not_asked_for_again(
    reopen: Callable[..., Client], reply: ReplyTo, status: str, reason: str
) -> None:
    client = reopen(reply)
    session = client.create()
    original = client.stream(session, **KEY).rest()
    assert client.stream(session, **KEY).rest() == original
    client = reopen()
    assert bare(client.stream(session, **KEY).rest()) == bare(original)
    message = answered(client.run(session, **KEY))
    assert (message["content"], message["status"], message["reason"]) == ("One", status, reason)
    assert client.model.requests == []


@pytest.mark.parametrize("reply", [answer("One", STALL), answer(STALL)], ids=["partial", "empty"])
def test_a_cancelled_answer_is_replayed_and_not_asked_for_again(
    reopen: Callable[..., Client], reply: ReplyTo
) -> None:
    client = reopen(reply)
    session = client.create()
    stream = client.stream(session, **KEY)
    client.model.wait_for(1)
    client.cancel(session)
    original = stream.rest()
    assert client.stream(session, **KEY).rest()[-1] == original[-1]
    client = reopen()
    assert bare(client.stream(session, **KEY).rest())[-1] == bare(original)[-1]
    message = answered(client.run(session, **KEY))
    assert (message["status"], message["reason"]) == ("cancelled", "cancelled")
    assert client.model.requests == []


def test_a_turn_that_was_cancelled_in_its_tool_is_replayed(reopen: Callable[..., Client]) -> None:
    called, go_on = threading.Event(), threading.Event()

    def slow() -> str:
        called.set()
        go_on.wait(TIMEOUT)
        return "done"

    client = reopen(tool_call("slow", {}), tools=[slow])
    session = client.create()
    stream = client.stream(session, **KEY)
    assert called.wait(TIMEOUT)
    client.cancel(session)
    go_on.set()
    original = stream.rest()
    assert bare(reopen().stream(session, **KEY).rest()) == bare(original)


def test_a_replay_works_while_another_turn_runs(client: Client) -> None:
    session = client.create()
    first = answered(client.run(session, **KEY))
    gate = Gate()
    client.model.then(answer("One", gate))
    running = client.stream(session, "Count", Idempotency_Key="key-2")
    response = client.run(session, **KEY)
    assert replayed(response)
    assert answered(response) == first
    gate.open()
    running.rest()


def test_a_new_key_is_refused_while_another_turn_runs(client: Client) -> None:
    session, first, gate = halted(client)
    response = client.run(session, Idempotency_Key="key-2")
    assert error_of(response) == (409, "session_busy")
    assert response.headers["Retry-After"] == "1"
    assert error_of(client.run(session)) == (409, "session_busy")
    gate.open()
    first.rest()


def test_a_key_that_was_refused_as_busy_can_be_used_then(client: Client) -> None:
    session, first, gate = halted(client)
    client.run(session, "Next", Idempotency_Key="key-2")
    gate.open()
    first.rest()
    response = client.run(session, "Next", Idempotency_Key="key-2")
    assert not replayed(response)
    assert answered(response)["content"] == "OK"


def test_a_replay_works_while_the_server_shuts_down() -> None:
    with Client() as client:
        session = client.create()
        first = answered(client.run(session, **KEY))
        client.shut_down()
        assert answered(client.run(session, **KEY)) == first
        assert error_of(client.run(session, "Other", **KEY)) == (422, "idempotency_key_reused")


def test_a_turn_that_runs_on_while_the_server_shuts_down_can_be_joined() -> None:
    with Client() as client:
        session, first, gate = halted(client)
        stopping = client.later(client.shut_down, TIMEOUT)
        wait_until(lambda: client.app.extensions["turns"].closing)
        second = client.stream(session, **KEY)
        assert second.status == 200
        gate.open()
        assert second.last() == first.last()
        stopping.result(TIMEOUT)


def test_while_the_server_shuts_down_nothing_is_tried_again() -> None:
    with Client() as client:
        session = failed(client)
        client.shut_down()
        assert error_of(client.run(session, **KEY)) == (503, "shutting_down")
        assert error_of(client.run(session, Idempotency_Key="key-2")) == (503, "shutting_down")


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


@pytest.mark.parametrize("code", FAILURES)
def test_a_failed_turn_is_tried_again_and_its_message_is_stored_once(client: Client, code: str) -> None:
    client.model.then(*FAILURES[code])
    session = client.create()
    assert error_of(client.run(session, **KEY))[1] == code
    asked = len(client.model.requests)
    response = client.run(session, **KEY)
    assert not replayed(response)
    assert answered(response)["content"] == "OK"
    assert len(client.model.requests) == asked + 1
    assert sent(client) == [("user", "Hi")]
    assert contents(client, session).count(("user", "Hi")) == 1


@pytest.mark.parametrize("code", FAILURES)
def test_a_failed_turn_is_tried_again_after_a_restart(reopen: Callable[..., Client], code: str) -> None:
    client = reopen(*FAILURES[code])
    session = client.create()
    assert client.stream(session, **KEY).last()["data"]["code"] == code
    client = reopen()
    assert client.stream(session, **KEY).last()["data"]["complete_text"] == "OK"
    assert sent(client) == [("user", "Hi")]
    assert contents(client, session).count(("user", "Hi")) == 1


def test_what_the_failed_try_left_stays_stored_but_is_not_sent(client: Client) -> None:
    session = failed(client, TOOL, answer("It is", BREAK))
    left = [("user", "Hi"), ("assistant", "Let me see. "), ("tool", "2"), ("assistant", "It is")]
    assert contents(client, session) == left
    assert answered(client.run(session, **KEY))["content"] == "OK"
    assert contents(client, session) == [*left, ("assistant", "OK")]
    assert sent(client) == [("user", "Hi")]


def test_what_a_failed_try_left_is_not_sent_in_later_turns_either(client: Client) -> None:
    session = failed(client, TOOL, answer("It is", BREAK), TOOL, answer("It is", BREAK))
    client.run(session, **KEY)
    client.run(session, **KEY)
    client.run(session, "Next")
    assert sent(client) == [("user", "Hi"), ("assistant", "OK"), ("user", "Next")]
    client.run(session, "And then?")
    assert sent(client)[:2] == [("user", "Hi"), ("assistant", "OK")]


def test_a_second_try_sees_its_own_tool_calls(client: Client) -> None:
    session = failed(client, TOOL, answer("It is", BREAK), TOOL)
    client.run(session, **KEY)
    assert sent(client) == [("user", "Hi"), ("assistant", "Let me see. "), ("tool", "2")]


def test_a_second_try_is_another_turn_with_events_of_its_own(client: Client) -> None:
    client.model.then(answer("One", BREAK))
    session = client.create()
    first = client.stream(session, **KEY).rest()
    second = client.stream(session, **KEY).rest()
    assert not {event["id"] for event in first} & {event["id"] for event in second}
    assert [event["type"] for event in second] == ["stream_start", "stream_chunk", "stream_end"]
    assert client.watch(session).rest() == second


def test_the_answer_of_a_second_try_is_replayed_without_what_the_first_one_left(
    reopen: Callable[..., Client],
) -> None:
    client = reopen(TOOL, answer("It is", BREAK), TOOL, answer("It is 2."))
    session = client.create()
    client.run(session, **KEY)
    original = client.stream(session, **KEY).rest()
    client = reopen()
    assert bare(client.stream(session, **KEY).rest()) == bare(original)
    assert client.model.requests == []


def test_a_try_that_fails_again_can_be_tried_again(client: Client) -> None:
    session = failed(client, *[answer(f"Try {number}", BREAK) for number in range(4)])
    for _ in range(3):
        assert error_of(client.run(session, **KEY)) == (502, "model_error")
    assert answered(client.run(session, **KEY))["content"] == "OK"
    assert contents(client, session)[0] == ("user", "Hi")
    assert contents(client, session)[1:] == [("assistant", f"Try {n}") for n in range(4)] + [("assistant", "OK")]
    assert [sent(client, number) for number in range(5)] == [[("user", "Hi")]] * 5


def test_a_turn_that_took_too_long_is_tried_again() -> None:
    with Client(answer("One", STALL), timeout=0.3) as hasty:
        session = hasty.create()
        assert error_of(hasty.run(session, **KEY)) == (504, "model_timeout")
        with Client(storage=hasty.storage) as client:
            assert answered(client.run(session, **KEY))["content"] == "OK"
            assert sent(client) == [("user", "Hi")]


def test_a_turn_that_a_shutdown_ended_is_tried_again(reopen: Callable[..., Client]) -> None:
    client = reopen()
    session, first, _ = halted(client)
    client = reopen()
    assert first.last()["data"]["code"] == "shutting_down"
    assert answered(client.run(session, **KEY))["content"] == "OK"
    assert contents(client, session) == [("user", "Hi"), ("assistant", "One"), ("assistant", "OK")]
    assert sent(client) == [("user", "Hi")]


def test_a_turn_whose_answer_could_not_be_stored_is_tried_again() -> None:
    storage = BreakableStorage()
    breaks: ReplyTo = answer("One", lambda exchange: setattr(storage, "broken", True))
    with Client(breaks, storage=storage) as client:
        session = client.create()
        assert error_of(client.run(session, **KEY)) == (503, "storage_unavailable")
        storage.broken = False
        assert contents(client, session) == [("user", "Hi")]
        assert answered(client.run(session, **KEY))["content"] == "OK"
        assert contents(client, session) == [("user", "Hi"), ("assistant", "OK")]


def test_a_turn_that_our_own_fault_ended_is_tried_again() -> None:
    storage = SlowMemory()
    storage.go_on.set()
    breaks: ReplyTo = answer("One", lambda exchange: setattr(storage, "error", ZeroDivisionError()))
    with Client(breaks, storage=storage) as client:
        session = client.create()
        assert error_of(client.run(session, **KEY)) == (500, "internal_error")
        storage.error = None
        assert answered(client.run(session, **KEY))["content"] == "OK"
        assert contents(client, session) == [("user", "Hi"), ("assistant", "OK")]


@pytest.fixture
def crash(tmp_path: Path) -> Iterator[Callable[[Client], Client]]:
    """Starts the app over the files as they would be found if the server had just been killed."""
    running: list[Client] = []

    def start(client: Client) -> Client:
        shutil.copytree(tmp_path / "sessions", tmp_path / "found")
        running.append(Client(storage=FileStorage(str(tmp_path / "found"))))
        return running[0]

    yield start
    for client in running:
        client.close()


@pytest.mark.parametrize("phase", ["before the first call", "in a tool call", "in the answer"])
def test_a_turn_that_a_crash_ended_is_tried_again(
    reopen: Callable[..., Client], crash: Callable[[Client], Client], phase: str
) -> None:
    gate = Gate()
    replies = {
        "before the first call": [answer(gate)],
        "in a tool call": [tool_call("calculator", "{}"), answer(gate)],
        "in the answer": [TOOL, answer("It is", gate)],
    }
    client = reopen(*replies[phase])
    session = client.create()
    stream = client.stream(session, **KEY)
    assert gate.reached.wait(TIMEOUT)
    after = crash(client)
    assert answered(after.run(session, **KEY))["content"] == "OK"
    assert sent(after) == [("user", "Hi")]
    assert contents(after, session).count(("user", "Hi")) == 1
    gate.open()
    stream.rest()


def test_a_client_that_lost_a_killed_server_learns_so_and_asks_again(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    with ModelServer(TOOL, answer("It is", STALL)) as model:
        flags = (f"-session_dir={tmp_path}/sessions", "-api_key=k", f"-base_url={model.base_url}")
        server = serve(*flags)
        session = server.create()
        stream = server.say(session, "Hi", **KEY)
        seen = [event["id"] for event in itertools.islice(stream.events(), 5)]
        server.kill()
        stream.close()
        server = serve(*flags)
        lost = server.request("GET", f"/sessions/{session}/run_stream", headers={"Last-Event-ID": seen[-1]})
        assert (lost.status, lost.json["code"]) == (410, "event_gone")
        again = server.say(session, "Hi", **KEY)
        assert [*again.events()][-1]["data"]["complete_text"] == "OK"
        contents = [message["content"] for message in server.messages(session)]
        assert contents == ["Hi", "Let me see. ", "2", "OK"]


def test_a_turn_without_a_key_that_failed_is_not_tried_again(client: Client) -> None:
    client.model.then(status(404, {"error": "no"}))
    session = client.create()
    client.run(session)
    client.run(session)
    assert contents(client, session) == [("user", "Hi"), ("user", "Hi"), ("assistant", "OK")]
    assert sent(client) == [("user", "Hi\n\nHi")]


# Failed, and followed by a later turn


@pytest.mark.parametrize("code", FAILURES)
def test_a_failed_turn_that_was_followed_by_another_gives_its_error_again(
    reopen: Callable[..., Client], code: str
) -> None:
    client = reopen(*FAILURES[code])
    session = client.create()
    error = error_of(client.run(session, **KEY))
    answered(client.run(session, "Next"))
    asked = len(client.model.requests)
    assert error_of(client.run(session, **KEY)) == error
    again = client.stream(session, **KEY)
    assert replayed(again)
    assert (again.status, again.last()["data"]["code"]) == (200, code)
    assert len(client.model.requests) == asked
    client = reopen()
    response = client.run(session, **KEY)
    assert replayed(response)
    assert error_of(response) == error
    assert client.model.requests == []


def test_the_error_of_a_partial_answer_comes_again_with_it(reopen: Callable[..., Client]) -> None:
    client = reopen(TOOL, answer("It is", BREAK))
    session = client.create()
    original = client.stream(session, **KEY).rest()
    answered(client.run(session, "Next"))
    again = bare(reopen().stream(session, **KEY).rest())
    assert again[:-1] == bare(original)[:-1]
    kind, data = again[-1]
    assert kind == "error"
    wanted = original[-1]["data"]
    assert (data["code"], data["status"], data["message_id"]) == (
        "model_error",
        502,
        wanted["message_id"],
    )


@pytest.mark.parametrize("first", [answer("One", BREAK), status(404, {"error": "no"})], ids=["partial", "nothing"])
def test_the_error_of_the_last_try_is_the_one_that_comes_again(reopen: Callable[..., Client], first: ReplyTo) -> None:
    client = reopen(first, status(401, {"error": "no"}))
    session = client.create()
    client.run(session, **KEY)
    original = client.stream(session, **KEY).last()["data"]
    assert original["code"] == "model_unauthorized"
    answered(client.run(session, "Next"))
    data = reopen().stream(session, **KEY).last()["data"]
    assert {name: data[name] for name in data if name != "error"} == {
        name: original[name] for name in original if name != "error"
    }


def test_a_turn_that_a_crash_ended_and_another_followed_gives_an_error(
    reopen: Callable[..., Client], crash: Callable[[Client], Client]
) -> None:
    client = reopen()
    session, stream, gate = halted(client)
    after = crash(client)
    answered(after.run(session, "Next"))
    response = after.run(session, **KEY)
    assert replayed(response)
    assert error_of(response) == (500, "internal_error")
    assert len(after.model.requests) == 1
    gate.open()
    stream.rest()


def test_a_turn_that_was_tried_again_with_success_stays_so_after_later_turns(reopen: Callable[..., Client]) -> None:
    client = reopen()
    session = failed(client)
    good = answered(client.run(session, **KEY))
    client.run(session, "Next")
    assert answered(reopen().run(session, **KEY)) == good


# Another message under the same key

REUSED = (422, "idempotency_key_reused")


def test_another_message_is_refused_while_the_turn_runs(client: Client) -> None:
    session, first, gate = halted(client)
    assert error_of(client.run(session, "Other", **KEY)) == REUSED
    gate.open()
    first.rest()


def test_another_message_is_refused_after_the_turn_has_ended(client: Client) -> None:
    session = client.create()
    client.run(session, **KEY)
    assert error_of(client.run(session, "Other", **KEY)) == REUSED
    assert error_of(client.run(session, "Hi ", **KEY)) == REUSED


def test_another_message_is_refused_after_later_turns(client: Client) -> None:
    session = client.create()
    client.run(session, **KEY)
    client.run(session, "Other")
    assert error_of(client.run(session, "Other", **KEY)) == REUSED


def test_another_message_is_refused_after_the_turn_has_failed(client: Client) -> None:
    session = failed(client)
    assert error_of(client.run(session, "Other", **KEY)) == REUSED
    client.run(session, "Next")
    assert error_of(client.run(session, "Other", **KEY)) == REUSED


def test_another_message_is_refused_after_the_turn_was_cancelled(client: Client) -> None:
    session, first, _ = halted(client)
    client.cancel(session)
    assert error_of(client.run(session, "Other", **KEY)) == REUSED
    first.close()


def test_another_message_is_refused_while_another_turn_runs(client: Client) -> None:
    session, first, gate = halted(client)
    gate.open()
    first.rest()
    gate = Gate()
    client.model.then(answer(gate))
    second = client.later(client.run, session, "Next")
    assert gate.reached.wait(TIMEOUT)
    assert error_of(client.run(session, "Other", **KEY)) == REUSED
    gate.open()
    answered(second.result(TIMEOUT))


@pytest.mark.parametrize(
    "reply",
    [answer("OK"), status(404, {"error": "no"}), answer("One", BREAK)],
    ids=["answered", "failed", "broken off"],
)
def test_another_message_is_refused_after_a_restart(reopen: Callable[..., Client], reply: ReplyTo) -> None:
    client = reopen(reply)
    session = client.create()
    client.run(session, **KEY)
    client = reopen()
    assert error_of(client.run(session, "Other", **KEY)) == REUSED
    assert client.model.requests == []


# Keys


def test_the_key_is_shown_nowhere(reopen: Callable[..., Client]) -> None:
    secret = {"Idempotency_Key": "a-secret-key"}
    client = reopen(status(404, {"error": "no"}), answer("One", BREAK))
    session = client.create()
    shown = [
        client.run(session, **secret).text,
        client.run(session, **secret).text,
        client.run(session, **secret).text,
    ]
    shown += [client.get(f"/sessions/{session}{query}").text for query in ("", "?limit=1", "?limit=9")]
    shown += [client.get(f"/sessions{query}").text for query in ("", "?details=true")]
    shown += [json.dumps(client.stream(session, **secret).rest()), json.dumps(client.watch(session).rest())]
    assert "a-secret-key" not in "".join(shown)
    assert {name for message in client.messages(session) for name in message} <= {
        *("id", "role", "content", "created_at", "status", "reason", "usage", "model")
    }


def test_the_same_key_in_another_session_is_another_turn(client: Client) -> None:
    one, two = client.create(), client.create()
    answered(client.run(one, **KEY))
    response = client.run(two, "Something else", **KEY)
    assert not replayed(response)
    assert answered(response)["content"] == "OK"
    assert len(client.model.requests) == 2


def test_keys_are_told_apart_by_every_character(client: Client) -> None:
    session = client.create()
    for key in ("k", "K", "k.", '"k"', "k" * 255, "k" * 254 + "j", "!", "~"):
        assert not replayed(client.run(session, Idempotency_Key=key))
        assert replayed(client.run(session, Idempotency_Key=key))


@pytest.mark.parametrize("key", ["", " ", "a b", "é", "k" * 256, "k\x7f", "k\t", "k, k"])
@pytest.mark.parametrize("path", ["run", "run_stream"])
def test_a_malformed_key_is_refused(key: str, path: str) -> None:
    with Client() as client:
        session = client.create()
        headers = {"Idempotency-Key": key}
        response = client.request("POST", f"/sessions/{session}/{path}", {"message": "Hi"}, headers)
        assert error_of(response) == (400, "invalid_request")
        assert client.messages(session) == []


def test_a_malformed_key_is_said_before_that_there_is_no_session(client: Client) -> None:
    assert error_of(client.run("session-never", Idempotency_Key="")) == (400, "invalid_request")


def test_a_key_for_a_session_that_does_not_exist_is_404(client: Client) -> None:
    assert error_of(client.run("session-never", **KEY)) == (404, "session_not_found")


def test_a_deleted_session_takes_its_keys_along(client: Client) -> None:
    session = client.create()
    client.run(session, **KEY)
    client.request("DELETE", f"/sessions/{session}")
    assert error_of(client.run(session, **KEY)) == (404, "session_not_found")


def test_a_session_that_another_process_deleted_is_not_replayed(tmp_path: Path) -> None:
    with (
        Client(storage=FileStorage(str(tmp_path))) as one,
        Client(storage=FileStorage(str(tmp_path))) as two,
    ):
        session = one.create()
        one.run(session, **KEY)
        assert two.request("DELETE", f"/sessions/{session}").status_code == 200
        assert error_of(one.run(session, **KEY)) == (404, "session_not_found")


def test_a_turn_of_another_process_is_busy_and_then_replayed(tmp_path: Path) -> None:
    with (
        Client(storage=FileStorage(str(tmp_path))) as one,
        Client(storage=FileStorage(str(tmp_path))) as two,
    ):
        session, first, gate = halted(one)
        assert error_of(two.run(session, **KEY)) == (409, "session_busy")
        assert error_of(two.run(session, "Other", **KEY)) == REUSED
        gate.open()
        last = first.last()["data"]
        response = two.run(session, **KEY)
        assert replayed(response)
        assert answered(response)["id"] == last["message_id"]


def test_a_turn_that_another_process_tried_again_is_replayed(tmp_path: Path) -> None:
    with (
        Client(storage=FileStorage(str(tmp_path))) as one,
        Client(storage=FileStorage(str(tmp_path))) as two,
    ):
        session = failed(one)
        good = answered(two.run(session, **KEY))
        response = one.run(session, **KEY)
        assert replayed(response)
        assert answered(response) == good


def test_keys_and_outcomes_survive_a_new_title(reopen: Callable[..., Client]) -> None:
    client = reopen(answer("One"), status(401, {"error": "no"}))
    session = client.create()
    original = answered(client.run(session, **KEY))
    client.run(session, "Next", Idempotency_Key="key-2")
    assert client.request("PATCH", f"/sessions/{session}", {"title": "New"}).status_code == 200
    client = reopen()
    assert answered(client.run(session, **KEY)) == original
    answered(client.run(session, "Later"))
    assert error_of(client.run(session, "Next", Idempotency_Key="key-2")) == (502, "model_unauthorized")


def test_a_failed_turn_is_tried_again_after_a_new_title(client: Client) -> None:
    session = failed(client)
    client.request("PATCH", f"/sessions/{session}", {"title": "New"})
    assert answered(client.run(session, **KEY))["content"] == "OK"
    assert contents(client, session) == [("user", "Hi"), ("assistant", "OK")]


def test_keys_survive_a_torn_file(tmp_path: Path) -> None:
    with Client(answer("One"), storage=FileStorage(str(tmp_path))) as client:
        session = client.create()
        original = answered(client.run(session, **KEY))
        client.run(session, "Next", Idempotency_Key="key-2")
    file = tmp_path / f"{session}.json"
    data = file.read_bytes()
    for cut in range(data.index(b'"Next"') + 60, len(data), 7):
        file.write_bytes(data[:cut])
        with Client(storage=FileStorage(str(tmp_path))) as client:
            response = client.run(session, **KEY)
            assert replayed(response)
            assert answered(response) == original
            assert error_of(client.run(session, "Other", **KEY)) == REUSED


def test_a_turn_whose_answer_was_torn_is_tried_again(tmp_path: Path) -> None:
    with Client(answer("One"), storage=FileStorage(str(tmp_path))) as client:
        session = client.create()
        answered(client.run(session, **KEY))
    file = tmp_path / f"{session}.json"
    data = file.read_bytes()
    file.write_bytes(data[: data.index(b'"One"')])
    with Client(storage=FileStorage(str(tmp_path))) as client:
        response = client.run(session, **KEY)
        assert not replayed(response)
        assert answered(response)["content"] == "OK"
        assert contents(client, session) == [("user", "Hi"), ("assistant", "OK")]


# --- another process has the same key ---


class AnsweredElsewhere(MemoryStorage):
    """A store in which another process answers the question, and looks at the session once more, while a turn starts
    here."""

    answered = False

    def lock(self, session_id: str, *, turn: bool = False) -> LockedSession:
        if self.answered:
            return super().lock(session_id, turn=turn)
        self.answered = True
        with super().lock(session_id, turn=True) as locked:
            locked.append({"role": "user", "content": "Hi", "idempotency_key": "k"})
            locked.append({"role": "assistant", "content": "There."})
        raise SessionBusy(session_id)


def test_a_key_that_another_process_uses_at_the_same_time_gets_the_same_answer() -> None:
    with Client(storage=AnsweredElsewhere()) as client:
        session = client.create()
        response = client.run(session, Idempotency_Key="k")
        assert response.headers["Idempotency-Replayed"] == "true"
        assert answered(response)["content"] == "There."
        assert client.model.requests == []
