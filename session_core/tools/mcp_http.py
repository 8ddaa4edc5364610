"""An MCP server at an address, spoken to by streamable HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
from mcp.client.streamable_http import streamable_http_client

from session_core.tools.mcp_config import McpServer
from session_core.tools.mcp_stdio import MAX_MESSAGE_BYTES

_SECONDS = 30.0  # to connect, and to send


@asynccontextmanager
async def http_transport(server: McpServer) -> AsyncGenerator[Any, None]:
    """Yields the streams of the server's messages. A proxy of the environment is used, but not to this machine."""
    loopback = urlsplit(server.url).hostname in ("localhost", "127.0.0.1", "::1")
    async with (
        httpx2.AsyncClient(
            headers=dict(server.headers),
            timeout=httpx2.Timeout(_SECONDS, read=None),  # each call has a time of its own
            trust_env=not loopback,
            event_hooks={"request": [_add_trace], "response": [_bound]},
        ) as http,
        streamable_http_client(server.url, http_client=http, max_sse_event_size=MAX_MESSAGE_BYTES) as streams,
    ):
        yield streams


async def _add_trace(request: httpx2.Request) -> None:
    """Has a header say to which trace a call belongs, as its metadata does: proxies read only headers."""
    if b'"traceparent"' in request.content:
        params = json.loads(request.content).get("params")
        meta = params.get("_meta") if isinstance(params, dict) else None
        for name in ("traceparent", "tracestate"):
            if isinstance(meta, dict) and isinstance(meta.get(name), str):
                request.headers[name] = meta[name]


async def _bound(response: httpx2.Response) -> None:
    """Bounds a body that is one message. The events of a stream are bounded one by one."""
    if response.headers.get("content-type", "").lower().startswith("application/json"):
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _BoundedStream(response.stream)


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._stream:
            size += len(part)
            if size > MAX_MESSAGE_BYTES:
                raise httpx2.StreamError("the answer is too long")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()
