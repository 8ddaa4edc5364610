"""The pictures and files of sessions: what a store does with their bytes, and those of a store in memory."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping

Source = Mapping[str, bytes] | str  # of files: their bytes by SHA-256, or the session that has them


class KeptFiles(ABC):
    """Pictures and files of a store's sessions, each by its SHA-256 in hex. They go with their session.

    Every method may be called from any thread, needs no lock of the session, and raises StorageUnavailable.
    """

    def take(self, session_id: str, names: Collection[str], source: Source) -> None:
        """Keeps those of these files that the source has, as `keep` does."""
        if isinstance(source, str) and names:
            self.share(source, session_id, names)
        elif not isinstance(source, str) and (found := {name: source[name] for name in names if name in source}):
            self.keep(session_id, found)

    @abstractmethod
    def keep(self, session_id: str, files: Mapping[str, bytes]) -> None:
        """Keeps files of a session, which may not be there yet, durably. What no message names within an hour may go
        from then on."""

    @abstractmethod
    def share(self, source_id: str, session_id: str, names: Iterable[str]) -> None:
        """Keeps files of one session for another one too, as `keep` does. Leaves out what is not there."""

    @abstractmethod
    def read(self, session_id: str, name: str) -> bytes | None:
        """The bytes of a file. None where the session has none of this name."""

    def remove(self, session_id: str) -> None:
        """Removes all files of a session that is gone. Never raises: what is left goes later."""


class MemoryFiles(KeptFiles):
    """Files in a dict, for as long as the process lives."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, dict[str, bytes]] = {}  # by session and name

    def keep(self, session_id: str, files: Mapping[str, bytes]) -> None:
        with self._lock:
            self._files.setdefault(session_id, {}).update(files)

    def share(self, source_id: str, session_id: str, names: Iterable[str]) -> None:
        self.keep(session_id, {name: data for name in names if (data := self.read(source_id, name)) is not None})

    def read(self, session_id: str, name: str) -> bytes | None:
        with self._lock:
            return self._files.get(session_id, {}).get(name)

    def remove(self, session_id: str) -> None:
        with self._lock:
            self._files.pop(session_id, None)
