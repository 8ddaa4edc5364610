"""Threads that run one turn after the other."""

import queue
import threading
from collections.abc import Callable

_IDLE_SECONDS = 10.0  # for which a thread waits for its next turn

_Inbox = queue.SimpleQueue[Callable[[], None] | None]  # of a thread, which ends with None


class Workers:
    """Runs each job on a thread that runs nothing else meanwhile.

    A thread that is done waits a while for the next job: to start one takes longer than to wake one, and the caller
    would wait until the system has started it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Inbox] = []  # of the threads that wait
        self._closed = False

    def run(self, job: Callable[[], None]) -> None:
        """Runs the job, which never raises. Raises RuntimeError where the system gives no more threads."""
        with self._lock:
            inbox = self._idle.pop() if self._idle else None
        if inbox is not None:
            inbox.put(job)
            return
        threading.Thread(target=self._work, args=(job,), name="turns", daemon=True).start()

    def close(self) -> None:
        """Ends the threads, each when its job is done."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for inbox in idle:
            inbox.put(None)

    def _work(self, job: Callable[[], None] | None) -> None:
        inbox: _Inbox = queue.SimpleQueue()
        while job is not None:
            job()
            job = None  # and what it holds
            with self._lock:
                if self._closed:
                    return
                self._idle.append(inbox)
            job = self._next(inbox)

    def _next(self, inbox: _Inbox) -> Callable[[], None] | None:
        try:
            return inbox.get(timeout=_IDLE_SECONDS)
        except queue.Empty:
            with self._lock:
                if inbox in self._idle:
                    self._idle.remove(inbox)
                    return None
            return inbox.get()  # it was chosen for a job at the same moment
