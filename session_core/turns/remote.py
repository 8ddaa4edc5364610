"""A turn that another server runs, followed from here.

The log of a RemoteTurn is a copy of the one there. A thread of this process reads the feed and fills the copy.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time

from session_core.model.events import Chunk
from session_core.turns.event_log import (
    INTERRUPTED,
    MAX_EVENTS,
    Ended,
    Failed,
    LoggedEvent,
    Started,
    decode_event,
    encode_event,
)
from session_core.turns.journal import take_over
from session_core.turns.stored import INTERRUPTED_TEXT, turn_at
from session_core.turns.turn import Turn
from session_core.turns.turn_request import TurnRequest
from storage import (
    FeedGap,
    SessionBusy,
    SessionCorrupt,
    SessionNotFound,
    Storage,
    StorageUnavailable,
    TurnFeed,
    timestamp,
)

log = logging.getLogger(__name__)

SILENT_SECONDS = 5.0  # without word from the store, after which a turn is followed no more

_READ_SECONDS = 1.0  # how long one read of the feed waits


class ShuttingDown(Exception):
    """No new turns start any more."""


class RemoteTurn(Turn):
    """A turn that another process runs, or has just run.

    Raises FeedGap where the beginning of the feed is gone, and StorageUnavailable.
    """

    def __init__(self, session_id: str, feed: TurnFeed, storage: Storage) -> None:
        super().__init__(session_id, TurnRequest())
        self.feed = feed
        self._storage = storage
        self._leave = threading.Event()
        identity, *lines = feed.read(_READ_SECONDS) or [b""]
        if not identity:
            raise FeedGap(f"nothing is published of the turn of {session_id}")
        self.id, self.message_id, self._attempt, _ = json.loads(identity)
        self._copy(lines)

    def follow(self) -> None:
        """Copies the feed, on the calling thread, until the turn has ended or can be followed no more."""
        heard_at = time.monotonic()
        try:
            while not self.ended and not self._leave.is_set() and time.monotonic() < heard_at + SILENT_SECONDS:
                try:
                    lines = self.feed.read(_READ_SECONDS)
                    if not lines and self.feed.interrupted():
                        self._take_over()
                        self.feed.end(self._last_lines())
                except FeedGap:
                    return
                except StorageUnavailable:
                    self._leave.wait(0.2)
                else:
                    heard_at = time.monotonic()
                    self._copy(lines)
        except Exception:
            log.exception("turn %s of %s cannot be followed", self.id, self.session_id)
        finally:
            self._ended.set()

    def leave(self) -> None:
        """Stops following soon."""
        self._leave.set()

    def read(self, after: int, seconds: float) -> list[LoggedEvent]:
        """See Turn.read. Raises StorageUnavailable where the turn can be followed no more."""
        until = time.monotonic() + seconds
        while True:
            lost = self._lost
            entries = self._log.read(after, max(0.0, min(until - time.monotonic(), 1.0)))
            if entries or (time.monotonic() >= until and not lost):
                return entries
            if lost:
                raise StorageUnavailable(f"the turn of {self.session_id} can be followed no more")

    def result(self) -> Ended | Failed:
        """See Turn.result. Raises StorageUnavailable where the turn can be followed no more."""
        self._ended.wait()
        if self._lost:
            raise StorageUnavailable(f"the turn of {self.session_id} can be followed no more")
        return super().result()

    def find_index(self, number: int) -> int | None:
        """See Turn.index_of. Waits for an event that the other process has sent and not published yet."""
        give_up = time.monotonic() + 2 * SILENT_SECONDS
        while self._log.find_index(number) is None and not self._ended.is_set() and time.monotonic() < give_up:
            self._log.read(self.length, 0.2)
        return self._log.find_index(number)

    def cancel(self) -> bool:
        """Has the other process cancel the turn, and waits until it has ended. Returns whether that cancelled it."""
        if self.ended:
            return False
        self.feed.ask_to_end()
        last = self.result()
        return isinstance(last, Ended) and last.status == "cancelled"

    @property
    def failed(self) -> bool:
        """Whether the turn has ended, and not with an answer."""
        return self.ended and isinstance(self.result(), Failed)

    @property
    def _lost(self) -> bool:
        """Whether there is no last event, and will be none."""
        return self._ended.is_set() and not self.ended

    def _copy(self, lines: list[bytes]) -> None:
        for line in lines:
            self._log.copy(decode_event(line))
        if self.ended:
            self._ended.set()

    def _take_over(self) -> None:
        """Stores what the process that is gone has left, unless another caller does."""
        with (
            contextlib.suppress(SessionNotFound, SessionCorrupt, SessionBusy),
            self._storage.lock(self.session_id) as session,
        ):
            take_over(self._storage, session)

    def _last_lines(self) -> list[bytes]:
        """The last events of the turn, whose process is gone, by what that process had stored."""
        last: Ended | Failed = Failed("internal_error", INTERRUPTED_TEXT)
        with contextlib.suppress(SessionNotFound, SessionCorrupt):
            session = self._storage.get(self.session_id)
            ids = [message["id"] for message in session.messages]
            if self.message_id in ids:
                last = turn_at(session, ids.index(self.message_id)).last_event_of(self._attempt)
        entries = [] if len(self._log) else [LoggedEvent(1, timestamp(), 0, Started())]
        if isinstance(last, Ended) and (rest := last.complete_text.removeprefix(self._log.text())):
            # The other process sent this text to its own clients, and published it no more.
            entries_so_far = self._log.read(0, 0, MAX_EVENTS)
            chunks = [entry for entry in entries_so_far if isinstance(entry.event, Chunk)]
            sequence = 1 + max((entry.sequence for entry in chunks), default=0)
            entries.append(LoggedEvent(INTERRUPTED, timestamp(), sequence, Chunk(rest)))
        entries.append(LoggedEvent(INTERRUPTED + 1, timestamp(), 0, last))
        return [encode_event(entry) for entry in entries]


class RemoteTurns:
    """The turns of other processes that this one follows. Safe for any number of threads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._turns: dict[str, RemoteTurn] = {}  # by the id of the feed, those that have not ended
        self.closing = False  # whether no further turn is followed

    def turn(self, session_id: str) -> RemoteTurn | None:
        """The session's newest turn, if it is one of another process. This process follows it from now on.

        Raises ShuttingDown where `closing` is set, and StorageUnavailable.
        """
        feed = self._storage.turn_feed(session_id)
        if feed is None:
            return None
        with self._lock:
            known = self._turns.get(feed.id)
        turn = known or RemoteTurn(session_id, feed, self._storage)
        if turn is known or turn.ended:
            return turn
        with self._lock:
            if self.closing:
                raise ShuttingDown
            if feed.id not in self._turns:
                try:
                    threading.Thread(target=self._follow, args=(turn,), name=f"follow {turn.id}", daemon=True).start()
                except RuntimeError as error:  # the system gives no more threads
                    raise StorageUnavailable(str(error)) from error
                self._turns[feed.id] = turn
            return self._turns[feed.id]

    def leave(self) -> None:
        """Follows no turn any more, soon."""
        with self._lock:
            for turn in self._turns.values():
                turn.leave()

    def _follow(self, turn: RemoteTurn) -> None:
        turn.follow()
        with self._lock:
            del self._turns[turn.feed.id]
