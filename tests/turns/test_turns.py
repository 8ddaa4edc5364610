"""One turn: stored before it is acknowledged, alone in its session, and not ended by a client that leaves."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from session_core.stores.files import FileStorage
from storage import Storage
from tests.support.client import BreakableStorage, Client, error_of, json_of
from tests.support.model_server import BREAK, STALL, answer, tool_call, wait
from tests.support.phases import CALCULATION, Tool, outcome
from tests.support.server import TIMEOUT, wait_until
from tests.support.well_formed import assert_well_formed


def on_disk(directory: Path) -> dict[str, Any]:
    """The only session in the directory, as its file has it."""
    [file] = directory.glob("*.json")
    session: dict[str, Any] = json.loads(file.read_bytes())
    return session


# --- stored first ---


def test_the_message_is_on_disk_before_the_model_is_asked(tmp_path: Path) -> None:
    seen = []

    def look(request: dict[str, Any]) -> Any:
        seen.append([message["content"] for message in on_disk(tmp_path)["messages"]])
        return answer("Hello")(request)

    with Client(look, look, storage=FileStorage.open(str(tmp_path))) as client:
        session_id = client.create()
        client.run(session_id, "one")
        client.stream(session_id, "two").rest()
    assert seen == [["one"], ["one", "Hello", "two"]]


def test_the_message_is_on_disk_when_stream_start_is_seen(tmp_path: Path) -> None:
    with Client(answer(STALL), storage=FileStorage.open(str(tmp_path))) as client:
        stream = client.stream(client.create(), "Hi")
        assert stream.next()["type"] == "stream_start"
        assert [message["content"] for message in on_disk(tmp_path)["messages"]] == ["Hi"]


def test_a_tool_call_is_on_disk_when_it_is_seen(tmp_path: Path, tool: Tool) -> None:
    with Client(tool_call("slow", {}), storage=FileStorage.open(str(tmp_path)), tools=[tool.function]) as client:
        stream = client.stream(client.create(), "Hi")
        event = stream.next("stream_tool_call")
        stored = on_disk(tmp_path)["messages"][-1]
        assert stored["tool_calls"][0]["id"] == event["data"]["id"]
        tool.go.set()
        stream.rest()


def test_a_tool_result_is_on_disk_when_it_is_seen(tmp_path: Path) -> None:
    with Client(CALCULATION, answer(STALL), storage=FileStorage.open(str(tmp_path))) as client:
        stream = client.stream(client.create(), "Hi")
        stream.next("stream_tool_result")
        stored = on_disk(tmp_path)["messages"][-1]
        assert (stored["role"], stored["content"]) == ("tool", "345")


def test_tool_messages_are_on_disk_before_the_model_is_asked_again(tmp_path: Path) -> None:
    seen: list[str] = []

    def look(request: dict[str, Any]) -> Any:
        seen.extend(message["role"] for message in on_disk(tmp_path)["messages"])
        return answer("345")(request)

    with Client(CALCULATION, look, storage=FileStorage.open(str(tmp_path))) as client:
        client.run(client.create())
    assert seen == ["user", "assistant", "tool"]


def test_the_answer_is_on_disk_when_its_end_is_seen(tmp_path: Path) -> None:
    with Client(storage=FileStorage.open(str(tmp_path))) as client:
        session_id = client.create()
        event = client.stream(session_id).next("stream_end")
        assert on_disk(tmp_path)["messages"][-1]["id"] == event["data"]["message_id"]
        message = json_of(client.run(session_id))["message"]
        assert on_disk(tmp_path)["messages"][-1]["id"] == message["id"]


def test_a_message_that_cannot_be_stored_is_503_and_the_model_is_not_asked() -> None:
    storage = BreakableStorage()
    with Client(storage=storage) as client:
        session_id = client.create()
        storage.broken = True
        assert error_of(client.run(session_id)) == (503, "storage_unavailable")
        stream = client.stream(session_id)
        assert (stream.status, stream.json["code"]) == (503, "storage_unavailable")
        assert client.messages(session_id) == []
        assert client.model.requests == []


@pytest.mark.parametrize("way", ["run", "stream"])
@pytest.mark.parametrize("kept", [1, 3])
def test_a_store_that_fails_during_the_turn_ends_it_and_keeps_what_it_had(way: str, kept: int) -> None:
    storage = BreakableStorage()

    def full(request: dict[str, Any]) -> Any:
        storage.broken = True
        return (answer("345") if len(request["messages"]) > 1 else CALCULATION)(request)

    with Client(*([CALCULATION] if kept == 3 else []), full, storage=storage) as client:
        session_id = client.create()
        assert outcome(getattr(client, way)(session_id))[:2] == (503, "storage_unavailable")
        assert len(client.messages(session_id)) == kept
        storage.broken = False
        assert client.run(session_id, "again").status_code == 200
        assert_well_formed(client.model.requests[-1])


# --- one at a time ---


@pytest.mark.parametrize("way", ["run", "run_stream"])
def test_of_twelve_messages_at_once_one_is_taken_and_eleven_are_told_409(storage: Storage, way: str) -> None:
    go, together = threading.Event(), threading.Barrier(12)
    with Client(answer(wait(go), "Hello"), storage=storage) as client:
        path = f"/sessions/{client.create()}/{way}"

        def send(number: int) -> TestResponse:
            together.wait(TIMEOUT)
            response = client.request("POST", path, {"message": f"message {number}"})
            if response.status_code == 409 and next(refused) == 10:
                go.set()
            return response

        refused = iter(range(12))
        responses = [sent.result(TIMEOUT) for sent in [client.later(send, number) for number in range(12)]]
        assert Counter(response.status_code for response in responses) == {200: 1, 409: 11}
        for response in responses:
            if response.status_code == 409:
                assert error_of(response) == (409, "session_busy")
                assert response.headers["Retry-After"] == "1"
        assert len(client.model.requests) == 1
        assert len(client.messages(path.split("/")[2])) == 2


def test_turns_in_different_sessions_run_side_by_side(storage: Storage) -> None:
    go = threading.Event()
    with Client(default=answer("Hel", wait(go), "lo"), storage=storage) as client:
        streams = [client.stream(client.create()) for _ in range(10)]
        for stream in streams:
            stream.next("stream_chunk")
        go.set()
        assert [stream.last()["data"]["complete_text"] for stream in streams] == ["Hello"] * 10


@pytest.mark.usefixtures("restless")
def test_the_session_is_free_before_stream_end_is_seen(storage: Storage) -> None:
    with Client(storage=storage) as client:
        session_id = client.create()
        for _ in range(60):
            stream = client.stream(session_id)
            assert stream.status == 200, stream.json
            assert stream.next("stream_end")
        assert len(client.messages(session_id)) == 120


@pytest.mark.usefixtures("restless")
def test_the_session_is_free_before_run_answers(storage: Storage) -> None:
    with Client(storage=storage) as client:
        session_id = client.create()
        assert {client.run(session_id).status_code for _ in range(60)} == {200}


@pytest.mark.usefixtures("restless")
def test_the_session_is_free_before_an_error_is_seen(storage: Storage) -> None:
    with Client(default=answer("Hel", BREAK), storage=storage) as client:
        session_id = client.create()
        for _ in range(50):
            stream = client.stream(session_id)
            assert stream.status == 200, stream.json
            assert stream.next("error")


@pytest.mark.usefixtures("restless")
def test_the_session_is_free_before_cancel_answers(storage: Storage) -> None:
    with Client(default=answer("Hel", STALL), storage=storage) as client:
        session_id = client.create()
        for _ in range(30):
            stream = client.stream(session_id)
            assert stream.status == 200, stream.json
            assert client.cancel(session_id) is True
            stream.close()


def test_readers_never_cost_a_turn_its_session(tmp_path: Path) -> None:
    with (
        Client(storage=FileStorage.open(str(tmp_path))) as client,
        Client(storage=FileStorage.open(str(tmp_path))) as other,
    ):
        session_id = client.create()
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                for path in (f"/sessions/{session_id}", "/sessions", "/sessions?details=true", "/ready"):
                    assert other.get(path).status_code == 200

        asked = [client.later(ask) for _ in range(2)]
        try:
            assert {client.run(session_id).status_code for _ in range(30)} == {200}
        finally:
            over.set()
        for one in asked:
            one.result(TIMEOUT)


@pytest.mark.parametrize(
    ("method", "path", "data"),
    [
        ("POST", "/run", {"message": "x"}),
        ("POST", "/run_stream", {"message": "x"}),
        ("GET", "/run_stream", None),
        ("POST", "/cancel", None),
        ("PATCH", "", {"title": "x"}),
        ("DELETE", "", None),
    ],
)
def test_a_turn_of_another_server_on_the_same_directory_is_409(
    tmp_path: Path, method: str, path: str, data: object
) -> None:
    go = threading.Event()
    storages = [FileStorage.open(str(tmp_path)) for _ in range(2)]
    with Client(answer("Hel", wait(go), "lo"), storage=storages[0]) as client, Client(storage=storages[1]) as other:
        session_id = client.create()
        stream = client.stream(session_id)
        stream.next("stream_chunk")
        response = other.request(method, f"/sessions/{session_id}{path}", data)
        assert error_of(response) == (409, "session_busy")
        assert response.headers["Retry-After"] == "1"
        go.set()
        assert stream.last()["data"]["complete_text"] == "Hello"
        assert len(client.messages(session_id)) == 2


def test_running_tells_of_turns_of_another_server(tmp_path: Path) -> None:
    go = threading.Event()
    storages = [FileStorage.open(str(tmp_path)) for _ in range(2)]
    with Client(answer("Hel", wait(go), "lo"), storage=storages[0]) as client, Client(storage=storages[1]) as other:
        session_id = client.create()
        stream = client.stream(session_id)
        stream.next("stream_chunk")
        assert other.session(session_id)["running"] is True
        assert json_of(other.get("/sessions?details=true"))["sessions"][0]["running"] is True
        go.set()
        stream.next("stream_end")
        assert other.session(session_id)["running"] is False
        assert other.run(session_id).status_code == 200


# --- clients that leave ---


def test_a_turn_goes_on_when_its_client_leaves(storage: Storage) -> None:
    go = threading.Event()
    with Client(answer("Hel", wait(go), "lo"), storage=storage) as client:
        session_id = client.create()
        stream = client.stream(session_id)
        stream.next("stream_chunk")
        stream.close()
        go.set()
        assert client.watch(session_id).last()["data"]["complete_text"] == "Hello"
        assert client.messages(session_id)[-1]["content"] == "Hello"
        assert not client.model.closed.is_set()


def test_a_turn_goes_on_when_its_client_never_reads() -> None:
    with Client(CALCULATION, answer("345")) as client:
        session_id = client.create()
        unread = client.stream(session_id)
        assert client.watch(session_id).last()["type"] == "stream_end"
        unread.close()
        roles = [message["role"] for message in client.messages(session_id)]
        assert roles == ["user", "assistant", "tool", "assistant"]


def test_a_client_that_does_not_read_holds_nobody_back() -> None:
    with Client(answer(*["x" * 1000] * 1000)) as client:
        session_id = client.create()
        unread = client.stream(session_id)
        wait_until(lambda: not client.session(session_id)["running"])
        assert client.run(session_id).status_code == 200
        assert unread.last()["data"]["complete_text"] == "x" * 1_000_000
