"""A request that is sent again with its Idempotency-Key while its turn runs joins it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from storage import LockedSession, MemoryStorage, SessionBusy, StorageUnavailable
from tests.support.client import Client, error_of
from tests.support.model_server import BREAK, answer
from tests.support.retries import KEY, TOOL, USAGE, Arrivals, Gate, answered, contents, failed, halted, replayed
from tests.support.server import TIMEOUT


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


class AnsweredElsewhere(MemoryStorage):
    """A store in which another process answers the question, and looks at the session once more, while a turn starts
    here."""

    answered = False

    def lock_for_turn(self, session_id: str) -> LockedSession:
        if self.answered:
            return super().lock_for_turn(session_id)
        self.answered = True
        with super().lock_for_turn(session_id) as locked:
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
