"""Who sees what the server does: metrics and traces, each where it is asked for."""

import functools
import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from flask import Flask, Response, g, request

from session_core.telemetry.spans import Observer, RequestSpan, Result
from session_core.web.flag_values import SettingsError

if TYPE_CHECKING:
    from session_core.telemetry.metrics import Metrics
    from session_core.telemetry.traces import Traces

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def load_metrics(observer: Observer) -> "Metrics":
    """Metrics, before another observer. Raises SettingsError where their library is missing."""
    try:
        from session_core.telemetry.metrics import Metrics
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "prometheus_client":
            raise
        raise SettingsError("-metrics needs prometheus-client: pip install '.[metrics]'") from None
    return Metrics(observer)


def load_traces(environment: Mapping[str, str]) -> "Traces | None":
    """Traces, where the environment names an exporter and the OpenTelemetry SDK is installed.

    Raises SettingsError where the SDK has no such exporter.
    """
    names = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if not names and any(environment.get(name) for name in _ENDPOINTS):
        names = "otlp"
    if names in ("", "none") or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    try:
        from session_core.telemetry.traces import Traces
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        log.warning("the environment names an exporter of traces; to send them: pip install '.[otel]'")
        return None
    try:
        return Traces(names)
    except ValueError as error:
        raise SettingsError(f"OpenTelemetry: {error}") from None


def observe_requests(app: Flask, observer: Observer) -> None:
    """Has each request seen, from before its checks until its response is closed. `g.observed` sees what it does."""

    def begin() -> None:
        g.observed = observer.start_span(_describe_request())

    def end_when_sent(response: Response) -> Response:
        status = response.status_code
        outcome = Result(str(status), failed=status >= 500, error=g.get("error_code"))
        response.call_on_close(functools.partial(g.observed.end, outcome))
        return response

    app.before_request(begin)
    app.after_request(end_when_sent)


def add_metrics_route(app: Flask, metrics: "Metrics") -> None:
    """Serves `GET /metrics`."""

    app.add_url_rule("/metrics", "metrics", lambda: Response(metrics.render(), content_type=metrics.content_type))


def _describe_request() -> RequestSpan:
    return RequestSpan(
        request.method,
        re.sub(r"<(?:[^<>]*:)?(?:session_)?(\w+)>", r"{\1}", request.url_rule.rule if request.url_rule else ""),
        path=request.path,
        scheme=request.scheme,
        host=request.headers.get("Host", ""),
        protocol=request.environ.get("SERVER_PROTOCOL", ""),
        client=request.remote_addr or "",
        user_agent=request.headers.get("User-Agent", ""),
        trace={
            name: text for name in ("traceparent", "tracestate") if (text := request.headers.get(name)) is not None
        },
    )
