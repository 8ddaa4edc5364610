"""A turn as callers see it where the model's reasoning is hidden."""

import time

from session_core.model.events import Reasoning
from session_core.turns.event_log import Ended, Failed, LoggedEvent
from session_core.turns.turn import Turn


class ShownTurn(Turn):
    """A turn without its reasoning, whose other events are numbered one by one. For one reader."""

    def __init__(self, turn: Turn) -> None:
        super().__init__(turn.session_id, turn.request)
        self.id, self.message_id, self.readers = turn.id, turn.message_id, turn.readers
        self._turn = turn
        self._position = 0  # so many events were read, hidden ones included
        self._hidden = 0  # of those

    def read(self, after: int, seconds: float) -> list[LoggedEvent]:
        """See Turn.read."""
        until = time.monotonic() + seconds
        self._seek(after)
        while entries := self._turn.read(self._position, max(0.0, until - time.monotonic())):
            if shown := [one for entry in entries if (one := self._show(entry))]:
                return shown
        return []

    def result(self) -> Ended | Failed:
        """See Turn.result."""
        return self._turn.result()

    def wait(self, seconds: float) -> bool:
        """See Turn.wait."""
        return self._turn.wait(seconds)

    @property
    def ended(self) -> bool:
        """See Turn.ended."""
        return self._turn.ended

    @property
    def length(self) -> int:
        """See Turn.length."""
        return self._turn.length - sum(isinstance(entry.event, Reasoning) for entry in self._all())

    def find_index(self, number: int, *, substituted: bool = False) -> int | None:
        """See Turn.find_index."""
        while True:
            entries = self._all()
            hidden = 0
            for index, entry in enumerate(entries, 1):
                hidden += isinstance(entry.event, Reasoning)
                if (entry.number - hidden, entry.substituted) == (number, substituted):
                    return index - hidden
            found = self._turn.find_index(number + hidden, substituted=substituted)
            if found is None or self._turn.ended:
                return found and found - sum(isinstance(entry.event, Reasoning) for entry in entries[:found])

    def _all(self) -> list[LoggedEvent]:
        entries: list[LoggedEvent] = []
        while more := self._turn.read(len(entries), 0):
            entries += more
        return entries

    def _seek(self, after: int) -> None:
        if after != self._position - self._hidden:
            self._position = self._hidden = 0
            for entry in self._all():
                if after == self._position - self._hidden:
                    break
                self._show(entry)

    def _show(self, entry: LoggedEvent) -> LoggedEvent | None:
        self._position += 1
        if isinstance(entry.event, Reasoning):
            self._hidden += 1
            return None
        return entry._replace(number=entry.number - self._hidden)
