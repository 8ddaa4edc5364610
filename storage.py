"""What a session and a store are, and a store in a dict.

`Storage` and `LockedSession` say what every store does, and hold the rules. `MemoryStorage` keeps sessions in a dict.
Reading needs no lock. To change a session, a caller locks it first, and is then the only one that can change it,
between threads and between processes alike.

A store has `files`, and writes nine primitives of `Storage` and five of `LockedSession`.
`tests/support/storage_conformance.py` checks it. A store whose turns survive the process, or can be followed by other
servers, also has `LockedSession.record`, `Storage.journal` and `Storage.turn_feed`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from session_core.data.kept_files import KeptFiles, MemoryFiles, Source
from session_core.data.message import MessageFields, StoredMessage, are_messages, begins_turn, is_message, named_files
from session_core.data.message_queue import ListQueue, MessageQueue, NotQueued, QueuedMessage, take_out
from session_core.data.session import CONFIGURABLE, SESSION_ID, STATE, Session, Summary, new_id, summarize, timestamp
from session_core.data.store_errors import (
    FeedGap,
    LockLost,
    SessionBusy,
    SessionCorrupt,
    SessionExists,
    SessionNotFound,
    StorageUnavailable,
    checked_id,
)
from session_core.data.strict_json import to_json
from session_core.data.turn_feed import TurnFeed, TurnLines

__all__ = [
    "CONFIGURABLE",
    "SESSION_ID",
    "STATE",
    "FeedGap",
    "LockLost",
    "LockedSession",
    "MemoryStorage",
    "Session",
    "SessionBusy",
    "SessionCorrupt",
    "SessionExists",
    "SessionNotFound",
    "Storage",
    "StorageUnavailable",
    "Summary",
    "TurnFeed",
    "TurnLines",
    "checked_id",
    "new_id",
    "summarize",
    "timestamp",
]

_SHORT_LOCK_SECONDS = 1.0  # how long to wait for a lock that is held for less than a turn (rename, delete)


class Storage(ABC):
    """Sessions by id. Every method may be called from any thread. `files` are the pictures and files that their
    messages name."""

    files: KeptFiles

    def create(self, messages: Sequence[StoredMessage] = (), files: Source = "", **fields: Any) -> str:
        """Creates a session and returns its id. The session is durable when this returns.

        `messages` are whole, with ids. What they name is in `files`: bytes by SHA-256, or a session's id. `fields`
        are further ones of `Session`, also its `id` (see `_create`). Raises ValueError for what JSON cannot hold.
        """
        now = timestamp()
        copies = json.loads(to_json(list(messages)))
        if not are_messages(copies):
            raise ValueError("a message needs an id, a role and a time, all strings, and a content")
        to_json(fields)
        session = Session(fields.pop("id", "") or new_id("session"), now, now, messages=copies, **fields)
        self.files.take(session.id, named_files(copies), files)
        self._create(session)
        return session.id

    def ensure(self, session_id: str) -> None:
        """Creates an empty session of this id, durably, unless there is one.

        Raises SessionNotFound for what has not the form of an id, and StorageUnavailable.
        """
        try:
            self.running(session_id)
        except SessionNotFound:
            with contextlib.suppress(SessionExists):
                self.create(id=checked_id(session_id))

    def get(self, session_id: str) -> Session:
        """The session as it is now, with all that a turn which runs has stored so far. Raises SessionNotFound,
        SessionCorrupt, StorageUnavailable."""
        return self._read(checked_id(session_id))

    def summary(self, session_id: str) -> Summary:
        """What a list shows of the session. Raises SessionNotFound and StorageUnavailable."""
        try:
            return summarize(self.get(session_id))
        except SessionCorrupt:
            return Summary(session_id)

    def page(self, limit: int | None = None, after: str | None = None) -> tuple[list[str], str | None]:
        """At most `limit` ids, most recently updated first and then by id, from the one that follows `after`.

        The second value is the `after` of the next page, None on the last page. Raises SessionNotFound where there is
        no session `after`.
        """
        ids = self._ids()
        if after is not None:
            if after not in ids:
                raise SessionNotFound(after)
            ids = ids[ids.index(after) + 1 :]
        page = ids if limit is None else ids[:limit]
        return page, page[-1] if len(page) < len(ids) else None

    def contents(self, after: str | None = None) -> Iterator[tuple[str, bytes | None]]:
        """The ids behind `after`, or all, in the order of the list, each with JSON in which all texts of the session
        stand, so that a search reads only sessions that may hold its words. None where only `get` and `journal` tell
        the texts. Raises what `page` raises."""
        return ((session_id, None) for session_id in self.page(None, after)[0])

    def clock(self) -> float:
        """The time, in seconds since 1970, by the clock by which this store says when sessions have changed."""
        return time.time()

    def changed_since(self, when: float) -> Iterator[str]:
        """The ids of sessions that have changed since this time, by `clock`, most recently changed first."""
        return itertools.takewhile(lambda session_id: self.changed_at(session_id) >= when, self._ids())

    def for_user(self, name: str) -> Storage:
        """A store of this user's own, apart from this one and from those of all others. It shares with this one what
        can be shared: connections, threads, caches. Raises StorageUnavailable."""
        raise NotImplementedError("this store cannot keep users apart")

    def lock(self, session_id: str) -> LockedSession:
        """Locks the session for a change, until it is released.

        Waits up to one second for another short lock. Raises SessionNotFound, SessionBusy, StorageUnavailable.
        """
        return self._lock_soon(session_id, turn=False)

    def lock_for_turn(self, session_id: str) -> LockedSession:
        """Locks the session for a turn, until it is released. `running` is true meanwhile.

        What this returns is alone to store messages in the session, and to record what the turn says (see
        `LockedSession.record`). Waits and raises like `lock`.
        """
        return self._lock_soon(session_id, turn=True)

    def _lock_soon(self, session_id: str, *, turn: bool) -> LockedSession:
        give_up = time.monotonic() + _SHORT_LOCK_SECONDS
        while (locked := self._lock(checked_id(session_id), turn)) is None:
            if self.running(session_id) or time.monotonic() > give_up:
                raise SessionBusy(session_id)
            time.sleep(0.005)
        return locked

    def running(self, session_id: str) -> bool:
        """Whether the session is locked for a turn, in any process. Asking never makes another caller's lock fail.
        Raises SessionNotFound and StorageUnavailable."""
        return self._running(checked_id(session_id))

    def with_queue(self) -> Iterator[str]:
        """The ids of sessions in which messages wait, where those outlive the process."""
        return iter(())

    def turn_feed(self, session_id: str) -> TurnFeed | None:
        """The session's newest turn, if another process records it (see `LockedSession.record`). Waits a moment for
        one that is only starting. Raises SessionNotFound and StorageUnavailable."""
        return None

    def journal(self, session_id: str) -> list[bytes]:
        """The lines that the session's newest turn has recorded (see `LockedSession.record`), also where its process
        is gone. Raises SessionNotFound and StorageUnavailable."""
        return []

    def flush(self) -> None:
        """Waits, for some seconds at most, until what ended turns have recorded is written."""

    @abstractmethod
    def queue(self, session_id: str) -> MessageQueue:
        """The messages that wait in the session until their turn begins. Deleting the session deletes them."""

    @abstractmethod
    def check(self) -> None:
        """Raises StorageUnavailable if sessions could not be written now."""

    @abstractmethod
    def changed_at(self, session_id: str) -> float:
        """When the session last changed, by `clock`. Raises SessionNotFound and StorageUnavailable."""

    @abstractmethod
    def unchanged_since(self, when: float) -> Iterator[str]:
        """The ids of sessions that did not change since this time, by `clock`, when they were looked at."""

    @abstractmethod
    def _create(self, session: Session) -> None:
        """Stores a new session, durably. Where there is one of its id, leaves it, and may raise SessionExists."""

    @abstractmethod
    def _read(self, session_id: str) -> Session:
        """A copy of what is stored."""

    @abstractmethod
    def _ids(self) -> list[str]:
        """All ids in the order of the list."""

    @abstractmethod
    def _lock(self, session_id: str, turn: bool) -> LockedSession | None:
        """Locks the session at once or not at all. None where it is locked."""

    @abstractmethod
    def _running(self, session_id: str) -> bool:
        """Whether the session is locked for a turn."""


class LockedSession(ABC):
    """A session that this caller alone can change, until `release`. RuntimeError after that. Not safe for several
    threads at once."""

    def __init__(self, session_id: str) -> None:
        self.id = session_id
        self._session: Session | None = None
        self._released = False

    @property
    def session(self) -> Session:
        """The session as changed through this object, to be read only. Raises SessionCorrupt, StorageUnavailable."""
        self._check_locked()
        if self._session is None:
            self._session = self._load()
        return self._session

    def append(
        self,
        fields: MessageFields,
        message_id: str | None = None,
        created_at: str | None = None,
        queued: bool = False,
    ) -> StoredMessage:
        """Adds a message of these fields. Returns a copy with `id` and `created_at`, new ones where none are given.
        A `queued` one is taken out of the session's queue in the same write: raises NotQueued where it waits no more.

        A user's message may have `replaces`, the id of another one, or `after`, the id of any message: it stands in
        place of that one, or behind it, and what stood there leaves the conversation in the same write, and stays
        stored. It may have `history`, whole messages that stand before it, of which the first has these then.

        The message is durable when this returns. Where this raises StorageUnavailable, the session is as before.
        Raises ValueError or TypeError for what JSON in UTF-8 cannot hold (NaN, lone surrogates), and for no message.
        """
        own = {"id": message_id or new_id("msg"), "created_at": created_at or timestamp()}
        line = to_json({"id": None, **fields} | own)
        message = json.loads(line)
        if not is_message(message):
            raise ValueError("a message needs a role, which is a string, and a content")
        taken = message["id"] if queued else None
        self._update(line, taken=taken, continues=None if begins_turn(message) else self.session.continues)
        return message

    def set_last_error(self, code: str, *, refused: bool = False) -> None:
        """Stores the code of the error that ended the turn, and whether the model server refused the question. Both
        are in force until the next message.

        Durable when this returns. Raises ValueError for what JSON in UTF-8 cannot hold.
        """
        to_json(code)
        self._update(last_error=code, last_refused=refused)

    def set_continues(self, attempt: Mapping[str, Any] | None, added: Sequence[StoredMessage] = ()) -> None:
        """Stores what tells of an attempt that goes on with the last turn, in force until the next user's message. In
        the same write it adds whole messages before that.

        It ends the force of `last_error`. Durable when this returns. Raises ValueError for what JSON in UTF-8 cannot
        hold.
        """
        self._update(*(to_json({"id": None, **one}) for one in added), continues=json.loads(to_json(attempt)))

    def configure(self, **settings: Any) -> None:
        """Sets fields of `CONFIGURABLE`, or removes them with None. Durable when this returns.

        Neither `updated_at` nor the place in the list changes. Raises TypeError for other names, and ValueError for
        what JSON in UTF-8 cannot hold.
        """
        if unknown := settings.keys() - set(CONFIGURABLE):
            raise TypeError(f"there is no setting {min(unknown)}")
        to_json(settings)
        changed = replace(self.session, **settings)
        self._rewrite(changed)
        self._session = changed

    def delete(self) -> None:
        """Deletes the session and releases it. Durable when this returns. The session need not be readable."""
        self._check_locked()
        self._delete()
        self.release()

    def release(self) -> None:
        """Lets others lock the session. May be called again."""
        if not self._released:
            self._released = True
            self._release()
            self._session = None

    def record(self, first: bytes, lines: TurnLines, on_end: Callable[[bool], None]) -> None:
        """Records the turn for which the session is locked: a first line now, then its lines as they come.

        What is recorded survives the process (see `Storage.journal`), and other processes can follow it (see
        `Storage.turn_feed`), each as far as the store can. Never raises: a turn that cannot be recorded runs all the
        same. A thread of the store's writes, and goes on after the release until the last line is written.

        That thread calls `on_end(True)` when another process asks for the end of the turn, and `on_end(False)` when
        this process has lost the lock.
        """

    def read_elsewhere(self) -> bool:
        """Whether clients of other processes read what is recorded, or one of them wants the turn to run on. Where
        none does, those that come later are told that the turn is being ended. Raises StorageUnavailable."""
        return False

    def drop_journal(self) -> None:
        """Removes what `record` keeps for the case that the process dies, once all of it is stored. Never raises."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @abstractmethod
    def _load(self) -> Session:
        """What is stored, as an object of its own."""

    @abstractmethod
    def _append(self, session: Session, lines: Sequence[bytes], taken: str | None) -> None:
        """Adds all these lines of JSON, `updated_at`, `STATE`. Takes `taken` from the queue, or raises NotQueued."""

    @abstractmethod
    def _rewrite(self, session: Session) -> None:
        """Stores all of `session` again. Its place in the list does not change."""

    @abstractmethod
    def _delete(self) -> None:
        """Removes what is stored."""

    @abstractmethod
    def _release(self) -> None:
        """Unlocks. Is called once."""

    def _update(self, *lines: bytes, taken: str | None = None, **state: Any) -> None:
        """Stores messages, and this state of the last turn."""
        changed = replace(
            self.session, **{"last_error": None, "last_refused": False, **state, "updated_at": timestamp()}
        )
        self._append(changed, lines, taken)
        changed.messages.extend(map(json.loads, lines))
        self._session = changed

    def _check_locked(self) -> None:
        if self._released:
            raise RuntimeError(f"{self.id} was changed after its release")


