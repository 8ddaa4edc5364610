"""One process and many users: stores, bounds, sweeps and the shutdown hold for all of them together."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from agent import Agent
from session_core.stores.files import FileStorage
from session_core.turns import expiry, recent
from session_core.web.settings import Settings
from session_server import create_app
from storage import MemoryStorage, Storage
from tests.support.client import error_of, json_of
from tests.support.model_server import ModelServer, answer
from tests.support.server import TIMEOUT, wait_until


@pytest.fixture
def model() -> Iterator[ModelServer]:
    with ModelServer(default=answer("OK")) as model:
        yield model


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    for world in World.alive:
        world.shut_down()
        world.agent.close()
    World.alive.clear()


class World:
    """An app over a storage, with users whose token is their name."""

    alive: ClassVar[list[World]] = []

    def __init__(self, path: Path, model: ModelServer, storage: Storage, count: int = 3, **settings: Any) -> None:
        file = path / "users"
        file.write_text("".join(f"user-{n} user-{n}\n" for n in range(count)), encoding="utf-8")
        self.agent = Agent(api_key="k", base_url=model.base_url, model="m")
        self.app: Flask = create_app(storage, self.agent, Settings(users=str(file), **settings))
        World.alive.append(self)

    def ask(self, user: int, method: str, path: str, body: object = None) -> TestResponse:
        headers = {"Authorization": f"Bearer user-{user}"}
        return self.app.test_client().open(path, method=method, json=body, headers=headers)

    def create(self, user: int) -> str:
        session_id: str = json_of(self.ask(user, "POST", "/sessions"))["id"]
        return session_id

    def run(self, user: int, session_id: str) -> TestResponse:
        return self.ask(user, "POST", f"/sessions/{session_id}/run", {"message": "Hi"})

    def shut_down(self) -> None:
        self.app.extensions["turns"].shut_down(0)


def test_two_requests_of_a_new_user_at_once_get_one_store(tmp_path: Path, model: ModelServer) -> None:
    made: list[str] = []
    both = threading.Barrier(2)

    class Slow(MemoryStorage):
        def for_user(self, name: str) -> Storage:
            made.append(name)
            time.sleep(0.05)
            return super().for_user(name)

    world = World(tmp_path, model, Slow())

    def create(_: int) -> str:
        both.wait(TIMEOUT)
        return world.create(0)

    with ThreadPoolExecutor(2) as pool:
        ids = set(pool.map(create, range(2)))
    assert set(json_of(world.ask(0, "GET", "/sessions"))["sessions"]) == ids
    assert made == ["user-0"]


def test_a_store_that_is_being_made_holds_up_no_other_user(tmp_path: Path, model: ModelServer) -> None:
    go = threading.Event()

    class Stuck(MemoryStorage):
        def for_user(self, name: str) -> Storage:
            if name == "user-0":
                go.wait(TIMEOUT)
            return super().for_user(name)

    world = World(tmp_path, model, Stuck())
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(world.create, 0)
        assert world.create(1)
        assert not stuck.done()
        go.set()
        assert stuck.result(TIMEOUT)


def test_a_user_whose_directory_cannot_be_made_costs_that_user_alone(tmp_path: Path, model: ModelServer) -> None:
    (tmp_path / "sessions").mkdir()
    (tmp_path / "sessions" / "user-0").write_text("no directory")
    world = World(tmp_path, model, FileStorage.open(str(tmp_path / "sessions")))
    assert error_of(world.ask(0, "POST", "/sessions")) == (503, "storage_unavailable")
    assert world.run(1, world.create(1)).status_code == 200
    assert world.app.test_client().get("/ready").status_code == 200
    world.shut_down()


def test_a_thousand_users_cost_no_thread_and_no_look_at_each(tmp_path: Path, model: ModelServer) -> None:
    before = set(threading.enumerate())
    world = World(tmp_path, model, FileStorage.open(str(tmp_path / "sessions")), count=1000, session_ttl=3600.0)
    assert {thread.name for thread in set(threading.enumerate()) - before} <= {"expiry"}
    assert os.listdir(tmp_path / "sessions") == []
    assert world.app.test_client().get("/ready").status_code == 200
    world.create(7)
    assert os.listdir(tmp_path / "sessions") == ["user-7"]
    world.shut_down()


def test_the_ended_turns_of_all_users_are_bounded_together(
    tmp_path: Path, model: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "REPLAY_BYTES", 150_000)
    model.default = answer("x" * 100_000)
    world = World(tmp_path, model, MemoryStorage())
    first, second = world.create(0), world.create(1)
    assert world.run(0, first).status_code == world.run(1, second).status_code == 200
    assert world.ask(0, "GET", f"/sessions/{first}/run_stream").status_code == 204
    assert world.ask(1, "GET", f"/sessions/{second}/run_stream").status_code == 200
    world.shut_down()


def test_the_first_request_of_a_user_after_the_shutdown_starts_no_turn(tmp_path: Path, model: ModelServer) -> None:
    world = World(tmp_path, model, MemoryStorage())
    world.shut_down()
    assert error_of(world.run(2, world.create(2))) == (503, "shutting_down")
    assert model.requests == []


def test_sessions_of_every_user_expire_until_the_shutdown(
    tmp_path: Path, model: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry, "_MIN_SECONDS", 0.01)
    storage = FileStorage.open(str(tmp_path / "sessions"))
    for user in (0, 2):  # of an earlier start
        of_user = storage.for_user(f"user-{user}")
        _make_old(tmp_path / "sessions" / f"user-{user}", of_user.create())
    world = World(tmp_path, model, storage, session_ttl=0.1)
    wait_until(lambda: not list((tmp_path / "sessions").glob("*/session-*")))
    world.shut_down()
    wait_until(lambda: all(thread.name != "expiry" for thread in threading.enumerate()))
    late = tmp_path / "sessions" / "user-0"
    _make_old(late, storage.for_user("user-0").create())
    time.sleep(0.1)
    assert len(list(late.glob("session-*"))) == 1


def _make_old(directory: Path, session_id: str) -> None:
    path = directory / f"{session_id}.json"
    text = path.read_text(encoding="utf-8")
    stamp = text[text.index('"updated_at":"') + 14 :][:20]
    path.write_text(text.replace(stamp, "2001-01-01T00:00:00Z"), encoding="utf-8")
    os.utime(path, (1, 1))
