"""One JSON file per session."""

import contextlib
import json
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Self, TypeVar

from session_core.data.store_errors import SessionCorrupt, SessionExists, SessionNotFound, StorageUnavailable
from session_core.stores.background_writer import BackgroundWriter
from session_core.stores.disk_access import (
    make_directory,
    read_all,
    rename_new,
    synced,
    try_writing,
    unavailable,
    version_of,
    write_all,
)
from session_core.stores.file_attachments import DirectoryFiles
from session_core.stores.file_cache import FileCache, ParsedFile, is_large
from session_core.stores.file_index import FileIndex
from session_core.stores.file_journal import FileJournal, read_journal, remove_journal
from session_core.stores.file_layout import closing, layout, parse
from session_core.stores.file_locks import (
    SUPPORTED,
    close_unlocked,
    lock_now,
    lock_waiting,
    mark_turn,
    release_in_children,
    turn_marked,
)
from session_core.stores.file_queue import FileQueue
from session_core.stores.file_sweep import queued_sessions, read_contents, scan, sweep
from storage import LockedSession, Session, Storage, Summary, TurnLines, checked_id, timestamp

log = logging.getLogger(__name__)

_FLUSH_SECONDS = 0.15  # between two writes of a journal; callers are promised 0.2
_END_SECONDS = 3.0  # to wait for the thread that writes journals
_SCANNED_AT_ONCE = 200  # files
T = TypeVar("T")


