"""What real model servers send, each habit with its frames written out, and what becomes of it."""

import json
import logging
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from agent import Agent, Cancellation
from session_core.model.events import Answer, Chunk, Event, Message, ModelError, Reasoning, ToolCall, ToolResult
from tests.support.model_server import (
    BREAK,
    HEADERS,
    RESET,
    STALL,
    ModelServer,
    ReplyTo,
    answer,
    body,
    frames,
    nobody_listens,
    pause,
    raw,
    status,
    tool_call,
    wait,
    whole,
)

QUESTION = {"role": "user", "content": "Hi"}


def calculator(expression: str) -> str:
    """Calculates."""
    return f"<{expression}>"


def converse(model: ModelServer, *history: Mapping[str, Any], **settings: Any) -> list[Event]:
    agent = Agent(api_key="sk-test-key", base_url=model.base_url, model="m", **settings)
    try:
        return list(agent.run(history or [QUESTION], Cancellation()))
    finally:
        agent.close()


def events(*replies: ReplyTo, **settings: Any) -> list[Event]:
    """What the agent makes of these replies."""
    with ModelServer(*replies) as model:
        return converse(model, tools=[calculator], **settings)


def final(*replies: ReplyTo, **settings: Any) -> Answer:
    last = events(*replies, **settings)[-1]
    assert isinstance(last, Answer)
    return last


def calls(*replies: ReplyTo) -> list[ToolCall]:
    return [event for event in events(*replies) if isinstance(event, ToolCall)]


