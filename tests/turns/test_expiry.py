"""Sessions that are deleted since nobody has changed them for long."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import tool
from session_core.stores.files import FileStorage
from session_core.turns.expiry import _delete, expire
from storage import Storage
from tests.support.client import Client, error_of, json_of
from tests.support.model_server import STALL, answer, tool_call
from tests.support.server import Server, wait_until


def age(client: Client, storage: Storage, session: str, seconds: float) -> None:
    """As if a session had not changed for so long: what is stored says so."""
    with storage.lock(session) as locked:
        past = time.time() - seconds
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(past))
        path = Path(getattr(storage, "_directory", "/nowhere")) / f"{session}.json"
        if path.exists():
            path.write_text(path.read_text().replace(locked.session.updated_at, stamp))
            os.utime(path, (past, past))
        elif connection := getattr(storage, "_connection", None):
            connection.client.hset(f"session_server:session:{session}", "updated_at", stamp)
            connection.client.zadd("session_server:sessions", {session: -past * 1e6})
        else:
            memory = storage._sessions[session]  # type: ignore[attr-defined]
            memory.order = int(past * 1e9)
            memory.session = type(memory.session)(**{**vars(memory.session), "updated_at": stamp})


def test_what_did_not_change_for_long_is_deleted(store: Callable[[], Storage]) -> None:
    storage = store()
    with Client(storage=storage, default=answer("Hel", STALL)) as client:
        old, read, new, running = (client.create() for _ in range(4))
        for session in (old, read, running):
            age(client, storage, session, 100)
        client.session(read)  # which refreshes nothing
        stream = client.stream(running)
        stream.next("stream_start")
        assert expire(storage, 50) == 2
        assert set(json_of(client.get("/sessions"))["sessions"]) == {new, running}
        assert expire(storage, 50) == 0
        client.cancel(running)
        stream.close()


def test_a_session_that_waits_expires_like_any_other_and_is_answered_until_then(store: Callable[[], Storage]) -> None:
    @tool(needs_approval=True)
    def send() -> str:
        """Sends a letter."""
        return "sent"

    storage, answers = store(), {"answers": {"call_1": {"approve": True}}}
    with Client(storage=storage, tools=[send]) as client:
        client.model.then(tool_call("send", {}), tool_call("send", {}))
        forgotten, answered = (client.create() for _ in range(2))
        for session in (forgotten, answered):
            assert json_of(client.run(session))["message"]["status"] == "waiting"
            age(client, storage, session, 100)
        assert expire(storage, 200) == 0
        assert client.request("POST", f"/sessions/{answered}/run", answers).status_code == 200
        assert expire(storage, 50) == 1
        assert error_of(client.request("POST", f"/sessions/{forgotten}/run", answers)) == (404, "session_not_found")
        assert [one["content"] for one in client.messages(answered)][-2:] == ["sent", "OK"]


def test_a_session_that_changes_while_it_is_swept_is_kept(store: Callable[[], Storage]) -> None:
    storage = store()
    with Client(storage=storage) as client:
        session = client.create()
        age(client, storage, session, 100)
        found = list(storage.unchanged_since(time.time() - 50))
        assert found == [session]
        client.run(session)
        assert not _delete(storage, session, time.time() - 50)
        assert client.session(session)["id"] == session


def test_more_sessions_than_are_listed_at_once_expire(
    store: Callable[[], Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    for room, number in (("redis", "_LISTED_AT_ONCE"), ("files", "_SCANNED_AT_ONCE")):
        monkeypatch.setattr(f"session_core.stores.{room}.{number}", 2)
    storage = store()
    with Client(storage=storage) as client:
        for _ in range(3):
            age(client, storage, client.create(), 100)
        assert expire(storage, 50) == 3


def test_a_server_deletes_what_has_expired(serve: Callable[..., Server], tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    server = serve("-demo", f"-session_dir={folder}", "-session_ttl=1s")
    session = server.create()
    wait_until(lambda: server.request("GET", f"/sessions/{session}").status == 404)
    assert list(folder.glob("session-*")) == []
    wait_until(lambda: "1 sessions have expired" in server.log.read_text())


def test_a_file_that_cannot_be_understood_does_not_expire(tmp_path: Path) -> None:
    storage = FileStorage.open(str(tmp_path))
    session = storage.create()
    path = tmp_path / f"{session}.json"
    path.write_text("{]")
    os.utime(path, (1, 1))
    assert expire(storage, 50) == 0
    assert path.read_text() == "{]"
