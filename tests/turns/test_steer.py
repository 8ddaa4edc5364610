"""Messages that come into the turn that runs, between two rounds of its tools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from session_core.data.message_queue import QueuedMessage
from storage import Storage
from tests.support.client import Client, Stream, json_of
from tests.support.model_server import STALL, answer, status, tool_call
from tests.support.phases import Tool
from tests.support.server import TIMEOUT
from tests.support.well_formed import assert_well_formed
from tests.turns.test_queue import ended, queue, queued, send, texts

SLOW = tool_call("slow", {}, text="Let me see.")


@pytest.fixture
def client(store: Callable[[], Storage], tool: Tool) -> Iterator[Client]:
    with Client(SLOW, storage=store(), tools=[tool.function]) as client:
        yield client


def call(client: Client, tool: Tool, text: str = "one", **headers: str) -> tuple[str, Stream]:
    """A session whose turn waits for its tool, and the stream."""
    session = client.create()
    stream = client.stream(session, text, **headers)
    stream.next("stream_tool_call")
    assert tool.called.wait(TIMEOUT)
    return session, stream


def sent(client: Client, number: int = -1) -> list[tuple[str, str]]:
    """What the model got with a request, as roles and texts."""
    assert_well_formed(client.model.requests[number])
    return [(one["role"], one["content"]) for one in client.model.requests[number]["messages"]]


def test_a_steered_message_goes_out_behind_the_results(client: Client, tool: Tool) -> None:
    session, stream = call(client, tool)
    [id] = queue(client, session, "hurry", way="steer")
    assert client.session(session)["queued"][0]["steers"] == client.messages(session)[0]["id"]
    tool.go.set()
    assert stream.last()["data"]["status"] == "completed"
    assert sent(client) == [("user", "one"), ("assistant", "Let me see."), ("tool", "late"), ("user", "hurry")]
    found = client.session(session)
    assert texts(found) == ["one", "Let me see.", "late", "hurry", "OK"]
    steered = found["messages"][3]
    assert (steered["id"], steered["role"], steered["steered"]) == (id, "user", True)
    assert "queued" not in found and not found["running"]


def test_the_stream_tells_of_a_steered_message(client: Client, tool: Tool) -> None:
    session, stream = call(client, tool)
    [id] = queue(client, session, "hurry", way="steer")
    tool.go.set()
    events = stream.rest()
    assert [event["type"] for event in events] == [
        *("stream_tool_result", "stream_message", "stream_chunk", "stream_end")
    ]
    assert events[1]["data"] == {"message_id": id, "content": "hurry"}


def test_later_requests_have_it_in_the_same_place(client: Client, tool: Tool) -> None:
    session, stream = call(client, tool)
    queue(client, session, "hurry", way="steer")
    tool.go.set()
    stream.rest()
    client.run(session, "two")
    assert sent(client)[:4] == sent(client, 1)
    assert sent(client)[4:] == [("assistant", "OK"), ("user", "two")]


def test_several_come_in_order_and_before_what_is_queued(client: Client, tool: Tool) -> None:
    session, stream = call(client, tool)
    queue(client, session, "two")
    queue(client, session, "first", "second", way="steer")
    assert queued(client, session) == ["two", "first", "second"]
    tool.go.set()
    stream.rest()
    assert texts(ended(client, session)) == ["one", "Let me see.", "late", "first", "second", "OK", "two", "OK"]


def test_where_the_turn_ends_first_it_is_queued(client: Client, tool: Tool) -> None:
    client.model.forget()
    client.model.then(answer("Hel", STALL))
    session = client.create()
    stream = client.stream(session, "one")
    stream.next("stream_chunk")
    queue(client, session, "hurry", way="steer")
    client.cancel(session)
    found = ended(client, session)
    assert texts(found) == ["one", "Hel", "hurry", "OK"] and "steered" not in found["messages"][2]


def test_one_that_was_left_does_not_come_into_a_later_turn(client: Client, tool: Tool) -> None:
    client.model.forget()
    client.model.then(answer("Hel", STALL), SLOW)
    session = client.create()
    client.stream(session, "one").next("stream_chunk")
    queue(client, session, "two")
    queue(client, session, "hurry", way="steer")
    client.cancel(session)
    tool.go.set()
    assert texts(ended(client, session)) == ["one", "Hel", "two", "Let me see.", "late", "OK", "hurry", "OK"]


def test_a_steered_message_can_be_taken_back(client: Client, tool: Tool) -> None:
    session, stream = call(client, tool)
    [id] = queue(client, session, "hurry", way="steer")
    assert client.request("DELETE", f"/sessions/{session}/queued/{id}").status_code == 200
    tool.go.set()
    stream.rest()
    assert texts(client.session(session)) == ["one", "Let me see.", "late", "OK"]


def test_the_key_of_a_steered_message_is_its_turn(client: Client, tool: Tool) -> None:
    session, stream = call(client, tool)
    first = send(client, session, "hurry", "steer", key="k")
    assert json_of(send(client, session, "hurry", "steer", key="k")) == json_of(first)
    tool.go.set()
    stream.rest()
    again = send(client, session, "hurry", "steer", key="k")
    assert (again.headers["Idempotency-Replayed"], json_of(again)["message"]["content"]) == ("true", "OK")
    assert len(client.model.requests) == 2


def test_a_key_joins_the_turn_into_which_its_message_has_come(client: Client, tool: Tool) -> None:
    client.model.then(answer("Hel", STALL))
    session, stream = call(client, tool)
    send(client, session, "hurry", "steer", key="k")
    tool.go.set()
    stream.next("stream_chunk")
    joined = client.later(send, client, session, "hurry", "steer", key="k")
    client.cancel(session)
    assert json_of(joined.result(TIMEOUT))["message"]["status"] == "cancelled"
    assert texts(client.session(session)).count("hurry") == 1


def test_the_turn_of_a_steered_message_is_that_into_which_it_has_come(client: Client, tool: Tool) -> None:
    session, stream = call(client, tool)
    [id] = queue(client, session, "hurry", way="steer")
    watching = client.later(lambda: client.watch(session, f"?message={id}").rest())
    tool.go.set()
    events = stream.rest()
    assert [event["id"] for event in watching.result(TIMEOUT)][-4:] == [event["id"] for event in events]


def test_a_replayed_turn_tells_of_it_too(client: Client, tool: Tool) -> None:
    session, stream = call(client, tool, Idempotency_Key="turn")
    [id] = queue(client, session, "hurry", way="steer")
    tool.go.set()
    stream.rest()
    client.run(session, "two")
    kinds = {event["type"]: event.get("data") for event in client.stream(session, "one", Idempotency_Key="turn")}
    assert list(kinds) == [
        *("stream_start", "stream_chunk", "stream_tool_call", "stream_tool_result", "stream_message", "stream_end")
    ]
    assert kinds["stream_message"] == {"message_id": id, "content": "hurry"}


def test_a_failed_turn_that_is_tried_again_has_it_still(client: Client, tool: Tool) -> None:
    client.model.then(status(401, {"error": "no"}))
    session, stream = call(client, tool, Idempotency_Key="turn")
    queue(client, session, "hurry", way="steer")
    tool.go.set()
    assert stream.last()["data"]["code"] == "model_unauthorized"
    assert client.run(session, "one", Idempotency_Key="turn").status_code == 200
    assert sent(client) == [("user", "one\n\nhurry")]


def test_a_turn_that_goes_on_has_it_still(client: Client, tool: Tool) -> None:
    client.model.then(status(401, {"error": "no"}))
    session, stream = call(client, tool)
    queue(client, session, "hurry", way="steer")
    tool.go.set()
    stream.rest()
    assert client.request("POST", f"/sessions/{session}/run", {"continue": True}).status_code == 200
    assert sent(client) == [("user", "one"), ("assistant", "Let me see."), ("tool", "late"), ("user", "hurry")]


def test_one_that_comes_into_a_turn_that_goes_on_has_not_the_key_of_that(client: Client, tool: Tool) -> None:
    client.model.then(status(401, {"error": "no"}))
    session, stream = call(client, tool)
    tool.go.set()
    stream.rest()
    message: QueuedMessage = {"id": "msg-two", "content": "hurry", "created_at": "2026-01-31T12:34:56Z"}
    client.storage.queue(session).add({**message, "steers": client.messages(session)[0]["id"]})
    path, key = f"/sessions/{session}/run", {"Idempotency-Key": "on"}
    assert client.request("POST", path, {"continue": True}, key).status_code == 200
    assert sent(client)[-1] == ("user", "hurry")
    assert client.request("POST", path, {"continue": True}, key).headers["Idempotency-Replayed"] == "true"


def test_the_messages_of_the_ai_sdk_have_it_within_the_answer(client: Client, tool: Tool) -> None:
    session, stream = call(client, tool)
    [id] = queue(client, session, "hurry", way="steer")
    tool.go.set()
    stream.rest()
    shown: list[dict[str, Any]] = client.request(
        "GET", f"/sessions/{session}", headers={"Accept": "application/vnd.ai-sdk.ui-messages+json"}
    ).json
    assert [message["role"] for message in shown] == ["user", "assistant"]
    assert {"type": "data-message", "id": id, "data": {"content": "hurry"}} in shown[1]["parts"]