def failure(*replies: ReplyTo, **settings: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        events(*replies, **settings)
    return caught.value


def said(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


def piece(**call: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]}


def end(reason: str | None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


STOP = end("stop")
WANTED = end("tool_calls")
DONE = "[DONE]"


# The end of a stream


def test_done_without_a_finish_reason_leaves_the_answer_incomplete() -> None:
    assert final(frames(said("Hel"), DONE)) == Answer("Hel", None, "no_finish_reason", None)


def test_a_clean_end_without_a_finish_reason_leaves_the_answer_incomplete() -> None:
    assert final(frames(said("Hel"))).reason == "no_finish_reason"


def test_a_null_finish_reason_at_the_end_leaves_the_answer_incomplete() -> None:
    assert final(frames(said("Hello"), end(None), DONE)).reason == "no_finish_reason"


def test_an_empty_finish_reason_is_none() -> None:
    assert final(frames(said("Hello"), end(""), DONE)).finish_reason is None


def test_a_finish_reason_completes_an_answer_without_done() -> None:
    assert final(frames(said("Hello"), STOP)) == Answer("Hello", "stop", None, None)


def test_the_last_event_counts_without_its_blank_line() -> None:
    assert final(frames(said("Hello"), b"data: " + json.dumps(STOP).encode())).reason is None


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_an_answer_that_was_cut_off_is_incomplete(reason: str) -> None:
    assert final(frames(said("Hel"), end(reason), DONE)) == Answer("Hel", reason, reason, None)


@pytest.mark.parametrize("reason", ["stop", "eos", "tool_calls", "function_call", "STOP"])
def test_any_other_finish_reason_completes_an_answer(reason: str) -> None:
    assert final(frames(said("Hello"), end(reason), DONE)) == Answer("Hello", reason, None, None)


def test_a_finish_reason_without_text_is_an_empty_answer() -> None:
    assert events(frames(STOP, DONE)) == [Answer("", "stop", None, None)]


def test_nothing_after_done_is_read_as_an_answer() -> None:
    assert final(frames(said("Hello"), STOP, DONE, said(" again"))).content == "Hello"


@pytest.mark.parametrize(
    "reply",
    [
        body(b"<html><body>Welcome</body></html>", "text/html"),
        whole({"choices": [{"message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]}),
        body(b"", "text/event-stream"),
        frames(DONE),
        frames(": ping"),
        frames({}, {"choices": []}, DONE),
        frames(said(""), end(None), DONE),
    ],
    ids=["html", "completion", "nothing", "done", "comment", "empty objects", "empty chunks"],
)
def test_no_chunk_at_all_is_an_error(reply: ReplyTo) -> None:
    assert failure(reply).code == "model_error"


@pytest.mark.parametrize("cut", [BREAK, RESET])
def test_a_break_in_mid_stream_is_an_error_after_the_text(cut: Any) -> None:
    with ModelServer(answer("Hel", cut)) as model:
        run = Agent(api_key="k", base_url=model.base_url, model="m").run([QUESTION], Cancellation())
        assert next(run) == Chunk("Hel")
        with pytest.raises(ModelError) as caught:
            next(run)
        assert caught.value.code == "model_error"
        assert len(model.requests) == 1


def test_a_stall_in_mid_stream_is_a_timeout() -> None:
    assert failure(answer("Hel", STALL), timeout=0.3).code == "model_timeout"


def test_a_server_that_drips_is_stopped_by_the_clock() -> None:
    drops: list[Any] = ["drip", pause(0.1)] * 100
    assert failure(answer(*drops), timeout=0.5).code == "model_timeout"


@pytest.mark.parametrize(
    "junk",
    [
        b"data: {not json}\n\n",
        b"data: \xff\xfe\n\n",
        b'data: "text"\n\n',
        b"data: [1]\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
    ],
    ids=["no json", "no utf-8", "a string", "a list", "too deep"],
)
def test_a_frame_that_cannot_be_read_is_an_error(junk: bytes) -> None:
    assert failure(frames(said("Hel"), junk, said("lo"), STOP)).code == "model_error"


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "overloaded", "type": "server_error", "code": None}},
        {"error": "overloaded"},
        {"error": {"message": "x", "code": 502}, "choices": [{"index": 0, "delta": {}, "finish_reason": "error"}]},
        {"object": "error", "message": "overloaded", "code": 50001},
    ],
)
def test_an_error_in_mid_stream_is_an_error(error: dict[str, Any]) -> None:
    assert failure(frames(said("Hel"), error, DONE)).code == "model_error"


def test_a_null_error_is_none() -> None:
    assert final(frames({**said("Hello"), "error": None}, STOP)).content == "Hello"


def test_a_server_may_say_nothing_until_a_slot_is_free() -> None:
    free = threading.Event()
    threading.Timer(0.5, free.set).start()
    assert final(answer(wait(free), "Hello")).content == "Hello"


def test_a_server_that_never_says_anything_is_a_timeout() -> None:
    assert failure(answer(STALL), timeout=0.3).code == "model_timeout"


def test_a_server_that_stalls_after_the_headers_is_a_timeout() -> None:
    assert failure(frames(HEADERS, STALL), timeout=0.3).code == "model_timeout"


# Chunks


@pytest.mark.parametrize(
    "odd",
    [
        {"choices": []},
        {"choices": None},
        {"id": "1", "prompt_filter_results": []},
        {"choices": [{"index": 0, "delta": None, "finish_reason": None}]},
        {"choices": [{"index": 0, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": None}}]},
        {"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": ""}]},
        {"choices": [None]},
        {"choices": {}},
        {"choices": [{"index": 1, "delta": {"content": "another choice"}, "finish_reason": "length"}]},
        {"choices": [{"index": 0, "delta": {"content": 5, "tool_calls": 5}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [None, {}, {"function": None}, {"index": 3}]}}]},
        b": ping\n\n",
        b"event: ping\nid: 1\nretry: 5\n\n",
        b"\n\n\n",
    ],
    ids=repr,
)
def test_an_odd_chunk_is_passed_over(odd: dict[str, Any] | bytes) -> None:
    assert events(frames(odd, said("Hel"), odd, said("lo"), odd, STOP, odd, DONE)) == [
        Chunk("Hel"),
        Chunk("lo"),
        Answer("Hello", "stop", None, None),
    ]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("field", ["data: ", "data:"])
def test_lines_may_be_written_in_each_way_that_the_standard_has(field: str, line_end: str) -> None:
    lines = [f"{field}{json.dumps(frame)}" for frame in (said("Hel"), said("lo"), STOP)]
    stream = "".join(f"{line}{line_end * 2}" for line in [*lines, f"{field}[DONE]"]).encode()
    assert final(frames(stream)).content == "Hello"


def test_one_event_may_have_several_data_lines() -> None:
    stream = b"data: " + json.dumps(said("Hello"), indent=1).replace("\n", "\ndata: ").encode() + b"\n\n"
    assert final(frames(stream, STOP)).content == "Hello"


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_events_may_be_cut_anywhere_on_the_way(size: int) -> None:
    stream = "".join(
        f"data: {json.dumps(frame, ensure_ascii=False)}\r\n\r\n" for frame in (said("Hé"), said("😀"), STOP)
    )
    whole = stream.encode()
    parts = [whole[start : start + size] for start in range(0, len(whole), size)]
    assert final(frames(*parts)).content == "Hé😀"


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


@pytest.mark.parametrize(
    "stream",
    [
        [said("Hello"), STOP, {"choices": [], "usage": USAGE}],
        [said("Hello"), {**STOP, "usage": USAGE}],
        [
            {**said("Hel"), "usage": {"prompt_tokens": 3, "completion_tokens": 1}},
            {**said("lo"), "usage": USAGE},
            STOP,
        ],
        [{**said("Hello"), "usage": None}, STOP, {"usage": USAGE}],
        [{**said("Hello"), "usage": USAGE}, {**STOP, "usage": None}],
    ],
    ids=["alone", "with the end", "in every chunk", "without choices", "early"],
)
def test_the_last_usage_counts(stream: list[Any]) -> None:
    assert final(frames(*stream, DONE)).usage == USAGE


@pytest.mark.parametrize("usage", [None, {}, [], "x", {"a": "b"}, {"a": True}])
def test_usage_that_tells_nothing_is_none(usage: Any) -> None:
    assert final(frames(said("Hello"), {**STOP, "usage": usage})).usage is None


def test_zero_usage_is_passed_on() -> None:
    zero = {"prompt_tokens": 0, "completion_tokens": 0}
    assert final(frames(said("Hello"), {**STOP, "usage": zero})).usage == zero


def test_what_is_no_number_in_usage_is_left_out() -> None:
    stream = b'data: {"choices":[{"finish_reason":"stop"}],"usage":{"a":1,"b":NaN,"c":1e999,"d":"x","e":{"f":2}}}\n\n'
    assert final(frames(stream)).usage == {"a": 1, "e": {"f": 2}}
    huge = b'data: {"choices":[{"finish_reason":"stop"}],"usage":{"a":' + b"9" * 4000 + b"}}\n\n"
    assert final(frames(huge)).usage is None


@pytest.mark.parametrize("code", [400, 422])
def test_stream_options_that_are_refused_are_left_out_from_then_on(code: int) -> None:
    with ModelServer(status(code, {"detail": "extra fields not permitted"})) as model:
        agent = Agent(api_key="k", base_url=model.base_url, model="m")
        for _ in range(2):
            assert list(agent.run([QUESTION], Cancellation()))[-1] == Answer("OK", "stop", None, None)
        agent.close()
        assert ["stream_options" in request for request in model.requests] == [True, False, False]


def test_stream_options_are_not_blamed_for_another_refusal() -> None:
    wrong = status(400, {"error": {"message": "temperature is wrong"}})
    with ModelServer(wrong, wrong) as model:
        agent = Agent(api_key="k", base_url=model.base_url, model="m")
        with pytest.raises(ModelError):
            list(agent.run([QUESTION], Cancellation()))
        list(agent.run([QUESTION], Cancellation()))
        agent.close()
        assert ["stream_options" in request for request in model.requests] == [True, False, True]


def test_content_may_be_a_list_of_parts() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]
    assert final(frames({"choices": [{"delta": {"content": parts}}]}, said("lo"), STOP)).content == "Hello"


@pytest.mark.parametrize(
    "text",
    [
        " leading",
        "\n",
        "\0",
        "\x1b[31m",
        "a\u2028b\u2029c\x85d",
        "\ufffd",
        "data: [DONE]",
        "\ndata: [DONE]\n\n",
        "[DONE]",
        "é",
        "😀",
    ],
    ids=ascii,
)
@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_text_arrives_as_it_was_sent(text: str, ensure_ascii: bool) -> None:
    stream = f"data: {json.dumps(said(text), ensure_ascii=ensure_ascii)}\n\n".encode()
    assert events(frames(stream, STOP, DONE)) == [Chunk(text), Answer(text, "stop", None, None)]


def test_a_character_that_was_split_over_two_chunks_is_whole_again() -> None:
    assert events(frames(said("a\ud83d"), said("\ude00b"), STOP)) == [
        Chunk("a"),
        Chunk("😀b"),
        Answer("a😀b", "stop", None, None),
    ]


def test_half_a_character_alone_in_a_chunk_waits_for_the_other() -> None:
    chunks = [event for event in events(frames(said("\ud83d"), said("\ude00"), STOP)) if isinstance(event, Chunk)]
    assert chunks == [Chunk("😀")]


@pytest.mark.parametrize(
    ("texts", "whole"), [(["a\ud83d"], "a\ufffd"), (["a\ud83d", "b"], "a\ufffdb"), (["\ude00a"], "\ufffda")]
)
def test_half_a_character_without_the_other_is_replaced(texts: list[str], whole: str) -> None:
    got = events(frames(*map(said, texts), STOP))
    assert got[-1] == Answer(whole, "stop", None, None)
    assert "".join(event.content for event in got[:-1] if isinstance(event, Chunk)) == whole


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning_content": "Let me think"},
        {"reasoning": "Let me think", "content": ""},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Let me think"}]}]},
    ],
)
def test_an_answer_of_reasoning_alone_is_complete_and_empty(delta: dict[str, Any]) -> None:
    assert events(frames({"choices": [{"delta": delta}]}, STOP)) == [
        Reasoning("Let me think"),
        Answer("", "stop", None, None),
    ]


