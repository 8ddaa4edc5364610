"""A real Redis server of a test's own, on a free port, in a directory of its own.

    with RedisServer(tmp_path) as redis:
        storage = RedisStorage(redis.url)
        redis.kill()                      # and later redis.start(): the same data, as far as it was durable
        redis.pause(), redis.go_on()      # SIGSTOP, SIGCONT

`NEEDED` skips what needs one where it is not installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import select
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.server import TIMEOUT, wait_until

BINARY = shutil.which("redis-server")
NEEDED = pytest.mark.skipif(
    BINARY is None or importlib.util.find_spec("redis") is None,
    reason="needs the Debian package redis-server, and the redis client",
)


class RedisServer:
    """Durable as the README asks for, unless `options` say something else."""

    def __init__(self, directory: Path, **options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.log = directory / f"redis-{self.port}.log"
        self._directory = directory / f"redis-{self.port}"
        self._directory.mkdir()
        durable = {"appendonly": "yes", "appendfsync": "always", "save": ""}
        self._options = {**durable, "repl-diskless-sync-delay": "0", **options}
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        command = [str(BINARY), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        for name, value in self._options.items():
            command += [f"--{name.replace('_', '-')}", value]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(lambda: self._answers() or self._ended())
        assert not self._ended(), self.log.read_text()

    def kill(self) -> None:
        """Pull the plug."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(TIMEOUT)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def call(self, *command: str | int) -> Any:
        """What Redis answers to a command."""
        import redis

        with contextlib.closing(redis.Redis(port=self.port, decode_responses=True)) as client:
            return client.execute_command(*command)

    def setting(self, name: str) -> str:
        """How Redis is configured."""
        import redis

        with contextlib.closing(redis.Redis(port=self.port, decode_responses=True)) as client:
            found: Any = client.config_get(name)
            return str(found[name])

    def calls(self) -> int:
        """How many commands clients have sent so far, but for this question; those inside of scripts not counted."""
        found = self.call("INFO", "commandstats")
        return sum(
            int(found[f"cmdstat_{name}"]["calls"])
            for name in ("evalsha", "eval", "set", "xread", "script|load")
            if f"cmdstat_{name}" in found
        )

    def close(self) -> None:
        if not self._ended():
            self._signal(signal.SIGCONT)
            self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answers(self) -> bool:
        import redis

        try:
            return self.call("PING") in (True, "PONG")
        except redis.RedisError:
            return False

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


class Proxy:
    """Stands between a client and Redis. `lose_reply()` has the next command reach Redis and its reply get lost, with
    the connection; `hold_back()` has the connection lost and the command reach Redis at `deliver()` only; `cut` keeps
    everybody out while it is set. `port` is that of Redis, for connections to come."""

    def __init__(self, port: int) -> None:
        self.cut = threading.Event()
        self.lost = threading.Event()
        self._lose = threading.Event()
        self._hold = threading.Event()
        self._held = b""
        self.port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def lose_reply(self) -> None:
        self._lose.set()

    def hold_back(self) -> None:
        self._hold.set()

    def deliver(self) -> None:
        assert self._held
        with socket.create_connection(("127.0.0.1", self.port)) as redis:
            redis.sendall(self._held)
            redis.recv(1 << 16)

    def close(self) -> None:
        self.cut.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._pass_on, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.port)) as redis:
            while not self.cut.is_set():
                for source in select.select([client, redis], [], [], 0.05)[0]:
                    data = source.recv(1 << 16)
                    if source is client and self._hold.is_set() and b"EVALSHA" in data:
                        self._hold.clear()
                        self._held = data
                        return
                    if source is client and self._lose.is_set() and b"EVALSHA" in data:
                        self._lose.clear()
                        redis.sendall(data)
                        redis.recv(1 << 16)
                        self.lost.set()
                        return
                    if not data or self.cut.is_set():
                        return
                    (redis if source is client else client).sendall(data)
