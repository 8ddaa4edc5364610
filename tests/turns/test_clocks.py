"""Expiry and recovery, where clocks jump or differ between servers, and where files cannot be opened."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from session_core.stores.files import FileStorage
from session_core.turns.expiry import SteadyClock, expire
from storage import MemoryStorage, StorageUnavailable
from tests.support.model_server import STALL, ModelServer, answer
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.server import Server, wait_until

OTHER_CLOCK = """
import time
_time, _time_ns, _gmtime, _ahead = time.time, time.time_ns, time.gmtime, {ahead}
time.time = lambda: _time() + _ahead
time.time_ns = lambda: _time_ns() + int(_ahead * 1e9)
time.gmtime = lambda seconds=None: _gmtime(time.time() if seconds is None else seconds)
"""


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*flags: str, clock_ahead: float = 0.0) -> Server:
        folder = tmp_path / f"clock {clock_ahead}"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(OTHER_CLOCK.format(ahead=clock_ahead))
        env = {"PYTHONPATH": str(folder)} if clock_ahead else {}
        servers.append(Server(*flags, env=env, log=tmp_path / f"{len(servers)}.log"))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


# --- a clock that jumps ---


class Hands:
    """A clock, and the seconds that have passed in truth."""

    def __init__(self) -> None:
        self.clock = time.time()
        self.running = 1000.0

    def pass_by(self, seconds: float) -> None:
        self.clock += seconds
        self.running += seconds

    def steady(self, delay: float) -> SteadyClock:
        return SteadyClock(lambda: self.clock, delay, lambda: self.running)


def test_a_clock_that_jumps_ahead_ages_nothing() -> None:
    hands = Hands()
    clock = hands.steady(100)
    before = clock.now()
    hands.clock += 3600
    assert clock.now() == pytest.approx(before)
    hands.pass_by(99)
    assert clock.now() == pytest.approx(before + 99)


def test_when_what_was_stamped_before_a_jump_has_expired_the_new_time_counts() -> None:
    hands = Hands()
    clock = hands.steady(100)
    clock.now()
    hands.clock += 3600
    clock.now()
    hands.pass_by(100)
    assert clock.now() == pytest.approx(hands.clock)


def test_a_second_jump_is_waited_out_too() -> None:
    hands = Hands()
    clock = hands.steady(100)
    clock.now()
    hands.clock += 3600
    clock.now()
    hands.pass_by(60)
    hands.clock += 3600
    clock.now()
    hands.pass_by(60)
    assert clock.now() == pytest.approx(hands.clock - 7200)


def test_a_clock_that_goes_back_counts_at_once() -> None:
    hands = Hands()
    clock = hands.steady(100)
    clock.now()
    hands.clock -= 3600
    assert clock.now() == pytest.approx(hands.clock)


def test_a_clock_that_drifts_is_followed() -> None:
    hands = Hands()
    clock = hands.steady(10_000)
    for _ in range(100):
        hands.pass_by(60)
        hands.clock += 0.5
        assert clock.now() == pytest.approx(hands.clock)


class JumpingStorage(MemoryStorage):
    """Its clock can be set."""

    ahead = 0.0

    def clock(self) -> float:
        return super().clock() + self.ahead


def test_no_session_is_deleted_because_the_clock_has_jumped() -> None:
    storage = JumpingStorage()
    session = storage.create()
    clock = SteadyClock(storage.clock, 60).now
    assert expire(storage, 60, clock) == 0
    storage.ahead = 86_400
    assert expire(storage, 60, clock) == 0
    assert storage.get(session).id == session


# --- the clocks of several servers ---


@NEEDED
def test_a_server_whose_clock_is_ahead_deletes_no_fresh_sessions(
    redis: RedisServer, serve: Callable[..., Server]
) -> None:
    right = serve("-demo", f"-redis_url={redis.url}")
    ahead = serve("-demo", f"-redis_url={redis.url}", "-session_ttl=20s", clock_ahead=3600)
    old, fresh = right.create(), right.create()
    redis.call("HSET", f"session_server:session:{old}", "updated_at", "2020-01-01T00:00:00Z")
    redis.call("ZADD", "session_server:sessions", -1, old)
    wait_until(lambda: ahead.request("GET", f"/sessions/{old}").status == 404)
    assert ahead.request("GET", f"/sessions/{fresh}").status == 200


@NEEDED
def test_what_expires_does_so_by_the_clock_of_redis(redis: RedisServer, serve: Callable[..., Server]) -> None:
    behind = serve("-demo", f"-redis_url={redis.url}", "-session_ttl=2s", clock_ahead=-3600)
    session = behind.create()
    wait_until(lambda: behind.request("GET", f"/sessions/{session}").status == 404)


@NEEDED
@pytest.mark.parametrize("before, after", [(-3600, 0), (0, 3600), (0, -3600)])
def test_interrupted_turns_go_on_whatever_the_clocks_of_the_servers_say(
    redis: RedisServer, serve: Callable[..., Server], before: float, after: float
) -> None:
    with ModelServer(default=answer("Hello", STALL)) as model:
        flags = (f"-base_url={model.base_url}", f"-redis_url={redis.url}")
        session = cut_off(serve(*flags, clock_ahead=before))
        model.default = answer("OK")
        server = serve(*flags, "-continue_interrupted", clock_ahead=after)
        wait_until(lambda: server.messages(session)[-1]["content"] == "OK")


def cut_off(server: Server) -> str:
    """A session whose turn is cut off by the end of the server."""
    session = server.create()
    events = server.say(session, "Hi").events()
    assert [next(events)["type"] for _ in range(2)] == ["stream_start", "stream_chunk"]
    server.kill()
    return session


# --- what concerns one session alone ---


def without(monkeypatch: pytest.MonkeyPatch, session: str) -> None:
    """The system opens the file of this session no more."""
    real = os.open

    def opened(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if f"{session}.json" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", opened)


def aged(storage: FileStorage, directory: Path) -> str:
    session = storage.create()
    path = directory / f"{session}.json"
    path.write_text(path.read_text().replace(storage.get(session).updated_at, "2020-01-01T00:00:00Z"))
    os.utime(path, (1, 1))
    return session


def test_a_file_that_cannot_be_opened_does_not_keep_the_others_from_expiring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = FileStorage.open(str(tmp_path))
    sessions = [aged(storage, tmp_path) for _ in range(5)]
    without(monkeypatch, sessions[2])
    assert expire(storage, 60) == 4
    assert sessions[2] in caplog.text


def test_a_store_that_is_gone_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = FileStorage.open(str(tmp_path))
    for _ in range(5):
        aged(storage, tmp_path)
    without(monkeypatch, "")
    monkeypatch.setattr(storage, "check", _refuse)
    with pytest.raises(StorageUnavailable):
        expire(storage, 60)


def _refuse() -> None:
    raise StorageUnavailable


def files(tmp_path: Path, model: ModelServer) -> tuple[str, str]:
    return f"-base_url={model.base_url}", f"-session_dir={tmp_path / 's'}"


def test_recovery_passes_over_a_file_with_an_old_time_in_it(serve: Callable[..., Server], tmp_path: Path) -> None:
    with ModelServer(default=answer("Hello", STALL)) as model:
        flags = files(tmp_path, model)
        server = serve(*flags)
        other = server.create()
        session = cut_off(server)
        path = tmp_path / "s" / f"{other}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "updated_at": "2020-01-01T00:00:00Z"}))
        model.default = answer("OK")
        server = serve(*flags, "-continue_interrupted")
        wait_until(lambda: server.messages(session)[-1]["content"] == "OK")


@pytest.mark.parametrize("bad", [b"", b"{]", b'{"id": 1}', "no file"])
def test_recovery_passes_over_a_bad_file(serve: Callable[..., Server], tmp_path: Path, bad: bytes | str) -> None:
    with ModelServer(default=answer("Hello", STALL)) as model:
        flags = files(tmp_path, model)
        session = cut_off(serve(*flags))
        path = tmp_path / "s" / "session-0123456789abcdef.json"
        if isinstance(bad, bytes):
            path.write_bytes(bad)
        else:
            path.mkdir()
        model.default = answer("OK")
        server = serve(*flags, "-continue_interrupted")
        wait_until(lambda: server.messages(session)[-1]["content"] == "OK")


@pytest.mark.parametrize("way", ["import", "copy"])
def test_imports_and_copies_that_end_with_a_question_are_not_answered(
    serve: Callable[..., Server], tmp_path: Path, way: str
) -> None:
    with ModelServer(default=answer("Hello", STALL)) as model:
        flags = files(tmp_path, model)
        server = serve(*flags)
        made = {"messages": [{"role": "user", "content": "Hi"}]}
        session = server.request("POST", "/sessions", made).json["id"]
        if way == "copy":
            session = server.request("POST", "/sessions", {"copy_of": session}).json["id"]
        interrupted = cut_off(server)
        model.default = answer("OK")
        server = serve(*flags, "-continue_interrupted")
        wait_until(lambda: server.messages(interrupted)[-1]["content"] == "OK")
        assert [one["content"] for one in server.messages(session)] == ["Hi"]


def test_an_import_that_a_crash_cuts_off_while_it_is_answered_goes_on(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    with ModelServer(default=answer("Hello", STALL)) as model:
        flags = files(tmp_path, model)
        server = serve(*flags)
        made = {"messages": [{"role": "user", "content": "Hi"}]}
        session = server.request("POST", "/sessions", made).json["id"]
        reply = server.request("POST", f"/sessions/{session}/run_stream", {"continue": True})
        events = reply.events()
        assert [next(events)["type"] for _ in range(2)] == ["stream_start", "stream_chunk"]
        server.kill()
        model.default = answer("OK")
        server = serve(*flags, "-continue_interrupted")
        wait_until(lambda: server.messages(session)[-1]["content"] == "OK")
