"""`docs/operating.md`: what it says of the log, and of backups, is so."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.program.house import rooms
from tests.support.model_server import ModelServer, answer, wait
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.server import ROOT, TIMEOUT, Server, wait_until

TEXT = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
_LEVELS = ("warning", "error", "exception", "critical")


def logged() -> Iterator[str]:
    """The first line of each warning and error that a room can log, with `…` for what varies."""
    for room, file in rooms(ROOT).items():
        if room == "session_core.web.access":  # its line of each request is no warning
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log.")):
                continue
            level = ast.unparse(node.func).removeprefix("log.")
            if level in (*_LEVELS, "log"):
                message = ast.literal_eval(node.args[1 if level == "log" else 0])
                yield re.sub(r"%\w(?: ?%\w)*", "…", message.partition("\n")[0])


def test_every_warning_and_error_of_the_log_is_in_the_table_with_a_remedy() -> None:
    section = TEXT.split("\n## What the log means\n")[1]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert all(len(row) == 3 and all(row) for row in rows)
    lines = [row[0].strip("`") for row in rows]
    assert sorted(lines) == sorted(set(logged()))


@pytest.fixture
def go() -> Iterator[threading.Event]:
    go = threading.Event()
    yield go
    go.set()


def test_a_copy_in_mid_turn_holds_the_question_and_the_text_so_far_and_goes_on(
    serve: Callable[..., Server], tmp_path: Path, go: threading.Event
) -> None:
    with ModelServer(answer("Hel", wait(go), "lo"), default=answer("Hello again")) as model:
        server = serve(f"-base_url={model.base_url}", f"-session_dir={tmp_path / 'sessions'}")
        session = server.create()
        events = server.say(session, "Hi").events()
        assert [next(events)["type"], next(events)["type"]] == ["stream_start", "stream_chunk"]
        wait_until(
            lambda: b"Hel" in b"".join(path.read_bytes() for path in (tmp_path / "sessions").glob(".*.journal"))
        )
        subprocess.run(["cp", "-a", tmp_path / "sessions", tmp_path / "copy"], check=True)
        restored = serve(f"-base_url={model.base_url}", f"-session_dir={tmp_path / 'copy'}")
        question, partial = restored.messages(session)
        assert (question["content"], partial["content"], partial["reason"]) == ("Hi", "Hel", "interrupted")
        reply = restored.request("POST", f"/sessions/{session}/run", {"continue": True})
        assert reply.json["message"]["content"] == "Hello again"


def test_one_session_can_be_brought_back_while_the_server_runs(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve("-demo", f"-session_dir={tmp_path / 'sessions'}")
    session = server.create()
    server.request("POST", f"/sessions/{session}/run", {"message": "Hi"})
    messages = server.messages(session)
    file = tmp_path / "sessions" / f"{session}.json"
    shutil.copy2(file, tmp_path / "backup")
    server.request("DELETE", f"/sessions/{session}")
    assert server.request("GET", f"/sessions/{session}").status == 404
    shutil.copy2(tmp_path / "backup", file.with_suffix(".tmp"))
    file.with_suffix(".tmp").rename(file)
    assert server.messages(session) == messages
    assert server.request("GET", "/sessions").json == {"sessions": [session]}


@NEEDED
def test_a_snapshot_of_a_running_redis_restores_the_sessions(serve: Callable[..., Server], tmp_path: Path) -> None:
    snapshot = tmp_path / "sessions.rdb"
    with RedisServer(tmp_path) as redis:
        server = serve("-demo", f"-redis_url={redis.url}")
        session = server.create()
        server.request("POST", f"/sessions/{session}/run", {"message": "Hi"})
        messages = server.messages(session)
        command = ["redis-cli", "-p", str(redis.port), "--rdb", str(snapshot)]
        subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT)
    with RedisServer(tmp_path, appendonly="no", dir=str(tmp_path), dbfilename=snapshot.name) as redis:
        redis.call("CONFIG", "SET", "appendonly", "yes")
        server = serve("-demo", f"-redis_url={redis.url}")
        assert server.messages(session) == messages
        assert server.request("POST", f"/sessions/{session}/run", {"message": "Hi"}).status == 200
        assert "appendonly" not in server.log.read_text()
