"""Each request, and the turn within it, as a trace of OpenTelemetry.

The spans follow the semantic conventions for HTTP and for generative AI. They hold no text of a message.
"""

import importlib.metadata
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from session_core.telemetry.spans import (
    METHODS,
    ModelSpan,
    Observer,
    RequestSpan,
    Result,
    Span,
    ToolSpan,
    TurnSpan,
    count_tokens,
)

_PROBES = ("/health", "/ready", "/metrics")  # which are asked every few seconds, and do nothing
_LAST_SECONDS = 1.0  # at the end, for work that has been told to end
_FLUSH_SECONDS = 3.0  # for the last spans to reach the exporter
_MAX_TEXT = 200  # characters of an attribute that comes from elsewhere
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
_USAGE = {
    "input": "gen_ai.usage.input_tokens",
    "cached": "gen_ai.usage.cache_read.input_tokens",
    "output": "gen_ai.usage.output_tokens",
    "reasoning": "gen_ai.usage.reasoning.output_tokens",
}
_Attributes = dict[str, str | int | float | list[str]]


class Traces(Observer):
    """Sends spans to the exporters of these names, as `OTEL_TRACES_EXPORTER` has them: `otlp`, `console`, or others
    that are installed. The SDK reads all else from the environment.

    Raises ValueError where there is no such exporter, or the environment sets it up wrongly.
    """

    def __init__(self, names: str) -> None:
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        for name in names.split(","):
            self._provider.add_span_processor(BatchSpanProcessor(_exporter(name.strip())))
        self._open = 0
        self._changed = threading.Condition()
        self.tracer = self._provider.get_tracer("session_server")
        self.propagator = TraceContextTextMapPropagator()

    def start_span(self, work: Span) -> Observer:
        if not isinstance(work, RequestSpan):
            return _Spanned(self, work, Context())
        if work.route in _PROBES:
            return Observer()
        return _Spanned(self, work, self.propagator.extract(work.trace, Context()))

    def count(self, change: int) -> None:
        """Counts the spans that are open."""
        with self._changed:
            self._open += change
            self._changed.notify_all()

    def close(self) -> None:
        """Sends what has ended. Takes four seconds at most, whatever the exporter does."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open, _LAST_SECONDS)
        thread = threading.Thread(target=self._provider.shutdown, name="last traces", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is about to end
            self._provider.shutdown()
        else:
            thread.join(_FLUSH_SECONDS)


class _Spanned(Observer):
    """A span. What begins within it is its child."""

    def __init__(self, traces: Traces, work: Span, parent: Context) -> None:
        name, kind, attributes = _described(work)
        self._traces = traces
        self._work = work
        self._span = traces.tracer.start_span(name, parent, kind, attributes)
        self._context = set_span_in_context(self._span, parent)
        traces.count(1)
        if isinstance(work, ModelSpan):
            carrier: dict[str, str] = {}
            traces.propagator.inject(carrier, self._context)
            self.headers = carrier

    def start_span(self, work: Span) -> Observer:
        span = _Spanned(self._traces, work, self._context)
        if isinstance(self._work, TurnSpan):
            span._span.set_attribute("gen_ai.conversation.id", self._work.session_id)
        return span

    @contextmanager
    def current(self) -> Iterator[None]:
        token = otel_context.attach(self._context)
        try:
            yield
        finally:
            otel_context.detach(token)

    def first_chunk(self, seconds: float) -> None:
        self._span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)

    def end(self, outcome: Result) -> None:
        attributes: _Attributes = {}
        match self._work:
            case RequestSpan():
                attributes["http.response.status_code"] = int(outcome.name)
            case TurnSpan():
                attributes["session_server.turn.status"] = outcome.name
        attributes |= {_USAGE[kind]: int(number) for kind, number in count_tokens(outcome.usage).items()}
        if outcome.model:
            attributes["gen_ai.response.model"] = outcome.model
        if outcome.finish_reason:
            attributes["gen_ai.response.finish_reasons"] = [outcome.finish_reason]
        if outcome.failed:
            attributes["error.type"] = outcome.error or outcome.name
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.set_attributes(attributes)
        self._span.end()
        self._traces.count(-1)


def _described(work: Span) -> tuple[str, SpanKind, _Attributes]:
    """The name of a span, its kind, and its attributes at the beginning."""
    match work:
        case RequestSpan(method, route):
            known = method if method in METHODS else "HTTP"
            return f"{known} {route}".rstrip(), SpanKind.SERVER, _request_attributes(work)
        case TurnSpan(session_id, model):
            asked = {"gen_ai.request.model": model[:_MAX_TEXT], "gen_ai.conversation.id": session_id}
            return "invoke_agent", SpanKind.INTERNAL, _gen_ai("invoke_agent", asked)
        case ModelSpan(model, address):
            model = model[:_MAX_TEXT]
            return f"chat {model}", SpanKind.CLIENT, _gen_ai("chat", {"gen_ai.request.model": model}) | _peer(address)
        case ToolSpan(id, name, offered):  # a name that the model made up may be any text
            called: _Attributes = {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.type": "function",
                "gen_ai.tool.call.id": id[:_MAX_TEXT],
                **({"gen_ai.tool.name": name} if offered else {}),
            }
            return f"execute_tool {name}" if offered else "execute_tool", SpanKind.INTERNAL, called


def _gen_ai(operation: str, more: dict[str, str]) -> _Attributes:
    return {"gen_ai.operation.name": operation, "gen_ai.provider.name": "openai", **more}


def _peer(address: str) -> _Attributes:
    """Host and port of an address."""
    url = urlsplit(address)
    try:
        port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    except ValueError:
        port = None
    return {**({"server.address": url.hostname} if url.hostname else {}), **({"server.port": port} if port else {})}


def _request_attributes(work: RequestSpan) -> _Attributes:
    attributes: _Attributes = {
        "http.request.method": work.method if work.method in METHODS else "_OTHER",
        "url.scheme": work.scheme,
        "url.path": work.path[:_MAX_TEXT],
        "network.protocol.version": work.protocol.removeprefix("HTTP/"),
        "client.address": work.client[:_MAX_TEXT],
        "user_agent.original": work.user_agent[:_MAX_TEXT],
        "http.route": work.route,
    }
    with suppress(ValueError):  # the header is no host
        attributes |= _peer(f"{work.scheme}://{work.host[:_MAX_TEXT]}")
    return {name: value for name, value in attributes.items() if value}


def _resource() -> Resource:
    """What the environment says of this process, without its command line, which may hold keys."""
    found = Resource.create({"service.version": _version()})
    attributes = {name: value for name, value in found.attributes.items() if not name.startswith("process.command")}
    if str(attributes["service.name"]).startswith("unknown_service"):
        attributes["service.name"] = "session_server"
    return Resource(attributes, found.schema_url)


def _version() -> str:
    try:
        return importlib.metadata.version("session-server")
    except importlib.metadata.PackageNotFoundError:  # it runs from a checkout
        return "0"


def _exporter(name: str) -> SpanExporter:
    entry = name
    if name == "otlp":
        variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        protocol = next((os.environ[one] for one in variables if os.environ.get(one)), "http/protobuf")
        entry = _PROTOCOLS.get(protocol, protocol)
    for found in importlib.metadata.entry_points(group="opentelemetry_traces_exporter", name=entry):
        exporter: SpanExporter = found.load()()
        return exporter
    raise ValueError(f"there is no exporter {entry} of traces: install it, or set OTEL_TRACES_EXPORTER=none")
