"""Answers to calls that come to the AI SDK's route with a new message."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from agent import tool
from session_core.web.ui_messages import UI_MESSAGES
from tests.support.client import Client
from tests.support.model_server import tool_call
from tests.support.server import TIMEOUT


class Mail:
    """What the tool has done, and what it waits for."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.began = threading.Event()
        self.go = threading.Event()

    def tool(self) -> Any:
        @tool(needs_approval=True)
        def send(to: str) -> str:
            """Sends a letter."""
            self.sent.append(to)
            self.began.set()
            assert self.go.wait(TIMEOUT)
            return f"sent to {to}"

        return send


@pytest.fixture
def mail() -> Mail:
    return Mail()


@pytest.fixture
def client(mail: Mail) -> Iterator[Client]:
    with Client(tools=[mail.tool()], timeout=TIMEOUT) as client:
        yield client
        mail.go.set()


def question(text: str, id: str) -> dict[str, Any]:
    return {"id": id, "role": "user", "parts": [{"type": "text", "text": text}]}


def waiting(client: Client) -> tuple[str, list[dict[str, Any]]]:
    """A session that waits for an approval, and its messages."""
    session = client.create()
    client.model.then(tool_call("send", {"to": "Ann"}))
    client.request("POST", "/ui/chat", {"id": session, "messages": [question("Write", "m1")]})
    messages: list[dict[str, Any]] = json.loads(client.get(f"/sessions/{session}", Accept=UI_MESSAGES).text)
    return session, messages


def answered(messages: list[dict[str, Any]], **answer: Any) -> dict[str, Any]:
    """The last message, with an answer to its call."""
    *others, call = messages[-1]["parts"]
    return {**messages[-1], "parts": [*others, {**call, **answer}]}


def told(client: Client) -> list[str]:
    return [one["content"] for one in client.model.requests[-1]["messages"] if one["role"] != "system"]


def test_a_retry_while_what_was_approved_runs_is_the_same_turn(client: Client, mail: Mail) -> None:
    session, messages = waiting(client)
    approved = answered(messages, state="approval-responded", approval={"id": "call_1", "approved": True})
    body = {"id": session, "messages": [*messages[:-1], approved, question("And hurry", "m2")]}
    asked = [client.later(client.request, "POST", "/ui/chat", body)]
    assert mail.began.wait(TIMEOUT)
    asked.append(client.later(client.request, "POST", "/ui/chat", body))
    mail.go.set()
    assert [one.result(TIMEOUT).status_code for one in asked] == [200, 200]
    assert mail.sent == ["Ann"] and len(client.model.requests) == 2
    assert told(client) == ["Write", "", "sent to Ann", "(interrupted)", "And hurry"]


@pytest.mark.parametrize(
    "answer", [{"state": "output-available", "output": "done"}, {"state": "output-error", "errorText": "cancelled"}]
)
def test_a_result_in_place_of_an_approval_is_no_answer_to_the_call(
    client: Client, mail: Mail, answer: dict[str, Any]
) -> None:
    session, messages = waiting(client)
    body = {"id": session, "messages": [*messages[:-1], answered(messages, **answer), question("Go on", "m2")]}
    assert client.request("POST", "/ui/chat", body).status_code == 200
    assert told(client) == ["Write", "", "not executed: the user went on", "(interrupted)", "Go on"]
    assert mail.sent == []
