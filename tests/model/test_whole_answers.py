"""Answers that a model server sends whole."""

from typing import Any

import pytest

from session_core.model.events import Answer, Chunk, Message, ToolCall, ToolResult
from tests.support.model_answers import (
    DONE,
    QUESTION,
    STOP,
    USAGE,
    called,
    converse,
    events,
    failure,
    final,
    text_delta,
)
from tests.support.model_server import ModelServer, ReplyTo, answer, body, frames, tool_call, whole

# The same in whole answers


def test_a_whole_answer_is_one_chunk() -> None:
    with ModelServer(answer("Hel", "lo", usage=USAGE)) as model:
        assert converse(model, stream=False) == [Chunk("Hello"), Answer("Hello", "stop", None, USAGE)]
        assert model.requests == [{"model": "m", "messages": [QUESTION], "stream": False}]


def test_a_whole_answer_may_call_tools() -> None:
    assert events(tool_call("calculator", {"expression": "1"}), answer("It is 1."), stream=False) == [
        Message({"role": "assistant", "content": "", "tool_calls": [called("call_1")], "model": "m"}, None),
        ToolCall("call_1", "calculator", '{"expression": "1"}'),
        Message({"role": "tool", "tool_call_id": "call_1", "name": "calculator", "content": "<1>"}, None),
        ToolResult("call_1", "calculator", result="<1>"),
        Chunk("It is 1."),
        Answer("It is 1.", "stop", None, None),
    ]


@pytest.mark.parametrize(
    ("message", "finish_reason", "expected"),
    [
        ({"content": "Hel"}, "length", Answer("Hel", "length", "length", None)),
        ({"content": "Hello"}, None, Answer("Hello", None, "no_finish_reason", None)),
        ({"content": None, "reasoning_content": "hm"}, "stop", Answer("", "stop", None, None)),
        ({"content": [{"type": "text", "text": "Hello"}]}, "stop", Answer("Hello", "stop", None, None)),
        ({"content": "a\ud83d"}, "stop", Answer("a\ufffd", "stop", None, None)),
    ],
)
def test_a_whole_answer_is_read_as_a_stream_is(message: Any, finish_reason: str | None, expected: Answer) -> None:
    reply = whole({"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]})
    assert final(reply, stream=False) == expected


@pytest.mark.parametrize(
    "reply",
    [
        body(b"<html></html>", "text/html"),
        body(b"", "application/json"),
        whole({}),
        whole([]),
        whole({"choices": []}),
        whole({"error": "overloaded"}),
        frames(text_delta("Hello"), STOP, DONE),
        body(b'{"choices": [{"message": {"content": "\xff"}}]}', "application/json"),
    ],
)
def test_a_whole_answer_that_is_none_is_an_error(reply: ReplyTo) -> None:
    assert failure(reply, stream=False).code == "model_error"
