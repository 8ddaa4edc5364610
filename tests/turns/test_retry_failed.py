"""A request that is sent again with its Idempotency-Key after its turn has failed is tried again."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from session_core.stores.files import FileStorage
from tests.support.client import BreakableStorage, Client, error_of
from tests.support.model_server import BREAK, STALL, ModelServer, ReplyTo, answer, status, tool_call
from tests.support.retries import (
    FAILURES,
    KEY,
    TOOL,
    Gate,
    SlowMemory,
    answered,
    bare,
    contents,
    failed,
    halted,
    replayed,
    sent,
)
from tests.support.server import TIMEOUT, Server


@pytest.mark.parametrize("code", FAILURES)
def test_a_failed_turn_is_tried_again_after_a_restart(reopen: Callable[..., Client], code: str) -> None:
    client = reopen(*FAILURES[code])
    session = client.create()
    assert client.stream(session, **KEY).last()["data"]["code"] == code
    client = reopen()
    assert client.stream(session, **KEY).last()["data"]["complete_text"] == "OK"
    assert sent(client) == [("user", "Hi")]
    assert contents(client, session).count(("user", "Hi")) == 1


def test_what_the_failed_try_left_stays_stored_but_is_not_sent(client: Client) -> None:
    session = failed(client, TOOL, answer("It is", BREAK))
    left = [("user", "Hi"), ("assistant", "Let me see. "), ("tool", "2"), ("assistant", "It is")]
    assert contents(client, session) == left
    assert answered(client.run(session, **KEY))["content"] == "OK"
    assert contents(client, session) == [*left, ("assistant", "OK")]
    assert sent(client) == [("user", "Hi")]


def test_what_a_failed_try_left_is_not_sent_in_later_turns_either(client: Client) -> None:
    session = failed(client, TOOL, answer("It is", BREAK), TOOL, answer("It is", BREAK))
    client.run(session, **KEY)
    client.run(session, **KEY)
    client.run(session, "Next")
    assert sent(client) == [("user", "Hi"), ("assistant", "OK"), ("user", "Next")]
    client.run(session, "And then?")
    assert sent(client)[:2] == [("user", "Hi"), ("assistant", "OK")]


def test_a_second_try_sees_its_own_tool_calls(client: Client) -> None:
    session = failed(client, TOOL, answer("It is", BREAK), TOOL)
    client.run(session, **KEY)
    assert sent(client) == [("user", "Hi"), ("assistant", "Let me see. "), ("tool", "2")]


def test_a_second_try_is_another_turn_with_events_of_its_own(client: Client) -> None:
    client.model.then(answer("One", BREAK))
    session = client.create()
    first = client.stream(session, **KEY).rest()
    second = client.stream(session, **KEY).rest()
    assert not {event["id"] for event in first} & {event["id"] for event in second}
    assert [event["type"] for event in second] == ["stream_start", "stream_chunk", "stream_end"]
    assert client.watch(session).rest() == second


def test_the_answer_of_a_second_try_is_replayed_without_what_the_first_one_left(
    reopen: Callable[..., Client],
) -> None:
    client = reopen(TOOL, answer("It is", BREAK), TOOL, answer("It is 2."))
    session = client.create()
    client.run(session, **KEY)
    original = client.stream(session, **KEY).rest()
    client = reopen()
    assert bare(client.stream(session, **KEY).rest()) == bare(original)
    assert client.model.requests == []


def test_a_try_that_fails_again_can_be_tried_again(client: Client) -> None:
    session = failed(client, *[answer(f"Try {number}", BREAK) for number in range(4)])
    for _ in range(3):
        assert error_of(client.run(session, **KEY)) == (502, "model_error")
    assert answered(client.run(session, **KEY))["content"] == "OK"
    assert contents(client, session)[0] == ("user", "Hi")
    assert contents(client, session)[1:] == [("assistant", f"Try {n}") for n in range(4)] + [("assistant", "OK")]
    assert [sent(client, number) for number in range(5)] == [[("user", "Hi")]] * 5


def test_a_turn_that_took_too_long_is_tried_again() -> None:
    with Client(answer("One", STALL), timeout=0.3) as hasty:
        session = hasty.create()
        assert error_of(hasty.run(session, **KEY)) == (504, "model_timeout")
        with Client(storage=hasty.storage) as client:
            assert answered(client.run(session, **KEY))["content"] == "OK"
            assert sent(client) == [("user", "Hi")]


def test_a_turn_that_a_shutdown_ended_is_tried_again(reopen: Callable[..., Client]) -> None:
    client = reopen()
    session, first, _ = halted(client)
    client = reopen()
    assert first.last()["data"]["code"] == "shutting_down"
    assert answered(client.run(session, **KEY))["content"] == "OK"
    assert contents(client, session) == [("user", "Hi"), ("assistant", "One"), ("assistant", "OK")]
    assert sent(client) == [("user", "Hi")]


def test_a_turn_whose_answer_could_not_be_stored_is_tried_again() -> None:
    storage = BreakableStorage()
    breaks: ReplyTo = answer("One", lambda exchange: setattr(storage, "broken", True))
    with Client(breaks, storage=storage) as client:
        session = client.create()
        assert error_of(client.run(session, **KEY)) == (503, "storage_unavailable")
        storage.broken = False
        assert contents(client, session) == [("user", "Hi")]
        assert answered(client.run(session, **KEY))["content"] == "OK"
        assert contents(client, session) == [("user", "Hi"), ("assistant", "OK")]


def test_a_turn_that_our_own_fault_ended_is_tried_again() -> None:
    storage = SlowMemory()
    storage.go_on.set()
    breaks: ReplyTo = answer("One", lambda exchange: setattr(storage, "error", ZeroDivisionError()))
    with Client(breaks, storage=storage) as client:
        session = client.create()
        assert error_of(client.run(session, **KEY)) == (500, "internal_error")
        storage.error = None
        assert answered(client.run(session, **KEY))["content"] == "OK"
        assert contents(client, session) == [("user", "Hi"), ("assistant", "OK")]


@pytest.fixture
def crash(tmp_path: Path) -> Iterator[Callable[[Client], Client]]:
    """Starts the app over the files as they would be found if the server had just been killed."""
    running: list[Client] = []

    def start(client: Client) -> Client:
        shutil.copytree(tmp_path / "sessions", tmp_path / "found")
        running.append(Client(storage=FileStorage.open(str(tmp_path / "found"))))
        return running[0]

    yield start
    for client in running:
        client.close()


@pytest.mark.parametrize("phase", ["before the first call", "in a tool call", "in the answer"])
def test_a_turn_that_a_crash_ended_is_tried_again(
    reopen: Callable[..., Client], crash: Callable[[Client], Client], phase: str
) -> None:
    gate = Gate()
    replies = {
        "before the first call": [answer(gate)],
        "in a tool call": [tool_call("calculator", "{}"), answer(gate)],
        "in the answer": [TOOL, answer("It is", gate)],
    }
    client = reopen(*replies[phase])
    session = client.create()
    stream = client.stream(session, **KEY)
    assert gate.reached.wait(TIMEOUT)
    after = crash(client)
    assert answered(after.run(session, **KEY))["content"] == "OK"
    assert sent(after) == [("user", "Hi")]
    assert contents(after, session).count(("user", "Hi")) == 1
    gate.open()
    stream.rest()


def test_a_client_that_lost_a_killed_server_learns_so_and_asks_again(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    with ModelServer(TOOL, answer("It is", STALL)) as model:
        flags = (f"-session_dir={tmp_path}/sessions", "-api_key=k", f"-base_url={model.base_url}")
        server = serve(*flags)
        session = server.create()
        stream = server.say(session, "Hi", **KEY)
        seen = [event["id"] for event in itertools.islice(stream.events(), 5)]
        server.kill()
        stream.close()
        server = serve(*flags)
        lost = server.request("GET", f"/sessions/{session}/run_stream", headers={"Last-Event-ID": seen[-1]})
        assert (lost.status, lost.json["code"]) == (410, "event_gone")
        again = server.say(session, "Hi", **KEY)
        assert [*again.events()][-1]["data"]["complete_text"] == "OK"
        contents = [message["content"] for message in server.messages(session)]
        assert contents == ["Hi", "Let me see. ", "2", "OK"]


def test_a_turn_without_a_key_that_failed_is_not_tried_again(client: Client) -> None:
    client.model.then(status(404, {"error": "no"}))
    session = client.create()
    client.run(session)
    client.run(session)
    assert contents(client, session) == [("user", "Hi"), ("user", "Hi"), ("assistant", "OK")]
    assert sent(client) == [("user", "Hi\n\nHi")]


# Failed, and followed by a later turn


@pytest.mark.parametrize("code", FAILURES)
def test_a_failed_turn_that_was_followed_by_another_gives_its_error_again(
    reopen: Callable[..., Client], code: str
) -> None:
    client = reopen(*FAILURES[code])
    session = client.create()
    error = error_of(client.run(session, **KEY))
    answered(client.run(session, "Next"))
    asked = len(client.model.requests)
    assert error_of(client.run(session, **KEY)) == error
    again = client.stream(session, **KEY)
    assert replayed(again)
    assert (again.status, again.last()["data"]["code"]) == (200, code)
    assert len(client.model.requests) == asked
    client = reopen()
    response = client.run(session, **KEY)
    assert replayed(response)
    assert error_of(response) == error
    assert client.model.requests == []


def test_the_error_of_a_partial_answer_comes_again_with_it(reopen: Callable[..., Client]) -> None:
    client = reopen(TOOL, answer("It is", BREAK))
    session = client.create()
    original = client.stream(session, **KEY).rest()
    answered(client.run(session, "Next"))
    again = bare(reopen().stream(session, **KEY).rest())
    assert again[:-1] == bare(original)[:-1]
    kind, data = again[-1]
    assert kind == "error"
    wanted = original[-1]["data"]
    assert (data["code"], data["status"], data["message_id"]) == (
        "model_error",
        502,
        wanted["message_id"],
    )


@pytest.mark.parametrize("first", [answer("One", BREAK), status(404, {"error": "no"})], ids=["partial", "nothing"])
def test_the_error_of_the_last_try_is_the_one_that_comes_again(reopen: Callable[..., Client], first: ReplyTo) -> None:
    client = reopen(first, status(401, {"error": "no"}))
    session = client.create()
    client.run(session, **KEY)
    original = client.stream(session, **KEY).last()["data"]
    assert original["code"] == "model_unauthorized"
    answered(client.run(session, "Next"))
    data = reopen().stream(session, **KEY).last()["data"]
    assert {name: data[name] for name in data if name != "error"} == {
        name: original[name] for name in original if name != "error"
    }


def test_a_turn_that_a_crash_ended_and_another_followed_gives_an_error(
    reopen: Callable[..., Client], crash: Callable[[Client], Client]
) -> None:
    client = reopen()
    session, stream, gate = halted(client)
    after = crash(client)
    answered(after.run(session, "Next"))
    response = after.run(session, **KEY)
    assert replayed(response)
    assert error_of(response) == (500, "internal_error")
    assert len(after.model.requests) == 1
    gate.open()
    stream.rest()


def test_a_turn_that_was_tried_again_with_success_stays_so_after_later_turns(reopen: Callable[..., Client]) -> None:
    client = reopen()
    session = failed(client)
    good = answered(client.run(session, **KEY))
    client.run(session, "Next")
    assert answered(reopen().run(session, **KEY)) == good
