"""Traces of a running server, as a collector gets them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.collector import Collector, Span
from tests.support.model_server import STALL, ModelServer, answer, nobody_listens, status, tool_call, tool_calls
from tests.support.server import ROOT, SERVER, TIMEOUT, Server, environment, wait_until

Serve = Callable[..., Server]

SCRIPT = str(ROOT / "tests" / "support" / "mcp_script.py")
SDK_SERVER = str(ROOT / "tests" / "support" / "mcp_sdk_server.py")
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
USAGE = {"prompt_tokens": 31, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 16}}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture
def start(serve: Serve, model: ModelServer, collector: Collector) -> Serve:
    """Starts a server that sends its traces to the collector."""

    def start(*flags: str, env: dict[str, str] | None = None) -> Server:
        return serve(f"-base_url={model.base_url}", "-model=m", *flags, env={**collector.environment, **(env or {})})

    return start


def turn(server: Server, **headers: str) -> tuple[str, list[dict[str, Any]]]:
    """A turn in a new session: its id, and the events."""
    session = server.create()
    return session, list(server.say(session, "Most private", **headers).events())


def of_turn(spans: list[Span]) -> dict[str, Span]:
    """The spans of the trace with the one turn, by name; those that come again get a number."""
    trace = next(span.trace for span in spans if span.name == "invoke_agent")
    found: dict[str, Span] = {}
    for span in spans:
        if span.trace == trace:
            number = sum(name.split(" #")[0] == span.name for name in found)
            found[f"{span.name} #{number + 1}" if number else span.name] = span
    return found


REQUEST = "POST /sessions/{id}/run_stream"


def test_a_turn_with_a_tool_is_one_trace(start: Serve, model: ModelServer, collector: Collector) -> None:
    model.then(tool_call("calculator", {"expression": "15 * 23"}, usage=USAGE), answer("345", usage=USAGE))
    server = start()
    session, events = turn(server)
    assert events[-1]["type"] == "stream_end"
    spans = of_turn(collector.wait_for(6))
    assert set(spans) == {REQUEST, "invoke_agent", "chat m", "execute_tool calculator", "chat m #2"}
    request, agent, tool = spans[REQUEST], spans["invoke_agent"], spans["execute_tool calculator"]
    first, second = spans["chat m"], spans["chat m #2"]
    assert request.parent == ""
    assert agent.parent == request.id
    assert {first.parent, tool.parent, second.parent} == {agent.id}
    kinds = {"SERVER": [request], "INTERNAL": [agent, tool], "CLIENT": [first, second]}
    assert all(span.kind == kind for kind, those in kinds.items() for span in those)
    assert not any(span.failed for span in spans.values())
    assert first.end <= tool.start <= tool.end <= second.start <= second.end <= agent.end

    assert (
        request.attributes.items()
        >= {
            "http.request.method": "POST",
            "http.route": "/sessions/{id}/run_stream",
            "http.response.status_code": 200,
            "url.scheme": "http",
            "url.path": f"/sessions/{session}/run_stream",
            "server.address": "127.0.0.1",
            "server.port": server.port,
            "client.address": "127.0.0.1",
            "network.protocol.version": "1.1",
        }.items()
    )
    assert agent.attributes.pop("gen_ai.response.time_to_first_chunk") > 0
    assert agent.attributes == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "openai",
        "gen_ai.conversation.id": session,
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 62,
        "gen_ai.usage.cache_read.input_tokens": 32,
        "gen_ai.usage.output_tokens": 10,
        "session_server.turn.status": "completed",
    }
    host, port = re.findall(r"//(.*):(\d+)/", model.base_url)[0]
    for span, reason in ((first, "tool_calls"), (second, "stop")):
        assert span.attributes == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.conversation.id": session,
            "gen_ai.request.model": "m",
            "gen_ai.response.model": span.attributes["gen_ai.response.model"],
            "gen_ai.response.finish_reasons": [reason],
            "gen_ai.usage.input_tokens": 31,
            "gen_ai.usage.cache_read.input_tokens": 16,
            "gen_ai.usage.output_tokens": 5,
            "server.address": host,
            "server.port": int(port),
        }
    assert tool.attributes == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.conversation.id": session,
        "gen_ai.tool.name": "calculator",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": "call_1",
    }
    assert request.resource["service.name"] == "session_server"


def test_no_text_key_or_token_is_in_a_trace(start: Serve, model: ModelServer, collector: Collector) -> None:
    made_up = tool_call("made_up_secret", {"secret": 1}, text="A secret", id="call_7")
    model.then(made_up, answer("Very secret"))
    env = {"OPENAI_API_KEY": "sk-secret", "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "process,otel"}
    server = start("-auth_token=token-secret", env=env)
    headers = {"Authorization": "Bearer token-secret"}
    session = server.request("POST", "/sessions", headers=headers).json["id"]
    body = {"message": "Most private, most secret"}
    list(server.request("POST", f"/sessions/{session}/run_stream?secret=1", body, headers).events())
    spans = of_turn(collector.wait_for(6))
    assert "gen_ai.tool.name" not in spans["execute_tool"].attributes
    assert spans["execute_tool"].failed
    assert not re.search(rb"secret|private", b"".join(collector.bodies), re.IGNORECASE)


def test_an_error_of_the_model_server_is_told(start: Serve, model: ModelServer, collector: Collector) -> None:
    model.then(status(401, {}))
    server = start()
    assert server.request("POST", f"/sessions/{server.create()}/run", {"message": "Hi"}).status == 502
    spans = collector.wait_for(4)
    found = {span.name: span for span in spans}
    for name in ("chat m", "invoke_agent"):
        assert found[name].failed
        assert found[name].attributes["error.type"] == "model_unauthorized"
    assert found["invoke_agent"].attributes["session_server.turn.status"] == "model_unauthorized"
    request = found["POST /sessions/{id}/run"]
    assert request.failed
    assert request.attributes["http.response.status_code"] == 502
    assert request.attributes["error.type"] == "502"


def test_each_try_of_a_call_is_a_span(start: Serve, model: ModelServer, collector: Collector) -> None:
    model.then(status(500, {}), answer("OK"))
    turn(start())
    spans = of_turn(collector.wait_for(5))
    assert (spans["chat m"].failed, spans["chat m #2"].failed) == (True, False)
    assert spans["chat m"].attributes["error.type"] == "model_error"


def test_a_tool_that_fails_is_told(start: Serve, model: ModelServer, collector: Collector) -> None:
    model.then(tool_call("calculator", {"expression": "1 / 0"}), answer("No."))
    turn(start())
    tool = of_turn(collector.wait_for(6))["execute_tool calculator"]
    assert tool.failed
    assert tool.attributes["error.type"] == "error"


def test_a_tool_sees_its_own_span_and_one_that_hangs_is_told(
    start: Serve, model: ModelServer, collector: Collector, tmp_path: Path
) -> None:
    tools = tmp_path / "mine.py"
    tools.write_text(
        "import time\n"
        "from opentelemetry import trace\n"
        "def span() -> str:\n"
        "    return format(trace.get_current_span().get_span_context().span_id, '016x')\n"
        "def hang() -> str:\n"
        "    time.sleep(60)\n"
    )
    model.then(tool_calls(("span", {}), ("hang", {})), answer("OK"))
    server = start(f"-tools={tools}", "-tool_timeout=0.2", "-metrics")
    _, events = turn(server)
    spans = of_turn(collector.wait_for(7))
    results = [event["data"] for event in events if event["type"] == "stream_tool_result"]
    assert results[0]["result"] == spans["execute_tool span"].id
    assert spans["execute_tool hang"].attributes["error.type"] == "timeout"
    counted = 'session_server_tool_calls_total{outcome="timeout",tool="hang"} 1.0'
    assert counted in server.request("GET", "/metrics").text


def test_turns_at_the_same_time_are_traces_apart(start: Serve, model: ModelServer, collector: Collector) -> None:
    model.default = answer("Hel", STALL)
    server = start()
    sessions = [server.create(), server.create()]
    streams = [server.say(session, "Hi") for session in sessions]
    for stream in streams:
        events = stream.events()
        assert [next(events)["type"], next(events)["type"]] == ["stream_start", "stream_chunk"]
    for session in sessions:
        assert server.request("POST", f"/sessions/{session}/cancel").json == {"cancelled": True}
    for stream in streams:
        assert list(stream.events())[-1]["data"]["status"] == "cancelled"
    spans = collector.wait_for(10)
    agents = [span for span in spans if span.name == "invoke_agent"]
    assert [span.attributes["gen_ai.conversation.id"] for span in agents] == sessions
    assert not any(span.failed for span in spans)
    for agent in agents:
        names = {span.name for span in spans if span.trace == agent.trace}
        assert names == {REQUEST, "invoke_agent", "chat m"}


def test_a_caller_that_may_not_call_is_told_as_no_failure(start: Serve, collector: Collector) -> None:
    server = start()
    assert server.request("GET", "/sessions/session-x").status == 404
    assert server.request("NONSENSE", "/nothing/here").status in (404, 405)
    missing, nonsense = collector.wait_for(2)
    assert (missing.name, missing.failed) == ("GET /sessions/{id}", False)
    assert (nonsense.name, nonsense.attributes["http.request.method"]) == ("HTTP", "_OTHER")


def test_probes_are_no_traces(start: Serve, collector: Collector) -> None:
    server = start("-metrics")
    for path in ("/health", "/ready", "/metrics", "/models"):
        assert server.request("GET", path).status == 200
    assert [span.name for span in collector.wait_for(1)] == ["GET /models"]


def test_a_trace_that_comes_in_goes_on_to_the_model_server(
    start: Serve, model: ModelServer, collector: Collector
) -> None:
    model.then(status(500, {}), answer("OK"))
    turn(start(), traceparent=TRACEPARENT, tracestate="vendor=1", baggage="user=ann")
    spans = of_turn(collector.wait_for(5))
    assert {span.trace for span in spans.values()} == {TRACE}
    assert spans[REQUEST].parent == PARENT
    sent = [headers["traceparent"] for headers in model.headers]
    assert sent == [f"00-{TRACE}-{spans[name].id}-01" for name in ("chat m", "chat m #2")]
    assert all(headers["tracestate"] == "vendor=1" for headers in model.headers)
    assert not any("baggage" in headers for headers in model.headers)


@pytest.mark.parametrize("sent", ["nonsense", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", ""])
def test_a_trace_that_is_none_begins_a_new_one(start: Serve, collector: Collector, sent: str) -> None:
    turn(start(), traceparent=sent)
    spans = of_turn(collector.wait_for(4))
    assert spans[REQUEST].parent == ""
    assert spans[REQUEST].trace not in (TRACE, "0" * 32)


def test_a_trace_that_is_not_sampled_is_passed_on_and_not_sent(
    start: Serve, model: ModelServer, collector: Collector
) -> None:
    server = start()
    turn(server, traceparent=f"00-{TRACE}-{PARENT}-00")
    assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-00", model.headers[0]["traceparent"])
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert [span.name for span in collector.wait_for(1)] == ["POST /sessions"]


def mcp_config(tmp_path: Path, server: dict[str, Any]) -> str:
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": {"one": server}}))
    return f"-mcp_config={path}"


def test_a_trace_goes_on_to_an_mcp_server(
    start: Serve, model: ModelServer, collector: Collector, tmp_path: Path
) -> None:
    log = tmp_path / "one.log"
    server = start(mcp_config(tmp_path, {"command": sys.executable, "args": [SCRIPT, str(log)]}))
    model.then(tool_call("one__echo", {"text": "Hi"}), answer("OK"))
    turn(server, traceparent=TRACEPARENT)
    tool = of_turn(collector.wait_for(6))["execute_tool one__echo"]
    messages = [json.loads(line) for line in log.read_text().splitlines()]
    call = next(message for message in messages if message.get("method") == "tools/call")
    assert call["params"]["_meta"]["traceparent"] == f"00-{TRACE}-{tool.id}-01"
    assert not any("traceparent" in json.dumps(message) for message in messages if message is not call)


def test_a_trace_goes_on_to_an_mcp_server_over_http_as_a_header_too(
    start: Serve, model: ModelServer, collector: Collector, tmp_path: Path
) -> None:
    pytest.importorskip("uvicorn")
    log = tmp_path / "sdk.log"
    peer = subprocess.Popen([sys.executable, SDK_SERVER, "http", str(log), "0"])
    try:
        wait_until(log.with_suffix(".port").exists)
        address = f"http://127.0.0.1:{log.with_suffix('.port').read_text()}/mcp"
        server = start(mcp_config(tmp_path, {"url": address}))
        model.then(tool_call("one__trace", {}), answer("OK"))
        _, events = turn(server, traceparent=TRACEPARENT)
        tool = of_turn(collector.wait_for(6))["execute_tool one__trace"]
        result = next(event["data"]["result"] for event in events if event["type"] == "stream_tool_result")
        assert result == f"00-{TRACE}-{tool.id}-01"
    finally:
        peer.kill()
        peer.wait()


def test_sigterm_sends_what_there_is(start: Serve, model: ModelServer, collector: Collector) -> None:
    model.then(answer("Hel", STALL))
    server = start("-grace=0", env={"OTEL_BSP_SCHEDULE_DELAY": "600000"})
    stream = server.say(server.create(), "Hi")
    events = stream.events()
    assert [next(events)["type"], next(events)["type"]] == ["stream_start", "stream_chunk"]
    server.send_signal(signal.SIGTERM)
    assert list(events)[-1]["data"]["code"] == "shutting_down"
    assert server.wait() == 0
    spans = of_turn(collector.wait_for(4))
    assert set(spans) == {REQUEST, "invoke_agent", "chat m"}
    assert spans["invoke_agent"].attributes["error.type"] == "shutting_down"
    assert not spans["chat m"].failed


@pytest.mark.parametrize("silent", [True, False])
def test_a_collector_that_is_away_costs_no_turn_and_no_long_shutdown(
    start: Serve, collector: Collector, silent: bool
) -> None:
    env = {} if silent else {"OTEL_EXPORTER_OTLP_ENDPOINT": nobody_listens().removesuffix("/v1")}
    collector.hold.clear()
    server = start(env=env)
    for _ in range(3):
        assert turn(server)[1][-1]["type"] == "stream_end"
    if silent:
        assert collector.asked.wait(TIMEOUT)
    began_at = time.monotonic()
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert time.monotonic() - began_at < 10
    log = server.log.read_text()
    assert "Traceback" not in log
    assert len(log.splitlines()) < 20


def test_without_an_exporter_nothing_is_imported() -> None:
    environments: list[dict[str, str]] = [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:9"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
    ]
    script = (
        "import json, os, sys, session_server\n"
        "initial = dict(os.environ)\n"
        "for more in json.loads(sys.argv[1]):\n"
        "    os.environ.clear()\n"
        "    os.environ.update(initial | more)\n"
        "    session_server.build_app()\n"
        "    optional = ('opentelemetry', 'session_core.telemetry.traces')\n"
        "    print([name for name in sys.modules if name.startswith(optional)])\n"
    )
    command = [sys.executable, "-c", script, json.dumps(environments)]
    env = environment({"SESSION_SERVER_DEMO": "true"})
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n" * len(environments)


def test_an_exporter_by_another_name_gets_the_traces(serve: Serve, tmp_path: Path) -> None:
    output = tmp_path / "output"
    script = (
        "import session_server\n"
        "app = session_server.build_app()\n"
        "assert app.test_client().get('/models', buffered=True).status_code == 200\n"
    )
    env = environment({"SESSION_SERVER_DEMO": "true", "OTEL_TRACES_EXPORTER": "console"})
    with output.open("w") as file:
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, stdout=file, check=True, timeout=TIMEOUT)
    assert json.loads(output.read_text())["name"] == "GET /models"


@pytest.mark.parametrize("env", [{"OTEL_TRACES_EXPORTER": "pigeon"}, {"OTEL_EXPORTER_OTLP_PROTOCOL": "pigeon"}])
def test_an_exporter_that_there_is_not_is_an_error_that_names_the_remedy(env: dict[str, str]) -> None:
    env = environment({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", **env})
    done = subprocess.run([*SERVER, "-demo", "-port=0"], env=env, capture_output=True, text=True, timeout=TIMEOUT)
    remedy = "install it, or set OTEL_TRACES_EXPORTER=none"
    assert done.returncode == 2
    assert done.stderr == f"session_server: OpenTelemetry: there is no exporter pigeon of traces: {remedy}\n"
