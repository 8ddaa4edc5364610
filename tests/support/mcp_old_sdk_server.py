"""An MCP server on FastMCP of the SDK's older line, 1.x.

python mcp_old_sdk_server.py stdio
python mcp_old_sdk_server.py http PORT
"""

from __future__ import annotations

import sys

from mcp.server.fastmcp import Context, FastMCP, Image  # type: ignore[import-not-found]

server = FastMCP("old", port=int(sys.argv[2]) if len(sys.argv) > 2 else 0, log_level="ERROR")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


@server.tool()
def picture() -> Image:
    """Gives a picture."""
    return Image(data=b"\x89PNG\r\n\x1a\n" + bytes(10_000), format="png")


@server.tool()
async def grow(context: Context) -> str:
    """Adds a tool."""

    def grown() -> str:
        return "grown"

    server.add_tool(grown)
    await context.session.send_tool_list_changed()
    return "done"


if __name__ == "__main__":
    server.run("stdio" if sys.argv[1] == "stdio" else "streamable-http")
