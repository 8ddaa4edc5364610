"""Users: a token and a store for each, and nothing of one reaches another."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import Agent
from session_core.web.flag_values import SettingsError
from session_core.web.settings import Settings
from session_core.web.users import Users
from session_server import create_app
from storage import MemoryStorage, Storage
from tests.support.client import Client, error_of
from tests.support.model_server import STALL, ModelServer, answer, wait
from tests.support.pictures import encoded, png, sha256, text
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.server import ROOT, TIMEOUT, Reply, Server, wait_until

TOKENS = {"ann": "token-of-ann", "bob": "token-of-bob"}
DOCUMENT = json.loads((ROOT / "session_core" / "web" / "page" / "openapi.json").read_text(encoding="utf-8"))


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    digest = hashlib.sha256(TOKENS["bob"].encode()).hexdigest()
    return write(tmp_path / "users", "# who may call", f"ann {TOKENS['ann']}  # in plain", "", f"bob sha256:{digest}")


def test_a_digest_may_be_written_in_capitals(serve: Callable[..., Server], tmp_path: Path) -> None:
    digest = hashlib.sha256(TOKENS["bob"].encode()).hexdigest()
    server = serve("-demo", f"-users={write(tmp_path / 'users', f'bob SHA256:{digest.upper()}')}")
    assert server.request("POST", "/sessions", headers=by("bob")).status == 201
    pretended = {"Authorization": f"Bearer SHA256:{digest.upper()}"}
    assert server.request("POST", "/sessions", headers=pretended).status == 401


def by(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[user]}"}


@pytest.fixture(params=["memory", "files", pytest.param("redis", marks=NEEDED)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    if request.param == "memory":
        yield ()
    elif request.param == "files":
        yield (f"-session_dir={tmp_path / 'sessions'}",)
    else:
        with RedisServer(tmp_path, appendfsync="no") as server:
            yield (f"-redis_url={server.url}",)


@pytest.fixture
def model() -> Iterator[ModelServer]:
    with ModelServer(default=answer("OK")) as model:
        yield model


def test_no_endpoint_gives_one_user_what_another_has(
    serve: Callable[..., Server], place: tuple[str, ...], file: str, model: ModelServer
) -> None:
    server = serve(f"-base_url={model.base_url}", f"-users={file}", *place)
    session = server.request("POST", "/sessions", {"title": "Of Ann"}, by("ann")).json["id"]
    path = f"/sessions/{session}"
    done = server.request("POST", f"{path}/run", {"message": "Hi"}, {**by("ann"), "Idempotency-Key": "k"})
    message = server.request("GET", path, headers=by("ann")).json["messages"][0]["id"]
    parts = [text("Look"), {"type": "image", "data": encoded(png())}]
    assert server.request("POST", f"{path}/run", {"message": parts}, by("ann")).status == 200
    names = {"message_id": message, "sha256": sha256(png())}
    assert server.request("GET", f"{path}/files/{names['sha256']}", headers=by("ann")).status == 200
    mine = server.request("POST", "/sessions", headers=by("bob")).json["id"]
    model.default = answer("Hel", STALL)
    running = server.request("POST", f"{path}/run_stream", {"message": "Hi"}, by("ann"))
    assert [next(running.events())["type"], next(running.events())["type"]] == ["stream_start", "stream_chunk"]
    bodies: dict[str, list[Any]] = {
        "run": [{"message": "Hi"}, {"replaces": message}, {"continue": True}],
        "run_stream": [{"message": "Hi"}, {"replaces": message}, {"continue": True}],
        "configure_session": [{"title": "Of Bob"}],
    }
    asked = 0
    for template, item in DOCUMENT["paths"].items():
        for method in item.keys() & {"get", "post", "patch", "delete"}:
            if "{session_id}" not in template:
                continue
            for body in bodies.get(item[method]["operationId"], [None]):
                headers = {**by("bob"), "Idempotency-Key": "k"}
                reply = server.request(method.upper(), template.format(session_id=session, **names), body, headers)
                assert reply.status == 404, (method, template)
                if template.startswith("/ui/"):  # whose errors are sentences
                    assert reply.text == f"Session {session} not found"
                else:
                    assert reply.json["code"] == "session_not_found", (method, template)
                never = server.request(
                    method.upper(), template.format(session_id="session-0", **names), body, headers
                )
                assert never.text.replace("session-0", session) == reply.text
                asked += 1
    assert asked >= 14
    assert server.request("GET", "/sessions", headers=by("bob")).json == {"sessions": [mine]}
    assert server.request("GET", f"/sessions?after={session}", headers=by("bob")).status == 400
    copy = server.request("POST", "/sessions", {"copy_of": session}, by("bob"))
    assert (copy.status, copy.json["code"]) == (404, "session_not_found")
    again = server.request("POST", f"{path}/run", {"message": "Hi"}, {**by("ann"), "Idempotency-Key": "k"})
    assert again.json == done.json
    assert server.request("POST", f"{path}/cancel", headers=by("ann")).json == {"cancelled": True}
    running.close()
    assert server.request("GET", path, headers=by("ann")).json["title"] == "Of Ann"
    wait_until(lambda: " user=bob" in server.log.read_text())
    assert not any(token in server.log.read_text() for token in TOKENS.values())


@NEEDED
def test_two_servers_on_one_redis_keep_users_apart(
    serve: Callable[..., Server], tmp_path: Path, file: str, model: ModelServer
) -> None:
    with RedisServer(tmp_path, appendfsync="no") as redis:
        flags = (f"-base_url={model.base_url}", f"-users={file}", f"-redis_url={redis.url}")
        one, other = serve(*flags), serve(*flags)
        session = one.request("POST", "/sessions", headers=by("ann")).json["id"]
        assert other.request("GET", f"/sessions/{session}", headers=by("ann")).status == 200
        assert other.request("GET", f"/sessions/{session}", headers=by("bob")).status == 404
        model.default = answer("Hel", STALL)
        reply = one.request("POST", f"/sessions/{session}/run_stream", {"message": "Hi"}, by("ann"))
        assert next(reply.events())["type"] == "stream_start"
        assert other.request("GET", f"/sessions/{session}/run_stream", headers=by("bob")).status == 404
        assert other.request("POST", f"/sessions/{session}/cancel", headers=by("ann")).json == {"cancelled": True}
        reply.close()


def test_each_user_has_a_folder(serve: Callable[..., Server], tmp_path: Path, file: str) -> None:
    folder = tmp_path / "sessions"
    server = serve("-demo", f"-users={file}", f"-session_dir={folder}")
    for user in TOKENS:
        session = server.request("POST", "/sessions", headers=by(user)).json["id"]
        assert [path.name for path in (folder / user).iterdir()] == [f"{session}.json"]
        assert (folder / user).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "authorization, status",
    [
        ("", 401),
        ("Bearer token-of-eve", 401),
        ("Bearer ", 401),
        ("Basic token-of-ann", 401),
        ("bearer token-of-ann", 200),
    ],
)
def test_a_token_is_needed(serve: Callable[..., Server], file: str, authorization: str, status: int) -> None:
    server = serve("-demo", f"-users={file}")
    headers = {"Authorization": authorization, "Host": "chat.example.org"}
    reply = server.request("GET", "/sessions", headers=headers)
    assert reply.status == status
    assert server.request("GET", "/ready", headers={"Host": "chat.example.org"}).status == 200
    assert "$SESSION_SERVER_TOKEN" in server.banner


def test_sighup_reads_the_file_again_and_running_turns_end_normally(
    serve: Callable[..., Server], tmp_path: Path, file: str, model: ModelServer
) -> None:
    server = serve(f"-base_url={model.base_url}", f"-users={file}", f"-session_dir={tmp_path / 'sessions'}")
    session = server.request("POST", "/sessions", headers=by("ann")).json["id"]
    go = threading.Event()
    model.default = answer("Hel", wait(go), "lo")
    running = server.request("POST", f"/sessions/{session}/run_stream", {"message": "Hi"}, by("ann"))
    events = running.events()
    assert next(events)["type"] == "stream_start"
    write(tmp_path / "users", "bob token-of-bob", "eve token-of-eve")
    server.send_signal(signal.SIGHUP)

    def asked(token: str) -> Reply:
        return server.request("POST", "/sessions", headers={"Authorization": f"Bearer {token}"})

    wait_until(lambda: asked(TOKENS["ann"]).status == 401)
    assert asked("token-of-eve").status == asked(TOKENS["bob"]).status == 201
    go.set()
    assert list(events)[-1]["data"]["complete_text"] == "Hello"
    write(tmp_path / "users", "ANN token")
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: "the file of users stays as it was" in server.log.read_text())
    assert asked("token-of-eve").status == 201
    write(tmp_path / "users", f"ann {TOKENS['ann']}")
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: asked(TOKENS["ann"]).status == 201)
    assert server.request("GET", f"/sessions/{session}", headers=by("ann")).status == 200
    assert server.request("GET", "/ready").status == 200
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert server.log.read_text().count("shutting down") == 1


@pytest.mark.parametrize(
    "lines, said_",
    [
        (["../ann token"], "line 1 must be a name"),
        (["ann"], "line 1 must be a name"),
        (["# x", "ann a b"], "line 2 must be a name"),
        ([f"{'a' * 33} token"], "line 1 must be a name"),
        (["Ann token"], "line 1 must be a name"),
        (["ann sha256:123"], "line 1: give a token"),
        (["ann Sha256:123"], "line 1: give a token"),
        (["ann t\u00f6ken"], "line 1: give a token"),
        (["ann same", "bob same"], "line 2 has the token of another user"),
        (["ann same", f"bob sha256:{hashlib.sha256(b'same').hexdigest()}"], "line 2 has the token of another user"),
        (["# nobody"], "has no users"),
    ],
)
def test_a_file_with_an_error_is_refused_by_its_line(tmp_path: Path, lines: list[str], said_: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said_)) as raised:
        Users(write(tmp_path / "users", *lines))
    assert "same" not in str(raised.value)


def test_a_name_may_have_several_tokens(tmp_path: Path) -> None:
    users = Users(write(tmp_path / "users", "ann old", "ann new"))
    assert (users.find_user("old"), users.find_user("new"), users.find_user("other")) == ("ann", "ann", None)
    assert users.names == {"ann"}


def test_the_limit_of_turns_is_shared_and_a_shutdown_ends_all_at_the_same_time(file: str, model: ModelServer) -> None:
    model.default = answer("Hel", STALL)
    stores: dict[str, Storage] = {}

    class Stores(MemoryStorage):
        def for_user(self, name: str) -> Storage:
            return stores.setdefault(name, MemoryStorage())

    agent = Agent(api_key="k", base_url=model.base_url, model="m")
    app = create_app(Stores(), agent, Settings(users=file, max_streams=2))
    client = app.test_client()
    streams = []
    for user in (*TOKENS, "ann"):
        session = client.post("/sessions", headers=by(user)).get_json()["id"]
        response = client.post(f"/sessions/{session}/run_stream", json={"message": "Hi"}, headers=by(user))
        if response.status_code == 200:
            streams.append(response)
        else:
            assert error_of(response) == (503, "overloaded")
    assert len(streams) == 2
    began = time.monotonic()
    app.extensions["turns"].shut_down(0.5)
    assert time.monotonic() - began < TIMEOUT
    for stream in streams:
        assert "shutting_down" in stream.text
    assert client.get("/ready").status_code == 503
    assert set(stores) == set(TOKENS)


def test_users_need_a_store_each(file: str) -> None:
    class OneStore(MemoryStorage):
        for_user = Storage.for_user

    agent = Agent(api_key="k", base_url="http://127.0.0.1:1", model="m")
    with pytest.raises(ValueError, match="store each"):
        create_app(OneStore(), agent, Settings(users=file))


def test_without_users_nothing_is_apart() -> None:
    with Client() as client:
        session = client.create()
        assert client.storage.get(session).id == session
