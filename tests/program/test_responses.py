"""Responses across crashes, restarts and servers: a stream goes on where its client was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.model_server import STALL, ModelServer, answer, tool_call, wait
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.server import Server, wait_until

Serve = Callable[..., Server]
MODEL = "gpt-3.5-turbo"
GAP = 1_000_000


def sdk(server: Server) -> openai.OpenAI:
    return openai.OpenAI(api_key="none", base_url=f"{server.url}/v1", max_retries=0)


def take_up(server: Server, id: str, after: int) -> list[Any]:
    """The events of a response behind the one of this number, all behind -1."""
    with sdk(server) as client:
        return list(client.responses.retrieve(id, stream=True, **({"starting_after": after} if after >= 0 else {})))


def start(server: Server, pieces: int, **body: Any) -> list[Any]:
    """The events of a new response up to this piece of its text, whose client then leaves."""
    seen: list[Any] = []
    with sdk(server) as client:
        stream = client.responses.create(input="Hi", model=MODEL, stream=True, **body)
        while sum(event.type == "response.output_text.delta" for event in seen) < pieces:
            seen.append(next(stream))
        stream.close()
    return seen


def text_of(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def numbers(events: list[Any]) -> list[int]:
    return [event.sequence_number for event in events]


@pytest.fixture
def flags(model: ModelServer, tmp_path: Path) -> list[str]:
    return [f"-base_url={model.base_url}", f"-session_dir={tmp_path / 'sessions'}"]


def crash(server: Server, session_id: str, text: str) -> None:
    """Ends the server when its journal has this text."""
    wait_until(lambda: server.messages(session_id)[-1]["content"] == text or _journaled(server, text))
    server.kill()


def _journaled(server: Server, text: str) -> bool:
    directory = server.log.parent / "sessions"
    return any(text in path.read_text() for path in directory.glob(".session-*.journal"))


def session_of(id: str) -> str:
    return "session-" + id.split("_")[1]


@pytest.mark.parametrize("seen", [1, 2, 3])
def test_a_stream_that_a_crash_has_cut_off_is_told_to_its_end(
    serve: Serve, flags: list[str], model: ModelServer, seen: int
) -> None:
    model.then(answer("One ", "two ", "three", STALL))
    server = serve(*flags)
    events = start(server, seen)
    id = events[0].response.id
    crash(server, session_of(id), "One two three")
    again = serve(*flags)
    rest = take_up(again, id, events[-1].sequence_number)
    assert text_of(events) + text_of(rest) == "One two three"
    told = numbers([*events, *rest])
    first = next(number for number in told if number >= GAP)
    assert told == [*range(told.index(first)), *range(GAP, GAP + len(told) - told.index(first))]
    assert (rest[-1].type, rest[-1].response.status) == ("response.failed", "failed")
    assert take_up(again, id, rest[-1].sequence_number) == []
    assert [event.to_dict() for event in take_up(again, id, -1)] == [event.to_dict() for event in [*events, *rest]]


def test_what_the_crash_has_lost_is_a_gap_in_the_numbers(serve: Serve, flags: list[str], model: ModelServer) -> None:
    model.then(answer("One ", "two ", STALL))
    server = serve(*flags)
    id = start(server, 2)[0].response.id
    crash(server, session_of(id), "One two ")
    rest = take_up(serve(*flags), id, 500)  # the client has seen more than was kept
    assert numbers(rest) == list(range(GAP, GAP + len(rest)))
    assert rest[-1].type == "response.failed"


@pytest.mark.parametrize("background", [False, True])
def test_a_response_goes_on_where_its_client_was_when_the_server_goes_on_with_it(
    serve: Serve, flags: list[str], model: ModelServer, background: bool
) -> None:
    go = threading.Event()
    call = tool_call("calculator", {"expression": "6*7"}, text="I look. ")
    model.then(call, answer("It ", "is ", STALL), answer("It is ", wait(go), "42."))
    server = serve(*flags)
    events = start(server, 3, background=background)
    id = events[0].response.id
    crash(server, session_of(id), "It is ")
    again = serve(*flags, "-continue_interrupted")
    model.wait_for(3)
    with sdk(again) as client:
        assert client.responses.retrieve(id).status == "in_progress"
        stream = client.responses.retrieve(id, stream=True, starting_after=events[-1].sequence_number)
        rest = [next(stream)]
        go.set()
        rest += list(stream)
        told = numbers([*events, *rest])
        assert told == sorted(set(told))
        last = rest[-1]
        assert last.type == "response.completed"
        assert [item.type for item in last.response.output] == ["message", "mcp_call", "message", "message"]
        assert [item.status for item in last.response.output[2:]] == ["incomplete", "completed"]
        assert last.response.output[-1].content[0].text == "It is 42."
        assert client.responses.retrieve(id).to_dict() == last.response.to_dict()
        items = client.conversations.items.list(f"conv_{id.split('_')[1]}", order="asc").data
    assert [item.id for item in items[1:]] == [item.id for item in last.response.output]
    whole = take_up(again, id, -1)
    assert [event.to_dict() for event in whole] == [event.to_dict() for event in [*events, *rest]]


def test_a_stream_is_the_same_after_a_restart(serve: Serve, flags: list[str], model: ModelServer) -> None:
    model.then(tool_call("calculator", {"expression": "6*7"}, text="I look. "), answer("It ", "is ", "42."))
    server = serve(*flags)
    with sdk(server) as client:
        events = list(client.responses.create(input="Hi", model=MODEL, stream=True, metadata={"n": "1"}))
    id = events[0].response.id
    server.close()
    again = serve(*flags)
    for number in range(-1, len(events)):
        told = [event.to_dict() for event in take_up(again, id, number)]
        assert told == [event.to_dict() for event in events[number + 1 :]]


def test_a_response_that_was_cut_off_can_be_gone_on_from(serve: Serve, flags: list[str], model: ModelServer) -> None:
    model.then(answer("One ", STALL))
    server = serve(*flags)
    id = start(server, 1)[0].response.id
    crash(server, session_of(id), "One ")
    with sdk(serve(*flags)) as client:
        response = client.responses.create(input="And?", model=MODEL, previous_response_id=id)
    assert session_of(response.id) == session_of(id)
    assert response.output_text == "OK"


# --- two servers ---


@pytest.fixture
def both(model: ModelServer, serve: Serve, tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    with RedisServer(tmp_path) as redis:
        shared = [f"-base_url={model.base_url}", f"-redis_url={redis.url}"]
        yield serve(*shared), serve(*shared)


@NEEDED
def test_a_response_is_taken_up_from_another_server(both: tuple[Server, Server], model: ModelServer) -> None:
    here, there = both
    go = threading.Event()
    model.then(answer("One ", "two ", wait(go), "three"))
    events = start(here, 2)
    id = events[0].response.id
    with sdk(there) as client:
        assert client.responses.retrieve(id).status == "in_progress"
        stream = client.responses.retrieve(id, stream=True, starting_after=events[-1].sequence_number)
        go.set()
        rest = list(stream)
    assert text_of([*events, *rest]) == "One two three"
    assert numbers([*events, *rest]) == list(range(len(events) + len(rest)))
    for server in both:
        told = [event.to_dict() for event in take_up(server, id, 4)]
        assert told == [event.to_dict() for event in [*events, *rest][5:]]


@NEEDED
def test_a_response_is_cancelled_from_another_server(both: tuple[Server, Server], model: ModelServer) -> None:
    here, there = both
    model.then(answer("One ", STALL))
    id = start(here, 1, background=True)[0].response.id
    with sdk(there) as client:
        assert client.responses.cancel(id).status == "cancelled"
    with sdk(here) as client:
        assert client.responses.retrieve(id).status == "cancelled"


@NEEDED
def test_a_response_whose_server_is_gone_is_told_to_its_end_by_another(
    both: tuple[Server, Server], model: ModelServer
) -> None:
    here, there = both
    model.then(answer("One ", "two ", STALL))
    events = start(here, 2)
    id = events[0].response.id
    with sdk(there) as client:
        stream = client.responses.retrieve(id, stream=True, starting_after=events[-1].sequence_number - 1)
        rest = [next(stream)]
        here.kill()
        rest += list(stream)
    assert text_of(rest) == "two "
    assert rest[-1].type == "response.failed"
    assert [event.to_dict() for event in take_up(there, id, events[-1].sequence_number - 1)] == [
        event.to_dict() for event in rest
    ]
