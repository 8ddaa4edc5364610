"""The turns that have ended a short time ago, which clients can still watch."""

from typing import Any, NamedTuple

from session_core.turns.local import LocalTurn
from storage import Storage

REPLAY_SECONDS = 60.0  # how long an ended turn can still be watched
REPLAY_BYTES = 64 << 20  # all ended turns together; beyond that the oldest ones go first


Place = tuple[Storage, str]  # a session: its store and its id


class EndedTurn(NamedTuple):
    """A turn that has ended, and the version of its session then (see `version_of`)."""

    turn: LocalTurn
    version: tuple[Any, ...]
    until: float  # by the monotonic clock
    size: int  # bytes, about


class RecentTurns:
    """Ended turns by session, one each, bounded in time and memory. Not safe for several threads at once."""

    def __init__(self) -> None:
        self._turns: dict[Place, EndedTurn] = {}  # oldest first
        self._bytes = 0

    @property
    def storages(self) -> set[Storage]:
        """The stores of these turns."""
        return {storage for storage, _ in self._turns}

    def add(self, place: Place, turn: LocalTurn, version: tuple[Any, ...], size: int, now: float) -> float:
        """Keeps this turn of `size` bytes in place of the session's turn before it. Returns when its time is up."""
        self.remove(place)
        ended = self._turns[place] = EndedTurn(turn, version, now + REPLAY_SECONDS, size)
        self._bytes += size
        while self._bytes > REPLAY_BYTES:
            self.remove(next(iter(self._turns)))
        return ended.until

    def get(self, place: Place) -> EndedTurn | None:
        """The session's turn, if it can still be watched."""
        return self._turns.get(place)

    def remove(self, place: Place) -> None:
        """Drops the session's turn, if there is one."""
        if ended := self._turns.pop(place, None):
            self._bytes -= ended.size

    def remove_expired(self, now: float) -> float | None:
        """Drops the turns whose time is up. Returns when the next one's time is up, None if no turn is left."""
        for place, ended in list(self._turns.items()):
            if ended.until > now:
                return ended.until
            self.remove(place)
        return None
