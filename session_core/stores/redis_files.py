"""The pictures and files of sessions in Redis, each once for all sessions of a user that have it."""

from collections.abc import Iterable, Mapping

from session_core.data.kept_files import KeptFiles
from session_core.stores.redis_connection import RETRY_SECONDS, RedisKeys


class RedisFiles(KeptFiles):
    """The files of one user's sessions. What a message names is held for the session by the script that stores the
    message, and let go by the one that deletes the session."""

    def __init__(self, keys: RedisKeys) -> None:
        self._keys = keys

    def keep(self, session_id: str, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            self._keep(session_id, name, data)

    def share(self, source_id: str, session_id: str, names: Iterable[str]) -> None:
        for name in names:
            self._keep(session_id, name, b"")

    def read(self, session_id: str, name: str) -> bytes | None:
        found: bytes | None = self._keys.run("read a file of", "file", session_id, session_id, name)
        return found

    def _keep(self, session_id: str, name: str, data: bytes) -> None:
        """Keeps a file. Without data, one that is there."""
        self._keys.run("keep a file of", "keep_file", session_id, session_id, name, data, retry_seconds=RETRY_SECONDS)
