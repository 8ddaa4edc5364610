"""Scripted MCP servers, and what they got."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from session_core.tools.mcp import McpServers
from session_core.tools.mcp_config import McpServer
from session_core.tools.mcp_tools import McpTool
from tests.support.server import ROOT

SCRIPT = str(ROOT / "tests" / "support" / "mcp_script.py")


def script(tmp_path: Path, mode: str = "ok", name: str = "one", **more: Any) -> McpServer:
    return McpServer(name, sys.executable, (SCRIPT, str(tmp_path / f"{name}.log"), mode), **more)


def received(tmp_path: Path, name: str = "one") -> list[dict[str, Any]]:
    """What a scripted server got."""
    return [json.loads(line) for line in (tmp_path / f"{name}.log").read_text().splitlines()]


def methods(tmp_path: Path) -> list[str]:
    return [message["method"] for message in received(tmp_path) if "method" in message]


def by_name(servers: McpServers) -> dict[str, McpTool]:
    return {tool.name: tool for tool in servers.tools()}


def call(servers: McpServers, name: str, **arguments: Any) -> Any:
    return by_name(servers)[name](json.dumps(arguments), "call_1")


def alive(pid: int) -> bool:
    """Whether a process runs. One that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
