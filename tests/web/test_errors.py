"""Each error that an endpoint answers, with its status and code."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from session_core.stores.files import FileStorage
from tests.support.client import BreakableStorage, Client, error_of, json_of
from tests.support.model_server import BREAK, answer, frames, status

UNKNOWN = "session-unknown"
FOR_ONE_SESSION = [
    ("GET", ""),
    ("PATCH", ""),
    ("DELETE", ""),
    ("POST", "/run"),
    ("POST", "/run_stream"),
    ("GET", "/run_stream"),
    ("POST", "/cancel"),
]


BODIES: dict[tuple[str, str], object] = {
    ("PATCH", ""): {"title": "x"},
    ("POST", "/run"): {"message": "x"},
    ("POST", "/run_stream"): {"message": "x"},
}


@pytest.mark.parametrize(("method", "path"), FOR_ONE_SESSION)
def test_a_session_that_is_not_there_is_404(anywhere: Client, method: str, path: str) -> None:
    response = anywhere.request(method, f"/sessions/{UNKNOWN}{path}", BODIES.get((method, path)))
    assert error_of(response) == (404, "session_not_found")
    assert json_of(response)["error"] == f"Session {UNKNOWN} not found"


ILL_FORMED = ["x", "msg-1", "session-", "session-A", "session-é", "..", "session-..", "session-a.json",
              "session-a%0a", "session-%00", "session_a", "Session-a", "session-" + "a" * 65,
              "session-" + "a" * 4000]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), FOR_ONE_SESSION)
def test_an_id_of_another_form_is_404_before_the_disk_is_touched(tmp_path: Path, method: str, path: str) -> None:
    with Client(storage=FileStorage.open(str(tmp_path / "sessions"))) as client:
        shutil.rmtree(tmp_path / "sessions")  # whatever looks there fails with 503
        for id in ILL_FORMED:
            response = client.request(method, f"/sessions/{id}{path}", BODIES.get((method, path)))
            assert error_of(response) == (404, "session_not_found"), id


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/sessions/", "/sessions//run", "/sessions/a/b", "/sessions/a/run/", "/sessions/..%2f..%2fetc/run",
     "/session_server.py", "/session_core/web/page/index.html",
     "/../setup.cfg", "/index.html", "/__init__.py", "/%00"],
)  # fmt: skip
def test_what_is_not_in_the_table_is_404(client: Client, path: str) -> None:
    assert error_of(client.get(path)) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/sessions", "GET, HEAD, OPTIONS, POST"),
        ("DELETE", "/sessions", "GET, HEAD, OPTIONS, POST"),
        ("POST", "/sessions/session-a", "DELETE, GET, HEAD, OPTIONS, PATCH"),
        ("GET", "/sessions/session-a/run", "OPTIONS, POST"),
        ("HEAD", "/sessions/session-a/run_stream", "GET, OPTIONS, POST"),
        ("PUT", "/sessions/session-a/run_stream", "GET, OPTIONS, POST"),
        ("GET", "/sessions/session-a/cancel", "OPTIONS, POST"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
        ("POST", "/", "GET, HEAD, OPTIONS"),
        ("TRACE", "/sessions", "GET, HEAD, OPTIONS, POST"),
        ("BREW", "/sessions", "GET, HEAD, OPTIONS, POST"),
    ],
)
def test_a_method_that_is_not_in_the_table_is_405_with_those_that_are(
    client: Client, method: str, path: str, allowed: str
) -> None:
    response = client.request(method, path)
    assert response.status_code == 405
    assert method == "HEAD" or error_of(response) == (405, "method_not_allowed")
    assert set(response.headers["Allow"].split(", ")) == set(allowed.split(", "))


CONTENT_TYPES = ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
                 "text/json", "application/json-seq", "application/vnd.api+json", "json",
                 "application/json, text/plain"]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/sessions"), ("PATCH", "/sessions/{}"), ("DELETE", "/sessions/{}"), ("POST", "/sessions/{}/run"),
     ("POST", "/sessions/{}/run_stream"), ("POST", "/sessions/{}/cancel")],
)  # fmt: skip
def test_a_body_that_is_not_application_json_is_415(method: str, path: str) -> None:
    with Client() as client:
        session_id = client.create()
        body = b'{"message": "x", "title": "x"}'
        for content_type in CONTENT_TYPES:
            response = client.request(method, path.format(session_id), body, {"Content-Type": content_type})
            assert error_of(response) == (415, "unsupported_media_type"), content_type
        assert client.messages(session_id) == []


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_json_is_taken_under_every_spelling_of_its_type(client: Client, content_type: str) -> None:
    response = client.request(
        "POST", f"/sessions/{client.create()}/run", {"message": "x"}, {"Content-Type": content_type}
    )
    assert response.status_code == 200


def test_an_unknown_position_in_a_stream_is_410(client: Client) -> None:
    session_id = client.create()
    assert error_of(client.get(f"/sessions/{session_id}/run_stream?after=evt-x-1")) == (410, "event_gone")


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ([status(400, {"error": {"code": "context_length_exceeded"}})] * 2, (400, "context_length_exceeded")),
        ([status(401, {"error": "bad key"})], (502, "model_unauthorized")),
        ([status(403, {"error": "no"})], (502, "model_unauthorized")),
        ([status(404, {"error": "no such model"})], (502, "model_error")),
        ([status(422, {"error": "no"})] * 2, (502, "model_error")),
        ([status(429, {"error": "slow down"}, {"Retry-After": "0"})] * 3, (429, "model_rate_limited")),
        ([status(500, {"error": "oh"}, {"Retry-After": "0"})] * 3, (502, "model_error")),
        ([status(503, b"<html>", {"Retry-After": "0"})] * 3, (502, "model_error")),
        ([status(504, b"", {"Retry-After": "0"})] * 3, (504, "model_timeout")),
        ([answer("Hel", BREAK)], (502, "model_error")),
        ([frames({"error": {"message": "overloaded"}})], (502, "model_error")),
        ([frames("[DONE]")], (502, "model_error")),
    ],
)
def test_each_failure_of_the_model_server_has_its_status(replies: list[Any], expected: tuple[int, str]) -> None:
    with Client(*replies) as client:
        assert error_of(client.run(client.create())) == expected


def test_the_wait_that_the_model_server_asks_for_is_passed_on() -> None:
    with Client(status(429, {"error": "slow down"}, {"Retry-After": "77"}), timeout=20) as client:
        response = client.run(client.create())
        assert error_of(response) == (429, "model_rate_limited")
        assert response.headers["Retry-After"] == "77"


@pytest.mark.parametrize(("method", "path"), [*FOR_ONE_SESSION[:2], *FOR_ONE_SESSION[3:5]])
def test_a_session_that_cannot_be_understood_is_500_and_left_as_it_is(tmp_path: Path, method: str, path: str) -> None:
    with Client(storage=FileStorage.open(str(tmp_path))) as client:
        session_id = client.create()
        file = tmp_path / f"{session_id}.json"
        file.write_bytes(b"no session at all")
        response = client.request(method, f"/sessions/{session_id}{path}", BODIES.get((method, path)))
        assert error_of(response) == (500, "session_corrupt")
        assert file.read_bytes() == b"no session at all"


def test_a_session_that_cannot_be_understood_costs_only_itself(tmp_path: Path) -> None:
    with Client(storage=FileStorage.open(str(tmp_path))) as client:
        broken, other = client.create(), client.create()
        (tmp_path / f"{broken}.json").write_bytes(b'{"id":')
        assert client.run(other).status_code == 200
        assert set(json_of(client.get("/sessions"))["sessions"]) == {broken, other}
        details = json_of(client.get("/sessions?details=true"))["sessions"]
        assert {session["id"] for session in details} == {broken, other}
        assert client.request("DELETE", f"/sessions/{broken}").status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/sessions"), ("GET", "/sessions"), ("GET", "/sessions?details=true"),
     *((method, "/sessions/{}" + path) for method, path in FOR_ONE_SESSION)],
)  # fmt: skip
def test_without_its_directory_the_store_is_unavailable(tmp_path: Path, method: str, path: str) -> None:
    with Client(storage=FileStorage.open(str(tmp_path / "sessions"))) as client:
        session_id = client.create()
        shutil.rmtree(tmp_path / "sessions")
        body = BODIES.get((method, path.removeprefix("/sessions/{}")))
        assert error_of(client.request(method, path.format(session_id), body)) == (503, "storage_unavailable")
        assert client.model.requests == []


class FaultyStorage(BreakableStorage):
    """A store with a bug."""

    def _ids(self) -> list[str]:
        raise RuntimeError("a bug with sk-secret in /srv/secret")


def test_an_error_of_our_own_is_500_without_its_words() -> None:
    with Client(storage=FaultyStorage()) as client:
        response = client.get("/sessions")
        assert error_of(response) == (500, "internal_error")
        assert "secret" not in response.text
        assert "Traceback" not in response.text
