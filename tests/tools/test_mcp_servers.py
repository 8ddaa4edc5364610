"""MCP servers that nobody here wrote, over both transports, restarted in between."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from session_core.tools.mcp_config import McpServer
from tests.support.mcp_old_sdk import old_sdk_python
from tests.support.server import ROOT, wait_until

pytest.importorskip("mcp", reason="needs the MCP SDK")

from session_core.tools.mcp import McpServers
from tests.support.mcp_servers import by_name, call

OLD_SDK = str(ROOT / "tests" / "support" / "mcp_old_sdk_server.py")
NODE_SERVERS = ROOT / ".ci" / "node" / "node_modules" / "@modelcontextprotocol"


def old_sdk(transport: str, port: int = 0) -> list[str]:
    return [old_sdk_python(), OLD_SDK, transport, str(port)]


def node_server(name: str, *arguments: str) -> list[str]:
    path = NODE_SERVERS / name / "dist" / "index.js"
    if shutil.which("node") is None or not path.exists():
        pytest.skip(f"needs node and the npm package @modelcontextprotocol/{name}")
    return ["node", str(path), *arguments]


def everything(transport: str, port: int = 0) -> list[str]:
    return node_server("server-everything", {"stdio": "stdio", "http": "streamableHttp"}[transport])


Command = Callable[[str, int], list[str]]
SUMS = {old_sdk: ("add", "5"), everything: ("get-sum", "The sum of 2 and 3 is 5.")}


def listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    """A server at an address."""
    env = {**os.environ, "PORT": str(port)}
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: listening(port))
            yield
        finally:
            process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def child_with(argument: str) -> int:
    """The process that this one has started with an argument."""
    children = " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children")).split()
    [pid] = [int(pid) for pid in children if argument in Path(f"/proc/{pid}/cmdline").read_text()]
    return pid


def works_again(servers: McpServers, tool: str, said: str) -> bool:
    with contextlib.suppress(ValueError):
        return call(servers, tool, a=2, b=3) == said
    return False


@pytest.mark.parametrize("command", SUMS)
def test_a_program_that_is_killed_is_used_again(start: Callable[..., McpServers], command: Command) -> None:
    tool, said = SUMS[command]
    program, *arguments = command("stdio", 0)
    servers = start(McpServer("real", program, tuple(arguments)))
    assert call(servers, f"real__{tool}", a=2, b=3) == said
    os.kill(child_with(arguments[0]), signal.SIGKILL)
    wait_until(lambda: works_again(servers, f"real__{tool}", said))


@pytest.mark.parametrize("command", SUMS)
def test_a_server_at_an_address_that_is_restarted_is_used_again(
    start: Callable[..., McpServers], command: Command
) -> None:
    tool, said = SUMS[command]
    port = free_port()
    with running(command("http", port), port):
        servers = start(McpServer("real", url=f"http://127.0.0.1:{port}/mcp"))
        before = list(by_name(servers))
        assert call(servers, f"real__{tool}", a=2, b=3) == said
    with running(command("http", port), port):
        with pytest.raises(ValueError, match=r"\w"):  # its session went with it
            call(servers, f"real__{tool}", a=2, b=3)
        wait_until(lambda: works_again(servers, f"real__{tool}", said))
        assert list(by_name(servers)) == before


def test_a_server_of_the_older_line_that_adds_a_tool_is_followed(start: Callable[..., McpServers]) -> None:
    program, *arguments = old_sdk("stdio")
    servers = start(McpServer("old", program, tuple(arguments)))
    assert [tool.name for tool in servers.tools()] == ["old__add", "old__picture", "old__grow"]
    picture = call(servers, "old__picture")
    assert (picture.text, [len(data) for data in picture.pictures]) == ("[image, image/png, 10008 bytes]", [10008])
    with pytest.raises(ValueError, match="validation error"):
        call(servers, "old__add", a="x", b=3)
    assert call(servers, "old__grow") == "done"
    wait_until(lambda: "old__grown" in by_name(servers))


def test_an_address_with_a_slash_too_many_is_followed_to_where_it_leads(start: Callable[..., McpServers]) -> None:
    port = free_port()
    with running(old_sdk("http", port), port):
        servers = start(McpServer("old", url=f"http://127.0.0.1:{port}/mcp/"))
        assert call(servers, "old__add", a=2, b=3) == "5"


def test_a_tool_that_can_be_called_as_a_task_only_is_left_out(
    start: Callable[..., McpServers], caplog: pytest.LogCaptureFixture
) -> None:
    program, *arguments = everything("stdio")
    assert "everything__echo" in by_name(start(McpServer("everything", program, tuple(arguments))))
    assert "the tool simulate-research-query is left out: it can be called as a task only" in caplog.text


def test_a_picture_of_the_filesystem_server_is_named(start: Callable[..., McpServers], tmp_path: Path) -> None:
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    (tmp_path / "dot.png").write_bytes(base64.b64decode(pixel))
    (tmp_path / "dot.bin").write_bytes(os.urandom(100_000))
    program, *arguments = node_server("server-filesystem", str(tmp_path))
    servers = start(McpServer("files", program, tuple(arguments)))
    said = call(servers, "files__read_media_file", path=str(tmp_path / "dot.png"))
    assert "[image, image/png, 70 bytes]" in said.text and pixel not in said.text
    assert said.pictures == [base64.b64decode(pixel)]
    assert len(call(servers, "files__read_media_file", path=str(tmp_path / "dot.bin"))) < 1000
