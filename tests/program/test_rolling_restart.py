"""A rolling restart of two servers behind nginx: one after the other, and no request is lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.program.test_nginx import NGINX
from tests.support.model_server import ModelServer, answer, pause
from tests.support.pair import Pair, pair
from tests.support.redis_server import NEEDED, RedisServer

pytestmark = [NEEDED, pytest.mark.skipif(NGINX is None, reason="needs the Debian package nginx")]


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Pair]:
    with (
        ModelServer(default=answer("Hel", pause(0.05), "lo")) as model,
        RedisServer(tmp_path) as redis,
        pair(tmp_path, f"-base_url={model.base_url}", f"-redis_url={redis.url}", "-log_level=error") as both,
    ):
        yield both


class Callers:
    """Clients that ask again and again, each in a session of its own, and try again what is told to be tried."""

    def __init__(self, two: Pair) -> None:
        self.statuses: Counter[int] = Counter()
        self.answered: dict[str, list[str]] = {}
        self._two = two
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(4)]

    def _work(self, number: int) -> None:
        session = self._two.balancer.create()
        answered = self.answered.setdefault(session, [])
        asked = 0
        while not self._stop.is_set():
            text, asked = f"{number} {asked}", asked + 1
            reply = self._two.balancer.request("POST", f"/sessions/{session}/run", {"message": text})
            self.statuses[reply.status] += 1
            if reply.status == 200:
                answered.append(text)
            elif reply.status == 503:
                assert "Retry-After" in reply.headers
            self.statuses[self._two.balancer.request("GET", "/sessions").status] += 1

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()


def test_nobody_gets_502_and_nothing_is_lost(two: Pair) -> None:
    callers = Callers(two)
    with callers.at_work():
        for number in (0, 1, 0):
            two.servers[number].send_signal(signal.SIGTERM)
            assert two.servers[number].wait() == 0
            two.restart(number)
            assert two.servers[number].request("GET", "/ready").status == 200
    assert set(callers.statuses) <= {200, 503}, callers.statuses
    assert callers.statuses[200] > 20
    for session, answered in callers.answered.items():
        texts = [one["content"] for one in two.balancer.messages(session) if one["role"] == "user"]
        assert [text for text in texts if text in answered] == answered