class FileStorage(Storage):
    """Sessions in a directory, one JSON file each, which `jq` reads.

    A message is one line. It is added by writing over the closing line and beyond, with one `fsync`, so that a crash
    can tear the last line only. Readers skip a torn line. Whatever else changes is a new file, synced, renamed over
    the old one. A locked session is locked with `flock`, which the kernel lifts when the process dies. The file's
    modification time is its place in the list.

    `open` makes one. A store `beside` another one shares its caches and its thread.
    """

    def __init__(self, directory: str, beside: "FileStorage | None" = None) -> None:
        self._directory = os.path.abspath(directory)
        self.files: DirectoryFiles = DirectoryFiles(self._directory)
        self._index = FileIndex(self._directory)
        self._cache: FileCache = beside._cache if beside else FileCache()
        self._writer: BackgroundWriter = beside._writer if beside else BackgroundWriter(_FLUSH_SECONDS)

    @classmethod
    def open(cls, directory: str, beside: "FileStorage | None" = None) -> Self:
        """The sessions of a directory, which is made where it is missing, and cleared of what a crash has left.

        Raises StorageUnavailable when the directory cannot be created or written, or where there is no `flock`.
        """
        if not SUPPORTED:
            raise StorageUnavailable("sessions on disk need flock, which this system does not have")
        storage = cls(directory, beside)
        with unavailable("open", storage._directory, logging.DEBUG):  # the error is shown at the start
            make_directory(storage._directory)
            release_in_children(storage._directory)
            with synced(storage._directory):  # which also makes the renames of a killed process durable
                sweep(storage._directory)
            try_writing(storage._directory)
        return storage

    def for_user(self, name: str) -> Storage:
        return FileStorage.open(os.path.join(self._directory, name), beside=self)

    def check(self) -> None:
        with unavailable("write", self._directory):
            try_writing(self._directory)

    def summary(self, session_id: str) -> Summary:
        found = self._at(checked_id(session_id), lambda _, found: found)
        return self._cache.summary(self, session_id, version_of(found))

    def flush(self) -> None:
        self._writer.flush(_END_SECONDS)

    def journal(self, session_id: str) -> list[bytes]:
        with unavailable("read the journal of", session_id):
            return read_journal(self._journal_path(checked_id(session_id)))

    def queue(self, session_id: str) -> FileQueue:
        return self._at(checked_id(session_id), lambda *_: FileQueue(self._directory, session_id))

    def with_queue(self) -> Iterator[str]:
        return queued_sessions(self._directory)

    def _create(self, session: Session) -> None:
        with unavailable("create", session.id), contextlib.ExitStack() as stack, synced(self._directory):
            file = self._write_new(session, time.time_ns(), turn=False, new=True)
            stack.callback(close_unlocked, file)  # when it is durable; nobody can lock it before

    def _read(self, session_id: str) -> Session:
        with self._opened(session_id) as file:
            return self._parsed(session_id, file)[0]

    def contents(self, after: str | None = None) -> Iterator[tuple[str, bytes | None]]:
        ids = self.page(None, after)[0]
        journaled = self._index.journaled()  # which may hold what the files do not
        return ((id, None if id in journaled else content) for id, content in read_contents(self._directory, ids))

    def _ids(self) -> list[str]:
        with unavailable("list", self._directory):
            return self._index.ids()

    def unchanged_since(self, when: float) -> Iterator[str]:
        with unavailable("list", self._directory):
            for number, (modified, session_id) in enumerate(scan(self._directory), 1):
                if number % _SCANNED_AT_ONCE == 0:
                    time.sleep(0.005)  # so that requests go on beside a scan of a hundred thousand files
                if modified < when * 1e9:
                    yield session_id

    def changed_at(self, session_id: str) -> float:
        return self._at(checked_id(session_id), lambda _, found: found.st_mtime)

    def changed_since(self, when: float) -> Iterator[str]:
        for session_id in self._ids():
            with contextlib.suppress(SessionNotFound, StorageUnavailable):
                if self.changed_at(session_id) < when:
                    return
                updated = self.summary(session_id).updated_at  # an old one in a file that was copied just now
                if updated is None or updated >= timestamp(when):
                    yield session_id

    def _lock(self, session_id: str, turn: bool) -> LockedSession | None:
        while True:
            with contextlib.ExitStack() as stack, unavailable("lock", session_id):
                file = self._open(session_id, os.O_RDWR)
                stack.callback(close_unlocked, file)
                if not lock_now(file):
                    return None
                if self._is_current(file, session_id):  # else the file was replaced, and the lock went with it
                    if turn:
                        mark_turn(file)
                    stack.pop_all()
                    return _LockedFile(self, session_id, file, turn)

    def _running(self, session_id: str) -> bool:
        while True:
            with self._opened(session_id) as file, unavailable("look at", session_id):
                if turn_marked(file):
                    return True
                if self._is_current(file, session_id):
                    return False

    def _is_current(self, file: int, session_id: str) -> bool:
        return os.path.samestat(os.fstat(file), self._at(session_id, lambda _, found: found))

    def _path(self, session_id: str) -> str:
        return os.path.join(self._directory, f"{session_id}.json")

    def _journal_path(self, session_id: str) -> str:
        return os.path.join(self._directory, f".{session_id}.journal")

    def _at(self, session_id: str, look: Callable[[str, os.stat_result], T]) -> T:
        """What `look` gives for the path of the session's file and its status.

        Only a regular file is a session: no link, no directory, no FIFO on which a read would wait.
        """
        with unavailable("open", session_id):
            try:
                path = self._path(session_id)
                found = os.lstat(path)
                if stat.S_ISREG(found.st_mode):
                    return look(path, found)
            except FileNotFoundError:
                if not os.path.isdir(self._directory):
                    raise
        raise SessionNotFound(session_id)

    def _open(self, session_id: str, flags: int) -> int:
        return self._at(session_id, lambda path, _: os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK))

    @contextlib.contextmanager
    def _opened(self, session_id: str) -> Iterator[int]:
        file = self._open(session_id, os.O_RDONLY)
        try:
            yield file
        finally:
            os.close(file)

    def _parsed(self, session_id: str, file: int) -> tuple[Session, int | None]:
        """See `parse`. Another thread may write meanwhile, so only content that does not change is corrupt."""
        before = None
        while True:
            with unavailable("read", session_id):
                data = read_all(file)
            try:
                return parse(session_id, data)
            except (ValueError, RecursionError) as error:
                if data == before:
                    log.error("%s.json cannot be understood and is left as it is: %s", session_id, error)
                    raise SessionCorrupt(session_id) from error
            before = data

    def _write_new(self, session: Session, modified: int, *, turn: bool, new: bool = False) -> int:
        """Writes the session's file whole and puts it in place. Returns it open and locked.

        With `new`, raises SessionExists where there is one. The caller syncs the directory. Raises OSError if the
        file cannot be written; then nothing has changed.
        """
        path = os.path.join(self._directory, f".{session.id}.{secrets.token_hex(8)}.tmp")
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            lock_waiting(file)  # before the rename, so that nobody can lock it in between
            if turn:
                mark_turn(file)
            write_all(file, layout(session), 0)
            os.utime(file, ns=(modified, modified))
            os.fsync(file)
            (rename_new if new else os.rename)(path, self._path(session.id))
        except BaseException as error:
            close_unlocked(file)
            with contextlib.suppress(OSError):
                os.unlink(path)
            if isinstance(error, FileExistsError):
                raise SessionExists(session.id) from None
            raise
        return file


