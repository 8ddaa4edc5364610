"""How an answer ends: finish reasons in the words of every server, refusals, and untidy ends."""

from __future__ import annotations

import time
from typing import Any

import pytest

from session_core.model.finish_reasons import classify_finish_reason
from tests.support.client import Client, error_of, json_of
from tests.support.model_server import BREAK, RESET, STALL, frames, pause, whole

FAILED = ["error", "abort", "cancelled", "timeout", "network_error", "insufficient_system_resource"]
FAILED += ["MALFORMED_FUNCTION_CALL", "ERROR"]
LENGTH = ["length", "max_tokens", "MAX_TOKENS", "model_length", "model_context_window_exceeded"]
FILTERED = ["content_filter", "SAFETY", "recitation", "PROHIBITED_CONTENT", "blocklist", "sensitive", "refusal"]
COMPLETE = ["stop", "STOP", "eos_token", "eos", "end_turn", "stop_sequence", "COMPLETE", "tool_calls", "whatever"]


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields}]}


def end(reason: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


@pytest.mark.parametrize("reason", [*LENGTH, *FILTERED])
def test_an_answer_that_was_cut_short_is_incomplete(reason: str) -> None:
    with Client(frames(delta(content="Hel"), end(reason), "[DONE]")) as client:
        data = client.stream(client.create()).last()["data"]
        expected = "length" if reason in LENGTH else "content_filter"
        assert (data["status"], data["reason"], data["finish_reason"]) == ("incomplete", expected, reason)


@pytest.mark.parametrize("reason", COMPLETE)
def test_any_other_reason_is_complete_and_passed_on(reason: str) -> None:
    with Client(frames(delta(content="Hello"), end(reason), "[DONE]")) as client:
        data = client.stream(client.create()).last()["data"]
        assert (data["status"], data["finish_reason"]) == ("completed", reason)


@pytest.mark.parametrize("reason", FAILED)
def test_a_failure_of_the_model_server_is_an_error_that_keeps_the_partial_answer(reason: str) -> None:
    with Client(frames(delta(content="Hel"), end(reason), "[DONE]")) as client:
        session = client.create()
        last = client.stream(session).last()
        assert (last["type"], last["data"]["code"], last["data"]["status"]) == ("error", "model_error", 502)
        message = client.messages(session)[-1]
        assert (message["id"], message["content"]) == (last["data"]["message_id"], "Hel")
        assert (message["status"], message["reason"]) == ("incomplete", "model_error")
        assert len(client.model.requests) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_before_anything_was_seen_is_tried_again(stream: bool) -> None:
    body = {"choices": [{"index": 0, "message": {"content": ""}, "finish_reason": "error"}]}
    failed = frames(end("error"), "[DONE]") if stream else whole(body)
    with Client(failed, stream=stream) as client:
        assert json_of(client.run(client.create()))["message"]["content"] == "OK"
        assert len(client.model.requests) == 2
    with Client(failed, failed, failed, stream=stream) as client:
        assert error_of(client.run(client.create())) == (502, "model_error")


def test_calls_of_a_failed_answer_are_not_run() -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "calculator", "arguments": "{}"}}
    failed = frames(delta(content="x", tool_calls=[call]), end("abort"))
    with Client(failed) as client:
        session = client.create()
        assert "stream_tool_call" not in [event["type"] for event in client.stream(session).rest()]


def test_meanings_know_no_case() -> None:
    for reason in (*FAILED, *LENGTH, *FILTERED, *COMPLETE):
        assert (
            classify_finish_reason(reason)
            == classify_finish_reason(reason.lower())
            == classify_finish_reason(reason.upper())
        )
    assert classify_finish_reason(None) == classify_finish_reason("") == "no_finish_reason"


def test_a_refusal_is_the_text_of_the_answer() -> None:
    pieces = [delta(role="assistant", content=None, refusal=""), delta(refusal="I can"), delta(refusal="not.")]
    with Client(frames(*pieces, end("stop"), "[DONE]")) as client:
        session = client.create()
        assert client.stream(session).last()["data"]["complete_text"] == "I cannot."
        assert client.messages(session)[-1]["content"] == "I cannot."
    message = {"role": "assistant", "content": None, "refusal": "I cannot."}
    with Client(
        whole({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}), stream=False
    ) as client:
        assert json_of(client.run(client.create()))["message"]["content"] == "I cannot."


def test_a_function_call_of_old_servers_is_a_tool_call() -> None:
    pieces = [
        delta(role="assistant", content=None, function_call={"name": "calculator", "arguments": ""}),
        delta(function_call={"arguments": '{"expression": '}),
        delta(function_call={"arguments": '"1+1"}'}),
    ]
    with Client(frames(*pieces, end("function_call"), "[DONE]")) as client:
        events = client.stream(client.create()).rest()
        assert [event["data"]["result"] for event in events if event["type"] == "stream_tool_result"] == ["2"]


# --- untidy ends ---

USAGE: dict[str, Any] = {"choices": [], "usage": {"total_tokens": 7}}
ENDS: dict[str, list[Any]] = {
    "a break": [BREAK],
    "a reset": [RESET],
    "an error frame": [{"error": {"message": "split surrogates"}}],
    "rubbish": ["{not JSON"],
    "nothing more": [],
}


@pytest.mark.parametrize("rest", ENDS.values(), ids=[*ENDS])
def test_what_follows_a_finish_reason_changes_nothing(rest: list[Any]) -> None:
    with Client(frames(delta(content="Hello"), end("stop"), *rest)) as client:
        data = client.stream(client.create()).last()["data"]
        assert (data["status"], data["complete_text"]) == ("completed", "Hello")
        assert len(client.model.requests) == 1


@pytest.mark.parametrize("rest", ENDS.values(), ids=[*ENDS])
def test_calls_are_run_whatever_follows(rest: list[Any]) -> None:
    function = {"name": "calculator", "arguments": '{"expression": "1+1"}'}
    call = delta(tool_calls=[{"index": 0, "id": "c", "type": "function", "function": function}])
    with Client(frames(call, end("tool_calls"), *rest)) as client:
        assert json_of(client.run(client.create()))["message"]["content"] == "OK"
        assert client.model.requests[1]["messages"][-1]["content"] == "2"


def test_usage_is_waited_for_and_no_longer_than_two_seconds() -> None:
    with Client(frames(delta(content="Hello"), end("stop"), pause(0.3), USAGE, STALL)) as client:
        began = time.monotonic()
        data = client.stream(client.create()).last()["data"]
        assert (data["status"], data["usage"]) == ("completed", {"total_tokens": 7})
        assert time.monotonic() - began < 30  # and not the 60 s of the turn


def test_a_cancel_is_heard_while_usage_is_waited_for() -> None:
    with Client(frames(delta(content="Hello"), end("stop"), STALL)) as client:
        session = client.create()
        stream = client.stream(session)
        while stream.next()["type"] != "stream_chunk":
            pass
        assert json_of(client.request("POST", f"/sessions/{session}/cancel")) in (
            {"cancelled": True},
            {"cancelled": False},
        )
        assert stream.rest()[-1]["type"] == "stream_end"


def test_the_connection_is_used_again_after_a_tidy_end() -> None:
    with Client() as client:
        session = client.create()
        for _ in range(3):
            client.run(session)
        assert client.model.connections == 1
