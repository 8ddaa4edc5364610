"""A connection to one MCP server, from the greeting to its end."""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import mcp_types
import pydantic
from mcp import ClientSession, MCPError
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost, listen
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher

from session_core.data.text import as_object
from session_core.tools.mcp_answers import read_result, without_base64
from session_core.tools.mcp_config import McpServer
from session_core.tools.mcp_tools import read_tools

log = logging.getLogger(__name__)

CALL_ID = "session-server/call-id"  # the key of a call's id in the metadata of its request

_GREETING_SECONDS = 10.0  # for the newer handshake, which some older servers never answer
_LIST_SECONDS = 10.0  # to list the tools again
_RELIST_SECONDS = 0.1  # at least between two lists of tools
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 60.0  # before a server is asked again to tell of changes
_MAX_TOOLS = 100  # of one server; model servers take 128 in all
_MAX_PAGES = 100  # of a list of tools
_NAMELESS = {"name": "", "version": ""}  # what a server says of itself is not looked at


class McpConnection:
    """A connection to `server`. Its tools stay known when it has ended."""

    def __init__(self, server: McpServer) -> None:
        self.tools: tuple[mcp_types.Tool, ...] = ()
        self.gone = anyio.Event()  # once this is set, the connection ends
        self._server = server
        self._session: ClientSession | None = None
        self._changed = anyio.Event()
        self._warned: set[str] = set()

    @asynccontextmanager
    async def opened(self, transport: Any, older: bool) -> AsyncGenerator[None, None]:
        """Greets the server, with the `older` handshake alone if that is wanted, and lists its tools."""
        info = mcp_types.Implementation(name="session_server", version="0")
        async with transport as streams:
            dispatcher = _Dispatcher(*streams)
            dispatcher.connection = self
            async with ClientSession(dispatcher=dispatcher, message_handler=self._heard, client_info=info) as session:
                await _greet(session, older, min(_GREETING_SECONDS, self._server.start_seconds / 2))
                self.tools = await self._list(session)
                log.info("MCP server %s: %d tools", self._server.name, len(self.tools))
                self._session = session
                try:
                    yield
                finally:
                    self._session = None
                    self.gone.set()

    async def follow(self) -> None:
        """Lists the tools again whenever they have changed, or the server may have forgotten the session; to its
        end."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._subscribe)
            tasks.start_soon(self._relist)
            await self.gone.wait()
            tasks.cancel_scope.cancel()

    async def call(self, tool: str, arguments: dict[str, Any], call_id: str) -> mcp_types.CallToolResult:
        """Calls a tool. When the task is cancelled, the server is told. Raises ValueError in words for the model."""
        name = self._server.name
        if self._session is None:
            raise ValueError(f"the MCP server {name} is not running; it is being started again")
        try:
            meta: Any = {CALL_ID: call_id} if call_id else None
            return await self._session.call_tool(tool, arguments, meta=meta)
        except MCPError as error:
            if _says_closed(error):
                raise ValueError(f"the MCP server {name} ended during the call") from None
            if self._server.url:  # it may have forgotten the session, which the next list of its tools shows
                self._changed.set()
            raise ValueError(without_base64(error.message)) from None
        except (pydantic.ValidationError, RuntimeError):  # such as one that wants to ask something first
            raise ValueError(f"the answer of the MCP server {name} does not fit the protocol") from None

    def warn(self, words: str) -> None:
        """Logs a warning about this server, once for a connection."""
        if words not in self._warned:
            log.warning("MCP server %s: %s", self._server.name, words)
        self._warned.add(words)

    async def _list(self, session: ClientSession) -> tuple[mcp_types.Tool, ...]:
        found: dict[str, mcp_types.Tool] = {}
        cursor = None
        for _ in range(_MAX_PAGES):
            page = await session.list_tools(params=mcp_types.PaginatedRequestParams(cursor=cursor))
            found |= {tool.name: tool for tool in page.tools}
            cursor = page.next_cursor
            if cursor is None or len(found) > _MAX_TOOLS:
                break
        if len(found) > _MAX_TOOLS:
            self.warn(f"it lists over {_MAX_TOOLS} tools: the others are left out")
        if missing := set(self._server.approve) - {"*", *found}:
            self.warn(f'"approve" names what it does not list: {", ".join(sorted(missing))}')
        return tuple(found.values())[:_MAX_TOOLS]

    async def _relist(self) -> None:
        while session := self._session:
            await self._changed.wait()
            self._changed = anyio.Event()
            try:
                with anyio.fail_after(_LIST_SECONDS):
                    self.tools = await self._list(session)
                log.info("MCP server %s: now %d tools", self._server.name, len(self.tools))
            except (MCPError, TimeoutError, pydantic.ValidationError) as error:
                log.warning("MCP server %s: cannot list its tools again: %s", self._server.name, words_of(error))
                if self._server.url and isinstance(error, MCPError):
                    self.gone.set()
            await anyio.sleep(_RELIST_SECONDS)

    async def _subscribe(self) -> None:
        """Asks a server of a newer protocol to tell of changes, which then come as notifications."""
        pause = _FIRST_PAUSE_SECONDS
        while (
            (session := self._session)
            and (can := session.server_capabilities)
            and can.tools
            and can.tools.list_changed
        ):
            try:
                async with listen(session, tools_list_changed=True) as subscription:
                    self._changed.set()  # while nobody listened
                    async for _ in subscription:
                        pass
            except ListenNotSupportedError:
                return
            except (SubscriptionLost, MCPError) as error:
                if isinstance(error, MCPError) and error.code == mcp_types.METHOD_NOT_FOUND:
                    return
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _heard(self, message: object) -> None:
        if isinstance(message, mcp_types.ToolListChangedNotification):
            self._changed.set()


class _Dispatcher(JSONRPCDispatcher[Any]):
    """Has the SDK's session see what a server answers in the form that the protocol has for it."""

    connection: McpConnection

    async def send_raw_request(self, method: str, *rest: Any, **more: Any) -> dict[str, Any]:
        raw = await super().send_raw_request(method, *rest, **more)
        if method == "initialize":
            tools = as_object(as_object(raw.get("capabilities")).get("tools"))
            return {
                "protocolVersion": raw.get("protocolVersion"),
                "capabilities": {"tools": tools},
                "serverInfo": _NAMELESS,
            }
        if method == "tools/call" and raw.get("resultType") != "input_required":
            return read_result(raw)
        if method != "tools/list":
            return raw
        understood, left_out = read_tools(raw.get("tools"))
        for words in left_out:
            self.connection.warn(words)
        cursor = {"nextCursor": raw["nextCursor"]} if isinstance(raw.get("nextCursor"), str) else {}
        return {"tools": understood, "resultType": "complete", "cacheScope": "private", "ttlMs": 0, **cursor}


async def _greet(session: ClientSession, older: bool, seconds: float) -> None:
    """The newer handshake, or the older one where a server does not know it."""
    if not older:
        with suppress(MCPError, TimeoutError, pydantic.ValidationError, RuntimeError), anyio.fail_after(seconds):
            await session.discover()
            return
    try:
        await session.initialize()
    except MCPError as error:
        if error.code != mcp_types.UNSUPPORTED_PROTOCOL_VERSION:
            raise
        await session.discover()  # which it has answered too late


def words_of(error: BaseException) -> str:
    """What went wrong, in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, MCPError) and _says_closed(error):
        return "it ended before it answered"
    if isinstance(error, FileNotFoundError):
        return f"there is no program {error.filename}"
    if isinstance(error, pydantic.ValidationError):
        return "its answer does not fit the protocol"
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:300] or type(error).__name__


def _says_closed(error: MCPError) -> bool:
    """Whether the SDK says so, and not a server, which may use the same code."""
    return (error.code, error.message) == (mcp_types.CONNECTION_CLOSED, "Connection closed")
