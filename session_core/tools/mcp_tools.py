"""A tool of an MCP server as the model sees it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
from collections.abc import Callable, Coroutine
from typing import Any

import mcp_types

from session_core.data.text import utf8_text
from session_core.model.cancellation import Cancellation
from session_core.tools.functions import bounded, read_arguments, tool_schema
from session_core.tools.mcp_config import McpServer
from session_core.tools.mcp_results import mcp_result_text

Call = Callable[[str, dict[str, Any], str], Coroutine[Any, Any, mcp_types.CallToolResult]]

_MAX_NAME = 64  # characters, of those that model servers take
_MAX_DESCRIPTION = 16 << 10  # characters


class McpTool:
    """A tool of `server`, under a name that no other tool has.

    `call` asks the server for it on `loop`, and is given the tool's own name, the arguments and the call's id.
    """

    def __init__(
        self, name: str, tool: mcp_types.Tool, server: McpServer, call: Call, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.name = name
        self.source = f"MCP server {server.name}"
        self.description = utf8_text(tool.description)[:_MAX_DESCRIPTION]
        self.parameters = tool.input_schema
        self.schema = tool_schema(name, self.description, self.parameters)
        self.may_need_approval = "*" in server.approve or tool.name in server.approve
        self._tool = tool.name
        self._call = call
        self._loop = loop

    def needs_approval(self, arguments: str) -> bool:
        """Whether a person must agree to a call with these arguments."""
        return self.may_need_approval

    def __call__(self, arguments: str, call_id: str = "", cancellation: Cancellation | None = None) -> str:
        """Asks the server, and returns its result as text for the model. A cancellation is passed on to the server.

        Raises ValueError in words for the model.
        """
        given = read_arguments(arguments)
        coroutine = self._call(self._tool, given, call_id)
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:  # the loop is closed
            coroutine.close()
            raise ValueError("the MCP server has been ended") from None
        try:
            with (cancellation or Cancellation()).on_cancel(future.cancel):
                result = future.result()
        except concurrent.futures.CancelledError:
            raise ValueError("the call was cancelled") from None
        text = bounded(mcp_result_text(result))
        if result.is_error:
            raise ValueError(text or "the tool failed")
        return text


def tool_name(server: str, tool: str, taken: set[str]) -> str:
    """A name for a tool of a server: `<server>__<tool>`, in the characters and the length that model servers take.

    A name that is `taken` ends in a number instead. The name is added to `taken`.
    """
    whole = re.sub(r"[^A-Za-z0-9_-]", "_", f"{server}__{tool}")
    name, number = whole[:_MAX_NAME], 1
    while name in taken:
        number += 1
        name = f"{whole[: _MAX_NAME - len(str(number)) - 1]}_{number}"
    taken.add(name)
    return name
