"""A request that has taken a session, until it is decided whether a turn starts."""

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

from session_core.turns.local import LocalTurn
from session_core.turns.recent import Place
from session_core.turns.turn_request import TurnRequest


@dataclass(frozen=True, eq=False)
class TurnStart:
    """A request that has taken a session: it may start a turn there, or has.

    `decided` is the turn, None where no turn starts, or the error that keeps it from starting.
    """

    request: TurnRequest
    began_at: float
    looked: threading.Event = field(default_factory=threading.Event)  # its key is that of no earlier turn, or decided
    decided: Future[LocalTurn | None] = field(default_factory=Future)

    @property
    def turn(self) -> LocalTurn | None:
        """The turn, once it has started."""
        return self.wait() if self.decided.done() else None

    def wait(self) -> LocalTurn | None:
        """The turn, None where none starts. Waits for that."""
        return None if self.decided.exception() else self.decided.result()


class TurnStarts(dict[Place, TurnStart]):
    """The sessions that requests have taken, each from before its turn starts until that has ended. `count` is how
    often one was taken."""

    count = 0

    def __setitem__(self, place: Place, start: TurnStart) -> None:
        self.count += 1
        super().__setitem__(place, start)
