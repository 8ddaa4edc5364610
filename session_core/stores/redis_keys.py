"""The keys of one user's sessions in Redis, and scripts that run on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from session_core.stores.redis_connection import Argument, RedisConnection, call
from storage import SessionNotFound


@dataclass(frozen=True)
class RedisKeys:
    """The keys that begin with this prefix."""

    prefix: str

    @classmethod
    def of(cls, user: str) -> RedisKeys:
        """Those of a user, or where there are no users, of all callers."""
        return cls(f"session_server@{user}:" if user else "session_server:")

    def session(self, session_id: str) -> str:
        """A session, but for its messages."""
        return f"{self.prefix}session:{session_id}"

    def lease(self, session_id: str) -> str:
        """Who has locked a session."""
        return f"{self.prefix}lease:{session_id}"

    def events(self, fence: str) -> str:
        """What a turn has published."""
        return f"{self.prefix}events:{fence}"

    def run(
        self,
        connection: RedisConnection,
        verb: str,
        script: str,
        session_id: str,
        *arguments: Argument,
        retry_seconds: float = 0,
    ) -> Any:
        """The result of a script on a session. Raises SessionNotFound, SessionCorrupt, StorageUnavailable."""
        messages, sessions = f"{self.prefix}messages:{session_id}", f"{self.prefix}sessions"
        keys = [self.session(session_id), messages, self.lease(session_id), sessions]
        what = f"{verb} {session_id}".strip()
        found = call(what, lambda: connection.run(script, keys, arguments), retry_seconds, session_id)
        if found == b"missing" and session_id:
            raise SessionNotFound(session_id)
        return found
