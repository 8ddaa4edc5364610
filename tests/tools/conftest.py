"""Fixtures for tools."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from session_core.tools.mcp_config import McpServer
from tests.support.server import wait_until

if TYPE_CHECKING:
    from session_core.tools.mcp import McpServers


@pytest.fixture
def start() -> Iterator[Callable[..., McpServers]]:
    """Starts MCP servers, and ends them when the test is over. Nothing may be left of them."""
    from session_core.tools.mcp import McpServers

    before = set(threading.enumerate())
    with contextlib.ExitStack() as stack:

        def start(*servers: McpServer) -> McpServers:
            started = McpServers(servers)
            stack.callback(started.close)
            started.start()
            return started

        yield start
    wait_until(lambda: not [thread for thread in set(threading.enumerate()) - before if thread.name != "tool"])
