"""Streams: how fast, how soon, how many, and what is said to one too many."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable

from benchmarks.bench import FLOOR, OURS, STAND_IN, TYPED, Asked, Bench, quantile, said_of_failures
from benchmarks.load import Load, Stream, run_streams
from benchmarks.paced import PACE, measure_paced
from benchmarks.processes import Measured
from benchmarks.standin import asking

_ALL = (OURS, FLOOR, *TYPED, STAND_IN)
_PATIENCE = 10.0  # seconds
_HEALTH = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"

Figures = dict[str, list[float]]


def chunks(bench: Bench) -> None:
    """One client, the model sending as fast as it can."""
    rate: Figures = defaultdict(list)
    cpu: Figures = defaultdict(list)
    notes = set()
    with bench.servers(*_ALL) as servers:
        for server in servers:
            run_streams(server, server.turns(1, asking(1000)), 1000)
        for _ in range(bench.scale.rounds):
            for server in servers:
                count = bench.scale.typed_chunks if server.name in TYPED else bench.scale.chunks
                requests = server.turns(1, asking(count))
                before = server.cpu()
                streams = run_streams(server, requests, count)
                rate[server.name].append(count / streams[0].seconds)
                cpu[server.name].append((server.cpu() - before) / count * 1000)
                notes.add(said_of_failures(server.name, streams))
    note = "; ".join(sorted(notes - {""}))
    bench.add("chunks", "chunks/s, one client, at full speed", "1/s", rate, Asked(60_000, 100_000, 0.8, True), note)
    bench.add("chunks", "CPU for 1000 chunks, one client, at full speed", "s", cpu, Asked(0.013, 0.010, 1.8))


def first_chunk(bench: Bench) -> None:
    """What a server adds to the time to the first chunk: the model answers at once, one client asks."""
    first: Figures = defaultdict(list)
    received: Figures = defaultdict(list)
    count = bench.scale.first_turns
    fsyncs: list[float] = []
    with bench.servers(*_ALL) as servers:
        for server in servers:
            run_streams(server, server.turns(1, asking(2)), 2)
        for _ in range(bench.scale.rounds):
            fsyncs += bench.fsyncs(count)
            for server in servers:
                streams: list[Stream] = []
                for request in server.turns(count, asking(2, 0.005)):
                    streams += run_streams(server, [request], 2)
                first[server.name].append(quantile([s.first_after for s in streams], 0.5) * 1e3)
                received[server.name].append(quantile([s.received_after for s in streams], 0.5) * 1e3)
    note = f"an fsync takes {quantile(fsyncs, 0.5) * 1e3:.2f} ms at p50, {quantile(fsyncs, 0.99) * 1e3:.2f} at p99"
    added = _above_stand_in(first)
    bench.add("first_chunk", "added to the first chunk, one client, p50", "ms", added, Asked(1.5, 1), note)
    bench.add(
        "first_chunk", "added until the model has the request, one client, p50", "ms", _above_stand_in(received)
    )
    alone = {STAND_IN: first[STAND_IN]}
    bench.add("first_chunk", "first chunk from the stand-in directly, p50", "ms", alone)


def _above_stand_in(figures: Figures) -> Figures:
    return {
        name: [value - direct for value, direct in zip(values, figures[STAND_IN], strict=True)]
        for name, values in figures.items()
        if name != STAND_IN
    }


def paced(bench: Bench) -> None:
    """Many streams at the pace of a model. What goes on while all of them run is told from their starts and ends."""
    count, length = bench.scale.streams, bench.scale.length
    steady: Figures = defaultdict(list)
    edges: Figures = defaultdict(list)
    harness: Figures = defaultdict(list)
    notes = set()
    with bench.servers(*_ALL) as servers:
        for server in servers:
            run_streams(server, server.turns(count, asking(1)), 1)  # threads and connections are there after it
        for _ in range(bench.scale.rounds):
            for server in servers:
                found = measure_paced(bench.model, server, count, length)
                steady[server.name].append(found.steady * 1000)
                edges[server.name].append(found.edges * 1000)
                if server.name == OURS:
                    harness["stand-in"].append(found.model * 100)
                    harness["client"].append(found.client * 100)
                notes.add(said_of_failures(server.name, found.streams))
    what = f"{count} streams at {1 / PACE:g} chunks/s"
    note = "; ".join(sorted(notes - {""}))
    bench.add("paced", f"CPU for 1000 chunks, {what}, while all run", "s", steady, Asked(0.15, 0.10, 1.6), note)
    bench.add("paced", f"CPU of a start and an end, {what}", "ms", edges)
    client = statistics.median(harness["client"])
    note = f"of a core while session_server is measured; the client takes {client:.0f} %"
    bench.add("paced", "load of the stand-in", "%", {STAND_IN: harness["stand-in"]}, note=note)


def starts(bench: Bench) -> None:
    """Many streams that begin at once, or over a while."""
    few, many, most = bench.scale.starts
    over = f"{many} started over {bench.scale.spread:g} s"
    with bench.servers(*_ALL, flags=[f"-max_streams={most}"]) as servers:
        for server in servers:
            run_streams(server, server.turns(1, asking(1)), 1)
        untyped = [server for server in servers if server.name not in TYPED]
        _starts(bench, untyped, few, 0, f"{few} started at once", Asked(150, 60))
        _starts(bench, untyped, many, bench.scale.spread, over, Asked(250, 50))
        _starts(bench, servers, many, 0, f"{many} started at once", Asked(2500, 1000, 2.5))
        _starts(bench, untyped, most, 0, f"{most} started at once", Asked(6000, 3000))
        memory = {server.name: [server.most_memory()] for server in untyped}
    bench.add("starts", f"most memory, {most} started at once", "MB", memory, Asked(230))


def _starts(bench: Bench, servers: list[Measured], count: int, spread: float, what: str, asked: Asked) -> None:
    first: Figures = defaultdict(list)
    notes = set()
    length = bench.scale.start_chunks
    fsyncs = quantile(bench.fsyncs(200), 0.99)
    for number in range(bench.scale.rounds if count < max(bench.scale.starts) and not spread else 1):
        for server in servers:
            if number and server.name in (*TYPED, STAND_IN):  # far off
                continue
            requests = server.turns(count, asking(length, PACE))
            streams = run_streams(server, requests, length, spread=spread, seconds=60)
            first[server.name].append(quantile([s.first_after for s in streams], 0.99) * 1e3)
            notes.add(said_of_failures(server.name, streams))
    note = "; ".join([*sorted(notes - {""}), f"an fsync takes {fsyncs * 1e3:.2f} ms at p99"])
    bench.add("starts", f"p99 of the first chunk, {what}", "ms", first, asked, note)


def overload(bench: Bench) -> None:
    """As many turns as may run do, at the pace of a model, and more are wanted."""
    count = bench.scale.streams
    with bench.ours(f"-max_streams={count}") as server, Load(server.port) as load:
        extra = server.turns(bench.scale.refusals, asking(1))
        for request in server.turns(count, asking(1000, PACE)):
            load.begin(request, 1000)
            load.read(0)
        running = load.read_until(lambda: all(stream.first for stream in load.streams), 60)
        refused = _one_by_one(load, extra)
        healthy = _one_by_one(load, [_HEALTH] * len(extra))
        together = [load.begin(request, 1) for request in extra]
        load.finish(together, _PATIENCE)
    notes = [] if running else ["not all streams began"]
    wrong = [stream.status for stream in (*refused, *together) if stream.status != 503]
    notes += [f"{len(wrong)} of {len(refused) + len(together)} were not refused: {set(wrong)}"] if wrong else []
    running_streams = f"{count} streams at {1 / PACE:g} chunks/s"
    for what, streams, q in (
        (f"p50 of a 503 beyond {running_streams}", refused, 0.5),
        (f"p99 of a 503 beyond {running_streams}", refused, 0.99),
        (f"p99 of {len(together)} at once beyond {running_streams}", together, 0.99),
        (f"p99 of GET /health beside {running_streams}", healthy, 0.99),
    ):
        milliseconds = quantile([stream.seconds for stream in streams], q) * 1e3
        bench.add("overload", what, "ms", {OURS: [milliseconds]}, note="; ".join(notes))


def _one_by_one(load: Load, requests: list[bytes]) -> list[Stream]:
    """The responses to these requests, or to as many of them as there is time for."""
    streams = []
    until = time.monotonic() + _PATIENCE
    for request in requests:
        stream = load.begin(request, 1)
        streams.append(stream)
        load.finish([stream], _PATIENCE)
        if time.monotonic() > until:
            break
    return streams


BENCHMARKS: dict[str, Callable[[Bench], None]] = {
    "chunks": chunks,
    "first_chunk": first_chunk,
    "paced": paced,
    "starts": starts,
    "overload": overload,
}
