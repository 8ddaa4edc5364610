"""A queue behind a turn that waits for answers, and messages of the AI SDK that wait."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from werkzeug.test import TestResponse

from agent import tool
from session_core.turns.expiry import expire
from storage import MemoryStorage, Session, Storage
from tests.support.client import Client, error_of, json_of
from tests.support.model_server import STALL, answer, tool_call
from tests.support.server import wait_until
from tests.turns.test_queue import ended, questions, queue, queued, send, texts

SEND = tool_call("send", {"to": "Ann"})
APPROVED = {"call_1": {"approve": True}}


@tool(needs_approval=True)
def send_letter(to: str) -> str:
    """Sends a letter."""
    return f"sent to {to}"


@pytest.fixture
def client(store: Callable[[], Storage]) -> Iterator[Client]:
    with Client(storage=store(), tools=[send_letter]) as client:
        client.model.then(tool_call("send_letter", {"to": "Ann"}))
        yield client


def held(client: Client) -> str:
    """A session that waits for approval, with a queue behind."""
    session = client.create()
    assert json_of(client.run(session, "one"))["message"]["status"] == "waiting"
    client.storage.queue(session).add({"id": "msg-two", "content": "two", "created_at": "2026-01-31T12:34:56Z"})
    return session


def test_while_a_turn_waits_for_a_person_the_queue_holds(client: Client) -> None:
    session = held(client)
    assert error_of(client.run(session, "three")) == (409, "session_busy")
    assert send(client, session, "three").status_code == 202
    found = client.session(session)
    assert ([one["content"] for one in found["queued"]], found["running"]) == (["two", "three"], False)
    assert len(found["pending"]) == 1 and len(client.model.requests) == 1


def test_a_session_in_which_a_message_waits_does_not_expire(client: Client) -> None:
    session, later = held(client), lambda: time.time() + 1000
    assert expire(client.storage, 10, later) == 0
    client.storage.queue(session).remove("msg-two")
    assert expire(client.storage, 10, later) == 1


def test_the_queue_goes_on_behind_the_answers(client: Client) -> None:
    session = held(client)
    client.request("POST", f"/sessions/{session}/run", {"answers": APPROVED})
    assert texts(ended(client, session)) == ["one", "", "sent to Ann", "OK", "two", "OK"]


def test_a_cancel_denies_what_is_pending_and_the_next_message_begins(client: Client) -> None:
    session = held(client)
    assert client.cancel(session)
    assert texts(ended(client, session))[-2:] == ["two", "OK"]


def test_an_item_of_a_conversation_denies_what_is_pending_and_the_next_message_begins(client: Client) -> None:
    session = held(client)
    items = {"items": [{"type": "message", "role": "user", "content": "item"}]}
    path = f"/v1/conversations/{session.replace('session-', 'conv_')}/items"
    assert client.request("POST", path, items).status_code == 200
    wait_until(lambda: questions(client.session(session)) == ["one", "item", "two"])
    assert "queued" not in ended(client, session)


def test_an_interrupt_denies_what_is_pending_and_begins_first(client: Client) -> None:
    session = held(client)
    queue(client, session, "now", way="interrupt")
    wait_until(lambda: questions(client.session(session)) == ["one", "now", "two"])
    assert "pending" not in ended(client, session)


def chat(client: Client, session: str, text: str, **body: Any) -> TestResponse:
    message = {"id": f"client-{text}", "role": "user", "parts": [{"type": "text", "text": text}]}
    return client.request("POST", "/ui/chat", {"id": session, "messages": [message], **body})


def begin(client: Client) -> str:
    client.model.forget()
    client.model.then(answer("Hel", STALL))
    session = client.create()
    client.stream(session, "one").next("stream_chunk")
    return session


def test_a_message_of_use_chat_can_wait(client: Client) -> None:
    session = begin(client)
    response = chat(client, session, "two", if_busy="queue")
    assert (response.status_code, response.headers["X-Vercel-AI-UI-Message-Stream"]) == (202, "v1")
    first, done, _ = response.text.split("\n\n")
    [waiting] = client.session(session)["queued"]
    told = {"type": "data-queued", "data": {"id": waiting["id"], "position": 1}, "transient": True}
    assert (json.loads(first[6:]), done) == (told, "data: [DONE]")
    client.cancel(session)
    assert texts(ended(client, session)) == ["one", "Hel", "two", "OK"]


def test_a_retry_of_a_message_of_use_chat_waits_once(client: Client) -> None:
    session = begin(client)
    assert chat(client, session, "two", if_busy="queue").text == chat(client, session, "two", if_busy="queue").text
    assert queued(client, session) == ["two"]


def test_without_if_busy_a_message_of_use_chat_is_refused(client: Client) -> None:
    session = begin(client)
    assert error_of(chat(client, session, "two")) == (409, "session_busy")


def test_a_chat_completion_in_a_busy_session_is_refused(client: Client) -> None:
    session = held(client)
    body = {"messages": [{"role": "user", "content": "three"}]}
    response = client.request("POST", "/v1/chat/completions", body, {"X-Session-Id": session})
    assert error_of(response) == (409, "session_busy")


def test_a_keyed_message_that_is_refused_needs_one_place_alone() -> None:
    with Client(tool_call("send_letter", {"to": "Ann"}), tools=[send_letter], max_streams=1) as client:
        session, other = held(client), client.create()
        client.run(other, Idempotency_Key="k")
        replays = [client.stream(other, Idempotency_Key="k") for _ in range(client.settings.max_responses - 1)]
        assert error_of(client.run(session, "three", Idempotency_Key="new")) == (409, "session_busy")
        for replay in replays:
            replay.close()


class Unhurried(MemoryStorage):
    """A store in which whoever looks at a session after a cancel, from elsewhere than a turn, sees it when the next
    turn has ended."""

    def _read(self, session_id: str) -> Session:
        def look() -> Session:
            return MemoryStorage._read(self, session_id)

        if look().messages[1:] and threading.current_thread().name != "turns":
            wait_until(lambda: len(look().messages) > 3 and not self.running(session_id))
        return look()


def test_an_interrupt_does_not_deny_what_its_own_turn_waits_for() -> None:
    replies = answer("Hel", STALL), tool_call("send_letter", {"to": "Ann"})
    with Client(*replies, storage=Unhurried(), tools=[send_letter]) as client:
        session = client.create()
        client.stream(session, "one").next("stream_chunk")
        assert send(client, session, "two", "interrupt").status_code == 202
        found = client.session(session)
        assert [one["role"] for one in found["messages"]] == ["user", "assistant", "user", "assistant"]
        assert found["messages"][-1]["status"] == "waiting"
