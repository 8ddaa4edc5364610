"""How long an answer of the model server may be, and how long it may take."""

import threading
import time

import pytest

from tests.support.agent import MEBIBYTE, OK, SOON, MakeAgent, failure, run
from tests.support.model_server import (
    BREAK,
    HEADERS,
    RESET,
    ModelServer,
    ReplyTo,
    answer,
    body,
    frames,
    status,
    tool_call,
    tool_calls,
)
from tests.support.server import TIMEOUT


def test_the_bound_is_for_the_whole_run(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(*[tool_call("calculator", {"expression": "1"}, text=MEBIBYTE)] * 9)
    assert str(failure(agent_of(model))) == "The model's answer is too long."


@pytest.mark.parametrize("beginning", [b"data: ", b": ", b"", b"data: x\n" * 2])
def test_a_line_without_end_is_too_long(model: ModelServer, agent_of: MakeAgent, beginning: bytes) -> None:
    model.then(frames(beginning, *[b"x" * (1 << 20)] * 20))
    assert str(failure(agent_of(model))) == "The model's answer is too long."


def test_an_event_without_end_is_too_long(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(frames(*[b"data: x\n" * 100_000] * 30))
    assert str(failure(agent_of(model))) == "The model's answer is too long."


def test_a_whole_answer_is_bounded_too(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(answer(MEBIBYTE * 9), body(b" " * (20 << 20), "application/json"))
    for _ in range(2):
        assert str(failure(agent_of(model, stream=False))) == "The model's answer is too long."


def test_a_refusal_without_end_is_not_read_to_its_end(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(status(400, b"x" * (50 << 20)), status(400, b"x" * (50 << 20)))
    began = time.monotonic()
    assert failure(agent_of(model)).code == "model_error"
    assert time.monotonic() - began < TIMEOUT


def test_too_many_calls_at_once_are_an_error(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(tool_calls(*[("calculator", {"expression": "1"})] * 65))
    assert failure(agent_of(model)).code == "model_error"


def test_the_time_is_for_the_whole_run(model: ModelServer, agent_of: MakeAgent) -> None:
    def slow() -> str:
        threading.Event().wait(1.2)
        return "done"

    model.then(tool_calls(("slow", {}), ("slow", {})))
    assert failure(agent_of(model, tools=[slow], timeout=1.0)).code == "model_timeout"
    assert len(model.requests) == 1


@pytest.mark.parametrize(
    "broken",
    [
        status(408, None, SOON),
        status(429, {"error": {"message": "slow down"}}, SOON),
        status(500, None, SOON),
        status(502, b"<html>Bad Gateway</html>", SOON),
        status(503, None, SOON),
        status(529, None, SOON),
        answer(BREAK),
        answer(RESET),
        frames(HEADERS, BREAK),
    ],
    ids=["408", "429", "500", "502", "503", "529", "break", "reset", "break after headers"],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_that_may_pass_is_tried_again(
    model: ModelServer, agent_of: MakeAgent, broken: ReplyTo, stream: bool
) -> None:
    model.then(broken)
    assert run(agent_of(model, stream=stream)) == OK
    assert model.requests[0] == model.requests[1]
