"""Sessions in Redis (or Valkey), so that several servers can stand behind one balancer.

What is kept, under keys that begin with `session_server:`

    session:<id>     a hash: times, title and note, and the token of whoever has taken the session
    messages:<id>    a list: each message as JSON
    sessions         a sorted set: the ids, in the order of the list
    lease:<id>       who has taken the session; it expires unless it is renewed
    events:<token>   a stream: what a turn has told, until a minute after its end

Every change is one Lua script, and so atomic. Who takes a session writes a token of his own into its hash, and each
later change compares it: one who was so slow that his lease ran out and another took the session can change nothing
any more, whatever his clock says.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from storage import (
    Elsewhere,
    LinesMissing,
    Session,
    SessionCorrupt,
    SessionLost,
    SessionNotFound,
    Storage,
    StorageUnavailable,
    Summary,
    Taken,
    checked_id,
    from_json,
    session_from,
    summary_of,
    to_json,
)

log = logging.getLogger(__name__)

_PREFIX = "session_server:"
_LEASE = 5000  # milliseconds after which a session is free whose holder says nothing any more
_BRIEF = 2000  # the same, for one who takes it for less than a turn, and does not renew it
_KEEP = 60_000  # milliseconds for which a turn's events are kept after its end
_LOOK = 0.5  # seconds between two looks at the leases of this process, and at who asks for an end
_GATHER = 0.05  # seconds in which events gather that go to Redis together
_PATIENCE = 3.0  # seconds in which a change is tried again, where the connection failed
_LEFT = 2.0  # seconds after its release in which a turn tells its last line, if it ever does
_CONNECTIONS = 32
_MAX_WAITING = 32 << 20  # bytes of events that wait for a Redis that is away

T = TypeVar("T")
_Argument = str | bytes | int

# What all scripts begin with. A session is not there without its hash.
_NAMES = f"""
local session, messages, lease, list = unpack(KEYS)
local events = '{_PREFIX}events:'
local function touch(id)
    local time = redis.call('TIME')
    local now = time[1] * 1000000 + time[2]
    local newest = redis.call('ZRANGE', list, 0, 0, 'WITHSCORES')[2]
    if newest and now <= -newest then now = 1 - newest end
    redis.call('ZADD', list, string.format('%.0f', -now), id)
end
local function top(key)
    local entry = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
    if entry then return tonumber(string.match(entry[1], '%d+')), entry[2][3] end
end
"""

_SCRIPTS = {
    "create": """
local id, now = unpack(ARGV)
redis.call('HSET', session, 'created_at', now, 'updated_at', now)
touch(id)
""",
    "read": """
local first, last = unpack(ARGV)
if redis.call('EXISTS', session) == 0 then return 'missing' end
local fields = redis.call('HMGET', session, 'created_at', 'updated_at', 'title', 'note')
return {fields, redis.call('LRANGE', messages, first, last), redis.call('LLEN', messages)}
""",
    "page": """
local after, limit = unpack(ARGV)
local first = 0
if after ~= '' then
    first = redis.call('ZRANK', list, after)
    if not first then return 'missing' end
    first = first + 1
end
return redis.call('ZRANGE', list, first, limit == '' and -1 or first + limit)
""",
    # Not refused where memory is short, so that sessions can be deleted: for that the first command must need none.
    "take": """
local token, lessee, milliseconds = unpack(ARGV)
if redis.call('EXISTS', session) == 0 then return 'missing' end
local holder = redis.call('GET', lease)
if holder and holder ~= lessee then return 'taken' end
redis.call('HDEL', session, 'asked', 'written')
redis.call('HSET', session, 'token', token)
redis.call('SET', lease, lessee, 'PX', milliseconds)
""",
    "holder": """
if redis.call('EXISTS', session) == 0 then return 'missing' end
local told = redis.pcall('HGET', session, 'told')
if type(told) == 'table' then told = false end
if told and redis.call('EXISTS', events .. told) == 0 then told = false end
return {redis.call('GET', lease), told}
""",
    # Changes are numbered, so that one that comes again, or after the next one, is known. `count` is how many
    # messages there should be: one more is left of a try that was reported as failed.
    "write": """
local token, number, count, updated, title, note, line, id = unpack(ARGV)
if redis.call('HGET', session, 'token') ~= token then return 'lost' end
if tonumber(number) <= tonumber(redis.call('HGET', session, 'written') or 0) then return end
if line ~= '' then
    local found = redis.call('LLEN', messages)
    if found > tonumber(count) then redis.call('LTRIM', messages, -found, count - found - 1) end
    redis.call('RPUSH', messages, line)
