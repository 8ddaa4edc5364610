"""What real model servers stream, each habit with its frames written out, and what becomes of it."""

import json
import threading
from typing import Any

import pytest

from agent import Agent, Cancellation
from session_core.model.events import Answer, Chunk, ModelError, Reasoning, ToolCall
from tests.support.model_answers import DONE, QUESTION, STOP, USAGE, calls, end, events, failure, final, text_delta
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
    pause,
    status,
    tool_call,
    wait,
    whole,
)

# The end of a stream


def test_done_without_a_finish_reason_leaves_the_answer_incomplete() -> None:
    assert final(frames(text_delta("Hel"), DONE)) == Answer("Hel", None, "no_finish_reason", None)


def test_a_clean_end_without_a_finish_reason_leaves_the_answer_incomplete() -> None:
    assert final(frames(text_delta("Hel"))).reason == "no_finish_reason"


def test_a_null_finish_reason_at_the_end_leaves_the_answer_incomplete() -> None:
    assert final(frames(text_delta("Hello"), end(None), DONE)).reason == "no_finish_reason"


def test_an_empty_finish_reason_is_none() -> None:
    assert final(frames(text_delta("Hello"), end(""), DONE)).finish_reason is None


def test_a_finish_reason_completes_an_answer_without_done() -> None:
    assert final(frames(text_delta("Hello"), STOP)) == Answer("Hello", "stop", None, None)


def test_the_last_event_counts_without_its_blank_line() -> None:
    assert final(frames(text_delta("Hello"), b"data: " + json.dumps(STOP).encode())).reason is None


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_an_answer_that_was_cut_off_is_incomplete(reason: str) -> None:
    assert final(frames(text_delta("Hel"), end(reason), DONE)) == Answer("Hel", reason, reason, None)


@pytest.mark.parametrize("reason", ["stop", "eos", "tool_calls", "function_call", "STOP"])
def test_any_other_finish_reason_completes_an_answer(reason: str) -> None:
    assert final(frames(text_delta("Hello"), end(reason), DONE)) == Answer("Hello", reason, None, None)


def test_a_finish_reason_without_text_is_an_empty_answer() -> None:
    assert events(frames(STOP, DONE)) == [Answer("", "stop", None, None)]


def test_nothing_after_done_is_read_as_an_answer() -> None:
    assert final(frames(text_delta("Hello"), STOP, DONE, text_delta(" again"))).content == "Hello"


@pytest.mark.parametrize(
    "reply",
    [
        body(b"<html><body>Welcome</body></html>", "text/html"),
        whole({"choices": [{"message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]}),
        body(b"", "text/event-stream"),
        frames(DONE),
        frames(": ping"),
        frames({}, {"choices": []}, DONE),
        frames(text_delta(""), end(None), DONE),
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
    assert failure(frames(text_delta("Hel"), junk, text_delta("lo"), STOP)).code == "model_error"


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
    assert failure(frames(text_delta("Hel"), error, DONE)).code == "model_error"


def test_a_null_error_is_none() -> None:
    assert final(frames({**text_delta("Hello"), "error": None}, STOP)).content == "Hello"


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
    assert events(frames(odd, text_delta("Hel"), odd, text_delta("lo"), odd, STOP, odd, DONE)) == [
        Chunk("Hel"),
        Chunk("lo"),
        Answer("Hello", "stop", None, None),
    ]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("field", ["data: ", "data:"])
def test_lines_may_be_written_in_each_way_that_the_standard_has(field: str, line_end: str) -> None:
    lines = [f"{field}{json.dumps(frame)}" for frame in (text_delta("Hel"), text_delta("lo"), STOP)]
    stream = "".join(f"{line}{line_end * 2}" for line in [*lines, f"{field}[DONE]"]).encode()
    assert final(frames(stream)).content == "Hello"


def test_one_event_may_have_several_data_lines() -> None:
    stream = b"data: " + json.dumps(text_delta("Hello"), indent=1).replace("\n", "\ndata: ").encode() + b"\n\n"
    assert final(frames(stream, STOP)).content == "Hello"


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_events_may_be_cut_anywhere_on_the_way(size: int) -> None:
    stream = "".join(
        f"data: {json.dumps(frame, ensure_ascii=False)}\r\n\r\n"
        for frame in (text_delta("Hé"), text_delta("😀"), STOP)
    )
    whole = stream.encode()
    parts = [whole[start : start + size] for start in range(0, len(whole), size)]
    assert final(frames(*parts)).content == "Hé😀"


@pytest.mark.parametrize(
    "stream",
    [
        [text_delta("Hello"), STOP, {"choices": [], "usage": USAGE}],
        [text_delta("Hello"), {**STOP, "usage": USAGE}],
        [
            {**text_delta("Hel"), "usage": {"prompt_tokens": 3, "completion_tokens": 1}},
            {**text_delta("lo"), "usage": USAGE},
            STOP,
        ],
        [{**text_delta("Hello"), "usage": None}, STOP, {"usage": USAGE}],
        [{**text_delta("Hello"), "usage": USAGE}, {**STOP, "usage": None}],
    ],
    ids=["alone", "with the end", "in every chunk", "without choices", "early"],
)
def test_the_last_usage_counts(stream: list[Any]) -> None:
    assert final(frames(*stream, DONE)).usage == USAGE


@pytest.mark.parametrize("usage", [None, {}, [], "x", {"a": "b"}, {"a": True}])
def test_usage_that_tells_nothing_is_none(usage: Any) -> None:
    assert final(frames(text_delta("Hello"), {**STOP, "usage": usage})).usage is None


def test_zero_usage_is_passed_on() -> None:
    zero = {"prompt_tokens": 0, "completion_tokens": 0}
    assert final(frames(text_delta("Hello"), {**STOP, "usage": zero})).usage == zero


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
    assert final(frames({"choices": [{"delta": {"content": parts}}]}, text_delta("lo"), STOP)).content == "Hello"


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
    stream = f"data: {json.dumps(text_delta(text), ensure_ascii=ensure_ascii)}\n\n".encode()
    assert events(frames(stream, STOP, DONE)) == [Chunk(text), Answer(text, "stop", None, None)]


def test_a_character_that_was_split_over_two_chunks_is_whole_again() -> None:
    assert events(frames(text_delta("a\ud83d"), text_delta("\ude00b"), STOP)) == [
        Chunk("a"),
        Chunk("😀b"),
        Answer("a😀b", "stop", None, None),
    ]


def test_half_a_character_alone_in_a_chunk_waits_for_the_other() -> None:
    chunks = [
        event
        for event in events(frames(text_delta("\ud83d"), text_delta("\ude00"), STOP))
        if isinstance(event, Chunk)
    ]
    assert chunks == [Chunk("😀")]


@pytest.mark.parametrize(
    ("texts", "whole"), [(["a\ud83d"], "a\ufffd"), (["a\ud83d", "b"], "a\ufffdb"), (["\ude00a"], "\ufffda")]
)
def test_half_a_character_without_the_other_is_replaced(texts: list[str], whole: str) -> None:
    got = events(frames(*map(text_delta, texts), STOP))
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
