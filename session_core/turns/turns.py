"""All turns of a process: start, attach, cancel, time out, shut down."""

import contextlib
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

from session_core.data.session import version_of
from session_core.stores.clock import Clock
from session_core.telemetry.spans import Observer, TurnSpan
from session_core.turns.attempt import begin_attempt
from session_core.turns.compaction_turn import CompactionTurn, begin_compaction
from session_core.turns.event_log import Failed
from session_core.turns.journal import take_over
from session_core.turns.local import LocalTurn, fail_all
from session_core.turns.models import ModelChoice
from session_core.turns.queue_runner import QueueRunner
from session_core.turns.recent import Place, RecentTurns
from session_core.turns.remote import SILENT_SECONDS, RemoteTurn, RemoteTurns, ShuttingDown
from session_core.turns.report import TurnReport
from session_core.turns.stored import StoredTurn, find_turn
from session_core.turns.turn import Overloaded, Turn
from session_core.turns.turn_request import KeyReused, TurnRequest
from session_core.turns.turn_start import TurnStart, TurnStarts
from session_core.turns.workers import Workers
from storage import LockedSession, Session, SessionBusy, SessionCorrupt

_MAX_LOOKS = 3  # at a session that is busy, for its turn

_Admit = Callable[[], None]


class Turns:
    """The turns of a process, in sessions of any store. Every method may be called from any thread.

    A place is a session: its store and its id. At most `max_turns` turns run at once, each for at most `timeout`
    seconds, with the agent of `models`. The `observer` sees them.
    """

    def __init__(
        self, models: ModelChoice, *, timeout: float, max_turns: int = 500, observer: Observer | None = None
    ) -> None:
        self.models = models
        self._observer = observer or Observer()
        self._timeout = timeout
        self._slots = threading.Semaphore(max_turns)
        self._workers = Workers()
        self._lock = threading.Lock()
        self._local = TurnStarts()
        self.queues = QueueRunner(self.start, self._local.__contains__, self._workers)
        self._recent = RecentTurns()
        self._remote = RemoteTurns()
        self.closing = False  # whether `shut_down` was called
        self._clock = Clock(self._tick)

    def start(
        self, place: Place, request: TurnRequest, *, admit: _Admit | None = None, observer: Observer | None = None
    ) -> tuple[Turn, bool]:
        """Starts a turn, whose question is durable when this returns. Returns the turn and False.

        Where the idempotency key is that of an earlier request for the same, returns the turn of that request and
        whether it has ended: running, recently ended, or replayed from what is stored. A failed turn that is the
        session's last is tried again under its key. `admit` is called before a new turn starts, and may raise.

        Raises SessionNotFound, KeyReused, ShuttingDown, SessionBusy, Overloaded (in this order), TurnRefused,
        NothingToContinue, TurnWaiting, ModelRefused, StorageUnavailable, SessionCorrupt, and what `admit` raises.
        """
        looks = 0
        while True:
            start = TurnStart(request, time.monotonic())
            with self._lock:
                closing, other = self.closing, self._local.get(place)
                if not closing and other is None:
                    self._local[place] = start
            if other is None and not closing:
                looks += 1
                found = self._take(place, start, admit, observer or self._observer, last_try=looks == _MAX_LOOKS)
            else:
                found = self._beside(place, request, other)
            if found is not None:
                return found

    def attach(self, place: Place) -> Turn | None:
        """The session's turn that runs or can still be watched. None where there is none. One
        without a `message_id` only makes a summary.

        Raises SessionNotFound and StorageUnavailable. Where the turn runs in another process, raises ShuttingDown, or
        SessionBusy if it cannot be followed from here.
        """
        storage, session_id = place
        while True:
            turn = self._local_or_remote(place)
            with self._lock:
                ended = self._recent.get(place)
            if turn is None or ended is None or ended.turn is not turn:
                return turn
            try:
                if version_of(storage.get(session_id)) == ended.version:
                    return turn
            except SessionCorrupt:
                return turn
            self.forget(place)  # another process has added to the session

    def cancel(self, place: Place) -> bool:
        """Cancels the session's turn and waits for its end. Returns False if none runs. Raises what `attach` does."""
        turn = self._local_or_remote(place)
        return turn is not None and turn.cancel()

    def forget(self, place: Place) -> None:
        """Lets go of the session's ended turn."""
        with self._lock:
            self._recent.remove(place)

    def shut_down(self, grace: float) -> None:
        """Refuses new turns, gives the running ones `grace` seconds to end, then ends them as failed.

        All turns have ended, and what they leave is stored, when this returns. Turns of other processes that are read
        here get as long. May be called again, with less grace.
        """
        until = time.monotonic() + grace
        with self._lock:
            self.closing = True
            starts = list(self._local.values())
        self._remote.close()
        self.queues.close()
        turns = [turn for start in starts if (turn := start.wait())]
        for turn in turns:
            turn.wait(until - time.monotonic())
        fail_all(turns, "shutting_down")
        with self._lock:
            storages = self._recent.storages
        for storage in storages:
            storage.flush()
        self._remote.leave(until)
        self._clock.hurry()
        self._workers.close()

    def _beside(self, place: Place, request: TurnRequest, other: TurnStart | None) -> tuple[Turn, bool] | None:
        """What a request gets where another one has the session, or at a shutdown. None where it may try again."""
        storage, session_id = place
        if other is not None and request.key is not None and other.request.key == request.key:
            if not request.is_same(other.request):
                raise KeyReused
            turn = other.decided.result()
            return None if turn is None else (turn, False)
        if other is not None and other.looked.wait() and other.decided.done() and other.wait() is None:
            return None  # it was a retry of a turn that has ended
        if request.key is None:
            storage.running(session_id)  # a session that does not exist is the first error
        else:
            running = other.turn if other is not None else None
            if earlier := self._earlier_turn(place, request, storage.get(session_id), running):
                return earlier
        raise ShuttingDown if self.closing else SessionBusy(session_id)

    def _take(
        self, place: Place, start: TurnStart, admit: _Admit | None, observer: Observer, *, last_try: bool
    ) -> tuple[Turn, bool] | None:
        """Locks the session and starts the turn in it, or finds the turn of its key. Leaves everything as it was
        where it raises. None where another process has the session, and a further look may help."""
        storage, session_id = place
        try:
            try:
                turn, session = self._start_in(place, storage.lock_for_turn(session_id), start, admit, observer)
            except SessionBusy:  # another process may start, or only look for, the turn of this key
                if start.request.key is None:
                    raise
                turn, session = None, None
        except BaseException as error:
            self._decide(place, start, error)
            raise
        self._decide(place, start, turn)
        if turn is not None:
            return turn, False
        earlier = self._earlier_turn(place, start.request, session or storage.get(session_id), None)
        if earlier is None and last_try:
            raise SessionBusy(session_id)
        if earlier is None:
            storage.turn_feed(session_id)  # which waits until a turn that starts elsewhere is stored
        return earlier

    def _decide(self, place: Place, start: TurnStart, outcome: LocalTurn | BaseException | None) -> None:
        if not isinstance(outcome, LocalTurn):
            with self._lock:
                del self._local[place]
        if isinstance(outcome, BaseException):
            start.decided.set_exception(outcome)
        else:
            start.decided.set_result(outcome)
        start.looked.set()
        if not isinstance(outcome, LocalTurn) and start.request.queued_id is None:
            self.queues.look(place)

    def _start_in(
        self, place: Place, locked: LockedSession, start: TurnStart, admit: _Admit | None, observer: Observer
    ) -> tuple[LocalTurn | None, Session]:
        """The turn, None where its key is that of a turn that has ended, and the session as it was found."""
        with contextlib.ExitStack() as undo:
            undo.callback(locked.release)
            session, queue, request = locked.session, place[0].queue(locked.id), start.request
            stored = _turn_of_key(session, request)
            if stored is not None and not stored.can_be_retried:
                return None, session
            start.looked.set()
            self._admit(start, admit, undo)
            self.models.check(None if request.queued_id else request.model or session.model)
            take_over(place[0], locked)
            begin = begin_compaction if request.compacts else begin_attempt
            attempt = begin(place[0], locked, request, self.models.agent.model)
            span = observer.start_span(TurnSpan(locked.id, attempt.settings["model"], start.began_at))
            report = TurnReport(locked.id, span, start.began_at)
            kind = CompactionTurn if request.compacts else LocalTurn
            turn = kind(locked, request, attempt, report, functools.partial(self._on_end, place))
            turn.start()
            undo.pop_all()
        try:
            self._workers.run(functools.partial(turn.run, self.models.agent, attempt.history, queue))
        except RuntimeError:  # the system gives no more threads
            turn.fail("overloaded")
        return turn, session

    def _admit(self, start: TurnStart, admit: _Admit | None, undo: contextlib.ExitStack) -> None:
        if self.closing:
            raise ShuttingDown
        if admit is not None:
            admit()
        if not self._slots.acquire(blocking=False):
            raise Overloaded
        undo.callback(self._slots.release)
        try:
            self._clock.wake_by(start.began_at + self._timeout)
        except RuntimeError:  # the system gives no more threads
            raise Overloaded from None

    def _earlier_turn(
        self, place: Place, request: TurnRequest, session: Session, running: LocalTurn | None
    ) -> tuple[Turn, bool] | None:
        """The turn that has the key of the request, and whether it has ended. None where the key may start a turn."""
        stored = _turn_of_key(session, request)
        if stored is None:
            return None
        message_id = stored.messages[0]["id"]
        if running is not None and running.message_id == message_id:
            return running, False  # which another caller, or the server itself, continues, or that it has steered
        remote = self._remote.turn(*place)
        if remote is not None and remote.message_id == message_id:
            ended = not place[0].running(place[1])
            if ended:
                remote.wait(SILENT_SECONDS)  # for its last event, which may have to be made up
            if not (remote.ended and isinstance(remote.result(), Failed)):
                return remote, ended
        if stored.can_be_retried:
            return None
        with self._lock:
            recent = self._recent.get(place)
        if recent and recent.turn.request.key == request.key and not isinstance(recent.turn.result(), Failed):
            return recent.turn, True
        return Turn.replay(session.id, stored), True

    def _local_or_remote(self, place: Place) -> LocalTurn | RemoteTurn | None:
        storage, session_id = place
        looks = 0
        while looks < _MAX_LOOKS:
            starts = self._local.count
            turn = self._local_turn(place)
            if turn is not None and not turn.ended:
                return turn
            if remote := self._remote.turn(storage, session_id):
                return remote
            if not storage.running(session_id):
                return turn
            looks += starts == self._local.count  # else a request of this process may have had it
        raise SessionBusy(session_id)

    def _local_turn(self, place: Place) -> LocalTurn | None:
        while True:
            with self._lock:
                start, ended = self._local.get(place), self._recent.get(place)
            if start is None:
                return ended and ended.turn
            if turn := start.wait():
                return turn

    def _on_end(self, place: Place, turn: LocalTurn, version: tuple[Any, ...]) -> None:
        now, size = time.monotonic(), turn.size
        self._slots.release()
        with self._lock:
            del self._local[place]
            until = self._recent.add(place, turn, version, size, now) if turn.message_id else now
        self.queues.look(place)
        with contextlib.suppress(RuntimeError):  # the system gives no more threads: it is let go of later
            self._clock.wake_by(until)

    def _tick(self, now: float) -> float | None:
        """Ends the turns whose time is up, and lets go of ended ones, as long as there are any of either.

        After a shutdown it goes on as long as any turn runs.
        """
        with self._lock:
            next_expiry = self._recent.remove_expired(now)
            starts = list(self._local.values())
            if not starts and (self.closing or next_expiry is None):
                return None
        running = [(start.began_at + self._timeout, turn) for start in starts if (turn := start.turn)]
        fail_all([turn for deadline, turn in running if deadline <= now and not turn.ending], "model_timeout")
        deadlines = [deadline for deadline, turn in running if not turn.ending]
        deadlines += [start.began_at + self._timeout for start in starts if not start.decided.done()]
        deadlines += [] if next_expiry is None else [next_expiry]
        return min(deadlines, default=now)


def _turn_of_key(session: Session, request: TurnRequest) -> StoredTurn | None:
    """The stored turn that has the key of the request. Raises KeyReused where it asked for something else."""
    stored = find_turn(session, request.key)
    if stored is None or request.key is None:
        return None
    if not request.is_same(stored.request(request.key)):
        raise KeyReused
    return stored
