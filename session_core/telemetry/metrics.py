"""What happened so far, in numbers, for Prometheus."""

import functools
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
        counter = functools.partial(Counter, namespace="session_server", registry=registry)
        histogram = functools.partial(Histogram, namespace="session_server", registry=registry)
        self.turns = counter("turns", "Turns that ended here, by status or code of the error.", ["status"])
        self.turn_seconds = histogram(
            "turn_seconds", "Seconds from the start of a turn to its end.", buckets=_TURN_BUCKETS
        )
        self.chunk_seconds = histogram(
            "first_chunk_seconds", "Seconds from the start of a turn to its first text.", buckets=_CHUNK_BUCKETS
        )
        self.running = Gauge("session_server_running_turns", "Turns that run here now.", registry=registry)
        self.model_calls = counter("model_calls", "Requests to the model server, each try counted.", ["outcome"])
        self.tokens = counter("tokens", "Tokens, as the model server told: cached ones are input too.", ["kind"])
        self.tool_calls = counter("tool_calls", "Calls of tools.", ["tool", "outcome"])
        self.requests = counter("http_requests", "Requests that were answered.", ["route", "method", "status"])
        self.store_errors = counter("store_errors", "Errors of the store that a request or a turn met.", ["error"])
        for known, values in (
            (self.turns, ("completed", "incomplete", "cancelled", "waiting")),
            (self.model_calls, ("ok",)),
            (self.tokens, TOKEN_KINDS),
            (self.store_errors, _STORE_ERRORS),
        ):
            for value in values:
                known.labels(value)
        self._tools: set[str] = set()
        self._lock = threading.Lock()

    def count_store_error(self, code: str | None) -> None:
        if code in _STORE_ERRORS:
            self.store_errors.labels(code).inc()

    def tool_name(self, call: ToolSpan) -> str:
        """The name of a tool that is offered, as long as there are not too many names."""
        with self._lock:
            if call.offered and len(self._tools) < _MAX_NAMES:
                self._tools.add(call.name)
            return call.name if call.name in self._tools else _OTHER


class Metrics(Observer):
    """Counts the work of one app, in a registry of its own, and has `observer` see it too.

    No label is a user, a session or a model, and none has more values than the server has names of its own.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._registry = CollectorRegistry()
        self._numbers = _Numbers(self._registry)
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self._registry)

    def start_span(self, work: Span) -> Observer:
        return _Observed(self._numbers, work, self._observer.start_span(work))


class _Observed(Observer):
    def __init__(self, numbers: _Numbers, work: Span, observer: Observer) -> None:
        self.headers = observer.headers
        self._numbers = numbers
        self._work = work
        self._observer = observer
        if isinstance(work, TurnSpan):
            numbers.running.inc()

    def start_span(self, work: Span) -> Observer:
        return _Observed(self._numbers, work, self._observer.start_span(work))

    def current(self) -> AbstractContextManager[object]:
        return self._observer.current()

    def first_chunk(self, seconds: float) -> None:
        self._numbers.chunk_seconds.observe(seconds)
        self._observer.first_chunk(seconds)

    def end(self, outcome: Result) -> None:
        numbers = self._numbers
        match self._work:
            case RequestSpan(method, route):
                method = method if method in METHODS else _OTHER
                numbers.requests.labels(route or _OTHER, method, outcome.name).inc()
                numbers.count_store_error(outcome.error)
            case TurnSpan(started_at=started_at):
                numbers.running.dec()
                numbers.turns.labels(outcome.name).inc()
                numbers.turn_seconds.observe(time.monotonic() - started_at)
                numbers.count_store_error(outcome.name)
            case ModelSpan():
                numbers.model_calls.labels(outcome.name).inc()
                for kind, number in count_tokens(outcome.usage).items():
                    numbers.tokens.labels(kind).inc(number)
            case ToolSpan() as call:
                numbers.tool_calls.labels(numbers.tool_name(call), outcome.name).inc()
        self._observer.end(outcome)