# Tool calls


@pytest.mark.parametrize("reason", ["tool_calls", "stop", "function_call", "eos"])
def test_a_tool_call_is_one_whatever_the_finish_reason_says(reason: str) -> None:
    assert calls(tool_call("calculator", {"expression": "1"}, finish_reason=reason)) == [
        ToolCall("call_1", "calculator", '{"expression": "1"}')
    ]


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
    stream = [said("Hello"), piece(index=0, id="a", function={"arguments": "{}"}), STOP]
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


# What goes out


def called(id: str, arguments: Any = '{"expression": "1"}', name: str = "calculator") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def sent(*history: Mapping[str, Any], **settings: Any) -> list[dict[str, Any]]:
    """The messages that the model server gets for this history."""
    with ModelServer() as model:
        converse(model, *history, **settings)
        messages: list[dict[str, Any]] = model.requests[0]["messages"]
        return messages


def test_only_fields_that_the_api_knows_go_out() -> None:
    stored = {
        "id": "msg-1",
        "created_at": "2026-01-31T12:34:56Z",
        "status": "incomplete",
        "reason": "length",
        "usage": {},
    }
    assert sent(
        {**stored, "role": "user", "content": "a", "key": "k"},
        {**stored, "role": "assistant", "content": "", "tool_calls": [{**called("c1"), "index": 0, "extra": 1}]},
        {**stored, "role": "tool", "tool_call_id": "c1", "name": "calculator", "content": "1", "tool_calls": []},
        {**stored, "role": "assistant", "content": "b", "reasoning_content": "hm"},
        {**stored, "role": "user", "content": "c"},
    ) == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [called("c1")]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]


