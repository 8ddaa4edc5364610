"""Questions that a model server refuses, seen over HTTP: what is told, and what later turns send."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest

from tests.support.client import Client, error_of, json_of
from tests.support.model_server import ReplyTo, answer, frames, status

POISON = "poison"


def poisoned(refusal: ReplyTo) -> ReplyTo:
    """A server that refuses each request in which the word stands."""

    def reply(request: dict[str, Any]) -> Any:
        return (refusal if any(POISON in str(m["content"]) for m in request["messages"]) else answer("OK"))(request)

    return reply


@pytest.mark.parametrize(
    "refusal",
    [frames({"error": {"message": "no"}}), frames(b": ping\n\n"), status(418, {"detail": "no"})],
    ids=["200 and an error frame", "an empty stream", "418"],
)
def test_a_question_that_is_refused_in_whatever_way_takes_the_session_down_for_no_later_turn(
    refusal: ReplyTo,
) -> None:
    with Client(default=poisoned(refusal)) as client:
        session = client.create()
        assert client.run(session, "before").status_code == 200
        assert client.run(session, POISON).status_code == 502
        assert client.run(session, "next").status_code == 200
        asked = len(client.model.requests)
        assert client.run(session, "last").status_code == 200
        assert len(client.model.requests) == asked + 1
        texts = [m["content"] for m in client.model.requests[-1]["messages"]]
        assert texts == ["before", "OK", "next", "OK", "last"]
        assert POISON in [m["content"] for m in client.messages(session)]


def test_what_a_later_answer_leaves_out_is_in_no_copy_s_requests_either() -> None:
    with Client(default=poisoned(frames({"error": "no"}))) as client:
        session = client.create()
        client.run(session, POISON)
        client.run(session, "next")
        copy = json_of(client.request("POST", "/sessions", {"copy_of": session}))["id"]
        client.run(copy, "last")
        assert [m["content"] for m in client.model.requests[-1]["messages"]] == ["next", "OK", "last"]


REFUSED = status(400, {"error": {"message": "temperature must be at most 2", "param": "temperature"}})


def test_a_parameter_of_an_openai_client_s_own_that_is_refused_is_400_and_names_it() -> None:
    body = {"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "Hi"}], "temperature": 9}
    with Client(default=REFUSED) as client:
        response = client.request("POST", "/v1/chat/completions", body)
        assert response.status_code == 400
        assert "temperature" in json_of(response)["error"]["message"]


def test_a_parameter_that_is_refused_leaves_no_question_out() -> None:
    with Client() as client:
        client.model.then(status(400, {"error": {"message": "response_format is unavailable now"}}))
        body = {"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "first"}]}
        headers = {"X-Session-Id": "mine"}
        options = {"response_format": {"type": "json_object"}}
        response = client.request("POST", "/v1/chat/completions", body | options, headers)
        assert error_of(response) == (400, "invalid_request")
        again = [{"role": "user", "content": "next"}]
        assert client.request("POST", "/v1/chat/completions", body | {"messages": again}, headers).status_code == 200
        assert [m["content"] for m in client.model.requests[-1]["messages"]] == ["first\n\nnext"]


@pytest.mark.parametrize(
    "words",
    [
        "auth" * 16_000,
        "key" * 20_000,
        "a" * 64_000,
        "context " * 8000,
        "length " * 9000,
        "tool call id " * 4000,
        "missing " * 8000,
        "bearer " * 9000,
        "tools " * 10_000,
        '"' * 64_000,
        "parse " * 10_000,
        "[" * 20_000,
    ],
    ids=lambda words: words[:8],
)
@pytest.mark.parametrize("code", [400, 500])
def test_what_a_refusal_costs_grows_no_faster_than_its_words(
    words: str, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    with Client(default=status(code, {"error": {"message": words}}, {"Retry-After": "1000"})) as client:
        session = client.create()
        began = time.process_time()
        with caplog.at_level(logging.WARNING):
            assert client.run(session, "Hi").status_code in (400, 502)
        assert time.process_time() - began < 2
