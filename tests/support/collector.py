"""A collector of traces: OTLP over HTTP, parsed with the messages of the official package.

with Collector() as collector:
    ...                                   # start a server with `collector.environment`
    spans = collector.wait_for(4)         # when so many spans have come
"""

from __future__ import annotations

import gzip
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

from tests.support.server import TIMEOUT


@dataclass(frozen=True)
class Span:
    """A span as it came. Ids are hexadecimal; `parent` is empty where there is none."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    failed: bool
    start: int
    end: int
    resource: dict[str, Any]


class Collector:
    """Collects spans on loopback. `answer` is the status of its answers."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.bodies: list[bytes] = []
        self.asked = threading.Event()
        self.hold = threading.Event()  # answers wait for it
        self.hold.set()
        self._came = threading.Condition()
        collector = self

        class Exchange(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.asked.set()
                collector.hold.wait(2 * TIMEOUT)
                collector.take(self.path, body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Exchange)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """What has a server send its traces here, soon after they are made."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_address[1]}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }

    def take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        found = []
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = _attributes(resource.resource.attributes)
            found += [_span(span, about) for scope in resource.scope_spans for span in scope.spans]
        with self._came:
            self.bodies.append(body)
            self.spans += found
            self._came.notify_all()

    def wait_for(self, count: int) -> list[Span]:
        """The spans, by their start, when that many have come. Raises AssertionError if they do not."""
        with self._came:
            came = self._came.wait_for(lambda: len(self.spans) >= count, TIMEOUT)
            assert came, [span.name for span in self.spans]
            return sorted(self.spans, key=lambda span: span.start)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _span(span: OtlpSpan, resource: dict[str, Any]) -> Span:
    return Span(
        name=span.name,
        kind=OtlpSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        attributes=_attributes(span.attributes),
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        resource=resource,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    def value(one: AnyValue) -> Any:
        kind = one.WhichOneof("value")
        found = getattr(one, kind) if kind else None
        return [value(each) for each in found.values] if kind == "array_value" else found

    return {pair.key: value(pair.value) for pair in pairs}
