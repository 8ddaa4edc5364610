"""A running server process, and readers of what it answers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support.forked import ForkedServer

ROOT = Path(__file__).parent.parent.parent
TIMEOUT = 30.0  # seconds; how long a test waits for what must happen at all
SERVER = (sys.executable, str(ROOT / "session_server.py"))


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a server process: ours without what would set the server up, and then `more`."""
    ours = ("OPENAI_", "OTEL_", "SESSION_SERVER_")
    return {**{name: value for name, value in os.environ.items() if not name.startswith(ours)}, **(more or {})}


def wait_until(holds: Callable[[], object], seconds: float = TIMEOUT) -> None:
    """Look again and again until it holds: only for what no event tells of. AssertionError if it never does."""
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up, "it did not come true in time"
        time.sleep(0.02)


class Reply:
    """An HTTP answer of the server: `status`, `headers`, and the body whole (`text`, `json`) or as it comes."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self._response = connection.getresponse()
        self.status = self._response.status
        self.headers = self._response.headers
        self._body: bytes | None = None
        if self.headers.get_content_type() != "text/event-stream":
            self._read()

    @property
    def text(self) -> str:
        return self._read().decode()

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    def lines(self) -> Iterator[str]:
        """The lines of a stream as they come, until its end."""
        for line in self._response:
            yield line.decode().rstrip("\n")
        self.close()

    def events(self) -> Iterator[dict[str, Any]]:
        """The events of a stream as they come, until its end; comments and ids are passed over."""
        for line in self.lines():
            if line.startswith("data: "):
                yield json.loads(line[6:])

    def close(self) -> None:
        self._response.close()
        self._connection.close()

    def _read(self) -> bytes:
        if self._body is None:
            try:
                self._body = self._response.read()
            finally:
                self.close()
        return self._body


class ServerClient:
    """Calls the server on this port."""

    def __init__(self, port: int) -> None:
        self.port = port

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        timeout: float = TIMEOUT,
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {} if body is None else {"Content-Type": "application/json"}
        try:
            connection.request(method, path, data, {**sent, **(headers or {})})
            return Reply(connection)
        except BaseException:
            connection.close()
            raise

    def create(self) -> str:
        reply = self.request("POST", "/sessions")
        assert reply.status == 201
        session_id: str = reply.json["id"]
        return session_id

    def say(self, session_id: str, text: str, **headers: str) -> Reply:
        """Start a turn and give its stream. `Idempotency_Key="k"` sets that header."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("POST", f"/sessions/{session_id}/run_stream", {"message": text}, sent)

    def messages(self, session_id: str) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self.request("GET", f"/sessions/{session_id}").json["messages"]
        return messages


class Server(ServerClient):
    """A server process, on a free port if none is given.

    With `fresh`, a command or a directory, it is started as its users start it, else forked (see `ForkedServer`).
    """

    def __init__(
        self,
        *flags: str,
        env: dict[str, str] | None = None,
        log: Path,
        command: Sequence[str] = SERVER,
        cwd: Path | None = None,
        port: int = 0,
        fresh: bool = False,
    ) -> None:
        self.log = log
        self.process: subprocess.Popen[str] | ForkedServer
        interpreted = any(name.startswith(("PYTHON", "LD_")) for name in env or ())
        if fresh or interpreted or cwd is not None or command != SERVER:
            with log.open("ab") as stderr:
                self.process = subprocess.Popen(
                    [*command, f"-port={port}", *flags],
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env=environment(env),
                    cwd=cwd,
                    text=True,
                )
        else:
            self.process = ForkedServer([f"-port={port}", *flags], environment(env), log)
        self.banner = ""
        assert self.process.stdout is not None
        watchdog = threading.Timer(2 * TIMEOUT, self.process.kill)
        watchdog.start()
        for line in self.process.stdout:
            self.banner += line
            if line.startswith("try:"):
                break
        watchdog.cancel()
        watchdog.join()
        assert "listens on" in self.banner, f"the server did not start: {self.banner}{log.read_text()}"
        self.url = self.banner.split()[3]
        super().__init__(urlsplit(self.url).port or 0)

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(TIMEOUT)

    def kill(self) -> None:
        """Pull the plug."""
        self.process.send_signal(signal.SIGKILL)
        self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(TIMEOUT)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def events_of(data: bytes | str) -> list[dict[str, Any]]:
    """The events in the whole body of a stream."""
    text = data.decode() if isinstance(data, bytes) else data
    return [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]
