"""The journal of a turn, in a file beside the session's."""

import contextlib
import logging
import os
import threading

from session_core.stores.disk_access import read_regular
from storage import TurnLines

log = logging.getLogger(__name__)


class FileJournal:
    """What a partial answer can be made of, in a file that is made when there is something to write.

    It is written without waiting for the disk. After an error it is written no more. Whoever holds the session's lock
    has the file for itself.
    """

    pending = False  # nobody waits for what it writes

    def __init__(self, path: str, first: bytes, lines: TurnLines) -> None:
        self._path = path
        self._first = first
        self._lines = lines
        self._journaled_until = 0  # so many events are in the file
        self._lock = threading.Lock()
        self._file: int | None = None
        self._closed = False

    def flush(self) -> bool:
        """Writes what has come since the last time. Returns False once it is closed. Never raises."""
        with self._lock:
            if self._closed:
                return False
            lines, self._journaled_until = self._lines.partial_text(self._journaled_until)
            try:
                self._write(lines)
            except OSError as error:
                self._close()
                log.warning("cannot keep a journal: %s; a crash would lose what is not stored yet", error.strerror)
            return not self._closed

    def close(self) -> None:
        """Leaves the file as it is."""
        with self._lock:
            self._close()

    def _write(self, lines: list[bytes]) -> None:
        if lines and self._file is None:
            remove_journal(self._path)  # what an earlier turn has left, or anybody else
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            lines = [self._first, *lines]
        data = b"".join(line + b"\n" for line in lines)
        while data and self._file is not None:
            data = data[os.write(self._file, data) :]

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._closed = True


def read_journal(path: str) -> list[bytes]:
    """The lines of a journal, none of a file that no journal can be. Raises OSError where it cannot be read."""
    data = read_regular(path)
    return [] if data is None else data.split(b"\n")


def remove_journal(path: str) -> None:
    """Removes a journal, if there is one."""
    with contextlib.suppress(OSError):
        os.unlink(path)
