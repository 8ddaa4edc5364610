"""How much one turn, and all together, may take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from session_core.model.demo import chunk, completion
from session_core.turns.event_log import MAX_EVENTS
from tests.support.client import Client, error_of, json_of
from tests.support.model_server import STALL, ModelServer, ReplyTo, answer, body, frames, status, tool_call
from tests.support.phases import outcome
from tests.support.server import Server, wait_until

MIB = 1 << 20


@pytest.mark.parametrize(
    "reply",
    [
        answer(*["x" * 65536] * 130),
        answer(*["é" * 32768] * 130),
        answer("x" * (9 * MIB)),
        frames(b"data: " + b"x" * (9 * MIB)),
        frames(*[chunk({"reasoning_content": "x" * 65536})] * 130, chunk({}, "stop")),
        frames(*[chunk({"tool_calls": [{"index": 0, "function": {"arguments": "x" * 65536}}]})] * 130),
    ],
    ids=["chunks", "chunks beyond ASCII", "one chunk", "one line", "reasoning", "arguments"],
)
def test_an_answer_of_more_than_8_mib_is_a_model_error(reply: ReplyTo) -> None:
    with Client(reply) as client:
        session_id = client.create()
        assert error_of(client.run(session_id)) == (502, "model_error")
        assert sum(len(message["content"].encode()) for message in client.messages(session_id)[1:]) <= 8 * MIB
        assert client.run(session_id).status_code == 200


def test_a_whole_answer_of_more_than_8_mib_is_a_model_error() -> None:
    big = json.dumps(completion({"content": "x" * (9 * MIB)}, "stop", {})).encode()
    with Client(body(big, "application/json"), stream=False) as client:
        assert error_of(client.run(client.create())) == (502, "model_error")


def test_an_answer_of_8_mib_is_taken() -> None:
    with Client(answer(*["x" * MIB] * 8)) as client:
        session_id = client.create()
        assert client.run(session_id).status_code == 200
        assert len(client.messages(session_id)[-1]["content"]) == 8 * MIB


def test_an_answer_in_a_huge_number_of_chunks_takes_bounded_memory() -> None:
    tiny = b"".join(b"data: %b\n\n" % json.dumps(chunk({"content": "x"})).encode() for _ in range(1000))
    with Client(frames(*[tiny] * 300, chunk({}, "stop"))) as client:
        session_id = client.create()
        before = resident()
        assert error_of(client.run(session_id)) == (502, "model_error")
        assert resident() - before < 150 * MIB
        assert len(client.messages(session_id)[-1]["content"]) <= MAX_EVENTS


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_an_eleventh_round_of_tools_is_an_error() -> None:
    with Client(default=tool_call("calculator", {"expression": "1+1"})) as client:
        session_id = client.create()
        assert error_of(client.run(session_id)) == (502, "too_many_tool_rounds")
        assert len(client.model.requests) == 11
        roles = [message["role"] for message in client.messages(session_id)]
        assert roles == ["user"] + ["assistant", "tool"] * 10


def test_ten_rounds_of_tools_are_taken() -> None:
    with Client(*[tool_call("calculator", {"expression": "1+1"})] * 10) as client:
        assert outcome(client.run(client.create())) == (200, "OK", "completed", None)


def test_tool_calls_with_the_same_id_get_ids_of_their_own() -> None:
    with Client(*[tool_call("calculator", {"expression": "1+1"})] * 3) as client:
        session_id = client.create()
        client.run(session_id)
        ids = [message["tool_call_id"] for message in client.messages(session_id) if message["role"] == "tool"]
        assert len(set(ids)) == 3


def test_beyond_max_streams_a_turn_is_refused_at_once_and_plain_requests_are_answered() -> None:
    with Client(default=answer("Hel", STALL), max_streams=2) as client:
        ids = [client.create() for _ in range(3)]
        streams = [client.stream(id) for id in ids[:2]]
        for stream in streams:
            stream.next("stream_chunk")
        response = client.run(ids[2])
        assert error_of(response) == (503, "overloaded")
        assert response.headers["Retry-After"]
        refused = client.stream(ids[2])
        assert (refused.status, refused.json["code"]) == (503, "overloaded")
        assert client.messages(ids[2]) == []
        assert client.get("/health").status_code == 200
        assert len(json_of(client.get("/sessions"))["sessions"]) == 3
        assert client.cancel(ids[0]) is True
        assert client.stream(ids[2]).next("stream_chunk")


def test_a_server_at_its_limit_still_answers_plain_requests(serve: Callable[..., Server]) -> None:
    with ModelServer(default=answer("Hel", STALL)) as model:
        server = serve("-max_streams=2", f"-base_url={model.base_url}")
        ids = [server.create() for _ in range(3)]
        waiting = [server.request("POST", f"/sessions/{ids[0]}/run_stream", {"message": "Hi"})]
        waiting += [server.request("POST", f"/sessions/{ids[1]}/run_stream", {"message": "Hi"})]
        model.wait_for(2)
        while True:
            watcher = server.request("GET", f"/sessions/{ids[len(waiting) % 2]}/run_stream")
            if watcher.status != 200:
                assert (watcher.status, watcher.json["code"]) == (503, "overloaded")
                break
            waiting.append(watcher)
        assert server.say(ids[2], "Hi").status == 503
        for _ in range(20):
            assert server.request("GET", "/sessions").status == 200
            assert server.request("GET", f"/sessions/{ids[0]}").status == 200
        assert server.request("POST", f"/sessions/{ids[0]}/cancel").json == {"cancelled": True}
        for reply in waiting:
            reply.close()


def test_refused_and_failed_turns_take_no_place() -> None:
    with Client(default=status(400, {"error": "no"}), max_streams=1) as client:
        session_id = client.create()
        for _ in range(20):
            assert client.run(session_id).status_code == 502
            assert client.run("session-unknown").status_code == 404
            assert client.request("POST", f"/sessions/{session_id}/run", {}).status_code == 400
            client.stream(session_id).close()
            wait_until(lambda: not client.session(session_id)["running"])
