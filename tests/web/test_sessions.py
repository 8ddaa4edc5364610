"""The endpoints of sessions: create, list, read, rename, delete."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from session_core.stores.files import FileStorage
from tests.support.client import Client, error_of, json_of
from tests.support.model_server import STALL, answer, tool_call, wait
from tests.support.server import TIMEOUT

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


# --- creating ---


def test_creating_a_session_answers_201_with_its_id_and_where_it_is(anywhere: Client) -> None:
    response = anywhere.request("POST", "/sessions")
    assert response.status_code == 201
    session_id = json_of(response)["id"]
    assert json_of(response) == {"id": session_id}
    assert response.headers["Location"] == f"/sessions/{session_id}"


def test_ids_have_the_promised_forms(anywhere: Client) -> None:
    session_id = anywhere.create()
    stream = anywhere.stream(session_id).rest()
    assert re.fullmatch(r"session-[0-9a-z-]{1,64}", session_id)
    assert all(re.fullmatch(r"msg-[0-9a-z-]{1,64}", message["id"]) for message in anywhere.messages(session_id))
    assert all(re.fullmatch(r"evt-[0-9a-z-]{1,64}", event["id"]) for event in stream)


def test_no_two_sessions_have_the_same_id(client: Client) -> None:
    assert len({client.create() for _ in range(50)}) == 50


@pytest.mark.parametrize("body", [b"", b"{}", b'{"name": "not known"}'])
def test_a_session_is_created_with_any_object_or_none(client: Client, body: bytes) -> None:
    assert client.request("POST", "/sessions", body).status_code == 201


def test_a_body_of_another_type_creates_no_session(client: Client) -> None:
    before = json_of(client.get("/sessions"))
    response = client.request("POST", "/sessions", b"a=b", {"Content-Type": "application/x-www-form-urlencoded"})
    assert error_of(response) == (415, "unsupported_media_type")
    assert json_of(client.get("/sessions")) == before


def test_a_new_session_is_empty(anywhere: Client) -> None:
    session_id = anywhere.create()
    session = anywhere.session(session_id)
    assert session == {
        "id": session_id,
        "messages": [],
        "created_at": session["created_at"],
        "updated_at": session["created_at"],
        "running": False,
    }
    assert TIME.fullmatch(session["created_at"])


# --- listing ---


def test_sessions_are_listed_most_recently_updated_first(anywhere: Client) -> None:
    first, second, third = (anywhere.create() for _ in range(3))
    assert json_of(anywhere.get("/sessions")) == {"sessions": [third, second, first]}
    anywhere.run(second)
    assert json_of(anywhere.get("/sessions")) == {"sessions": [second, third, first]}


def test_sessions_updated_at_the_same_time_are_listed_by_id(tmp_path: Path) -> None:
    with Client(storage=FileStorage.open(str(tmp_path))) as client:
        ids = [client.create() for _ in range(5)]
        for id in ids:
            os.utime(tmp_path / f"{id}.json", ns=(10**18, 10**18))
        assert json_of(client.get("/sessions"))["sessions"] == sorted(ids)


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8, 1000])
def test_pages_show_every_session_once_and_in_order(anywhere: Client, limit: int) -> None:
    for _ in range(7):
        anywhere.create()
    shown: list[str] = []
    page = json_of(anywhere.get(f"/sessions?limit={limit}"))
    while page["next"] is not None:
        assert len(page["sessions"]) == limit
        shown += page["sessions"]
        page = json_of(anywhere.get(f"/sessions?limit={limit}&after={page['next']}"))
    shown += page["sessions"]
    assert shown == json_of(anywhere.get("/sessions"))["sessions"]
    assert page["sessions"], "the last page is empty"


def test_next_is_told_only_where_pages_are_asked_for(anywhere: Client) -> None:
    one, other = anywhere.create(), anywhere.create()
    assert set(json_of(anywhere.get("/sessions"))) == {"sessions"}
    assert json_of(anywhere.get(f"/sessions?after={other}")) == {"sessions": [one], "next": None}
    assert json_of(anywhere.get("/sessions?limit=1")) == {"sessions": [other], "next": other}


@pytest.mark.parametrize("after", ["session-unknown", "nonsense", "", "../../etc/passwd"])
def test_an_unknown_after_is_refused(client: Client, after: str) -> None:
    client.create()
    assert error_of(client.get(f"/sessions?after={after}")) == (400, "invalid_request")


@pytest.mark.parametrize("path", ["/sessions", "/sessions/{}"])
def test_a_limit_that_is_no_number_from_1_to_1000_is_refused(client: Client, path: str) -> None:
    path = path.format(client.create())
    for limit in ("0", "-1", "1001", "", "x", "1.5", "1e2", "%D9%A1", "9" * 5000, "1%00", "+1", " 1"):
        assert error_of(client.get(f"{path}?limit={limit}")) == (400, "invalid_request"), limit


def test_details_must_be_true_or_false(client: Client) -> None:
    for details in ("yes", "", "TRUE!", "2"):
        assert error_of(client.get(f"/sessions?details={details}")) == (400, "invalid_request")


def test_details_give_objects(anywhere: Client) -> None:
    session_id = anywhere.create()
    anywhere.run(session_id, "What is 2+2?")
    session = anywhere.session(session_id)
    assert json_of(anywhere.get("/sessions?details=true")) == {
        "sessions": [
            {
                "id": session_id,
                "title": "What is 2+2?",
                "created_at": session["created_at"],
                "updated_at": session["updated_at"],
                "message_count": 2,
                "running": False,
            }
        ],
        "next": None,
    }


def test_details_false_gives_ids(client: Client) -> None:
    session_id = client.create()
    assert json_of(client.get("/sessions?details=false"))["sessions"][0] == session_id


def test_details_are_given_of_100_sessions_where_no_limit_is(anywhere: Client) -> None:
    ids = [anywhere.create() for _ in range(101)][::-1]
    page = json_of(anywhere.get("/sessions?details=true"))
    assert [session["id"] for session in page["sessions"]] == ids[:100]
    assert page["next"] == ids[99]
    assert len(json_of(anywhere.get("/sessions?details=true&limit=101"))["sessions"]) == 101
    assert len(json_of(anywhere.get("/sessions"))["sessions"]) == 101


def test_a_session_without_messages_has_no_title(anywhere: Client) -> None:
    anywhere.create()
    assert json_of(anywhere.get("/sessions?details=true"))["sessions"][0]["title"] is None


def test_the_title_is_the_beginning_of_the_first_message(anywhere: Client) -> None:
    session_id = anywhere.create()
    anywhere.run(session_id, "Tell me all\nabout " + "very " * 1000 + "long texts")
    anywhere.run(session_id, "Another question")
    title = details_of(anywhere, session_id)["title"]
    assert title.startswith("Tell me all about very very")
    assert len(title) <= 200


def test_the_list_works_while_sessions_come_and_go(anywhere: Client) -> None:
    for _ in range(20):
        anywhere.create()
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            anywhere.request("DELETE", f"/sessions/{anywhere.create()}")

    busy = [anywhere.later(come_and_go) for _ in range(2)]
    try:
        for _ in range(25):
            for path in ("/sessions", "/sessions?details=true", "/sessions?limit=5"):
                assert len(json_of(anywhere.get(path))["sessions"]) >= 5
    finally:
        over.set()
    for one in busy:
        one.result(TIMEOUT)


def test_a_running_turn_is_told_by_the_list_and_by_the_session(anywhere: Client) -> None:
    go = threading.Event()
    anywhere.model.then(answer(wait(go), "Hi"))
    session_id, other = anywhere.create(), anywhere.create()
    stream = anywhere.stream(session_id)
    stream.next("stream_start")
    assert anywhere.session(session_id)["running"] is True
    assert details_of(anywhere, session_id)["running"] is True
    assert details_of(anywhere, other)["running"] is False
    go.set()
    stream.rest()
    assert anywhere.session(session_id)["running"] is False
    assert details_of(anywhere, session_id)["running"] is False


# --- reading ---


def test_a_session_shows_its_messages_in_order(anywhere: Client) -> None:
    session_id = anywhere.create()
    anywhere.model.then(answer("One"), answer("Two"))
    anywhere.run(session_id, "first")
    anywhere.run(session_id, "second")
    messages = anywhere.messages(session_id)
    assert [(message["role"], message["content"]) for message in messages] == [
        ("user", "first"),
        ("assistant", "One"),
        ("user", "second"),
        ("assistant", "Two"),
    ]
    assert all(TIME.fullmatch(message["created_at"]) for message in messages)
    fields = {"id", "role", "content", "created_at"}
    assert [set(message) for message in messages] == [fields, fields | {"model"}] * 2


def test_messages_of_a_turn_with_a_tool_have_their_fields(anywhere: Client) -> None:
    session_id = anywhere.create()
    anywhere.model.then(tool_call("calculator", {"expression": "15 * 23"}, text="Let me see."), answer("345"))
    anywhere.run(session_id)
    _, asking, result, last = anywhere.messages(session_id)
    assert set(asking) == {"id", "role", "content", "tool_calls", "model", "created_at"}
    assert asking["role"], asking["content"] == ("assistant", "Let me see.")
    assert asking["tool_calls"] == [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "calculator", "arguments": '{"expression": "15 * 23"}'},
        }
    ]
    assert {name: result[name] for name in result if name not in ("id", "created_at")} == {
        "role": "tool",
        "content": "345",
        "tool_call_id": "call_1",
        "name": "calculator",
    }
    assert last["content"] == "345"


@pytest.mark.parametrize("limit", [1, 2, 3, 9, 10, 11])
def test_older_messages_can_be_paged_through_to_the_first(anywhere: Client, limit: int) -> None:
    session_id = anywhere.create()
    for number in range(5):
        anywhere.run(session_id, f"message {number}")
    whole = anywhere.messages(session_id)
    page = json_of(anywhere.get(f"/sessions/{session_id}?limit={limit}"))
    shown = page["messages"]
    assert shown == whole[-limit:]
    while page["next"] is not None:
        page = json_of(anywhere.get(f"/sessions/{session_id}?limit={limit}&before={page['next']}"))
        assert page["messages"] and len(page["messages"]) <= limit
        shown = page["messages"] + shown
    assert shown == whole


def test_before_without_a_limit_gives_all_that_is_older(anywhere: Client) -> None:
    session_id = anywhere.create()
    anywhere.run(session_id)
    first, last = anywhere.messages(session_id)
    answer = json_of(anywhere.get(f"/sessions/{session_id}?before={last['id']}"))
    assert answer["messages"] == [first]
    assert answer["next"] is None
    assert json_of(anywhere.get(f"/sessions/{session_id}?before={first['id']}"))["messages"] == []


def test_next_is_told_of_messages_only_where_pages_are_asked_for(client: Client) -> None:
    assert set(client.session(client.create())) == {"id", "messages", "created_at", "updated_at", "running"}


def test_a_before_that_is_no_message_of_the_session_is_refused(client: Client) -> None:
    session_id, other = client.create(), client.create()
    client.run(session_id)
    client.run(other)
    message_id = client.messages(other)[0]["id"]
    assert error_of(client.get(f"/sessions/{session_id}?before={message_id}")) == (400, "invalid_request")
    assert error_of(client.get(f"/sessions/{session_id}?before=")) == (400, "invalid_request")


def test_what_is_stored_of_a_key_is_not_shown(anywhere: Client) -> None:
    session_id = anywhere.create()
    anywhere.run(session_id, Idempotency_Key="the-key")
    assert "the-key" not in anywhere.get(f"/sessions/{session_id}").text


# --- renaming ---


def test_a_session_can_be_given_a_title(anywhere: Client) -> None:
    session_id = anywhere.create()
    anywhere.run(session_id, "Hello")
    response = anywhere.request("PATCH", f"/sessions/{session_id}", {"title": "Über die Wärme"})
    assert response.status_code == 200
    assert json_of(response) == details_of(anywhere, session_id)
    assert json_of(response)["title"] == "Über die Wärme"


@pytest.mark.parametrize("blank", ["", "  \n", None])
def test_a_blank_title_brings_the_first_message_back(anywhere: Client, blank: str | None) -> None:
    session_id = anywhere.create()
    anywhere.run(session_id, "Hello")
    anywhere.request("PATCH", f"/sessions/{session_id}", {"title": "Something else"})
    response = anywhere.request("PATCH", f"/sessions/{session_id}", {"title": blank})
    assert json_of(response)["title"] == "Hello"


def test_a_title_changes_neither_the_time_nor_the_order(anywhere: Client) -> None:
    older, newer = anywhere.create(), anywhere.create()
    before = details_of(anywhere, older)
    anywhere.request("PATCH", f"/sessions/{older}", {"title": "New"})
    assert details_of(anywhere, older) == {**before, "title": "New"}
    assert json_of(anywhere.get("/sessions"))["sessions"] == [newer, older]


def test_a_title_stays_when_messages_are_added(anywhere: Client) -> None:
    session_id = anywhere.create()
    anywhere.request("PATCH", f"/sessions/{session_id}", {"title": "Mine"})
    anywhere.run(session_id, "Hello")
    assert details_of(anywhere, session_id)["title"] == "Mine"


def test_a_title_of_200_characters_is_taken_and_a_longer_one_is_not(client: Client) -> None:
    path = f"/sessions/{client.create()}"
    assert json_of(client.request("PATCH", path, {"title": "é" * 200}))["title"] == "é" * 200
    assert error_of(client.request("PATCH", path, {"title": "é" * 201})) == (400, "invalid_request")


def test_a_title_that_is_no_text_is_refused(client: Client) -> None:
    path = f"/sessions/{client.create()}"
    bodies: list[object] = [{}, {"titel": "x"}, {"title": 5}, {"title": ["x"]}, {"title": {}}, {"title": True}, []]
    for body in bodies:
        assert error_of(client.request("PATCH", path, body)) == (400, "invalid_request"), body


def test_a_session_is_not_renamed_while_a_turn_runs(anywhere: Client) -> None:
    anywhere.model.then(answer("Hel", STALL))
    session_id = anywhere.create()
    anywhere.stream(session_id).next("stream_chunk")
    response = anywhere.request("PATCH", f"/sessions/{session_id}", {"title": "x"})
    assert error_of(response) == (409, "session_busy")
    assert response.headers["Retry-After"] == "1"


# --- deleting ---


def test_a_deleted_session_is_gone(anywhere: Client) -> None:
    session_id = anywhere.create()
    anywhere.run(session_id)
    response = anywhere.request("DELETE", f"/sessions/{session_id}")
    assert response.status_code == 200
    assert json_of(response) == {"success": True, "message": f"Session {session_id} deleted"}
    assert error_of(anywhere.get(f"/sessions/{session_id}")) == (404, "session_not_found")
    assert json_of(anywhere.get("/sessions")) == {"sessions": []}


def test_deleting_twice_is_404(anywhere: Client) -> None:
    session_id = anywhere.create()
    anywhere.request("DELETE", f"/sessions/{session_id}")
    assert error_of(anywhere.request("DELETE", f"/sessions/{session_id}")) == (404, "session_not_found")


def test_other_sessions_stay(anywhere: Client) -> None:
    session_id, other = anywhere.create(), anywhere.create()
    anywhere.run(other)
    messages = anywhere.messages(other)
    anywhere.request("DELETE", f"/sessions/{session_id}")
    assert anywhere.messages(other) == messages


# --- errors ---


def details_of(client: Client, session_id: str) -> dict[str, Any]:
    sessions = json_of(client.get("/sessions?details=true"))["sessions"]
    found: dict[str, Any] = next(session for session in sessions if session["id"] == session_id)
    return found
