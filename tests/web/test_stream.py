"""The stream of a turn: its bytes, its order, its times."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calculator import calculator
from session_core.model.demo import chunk
from tests.support.client import Client, json_of
from tests.support.model_server import (
    BREAK,
    HEADERS,
    STALL,
    ModelServer,
    Piece,
    ReplyTo,
    answer,
    frames,
    status,
    tool_calls,
    wait,
)
from tests.support.server import TIMEOUT, Server, wait_until

NEVER = 2 * TIMEOUT  # a keep-alive that a test does not live to see
CALCULATION = tool_calls(("calculator", {"expression": "15 * 23"}))


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def fail() -> str:
    """Always fails."""
    raise ValueError("it's broken: “no”\nreally")


def whole(client: Client, session_id: str, message: str = "Hi") -> str:
    """The whole body of a turn's stream, ids and times replaced by an ellipsis."""
    stream = client.stream(session_id, message)
    text = b"".join(iter(stream.write, b"")).decode()
    stream.close()
    text = re.sub(r"evt-[0-9a-z-]+-(\d+)", r"evt-…-\1", text)
    text = re.sub(r"msg-[0-9a-z]+", "msg-…", text)
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "…", text)


# --- byte for byte ---


def test_a_turn_with_a_tool_is_byte_for_byte_as_promised() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    with Client(CALCULATION, answer("15 * 23 is", " 345.", usage=usage)) as client:
        assert whole(client, client.create()) == (
            'data: {"type":"stream_start","id":"evt-…-1","created_at":"…"}\n'
            "\n"
            'data: {"type":"stream_tool_call","id":"evt-…-2","created_at":"…","data":'
            '{"id":"call_1","name":"calculator","arguments":"{\\"expression\\": \\"15 * 23\\"}"}}\n'
            "\n"
            'data: {"type":"stream_tool_result","id":"evt-…-3","created_at":"…","data":'
            '{"id":"call_1","name":"calculator","result":"345"}}\n'
            "\n"
            'data: {"type":"stream_chunk","id":"evt-…-4","created_at":"…","data":'
            '{"content":"15 * 23 is","sequence":1}}\n'
            "\n"
            'data: {"type":"stream_chunk","id":"evt-…-5","created_at":"…","data":{"content":" 345.","sequence":2}}\n'
            "\n"
            'data: {"type":"stream_end","id":"evt-…-6","created_at":"…","data":{"complete_text":"15 * 23 is 345.",'
            '"message_id":"msg-…","status":"completed","finish_reason":"stop",'
            '"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}}\n'
            "\n"
        )


def test_an_error_is_byte_for_byte_as_promised() -> None:
    with Client(answer("Hel", STALL), timeout=2.0, keep_alive=NEVER) as client:
        assert whole(client, client.create()).split("\n\n")[2:] == [
            'data: {"type":"error","id":"evt-…-3","created_at":"…","data":{"error":"The model server did not answer'
            ' in time.","code":"model_timeout","status":504,"message_id":"msg-…"}}',
            "",
        ]


def test_an_error_without_text_names_no_message() -> None:
    with Client(status(401, {"error": "bad key"})) as client:
        error = client.stream(client.create()).last()["data"]
        assert set(error) == {"error", "code", "status"}
        assert (error["code"], error["status"]) == ("model_unauthorized", 502)


def test_a_tool_that_fails_has_an_error_in_place_of_a_result() -> None:
    with Client(tool_calls(("fail", {}), ("add", {"a": 1})), tools=[add, fail]) as client:
        failed, wrong = [event["data"] for event in client.stream(client.create()) if "tool_result" in event["type"]]
        assert failed == {"id": "call_1", "name": "fail", "error": "it's broken: “no”\nreally"}
        assert set(wrong) == {"id", "name", "error"}
        told = [message["content"] for message in client.model.requests[-1]["messages"] if message["role"] == "tool"]
        assert told[0] == "error: it's broken: “no”\nreally"


