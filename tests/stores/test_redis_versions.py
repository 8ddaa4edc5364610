"""Another version on the same Redis: what is not understood is refused, or passed over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.client import Client, error_of
from tests.support.recorded import Lines
from tests.support.redis_server import NEEDED, RedisServer

if TYPE_CHECKING:
    from session_core.stores.redis import RedisStorage

pytestmark = NEEDED


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(server: RedisServer) -> RedisServer:
    server.call("FLUSHALL")
    return server


@pytest.fixture
def open_store(redis: RedisServer) -> Callable[..., RedisStorage]:
    from session_core.stores.redis import RedisStorage

    return lambda: RedisStorage(redis.url)


STARTED = b'[1,"2026-01-31T12:34:56Z",0,"Started"]'
CHUNK = b'[2,"2026-01-31T12:34:56Z",1,"Chunk","Hel"]'
LATER = b'[3,"2026-01-31T12:34:56Z",0,"Picture","sha"]'
WIDER = b'[4,"2026-01-31T12:34:56Z",2,"Chunk","lo",{"later":1}]'
FAILED = b'[5,"2026-01-31T12:34:56Z",0,"Failed","model_error",null,null,null]'


def first_line(question: str, *more: object) -> bytes:
    return json.dumps(["0a", question, 1, {}, *more]).encode()


def test_kinds_of_events_and_fields_of_a_later_version_are_passed_over(
    open_store: Callable[..., RedisStorage],
) -> None:
    storage = open_store()
    session = storage.create()
    with storage.lock_for_turn(session) as locked:
        question = locked.append({"role": "user", "content": "Hi"})["id"]
        lines = Lines(STARTED, CHUNK, LATER, WIDER, FAILED, ended=True)
        locked.record(first_line(question, {"later": 1}), lines, lambda asked: None)
        storage.flush()
    with Client(storage=open_store()) as client:
        events = client.watch(session).rest()
    assert [event["type"] for event in events] == ["stream_start", "stream_chunk", "stream_chunk", "error"]
    assert [event["data"]["content"] for event in events[1:3]] == ["Hel", "lo"]


@pytest.mark.parametrize("first", [b'{"id":"0a"}', b"[1,2,3]", b"what", b'["0a"]'])
def test_a_turn_that_cannot_be_understood_is_busy(
    open_store: Callable[..., RedisStorage], first: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_store()
    session = storage.create()
    with storage.lock_for_turn(session) as locked:
        locked.record(first, Lines(STARTED), lambda asked: None)
        with Client(storage=open_store()) as client:
            for method, path in (("GET", "run_stream"), ("POST", "cancel")):
                response = client.request(method, f"/sessions/{session}/{path}")
                assert error_of(response) == (409, "session_busy")
                assert response.headers["Retry-After"] == "1"
    assert "Traceback" not in caplog.text


def test_what_an_earlier_version_has_published_is_followed(
    open_store: Callable[..., RedisStorage], redis: RedisServer
) -> None:
    storage = open_store()
    session = storage.create()
    with storage.lock(session) as locked:
        question = locked.append({"role": "user", "content": "Hi"})["id"]
    key = f"session_server:session:{session}"
    redis.call("HSET", key, "told", "other-1", "published", "older")
    redis.call("XADD", "session_server:events:other-1", "1-0", "lines", first_line(question) + b"\n" + STARTED)
    substitute = b'[1000001,"2026-01-31T12:34:56Z",0,"Failed","internal_error",null,null,null]'
    redis.call("XADD", "session_server:events:other-1", f"{10**12}-0", "lines", substitute, "last", "1")
    with Client(storage=open_store()) as client:
        events = client.watch(session).rest()
        assert [event["type"] for event in events] == ["stream_start", "error"]
        assert client.watch(session, f"?after={events[1]['id']}").status == 204
