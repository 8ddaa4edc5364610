"""Turns that did not complete, and go on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from session_core.stores.files import FileStorage
from tests.support.client import BreakableStorage, Client, error_of, json_of
from tests.support.continued import BOOK, GO_ON, brief
from tests.support.model_server import BREAK, STALL, ModelServer, ReplyTo, answer, status, tool_call, wait
from tests.support.server import TIMEOUT, wait_until
from tests.support.well_formed import assert_well_formed

KEY = {"Idempotency-Key": "k"}


def go_on(client: Client, session: str, how: str = "run", **headers: str) -> Any:
    return client.request("POST", f"/sessions/{session}/{how}", GO_ON, headers)


def sent(model: ModelServer, number: int = -1) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in model.requests[number]["messages"]]


@pytest.fixture
def effects() -> list[str]:
    return []


@pytest.fixture
def client(effects: list[str], tmp_path: Path) -> Iterator[Client]:
    def book(name: str) -> str:
        """Books a seat."""
        effects.append(name)
        return f"{name} is booked"

    with Client(storage=FileStorage.open(str(tmp_path / "sessions")), tools=[book], timeout=5.0) as client:
        yield client


@pytest.mark.parametrize("how", ["failed", "cut off", "cancelled", "timed out", "length"])
@pytest.mark.parametrize("way", ["run", "run_stream"])
def test_tools_that_have_a_result_are_not_called_again(
    client: Client, effects: list[str], how: str, way: str
) -> None:
    ends: dict[str, ReplyTo] = {
        "failed": status(401, {}),
        "cut off": answer("Ann ", BREAK),
        "cancelled": answer("Ann ", STALL),
        "timed out": answer("Ann ", STALL),
        "length": answer("Ann ", finish_reason="length"),
    }
    client.model.then(BOOK, ends[how])
    session = client.create()
    stream = client.stream(session, "Book Ann")
    if how == "cancelled":
        while stream.next()["type"] != "stream_tool_result":
            pass
        stream.next("stream_chunk")
        client.cancel(session)
    stream.rest()
    before = client.messages(session)
    client.model.then(answer("Ann has a seat."))
    response = go_on(client, session, way)
    assert response.status_code == 200
    if way == "run":
        assert json_of(response)["message"]["content"] == "Ann has a seat."
    else:
        events = [json.loads(line[6:]) for line in response.text.splitlines() if line]
        assert [event["type"] for event in events] == ["stream_start", "stream_chunk", "stream_end"]
        assert events[-1]["data"]["complete_text"] == "Ann has a seat."
    assert effects == ["Ann"]
    assert sent(client.model) == [("user", "Book Ann"), ("assistant", "Let me see. "), ("tool", "Ann is booked")]
    assert_well_formed(client.model.requests[-1])
    assert client.messages(session)[: len(before)] == before
    assert brief(client.messages(session))[-1] == ("assistant", "Ann has a seat.", None)
    assert client.run(session, "Thanks").status_code == 200
    assert [text for _, text in sent(client.model)] == [
        *("Book Ann", "Let me see. ", "Ann is booked", "Ann has a seat.", "Thanks")
    ]


def test_a_call_without_a_result_is_told_to_be_interrupted(client: Client, effects: list[str]) -> None:
    started = threading.Event()

    def hang() -> str:
        """Takes long."""
        started.set()
        threading.Event().wait(0.5)
        return "late"

    with Client(tools=[hang], storage=client.storage, model=client.model) as other:
        client.model.then(tool_call("hang", {}))
        session = other.create()
        stream = other.stream(session)
        stream.next("stream_start")
        assert started.wait(TIMEOUT)
        other.cancel(session)
        stream.close()
        assert json_of(go_on(other, session))["message"]["content"] == "OK"
        assert sent(client.model)[-1] == ("tool", "error: interrupted; the tool may have run")


def test_a_session_whose_last_turn_is_complete_has_nothing_to_go_on_with(client: Client) -> None:
    session = client.create()
    assert error_of(go_on(client, session)) == (409, "nothing_to_continue")
    client.run(session)
    assert error_of(go_on(client, session)) == (409, "nothing_to_continue")
    assert error_of(go_on(client, "session-0")) == (404, "session_not_found")
    assert len(client.messages(session)) == 2


def test_an_imported_question_is_answered_by_going_on(client: Client) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    session = json_of(client.request("POST", "/sessions", body))["id"]
    assert json_of(go_on(client, session))["message"]["content"] == "OK"
    assert sent(client.model) == [("user", "Hi")]


@pytest.mark.parametrize(
    "body",
    [{"continue": 1}, {"continue": "yes"}, {"continue": True, "message": "x"}, {"continue": True, "replaces": "m"}],
)
def test_a_wish_that_is_not_clear_is_refused(client: Client, body: dict[str, Any]) -> None:
    assert error_of(client.request("POST", f"/sessions/{client.create()}/run", body)) == (400, "invalid_request")


def test_going_on_under_a_key_happens_once(client: Client) -> None:
    session = client.create()
    client.model.then(answer("Hel", BREAK))
    client.run(session)
    first = go_on(client, session, **KEY)
    again = go_on(client, session, **KEY)
    assert json_of(again) == json_of(first)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert error_of(client.run(session, "Hi", Idempotency_Key="k")) == (422, "idempotency_key_reused")
    client.run(session, "next")
    assert json_of(go_on(client, session, **KEY)) == json_of(first)
    assert len(client.model.requests) == 3


def test_an_attempt_to_go_on_that_failed_is_tried_again_under_its_key(client: Client, effects: list[str]) -> None:
    client.model.then(BOOK, answer("A", BREAK), answer("B", BREAK), status(401, {}), answer("Done."))
    session = client.create()
    client.run(session, "Book Ann")
    assert go_on(client, session, **KEY).status_code == 502
    assert go_on(client, session, **KEY).status_code == 502
    assert json_of(go_on(client, session, **KEY))["message"]["content"] == "Done."
    assert effects == ["Ann"]
    assert sent(client.model) == [("user", "Book Ann"), ("assistant", "Let me see. "), ("tool", "Ann is booked")]
    contents = [content for role, content, _ in brief(client.messages(session)) if role == "assistant"]
    assert contents == ["Let me see. ", "A", "B", "Done."]


def test_the_key_of_the_question_gets_the_answer_of_the_attempt_that_went_on(client: Client) -> None:
    session = client.create()
    client.model.then(answer("Hel", BREAK), answer("Hello"))
    client.run(session, "Hi", Idempotency_Key="k")
    done = go_on(client, session)
    assert json_of(client.run(session, "Hi", Idempotency_Key="k")) == json_of(done)
    assert error_of(go_on(client, session, **KEY)) == (422, "idempotency_key_reused")


def test_a_retry_from_the_start_leaves_out_what_the_attempts_before_it_did(
    client: Client, effects: list[str]
) -> None:
    client.model.then(BOOK, answer("A", BREAK), answer("B", BREAK), BOOK, answer("C"))
    session = client.create()
    client.run(session, "Book Ann", Idempotency_Key="k")
    assert go_on(client, session).status_code == 502
    assert client.run(session, "Book Ann", Idempotency_Key="k").status_code == 200
    assert effects == ["Ann", "Ann"]
    assert sent(client.model, -2) == [("user", "Book Ann")]


def test_an_attempt_that_goes_on_calls_tools_of_its_own(client: Client, effects: list[str]) -> None:
    client.model.then(BOOK, answer("A", BREAK), tool_call("book", {"name": "Bob"}), answer("B", BREAK), answer("C"))
    session = client.create()
    client.run(session, "Book Ann")
    go_on(client, session)
    assert json_of(go_on(client, session))["message"]["content"] == "C"
    assert effects == ["Ann", "Bob"]
    assert [text for _, text in sent(client.model)] == [
        "Book Ann",
        "Let me see. ",
        "Ann is booked",
        "",
        "Bob is booked",
    ]
    assert client.session(session)["running"] is False
    client.run(session, "Thanks")
    assert [text for _, text in sent(client.model)][-3:] == ["Bob is booked", "C", "Thanks"]


def test_going_on_is_watched_resumed_and_cancelled_like_any_turn(client: Client) -> None:
    session = client.create()
    go = threading.Event()
    client.model.then(answer("Hel", BREAK), answer("One", wait(go), " two", STALL))
    client.run(session)
    response = client.later(go_on, client, session)
    client.model.wait_for(2)
    watcher = client.watch(session)
    assert [watcher.next()["type"], watcher.next()["data"]["content"]] == ["stream_start", "One"]
    go.set()
    watcher.next("stream_chunk")
    assert error_of(client.run(session)) == (409, "session_busy")
    assert error_of(go_on(client, session)) == (409, "session_busy")
    assert client.cancel(session)
    assert json_of(response.result(TIMEOUT))["message"]["status"] == "cancelled"
    assert json_of(go_on(client, session))["message"]["content"] == "OK"


def test_a_session_in_which_a_turn_goes_on_is_deleted(client: Client, tmp_path: Path) -> None:
    session = client.create()
    client.model.then(answer("Hel", BREAK), answer("One", STALL))
    client.run(session)
    response = client.later(go_on, client, session)
    client.model.wait_for(2)
    assert client.request("DELETE", f"/sessions/{session}").status_code == 200
    response.result(TIMEOUT)
    assert list((tmp_path / "sessions").iterdir()) == []


def test_a_shutdown_ends_an_attempt_and_a_later_one_goes_on(tmp_path: Path) -> None:
    with ModelServer(answer("Hel", BREAK), answer("One", STALL)) as model:
        with Client(storage=FileStorage.open(str(tmp_path)), model=model) as client:
            session = client.create()
            client.run(session)
            response = client.later(go_on, client, session)
            model.wait_for(2)
            wait_until(lambda: client.watch(session).next()["type"] == "stream_start")
            client.shut_down()
            assert error_of(response.result(TIMEOUT)) == (503, "shutting_down")
        with Client(storage=FileStorage.open(str(tmp_path)), model=model) as client:
            assert json_of(go_on(client, session))["message"]["content"] == "OK"


def test_a_full_disk_in_the_second_round_costs_no_second_effect(effects: list[str]) -> None:
    storage = BreakableStorage()

    def book() -> str:
        """Books a seat."""
        effects.append("Ann")
        return "booked"

    def fill(request: dict[str, Any]) -> Any:
        storage.broken = True
        return answer("Ann has a seat.")(request)

    with Client(tool_call("book", {}), fill, storage=storage, tools=[book]) as client:
        session = client.create()
        assert error_of(client.run(session)) == (503, "storage_unavailable")
        assert error_of(go_on(client, session)) == (503, "storage_unavailable")
        storage.broken = False
        assert json_of(go_on(client, session))["message"]["content"] == "OK"
    assert effects == ["Ann"]


def test_another_model_goes_on(client: Client) -> None:
    with Client(model=client.model, storage=client.storage, models=("other",)) as other:
        session = other.create()
        client.model.then(answer("Hel", BREAK))
        other.run(session)
        body = {"continue": True, "model": "other"}
        done = json_of(other.request("POST", f"/sessions/{session}/run", body))
        assert done["message"]["model"] == client.model.requests[-1]["model"] == "other"