class _LockedFile(LockedSession):
    def __init__(self, storage: FileStorage, session_id: str, file: int, turn: bool) -> None:
        super().__init__(session_id)
        self._storage = storage
        self._path = storage._path(session_id)
        self._file = file
        self._turn = turn
        self._journal: FileJournal | None = None
        self._end: int | None = None  # where the closing line begins, if a message can be added in place
        self._parsed: ParsedFile | None = None  # for the next turn

    def record(self, first: bytes, lines: TurnLines, on_end: Callable[[bool], None]) -> None:
        self._journal = FileJournal(self._storage._journal_path(self.id), first, lines)
        with contextlib.suppress(RuntimeError):  # the system gives no more threads
            self._storage._writer.add(self._journal)

    def drop_journal(self) -> None:
        if self._journal is not None:
            self._journal.close()
        remove_journal(self._storage._journal_path(self.id))

    def _load(self) -> Session:
        if self._turn:
            with unavailable("read", self.id):
                self._parsed = self._storage._cache.take(self._path, version_of(self._stat()))
        if self._parsed is None:
            session, self._end = self._storage._parsed(self.id, self._file)
            if not self._turn or self._end is None or not is_large(self._end):
                return session
            self._parsed = ParsedFile(session, self._end)
        self._end = self._parsed.end
        return self._parsed.copy()

    def _append(self, session: Session, lines: Sequence[bytes], taken: str | None) -> None:
        with contextlib.nullcontext() if taken is None else self._storage.queue(self.id).taking(taken):
            self._add(session, lines)

    def _add(self, session: Session, lines: Sequence[bytes]) -> None:
        if len(lines) > 1:  # of which a crash could leave some
            return self._rewrite(
                replace(session, messages=[*session.messages, *map(json.loads, lines)]), time.time_ns()
            )
        if self._end is None:
            log.warning("%s.json is torn or has another layout: it is rewritten before a message is added", self.id)
            self._rewrite(self.session)
        parsed, self._parsed = self._parsed, None  # unless the write succeeds
        assert self._end is not None
        data = b"".join((b",\n" if session.messages else b"\n") + line for line in lines)
        with unavailable("write", self.id):
            modified = self._stat().st_mtime_ns
            try:
                self._write_end(self._end, data + closing(session), time.time_ns())
            except OSError:
                # The first bytes stand where the closing line was, so a full disk has room for that line.
                with contextlib.suppress(OSError):
                    self._write_end(self._end, closing(self.session), modified)
                raise
        self._end += len(data)
        if parsed is not None:
            parsed.session.messages.extend(map(json.loads, lines))
            self._parsed = ParsedFile(replace(session, messages=parsed.session.messages), self._end)

    def _rewrite(self, session: Session, modified: int = 0) -> None:
        with unavailable("write", self.id), synced(self._storage._directory):
            old = self._file
            self._file = self._storage._write_new(session, modified or self._stat().st_mtime_ns, turn=self._turn)
            close_unlocked(old)
            self._parsed = None
            self._end = None  # until the directory is synced, a crash may bring the old file back
        self._end = len(layout(session)) - len(closing(session))

    def _delete(self) -> None:
        with unavailable("delete", self.id), synced(self._storage._directory), contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        if not os.path.lexists(self._path):  # else another caller has made it again, and has what stands beside it
            FileQueue(self._storage._directory, self.id).clear()
            self._storage.files.remove(self.id)
            self.drop_journal()

    def _release(self) -> None:
        try:
            if self._journal is not None:
                self._journal.flush()  # unless it was dropped, what it holds could not be stored
                self._journal.close()
            if self._parsed is not None:
                with contextlib.suppress(OSError):
                    self._storage._cache.put(self._path, version_of(self._stat()), self._parsed)
        finally:
            close_unlocked(self._file)

    def _stat(self) -> os.stat_result:
        found = os.fstat(self._file)
        if found.st_nlink == 0:
            raise FileNotFoundError("another program has removed or replaced the file")
        return found

    def _write_end(self, end: int, data: bytes, modified: int) -> None:
        write_all(self._file, data, end)
        if os.fstat(self._file).st_size > end + len(data):
            os.ftruncate(self._file, end + len(data))
        # The kernel's own times are milliseconds apart, too coarse for the order of the list.
        os.utime(self._file, ns=(modified, modified))
        os.fsync(self._file)
