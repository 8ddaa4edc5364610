"""The threads that turns run on."""

from __future__ import annotations

import threading

from session_core.turns.workers import Workers


def test_all_threads_end_when_they_are_closed_whoever_hears_of_it_first(restless: None) -> None:
    before = set(threading.enumerate())
    for _ in range(500):
        workers, over = Workers(), threading.Event()
        for _ in range(24):
            workers.run(over.wait)
        threads = set(threading.enumerate()) - before
        over.set()
        workers.close()  # while some of them are about to wait for their next job
        for thread in threads:
            thread.join(5)  # less than they wait for a job
            assert not thread.is_alive()
