"""Sessions that are kept: long histories, what a turn writes, and lists of many files."""

import json
import os
import re
import secrets
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.bench import OURS, STAND_IN, TYPED, Asked, Bench, quantile
from benchmarks.load import run_streams
from benchmarks.processes import Server, StandIn
from benchmarks.standin import asking

_TEXT = "A sentence of about the length that people write. " * 4
_WARM = 10  # times that a list is asked for
_CHUNKS = 5  # of the turn whose writing is looked at


def _messages(count: int) -> list[dict[str, Any]]:
    """A conversation of so many messages; in a file each takes about 300 bytes."""
    return [
        {
            "id": f"msg-{number:032x}",
            "role": "assistant" if number % 2 else "user",
            "content": f"{number}: {_TEXT}",
            "created_at": "2026-01-31T12:34:56Z",
        }
        for number in range(count)
    ]


def write_session(directory: Path, messages: list[dict[str, Any]]) -> str:
    """A session's file, as the server writes it; gives the id."""
    session_id = f"session-{secrets.token_hex(16)}"
    now = "2026-01-31T12:34:56Z"
    head = f'{{"id":"{session_id}","created_at":"{now}","messages":['
    lines = ",".join("\n" + json.dumps(m, ensure_ascii=False, separators=(",", ":")) for m in messages)
    path = directory / f"{session_id}.json"
    path.write_text(f'{head}{lines}\n],"updated_at":"{now}"}}\n')
    path.chmod(0o600)
    return session_id


def history(bench: Bench) -> None:
    """The time from a client's request until the model has the whole of its own, and the same for one turn more."""
    for count, asked in zip(bench.scale.histories, (Asked(4, 2), Asked(20, 15)), strict=True):
        figures: dict[str, list[float]] = defaultdict(list)
        again: list[float] = []
        messages = _messages(count)
        sent = [{"role": message["role"], "content": message["content"]} for message in messages]
        directory = bench.new_directory()
        with bench.ours(sessions=directory) as ours, bench.servers(*TYPED, STAND_IN) as others:
            for number in range(2 + 3 * bench.scale.rounds):
                for server in (ours, *others):
                    if number > 4 and server.name in TYPED:  # far off, and slow
                        continue
                    if server is ours:
                        session_id = write_session(directory, messages)
                        request = ours.turn(session_id, asking(2))
                    elif isinstance(server, Server):
                        request = server.turn(server.create(sent), asking(2))
                    else:
                        assert isinstance(server, StandIn)
                        request = server.completion([*sent, {"role": "user", "content": asking(2)}])
                    (stream,) = run_streams(server, [request], 2)
                    if number >= 2:
                        figures[server.name].append(stream.received_after * 1e3)
                    if server is ours and number >= 2:
                        (stream,) = run_streams(ours, [ours.turn(session_id, asking(2))], 2)
                        again.append(stream.received_after * 1e3)
        size = sum(path.stat().st_size for path in directory.glob("*.json")) / len(list(directory.glob("*.json")))
        note = f"a file of {size / 1e6:.2g} MB; stand-in: the same request sent to the model by the client"
        what = f"a turn after {count:,} messages, until the model has it"
        bench.add("history", what, "ms", dict(figures), None, note)
        what = f"the next turn after {count:,} messages, until the model has it"
        bench.add("history", what, "ms", {OURS: again}, asked)


def writes(bench: Bench) -> None:
    """What a turn writes, and how often it syncs, at several lengths of history."""
    lengths = (0, *bench.scale.histories)
    directory = bench.new_directory()
    trace = directory / "trace"
    strace = ["strace", "-D", "-f", "-y", "-s", "0", "-e", "trace=write,writev,pwrite64,pwritev,fsync,fdatasync"]
    traced = _works([*strace, "-o", os.devnull, "true"])
    bytes_written: list[int] = []
    syncs: list[int] = []
    with bench.ours(sessions=directory, under=[*strace, "-o", str(trace)] if traced else ()) as server:
        run_streams(server, server.turns(1, asking(_CHUNKS)), _CHUNKS)
        sessions = [write_session(directory, _messages(length)) for length in lengths]
        for session_id in sessions:
            before = server.written()
            (stream,) = run_streams(server, [server.turn(session_id, asking(_CHUNKS))], _CHUNKS)
            if not stream.complete:
                raise RuntimeError(f"a turn did not complete: {stream}")
            if not traced:
                bytes_written.append(server.written() - before)
    if traced:
        lines = _whole_trace(trace, server.process.pid)
        for session_id in sessions:
            own = [line for line in lines if session_id in line]
            syncs.append(sum(bool(re.search(r" f(data)?sync\(", line)) for line in own))
            bytes_written.append(sum(int(found[1]) for line in own if (found := _WRITE.search(line))))
    how = "by strace" if traced else "by /proc/<pid>/io, which counts pipes too; fsyncs not counted without strace"
    for number, length in enumerate(lengths):
        what = f"bytes written in a turn after {length:,} messages"
        bench.add("writes", what, "", {OURS: [bytes_written[number]]}, Asked(430), how)
        if traced:
            bench.add(
                "writes", f"fsyncs in a turn after {length:,} messages", "", {OURS: [syncs[number]]}, Asked(4), how
            )


_WRITE = re.compile(r' (?:p?write(?:64)?)\(\d+<[^>]*>, ""(?:\.\.\.)?, (\d+)')


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _whole_trace(trace: Path, pid: int) -> list[str]:
    """The lines that strace wrote, when it has seen the end of the process."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        lines = trace.read_text(errors="replace").splitlines()
        if any(re.match(rf"{pid} +\+\+\+ ", line) for line in lines[-5:]):
            return lines
        time.sleep(0.05)
    raise RuntimeError("strace did not end with the server that it watched")


def sessions(bench: Bench) -> None:
    """The list of many sessions, with the files in the system's caches and without."""
    few, many = bench.scale.files
    _list(bench, few, None, Asked(50, 5))
    _list(bench, many, Asked(800, 500), Asked(300, 30))


def _list(bench: Bench, count: int, asked_cold: Asked | None, asked_warm: Asked) -> None:
    directory = bench.new_directory()
    messages = _messages(2)
    for _ in range(count):
        write_session(directory, messages)
    os.sync()
    cold: list[float] = []
    after: list[float] = []
    warm: list[float] = []
    for _ in range(bench.scale.rounds):
        with bench.ours(sessions=directory) as server:
            if asked_cold and _drop_caches():
                cold.append(_listed(server, count))
            else:
                after.append(_listed(server, count))
            warm.append(quantile([_listed(server, count) for _ in range(_WARM)], 0.5))
    if cold:
        bench.add("list", f"GET /sessions, {count:,} files, cold", "ms", {OURS: cold}, asked_cold)
    else:
        note = "" if asked_cold is None else "cold is not measured: the system's caches cannot be dropped here"
        what = f"GET /sessions, {count:,} files, the first after the start"
        bench.add("list", what, "ms", {OURS: after}, note=note)
    bench.add("list", f"GET /sessions, {count:,} files, warm", "ms", {OURS: warm}, asked_warm)


def _listed(server: Server, count: int) -> float:
    began = time.monotonic()
    status, body = server.request("GET", "/sessions")
    took = time.monotonic() - began
    if status != 200 or body.count(b'"session-') != count:
        raise RuntimeError(f"GET /sessions gave {status}, and not {count} sessions")
    return took * 1e3


def _drop_caches() -> bool:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        return False
    return True


BENCHMARKS: dict[str, Callable[[Bench], None]] = {"history": history, "writes": writes, "list": sessions}
