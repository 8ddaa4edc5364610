"""Streams beside a tool that computes."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.bench import OURS, Bench, quantile
from benchmarks.load import Load, Stream
from benchmarks.processes import Server
from benchmarks.standin import SPIN, asking

_STREAMS = 20
_PACE = 0.1  # seconds between the chunks of a stream
_TOOL = """
import time

def spin() -> str:
    '''Computes for five seconds.'''
    until = time.monotonic() + 5
    count = 0
    while time.monotonic() < until:
        count += sum(number * number for number in range(1000))
    return str(count > 0)
"""


@dataclass(slots=True)
class _Timed(Stream):
    """A stream that knows when each of its chunks came."""

    times: list[float] = field(default_factory=list)

    def take_in(self, data: bytes) -> bool:
        before = self.chunks
        ended = Stream.take_in(self, data)
        self.times += [time.monotonic()] * (self.chunks - before)
        return ended

    def late(self) -> list[float]:
        """How many seconds each chunk came after its time, counted from the earliest that any of them allows."""
        due = [when - number * _PACE for number, when in enumerate(self.times)]
        return [one - min(due) for one in due]


def beside_a_tool(bench: Bench) -> None:
    """How late chunks of other streams come while a tool computes in Python for five seconds."""
    tool = bench.new_directory() / "spin.py"
    tool.write_text(_TOOL)
    with bench.ours(f"-tools={tool}") as server:
        for what, spinning in (("alone", False), ("beside a tool that computes for 5 s", True)):
            late = [_late(server, spinning) for _ in range(bench.scale.rounds)]
            rows = {OURS: [quantile(one, 0.99) * 1e3 for one in late]}
            bench.add("tool", f"p99 of how late a chunk comes, {_STREAMS} streams at 10 chunks/s, {what}", "ms", rows)


def _late(server: Server, spinning: bool) -> list[float]:
    with Load(server.port) as load:
        streams = [_Timed(50, time.monotonic()) for _ in range(_STREAMS)]
        for request, stream in zip(server.turns(_STREAMS, asking(50, _PACE)), streams, strict=True):
            load.begin(request, 50, stream)
        if spinning:
            load.read_until(lambda: all(stream.chunks for stream in streams), 10)
            load.begin(server.turns(1, SPIN)[0], 1)
        load.finish(streams, 30)
        return [late for stream in streams for late in stream.late()]


BENCHMARKS: dict[str, Callable[[Bench], None]] = {"tool": beside_a_tool}
