"""The thread that writes what running turns record."""

from __future__ import annotations

import threading

import pytest

from session_core.stores.background_writer import BackgroundWriter
from tests.support.client import TIMEOUT


class _Recording:
    """Is flushed until it has been, so many times."""

    pending = False

    def __init__(self, times: int, fails: bool = False) -> None:
        self.left, self.fails = times, fails
        self.done = threading.Event()

    def flush(self) -> bool:
        self.left -= 1
        if not self.left:
            self.done.set()
        if self.fails:
            raise ValueError("a fault of its own")
        return self.left > 0


def test_a_recording_that_fails_costs_itself_alone(caplog: pytest.LogCaptureFixture) -> None:
    writer = BackgroundWriter(0.01)
    bad, good = _Recording(1, fails=True), _Recording(3)
    writer.add(bad)
    writer.add(good)
    assert bad.done.wait(TIMEOUT) and good.done.wait(TIMEOUT)
    later = _Recording(2)
    writer.add(later)
    assert later.done.wait(TIMEOUT)
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert bad.left == 0  # it was flushed once
