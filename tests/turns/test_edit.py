"""Questions that are edited, and answers that are tried again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from session_core.data.versions import replaced_messages
from session_core.stores.files import FileStorage
from session_core.turns.event_log import Ended
from session_core.turns.turn_request import TurnRequest
from storage import MemoryStorage, Storage
from tests.support.client import Client, error_of, json_of
from tests.support.model_server import STALL, ModelServer, answer, status, wait
from tests.support.server import TIMEOUT, Server
from tests.support.sessions import asked, post, texts

# --- a question in place of another ---


def test_a_question_is_edited(anywhere: Client) -> None:
    session = anywhere.create()
    for text in ("one", "two", "three"):
        post(anywhere, session, message=text)
    target = anywhere.messages(session)[2]["id"]
    answered = post(anywhere, session, message="TWO", replaces=target)
    assert asked(anywhere) == [("user", "one"), ("assistant", "OK"), ("user", "TWO")]
    assert texts(anywhere, session) == ["one", "OK", "TWO", "OK"]
    assert anywhere.messages(session)[-1] == answered
    assert anywhere.messages(session)[2]["replaces"] == target
    [details] = json_of(anywhere.get("/sessions?details=true"))["sessions"]
    assert details["message_count"] == 4


def test_an_answer_is_tried_again(anywhere: Client) -> None:
    session = anywhere.create()
    post(anywhere, session, message="one")
    anywhere.model.then(answer("Better"))
    post(anywhere, session, replaces=anywhere.messages(session)[0]["id"])
    assert texts(anywhere, session) == ["one", "Better"]
    assert asked(anywhere) == [("user", "one")]


def test_what_was_replaced_stays_readable(anywhere: Client) -> None:
    session = anywhere.create()
    post(anywhere, session, message="one")
    first = anywhere.messages(session)[0]["id"]
    post(anywhere, session, message="ONE", replaces=first)
    second = anywhere.messages(session)[0]["id"]
    post(anywhere, session, replaces=second)
    found = json_of(anywhere.get(f"/sessions/{session}?replaced=true"))["messages"]
    assert [message["content"] for message in found] == ["one", "OK", "ONE", "OK", "ONE", "OK"]
    third = found[4]["id"]
    assert [message.get("replaced_by") for message in found] == [second, second, third, third, None, None]
    assert [message.get("replaces") for message in found] == [None, None, first, None, second, None]
    page = json_of(anywhere.get(f"/sessions/{session}?replaced=true&limit=2&before={third}"))
    assert [message["content"] for message in page["messages"]] == ["ONE", "OK"]
    assert error_of(anywhere.get(f"/sessions/{session}?before={first}")) == (400, "invalid_request")


def test_replaced_answers_count_in_the_usage(anywhere: Client) -> None:
    session = anywhere.create()
    assert "usage" not in anywhere.session(session)
    post(anywhere, session, message="one")
    post(anywhere, session, replaces=anywhere.messages(session)[0]["id"])
    assert anywhere.session(session)["usage"] == {"total_tokens": 4}


def test_the_title_is_that_of_the_question_in_place(anywhere: Client) -> None:
    session = anywhere.create()
    post(anywhere, session, message="one")
    post(anywhere, session, message="two", replaces=anywhere.messages(session)[0]["id"])
    [details] = json_of(anywhere.get("/sessions?details=true"))["sessions"]
    assert details["title"] == "two"


@pytest.mark.parametrize("which", ["an answer", "of another session", "unknown", "a number"])
def test_only_a_question_of_the_conversation_can_be_replaced(anywhere: Client, which: str) -> None:
    session, other = anywhere.create(), anywhere.create()
    post(anywhere, session, message="one")
    post(anywhere, other, message="one")
    question, reply = anywhere.messages(session)
    post(anywhere, session, replaces=question["id"])
    target = {
        "an answer": reply["id"],
        "of another session": anywhere.messages(other)[0]["id"],
        "unknown": "msg-0",
        "a number": 7,
    }[which]
    before = anywhere.session(session)
    response = anywhere.request("POST", f"/sessions/{session}/run", {"message": "x", "replaces": target})
    assert error_of(response) == (400, "invalid_request")
    assert anywhere.session(session) == before


def test_a_question_that_was_replaced_is_replaced_in_the_conversation_that_led_to_it(anywhere: Client) -> None:
    session = anywhere.create()
    for text in ("one", "two"):
        post(anywhere, session, message=text)
    first, _, second, _ = [message["id"] for message in anywhere.messages(session)]
    post(anywhere, session, message="ONE", replaces=first)
    post(anywhere, session, message="TWO", replaces=second)
    assert texts(anywhere, session) == ["one", "OK", "TWO", "OK"]
    assert [one["content"] for one in anywhere.model.requests[-1]["messages"]] == ["one", "OK", "TWO"]
    [details] = json_of(anywhere.get("/sessions?details=true"))["sessions"]
    assert details["message_count"] == 4


@pytest.mark.parametrize("which", ["an answer", "a question", "a replaced answer"])
def test_a_question_stands_behind_any_message(anywhere: Client, which: str) -> None:
    session = anywhere.create()
    for text in ("one", "two"):
        post(anywhere, session, message=text)
    question, reply, second, _ = [message["id"] for message in anywhere.messages(session)]
    if which == "a replaced answer":
        post(anywhere, session, message="ONE", replaces=question)
    place, expected = {"a question": (second, ["one", "OK", "two", "new"])}.get(which, (reply, ["one", "OK", "new"]))
    post(anywhere, session, message="new", after=place)
    assert texts(anywhere, session) == [*expected, "OK"]


@pytest.mark.parametrize(
    "body",
    [
        {"message": "x", "after": "msg-0"},
        {"message": "x", "after": "beginning"},
        {"message": "x", "after": 7},
        {"after": "msg-0"},
        {"message": "x", "after": "msg-0", "replaces": "msg-0"},
        {"continue": True, "after": "msg-0"},
    ],
)
def test_a_place_that_is_none_is_refused(anywhere: Client, body: dict[str, Any]) -> None:
    session = anywhere.create()
    post(anywhere, session, message="one")
    assert error_of(anywhere.request("POST", f"/sessions/{session}/run", body)) == (400, "invalid_request")
    assert texts(anywhere, session) == ["one", "OK"]


def test_a_copy_ends_with_any_version(anywhere: Client) -> None:
    session = anywhere.create()
    post(anywhere, session, message="one")
    question, reply = [message["id"] for message in anywhere.messages(session)]
    post(anywhere, session, message="ONE", replaces=question)
    body = {"copy_of": session, "until": reply}
    copy = json_of(anywhere.request("POST", "/sessions", body))["id"]
    assert texts(anywhere, copy) == ["one", "OK"]


def test_a_key_stands_for_the_place_behind_a_message_too(anywhere: Client) -> None:
    session = anywhere.create()
    post(anywhere, session, message="one")
    question, reply = [message["id"] for message in anywhere.messages(session)]
    path, key = f"/sessions/{session}/run", {"Idempotency-Key": "k"}
    done = anywhere.request("POST", path, {"message": "two", "after": reply}, key)
    assert json_of(anywhere.request("POST", path, {"message": "two", "after": reply}, key)) == json_of(done)
    other = anywhere.request("POST", path, {"message": "two", "after": question}, key)
    assert error_of(other) == (422, "idempotency_key_reused")


def test_a_key_stands_for_the_question_in_place_too(anywhere: Client) -> None:
    session = anywhere.create()
    post(anywhere, session, message="one")
    first = anywhere.messages(session)[0]["id"]
    path, key = f"/sessions/{session}/run", {"Idempotency-Key": "k"}
    done = anywhere.request("POST", path, {"replaces": first}, key)
    again = anywhere.request("POST", path, {"replaces": first}, key)
    assert (json_of(again), again.headers["Idempotency-Replayed"]) == (json_of(done), "true")
    assert json_of(anywhere.request("POST", path, {"message": "one", "replaces": first}, key)) == json_of(done)
    for other in (
        {"message": "one"},
        {"message": "two", "replaces": first},
        {"replaces": "msg-0"},
        {"continue": True},
    ):
        assert error_of(anywhere.request("POST", path, other, key)) == (422, "idempotency_key_reused")
    assert texts(anywhere, session) == ["one", "OK"]


def test_a_replaced_turn_is_replayed_under_its_key(anywhere: Client) -> None:
    session = anywhere.create()
    first = anywhere.run(session, "one", Idempotency_Key="k")
    post(anywhere, session, message="two", replaces=anywhere.messages(session)[0]["id"])
    assert json_of(anywhere.run(session, "one", Idempotency_Key="k")) == json_of(first)
    assert texts(anywhere, session) == ["two", "OK"]


def test_a_failed_question_in_place_is_tried_again_under_its_key(anywhere: Client) -> None:
    session = anywhere.create()
    post(anywhere, session, message="one")
    path, body = f"/sessions/{session}/run", {"message": "two", "replaces": anywhere.messages(session)[0]["id"]}
    anywhere.model.then(status(401, {}))
    assert anywhere.request("POST", path, body, {"Idempotency-Key": "k"}).status_code == 502
    assert anywhere.request("POST", path, body, {"Idempotency-Key": "k"}).status_code == 200
    assert texts(anywhere, session) == ["two", "OK"]
    assert asked(anywhere) == [("user", "two")]


def test_a_refused_question_that_was_replaced_does_not_take_a_good_one_with_it(anywhere: Client) -> None:
    session = anywhere.create()
    post(anywhere, session, message="good")
    anywhere.model.then(status(400, {"error": {"message": "not this"}}))
    assert anywhere.run(session, "bad").status_code == 502
    post(anywhere, session, message="better", replaces=anywhere.messages(session)[-1]["id"])
    assert asked(anywhere) == [("user", "good"), ("assistant", "OK"), ("user", "better")]


def test_a_question_is_replaced_while_its_session_is_busy_only_later(anywhere: Client) -> None:
    session = anywhere.create()
    post(anywhere, session, message="one")
    anywhere.model.then(answer("Hel", STALL))
    stream = anywhere.stream(session, "two")
    stream.next("stream_chunk")
    body = {"replaces": anywhere.messages(session)[0]["id"]}
    assert error_of(anywhere.request("POST", f"/sessions/{session}/run", body)) == (409, "session_busy")
    anywhere.cancel(session)
    stream.close()
    assert anywhere.request("POST", f"/sessions/{session}/run", body).status_code == 200
    assert texts(anywhere, session) == ["one", "OK"]


def test_the_turn_in_place_is_resumed_and_cancelled_like_any(anywhere: Client) -> None:
    session = anywhere.create()
    post(anywhere, session, message="one")
    go = threading.Event()
    anywhere.model.then(answer("Hel", wait(go), "lo", STALL))
    body = {"replaces": anywhere.messages(session)[0]["id"]}
    run = anywhere.later(anywhere.request, "POST", f"/sessions/{session}/run", body)
    anywhere.model.wait_for(2)
    watcher = anywhere.watch(session)
    assert [watcher.next()["type"], watcher.next()["data"]["content"]] == ["stream_start", "Hel"]
    go.set()
    assert watcher.next()["data"]["content"] == "lo"
    assert anywhere.cancel(session)
    assert json_of(run.result(TIMEOUT))["message"]["status"] == "cancelled"
    assert texts(anywhere, session) == ["one", "Hello"]


def test_two_servers_see_the_same_conversation(store: Callable[[], Storage]) -> None:
    one, two = store(), store()
    if isinstance(one, MemoryStorage):  # which is of one process
        two = one
    with (
        ModelServer(default=answer("OK")) as model,
        Client(model=model, storage=one) as a,
        Client(model=model, storage=two) as b,
    ):
        session = a.create()
        post(a, session, message="one")
        post(b, session, message="two", replaces=b.messages(session)[0]["id"])
        assert texts(a, session) == texts(b, session) == ["two", "OK"]
        watched = a.watch(session)
        assert watched.status == 204 or watched.last()["data"]["message_id"] == a.messages(session)[-1]["id"]


def test_the_file_stays_append_only(tmp_path: Path) -> None:
    with Client(storage=FileStorage.open(str(tmp_path))) as client:
        session = client.create()
        post(client, session, message="one")
        path = tmp_path / f"{session}.json"
        inode, lines = path.stat().st_ino, path.read_bytes().split(b"\n")
        post(client, session, replaces=client.messages(session)[0]["id"])
        assert path.stat().st_ino == inode
        assert path.read_bytes().split(b"\n")[:2] == lines[:2]


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.none() | st.integers(0, 12)), max_size=12))
@settings(max_examples=500, deadline=None)
def test_what_is_replaced_is_what_replacing_step_by_step_leaves_out(steps: list[tuple[str, int | None]]) -> None:
    messages: list[Any] = []
    current: list[Any] = []
    versions: dict[str, list[Any]] = {}  # the conversation that led to each message
    for number, (role, target) in enumerate(steps):
        message = {"id": f"msg-{number}", "role": role, "content": "x", "created_at": "t"}
        if target is not None:
            message["replaces"] = f"msg-{target}"
        replaced = versions.get(message.get("replaces", ""), current) if role == "user" else current
        versions[message["id"]] = replaced
        current = [*replaced, message]
        messages.append(message)
    gone = replaced_messages(messages)
    assert [message for message in messages if message["id"] not in gone] == current
    assert set(gone.values()) <= {message["id"] for message in messages if message["role"] == "user"}


def test_after_kill_9_the_conversation_is_the_old_one_or_the_new_one(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    with ModelServer(default=answer("OK")) as model:
        flags = (f"-base_url={model.base_url}", f"-session_dir={tmp_path / 'sessions'}")
        server = serve(*flags)
        session = server.create()
        list(server.say(session, "one").events())
        for number in range(2):
            first = server.messages(session)[0]["id"]
            model.default = answer("Hel", STALL)
            reply = server.request(
                "POST", f"/sessions/{session}/run_stream", {"message": f"new {number}", "replaces": first}
            )
            assert next(reply.events())["type"] == "stream_start"
            server.process.kill()
            server.process.wait(TIMEOUT)
            reply.close()
            model.default = answer("OK")
            server = serve(*flags)
            assert server.messages(session)[0]["content"] == f"new {number}"
            assert len([m for m in server.messages(session) if m["role"] == "user"]) == 1
        list(server.say(session, "and on").events())
        assert [m["content"] for m in server.messages(session) if m["role"] == "user"] == ["new 1", "and on"]


# --- a question with a history of the client's own ---


def whole_message(number: int, role: str, text: str) -> dict[str, Any]:
    return {"id": f"msg-h{number}", "role": role, "content": text, "created_at": "2026-01-31T12:34:56Z"}


def test_a_history_comes_with_its_question_in_one_write(store: Callable[[], Storage]) -> None:
    storage = store()
    history = (whole_message(1, "user", "ONE"), whole_message(2, "assistant", "1"))
    with Client(storage=storage, default=answer("OK")) as client:
        session = client.create()
        post(client, session, message="one")
        post(client, session, message="two")
        target = client.messages(session)[0]["id"]
        question = TurnRequest("three", target, history=history)
        turn, replayed = client.app.extensions["turns"].of("").start(session, question)
        assert isinstance(turn.result(), Ended) and not replayed
        assert asked(client) == [("user", "ONE"), ("assistant", "1"), ("user", "three")]
        assert texts(client, session) == ["ONE", "1", "three", "OK"]
        assert len(texts(client, session, "?replaced=true")) == 8
        assert storage.summary(session).message_count == 4
        assert len(storage.get(session).messages) == 6
        post(client, session, message="four", replaces="msg-h1")
        assert asked(client) == [("user", "four")]
        post(client, session, message="five")
        copy = json_of(client.request("POST", "/sessions", {"copy_of": session}))["id"]
        assert texts(client, copy, "?replaced=true") == ["four", "OK", "five", "OK"]


def test_a_later_question_replaces_the_end_of_a_history(anywhere: Client) -> None:
    history = tuple(whole_message(n, role, role) for n, role in enumerate(["user", "assistant", "user", "assistant"]))
    session = anywhere.create()
    turn, _ = anywhere.app.extensions["turns"].of("").start(session, TurnRequest("last", history=history))
    turn.result()
    post(anywhere, session, message="new", replaces="msg-h2")
    assert asked(anywhere) == [("user", "user"), ("assistant", "assistant"), ("user", "new")]
    assert texts(anywhere, session) == ["user", "assistant", "new", "OK"]
