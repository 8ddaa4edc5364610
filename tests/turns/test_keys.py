"""What an Idempotency-Key may be, what it stands for, and how long."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from session_core.stores.files import FileStorage
from tests.support.client import Client, error_of
from tests.support.model_server import BREAK, ReplyTo, answer, status
from tests.support.retries import KEY, Gate, answered, contents, failed, halted, replayed
from tests.support.server import TIMEOUT

# Another message under the same key

REUSED = (422, "idempotency_key_reused")


def test_another_message_is_refused_while_the_turn_runs(client: Client) -> None:
    session, first, gate = halted(client)
    assert error_of(client.run(session, "Other", **KEY)) == REUSED
    gate.open()
    first.rest()


def test_another_message_is_refused_after_the_turn_has_ended(client: Client) -> None:
    session = client.create()
    client.run(session, **KEY)
    assert error_of(client.run(session, "Other", **KEY)) == REUSED
    assert error_of(client.run(session, "Hi ", **KEY)) == REUSED


def test_another_message_is_refused_after_later_turns(client: Client) -> None:
    session = client.create()
    client.run(session, **KEY)
    client.run(session, "Other")
    assert error_of(client.run(session, "Other", **KEY)) == REUSED


def test_another_message_is_refused_after_the_turn_has_failed(client: Client) -> None:
    session = failed(client)
    assert error_of(client.run(session, "Other", **KEY)) == REUSED
    client.run(session, "Next")
    assert error_of(client.run(session, "Other", **KEY)) == REUSED


def test_another_message_is_refused_after_the_turn_was_cancelled(client: Client) -> None:
    session, first, _ = halted(client)
    client.cancel(session)
    assert error_of(client.run(session, "Other", **KEY)) == REUSED
    first.close()


def test_another_message_is_refused_while_another_turn_runs(client: Client) -> None:
    session, first, gate = halted(client)
    gate.open()
    first.rest()
    gate = Gate()
    client.model.then(answer(gate))
    second = client.later(client.run, session, "Next")
    assert gate.reached.wait(TIMEOUT)
    assert error_of(client.run(session, "Other", **KEY)) == REUSED
    gate.open()
    answered(second.result(TIMEOUT))


@pytest.mark.parametrize(
    "reply",
    [answer("OK"), status(404, {"error": "no"}), answer("One", BREAK)],
    ids=["answered", "failed", "broken off"],
)
def test_another_message_is_refused_after_a_restart(reopen: Callable[..., Client], reply: ReplyTo) -> None:
    client = reopen(reply)
    session = client.create()
    client.run(session, **KEY)
    client = reopen()
    assert error_of(client.run(session, "Other", **KEY)) == REUSED
    assert client.model.requests == []


# Keys


def test_the_key_is_shown_nowhere(reopen: Callable[..., Client]) -> None:
    secret = {"Idempotency_Key": "a-secret-key"}
    client = reopen(status(404, {"error": "no"}), answer("One", BREAK))
    session = client.create()
    shown = [
        client.run(session, **secret).text,
        client.run(session, **secret).text,
        client.run(session, **secret).text,
    ]
    shown += [client.get(f"/sessions/{session}{query}").text for query in ("", "?limit=1", "?limit=9")]
    shown += [client.get(f"/sessions{query}").text for query in ("", "?details=true")]
    shown += [json.dumps(client.stream(session, **secret).rest()), json.dumps(client.watch(session).rest())]
    assert "a-secret-key" not in "".join(shown)
    assert {name for message in client.messages(session) for name in message} <= {
        *("id", "role", "content", "created_at", "status", "reason", "usage", "model")
    }


def test_the_same_key_in_another_session_is_another_turn(client: Client) -> None:
    one, two = client.create(), client.create()
    answered(client.run(one, **KEY))
    response = client.run(two, "Something else", **KEY)
    assert not replayed(response)
    assert answered(response)["content"] == "OK"
    assert len(client.model.requests) == 2


def test_keys_are_told_apart_by_every_character(client: Client) -> None:
    session = client.create()
    for key in ("k", "K", "k.", '"k"', "k" * 255, "k" * 254 + "j", "!", "~"):
        assert not replayed(client.run(session, Idempotency_Key=key))
        assert replayed(client.run(session, Idempotency_Key=key))


@pytest.mark.parametrize("key", ["", " ", "a b", "é", "k" * 256, "k\x7f", "k\t", "k, k"])
@pytest.mark.parametrize("path", ["run", "run_stream"])
def test_a_malformed_key_is_refused(key: str, path: str) -> None:
    with Client() as client:
        session = client.create()
        headers = {"Idempotency-Key": key}
        response = client.request("POST", f"/sessions/{session}/{path}", {"message": "Hi"}, headers)
        assert error_of(response) == (400, "invalid_request")
        assert client.messages(session) == []


def test_a_malformed_key_is_said_before_that_there_is_no_session(client: Client) -> None:
    assert error_of(client.run("session-never", Idempotency_Key="")) == (400, "invalid_request")


def test_a_key_for_a_session_that_does_not_exist_is_404(client: Client) -> None:
    assert error_of(client.run("session-never", **KEY)) == (404, "session_not_found")


def test_a_deleted_session_takes_its_keys_along(client: Client) -> None:
    session = client.create()
    client.run(session, **KEY)
    client.request("DELETE", f"/sessions/{session}")
    assert error_of(client.run(session, **KEY)) == (404, "session_not_found")


def test_a_session_that_another_process_deleted_is_not_replayed(tmp_path: Path) -> None:
    with (
        Client(storage=FileStorage.open(str(tmp_path))) as one,
        Client(storage=FileStorage.open(str(tmp_path))) as two,
    ):
        session = one.create()
        one.run(session, **KEY)
        assert two.request("DELETE", f"/sessions/{session}").status_code == 200
        assert error_of(one.run(session, **KEY)) == (404, "session_not_found")


def test_a_turn_of_another_process_is_busy_and_then_replayed(tmp_path: Path) -> None:
    with (
        Client(storage=FileStorage.open(str(tmp_path))) as one,
        Client(storage=FileStorage.open(str(tmp_path))) as two,
    ):
        session, first, gate = halted(one)
        assert error_of(two.run(session, **KEY)) == (409, "session_busy")
        assert error_of(two.run(session, "Other", **KEY)) == REUSED
        gate.open()
        last = first.last()["data"]
        response = two.run(session, **KEY)
        assert replayed(response)
        assert answered(response)["id"] == last["message_id"]


def test_a_turn_that_another_process_tried_again_is_replayed(tmp_path: Path) -> None:
    with (
        Client(storage=FileStorage.open(str(tmp_path))) as one,
        Client(storage=FileStorage.open(str(tmp_path))) as two,
    ):
        session = failed(one)
        good = answered(two.run(session, **KEY))
        response = one.run(session, **KEY)
        assert replayed(response)
        assert answered(response) == good


def test_keys_and_outcomes_survive_a_new_title(reopen: Callable[..., Client]) -> None:
    client = reopen(answer("One"), status(401, {"error": "no"}))
    session = client.create()
    original = answered(client.run(session, **KEY))
    client.run(session, "Next", Idempotency_Key="key-2")
    assert client.request("PATCH", f"/sessions/{session}", {"title": "New"}).status_code == 200
    client = reopen()
    assert answered(client.run(session, **KEY)) == original
    answered(client.run(session, "Later"))
    assert error_of(client.run(session, "Next", Idempotency_Key="key-2")) == (502, "model_unauthorized")


def test_a_failed_turn_is_tried_again_after_a_new_title(client: Client) -> None:
    session = failed(client)
    client.request("PATCH", f"/sessions/{session}", {"title": "New"})
    assert answered(client.run(session, **KEY))["content"] == "OK"
    assert contents(client, session) == [("user", "Hi"), ("assistant", "OK")]


def test_keys_survive_a_torn_file(tmp_path: Path) -> None:
    with Client(answer("One"), storage=FileStorage.open(str(tmp_path))) as client:
        session = client.create()
        original = answered(client.run(session, **KEY))
        client.run(session, "Next", Idempotency_Key="key-2")
    file = tmp_path / f"{session}.json"
    data = file.read_bytes()
    for cut in range(data.index(b'"Next"') + 60, len(data), 7):
        file.write_bytes(data[:cut])
        with Client(storage=FileStorage.open(str(tmp_path))) as client:
            response = client.run(session, **KEY)
            assert replayed(response)
            assert answered(response) == original
            assert error_of(client.run(session, "Other", **KEY)) == REUSED


def test_a_turn_whose_answer_was_torn_is_tried_again(tmp_path: Path) -> None:
    with Client(answer("One"), storage=FileStorage.open(str(tmp_path))) as client:
        session = client.create()
        answered(client.run(session, **KEY))
    file = tmp_path / f"{session}.json"
    data = file.read_bytes()
    file.write_bytes(data[: data.index(b'"One"')])
    with Client(storage=FileStorage.open(str(tmp_path))) as client:
        response = client.run(session, **KEY)
        assert not replayed(response)
        assert answered(response)["content"] == "OK"
        assert contents(client, session) == [("user", "Hi"), ("assistant", "OK")]
