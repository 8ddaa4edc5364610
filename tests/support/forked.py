"""Server processes that are forked from one that has imported the program, since a start is mostly imports."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"  # which traces import when they begin
_CONTEXT.set_forkserver_preload(
    [
        "session_server",
        "session_core.stores.redis",
        "session_core.tools.mcp",
        "session_core.telemetry.metrics",
        "session_core.telemetry.traces",
        _EXPORTER,
        *("httpcore", "httpcore2"),  # that of the SDK, old or new, which it imports for its first connection
        "tests.support.forked",
    ]
)


class ForkedServer:
    """A process that runs the program with these flags, in this environment. It has the interface of `Popen`."""

    def __init__(self, flags: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        reader, writer = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=_run, args=(list(flags), dict(env), str(log), writer))
        self._process.start()
        writer.close()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        self.stdout = open(os.dup(reader.fileno()), encoding="utf-8")  # noqa: SIM115
        reader.close()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("session_server", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and nobody has told of it yet
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(flags: list[str], env: dict[str, str], log: str, output: Connection) -> None:
    """What the new process does. Nothing of the process that it was forked from is left but what is imported."""
    error = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for file, number in ((null, 0), (output.fileno(), 1), (error, 2)):
        os.dup2(file, number)
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    sys.argv = ["session_server.py", *flags]
    import session_server

    sys.exit(session_server.main())
