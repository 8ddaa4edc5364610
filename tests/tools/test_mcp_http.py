"""MCP servers at an address: sessions that are lost, redirects, answers in other forms."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator

import pytest

from session_core.tools.mcp_config import McpError, McpServer
from tests.support.mcp_http_server import McpHttpServer, Refusal
from tests.support.server import wait_until

pytest.importorskip("mcp", reason="needs the MCP SDK")

from opentelemetry import trace

from session_core.tools.mcp import McpServers
from tests.support.mcp_servers import call

RESULT = '{"jsonrpc":"2.0","id":$ID,"result":{"content":[{"type":"text","text":"fine"}]}}'
UNKNOWN = json.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": "Who is this?"}})


@pytest.fixture
def server() -> Iterator[McpHttpServer]:
    with McpHttpServer() as server:
        yield server


@pytest.fixture(scope="module")
def web() -> Iterator[McpServers]:
    """One server for all that only ask it."""
    with McpHttpServer() as server:
        servers = McpServers([McpServer("web", url=server.url)])
        servers.start()
        yield servers
        servers.close()


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(404, "application/json", UNKNOWN),
        Refusal(400, "application/json", UNKNOWN),
        Refusal(404, "text/plain", "Session not found"),
        Refusal(400, "text/html", "<p>No valid session ID provided</p>"),
        Refusal(200, "application/json", UNKNOWN),
        Refusal(401, "application/json", '{"detail":"gone"}'),
        Refusal(502, "text/html", ""),
        Refusal(200, "text/event-stream", f"data: {UNKNOWN}\n\n"),
    ],
)
def test_a_server_that_has_forgotten_its_session_is_greeted_again_whatever_it_answers(
    start: Callable[..., McpServers], server: McpHttpServer, refusal: Refusal
) -> None:
    servers = start(McpServer("web", url=server.url))
    assert call(servers, "web__raw", body=RESULT) == "fine"
    server.refusal = refusal
    server.sessions.clear()
    with pytest.raises(ValueError, match=r"Who is this\?|HTTP status|not running"):
        call(servers, "web__raw", body=RESULT)

    def works() -> bool:
        with contextlib.suppress(ValueError):
            return call(servers, "web__raw", body=RESULT) == "fine"
        return False

    wait_until(works)
    assert server.greetings == 2


def test_an_error_of_a_tool_ends_no_session(start: Callable[..., McpServers], server: McpHttpServer) -> None:
    servers = start(McpServer("web", url=server.url))
    error = '{"jsonrpc":"2.0","id":$ID,"error":{"code":-32602,"message":"no such city"}}'
    for status in (200, 400, 500):
        with pytest.raises(ValueError, match="no such city"):
            call(servers, "web__raw", body=error, status=status)
    assert call(servers, "web__raw", body=RESULT) == "fine"
    assert server.greetings == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_within_the_origin_is_followed(
    start: Callable[..., McpServers], server: McpHttpServer, status: int
) -> None:
    server.redirect = status
    servers = start(McpServer("web", url=server.url))
    assert call(servers, "web__raw", body=RESULT) == "fine"


def test_the_header_of_a_trace_goes_where_the_redirect_leads(
    start: Callable[..., McpServers], server: McpHttpServer
) -> None:
    server.redirect = 307
    servers = start(McpServer("web", url=server.url))
    context = trace.SpanContext(0xA, 0xB, is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(context)):
        assert call(servers, "web__raw", body=RESULT) == "fine"
    assert server.traces == [f"00-{0xA:032x}-{0xB:016x}-01"]


def test_a_redirect_to_another_origin_is_named(start: Callable[..., McpServers], server: McpHttpServer) -> None:
    server.redirect, server.location = 307, "http://elsewhere.example/mcp"
    with pytest.raises(McpError, match=r"web does not start: Redirect to http://elsewhere\.example/mcp not followed"):
        start(McpServer("web", url=server.url))


def test_a_server_that_wants_a_key_is_named_with_the_status(start: Callable[..., McpServers]) -> None:
    with McpHttpServer() as server:
        server.redirect, server.location = 401, ""
        with pytest.raises(McpError, match="web does not start: HTTP status 401"):
            start(McpServer("web", url=server.url))


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", RESULT),
        ("application/json; charset=utf-8", "\ufeff" + RESULT),
        ("application/json", f"[{RESULT}]"),
        ("application/json", RESULT + RESULT),
        ("application/json", RESULT.replace("$ID", "null")),
        ("application/json", RESULT.replace("$ID", "77")),
        ("text/plain", RESULT),
        ("text/event-stream", f"data: {RESULT}\n\n"),
        ("text/event-stream", f": hello\r\nevent: response\r\nid: 1\r\ndata: {RESULT}\r\n\r\n"),
        ("text/event-stream", f'data: ping\n\ndata:\n\ndata: {{"level":"info","id":1}}\n\ndata: {RESULT}\n\n'),
        ("text/event-stream", f"data: {RESULT.replace('$ID', 'null')}\r\r"),
        ("text/event-stream", "data: " + RESULT.replace(',"result', ',\ndata: "result') + "\n\n"),
    ],
)
def test_an_answer_is_read_in_whatever_form_it_comes(web: McpServers, content_type: str, body: str) -> None:
    assert call(web, "web__raw", body=body, content_type=content_type) == "fine"


@pytest.mark.parametrize(
    ("content_type", "body", "said"),
    [
        ("application/json", "{", "the answer is no message"),
        ("text/html", "<p>Hello</p>", "the answer is no message"),
        ("application/json", "", "the answer is no message"),
        ("text/event-stream", 'data: {"jsonrpc":"2.0","id":$ID,"result":\n\n', "the answer is no message"),
        ("text/event-stream", "", "ended without a response"),
        ("application/json", '{"jsonrpc":"2.0","id":$ID,"error":"kaput"}', "kaput"),
    ],
)
def test_an_answer_that_is_none_fails_at_once(web: McpServers, content_type: str, body: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call(web, "web__raw", body=body, content_type=content_type)
    assert call(web, "web__raw", body=RESULT) == "fine"
