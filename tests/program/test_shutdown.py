"""SIGTERM and SIGINT: no new turns, time for those that run, then their end with all they had, and exit code 0."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.model_server import HEADERS, STALL, ModelServer, answer, frames, tool_call, wait
from tests.support.server import SERVER, TIMEOUT, Reply, Server, environment, wait_until

FRESH = True  # servers are started as their users start them
Serve = Callable[..., Server]
BRISK = 20.0  # seconds within which an idle server has ended also on a busy machine, and less than -grace


@dataclass
class Seen:
    """What the clients of a server saw while it shut down."""

    replies: dict[str, Reply] = field(default_factory=dict)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    stored: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    exit_code: int | None = None


def is_shutting_down(server: Server) -> bool:
    return server.request("GET", "/ready").status == 503


def stored(directory: Path, session_id: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = json.loads((directory / f"{session_id}.json").read_text())["messages"]
    return messages


# --- with time enough ---


@pytest.fixture(scope="module")
def drained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """A server that is told to end in mid-answer and gets the time to."""
    path = tmp_path_factory.mktemp("drained")
    go = threading.Event()
    seen = Seen()
    call = tool_call("calculator", {"expression": "6*7"})
    with ModelServer(answer("Hel", wait(go), "lo"), default=answer(wait(go), "It is 42.")) as model:
        model.then(lambda request: (call if request["messages"][-1]["role"] == "user" else model.default)(request))
        flags = (f"-base_url={model.base_url}", f"-session_dir={path}", "-grace=60")
        with Server(*flags, log=path / "log") as server, ThreadPoolExecutor() as pool:
            streamed, waited, idle = (server.create() for _ in range(3))
            stream = server.say(streamed, "Hi")
            events = stream.events()
            seen.events["stream"] = [next(events), next(events)]
            run = pool.submit(server.request, "POST", f"/sessions/{waited}/run", {"message": "What is 6*7?"})
            model.wait_for(3)
            server.send_signal(signal.SIGTERM)
            wait_until(lambda: is_shutting_down(server))
            for name, (method, target, body) in {
                "run": ("POST", f"/sessions/{idle}/run", {"message": "Hi"}),
                "run_stream": ("POST", f"/sessions/{idle}/run_stream", {"message": "Hi"}),
                "busy": ("POST", f"/sessions/{streamed}/run", {"message": "Hi"}),
                "unknown": ("POST", "/sessions/session-unknown/run", {"message": "Hi"}),
                "ready": ("GET", "/ready", None),
                "health": ("GET", "/health", None),
                "get": ("GET", f"/sessions/{streamed}", None),
                "create": ("POST", "/sessions", {}),
            }.items():
                seen.replies[name] = server.request(method, target, body)
            watcher = server.request("GET", f"/sessions/{streamed}/run_stream")
            go.set()
            seen.events["stream"] += events
            seen.events["watcher"] = list(watcher.events())
            seen.replies["waited"] = run.result()
            seen.exit_code = server.wait()
            seen.stored = {name: stored(path, id) for name, id in [("stream", streamed), ("idle", idle)]}
    yield seen


@pytest.mark.parametrize("name", ["run", "run_stream", "busy"])
def test_a_new_turn_is_refused_while_the_port_stays_open(drained: Seen, name: str) -> None:
    reply = drained.replies[name]
    assert (reply.status, reply.json["code"]) == (503, "shutting_down")
    assert int(reply.headers["Retry-After"]) > 0


def test_a_session_that_is_not_there_is_still_not_there(drained: Seen) -> None:
    assert drained.replies["unknown"].status == 404


def test_a_refused_turn_leaves_nothing(drained: Seen) -> None:
    assert drained.stored["idle"] == []


def test_ready_says_that_the_end_is_near(drained: Seen) -> None:
    assert (drained.replies["ready"].status, drained.replies["ready"].json["code"]) == (503, "shutting_down")


def test_what_is_no_turn_is_still_answered(drained: Seen) -> None:
    assert drained.replies["health"].status == 200
    assert drained.replies["get"].json["running"] is True
    assert drained.replies["create"].status == 201


def test_a_running_stream_comes_to_its_end(drained: Seen) -> None:
    last = drained.events["stream"][-1]
    assert (last["type"], last["data"]["complete_text"], last["data"]["status"]) == (
        "stream_end",
        "Hello",
        "completed",
    )
    assert drained.stored["stream"][-1]["content"] == "Hello"


def test_a_turn_can_be_watched_meanwhile(drained: Seen) -> None:
    assert drained.events["watcher"] == drained.events["stream"]


def test_a_waiting_run_gets_its_answer(drained: Seen) -> None:
    assert drained.replies["waited"].json["message"]["content"] == "It is 42."


def test_the_exit_code_after_a_drain_is_0(drained: Seen) -> None:
    assert drained.exit_code == 0


# --- with too little time ---


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """A server that is told to end while model servers have stalled."""
    path = tmp_path_factory.mktemp("cut")
    seen = Seen()
    silent = answer(STALL)
    replies = {
        "stream": answer("Hel", STALL),
        "silent": silent,
        "headers": frames(HEADERS, STALL),
        "run": answer("Half ", "an answer", STALL),
        "silent run": silent,
        "tool": tool_call("calculator", {"expression": "6*7"}, text="Let me see. "),
    }

    def reply(request: dict[str, Any]) -> Any:
        last = request["messages"][-1]
        return (replies[last["content"]] if last["role"] == "user" else silent)(request)

    with ModelServer(default=reply) as model:
        flags = (f"-base_url={model.base_url}", f"-session_dir={path}", "-grace=0.2")
        with Server(*flags, log=path / "log") as server, ThreadPoolExecutor() as pool:
            ids = {name: server.create() for name in replies}
            runs = {
                name: pool.submit(server.request, "POST", f"/sessions/{ids[name]}/run", {"message": name})
                for name in ids
                if name.endswith("run")
            }
            streams = {name: server.say(ids[name], name).events() for name in ids if name not in runs}
            seen.events = {name: [next(streams[name])] for name in streams}
            seen.events["stream"].append(next(streams["stream"]))
            model.wait_for(len(ids) + 1)
            watcher = server.request("GET", f"/sessions/{ids['run']}/run_stream").events()
            assert [next(watcher)["type"] for _ in range(3)] == ["stream_start", "stream_chunk", "stream_chunk"]
            server.send_signal(signal.SIGTERM)
            for name, stream in streams.items():
                seen.events[name] += stream
            seen.events["watcher"] = list(watcher)
            seen.replies = {name: run.result() for name, run in runs.items()}
            seen.exit_code = server.wait()
            seen.stored = {name: stored(path, id) for name, id in ids.items()}
        with Server(*flags[:2], log=path / "log") as server:
            model.default = answer("Good morning.")
            seen.replies |= {
                f"next {name}": server.request("POST", f"/sessions/{id}/run", {"message": "Hi again"})
                for name, id in ids.items()
            }
    yield seen


@pytest.mark.parametrize("name", ["stream", "silent", "headers", "tool"])
def test_a_stream_that_takes_too_long_ends_with_the_error(cut: Seen, name: str) -> None:
    last = cut.events[name][-1]
    assert (last["type"], last["data"]["code"], last["data"]["status"]) == ("error", "shutting_down", 503)
    assert [event["type"] for event in cut.events[name]].count("error") == 1


@pytest.mark.parametrize("name", ["run", "silent run"])
def test_a_run_that_takes_too_long_is_that_status(cut: Seen, name: str) -> None:
    assert (cut.replies[name].status, cut.replies[name].json["code"]) == (503, "shutting_down")


def test_a_watcher_gets_the_last_event_too(cut: Seen) -> None:
    assert [(event["type"], event["data"]["code"]) for event in cut.events["watcher"]] == [("error", "shutting_down")]


@pytest.mark.parametrize("name, text", [("stream", "Hel"), ("run", "Half an answer")])
def test_the_partial_answer_is_stored(cut: Seen, name: str, text: str) -> None:
    message = cut.stored[name][-1]
    assert (message["role"], message["content"]) == ("assistant", text)
    assert (message["status"], message["reason"]) == ("incomplete", "shutting_down")


def test_the_error_names_the_partial_answer(cut: Seen) -> None:
    assert cut.events["stream"][-1]["data"]["message_id"] == cut.stored["stream"][-1]["id"]


@pytest.mark.parametrize("name", ["silent", "headers", "silent run"])
def test_where_nothing_was_said_only_the_question_is_stored(cut: Seen, name: str) -> None:
    assert [message["role"] for message in cut.stored[name]] == ["user"]


def test_a_tools_result_is_kept(cut: Seen) -> None:
    assert [message["content"] for message in cut.stored["tool"]] == ["tool", "Let me see. ", "42"]


def test_the_exit_code_after_cutting_turns_off_is_0(cut: Seen) -> None:
    assert cut.exit_code == 0


@pytest.mark.parametrize("name", ["stream", "silent", "headers", "run", "silent run", "tool"])
def test_the_session_takes_a_turn_after_the_restart(cut: Seen, name: str) -> None:
    assert cut.replies[f"next {name}"].json["message"]["content"] == "Good morning."


# --- the rest ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_at_once_with_0(serve: Serve, number: int) -> None:
    server = serve("-demo", "-grace=300")
    with socket.create_connection(("127.0.0.1", server.port)):  # says nothing, and holds nothing up
        server.request("GET", "/health")
        began = time.monotonic()
        server.send_signal(number)
        assert server.wait() == 0
    assert time.monotonic() - began < BRISK
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("first, second", [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGINT)])
def test_a_second_signal_ends_it_at_once(serve: Serve, tmp_path: Path, first: int, second: int) -> None:
    with ModelServer(answer("Hel", STALL)) as model:
        server = serve(f"-base_url={model.base_url}", f"-session_dir={tmp_path / 'kept'}", "-grace=300")
        session_id = server.create()
        stream = server.say(session_id, "Hi")
        next(stream.events())
        server.send_signal(first)
        wait_until(lambda: is_shutting_down(server))
        server.send_signal(second)
        assert server.wait() == -second  # ended by the signal; 128 and its number for a shell
        stream.close()
        assert stored(tmp_path / "kept", session_id)[0]["content"] == "Hi"


def goes_on(server: Server, said: str) -> None:
    """After this line of the log it answers turns, until SIGTERM ends it."""
    wait_until(lambda: said in server.log.read_text())
    sent = {"Authorization": "Bearer token-of-ann"}
    session = server.request("POST", "/sessions", headers=sent).json["id"]
    assert server.request("POST", f"/sessions/{session}/run", {"message": "Hi"}, sent).status == 200
    assert "shutting down" not in server.log.read_text()
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0


def test_a_hangup_reads_the_users_again_and_ends_nothing(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "users").write_text("ann token-of-ann\n")
    server = serve("-demo", f"-users={tmp_path / 'users'}")
    server.send_signal(signal.SIGHUP)
    goes_on(server, "the file of users was read again")


def test_a_hangup_does_not_end_a_server_without_a_terminal(tmp_path: Path) -> None:
    with Server("-demo", command=("setsid", *SERVER), log=tmp_path / "log") as server:
        server.send_signal(signal.SIGHUP)
        goes_on(server, "there is no file of users to read again")


def test_a_hangup_while_the_server_starts_does_not_end_it() -> None:
    command = ["setsid", *SERVER, "-demo", "-port=0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment()) as process:
        assert process.stdout and process.stderr
        wait_until(lambda: _catches(process.pid, signal.SIGHUP))
        process.send_signal(signal.SIGHUP)
        assert b"listens on" in process.stdout.readline()
        assert b"no file of users" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0


def _catches(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_a_terminal_that_is_closed_ends_the_server_in_its_foreground() -> None:
    ours, terminal = os.openpty()
    default = ["env", "--default-signal=HUP"]  # also where the tests themselves run under nohup
    command = [*default, "setsid", "--ctty", *SERVER, "-demo", "-port=0"]
    with subprocess.Popen(
        command, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()
    ) as process:
        os.close(terminal)
        assert process.stdout and b"listens on" in process.stdout.readline()
        os.close(ours)
        assert process.wait(TIMEOUT) == -signal.SIGHUP


def test_a_reader_that_has_stalled_does_not_hold_up_the_end_for_long(serve: Serve) -> None:
    with ModelServer(answer(*["0123456789abcdef" * 1024] * 300)) as model:
        server = serve(f"-base_url={model.base_url}", "-grace=1")
        session_id = server.create()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.port))
            body = json.dumps({"message": "Tell me much"})
            head = f"POST /sessions/{session_id}/run_stream HTTP/1.1\r\nHost: localhost\r\n"
            client.sendall(
                f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            wait_until(lambda: len(server.messages(session_id)) == 2)
            began = time.monotonic()
            server.send_signal(signal.SIGTERM)
            assert server.wait() == 0
        assert time.monotonic() - began < BRISK + 3
