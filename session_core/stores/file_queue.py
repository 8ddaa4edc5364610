"""The queue of a session, in a file beside the session's: a JSON list, written whole with each change.

The file has a lock of its own, which is held for a change alone, so that messages can be queued while a turn has the
session locked, in whichever process. A lock goes with the file that a change replaces: whoever has waited for it
looks again. A message that stands in the session too waits no more: its turn began just before a crash.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator

from session_core.data.message_queue import MessageQueue, NotQueued, QueuedMessage, are_queued, insert, take_out
from session_core.data.strict_json import from_json, to_json
from session_core.stores.disk_access import read_all, synced, unavailable, write_all
from session_core.stores.file_locks import close_unlocked, lock_waiting
from storage import SessionCorrupt, SessionNotFound

log = logging.getLogger(__name__)


class FileQueue(MessageQueue):
    """The queue of a session in a directory. An empty one has no file."""

    def __init__(self, directory: str, session_id: str) -> None:
        self._directory = directory
        self._session_id = session_id
        self._path = os.path.join(directory, f".{session_id}.queue")

    def read(self) -> list[QueuedMessage]:
        with unavailable("read the queue of", self._session_id), contextlib.ExitStack() as stack:
            try:
                file = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                return []
            stack.callback(os.close, file)
            return self._parsed(file)

    def add(self, message: QueuedMessage, *, first: bool = False) -> int:
        with unavailable("write the queue of", self._session_id), self._locked() as file:
            if not os.path.exists(os.path.join(self._directory, f"{self._session_id}.json")):
                raise SessionNotFound(self._session_id)
            messages = self._parsed(file)
            place = insert(messages, message, first=first)
            self._write(messages)
        return place

    def remove(self, message_id: str) -> bool:
        if not self.read():
            return False
        with unavailable("write the queue of", self._session_id), self._locked() as file:
            messages = self._parsed(file)
            found = take_out(messages, message_id)
            if found:
                self._write(messages)
        return found

    @contextlib.contextmanager
    def taking(self, message_id: str) -> Iterator[None]:
        """Takes a message out, after the caller has stored it in the session: should that fail, or the process die
        in between, nothing is lost or doubled. Nobody else changes the queue meanwhile. Raises NotQueued."""
        with unavailable("read the queue of", self._session_id), self._locked() as file:
            messages = self._parsed(file)
            if not take_out(messages, message_id):
                raise NotQueued
            yield
            with contextlib.suppress(OSError):  # what stands in the session waits no more
                self._write(messages)

    @contextlib.contextmanager
    def deleting(self) -> Iterator[None]:
        """Deletes the queue, after the caller has deleted the session. Both are durable then. Nobody can add to it
        meanwhile. Raises OSError."""
        with self._locked(), synced(self._directory):
            yield
            os.unlink(self._path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The file, open and locked. It is made where there is none, and one that is left empty is removed."""
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
            try:
                lock_waiting(file)
                if not self._is_current(file):
                    continue
                try:
                    yield file
                finally:
                    if self._is_current(file) and not os.fstat(file).st_size:
                        os.unlink(self._path)
                return
            finally:
                close_unlocked(file)

    def _is_current(self, file: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(file), os.lstat(self._path))
        return False

    def _parsed(self, file: int) -> list[QueuedMessage]:
        data = read_all(file)
        try:
            messages = from_json(data or b"[]")
            if are_queued(messages):
                return messages
            raise ValueError("it is no list of messages")
        except (ValueError, RecursionError) as error:
            log.error("the queue of %s cannot be understood and is left as it is: %s", self._session_id, error)
            raise SessionCorrupt(self._session_id) from error

    def _write(self, messages: list[QueuedMessage]) -> None:
        """Puts a new file in place of the old one, or removes it. Durable when this returns."""
        with synced(self._directory):
            if not messages:
                os.unlink(self._path)
                return
            path = os.path.join(self._directory, f".{self._session_id}.{secrets.token_hex(8)}.tmp")
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                write_all(file, to_json(messages), 0)
                os.fsync(file)
                os.rename(path, self._path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(path)
                raise
            finally:
                os.close(file)
