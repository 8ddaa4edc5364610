"""A turn as callers see it where the model's reasoning is hidden."""

import time
from dataclasses import replace
from typing import cast

from session_core.data.message import StoredMessage
from session_core.model.events import Reasoning
from session_core.turns.event_log import Ended, Failed, LoggedEvent
from session_core.turns.turn import Turn
from storage import Session


def without_reasoning(session: Session) -> Session:
    """The session without what the model thought."""
    return replace(session, messages=[_shown(message) for message in session.messages])


def _shown(message: StoredMessage) -> StoredMessage:
    shown = {**message, "deltas": [length for length in message.get("deltas", ()) if length > 0]}
    shown.pop("reasoning", None)
    return cast(StoredMessage, shown)


class ShownTurn(Turn):
    """A turn without its reasoning, whose other events are numbered one by one. For one reader."""

    def __init__(self, turn: Turn) -> None:
        super().__init__(turn.session_id, turn.request)
        self.id, self.message_id, self.readers = turn.id, turn.message_id, turn.readers
        self._turn, self._log = turn, turn._log
        self._position = 0  # so many events were read, hidden ones included
        self._hidden = 0  # of those

    @property
    def attempt(self) -> int:
        """See Turn.attempt."""
        return self._turn.attempt

    def read(self, after: int, seconds: float) -> list[LoggedEvent]:
        """See Turn.read."""
        until = time.monotonic() + seconds
        if after < self._position - self._hidden:
            self._position = self._hidden = 0
        shown: list[LoggedEvent] = []
        while not shown and (entries := self._turn.read(self._position, max(0.0, until - time.monotonic()))):
            for entry in entries:
                if isinstance(entry.event, Reasoning):
                    self._hidden += 1
                elif self._position - self._hidden >= after:
                    shown.append(entry._replace(number=entry.number - self._hidden))
                self._position += 1
        return shown

    def result(self) -> Ended | Failed:
        """See Turn.result."""
        return self._turn.result()

    def find_index(self, number: int, *, substituted: bool = False) -> int | None:
        """See Turn.find_index."""
        while True:
            for index, entry in enumerate(self.read_all(), 1):
                if (entry.number, entry.substituted) == (number, substituted):
                    return index
            hidden = self._hidden
            found = self._turn.find_index(number + hidden, substituted=substituted)
            if found is None or self._turn.ended:
                return found and found - hidden
