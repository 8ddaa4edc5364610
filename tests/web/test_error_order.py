"""Which error is told first where there are several."""

from __future__ import annotations

import threading

import pytest

from tests.support.client import Client, error_of
from tests.support.model_server import STALL, answer, wait
from tests.support.server import TIMEOUT, wait_until


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


UNKNOWN = "session-unknown"
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


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"message": None}, {}),
        ({"message": {"parts": [{"type": "text", "text": " "}]}}, {}),
        ({"messages": [{"role": "assistant", "parts": []}]}, {}),
        ({"message": {"parts": [{"type": "file"}]}}, {}),
        ({"message": {"parts": [{"type": "text", "text": "Hi"}]}, "model": "unknown"}, {}),
        ({"message": {"parts": [{"type": "text", "text": "Hi"}]}}, {"Idempotency-Key": "not good"}),
    ],
)
def test_400_of_the_ai_sdk_comes_before_404_of_the_session(body: dict[str, object], headers: dict[str, str]) -> None:
    with Client() as client:
        assert client.request("POST", "/ui/chat", {"id": UNKNOWN, **body}, headers).status_code == 400


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


def test_shutting_down_comes_before_409_for_another_wish_of_a_chat() -> None:
    asked = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 1}
    with Client(answer("Hel", STALL)) as client:
        session_id = client.create()
        client.stream(session_id).next("stream_chunk")
        ending = client.later(client.shut_down, TIMEOUT)
        wait_until(lambda: client.get("/ready").status_code == 503)
        refused = client.request("POST", "/v1/chat/completions", asked, {"X-Session-Id": session_id})
        assert (refused.status_code, refused.get_json()["error"]["code"]) == (503, "shutting_down")
        client.cancel(session_id)
        ending.result(TIMEOUT)
