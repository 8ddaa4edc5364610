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


class Expiry:
    """Deletes the sessions of a storage that did not change for `seconds`, until `stop` is set. Reading changes
    nothing.

    A session that is locked is left alone, and so is one that cannot be understood.
    """

    def __init__(self, storage: Storage, seconds: float, stop: threading.Event | None = None) -> None:
        self._storage = storage
        self._seconds = seconds
        self._stop = stop or threading.Event()

    def sweep(self) -> int:
        """Deletes what has expired by now. Returns how many sessions that were. Raises StorageUnavailable."""
        limit = time.time() - self._seconds
        return sum(self._delete(session_id, limit) for session_id in self._storage.unchanged_since(limit))

    def _delete(self, session_id: str, limit: float) -> bool:
        if self._stop.is_set():
            return False
        gone = contextlib.suppress(SessionNotFound, SessionBusy, SessionCorrupt)
        with gone, self._storage.lock(session_id) as session:
            if session.session.updated_at < timestamp(limit):  # a turn may have ended in between
                session.delete()
                return True
        return False


class Sweeps:
    """Deletes what has expired in all of the stores that `storages` gives (see `Expiry`), again and again.

    With `seconds` 0 nothing expires.
    """

    def __init__(self, storages: Callable[[], Iterable[Storage]], seconds: float) -> None:
        self._storages = storages
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
        while not self._stop.wait(min(max(self._seconds / 10, _MIN_SECONDS), _MAX_SECONDS)):
            deleted = sum(self._sweep(storage) for storage in self._storages() if not self._stop.is_set())
            if deleted:
                log.info("%d sessions have expired", deleted)

    def _sweep(self, storage: Storage) -> int:
        try:
            return Expiry(storage, self._seconds, self._stop).sweep()
        except StorageUnavailable:
            pass  # which was logged; the next sweep tries again
        except Exception:
            log.exception("expired sessions could not be deleted")
        return 0
