"""A tool of an MCP server as the model sees it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import mcp_types
import pydantic_core

from session_core.data.text import utf8_text
from session_core.model.cancellation import Cancellation
from session_core.tools.functions import bounded, read_arguments, tool_schema

Call = Callable[[str, dict[str, Any], str], Coroutine[Any, Any, mcp_types.CallToolResult]]

_MAX_NAME = 64  # characters, of those that model servers take
_MAX_DESCRIPTION = 16 << 10  # characters


class McpTool:
    """A tool of the server `server`, under a name that no other tool has.

    `call` asks the server for it on `loop`, and is given the tool's own name, the arguments and the call's id.
    """

    def __init__(
        self, name: str, tool: mcp_types.Tool, server: str, call: Call, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.name = name
        self.source = f"MCP server {server}"
        self.description = utf8_text(tool.description or tool.title or "")[:_MAX_DESCRIPTION]
        self.parameters: dict[str, Any] = {"properties": {}, **tool.input_schema, "type": "object"}
        self.schema = tool_schema(name, self.description, self.parameters)
        self._tool = tool.name
        self._call = call
        self._loop = loop

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


def tool_names(server: str, tools: Iterable[str], taken: set[str]) -> dict[str, str]:
    """A name for each tool of a server: `<server>__<tool>`, in the characters and the length that model servers take.

    A name that is `taken` ends in a number instead. Names are added to `taken`.
    """
    names = {}
    for tool in tools:
        whole = re.sub(r"[^A-Za-z0-9_-]", "_", f"{server}__{tool}")
        name, number = whole[:_MAX_NAME], 1
        while name in taken:
            number += 1
            name = f"{whole[: _MAX_NAME - len(str(number)) - 1]}_{number}"
        taken.add(name)
        names[tool] = name
    return names


def mcp_result_text(result: mcp_types.CallToolResult) -> str:
    """The text of a result, or its structured content as JSON where there is no text. All else is named only."""
    texts = [text for part in result.content if (text := _text(part)) is not None]
    others = [_name(part) for part in result.content if _text(part) is None]
    if not texts and result.structured_content is not None:
        structured = pydantic_core.to_json(result.structured_content, inf_nan_mode="null", serialize_unknown=True)
        texts = [structured.decode()]
    return utf8_text("\n".join([*texts, *others]))


def _text(part: mcp_types.ContentBlock) -> str | None:
    if isinstance(part, mcp_types.TextContent):
        return part.text
    if isinstance(part, mcp_types.EmbeddedResource) and isinstance(part.resource, mcp_types.TextResourceContents):
        return part.resource.text
    return None


def _name(part: mcp_types.ContentBlock) -> str:
    match part:
        case mcp_types.ImageContent() | mcp_types.AudioContent():
            return f"[{part.type}, {part.mime_type}, {_size(part.data)} bytes]"
        case mcp_types.EmbeddedResource(resource=mcp_types.BlobResourceContents() as resource):
            return f"[resource {resource.uri}, {resource.mime_type or 'unknown type'}, {_size(resource.blob)} bytes]"
        case mcp_types.ResourceLink():
            size = f", {part.size} bytes" if part.size is not None else ""
            return f"[link to {part.uri}, {part.mime_type or 'unknown type'}{size}]"
        case _:
            return f"[{part.type}]"


def _size(base64: str) -> int:
    """The bytes that a base64 text stands for."""
    return len(base64.rstrip("=")) * 3 // 4
