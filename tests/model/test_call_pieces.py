"""Tool calls in the pieces that real model servers send."""

from typing import Any

import pytest

from session_core.model.events import Answer, Chunk, ToolCall
from tests.support.model_answers import (
    DONE,
    QUESTION,
    STOP,
    calculator,
    called,
    calls,
    converse,
    end,
    events,
    text_delta,
)
from tests.support.model_server import ModelServer, frames, tool_call


def piece(**call: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]}


WANTED = end("tool_calls")


@pytest.mark.parametrize(
    ("finish_reason", "reason"),
    [("length", "length"), ("content_filter", "content_filter"), (None, "no_finish_reason")],
)
def test_a_tool_call_that_was_cut_off_is_not_run(finish_reason: str | None, reason: str) -> None:
    reply = tool_call("calculator", '{"expression": "1', text="Let me see", finish_reason=finish_reason)
    assert events(reply) == [Chunk("Let me see"), Answer("Let me see", finish_reason, reason, None)]


def test_pieces_belong_together_by_index() -> None:
    stream = [
        piece(index=0, id="a", type="function", function={"name": "calculator", "arguments": ""}),
        piece(index=1, id="b", type="function", function={"name": "calculator", "arguments": '{"expre'}),
        piece(index=0, function={"arguments": '{"expression"'}),
        piece(index=1, function={"arguments": 'ssion":"2"}'}),
        piece(index=0, function={"arguments": ':"1"}'}),
    ]
    assert calls(frames(*stream, WANTED, DONE)) == [
        ToolCall("a", "calculator", '{"expression":"1"}'),
        ToolCall("b", "calculator", '{"expression":"2"}'),
    ]


def test_without_an_index_a_new_id_begins_a_call() -> None:
    stream = [
        piece(id="a", function={"name": "calculator", "arguments": '{"expression":'}),
        piece(function={"arguments": '"1"}'}),
        piece(id="b", function={"name": "calculator", "arguments": '{"expression":'}),
        piece(id="b", function={"arguments": '"2"}'}),
    ]
    assert [call.arguments for call in calls(frames(*stream, WANTED))] == ['{"expression":"1"}', '{"expression":"2"}']


def test_without_an_index_and_an_id_a_name_begins_a_call() -> None:
    stream = [
        piece(function={"name": "calculator", "arguments": '{"expression":'}),
        piece(function={"arguments": '"1"}'}),
        piece(function={"name": "calculator", "arguments": '{"expression":"2"}'}),
    ]
    assert [call.arguments for call in calls(frames(*stream, WANTED))] == ['{"expression":"1"}', '{"expression":"2"}']


def test_the_same_index_with_a_new_id_and_a_name_is_a_new_call() -> None:
    stream = [
        piece(index=0, id="a", function={"name": "calculator", "arguments": '{"expression":"1"}'}),
        piece(index=0, id="b", function={"name": "calculator", "arguments": '{"expression":"2"}'}),
    ]
    assert [(call.id, call.arguments) for call in calls(frames(*stream, WANTED))] == [
        ("a", '{"expression":"1"}'),
        ("b", '{"expression":"2"}'),
    ]


@pytest.mark.parametrize("index", [{"index": 0}, {}], ids=["index", "no index"])
def test_ids_and_names_that_are_repeated_in_every_piece_count_once(index: dict[str, int]) -> None:
    stream = [
        piece(**index, id="a", function={"name": "calculator", "arguments": text})
        for text in ("", '{"expression"', ":", '"1"}')
    ]
    assert calls(frames(*stream, WANTED)) == [ToolCall("a", "calculator", '{"expression":"1"}')]


def test_an_id_may_come_after_the_name() -> None:
    stream = [piece(index=0, function={"name": "calculator"}), piece(index=0, id="a", function={"arguments": "{}"})]
    assert calls(frames(*stream, WANTED)) == [ToolCall("a", "calculator", "{}")]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"expression": "1"}, '{"expression": "1"}'),
        (None, "{}"),
        ("", "{}"),
        ('{"expression": "1"}', '{"expression": "1"}'),
    ],
)
def test_arguments_may_be_text_or_an_object_or_nothing(arguments: Any, text: str) -> None:
    whole_call = piece(index=0, id="a", function={"name": "calculator", "arguments": arguments})
    assert calls(frames(whole_call, WANTED)) == [ToolCall("a", "calculator", text)]


def test_a_call_without_a_name_is_none() -> None:
    stream = [text_delta("Hello"), piece(index=0, id="a", function={"arguments": "{}"}), STOP]
    assert events(frames(*stream))[-1] == Answer("Hello", "stop", None, None)


@pytest.mark.parametrize("id", [None, "", 7])
def test_a_missing_id_is_made_up(id: Any) -> None:
    stream = [
        piece(index=number, id=id, function={"name": "calculator", "arguments": '{"expression":"1"}'})
        for number in (0, 1)
    ]
    first, second = calls(frames(*stream, WANTED))
    assert first.id != second.id
    assert all(len(call.id) == 9 and call.id.isalnum() for call in (first, second))


def test_an_id_that_repeats_in_a_later_turn_is_replaced() -> None:
    with ModelServer(tool_call("calculator", {"expression": "1"}, id="call_0")) as model:
        history: list[dict[str, Any]] = [
            QUESTION,
            {"role": "assistant", "content": "", "tool_calls": [called("call_0")]},
            {"role": "tool", "tool_call_id": "call_0", "name": "calculator", "content": "1"},
            {"role": "assistant", "content": "1"},
            QUESTION,
        ]
        (call,) = (event for event in converse(model, *history, tools=[calculator]) if isinstance(event, ToolCall))
        assert call.id != "call_0"
        sent = [message["tool_call_id"] for message in model.requests[1]["messages"] if message["role"] == "tool"]
        assert sent == ["call_0", call.id]


def test_an_id_that_repeats_in_the_next_round_is_replaced() -> None:
    made = calls(*[tool_call("calculator", {"expression": "1"}, id="call_0")] * 3)
    assert made[0].id == "call_0"
    assert len({call.id for call in made}) == 3


@pytest.mark.parametrize("id", ["D681PevKs", "call_abc/def+==", "functions.calculator:0", "x" * 300])
def test_an_id_goes_back_as_it_came(id: str) -> None:
    with ModelServer(tool_call("calculator", {"expression": "1"}, id=id)) as model:
        converse(model, tools=[calculator])
        assert model.requests[1]["messages"][-1]["tool_call_id"] == id