end
redis.call('HSET', session, 'written', number, 'updated_at', updated, 'title', title, 'note', note)
if id ~= '' then touch(id) end
""",
    "delete": """
local token, id = unpack(ARGV)
if redis.call('EXISTS', session) == 1 and redis.call('HGET', session, 'token') ~= token then return 'lost' end
redis.call('UNLINK', session, messages)
redis.call('ZREM', list, id)
""",
    "release": """
local token, lessee, count = unpack(ARGV)
if redis.call('GET', lease) == lessee then redis.call('DEL', lease) end
if redis.call('HGET', session, 'token') == token then
    local found = redis.call('LLEN', messages)
    if count ~= '' and found > tonumber(count) then redis.call('LTRIM', messages, -found, count - found - 1) end
    redis.call('HDEL', session, 'token')
end
""",
    "share": f"""
local token, line = unpack(ARGV)
local before = redis.call('HGET', session, 'told')
if redis.call('HGET', session, 'token') ~= token then return 'lost' end
if before == token then return end
redis.call('XADD', events .. token, '1-0', 'lines', line)
redis.call('PEXPIRE', events .. token, {_KEEP})
redis.call('HSET', session, 'told', token)
if before then redis.call('PEXPIRE', events .. before, {_LEASE}) end
""",
    # For each turn of a process: add to its stream what it has told, see whether it still has its session, and
    # renew its lease. An entry's id is the number of its first line, so that one that is sent again is known.
    "publish": f"""
local replies = {{}}
for turn = 0, #ARGV / 5 - 1 do
    local session, lease = KEYS[2 * turn + 1], KEYS[2 * turn + 2]
    local token, held, first, lines, last = unpack(ARGV, 5 * turn + 1, 5 * turn + 5)
    local reply, stream = 'ok', events .. token
    local owner = redis.pcall('HMGET', session, 'token', 'asked')
    if owner.err then owner = {{}} end
    if lines ~= '' then
        local newest, over = top(stream)
        if not newest then
            reply = 'gone'
        elseif over and newest ~= tonumber(first) then
            reply = 'over'
        elseif newest < tonumber(first) then
            local fields = {{'lines', lines}}
            if last == '1' then fields = {{'lines', lines, 'last', '1'}} end
            if redis.pcall('XADD', stream, first .. '-0', unpack(fields)).err then reply = 'again' end
        end
    end
    if redis.call('PTTL', stream) < {_KEEP} * 0.8 or last == '1' then redis.call('PEXPIRE', stream, {_KEEP}) end
    if held == '1' and owner[1] ~= token then
        reply = 'lost'
    elseif held == '1' then
        local left = redis.call('PTTL', lease)
        if left < 0 then
            redis.pcall('SET', lease, 'turn ' .. token, 'PX', {_LEASE})
        elseif left < {_LEASE} * 0.7 then
            redis.call('PEXPIRE', lease, {_LEASE})
        end
        if owner[2] == token and reply == 'ok' then reply = 'asked' end
    end
    replies[turn + 1] = reply
end
return replies
""",
    # Of a turn whose lease has run out nothing is stored any more once somebody has been told so.
    "state": """
local token = unpack(ARGV)
if redis.call('EXISTS', events .. token) == 0 then return 'gone' end
if redis.call('GET', lease) == 'turn ' .. token then return 'held' end
if redis.call('HGET', session, 'token') ~= token then return 'left' end
redis.call('HDEL', session, 'token')
return 'dead'
""",
    "end": f"""
local token, id, lines = unpack(ARGV)
local newest, over = top(events .. token)
if newest and not over then
    redis.call('XADD', events .. token, id .. '-0', 'lines', lines, 'last', '1')
    redis.call('PEXPIRE', events .. token, {_KEEP})
end
""",
    "ask": """
