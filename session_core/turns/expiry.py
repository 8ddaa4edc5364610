"""The end of sessions that nobody has used for long."""

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


def expire(
    storage: Storage,
    seconds: float,
    clock: Callable[[], float] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Deletes the sessions of a storage that did not change for so many seconds, until `stopped`. Reading changes
    nothing. Returns how many that were. Raises StorageUnavailable.

    A session that is locked is left alone, and so is one that cannot be read or understood. `clock` gives the time,
    the store's own where it is None.
    """
    limit = (clock or storage.clock)() - seconds
    return sum(_delete(storage, id, limit) for id in storage.unchanged_since(limit) if not stopped())


def _delete(storage: Storage, session_id: str, limit: float) -> bool:
    gone = contextlib.suppress(SessionNotFound, SessionBusy, SessionCorrupt)
    try:
        with gone, storage.lock(session_id) as session:
            unchanged = storage.changed_at(session_id) < limit  # a turn may have ended in between
            waits = bool(storage.queue(session_id).read())  # what was accepted is kept
            if unchanged and not waits and session.session.updated_at < timestamp(limit):
                session.delete()
                return True
    except StorageUnavailable:  # which was logged, and concerns this session alone
        storage.check()
    return False


class Sweeps:
    """Deletes what has expired in all of the stores that `storages` gives (see `expire`), again and again.

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
            return expire(storage, self._seconds, clock, self._stop.is_set)
        except StorageUnavailable:
            pass  # which was logged; the next sweep tries again
        except Exception:
            log.exception("expired sessions could not be deleted")
        return 0
