"""A turn as its readers see it."""

import secrets
import sys
import threading
from typing import Literal, Self

from session_core.turns.event_log import Ended, EventLog, Failed, LoggedEvent
from session_core.turns.stored import StoredTurn
from session_core.turns.turn_request import TurnRequest

# How many clients may read one turn: the one that started it, those that asked for the same, those that watch.
MAX_READERS = {"first": 1, "joined": 32, "watching": 16}

Role = Literal["first", "joined", "watching"]


class Overloaded(Exception):
    """As many turns run, or as many clients watch this one, as are allowed."""


class Readers:
    """The clients that read a turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._roles: list[Role] = []
        self._stoppable = False  # a client wants the turn to end when nobody reads it any more
        self.kept = False  # a client wants it to run on all the same

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._roles)

    def add(self, role: Role, *, keeps_running: bool | None = None) -> None:
        """Counts a client. Raises Overloaded where there are as many in its role as may be.

        Unless it `keeps_running`, the turn is to end when nobody reads it any more. None leaves that as it is.
        """
        with self._lock:
            if self._roles.count(role) >= MAX_READERS[role]:
                raise Overloaded
            self._roles.append(role)
            self._stoppable |= keeps_running is False
            self.kept |= keeps_running is True

    def leave(self, role: Role) -> None:
        """Counts a client no more."""
        with self._lock:
            self._roles.remove(role)

    @property
    def may_end_it(self) -> bool:
        """Whether the turn ends when nobody reads it any more."""
        return self._stoppable and not self.kept


class Turn:
    """One turn of a session: running, or ended and still readable. `Turns` gives them out."""

    def __init__(self, session_id: str, request: TurnRequest) -> None:
        self.id = secrets.token_hex(16)
        self.session_id = session_id
        self.request = request
        self.message_id = ""  # of the user's message
        self.readers = Readers()
        self._log = EventLog()

    @classmethod
    def replay(cls, session_id: str, stored: StoredTurn) -> Self:
        """An ended turn, whose events are made from what is stored."""
        turn = cls(session_id, TurnRequest(stored.messages[0]["content"]))
        turn.message_id = stored.messages[0]["id"]
        *events, last = stored.events()
        for event in events:
            turn._log.append(event)
        assert isinstance(last, Ended | Failed)
        turn._log.close(last)
        return turn

    @property
    def attempt(self) -> int:
        """The number of the attempt that runs, 0 where only what is stored tells."""
        return 0

    def read(self, after: int, seconds: float) -> list[LoggedEvent]:
        """Some of the next events behind the first `after` ones (0: from the first). The last is Ended or Failed.

        Waits for one event, and returns an empty list if none comes within `seconds`.
        """
        return self._log.read(after, seconds)

    def tell_readers(self) -> bool:
        """Tells the process that runs the turn whether it is read here. Returns whether it is being ended."""
        return False

    def read_all(self) -> list[LoggedEvent]:
        """All events so far."""
        entries: list[LoggedEvent] = []
        while more := self.read(len(entries), 0):
            entries += more
        return entries

    def leave(self, role: Role) -> None:
        """Counts a reader no more. A turn that nobody reads any more is cancelled, if its readers wanted that."""
        self.readers.leave(role)
        if not self.readers.count and not self.ended:
            self._leave_alone()

    def _leave_alone(self) -> None:
        """Nobody reads the turn here any more."""

    def result(self) -> Ended | Failed:
        """Waits until the turn has ended, and returns its last event."""
        self._log.wait()
        last = self._log.read(len(self._log) - 1, 0)[0].event
        assert isinstance(last, Ended | Failed)
        return last

    def cancel(self) -> bool:
        """Ends the turn and waits until it has ended. Returns whether this call ended it: not one that has ended."""
        return False

    def wait(self, seconds: float) -> bool:
        """Waits for the end, at most so long. Returns whether the turn has ended."""
        return self._log.wait(seconds)

    @property
    def ended(self) -> bool:
        """Whether the last event can be read."""
        return self._log.ended

    @property
    def size(self) -> int:
        """About how many bytes of memory the turn takes."""
        return self._log.size + sys.getsizeof(self.request.content)

    def find_index(self, number: int, *, substituted: bool = False) -> int | None:
        """How many events there are up to the one of this number, which is what to read behind. None if there is no
        such event."""
        return self._log.find_index(number, substituted=substituted)
