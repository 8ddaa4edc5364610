"""Responses that do not begin: nothing is left of them, and a retry is the first one that happens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.test import TestResponse

from storage import LockedSession, MemoryStorage, StorageUnavailable
from tests.support.client import BreakableStorage, Client, error_of, json_of
from tests.support.letters import send, sent
from tests.support.model_server import STALL, answer, tool_call
from tests.support.responses import checked

PATH = "/v1/responses"
USER = {"role": "user", "content": "Hello!"}
ANSWER = {"role": "assistant", "content": "Good day."}
ADDRESS = "http://localhost/sessions/session-1/files/" + "a" * 64
PICTURE = {"role": "user", "content": [{"type": "input_image", "image_url": ADDRESS}]}
CALLS = [
    {"type": "function_call", "call_id": id, "name": "weather", "arguments": "{}"} for id in ("call_a", "call_b")
]
OUTPUTS = [{"type": "function_call_output", "call_id": id, "output": "rain"} for id in ("call_a", "call_b")]
REFERENCE = {"type": "item_reference", "id": "msg_1"}
SEND = tool_call("send", {"to": "Ann"}, id="call_s")
APPROVED = {"type": "mcp_approval_response", "approval_request_id": "mcpr_call_s", "approve": True}


@pytest.fixture
def client() -> Iterator[Client]:
    sent.clear()
    with Client(storage=BreakableStorage(), tools=[send], max_streams=1, timeout=20.0) as client:
        yield client


@pytest.fixture(params=[None, "key"], ids=["alone", "keyed"])
def key(request: pytest.FixtureRequest) -> str | None:
    found: str | None = request.param
    return found


def ask(client: Client, given: Any = "Hi", key: str | None = None, **body: Any) -> TestResponse:
    return client.request("POST", PATH, {"input": given, **body}, {"Idempotency-Key": key} if key else {})


def sessions(client: Client) -> list[str]:
    found: list[str] = json_of(client.get("/sessions"))["sessions"]
    return found


def stored(client: Client) -> dict[str, list[tuple[str, str]]]:
    """What all sessions hold."""
    return {
        id: [(one["role"], one["content"]) for one in client.session(id)["messages"]]
        for id in sorted(sessions(client))
    }


@pytest.fixture(params=[False, True], ids=["new", "branch"])
def earlier(request: pytest.FixtureRequest, client: Client) -> dict[str, str]:
    """A response that another one follows, or none."""
    if not request.param:
        return {}
    first: str = checked(ask(client))["id"]
    checked(ask(client, "And?", previous_response_id=first))
    return {"previous_response_id": first}


REFUSED: dict[str, tuple[Any, dict[str, Any], int]] = {
    "an unknown picture": ([PICTURE], {}, 400),
    "an unknown picture before the end": ([PICTURE, ANSWER, USER], {}, 400),
    "an unknown picture before an output": ([PICTURE, *CALLS, *OUTPUTS], {}, 400),
    "a blank question": ([{"role": "user", "content": " "}], {}, 400),
    "no question": ([USER, ANSWER], {}, 400),
    "an output of no call": ([OUTPUTS[0]], {}, 400),
    "an output of one of two calls": ([USER, *CALLS, OUTPUTS[0]], {}, 409),
    "an unknown item": ([REFERENCE, USER], {}, 404),
    "an unknown type": ([{"type": "web_search_call"}], {}, 400),
    "a choice that is not served": ([USER], {"tool_choice": {"type": "file_search"}}, 400),
    "a choice that is no list": ([USER], {"tool_choice": {"mode": "auto", "tools": 5}}, 400),
}


@pytest.mark.parametrize("case", REFUSED)
def test_nothing_is_left_of_a_response_that_is_refused(
    client: Client, key: str | None, earlier: dict[str, str], case: str
) -> None:
    given, body, status = REFUSED[case]
    before = stored(client)
    for _ in range(2):
        assert ask(client, given, key, **body, **earlier).status_code == status
        assert stored(client) == before
    checked(ask(client, [USER], key, **earlier))
    assert len(sessions(client)) == len(before) + 1


def test_nothing_is_left_of_a_response_that_finds_no_place(
    client: Client, key: str | None, earlier: dict[str, str]
) -> None:
    client.model.then(answer("Hel", STALL))
    busy = client.create()
    client.stream(busy).next("stream_chunk")
    before = stored(client)
    assert error_of(ask(client, "Once", key, **earlier)) == (503, "overloaded")
    assert stored(client) == before
    client.cancel(busy)
    for _ in range(2 if key else 1):
        checked(ask(client, "Once", key, **earlier))
    assert len(sessions(client)) == len(before) + 1


def test_nothing_is_left_of_a_response_that_cannot_be_stored(
    client: Client, key: str | None, earlier: dict[str, str]
) -> None:
    before = stored(client)
    assert isinstance(client.storage, BreakableStorage)
    client.storage.broken = True
    assert error_of(ask(client, "Once", key, **earlier)) == (503, "storage_unavailable")
    client.storage.broken = False
    assert stored(client) == before
    for _ in range(2 if key else 1):
        checked(ask(client, "Once", key, **earlier))
    assert len(sessions(client)) == len(before) + 1


class FailingStorage(MemoryStorage):
    """A store whose write of this number fails, from 1."""

    failing = 0

    def _lock(self, session_id: str, turn: bool) -> LockedSession | None:
        locked = super()._lock(session_id, turn)
        if locked is not None:
            append = locked._append

            def append_or_fail(*arguments: Any) -> None:
                self.failing -= 1
                if self.failing == 0:
                    raise StorageUnavailable("/srv/sessions is full")
                append(*arguments)

            locked._append = append_or_fail  # type: ignore[assignment, method-assign]
        return locked


def kinds(client: Client, conversation: str) -> list[str]:
    page = json_of(client.get(f"/v1/conversations/{conversation}/items?order=asc&limit=100"))
    return [item["type"] for item in page["data"]]


@pytest.mark.parametrize("number", range(1, 6))
def test_items_are_added_all_or_none_where_the_store_fails(number: int) -> None:
    with Client(storage=FailingStorage()) as client:
        assert isinstance(client.storage, FailingStorage)
        conversation = json_of(client.request("POST", "/v1/conversations", {}))["id"]
        client.storage.failing = number
        response = client.request(
            "POST", f"/v1/conversations/{conversation}/items", {"items": [USER, *CALLS, *OUTPUTS]}
        )
        assert response.status_code == 200 or error_of(response) == (503, "storage_unavailable")
        assert len(kinds(client, conversation)) == (5 if response.status_code == 200 else 0)


@pytest.mark.parametrize("number", range(1, 8))
def test_a_retry_doubles_nothing_where_the_store_fails(number: int) -> None:
    with Client(storage=FailingStorage()) as client:
        assert isinstance(client.storage, FailingStorage)
        conversation = json_of(client.request("POST", "/v1/conversations", {"items": [USER]}))["id"]
        client.storage.failing = number
        for _ in range(3):
            ask(client, [USER, *CALLS, *OUTPUTS], "key", conversation=conversation)
        assert kinds(client, conversation) == [
            *("message", "message", "function_call", "function_call"),
            *("function_call_output", "function_call_output", "message"),
        ]


@pytest.mark.parametrize("by", ["previous_response_id", "conversation"])
@pytest.mark.parametrize("number", range(1, 5))
def test_what_is_approved_runs_once_where_the_question_behind_it_fails(key: str | None, by: str, number: int) -> None:
    sent.clear()
    with Client(SEND, storage=FailingStorage(), tools=[send], timeout=20.0) as client:
        assert isinstance(client.storage, FailingStorage)
        conversation = json_of(client.request("POST", "/v1/conversations", {}))["id"]
        asking = checked(ask(client, "Write!", conversation=conversation))["id"]
        body = {by: {"previous_response_id": asking, "conversation": conversation}[by]}
        client.storage.failing = number
        tries = [ask(client, [APPROVED, USER], key, **body).status_code for _ in range(2 if number in (1, 4) else 1)]
        assert tries in ([503, 200], [200])
        assert sent == ["Ann"]
        assert sessions(client) == [f"session-{conversation.removeprefix('conv_')}"]
        said = [one["content"] for one in client.session(sessions(client)[0])["messages"] if one["role"] == "user"]
        assert said == ["Write!", "Hello!"]


def test_a_retry_that_is_refused_leaves_the_response_of_its_key(client: Client) -> None:
    response = checked(ask(client, "Once", "key"))
    before = stored(client)
    for given, status in (("Twice", 422), ([PICTURE], 422), ([REFERENCE], 404), ([USER, ANSWER], 422)):
        assert ask(client, given, "key").status_code == status
        assert stored(client) == before
    assert checked(ask(client, "Once", "key")) == response
