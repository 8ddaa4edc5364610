"""What tests of a store do with sessions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from storage import LockedSession, SessionBusy, Storage
from tests.support.server import TIMEOUT


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def say(storage: Storage, session_id: str, *texts: str) -> None:
    with storage.lock(session_id) as locked:
        for text in texts:
            locked.append(user(text))


def texts(storage: Storage, session_id: str) -> list[str]:
    return [message["content"] for message in storage.get(session_id).messages]


def patiently(storage: Storage, session_id: str) -> LockedSession:
    """The session locked for a turn, when those who had it before have done with it."""
    give_up = time.monotonic() + TIMEOUT
    while True:
        try:
            return storage.lock_for_turn(session_id)
        except SessionBusy:
            if time.monotonic() > give_up:
                raise


def when_refused(monkeypatch: pytest.MonkeyPatch, storage: Storage, act: Callable[[], object]) -> None:
    """Do something as soon as this handle has tried in vain to lock a session, and waits."""
    lock = storage._lock

    def locking(session_id: str, turn: bool) -> LockedSession | None:
        locked = lock(session_id, turn)
        if locked is None:
            act()
        return locked

    monkeypatch.setattr(storage, "_lock", locking)


def at_once(count: int, work: Callable[[int], object]) -> list[Any]:
    """What `work(0)` … `work(count - 1)` give, called from so many threads at the same moment."""
    barrier = threading.Barrier(count, timeout=TIMEOUT)

    def enter(number: int) -> object:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(enter, range(count), timeout=TIMEOUT))
