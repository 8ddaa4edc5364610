"""A Redis that is restarted, paused, out of reach, out of memory or read-only, at rest and in mid-turn."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from session_server import main
from storage import SessionBusy, SessionCorrupt, StorageUnavailable
from tests.support.client import Client, error_of
from tests.support.model_server import STALL, ModelServer, answer, wait
from tests.support.recorded import Lines
from tests.support.redis_server import NEEDED, Proxy, RedisServer
from tests.support.server import ROOT, SERVER, TIMEOUT, Server, environment, wait_until

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

    return lambda url=redis.url: RedisStorage(url)


def contents(client: Client, session_id: str) -> list[str]:
    return [message["content"] for message in client.messages(session_id)]


# --- restarted, paused, out of reach ---


def test_nothing_that_was_acknowledged_is_lost_when_redis_is_killed(
    redis: RedisServer, open_store: Callable[..., RedisStorage]
) -> None:
    with Client(default=answer("Hello"), storage=open_store()) as client:
        session_id = client.create()
        assert client.run(session_id).status_code == 200
        before, listed = client.session(session_id), client.get("/sessions").text
        redis.kill()
        redis.start()
        assert (client.session(session_id), client.get("/sessions").text) == (before, listed)
        assert client.run(session_id).status_code == 200


def test_a_turn_outlives_a_restart_of_redis(redis: RedisServer, open_store: Callable[..., RedisStorage]) -> None:
    go = threading.Event()
    with Client(answer("Hel", wait(go), "lo"), storage=open_store()) as client:
        session_id = client.create()
        stream = client.stream(session_id)
        stream.next("stream_chunk")
        redis.kill()
        redis.start()
        go.set()
        assert stream.last()["data"]["complete_text"] == "Hello"
        assert contents(client, session_id) == ["Hi", "Hello"]
        with Client(model=client.model, storage=open_store()) as other:  # who can read all of it
            assert other.watch(session_id).rest() == client.watch(session_id).rest()


def test_without_redis_everything_is_503_and_then_works_again(
    redis: RedisServer, open_store: Callable[..., RedisStorage]
) -> None:
    go = threading.Event()
    with Client(answer("Hel", wait(go), "lo"), storage=open_store()) as client:
        session_id, other = client.create(), client.create()
        stream = client.stream(session_id)
        stream.next("stream_chunk")
        redis.kill()
        for refused in (
            client.run(other),
            client.request("POST", "/sessions"),
            client.get("/sessions"),
            client.get(f"/sessions/{session_id}"),
            client.request("DELETE", f"/sessions/{other}"),
            client.get("/ready"),
        ):
            assert error_of(refused) == (503, "storage_unavailable")
        go.set()
        assert stream.next("stream_chunk")["data"]["content"] == "lo"  # who watches here sees it all the same
        assert stream.last()["data"]["code"] == "storage_unavailable"
        redis.start()
        assert client.get("/ready").status_code == 200
        question, *partial = contents(client, session_id)  # what Redis was still told of the answer is kept
        assert question == "Hi" and all("Hello".startswith(text) for text in partial)
        assert client.run(other).status_code == 200


def test_a_redis_that_does_not_answer_is_503_and_then_works_again(
    redis: RedisServer, open_store: Callable[..., RedisStorage]
) -> None:
    with Client(default=answer("Hello"), storage=open_store()) as client:
        session_id = client.create()
        redis.pause()
        began = time.monotonic()
        refused = client.run(session_id)
        assert error_of(refused) == (503, "storage_unavailable")
        assert time.monotonic() - began < 10
        redis.go_on()
        assert client.run(client.create()).status_code == 200
        assert contents(client, session_id) == []  # nothing of what was refused comes after all


def test_a_change_whose_reply_is_lost_is_made_once(
    redis: RedisServer, open_store: Callable[..., RedisStorage]
) -> None:
    with Proxy(redis.port) as proxy:
        storage = open_store(proxy.url)
        proxy.lose_reply()
        session_id = storage.create()
        assert proxy.lost.is_set() and storage.page() == ([session_id], None)
        proxy.lose_reply()
        locked = storage.lock(session_id)
        for text in ("one", "two"):
            proxy.lose_reply()
            locked.append({"role": "user", "content": text})
        proxy.lose_reply()
        locked.set_last_error("model_error")
        proxy.lose_reply()
        locked.release()
        session = storage.get(session_id)
        assert ([message["content"] for message in session.messages], session.last_error) == (
            ["one", "two"],
            "model_error",
        )
        proxy.lose_reply()
        with storage.lock(session_id) as locked:
            proxy.lose_reply()
            locked.delete()
        assert storage.page() == ([], None)


def test_a_change_that_reaches_redis_after_the_next_one_takes_nothing_back(
    redis: RedisServer, open_store: Callable[..., RedisStorage]
) -> None:
    with Proxy(redis.port) as proxy:
        storage = open_store(proxy.url)
        session_id = storage.create()
        with storage.lock(session_id) as locked:
            locked.append({"role": "user", "content": "one"})
            proxy.hold_back()
            locked.append({"role": "assistant", "content": "two"})
            locked.append({"role": "tool", "content": "three"})
            proxy.deliver()
        assert [message["content"] for message in storage.get(session_id).messages] == ["one", "two", "three"]


def test_what_a_failed_change_has_left_after_all_is_taken_back(
    redis: RedisServer, open_store: Callable[..., RedisStorage]
) -> None:
    storage = open_store()
    session_id = storage.create()
    with storage.lock(session_id) as locked:
        locked.append({"role": "user", "content": "one"})
        redis.call("RPUSH", f"session_server:messages:{session_id}", '{"what a try left": "that was given up"}')
        locked.append({"role": "user", "content": "two"})
        redis.call("RPUSH", f"session_server:messages:{session_id}", '{"and": "another"}')
    assert [message["content"] for message in storage.get(session_id).messages] == ["one", "two"]


def test_events_reach_others_once_where_the_connection_breaks_again_and_again(
    redis: RedisServer, open_store: Callable[..., RedisStorage]
) -> None:
    go = [threading.Event() for _ in range(4)]
    steps = [step for number, event in enumerate(go) for step in (f"{number} ", wait(event))]
    with Proxy(redis.port) as proxy, Client(answer(*steps, "end"), storage=open_store(proxy.url)) as client:
        session_id = client.create()
        stream = client.stream(session_id)
        with Client(model=client.model, storage=open_store()) as other:
            watching = other.watch(session_id)
            for event in go:
                assert watching.next("stream_chunk") == stream.next("stream_chunk")
                proxy.lose_reply()
                event.set()
            assert watching.rest() == stream.rest()
        client.storage.flush()
        proxy.close()


@contextmanager
def refusing(redis: RedisServer, kind: str) -> Iterator[None]:
    """Redis takes no writes."""
    begin, end = {
        "out of memory": (["CONFIG", "SET", "maxmemory", "1mb"], ["CONFIG", "SET", "maxmemory", "0"]),
        "read-only": (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
        "short of replicas": (
            ["CONFIG", "SET", "min-replicas-to-write", "1"],
            ["CONFIG", "SET", "min-replicas-to-write", "0"],
        ),
    }[kind]
    redis.call(*begin)
    try:
        yield
    finally:
        redis.call(*end)


@pytest.mark.parametrize("kind", ["out of memory", "read-only", "short of replicas"])
def test_a_redis_that_takes_no_writes_is_503_and_then_works_again(
    redis: RedisServer, open_store: Callable[..., RedisStorage], kind: str
) -> None:
    go = threading.Event()
    with Client(answer("Hel", wait(go), "lo"), default=answer("Hello"), storage=open_store()) as client:
        session_id, other = client.create(), client.create()
        stream = client.stream(session_id)
        stream.next("stream_chunk")
        with refusing(redis, kind):
            assert error_of(client.run(other)) == (503, "storage_unavailable")
            assert error_of(client.request("POST", "/sessions")) == (503, "storage_unavailable")
            assert error_of(client.get("/ready")) == (503, "storage_unavailable")
            assert contents(client, session_id) == ["Hi"]
            go.set()
            assert stream.last()["data"]["code"] == "storage_unavailable"
        assert client.get("/ready").status_code == 200
        assert client.run(other).status_code == 200
        question, *partial = contents(client, session_id)  # what Redis was told of the answer before or after is kept
        assert question == "Hi" and all("Hello".startswith(text) for text in partial)


@pytest.mark.parametrize(
    "kind, word",
    [
        ("out of memory", "used memory > 'maxmemory'"),
        ("read-only", "read only replica"),
        ("short of replicas", "NOREPLICAS"),
    ],
)
def test_the_log_of_a_failed_write_has_its_reason_and_no_script(
    redis: RedisServer,
    open_store: Callable[..., RedisStorage],
    caplog: pytest.LogCaptureFixture,
    kind: str,
    word: str,
) -> None:
    storage = open_store()
    session_id = storage.create()
    with refusing(redis, kind), pytest.raises(StorageUnavailable), storage.lock(session_id) as locked:
        locked.append({"role": "user", "content": "a text of mine"})
    lines = caplog.text.splitlines()
    assert lines and all(word in line for line in lines), lines
    assert not any(one in caplog.text for one in ("redis.call", "script", "a text of mine"))


def test_sessions_can_be_deleted_where_memory_is_short(
    redis: RedisServer, open_store: Callable[..., RedisStorage]
) -> None:
    with Client(storage=open_store()) as client:
        session_id = client.create()
        with refusing(redis, "out of memory"):
            assert client.request("DELETE", f"/sessions/{session_id}").status_code == 200
        assert client.get(f"/sessions/{session_id}").status_code == 404


def test_after_a_failover_the_new_primary_is_found(
    redis: RedisServer, open_store: Callable[..., RedisStorage], tmp_path: Path
) -> None:
    with RedisServer(tmp_path) as replica, Proxy(redis.port) as proxy:
        storage = open_store(proxy.url)
        session_id = storage.create()
        replica.call("REPLICAOF", "127.0.0.1", redis.port)
        wait_until(lambda: replica.call("EXISTS", f"session_server:session:{session_id}"))
        replica.call("REPLICAOF", "NO", "ONE")
        redis.call("REPLICAOF", "127.0.0.1", replica.port)
        proxy.port = replica.port  # where new connections go, while the old ones are left alone
        try:
            with pytest.raises(StorageUnavailable):
                storage.check()
            storage.check()
        finally:
            redis.call("REPLICAOF", "NO", "ONE")


def test_a_shutdown_with_redis_away_takes_no_longer_for_many_turns(redis: RedisServer, tmp_path: Path) -> None:
    with ModelServer(default=answer("Hel", STALL)) as model:
        flags = (f"-base_url={model.base_url}", f"-redis_url={redis.url}", "-grace=0")
        with Server(*flags, log=tmp_path / "log") as server:
            streams = [server.say(server.create(), "Hi").events() for _ in range(10)]
            assert {next(stream)["type"] for stream in streams} == {"stream_start"}
            redis.kill()
            began = time.monotonic()
            server.send_signal(signal.SIGTERM)
            try:
                assert [list(stream)[-1]["data"]["code"] for stream in streams] == ["shutting_down"] * 10
                assert server.wait() == 0
                assert time.monotonic() - began < 20  # for each of them it tries for three seconds
            finally:
                redis.start()


# --- what Redis has lost ---


def test_a_turn_whose_session_redis_has_lost_ends_and_does_not_bring_it_back(
    redis: RedisServer, open_store: Callable[..., RedisStorage], caplog: pytest.LogCaptureFixture
) -> None:
    with Client(answer("Hel", STALL), storage=open_store()) as client:
        session_id = client.create()
        stream = client.stream(session_id)
        stream.next("stream_chunk")
        with Client(model=client.model, storage=open_store()) as other:
            watching = other.watch(session_id)
            watching.next("stream_chunk")
            redis.call("FLUSHALL")
            assert stream.last()["data"]["code"] == "internal_error"
            assert watching.rest() == []  # it breaks off, and cannot be resumed
            assert other.watch(session_id).status == 404
        assert redis.call("KEYS", f"*{session_id}*") == []
    assert "Redis has it no more" in caplog.text and "another process" not in caplog.text


def test_events_that_redis_has_lost_are_gone_and_not_skipped(
    redis: RedisServer, open_store: Callable[..., RedisStorage]
) -> None:
    with Client(answer("Hello"), storage=open_store()) as client:
        session_id = client.create()
        events = client.stream(session_id).rest()
        with Client(model=client.model, storage=open_store()) as other:
            wait_until(lambda: other.watch(session_id).rest() == events)
            redis.call("DEL", *redis.call("KEYS", "session_server:events:*"))
            assert other.watch(session_id, f"?after={events[0]['id']}").status == 410
            assert other.watch(session_id).status == 204


def test_an_answer_that_was_stored_and_not_told_is_told_whole_and_is_no_silent_gap(
    redis: RedisServer, open_store: Callable[..., RedisStorage]
) -> None:
    storage = open_store()
    session_id = storage.create()
    with storage.lock(session_id) as locked:  # as a server that dies between the one and the other
        question = locked.append({"role": "user", "content": "Hi"})
        locked.record(json.dumps(["0a", question["id"], 1, {}]).encode(), Lines(), lambda asked: None)
        locked.append({"role": "assistant", "content": "Hello"})
    with Client(storage=open_store()) as client:
        events = client.watch(session_id).rest()
        assert [event["type"] for event in events] == ["stream_start", "stream_chunk", "stream_end"]
        assert client.watch(session_id, "?after=evt-0a-1").rest() == events[1:]
        assert error_of(client.get(f"/sessions/{session_id}/run_stream?after=evt-0a-2")) == (410, "event_gone")


def test_who_waits_for_an_event_that_was_not_told_yet_is_one_of_those_who_watch(
    redis: RedisServer, open_store: Callable[..., RedisStorage]
) -> None:
    go = threading.Event()
    with Client(answer("Hel", wait(go)), storage=open_store()) as client, ThreadPoolExecutor(17) as pool:
        session_id = client.create()
        start = client.stream(session_id).next("stream_start")
        with Client(model=client.model, storage=open_store(), max_streams=1) as other:
            path = f"/sessions/{session_id}/run_stream"
            refused = as_completed([pool.submit(other.get, f"{path}?after={start['id']}00") for _ in range(17)])
            assert error_of(next(refused).result()) == (503, "overloaded")
            go.set()
            assert [error_of(one.result()) for one in refused] == [(410, "event_gone")] * 16


# --- values that cannot be understood ---


@pytest.mark.parametrize(
    "damage",
    [
        ("RPUSH", "session_server:messages:{}", "not JSON"),
        ("RPUSH", "session_server:messages:{}", '{"role": "user"}'),
        ("RPUSH", "session_server:messages:{}", "\udcff"),
        ("HSET", "session_server:session:{}", "title", "{"),
        ("HSET", "session_server:session:{}", "note", "1"),
        ("HDEL", "session_server:session:{}", "created_at"),
        ("SET", "session_server:messages:{}", "a string"),
        ("SET", "session_server:session:{}", "a string"),
    ],
    ids=str,
)
def test_what_cannot_be_understood_costs_its_own_session_only(
    redis: RedisServer, open_store: Callable[..., RedisStorage], damage: tuple[str, ...]
) -> None:
    storage = open_store()
    broken, sound = storage.create(), storage.create()
    redis.call(*(part.replace("{}", broken).encode(errors="surrogateescape") for part in damage))
    with pytest.raises(SessionCorrupt):
        storage.get(broken)
    assert storage.summary(broken).created_at is None
    assert storage.page() == ([sound, broken], None)
    with Client(storage=storage) as client:
        assert error_of(client.run(broken)) == (500, "session_corrupt")
        assert len(client.get("/sessions?details=true").json["sessions"]) == 2
        assert client.run(sound).status_code == 200


# --- leases ---


def test_a_session_whose_holder_says_nothing_is_free_after_some_seconds(
    redis: RedisServer, open_store: Callable[..., RedisStorage]
) -> None:
    storage = open_store()
    session_id = storage.create()
    first = storage.lock(session_id)  # for less than a turn, so that nobody renews it
    with pytest.raises(SessionBusy):
        storage.lock(session_id)
    lease = f"session_server:lease:{session_id}"
    assert 0 < redis.call("PTTL", lease) <= 2000
    redis.call("DEL", lease)  # as if the time were up
    first.append({"role": "user", "content": "nobody has locked it"})
    with storage.lock(session_id) as second:
        for change in (
            first.delete,
            lambda: first.append({"role": "user", "content": "x"}),
            lambda: first.set_last_error("x"),
        ):
            with pytest.raises(StorageUnavailable):
                change()
        first.release()
        second.append({"role": "user", "content": "mine"})
        assert redis.call("GET", lease)
    with pytest.raises(RuntimeError):
        first.delete()
    assert [message["content"] for message in storage.get(session_id).messages] == ["nobody has locked it", "mine"]


def test_a_turn_that_has_lost_its_session_was_interrupted_here_as_elsewhere(
    redis: RedisServer, open_store: Callable[..., RedisStorage]
) -> None:
    go = threading.Event()
    with Client(answer("Hel", wait(go), "lo"), storage=open_store()) as client:
        session_id = client.create()
        stream = client.stream(session_id)
        stream.next("stream_chunk")
        with Client(model=client.model, storage=open_store()) as other:
            watching = other.watch(session_id)
            watching.next("stream_chunk")
            redis.call("HSET", f"session_server:session:{session_id}", "token", "another")  # who has locked it
            redis.call("SET", f"session_server:lease:{session_id}", "brief another", "PX", 1)
            go.set()
            for ended in (stream.last()["data"], watching.last()["data"]):
                assert (ended["error"], ended["code"]) == ("The turn was interrupted.", "internal_error")


def test_when_a_turn_is_said_to_be_interrupted_nothing_of_it_is_stored_any_more(
    open_store: Callable[..., RedisStorage], redis: RedisServer
) -> None:
    storage, other = open_store(), open_store()
    session_id = storage.create()
    locked = storage.lock(session_id)
    locked.record(b"first", Lines(), lambda asked: None)
    redis.call("DEL", f"session_server:lease:{session_id}")
    there = other.turn_feed(session_id)
    assert there and there.read(1) == [b"first"] and there.interrupted()
    with pytest.raises(StorageUnavailable):
        locked.append({"role": "assistant", "content": "an answer that nobody was told of"})
    there.end([b"last"])
    assert (there.read(1), storage.get(session_id).messages) == ([b"last"], [])


def test_who_was_too_slow_can_delete_nothing_even_when_the_next_holder_has_gone(
    open_store: Callable[..., RedisStorage], redis: RedisServer
) -> None:
    storage = open_store()
    session_id = storage.create()
    first = storage.lock(session_id)
    redis.call("DEL", f"session_server:lease:{session_id}")
    storage.lock(session_id).release()
    with pytest.raises(StorageUnavailable):
        first.delete()
    assert storage.get(session_id).messages == []


def test_processes_that_were_forked_follow_one_another(redis: RedisServer) -> None:
    code = f"""
