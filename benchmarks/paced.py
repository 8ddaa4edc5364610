"""Many streams at the pace of a model: what they take of the processor while all of them run."""

import time
from dataclasses import dataclass

from benchmarks.load import Load, Stream
from benchmarks.processes import Measured, StandIn
from benchmarks.standin import asking

PACE = 0.1  # seconds between the chunks of a stream
_PATIENCE = 60.0  # seconds


@dataclass(frozen=True)
class Paced:
    """What streams at a pace have cost."""

    streams: list[Stream]
    steady: float  # seconds of the server's processor for a chunk, while all streams run
    edges: float  # seconds of it for the start and the end of a stream
    model: float  # the stand-in's share of a core, while all streams run
    client: float  # and the client's


def measure_paced(model: StandIn, server: Measured, count: int, length: int) -> Paced:
    """Starts so many streams of `length` chunks at once, and measures for half of their time from when all run."""
    began = server.cpu()
    with Load(server.port) as load:
        for request in server.turns(count, asking(length, PACE)):
            load.begin(request, length)

        def read_clocks() -> tuple[float, ...]:
            chunks = sum(stream.chunks for stream in load.streams)
            return server.cpu(), chunks, model.cpu(), time.process_time(), time.monotonic()

        load.read_until(lambda: all(stream.first for stream in load.streams), _PATIENCE)
        before = read_clocks()
        until = time.monotonic() + length * PACE / 2
        load.read_until(lambda: time.monotonic() > until, _PATIENCE)
        used, chunks, of_model, of_client, seconds = (
            now - then for now, then in zip(read_clocks(), before, strict=True)
        )
        load.finish(load.streams, _PATIENCE)
        steady = used / max(1, chunks)
        total = sum(stream.chunks for stream in load.streams)
    edges = (server.cpu() - began - steady * total) / count
    return Paced(load.streams, steady, edges, of_model / seconds, of_client / seconds)
