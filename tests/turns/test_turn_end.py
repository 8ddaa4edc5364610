"""The end of a turn of which one part fails: the others come all the same."""

from __future__ import annotations

from typing import Any

import pytest

from session_core.turns.queue_runner import QueueRunner
from session_core.turns.recent import RecentTurns
from session_core.turns.report import TurnReport
from session_core.turns.turns import Turns
from storage import MemoryStorage, _LockedMemory
from tests.support.client import Client, error_of
from tests.support.model_server import STALL, answer
from tests.support.server import TIMEOUT


def fails_once(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, *, after: bool = False) -> None:
    """Has the method fail at its next call, before or after it has done its work."""
    real = getattr(owner, name)

    def fail(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(owner, name, real)
        if after:
            real(*arguments, **named)
        raise RuntimeError("a fault of the test")

    monkeypatch.setattr(owner, name, fail)


PARTS = [
    (_LockedMemory, "_release", True),
    (TurnReport, "end", False),
    (QueueRunner, "look", False),
    (RecentTurns, "add", False),
    (Turns, "_on_end", True),
]


@pytest.mark.parametrize(("owner", "name", "after"), PARTS, ids=[name for _, name, _ in PARTS])
def test_a_turn_ends_for_its_readers_whatever_fails(
    owner: type, name: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(storage=MemoryStorage(), max_streams=1) as client:
        session = client.create()
        fails_once(monkeypatch, owner, name, after=after)
        running = client.later(client.run, session, "one")
        assert running.result(TIMEOUT).status_code == 200
        assert client.run(session, "two").status_code == 200  # the place and the session are free
        assert [one["content"] for one in client.messages(session)] == ["one", "OK", "two", "OK"]


@pytest.mark.parametrize(("owner", "name", "after"), PARTS, ids=[name for _, name, _ in PARTS])
def test_a_cancel_answers_whatever_fails(
    owner: type, name: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(answer("Hel", STALL), storage=MemoryStorage(), max_streams=1) as client:
        session = client.create()
        stream = client.stream(session, "one")
        stream.next("stream_chunk")
        fails_once(monkeypatch, owner, name, after=after)
        assert client.later(client.cancel, session).result(TIMEOUT)
        assert client.later(stream.last).result(TIMEOUT)["data"]["status"] == "cancelled"
        assert client.run(session, "two").status_code == 200


def test_a_turn_that_cannot_begin_holds_neither_its_place_nor_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(storage=MemoryStorage(), max_streams=1) as client:
        session = client.create()
        fails_once(monkeypatch, TurnReport, "__init__")
        assert error_of(client.run(session, "one")) == (500, "internal_error")
        assert client.run(session, "two").status_code == 200