local token = unpack(ARGV)
if redis.call('HGET', session, 'token') == token then redis.call('HSET', session, 'asked', token) end
""",
}
_DURABLE = ("create", "write", "delete")
_ENDED_ELSEWHERE = 10**12  # the number of an entry that another process has added in place of the turn's own


class RedisStorage(Storage):
    """Sessions in the Redis server at a URL (`redis://`, `rediss://` or `unix://`), which other processes may share.

    What is stored is as durable as Redis is configured to make it; a warning in the log says where that is less
    than it can be. Where `min-replicas-to-write` is set, each change waits for as many replicas. Raises
    StorageUnavailable when Redis cannot be reached or used.
    """

    def __init__(self, url: str) -> None:
        options: dict[str, Any] = {
            "socket_connect_timeout": 2,
            "socket_timeout": 2.5,
            "retry": Retry(NoBackoff(), 0),  # that is done here, where it is known what may be done again
            "retry_on_error": [redis.ReadOnlyError],  # nor is that, but the connection is closed: a replica now
            "protocol": 2,
        }
        try:
            pool = redis.BlockingConnectionPool.from_url(url, max_connections=_CONNECTIONS, timeout=2, **options)
            followers = redis.ConnectionPool.from_url(url, **options)
            followers.connection_class(**followers.connection_kwargs)  # which knows what a URL may ask for
        except (ValueError, TypeError):
            raise StorageUnavailable("the URL cannot be understood") from None
        self._redis = redis.Redis(connection_pool=pool)
        self._following = redis.Redis(connection_pool=followers)  # who waits for events, or for nobody
        self._scripts = {name: self._redis.register_script(_NAMES + text) for name, text in _SCRIPTS.items()}
        self._random = secrets.token_hex(8)
        self._replicas = 0
        self._publisher = _Publisher(self)
        self._look_at_configuration()

    def check(self) -> None:
        self._check(logging.ERROR)

    def _check(self, level: int) -> None:
        _calling("write to Redis", lambda: self._redis.set(f"{_PREFIX}check", self._name, px=_KEEP), level=level)

    def page(self, limit: int | None = None, after: str | None = None) -> tuple[list[str], str | None]:
        after_id = "" if after is None else checked_id(after)
        found = self._run("list", "page", "", after_id, "" if limit is None else limit)
        if found == b"missing":
            raise SessionNotFound(after)
        ids = [id.decode() for id in found]
        page = ids[:limit]
        return page, page[-1] if len(page) < len(ids) else None

    def summary(self, session_id: str) -> Summary:
        try:
            session, count = self._find(checked_id(session_id), 0, 0)
        except SessionCorrupt:
            return Summary(session_id)
        if session.title is None and count > 1 and session.messages[0]["role"] != "user":
            return super().summary(session_id)
        return Summary(**{**vars(summary_of(session)), "message_count": count})

    def elsewhere(self, session_id: str) -> Elsewhere | None:
        give_up = time.monotonic() + 1
        while True:
            holder, told = self._holder(checked_id(session_id))
            kind, _, token = holder.partition(" ")
            begins = kind == "turn" and token != told
            if not begins or self._is_ours(token) or time.monotonic() > give_up:
                break
            time.sleep(0.01)
        return None if begins or not told or self._is_ours(told) else _RedisElsewhere(self, session_id, told)

    def flush(self) -> None:
        self._publisher.flush()

    def _create(self, session: Session) -> None:
        self._run("create", "create", session.id, session.id, session.created_at)

    def _read(self, session_id: str) -> Session:
        return self._find(session_id, 0, -1)[0]

    def _ids(self) -> list[str]:
        return self.page()[0]

    def _take(self, session_id: str, turn: bool) -> Taken | None:
        token = self._name + secrets.token_hex(16)
        lessee = f"{'turn' if turn else 'brief'} {token}"
        if self._run("take", "take", session_id, token, lessee, _LEASE if turn else _BRIEF) == b"taken":
            return None
        taken = _RedisTaken(self, session_id, token, lessee)
        if turn:
            try:
                self._publisher.add(taken)
            except RuntimeError as error:  # the system has no more threads to give
                taken.release()
                raise StorageUnavailable(str(error)) from error
        return taken

    def _running(self, session_id: str) -> bool:
        return self._holder(session_id)[0].startswith("turn ")

    def _holder(self, session_id: str) -> tuple[str, str]:
        """Who has taken the session, and the newest turn that has told something; "" for none."""
        holder, told = self._run("look at", "holder", session_id)
        return (holder or b"").decode(), (told or b"").decode()

    @property
    def _name(self) -> str:
        """What the tokens of this process begin with, also of one that was forked off."""
        return f"{self._random}-{os.getpid()}-"

    def _is_ours(self, token: str) -> bool:
        return token.startswith(self._name)

    def _find(self, session_id: str, first: int, last: int) -> tuple[Session, int]:
        """The session with its messages from place `first` to `last`, and how many it has in all."""
        fields, lines, count = self._run("read", "read", session_id, first, last)
        try:
            value = dict(zip(("created_at", "updated_at", "title", "note"), fields, strict=True))
            for name in ("title", "note"):
                value[name] = None if value[name] is None else from_json(value[name])
            for name in ("created_at", "updated_at"):
                value[name] = None if value[name] is None else value[name].decode()
            value |= {"id": session_id, "messages": [from_json(line) for line in lines]}
            return session_from(session_id, value), count
        except (ValueError, RecursionError) as error:
            log.error("%s cannot be understood and is left as it is: %s", session_id, error)
            raise SessionCorrupt(session_id) from error

    def _run(self, verb: str, script: str, session_id: str, *arguments: _Argument, patience: float = 0) -> Any:
        """What the script gives. Any may be run again where the answer was lost, and gives the same then."""
        keys = [f"{_PREFIX}{kind}:{session_id}" for kind in ("session", "messages", "lease")]
        keys.append(f"{_PREFIX}sessions")
        waits = self._replicas and script in _DURABLE
        run = self._run_and_wait if waits else lambda script, *given: self._scripts[script](*given)
        found = _calling(f"{verb} {session_id}".strip(), lambda: run(script, keys, arguments), patience, session_id)
        if found == b"missing" and session_id:
            raise SessionNotFound(session_id)
        return found

    def _run_and_wait(self, script: str, keys: list[str], arguments: tuple[Any, ...]) -> Any:
        pipeline: Any = self._redis.pipeline(transaction=False)
        pipeline.eval(_NAMES + _SCRIPTS[script], len(keys), *keys, *arguments)
        pipeline.execute_command("WAIT", self._replicas, 2000)
        found, replicas = pipeline.execute()
        if replicas < self._replicas:
            raise redis.RedisError(f"{replicas} of {self._replicas} replicas have it")
        return found

    def _look_at_configuration(self) -> None:
        """Warn of what makes Redis less durable than it can be, and see how many replicas must have a change."""
        info: Any = {}
        with contextlib.suppress(_Refused):
            info = _calling("reach Redis", self._redis.info, level=logging.DEBUG)
        if info.get("cluster_enabled"):
            raise StorageUnavailable("a Redis Cluster cannot be used: give one server, with replicas or without")
        self._check(logging.DEBUG)  # whoever starts us is told
        if not info:
            log.warning("Redis does not tell how it is configured: see to appendonly, appendfsync, maxmemory-policy")
            return
        fsync, replicas = self._configured("appendfsync"), self._configured("min-replicas-to-write")
        self._replicas = int(replicas or 0)
        if not info.get("aof_enabled"):
            log.warning("Redis has appendonly no: it loses what was stored since its last snapshot when it ends")
        elif fsync not in ("always", None):
            log.warning("Redis has appendfsync %s: it may lose the last second or more; always loses nothing", fsync)
        if info.get("maxmemory") and info.get("maxmemory_policy") != "noeviction":
            log.warning("Redis has maxmemory-policy %s: it may drop sessions", info.get("maxmemory_policy"))
        if info.get("connected_slaves") and not self._replicas:
            log.warning("Redis has replicas and no min-replicas-to-write: a failover may lose what was stored last")
        if fsync is None:
            log.warning("Redis does not tell its appendfsync and min-replicas-to-write: they could not be checked")

    def _configured(self, name: str) -> str | None:
        try:
            found: Any = _calling("reach Redis", lambda: self._redis.config_get(name), level=logging.DEBUG)
        except _Refused:
            return None
        value: str | None = found.get(name)
        return value


class _RedisTaken(Taken):
    def __init__(self, storage: RedisStorage, session_id: str, token: str, lessee: str) -> None:
        super().__init__(session_id)
        self._storage = storage
        self._lessee = lessee
        self._changes = 0
        self.token = token

    @property
    def released(self) -> bool:
        return self._released

    def share(self, first: bytes, on_end: Callable[[bool], None]) -> Callable[[bytes, bool], None] | None:
        try:
            self._storage._run("tell of", "share", self.id, self.token, first)
        except (StorageUnavailable, SessionCorrupt):
            return None  # which was logged; the turn can be followed from here only
        return self._storage._publisher.share(self, on_end)

    def _load(self) -> Session:
        return self._storage._read(self.id)

    def _append(self, session: Session, line: bytes | None) -> None:
        self._write(session, line or b"", self.id)

    def _rewrite(self, session: Session) -> None:
        self._write(session, b"", "")

    def _write(self, session: Session, line: bytes, touched: str) -> None:
        self._changes += 1
        which = (self.token, self._changes, len(session.messages))
        what = (session.updated_at, to_json(session.title), to_json(session.note), line, touched)
        self._check(self._storage._run("write", "write", self.id, *which, *what, patience=_PATIENCE))

    def _delete(self) -> None:
        self._check(self._storage._run("delete", "delete", self.id, self.token, self.id, patience=_PATIENCE))

    def _release(self) -> None:
        count = "" if self._session is None else len(self._session.messages)
        try:
            self._storage._run("release", "release", self.id, self.token, self._lessee, count)
        except (StorageUnavailable, SessionCorrupt):
            pass  # which was logged; the lease runs out
        self._storage._publisher.released(self)

    def _check(self, found: object) -> None:
        if found == b"lost":
            log.error("%s is no longer ours: another process has taken it, since we said nothing for long", self.id)
            raise SessionLost(f"{self.id} is taken by another process")


class _Told:
    """A turn of this process, and what it has told that is not in Redis yet."""

    def __init__(self, taken: _RedisTaken) -> None:
        self.taken = taken
        self.on_end: Callable[[bool], None] | None = None
        self.waiting: list[bytes] = []
        self.sending: list[bytes] = []  # until Redis has said that it has them
        self.sending_last = False
        self.sent = 1
        self.completed: float | None = None  # when the last line was told
        self.dropped = False  # nobody can follow the turn any more

    @property
    def over(self) -> bool:
        """Whether there is nothing more to do for the turn."""
        if not self.taken.released or self.on_end is None:
            return self.taken.released
        if self.completed is None:
            return False
        return not (self.waiting or self.sending) or self.completed < time.monotonic() - _KEEP / 1000


class _Publisher:
    """Holds the leases of all turns of this process, and tells others what they tell, on one thread and in one round
    trip for all of them. The thread is there as long as there are turns."""

    def __init__(self, storage: RedisStorage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._turns: dict[str, _Told] = {}
        self._thread: threading.Thread | None = None
        self._news = False
        self._bytes = 0  # that wait
        self._failing = False

    def add(self, taken: _RedisTaken) -> None:
        with self._lock:
            self._turns[taken.token] = _Told(taken)
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="redis", daemon=True)
                thread.start()
                self._thread = thread

    def share(self, taken: _RedisTaken, on_end: Callable[[bool], None]) -> Callable[[bytes, bool], None] | None:
        with self._lock:
            turn = self._turns.get(taken.token)
            if turn is None:
                return None
            turn.on_end = on_end

        def tell(line: bytes, last: bool) -> None:
            with self._lock:
                if last:
                    turn.completed = time.monotonic()
                if not turn.dropped:
                    turn.waiting.append(line)
                    self._bytes += len(line)
                    if self._bytes > _MAX_WAITING:
                        self._drop(turn)
                self._say()

        return tell

    def released(self, taken: _RedisTaken) -> None:
        with self._lock:
            turn = self._turns.get(taken.token)
            if turn is not None and turn.over:
                self._say()

    def flush(self) -> None:
        """Wait until all that the ended turns have told is in Redis, but not for a Redis that is away."""
        give_up = time.monotonic() + _PATIENCE
        while time.monotonic() < give_up:
            with self._lock:
                if not any(turn.completed and not turn.over for turn in self._turns.values()):
                    return
            time.sleep(0.01)

    def _say(self) -> None:
        if not self._news:
            self._news = True
            self._wake.notify()

    def _drop(self, turn: _Told) -> None:
        """Tell nothing more of the turn. Who follows it sees that when it ends, and is told what was stored."""
        turn.dropped = True
        self._bytes -= sum(map(len, turn.waiting)) + sum(map(len, turn.sending))
        turn.waiting, turn.sending = [], []

    def _work(self) -> None:
        last = looked = 0.0
        while True:
            with self._lock:
                for turn in [turn for turn in self._turns.values() if turn.over]:
                    self._drop(turn)
                    del self._turns[turn.taken.token]
                if not self._turns:
                    self._thread = None
                    return
                now = time.monotonic()
                due = last + _GATHER if self._news else looked + _LOOK
                if now < due:
                    self._wake.wait(due - now)
                    continue
                self._news = False
                last, look = now, now >= looked + _LOOK
                turns = [turn for turn in self._turns.values() if look or turn.waiting or turn.sending]
                for turn in turns:
                    if not turn.sending:
                        turn.sending, turn.waiting = turn.waiting, []
                        turn.sending_last = turn.completed is not None
            if look:
                looked = now
            if turns:
                self._publish(turns)

    def _publish(self, turns: list[_Told]) -> None:
        keys: list[str] = []
        arguments: list[_Argument] = []
        for turn in turns:
            keys += [f"{_PREFIX}session:{turn.taken.id}", f"{_PREFIX}lease:{turn.taken.id}"]
            lines = b"\n".join(turn.sending)
            held = int(not turn.taken.released)
            arguments += [turn.taken.token, held, turn.sent + 1, lines, int(turn.sending_last)]
        try:
            script = self._storage._scripts["publish"]
            level = logging.DEBUG if self._failing else logging.ERROR  # once, and not twice a second
            call = functools.partial(script, keys, arguments, self._storage._following)
            replies = _calling("renew the leases of running turns", call, level=level)
        except StorageUnavailable:
            self._failing = True
            time.sleep(_LOOK)
            return
        self._failing = False
        ends = []
        with self._lock:
            for turn, reply in zip(turns, replies, strict=True):
                if reply in (b"over", b"gone"):
                    self._drop(turn)
                elif reply != b"again":
                    turn.sent += len(turn.sending)
                    self._bytes -= sum(map(len, turn.sending))
                    turn.sending = []
                if reply in (b"lost", b"asked", b"over") and turn.on_end and not turn.taken.released:
                    ends.append((turn.on_end, reply == b"asked"))
        for on_end, asked in ends:
            try:
                on_end(asked)
            except Exception:
                log.exception("a turn could not be ended")


class _RedisElsewhere(Elsewhere):
    def __init__(self, storage: RedisStorage, session_id: str, token: str) -> None:
        self.id = token
        self._storage = storage
        self._session_id = session_id
        self._stream = f"{_PREFIX}events:{token}"
        self._entry = "0-0"
        self._count = 0
        self._left: float | None = None

    def read(self, seconds: float) -> list[bytes]:
        wait = max(1, int(min(seconds, 1.0) * 1000))
        client = self._storage._following
        streams: dict[Any, Any] = {self._stream: self._entry}
        found: Any = _calling("follow a turn", lambda: client.xread(streams, count=256, block=wait))
        lines: list[bytes] = []
        for _, entries in found or []:
            for id, fields in entries:
                number = int(id.partition(b"-")[0])
                if number not in (self._count + 1, _ENDED_ELSEWHERE):
                    raise LinesMissing(f"events of {self._session_id} are missing")
                self._entry = id.decode()
                new = fields[b"lines"].split(b"\n")
                self._count += len(new)
                lines += new
        return lines

    def interrupted(self) -> bool:
        state = self._run("look at", "state")
        if state == b"gone":
            raise LinesMissing(f"events of {self._session_id} are gone")
        if state != b"left":
            self._left = None
            return bool(state == b"dead")
        self._left = self._left or time.monotonic()
        return time.monotonic() > self._left + _LEFT

    def end(self, lines: list[bytes]) -> None:
        self._run("end", "end", _ENDED_ELSEWHERE, b"\n".join(lines))

    def ask_to_end(self) -> None:
        self._run("ask for the end of", "ask")

    def _run(self, verb: str, script: str, *arguments: bytes | int) -> Any:
        return self._storage._run(verb, script, self._session_id, self.id, *arguments)


class _Refused(StorageUnavailable):
    """Redis does not let us do that, or cannot."""


def _calling(
    what: str, call: Callable[[], T], patience: float = 0, session_id: str = "", *, level: int = logging.ERROR
) -> T:
    """What the call gives. A lost connection is tried again: at once, since Redis may have been restarted, and with
    patience for some seconds. Redis' errors become StorageUnavailable, and SessionCorrupt where the session's keys
    hold something else than we put there."""
    give_up, tries = time.monotonic() + patience, 0
    while True:
        try:
            return call()
        except (redis.RedisError, OSError) as error:
            tries += 1
            lost = isinstance(error, redis.ConnectionError | OSError) and tries == 1
            if lost or (isinstance(error, redis.ConnectionError | redis.TimeoutError) and time.monotonic() < give_up):
                time.sleep(0.02 if lost else 0.1)
                continue
            words = re.sub(r"\s+", " ", str(error).partition(", with args")[0])[:200].rstrip(".")
            if "WRONGTYPE" in words and session_id:
                log.error("%s cannot be understood and is left as it is: %s", session_id, words)
                raise SessionCorrupt(session_id) from error
            log.log(level, "cannot %s: %s", what, words)
            kind = _Refused if isinstance(error, redis.ResponseError) else StorageUnavailable
            raise kind(f"cannot {what}: {words}") from error
