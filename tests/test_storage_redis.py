"""Sessions in Redis: the conformance suite, and what is Redis's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from redis_server import NEEDED, RedisServer

from storage import Storage

pytest.register_assert_rewrite("storage_conformance")

from storage_conformance import StorageConformance  # noqa: E402

pytestmark = NEEDED


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), appendfsync="no") as server:
        yield server


@pytest.fixture
def make(server: RedisServer) -> Callable[[], Storage]:
    from storage_redis import RedisStorage

    server.call("FLUSHALL")
    return lambda: RedisStorage(server.url)


class TestRedisStorage(StorageConformance):
    @pytest.fixture
    def make(self, make: Callable[[], Storage]) -> Callable[[], Storage]:
        return make
