"""Messages in the form that every model server takes."""

from typing import Any

import pytest

from session_core.model.events import ModelError
from tests.support.model_answers import QUESTION, calculator, called, converse, sent
from tests.support.model_server import ModelServer, status, tool_call


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