import os
from session_core.stores.redis import RedisStorage
from tests.support.recorded import Lines
storage = RedisStorage({redis.url!r})
session_id = storage.create()
if os.fork() == 0:
    storage.lock_for_turn(session_id).record(b"first", Lines(), lambda asked: None)
    os._exit(0)
os.wait()
print(storage.turn_feed(session_id).read(1))
"""
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert found.stdout == "[b'first']\n", found.stderr


# --- at the start ---


@pytest.fixture
def start_in_vain(capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Gives the line that is printed at a start with this URL, which must fail."""

    def start(url: str) -> str:
        assert main(["-demo", "-port=0", f"-redis_url={url}"]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        return str(err)

    return start


def test_a_redis_that_cannot_be_reached_ends_the_process_with_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [*SERVER, "-demo", f"-redis_url=redis://:pass-word@127.0.0.1:{port}/0"]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1), ended.stderr
    assert ended.stderr.startswith("session_server: -redis_url: cannot reach Redis: ")
    assert "refused" in ended.stderr and "see to the address" in ended.stderr and "pass-word" not in ended.stderr


def test_a_redis_that_refuses_the_password_is_told_in_a_line(
    redis: RedisServer, start_in_vain: Callable[[str], str]
) -> None:
    redis.call("ACL", "SETUSER", "limited", "on", ">right", "~*", "+@all")
    line = start_in_vain(f"redis://limited:pass-word@127.0.0.1:{redis.port}/0")
    assert "password" in line and "pass-word" not in line


