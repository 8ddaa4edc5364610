"""The endpoints: what they take, what they answer, and which error is said first."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from session_core.stores.files import FileStorage
from storage import Storage
from tests.support.client import BreakableStorage, Client, error_of, json_of, storages
from tests.support.model_server import BREAK, STALL, answer, frames, status, tool_call, wait
from tests.support.server import TIMEOUT

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
UNKNOWN = "session-unknown"


@pytest.fixture(params=["memory", "files"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return storages(tmp_path)[request.param]()


@pytest.fixture
def anywhere(storage: Storage) -> Iterator[Client]:
    """The app over each back end in turn."""
    with Client(storage=storage) as client:
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """The app over one of them, where it does not matter which, nor what was before."""
    with Client() as client:
        yield client


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
    with Client(storage=FileStorage(str(tmp_path))) as client:
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


# --- turns ---


def test_run_answers_with_the_stored_message(anywhere: Client) -> None:
    session_id = anywhere.create()
    anywhere.model.then(answer("The answer", " is 4."))
    response = anywhere.run(session_id, "What is 2+2?")
    assert response.status_code == 200
    message = anywhere.messages(session_id)[-1]
    assert json_of(response) == {"message": message}
    assert message["role"], message["content"] == ("assistant", "The answer is 4.")


def test_fields_not_known_are_ignored(client: Client) -> None:
    body = {"message": "Hi", "stream": True, "nested": {"a": [1, None, 1.5]}}
    assert client.request("POST", f"/sessions/{client.create()}/run", body).status_code == 200
    assert client.model.requests[-1]["messages"][-1] == {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'"text"',
        b"null",
        b"{}",
        b'{"Message": "Hi"}',
        b'{"message": null}',
        b'{"message": 5}',
        b'{"message": ["Hi"]}',
        b'{"message": {"text": "Hi"}}',
        b'{"message": ""}',
        b'{"message": " \\n\\t\\u00a0"}',
        b'{"message": "Hi", "n": NaN}',
        b'{"message": "Hi", "n": -Infinity}',
        b'{"message": "\\ud800"}',
        b'{"message": "Hi", "other": "\\udc00 \\ud800"}',
        b'{"message": "Hi", "\\udfff": 1}',
        b'{"message": "Hi"',
        b'{"message": "Hi"} and more',
        b'{"message": "caf\xe9"}',
        '{"message": "Hi"}'.encode("utf-16"),
        b'{"message": "Hi", "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_a_body_that_is_no_message_is_refused(body: bytes) -> None:
    with Client() as client:
        session_id = client.create()
        for path in ("run", "run_stream"):
            response = client.request("POST", f"/sessions/{session_id}/{path}", body)
            assert error_of(response) == (400, "invalid_request")
        assert client.messages(session_id) == []
        assert client.model.requests == []


TEXTS = [
    "é ü ß 漢字 😀",
    "a line\u2028separator and\u2029paragraphs",
    "\x00 \x1b[31m \x7f",
    'quotes " and \\ backslashes',
    "data: [DONE]\n\ndata: {}\n\n",
    "\r\n \r \n",
    "\ufffd \ufeff",
    " space around ",
    "</script><img onerror=alert(1)>",
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_and_goes_unharmed(anywhere: Client, text: str) -> None:
    session_id = anywhere.create()
    text = f"text: {text}"
    anywhere.model.then(answer(text))
    assert json_of(anywhere.run(session_id, text))["message"]["content"] == text
    assert [message["content"] for message in anywhere.messages(session_id)] == [text, text]
    assert anywhere.model.requests[0]["messages"][-1]["content"] == text


def test_characters_are_sent_as_themselves(client: Client) -> None:
    session_id = client.create()
    client.model.then(answer("café 😀"), answer("café 😀"))
    assert "café 😀" in client.run(session_id, "Straße").text
    assert "Straße" in client.get(f"/sessions/{session_id}").text
    assert "café 😀" in b"".join(iter(client.stream(session_id, "Straße").write, b"")).decode()


def test_a_surrogate_pair_in_escapes_is_a_character(client: Client) -> None:
    session_id = client.create()
    client.request("POST", f"/sessions/{session_id}/run", rb'{"message": "\ud83d\ude00"}')
    assert client.messages(session_id)[0]["content"] == "😀"


def test_a_body_of_exactly_1_mib_is_taken(client: Client) -> None:
    body = b'{"message": "%b"}' % (b"x" * ((1 << 20) - len(b'{"message": ""}')))
    assert len(body) == 1 << 20
    assert client.request("POST", f"/sessions/{client.create()}/run", body).status_code == 200


@pytest.mark.parametrize("path", ["run", "run_stream"])
def test_a_malformed_idempotency_key_is_refused(path: str) -> None:
    with Client() as client:
        url = f"/sessions/{client.create()}/{path}"
        for key in ("", " ", "two words", "é", "x" * 256, "tab\there", "\x7f"):
            environ = {"HTTP_IDEMPOTENCY_KEY": key}
            response = client.request("POST", url, {"message": "Hi"}, environ_overrides=environ)
            assert error_of(response) == (400, "invalid_request"), key


def test_an_idempotency_key_of_255_characters_is_taken(client: Client) -> None:
    assert client.run(client.create(), Idempotency_Key="~" * 255).status_code == 200


# --- cancel, health, ready ---


def test_cancel_says_false_where_nothing_runs_and_may_be_repeated(anywhere: Client) -> None:
    session_id = anywhere.create()
    assert [anywhere.cancel(session_id) for _ in range(3)] == [False] * 3
    anywhere.run(session_id)
    assert [anywhere.cancel(session_id) for _ in range(3)] == [False] * 3
    assert len(anywhere.messages(session_id)) == 2


def test_cancel_needs_no_body_and_takes_an_object(client: Client) -> None:
    path = f"/sessions/{client.create()}/cancel"
    assert json_of(client.request("POST", path, {})) == {"cancelled": False}


def test_health_is_ok(client: Client) -> None:
    response = client.get("/health")
    assert response.status_code == 200
    assert json_of(response) == {"status": "ok"}


def test_ready_is_200_while_the_store_can_be_written(client: Client) -> None:
    assert client.get("/ready").status_code == 200


def test_ready_is_503_and_health_200_when_the_store_is_gone(tmp_path: Path) -> None:
    with Client(storage=FileStorage(str(tmp_path / "sessions"))) as client:
        shutil.rmtree(tmp_path / "sessions")
        assert error_of(client.get("/ready")) == (503, "storage_unavailable")
        assert client.get("/health").status_code == 200


def test_ready_is_503_and_health_200_when_shutting_down() -> None:
    with Client() as client:
        client.shut_down()
        assert error_of(client.get("/ready")) == (503, "shutting_down")
        assert client.get("/health").status_code == 200


def test_asking_whether_it_is_ready_leaves_nothing_behind(tmp_path: Path) -> None:
    with Client(storage=FileStorage(str(tmp_path))) as client:
        client.get("/ready")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/health", "/ready", "/sessions", "/"])
def test_head_is_get_without_the_body(client: Client, path: str) -> None:
    response = client.request("HEAD", path)
    assert response.status_code == 200
    assert response.data == b""


# --- errors ---


def details_of(client: Client, session_id: str) -> dict[str, Any]:
    sessions = json_of(client.get("/sessions?details=true"))["sessions"]
    found: dict[str, Any] = next(session for session in sessions if session["id"] == session_id)
    return found


FOR_ONE_SESSION = [
    ("GET", ""),
    ("PATCH", ""),
    ("DELETE", ""),
    ("POST", "/run"),
    ("POST", "/run_stream"),
    ("GET", "/run_stream"),
    ("POST", "/cancel"),
]
BODIES: dict[tuple[str, str], object] = {
    ("PATCH", ""): {"title": "x"},
    ("POST", "/run"): {"message": "x"},
    ("POST", "/run_stream"): {"message": "x"},
}


@pytest.mark.parametrize(("method", "path"), FOR_ONE_SESSION)
def test_a_session_that_is_not_there_is_404(anywhere: Client, method: str, path: str) -> None:
    response = anywhere.request(method, f"/sessions/{UNKNOWN}{path}", BODIES.get((method, path)))
    assert error_of(response) == (404, "session_not_found")
    assert json_of(response)["error"] == f"Session {UNKNOWN} not found"


ILL_FORMED = ["x", "msg-1", "session-", "session-A", "session-é", "..", "session-..", "session-a.json",
              "session-a%0a", "session-%00", "session_a", "Session-a", "session-" + "a" * 65,
              "session-" + "a" * 4000]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), FOR_ONE_SESSION)
def test_an_id_of_another_form_is_404_before_the_disk_is_touched(tmp_path: Path, method: str, path: str) -> None:
    with Client(storage=FileStorage(str(tmp_path / "sessions"))) as client:
        shutil.rmtree(tmp_path / "sessions")  # whatever looks there fails with 503
        for id in ILL_FORMED:
            response = client.request(method, f"/sessions/{id}{path}", BODIES.get((method, path)))
            assert error_of(response) == (404, "session_not_found"), id


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/sessions/", "/sessions//run", "/sessions/a/b", "/sessions/a/run/", "/sessions/..%2f..%2fetc/run",
     "/session_server.py", "/session_core/web/page/index.html",
     "/../setup.cfg", "/index.html", "/__init__.py", "/%00"],
)  # fmt: skip
def test_what_is_not_in_the_table_is_404(client: Client, path: str) -> None:
    assert error_of(client.get(path)) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/sessions", "GET, HEAD, OPTIONS, POST"),
        ("DELETE", "/sessions", "GET, HEAD, OPTIONS, POST"),
        ("POST", "/sessions/session-a", "DELETE, GET, HEAD, OPTIONS, PATCH"),
        ("GET", "/sessions/session-a/run", "OPTIONS, POST"),
        ("HEAD", "/sessions/session-a/run_stream", "GET, OPTIONS, POST"),
        ("PUT", "/sessions/session-a/run_stream", "GET, OPTIONS, POST"),
        ("GET", "/sessions/session-a/cancel", "OPTIONS, POST"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
        ("POST", "/", "GET, HEAD, OPTIONS"),
        ("TRACE", "/sessions", "GET, HEAD, OPTIONS, POST"),
        ("BREW", "/sessions", "GET, HEAD, OPTIONS, POST"),
    ],
)
def test_a_method_that_is_not_in_the_table_is_405_with_those_that_are(
    client: Client, method: str, path: str, allowed: str
) -> None:
    response = client.request(method, path)
    assert response.status_code == 405
    assert method == "HEAD" or error_of(response) == (405, "method_not_allowed")
    assert set(response.headers["Allow"].split(", ")) == set(allowed.split(", "))


CONTENT_TYPES = ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
                 "text/json", "application/json-seq", "application/vnd.api+json", "json",
                 "application/json, text/plain"]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/sessions"), ("PATCH", "/sessions/{}"), ("DELETE", "/sessions/{}"), ("POST", "/sessions/{}/run"),
     ("POST", "/sessions/{}/run_stream"), ("POST", "/sessions/{}/cancel")],
)  # fmt: skip
def test_a_body_that_is_not_application_json_is_415(method: str, path: str) -> None:
    with Client() as client:
        session_id = client.create()
        body = b'{"message": "x", "title": "x"}'
        for content_type in CONTENT_TYPES:
            response = client.request(method, path.format(session_id), body, {"Content-Type": content_type})
            assert error_of(response) == (415, "unsupported_media_type"), content_type
        assert client.messages(session_id) == []


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_json_is_taken_under_every_spelling_of_its_type(client: Client, content_type: str) -> None:
    response = client.request(
        "POST", f"/sessions/{client.create()}/run", {"message": "x"}, {"Content-Type": content_type}
    )
    assert response.status_code == 200


def test_an_unknown_position_in_a_stream_is_410(client: Client) -> None:
    session_id = client.create()
    assert error_of(client.get(f"/sessions/{session_id}/run_stream?after=evt-x-1")) == (410, "event_gone")


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ([status(400, {"error": {"code": "context_length_exceeded"}})] * 2, (400, "context_length_exceeded")),
        ([status(401, {"error": "bad key"})], (502, "model_unauthorized")),
        ([status(403, {"error": "no"})], (502, "model_unauthorized")),
        ([status(404, {"error": "no such model"})], (502, "model_error")),
        ([status(422, {"error": "no"})] * 2, (502, "model_error")),
        ([status(429, {"error": "slow down"}, {"Retry-After": "0"})] * 3, (429, "model_rate_limited")),
        ([status(500, {"error": "oh"}, {"Retry-After": "0"})] * 3, (502, "model_error")),
        ([status(503, b"<html>", {"Retry-After": "0"})] * 3, (502, "model_error")),
        ([status(504, b"", {"Retry-After": "0"})] * 3, (504, "model_timeout")),
        ([answer("Hel", BREAK)], (502, "model_error")),
        ([frames({"error": {"message": "overloaded"}})], (502, "model_error")),
        ([frames("[DONE]")], (502, "model_error")),
    ],
)
def test_each_failure_of_the_model_server_has_its_status(replies: list[Any], expected: tuple[int, str]) -> None:
    with Client(*replies) as client:
        assert error_of(client.run(client.create())) == expected


def test_the_wait_that_the_model_server_asks_for_is_passed_on() -> None:
    with Client(status(429, {"error": "slow down"}, {"Retry-After": "77"}), timeout=20) as client:
        response = client.run(client.create())
        assert error_of(response) == (429, "model_rate_limited")
        assert response.headers["Retry-After"] == "77"


@pytest.mark.parametrize(("method", "path"), [*FOR_ONE_SESSION[:2], *FOR_ONE_SESSION[3:5]])
def test_a_session_that_cannot_be_understood_is_500_and_left_as_it_is(tmp_path: Path, method: str, path: str) -> None:
    with Client(storage=FileStorage(str(tmp_path))) as client:
        session_id = client.create()
        file = tmp_path / f"{session_id}.json"
        file.write_bytes(b"no session at all")
        response = client.request(method, f"/sessions/{session_id}{path}", BODIES.get((method, path)))
        assert error_of(response) == (500, "session_corrupt")
        assert file.read_bytes() == b"no session at all"


def test_a_session_that_cannot_be_understood_costs_only_itself(tmp_path: Path) -> None:
    with Client(storage=FileStorage(str(tmp_path))) as client:
        broken, other = client.create(), client.create()
        (tmp_path / f"{broken}.json").write_bytes(b'{"id":')
        assert client.run(other).status_code == 200
        assert set(json_of(client.get("/sessions"))["sessions"]) == {broken, other}
        details = json_of(client.get("/sessions?details=true"))["sessions"]
        assert {session["id"] for session in details} == {broken, other}
        assert client.request("DELETE", f"/sessions/{broken}").status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/sessions"), ("GET", "/sessions"), ("GET", "/sessions?details=true"),
     *((method, "/sessions/{}" + path) for method, path in FOR_ONE_SESSION)],
)  # fmt: skip
def test_without_its_directory_the_store_is_unavailable(tmp_path: Path, method: str, path: str) -> None:
    with Client(storage=FileStorage(str(tmp_path / "sessions"))) as client:
        session_id = client.create()
        shutil.rmtree(tmp_path / "sessions")
        body = BODIES.get((method, path.removeprefix("/sessions/{}")))
        assert error_of(client.request(method, path.format(session_id), body)) == (503, "storage_unavailable")
        assert client.model.requests == []


class FaultyStorage(BreakableStorage):
    """A store with a bug."""

    def _ids(self) -> list[str]:
        raise RuntimeError("a bug with sk-secret in /srv/secret")


def test_an_error_of_our_own_is_500_without_its_words() -> None:
    with Client(storage=FaultyStorage()) as client:
        response = client.get("/sessions")
        assert error_of(response) == (500, "internal_error")
        assert "secret" not in response.text
        assert "Traceback" not in response.text


# --- the order in which errors are said ---


def test_401_comes_before_404_and_405_of_the_route() -> None:
    with Client(auth_token="secret") as client:
        assert error_of(client.get("/nothing")) == (401, "unauthorized")
        assert error_of(client.request("PUT", "/sessions")) == (401, "unauthorized")


def test_403_comes_before_404_and_405_of_the_route() -> None:
    with Client() as client:
        assert error_of(client.get("/nothing", Host="evil.example")) == (403, "forbidden_host")
        assert error_of(client.get("/nothing", Origin="http://evil.example")) == (403, "forbidden_origin")
        assert error_of(client.request("PUT", "/sessions", headers={"Host": "evil.example"})) == (
            403,
            "forbidden_host",
        )


LARGE = b"x" * ((1 << 20) + 1)
TEXT = {"Content-Type": "text/plain"}


def test_404_and_405_of_the_route_come_before_413() -> None:
    with Client() as client:
        assert error_of(client.request("POST", "/nothing", LARGE)) == (404, "not_found")
        assert error_of(client.request("PUT", "/sessions", LARGE)) == (405, "method_not_allowed")


def test_413_comes_before_415() -> None:
    with Client() as client:
        for path in ("/sessions", f"/sessions/{client.create()}/run"):
            assert error_of(client.request("POST", path, LARGE, TEXT)) == (413, "request_too_large")


def test_415_comes_before_400() -> None:
    with Client() as client:
        path = f"/sessions/{client.create()}/run"
        assert error_of(client.request("POST", path, b"no JSON", TEXT)) == (415, "unsupported_media_type")
        key = {**TEXT, "Idempotency-Key": "not good"}
        assert error_of(client.request("POST", path, b"{}", key)) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/run", b"{}"),
        ("POST", "/run_stream", b"no JSON"),
        ("PATCH", "", b"{}"),
        ("DELETE", "", b"no JSON"),
        ("POST", "/cancel", b"[]"),
        ("GET", "?limit=0", None),
    ],
)
def test_400_comes_before_404_of_the_session(method: str, path: str, body: bytes | None) -> None:
    with Client() as client:
        assert error_of(client.request(method, f"/sessions/{UNKNOWN}{path}", body)) == (400, "invalid_request")


def test_404_of_the_session_comes_before_replay_and_422() -> None:
    with Client() as client:
        session_id = client.create()
        assert client.run(session_id, "Hi", Idempotency_Key="k").status_code == 200
        client.request("DELETE", f"/sessions/{session_id}")
        assert error_of(client.run(session_id, "Hi", Idempotency_Key="k")) == (404, "session_not_found")
        assert error_of(client.run(session_id, "Ho", Idempotency_Key="k")) == (404, "session_not_found")


def test_422_comes_before_shutting_down() -> None:
    with Client() as client:
        session_id = client.create()
        client.run(session_id, "Hi", Idempotency_Key="k")
        client.shut_down()
        assert error_of(client.run(session_id, "Ho", Idempotency_Key="k")) == (422, "idempotency_key_reused")


def test_replay_comes_before_shutting_down() -> None:
    with Client() as client:
        session_id = client.create()
        first = client.run(session_id, "Hi", Idempotency_Key="k")
        client.shut_down()
        again = client.run(session_id, "Hi", Idempotency_Key="k")
        assert (again.status_code, again.data) == (200, first.data)


def test_joining_comes_before_shutting_down_and_409_and_overloaded() -> None:
    go = threading.Event()
    with Client(answer("Hel", wait(go), "lo"), max_streams=1) as client:
        session_id = client.create()
        first = client.stream(session_id, "Hi", Idempotency_Key="k")
        first.next("stream_chunk")
        second = client.stream(session_id, "Hi", Idempotency_Key="k")
        assert second.status == 200
        ending = client.later(client.shut_down, TIMEOUT)
        while client.get("/ready").status_code == 200:
            pass
        third = client.stream(session_id, "Hi", Idempotency_Key="k")
        assert third.status == 200
        go.set()
        assert [stream.last()["data"]["complete_text"] for stream in (first, second, third)] == ["Hello"] * 3
        ending.result(TIMEOUT)


def test_404_of_the_session_comes_before_shutting_down() -> None:
    with Client() as client:
        client.shut_down()
        assert error_of(client.run(UNKNOWN)) == (404, "session_not_found")


def test_shutting_down_comes_before_409() -> None:
    go = threading.Event()
    with Client(answer("Hel", wait(go), "lo")) as client:
        session_id = client.create()
        stream = client.stream(session_id)
        stream.next("stream_chunk")
        ending = client.later(client.shut_down, TIMEOUT)
        while client.get("/ready").status_code == 200:
            pass
        assert error_of(client.run(session_id)) == (503, "shutting_down")
        go.set()
        ending.result(TIMEOUT)
        stream.close()


def test_409_comes_before_overloaded() -> None:
    with Client(answer("Hel", STALL), max_streams=1) as client:
        session_id = client.create()
        client.stream(session_id).next("stream_chunk")
        assert error_of(client.run(session_id)) == (409, "session_busy")


def test_404_of_the_session_comes_before_overloaded() -> None:
    with Client(answer("Hel", STALL), max_streams=1) as client:
        client.stream(client.create()).next("stream_chunk")
        assert error_of(client.run(UNKNOWN)) == (404, "session_not_found")


def test_watchers_take_no_place_of_a_turn() -> None:
    with Client(answer("Hel", STALL), answer("Hel", STALL), max_streams=2) as client:
        session_id, other = client.create(), client.create()
        streams = [client.stream(session_id)]
        streams[0].next("stream_chunk")
        streams += [client.watch(session_id) for _ in range(client.settings.max_watchers)]
        assert [stream.status for stream in streams] == [200] * len(streams)
        streams.append(client.stream(other))
        streams[-1].next("stream_chunk")
        refused = client.watch(other)
        assert (refused.status, refused.json["code"]) == (503, "overloaded")
        for stream in streams:
            stream.close()


def test_the_order_is_the_same_when_slow_readers_have_taken_every_place() -> None:
    with Client(answer("Hel", STALL), max_streams=1) as client:
        session_id, other = client.create(), client.create()
        streams = [client.stream(session_id, Idempotency_Key="k") for _ in range(client.settings.max_responses)]
        for stream in streams:
            stream.next("stream_chunk")
        assert error_of(client.run(other)) == (503, "overloaded")
        assert error_of(client.run(session_id)) == (409, "session_busy")
        assert error_of(client.run(UNKNOWN)) == (404, "session_not_found")
        for stream in streams:
            stream.close()


def test_a_session_that_is_not_there_is_404_for_many_at_once() -> None:
    with Client() as client:
        together = threading.Barrier(12)

        def ask() -> tuple[int, str]:
            together.wait(TIMEOUT)
            return error_of(client.run(UNKNOWN))

        for _ in range(5):
            asked = [client.later(ask) for _ in range(12)]
            assert {one.result(TIMEOUT) for one in asked} == {(404, "session_not_found")}
