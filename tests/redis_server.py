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
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any, Self

import pytest
from conftest import PATIENCE, until

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
        self._options = {"appendonly": "yes", "appendfsync": "always", "save": "", **options}
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        command = [str(BINARY), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        for name, value in self._options.items():
            command += [f"--{name.replace('_', '-')}", value]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until(lambda: self._answers() or self._ended())
        assert not self._ended(), self.log.read_text()

    def kill(self) -> None:
        """Pull the plug."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def call(self, *command: str | int) -> Any:
        """What Redis answers to a command."""
        import redis

        with contextlib.closing(redis.Redis(port=self.port, decode_responses=True)) as client:
            return client.execute_command(*command)

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
