"""A tool of an MCP server: as the server lists it, and as the model sees it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Literal

import mcp_types
import pydantic

from session_core.data.text import as_object, utf8_text
from session_core.model.cancellation import Cancellation
from session_core.tools.functions import AnyTool, bounded, read_arguments
from session_core.tools.mcp_answers import mcp_pictures, mcp_result_text
from session_core.tools.mcp_config import McpServer
from session_core.tools.pictures import ToolOutput

Call = Callable[[str, dict[str, Any], str], Coroutine[Any, Any, mcp_types.CallToolResult]]

_MAX_NAME = 64  # characters, of those that model servers take
_MAX_DESCRIPTION = 16 << 10  # characters
_Type = Literal["object", "string", "number", "integer", "boolean", "array", "null"]
_FOLDED = ("allOf", "anyOf", "oneOf", "enum", "not", "$ref", "required")  # what OpenAI does not take at the top


class McpTool(AnyTool):
    """A tool of `server`, under a name that no other tool has.

    `call` asks the server for it on `loop`, and is given the tool's own name, the arguments and the call's id.
    """

    def __init__(
        self, name: str, tool: mcp_types.Tool, server: McpServer, call: Call, loop: asyncio.AbstractEventLoop
    ) -> None:
        description = utf8_text(tool.description)[:_MAX_DESCRIPTION]
        approved = "*" in server.approve or tool.name in server.approve
        super().__init__(name, f"MCP server {server.name}", description, tool.input_schema, approved)
        self._tool = tool.name
        self._call = call
        self._loop = loop

    def __call__(
        self, arguments: str, call_id: str = "", cancellation: Cancellation | None = None
    ) -> str | ToolOutput:
        """Asks the server, and returns its result as text for the model, and its pictures. A cancel is passed on to
        the server.

        Raises ValueError in words for the model.
        """
        coroutine = self._call(self._tool, read_arguments(arguments), call_id)
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
        pictures = mcp_pictures(result)
        return ToolOutput(text, pictures) if pictures else text


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


def read_tools(listed: object) -> tuple[list[dict[str, Any]], list[str]]:
    """The tools of a list that are understood, in the form of the SDK, and why others are left out."""
    found, left_out = [], []
    for tool in listed if isinstance(listed, list) else [listed]:
        try:
            found.append(_read_tool(as_object(tool)))
        except (ValueError, RecursionError) as error:
            left_out.append(f"the tool {as_object(tool).get('name')} is left out: {error}")
    return found, left_out


def _read_tool(tool: dict[str, Any]) -> dict[str, Any]:
    name, description = tool.get("name"), tool.get("description") or tool.get("title") or ""
    if not isinstance(name, str) or not name:
        raise ValueError("it has no name")
    if not isinstance(description, str):
        raise ValueError("its description is no text")
    if as_object(tool.get("execution")).get("taskSupport") == "required":
        raise ValueError("it can be called as a task only")
    return {"name": name, "description": description, "inputSchema": _input_schema(_fields(tool.get("inputSchema")))}


def _input_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object, with what `anyOf` and the like have at its top among its properties.

    Raises ValueError where it is not understood.
    """
    kind = schema.get("type") or "object"
    if kind != "object" and "object" not in (kind if isinstance(kind, list) else []):
        raise ValueError(f"its arguments are no object but {kind}")
    rest = {key: value for key, value in schema.items() if value is not None and key not in _FOLDED}
    folded = {**rest, "type": "object", **_merged(schema)}
    try:
        _Schema.model_validate(folded)
    except pydantic.ValidationError as error:
        place = ".".join(str(step) for step in error.errors()[0]["loc"])
        raise ValueError(f"its schema is not understood: {place}: {error.errors()[0]['msg']}"[:300]) from None
    return folded


def _merged(schema: dict[str, Any]) -> dict[str, Any]:
    """The properties of all parts of a schema, and which of them are required."""
    properties: dict[str, list[Any]] = {}
    required: dict[str, Any] = {}
    for part, certain in _parts(schema):
        for name, one in _fields(part.get("properties")).items():
            if one is not False and one not in properties.setdefault(name, []):
                properties[name].append(one)
        required |= {str(name): name for name in _list(part, "required") if certain}
    merged = {name: _property(ones) for name, ones in properties.items()}
    return {"properties": merged} | ({"required": [*required.values()]} if required else {})


def _parts(schema: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bool]]:
    """The schema, and all schemas that stand at its top, each once; and whether each holds for every call."""
    pending: list[tuple[Any, bool]] = [(schema, True)]
    seen: set[int] = set()
    for part, certain in pending:  # which grows meanwhile
        if isinstance(part, dict) and id(part) not in seen:
            seen.add(id(part))
            yield part, certain
            pending += [(one, certain) for one in [*_list(part, "allOf"), _target(schema, part)]]
            pending += [(one, False) for one in _list(part, "anyOf") + _list(part, "oneOf")]


class _Schema(pydantic.BaseModel):
    """As much of a JSON Schema as model servers look at."""

    type: _Type | list[_Type] = "object"
    properties: dict[str, _Schema | bool] = {}
    required: list[str] = []
    items: _Schema | bool | list[_Schema | bool] = True
    additionalProperties: _Schema | bool = True
    anyOf: list[_Schema | bool] = []
    oneOf: list[_Schema | bool] = []
    allOf: list[_Schema | bool] = []
    enum: list[Any] = []
    definitions: dict[str, _Schema | bool] = pydantic.Field({}, alias="$defs")


def _property(ones: list[Any]) -> dict[str, Any]:
    """The schema of a property that several parts may describe."""
    schemas = [{} if one is True else _fields(one) for one in ones]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _fields(value: object) -> dict[str, Any]:
    """An object, which PHP writes as an array where it is empty."""
    if not isinstance(value, dict) and value not in (None, []):
        raise ValueError(f"{str(value)[:100]} in its schema is not understood")
    return as_object(value)


def _list(part: dict[str, Any], key: str) -> list[Any]:
    value = part.get(key)
    return value if isinstance(value, list) else []


def _target(schema: Any, part: dict[str, Any]) -> Any:
    """What the `$ref` of a part into its own schema names, or None."""
    for step in str(part.get("$ref")).removeprefix("#/").split("/"):
        schema = as_object(schema).get(step.replace("~1", "/").replace("~0", "~"))
    return schema
