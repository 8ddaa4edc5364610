"""All turns of a store: start, attach, cancel, delete, time out, shut down."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

from agent import Agent
from session_core.telemetry.spans import Observer
from session_core.turns.event_log import Ended, Failed, status_of
from session_core.turns.expiry import Expiry
from session_core.turns.journal import Keeper, take_over, with_partial_answer
from session_core.turns.local import KeyInUse, LocalTurn, fail_all
from session_core.turns.models import ModelChoice
from session_core.turns.recent import RecentTurns
from session_core.turns.remote import SILENT_SECONDS, RemoteTurn, RemoteTurns, ShuttingDown
from session_core.turns.stored import find_turn, version_of
from session_core.turns.turn import Overloaded, Turn
from session_core.turns.turn_request import KeyReused, TurnRequest
from session_core.turns.workers import Workers
from storage import Session, SessionBusy, SessionCorrupt, Storage

log = logging.getLogger(__name__)

_MAX_LOOKS = 3  # at a session that is busy, for the turn of a key
_MIN_TICK_SECONDS = 0.05  # between two looks of the clock


class Turns:
    """The turns of all sessions in a storage, run with one agent. Every method may be called from any thread.

    At most `max_turns` run at once (or as many as `slots` has, which several stores may share), each for at most
    `timeout` seconds. With `show_reasoning`, the model's reasoning is among their events. `models` are the names of
    the models that may run beside the agent's own; None means any. Sessions that did not change for `session_ttl`
    seconds are deleted (0: none). The `observer` sees the turns.
    """

    def __init__(
        self,
        storage: Storage,
        agent: Agent,
        *,
        timeout: float,
        max_turns: int = 500,
        slots: threading.Semaphore | None = None,
        show_reasoning: bool = True,
        models: Collection[str] | None = (),
        session_ttl: float = 0.0,
        observer: Observer | None = None,
    ) -> None:
        self.storage = storage
        self._agent, self._observer = agent, observer or Observer()
        self._timeout = timeout
        self._slots = slots or threading.Semaphore(max_turns)
        self._show_reasoning = show_reasoning
        self.models = ModelChoice(agent, models)
        self._expiry = Expiry(storage, session_ttl)
        self._expiry.start()
        self._keeper, self._workers = Keeper(), Workers()
        self._lock = threading.Lock()
        self._local: dict[str, LocalTurn] = {}  # by session, from before they start until they have ended
        self._admitted: dict[LocalTurn, None] = {}  # those that count as running, oldest first
        self._recent = RecentTurns()
        self._remote = RemoteTurns(storage)
        self._closing = False
        self._clock: threading.Thread | None = None
        self._tick = threading.Condition(self._lock)
        self._next_tick = 0.0

    def start(
        self, session_id: str, question: TurnRequest, *, slot: bool = True, observer: Observer | None = None
    ) -> tuple[Turn, bool]:
        """Starts a turn with a question, which is durable when this returns. Returns the turn and False.

        Where the idempotency key is that of an earlier request for the same, gives the turn of that request and
        whether it has ended: running, recently ended, or replayed from what is stored. A failed turn that is the
        session's last is tried again under its key. Without a `slot`, no new turn starts.

        Raises SessionNotFound, KeyReused, ShuttingDown, SessionBusy, Overloaded (in this order), QuestionRefused,
        NothingToContinue, ModelRefused, and StorageUnavailable or SessionCorrupt.
        """
        key, observer, busy = question.key, observer or self._observer, 0
        while True:
            turn = LocalTurn(session_id, question, self._on_end, observer, show_reasoning=self._show_reasoning)
            try:
                if key is not None and (earlier := self._turn_of_key(session_id, question, key)):
                    return earlier
                history = self._start(turn, slot)
            except KeyInUse:
                continue
            except SessionBusy:
                busy += 1  # another process may start, or only look for, the turn of this key
                if key is None or busy == _MAX_LOOKS:
                    raise
                self.storage.turn_feed(session_id)  # which waits until a turn that starts there is stored
                continue
            try:
                self._workers.run(functools.partial(turn.run, self._agent, history))
            except RuntimeError:  # the system gives no more threads
                turn.fail("overloaded")
            return turn, False

    def attach(self, session_id: str) -> Turn | None:
        """The session's turn that runs or can still be watched. None where there is none.

        Raises SessionNotFound and StorageUnavailable. Where the turn runs in another process, raises ShuttingDown, or
        SessionBusy if it cannot be followed from here.
        """
        while True:
            turn = self._local_or_remote(session_id)
            if turn is None or not turn.ended or isinstance(turn, RemoteTurn):
                return turn
            try:
                if version_of(self.storage.get(session_id)) == turn.version:
                    return turn
            except SessionCorrupt:
                return turn
            with self._lock:  # another process has added to the session
                if self._recent.get(session_id) is turn:
                    self._recent.remove(session_id)

    def session(self, session_id: str) -> Session:
        """The session, with the partial answer that an interrupted turn has left. Raises SessionNotFound,
        SessionCorrupt and StorageUnavailable."""
        return with_partial_answer(self.storage, session_id)

    def running(self, session_id: str) -> bool:
        """Whether a turn runs in the session, in any process. Raises SessionNotFound and StorageUnavailable."""
        return self.storage.running(session_id)

    def cancel(self, session_id: str) -> bool:
        """Cancels the session's turn and waits until it has ended. Returns False if none runs.

        Raises SessionNotFound and StorageUnavailable. Where the turn runs in another process, raises ShuttingDown, or
        SessionBusy if it cannot be followed from here.
        """
        turn = self._local_or_remote(session_id)
        return turn is not None and turn.cancel()

    def delete(self, session_id: str) -> None:
        """Deletes the session, durably. Cancels a turn that runs in it, which has ended when this returns.

        Raises what `cancel` does, and SessionBusy where one turn after the other starts.
        """
        for last_try in (False, False, False, True):
            self.cancel(session_id)
            try:
                with self.storage.lock(session_id) as session:
                    session.delete()
                break
            except SessionBusy:  # another turn started in between
                if last_try:
                    raise
        with self._lock:
            self._recent.remove(session_id)

    def create(self, settings: Mapping[str, str | None], messages: Any = (), last_error: str | None = None) -> str:
        """Creates a session, durably, and returns its id. Raises ModelRefused and StorageUnavailable."""
        self.models.check(settings.get("model"))
        return self.storage.create(messages, last_error, **settings)

    def configure(self, session_id: str, settings: Mapping[str, str | None]) -> None:
        """Sets the session's title, model or instructions, or removes them with None.

        Raises ModelRefused, SessionNotFound, SessionBusy where a turn runs, SessionCorrupt and StorageUnavailable.
        """
        self.models.check(settings.get("model"))
        with self.storage.lock(session_id) as session:
            session.configure(**settings)

    def shut_down(self, grace: float) -> None:
        """Refuses new turns, gives the running ones `grace` seconds to end, then ends them as failed.

        All turns have ended, and what they leave is stored, when this returns. May be called again, with less grace.
        """
        with self._lock:
            self._closing = self._remote.closing = True
            turns = list(self._local.values())
        until = time.monotonic() + grace
        for turn in turns:
            if turn.wait_for_start():
                turn.wait(until - time.monotonic())
        fail_all(turns, "shutting_down")
        self.storage.flush()
        with self._lock:
            self._tick.notify()
        self._remote.leave()
        self._expiry.stop()
        self._keeper.close()
        self._workers.close()

    @property
    def closing(self) -> bool:
        """Whether `shut_down` was called."""
        return self._closing

    def _turn_of_key(self, session_id: str, question: TurnRequest, key: str) -> tuple[Turn, bool] | None:
        """The turn that has this key, and whether it has ended. None where the key may start a turn."""
        with self._lock:
            running = self._local.get(session_id)
        if running is not None and running.question.key == key:
            if not question.is_same(running.question):
                raise KeyReused
            running.join()
            return running, False
        stored = find_turn(self.storage.get(session_id), key)
        if stored is None:
            return None
        if not question.is_same(TurnRequest.stored(stored.messages[0], key)):
            raise KeyReused
        if running is not None and running.message_id == stored.messages[0]["id"] and running.question.continues:
            return running, False  # another caller, or the server itself, goes on with it
        remote = self._remote.turn(session_id)
        if remote is not None and remote.message_id == stored.messages[0]["id"]:
            ended = not self.storage.running(session_id)
            if ended:
                remote.wait(SILENT_SECONDS)  # for its last event, which may have to be made up
            if not remote.failed:
                return remote, ended
        if stored.can_be_retried:
            return None
        with self._lock:
            recent = self._recent.get(session_id)
        retried_elsewhere = recent is not None and isinstance(recent.result(), Failed)
        if recent is None or recent.question.key != key or retried_elsewhere:
            return Turn.replay(session_id, stored, show_reasoning=self._show_reasoning), True
        return recent, True

    def _local_or_remote(self, session_id: str) -> LocalTurn | RemoteTurn | None:
        turn = self._local_turn(session_id)
        if turn is not None and not turn.ended:
            return turn
        if remote := self._remote.turn(session_id):
            return remote
        if self.storage.running(session_id):
            turn = self._local_turn(session_id)  # which may have started since
            if turn is None or turn.ended:
                raise SessionBusy(session_id)
        return turn

    def _local_turn(self, session_id: str) -> LocalTurn | None:
        while True:
            with self._lock:
                turn = self._local.get(session_id)
                if turn is None:
                    return self._recent.get(session_id)
            if turn.wait_for_start():
                return turn

    def _start(self, turn: LocalTurn, slot: bool) -> list[dict[str, Any]]:
        """Locks the session and starts the turn in it, or leaves everything as it was and raises.

        Raises KeyInUse where a turn of the same key is in the session by now.
        """
        id = turn.session_id
        with self._lock:
            closing, other = self._closing, self._local.get(id)
            if not closing and other is None:
                self._local[id] = turn
        if other is not None and other.question.key is not None and other.question.key == turn.question.key:
            raise KeyInUse
        if closing or other is not None:
            self.storage.running(id)  # a session that does not exist is the first error
            raise ShuttingDown if closing else SessionBusy(id)
        try:
            session = self.storage.lock(id, turn=True)
            try:
                self._admit(turn, slot)
                self.models.check(turn.question.model or session.session.model)
                take_over(self.storage, session)
                history = turn.start(session, self._agent.model)
                self._keeper.add(turn)
                return history
            except BaseException:
                session.release()
                raise
        except BaseException as error:
            with self._lock:
                del self._local[id]
                self._dismiss(turn)
            turn.fail_to_start(error)
            raise

    def _admit(self, turn: LocalTurn, slot: bool) -> None:
        with self._lock:
            if self._closing:
                raise ShuttingDown
            if not slot or not self._slots.acquire(blocking=False):
                raise Overloaded
            self._admitted[turn] = None
            try:
                self._wake_by(turn.started_at + self._timeout)
            except RuntimeError:  # the system gives no more threads
                raise Overloaded from None

    def _dismiss(self, turn: LocalTurn) -> None:
        """The turn runs no more. The caller holds the lock."""
        if turn in self._admitted:
            del self._admitted[turn]
            self._slots.release()

    def _on_end(self, turn: LocalTurn, last: Ended | Failed) -> None:
        now, size = time.monotonic(), turn.size
        self._keeper.remove(turn)
        with self._lock:
            del self._local[turn.session_id]
            self._dismiss(turn)
            self._wake_by(self._recent.add(turn, size, now))
        seconds = now - turn.started_at
        log.info(
            "turn session=%s status=%s seconds=%.3f model_seconds=%.3f tokens=%s",
            turn.session_id,
            status_of(last),
            seconds,
            seconds - turn.tool_seconds(),
            (turn.usage or {}).get("total_tokens", "-"),
        )

    def _wake_by(self, when: float) -> None:
        """Has the clock look again at this time, or earlier. The caller holds the lock."""
        if self._clock is None:
            clock = threading.Thread(target=self._keep_time, name="clock", daemon=True)
            clock.start()
            self._clock = clock
        elif when < self._next_tick:
            self._tick.notify()

    def _keep_time(self) -> None:
        """Ends the turns whose time is up and drops the ended ones, as long as there are any of either.

        After a shutdown it goes on as long as any turn runs.
        """
        while True:
            with self._lock:
                now = time.monotonic()
                next_expiry = self._recent.remove_expired(now)
                if not self._admitted and (self._closing or not self._recent):
                    self._clock = None
                    return
                deadlines = {turn: turn.started_at + self._timeout for turn in self._admitted if not turn.ending}
                due = [turn for turn, deadline in deadlines.items() if deadline <= now]
                if not due:
                    ticks = [*deadlines.values(), *([] if next_expiry is None else [next_expiry])]
                    self._next_tick = max(min(ticks, default=0.0), now + _MIN_TICK_SECONDS)
                    self._tick.wait(self._next_tick - now)
            fail_all(due, "model_timeout")
