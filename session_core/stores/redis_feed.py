"""The events of turns between servers, and the leases of the turns that run here."""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from session_core.stores.redis_connection import Argument, RedisConnection, RedisKeys, call
from session_core.stores.redis_scripts import KEEP_MILLISECONDS
from storage import FeedGap, StorageUnavailable, TurnFeed, TurnLines

log = logging.getLogger(__name__)

_RENEW_SECONDS = 0.5  # between two looks at the leases of this process, and at who asks for an end
_SENT_AT_ONCE = 500  # turns in one round trip, so that Redis is free for others in between
_LAST_LINE_SECONDS = 2.0  # after its release, in which a turn publishes its last line, if it ever does
_MAX_WAITING_BYTES = 32 << 20  # of ended turns that wait for a Redis that is away
_OLD_SUBSTITUTE = 10**12  # number of an entry that an earlier version has added in place of the turn's own


@dataclass(eq=False)
class Lease:
    """The lock of a session, with the value of its lease key; and how much of its turn is in Redis, which the
    thread that publishes keeps up to date."""

    session_id: str
    keys: RedisKeys
    fence: str
    holder: str
    released: bool = False
    lines: TurnLines | None = None  # where the turn is published; see LockedSession.record
    on_end: Callable[[bool], None] | None = None
    sent: int = 1
    sending: list[bytes] = field(default_factory=list)  # until Redis has acknowledged them
    sending_last: bool = False
    waits_since: float | None = None  # when it was first seen to have ended
    finished: bool = False  # there is nothing more to do for it

    def take_lines(self) -> None:
        """Takes the lines that have come. Those that Redis has not acknowledged are sent again as they were."""
        if self.lines is not None and not self.sending:
            self.sending, self.sending_last = self.lines.events(self.sent - 1)


class Publisher:
    """Renews the leases of all turns of this process, and publishes their events, in few round trips."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._mutex = threading.Lock()
        self._turns: dict[str, Lease] = {}
        self._renewed_at = 0.0
        self._try_again_at = 0.0  # where the last try failed

    def add(self, lease: Lease) -> None:
        """Renews this lease until it is released. Publishes its turn, once it has `lines`, until the last event."""
        with self._mutex:
            self._turns[lease.fence] = lease

    @property
    def pending(self) -> bool:
        """Whether a turn has ended whose last event is not in Redis."""
        with self._mutex:
            return any(turn.lines is not None and turn.lines.ended for turn in self._turns.values())

    def flush(self) -> bool:
        """Publishes what has come. Returns False where no turn runs. Never raises."""
        now = time.monotonic()
        with self._mutex:
            for turn in list(self._turns.values()):
                if turn.finished or (turn.lines is None and turn.released):
                    del self._turns[turn.fence]
            turns = list(self._turns.values())
        if turns and now >= self._try_again_at:
            renew = now >= self._renewed_at + _RENEW_SECONDS
            self._renewed_at = now if renew else self._renewed_at
            for turn in turns:
                turn.take_lines()
            due = [turn for turn in turns if renew or turn.sending]
            while due and self._send(due[:_SENT_AT_ONCE]):
                due = due[_SENT_AT_ONCE:]
            self._forget_finished(now)
        return bool(turns)

    def _forget_finished(self, now: float) -> None:
        """Lets go of what is published, and of ended turns that have waited too long, or take too much memory."""
        with self._mutex:
            waiting = 0
            for turn in reversed(list(self._turns.values())):
                if not turn.finished and turn.lines is not None and turn.lines.ended:
                    turn.waits_since = turn.waits_since or now
                    waiting += turn.lines.size
                    turn.finished = waiting > _MAX_WAITING_BYTES or now > turn.waits_since + KEEP_MILLISECONDS / 1000
                if turn.finished:
                    del self._turns[turn.fence]

    def _send(self, turns: list[Lease]) -> bool:
        """Tells Redis of these turns. Returns whether it has heard that."""
        keys: list[str] = []
        arguments: list[Argument] = []
        for turn in turns:
            keys += [turn.keys.session(turn.session_id), turn.keys.lease(turn.session_id)]
            held, lines = int(not turn.released), b"\n".join(turn.sending)
            arguments += [turn.fence, held, turn.sent + 1, lines, int(turn.sending_last)]
        try:
            level = logging.DEBUG if self._try_again_at else logging.ERROR  # one error, and not two a second
            run, client = self._connection.run, self._connection.waiting_client
            replies = call(
                "renew the leases of running turns", lambda: run("publish", keys, arguments, client), level=level
            )
        except StorageUnavailable:
            self._try_again_at = time.monotonic() + _RENEW_SECONDS
            return False
        self._try_again_at = 0.0
        for turn, reply in zip(turns, replies, strict=True):
            self._handle(turn, reply)
        return True

    def _handle(self, turn: Lease, reply: bytes) -> None:
        if reply in (b"over", b"gone"):  # followers see when it ends, and read what was stored
            with self._mutex:
                turn.lines, turn.sending = None, []
        elif reply != b"again":
            turn.sent += len(turn.sending)
            turn.sending, turn.finished = [], turn.sending_last
        if reply in (b"lost", b"vanished", b"asked", b"over") and turn.on_end and not turn.released:
            try:
                turn.on_end(reply == b"asked")
            except Exception:
                log.exception("a turn could not be ended")


def published_lines(keys: RedisKeys, session_id: str, fence: str) -> list[bytes]:
    """What a turn itself has published so far under a fence."""
    entries: Any = call(
        f"read what was published of {session_id}", lambda: keys.connection.client.xrange(keys.events(fence))
    )
    return [
        line for id, fields in entries if not _is_substitute(id, fields) for line in fields[b"lines"].split(b"\n")
    ]


def _is_substitute(id: bytes, fields: dict[bytes, bytes]) -> bool:
    """Whether another process has added the entry in place of the turn's own last one."""
    return b"substitute" in fields or id.startswith(b"%d-" % _OLD_SUBSTITUTE)


class RedisTurnFeed(TurnFeed):
    """The turn that was published under a fence."""

    def __init__(self, keys: RedisKeys, session_id: str, fence: str) -> None:
        self.id = fence
        self._keys = keys
        self._session_id = session_id
        self._reader = secrets.token_hex(8)
        self._entry = "0-0"
        self._count = 0
        self._released_at: float | None = None

    def read(self, seconds: float) -> list[bytes]:
        wait = max(1, int(min(seconds, 1.0) * 1000))
        streams: dict[Any, Any] = {self._keys.events(self.id): self._entry}
        found: Any = call(
            "follow a turn",
            lambda: self._keys.connection.waiting_client.xread(streams, count=256, block=wait),
        )
        lines: list[bytes] = []
        for _, entries in found or []:
            for id, fields in entries:
                substitute = _is_substitute(id, fields)
                if substitute and lines:
                    break  # for the next read
                self.substituted = substitute
                if not substitute and int(id.partition(b"-")[0]) != self._count + 1:
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
        self._run("end", "end", self._count + 1, b"\n".join(lines))

    def tell_readers(self, reading: bool, kept: bool) -> bool:
        return bool(self._run("tell of the readers of", "readers", self._reader, int(reading), int(kept)))

    def ask_to_end(self) -> None:
        self._run("ask for the end of", "ask")

    def _run(self, verb: str, script: str, *arguments: Argument) -> Any:
        return self._keys.run(verb, script, self._session_id, self.id, *arguments)
