"""Tools of MCP servers, on one event loop that a thread of its own runs.

McpServers starts the servers, keeps them, and returns their tools. Calls come from the threads of turns.
"""

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import anyio
import mcp_types

from session_core.tools.mcp_config import McpError, McpServer
from session_core.tools.mcp_connection import McpConnection, words_of
from session_core.tools.mcp_http import http_transport
from session_core.tools.mcp_stdio import Guard, Stderr, stdio_transport
from session_core.tools.mcp_tools import McpTool, tool_name

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.5  # before a server that ended is started again
_LONGEST_PAUSE_SECONDS = 60.0
_FAREWELL_SECONDS = 3.0  # for a server at an address to hear that its session ends
_END_SECONDS = 10.0  # for all servers to end


class McpServers:
    """MCP servers, from `start` to `close`. A server that ends is started again, with growing pauses; its tools fail
    meanwhile."""

    def __init__(self, servers: Sequence[McpServer]) -> None:
        self._guard = Guard()
        self._stop = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._servers = [_Server(server, self._guard) for server in servers]
        self._thread = threading.Thread(target=self._run, name="mcp", daemon=True)
        self._lock = threading.Lock()
        self._names: dict[tuple[str, str], str] = {}  # of tools that are offered, by server and own name

    def start(self) -> None:
        """Starts the servers, and waits until they have listed their tools.

        An optional server is not waited for longer than its time. Raises McpError where another does not start.
        """
        self._guard.start()
        self._thread.start()
        began_at = time.monotonic()
        try:
            for server in self._servers:
                server.wait(began_at)
        except McpError:
            self.close()
            raise

    def tools(self) -> list[McpTool]:
        """The tools of all servers, as the servers listed them last. Those that come later stand behind the others:
        the beginning of requests to the model stays the same, and so do names."""
        listed = {
            (server.settings.name, tool.name): (server, tool)
            for server in self._servers
            for tool in server.connection.tools
        }
        with self._lock:
            self._names = {key: name for key, name in self._names.items() if key in listed}
            taken = set(self._names.values())
            for server, tool in listed:
                if (server, tool) not in self._names:
                    self._names[server, tool] = tool_name(server, tool, taken)
            offered = [(name, *listed[key]) for key, name in self._names.items()]
        return [McpTool(name, tool, server.settings, server.call, self._loop) for name, server, tool in offered]

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
    """One server, whose connection is made again and again."""

    def __init__(self, settings: McpServer, guard: Guard) -> None:
        self.settings = settings
        self._guard = guard
        self._first: concurrent.futures.Future[str] = concurrent.futures.Future()  # try to start
        self._older = False  # it knows the older handshake alone
        self._stderr = Stderr()
        self.connection = McpConnection(settings)  # the last one that stood
        self.connection.gone.set()
        self._scope: anyio.CancelScope | None = None
        self._ending = False

    async def call(self, tool: str, arguments: dict[str, Any], call_id: str) -> mcp_types.CallToolResult:
        """Calls a tool. When the task is cancelled, the server is told. Raises ValueError in words for the model."""
        return await self.connection.call(tool, arguments, call_id)

    def wait(self, began_at: float) -> None:
        """Waits for the end of the first try to start. Raises McpError where the server must start, and does not."""
        seconds = self.settings.start_seconds
        try:
            reason = self._first.result(max(0.0, began_at + seconds - time.monotonic()))
        except TimeoutError:
            reason = self._with_last_line(f"it did not answer within {seconds:g} s")
        if reason and not self.settings.optional:
            raise McpError(f"the MCP server {self.settings.name} does not start: {reason}")
        if reason:
            log.warning("MCP server %s: %s; going on without it for now", self.settings.name, reason)

    async def keep(self) -> None:
        """Keeps a connection until `end`, or until the first try fails and must not."""
        pause = _FIRST_PAUSE_SECONDS
        with anyio.CancelScope() as self._scope:
            while not self._ending:
                began_at = time.monotonic()
                reason = await self._connect()
                if self._ending:
                    return
                if not self._first.done() and not self.settings.optional:
                    self._first.set_result(reason)
                    return
                if time.monotonic() - began_at > _LONGEST_PAUSE_SECONDS:
                    pause = _FIRST_PAUSE_SECONDS
                log.warning("MCP server %s: %s; trying again in %g s", self.settings.name, reason, pause)
                self._tried()
                await anyio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def end(self) -> None:
        """Ends `keep`."""
        self._ending = True
        if self._scope and self.connection.gone.is_set():
            self._scope.cancel()
        self.connection.gone.set()

    async def _connect(self) -> str:
        """Makes a connection, waits for its end, and returns the reason."""
        connection = McpConnection(self.settings)
        reason = await self._attempt(connection)
        if connection.gone.is_set() and connection is not self.connection and not self._older:
            # Some older servers end at the first request of the newer handshake, which they do not know.
            self._older, connection = True, McpConnection(self.settings)
            reason = await self._attempt(connection)
        was_up = connection is self.connection
        self._older = self._older and was_up  # or it may have become a newer one
        # What it writes later may quote a message, and is not for the log.
        return reason if was_up else self._with_last_line(reason)

    async def _attempt(self, connection: McpConnection) -> str:
        """A connection from its beginning to its end. An address that is silent is given up; a program that is still
        starting is not."""
        self._stderr = Stderr()
        if self.settings.url:
            transport = http_transport(self.settings)
        else:
            transport = stdio_transport(
                self.settings,
                self._guard,
                self._stderr,
                on_end=connection.gone.set,
                on_rubbish=lambda: connection.warn("it writes lines to its output that are no messages"),
            )
        seconds = self.settings.start_seconds if self.settings.url else None
        try:
            with anyio.move_on_after(seconds) as deadline:
                async with connection.opened(transport, self._older):
                    deadline.deadline = float("inf")
                    self.connection = connection
                    self._tried()
                    await connection.follow()
        except Exception as error:  # noqa: BLE001  whatever a server does costs its own tools
            return words_of(error)
        return f"it did not answer within {seconds:g} s" if deadline.cancelled_caught else "it ended"

    def _tried(self) -> None:
        if not self._first.done():
            self._first.set_result("")

    def _with_last_line(self, reason: str) -> str:
        written = self._stderr.last_line
        return f"{reason}; its last line of output: {written}" if written else reason
