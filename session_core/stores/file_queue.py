"""The queue of a session, in a file beside the session's: a JSON list, written whole with each change.

All queues of a directory have one lock, which is held for a change alone, so that messages can be queued while a turn
has the session locked, in whichever process. A message that stands in the session too waits no more: its turn began
just before a crash.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator

from session_core.data.message_queue import MessageQueue, NotQueued, QueuedMessage, insert, parse_queue, take_out
from session_core.data.strict_json import to_json
from session_core.stores.disk_access import read_regular, synced, unavailable, write_file
from session_core.stores.file_locks import close_unlocked, lock_waiting
from storage import SessionNotFound, StorageUnavailable


class FileQueue(MessageQueue):
    """The queue of a session in a directory. An empty one has no file."""

    def __init__(self, directory: str, session_id: str) -> None:
        self._directory = directory
        self._session_id = session_id
        self._path = os.path.join(directory, f".{session_id}.queue")
        self._lock_path = os.path.join(directory, ".queues.lock")

    def read(self) -> list[QueuedMessage]:
        with unavailable("read the queue of", self._session_id):
            data = read_regular(self._path)
        return parse_queue(self._session_id, data) if data else []

    def add(self, message: QueuedMessage, *, first: bool = False) -> int:
        with self._changing():
            if not os.path.exists(os.path.join(self._directory, f"{self._session_id}.json")):
                raise SessionNotFound(self._session_id)
            messages = self.read()
            place = insert(messages, message, first=first)
            self._write(messages)
        return place

    def remove(self, message_id: str) -> bool:
        with self._changing():
            messages = self.read()
            if found := take_out(messages, message_id):
                self._write(messages)
        return found

    @contextlib.contextmanager
    def taking(self, message_id: str) -> Iterator[None]:
        """Takes a message out, after the caller has stored it in the session: should that fail, or the process die
        in between, nothing is lost or doubled. Nobody else changes the queue meanwhile. Raises NotQueued."""
        with self._changing():
            messages = self.read()
            if not take_out(messages, message_id):
                raise NotQueued
            yield
            with contextlib.suppress(OSError):  # what stands in the session waits no more
                self._write(messages)

    def clear(self) -> None:
        """Removes the queue of a session that was deleted. Never raises: the next start clears what is left."""
        if os.path.exists(self._lock_path):  # else nobody has queued anything, and who does now finds no session
            with contextlib.suppress(StorageUnavailable), self._changing():
                self._write([])

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with unavailable("write the queue of", self._session_id):
            file = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                lock_waiting(file)
                yield
            finally:
                close_unlocked(file)

    def _write(self, messages: list[QueuedMessage]) -> None:
        """Puts a new file in place of the old one, or removes it. Durable when this returns. Raises OSError."""
        temporary = os.path.join(self._directory, f".{self._session_id}.{secrets.token_hex(8)}.tmp")
        with synced(self._directory):
            if messages:
                write_file(self._path, temporary, to_json(messages))
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)
