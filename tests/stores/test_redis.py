"""Sessions in Redis: the conformance suite, and what is Redis's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from storage import Storage
from tests.support.recorded import Lines
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.storage_conformance import StorageConformance

pytestmark = NEEDED


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), appendfsync="no") as server:
        yield server


@pytest.fixture
def make(server: RedisServer) -> Callable[[], Storage]:
    from session_core.stores.redis import RedisStorage

    server.call("FLUSHALL")
    return lambda: RedisStorage(server.url)


class TestRedisStorage(StorageConformance):
    @pytest.fixture
    def make(self, make: Callable[[], Storage]) -> Callable[[], Storage]:
        return make


def test_thousands_of_turns_of_one_server_are_published_and_looked_after(server: RedisServer) -> None:
    from session_core.stores.redis_connection import RedisConnection, RedisKeys
    from session_core.stores.redis_feed import Lease, Publisher

    connection = RedisConnection(server.url)
    publisher, keys = Publisher(connection), RedisKeys(connection, "session_server:")
    told: list[bool] = []
    for number in range(8_500):
        lease = Lease(f"session-{number}", keys, f"fence-{number}", f"turn fence-{number}")
        lease.lines, lease.on_end = Lines(b"a line"), told.append
        publisher.add(lease)
    publisher.flush()
    assert told == [False] * 8_500  # Redis has none of these sessions
