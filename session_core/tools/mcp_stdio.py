"""An MCP server as a child process, whose messages are lines on its standard streams."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import mcp_types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage

from session_core.data.text import utf8_text
from session_core.tools.mcp_config import McpServer

MAX_MESSAGE_BYTES = 8 << 20  # of one message of an MCP server

_CHUNK_BYTES = 1 << 16
_END_SECONDS = 2.0  # that a server gets to end by itself, and again after SIGTERM
_CLOSE_SECONDS = 1.0  # for the streams of a server that has ended to end too
_TAIL_BYTES = 256  # of a message that is too long: its id may stand there

# Where an id stands in the answers of the SDKs: first, or last.
_ID_FIRST = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(\d{1,15}|"[^"\\]{1,100}")\s*,')
_ID_LAST = re.compile(rb'"id"\s*:\s*(\d{1,15}|"[^"\\]{1,100}")\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*$')

# Knows the process groups that live, and kills them a second after this process is gone, however it went.
_GUARD = """
trap '' INT TERM HUP
groups=
while read -r sign group; do
    kept=
    for one in $groups; do [ "$one" = "$group" ] || kept="$kept $one"; done
    groups=$kept
    [ "$sign" = + ] && groups="$groups $group"
done
[ -z "$groups" ] || sleep 1
for one in $groups; do kill -s KILL -- "-$one" 2>/dev/null; done
"""


class Guard:
    """Ends the child processes of this one, with their own children, also when it is killed.

    A server that is started by a wrapper (`npx`, `uv run`) may outlive both its input and the wrapper.
    """

    def __init__(self) -> None:
        self._shell: subprocess.Popen[bytes] | None = None
        with suppress(OSError):
            if os.name == "posix":
                self._shell = subprocess.Popen(
                    ["/bin/sh", "-c", _GUARD],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    start_new_session=True,
                )

    def add(self, group: int) -> None:
        """Has this process group killed when this process ends."""
        self._tell(f"+ {group}\n")

    def remove(self, group: int) -> None:
        """Forgets a process group, which has ended."""
        self._tell(f"- {group}\n")

    def close(self) -> None:
        """Kills the process groups that are left."""
        if self._shell and self._shell.stdin:
            with suppress(OSError):
                self._shell.stdin.close()
            self._shell.wait()

    def _tell(self, line: str) -> None:
        if self._shell and self._shell.stdin:
            with suppress(OSError):
                self._shell.stdin.write(line.encode())
                self._shell.stdin.flush()


class Stderr:
    """The last line that a server wrote to its standard error: why it could not start."""

    def __init__(self) -> None:
        self.last_line = ""

    async def read(self, stream: asyncio.StreamReader) -> None:
        """Reads to the end."""
        with suppress(OSError):
            async for line, _ in _lines(stream, 4096):
                if text := " ".join(line.decode(errors="replace").split()):
                    self.last_line = text[:300]


@asynccontextmanager
async def stdio_transport(
    server: McpServer, guard: Guard, stderr: Stderr, on_end: Callable[[], object], on_rubbish: Callable[[], object]
) -> AsyncGenerator[Any, None]:
    """Starts the server. Yields the streams of its messages, and ends it after the block, with its children.

    The server gets few variables of the environment beside its own: no keys. `on_end` is called when it closes its
    output, `on_rubbish` for each line there that is no message. Raises OSError where it cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        server.command,
        *server.args,
        env=get_default_environment() | dict(server.env),
        cwd=server.cwd,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin and process.stdout and process.stderr
    guard.add(process.pid)
    last_words = asyncio.create_task(stderr.read(process.stderr))
    sender, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outgoing, receiver = anyio.create_memory_object_stream[SessionMessage](0)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_read, process.stdout, sender, on_end, on_rubbish)
            tasks.start_soon(_write, receiver, process.stdin)
            try:
                yield incoming, outgoing
            finally:
                tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await _end(process)
            await asyncio.wait([last_words], timeout=_CLOSE_SECONDS)
        last_words.cancel()
        guard.remove(process.pid)
        for stream in (sender, incoming, outgoing, receiver):
            stream.close()


async def _read(
    stdout: asyncio.StreamReader,
    sender: MemoryObjectSendStream[SessionMessage | Exception],
    on_end: Callable[[], object],
    on_rubbish: Callable[[], object],
) -> None:
    try:
        async with sender:
            async for line, tail in _lines(stdout, MAX_MESSAGE_BYTES):
                message = _message(line) if tail is None else _too_long(line, tail)
                if message is not None:
                    await sender.send(SessionMessage(message))
                elif line.strip():
                    on_rubbish()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
        pass  # the session has ended
    finally:
        on_end()


async def _write(receiver: MemoryObjectReceiveStream[SessionMessage], stdin: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        async with receiver:
            async for item in receiver:
                text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
                stdin.write(text.encode() + b"\n")
                await stdin.drain()


async def _lines(stream: asyncio.StreamReader, limit: int) -> AsyncIterator[tuple[bytes, bytes | None]]:
    """The lines, and None beside them; of a line of more than `limit` bytes its beginning, and its end."""
    line, tail = bytearray(), b""
    length = 0
    while chunk := await stream.read(_CHUNK_BYTES):
        first, *rest = chunk.split(b"\n")
        for number, piece in enumerate([first, *rest]):
            if number:
                yield bytes(line), tail if length > limit else None
                line, tail, length = bytearray(), b"", 0
            length += len(piece)
            line += piece[: max(0, limit - len(line))]
            tail = (tail + piece[-_TAIL_BYTES:])[-_TAIL_BYTES:]
    if line:
        yield bytes(line), tail if length > limit else None


def _message(line: bytes) -> mcp_types.JSONRPCMessage | None:
    try:
        return mcp_types.jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValueError:
        return None


def _too_long(line: bytes, tail: bytes) -> mcp_types.JSONRPCMessage | None:
    """An error in place of an answer that is too long, if it shows its id."""
    found = _ID_FIRST.match(line[:4096]) or _ID_LAST.search(tail)
    if not found:
        return None
    text = found[1].decode(errors="replace")
    id = utf8_text(text.strip('"')) if text.startswith('"') else int(text)
    error = mcp_types.ErrorData(code=mcp_types.PARSE_ERROR, message="the answer is too long")
    return mcp_types.JSONRPCError(jsonrpc="2.0", id=id, error=error)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Closes the input of a server, waits, and then kills its process group."""
    assert process.stdin and process.stdout and process.stderr
    process.stdin.close()
    async with anyio.create_task_group() as drains:
        drains.start_soon(_drain, process.stdout)  # a server that waits to write does not end
        for end in (None, _terminate, _kill):
            if end:
                end(process)
            with anyio.move_on_after(_END_SECONDS):
                while process.returncode is None:
                    await anyio.sleep(0.01)
                break
        _kill(process)  # what is left of its group
        drains.cancel_scope.deadline = anyio.current_time() + _CLOSE_SECONDS


async def _drain(stream: asyncio.StreamReader) -> None:
    with suppress(OSError):
        while await stream.read(_CHUNK_BYTES):
            pass


def _terminate(process: asyncio.subprocess.Process) -> None:
    with suppress(OSError):  # all have ended
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGTERM)
        else:
            process.terminate()


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(OSError):  # all have ended
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
