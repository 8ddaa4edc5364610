"""Failures of the model server that may pass, and those that stay."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.client import Client, error_of
from tests.support.model_server import BREAK, HEADERS, RESET, ReplyTo, answer, nobody_listens, status
from tests.support.phases import AT_ONCE, CALCULATION, outcome


@pytest.mark.parametrize(
    "failure",
    [
        status(408, {"error": "slow"}, AT_ONCE),
        status(429, {"error": "slow down"}, AT_ONCE),
        status(500, {"error": "oh"}, AT_ONCE),
        status(502, b"<html>", AT_ONCE),
        status(503, {"error": "busy"}, AT_ONCE),
        status(599, {"error": "busy"}, AT_ONCE),
    ],
)
def test_a_failure_that_may_pass_is_tried_again_twice(failure: ReplyTo) -> None:
    with Client(failure, failure, answer("Hello"), failure, failure, failure) as client:
        session_id = client.create()
        assert outcome(client.run(session_id))[:2] == (200, "Hello")
        assert client.run(session_id).status_code in (429, 502, 504)
        assert len(client.model.requests) == 6


def test_a_connection_that_breaks_before_the_answer_is_tried_again_twice() -> None:
    with Client(answer(BREAK), answer(HEADERS, RESET), answer("Hello")) as client:
        assert outcome(client.run(client.create()))[:2] == (200, "Hello")
        assert len(client.model.requests) == 3


@pytest.mark.parametrize("code", [401, 403, 404, 409, 413])
def test_a_failure_that_does_not_pass_is_not_tried_again(code: int) -> None:
    with Client(default=status(code, {"error": "no"}, AT_ONCE)) as client:
        assert client.run(client.create()).status_code >= 400
        assert len(client.model.requests) == 1


@pytest.mark.parametrize("break_off", [BREAK, RESET])
def test_nothing_is_asked_again_after_the_first_byte_of_an_answer(break_off: Any) -> None:
    with Client(default=answer("Hel", break_off)) as client:
        assert error_of(client.run(client.create())) == (502, "model_error")
        assert len(client.model.requests) == 1


def test_a_model_server_that_is_not_there_is_a_model_error() -> None:
    with Client(base_url=nobody_listens()) as client:
        session_id = client.create()
        assert error_of(client.run(session_id)) == (502, "model_error")
        assert [message["role"] for message in client.messages(session_id)] == ["user"]


def test_a_failure_after_a_tool_is_tried_again_without_calling_it_again() -> None:
    with Client(CALCULATION, status(500, {"error": "oh"}, AT_ONCE), answer("345")) as client:
        session_id = client.create()
        types = [event["type"] for event in client.stream(session_id)]
        assert types.count("stream_tool_call") == 1
        assert types[-1] == "stream_end"
