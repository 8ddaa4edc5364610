"""What waits when a server is killed, and what other processes do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.model_server import STALL, ModelServer, answer
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.server import Server, ServerClient, wait_until


def reply(request: dict[str, Any]) -> Any:
    text = request["messages"][-1]["content"].split("\n\n")[-1]
    return answer("Hel", STALL)(request) if text == "stall" else answer(f"Re: {text}")(request)


@pytest.fixture
def model() -> Iterator[ModelServer]:
    with ModelServer(default=reply) as model:
        yield model


@pytest.fixture
def start(serve: Callable[..., Server], model: ModelServer, tmp_path: Path) -> Callable[..., Server]:
    """Starts a server over the directory of the test."""
    flags = (f"-base_url={model.base_url}", f"-session_dir={tmp_path}/sessions")
    return lambda *more: serve(*flags, *more)


def begin(server: ServerClient, *texts: str) -> str:
    """A session in which a turn stalls, and these messages wait."""
    session = server.create()
    next(server.say(session, "stall").events())
    for text in texts:
        assert queue(server, session, text) == 202
    return session


def queue(server: ServerClient, session: str, text: str, way: str = "queue") -> int:
    body = {"message": text, "if_busy": way}
    return server.request("POST", f"/sessions/{session}/run", body, {"Idempotency-Key": text}).status


def questions(server: ServerClient, session: str) -> list[str]:
    return [one["content"] for one in server.messages(session) if one["role"] == "user"]


def waiting(server: ServerClient, session: str) -> list[str]:
    found = server.request("GET", f"/sessions/{session}").json
    return [one["content"] for one in found.get("queued", [])]


def test_what_waits_is_there_after_kill_9_and_begins_when_somebody_asks(start: Callable[..., Server]) -> None:
    server = start()
    session = begin(server, "two", "three")
    server.kill()
    server = start()
    assert waiting(server, session) == ["two", "three"] and questions(server, session) == ["stall"]
    assert queue(server, session, "three") == 202  # which is the same message
    wait_until(lambda: not server.request("GET", f"/sessions/{session}").json["running"])
    assert questions(server, session) == ["stall", "two", "three"]


def test_a_plain_message_has_it_begin_too(start: Callable[..., Server]) -> None:
    server = start()
    session = begin(server, "two")
    server.kill()
    server = start()
    assert server.say(session, "three").status == 409
    wait_until(lambda: questions(server, session) == ["stall", "two"])


def test_a_retry_of_the_turn_that_was_cut_off_comes_first(start: Callable[..., Server], model: ModelServer) -> None:
    server = start()
    session = server.create()
    next(server.say(session, "stall", Idempotency_Key="first").events())
    assert queue(server, session, "two") == 202
    server.kill()
    model.then(answer("Done"))
    server = start()
    assert list(server.say(session, "stall", Idempotency_Key="first").events())[-1]["type"] == "stream_end"
    wait_until(lambda: questions(server, session) == ["stall", "two"])


def test_with_continue_interrupted_it_goes_on_at_the_start(start: Callable[..., Server], model: ModelServer) -> None:
    server = start()
    session = begin(server, "two", "three")
    server.kill()
    model.then(answer("lo"))
    server = start("-continue_interrupted")
    wait_until(lambda: not server.request("GET", f"/sessions/{session}").json["running"])
    texts = [one["content"] for one in server.messages(session) if one.get("status") is None]
    assert texts == ["stall", "lo", "two", "Re: two", "three", "Re: three"]


def test_a_turn_of_another_process_on_the_same_directory_takes_no_queue(start: Callable[..., Server]) -> None:
    here, there = start(), start()
    session = begin(here)
    assert queue(there, session, "two") == 409
    assert waiting(here, session) == []


def test_a_deletion_leaves_nothing_of_the_queue(start: Callable[..., Server], tmp_path: Path) -> None:
    server = start()
    session = begin(server, "two")
    assert (tmp_path / "sessions" / f".{session}.queue").exists()
    assert server.request("DELETE", f"/sessions/{session}").status == 200
    assert [path.name for path in (tmp_path / "sessions").iterdir()] == [".queues.lock"]


@NEEDED
def test_on_redis_another_server_queues_watches_takes_back_and_interrupts(
    serve: Callable[..., Server], model: ModelServer, tmp_path: Path
) -> None:
    with RedisServer(tmp_path, appendfsync="no") as redis:
        flags = (f"-base_url={model.base_url}", f"-redis_url={redis.url}", "-keep_alive=0.5")
        here, there = serve(*flags), serve(*flags)
        session = begin(here)
        assert [queue(there, session, text) for text in ("two", "three")] == [202, 202]
        two, three = (one["id"] for one in here.request("GET", f"/sessions/{session}").json["queued"])
        assert there.request("DELETE", f"/sessions/{session}/queued/{two}").status == 200
        watching = there.request("GET", f"/sessions/{session}/run_stream?message={three}")
        assert queue(there, session, "now", "interrupt") == 202
        assert [event["type"] for event in watching.events()][-1] == "stream_end"
        assert questions(there, session) == ["stall", "now", "three"]


@NEEDED
def test_on_redis_what_waits_begins_on_the_server_that_is_left(
    serve: Callable[..., Server], model: ModelServer, tmp_path: Path
) -> None:
    with RedisServer(tmp_path, appendfsync="no") as redis:
        flags = (f"-base_url={model.base_url}", f"-redis_url={redis.url}")
        here, there = serve(*flags), serve(*flags)
        session = begin(here)
        assert queue(there, session, "two") == 202
        here.kill()
        wait_until(lambda: not there.request("GET", f"/sessions/{session}").json["running"])
        assert questions(there, session) == ["stall", "two"]
