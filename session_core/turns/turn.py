"""A turn as its readers see it."""

from __future__ import annotations

import secrets
import sys
import threading
from collections.abc import Callable
from typing import Self

from session_core.turns.event_log import Ended, EventLog, Failed, LoggedEvent
from session_core.turns.stored import StoredTurn
from session_core.turns.turn_request import TurnRequest

MAX_WATCHERS = 16  # of one turn, beside the client that started it


class Overloaded(Exception):
    """As many turns run, or as many clients watch this one, as are allowed."""


class Turn:
    """One turn of a session: running, or ended and still readable. `Turns` gives them out."""

    def __init__(self, session_id: str, question: TurnRequest) -> None:
        self.id = secrets.token_hex(16)
        self.session_id = session_id
        self.question = question
        self.message_id = ""  # of the user's message, once it is stored
        self._log = EventLog()
        self._ended = threading.Event()
        self._watchers = threading.Semaphore(MAX_WATCHERS)

    @classmethod
    def replay(cls, session_id: str, stored: StoredTurn, *, show_reasoning: bool) -> Self:
        """An ended turn, whose events are made from what is stored."""
        turn = cls(session_id, TurnRequest(stored.messages[0]["content"]))
        turn.message_id = stored.messages[0]["id"]
        *events, last = stored.events(show_reasoning=show_reasoning)
        for event in events:
            turn._log.append(event)
        assert isinstance(last, Ended | Failed)
        turn._close(last)
        return turn

    def read(self, after: int, seconds: float) -> list[LoggedEvent]:
        """Some of the next events behind the first `after` ones (0: from the first). The last is Ended or Failed.

        Waits for one event, and returns an empty list if none comes within `seconds`.
        """
        return self._log.read(after, seconds)

    def result(self) -> Ended | Failed:
        """Waits until the turn has ended, and returns its last event."""
        self._ended.wait()
        last = self._log.read(len(self._log) - 1, 0)[0].event
        assert isinstance(last, Ended | Failed)
        return last

    def cancel(self) -> bool:
        """Ends the turn and waits until it has ended. Returns whether this call ended it: not one that has ended."""
        return False

    def wait(self, seconds: float) -> bool:
        """Waits for the end, at most so long. Returns whether the turn has ended."""
        return self._ended.wait(seconds)

    @property
    def ended(self) -> bool:
        """Whether the last event can be read."""
        return self._log.closed

    @property
    def size(self) -> int:
        """About how many bytes of memory the turn takes."""
        return self._log.size() + sys.getsizeof(self.question.text)

    @property
    def length(self) -> int:
        """How many events there are so far."""
        return len(self._log)

    def find_index(self, number: int) -> int | None:
        """How many events there are up to the one of this number, which is what to read behind. None if there is no
        such event."""
        return self._log.find_index(number)

    def watch(self) -> Callable[[], None]:
        """Counts one more watcher, and returns the function to call when it leaves. Raises Overloaded at 16."""
        if not self._watchers.acquire(blocking=False):
            raise Overloaded
        return self._watchers.release

    def _close(self, last: Ended | Failed) -> None:
        self._log.close(last)
        self._ended.set()
