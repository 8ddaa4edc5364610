"""An MCP server on the SDK's own server class.

    python mcp_sdk_server.py stdio LOG
    python mcp_sdk_server.py http LOG PORT     # PORT 0 picks a free one; LOG.port holds it

LOG gets a line for each thing that happens to a slow call.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import anyio
import uvicorn
from mcp.server.mcpserver import Context, MCPServer

log = Path(sys.argv[2])
server = MCPServer("sdk")


def note(line: str) -> None:
    with log.open("a") as file:
        file.write(line + "\n")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


@server.tool()
async def slow() -> str:
    """Takes a minute."""
    note("begun")
    try:
        await anyio.sleep(60)
    except BaseException:
        note("cancelled")
        raise
    return "too late"


@server.tool()
def trace(context: Context) -> str:
    """Gives the header that says to which trace the call belongs."""
    return context.headers.get("traceparent", "") if context.headers else ""


@server.tool()
def big() -> str:
    """Gives 50 MB."""
    return "x" * (50 << 20)


@server.tool()
async def grow(context: Context) -> str:
    """Adds a tool."""

    def grown() -> str:
        return "grown"

    server.add_tool(grown, name="grown")
    await context.notify_tools_changed()
    return "done"


def main() -> None:
    if sys.argv[1] == "stdio":
        server.run("stdio")
        return
    listener = socket.create_server(("127.0.0.1", int(sys.argv[3])))
    app = server.streamable_http_app()
    config = uvicorn.Config(app, log_level="warning")
    ready = log.with_suffix(".part")
    ready.write_text(str(listener.getsockname()[1]))
    ready.rename(log.with_suffix(".port"))
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
