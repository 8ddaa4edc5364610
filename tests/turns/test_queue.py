"""Messages that come while a turn runs, and wait until theirs begins."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from werkzeug.test import TestResponse

from storage import Storage
from tests.support.client import Client, Stream, error_of, json_of
from tests.support.model_server import STALL, ModelServer, answer, status, wait
from tests.support.pictures import encoded, png, sha256
from tests.support.server import TIMEOUT, wait_until


class Gate:
    """A model whose answers end when `go` is set. What begins with "bad" is refused, with "stall" never ends."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def reply(self, request: dict[str, Any]) -> Any:
        text = request["messages"][-1]["content"].split("\n\n")[-1]
        if text.startswith("bad"):
            return status(401, {"error": "no"})(request)
        if text.startswith("stall"):
            return answer("Hel", STALL)(request)
        return answer(f"Re: {text}", wait(self.go), ".")(request)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.go.set()


@pytest.fixture
def client(store: Callable[[], Storage], gate: Gate) -> Iterator[Client]:
    with ModelServer(default=gate.reply) as model, Client(model=model, storage=store(), models=("other",)) as client:
        yield client


def send(client: Client, session: str, text: str | None, way: str = "queue", **body: Any) -> TestResponse:
    """A message while a turn runs. `key` is its idempotency key."""
    headers = {"Idempotency-Key": key} if (key := body.pop("key", None)) else {}
    sent = {**({} if text is None else {"message": text}), "if_busy": way, **body}
    return client.request("POST", f"/sessions/{session}/run", sent, headers)


def queue(client: Client, session: str, *texts: str, way: str = "queue") -> list[str]:
    """The ids of these messages, which are queued."""
    answers = [send(client, session, text, way) for text in texts]
    assert {answer.status_code for answer in answers} == {202}, [answer.text for answer in answers]
    return [json_of(answer)["id"] for answer in answers]


def begin(client: Client, text: str = "one") -> tuple[str, Stream]:
    """A session in which a turn runs, and its stream."""
    session = client.create()
    stream = client.stream(session, text)
    assert stream.next()["type"] == "stream_start"
    return session, stream


def queued(client: Client, session: str) -> list[str]:
    return [message["content"] for message in client.session(session).get("queued", [])]


def ended(client: Client, session: str) -> dict[str, Any]:
    """The session, when nothing runs or waits in it any more."""
    wait_until(lambda: not client.session(session)["running"])
    return client.session(session)


def questions(session: dict[str, Any]) -> list[str]:
    return [message["content"] for message in session["messages"] if message["role"] == "user"]


def texts(session: dict[str, Any]) -> list[str]:
    return [message["content"] for message in session["messages"]]


# --- what is accepted ---


def test_without_if_busy_a_further_message_is_refused(client: Client) -> None:
    session, _ = begin(client)
    assert error_of(client.run(session, "two")) == (409, "session_busy")
    assert error_of(send(client, session, "two", "reject")) == (409, "session_busy")
    assert "queued" not in client.session(session)


def test_a_queued_message_is_told_with_its_id_and_its_position(client: Client) -> None:
    session, _ = begin(client)
    first, second = send(client, session, "two"), send(client, session, "three")
    assert (first.status_code, second.status_code) == (202, 202)
    assert json_of(first)["id"].startswith("msg-") and json_of(first).keys() == {"id", "position"}
    assert (json_of(first)["position"], json_of(second)["position"]) == (1, 2)


def test_what_waits_is_seen_with_the_session(client: Client) -> None:
    session, _ = begin(client)
    [id] = queue(client, session, "two")
    [shown] = client.session(session)["queued"]
    assert shown.pop("created_at").endswith("Z")
    assert shown == {"id": id, "role": "user", "content": "two"}


def test_a_message_in_an_idle_session_is_a_turn_at_once(client: Client, gate: Gate) -> None:
    gate.go.set()
    for way in ("queue", "steer", "interrupt"):
        response = send(client, client.create(), "one", way)
        assert (response.status_code, json_of(response)["message"]["content"]) == (200, "Re: one.")


