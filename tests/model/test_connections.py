"""Connections to the model server: kept, replaced, closed, and by proxies."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from agent import Agent, Cancellation
from session_core.model.events import Answer, Chunk
from tests.support.agent import OK, QUESTION, MakeAgent, delta, failure, run
from tests.support.model_server import STALL, ModelServer, answer, body, frames, status, wait
from tests.support.server import TIMEOUT


def test_the_end_of_a_body_is_not_waited_for(model: ModelServer, agent_of: MakeAgent) -> None:
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    model.then(frames(delta(content="OK"), end, "[DONE]", STALL))
    assert run(agent_of(model, timeout=TIMEOUT)) == OK
    assert model.closed.wait(TIMEOUT)


def test_a_connection_that_the_server_has_closed_is_replaced(model: ModelServer, agent_of: MakeAgent) -> None:
    agent = agent_of(model)
    model.then(body(b'data: {"choices":[{"delta":{"content":"OK"},"finish_reason":"stop"}]}\n\n', Connection="close"))
    for _ in range(2):
        assert run(agent) == OK
    assert model.connections == 2


def test_a_connection_of_a_failed_run_is_not_used_again(model: ModelServer, agent_of: MakeAgent) -> None:
    agent = agent_of(model)
    model.then(status(400), status(400))
    failure(agent)
    assert run(agent) == OK
    assert model.connections == 2


def test_closing_the_agent_closes_its_connections(model: ModelServer, agent_of: MakeAgent) -> None:
    agent = agent_of(model)
    run(agent)
    (worker,) = model.workers
    agent.close()
    worker.join(TIMEOUT)
    assert not worker.is_alive()


def test_closing_the_agent_lets_a_run_end(model: ModelServer, agent_of: MakeAgent) -> None:
    go_on = threading.Event()
    model.then(answer("O", wait(go_on), "K"))
    agent = agent_of(model)
    events = agent.run([QUESTION], Cancellation())
    assert next(events) == Chunk("O")
    agent.close()
    go_on.set()
    assert list(events)[-1] == Answer("OK", "stop", None, None)


def test_few_connections_stay_open_after_many_runs_at_once(model: ModelServer, agent_of: MakeAgent) -> None:
    everybody = threading.Barrier(25)
    model.default = answer(lambda exchange: everybody.wait(TIMEOUT), "OK")
    agent = agent_of(model)
    with ThreadPoolExecutor(25) as pool:
        assert list(pool.map(lambda _: run(agent), range(25))) == [OK] * 25
    deadline = time.monotonic() + TIMEOUT
    while len(workers := model.workers) > 16 and time.monotonic() < deadline:
        workers[0].join(0.02)
    assert len(workers) <= 16


def test_closing_the_events_closes_the_connection(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(answer("Hel", STALL))
    events = agent_of(model).run([QUESTION], Cancellation())
    next(events)
    events.close()
    assert model.closed.wait(TIMEOUT)


def test_no_proxy_stands_between_here_and_this_machine(
    model: ModelServer, agent_of: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert run(agent_of(model)) == OK
    assert run(agent_of(model, base_url=model.base_url.replace("127.0.0.1", "localhost"))) == OK


def test_other_hosts_are_reached_through_the_proxy(
    model: ModelServer, agent_of: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", model.base_url.removesuffix("/v1"))
    monkeypatch.setenv("http_proxy", model.base_url.removesuffix("/v1"))
    assert run(agent_of(base_url="http://model.invalid/v1")) == OK
    assert model.headers[0]["host"] == "model.invalid"


def test_a_proxy_that_cannot_be_used_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "gopher://127.0.0.1:1")
    monkeypatch.setenv("https_proxy", "gopher://127.0.0.1:1")
    with pytest.raises(ValueError, match="gopher"):
        Agent(api_key="k", model="m")
