"""A server's life: how soon it is there, what memory it takes, and whether that grows."""

import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable

from benchmarks import processes
from benchmarks.bench import FLOOR, OURS, TYPED, Asked, Bench
from benchmarks.load import Load, run_streams
from benchmarks.processes import CHECKOUT, Measured, Server
from benchmarks.standin import asking

_SETTLED = 1.0  # seconds after which an idle server is looked at
_AT_ONCE = 8  # conversations
_TURNS = 10  # of one, beside the last
_STORED = 10  # messages of a session in memory


def start(bench: Bench) -> None:
    """From the start of the process to its first answer, and the memory that it takes then."""
    answered: dict[str, list[float]] = defaultdict(list)
    idle: dict[str, list[float]] = defaultdict(list)
    for number in range(1 + bench.scale.rounds):
        for name in (OURS, FLOOR, *TYPED):
            with bench.servers(name) as servers:
                for server in servers:
                    assert isinstance(server, Server)
                    server.create()
                    took = time.monotonic() - server.began
                    if number:  # the first start compiles what is imported
                        time.sleep(_SETTLED)
                        answered[name].append(took)
                        idle[name].append(server.memory())
    bench.add("start", "from the start to the first answered request", "s", answered, Asked(0.7, 0.4))
    bench.add("start", "memory, idle", "MB", idle, Asked(70, 50))


def memory(bench: Bench) -> None:
    """What an open stream and a stored session take."""
    count = bench.scale.streams
    per_stream: dict[str, list[float]] = {}
    notes: list[str] = []
    with bench.servers(OURS, FLOOR, *TYPED) as servers:
        for server in servers:
            per_stream[server.name] = [_per_stream(bench, server, count, notes)]
    what = f"memory of an open stream, {count} of them"
    bench.add("memory", what, "KB", per_stream, note="; ".join(notes))

    with processes.session_server(bench.model, bench.directory) as server:  # without a directory: in memory
        server.create()
        before = server.memory()
        for _ in range(bench.scale.sessions):
            server.create()
        empty = (server.memory() - before) / bench.scale.sessions * 1024
    bench.add("memory", "memory of an empty session in memory", "KB", {OURS: [empty]})
    code = f"from benchmarks.life import stored; stored({bench.scale.sessions}, {_STORED})"
    full = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, check=True, timeout=120, text=True
    )
    what = f"memory of a session of {_STORED} messages in memory"
    bench.add("memory", what, "KB", {OURS: [float(full.stdout)]}, note="messages of 200 characters")


def _per_stream(bench: Bench, server: Measured, count: int, notes: list[str]) -> float:
    requests = server.turns(count, asking(1000, 1.5))
    before = server.memory()
    with Load(server.port) as load:
        for request in requests:
            load.begin(request, 1000)
            load.read(0)
        if not load.read_until(lambda: all(stream.first for stream in load.streams), 60):
            notes.append(f"{server.name}: not all streams began")
        return (server.memory() - before) / count * 1024


def stored(sessions: int, messages: int) -> None:
    """Print the kilobytes that each of so many sessions takes in memory storage; for a process of its own."""
    from storage import MemoryStorage

    storage = MemoryStorage()
    before = processes.status(os.getpid(), "VmRSS")
    for _ in range(sessions):
        with storage.lock(storage.create()) as locked:
            for number in range(messages):
                role = "assistant" if number % 2 else "user"
                locked.append({"role": role, "content": f"{number:03} " + "words of a message " * 10 + "ending"})
    print((processes.status(os.getpid(), "VmRSS") - before) / sessions * 1024)


def flat(bench: Bench) -> None:
    """A day's worth of turns, and the memory after a while and at the end."""
    with bench.ours() as server:
        turns, failed, warm = _conversations(server, bench.scale.warm_up)
        more, more_failed, end = _conversations(server, bench.scale.flat)
    note = f"{failed + more_failed} of {turns + more} turns failed" if failed + more_failed else ""
    bench.add("flat", f"memory after {turns:,} turns", "MB", {OURS: [warm]}, note=note)
    bench.add("flat", f"memory after {more:,} more", "MB", {OURS: [end]})


def _conversations(server: Server, seconds: float) -> tuple[int, int, float]:
    """Talk for so long: new sessions, turns in them, a last turn that the client leaves, deletion. Gives how many
    turns were begun, how many failed, and the median of the server's memory towards the end."""
    turns = failed = 0
    memory: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sessions = [server.create() for _ in range(_AT_ONCE)]
        for _ in range(_TURNS):
            streams = run_streams(server, [server.turn(session, asking(20)) for session in sessions], 20)
            failed += sum(not stream.complete for stream in streams)
        with Load(server.port) as load:
            for session in sessions:
                load.begin(server.turn(session, asking(1000, 0.01)), 1000)
            load.read_until(lambda: all(stream.first for stream in load.streams), 30)
        for session in sessions:
            status, _ = server.request("DELETE", f"/sessions/{session}")
            failed += status != 200
        turns += len(sessions) * (_TURNS + 1)
        memory.append(server.memory())
    return turns, failed, statistics.median(memory[-10:])


BENCHMARKS: dict[str, Callable[[Bench], None]] = {"start": start, "memory": memory, "flat": flat}
