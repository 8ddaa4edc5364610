"""What happened so far, in numbers, for Prometheus."""

import threading
import time
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from session_core.telemetry.spans import (
    METHODS,
    TOKEN_KINDS,
    ModelSpan,
    Observer,
    RequestSpan,
    Result,
    Span,
    ToolSpan,
    TurnSpan,
    count_tokens,
)

_MAX_NAMES = 200  # of tools, since those of MCP servers come and go
_OTHER = "other"
_STORE_ERRORS = ("storage_unavailable", "session_corrupt")
_TURN_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
_CHUNK_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class _Numbers:
    """The metrics of one registry. Those whose values are known begin with zero."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"session_server_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"session_server_{name}", text, buckets=buckets, registry=registry)

        self.turns = counter("turns", "Turns that ended here, by status or code of the error.", "status")
        self.turn_seconds = histogram("turn_seconds", "Seconds from the start of a turn to its end.", _TURN_BUCKETS)
        self.chunk_seconds = histogram(
            "first_chunk_seconds", "Seconds from the start of a turn to its first text.", _CHUNK_BUCKETS
        )
        self.running = Gauge("session_server_running_turns", "Turns that run here now.", registry=registry)
        self.model_calls = counter("model_calls", "Requests to the model server, each try counted.", "outcome")
        self.tokens = counter("tokens", "Tokens, as the model server told: cached ones are input too.", "kind")
        self.tool_calls = counter("tool_calls", "Calls of tools.", "tool", "outcome")
        self.requests = counter("http_requests", "Requests that were answered.", "route", "method", "status")
        self.store_errors = counter("store_errors", "Errors of the store that a request or a turn met.", "error")
        for known, values in (
            (self.turns, ("completed", "incomplete", "cancelled", "waiting")),
            (self.model_calls, ("ok",)),
            (self.tokens, TOKEN_KINDS),
            (self.store_errors, _STORE_ERRORS),
        ):
            for value in values:
                known.labels(value)


class Metrics(Observer):
    """Counts the work of one app, in a registry of its own, and has `observer` see it too.

    No label is a user, a session or a model, and none has more values than the server has names of its own.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._registry = CollectorRegistry()
        self._numbers = _Numbers(self._registry)
        self._tools: set[str] = set()
        self._lock = threading.Lock()
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self._registry)

    def start_span(self, work: Span, within: Observer | None = None) -> Observer:
        if isinstance(work, TurnSpan):
            self._numbers.running.inc()
        return _Observed(self, work, (within or self._observer).start_span(work))

    def count(self, work: Span, outcome: Result) -> None:
        """Counts work that has ended."""
        match work:
            case RequestSpan(method, route):
                method = method if method in METHODS else _OTHER
                self._numbers.requests.labels(route or _OTHER, method, outcome.name).inc()
                self._count_store_error(outcome.error)
            case TurnSpan():
                self._numbers.running.dec()
                self._numbers.turns.labels(outcome.name).inc()
                self._numbers.turn_seconds.observe(time.monotonic() - work.started_at)
                self._count_store_error(outcome.name)
            case ModelSpan():
                self._numbers.model_calls.labels(outcome.name).inc()
                for kind, number in count_tokens(outcome.usage).items():
                    self._numbers.tokens.labels(kind).inc(number)
            case ToolSpan():
                self._numbers.tool_calls.labels(self._tool(work), outcome.name).inc()

    def count_first_chunk(self, seconds: float) -> None:
        """Counts the time until a turn's first text."""
        self._numbers.chunk_seconds.observe(seconds)

    def _count_store_error(self, code: str | None) -> None:
        if code in _STORE_ERRORS:
            self._numbers.store_errors.labels(code).inc()

    def _tool(self, work: ToolSpan) -> str:
        """The name of a tool that is offered, as long as there are not too many names."""
        with self._lock:
            if work.offered and len(self._tools) < _MAX_NAMES:
                self._tools.add(work.name)
            return work.name if work.name in self._tools else _OTHER


class _Observed(Observer):
    def __init__(self, metrics: Metrics, work: Span, observer: Observer) -> None:
        self.headers = observer.headers
        self._metrics = metrics
        self._work = work
        self._observer = observer

    def start_span(self, work: Span) -> Observer:
        return self._metrics.start_span(work, self._observer)

    def current(self) -> AbstractContextManager[object]:
        return self._observer.current()

    def first_chunk(self, seconds: float) -> None:
        self._metrics.count_first_chunk(seconds)
        self._observer.first_chunk(seconds)

    def end(self, outcome: Result) -> None:
        self._metrics.count(self._work, outcome)
        self._observer.end(outcome)
