"""The file that names MCP servers, in the form that MCP clients share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any
from urllib.parse import urlsplit

import pydantic
from pydantic.dataclasses import dataclass

from session_core.data.text import json_object

_VARIABLE = re.compile(r"\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|[^}]{0,40}\}?)")
_PROGRAM_SECONDS = 60.0  # to start: `npx` and `uvx` may have to install it
_ADDRESS_SECONDS = 10.0  # to be reached, and to list its tools
_SPOKEN = {"command": ("stdio", "local"), "url": ("http", "streamablehttp")}  # without hyphens and underscores
_WORDS = {
    "string_type": "must be a string",
    "tuple_type": "must be a list of strings",
    "mapping_type": "must be an object of strings",
    "dict_type": "must be an object of strings",
    "bool_type": "must be true or false",
    "float_type": "must be a number of seconds",
    "greater_than": "must be a number of seconds above 0",
    "finite_number": "must be a number of seconds",
}  # by the kind of an error of pydantic


class McpError(ValueError):
    """An MCP server that cannot be used, or a file that cannot be read. The text names it and the remedy."""


def _expanded(text: str, info: pydantic.ValidationInfo) -> str:
    """The text with the variables of the environment, which is the context of the validation."""
    if "\0" in text:
        raise ValueError("a string holds a NUL")
    return text if info.context is None else _VARIABLE.sub(lambda found: _value(found, info.context), text)


def _value(found: re.Match[str], environment: Mapping[str, str]) -> str:
    name, default = found.groups()
    if name is None or "${" in (default or ""):
        raise ValueError(f"{found[0]} is not understood: write ${{VARIABLE}} or ${{VARIABLE:-default}}")
    value = environment.get(name)
    if default is not None:
        return value or default
    if value is None:
        raise ValueError(f"the variable {name} is not set: set it, or write ${{{name}:-default}}")
    return value


def _named(command: str) -> str:
    if not command:
        raise ValueError("command is empty: name a program")
    return command


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return text
    except ValueError:  # of the port or of an IPv6 address
        pass
    raise ValueError("url must be a URL such as http://localhost:8000/mcp")


_Text = Annotated[str, pydantic.AfterValidator(_expanded)]


@dataclass(frozen=True)
class McpServer:
    """One entry of the file: a program to start, or the address of a running server.

    A server that is `optional` may be away when the program starts. `timeout` is in seconds, for its start. `approve`
    names the tools whose calls need approval; `*` stands for all.
    """

    name: str
    command: Annotated[_Text, pydantic.AfterValidator(_named)] = ""
    args: tuple[_Text, ...] = ()
    env: Mapping[str, _Text] = field(default_factory=dict)
    cwd: _Text | None = None
    url: Annotated[_Text, pydantic.AfterValidator(_url)] = ""
    headers: Mapping[str, _Text] = field(default_factory=dict)
    optional: pydantic.StrictBool = False
    timeout: Annotated[float, pydantic.Field(strict=True, gt=0, allow_inf_nan=False)] | None = None
    approve: tuple[str, ...] = ()

    @property
    def start_seconds(self) -> float:
        """How long the server may take to start or to be reached, and to list its tools."""
        return self.timeout or (_ADDRESS_SECONDS if self.url else _PROGRAM_SECONDS)


_entry = pydantic.TypeAdapter(McpServer)


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
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise McpError(f"cannot read {path}: {reason}") from None
    servers = (json_object(text) or {}).get("mcpServers")
    if not isinstance(servers, dict):
        raise McpError(f'{path} is not a JSON object such as {{"mcpServers": {{"time": {{"command": "…"}}}}}}')
    found = []
    for name, entry in servers.items():
        try:
            if server := _server(name, entry, environment):
                found.append(server)
        except pydantic.ValidationError as error:
            raise McpError(f"{path}: {name}: {_fault(error)}") from None
        except ValueError as error:
            raise McpError(f"{path}: {name}: {error}") from None
    return found


def _server(name: str, entry: object, environment: Mapping[str, str]) -> McpServer | None:
    """The server of an entry, if it is not switched off."""
    if not isinstance(entry, dict):
        raise ValueError('it is not an object: give it a "command" or a "url"')
    given = {key: value for key, value in entry.items() if value is not None}
    switches = {"disabled": given.get("disabled", False), "enabled": given.get("enabled", True)}
    if strange := [key for key, value in switches.items() if not isinstance(value, bool)]:
        raise ValueError(f"{strange[0]} must be true or false")
    if switches["disabled"] or not switches["enabled"]:
        return None
    if ("command" in given) == ("url" in given):
        raise ValueError('give it either a "command" or a "url"')
    _check_transport(given, "command" if "command" in given else "url")
    return _entry.validate_python({**given, "name": name}, context=environment)


def _check_transport(given: Mapping[str, Any], kind: str) -> None:
    for key in ("type", "transport"):
        if key in given and re.sub("[-_]", "", str(given[key]).lower()) not in _SPOKEN[kind]:
            remedy = "give the address for streamable HTTP" if kind == "url" else "leave it out, or write stdio"
            raise ValueError(f"the transport {given[key]} is not supported: {remedy}")


def _fault(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    place = " ".join(str(part) for part in first["loc"] if isinstance(part, str))
    each = "each of " if any(isinstance(part, int) for part in first["loc"]) else ""
    return f"{each}{place} {_WORDS.get(first['type'], first['msg'])}"
