"""Turns that wait, across a crash and from another server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.model_server import ModelServer, answer, tool_call
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.server import Server, wait_until

TOOLS = '''
import pathlib, time
from agent import tool

HERE = pathlib.Path({path!r})


@tool(needs_approval=True)
def send(to: str) -> str:
    """Sends a letter."""
    with (HERE / "sent").open("a") as file:
        file.write(to + "\\n")
    while (HERE / "hold").exists():
        time.sleep(0.01)
    return f"sent to {{to}}"


TOOLS = [send]
'''
YES = {"answers": {"call_1": {"approve": True}}}
PENDING = [{"id": "call_1", "name": "send", "arguments": '{"to": "Ann"}', "for": "approval"}]


class World:
    """A store, a model server, and servers over both."""

    def __init__(self, path: Path, store: str, model: ModelServer, serve: Callable[..., Server]) -> None:
        self.path = path
        self.model = model
        self._store = store
        self._serve = serve
        (path / "tools.py").write_text(TOOLS.format(path=str(path)))

    def start(self, *flags: str) -> Server:
        tools = f"-tools={self.path / 'tools.py'}"
        return self._serve(self._store, tools, f"-base_url={self.model.base_url}", *flags)

    def waiting(self, server: Server) -> str:
        """A session that waits."""
        self.model.then(tool_call("send", {"to": "Ann"}, id="call_1"), answer("Done."))
        session = server.create()
        *_, end = server.say(session, "Write to Ann").events()
        assert end["data"]["pending"] == PENDING
        return session

    @property
    def sent(self) -> list[str]:
        path = self.path / "sent"
        return path.read_text().split() if path.exists() else []

    def results(self) -> list[str]:
        """The results of tools that the model got last."""
        return [one["content"] for one in self.model.requests[-1]["messages"] if one["role"] == "tool"]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["files", pytest.param("redis", marks=NEEDED)])
def world(request: pytest.FixtureRequest, tmp_path: Path, serve: Callable[..., Server]) -> Iterator[World]:
    if request.param == "redis":
        store = f"-redis_url={request.getfixturevalue('redis').url}"
    else:
        store = f"-session_dir={tmp_path / 'sessions'}"
    with ModelServer() as model:
        yield World(tmp_path, store, model, serve)


def run(server: Server, session: str, body: Any, **headers: str) -> Any:
    reply = server.request("POST", f"/sessions/{session}/run", body, headers)
    assert reply.status == 200, reply.text
    return reply.json["message"]


def test_what_waits_when_the_server_dies_is_answered_by_the_next(world: World) -> None:
    server = world.start()
    session = world.waiting(server)
    server.kill()
    server = world.start()
    assert server.request("GET", f"/sessions/{session}").json["pending"] == PENDING
    assert run(server, session, YES)["content"] == "Done."
    assert world.sent == ["Ann"]


def test_what_waits_here_is_answered_there_and_a_retry_here_is_the_same(world: World) -> None:
    here, there = world.start(), world.start()
    session = world.waiting(here)
    key = {"Idempotency-Key": "k"}
    message = run(there, session, YES, **key)
    assert run(here, session, YES, **key) == message
    assert "pending" not in here.request("GET", f"/sessions/{session}").json
    assert world.sent == ["Ann"]


def test_what_waits_here_is_cancelled_there(world: World) -> None:
    here, there = world.start(), world.start()
    session = world.waiting(here)
    assert there.request("POST", f"/sessions/{session}/cancel").json == {"cancelled": True}
    assert here.request("POST", f"/sessions/{session}/run", YES).json["code"] == "nothing_to_continue"


@pytest.mark.parametrize("how", ["continue", "key", "by itself"])
def test_an_approved_call_that_a_crash_cuts_off_is_never_run_twice(world: World, how: str) -> None:
    server = world.start()
    session = world.waiting(server)
    (world.path / "hold").touch()
    key = {"Idempotency-Key": "k"}
    stream = server.request("POST", f"/sessions/{session}/run_stream", YES, key)
    wait_until(lambda: world.sent)
    server.kill()
    stream.close()
    (world.path / "hold").unlink()
    server = world.start(*(["-continue_interrupted"] if how == "by itself" else []))
    if how == "by itself":
        wait_until(lambda: server.messages(session)[-1]["content"] == "Done.")
    else:
        wait_until(lambda: not server.request("GET", f"/sessions/{session}").json["running"])
        assert "pending" not in server.request("GET", f"/sessions/{session}").json
        run(server, session, YES if how == "key" else {"continue": True}, **(key if how == "key" else {}))
    assert world.sent == ["Ann"]
    assert world.results() == ["error: interrupted; the tool may have run"]
