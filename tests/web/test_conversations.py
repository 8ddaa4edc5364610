"""Conversations of OpenAI's form: sessions, filled by the client and by responses."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from storage import LockedSession, MemoryStorage, StorageUnavailable
from tests.support.client import Client, error_of, json_of, storages
from tests.support.model_server import STALL, answer, tool_call
from tests.support.responses import check_conversation, check_item, checked, sdk
from tests.support.well_formed import assert_well_formed

PATH = "/v1/conversations"
MODEL = "gpt-3.5-turbo"
USER = {"type": "message", "role": "user", "content": "Hello!"}
ANSWER = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Good day."}]}
CALL = {"type": "function_call", "call_id": "call_w", "name": "weather", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "call_w", "output": "rain"}


@pytest.fixture(params=["memory", "files"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    with Client(storage=storages(tmp_path)[request.param](), timeout=20.0) as client:
        yield client


@pytest.fixture
def openai_client(client: Client) -> Iterator[openai.OpenAI]:
    with sdk(client) as made:
        yield made


def create(client: Client, *items: Any, **body: Any) -> str:
    found = json_of(client.request("POST", PATH, {"items": list(items), **body}))
    check_conversation(found)
    id: str = found["id"]
    return id


def respond(client: Client, conversation: str, text: Any = "Hi", **body: Any) -> dict[str, Any]:
    return checked(client.request("POST", "/v1/responses", {"input": text, "conversation": conversation, **body}))


def items(client: Client, conversation: str, query: str = "?order=asc&limit=100") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json_of(client.get(f"{PATH}/{conversation}/items{query}"))["data"]
    for item in found:
        check_item(item)
    return found


def texts(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(item["role"], item["content"][0]["text"]) for item in found if item["type"] == "message"]


def told(client: Client) -> list[tuple[str, str]]:
    assert_well_formed(client.model.requests[-1])
    return [(one["role"], one["content"]) for one in client.model.requests[-1]["messages"]]


def session_of(conversation: str) -> str:
    return "session-" + conversation.removeprefix("conv_")


def test_a_conversation_is_a_session(client: Client) -> None:
    conversation = create(client, USER, ANSWER)
    respond(client, conversation)
    shown = client.session(session_of(conversation))
    assert [one["content"] for one in shown["messages"]] == ["Hello!", "Good day.", "Hi", "OK"]
    assert told(client) == [("user", "Hello!"), ("assistant", "Good day."), ("user", "Hi")]


def test_a_session_is_a_conversation(client: Client) -> None:
    session_id = client.create()
    client.model.then(tool_call("calculator", {"expression": "1 + 1"}, text="I look."), answer("It is 2."))
    client.run(session_id)
    found = items(client, "conv_" + session_id.removeprefix("session-"))
    assert [item["type"] for item in found] == ["message", "message", "mcp_call", "message"]
    assert found[2].items() >= {"name": "calculator", "output": "2", "status": "completed"}.items()


def test_the_items_of_a_response_have_its_ids(client: Client) -> None:
    conversation = create(client)
    client.model.then(tool_call("calculator", {"expression": "1 + 1"}, text="I look."), answer("It is 2."))
    response = respond(client, conversation)
    assert response["conversation"] == {"id": conversation}
    assert items(client, conversation)[1:] == response["output"]


def test_metadata_is_kept_and_changed(client: Client, openai_client: openai.OpenAI) -> None:
    made = openai_client.conversations.create(metadata={"topic": "demo"})
    assert openai_client.conversations.retrieve(made.id).to_dict() == made.to_dict()
    before = client.session(session_of(made.id))
    changed = openai_client.conversations.update(made.id, metadata={"topic": "other"})
    assert changed.metadata == {"topic": "other"}
    assert client.session(session_of(made.id)) == before
    assert openai_client.conversations.retrieve(made.id).metadata == {"topic": "other"}


def test_a_conversation_begins_with_system_messages(client: Client) -> None:
    conversation = create(client, {"role": "system", "content": "Be brief."}, USER)
    respond(client, conversation)
    assert told(client)[0] == ("system", "Be brief.")
    respond(client, conversation, instructions="Speak French.")
    assert told(client)[0] == ("system", "Speak French.\n\nBe brief.")


def test_a_deleted_conversation_is_gone(client: Client, openai_client: openai.OpenAI) -> None:
    conversation = create(client, USER)
    deleted = openai_client.conversations.delete(conversation)
    assert (deleted.id, deleted.deleted) == (conversation, True)
    assert client.get(f"/sessions/{session_of(conversation)}").status_code == 404
    with pytest.raises(openai.NotFoundError):
        openai_client.conversations.retrieve(conversation)


@pytest.mark.parametrize("conversation", ["conv_unknown", "conv_A", "session-a", "conv_" + "0" * 65, "x"])
def test_an_unknown_conversation_is_not_found(client: Client, conversation: str) -> None:
    for method, path, body in (
        ("GET", "", None),
        ("POST", "", {"metadata": {}}),
        ("DELETE", "", None),
        ("GET", "/items", None),
        ("POST", "/items", {"items": [USER]}),
        ("GET", "/items/msg_1", None),
        ("DELETE", "/items/msg_1", None),
    ):
        response = client.request(method, f"{PATH}/{conversation}{path}", body)
        assert error_of(response) == (404, "not_found")
        assert "session-" not in json_of(response)["error"]["message"] or conversation == "session-a"
    response = client.request("POST", "/v1/responses", {"input": "Hi", "conversation": conversation})
    assert error_of(response) == (404, "not_found")


class _Failing(MemoryStorage):
    """A store whose second write in a lock fails, once."""

    failed = False

    def _lock(self, session_id: str, turn: bool) -> LockedSession | None:
        locked, writes = super()._lock(session_id, turn), itertools.count(1)
        if locked is not None:
            append = locked._append

            def fail(*arguments: Any) -> None:
                if next(writes) == 2 and not self.failed:
                    self.failed = True
                    raise StorageUnavailable("full")
                append(*arguments)

            locked._append = fail  # type: ignore[method-assign, assignment]
        return locked


def test_items_of_which_one_cannot_be_stored_are_there_once_after_a_retry() -> None:
    with Client(storage=_Failing()) as client:
        conversation = create(client)
        path, body = f"{PATH}/{conversation}/items", {"items": [USER, ANSWER, USER]}
        answers = [client.request("POST", path, body).status_code]
        while answers[-1] == 503:
            answers.append(client.request("POST", path, body).status_code)
        assert len(items(client, conversation)) == 3


def test_items_are_added_in_their_order(client: Client, openai_client: openai.OpenAI) -> None:
    conversation = create(client)
    given: Any = [USER, {"type": "reasoning", "id": "rs_1", "summary": []}, CALL, OUTPUT, ANSWER]
    added = openai_client.conversations.items.create(conversation, items=given)
    assert [item.type for item in added.data] == ["message", "function_call", "function_call_output", "message"]
    assert (added.first_id, added.last_id) == (added.data[0].id, added.data[-1].id)
    found = items(client, conversation)
    assert [item["id"] for item in found] == [item.id for item in added.data]
    for item in found:
        assert json_of(client.get(f"{PATH}/{conversation}/items/{item['id']}")) == item
    respond(client, conversation)
    assert told(client) == [
        *[("user", "Hello!"), ("assistant", ""), ("tool", "rain"), ("assistant", "Good day."), ("user", "Hi")]
    ]


def test_a_call_and_its_output_may_be_added_one_after_the_other(client: Client) -> None:
    conversation = create(client, USER)
    for item in (CALL, OUTPUT, ANSWER):
        assert client.request("POST", f"{PATH}/{conversation}/items", {"items": [item]}).status_code == 200
    respond(client, conversation)
    assert [role for role, _ in told(client)] == ["user", "assistant", "tool", "assistant", "user"]


def test_what_is_added_is_in_no_response(client: Client) -> None:
    conversation = create(client, USER)
    response = respond(client, conversation)
    client.request("POST", f"{PATH}/{conversation}/items", {"items": [ANSWER, USER]})
    path = f"/v1/responses/{response['id']}"
    assert checked(client.get(path)) == response
    respond(client, conversation, "And?")
    assert checked(client.get(path)) == response
    added = items(client, conversation)[-3]["id"].replace("msg_", "resp_")
    assert error_of(client.get(f"/v1/responses/{added}")) == (404, "not_found")


def test_what_is_added_is_no_turn_that_has_failed(client: Client) -> None:
    conversation = create(client, USER)
    assert "last_error" not in client.session(session_of(conversation))
    respond(client, conversation)
    client.request("POST", f"{PATH}/{conversation}/items", {"items": [USER]})
    assert "last_error" not in client.session(session_of(conversation))
    respond(client, conversation, "And?")
    assert told(client)[-1] == ("user", "Hello!\n\nAnd?")


def test_a_list_of_items_comes_in_pages(client: Client, openai_client: openai.OpenAI) -> None:
    conversation = create(client, *({"role": "user", "content": str(n)} for n in range(5)))
    newest = openai_client.conversations.items.list(conversation, limit=2)
    assert newest.has_more is True
    assert texts([item.to_dict() for item in newest.data]) == [("user", "4"), ("user", "3")]
    every = [item.to_dict() for item in openai_client.conversations.items.list(conversation, limit=2, order="asc")]
    assert [text for _, text in texts(every)] == list("01234")


@pytest.mark.parametrize("query", ["?limit=0", "?limit=101", "?order=up", "?after=msg_1"])
def test_a_page_that_cannot_be_had_is_refused(client: Client, query: str) -> None:
    response = client.get(f"{PATH}/{create(client, USER)}/items{query}")
    assert error_of(response) == (400, "invalid_request")


def test_a_deleted_item_leaves_the_conversation_and_stays_stored(
    client: Client, openai_client: openai.OpenAI
) -> None:
    conversation = create(client, USER, ANSWER)
    response = respond(client, conversation)
    left = openai_client.conversations.items.delete(response["output"][0]["id"], conversation_id=conversation)
    assert (left.id, left.object) == (conversation, "conversation")
    first = items(client, conversation)[0]["id"]
    openai_client.conversations.items.delete(first, conversation_id=conversation)
    assert texts(items(client, conversation)) == [("assistant", "Good day."), ("user", "Hi")]
    with pytest.raises(openai.NotFoundError):
        openai_client.conversations.items.retrieve(first, conversation_id=conversation)
    session_id = session_of(conversation)
    assert [one["content"] for one in client.messages(session_id)] == ["Good day.", "Hi"]
    stored = json_of(client.get(f"/sessions/{session_id}?replaced=true"))["messages"]
    assert [one["content"] for one in stored] == ["Hello!", "Good day.", "Hi", "OK"]
    assert json_of(client.get("/sessions?details=true"))["sessions"][0]["message_count"] == 2
    respond(client, conversation, "And?")
    assert [text for role, text in told(client) if role == "user"][-1] == "Hi\n\nAnd?"
    assert checked(client.get(f"/v1/responses/{response['id']}")) == response


@pytest.mark.parametrize(("index", "kept"), [(0, False), (6, False), (-1, True)])
def test_a_deleted_item_takes_the_summary_that_tells_of_it_out_of_force(
    client: Client, index: int, kept: bool
) -> None:
    conversation = create(client, *[{**USER, "content": "Hello! " * 99}, ANSWER] * 8)
    path = f"/sessions/{session_of(conversation)}"
    assert json_of(client.request("POST", f"{path}/compact"))["status"] == "completed"
    stored = client.messages(session_of(conversation))
    assert [one["id"] for one in stored].index(client.session(session_of(conversation))["compacted"]["until"]) >= 6
    id = items(client, conversation)[index]["id"]
    assert client.request("DELETE", f"{PATH}/{conversation}/items/{id}").status_code == 200
    assert ("compacted" in client.session(session_of(conversation))) is kept
    respond(client, conversation)
    assert told(client)[0][0] == ("system" if kept else "user")


def test_a_deleted_item_is_in_no_copy(client: Client) -> None:
    conversation = create(client)
    first = respond(client, conversation, "My secret is 7.")
    respond(client, conversation, "And?")
    secret = items(client, conversation)[0]["id"]
    client.request("DELETE", f"{PATH}/{conversation}/items/{secret}")
    body = {"input": "What?", "model": MODEL}
    for path, asked in (
        ("/v1/responses", {**body, "previous_response_id": first["id"]}),
        ("/v1/responses", {**body, "previous_response_id": first["id"], "store": False}),
        ("/v1/responses", {**body, "conversation": conversation, "store": False}),
        ("/v1/responses/compact", {**body, "previous_response_id": first["id"]}),
    ):
        assert client.request("POST", path, asked).status_code == 200
        assert "secret" not in str(client.model.requests[-1]["messages"])
    copy = json_of(client.request("POST", "/sessions", {"copy_of": session_of(conversation)}))["id"]
    assert "secret" not in str(client.messages(copy))
    assert client.run(copy).status_code == 200
    assert "secret" not in str(told(client))


def test_what_is_not_stored_goes_on_from_the_summary_that_is(client: Client) -> None:
    conversation = create(client, {**USER, "content": "I am Ann."}, ANSWER, *[{**USER, "content": "So? " * 99}] * 8)
    last = respond(client, conversation)["id"]
    client.model.then(answer("Ann asks."))
    made = json_of(client.request("POST", f"/sessions/{session_of(conversation)}/compact"))
    assert made["status"] == "completed"
    body = {"input": "Who?", "model": MODEL, "previous_response_id": last}
    for path, asked in (("/v1/responses", {**body, "store": False}), ("/v1/responses/compact", body)):
        assert client.request("POST", path, asked).status_code == 200
        sent = str(client.model.requests[-1]["messages"])
        assert "Ann asks." in sent and "I am Ann." not in sent


def test_of_a_message_one_item_alone_may_be_deleted(client: Client) -> None:
    conversation = create(client, USER)
    client.model.then(tool_call("calculator", {"expression": "1 + 1"}, text="I look."), answer("It is 2."))
    said, called, _ = respond(client, conversation)["output"]
    client.request("DELETE", f"{PATH}/{conversation}/items/{said['id']}")
    assert [item["type"] for item in items(client, conversation)] == ["message", "message", "mcp_call", "message"]
    respond(client, conversation)
    assert told(client)[1:3] == [("assistant", ""), ("tool", "2")]
    client.request("DELETE", f"{PATH}/{conversation}/items/{called['id']}")
    respond(client, conversation)
    assert "tool" not in [role for role, _ in told(client)]


def test_the_last_item_can_be_taken_back_again_and_again(client: Client, openai_client: openai.OpenAI) -> None:
    conversation = create(client, USER, ANSWER, USER)
    for count in (2, 1, 0):
        (last,) = openai_client.conversations.items.list(conversation, limit=1).data
        assert last.id is not None
        openai_client.conversations.items.delete(last.id, conversation_id=conversation)
        assert len(items(client, conversation)) == count


def test_a_conversation_in_which_a_turn_runs_is_locked(client: Client) -> None:
    conversation = create(client, USER)
    client.model.then(answer("Hel", STALL))
    stream = client.stream(session_of(conversation))
    stream.next("stream_chunk")
    for method, path, body in (
        ("POST", "", {"metadata": {}}),
        ("POST", "/items", {"items": [USER]}),
        ("DELETE", f"/items/{items(client, conversation)[0]['id']}", None),
    ):
        response = client.request(method, f"{PATH}/{conversation}{path}", body)
        assert error_of(response) == (409, "conversation_locked")
    response = client.request("POST", "/v1/responses", {"input": "Hi", "conversation": conversation})
    assert error_of(response) == (409, "conversation_locked")
    client.cancel(session_of(conversation))


@pytest.mark.parametrize(
    "body", [{"items": []}, {}, {"items": [OUTPUT]}, {"items": [USER] * 21}, {"items": [{"type": "web_search_call"}]}]
)
def test_items_that_cannot_be_added_are_refused(client: Client, body: dict[str, Any]) -> None:
    conversation = create(client)
    response = client.request("POST", f"{PATH}/{conversation}/items", body)
    assert error_of(response) == (400, "invalid_request")
    assert items(client, conversation) == []


def test_items_stand_in_the_layout_of_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Client(storage=storages(tmp_path)["files"]()) as client:
        conversation = create(client, USER, ANSWER, USER)
        for added in ([USER], [USER, ANSWER], [USER, CALL, OUTPUT]):
            client.request("POST", f"{PATH}/{conversation}/items", {"items": added})
        respond(client, conversation)
        assert len(items(client, conversation)) == 11
    assert "another layout" not in caplog.text


def test_items_are_added_all_or_none(client: Client) -> None:
    address = "http://localhost/sessions/session-1/files/" + "a" * 64
    unknown = {"role": "user", "content": [{"type": "input_image", "image_url": address}]}
    conversation = create(client)
    response = client.request("POST", f"{PATH}/{conversation}/items", {"items": [USER, unknown]})
    assert error_of(response) == (400, "invalid_request")
    assert items(client, conversation) == []
    assert error_of(client.request("POST", PATH, {"items": [USER, unknown]})) == (400, "invalid_request")
    assert json_of(client.get("/sessions")) == {"sessions": [session_of(conversation)]}


@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "key"}], ids=["alone", "keyed"])
def test_a_response_that_does_not_begin_adds_nothing(tmp_path: Path, key: dict[str, str]) -> None:
    for store in storages(tmp_path).values():
        with Client(answer(STALL), storage=store(), max_streams=1) as client:
            conversation, busy = create(client, USER), client.create()
            client.stream(busy).next("stream_start")
            client.model.wait_for(1)
            body = {"conversation": conversation, "input": [USER, CALL, OUTPUT]}
            assert error_of(client.request("POST", "/v1/responses", body, key)) == (503, "overloaded")
            assert len(items(client, conversation)) == 1
            client.cancel(busy)
            for _ in range(2 if key else 1):
                checked(client.request("POST", "/v1/responses", body, key))
            kinds = [item["type"] for item in items(client, conversation)]
            assert kinds == ["message", "message", "function_call", "function_call_output", "message"]


def test_a_message_that_came_into_a_turn_is_an_item_of_it() -> None:
    called, go = threading.Event(), threading.Event()

    def look() -> str:
        """Looks around."""
        called.set()
        go.wait(20)
        return "well"

    with Client(tool_call("look", {}), answer("All is well."), tools=[look]) as client:
        conversation = create(client)
        running = client.later(respond, client, conversation)
        assert called.wait(20)
        body = {"message": "And?", "if_busy": "steer"}
        assert client.request("POST", f"/sessions/{session_of(conversation)}/run", body).status_code == 202
        go.set()
        response = running.result(20)
        found = items(client, conversation)
        assert texts(found) == [("user", "Hi"), ("user", "And?"), ("assistant", "All is well.")]
        assert [item for item in found if item.get("role") != "user"] == response["output"]
        assert checked(client.get(f"/v1/responses/{response['id']}")) == response
