"""`run` and `run_stream`, and streams and whole answers of the model, are the same turn."""

from __future__ import annotations

from typing import Any

import pytest

from session_core.model.demo import chunk
from tests.support.client import Client, json_of
from tests.support.model_server import (
    BREAK,
    HEADERS,
    RESET,
    ReplyTo,
    answer,
    body,
    frames,
    raw,
    status,
    tool_call,
    tool_calls,
)
from tests.support.phases import AT_ONCE, CALCULATION, outcome
from tests.support.well_formed import assert_well_formed


def fields(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages without what differs from turn to turn."""
    return [{name: message[name] for name in message if name not in ("id", "created_at")} for message in messages]


SCRIPTS: dict[str, list[ReplyTo]] = {
    "text": [answer("Hel", "lo")],
    "a tool": [CALCULATION, answer("It is ", "345.")],
    "a tool with no text": [tool_call("calculator", {"expression": "2+2"}), answer("4")],
    "two tools at once": [
        tool_calls(("calculator", {"expression": "1+1"}), ("calculator", {"expression": "2+2"})),
        answer("2 and 4"),
    ],
    "two rounds": [CALCULATION, tool_call("calculator", {"expression": "1+1"}, id="call_2"), answer("345 and 2")],
    "a tool that fails": [tool_call("calculator", {"expression": "1/0"}), answer("That cannot be done.")],
    "a tool that is not there": [tool_call("search", {"q": "x"}), answer("I cannot search.")],
    "arguments that are no JSON": [tool_call("calculator", '{"expression'), answer("Sorry.")],
    "too long": [answer("Hel", finish_reason="length")],
    "no reason": [answer("Hel", finish_reason=None)],
    "empty": [answer("")],
    "reasoning": [frames(chunk({"reasoning": "Hm."}), chunk({"content": "Yes"}), chunk({}, "stop"))],
    "usage": [answer("Hello", usage={"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2})],
    "a break": [answer("Hel", BREAK)],
    "a reset": [answer("Hel", RESET)],
    "a break after a tool": [CALCULATION, answer("It", BREAK)],
    "an error in the stream": [answer("Hel", {"error": {"message": "oh"}})],
    "nothing": [frames("[DONE]")],
    "HTML": [body(b"<html>hello</html>", "text/html")],
    "no HTTP": [raw(b"SSH-2.0-OpenSSH_9.2\r\n"), answer(BREAK), answer(HEADERS, BREAK)],
    "a broken frame": [frames(chunk({"content": "Hel"}), b"data: {oh\n\n")],
    "401": [status(401, {"error": "Incorrect API key"})],
    "404": [status(404, {"error": "no such model"})],
    "429": [status(429, {"error": "slow down"}, AT_ONCE)] * 3,
    "500": [status(500, {"error": "oh"}, AT_ONCE)] * 3,
    "500 once": [status(500, {"error": "oh"}, AT_ONCE), answer("Hello")],
    "context": [status(400, {"error": {"code": "context_length_exceeded", "message": "too long"}})],
    "too many rounds": [tool_call("calculator", {"expression": "1"}, id=f"call_{number}") for number in range(11)],
}


every_script = pytest.mark.parametrize("script", SCRIPTS)


@every_script
def test_run_stores_and_says_what_run_stream_does(script: str) -> None:
    with Client(*SCRIPTS[script], *SCRIPTS[script]) as client:
        one, other = client.create(), client.create()
        waited = client.run(one, "Hi")
        asked = len(client.model.requests)
        stream = client.stream(other, "Hi")
        events = stream.rest()
        assert fields(client.messages(one)) == fields(client.messages(other))
        assert client.model.requests[:asked] == client.model.requests[asked:]
        last = events[-1]
        if waited.status_code == 200:
            assert last["type"] == "stream_end"
            message = json_of(waited)["message"]
            assert last["data"]["status"] == message.get("status", "completed")
            assert last["data"].get("reason") == message.get("reason")
            assert last["data"].get("usage") == message.get("usage")
            assert client.messages(other)[-1]["content"] == message["content"]
        else:
            assert last["type"] == "error"
            data = last["data"]
            assert (data["status"], data["code"], data["error"]) == outcome(waited)


@every_script
def test_a_session_stays_usable_whatever_happened(script: str) -> None:
    with Client(*SCRIPTS[script]) as client:
        session_id = client.create()
        client.run(session_id, "first")
        stored = client.messages(session_id)
        assert outcome(client.run(session_id, "second")) == (200, "OK", "completed", None)
        assert_well_formed(client.model.requests[-1], extra_fields=True)
        assert client.messages(session_id)[: len(stored)] == stored, "the history was changed"


@pytest.mark.parametrize(
    "script", ["text", "a tool", "two rounds", "a tool that fails", "too long", "usage", "401", "too many rounds"]
)
def test_whole_answers_give_the_same_turns_as_streams(script: str) -> None:
    with Client(*SCRIPTS[script]) as streamed, Client(*SCRIPTS[script], stream=False) as whole:
        one, other = streamed.create(), whole.create()
        assert outcome(streamed.run(one)) == outcome(whole.run(other))
        assert fields(streamed.messages(one)) == fields(whole.messages(other))
        assert not any(request["stream"] for request in whole.model.requests)


def test_a_whole_answer_is_streamed_as_one_chunk() -> None:
    with Client(answer("Hello", " ", "world"), stream=False) as client:
        types = [event["type"] for event in client.stream(client.create())]
        assert types == ["stream_start", "stream_chunk", "stream_end"]