def test_the_end_of_a_cancelled_turn_says_so() -> None:
    with Client(answer("Hel", STALL)) as client:
        session_id = client.create()
        stream = client.stream(session_id)
        stream.next("stream_chunk")
        client.cancel(session_id)
        data = stream.last()["data"]
        assert data == {
            "complete_text": "Hel",
            "message_id": client.messages(session_id)[-1]["id"],
            "status": "cancelled",
            "reason": "cancelled",
            "finish_reason": None,
        }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("stop", ("completed", None, "stop")),
        ("tool_calls", ("completed", None, "tool_calls")),
        ("whatever", ("completed", None, "whatever")),
        ("length", ("incomplete", "length", "length")),
        ("content_filter", ("incomplete", "content_filter", "content_filter")),
        (None, ("incomplete", "no_finish_reason", None)),
    ],
)
def test_the_end_tells_how_the_model_finished(given: str | None, expected: tuple[Any, ...]) -> None:
    with Client(answer("Hello", finish_reason=given)) as client:
        data = client.stream(client.create()).last()["data"]
        assert (data["status"], data.get("reason"), data["finish_reason"]) == expected
        assert ("reason" in data) == (expected[0] != "completed")


def test_reasoning_stands_before_the_text_of_its_frame() -> None:
    reply = frames(chunk({"content": "Hello", "reasoning_content": "Hm."}), chunk({}, "stop"))
    with Client(reply) as client:
        types = [event["type"] for event in client.stream(client.create())]
        assert types == ["stream_start", "stream_reasoning", "stream_chunk", "stream_end"]


def test_an_answer_of_reasoning_alone_is_completed_and_empty() -> None:
    with Client(frames(chunk({"reasoning": "Hm."}), chunk({}, "stop"))) as client:
        first, thought, last = client.stream(client.create())
        assert (first["type"], thought["type"]) == ("stream_start", "stream_reasoning")
        assert (last["data"]["status"], last["data"]["complete_text"]) == ("completed", "")


def test_characters_are_sent_as_themselves_and_lines_stay_whole() -> None:
    text = 'é 漢 😀 \u2028 \u2029 \x85 \x00 \x0b \r\n\r\ndata: [DONE]\n\n: "x"'
    with Client(answer(text)) as client:
        body = b"".join(iter(client.stream(client.create()).write, b""))
        assert "é 漢 😀 \\u2028 \\u2029 \\u0085".encode() in body  # three that some clients take for line ends
        frames = body.decode().split("\n\n")
        assert len(frames) == 4 and all(frame.startswith("data: ") and "\n" not in frame for frame in frames[:3])
        assert "\r" not in body.decode() and body.decode().splitlines() == body.decode()[:-1].split("\n")
        assert json.loads(frames[1][6:])["data"]["content"] == text


# --- headers ---


def test_the_headers_are_those_of_an_event_stream() -> None:
    with Client() as client:
        stream = client.stream(client.create())
        stream.rest()
        assert stream.status == 200
        assert stream.headers.getlist("Content-Type") == ["text/event-stream; charset=utf-8"]
        assert stream.headers.getlist("Cache-Control") == ["no-cache, no-transform"]
        assert stream.headers.getlist("X-Accel-Buffering") == ["no"]
        assert "Connection" not in stream.headers
        assert "Content-Length" not in stream.headers


def test_what_is_wrong_before_the_turn_starts_is_no_stream() -> None:
    with Client() as client:
        session_id = client.create()
        large = b"x" * ((1 << 20) + 1)
        url = f"/sessions/{session_id}/run_stream"
        refusals = [
            (400, client.request("POST", url, b"{}")),
            (403, client.request("POST", url, b'{"message": "x"}', {"Origin": "http://evil.example"})),
            (404, client.request("POST", "/sessions/session-x/run_stream", b'{"message": "x"}')),
            (413, client.request("POST", url, large)),
            (415, client.request("POST", url, b'{"message": "x"}', {"Content-Type": "text/plain"})),
        ]
        for code, response in refusals:
            assert response.status_code == code
            assert set(json_of(response)) == {"error", "code"}


