"""Which failures of the model server are tried again, and after which wait."""

import email.utils
import time
from typing import Any

import pytest

from tests.support.agent import OK, SOON, MakeAgent, failure, run
from tests.support.model_server import BREAK, ModelServer, answer, frames, status, tool_call


def test_an_error_in_the_first_frame_is_tried_again_if_it_may_pass(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(frames({"error": {"code": 503, "message": "overloaded"}}), frames({"error": {"code": "429"}}))
    assert run(agent_of(model)) == OK


def test_three_failures_are_an_error(model: ModelServer, agent_of: MakeAgent) -> None:
    model.default = status(503, {}, SOON)
    assert failure(agent_of(model)).code == "model_error"
    assert len(model.requests) == 3


@pytest.mark.parametrize("code", [400, 401, 403, 404, 409, 422])
def test_a_refusal_that_will_stay_is_not_tried_again(model: ModelServer, agent_of: MakeAgent, code: int) -> None:
    model.default = status(code)
    failure(agent_of(model, stream=False))
    assert len(model.requests) == 1


@pytest.mark.parametrize("cut", [BREAK, {"error": {"code": 503, "message": "overloaded"}}])
def test_nothing_is_tried_again_once_the_answer_has_begun(model: ModelServer, agent_of: MakeAgent, cut: Any) -> None:
    model.then(answer("Hel", cut))
    failure(agent_of(model))
    assert len(model.requests) == 1


def test_each_call_of_the_model_may_be_tried_again(model: ModelServer, agent_of: MakeAgent) -> None:
    soon = status(503, {}, SOON)
    model.then(soon, soon, tool_call("calculator", {"expression": "1"}), soon, soon)
    assert run(agent_of(model))[-2:] == OK


@pytest.mark.parametrize(
    ("headers", "shortest"),
    [
        ({"Retry-After": "1"}, 1.0),
        ({"Retry-After": "0.7"}, 0.7),
        ({"Retry-After-Ms": "800", "Retry-After": "100"}, 0.8),
        ({"Retry-After": "soon"}, 0.3),
        ({"Retry-After": "-5"}, 0.3),
        ({"Retry-After": "nan"}, 0.3),
    ],
    ids=str,
)
def test_the_wait_before_the_next_try_is_what_the_server_asks(
    model: ModelServer, agent_of: MakeAgent, headers: dict[str, str], shortest: float
) -> None:
    model.then(status(503, {}, headers))
    began = time.monotonic()
    assert run(agent_of(model)) == OK
    assert time.monotonic() - began >= shortest


def test_a_date_to_try_again_after_is_kept(model: ModelServer, agent_of: MakeAgent) -> None:
    later = email.utils.formatdate(time.time() + 3, usegmt=True)
    model.then(status(503, {}, {"Retry-After": later}))
    began = time.monotonic()
    assert run(agent_of(model)) == OK
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize(
    ("headers", "retry_after"),
    [
        ({}, None),
        ({"Retry-After": "1000"}, "1000"),
        ({"Retry-After-Ms": "999500"}, "1000"),
        ({"Retry-After": "999.5"}, "1000"),
        ({"Retry-After": "whenever"}, None),
    ],
    ids=str,
)
def test_the_servers_own_retry_after_is_told_in_whole_seconds(
    model: ModelServer, agent_of: MakeAgent, headers: dict[str, str], retry_after: str | None
) -> None:
    model.default = status(429, {}, headers)
    error = failure(agent_of(model))
    assert (error.code, error.retry_after) == ("model_rate_limited", retry_after)


# Connections


@pytest.mark.parametrize("stream", [True, False])
def test_one_connection_serves_all_rounds_and_turns(model: ModelServer, agent_of: MakeAgent, stream: bool) -> None:
    agent = agent_of(model, stream=stream)
    for _ in range(3):
        model.then(tool_call("calculator", {"expression": "1"}))
        run(agent)
    assert len(model.requests) == 6
    assert model.connections == 1
