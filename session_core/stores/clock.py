"""A thread that does what is due."""

import threading
import time
from collections.abc import Callable

_MIN_TICK_SECONDS = 0.05  # between two ticks


class Clock:
    """Calls `tick` with the time, by the monotonic clock, when something is due.

    `tick` returns when the next thing is due, None where there is none. Then the thread ends, until `wake_by`.
    """

    def __init__(self, tick: Callable[[float], float | None]) -> None:
        self._tick = tick
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._due: float | None = None  # None while it ticks

    def wake_by(self, when: float) -> None:
        """Ticks at this time, or earlier. Raises RuntimeError where the system gives no more threads."""
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="clock", daemon=True)
                self._due = when
                thread.start()
                self._thread = thread
            elif self._due is None or when < self._due:
                self._due = when
                self._changed.notify()

    def hurry(self) -> None:
        """Ticks now, if anything is due at all."""
        with self._changed:
            if self._thread is not None:
                self._due = 0.0
                self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._due is not None and (left := self._due - time.monotonic()) > 0:
                    self._changed.wait(left)
                self._due = None
            due = self._tick(time.monotonic())
            with self._changed:
                if self._due is None and due is None:
                    self._thread = None
                    return
                known = [when for when in (self._due, due) if when is not None]
                self._due = max(min(known), time.monotonic() + _MIN_TICK_SECONDS)
