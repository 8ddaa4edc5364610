"""Tools of MCP servers, on one event loop that a thread of its own runs.

McpServers starts the servers, keeps them, and returns their tools. Calls come from the threads of turns.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib.metadata
import logging
import math
import threading
import time
from collections.abc import Sequence
from typing import Any, cast

import anyio
import mcp_types
import pydantic
from mcp.client import Client, IncomingMessage
from mcp.client.client import ConnectMode
from mcp.client.subscriptions import SubscriptionLost
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from session_core.tools.mcp_config import McpError, McpServer
from session_core.tools.mcp_http import http_transport
from session_core.tools.mcp_stdio import Guard, Stderr, stdio_transport
from session_core.tools.mcp_tools import McpTool, tool_names

log = logging.getLogger(__name__)

CALL_ID = "session-server/call-id"  # the key of a call's id in the metadata of its request

_START_SECONDS = 10.0  # to start a server, to reach it, to list its tools
_FIRST_PAUSE_SECONDS = 0.5  # before a server that ended is started again
_LONGEST_PAUSE_SECONDS = 60.0
_RELIST_SECONDS = 0.1  # at least between two lists of tools
_FAREWELL_SECONDS = 3.0  # for a server at an address to hear that its session ends
_END_SECONDS = 10.0  # for all servers to end
_MAX_TOOLS = 100  # of one server; model servers take 128 in all
_MAX_PAGES = 100  # of a list of tools

_NOT_RUNNING = "the MCP server {} is not running; it is being started again"


class McpServers:
    """MCP servers, started when this is made, and kept until `close`.

    A server that ends is started again, with growing pauses; its tools fail meanwhile. Raises McpError where a server
    that is not optional does not start within ten seconds.
    """

    def __init__(self, servers: Sequence[McpServer]) -> None:
        self._guard = Guard()
        self._stop = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._servers = [_Server(server, self._guard) for server in servers]
        self._thread = threading.Thread(target=self._run, name="mcp", daemon=True)
        self._thread.start()
        try:
            for server in self._servers:
                server.first.result()
        except McpError:
            self.close()
            raise

    def tools(self) -> list[McpTool]:
        """The tools of all servers, as the servers listed them last."""
        found = []
        taken: set[str] = set()
        for server in self._servers:
            tools = server.tools
            names = tool_names(server.name, [tool.name for tool in tools], taken)
            found += [McpTool(names[tool.name], tool, server.name, server.call, self._loop) for tool in tools]
        return found

    def close(self) -> None:
        """Ends the servers, and waits until they have ended. Calls that still run fail. May be repeated."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_END_SECONDS)
        self._guard.close()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._keep())

    async def _keep(self) -> None:
        async with anyio.create_task_group() as tasks:
            for server in self._servers:
                tasks.start_soon(server.keep)
            await self._stop.wait()
            for server in self._servers:
                server.end()
            tasks.cancel_scope.deadline = anyio.current_time() + _FAREWELL_SECONDS


