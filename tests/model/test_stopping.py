"""A run that is stopped at any moment ends within a second, and harms no other."""

import socket
import threading
import time
from collections.abc import Callable

import pytest

from agent import Agent, Cancellation
from session_core.model.demo import ScriptedReply, event
from session_core.model.events import Answer, Cancelled, Chunk
from tests.support.agent import OK, QUESTION, MakeAgent, delta, run
from tests.support.model_server import (
    HEADERS,
    STALL,
    ModelServer,
    ReplyTo,
    answer,
    frames,
    pause,
    raw,
    status,
    tell,
    tool_calls,
    wait,
)
from tests.support.server import TIMEOUT

# Stopping


def stop_when(happened: Callable[[], object], stop: Cancellation) -> threading.Thread:
    """Stops the run from another thread after something has happened."""

    def work() -> None:
        happened()
        stop.cancel()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def stopped(model: ModelServer, agent: Agent, happened: Callable[[], object]) -> float:
    """Stops a run when something has happened. Gives the seconds from then to its end."""
    times: list[float] = []

    def wait_and_note() -> None:
        happened()
        times.append(time.monotonic())

    stop = Cancellation()
    thread = stop_when(wait_and_note, stop)
    with pytest.raises(Cancelled):
        list(agent.run([QUESTION], stop))
    took = time.monotonic() - times[0]
    thread.join()
    return took


def test_a_run_that_is_stopped_before_it_begins_asks_nothing(model: ModelServer, agent_of: MakeAgent) -> None:
    stop = Cancellation()
    stop.cancel()
    with pytest.raises(Cancelled):
        list(agent_of(model).run([QUESTION], stop))
    assert model.connections == 0


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("used_before", [False, True])
def test_stopping_reaches_a_server_that_has_not_answered_at_all(
    model: ModelServer, agent_of: MakeAgent, stream: bool, used_before: bool
) -> None:
    agent = agent_of(model, stream=stream)
    if used_before:
        run(agent)
    model.then(answer(STALL))
    asked = len(model.requests) + 1
    assert stopped(model, agent, lambda: model.wait_for(asked)) < 5
    assert model.closed.wait(5)
    assert model.connections == 1


@pytest.mark.parametrize(
    "silent",
    [
        lambda began: answer("Hel", tell(began), STALL),
        lambda began: frames(HEADERS, tell(began), STALL),
        lambda began: lambda request: ScriptedReply([HEADERS, tell(began), STALL], 400),
        lambda began: raw(b"HTTP/1.1 200 OK\r\n\r\n" + event(delta(content="Hel")), tell(began), STALL),
    ],
    ids=["in mid-stream", "after the headers", "in mid-refusal", "in a body without length"],
)
def test_stopping_reaches_a_server_that_is_silent_in_mid_answer(
    model: ModelServer, agent_of: MakeAgent, silent: Callable[[threading.Event], ReplyTo]
) -> None:
    began = threading.Event()
    model.then(silent(began))
    assert stopped(model, agent_of(model), lambda: began.wait(TIMEOUT)) < 5
    assert model.closed.wait(5)


def test_stopping_ends_the_wait_before_the_next_try(model: ModelServer, agent_of: MakeAgent) -> None:
    model.default = status(503, {}, {"Retry-After": "100"})
    assert stopped(model, agent_of(model), lambda: model.wait_for(1)) < 5
    assert len(model.requests) == 1


def test_stopping_while_tools_work_leaves_their_results_alone(model: ModelServer, agent_of: MakeAgent) -> None:
    stop = Cancellation()

    def tool(number: int) -> str:
        stop.cancel()
        return ""

    model.then(tool_calls(("tool", {"number": 1}), ("tool", {"number": 2})))
    with pytest.raises(Cancelled):
        list(agent_of(model, tools=[tool]).run([QUESTION], stop))
    assert len(model.requests) == 1


def test_stopping_reaches_a_server_that_does_not_answer_the_tls_handshake(agent_of: MakeAgent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        agent = agent_of(base_url=f"https://127.0.0.1:{server.getsockname()[1]}/v1", timeout=60)
        stop = Cancellation()
        accepted: list[socket.socket] = []
        began: list[float] = []

        def handshake_begun() -> None:
            accepted.append(server.accept()[0])
            assert accepted[0].recv(1)
            began.append(time.monotonic())

        thread = stop_when(handshake_begun, stop)
        with pytest.raises(Cancelled):
            list(agent.run([QUESTION], stop))
        assert time.monotonic() - began[0] < 15
        thread.join()
        with accepted[0] as connection:
            connection.settimeout(5)
            while connection.recv(65536):
                pass


def test_a_stop_may_be_set_many_times_from_many_threads(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(answer(STALL))
    stop = Cancellation()
    threads = [stop_when(lambda: model.wait_for(1), stop) for _ in range(8)]
    with pytest.raises(Cancelled):
        list(agent_of(model).run([QUESTION], stop))
    for thread in threads:
        thread.join()
    stop.cancel()
    assert stop.is_cancelled


def test_a_stop_that_comes_too_late_harms_no_other_run(model: ModelServer, agent_of: MakeAgent) -> None:
    agent = agent_of(model)
    late = Cancellation()
    assert list(agent.run([QUESTION], late)) == OK
    go_on = threading.Event()
    model.then(answer("O", wait(go_on), "K"))
    events = agent.run([QUESTION], Cancellation())
    assert next(events) == Chunk("O")
    late.cancel()
    go_on.set()
    assert list(events)[-1] == Answer("OK", "stop", None, None)
    assert model.connections == 1


def test_the_next_run_works_after_one_was_stopped(model: ModelServer, agent_of: MakeAgent) -> None:
    agent = agent_of(model)
    model.then(answer("Hel", STALL))
    stopped(model, agent, lambda: model.wait_for(1))
    assert run(agent) == OK


def test_stopping_at_any_moment_ends_the_run_in_one_way_or_the_other(model: ModelServer, agent_of: MakeAgent) -> None:
    agent = agent_of(model)
    model.default = answer(*"words", pause(0.005), *"words", finish_reason="stop")
    outcomes: set[type] = set()
    for number in range(40):
        stop = Cancellation()
        timer = threading.Timer(number / 4000, stop.cancel)
        timer.start()
        try:
            outcomes.add(type(list(agent.run([QUESTION], stop))[-1]))
        except Cancelled:
            outcomes.add(Cancelled)
        timer.join()
    assert outcomes <= {Answer, Cancelled}
    assert Cancelled in outcomes
