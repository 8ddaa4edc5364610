"""The sessions of a directory in the order of the list, without a look at every file for every list."""

import os
import threading
from bisect import bisect_left, insort

from session_core.stores.file_sweep import JOURNAL_FILE, SESSION_FILE, modified_at, scan
from session_core.stores.file_watch import DirectoryWatch, watch_directory

_WATCHED_BYTES = 64 << 10  # a directory that is smaller, some hundred files, is read anew for each list
_MAX_CHANGES = 2000  # with more, too


class FileIndex:
    """The sessions that there are now in a directory. Every method may be called from any thread, and raises OSError
    where the directory cannot be read.

    A large directory is watched, and only what changes in it is looked at. Some 300 bytes for each session stay in
    memory then.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._lock = threading.Lock()  # that no turn needs
        self._watch: DirectoryWatch | None = None
        self._known: dict[str, tuple[int, str]] = {}
        self._order: list[tuple[int, str]] = []  # each session's time, negated, and id
        self._journals: set[str] = set()

    def ids(self) -> list[str]:
        """The ids, most recently changed first and then by id."""
        with self._lock:
            self._refresh()
            return [id for _, id in self._order]

    def journaled(self) -> set[str]:
        """The ids of those that had a journal when `ids` was called last."""
        with self._lock:
            return self._journals.copy()

    def _refresh(self) -> None:
        watch, self._watch = self._watch, None  # so that after an error all is read anew
        names = watch.changed() if watch else None
        if names is None or len(names) > _MAX_CHANGES:
            watch = self._read()
        for name in names or ():
            self._update(name)
        self._watch = watch

    def _read(self) -> DirectoryWatch | None:
        large = os.stat(self._directory).st_size >= _WATCHED_BYTES
        watch = watch_directory(self._directory) if large else None  # before it is read
        names = os.listdir(self._directory)
        self._known = {id: (-modified, id) for modified, id in scan(self._directory, names)}
        self._order = sorted(self._known.values())
        self._journals = {found[1] for name in names if (found := JOURNAL_FILE.fullmatch(name))}
        return watch

    def _update(self, name: str) -> None:
        path = os.path.join(self._directory, name)
        if journal := JOURNAL_FILE.fullmatch(name):
            self._journals.discard(journal[1])
            self._journals.update([journal[1]] if os.path.lexists(path) else ())
        elif file := SESSION_FILE.fullmatch(name):
            if before := self._known.pop(file[1], None):
                del self._order[bisect_left(self._order, before)]
            if (modified := modified_at(path)) is not None:
                self._known[file[1]] = -modified, file[1]
                insort(self._order, self._known[file[1]])
