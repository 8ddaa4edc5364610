"""A session that is deleted while its turn runs."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from agent import Picture
from session_core.stores.files import FileStorage
from storage import LockedSession, MemoryStorage, SessionBusy, Storage
from tests.support.client import Client, error_of, json_of, storages
from tests.support.model_server import STALL, answer, tool_call
from tests.support.phases import Tool, every_phase, outcome, phase
from tests.support.pictures import image, png, sha256, text
from tests.support.server import TIMEOUT, wait_until


@every_phase
def test_a_running_turn_has_ended_when_its_session_is_deleted(where: str, tool: Tool, tmp_path: Path) -> None:
    with phase(where, tool, storage=FileStorage.open(str(tmp_path))) as now:
        client = now.client
        session_id = client.create()
        stream = client.stream(session_id)
        now.reached()
        began = time.monotonic()
        assert client.request("DELETE", f"/sessions/{session_id}").status_code == 200
        assert time.monotonic() - began < 15
        assert error_of(client.get(f"/sessions/{session_id}")) == (404, "session_not_found")
        last = stream.last()
        assert (last["type"], last["data"]["status"]) == ("stream_end", "cancelled")
        if now.connected:
            assert client.model.closed.wait(5)
        tool.go.set()
    assert error_of(client.get(f"/sessions/{session_id}")) == (404, "session_not_found")
    assert json_of(client.get("/sessions")) == {"sessions": []}
    assert list(tmp_path.iterdir()) == []


def test_run_of_a_deleted_session_answers_with_what_there_was() -> None:
    with Client(answer("Hel", STALL)) as client:
        session_id = client.create()
        waiting = client.later(client.run, session_id)
        client.model.wait_for(1)
        assert client.request("DELETE", f"/sessions/{session_id}").status_code == 200
        response: TestResponse = waiting.result(TIMEOUT)
        assert outcome(response)[2] == "cancelled"


def test_a_session_that_was_deleted_stays_so_whoever_writes_at_the_same_time(storage: Storage) -> None:
    with Client(storage=storage) as client:
        for _ in range(15):
            session_id = client.create()
            together = threading.Barrier(3)

            def at_once(
                method: str, path: str, data: object, id: str = session_id, start: threading.Barrier = together
            ) -> int:
                start.wait(TIMEOUT)
                return client.request(method, f"/sessions/{id}{path}", data).status_code

            asked = [
                client.later(at_once, "POST", "/run", {"message": "Hi"}),
                client.later(at_once, "PATCH", "", {"title": "x"}),
                client.later(at_once, "DELETE", "", None),
            ]
            answers = [one.result(TIMEOUT) for one in asked]
            assert answers[0] in (200, 404)
            assert answers[1] in (200, 404, 409)
            assert answers[2] == 200
            assert client.get(f"/sessions/{session_id}").status_code == 404
        assert json_of(client.get("/sessions")) == {"sessions": []}


def test_a_delete_that_another_process_does_not_hear_leaves_what_waits(tmp_path: Path) -> None:
    stores = [FileStorage.open(str(tmp_path)) for _ in range(2)]
    with Client(answer(STALL), storage=stores[0]) as runs, Client(storage=stores[1]) as beside:
        session_id = runs.create()
        assert runs.stream(session_id).next()["type"] == "stream_start"
        body = {"message": "two", "if_busy": "queue"}
        assert runs.request("POST", f"/sessions/{session_id}/run", body).status_code == 202
        assert error_of(beside.request("DELETE", f"/sessions/{session_id}")) == (409, "session_busy")
        assert [one["content"] for one in runs.session(session_id)["queued"]] == ["two"]
        runs.shut_down()


class Taken(MemoryStorage):
    """A store in which another process has each session, when it is to be deleted."""

    taken = True

    def lock(self, session_id: str) -> LockedSession:
        if self.taken:
            raise SessionBusy(session_id)
        return super().lock(session_id)


def test_a_delete_that_is_refused_leaves_what_waits_in_its_order() -> None:
    with Client(answer(STALL), answer(STALL), storage=Taken()) as client:
        session_id = client.create()
        client.stream(session_id, "one").next()
        client.model.wait_for(1)
        for text in ("two", "three", "four"):
            body = {"message": text, "if_busy": "queue"}
            assert client.request("POST", f"/sessions/{session_id}/run", body).status_code == 202
        assert error_of(client.request("DELETE", f"/sessions/{session_id}")) == (409, "session_busy")
        client.model.wait_for(2)  # what waits first begins, since nothing else would have it begin
        found = client.session(session_id)
        assert [one["content"] for one in found["messages"] if one["role"] == "user"] == ["one", "two"]
        assert [one["content"] for one in found["queued"]] == ["three", "four"]


def drawing() -> Picture:
    """Draws."""
    return Picture(png())


@pytest.mark.parametrize("kind", ["memory", "files"])
@pytest.mark.parametrize("way", ["queued", "drawn"])
def test_a_picture_that_is_kept_while_its_session_is_deleted_is_gone(way: str, kind: str, tmp_path: Path) -> None:
    replies = [tool_call("drawing", {})] if way == "drawn" else [answer(STALL)]
    with Client(*replies, storage=storages(tmp_path)[kind](), tools=[drawing]) as client:
        session_id, files = client.create(), client.storage.files
        keep, deleted = files.keep, threading.Event()

        def late(*arguments: Any) -> None:
            assert client.request("DELETE", f"/sessions/{session_id}").status_code == 200
            keep(*arguments)
            deleted.set()

        files.keep = late  # type: ignore[method-assign]
        client.stream(session_id, "one").next()
        if way == "queued":
            body = {"message": [text("two"), image(png())], "if_busy": "queue"}
            response = client.request("POST", f"/sessions/{session_id}/run", body)
            assert error_of(response) == (404, "session_not_found")
        assert deleted.wait(TIMEOUT)
        wait_until(lambda: files.read(session_id, sha256(png())) is None)
        wait_until(lambda: not list(tmp_path.glob("sessions/.*.files")))


class DeletedBehind(MemoryStorage):
    """A store in which somebody deletes each session as soon as a caller has found it."""

    def running(self, session_id: str) -> bool:
        found = super().running(session_id)
        with self.lock(session_id) as locked:
            locked.delete()
        return found


def test_a_completion_does_not_bring_a_deleted_session_back() -> None:
    with Client(storage=DeletedBehind()) as client:
        session_id, body = client.create(), {"messages": [{"role": "user", "content": "Hi"}]}
        response = client.request("POST", "/v1/chat/completions", body, {"X-Session-Id": session_id})
        assert error_of(response) == (404, "session_not_found")
        assert json_of(client.get("/sessions")) == {"sessions": []}
