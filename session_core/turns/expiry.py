"""The end of sessions that nobody has used for long."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable

from storage import SessionBusy, SessionCorrupt, SessionNotFound, Storage, StorageUnavailable, timestamp

log = logging.getLogger(__name__)

_MIN_SECONDS, _MAX_SECONDS = 1.0, 300.0  # between two sweeps
_MAX_DRIFT_SECONDS = 1.0  # of a clock between two sweeps; more is a jump


def _running_time() -> float:
    """Seconds that no setting of the clock changes. Where the system tells, they go on while it is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class SteadyClock:
    """A clock that follows another one, but jumps ahead `delay` seconds later than that. Not safe for threads.

    What was stamped before a jump seems older than it is. When as long has passed as it may live, it does not.
    """

    def __init__(
        self, read: Callable[[], float], delay: float, running_time: Callable[[], float] = _running_time
    ) -> None:
        self._read, self._delay, self._running_time = read, delay, running_time
        self._offset: float | None = None
        self._newest = self._jumped_at = 0.0

    def now(self) -> float:
        """The time, in the seconds of the other clock. Raises what reading that raises."""
        running = self._running_time()
        offset = self._read() - running
        if self._offset is None or offset <= self._offset + _MAX_DRIFT_SECONDS:
            self._offset = self._newest = offset
        elif offset > self._newest + _MAX_DRIFT_SECONDS:
            self._newest, self._jumped_at = offset, running
            log.warning("the clock has jumped ahead: sessions expire by its new time in %g s", self._delay)
        elif running - self._jumped_at >= self._delay:
            self._offset = offset
        return running + self._offset


class Expiry:
    """Deletes the sessions of a storage that did not change for `seconds`, until `stop` is set. Reading changes
    nothing.

    A session that is locked is left alone, and so is one that cannot be read or understood. `clock` gives the time,
    the store's own where it is None.
    """

    def __init__(
        self,
        storage: Storage,
        seconds: float,
        stop: threading.Event | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._storage = storage
        self._seconds = seconds
        self._stop = stop or threading.Event()
        self._clock = clock or storage.clock

    def sweep(self) -> int:
        """Deletes what has expired by now. Returns how many sessions that were. Raises StorageUnavailable."""
        limit = self._clock() - self._seconds
        return sum(self._delete(session_id, limit) for session_id in self._storage.unchanged_since(limit))

    def _delete(self, session_id: str, limit: float) -> bool:
        if self._stop.is_set():
            return False
        gone = contextlib.suppress(SessionNotFound, SessionBusy, SessionCorrupt)
        try:
            with gone, self._storage.lock(session_id) as session:
                unchanged = self._storage.changed_at(session_id) < limit  # a turn may have ended in between
                if unchanged and session.session.updated_at < timestamp(limit):
                    session.delete()
                    return True
        except StorageUnavailable:  # which was logged, and concerns this session alone
            self._storage.check()
        return False


class Sweeps:
    """Deletes what has expired in all of the stores that `storages` gives (see `Expiry`), again and again.

    `clock` gives the time of the stores, which have one clock. With `seconds` 0 nothing expires.
    """

    def __init__(self, storages: Callable[[], Iterable[Storage]], clock: Callable[[], float], seconds: float) -> None:
        self._storages = storages
        self._clock = clock
        self._seconds = seconds
        self._stop = threading.Event()

    def start(self) -> None:
        """Sweeps now and then, on one thread for all stores, until `stop`."""
        if self._seconds:
            threading.Thread(target=self._work, name="expiry", daemon=True).start()

    def stop(self) -> None:
        """Ends the sweeps soon."""
        self._stop.set()

    def _work(self) -> None:
        clock = SteadyClock(self._clock, self._seconds)
        with contextlib.suppress(StorageUnavailable):
            clock.now()  # so that a jump before the first sweep is seen
        while not self._stop.wait(min(max(self._seconds / 10, _MIN_SECONDS), _MAX_SECONDS)):
            deleted = sum(self._sweep(storage, clock.now) for storage in self._storages() if not self._stop.is_set())
            if deleted:
                log.info("%d sessions have expired", deleted)

    def _sweep(self, storage: Storage, clock: Callable[[], float]) -> int:
        try:
            return Expiry(storage, self._seconds, self._stop, clock).sweep()
        except StorageUnavailable:
            pass  # which was logged; the next sweep tries again
        except Exception:
            log.exception("expired sessions could not be deleted")
        return 0
