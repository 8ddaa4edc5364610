"""One thread that writes what the running turns of a process record."""

import logging
import threading
import time
from typing import Protocol

from session_core.stores.clock import Clock

log = logging.getLogger(__name__)


class Recording(Protocol):
    """What is written now and then."""

    def flush(self) -> bool:
        """Writes what has come since the last time. Never raises. Returns False when nothing more will come."""

    @property
    def pending(self) -> bool:
        """Whether something has ended that is not written yet."""


class BackgroundWriter:
    """Flushes each recording every `seconds` as long as more may come, all on one thread."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._changed = threading.Condition()
        self._recordings: dict[Recording, object] = {}  # each with what its last `add` has made
        self._clock = Clock(self._tick)

    def add(self, recording: Recording) -> None:
        """Flushes this from now on. Raises RuntimeError where the system gives no more threads."""
        with self._changed:
            self._recordings[recording] = object()
        self._clock.wake_by(time.monotonic() + self._seconds)

    def flush(self, seconds: float) -> None:
        """Waits, at most so long, until what has ended is written."""
        self._clock.hurry()
        with self._changed:
            self._changed.wait_for(lambda: not any(one.pending for one in self._recordings), seconds)

    def _tick(self, now: float) -> float | None:
        with self._changed:
            recordings = list(self._recordings.items())
        done = [(recording, added) for recording, added in recordings if not _flush(recording)]
        with self._changed:
            for recording, added in done:
                if self._recordings[recording] is added:  # else it was added again meanwhile
                    del self._recordings[recording]
            self._changed.notify_all()
            return now + self._seconds if self._recordings else None


def _flush(recording: Recording) -> bool:
    try:
        return recording.flush()
    except Exception:  # which costs this one alone: the thread writes for all
        log.exception("what a running turn has written so far is not kept any more")
        return False
