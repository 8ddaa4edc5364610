"""A request that is sent again with its Idempotency-Key after its turn gets the same answer."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from storage import Storage
from tests.support.client import Client, error_of
from tests.support.model_server import STALL, ReplyTo, answer, tool_call
from tests.support.retries import (
    FAILURES,
    KEY,
    TOOL,
    USAGE,
    Gate,
    answered,
    bare,
    contents,
    failed,
    halted,
    replayed,
    sent,
)
from tests.support.server import TIMEOUT, wait_until


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
        wait_until(lambda: client.app.extensions["turns"].turns.closing)
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


def test_a_result_that_only_looks_like_an_error_is_none(storage: Storage) -> None:
    def find() -> str:
        """Look for errors."""
        return "error: none found"

    with Client(tool_call("find", {}), answer("OK"), storage=storage, tools=(find,)) as client:
        session = client.create()
        client.run(session, "one", Idempotency_Key="k")
        client.run(session, "two")
        assert client.messages(session)[2]["is_error"] is False
        events = client.stream(session, "one", Idempotency_Key="k").rest()
        results = [event["data"] for event in events if event["type"] == "stream_tool_result"]
        assert [result["result"] for result in results] == ["error: none found"]