# --- the grammar, for any turn ---

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
calls = st.sampled_from(
    [
        ("calculator", {"expression": "1+1"}),
        ("calculator", {"expression": "1/0"}),
        ("add", {"a": 1, "b": 2}),
        ("add", {"a": "x"}),
        ("fail", {}),
        ("unknown", {"x": "😀"}),
        ("add", "{broken"),
    ]
)
tool_rounds = st.tuples(texts, st.lists(calls, min_size=1, max_size=3))
endings: dict[str, list[Piece]] = {
    "stop": [chunk({}, "stop"), "[DONE]"],
    "length": [chunk({}, "length"), "[DONE]"],
    "content_filter": [chunk({}, "content_filter")],
    "no reason": ["[DONE]"],
    "break": [BREAK],
    "error": [{"error": {"message": "oh"}}],
    "garbage": [b"data: {oh\n\n"],
}


def scripted(rounds: list[tuple[str, Any]], pieces: list[str], ending: str) -> list[ReplyTo]:
    replies = [tool_calls(*called, text=text) for text, called in rounds]
    return [*replies, frames(*[chunk({"content": piece}) for piece in pieces], *endings[ending])]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(tools=[add, calculator, fail], default=status(400, {"error": "no"})) as client:
        yield client


@given(st.lists(tool_rounds, max_size=3), st.lists(texts, max_size=5), st.sampled_from(sorted(endings)))
@settings(max_examples=30, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_turn_keeps_to_the_grammar(
    client: Client, rounds: list[tuple[str, Any]], pieces: list[str], ending: str
) -> None:
    session_id = client.create()
    client.model.then(*scripted(rounds, pieces, ending))
    stream = client.stream(session_id)
    events = stream.rest()
    assert stream.write() == b""

    first, *middle, last = [event["type"] for event in events]
    assert first == "stream_start"
    assert set(middle) <= {"stream_chunk", "stream_tool_call", "stream_tool_result"}
    assert last in ("stream_end", "error")

    prefix, number = events[0]["id"].rsplit("-", 1)
    assert number == "1"
    assert [event["id"] for event in events] == [f"{prefix}-{number}" for number in range(1, len(events) + 1)]
    assert [event["created_at"] for event in events] == sorted(event["created_at"] for event in events)

    chunks = [event["data"] for event in events if event["type"] == "stream_chunk"]
    assert [data["sequence"] for data in chunks] == list(range(1, len(chunks) + 1))
    text = "".join(data["content"] for data in chunks)
    assert text == "".join(said for said, _ in rounds) + "".join(pieces)

    called = [event["data"]["id"] for event in events if event["type"] == "stream_tool_call"]
    answered = [event["data"]["id"] for event in events if event["type"] == "stream_tool_result"]
    assert called == answered and len(called) == sum(len(calls) for _, calls in rounds)

    message = client.messages(session_id)[-1]
    if last == "stream_end":
        assert events[-1]["data"]["complete_text"] == text
        assert events[-1]["data"]["message_id"] == message["id"]
        assert message["content"] == "".join(pieces)
    elif "message_id" in events[-1]["data"]:
        assert events[-1]["data"]["message_id"] == message["id"]
        assert message["content"] == "".join(pieces) != ""
    else:
        assert "".join(pieces) == ""


# --- times ---


def test_each_event_leaves_as_soon_as_it_exists() -> None:
    go = [threading.Event() for _ in range(4)]

    def slow() -> str:
        """Waits until it is told to go on."""
        go[1].wait(TIMEOUT)
        return "done"

    replies = [
        frames(
            chunk({"content": "one"}),
            wait(go[0]),
            chunk({"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "slow", "arguments": "{}"}}]}),
            chunk({}, "tool_calls"),
        ),
        frames(wait(go[2]), chunk({"content": "two"}), wait(go[3]), chunk({}, "stop")),
    ]
    with Client(*replies, tools=[slow], keep_alive=NEVER) as client:
        stream = client.stream(client.create())
        assert b"stream_start" in stream.write()
        assert b'"content":"one"' in stream.write()
        go[0].set()
        assert b"stream_tool_call" in stream.write()
        go[1].set()
        assert b'"result":"done"' in stream.write()
        go[2].set()
        assert b'"content":"two"' in stream.write()
        go[3].set()
        assert b"stream_end" in stream.write()
        assert stream.write() == b""


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer() as model:
        yield model


@pytest.fixture(scope="module")
def server(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server process that sends comments often."""
    log = tmp_path_factory.mktemp("server") / "log"
    with Server(f"-base_url={model.base_url}", "-keep_alive=0.3", log=log) as server:
        yield server


def test_events_leave_the_server_as_soon_as_they_exist(server: Server, model: ModelServer) -> None:
    go = [threading.Event() for _ in range(3)]
    model.then(answer(wait(go[0]), "one", wait(go[1]), "two", wait(go[2])))
    events = server.say(server.create(), "Hi").events()
    for event, expected in zip(go, ["stream_start", "stream_chunk", "stream_chunk"], strict=True):
        assert next(events)["type"] == expected
        event.set()
    assert next(events)["type"] == "stream_end"


@pytest.mark.parametrize("silent", [answer(STALL), answer(HEADERS, STALL), answer("Hel", STALL)])
def test_a_comment_is_sent_again_and_again_while_the_model_is_silent(silent: ReplyTo) -> None:
    with Client(silent, keep_alive=0.05) as client:
        stream = client.stream(client.create())
        writes = [stream.write() for _ in range(8)]
        assert writes[0].startswith(b'data: {"type":"stream_start"')
        assert writes.count(b": keep-alive\n\n") >= 6
        stream.close()


def test_a_comment_is_sent_while_a_tool_works() -> None:
    go = threading.Event()

    def slow() -> str:
        """Waits until it is told to go on."""
        go.wait(TIMEOUT)
        return "done"

    with Client(tool_calls(("slow", {})), tools=[slow], keep_alive=0.05) as client:
        stream = client.stream(client.create())
        stream.next("stream_tool_call")
        assert [stream.write() for _ in range(3)] == [b": keep-alive\n\n"] * 3
        go.set()
        assert stream.last()["type"] == "stream_end"


def test_a_comment_comes_after_the_time_of_silence_and_not_before() -> None:
    with Client(answer(STALL), keep_alive=0.4) as client:
        stream = client.stream(client.create())
        stream.write()
        began = time.monotonic()
        assert stream.write() == b": keep-alive\n\n"
        assert 0.35 < time.monotonic() - began < 15
        stream.close()


def test_no_comment_is_sent_where_events_come_in_time() -> None:
    pieces: list[Piece] = ["x"] * 20
    with Client(answer(*pieces), keep_alive=NEVER) as client:
        stream = client.stream(client.create())
        assert b": keep-alive" not in b"".join(iter(stream.write, b""))


def test_the_server_sends_comments_before_it_has_heard_from_the_model(server: Server, model: ModelServer) -> None:
    model.then(answer(STALL))
    session_id = server.create()
    lines = server.say(session_id, "Hi").lines()
    assert next(lines).startswith("data: ")
    assert [next(lines) for _ in range(4)] == ["", ": keep-alive", "", ": keep-alive"]
    assert server.request("POST", f"/sessions/{session_id}/cancel").json == {"cancelled": True}
    assert [line for line in lines if "stream_end" in line]


# --- slow readers ---


def test_a_client_that_stops_reading_holds_back_nobody_else(server: Server, model: ModelServer) -> None:
    pieces: list[Piece] = ["x" * 8000] * 900
    model.then(answer(*pieces))
    asked = len(model.requests)
    session_id, other = server.create(), server.create()
    body = b'{"message":"Hi"}'
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(
            b"POST /sessions/%b/run_stream HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (session_id.encode(), len(body), body)
        )
        model.wait_for(asked + 1)
        for _ in range(5):
            assert server.request("POST", f"/sessions/{other}/run", {"message": "Hi"}).status == 200
        wait_until(lambda: not server.request("GET", f"/sessions/{session_id}").json["running"])
        assert len(server.messages(session_id)[-1]["content"]) == 8000 * 900
