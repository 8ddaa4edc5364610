"""The journal of a turn, in a file beside the session's."""

from __future__ import annotations

import contextlib
import logging
import os
import stat

log = logging.getLogger(__name__)

_MAX_BYTES = 64 << 20  # of a file that this program can have written


class FileJournal:
    """A file that is made when the first lines come. Whoever holds the session's lock has it for itself."""

    def __init__(self, path: str, first: bytes) -> None:
        self._path = path
        self._first = first
        self._file: int | None = None
        self._failed = False

    def write(self, lines: bytes) -> None:
        """Adds lines, without waiting for the disk. After an error it writes no more."""
        if self._failed:
            return
        try:
            if self._file is None:
                self._file = _made(self._path)
                lines = self._first + b"\n" + lines
            while lines:
                lines = lines[os.write(self._file, lines) :]
        except OSError as error:
            self._failed = True
            log.warning("cannot keep a journal: %s; a crash would lose what is not stored yet", error.strerror)

    def close(self) -> None:
        """Leaves the file as it is."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._failed = True


def read_journal(path: str) -> list[bytes]:
    """The lines of a journal, none of a file that no journal can be. Raises OSError where it cannot be read."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return []
        raise
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_BYTES:
            return []
        with open(file, "rb", closefd=False) as opened:
            return opened.read().split(b"\n")
    finally:
        os.close(file)


def remove_journal(path: str) -> None:
    """Removes a journal, if there is one."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def _made(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
    try:
        return os.open(path, flags, 0o600)
    except FileExistsError:  # what an earlier turn has left, or anybody else
        os.unlink(path)
        return os.open(path, flags, 0o600)
