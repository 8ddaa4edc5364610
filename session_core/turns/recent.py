"""The turns that have ended a short time ago, which clients can still watch."""

from __future__ import annotations

from typing import NamedTuple

from session_core.turns.local import LocalTurn

REPLAY_SECONDS = 60.0  # how long an ended turn can still be watched
REPLAY_BYTES = 64 << 20  # all ended turns together; beyond that the oldest ones go first


class _EndedTurn(NamedTuple):
    turn: LocalTurn
    until: float  # by the monotonic clock
    size: int  # bytes, about


class RecentTurns:
    """Ended turns by session, one each, bounded in time and memory. Not safe for several threads at once."""

    def __init__(self) -> None:
        self._turns: dict[str, _EndedTurn] = {}  # oldest first
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._turns)

    def add(self, turn: LocalTurn, size: int, now: float) -> float:
        """Keeps this turn of `size` bytes in place of the session's turn before it. Returns when its time is up."""
        self.remove(turn.session_id)
        ended = self._turns[turn.session_id] = _EndedTurn(turn, now + REPLAY_SECONDS, size)
        self._bytes += size
        while self._bytes > REPLAY_BYTES:
            self.remove(next(iter(self._turns)))
        return ended.until

    def get(self, session_id: str) -> LocalTurn | None:
        """The session's turn, if it can still be watched."""
        ended = self._turns.get(session_id)
        return ended and ended.turn

    def remove(self, session_id: str) -> None:
        """Drops the session's turn, if there is one."""
        if ended := self._turns.pop(session_id, None):
            self._bytes -= ended.size

    def remove_expired(self, now: float) -> float | None:
        """Drops the turns whose time is up. Returns when the next one's time is up, None if no turn is left."""
        for session_id, ended in list(self._turns.items()):
            if ended.until > now:
                return ended.until
            self.remove(session_id)
        return None
