"""Clients that go away, or stay and no longer read: the turn runs on, nobody else notices, and nothing is left."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from session_core.web.serving import listen
from session_core.web.settings import Settings
from tests.support.model_server import HEADERS, STALL, ModelServer, answer, tool_calls, wait
from tests.support.server import TIMEOUT, Reply, Server, wait_until

Serve = Callable[..., Server]
QUICK = 10.0  # seconds; far less than anything waits for, and enough on a busy machine
HARD = "+".join(["sqrt(2)*exp(1)*sin(1)"] * 20)  # keeps the calculator busy for some milliseconds


class StreamClient:
    """A client on a bare socket, which can leave as it likes."""

    def __init__(self, server: Server, path: str, message: str | None = None, *, small: bool = False) -> None:
        self._socket = socket.socket()
        if small:  # so that little is on the way when it stops reading
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(TIMEOUT)
        self._socket.connect(("127.0.0.1", server.port))
        body = b"" if message is None else json.dumps({"message": message}).encode()
        head = f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        self._socket.sendall(f"{head}\r\n".encode() + body)
        self._read = b""

    def read_until(self, text: bytes) -> None:
        while text not in self._read:
            data = self._socket.recv(4096)
            assert data, f"the stream ended: {self._read[-300:]!r}"
            self._read += data

    def leave(self, how: str) -> None:
        """`fin` closes, `rst` resets; one that is `silent` keeps the connection and never reads from it again."""
        if how == "rst":
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how != "silent":
            self._socket.close()

    def close(self) -> None:
        self._socket.close()


class Scene:
    """A server, and a model whose answers wait for `go`: in each phase of a turn, if that is the message."""

    def __init__(self, server: Server, model: ModelServer) -> None:
        self.server = server
        self.model = model
        self.go = threading.Event()
        model.default = self._reply

    def _reply(self, request: dict[str, Any]) -> Any:
        last = request["messages"][-1]
        if last["role"] == "tool":
            return answer("So many results.")(request)
        return {
            "before the answer": answer(wait(self.go), "Hel", "lo"),
            "after the headers": answer(HEADERS, wait(self.go), "Hel", "lo"),
            "in mid-answer": answer("Hel", wait(self.go), "lo"),
            "during a tool": tool_calls(*[("calculator", {"expression": HARD})] * 60),
        }.get(last["content"], answer("OK"))(request)

    def start(self, phase: str, *, way: str = "run_stream") -> tuple[str, StreamClient]:
        """A client that has reached this phase of a turn, and its session."""
        session_id = self.server.create()
        asked = len(self.model.requests)
        client = StreamClient(self.server, f"/sessions/{session_id}/{way}", phase)
        self.model.wait_for(asked + 1)
        if way == "run_stream":
            marks = {"in mid-answer": b'"content":"Hel"', "during a tool": b"stream_tool_result"}
            client.read_until(marks.get(phase, b"stream_start"))
        return session_id, client

    def wait_for_end(self, session_id: str) -> None:
        for _ in self.server.request("GET", f"/sessions/{session_id}/run_stream").lines():
            pass


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    path = tmp_path_factory.mktemp("clients")
    with ModelServer() as model:
        flags = (f"-base_url={model.base_url}", f"-session_dir={path / 'kept'}", "-keep_alive=0.2")
        with Server(*flags, log=path / "log") as server:
            yield Scene(server, model)


@pytest.fixture
def scene(busy: Scene) -> Iterator[Scene]:
    busy.go.clear()
    yield busy
    busy.go.set()


PHASES = {
    "before the answer": "Hello",
    "after the headers": "Hello",
    "in mid-answer": "Hello",
    "during a tool": "So many results.",
}


@pytest.mark.parametrize("how", ["fin", "rst", "silent"])
@pytest.mark.parametrize("phase", PHASES)
def test_the_turn_of_a_stream_that_lost_its_reader_runs_on_and_is_stored(scene: Scene, phase: str, how: str) -> None:
    session_id, client = scene.start(phase)
    client.leave(how)
    scene.go.set()
    scene.wait_for_end(session_id)
    messages = scene.server.messages(session_id)
    client.close()
    assert messages[-1]["content"] == PHASES[phase]
    assert "status" not in messages[-1]
    assert len(messages) == (63 if phase == "during a tool" else 2)


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("phase", PHASES)
def test_the_turn_of_a_run_that_nobody_waits_for_is_stored_too(scene: Scene, phase: str, how: str) -> None:
    session_id, client = scene.start(phase, way="run")
    client.leave(how)
    scene.go.set()
    scene.wait_for_end(session_id)
    assert scene.server.messages(session_id)[-1]["content"] == PHASES[phase]


def test_a_lost_stream_can_be_taken_up_again(scene: Scene) -> None:
    session_id, client = scene.start("in mid-answer")
    client.leave("rst")
    again = scene.server.request("GET", f"/sessions/{session_id}/run_stream").events()
    assert [next(again)["type"] for _ in range(2)] == ["stream_start", "stream_chunk"]
    scene.go.set()
    assert [event["data"].get("content") for event in again] == ["lo", None]


def test_the_session_is_free_for_the_next_turn_when_the_abandoned_one_has_ended(scene: Scene) -> None:
    session_id, client = scene.start("in mid-answer")
    client.leave("fin")
    busy = scene.server.request("POST", f"/sessions/{session_id}/run", {"message": "Hi"})
    scene.go.set()
    scene.wait_for_end(session_id)
    assert busy.status == 409
    assert scene.server.request("POST", f"/sessions/{session_id}/run", {"message": "Hi"}).status == 200


def test_what_a_hundred_lost_clients_held_is_given_back(scene: Scene) -> None:
    first, last = lose_a_hundred(scene), lose_a_hundred(scene)
    wait_until(
        lambda: Process(scene.server.process.pid).files <= first.files
    )  # idle connections to the model end later
    assert last.threads <= first.threads + 20  # the WSGI server keeps its threads, and may start a few more
    assert last.memory - first.memory < 16 << 20


def test_clients_that_leave_are_no_errors_in_the_log(scene: Scene) -> None:
    for how in ("fin", "rst", "silent"):
        session_id, client = scene.start("in mid-answer")
        client.leave(how)
        scene.go.set()
        scene.wait_for_end(session_id)
        client.close()
    log = scene.server.log.read_text()
    assert [line for line in log.splitlines() if " INFO " not in line] == []


class Process:
    """What a process holds: open files, threads, bytes of memory."""

    def __init__(self, pid: int) -> None:
        proc = Path(f"/proc/{pid}")
        self.files = len(list((proc / "fd").iterdir()))
        self.threads = len(list((proc / "task").iterdir()))
        self.memory = int((proc / "statm").read_text().split()[1]) * 4096


def lose_a_hundred(scene: Scene) -> Process:
    """A hundred clients at once leave in all ways and phases; gives what the server holds when that is over."""
    scene.go.clear()
    sessions = []
    ways = [(phase, how) for phase in PHASES for how in ("fin", "rst", "silent") if phase != "during a tool"]
    for number in range(100):
        phase, how = ways[number % len(ways)]
        session_id, client = scene.start(phase)
        sessions.append((session_id, client, how))
    for _, client, how in sessions:
        client.leave(how)
    scene.go.set()
    try:
        for session_id, _, _ in sessions:
            scene.wait_for_end(session_id)
            assert [message["content"] for message in scene.server.messages(session_id)][1:] == ["Hello"]
    finally:
        for _, client, _ in sessions:
            client.close()
    pid = scene.server.process.pid
    wait_until(lambda: not connections(pid, scene.server.port))
    return Process(pid)


def connections(pid: int, port: int) -> list[list[str]]:
    """The connections that the process has at its port, in the columns of /proc/net/tcp (proc(5))."""
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    listening, time_wait, no_process = "0A", "06", "0"
    return [
        line
        for line in lines
        if line[1].endswith(f":{port:04X}") and line[3] not in (listening, time_wait) and line[9] != no_process
    ]


def waiting_to_be_read(pid: int, port: int) -> int:
    """How many connections have bytes that their client does not take."""
    return sum(not line[4].startswith("00000000:") for line in connections(pid, port))


# --- readers that stop reading ---


@pytest.fixture
def stalled(scene: Scene) -> Iterator[str]:
    """A session whose long answer nobody takes; gives its id when the turn has ended."""
    scene.model.then(answer(*["0123456789abcdef" * 1024] * 200))
    session_id = scene.server.create()
    client = StreamClient(scene.server, f"/sessions/{session_id}/run_stream", "Tell me much", small=True)
    wait_until(lambda: len(scene.server.messages(session_id)) == 2)
    yield session_id
    client.close()


def test_an_answer_that_nobody_reads_is_stored(scene: Scene, stalled: str) -> None:
    assert len(scene.server.messages(stalled)[1]["content"]) == 200 * 16 * 1024
    assert scene.server.request("GET", f"/sessions/{stalled}").json["running"] is False


def test_a_reader_that_stalls_holds_back_nobody(scene: Scene, stalled: str) -> None:
    began = time.monotonic()
    for session_id in (stalled, scene.server.create()):
        assert list(scene.server.say(session_id, "Hi").events())[-1]["type"] == "stream_end"
    assert time.monotonic() - began < QUICK


def test_a_reader_that_stalls_costs_little_memory(scene: Scene) -> None:
    """Sixteen watchers of a turn of 7.5 MiB, of which none reads more than its beginning."""
    scene.model.then(answer(*["0123456789abcdef" * 1024] * 480))
    session_id = scene.server.create()
    scene.server.request("POST", f"/sessions/{session_id}/run", {"message": "Tell me much"})
    pid = scene.server.process.pid
    before = Process(pid).memory
    watchers = []
    for _ in range(16):
        watchers.append(StreamClient(scene.server, f"/sessions/{session_id}/run_stream", small=True))
        watchers[-1].read_until(b"stream_start")
    wait_until(lambda: waiting_to_be_read(pid, scene.server.port) >= 16)  # and those that earlier tests have left
    grown = Process(pid).memory - before
    for watcher in watchers:
        watcher.close()
    assert grown < 16 * (4 << 20)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="needs Linux, where the kernel counts this time")
def test_a_reader_that_takes_nothing_for_a_minute_is_cut_off() -> None:
    with (
        listen(Settings(port=0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000


# --- at the limit ---


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, list[str]]]:
    """A server with as many turns and watchers as it takes, and the sessions of the turns."""
    path = tmp_path_factory.mktemp("full")
    replies: list[Reply] = []
    clients: list[StreamClient] = []
    with (
        ModelServer(default=answer("Hel", STALL)) as model,
        Server(f"-base_url={model.base_url}", "-max_streams=4", log=path / "log") as server,
    ):
        sessions = [server.create() for _ in range(4)]
        for number, session_id in enumerate(sessions):
            clients.append(StreamClient(server, f"/sessions/{session_id}/run{'_stream' * (number % 2)}", "Hi"))
        model.wait_for(4)
        for session_id in (sessions * 8)[: Settings(max_streams=4).max_watchers]:
            replies.append(server.request("GET", f"/sessions/{session_id}/run_stream"))
        assert {reply.status for reply in replies} == {200}
        yield server, sessions
        for reply in replies:
            reply.close()
        for client in clients:
            client.close()


@pytest.mark.parametrize("path", ["/health", "/ready", "/sessions", "/sessions?details=true", "/", "{session}"])
def test_plain_requests_are_answered_at_the_limit(full: tuple[Server, list[str]], path: str) -> None:
    server, sessions = full
    began = time.monotonic()
    assert server.request("GET", path.format(session=f"/sessions/{sessions[0]}")).status == 200
    assert time.monotonic() - began < QUICK


@pytest.mark.parametrize("way", ["run", "run_stream"])
def test_a_turn_beyond_the_limit_is_refused_at_once(full: tuple[Server, list[str]], way: str) -> None:
    server, _ = full
    session_id = server.create()
    began = time.monotonic()
    reply = server.request("POST", f"/sessions/{session_id}/{way}", {"message": "Hi"})
    assert time.monotonic() - began < QUICK
    assert (reply.status, reply.json["code"], reply.headers["Retry-After"]) == (503, "overloaded", "1")
    assert server.messages(session_id) == []


def test_a_watcher_beyond_the_limit_is_refused_at_once(full: tuple[Server, list[str]]) -> None:
    server, sessions = full
    reply = server.request("GET", f"/sessions/{sessions[3]}/run_stream")
    assert (reply.status, reply.json["code"]) == (503, "overloaded")


def test_many_plain_requests_at_once_are_answered_at_the_limit(full: tuple[Server, list[str]]) -> None:
    server, _ = full
    statuses: list[int] = []
    asking = [
        threading.Thread(target=lambda: statuses.append(server.request("GET", "/sessions").status)) for _ in range(40)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert statuses == [200] * 40


def test_a_cancel_at_the_limit_makes_room(full: tuple[Server, list[str]]) -> None:
    server, sessions = full
    assert server.request("POST", f"/sessions/{sessions[0]}/cancel", {}).json == {"cancelled": True}
    reply = server.say(sessions[0], "Hi again")
    assert reply.status == 200
    reply.close()
