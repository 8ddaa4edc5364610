"""Promises that a change of one line breaks, and that no other test holds."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

from tests.support.client import Client
from tests.support.model_server import ModelServer, answer, wait
from tests.support.server import Server, wait_until


def by(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer token-of-{user}"}


def users(path: Path, *names: str) -> str:
    path.write_text("".join(f"{name} token-of-{name}\n" for name in names))
    return f"-users={path}"


def test_ready_looks_at_the_store_of_all_users(serve: Callable[..., Server], tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    server = serve("-demo", users(tmp_path / "users", "ann", "bob"), f"-session_dir={folder}")
    assert server.request("GET", "/ready").status == 200
    folder.rename(tmp_path / "gone")
    assert server.request("GET", "/ready").status == 503
    (tmp_path / "gone").rename(folder)
    assert server.request("GET", "/ready").status == 200


def test_after_sigterm_a_user_who_has_not_asked_before_starts_no_turn(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    go = threading.Event()
    with ModelServer(default=answer("Hel", wait(go), "lo")) as model:
        server = serve(f"-base_url={model.base_url}", users(tmp_path / "users", "ann"))
        path = f"/sessions/{server.request('POST', '/sessions', headers=by('ann')).json['id']}"
        running = server.request("POST", f"{path}/run_stream", {"message": "Hi"}, by("ann")).events()
        assert next(running)["type"] == "stream_start"
        users(tmp_path / "users", "ann", "eve")
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: "read again" in server.log.read_text())
        server.send_signal(signal.SIGTERM)
        wait_until(lambda: server.request("GET", "/ready").status == 503)
        path = f"/sessions/{server.request('POST', '/sessions', headers=by('eve')).json['id']}"
        refused = server.request("POST", f"{path}/run", {"message": "Hi"}, by("eve"))
        assert (refused.status, refused.json["code"]) == (503, "shutting_down")
        go.set()
        assert list(running)[-1]["data"]["complete_text"] == "Hello"
        assert server.wait() == 0


def test_sessions_of_every_user_expire(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve("-demo", users(tmp_path / "users", "ann", "bob"), "-session_ttl=1s")
    paths = {
        name: f"/sessions/{server.request('POST', '/sessions', headers=by(name)).json['id']}"
        for name in ("ann", "bob")
    }
    for name, path in paths.items():
        wait_until(lambda path=path, name=name: server.request("GET", path, headers=by(name)).status == 404)


def test_sweeps_end_with_the_server(tmp_path: Path) -> None:
    with Client(session_ttl=3600.0):
        assert any(thread.name == "expiry" for thread in threading.enumerate())
    wait_until(lambda: not any(thread.name == "expiry" for thread in threading.enumerate()))


def test_one_shot_conversations_are_forgotten() -> None:
    with Client(default=answer("OK")) as client:
        for stream in (False, True):
            body = {"model": "x", "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
            assert client.request("POST", "/v1/chat/completions", body).get_data()
        stores = [turns.storage for turns in client.app.extensions["turns"].all()]
        wait_until(lambda: not any(store.page()[0] for store in stores))


def test_a_callers_own_parameters_win_over_those_of_the_server(serve: Callable[..., Server]) -> None:
    with ModelServer(default=answer("OK")) as model:
        server = serve(f"-base_url={model.base_url}", '-model_options={"temperature": 0.1, "top_p": 0.5}')
        body = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0.9}
        assert server.request("POST", "/v1/chat/completions", body).status == 200
        assert (model.requests[0]["temperature"], model.requests[0]["top_p"]) == (0.9, 0.5)


def test_the_document_of_a_conversation_has_nothing_that_was_replaced() -> None:
    with Client(default=answer("OK")) as client:
        session = client.create()
        client.run(session, "the first wording")
        first = client.session(session)["messages"][0]["id"]
        client.request("POST", f"/sessions/{session}/run", {"message": "the second wording", "replaces": first})
        document = client.get(f"/sessions/{session}", Accept="text/markdown").get_data(as_text=True)
    assert "the second wording" in document and "the first wording" not in document
