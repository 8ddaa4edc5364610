"""Turns that kill -9 has cut off: what is kept of them, and how they go on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from calculator import calculator
from storage import MemoryStorage, Storage
from tests.support.continued import BOOK, GO_ON, brief
from tests.support.model_server import STALL, ModelServer, ReplyTo, answer, frames, wait
from tests.support.recorded import Lines
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.server import Server, wait_until


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), appendfsync="no") as server:
        yield server


@pytest.fixture(params=["files", pytest.param("redis", marks=NEEDED)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "files":
        return f"-session_dir={tmp_path / 'sessions'}"
    server: RedisServer = request.getfixturevalue("redis")
    server.call("FLUSHALL")
    return f"-redis_url={server.url}"


def thinking(*texts: str) -> ReplyTo:
    return frames(*({"choices": [{"index": 0, "delta": {"reasoning_content": text}}]} for text in texts), STALL)


def killed_in_mid_answer(server: Server, session: str, path: str = "run_stream", body: Any = None) -> list[Any]:
    """The events of a turn until its text is there for long enough, and then the server is killed."""
    reply = server.request("POST", f"/sessions/{session}/{path}", body or {"message": "Hi"})
    seen = []
    for event in reply.events():
        seen.append(event)
        if event["type"] in ("stream_chunk", "stream_reasoning"):
            break
    threading.Event().wait(0.4)  # what came 300 ms ago is kept
    server.kill()
    reply.close()
    return seen


def idle(server: Server, session: str) -> None:
    """Waits until the session is free: in Redis the lease of a process that is gone has to run out."""
    wait_until(lambda: not server.request("GET", f"/sessions/{session}").json["running"])


def test_what_was_shown_is_kept(place: str, serve: Callable[..., Server]) -> None:
    with ModelServer(default=answer("Hello, ", "world", STALL)) as model:
        server = serve(f"-base_url={model.base_url}", place)
        session = server.create()
        killed_in_mid_answer(server, session)
        server = serve(f"-base_url={model.base_url}", place)
        idle(server, session)
        shown = server.messages(session)
        assert brief(shown)[1:] == [("assistant", "Hello, world", "interrupted")]
        (found,) = server.request("GET", "/sessions?q=WORLD").json["sessions"]
        assert found == {"id": session, "message_id": shown[1]["id"], "snippet": "Hello, world"}
        assert shown[1]["model"] == "gpt-3.5-turbo"
        assert server.messages(session) == shown
        model.default = answer("OK")
        list(server.say(session, "next").events())
        assert server.messages(session)[:2] == shown
        assert [one["content"] for one in server.messages(session)][2:] == ["next", "OK"]


def test_reasoning_is_kept_too(place: str, serve: Callable[..., Server]) -> None:
    with ModelServer(default=thinking("Let me ", "think.")) as model:
        server = serve(f"-base_url={model.base_url}", place)
        session = server.create()
        killed_in_mid_answer(server, session)
        server = serve(f"-base_url={model.base_url}", place)
        idle(server, session)
        message = server.messages(session)[1]
        assert (message["content"], message["reasoning"]) == ("", "Let me think.")


def test_reasoning_that_is_not_shown_is_kept_in_files(serve: Callable[..., Server], tmp_path: Path) -> None:
    go = threading.Event()
    thought: dict[str, Any] = {"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}}]}
    said_: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": "Hello"}}]}
    with ModelServer(default=frames(thought, wait(go), said_, STALL)) as model:
        flags = (f"-base_url={model.base_url}", f"-session_dir={tmp_path / 's'}")
        server = serve(*flags, "-show_reasoning=false")
        session = server.create()
        go.set()
        killed_in_mid_answer(server, session)
        message = serve(*flags).messages(session)[1]
        assert (message["content"], message["reasoning"]) == ("Hello", "Hm.")


def test_a_turn_goes_on_after_kill_9_without_a_second_effect(
    place: str, serve: Callable[..., Server], tmp_path: Path
) -> None:
    tools = tmp_path / "tools.py"
    tools.write_text(
        f"def book(name: str) -> str:\n    '''Books a seat.'''\n    open({str(tmp_path / 'effects')!r}, 'a')"
        ".write(name)\n    return 'booked'\n"
    )
    with ModelServer(BOOK, answer("Ann ", STALL)) as model:
        flags = (f"-base_url={model.base_url}", place, f"-tools={tools}")
        server = serve(*flags)
        session = server.create()
        reply = server.say(session, "Book Ann")
        for event in reply.events():
            if event["type"] == "stream_chunk" and event["data"]["content"] == "Ann ":
                break
        threading.Event().wait(0.4)
        server.kill()
        reply.close()
        server = serve(*flags)
        idle(server, session)
        done = server.request("POST", f"/sessions/{session}/run", GO_ON)
        assert done.json["message"]["content"] == "OK"
        assert [text for _, text, _ in brief(server.messages(session))] == [
            *("Book Ann", "Let me see. ", "booked", "Ann ", "OK")
        ]
        assert (tmp_path / "effects").read_text() == "Ann"


def test_interrupted_turns_are_gone_on_with_at_the_start(place: str, serve: Callable[..., Server]) -> None:
    with ModelServer(default=answer("Hello", STALL)) as model:
        server = serve(f"-base_url={model.base_url}", place)
        complete = server.create()
        model.then(answer("OK"))
        list(server.say(complete, "Hi").events())
        sessions = [server.create() for _ in range(10)]
        replies = [server.say(session, "Hi") for session in sessions]
        for reply in replies:
            assert [next(reply.events())["type"], next(reply.events())["type"]] == ["stream_start", "stream_chunk"]
        threading.Event().wait(0.4)
        server.kill()
        for reply in replies:
            reply.close()
        go = threading.Event()
        model.default = answer("Good ", wait(go), "day.")
        server = serve(f"-base_url={model.base_url}", place, "-continue_interrupted")
        model.wait_for(21)
        watcher = server.request("GET", f"/sessions/{sessions[0]}/run_stream")
        assert watcher.status == 200
        go.set()
        assert [event["type"] for event in watcher.events()][-1] == "stream_end"
        for session in sessions:
            idle(server, session)
            assert brief(server.messages(session))[1:] == [
                ("assistant", "Hello", "interrupted"),
                ("assistant", "Good day.", None),
            ]
        assert len(server.messages(complete)) == 2
        assert len(model.requests) == 21


def test_a_client_that_retries_under_its_key_joins_the_turn_that_goes_on(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    with ModelServer(default=answer("Hello", STALL)) as model:
        flags = (f"-base_url={model.base_url}", f"-session_dir={tmp_path / 's'}")
        server = serve(*flags)
        session = server.create()
        reply = server.say(session, "Hi", Idempotency_Key="k")
        assert [next(reply.events())["type"], next(reply.events())["type"]] == ["stream_start", "stream_chunk"]
        server.kill()
        reply.close()
        go = threading.Event()
        model.default = answer(wait(go), "Good day.")
        server = serve(*flags, "-continue_interrupted")
        model.wait_for(2)
        joined = server.say(session, "Hi", Idempotency_Key="k").events()
        assert next(joined)["type"] == "stream_start"
        go.set()
        assert list(joined)[-1]["data"]["complete_text"] == "Good day."
        assert len(model.requests) == 2


def test_a_crash_during_recovery_loses_nothing_and_is_not_repeated_for_ever(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    with ModelServer(default=answer("Hello", STALL)) as model:
        flags = (f"-base_url={model.base_url}", f"-session_dir={tmp_path / 's'}", "-continue_interrupted")
        server = serve(*flags)
        session = server.create()
        killed_in_mid_answer(server, session)
        for number in range(5):
            server = serve(*flags)
            if number < 2:
                model.wait_for(2 + number)
                wait_until(lambda: (tmp_path / "s" / f".{session}.journal").exists())
                threading.Event().wait(0.4)
            else:
                log = server.log
                wait_until(lambda log=log: "again and again" in log.read_text())
                assert not server.request("GET", f"/sessions/{session}").json["running"]
            server.kill()
        server = serve(*flags)
        assert len(model.requests) == 3
        assert brief(server.messages(session))[1:] == [("assistant", "Hello", "interrupted")] * 3
        model.default = answer("OK")
        assert server.request("POST", f"/sessions/{session}/run", GO_ON).json["message"]["content"] == "OK"


def test_an_old_interrupted_turn_is_left_alone(serve: Callable[..., Server], tmp_path: Path) -> None:
    with ModelServer(default=answer("Hello", STALL)) as model:
        flags = (f"-base_url={model.base_url}", f"-session_dir={tmp_path / 's'}")
        server = serve(*flags)
        session = server.create()
        killed_in_mid_answer(server, session)
        path = tmp_path / "s" / f"{session}.json"
        value = json.loads(path.read_text())
        path.write_text(json.dumps({**value, "updated_at": "2026-01-01T00:00:00Z"}))
        server = serve(*flags, "-continue_interrupted")
        new = server.create()
        model.default = answer("OK")
        list(server.say(new, "Hi").events())  # the start is over
        assert brief(server.messages(session))[1:] == [("assistant", "Hello", "interrupted")]
        assert len(model.requests) == 2


@NEEDED
def test_another_server_stores_what_a_dead_one_has_left_for_its_watchers(
    redis: RedisServer, serve: Callable[..., Server]
) -> None:
    redis.call("FLUSHALL")
    with ModelServer(default=answer("Hello", STALL)) as model:
        one, other = (serve(f"-base_url={model.base_url}", f"-redis_url={redis.url}") for _ in range(2))
        session = one.create()
        reply = one.say(session, "Hi")
        watcher = other.request("GET", f"/sessions/{session}/run_stream")
        events = watcher.events()
        assert next(events)["type"] == "stream_start"
        written_at = next(events)["created_at"]
        one.kill()
        reply.close()
        last = list(events)[-1]
        assert last["data"]["code"] == "internal_error"
        kept = other.messages(session)[-1]
        assert kept["created_at"] == written_at
        assert (kept["id"], kept["content"], kept["reason"]) == (last["data"]["message_id"], "Hello", "interrupted")
        model.default = answer("OK")
        assert other.request("POST", f"/sessions/{session}/run", GO_ON).json["message"]["content"] == "OK"


@NEEDED
def test_what_redis_keeps_of_an_interrupted_turn_goes_with_its_session(
    redis: RedisServer, serve: Callable[..., Server]
) -> None:
    redis.call("FLUSHALL")
    with ModelServer(default=answer("Hello", STALL)) as model:
        server = serve(f"-base_url={model.base_url}", f"-redis_url={redis.url}")
        session = server.create()
        killed_in_mid_answer(server, session)
        server = serve(f"-base_url={model.base_url}", f"-redis_url={redis.url}")
        idle(server, session)
        [key] = redis.call("KEYS", "session_server:events:*")
        assert redis.call("PTTL", key) == -1
        assert server.request("DELETE", f"/sessions/{session}").status == 200
        wait_until(lambda: redis.call("KEYS", "session_server:events:*") == [])  # those who watch get its end before


def test_memory_keeps_no_journal() -> None:
    storage: Storage = MemoryStorage()
    session = storage.create()
    with storage.lock_for_turn(session) as locked:
        locked.record(b"x", Lines(b"y"), lambda asked: None)
    assert storage.journal(session) == []
    assert calculator("1+1") == "2"
