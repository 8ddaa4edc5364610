"""The events of turns between servers, and the leases of the turns that run here."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from session_core.stores.redis_connection import RETRY_SECONDS, Argument, RedisConnection, call
from session_core.stores.redis_scripts import ENDED_ELSEWHERE, KEEP_MILLISECONDS
from storage import FeedGap, StorageUnavailable, TurnFeed

log = logging.getLogger(__name__)

_RENEW_SECONDS = 0.5  # between two looks at the leases of this process, and at who asks for an end
_BATCH_SECONDS = 0.05  # in which events gather that go to Redis together
_LAST_LINE_SECONDS = 2.0  # after its release, in which a turn publishes its last line, if it ever does
_MAX_WAITING_BYTES = 32 << 20  # of events that wait for a Redis that is away


@dataclass(eq=False)
class Lease:
    """The lock of a session: its token, and the value of its lease key."""

    session_id: str
    token: str
    holder: str
    released: bool = False


class _PublishedTurn:
    """A turn of this process, and what it has published that is not in Redis yet."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.on_end: Callable[[bool], None] | None = None
        self.waiting: list[bytes] = []
        self.sending: list[bytes] = []  # until Redis has acknowledged them
        self.sending_last = False
        self.sent = 1
        self.completed_at: float | None = None  # when the last line was published
        self.dropped = False  # other processes cannot follow the turn any more

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to do for the turn."""
        if not self.lease.released or self.on_end is None:
            return self.lease.released
        if self.completed_at is None:
            return False
        return not (self.waiting or self.sending) or self.completed_at < time.monotonic() - KEEP_MILLISECONDS / 1000


class Publisher:
    """Renews the leases of all turns of this process, and publishes their events, in one round trip for all of them.

    It has one thread, which exists as long as there are turns.
    """

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._mutex = threading.Lock()
        self._wake = threading.Condition(self._mutex)
        self._turns: dict[str, _PublishedTurn] = {}
        self._thread: threading.Thread | None = None
        self._woken = False
        self._bytes = 0  # that wait
        self._failing = False

    def add(self, lease: Lease) -> None:
        """Renews this lease until it is released. Raises RuntimeError where the system gives no more threads."""
        with self._mutex:
            self._turns[lease.token] = _PublishedTurn(lease)
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="redis", daemon=True)
                thread.start()
                self._thread = thread

    def publish(self, lease: Lease, on_end: Callable[[bool], None]) -> Callable[[bytes, bool], None] | None:
        """Returns a function that publishes lines of the turn of this lease. See LockedSession.publish_turn."""
        with self._mutex:
            turn = self._turns.get(lease.token)
            if turn is None:
                return None
            turn.on_end = on_end

        def publish(line: bytes, last: bool) -> None:
            with self._mutex:
                if last:
                    turn.completed_at = time.monotonic()
                if not turn.dropped:
                    turn.waiting.append(line)
                    self._bytes += len(line)
                    if self._bytes > _MAX_WAITING_BYTES:
                        self._drop(turn)
                self._wake_up()

        return publish

    def released(self, lease: Lease) -> None:
        """Stops the work for a lease that was released, when its turn is published."""
        with self._mutex:
            turn = self._turns.get(lease.token)
            if turn is not None and turn.finished:
                self._wake_up()

    def flush(self) -> None:
        """Waits until all that ended turns have published is in Redis, but not for a Redis that is away."""
        give_up = time.monotonic() + RETRY_SECONDS
        while time.monotonic() < give_up:
            with self._mutex:
                if not any(turn.completed_at and not turn.finished for turn in self._turns.values()):
                    return
            time.sleep(0.01)

    def _wake_up(self) -> None:
        if not self._woken:
            self._woken = True
            self._wake.notify()

    def _drop(self, turn: _PublishedTurn) -> None:
        """Publishes nothing more of the turn. Its followers see when it ends, and read what was stored."""
        turn.dropped = True
        self._bytes -= sum(map(len, turn.waiting)) + sum(map(len, turn.sending))
        turn.waiting, turn.sending = [], []

    def _work(self) -> None:
        published_at = renewed_at = 0.0
        while True:
            with self._mutex:
                for turn in [turn for turn in self._turns.values() if turn.finished]:
                    self._drop(turn)
                    del self._turns[turn.lease.token]
                if not self._turns:
                    self._thread = None
                    return
                now = time.monotonic()
                due = published_at + _BATCH_SECONDS if self._woken else renewed_at + _RENEW_SECONDS
                if now < due:
                    self._wake.wait(due - now)
                    continue
                self._woken = False
                published_at, renew = now, now >= renewed_at + _RENEW_SECONDS
                turns = [turn for turn in self._turns.values() if renew or turn.waiting or turn.sending]
                for turn in turns:
                    if not turn.sending:
                        turn.sending, turn.waiting = turn.waiting, []
                        turn.sending_last = turn.completed_at is not None
            if renew:
                renewed_at = now
            if turns:
                self._send(turns)

    def _send(self, turns: list[_PublishedTurn]) -> None:
        keys: list[str] = []
        arguments: list[Argument] = []
        for turn in turns:
            keys += [self._connection.key(kind, turn.lease.session_id) for kind in ("session", "lease")]
            lines = b"\n".join(turn.sending)
            held = int(not turn.lease.released)
            arguments += [turn.lease.token, held, turn.sent + 1, lines, int(turn.sending_last)]
        try:
            level = logging.DEBUG if self._failing else logging.ERROR  # one error, and not two a second
            client = self._connection.waiting_client
            run = functools.partial(self._connection.run_on_keys, "publish", keys, arguments, client)
            replies = call("renew the leases of running turns", run, level=level)
        except StorageUnavailable:
            self._failing = True
            time.sleep(_RENEW_SECONDS)
            return
        self._failing = False
        ends = []
        with self._mutex:
            for turn, reply in zip(turns, replies, strict=True):
                if reply in (b"over", b"gone"):
                    self._drop(turn)
                elif reply != b"again":
                    turn.sent += len(turn.sending)
                    self._bytes -= sum(map(len, turn.sending))
                    turn.sending = []
                if reply in (b"lost", b"asked", b"over") and turn.on_end and not turn.lease.released:
                    ends.append((turn.on_end, reply == b"asked"))
        for on_end, asked in ends:
            try:
                on_end(asked)
            except Exception:
                log.exception("a turn could not be ended")


def published_lines(connection: RedisConnection, session_id: str, token: str) -> list[bytes]:
    """What a turn itself has published so far under a token."""
    range_ = functools.partial(connection.client.xrange, connection.key("events", token), "-", f"({ENDED_ELSEWHERE}")
    entries: Any = call(f"read what was published of {session_id}", range_)
    return [line for _, fields in entries for line in fields[b"lines"].split(b"\n")]


class RedisTurnFeed(TurnFeed):
    """The turn that was published under a token."""

    def __init__(self, connection: RedisConnection, session_id: str, token: str) -> None:
        self.id = token
        self._connection = connection
        self._session_id = session_id
        self._stream = connection.key("events", token)
        self._entry = "0-0"
        self._count = 0
        self._released_at: float | None = None

    def read(self, seconds: float) -> list[bytes]:
        wait = max(1, int(min(seconds, 1.0) * 1000))
        client = self._connection.waiting_client
        streams: dict[Any, Any] = {self._stream: self._entry}
        found: Any = call("follow a turn", lambda: client.xread(streams, count=256, block=wait))
        lines: list[bytes] = []
        for _, entries in found or []:
            for id, fields in entries:
                number = int(id.partition(b"-")[0])
                if number not in (self._count + 1, ENDED_ELSEWHERE):
                    raise FeedGap(f"events of {self._session_id} are missing")
                self._entry = id.decode()
                new = fields[b"lines"].split(b"\n")
                self._count += len(new)
                lines += new
        return lines

    def interrupted(self) -> bool:
        state = self._run("look at", "state")
        if state == b"gone":
            raise FeedGap(f"events of {self._session_id} are gone")
        if state != b"left":
            self._released_at = None
            return bool(state == b"dead")
        self._released_at = self._released_at or time.monotonic()
        return time.monotonic() > self._released_at + _LAST_LINE_SECONDS

    def end(self, lines: list[bytes]) -> None:
        self._run("end", "end", ENDED_ELSEWHERE, b"\n".join(lines))

    def ask_to_end(self) -> None:
        self._run("ask for the end of", "ask")

    def _run(self, verb: str, script: str, *arguments: bytes | int) -> Any:
        return self._connection.run(verb, script, self._session_id, self.id, *arguments)
