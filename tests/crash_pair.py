"""Two servers on one Redis behind nginx under load, with faults of all of them: `python -m tests.crash_loop --pair`.

Each round, several sessions are at work at once through nginx. At a random moment something happens to one server, to
both or to Redis. Then all runs again, and what `crash_loop` says of one server must hold of the two.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.crash_loop import AT_ONCE, CUT_OFF, KEPT_AFTER, WITHIN, Conversation, Loop, reply_to
from tests.support.model_server import ModelServer
from tests.support.pair import Pair, pair
from tests.support.server import Server, wait_until

AFTER_FAULT = 1.0  # seconds for which the work goes on behind a fault
STOPPED = 7.0  # seconds for which a server stands still at most; after five it has lost its sessions


class PairLoop(Loop):
    """Rounds of work, a fault and its repair."""

    expected_refusals = (409, 502, 503, 504)

    def run(self, rounds: int, seconds: float = float("inf")) -> None:
        assert self.redis is not None
        until = time.monotonic() + seconds
        flags = (f"-redis_url={self.redis.url}", "-log_level=error", "-grace=3")
        with (
            ModelServer(default=reply_to) as model,
            ThreadPoolExecutor(AT_ONCE + 1) as pool,
            pair(self.directory.parent, f"-base_url={model.base_url}", *flags) as two,
        ):
            while self.figures["rounds"] < rounds and time.monotonic() < until:
                self._let_both_work(two, pool)
                self.check_all(two.balancer, pool)
                self.figures["rounds"] += 1

    def _let_both_work(self, two: Pair, pool: ThreadPoolExecutor) -> None:
        while len(self.conversations) < AT_ONCE:
            self.conversations.append(Conversation(two.balancer.create()))
        self.over.clear()
        working = [
            pool.submit(self.work, two.balancer, conversation, random.Random(self.random.random()))
            for conversation in self.conversations
        ]
        time.sleep(self.random.uniform(0, WITHIN))
        self.kept_after = KEPT_AFTER + 3 * max(map(_slowness, two.servers))
        fault = self.random.choice([_kill, _kill_both, _terminate, _stand_still, _kill_redis])
        self.count(f"fault {fault.__name__.strip('_')}")
        self.killed_at = time.monotonic()
        repair = fault(self, two)
        time.sleep(self.random.uniform(0, AFTER_FAULT))
        repair()
        self.over.set()
        for worker in working:
            worker.result()
        for server in two.servers:
            wait_until(lambda server=server: _is_ready(server))


def _slowness(server: Server) -> float:
    """How long a server takes for a write to its store."""
    began = time.monotonic()
    server.request("GET", "/ready")
    return time.monotonic() - began


def _is_ready(server: Server) -> bool:
    try:
        return server.request("GET", "/ready").status == 200
    except CUT_OFF:
        return False


# Each fault gives what repairs it.


def _kill(loop: Loop, two: Pair) -> Callable[[], None]:
    number = loop.random.randrange(2)
    two.servers[number].kill()
    return lambda: two.restart(number)


def _kill_both(loop: Loop, two: Pair) -> Callable[[], None]:
    for server in two.servers:
        server.kill()
    return lambda: [two.restart(number) for number in (0, 1)] and None


def _terminate(loop: Loop, two: Pair) -> Callable[[], None]:
    number = loop.random.randrange(2)
    two.servers[number].send_signal(signal.SIGTERM)

    def repair() -> None:
        two.servers[number].wait()
        two.restart(number)

    return repair


def _stand_still(loop: Loop, two: Pair) -> Callable[[], None]:
    number = loop.random.randrange(2)
    two.servers[number].send_signal(signal.SIGSTOP)
    seconds = loop.random.uniform(0, STOPPED)

    def repair() -> None:
        time.sleep(seconds)
        two.servers[number].send_signal(signal.SIGCONT)

    return repair


def _kill_redis(loop: Loop, two: Pair) -> Callable[[], None]:
    assert loop.redis is not None
    loop.redis.kill()
    return loop.redis.start
