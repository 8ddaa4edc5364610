"""Fixtures that the tests of turns share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from session_core.stores.files import FileStorage
from storage import Storage
from tests.support.client import Client, storages
from tests.support.model_server import ReplyTo, answer
from tests.support.phases import Tool
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.retries import Arrivals, SlowFiles, SlowMemory


@pytest.fixture(params=["memory", "files"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return storages(tmp_path)[request.param]()


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can, so that what one does too late is seen by another."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def tool() -> Iterator[Tool]:
    tool = Tool()
    yield tool
    tool.go.set()


@pytest.fixture(scope="module", params=["memory", "files"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(storage=storages(tmp_path_factory.mktemp("store"))[request.param]()) as client:
        yield client


@pytest.fixture
def client(shared: Client) -> Client:
    """The app, as if its model server had been asked nothing yet."""
    shared.model.requests.clear()
    return shared


@pytest.fixture
def reopen(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """Starts the app over the files of one directory; each start ends the one before."""
    running: list[Client] = []

    def start(*replies: ReplyTo, **settings: Any) -> Client:
        while running:
            running.pop().close()
        running.append(Client(*replies, storage=FileStorage.open(str(tmp_path / "sessions")), **settings))
        return running[0]

    yield start
    while running:
        running.pop().close()


@pytest.fixture(params=["memory", "files"])
def slow(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Client, Any, Arrivals]]:
    """The app over a storage that takes its time."""
    storage = SlowMemory() if request.param == "memory" else SlowFiles.open(str(tmp_path / "sessions"))
    with Client(storage=storage) as client:
        yield client, storage, Arrivals(client.app)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), appendfsync="no") as server:
        yield server


@pytest.fixture(params=["memory", "files", pytest.param("redis", marks=NEEDED)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Storage]:
    """Opens the same store as often as it is called; one in memory is a new one each time."""
    if request.param != "redis":
        return storages(tmp_path)[request.param]
    from session_core.stores.redis import RedisStorage

    server: RedisServer = request.getfixturevalue("redis")
    server.call("FLUSHALL")
    return lambda: RedisStorage(server.url)


@pytest.fixture
def anywhere(store: Callable[[], Storage]) -> Iterator[Client]:
    with Client(storage=store(), models=("other",), default=answer("OK", usage={"total_tokens": 2})) as client:
        yield client
