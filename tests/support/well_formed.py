"""What a request to a Chat Completions server must be, so that every server takes it."""

from __future__ import annotations

import json
import re
from typing import Any


def assert_well_formed(request: dict[str, Any], *, extra_fields: bool = False) -> None:
    """Raise AssertionError where some server would refuse the request.

    Only fields that the API knows (with `extra_fields`, also those that servers of thinking models know); the
    system's message first, then user and assistant in turn and an end that the model can answer; each tool call with
    a name, an id that no other has, a JSON object as arguments, and exactly one result directly after it, and behind
    all results the answer or one message of the user; no message of the assistant without anything in it; no half
    characters.
    """
    known = {"model", "messages", "stream", "tools", "stream_options"}
    assert {"model", "messages", "stream"} <= set(request) <= known
    assert isinstance(request["stream"], bool)
    assert request.get("tools") != []
    assert "stream_options" not in request or request["stream"]
    json.dumps(request, ensure_ascii=False, allow_nan=False).encode()
    messages = request["messages"]
    before = "nothing"
    ids: set[str] = set()
    pending: set[str] = set()  # calls without a result
    for message in messages:
        role, content = message["role"], message["content"]
        assert isinstance(content, str), message
        assert not pending or role == "tool", f"calls without a result before {message}"
        if role == "tool":
            assert set(message) == {"role", "content", "tool_call_id"}, message
            assert message["tool_call_id"] in pending, f"a result without a call: {message}"
            pending.remove(message["tool_call_id"])
        elif role == "assistant":
            assert before in ("nothing", "system", "user", "tool"), f"{message} after {before}"
            assert set(message) <= {"role", "content", "tool_calls"} or extra_fields, message
            calls = message.get("tool_calls")
            assert calls or (calls is None and content.strip()), f"an empty answer: {message}"
            for call in calls or ():
                _assert_call(call, extra_fields)
                assert call["id"] not in ids, f"an id twice: {call}"
                ids.add(call["id"])
                pending.add(call["id"])
        else:
            assert set(message) == {"role", "content"}, message
            assert (role, before) in {
                ("system", "nothing"),
                *(("user", role) for role in ("nothing", "system", "assistant", "tool")),
            }, f"{message} after {before}"
        before = role
    assert not pending, "calls without a result at the end"
    assert before in ("user", "tool"), f"nothing to answer after {before}"


def _assert_call(call: dict[str, Any], extra_fields: bool) -> None:
    assert set(call) == {"id", "type", "function"} or extra_fields, call
    assert call["type"] == "function", call
    assert isinstance(call["id"], str) and call["id"], call
    assert set(call["function"]) == {"name", "arguments"}, call
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", call["function"]["name"]), call
    arguments = json.loads(call["function"]["arguments"], parse_constant=_no_constant)
    assert isinstance(arguments, dict), call
    json.dumps(arguments, ensure_ascii=False).encode()


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")
