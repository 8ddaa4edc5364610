"""What a call costs in the time of the processor, which a busy machine does not change.

fastest_growth(lambda size: b"x" * size, handle, 10**6)   # how much more eight times the size costs, at worst
longest_hold(lambda: handle(b"x" * 10**6))                # for how long it keeps all other threads waiting
"""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

_NEGLIGIBLE = 0.02  # seconds, below which the growth of a cost says nothing


def cost(call: Callable[[], object], tries: int = 2) -> float:
    """The seconds of the processor that a call takes, threads that it starts included: the least of some tries."""
    found = []
    with _earlier_garbage_kept():
        for _ in range(tries):
            began = time.process_time()
            call()
            found.append(time.process_time() - began)
    return min(found)


def fastest_growth(make: Callable[[int], T], use: Callable[[T], object], size: int, enough: float) -> float:
    """How many times as much `use` costs for eight times as much of what `make` gives, at worst, up to `size`.

    Begins with little, and ends where it is `enough`. What costs next to nothing grows by nothing.
    """
    worst, before = 1.0, 0.0
    for part in (512, 64, 8, 1):
        call = functools.partial(use, make(size // part))
        took = cost(call, 1)
        if took > _NEGLIGIBLE:
            took = took if took < enough * before else min(took, cost(call, 2))
            worst = max(worst, took / max(before, _NEGLIGIBLE / 8))
        if worst > enough:
            break
        before = took
    return worst


def longest_hold(call: Callable[[], object]) -> float:
    """The longest time, in seconds of the processor, for which the call lets no other thread run."""
    longest, done = 0.0, threading.Event()

    def beat() -> None:
        nonlocal longest
        last = time.process_time()
        while not done.is_set():
            time.sleep(0.001)
            now = time.process_time()
            longest, last = max(longest, now - last), now

    thread = threading.Thread(target=beat)
    with _earlier_garbage_kept():
        thread.start()
        try:
            call()
        finally:
            done.set()
            thread.join()
    return longest


@contextlib.contextmanager
def _earlier_garbage_kept() -> Iterator[None]:
    """Leaves what earlier tests have left out of collections, since one of it takes as long as a bound."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
