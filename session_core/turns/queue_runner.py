"""Begins the turns of messages that wait, each when the one before has ended."""

import functools
import logging
import threading
import time
from collections.abc import Callable

from session_core.data.message_queue import NotQueued
from session_core.stores.clock import Clock
from session_core.turns.queued import next_request
from session_core.turns.recent import Place
from session_core.turns.remote import ShuttingDown
from session_core.turns.turn import Overloaded
from session_core.turns.turn_request import TurnRequest
from session_core.turns.workers import Workers
from storage import SessionBusy, SessionCorrupt, SessionNotFound, StorageUnavailable

log = logging.getLogger(__name__)

_AGAIN_SECONDS = 0.5  # after a try that may succeed later: all slots are taken, or the store cannot be used


class QueueRunner:
    """Begins what waits in sessions with `start`, on the threads of `workers`. `runs_here` tells whether this process
    has a session's turn, at whose end the caller looks. Every method may be called from any thread."""

    def __init__(
        self, start: Callable[[Place, TurnRequest], object], runs_here: Callable[[Place], bool], workers: Workers
    ) -> None:
        self._start = start
        self._runs_here = runs_here
        self._workers = workers
        self._changed = threading.Condition()
        self._again: set[Place] = set()
        self._closed = False
        self._clock = Clock(self._tick)

    def look(self, place: Place) -> None:
        """Begins the turn of the message that waits first in the session, soon, if one waits. Never raises."""
        storage, session_id = place
        try:
            if storage.queue(session_id).read():
                self._workers.run(functools.partial(self._begin, place))
        except (SessionNotFound, SessionCorrupt):
            pass
        except (StorageUnavailable, RuntimeError):  # the system gives no more threads
            self._try_later(place)

    def wait(self, seconds: float) -> None:
        """Waits until the turn of a message that has waited begins, in any session, at most so long."""
        with self._changed:
            self._changed.wait(seconds)

    def close(self) -> None:
        """Begins nothing more."""
        self._closed = True
        with self._changed:
            self._changed.notify_all()
        self._clock.hurry()

    def _begin(self, place: Place) -> None:
        """Tries again later where that may help: not where a turn runs here, since its end is another try. A process
        elsewhere may die."""
        storage, session_id = place
        again = False
        try:
            request = None if self._closed else next_request(storage, session_id)
            if request is not None:
                self._start(place, request)
        except (SessionNotFound, SessionCorrupt, ShuttingDown):
            pass
        except SessionBusy:
            again = not self._runs_here(place)
        except (StorageUnavailable, Overloaded, NotQueued):
            again = True
        except Exception:
            log.exception("what waits in %s could not begin", session_id)
        with self._changed:
            self._changed.notify_all()
        if again:
            self._try_later(place)

    def _try_later(self, place: Place) -> None:
        if self._closed:
            return
        with self._changed:
            self._again.add(place)
        try:
            self._clock.wake_by(time.monotonic() + _AGAIN_SECONDS)
        except RuntimeError:  # the system gives no more threads; whoever asks for a turn next tries again
            log.warning("what waits in %s cannot begin now", place[1])

    def _tick(self, now: float) -> float | None:
        with self._changed:
            places, self._again = self._again, set()
        for place in places:
            self.look(place)
        return None
