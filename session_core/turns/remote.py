"""A turn that another server runs, followed from here.

The log of a RemoteTurn is a copy of the one there. A thread of this process reads the feed and fills the copy.
"""

import contextlib
import logging
import threading
import time

from session_core.data.strict_json import from_json
from session_core.model.events import Chunk
from session_core.turns.event_log import (
    MAX_EVENTS,
    Ended,
    Event,
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

    Raises FeedGap where the beginning of the feed is gone, StorageUnavailable, and ValueError or TypeError where
    another version has written what this one does not understand.
    """

    def __init__(self, session_id: str, feed: TurnFeed, storage: Storage) -> None:
        super().__init__(session_id, TurnRequest())
        self.feed = feed
        self._storage = storage
        self._left = threading.Event()
        self._told_at = 0.0  # when it was told where the turn runs that it is read here
        identity, *lines = feed.read(_READ_SECONDS) or [b""]
        if not identity:
            raise FeedGap(f"nothing is published of the turn of {session_id}")
        self._attempt: int
        self.id, self.message_id, self._attempt, *_ = from_json(identity)
        if not (isinstance(self.id, str) and isinstance(self.message_id, str) and isinstance(self._attempt, int)):
            raise TypeError("the identity of the turn is none")
        self._copy(lines)

    @property
    def attempt(self) -> int:
        """See Turn.attempt."""
        return self._attempt

    def follow(self) -> None:
        """Copies the feed, on the calling thread, until the turn has ended or can be followed no more."""
        heard_at = time.monotonic()
        ended_here = False
        try:
            while not self.ended and not self._left.is_set() and time.monotonic() < heard_at + SILENT_SECONDS:
                try:
                    if self.readers.count and time.monotonic() > self._told_at + _READ_SECONDS:
                        self.tell_readers()
                    lines = self.feed.read(_READ_SECONDS)
                    if not lines and ended_here:
                        return  # there is a last event, but none that is understood here
                    if not lines and self.feed.interrupted():
                        self._take_over()
                        self.feed.end(self._last_lines())
                        ended_here = True
                except FeedGap:
                    return
                except StorageUnavailable:
                    self._left.wait(0.2)
                else:
                    heard_at = time.monotonic()
                    self._copy(lines)
        except (ValueError, TypeError):
            log.warning("turn %s of %s is of another version, and cannot be followed", self.id, self.session_id)
        except Exception:
            log.exception("turn %s of %s cannot be followed", self.id, self.session_id)
        finally:
            self._log.give_up()

    def tell_readers(self) -> bool:
        """See Turn.tell_readers. Never raises: as long as there are readers, it is told again every second."""
        self._told_at = time.monotonic()
        with contextlib.suppress(StorageUnavailable, SessionCorrupt):
            if not (self.ended or self._left.is_set()):  # who is cut off by a shutdown here may go on elsewhere
                return self.feed.tell_readers(bool(self.readers.count), self.readers.kept)
        return False

    def _leave_alone(self) -> None:
        self.tell_readers()
        if self.readers.count:  # of which one has come meanwhile
            self.tell_readers()

    def read(self, after: int, seconds: float) -> list[LoggedEvent]:
        """See Turn.read. Raises StorageUnavailable where the turn can be followed no more."""
        until = time.monotonic() + seconds
        while True:
            lost = self._log.lost
            entries = self._log.read(after, max(0.0, min(until - time.monotonic(), 1.0)))
            if entries or (time.monotonic() >= until and not lost):
                return entries
            if lost:
                raise StorageUnavailable(f"the turn of {self.session_id} can be followed no more")

    def result(self) -> Ended | Failed:
        """See Turn.result. Raises SessionNotFound where the session was deleted, and StorageUnavailable where the
        turn can be followed no more."""
        self._log.wait()
        if self._log.lost:
            self._storage.running(self.session_id)
            raise StorageUnavailable(f"the turn of {self.session_id} can be followed no more")
        return super().result()

    def find_index(self, number: int, *, substituted: bool = False) -> int | None:
        """See Turn.find_index. Waits for an event that the other process has sent and not published yet."""
        give_up = time.monotonic() + 2 * SILENT_SECONDS
        while (found := super().find_index(number, substituted=substituted)) is None:
            if self._log.wait(0) or time.monotonic() > give_up:
                return None
            self._log.read(len(self._log), 0.2)
        return found

    def cancel(self) -> bool:
        """Has the other process cancel the turn, and waits until it has ended. Returns whether that cancelled it."""
        if self.ended:
            return False
        self.feed.ask_to_end()
        last = self.result()
        return isinstance(last, Ended) and last.status == "cancelled"

    def _copy(self, lines: list[bytes]) -> None:
        for line in lines:
            if entry := decode_event(line):
                substituted = self.feed.substituted and not isinstance(entry.event, Started)
                self._log.copy(entry._replace(substituted=substituted))

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
        known = self._log.read(0, 0, MAX_EVENTS)
        number = known[-1].number if known else 0
        events: list[tuple[int, Event]] = [] if known else [(0, Started())]
        if isinstance(last, Ended) and (rest := last.complete_text.removeprefix(self._log.text)):
            # The other process sent this text to its own clients, and published it no more.
            chunks = [entry.sequence for entry in known if isinstance(entry.event, Chunk)]
            events.append((1 + max(chunks, default=0), Chunk(rest)))
        entries = enumerate([*events, (0, last)], number + 1)
        return [encode_event(LoggedEvent(number, timestamp(), *event)) for number, event in entries]


class RemoteTurns:
    """The turns of other processes that this one follows. Safe for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[str, RemoteTurn] = {}  # by the id of the feed, those that have not ended
        self._closing = False

    def turn(self, storage: Storage, session_id: str) -> RemoteTurn | None:
        """The session's newest turn, if it is one of another process. This process follows it from now on.

        Raises ShuttingDown after `close`, StorageUnavailable, and SessionBusy where it cannot be understood.
        """
        feed = storage.turn_feed(session_id)
        if feed is None:
            return None
        with self._lock:
            known = self._turns.get(feed.id)
        try:
            turn = known or RemoteTurn(session_id, feed, storage)
        except (ValueError, TypeError):
            raise SessionBusy(session_id) from None
        if turn is known or turn.ended:
            return turn
        with self._lock:
            if self._closing:
                raise ShuttingDown
            if feed.id not in self._turns:
                try:
                    threading.Thread(target=self._follow, args=(turn,), name=f"follow {turn.id}", daemon=True).start()
                except RuntimeError as error:  # the system gives no more threads
                    raise StorageUnavailable(str(error)) from error
                self._turns[feed.id] = turn
            return self._turns[feed.id]

    def close(self) -> None:
        """Follows no further turn."""
        with self._lock:
            self._closing = True

    def leave(self, until: float) -> None:
        """Waits until those turns have ended that somebody reads here, but not longer than `until`, by the monotonic
        clock. Then follows no turn any more, soon."""
        with self._lock:
            turns = list(self._turns.values())
        for turn in turns:
            if turn.readers.count:
                turn.wait(until - time.monotonic())
            turn._left.set()

    def _follow(self, turn: RemoteTurn) -> None:
        turn.follow()
        with self._lock:
            del self._turns[turn.feed.id]
