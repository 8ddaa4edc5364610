"""What was parsed a moment ago: large sessions that a turn has used, and what lists show."""

import functools
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from storage import Session, Storage, Summary

_CACHED_SUMMARIES = 10_000

_MIN_BYTES = 64 << 10  # a smaller file is parsed in well under a millisecond
_MAX_BYTES = 8 << 20  # of all files together; parsed, they take three times as much


def is_large(size: int) -> bool:
    """Whether a file of so many bytes is worth its memory."""
    return _MIN_BYTES <= size <= _MAX_BYTES


class ParsedFile(NamedTuple):
    """A session as it stands in its file, and where the closing line begins. Nobody changes its messages."""

    session: Session
    end: int

    def copy(self) -> Session:
        """The session with a list of messages to which a caller may add."""
        return replace(self.session, messages=list(self.session.messages))


class FileCache:
    """Parsed files by path and version of the file. Every method may be called from any thread.

    A file is taken out for a turn, whose messages are added to it, and put back when the turn ends. `summary` gives
    what a list shows of a session, and keeps it for each version of its file.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, tuple[tuple[int, ...], ParsedFile]] = {}  # by path, oldest first
        self._bytes = 0
        self.summary: Callable[[Storage, str, tuple[int, ...]], Summary] = functools.lru_cache(_CACHED_SUMMARIES)(
            lambda storage, id, _version: Storage.summary(storage, id)
        )

    def take(self, path: str, version: tuple[int, ...]) -> ParsedFile | None:
        """The file as it was put back, if that was this version."""
        with self._lock:
            known, parsed = self._remove(path)
        return parsed if known == version else None

    def put(self, path: str, version: tuple[int, ...], parsed: ParsedFile) -> None:
        """Keeps the file, where it is large, and lets the oldest go."""
        if is_large(parsed.end):
            with self._lock:
                self._remove(path)
                self._files[path] = version, parsed
                self._bytes += parsed.end
                while self._bytes > _MAX_BYTES:
                    self._remove(next(iter(self._files)))

    def _remove(self, path: str) -> tuple[tuple[int, ...] | None, ParsedFile | None]:
        known, parsed = self._files.pop(path, (None, None))
        self._bytes -= parsed.end if parsed else 0
        return known, parsed
