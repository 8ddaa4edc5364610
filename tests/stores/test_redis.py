"""Sessions in Redis: the conformance suite, and what is Redis's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from storage import Storage
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