@pytest.mark.parametrize(
    "body",
    [
        {"if_busy": "wait"},
        {"if_busy": True},
        {"continue": True, "if_busy": "queue"},
        {"answers": {}, "if_busy": "interrupt"},
        {"message": "two", "if_busy": "steer", "after": "msg-1"},
    ],
    ids=str,
)
def test_what_cannot_wait_is_refused(client: Client, body: dict[str, Any]) -> None:
    session, _ = begin(client)
    body = {"message": "two", **body} if body.keys() == {"if_busy"} else body
    assert error_of(client.request("POST", f"/sessions/{session}/run", body)) == (400, "invalid_request")


def test_a_message_in_place_of_none_cannot_wait(client: Client) -> None:
    session, _ = begin(client)
    assert error_of(send(client, session, "two", replaces="msg-1")) == (400, "invalid_request")
    assert queued(client, session) == []


def test_at_most_16_messages_wait_in_a_session(client: Client) -> None:
    session, _ = begin(client)
    queue(client, session, *map(str, range(16)))
    for way in ("queue", "steer", "interrupt"):
        refused = send(client, session, "17", way)
        assert error_of(refused) == (429, "queue_full")
        assert refused.headers["Retry-After"] == "1"
    assert queued(client, session) == [str(number) for number in range(16)]


def test_a_message_that_finds_the_queue_full_leaves_no_picture(client: Client) -> None:
    session, _ = begin(client)
    queue(client, session, *map(str, range(16)))
    picture = [{"type": "image", "data": encoded(png())}]
    assert send(client, session, None, message=picture).status_code == 429
    assert client.storage.files.read(session, sha256(png())) is None


# --- their turns ---


def test_messages_begin_in_order_each_when_the_one_before_has_ended(client: Client, gate: Gate) -> None:
    session, stream = begin(client)
    ids = queue(client, session, "two", "three", "four")
    gate.go.set()
    assert stream.last()["data"]["complete_text"] == "Re: one."
    found = ended(client, session)
    assert texts(found) == ["one", "Re: one.", "two", "Re: two.", "three", "Re: three.", "four", "Re: four."]
    assert [message["id"] for message in found["messages"] if message["role"] == "user"][1:] == ids
    assert "queued" not in found


def test_queued_messages_are_not_joined(client: Client, gate: Gate) -> None:
    session, _ = begin(client)
    queue(client, session, "two", "three")
    gate.go.set()
    ended(client, session)
    sent = [[one["content"] for one in request["messages"]] for request in client.model.requests]
    assert sent == [["one"], ["one", "Re: one.", "two"], ["one", "Re: one.", "two", "Re: two.", "three"]]


def test_a_turn_that_is_cancelled_leaves_the_queue_as_it_is(client: Client, gate: Gate) -> None:
    session, stream = begin(client, "stall")
    queue(client, session, "two", "three")
    assert client.cancel(session)
    assert stream.last()["data"]["status"] == "cancelled"
    wait_until(lambda: queued(client, session) == ["three"])
    gate.go.set()
    assert texts(ended(client, session))[-4:] == ["two", "Re: two.", "three", "Re: three."]


def test_a_turn_that_fails_leaves_the_queue_as_it_is(client: Client, gate: Gate) -> None:
    session, _ = begin(client)
    queue(client, session, "bad", "three")
    gate.go.set()
    found = ended(client, session)
    assert questions(found) == ["one", "bad", "three"] and texts(found)[-1] == "Re: three."


def test_a_queued_turn_has_what_its_request_asked_for(client: Client, gate: Gate) -> None:
    session, _ = begin(client)
    assert send(client, session, "two", model="other").status_code == 202
    gate.go.set()
    assert ended(client, session)["messages"][-1]["model"] == "other"