def test_a_redis_that_cannot_be_written_is_told_in_a_line(
    redis: RedisServer, start_in_vain: Callable[[str], str]
) -> None:
    redis.call("ACL", "SETUSER", "reader", "on", ">right", "~*", "+@read", "+info", "+client", "+config|get")
    line = start_in_vain(f"redis://reader:right@127.0.0.1:{redis.port}/0")
    assert "-redis_url: cannot write to Redis" in line


@pytest.mark.parametrize(
    "rest, words",
    [
        ("/0?unheard-of=1", "cannot be understood"),
        ("/name", "must be a URL such as"),
        ("/99", "out of range"),
        ("..example/0", "must be a URL such as"),
    ],
)
def test_a_url_that_means_nothing_ends_the_process_with_one_line(redis: RedisServer, rest: str, words: str) -> None:
    address = "127" if rest.startswith(".") else f"127.0.0.1:{redis.port}"
    command = [*SERVER, "-demo", "-port=0", f"-redis_url=redis://{address}{rest}"]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1), ended.stderr
    assert words in ended.stderr


def test_the_banner_names_redis_and_no_password_is_shown(redis: RedisServer, tmp_path: Path) -> None:
    redis.call("ACL", "SETUSER", "writer", "on", ">pass-word", "~session_server:*", "+@all", "-@admin", "-@dangerous")
    url = f"redis://writer:pass-word@127.0.0.1:{redis.port}/0"
    with Server("-demo", env={"SESSION_SERVER_REDIS_URL": url}, log=tmp_path / "log") as server:
        assert f"sessions: redis://127.0.0.1:{redis.port}/0\n" in server.banner
        assert server.request("POST", f"/sessions/{server.create()}/run", {"message": "1+1"}).status == 200
        assert "does not tell" in server.log.read_text()  # how it is configured
        redis.call("ACL", "SETUSER", "writer", "off")
        redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert server.request("GET", "/ready").status == 503
        assert "pass-word" not in server.log.read_text() + server.banner


