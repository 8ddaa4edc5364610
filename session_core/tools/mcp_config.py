"""The file that names MCP servers, in the form that MCP clients share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from session_core.data.text import json_object

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class McpError(ValueError):
    """An MCP server that cannot be used, or a file that cannot be read. The text names it and the remedy."""


@dataclass(frozen=True)
class McpServer:
    """One entry of the file: a program to start, or the address of a running server.

    A server that is `optional` may be away when the program starts.
    """

    name: str
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    optional: bool = False


def read_mcp_config(path: str, environment: Mapping[str, str]) -> list[McpServer]:
    """The servers of `{"mcpServers": {"<name>": {"command", "args", "env", "cwd"} or {"url", "headers"}}}`.

    `${VARIABLE}` and `${VARIABLE:-default}` in any string come from the environment. A variable that is empty counts
    as unset where there is a default. Fields that are not known are ignored. Raises McpError.
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
    return [_server(f"{path}: {name}", name, entry, environment) for name, entry in servers.items()]


def _server(where: str, name: str, entry: object, environment: Mapping[str, str]) -> McpServer:
    if not isinstance(entry, dict):
        raise McpError(f'{where} is not an object: give it a "command" or a "url"')

    def text(value: object, what: str) -> str:
        if not isinstance(value, str) or "\0" in value:
            raise McpError(f"{where}: {what} must be a string")
        return _VARIABLE.sub(lambda found: _value(found, where, environment), value)

    def texts(key: str) -> dict[str, str]:
        values = _of_type(where, entry, key, dict, {})
        return {str(inner): text(value, f"{key} {inner}") for inner, value in values.items()}

    if ("command" in entry) == ("url" in entry):
        raise McpError(f'{where}: give it either a "command" or a "url"')
    if entry.get("type") == "sse":
        raise McpError(f"{where}: the transport sse is not supported: give the address for streamable HTTP")
    server = McpServer(
        name=name,
        command=text(entry.get("command", ""), "command"),
        args=tuple(text(value, "each of args") for value in _of_type(where, entry, "args", list, [])),
        env=texts("env"),
        cwd=text(entry["cwd"], "cwd") if entry.get("cwd") is not None else None,
        url=text(entry.get("url", ""), "url"),
        headers=texts("headers"),
        optional=_of_type(where, entry, "optional", bool, False),
    )
    if "url" in entry and not _is_url(server.url):
        raise McpError(f"{where}: url must be a URL such as http://localhost:8000/mcp")
    if "command" in entry and not server.command:
        raise McpError(f"{where}: command is empty: name a program")
    return server


def _of_type(where: str, entry: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = entry.get(key, default)
    if not isinstance(value, kind):
        words = {list: "a list of strings", dict: "an object of strings", bool: "true or false"}
        raise McpError(f"{where}: {key} must be {words[kind]}")
    return value


def _value(found: re.Match[str], where: str, environment: Mapping[str, str]) -> str:
    name, default = found.groups()
    value = environment.get(name)
    if default is not None:
        return value or default
    if value is None:
        raise McpError(f"{where}: the variable {name} is not set: set it, or write ${{{name}:-default}}")
    return value


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port or of an IPv6 address
        return False
