"""Tools that fork: what a child of the server holds keeps no session, no port and no client."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.model_server import STALL, ModelServer, answer, tool_call
from tests.support.server import TIMEOUT, Server

TOOLS = '''
import ctypes, multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor

_pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))

def pool() -> int:
    """A process of a pool, which stays."""
    return _pool.submit(os.getpid).result()

def child() -> int:
    """A child that stays."""
    if (pid := os.fork()) == 0:
        time.sleep(60)
        os._exit(0)
    return pid

def foreign() -> int:
    """A child that stays, forked by a library that does not tell the interpreter."""
    libc = ctypes.CDLL(None)
    if (pid := libc.fork()) == 0:
        libc.sleep(60)
        libc._exit(0)
    return pid
'''


@dataclass
class Forking:
    """A server with tools that fork, and a model that calls the tool that the question names, or says `Hello`."""

    start: Callable[..., Server]
    stack: contextlib.ExitStack
    server: Server

    def fork(self, session_id: str, tool: str) -> int:
        """A turn whose tool forks a child, which lives on."""
        events = list(self.server.say(session_id, tool).events())
        child = next(int(event["data"]["result"]) for event in events if event["type"] == "stream_tool_result")
        self.stack.callback(_end, child)
        assert child != self.server.process.pid
        return child


def _end(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def reply(request: dict[str, Any]) -> Any:
    text = request["messages"][-1]["content"]
    if text == "stall":
        return answer("Hel", STALL)(request)
    return tool_call(text, {})(request) if text in ("pool", "child", "foreign") else answer("Hello")(request)


@pytest.fixture
def forking(tmp_path: Path) -> Iterator[Forking]:
    (tmp_path / "tools.py").write_text(TOOLS)
    with ModelServer(default=reply) as model, contextlib.ExitStack() as stack:
        flags = (f"-base_url={model.base_url}", f"-session_dir={tmp_path / 'sessions'}", "-calculator=false")

        def start(port: int = 0) -> Server:
            more = f"-tools={tmp_path / 'tools.py'}"
            return stack.enter_context(Server(*flags, more, log=tmp_path / "log", port=port))

        yield Forking(start, stack, start())


def says(server: Server, session_id: str) -> int:
    return server.request("POST", f"/sessions/{session_id}/run", {"message": "Hi"}).status


@pytest.mark.parametrize("tool", ["pool", "child", "foreign"])
def test_a_session_is_free_when_its_turn_has_ended(forking: Forking, tool: str) -> None:
    session_id = forking.server.create()
    forking.fork(session_id, tool)
    assert forking.server.request("GET", f"/sessions/{session_id}").json["running"] is False
    assert says(forking.server, session_id) == 200
    assert forking.server.request("PATCH", f"/sessions/{session_id}", {"title": "T"}).status == 200
    assert forking.server.request("DELETE", f"/sessions/{session_id}").status == 200


@pytest.mark.parametrize("tool", ["pool", "child"])
def test_after_kill_9_the_port_and_all_sessions_are_free(forking: Forking, tool: str) -> None:
    running, calling = forking.server.create(), forking.server.create()
    stream = forking.server.say(running, "stall")
    events = stream.events()
    assert [next(events)["type"] for _ in range(2)] == ["stream_start", "stream_chunk"]
    child = forking.fork(calling, tool)
    port = forking.server.port
    forking.server.kill()
    stream.close()
    os.kill(child, 0)
    server = forking.start(port)
    for session_id in (running, calling):
        assert server.request("GET", f"/sessions/{session_id}").json["running"] is False
        assert says(server, session_id) == 200


def test_a_client_whose_connection_is_closed_sees_its_end(forking: Forking) -> None:
    session_id = forking.server.create()
    with socket.create_connection(("127.0.0.1", forking.server.port), TIMEOUT) as client:
        body = json.dumps({"message": "child"}).encode()
        head = f"POST /sessions/{session_id}/run HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answered = b""
        while data := client.recv(1 << 16):
            answered += data
    assert b"Hello" in answered
    messages = forking.server.messages(session_id)
    forking.stack.callback(_end, int(next(one["content"] for one in messages if one["role"] == "tool")))
