"""Sessions and where they are kept.

`Storage` and `Taken` say what every back end does and hold the rules; `MemoryStorage` keeps sessions in a
dict, `FileStorage` in one JSON file each. Reading needs no lock. Whoever wants to change a session takes it
first, and is then the only one, between threads and between processes alike.

A back end writes six primitives of `Storage` and five of `Taken`; `tests/storage_conformance.py` checks it. One that
servers on several machines share lets them also follow one another's turns, by `Taken.share` and
`Storage.elsewhere`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import operator
import os
import re
import secrets
import stat
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

try:
    import fcntl
except ImportError:  # Windows, where sessions live in memory only
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

TITLE_LENGTH = 200
SESSION_ID = re.compile(r"session-[0-9a-z-]{1,64}")

_BRIEFLY = 1.0  # seconds to wait for a session that is taken for less than a turn (a new title, a deletion)
_STALE = 3600.0  # seconds after which a temporary file is taken for the rest of a crash
_texts_of = operator.itemgetter("id", "role", "content", "created_at")  # which every message has
_FILE = re.compile(rf"({SESSION_ID.pattern})\.json")
_TEMPORARY = re.compile(rf"\.({SESSION_ID.pattern}\.)?[0-9a-f]{{16}}\.tmp")

T = TypeVar("T")


class SessionNotFound(Exception):
    """There is no session of this id (or the id is not of the form of one)."""


class SessionBusy(Exception):
    """Somebody else has taken the session: this process or another one."""


class SessionCorrupt(Exception):
    """What is stored cannot be understood. It is left as it is."""


class StorageUnavailable(Exception):
    """The store cannot be read or written now. What was stored before is intact."""


class SessionLost(StorageUnavailable):
    """We were too slow, and the session is ours no more: another process has it, or has ended our turn."""


class LinesMissing(StorageUnavailable):
    """Lines that another process has told of its turn are not there any more."""


@dataclass(frozen=True)
class Session:
    """A copy of a session as it was when asked for; changing it changes nothing that is stored.

    `messages` are JSON objects, oldest first, each with `id`, `role`, `content` and `created_at`. `note` is a
    word about the time after the last message, gone with the next one (see `Taken.note`).
    """

    id: str
    created_at: str
    updated_at: str
    title: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    note: str | None = None


@dataclass(frozen=True)
class Summary:
    """What a list of sessions shows of one. `title` is the one that was set, else the beginning of the first
    user message, else None. A session that cannot be understood has None for all but its id."""

    id: str
    title: str | None = None
    created_at: str | None = None
    updated_at: str | None = None
    message_count: int | None = None


def new_id(kind: str) -> str:
    """An id that cannot be guessed: 128 random bits in lower-case hex after `kind` and a hyphen."""
    return f"{kind}-{secrets.token_hex(16)}"


def timestamp() -> str:
    """The time now, in UTC, to the second: `2026-01-31T12:34:56Z`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Storage(ABC):
    """Sessions by id. Every method may be called from any thread."""

    def create(self) -> str:
        """Make an empty session and give its id. It is durable when this returns."""
        now = timestamp()
        session = Session(new_id("session"), now, now)
        self._create(session)
        return session.id

    def get(self, session_id: str) -> Session:
        """The session as it is now; while a turn runs, with all that the turn has stored so far.

        Raises SessionNotFound, SessionCorrupt, StorageUnavailable.
        """
        return self._read(checked_id(session_id))

    def summary(self, session_id: str) -> Summary:
        """What a list shows of the session. Raises SessionNotFound and StorageUnavailable."""
        try:
            return summary_of(self.get(session_id))
        except SessionCorrupt:
            return Summary(session_id)

    def page(self, limit: int | None = None, after: str | None = None) -> tuple[list[str], str | None]:
        """At most `limit` ids, most recently updated first and then by id, from the one that follows `after`;
        and what to give as `after` for the next page, None on the last one.

        Raises SessionNotFound where there is no session `after`.
        """
        ids = self._ids()
        if after is not None:
            if after not in ids:
                raise SessionNotFound(after)
            ids = ids[ids.index(after) + 1 :]
        page = ids if limit is None else ids[:limit]
        return page, page[-1] if len(page) < len(ids) else None

    def take(self, session_id: str, *, turn: bool = False) -> Taken:
        """Take the session, so that nobody else can until it is released; `running` says so where it is for a
        `turn`. Whoever holds it for less than that is waited for, briefly.

        Raises SessionNotFound, SessionBusy, StorageUnavailable.
        """
        give_up = time.monotonic() + _BRIEFLY
        while (taken := self._take(checked_id(session_id), turn)) is None:
            if self.running(session_id) or time.monotonic() > give_up:
                raise SessionBusy(session_id)
            time.sleep(0.005)
        return taken

    def running(self, session_id: str) -> bool:
        """Whether somebody holds the session for a turn, here or elsewhere. Asking disturbs nobody who is about
        to take it. Raises SessionNotFound, StorageUnavailable."""
        return self._running(checked_id(session_id))

    def elsewhere(self, session_id: str) -> Elsewhere | None:
        """The session's newest turn, if another process runs it or has just run it, and has let us follow it (see
        `Taken.share`); else None. Raises SessionNotFound, StorageUnavailable."""
        return None

    def flush(self) -> None:
        """Wait, for some seconds at most, until others can read what they were told of turns that have ended."""
        return None

    @abstractmethod
    def check(self) -> None:
        """Raise StorageUnavailable if sessions could not be written now."""

    @abstractmethod
    def _create(self, session: Session) -> None:
        """Store a new session, durably."""

    @abstractmethod
    def _read(self, session_id: str) -> Session:
        """A copy of what is stored."""

    @abstractmethod
    def _ids(self) -> list[str]:
        """All ids in the order of the list."""

    @abstractmethod
    def _take(self, session_id: str, turn: bool) -> Taken | None:
        """Take the session at once or not at all; None where it is taken."""

    @abstractmethod
    def _running(self, session_id: str) -> bool:
        """Whether the session is taken for a turn."""


