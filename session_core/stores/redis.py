"""Sessions in Redis (or Valkey), so that several servers can stand behind one balancer."""

import contextlib
import copy
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from session_core.data.message_queue import MessageQueue, NotQueued
from session_core.data.session import session_from
from session_core.data.strict_json import from_json, to_json
from session_core.stores.background_writer import BackgroundWriter
from session_core.stores.redis_connection import RETRY_SECONDS, Argument, RedisConnection, RedisKeys
from session_core.stores.redis_feed import Lease, Publisher, RedisTurnFeed, published_lines
from session_core.stores.redis_files import RedisFiles
from session_core.stores.redis_queue import RedisQueue
from session_core.stores.redis_scripts import LEASE_MILLISECONDS, SHORT_LEASE_MILLISECONDS
from storage import (
    CONFIGURABLE,
    STATE,
    LockedSession,
    LockLost,
    Session,
    SessionCorrupt,
    SessionNotFound,
    Storage,
    StorageUnavailable,
    Summary,
    TurnFeed,
    TurnLines,
    checked_id,
    summarize,
)

log = logging.getLogger(__name__)

_JSON_FIELDS = (*CONFIGURABLE, *STATE, "note", "continuation", "replaced")  # of a session's hash, in all versions
_LISTED_AT_ONCE = 500
_READ_AT_ONCE = 50  # sessions, for which Redis lets nobody else wait longer than for a turn
_BATCH_BYTES = 1 << 20  # after which no further one of these is read
_FLUSH_SECONDS = 0.05  # in which events gather that go to Redis together
_FIRST_LINE_SECONDS = 1.0  # how long to wait for the first line of a turn that another process starts


class RedisStorage(Storage):
    """Sessions in the Redis server at a URL (`redis://`, `rediss://` or `unix://`), which other processes may share.

    What is stored is as durable as Redis is configured to make it. Raises StorageUnavailable when Redis cannot be
    reached or used.
    """

    def __init__(self, url: str) -> None:
        self._connection = RedisConnection(url)
        self._publisher = Publisher(self._connection)
        self._writer = BackgroundWriter(_FLUSH_SECONDS)
        self._keys = RedisKeys(self._connection, "session_server:")
        self.files = RedisFiles(self._keys)
        self._random = secrets.token_hex(8)

    def for_user(self, name: str) -> Storage:
        store = copy.copy(self)
        store._keys = RedisKeys(self._connection, f"session_server@{name}:")
        store.files = RedisFiles(store._keys)
        return store

    def check(self) -> None:
        self._connection.check()

    def page(self, limit: int | None = None, after: str | None = None) -> tuple[list[str], str | None]:
        after_id = "" if after is None else checked_id(after)
        found = self._keys.run("list", "page", "", after_id, "" if limit is None else limit)
        if found == b"missing":
            raise SessionNotFound(after)
        ids = [id.decode() for id in found]
        page = ids[:limit]
        return page, page[-1] if len(page) < len(ids) else None

    def contents(self, after: str | None = None) -> Iterator[tuple[str, bytes | None]]:
        ids, first = self.page(None, after)[0], 0
        while batch := ids[first : first + _READ_AT_ONCE]:
            found = self._keys.run("search", "contents", "", _BATCH_BYTES, *batch)
            yield from zip(batch, found, strict=False)
            first += len(found)

    def summary(self, session_id: str) -> Summary:
        try:
            session, count = self._find(checked_id(session_id), 0, 0)
        except SessionCorrupt:
            return Summary(session_id)
        replaced = session.extra.get("replaced") or session.responses
        if replaced or (session.title is None and count > 1 and session.messages[0]["role"] != "user"):
            return super().summary(session_id)
        return Summary(**{**vars(summarize(session)), "message_count": count})

    def turn_feed(self, session_id: str) -> TurnFeed | None:
        give_up = time.monotonic() + _FIRST_LINE_SECONDS
        while True:
            holder, published = self._holder(checked_id(session_id))
            kind, _, fence = holder.partition(" ")
            starting = kind == "turn" and fence != published
            if not starting or self._is_ours(fence) or time.monotonic() > give_up:
                break
            time.sleep(0.01)
        if starting or not published or self._is_ours(published):
            return None
        return RedisTurnFeed(self._keys, session_id, published)

    def clock(self) -> float:
        seconds, microseconds = self._connection.time()
        return seconds + microseconds / 1e6

    def changed_at(self, session_id: str) -> float:
        found = self._keys.run("look at", "score", checked_id(session_id), session_id)
        return -float(found) / 1e6 if found else self.clock()

    def changed_since(self, when: float) -> Iterator[str]:
        yield from (id.decode() for id in self._keys.run("list", "newer", "", int(when * 1_000_000)))

    def unchanged_since(self, when: float) -> Iterator[str]:
        kept = 0  # of those that were given, which the caller has not deleted
        while found := self._keys.run("list", "older", "", int(when * 1_000_000), kept, _LISTED_AT_ONCE):
            for id in found:
                yield id.decode()
                with contextlib.suppress(SessionNotFound):
                    self._holder(id.decode())
                    kept += 1

    def journal(self, session_id: str) -> list[bytes]:
        _, published = self._holder(checked_id(session_id))
        return published_lines(self._keys, session_id, published) if published else []

    def flush(self) -> None:
        self._writer.flush(RETRY_SECONDS)

    def queue(self, session_id: str) -> MessageQueue:
        return RedisQueue(self._keys, checked_id(session_id))

    def with_queue(self) -> Iterator[str]:
        yield from (id.decode() for id in self._keys.run("list", "queues", ""))

    def _create(self, session: Session) -> None:
        fields = [part for pair in _fields(session).items() for part in pair] + ["created_at", session.created_at]
        lines = [to_json(message) for message in session.messages]
        # One that exists was made by a try whose reply was lost, or by another caller of `ensure`.
        self._keys.run("create", "create", session.id, session.id, len(fields), *fields, *lines)

    def _read(self, session_id: str) -> Session:
        return self._find(session_id, 0, -1)[0]

    def _ids(self) -> list[str]:
        return self.page()[0]

    def _lock(self, session_id: str, turn: bool) -> LockedSession | None:
        fence = self._fence_prefix + secrets.token_hex(16)
        holder = f"{'turn' if turn else 'short'} {fence}"
        milliseconds = LEASE_MILLISECONDS if turn else SHORT_LEASE_MILLISECONDS
        if self._keys.run("lock", "lock", session_id, fence, holder, milliseconds) == b"locked":
            return None
        locked = _LockedRedis(self, Lease(session_id, self._keys, fence, holder))
        if turn:
            try:
                self._publisher.add(locked.lease)
                self._writer.add(self._publisher)
            except RuntimeError as error:  # the system gives no more threads
                locked.release()
                raise StorageUnavailable(str(error)) from error
        return locked

    def _running(self, session_id: str) -> bool:
        return self._holder(session_id)[0].startswith("turn ")

    def _holder(self, session_id: str) -> tuple[str, str]:
        """Who has locked the session, and the fence of the newest published turn. Empty strings for none."""
        holder, published = self._keys.run("look at", "holder", session_id)
        return (holder or b"").decode(), (published or b"").decode()

    @property
    def _fence_prefix(self) -> str:
        """What the fences of this process begin with. A forked process has another one."""
        return f"{self._random}-{os.getpid()}-"

    def _is_ours(self, fence: str) -> bool:
        return fence.startswith(self._fence_prefix)

    def _find(self, session_id: str, first: int, last: int) -> tuple[Session, int]:
        """The session with its messages from index `first` to `last`, and how many it has in all."""
        names = ("created_at", "updated_at", *_JSON_FIELDS)
        fields, lines, count = self._keys.run("read", "read", session_id, first, last, *names)
        try:
            value: dict[str, Any] = {
                name: from_json(field) if name in _JSON_FIELDS else field.decode()
                for name, field in zip(names, fields, strict=True)
                if field is not None
            }
            value |= {"id": session_id, "messages": from_json(b"[" + b",".join(lines) + b"]")}
            if len(value["messages"]) != len(lines):
                raise ValueError("one of its lines is not one message")
            return session_from(session_id, value), count
        except (ValueError, RecursionError) as error:
            log.error("%s cannot be understood and is left as it is: %s", session_id, error)
            raise SessionCorrupt(session_id) from error


