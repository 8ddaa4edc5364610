"""Sessions in Redis: what they cost there, and how many streams a server carries."""

import contextlib
import shutil
import time
from collections.abc import Callable
from typing import Any

from benchmarks import processes
from benchmarks.bench import OURS, Bench, quantile, said_of_failures
from benchmarks.load import run_streams
from benchmarks.standin import asking

_CHUNKS = 1000
_TURNS = 10  # at once, of so many chunks
_MESSAGES = 10  # of a stored session
_PACE = 0.1  # seconds between the chunks of a paced stream
_LENGTH = 60  # chunks of one


def shared(bench: Bench) -> None:
    """Sessions in Redis: its memory, round trips and bytes, and how many streams a server carries."""
    if shutil.which("redis-server") is None:
        raise RuntimeError("redis-server is not installed")
    import redis

    with contextlib.ExitStack() as stack:
        server, port = stack.enter_context(processes.redis(bench.new_directory()))
        client = stack.enter_context(contextlib.closing(redis.Redis(port=port)))
        url = f"redis://127.0.0.1:{port}/0"
        _stored(bench, client, url)
        with processes.session_server(bench.model, bench.directory, f"-redis_url={url}") as ours:
            ours.wait()
            run_streams(ours, ours.turns(1, asking(1)), 1)
            _turns(bench, client, ours, 0.01)
            for count in bench.scale.shared:
                _paced(bench, server, ours, count)


def _stored(bench: Bench, client: Any, url: str) -> None:
    from session_core.stores.redis import RedisStorage

    storage = RedisStorage(url)
    before = client.info("memory")["used_memory"]
    for _ in range(bench.scale.sessions):
        storage.create()
    empty = (client.info("memory")["used_memory"] - before) / bench.scale.sessions
    client.flushall()
    before = client.info("memory")["used_memory"]
    count = bench.scale.sessions // 5
    for _ in range(count):
        with storage.lock(storage.create()) as locked:
            for number in range(_MESSAGES):
                role = "assistant" if number % 2 else "user"
                locked.append({"role": role, "content": f"{number:03} " + "words of a message " * 10 + "ending"})
    full = (client.info("memory")["used_memory"] - before) / count
    client.flushall()
    bench.add("redis", "Redis memory of an empty session", "bytes", {OURS: [empty]})
    note = "messages of 200 characters"
    bench.add("redis", f"Redis memory of a session of {_MESSAGES} messages", "bytes", {OURS: [full]}, note=note)


def _turns(bench: Bench, client: Any, ours: processes.Server, pace: float) -> None:
    """What turns of 1,000 chunks cost, one alone and several at once."""
    what = f"a turn of {_CHUNKS:,} chunks at {1 / pace:g} chunks/s"
    for count in (1, _TURNS):
        requests = ours.turns(count, asking(_CHUNKS, pace))
        memory, calls, received = _used(client)
        streams = run_streams(ours, requests, _CHUNKS)
        time.sleep(0.2)  # for the last events
        memory_after, calls_after, received_after = _used(client)
        among = "" if count == 1 else f", {count} at once"
        note = said_of_failures(OURS, streams)
        bench.add("redis", f"round trips of {what}{among}", "", {OURS: [(calls_after - calls) / count]}, note=note)
        if count > 1:
            sent = (received_after - received) / count
            bench.add("redis", f"bytes sent to Redis for {what}{among}", "bytes", {OURS: [sent]})
            kept = (memory_after - memory) / count
            note = "until a minute after its end; with its session and two messages"
            bench.add("redis", f"Redis memory of {what}", "bytes", {OURS: [kept]}, note=note)


def _used(client: Any) -> tuple[int, int, int]:
    """Redis' memory, the commands it was sent, and their bytes, so far."""
    stats = client.info("commandstats")
    calls = sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "xread", "set"))
    return client.info("memory")["used_memory"], calls, client.info("stats")["total_net_input_bytes"]


def _paced(bench: Bench, redis_server: processes.Measured, ours: processes.Server, count: int) -> None:
    """How late streams end that begin over as many seconds as they last, and what that takes."""
    requests = ours.turns(count, asking(_LENGTH, _PACE))
    lasts = (_LENGTH - 1) * _PACE
    before, redis_before = ours.cpu(), redis_server.cpu()
    streams = run_streams(ours, requests, _LENGTH, spread=lasts / 2)
    note = said_of_failures(OURS, streams)
    what = f"{count} streams at {1 / _PACE:g} chunks/s, with Redis"
    late = quantile([stream.seconds - lasts for stream in streams], 0.99) * 1e3
    chunks = max(1, sum(stream.chunks for stream in streams))
    first = quantile([stream.first_after for stream in streams], 0.99) * 1e3
    bench.add("redis", f"p99 of the first chunk, {what}", "ms", {OURS: [first]}, note=note)
    bench.add("redis", f"p99 of how late the end comes, {what}", "ms", {OURS: [late]}, note=note)
    used, redis_used = ours.cpu() - before, redis_server.cpu() - redis_before
    bench.add("redis", f"CPU for 1000 chunks, {what}", "s", {OURS: [used / chunks * 1000]})
    bench.add("redis", f"the same of Redis, {what}", "s", {OURS: [redis_used / chunks * 1000]})


BENCHMARKS: dict[str, Callable[[Bench], None]] = {"redis": shared}