@dataclass
class _MemorySession:
    """A session in memory. It holds the JSON lines of a file, so that both stores refuse the same and give copies."""

    session: Session
    lines: list[bytes]
    order: int  # when it was last updated, in nanoseconds
    locked: bool = False
    turn: bool = False
    queue: list[QueuedMessage] = field(default_factory=list)


class MemoryStorage(Storage):
    """Sessions in a dict, for as long as the process lives."""

    def __init__(self) -> None:
        self.files: MemoryFiles = MemoryFiles()
        self._sessions: dict[str, _MemorySession] = {}  # most recently updated last
        self._mutex = threading.Lock()

    def for_user(self, name: str) -> Storage:
        return MemoryStorage()

    def check(self) -> None:
        pass

    def queue(self, session_id: str) -> MessageQueue:
        return ListQueue(lambda: self._find(checked_id(session_id)).queue, self._mutex)

    def _create(self, session: Session) -> None:
        lines = [to_json(message) for message in session.messages]
        with self._mutex:
            if session.id in self._sessions:
                raise SessionExists(session.id)
            self._sessions[session.id] = _MemorySession(replace(session, messages=[]), lines, time.time_ns())

    def _read(self, session_id: str) -> Session:
        with self._mutex:
            found = self._find(session_id)
            session, lines = found.session, found.lines.copy()
        return replace(session, messages=json.loads(b"[" + b",".join(lines) + b"]"))

    def contents(self, after: str | None = None) -> Iterator[tuple[str, bytes | None]]:
        for session_id in self.page(None, after)[0]:
            with self._mutex:
                found = self._sessions.get(session_id)
                lines = found.lines.copy() if found else []
            yield session_id, b",".join([to_json(found.session.title if found else None), *lines])

    def _ids(self) -> list[str]:
        with self._mutex:
            return list(reversed(self._sessions))

    def changed_at(self, session_id: str) -> float:
        with self._mutex:
            return self._find(session_id).order / 1e9

    def unchanged_since(self, when: float) -> Iterator[str]:
        with self._mutex:
            sessions = list(self._sessions.items())
        return (id for id, found in sessions if found.order < when * 1e9)

    def _lock(self, session_id: str, turn: bool) -> LockedSession | None:
        with self._mutex:
            found = self._find(session_id)
            if found.locked:
                return None
            found.locked, found.turn = True, turn
            return _LockedMemory(self, found)

    def _running(self, session_id: str) -> bool:
        with self._mutex:
            return self._find(session_id).turn

    def _find(self, session_id: str) -> _MemorySession:
        if session_id not in self._sessions:
            raise SessionNotFound(session_id)
        return self._sessions[session_id]


class _LockedMemory(LockedSession):
    def __init__(self, storage: MemoryStorage, memory: _MemorySession) -> None:
        super().__init__(memory.session.id)
        self._storage = storage
        self._memory = memory

    def _load(self) -> Session:
        return self._storage._read(self.id)

    def _append(self, session: Session, lines: Sequence[bytes], taken: str | None) -> None:
        with self._storage._mutex:
            if taken is not None and not take_out(self._memory.queue, taken):
                raise NotQueued
            self._memory.session = replace(session, messages=[])
            self._memory.order = time.time_ns()
            self._storage._sessions[self.id] = self._storage._sessions.pop(self.id)
            self._memory.lines.extend(lines)

    def _rewrite(self, session: Session) -> None:
        with self._storage._mutex:
            self._memory.session = replace(session, messages=[])

    def _delete(self) -> None:
        with self._storage._mutex:
            del self._storage._sessions[self.id]
            self._storage.files.remove(self.id)

    def _release(self) -> None:
        with self._storage._mutex:
            self._memory.locked = self._memory.turn = False
