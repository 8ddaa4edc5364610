"""The end of a run or of a call, asked for from outside."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Cancellation:
    """Ends one run or one call of a tool, from any thread and at any time. Never blocks."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.RLock()  # a signal handler may interrupt its own thread in here
        self._actions: list[Callable[[], object]] = []

    def cancel(self) -> None:
        """Ends the run. May be repeated."""
        with self._lock:
            self._event.set()
            actions, self._actions = self._actions, []
            for action in actions:
                action()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Waits for `cancel`, at most that long. Returns `is_cancelled`."""
        return self._event.wait(seconds)

    @contextmanager
    def on_cancel(self, action: Callable[[], object]) -> Iterator[None]:
        """Within the block, `cancel` runs this action, which must not block. It runs at once after a cancel."""
        with self._lock:
            self._actions.append(action)
            if self._event.is_set():
                self.cancel()
        try:
            yield
        finally:
            with self._lock:
                if action in self._actions:
                    self._actions.remove(action)