def test_a_queued_edit_stands_in_place_of_its_question(client: Client, gate: Gate) -> None:
    session, _ = begin(client)
    first = client.messages(session)[0]["id"]
    assert send(client, session, None, replaces=first).status_code == 202
    assert client.session(session)["queued"][0]["content"] == "one"
    gate.go.set()
    wait_until(lambda: texts(ended(client, session)) == ["one", "Re: one."])
    assert client.messages(session)[0]["id"] != first


def test_where_messages_wait_the_session_is_busy(client: Client, gate: Gate) -> None:
    session, _ = begin(client)
    queue(client, session, "two")
    client.cancel(session)
    assert client.session(session)["running"]
    assert error_of(client.run(session, "three")) == (409, "session_busy")
    assert error_of(client.request("PATCH", f"/sessions/{session}", {"title": "x"})) == (409, "session_busy")


def test_a_deleted_session_begins_no_turn_of_its_queue(client: Client) -> None:
    session, _ = begin(client, "stall")
    client.model.wait_for(1)
    queue(client, session, "two", "three")
    assert client.request("DELETE", f"/sessions/{session}").status_code == 200
    assert client.get(f"/sessions/{session}").status_code == 404
    client.run(client.create(), "bad")
    assert [request["messages"][-1]["content"] for request in client.model.requests] == ["stall", "bad"]


def test_a_copy_has_nothing_of_the_queue(client: Client, gate: Gate) -> None:
    session, _ = begin(client)
    queue(client, session, "two")
    copy = json_of(client.request("POST", "/sessions", {"copy_of": session}))["id"]
    found = client.session(copy)
    assert (questions(found), "queued" in found, found["running"]) == (["one"], False, False)


def test_at_a_shutdown_nothing_begins_and_what_waits_stays(store: Callable[[], Storage], gate: Gate) -> None:
    storage = store()
    with ModelServer(default=gate.reply) as model, Client(model=model, storage=storage) as client:
        session, _ = begin(client, "stall")
        queue(client, session, "two")
        client.shut_down()
        assert error_of(send(client, session, "three")) == (503, "shutting_down")
        assert queued(client, session) == ["two"]
        assert "two" not in [request["messages"][-1]["content"] for request in model.requests]
    assert [one["content"] for one in storage.queue(session).read()] == ["two"]


# --- taking back ---


def test_a_message_can_be_taken_back(client: Client, gate: Gate) -> None:
    session, _ = begin(client)
    two, _ = queue(client, session, "two", "three")
    response = client.request("DELETE", f"/sessions/{session}/queued/{two}")
    assert json_of(response) == {"success": True, "message": f"Message {two} taken back"}
    assert queued(client, session) == ["three"]
    assert error_of(client.request("DELETE", f"/sessions/{session}/queued/{two}")) == (404, "not_found")
    gate.go.set()
    assert questions(ended(client, session)) == ["one", "three"]


def test_a_message_whose_turn_has_begun_cannot_be_taken_back(client: Client) -> None:
    session, _ = begin(client, "stall")
    [two] = queue(client, session, "two")
    client.cancel(session)
    wait_until(lambda: queued(client, session) == [])
    assert error_of(client.request("DELETE", f"/sessions/{session}/queued/{two}")) == (404, "not_found")


def test_a_message_of_another_session_cannot_be_taken_back(client: Client) -> None:
    session, _ = begin(client)
    [two] = queue(client, session, "two")
    assert error_of(client.request("DELETE", f"/sessions/{client.create()}/queued/{two}")) == (404, "not_found")
    assert error_of(client.request("DELETE", f"/sessions/session-0/queued/{two}")) == (404, "session_not_found")


# --- interrupting ---


def test_an_interrupt_cancels_the_turn_and_begins_before_all_that_waits(client: Client, gate: Gate) -> None:
    session, stream = begin(client, "stall")
    stream.next("stream_chunk")
    queue(client, session, "two")
    [now] = queue(client, session, "now", way="interrupt")
    assert stream.last()["data"]["status"] == "cancelled"
    gate.go.set()
    found = ended(client, session)
    assert texts(found) == ["stall", "Hel", "now", "Re: now.", "two", "Re: two."]
    assert found["messages"][2]["id"] == now


