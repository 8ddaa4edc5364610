"""The last release beside the present program, on one directory and on one Redis, as in a rolling upgrade."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests.support.model_server import ModelServer, answer, tool_call, wait
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.server import ROOT, Reply, Server, wait_until

LAST_RELEASE = "20c300bf7d0e282a3b0fcd12a4fa4362a6e85df8"


def _archive() -> bytes | None:
    """The last release's files. None where there is no history, as in an installed copy."""
    done = subprocess.run(["git", "archive", LAST_RELEASE], cwd=ROOT, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


ARCHIVE = _archive()
pytestmark = pytest.mark.skipif(ARCHIVE is None, reason="needs the history of the repository (git fetch --unshallow)")


@dataclass
class Versions:
    """A server of each version on one store, and a model that answers the question `wait` when `go` is set."""

    runner: Server  # whose turn it is
    other: Server
    go: threading.Event

    def both(self) -> tuple[Server, Server]:
        return self.runner, self.other


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert ARCHIVE is not None
    folder = tmp_path_factory.mktemp("release")
    with tarfile.open(fileobj=BytesIO(ARCHIVE)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module", params=["files", pytest.param("redis", marks=NEEDED)])
def started(
    request: pytest.FixtureRequest, release: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    path, go = tmp_path_factory.mktemp("versions"), threading.Event()

    def reply(asked: dict[str, Any]) -> Any:
        last = asked["messages"][-1]
        text = last["content"] if isinstance(last["content"], str) else ""
        if last["role"] == "tool":
            return answer("It is 2.")(asked)
        if text.endswith("sum"):
            return tool_call("calculator", {"expression": "1+1"})(asked)
        return answer("Hel", wait(go), "lo")(asked) if text.endswith("wait") else answer("OK")(asked)

    with ModelServer(default=reply) as model, ExitStack() as stack:
        kept = f"-session_dir={path / 'sessions'}"
        if request.param == "redis":
            kept = f"-redis_url={stack.enter_context(RedisServer(path)).url}"
        flags = (f"-base_url={model.base_url}", kept)
        command = (sys.executable, str(release / "session_server.py"))
        old = stack.enter_context(Server(*flags, log=path / "old.log", command=command))
        new = stack.enter_context(Server(*flags, log=path / "new.log", fresh=True))
        yield {"old": old, "new": new, "go": go}


@pytest.fixture(params=["the last release runs the turn", "the present program runs the turn"])
def versions(request: pytest.FixtureRequest, started: dict[str, Any]) -> Iterator[Versions]:
    started["go"].clear()
    names = ("old", "new") if request.param.startswith("the last") else ("new", "old")
    yield Versions(started[names[0]], started[names[1]], started["go"])
    started["go"].set()


def run(server: Server, session_id: str, text: str, **headers: str) -> Reply:
    return server.request("POST", f"/sessions/{session_id}/run", {"message": text}, headers)


REQUESTS: dict[str, Callable[[Server, str], Reply]] = {
    "get": lambda server, id: server.request("GET", f"/sessions/{id}"),
    "list": lambda server, id: server.request("GET", "/sessions?details=true"),
    "run": lambda server, id: run(server, id, "Hi"),
    "stream": lambda server, id: server.request("POST", f"/sessions/{id}/run_stream", {"message": "Hi"}),
    "retry": lambda server, id: run(server, id, "Hi", **{"Idempotency-Key": "other"}),
    "continue": lambda server, id: server.request("POST", f"/sessions/{id}/run", {"continue": True}),
    "rename": lambda server, id: server.request("PATCH", f"/sessions/{id}", {"title": "T"}),
    "copy": lambda server, id: server.request("POST", "/sessions", {"copy_of": id}),
    "document": lambda server, id: server.request("GET", f"/sessions/{id}", headers={"Accept": "text/markdown"}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_about_the_other_versions_turn_is_right_or_to_be_tried_again(versions: Versions, name: str) -> None:
    session = versions.runner.create()
    stream = versions.runner.say(session, "wait")
    events = stream.events()
    assert [next(events)["type"] for _ in range(2)] == ["stream_start", "stream_chunk"]
    reply = REQUESTS[name](versions.other, session)
    assert reply.status < 500, reply.text
    if reply.status == 409:
        assert reply.headers["Retry-After"]
    if name == "get":
        assert reply.json["running"] is True
    reply.close()
    versions.go.set()
    assert list(events)[-1]["data"]["complete_text"] == "Hello"


@pytest.mark.parametrize("way", ["watch", "cancel", "delete"])
def test_following_or_ending_the_other_versions_turn_is_right_or_to_be_tried_again(
    versions: Versions, way: str
) -> None:
    session = versions.runner.create()
    stream = versions.runner.say(session, "wait")
    events = stream.events()
    assert [next(events)["type"] for _ in range(2)] == ["stream_start", "stream_chunk"]
    path = f"/sessions/{session}"
    method, path = {
        "watch": ("GET", f"{path}/run_stream"),
        "cancel": ("POST", f"{path}/cancel"),
        "delete": ("DELETE", path),
    }[way]
    reply = versions.other.request(method, path)
    assert reply.status in (200, 409), reply.text if reply.status != 200 else ""
    if reply.status == 409:
        assert reply.headers["Retry-After"]
    versions.go.set()
    assert list(events)[-1]["type"] in ("stream_end", "error")
    if way == "watch" and reply.status == 200:
        assert list(reply.events())[-1]["data"]["complete_text"] == "Hello"
    reply.close()


def test_after_its_end_the_other_version_has_all_of_the_turn_and_goes_on(versions: Versions) -> None:
    session = versions.runner.create()
    assert run(versions.runner, session, "a sum", **{"Idempotency-Key": "k"}).json["message"]["content"] == "It is 2."
    for server in versions.both():
        assert [one["role"] for one in server.messages(session)] == ["user", "assistant", "tool", "assistant"]
        again = run(server, session, "a sum", **{"Idempotency-Key": "k"})
        assert (again.status, again.json["message"]["content"]) == (200, "It is 2.")
        assert server.request("GET", f"/sessions/{session}/run_stream").status < 500
    assert run(versions.other, session, "and now?").json["message"]["content"] == "OK"
    for server in versions.both():
        assert [one["content"] for one in server.messages(session)][-2:] == ["and now?", "OK"]


def test_what_one_version_changes_the_other_keeps(versions: Versions) -> None:
    session = versions.runner.create()
    assert (
        versions.runner.request("PATCH", f"/sessions/{session}", {"title": "T", "system_prompt": "S"}).status == 200
    )
    for text in ("one", "two"):
        assert run(versions.runner, session, text).status == 200
    first = versions.other.messages(session)[2]["id"]
    changed = versions.other.request("POST", f"/sessions/{session}/run", {"message": "TWO", "replaces": first})
    assert changed.status == 200
    for server in versions.both():
        found = server.request("GET", f"/sessions/{session}").json
        assert (found["title"], found["system_prompt"]) == ("T", "S")
        assert [one["content"] for one in found["messages"]] == ["one", "OK", "TWO", "OK"]
    assert run(versions.runner, session, "three").status == 200
    assert [one["content"] for one in versions.other.messages(session)][-2:] == ["three", "OK"]


def test_no_traceback_is_in_any_log(started: dict[str, Any]) -> None:
    wait_until(lambda: started["new"].log.exists())
    assert "Traceback" not in started["new"].log.read_text()