def _fields(session: Session) -> dict[str, str]:
    """The fields of a session's hash."""
    values = {name: to_json(getattr(session, name)).decode() for name in (*CONFIGURABLE, *STATE)}
    return {"updated_at": session.updated_at, **values}


class _LockedRedis(LockedSession):
    def __init__(self, storage: RedisStorage, lease: Lease) -> None:
        super().__init__(lease.session_id)
        self.lease = lease
        self._storage = storage
        self._changes = 0

    def record(self, first: bytes, lines: TurnLines, on_end: Callable[[bool], None]) -> None:
        with contextlib.suppress(StorageUnavailable, SessionCorrupt):  # which was logged; nobody can follow it then
            self._storage._keys.run("publish the turn of", "publish_first", self.id, self.lease.fence, first)
            self.lease.on_end, self.lease.lines = on_end, lines  # in this order: what has lines is published

    def read_elsewhere(self) -> bool:
        return bool(self._storage._keys.run("look for readers of", "readers", self.id, self.lease.fence))

    def _load(self) -> Session:
        return self._storage._read(self.id)

    def _append(self, session: Session, lines: Sequence[bytes], taken: str | None) -> None:
        self._write(session, b"\n".join(lines), self.id, taken or "")

    def _rewrite(self, session: Session) -> None:
        self._write(session, b"", "", "")

    def _write(self, session: Session, lines: bytes, touched: str, taken: str) -> None:
        self._changes += 1
        fields = _fields(session)
        if touched:  # a summary is long, and does not change with a message
            del fields["compacted"]
        if any(name in lines for name in (b'"replaces"', b'"after"', b'"history"')):
            fields["replaced"] = "true"  # so that the summary counts what is in the conversation
        pairs = [part for pair in fields.items() for part in pair]
        self._change("write", self._changes, len(session.messages), lines, touched, taken, *pairs)

    def _delete(self) -> None:
        self._change("delete", self.id)

    def _release(self) -> None:
        count = "" if self._session is None else len(self._session.messages)
        self.lease.released = True
        with contextlib.suppress(StorageUnavailable, SessionCorrupt):  # which was logged; the lease runs out
            self._storage._keys.run("release", "release", self.id, self.lease.fence, self.lease.holder, count)

    def _change(self, script: str, *arguments: Argument) -> None:
        found = self._storage._keys.run(
            script, script, self.id, self.lease.fence, *arguments, retry_seconds=RETRY_SECONDS
        )
        if found == b"taken":
            raise NotQueued
        if found in (b"lost", b"vanished"):
            why = "another process has locked it since" if found == b"lost" else "Redis has it no more"
            log.error("the lock of %s is lost: %s", self.id, why)
            raise LockLost(f"{self.id}: {why}")