def test_no_tools_key_goes_out_without_tools() -> None:
    with ModelServer() as model:
        converse(model)
        assert model.requests == [
            {"model": "m", "messages": [QUESTION], "stream": True, "stream_options": {"include_usage": True}}
        ]


def test_the_content_beside_tool_calls_is_text_and_never_null() -> None:
    with ModelServer(tool_call("calculator", {"expression": "1"})) as model:
        converse(model, tools=[calculator])
        assert model.requests[1]["messages"][1]["content"] == ""


def test_a_missing_result_becomes_an_error() -> None:
    assert sent(QUESTION, {"role": "assistant", "content": "", "tool_calls": [called("c1"), called("c2")]},
                {"role": "tool", "tool_call_id": "c2", "content": "2"}, {"role": "user", "content": "Go on"})[1:] == [
        {"role": "assistant", "content": "", "tool_calls": [called("c1"), called("c2")]},
        {"role": "tool", "tool_call_id": "c1", "content": "error: interrupted; the tool may have run"},
        {"role": "tool", "tool_call_id": "c2", "content": "2"},
        {"role": "assistant", "content": "(interrupted)"},
        {"role": "user", "content": "Go on"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    ["", "{", '{"expression": ', "[1]", "null", "5", '"text"', '{"a": NaN}', '{"a": Infinity}', '{"a": "\\ud83d"}',
     None, 5, "[" * 100_000, '{"a": ' + "9" * 5000 + "}"],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_arguments_that_are_no_json_object_go_out_as_an_empty_one(arguments: Any) -> None:
    history: list[dict[str, Any]] = [
        QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [called("c1", arguments)]},
        QUESTION,
    ]
    assert sent(*history)[1]["tool_calls"] == [called("c1", "{}")]


def test_arguments_that_are_an_object_go_out_as_they_are() -> None:
    arguments = '{ "expression":"\\ud83d\\ude00 é", "b": [1, {}]}'
    history: list[dict[str, Any]] = [
        QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [called("c1", arguments)]},
        QUESTION,
    ]
    assert sent(*history)[1]["tool_calls"] == [called("c1", arguments)]


