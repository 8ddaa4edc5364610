"""An MCP server as a child process, whose messages are lines on its standard streams.

The SDK's own client of this kind bounds no line, drops an answer that is not quite a message, and does not tell which
process it has started. All else that it does is its own here too: the environment, and how a process is ended.
"""

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import mcp_types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.os.posix.utilities import terminate_posix_process_tree
from mcp.shared.message import SessionMessage

from session_core.data.text import utf8_text
from session_core.tools.mcp_answers import MAX_MESSAGE_BYTES, failed_answer, read_messages
from session_core.tools.mcp_config import McpServer

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
while read -r sign group && [ "$sign" != . ]; do
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

    def start(self) -> None:
        """Starts a small process that is left when this one is killed."""
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

    def tell(self, line: str) -> None:
        """`+ 123` has the process group 123 killed when this process ends, and `- 123` forgets it."""
        if self._shell and self._shell.stdin:
            with suppress(OSError, ValueError):  # it has ended, or is closed
                self._shell.stdin.write(f"{line}\n".encode())
                self._shell.stdin.flush()

    def close(self) -> None:
        """Kills the process groups that are left."""
        self.tell(".")  # a child that a tool has forked may hold the pipe open
        if self._shell:
            self._shell.communicate()


class Stderr:
    """The last line that a server wrote to its standard error: why it could not start."""

    def __init__(self) -> None:
        self.last_line = ""
        self.ended = anyio.Event()

    async def read(self, stream: asyncio.StreamReader) -> None:
        """Reads to the end."""
        async for line, _ in _lines(stream, 4096):
            if text := " ".join(line.decode(errors="replace").split()):
                self.last_line = text[:300]
        self.ended.set()


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
    guard.tell(f"+ {process.pid}")
    sender, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outgoing, receiver = anyio.create_memory_object_stream[SessionMessage](0)
    asked: set[str] = set()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stderr.read, process.stderr)
            tasks.start_soon(_read, process.stdout, sender, asked, on_end, on_rubbish)
            tasks.start_soon(_write, receiver, process.stdin, asked)
            try:
                yield incoming, outgoing
            finally:
                incoming.close()  # from here on what it writes is dropped: a server that waits to write does not end
                with anyio.CancelScope(shield=True):
                    await _end(process)
                    with anyio.move_on_after(_CLOSE_SECONDS):
                        await stderr.ended.wait()
                tasks.cancel_scope.cancel()
    finally:
        guard.tell(f"- {process.pid}")
        for stream in (sender, incoming, outgoing, receiver):
            stream.close()


async def _read(
    stdout: asyncio.StreamReader,
    sender: MemoryObjectSendStream[SessionMessage | Exception],
    asked: set[str],
    on_end: Callable[[], object],
    on_rubbish: Callable[[], object],
) -> None:
    async for line, tail in _lines(stdout, MAX_MESSAGE_BYTES):
        understood = read_messages(line.decode("utf-8-sig", "replace")) if tail is None else []
        for message in understood or _in_place_of(line, tail):
            if "method" not in message:
                if message["id"] is None and len(asked) == 1:
                    [message["id"]] = asked
                asked.discard(str(message["id"]))
            with suppress(ValueError, anyio.BrokenResourceError):  # an answer to nothing, or the session has ended
                item = mcp_types.jsonrpc_message_adapter.validate_python(message, by_name=False)
                await sender.send(SessionMessage(item))
        if not understood and line.strip():
            on_rubbish()
    on_end()
    sender.close()


async def _write(
    receiver: MemoryObjectReceiveStream[SessionMessage], stdin: asyncio.StreamWriter, asked: set[str]
) -> None:
    with suppress(OSError), receiver:  # which is closed at the end, so that nothing more is sent to it
        async for item in receiver:
            asked.discard(str((getattr(item.message, "params", None) or {}).get("requestId")))  # that is cancelled
            if isinstance(item.message, mcp_types.JSONRPCRequest):
                asked.add(str(item.message.id))
            stdin.write(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
            await stdin.drain()


async def _lines(stream: asyncio.StreamReader, limit: int) -> AsyncIterator[tuple[bytes, bytes | None]]:
    """The lines, and None beside them; of a line of more than `limit` bytes its beginning, and its end."""
    line, tail = bytearray(), b""
    length = 0
    with suppress(OSError):
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


def _in_place_of(line: bytes, tail: bytes | None) -> list[dict[str, Any]]:
    """An answer in place of one that is too long or broken, if it shows its id."""
    beginning, end = line[:4096], tail or line[-_TAIL_BYTES:]
    found = _ID_FIRST.match(beginning) or _ID_LAST.search(end)
    if not found or b'"jsonrpc"' not in beginning + end:
        return []
    id = utf8_text(found[1].decode(errors="replace").strip('"'))
    return [failed_answer(id, "the answer is not JSON" if tail is None else "the answer is too long")]


async def _end(process: asyncio.subprocess.Process) -> None:
    """Closes the input of a server, waits, and then ends its process group."""
    assert process.stdin
    process.stdin.close()
    await _await_end(process, _END_SECONDS)
    if os.name == "posix":
        await terminate_posix_process_tree(process, _END_SECONDS)  # type: ignore[arg-type]  # it needs the pid alone
    elif process.returncode is None:
        process.kill()
    await _await_end(process, _CLOSE_SECONDS)  # else the loop may be closed before it hears of the end


async def _await_end(process: asyncio.subprocess.Process, seconds: float) -> None:
    """Waits for the end of the process itself: its children may hold its streams open."""
    with anyio.move_on_after(seconds):
        while process.returncode is None:
            await anyio.sleep(0.01)
