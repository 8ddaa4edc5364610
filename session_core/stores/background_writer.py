"""One thread that writes what the running turns of a process record."""

from __future__ import annotations

import threading
from typing import Protocol

_IDLE_SECONDS = 10.0  # for which the thread waits for something to write


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
        self._thread: threading.Thread | None = None
        self._woken = False  # not to wait before the next flush
        self._ending = False  # not to wait for something to write

    def add(self, recording: Recording) -> None:
        """Flushes this from now on. Raises RuntimeError where the system gives no more threads."""
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="recordings", daemon=True)
                thread.start()
                self._thread = thread
            self._recordings[recording] = object()
            self._ending = False
            self._changed.notify_all()

    def flush(self, seconds: float) -> None:
        """Waits, at most so long, until what has ended is written. Then the thread ends, if it has no more to do."""
        with self._changed:
            self._woken = self._ending = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not any(one.pending for one in self._recordings), seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._recordings:
                    self._changed.wait_for(lambda: self._recordings or self._ending, _IDLE_SECONDS)
                    if not self._recordings:
                        self._thread = None
                        return
                self._changed.wait_for(lambda: self._woken, self._seconds)
                self._woken = False
                recordings = list(self._recordings.items())
            done = [(recording, added) for recording, added in recordings if not recording.flush()]
            with self._changed:
                for recording, added in done:
                    if self._recordings[recording] is added:  # else it was added again meanwhile
                        del self._recordings[recording]
                self._changed.notify_all()
