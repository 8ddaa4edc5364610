"""Threads that run one turn after the other."""

import queue
import threading
from collections.abc import Callable

_IDLE_SECONDS = 10.0  # for which a thread waits for its next turn


class Workers:
    """Runs each job on a thread that runs nothing else meanwhile.

    A thread that is done waits a while for the next job: to start one takes longer than to wake one, and the caller
    would wait until the system has started it.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()  # None ends a thread
        self._idle = threading.Semaphore(0)  # counts the threads that wait, but for those that a job is for
        self._closed = False

    def run(self, job: Callable[[], None]) -> None:
        """Runs the job, which never raises. Raises RuntimeError where the system gives no more threads."""
        if self._idle.acquire(blocking=False):
            self._jobs.put(job)
        else:
            threading.Thread(target=self._work, args=(job,), name="turns", daemon=True).start()

    def close(self) -> None:
        """Ends the threads, each when its job is done."""
        self._closed = True
        while self._idle.acquire(blocking=False):
            self._jobs.put(None)

    def _work(self, job: Callable[[], None] | None) -> None:
        while job is not None:
            job()
            job = None  # and what it holds
            self._idle.release()
            job = self._next()
        if self._closed:
            self.close()  # again: this thread may have taken the end that was for one that waits

    def _next(self) -> Callable[[], None] | None:
        try:
            return self._jobs.get(timeout=0 if self._closed else _IDLE_SECONDS)
        except queue.Empty:
            if self._idle.acquire(blocking=False):
                return None
            return self._jobs.get()  # it was chosen for a job at the same moment
