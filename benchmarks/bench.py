"""What the benchmarks have in common: how much they do, what they run against, and where their figures go."""

import contextlib
import importlib.util
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import processes
from benchmarks.load import Stream
from benchmarks.processes import Measured, Server, StandIn

OURS = "session_server"
FLOOR = "floor"
TYPED = ("flask", "fastapi")
STAND_IN = "stand-in"


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    rounds: int
    chunks: int  # of one stream at full speed
    typed_chunks: int  # the same, of the servers over the SDK's typed stream
    first_turns: int  # one after another, in a round
    streams: int  # that are paced
    length: int  # of the paced streams, in chunks
    starts: tuple[int, int, int]  # at once
    start_chunks: int
    spread: float  # seconds over which the middle number of streams is started, instead of at once
    histories: tuple[int, int]  # messages
    files: tuple[int, int]
    shared: tuple[int, ...]  # paced streams of one server with Redis
    sessions: int  # in memory
    refusals: int
    warm_up: float  # seconds of turns before memory is looked at; ended turns are kept for 60
    flat: float  # seconds of turns after that


FULL = Scale(
    rounds=3,
    chunks=100_000,
    typed_chunks=10_000,
    first_turns=60,
    streams=500,
    length=80,
    starts=(100, 500, 1000),
    start_chunks=50,
    spread=5.0,
    histories=(1000, 10_000),
    files=(10_000, 100_000),
    shared=(200, 300, 400),
    sessions=5000,
    refusals=200,
    warm_up=65.0,
    flat=30.0,
)
QUICK = Scale(
    rounds=1,
    chunks=10_000,
    typed_chunks=2000,
    first_turns=10,
    streams=20,
    length=8,
    starts=(10, 20, 40),
    start_chunks=5,
    spread=0.5,
    histories=(100, 1000),
    files=(500, 2000),
    shared=(10,),
    sessions=200,
    refusals=10,
    warm_up=1.0,
    flat=1.0,
)


@dataclass(frozen=True)
class Asked:
    """What a figure should be: at most so much, or at least; `floor` bounds its ratio to the floor."""

    value: float | None = None
    beyond: float | None = None
    floor: float | None = None
    at_least: bool = False


@dataclass
class Row:
    """One line of the table. `figures` holds, for each server, what each round gave; the median is shown."""

    benchmark: str
    what: str
    unit: str
    figures: dict[str, list[float]]
    asked: Asked | None
    note: str

    def figure(self, server: str) -> float | None:
        """The median of the rounds, None where the server was not measured."""
        rounds = self.figures.get(server)
        return statistics.median(rounds) if rounds else None

    @property
    def ratio(self) -> float | None:
        """Ours to the floor of the same run; None where one is missing."""
        ours, floor = self.figures.get(OURS), self.figures.get(FLOOR)
        if not ours or not floor:
            return None
        pairs = list(zip(ours, floor, strict=False))
        if not all(b > 0 and math.isfinite(a) for a, b in pairs):
            return None
        return statistics.median(a / b for a, b in pairs)

    def verdict(self) -> str:
        """Whether ours is what was asked, or beyond."""
        ours, asked = self.figure(OURS), self.asked
        if ours is None or asked is None:
            return ""

        def within(value: float, bound: float) -> bool:
            return value >= bound if asked.at_least else value <= bound

        said = []
        if asked.beyond is not None and within(ours, asked.beyond):
            said.append("beyond")
        elif asked.value is not None:
            said.append("yes" if within(ours, asked.value) else "no")
        if asked.floor is not None and self.ratio is not None:
            said.append("ratio yes" if within(self.ratio, asked.floor) else "ratio no")
        return ", ".join(said)


@dataclass
class Bench:
    """One run of the benchmarks."""

    scale: Scale
    model: StandIn
    directory: Path
    typed: tuple[str, ...]  # the compared servers that can be started
    rows: list[Row] = field(default_factory=list)

    def add(
        self,
        benchmark: str,
        what: str,
        unit: str,
        figures: dict[str, list[float]],
        asked: Asked | None = None,
        note: str = "",
    ) -> None:
        """Put a line into the table."""
        self.rows.append(Row(benchmark, what, unit, dict(figures), asked, note))

    @contextlib.contextmanager
    def ours(self, *flags: str, under: Sequence[str] = (), sessions: Path | None = None) -> Iterator[Server]:
        """This server, with files in a directory that is new, or in `sessions`."""
        with self._ours(*flags, under=under, sessions=sessions) as server:
            server.wait()
            yield server

    @contextlib.contextmanager
    def servers(self, *names: str, flags: Sequence[str] = ()) -> Iterator[list[Measured]]:
        """The servers of these names, side by side and listening, ours with `flags`; those that are not installed are
        left out."""
        with contextlib.ExitStack() as stack:
            found: list[Measured] = []
            for name in names:
                if name == OURS:
                    found.append(stack.enter_context(self._ours(*flags)))
                elif name == STAND_IN:
                    found.append(self.model)
                elif name == FLOOR or name in self.typed:
                    found.append(stack.enter_context(processes.compared(name, self.model, self.directory)))
            for server in found:
                server.wait()
            yield found

    def _ours(
        self, *flags: str, under: Sequence[str] = (), sessions: Path | None = None
    ) -> contextlib.AbstractContextManager[Server]:
        directory = f"-session_dir={sessions or self.new_directory()}"
        return processes.session_server(self.model, self.directory, directory, *flags, under=under)

    def new_directory(self) -> Path:
        """An empty directory, on the file system that is measured."""
        return Path(tempfile.mkdtemp(dir=self.directory))

    def fsyncs(self, count: int) -> list[float]:
        """The seconds that each of so many small appends with `fsync` takes, one after another."""
        seconds = []
        with (self.new_directory() / "file").open("wb", buffering=0) as file:
            for _ in range(count):
                began = time.monotonic()
                file.write(b"x" * 300)
                os.fsync(file.fileno())
                seconds.append(time.monotonic() - began)
        return seconds


def installed_typed() -> tuple[str, ...]:
    """The compared servers over the SDK's typed stream that are there to be started."""
    fastapi = all(importlib.util.find_spec(module) for module in ("fastapi", "uvicorn"))
    return TYPED if fastapi else TYPED[:1]


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest of the values that at least the share `q` of them does not exceed."""
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]


def said_of_failures(name: str, streams: Sequence[Stream]) -> str:
    """A note where streams did not complete, else nothing."""
    failed = sum(not stream.complete for stream in streams)
    return f"{name}: {failed} of {len(streams)} failed" if failed else ""