def test_no_two_assistant_messages_go_out_in_a_row() -> None:
    assert sent(
        QUESTION,
        {"role": "assistant", "content": "One"},
        {"role": "assistant", "content": "two"},
        {"role": "assistant", "content": "three", "tool_calls": [called("c1")]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "assistant", "content": "four"},
        QUESTION,
    ) == [
        QUESTION,
        {"role": "assistant", "content": "One\n\ntwo\n\nthree", "tool_calls": [called("c1")]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "assistant", "content": "four"},
        QUESTION,
    ]


def test_an_assistant_message_stands_between_a_tool_and_the_next_user() -> None:
    history: list[dict[str, Any]] = [
        QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [called("c1")]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "assistant", "content": "", "status": "cancelled"},
        QUESTION,
    ]
    assert sent(*history)[3] == {"role": "assistant", "content": "(interrupted)"}


def test_user_messages_in_a_row_are_joined_by_a_blank_line() -> None:
    empty = {"role": "assistant", "content": "", "status": "cancelled"}
    history: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        empty,
        {"role": "user", "content": "c"},
    ]
    cancelled = {"role": "assistant", "content": "(cancelled)"}
    assert sent(*history) == [{"role": "user", "content": "a\n\nb"}, cancelled, {"role": "user", "content": "c"}]


# Errors