class _Server:
    """One server: its connection, which is made again and again, and the tools that it listed last."""

    def __init__(self, server: McpServer, guard: Guard) -> None:
        self.name = server.name
        self.first: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.tools: tuple[mcp_types.Tool, ...] = ()
        self._server = server
        self._guard = guard
        self._mode: ConnectMode = "auto"
        self._client: Client | None = None
        self._scope: anyio.CancelScope | None = None
        self._ending = False
        self._gone = anyio.Event()
        self._changed = anyio.Event()
        self._rubbish_seen = False

    async def call(self, tool: str, arguments: dict[str, Any], call_id: str) -> mcp_types.CallToolResult:
        """Calls a tool. When the task is cancelled, the server is told. Raises ValueError in words for the model."""
        client = self._client
        if client is None:
            raise ValueError(_NOT_RUNNING.format(self.name))
        try:
            meta = cast(mcp_types.RequestParamsMeta, {CALL_ID: call_id})
            return await client.call_tool(tool, arguments, meta=meta if call_id else None)
        except MCPError as error:
            if error.code == mcp_types.CONNECTION_CLOSED:
                raise ValueError(f"the MCP server {self.name} ended during the call") from None
            if (
                self._server.url and error.message == "Session terminated"
            ):  # by a server for HTTP that was started anew
                self._gone.set()
            raise ValueError(error.message) from None
        except pydantic.ValidationError:
            raise ValueError(f"the answer of the MCP server {self.name} does not fit the protocol") from None
        except RuntimeError as error:  # the structured content does not fit its schema
            raise ValueError(str(error).partition("\n")[0]) from None

    async def keep(self) -> None:
        """Keeps the connection until `end`, or until the first try fails and must not."""
        with anyio.CancelScope() as self._scope:
            await self._keep()

    def end(self) -> None:
        """Ends `keep`."""
        self._ending = True
        if self._client:
            self._gone.set()
        elif self._scope:
            self._scope.cancel()

    async def _keep(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._ending:
            began_at = time.monotonic()
            reason = await self._connection()
            if self._ending:
                return
            if not self.first.done() and not self._server.optional:
                self.first.set_exception(McpError(f"the MCP server {self.name} does not start: {reason}"))
                return
            if time.monotonic() - began_at > _LONGEST_PAUSE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            log.warning("MCP server %s: %s; trying again in %g s", self.name, reason, pause)
            if not self.first.done():
                self.first.set_result(None)
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _connection(self) -> str:
        """Connects, follows the list of tools, and returns the reason of the end."""
        stderr = Stderr()
        try:
            with anyio.move_on_after(_START_SECONDS) as deadline:
                try:
                    await self._connected(self._mode, stderr, deadline)
                except Exception as error:
                    was_up = deadline.deadline == math.inf
                    if was_up or self._mode == "legacy" or not _may_be_older(self._server, error):
                        raise
                    # Some older servers end at the first request of the newer handshake, which they do not know.
                    log.debug("MCP server %s: trying the older handshake", self.name)
                    await self._connected("legacy", stderr, deadline)
        except Exception as error:  # noqa: BLE001  whatever a server does costs its own tools
            reason = _words(error)
        else:
            reason = f"it did not answer within {_START_SECONDS:g} s" if deadline.cancelled_caught else "it ended"
        if deadline.deadline != math.inf:
            self._mode = "auto"  # the server may have become a newer one
        # What it writes later may quote a message, and is not for the log.
        written = "" if deadline.deadline == math.inf else stderr.last_line
        return f"{reason}; its last line of output: {written}" if written else reason

    async def _connected(self, mode: ConnectMode, stderr: Stderr, deadline: anyio.CancelScope) -> None:
        """One connection, until its end. Once it stands, the deadline is lifted."""
        gone = self._gone = anyio.Event()
        self._rubbish_seen = False
        if self._server.url:
            transport = http_transport(self._server)
        else:
            transport = stdio_transport(self._server, self._guard, stderr, gone.set, self._rubbish)
        async with Client(
            transport,
            mode=mode,
            cache=None,
            message_handler=self._heard,
            client_info=mcp_types.Implementation(name="session_server", version=_version()),
        ) as client:
            self.tools = await self._list(client)
            deadline.deadline = math.inf
            self._mode = mode
            if not self.first.done():
                self.first.set_result(None)
            log.info("MCP server %s: %d tools", self.name, len(self.tools))
            self._client = client
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._follow, client)
                    await gone.wait()
                    tasks.cancel_scope.cancel()
            finally:
                self._client = None

    async def _list(self, client: Client) -> tuple[mcp_types.Tool, ...]:
        found: dict[str, mcp_types.Tool] = {}
        cursor = None
        for _ in range(_MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            found |= {tool.name: tool for tool in page.tools}
            cursor = page.next_cursor
            if cursor is None or len(found) > _MAX_TOOLS:
                break
        if len(found) > _MAX_TOOLS:
            log.warning("MCP server %s lists over %d tools: the others are left out", self.name, _MAX_TOOLS)
        return tuple(found.values())[:_MAX_TOOLS]

    async def _follow(self, client: Client) -> None:
        """Lists the tools again whenever the server says that they have changed."""
        async with anyio.create_task_group() as tasks:
            if client.protocol_version in MODERN_PROTOCOL_VERSIONS:
                tasks.start_soon(self._subscribe, client)
            while True:
                await self._changed.wait()
                self._changed = anyio.Event()
                try:
                    with anyio.fail_after(_START_SECONDS):
                        self.tools = await self._list(client)
                    log.info("MCP server %s: now %d tools", self.name, len(self.tools))
                except (MCPError, TimeoutError, pydantic.ValidationError) as error:
                    log.warning("MCP server %s: cannot list its tools again: %s", self.name, _words(error))
                await anyio.sleep(_RELIST_SECONDS)

    async def _subscribe(self, client: Client) -> None:
        """Asks a server of a newer protocol to tell of changes, which then come as notifications."""
        tools = client.server_capabilities.tools
        pause = _FIRST_PAUSE_SECONDS
        while tools and tools.list_changed:
            try:
                async with client.listen(tools_list_changed=True) as subscription:
                    self._changed.set()  # while nobody listened
                    async for _ in subscription:
                        pass
            except SubscriptionLost:
                pass
            except MCPError as error:
                if error.code == mcp_types.METHOD_NOT_FOUND:
                    return
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _heard(self, message: IncomingMessage) -> None:
        if isinstance(message, mcp_types.ToolListChangedNotification):
            self._changed.set()

    def _rubbish(self) -> None:
        if not self._rubbish_seen:
            log.warning("MCP server %s writes lines to its output that are no messages", self.name)
        self._rubbish_seen = True


def _version() -> str:
    try:
        return importlib.metadata.version("session-server")
    except importlib.metadata.PackageNotFoundError:  # it runs from a checkout
        return "0"


def _may_be_older(server: McpServer, error: Exception) -> bool:
    """Whether a server that failed so may be one that only knows the older handshake."""
    return not server.url and not isinstance(_first(error), OSError)


def _words(error: BaseException) -> str:
    """What went wrong, in one line."""
    error = _first(error)
    if isinstance(error, MCPError):
        closed = error.code == mcp_types.CONNECTION_CLOSED
        return "it ended before it answered" if closed else " ".join(error.message.split())[:300]
    if isinstance(error, FileNotFoundError):
        return f"there is no program {error.filename}"
    if isinstance(error, pydantic.ValidationError):
        return "its answer does not fit the protocol"
    text = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
    return text or type(error).__name__


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
