"""The file that names MCP servers, in the form that MCP clients share."""

import re
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

import pydantic
from pydantic.dataclasses import dataclass

from session_core.data.text import json_object

_VARIABLE = re.compile(r"\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|[^}]{0,40}\}?)")
_SPOKEN = {"command": ("stdio", "local"), "url": ("http", "streamablehttp")}  # without hyphens and underscores
_REMEDIES = {"command": "leave it out, or write stdio", "url": "give the address for streamable HTTP"}
_FAULTS = {
    "string_type": "must be a string",
    "too_short": "is empty: name a program",
    "string_pattern_mismatch": "must be a URL such as http://localhost:8000/mcp",
    "tuple_type": "must be a list of strings",
    "mapping_type": "must be an object of strings",
    "bool_type": "must be true or false",
    "float_type": "must be a number of seconds",
    "greater_than": "must be a number of seconds",
    "finite_number": "must be a number of seconds",
}  # by the type that pydantic gives an error


class McpError(ValueError):
    """An MCP server that cannot be used, or a file that cannot be read. The text names it and the remedy."""


def _expand(text: str, info: pydantic.ValidationInfo) -> str:
    """The text with the variables of the environment, which is the context of the validation, if it has one."""
    if "\0" in text:
        raise ValueError("a string in it holds a NUL")
    environment = info.context
    return text if environment is None else _VARIABLE.sub(lambda found: _value(found, environment), text)


def _value(found: re.Match[str], environment: Mapping[str, str]) -> str:
    name, default = found.groups()
    if name is None or "${" in (default or ""):
        raise ValueError(f"{found[0]} is not understood: write ${{VARIABLE}} or ${{VARIABLE:-default}}")
    value = environment.get(name)
    if value is None and default is None:
        raise ValueError(f"the variable {name} is not set: set it, or write ${{{name}:-default}}")
    return value or default or ""


_Text = Annotated[str, pydantic.AfterValidator(_expand)]
_Url = Annotated[
    _Text, pydantic.Field(pattern=r"^https?://([^\s/?#@]*@)?([^\s/?#:@\[]+|\[[^\]/?#]+\])(:\d{1,5})?([/?#]|$)")
]


@dataclass(frozen=True)
class McpServer:
    """One entry of the file: a program to start, or the address of a running server.

    A server that is `optional` may be away when the program starts. `timeout` is in seconds, for its start. `approve`
    names the tools whose calls need approval; `*` stands for all.
    """

    name: str
    command: Annotated[_Text, pydantic.Field(min_length=1)] = ""
    args: tuple[_Text, ...] = ()
    env: Mapping[str, _Text] = field(default_factory=dict)
    cwd: _Text | None = None
    url: _Url = ""
    headers: Mapping[str, _Text] = field(default_factory=dict)
    optional: pydantic.StrictBool = False
    timeout: Annotated[float, pydantic.Field(strict=True, gt=0, allow_inf_nan=False)] = 0.0
    approve: tuple[str, ...] = ()

    @property
    def start_seconds(self) -> float:
        """How long it may take to start, or to be reached, and to list its tools. `npx` may have to install it."""
        return self.timeout or (10.0 if self.url else 60.0)


def read_mcp_config(path: str, environment: Mapping[str, str]) -> list[McpServer]:
    """The servers of `{"mcpServers": {"<name>": {"command", "args", "env", "cwd"} or {"url", "headers"}}}`.

    `${VARIABLE}` and `${VARIABLE:-default}` in any string come from the environment. A variable that is empty counts
    as unset where there is a default. A server with `"disabled": true` or `"enabled": false` is left out. Fields that
    are not known are ignored, and so is null. Raises McpError.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except (OSError, ValueError) as error:
        raise McpError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
    servers = (json_object(text) or {}).get("mcpServers")
    if not isinstance(servers, dict):
        raise McpError(f'{path} is not a JSON object such as {{"mcpServers": {{"time": {{"command": "…"}}}}}}')
    return [
        server for name, entry in servers.items() for server in _server(f"{path}: {name}", name, entry, environment)
    ]


def _server(where: str, name: str, entry: object, environment: Mapping[str, str]) -> list[McpServer]:
    """The server of an entry. None if it is switched off."""
    if not isinstance(entry, dict):
        raise McpError(f'{where} is not an object: give it a "command" or a "url"')
    given = {key: value for key, value in entry.items() if value is not None}
    for switch, off in (("disabled", True), ("enabled", False)):
        if not isinstance(given.get(switch, False), bool):
            raise McpError(f"{where}: {switch} must be true or false")
        if given.get(switch) is off:
            return []
    if ("command" in given) == ("url" in given):
        raise McpError(f'{where}: give it either a "command" or a "url"')
    kind = "command" if "command" in given else "url"
    for transport in (given[key] for key in ("type", "transport") if key in given):
        if re.sub("[-_]", "", str(transport).lower()) not in _SPOKEN[kind]:
            raise McpError(f"{where}: the transport {transport} is not supported: {_REMEDIES[kind]}")
    try:
        return [_entry.validate_python({**given, "name": name}, context=environment)]
    except pydantic.ValidationError as error:
        raise McpError(f"{where}: {_fault(error.errors()[0])}") from None


_entry = pydantic.TypeAdapter(McpServer)


def _fault(error: Any) -> str:
    """The words for an error of pydantic."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    place = " ".join(part if isinstance(part, str) else "" for part in error["loc"]).strip()
    each = "each of " if any(isinstance(part, int) for part in error["loc"]) else ""
    return f"{each}{place} {_FAULTS.get(error['type'], error['msg'])}"
