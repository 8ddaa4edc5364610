"""An MCP server at an address, spoken to by streamable HTTP."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pydantic_core
from mcp.client.streamable_http import streamable_http_client

from session_core.tools.mcp_answers import MAX_MESSAGE_BYTES, failed_answer, read_messages
from session_core.tools.mcp_config import McpServer

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
            event_hooks={"request": [_add_trace], "response": [_mend]},
        ) as http,
        streamable_http_client(server.url, http_client=http, max_sse_event_size=2 * MAX_MESSAGE_BYTES) as streams,
    ):
        yield streams


async def _add_trace(request: httpx2.Request) -> None:
    """Has a header say to which trace a call belongs, as its metadata does: proxies read only headers."""
    meta = _sent(await request.aread()).get("params", {}).get("_meta", {})
    for name in ("traceparent", "tracestate"):
        if name in meta:
            request.headers[name] = meta[name]


async def _mend(response: httpx2.Response) -> None:
    """Has the SDK see a redirect that keeps the message, and answers in the form of the protocol."""
    if response.has_redirect_location:
        if response.status_code in (301, 302):  # by which browsers turn a POST into a GET
            response.status_code = 308
        return
    asked = _sent(response.request.content).get("id")
    kind = response.headers.get("content-type", "").lower()
    is_stream = kind.startswith("text/event-stream") and response.is_success
    if response.status_code == 202 or (asked is None and not is_stream):
        return
    received = httpx2.Response(
        response.status_code, headers=response.headers, stream=response.stream, request=response.request
    )
    response.stream = _Mended(received, _events(received, asked) if is_stream else _body(received, asked))
    response.headers.pop("content-encoding", None)
    response.headers["content-type"] = "text/event-stream" if is_stream else "application/json"


def _sent(content: bytes) -> dict[str, Any]:
    """The message that a request carries."""
    message: dict[str, Any] = pydantic_core.from_json(content) if content else {}
    return message


@dataclass(frozen=True)
class _Mended(httpx2.AsyncByteStream):
    received: httpx2.Response
    parts: AsyncGenerator[bytes, None]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.parts

    async def aclose(self) -> None:
        await self.parts.aclose()
        await self.received.aclose()


async def _body(received: httpx2.Response, asked: Any) -> AsyncGenerator[bytes, None]:
    """The answer that is the whole body, or one that says why there is none."""
    body = bytearray()
    try:
        async for part in received.aiter_bytes():
            body += part
            if len(body) > MAX_MESSAGE_BYTES:
                raise httpx2.StreamError("the answer is too long")
        answers = _for(asked, read_messages(body.decode("utf-8-sig", "replace")))
        words = "the answer is no message" if received.is_success else f"HTTP status {received.status_code}"
    except (httpx2.HTTPError, httpx2.StreamError) as error:
        answers, words = [], str(error) or type(error).__name__
    answer = next((answer for answer in answers if "method" not in answer), failed_answer(asked, words))
    yield pydantic_core.to_json(answer, inf_nan_mode="null")


async def _events(received: httpx2.Response, asked: Any) -> AsyncGenerator[bytes, None]:
    """The events of a stream, each with one message. What is no message is left out, such as a heartbeat."""
    async for event in httpx2.EventSource(received, MAX_MESSAGE_BYTES):
        head = f"id: {event.id}\n" if event.id else ""
        head += f"retry: {event.retry}\n" if event.retry is not None else ""
        messages = _for(asked, read_messages(event.data))
        if not messages and asked is not None and '"jsonrpc"' in event.data:
            messages = [failed_answer(asked, "the answer is no message")]
        for data in [pydantic_core.to_json(message, inf_nan_mode="null") for message in messages] or [b""]:
            yield head.encode() + b"data: " + data + b"\n\n"


def _for(asked: Any, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, of which each answer belongs to the request whose response they came in."""
    return [message if "method" in message or asked is None else {**message, "id": asked} for message in messages]