@pytest.mark.parametrize(
    "data",
    [
        {"error": {"message": "Bad thing at /srv/model/x.py", "type": "invalid_request_error", "code": None}},
        {"error": {"message": "Bad thing", "type": "x", "code": 400}},
        {"error": "Bad thing"},
        {"message": "Bad thing"},
        {"detail": "Bad thing"},
        {"detail": [{"loc": ["body", "messages"], "msg": "Bad thing", "type": "value_error"}]},
        {"object": "error", "message": "Bad thing", "code": 40001},
        b"<html><body>Bad thing at host-17.internal</body></html>",
        b"",
        [],
        5,
        None,
    ],
    ids=lambda data: ascii(data)[:30],
)  # fmt: skip
@pytest.mark.parametrize("code", [400, 404, 422, 501])
def test_a_refusal_in_any_form_is_a_plain_sentence(code: int, data: Any) -> None:
    later = {"Retry-After": "1000"}  # than this test wants to try again
    with ModelServer(default=status(code, data, later)) as model, pytest.raises(ModelError) as caught:
        converse(model, stream=False)
    assert caught.value.code == "model_error"
    assert str(code) in str(caught.value)
    assert "thing" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "data"),
    [
        (401, {"error": {"message": "Incorrect API key provided: sk-1234", "code": "invalid_api_key"}}),
        (403, b"Forbidden"),
        (400, {"error": {"message": "Authentication Error, LiteLLM Virtual Key expected", "type": "auth_error"}}),
        (400, [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key."}}]),
    ],
)
def test_a_key_that_is_refused_is_model_unauthorized(code: int, data: Any) -> None:
    with ModelServer(status(code, data)) as model, pytest.raises(ModelError) as caught:
        converse(model)
    assert caught.value.code == "model_unauthorized"
    assert len(model.requests) == 1


OVERFLOWS = {
    "code": status(400, {"error": {"message": "Too long", "code": "context_length_exceeded"}}),
    "type": status(400, {"error": {"code": 400, "message": "Too long", "type": "exceed_context_size_error"}}),
    "sentence": status(400, {"error": {"message": "This model's maximum context length is 4097 tokens."}}),
    "text": status(400, {"error": "the request exceeds the available context size"}),
    "detail": status(422, {"detail": [{"msg": "prompt does not fit the context window", "loc": []}]}),
    "bare text": status(400, b"litellm.ContextWindowExceededError: too long"),
    "server error": status(500, {"error": {"message": "context size exceeded"}}),
    "too large": status(413, b"<html>Request Entity Too Large</html>"),
    "vllm": status(
        400, {"object": "error", "message": "The prompt (length 9) is longer than the maximum model length"}
    ),
    "anthropic": status(400, {"error": {"message": "prompt is too long: 208310 tokens > 200000 maximum"}}),
    "gemini": status(400, [{"error": {"message": "The input token count (9) exceeds the maximum"}}]),
    "status 200": whole({"error": {"message": "This model's maximum context length is 512 tokens."}}),
    "first frame": frames({"error": {"message": "context length exceeded"}}),
}


@pytest.mark.parametrize("reply", OVERFLOWS.values(), ids=OVERFLOWS)
def test_a_context_overflow_is_understood(reply: ReplyTo) -> None:
    with ModelServer(reply) as model, pytest.raises(ModelError) as caught:
        converse(model)
    assert caught.value.code == "context_length_exceeded"
    assert len(model.requests) == 1


@pytest.mark.parametrize("reply", OVERFLOWS.values(), ids=OVERFLOWS)
def test_after_a_context_overflow_half_the_history_is_sent(reply: ReplyTo) -> None:
    earlier = [{"role": role, "content": f"{number}"} for number in range(4) for role in ("user", "assistant")]
    with ModelServer(reply) as model:
        assert converse(model, *earlier, QUESTION)[-1] == Answer("OK", "stop", None, None)
        assert model.requests[1]["messages"] == [*earlier[4:], QUESTION]


def test_an_echo_of_the_request_in_a_refusal_is_no_context_overflow() -> None:
    detail = [{"msg": "field required", "loc": ["body"], "input": "In this context, …"}]
    assert failure(*[status(422, {"detail": detail})] * 2).code == "model_error"


def test_the_sdk_does_not_retry_by_itself() -> None:
    with ModelServer(default=status(429, {}, {"Retry-After": "0"})) as model, pytest.raises(ModelError) as caught:
        converse(model)
    assert caught.value.code == "model_rate_limited"
    assert len(model.requests) == 3


def test_a_wait_that_is_longer_than_the_time_left_is_not_waited(caplog: pytest.LogCaptureFixture) -> None:
    with ModelServer(status(429, {}, {"Retry-After": "100"})) as model, pytest.raises(ModelError) as caught:
        converse(model, timeout=20)
    assert (caught.value.code, caught.value.retry_after) == ("model_rate_limited", "100")
    assert len(model.requests) == 1


SECRETS = (
    "Incorrect API key: sk-test-key. Received API Key = sk-...1234, Key Hash (Token) =88dc28d0f030c55ed4ab77",
    "Authorization: Bearer abcdef",
    "gsk_abcdefgh12345678 and 88dc28d0f030c55ed4ab77ed8faf0981 and password=hunter2",
)


@pytest.mark.parametrize("words", SECRETS)
def test_keys_in_the_words_of_a_server_reach_neither_log_nor_error(
    words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        error = failure(status(401, {"error": {"message": words}}))
    for secret in ("sk-test-key", "1234", "88dc28d0", "abcdef", "hunter2"):
        assert secret not in caplog.text
        assert secret not in str(error)


def test_our_own_key_is_masked_in_whatever_form_it_has(caplog: pytest.LogCaptureFixture) -> None:
    with ModelServer(status(401, {"error": {"message": "not good: opensesame"}})) as model:
        agent = Agent(api_key="opensesame", base_url=model.base_url, model="m")
        with pytest.raises(ModelError):
            list(agent.run([QUESTION], Cancellation()))
        agent.close()
    assert "not good" in caplog.text
    assert "opensesame" not in caplog.text


def test_the_words_of_a_server_are_logged_on_one_short_line(caplog: pytest.LogCaptureFixture) -> None:
    failure(*[status(400, {"error": {"message": "no such\nparameter " + "x " * 1000}})] * 2)
    assert "no such parameter" in caplog.messages[0]
    assert all(len(message) < 400 and "\n" not in message for message in caplog.messages)


def test_the_text_of_an_answer_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    confidential = {"choices": [{"message": {"content": "confidential"}, "finish_reason": "stop"}]}
    with caplog.at_level(logging.DEBUG):
        failure(whole(confidential))
        failure(body(b"confidential", "text/plain"))
        failure(frames(said("confidential"), b"data: {confidential\n\n"))
        failure(answer("confidential", BREAK))
    assert caplog.messages
    assert "confidential" not in caplog.text


def test_a_server_that_is_not_there_is_model_error() -> None:
    agent = Agent(api_key="k", base_url=nobody_listens(), model="m", timeout=10)
    with pytest.raises(ModelError) as caught:
        list(agent.run([QUESTION], Cancellation()))
    assert caught.value.code == "model_error"
    assert "could not be reached" in str(caught.value)


def test_a_server_that_speaks_no_http_is_model_error() -> None:
    noise = (b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"\0" * 1000)
    assert failure(*map(raw, noise)).code == "model_error"


def test_a_redirect_is_followed() -> None:
    with ModelServer(answer("Hello")) as target:
        moved = status(307, b"", {"Location": f"{target.base_url}/chat/completions"})
        with ModelServer(moved) as model:
            assert converse(model)[-1] == Answer("Hello", "stop", None, None)
            assert target.requests == model.requests


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
        frames(said("Hello"), STOP, DONE),
        body(b'{"choices": [{"message": {"content": "\xff"}}]}', "application/json"),
    ],
)
def test_a_whole_answer_that_is_none_is_an_error(reply: ReplyTo) -> None:
    assert failure(reply, stream=False).code == "model_error"
