"""What real model servers send in a stream, and what the agent must make of it, frame by frame."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest

from session_core.model.events import Answer, Chunk, Message, Reasoning
from tests.support.model_answers import (
    DONE,
    QUESTION,
    STOP,
    USAGE,
    calls,
    converse,
    end,
    events,
    failure,
    final,
    text_delta,
)
from tests.support.model_server import ModelServer, answer, frames, status, tool_call

ONE = b"data: " + json.dumps(text_delta("one")).encode()
TWO = b"data: " + json.dumps(text_delta(" two")).encode()
LAST = b"data: " + json.dumps(STOP).encode()


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def piece(**call: Any) -> dict[str, Any]:
    return delta(tool_calls=[call])


def text_of(*parts: bytes | dict[str, Any] | str) -> str:
    return final(frames(*parts)).content


# Server-Sent Events


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xef", b""], ids=["whole", "in two", "none"])
def test_a_byte_order_mark_stands_before_the_first_line(mark: bytes) -> None:
    rest = b"\xbb\xbf" if mark == b"\xef" else b""
    parts = [part for part in (mark, rest) if part]
    assert text_of(*parts, ONE + b"\n\n", TWO + b"\n\n", LAST + b"\n\n") == "one two"


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"], ids=["LF", "CR", "CRLF"])
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_each_line_end_of_the_standard_ends_a_line_wherever_the_stream_is_cut(line_end: bytes, size: int) -> None:
    stream = (line_end * 2).join([b": ping", ONE, b"event: message" + line_end + TWO, LAST, b""])
    assert text_of(*(stream[at : at + size] for at in range(0, len(stream), size))) == "one two"


def test_an_event_that_ends_in_cr_alone_is_told_before_the_next_byte_comes() -> None:
    chunks = [
        event for event in events(frames(ONE + b"\r\r", TWO + b"\r\r", LAST + b"\r\r")) if isinstance(event, Chunk)
    ]
    assert chunks == [Chunk("one"), Chunk(" two")]


@pytest.mark.parametrize(
    "heartbeat", [b"data:\n\n", b"data\n\n", b"data: \n\n", b"data:\ndata:\n\n", b":\n\n", b"id\n\n"]
)
def test_an_event_without_data_is_none(heartbeat: bytes) -> None:
    assert text_of(heartbeat, ONE + b"\n\n", heartbeat, TWO + b"\n\n", LAST + b"\n\n", heartbeat) == "one two"


def test_the_name_of_an_event_and_unknown_fields_change_nothing() -> None:
    assert text_of(b"event: chunk\nfoo: bar\n" + ONE + b"\n\n", b"event: end\n" + LAST + b"\n\n") == "one"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b'event: error\ndata: {"message":"slow down","code":429}\n\n', "model_rate_limited"),
        (b'event:error\ndata: {"error":{"message":"boom"}}\n\n', "model_error"),
        (b"event: error\ndata: boom\n\n", "model_error"),
        (b'error: {"code":500,"message":"boom","type":"server_error"}\n\n', "model_error"),
        (b'data: {"error":{"message":"boom","code":"500"}}\n\n', "model_error"),
    ],
    ids=["message and code", "wrapped", "no JSON", "field of old llama.cpp", "data"],
)
def test_an_error_behind_text_is_one_and_is_logged(frame: bytes, code: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert failure(frames(text_delta("Hel"), frame, DONE)).code == code
    assert any("Model server" in message for message in caplog.messages)


def test_an_error_in_the_place_of_the_first_event_says_why(caplog: pytest.LogCaptureFixture) -> None:
    error = b'error: {"code":400,"message":"the request exceeds the available context size","type":"x"}\n\n'
    assert failure(frames(error)).code == "context_length_exceeded"
    assert "available context size" in caplog.text


# Finish reasons


@pytest.mark.parametrize("reason", ["null", "None", "none", "FINISH_REASON_UNSPECIFIED", "", " "])
def test_a_finish_reason_that_is_none_lets_the_answer_go_on(reason: str) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "one "}, "finish_reason": reason}]}
    assert final(frames(chunk, chunk, STOP, DONE)) == Answer("one one ", "stop", None, None)
    assert final(frames(chunk, DONE)) == Answer("one ", None, "no_finish_reason", None)


@pytest.mark.parametrize(
    ("reason", "meaning"),
    [
        ("guardrail_intervened", "content_filter"),
        ("content_filtered", "content_filter"),
        ("BLOCKED", "content_filter"),
        ("SPII", "content_filter"),
        ("repetition", "length"),
        ("max_output_reached", "length"),
        ("max_output_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("end_turn", None),
        ("COMPLETE", None),
    ],
)
def test_what_a_finish_reason_means(reason: str, meaning: str | None) -> None:
    assert final(frames(text_delta("Hel"), end(reason), DONE)) == Answer("Hel", reason, meaning, None)


# Whole messages behind their pieces


WHOLE = {"choices": [{"message": {"role": "assistant", "content": "one two"}, "finish_reason": "stop"}]}


def test_a_whole_message_behind_its_pieces_is_not_told_twice() -> None:
    assert text_of(text_delta("one"), text_delta(" two"), WHOLE) == "one two"


def test_a_whole_message_adds_what_its_pieces_lack() -> None:
    assert text_of(text_delta("one"), WHOLE) == "one two"
    assert text_of(WHOLE) == "one two"


def test_the_calls_of_a_whole_message_behind_their_pieces_are_not_run_twice() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "calculator", "arguments": '{"expression": "1"}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    last = {"choices": [{"message": message, "finish_reason": "tool_calls"}]}
    assert len(calls(frames(piece(index=0, **call), last))) == 1
    assert len(calls(frames(last))) == 1


# Calls


def test_pieces_of_two_calls_under_one_index_belong_together_by_their_ids() -> None:
    stream = [
        piece(index=0, id="a", function={"name": "calculator", "arguments": '{"expre'}),
        piece(index=0, id="b", function={"name": "calculator", "arguments": '{"expres'}),
        piece(index=0, id="a", function={"arguments": 'ssion":"1"}'}),
        piece(index=0, id="b", function={"arguments": 'sion":"2"}'}),
    ]
    assert [(call.id, call.arguments) for call in calls(frames(*stream, end("tool_calls")))] == [
        ("a", '{"expression":"1"}'),
        ("b", '{"expression":"2"}'),
    ]


def test_the_same_id_under_two_indexes_is_two_calls() -> None:
    stream = [
        piece(index=number, id="call_0", function={"name": "calculator", "arguments": f'{{"expression":"{number}"}}'})
        for number in (0, 1)
    ]
    made = calls(frames(*stream, end("tool_calls")))
    assert [call.arguments for call in made] == ['{"expression":"0"}', '{"expression":"1"}']
    assert len({call.id for call in made}) == 2


def test_a_whole_call_that_comes_twice_is_one() -> None:
    call = piece(index=0, id="a", function={"name": "calculator", "arguments": '{"expression":"1"}'})
    assert [one.arguments for one in calls(frames(call, call, end("tool_calls")))] == ['{"expression":"1"}']


# Reasoning, and what goes back


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "reasoning_text"])
@pytest.mark.parametrize("other", ["reasoning_content", "reasoning", "reasoning_text"])
def test_reasoning_is_read_under_each_name_though_others_are_empty(field: str, other: str) -> None:
    thought = {**{other: ""}, field: "thought"}
    with ModelServer(frames(delta(**thought), text_delta("Hi"), STOP), answer("Bye")) as model:
        assert converse(model)[:2] == [Reasoning("thought"), Chunk("Hi")]


def test_copilot_gets_its_opaque_reasoning_back_with_the_name_of_its_text() -> None:
    first = delta(reasoning_text="thought", reasoning_opaque="b3BhcXVl")
    call = piece(index=0, id="call_1", function={"name": "calculator", "arguments": '{"expression":"1"}'})
    with ModelServer(frames(first, call, end("tool_calls"))) as model:
        message = next(event for event in converse(model, tools=[calculator]) if isinstance(event, Message))
        assert message.data["reasoning"] == "thought"
        sent = model.requests[1]["messages"][1]
    assert (sent["reasoning_text"], sent["reasoning_opaque"]) == ("thought", "b3BhcXVl")


def calculator(expression: str) -> str:
    """Calculates."""
    return f"<{expression}>"


# Usage


def test_usage_is_seen_in_the_choice() -> None:
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}]}
    assert final(frames(text_delta("Hi"), last)).usage == USAGE


# Errors in words


@pytest.mark.parametrize("words", ["context deadline exceeded", "rpc error: context canceled", "context cancelled"])
def test_a_time_out_in_the_words_of_go_is_no_overflow(words: str) -> None:
    earlier = [{"role": role, "content": "x"} for _ in range(2) for role in ("user", "assistant")]
    broken = status(500, {"error": {"message": words}}, {"Retry-After": "0"})
    with ModelServer(broken) as model:
        assert isinstance(converse(model, *earlier, QUESTION)[-1], Answer)
        assert [len(request["messages"]) for request in model.requests] == [5, 5]


def test_an_empty_stream_says_what_may_help() -> None:
    error = failure(frames(b": ping\n\n"))
    assert error.refused
    assert re.search("may be too long", str(error))
    assert "base_url" not in str(error)


def test_tool_calls_end_well_though_the_model_says_stop() -> None:
    assert len(calls(tool_call("calculator", {"expression": "1"}, finish_reason="stop"))) == 1