class Taken(ABC):
    """A session that is ours until `release`, and the only way to change one; RuntimeError after that. Not for
    several threads at once."""

    def __init__(self, session_id: str) -> None:
        self.id = session_id
        self._session: Session | None = None
        self._released = False

    @property
    def session(self) -> Session:
        """The session, kept up to date with what is changed through this object. Raises SessionCorrupt and
        StorageUnavailable."""
        self._check_held()
        if self._session is None:
            self._session = self._load()
        return self._session

    def append(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Add a message of these fields and give a copy of it with its new `id` and `created_at`. It is durable
        when this returns; where this raises StorageUnavailable, the session is as it was before.

        Raises ValueError or TypeError for what JSON in UTF-8 cannot hold (NaN, lone surrogates), or where `role`
        or `content` is not a string.
        """
        now = timestamp()
        line = to_json({"id": None, **fields} | {"id": new_id("msg"), "created_at": now})
        message: dict[str, Any] = json.loads(line)
        if not _are_messages([message]):
            raise ValueError("a message needs a role and a content, both strings")
        changed = replace(self.session, updated_at=now, note=None)
        self._append(changed, line)
        changed.messages.append(json.loads(line))
        self._session = changed
        return message

    def note(self, note: str) -> None:
        """Leave a word beside the messages, in force until the next one is added. Durable when this returns.
        Raises ValueError for what JSON in UTF-8 cannot hold."""
        to_json(note)
        changed = replace(self.session, updated_at=timestamp(), note=note)
        self._append(changed, None)
        self._session = changed

    def rename(self, title: str | None) -> None:
        """Set the title, or remove it with None; neither `updated_at` nor the place in the list changes.
        Durable when this returns. Raises ValueError for what JSON in UTF-8 cannot hold."""
        to_json(title)
        changed = replace(self.session, title=title)
        self._rewrite(changed)
        self._session = changed

    def delete(self) -> None:
        """Remove the session for good, and release it; durable when this returns. It need not be one that can be
        read."""
        self._check_held()
        self._delete()
        self.release()

    def release(self) -> None:
        """Let others take the session. May be repeated."""
        if not self._released:
            self._released = True
            self._release()

    def share(self, first: bytes, on_end: Callable[[bool], None]) -> Callable[[bytes, bool], None] | None:
        """Let other processes follow the turn that the session was taken for, by `Storage.elsewhere`, from this first
        line on. Gives what tells them a line, and whether it is the last, also after the release; it neither waits
        nor raises. `on_end(True)` is called, on another thread, when one of them asks that the turn end, and
        `on_end(False)` when the session is ours no more. None where no other process could follow."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @abstractmethod
    def _load(self) -> Session:
        """What is stored, as an object of our own."""

    @abstractmethod
    def _append(self, session: Session, line: bytes | None) -> None:
        """Add a message, given as JSON on one line (if any), and the `updated_at` and `note` of `session`."""

    @abstractmethod
    def _rewrite(self, session: Session) -> None:
        """Store all of `session` again, its place in the list unchanged."""

    @abstractmethod
    def _delete(self) -> None:
        """Remove what is stored."""

    @abstractmethod
    def _release(self) -> None:
        """Let go; called once."""

    def _check_held(self) -> None:
        if self._released:
            raise RuntimeError(f"{self.id} was changed after its release")


class Elsewhere(ABC):
    """A turn of another process, as it is told there. Not for several threads at once. Every method raises
    StorageUnavailable, and those that look at the lines LinesMissing.

    `id` is the same for the same turn.
    """

    id: str

    @abstractmethod
    def read(self, seconds: float) -> list[bytes]:
        """The next lines, as soon as there are any; none after `seconds` without."""

    @abstractmethod
    def interrupted(self) -> bool:
        """Whether the process that ran the turn has gone and left it without a last line. If so, it can store nothing
        more in the session, whatever becomes of it."""

    @abstractmethod
    def end(self, lines: list[bytes]) -> None:
        """Tell the last lines of an interrupted turn in place of the process that ran it, unless somebody has; what
        was told is read next, by all."""

    @abstractmethod
    def ask_to_end(self) -> None:
        """Ask the process that runs the turn to end it."""


# --- what every back end needs ---


def checked_id(session_id: str) -> str:
    """The id, if it has the form of one. Raises SessionNotFound."""
    if not SESSION_ID.fullmatch(session_id):
        raise SessionNotFound(session_id)
    return session_id


def _are_messages(values: list[Any]) -> bool:
    try:
        return {type(text) for value in values for text in _texts_of(value)} <= {str}
    except (KeyError, TypeError):  # a field is missing, or it is no object at all
        return False


def summary_of(session: Session) -> Summary:
    """What a list shows of this session."""
    title = session.title
    if title is None:
        first = next((m["content"] for m in session.messages if m["role"] == "user"), "")
        title = " ".join(first[: 10 * TITLE_LENGTH].split())[:80] or None
    return Summary(session.id, title, session.created_at, session.updated_at, len(session.messages))


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def to_json(value: Any) -> bytes:
    """JSON on one line, characters as themselves; ValueError for NaN and for lone surrogates."""
    return _encode(value).encode()


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError("a number in it is not finite")
    return value


_JSON = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def from_json(data: bytes) -> Any:
    """What JSON in UTF-8 stands for; ValueError for what `to_json` would refuse."""
    value = _JSON.decode(data.decode())
    if b"\\u" in data:
        to_json(value)  # lone surrogates, which could not be sent on, hide in escapes
    return value


def session_from(session_id: str, value: Any) -> Session:
    """The session that a JSON object stands for. ValueError where it is none, or not the one of this id."""
    if not isinstance(value, dict) or value.get("id") != session_id:
        raise ValueError("it does not hold the session that it is named after")
    messages, title, note = value.get("messages"), value.get("title"), value.get("note")
    if not isinstance(messages, list) or not _are_messages(messages):
        raise ValueError("its messages are not a list of messages")
    if not isinstance(title, str | None) or not isinstance(note, str | None):
        raise ValueError("its title or its note is not text")
    created = value.get("created_at")
    updated = value.get("updated_at", messages[-1]["created_at"] if messages else created)
    if not isinstance(created, str) or not isinstance(updated, str):
        raise ValueError("its times are missing")
    return Session(session_id, created, updated, title, messages, note)


# --- in memory ---


@dataclass
class _Kept:
    """A session in memory: all but its messages, and those as the JSON lines that a file would hold, so that
    both back ends refuse the same values and hand out copies."""

    session: Session
    lines: list[bytes]
    order: int  # when it was last updated, in nanoseconds
    taken: bool = False
    turn: bool = False


class MemoryStorage(Storage):
    """Sessions in a dict, for as long as the process lives."""

    def __init__(self) -> None:
        self._sessions: dict[str, _Kept] = {}
        self._lock = threading.Lock()

    def check(self) -> None:
        pass

    def _create(self, session: Session) -> None:
        with self._lock:
            self._sessions[session.id] = _Kept(session, [], time.time_ns())

    def _read(self, session_id: str) -> Session:
        with self._lock:
            kept = self._find(session_id)
            session, lines = kept.session, kept.lines.copy()
        return replace(session, messages=json.loads(b"[" + b",".join(lines) + b"]"))

    def _ids(self) -> list[str]:
        with self._lock:
            return [id for _, id in sorted((-kept.order, id) for id, kept in self._sessions.items())]

    def _take(self, session_id: str, turn: bool) -> Taken | None:
        with self._lock:
            kept = self._find(session_id)
            if kept.taken:
                return None
            kept.taken, kept.turn = True, turn
            return _TakenMemory(self, kept)

    def _running(self, session_id: str) -> bool:
        with self._lock:
            return self._find(session_id).turn

    def _find(self, session_id: str) -> _Kept:
        try:
            return self._sessions[session_id]
        except KeyError:
            raise SessionNotFound(session_id) from None


class _TakenMemory(Taken):
    def __init__(self, storage: MemoryStorage, kept: _Kept) -> None:
        super().__init__(kept.session.id)
        self._storage = storage
        self._kept = kept

    def _load(self) -> Session:
        return self._storage._read(self.id)

    def _append(self, session: Session, line: bytes | None) -> None:
        with self._storage._lock:
            self._kept.session = replace(session, messages=[])
            self._kept.order = time.time_ns()
            if line is not None:
                self._kept.lines.append(line)

    def _rewrite(self, session: Session) -> None:
        with self._storage._lock:
            self._kept.session = replace(session, messages=[])

    def _delete(self) -> None:
        with self._storage._lock:
            del self._storage._sessions[self.id]

    def _release(self) -> None:
        with self._storage._lock:
            self._kept.taken = self._kept.turn = False


# --- one JSON file per session ---


class FileStorage(Storage):
    """Sessions in a directory, one JSON file each, which `jq` reads.

    A message is one line, added by writing over the closing line and beyond with one `fsync`, so that a crash can
    tear the last line only; readers skip a torn one. Whatever else changes is a new file, synced, renamed over
    the old one. A taken session is locked with `flock`, which the kernel lifts when the process dies; the file's
    modification time is its place in the list.

    Raises StorageUnavailable when the directory cannot be made or written, or where there is no `flock`.
    """

    def __init__(self, directory: str) -> None:
        if fcntl is None:
            raise StorageUnavailable("sessions on disk need flock, which this system does not have")
        self._directory = os.path.abspath(directory)
        self._cached_summary = functools.lru_cache(10_000)(self._summarized)
        with _unavailable("open", self._directory, logging.DEBUG):  # whoever starts us is told
            _make_directory(self._directory)
            with _synced(self._directory):  # also what a process that was killed had renamed
                self._sweep()
            self._try_writing()

    def check(self) -> None:
        with _unavailable("write", self._directory):
            self._try_writing()

    def summary(self, session_id: str) -> Summary:
        found = self._at(checked_id(session_id), lambda _, found: found)
        return self._cached_summary(
            session_id, (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        )

    def _summarized(self, session_id: str, _version: tuple[int, ...]) -> Summary:
        return super().summary(session_id)

    def _create(self, session: Session) -> None:
        with _unavailable("create", session.id), contextlib.ExitStack() as stack, _synced(self._directory):
            file = self._write_new(session, time.time_ns(), turn=False)
            stack.callback(os.close, file)  # when it is durable; nobody can take it before

    def _read(self, session_id: str) -> Session:
        with self._opened(session_id) as file:
            return self._parsed(session_id, file)[0]

    def _ids(self) -> list[str]:
        found = []
        with _unavailable("list", self._directory), os.scandir(self._directory) as entries:
            for entry in entries:
                if (file := _FILE.fullmatch(entry.name)) and entry.is_file(follow_symlinks=False):
                    try:  # nothing slower: there may be a hundred thousand
                        found.append((entry.stat(follow_symlinks=False).st_mtime_ns, file[1]))
                    except FileNotFoundError:  # deleted meanwhile
                        continue
        found.sort(key=operator.itemgetter(1))
        found.sort(key=operator.itemgetter(0), reverse=True)
        return [id for _, id in found]

    def _take(self, session_id: str, turn: bool) -> Taken | None:
        while True:
            with contextlib.ExitStack() as stack, _unavailable("lock", session_id):
                file = self._open(session_id, os.O_RDWR)
                stack.callback(os.close, file)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return None
                if self._is_current(file, session_id):  # else it was replaced, and the lock went with it
                    if turn:
                        _mark_turn(file)
                    stack.pop_all()
                    return _TakenFile(self, session_id, file, turn)

    def _running(self, session_id: str) -> bool:
        while True:
            with self._opened(session_id) as file, _unavailable("look at", session_id):
                if _turn_marked(file):
                    return True
                if self._is_current(file, session_id):
                    return False

    def _is_current(self, file: int, session_id: str) -> bool:
        return os.path.samestat(os.fstat(file), self._at(session_id, lambda _, found: found))

    def _path(self, session_id: str) -> str:
        return os.path.join(self._directory, f"{session_id}.json")

    def _temporary(self, prefix: str = "") -> str:
        return os.path.join(self._directory, f".{prefix}{secrets.token_hex(8)}.tmp")

    def _at(self, session_id: str, look: Callable[[str, os.stat_result], T]) -> T:
        """What `look` gives for the path of the session's file and what is there. Only a regular file is one: no
        link, no folder, no FIFO to wait at."""
        with _unavailable("open", session_id):
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
        """See `_parse`. Somebody may be writing meanwhile: only what stays as it is can be called corrupt."""
        before = None
        while True:
            with _unavailable("read", session_id):
                data = _read_all(file)
            try:
                return _parse(session_id, data)
            except (ValueError, RecursionError) as error:
                if data == before:
                    log.error("%s.json cannot be understood and is left as it is: %s", session_id, error)
                    raise SessionCorrupt(session_id) from error
            before = data

    def _write_new(self, session: Session, modified: int, *, turn: bool) -> int:
        """Write the session's file whole, put it in place, and give it back open and locked; the directory is for
        the caller to sync. OSError if it cannot be written; then nothing has changed."""
        path = self._temporary(f"{session.id}.")
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # before anybody can find it, so that no one comes in between
            if turn:
                _mark_turn(file)
            _write_all(file, _layout(session), 0)
            os.utime(file, ns=(modified, modified))
            os.fsync(file)
            os.rename(path, self._path(session.id))
        except BaseException:
            os.close(file)
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        return file

    def _try_writing(self) -> None:
        path = self._temporary()
        with open(path, "xb", buffering=0) as file:
            try:
                file.write(b"the store can be written\n")
            finally:
                os.unlink(path)

    def _sweep(self) -> None:
        """Remove the temporary files that a crash has left."""
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if _TEMPORARY.fullmatch(entry.name):
                    with contextlib.suppress(OSError):
                        if entry.stat(follow_symlinks=False).st_ctime < time.time() - _STALE:
                            os.unlink(entry.path)


class _TakenFile(Taken):
    def __init__(self, storage: FileStorage, session_id: str, file: int, turn: bool) -> None:
        super().__init__(session_id)
        self._storage = storage
        self._file = file
        self._turn = turn
        self._end: int | None = None  # where the closing line begins, if the file can be added to in place

    def _load(self) -> Session:
        session, self._end = self._storage._parsed(self.id, self._file)
        return session

    def _append(self, session: Session, line: bytes | None) -> None:
        if self._end is None:
            log.warning("%s.json was torn or is in another layout: written anew before it is added to", self.id)
            self._rewrite(self.session)
        assert self._end is not None
        added = b"" if line is None else (b",\n" if session.messages else b"\n") + line
        with _unavailable("write", self.id):
            modified = self._stat().st_mtime_ns
            try:
                self._write_end(self._end, added + _closing(session), time.time_ns())
            except OSError:
                # The first bytes have gone where the closing line was, so there is room for it on a full disk.
                with contextlib.suppress(OSError):
                    self._write_end(self._end, _closing(self.session), modified)
                raise
        self._end += len(added)

    def _rewrite(self, session: Session) -> None:
        with _unavailable("write", self.id), _synced(self._storage._directory):
            old = self._file
            self._file = self._storage._write_new(session, self._stat().st_mtime_ns, turn=self._turn)
            os.close(old)
            self._end = None  # while a crash may bring the old file back
        self._end = len(_layout(session)) - len(_closing(session))

    def _delete(self) -> None:
        with (
            _unavailable("delete", self.id),
            _synced(self._storage._directory),
            contextlib.suppress(FileNotFoundError),
        ):
            os.unlink(self._storage._path(self.id))

    def _release(self) -> None:
        os.close(self._file)  # and with it the lock

    def _stat(self) -> os.stat_result:
        found = os.fstat(self._file)
        if found.st_nlink == 0:
            raise FileNotFoundError("another hand has removed or replaced the file")
        return found

    def _write_end(self, end: int, data: bytes, modified: int) -> None:
        _write_all(self._file, data, end)
        if os.fstat(self._file).st_size > end + len(data):
            os.ftruncate(self._file, end + len(data))
        # The kernel's own stamps are milliseconds apart, too coarse for the order of the list.
        os.utime(self._file, ns=(modified, modified))
        os.fsync(self._file)


@contextlib.contextmanager
def _unavailable(verb: str, what: str, level: int = logging.ERROR) -> Iterator[None]:
    """Turn the system's errors into StorageUnavailable, and say in the log what they were."""
    try:
        yield
    except OSError as error:
        log.log(level, "cannot %s %s: %s", verb, what, error)
        raise StorageUnavailable(f"cannot {verb} {what}: {error.strerror or error}") from error


@contextlib.contextmanager
def _synced(directory: str) -> Iterator[None]:
    """Make what is changed in the directory durable. It is opened first, so that nothing changes if it cannot be."""
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield
        os.fsync(opened)
    finally:
        os.close(opened)


def _make_directory(path: str) -> None:
    if not os.path.isdir(path):
        parent = os.path.dirname(path)
        _make_directory(parent)
        with _synced(parent), contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)


def _read_all(file: int) -> bytes:
    data = b""
    most = os.fstat(file).st_size + 1  # at once, as a rule
    while block := os.pread(file, most, len(data)):
        data += block
        most = 1 << 16
    return data


def _write_all(file: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


# A turn is marked by a second lock, on the open file description, because its holder can be asked for without
# taking it (fcntl(2), F_OFD_GETLK), which flock does not offer. The two kinds do not see each other.
def _turn_lock(file: int, command: int) -> bool:
    struct_flock = "hhqqi4x"  # type, whence, start, length, pid
    lock = struct.pack(struct_flock, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    return bool(struct.unpack(struct_flock, fcntl.fcntl(file, command, lock))[0] != fcntl.F_UNLCK)


def _mark_turn(file: int) -> None:
    if hasattr(fcntl, "F_OFD_SETLK"):
        _turn_lock(file, fcntl.F_OFD_SETLK)


def _turn_marked(file: int) -> bool:
    if hasattr(fcntl, "F_OFD_GETLK"):
        return _turn_lock(file, fcntl.F_OFD_GETLK)
    try:  # macOS: all that can be told there is whether it is locked at all
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


# --- the layout of a file ---


def _head(session: Session) -> bytes:
    head = {"id": session.id, "created_at": session.created_at}
    if session.title is not None:
        head["title"] = session.title
    return to_json(head)[:-1] + b',"messages":['


def _closing(session: Session) -> bytes:
    tail = {"updated_at": session.updated_at}
    if session.note is not None:
        tail["note"] = session.note
    return b"\n]," + to_json(tail)[1:] + b"\n"


def _layout(session: Session) -> bytes:
    lines = b",".join(b"\n" + to_json(message) for message in session.messages)
    return _head(session) + lines + _closing(session)


def _parse(session_id: str, data: bytes) -> tuple[Session, int | None]:
    """The session in a file's content, in any layout, or in what a crash has left of it; and where its closing
    line begins, None where it is not in our layout. ValueError if it is no session."""
    try:
        value = from_json(data)
    except ValueError:
        return session_from(session_id, _untorn(data)), None
    session = session_from(session_id, value)
    closing = _closing(session)
    ours = (
        data.startswith(_head(session))
        and data.endswith(closing)
        and data.count(b"\n{") == len(session.messages) == data.count(b"\n") - 2
        and value.keys() <= {"id", "created_at", "title", "messages", "updated_at", "note"}
    )
    return session, len(data) - len(closing) if ours else None


def _untorn(data: bytes) -> dict[str, Any]:
    """The whole lines before a torn end, in our layout. ValueError where more than the end is broken.

    A write begins at the closing line, so what a crash can leave from there on is any mixture of the old closing
    line, the new message, the new closing line, and zeros: the blocks of one unsynced write reach the disk in any
    order. That is one message at most, and an end that is broken in front of something else has zeros up to the
    end of a block.
    """
    first, *lines = data.split(b"\n")
    value: dict[str, Any] = from_json(first + b"]}")
    if not isinstance(value, dict) or value.get("messages") != []:
        raise ValueError("its first line is broken")
    lines = [line for line in lines if line]
    for number, line in enumerate(lines, 1):
        message, rest = _message(line)
        if message is not None:
            value["messages"].append(message)
        if message is None or rest not in ("", ","):
            after = lines[number:]
            zeros = any(run.end() % 512 == 0 or run.end() == len(data) for run in re.finditer(rb"\0+", data))
            if any(_message(other)[0] for other in after) or (after and not zeros and not line.startswith(b"]")):
                raise ValueError("a line in its middle is broken")
            break
    return value


def _message(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """The message that a line begins with, None where there is none, and what follows it."""
    text = line.decode(errors="surrogateescape")
    try:
        message, end = _JSON.raw_decode(text)
        to_json(message)
    except ValueError:
        return None, text
    return (message, text[end:]) if _are_messages([message]) else (None, text)