def test_an_interrupt_can_stand_in_place_of_the_question_that_it_interrupts(client: Client, gate: Gate) -> None:
    gate.go.set()
    session, _ = begin(client, "stall")
    first = client.messages(session)[0]["id"]
    assert send(client, session, "better", "interrupt", replaces=first).status_code == 202
    assert texts(ended(client, session)) == ["better", "Re: better."]


# --- keys ---


def test_the_same_key_waits_once(client: Client, gate: Gate) -> None:
    session, _ = begin(client)
    first, again = send(client, session, "two", key="k"), send(client, session, "two", key="k")
    assert (first.status_code, json_of(first)) == (again.status_code, json_of(again))
    assert json_of(send(client, session, "two", "reject", key="k")) == json_of(first)
    assert queued(client, session) == ["two"]
    gate.go.set()
    assert questions(ended(client, session)) == ["one", "two"]


def test_the_key_of_a_message_that_waits_is_not_for_another(client: Client) -> None:
    session, _ = begin(client)
    assert send(client, session, "two", key="k").status_code == 202
    assert error_of(send(client, session, "three", key="k")) == (422, "idempotency_key_reused")


def test_a_key_that_looks_like_the_id_of_a_message_is_no_id(client: Client, gate: Gate) -> None:
    session, _ = begin(client)
    assert send(client, session, "two", key=client.messages(session)[0]["id"]).status_code == 202
    gate.go.set()
    assert questions(ended(client, session)) == ["one", "two"]


def test_the_key_of_a_message_joins_its_turn_once_that_runs(client: Client, gate: Gate) -> None:
    session, _ = begin(client, "stall")
    send(client, session, "two", key="k")
    client.cancel(session)
    wait_until(lambda: queued(client, session) == [])
    joined = client.later(send, client, session, "two", key="k")
    gate.go.set()
    assert json_of(joined.result(TIMEOUT))["message"]["content"] == "Re: two."
    asked = len(client.model.requests)
    again = send(client, session, "two", key="k")
    assert (again.headers["Idempotency-Replayed"], len(client.model.requests)) == ("true", asked)


# --- watching ---


def test_a_message_that_waits_can_be_watched(client: Client, gate: Gate) -> None:
    session, _ = begin(client)
    two, three = queue(client, session, "two", "three")
    stream = client.watch(session, f"?message={three}")
    assert (stream.status, stream.write()) == (200, b": keep-alive\n\n")
    gate.go.set()
    events = stream.rest()
    assert [event["type"] for event in events] == ["stream_start", "stream_chunk", "stream_chunk", "stream_end"]
    assert events[-1]["data"]["complete_text"] == "Re: three."
    assert client.watch(session, f"?message={two}").last()["data"]["complete_text"] == "Re: two."


def test_comments_come_until_the_message_begins(client: Client) -> None:
    session, _ = begin(client)
    [two] = queue(client, session, "two")
    stream = client.watch(session, f"?message={two}")
    assert [stream.write() for _ in range(3)] == [b": keep-alive\n\n"] * 3


def test_the_stream_of_a_message_that_is_taken_back_ends(client: Client) -> None:
    session, _ = begin(client)
    [two] = queue(client, session, "two")
    stream = client.watch(session, f"?message={two}")
    stream.write()
    client.request("DELETE", f"/sessions/{session}/queued/{two}")
    assert stream.rest() == []
    assert error_of(client.get(f"/sessions/{session}/run_stream?message={two}")) == (404, "not_found")


def test_a_message_that_is_none_cannot_be_watched(client: Client) -> None:
    session = client.create()
    assert error_of(client.get(f"/sessions/{session}/run_stream?message=two")) == (400, "invalid_request")
    assert error_of(client.get(f"/sessions/{session}/run_stream?message=msg-0")) == (404, "not_found")
