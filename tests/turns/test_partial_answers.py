"""What a turn that did not complete keeps, and the usage of every turn."""

from __future__ import annotations

import pytest

from session_core.model.demo import chunk
from tests.support.client import Client, json_of
from tests.support.model_server import BREAK, RESET, ReplyTo, answer, body, frames, status, tool_call
from tests.support.phases import AT_ONCE, CALCULATION, Tool, outcome

# --- partial answers ---


@pytest.mark.parametrize(
    ("reply", "content", "status_", "reason"),
    [
        (answer("Hel", finish_reason="length"), "Hel", "incomplete", "length"),
        (answer("Hel", finish_reason="content_filter"), "Hel", "incomplete", "content_filter"),
        (answer("Hel", finish_reason=None), "Hel", "incomplete", "no_finish_reason"),
        (frames(chunk({"content": "Hel"})), "Hel", "incomplete", "no_finish_reason"),
        (answer("Hel", BREAK), "Hel", "incomplete", "model_error"),
        (answer("Hel", RESET), "Hel", "incomplete", "model_error"),
        (answer("Hel", {"error": {"message": "oh"}}), "Hel", "incomplete", "model_error"),
        (answer("", finish_reason="length"), "", "incomplete", "length"),
        (answer("Hello", finish_reason="stop"), "Hello", None, None),
        (answer("Hello", finish_reason="anything"), "Hello", None, None),
        (answer(""), "", None, None),
        (frames(chunk({"reasoning_content": "Hm."}), chunk({}, "stop"), "[DONE]"), "", None, None),
    ],
)
def test_an_answer_is_kept_and_marked_as_what_it_is(
    reply: ReplyTo, content: str, status_: str | None, reason: str | None
) -> None:
    with Client(reply) as client:
        session_id = client.create()
        last = client.stream(session_id).last()
        message = client.messages(session_id)[-1]
        assert (message["role"], message["content"]) == ("assistant", content)
        assert (message.get("status"), message.get("reason")) == (status_, reason)
        assert last["data"]["message_id"] == message["id"]
        beside = {"status", "reason"} if status_ else {"reasoning"}
        assert set(message) - beside == {"id", "role", "content", "model", "created_at"}


@pytest.mark.parametrize(
    "reply",
    [
        answer("", BREAK),
        frames("[DONE]"),
        body(b"<html>", "text/html"),
        status(400, {"error": "no"}),
        status(500, {"error": "oh"}, AT_ONCE),
        frames(chunk({"reasoning_content": "Hm."}), BREAK),
    ],
)
def test_a_failed_turn_without_text_leaves_no_answer(reply: ReplyTo) -> None:
    with Client(default=reply) as client:
        session_id = client.create()
        last = client.stream(session_id).last()
        assert last["type"] == "error"
        assert "message_id" not in last["data"]
        assert [message["role"] for message in client.messages(session_id)] == ["user"]


def test_a_partial_answer_holds_the_text_after_the_last_tool_call() -> None:
    with Client(CALCULATION, answer("It is", BREAK)) as client:
        session_id = client.create()
        client.run(session_id)
        contents = [message["content"] for message in client.messages(session_id)]
        assert contents == ["Hi", "Let me see.", "345", "It is"]


def test_a_failure_after_a_tool_and_before_text_leaves_no_answer() -> None:
    with Client(CALCULATION, default=status(500, {"error": "oh"}, AT_ONCE)) as client:
        session_id = client.create()
        client.run(session_id)
        assert [message["role"] for message in client.messages(session_id)] == ["user", "assistant", "tool"]


def test_tool_calls_of_an_answer_that_was_cut_off_are_not_run(tool: Tool) -> None:
    with Client(tool_call("slow", {}, text="Hm", finish_reason="length"), tools=[tool.function]) as client:
        session_id = client.create()
        assert outcome(client.run(session_id)) == (200, "Hm", "incomplete", "length")
        assert not tool.called.is_set()


# --- usage ---


def test_usage_is_summed_over_the_model_calls_of_a_turn() -> None:
    first = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12, "details": {"cached": 3}}
    second = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25, "details": {"cached": 4, "audio": 1}}
    total = {"prompt_tokens": 30, "completion_tokens": 7, "total_tokens": 37, "details": {"cached": 7, "audio": 1}}
    calling = tool_call("calculator", {"expression": "1"}, usage=first)
    with Client(*[calling, answer("1", usage=second)] * 2) as client:
        session_id = client.create()
        end = client.stream(session_id).last()
        assert end["data"]["usage"] == total
        messages = client.messages(session_id)
        assert [message.get("usage") for message in messages] == [None, None, None, total]
        assert json_of(client.run(session_id))["message"]["usage"] == total


def test_usage_is_left_out_where_the_model_server_tells_none() -> None:
    with Client() as client:
        session_id = client.create()
        assert "usage" not in client.stream(session_id).last()["data"]
        assert "usage" not in client.messages(session_id)[-1]


def test_a_partial_answer_has_the_usage_that_was_told() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    calling = tool_call("calculator", {"expression": "1"}, usage=usage)
    with Client(calling, answer("Hel", BREAK)) as client:
        session_id = client.create()
        client.run(session_id)
        assert client.messages(session_id)[-1]["usage"] == usage
