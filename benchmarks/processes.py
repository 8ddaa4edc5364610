"""The processes that are measured: started, looked at from outside, and ended."""

import contextlib
import functools
import http.client
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

CHECKOUT = Path(__file__).resolve().parent.parent
_START_SECONDS = 60.0
_REQUEST_SECONDS = 120.0
_END_SECONDS = 5.0
_LISTENS = re.compile(r"listens on http://127\.0\.0\.1:(\d+)\s")
_NOT_OURS = ("SESSION_SERVER_", "OPENAI_")  # settings in the environment, which would be measured too


def allow_many_files() -> int:
    """Raise the limit of open files as far as it goes, and give it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def status(pid: int, name: str) -> float:
    """One of the sizes in /proc/<pid>/status, in megabytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


class Measured:
    """A server process that takes turns, and what the kernel says of it."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path, began: float) -> None:
        self.name = name
        self.process = process
        self.began = began  # on time.monotonic, just before the process was started
        self._log = log

    @functools.cached_property
    def port(self) -> int:
        """Where it listens; waits until it says so."""
        while time.monotonic() < self.began + _START_SECONDS and self.process.poll() is None:
            if found := _LISTENS.search(self._log.read_text(errors="replace")):
                return int(found[1])
            time.sleep(0.001)
        raise RuntimeError(f"{self.name} does not listen; it says: {self._log.read_text(errors='replace')[-2000:]}")

    def wait(self) -> None:
        """Wait until it listens."""
        _ = self.port

    def turns(self, count: int, text: str) -> list[bytes]:
        """The requests that begin so many turns, each in a new session."""
        raise NotImplementedError

    def cpu(self) -> float:
        """The seconds of processor time that the process has taken, in user and kernel mode."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """The megabytes that are resident now."""
        return status(self.process.pid, "VmRSS")

    def most_memory(self) -> float:
        """The megabytes that were resident at most."""
        return status(self.process.pid, "VmHWM")

    def written(self) -> int:
        """The bytes that the process has given to `write` and its like, on files and pipes."""
        lines = Path(f"/proc/{self.process.pid}/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))


class StandIn(Measured):
    """The model server. A turn is a request straight to it, as a server would send it."""

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def turns(self, count: int, text: str) -> list[bytes]:
        return [self.completion([{"role": "user", "content": text}])] * count

    def completion(self, messages: Sequence[Any]) -> bytes:
        """The request for an answer to these messages."""
        return post("/v1/chat/completions", {"model": "m", "stream": True, "messages": messages})


class Server(Measured):
    """A server of sessions: this one, or one that it is compared with."""

    token = ""  # of the user who asks, where it wants one

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    @functools.cached_property
    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=_REQUEST_SECONDS)

    def turns(self, count: int, text: str) -> list[bytes]:
        return [self.turn(self.create(), text) for _ in range(count)]

    def turn(self, session_id: str, text: str) -> bytes:
        """The request that begins a turn in this session."""
        return post(f"/sessions/{session_id}/run_stream", {"message": text}, self._headers)

    def create(self, messages: Sequence[Any] | None = None) -> str:
        """A new session; with `messages` in it, at the servers that are compared with this one."""
        status, body = self.request("POST", "/sessions", {} if messages is None else {"messages": messages})
        if status not in (200, 201):
            raise RuntimeError(f"{self.name} made no session: {status} {body[:200]!r}")
        return str(json.loads(body)["id"])

    def request(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """One plain request, on a connection that is kept; its status and body."""
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers | ({"Content-Type": "application/json"} if data else {})
        try:
            self._connection.request(method, path, data, headers)
            response = self._connection.getresponse()
        except ConnectionError:  # it was idle for too long
            self._connection.close()
            self._connection.request(method, path, data, headers)
            response = self._connection.getresponse()
        return response.status, response.read()


def post(path: str, body: object, headers: Mapping[str, str] = types.MappingProxyType({})) -> bytes:
    """A POST request of JSON, after which the connection can end."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{head}{more}Content-Length: {len(data)}\r\n\r\n".encode() + data


M = TypeVar("M", bound=Measured)


@contextlib.contextmanager
def stand_in(directory: Path) -> Iterator[StandIn]:
    """A running stand-in for the model."""
    with _running(StandIn, "stand-in", [sys.executable, "-m", "benchmarks.standin"], directory) as model:
        model.wait()
        yield model


@contextlib.contextmanager
def session_server(model: StandIn, directory: Path, *flags: str, under: Sequence[str] = ()) -> Iterator[Server]:
    """This server, in its usual configuration but for `flags`, perhaps not listening yet; `under` is a command that
    watches it."""
    program = [sys.executable, str(CHECKOUT / "session_server.py")]
    command = [*under, *program, "-port=0", f"-base_url={model.base_url}", "-model=m", "-grace=0", *flags]
    with _running(Server, "session_server", command, directory) as server:
        yield server


@contextlib.contextmanager
def compared(name: str, model: StandIn, directory: Path) -> Iterator[Server]:
    """One of the servers in servers.py, perhaps not listening yet."""
    command = [sys.executable, "-m", "benchmarks.servers", name, model.base_url]
    with _running(Server, name, command, directory) as server:
        yield server


@contextlib.contextmanager
def redis(directory: Path) -> Iterator[tuple[Measured, int]]:
    """A Redis that keeps each change on the disk before it answers, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)]
    command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    with _running(Measured, "redis", command, directory) as server:
        while server.process.poll() is None:
            with socket.socket() as connection:
                if connection.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.01)
        yield server, port


@contextlib.contextmanager
def _running(kind: type[M], name: str, command: Sequence[str], directory: Path) -> Iterator[M]:
    """The process, which is ended in any case; what it prints is kept in `directory`."""
    environment = {
        variable: value
        for variable, value in os.environ.items()
        if not variable.startswith(_NOT_OURS) and not variable.lower().endswith("_proxy")
    }
    log = directory / f"{name}-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the one who measures, who then ends it
        )
    try:
        yield kind(name, process, log, began)
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
                break
