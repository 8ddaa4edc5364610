"""The connection to Redis: its clients, its scripts, its errors, its configuration, and the keys of each user."""

import contextlib
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from session_core.stores.redis_scripts import DURABLE, KEEP_MILLISECONDS, SCRIPTS
from storage import SessionCorrupt, SessionNotFound, StorageUnavailable

log = logging.getLogger(__name__)

RETRY_SECONDS = 3.0  # for which a change is tried again where the connection failed

_CHECK_KEY = "session_server:check"
_CONNECTIONS = 32
_REPLICA_MILLISECONDS = 2000  # for which a change waits for replicas

T = TypeVar("T")
Argument = str | bytes | int


class RedisConnection:
    """The clients and the scripts for one URL, for all users. Safe for any number of threads.

    `client` is for requests that are answered at once, from a bounded pool. `waiting_client` is for reads that wait
    for events, and for the thread that publishes.

    Raises StorageUnavailable when Redis cannot be reached or used. Logs a warning where Redis is configured to lose
    what it has acknowledged. Where `min-replicas-to-write` is set, each change waits for as many replicas.
    """

    def __init__(self, url: str) -> None:
        options: dict[str, Any] = {
            "socket_connect_timeout": 2,
            "socket_timeout": 2.5,
            "retry": Retry(NoBackoff(), 0),  # `call` retries, and knows what may be done twice
            "retry_on_error": [redis.ReadOnlyError],  # not to retry, but to close the connection to what is a replica
            "protocol": 2,
        }
        try:
            pool = redis.BlockingConnectionPool.from_url(url, max_connections=_CONNECTIONS, timeout=2, **options)
            waiting = redis.ConnectionPool.from_url(url, **options)
            waiting.connection_class(**waiting.connection_kwargs)  # checks the options in the URL
        except (ValueError, TypeError):
            raise StorageUnavailable("the URL cannot be understood") from None
        self.client = redis.Redis(connection_pool=pool)
        self.waiting_client = redis.Redis(connection_pool=waiting)
        self._scripts = {name: self.client.register_script(text) for name, text in SCRIPTS.items()}
        self._replicas = 0
        self._check_configuration()

    def check(self, level: int = logging.ERROR) -> None:
        """Raises StorageUnavailable if Redis cannot be written now."""
        call("write to Redis", lambda: self.client.set(_CHECK_KEY, b"", px=KEEP_MILLISECONDS), level=level)

    def time(self) -> tuple[int, int]:
        """Redis' time, in seconds since 1970 and microseconds. Raises StorageUnavailable."""
        seconds, microseconds = call("ask Redis for the time", lambda: self.client.time())
        return int(seconds), int(microseconds)

    def run(self, script: str, keys: list[str], arguments: Sequence[Argument], client: Any = None) -> Any:
        """The result of a script on these keys. Each script may run twice, and returns the same result then.

        Raises the errors of the redis library.
        """
        if self._replicas and script in DURABLE:
            return self._run_and_wait(script, keys, arguments)
        return self._scripts[script](keys, arguments, client)

    def _run_and_wait(self, script: str, keys: list[str], arguments: Sequence[Argument]) -> Any:
        pipeline: Any = self.client.pipeline(transaction=False)
        pipeline.evalsha(self._scripts[script].sha, len(keys), *keys, *arguments)
        pipeline.execute_command("WAIT", self._replicas, _REPLICA_MILLISECONDS)
        found, replicas = pipeline.execute(raise_on_error=False)  # whose own errors quote the command
        if isinstance(found, redis.exceptions.NoScriptError):
            self.client.script_load(SCRIPTS[script])
            return self._run_and_wait(script, keys, arguments)
        for error in (found, replicas):
            if isinstance(error, Exception):
                raise error
        if replicas < self._replicas:
            raise redis.RedisError(f"{replicas} of {self._replicas} replicas have it")
        return found

    def _check_configuration(self) -> None:
        """Warns of what makes Redis less durable than it can be, and reads how many replicas must have a change."""
        info = _told(self.client.info)
        if info.get("cluster_enabled"):
            raise StorageUnavailable("a Redis Cluster cannot be used: give one server, with replicas or without")
        self.check(logging.DEBUG)  # the error is shown at the start
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

    def _configured(self, name: str) -> Any:
        """The text of a setting. None where Redis does not tell it."""
        return _told(lambda: self.client.config_get(name)).get(name)


@dataclass(frozen=True)
class RedisKeys:
    """The keys of one user's sessions, which begin with this prefix, and scripts that run on them."""

    connection: RedisConnection
    prefix: str

    def session(self, session_id: str) -> str:
        """A session, but for its messages."""
        return f"{self.prefix}session:{session_id}"

    def lease(self, session_id: str) -> str:
        """Who has locked a session."""
        return f"{self.prefix}lease:{session_id}"

    def events(self, fence: str) -> str:
        """What a turn has published."""
        return f"{self.prefix}events:{fence}"

    def run(
        self,
        verb: str,
        script: str,
        session_id: str,
        *arguments: Argument,
        retry_seconds: float = 0,
    ) -> Any:
        """The result of a script on a session. Raises SessionNotFound, SessionCorrupt, StorageUnavailable."""
        keys = [
            self.session(session_id),
            f"{self.prefix}messages:{session_id}",
            self.lease(session_id),
            f"{self.prefix}sessions",
        ]
        what = f"{verb} {session_id}".strip()
        found = call(what, lambda: self.connection.run(script, keys, arguments), retry_seconds, session_id)
        if found == b"missing" and session_id:
            raise SessionNotFound(session_id)
        return found


class _Refused(StorageUnavailable):
    """Redis refuses a command."""


def _told(command: Callable[[], Any]) -> Any:
    """What Redis tells of itself. Nothing where it refuses that."""
    with contextlib.suppress(_Refused):
        return call("reach Redis", command, level=logging.DEBUG)
    return {}


def call(
    what: str, command: Callable[[], T], retry_seconds: float = 0, session_id: str = "", *, level: int = logging.ERROR
) -> T:
    """The result of a command. Logs the errors of the redis library and raises StorageUnavailable for them.

    A lost connection is tried again at once, since Redis may have been restarted, and for `retry_seconds` more.
    Raises SessionCorrupt where the session's keys hold something else than this program stores there.
    """
    give_up, tries = time.monotonic() + retry_seconds, 0
    while True:
        try:
            return command()
        except (redis.RedisError, OSError) as error:
            tries += 1
            lost = isinstance(error, redis.ConnectionError | OSError) and tries == 1
            if lost or (isinstance(error, redis.ConnectionError | redis.TimeoutError) and time.monotonic() < give_up):
                time.sleep(0.02 if lost else 0.1)
                continue
            words = re.sub(r"\s+", " ", re.split(", with args|[.] script: ", str(error))[0])[:200].rstrip(".")
            if "WRONGTYPE" in words and session_id:
                log.error("%s cannot be understood and is left as it is: %s", session_id, words)
                raise SessionCorrupt(session_id) from error
            log.log(level, "cannot %s: %s", what, words)
            kind = _Refused if isinstance(error, redis.ResponseError) else StorageUnavailable
            raise kind(f"cannot {what}: {words}") from error