def test_without_the_client_a_start_with_redis_names_the_remedy(
    start_in_vain: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)  # as where it is not installed
    for room in (
        "session_core.stores.redis",
        "session_core.stores.redis_connection",
        "session_core.stores.redis_feed",
    ):
        monkeypatch.delitem(sys.modules, room, raising=False)
    line = start_in_vain("redis://127.0.0.1:1")
    assert line == "session_server: -redis_url needs the redis client: pip install redis\n"


def test_redis_is_imported_only_where_it_is_asked_for() -> None:
    code = "import sys, session_server; session_server.build_app(); print('redis' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=environment({"SESSION_SERVER_DEMO": "true"}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert found.stdout == "False\n"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"appendonly": "no"}, "appendonly no"),
        ({"appendfsync": "everysec"}, "appendfsync everysec"),
        ({"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}, "maxmemory-policy allkeys-lru"),
    ],
)
def test_a_redis_that_is_less_durable_than_it_can_be_is_warned_of(
    redis: RedisServer,
    open_store: Callable[..., RedisStorage],
    caplog: pytest.LogCaptureFixture,
    options: dict[str, str],
    words: str,
) -> None:
    before = {name: redis.setting(name) for name in options}
    open_store()
    assert not caplog.records
    for name, value in options.items():
        redis.call("CONFIG", "SET", name, value)
    try:
        open_store()
    finally:
        for name, value in before.items():
            redis.call("CONFIG", "SET", name, value)
    [record] = caplog.records
    assert (record.levelname, words in record.getMessage()) == ("WARNING", True)


def test_changes_wait_for_as_many_replicas_as_redis_is_told_to_have(
    redis: RedisServer, open_store: Callable[..., RedisStorage], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer(tmp_path) as replica:
        replica.call("REPLICAOF", "127.0.0.1", redis.port)
        wait_until(lambda: redis.call("INFO", "replication").get("slave0", {}).get("state") == "online")
        open_store()
        assert "no min-replicas-to-write" in caplog.text
        redis.call("CONFIG", "SET", "min-replicas-to-write", 1)
        try:
            storage = open_store()
            waited = int(redis.call("INFO", "commandstats").get("cmdstat_wait", {"calls": 0})["calls"])
            session_id = storage.create()
            with storage.lock(session_id) as locked:
                locked.append({"role": "user", "content": "Hi"})
            assert redis.call("INFO", "commandstats")["cmdstat_wait"]["calls"] == waited + 2
            replica.pause()
            with storage.lock(session_id) as locked, pytest.raises(StorageUnavailable):
                locked.append({"role": "user", "content": "nobody else has it"})
            assert [message["content"] for message in storage.get(session_id).messages] == ["Hi"]
        finally:
            redis.call("CONFIG", "SET", "min-replicas-to-write", 0)
