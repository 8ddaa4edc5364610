"""The mistakes of the first minutes: what is said names the remedy, and never the key."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.model_server import ModelServer, body, nobody_listens, status
from tests.support.server import SERVER, TIMEOUT, Reply, Server, environment

Serve = Callable[..., Server]
KEY = "sk-proj-abcdefghijklmnopqrstuvwxyz012345"
WRONG_KEY = {
    "error": {
        "message": f"Incorrect API key provided: {KEY[:8]}***2345. You can find your API key at https://example.org.",
        "type": "invalid_request_error",
        "code": "invalid_api_key",
    }
}
AS_JSON = ["-H", "Content-Type: application/json", "-d"]
NO_SUCH_MODEL = {"error": {"message": 'model "gpt-3.5-turbo" not found, try pulling it first', "type": "api_error"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model server refuses each message in the way that it names."""
    replies = {
        "wrong key": status(401, WRONG_KEY),
        "unknown model": status(404, NO_SUCH_MODEL),
        "no such path": status(404, b"404 page not found"),
        "a web site": body(b"<!doctype html><title>Welcome!</title>", "text/html"),
    }

    def reply(request: dict[str, Any]) -> Any:
        return replies[request["messages"][-1]["content"]](request)

    log = tmp_path_factory.mktemp("first") / "log"
    with (
        ModelServer(default=reply) as model,
        Server(f"-base_url={model.base_url}", f"-api_key={KEY}", log=log) as server,
    ):
        yield server


def ask(server: Server, message: str) -> Reply:
    return server.request("POST", f"/sessions/{server.create()}/run", {"message": message})


@pytest.mark.parametrize(
    "message, code, remedies",
    [
        ("wrong key", "model_unauthorized", ["api_key"]),
        ("unknown model", "model_error", ["404", "model", "base_url"]),
        ("no such path", "model_error", ["404", "model", "base_url"]),
        ("a web site", "model_error", ["base_url"]),
    ],
)
def test_a_refusal_by_the_model_server_names_the_setting_to_look_at(
    server: Server, message: str, code: str, remedies: list[str]
) -> None:
    reply = ask(server, message)
    assert (reply.status, reply.json["code"]) == (502, code)
    assert [word for word in remedies if word not in reply.json["error"]] == []


def test_the_stream_says_it_in_the_same_words(server: Server) -> None:
    last = list(server.say(server.create(), "unknown model").events())[-1]
    assert last["data"]["error"] == ask(server, "unknown model").json["error"]


def test_the_log_has_the_model_servers_own_words_for_it_but_no_key(server: Server) -> None:
    ask(server, "wrong key")
    ask(server, "unknown model")
    log = server.log.read_text()
    assert "Incorrect API key provided" in log and "try pulling it first" in log
    assert KEY not in log and KEY[:8] not in log


def test_a_model_server_that_does_not_run_is_named_as_that(serve: Serve) -> None:
    reply = ask(serve(f"-base_url={nobody_listens()}"), "Hi")
    assert (reply.status, reply.json["code"]) == (502, "model_error")
    assert "base_url" in reply.json["error"] and "runs" in reply.json["error"]


def test_a_second_server_on_the_same_port_is_told_to_take_another(server: Server) -> None:
    second = subprocess.run(
        [*SERVER, "-demo", f"-port={server.port}"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (second.returncode, second.stdout) == (2, "")
    assert str(server.port) in second.stderr and "-port" in second.stderr


# --- with curl ---


def curl(server: Server, path: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        ["curl", "-s", f"{server.url}{path}", *arguments], capture_output=True, timeout=TIMEOUT, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def at(server: Server) -> str:
    return f"/sessions/{server.create()}/run"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs the Debian package curl")
@pytest.mark.parametrize(
    "arguments, code, remedy",
    [
        (["-d", '{"message": "Hi"}'], "unsupported_media_type", "Content-Type: application/json"),
        ([*AS_JSON, "{'message': 'Hi'}"], "invalid_request", "JSON"),
        ([*AS_JSON, '{"text": "Hi"}'], "invalid_request", '{"message": "text"}'),
        ([*AS_JSON, '"Hi"'], "invalid_request", "object"),
        (["-X", "POST"], "invalid_request", "JSON"),
        ([], "method_not_allowed", "method"),
    ],
)
def test_a_curl_line_with_a_mistake_is_told_which(
    server: Server, arguments: list[str], code: str, remedy: str
) -> None:
    said = curl(server, at(server), *arguments)
    assert said["code"] == code
    assert remedy in said["error"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs the Debian package curl")
def test_a_wrong_path_is_told_where_the_right_ones_are(server: Server) -> None:
    said = curl(server, "/session/new", "-X", "POST")
    assert (said["code"], "/openapi.json" in said["error"]) == ("not_found", True)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs the Debian package curl")
def test_another_machines_name_for_the_server_is_told_of_the_token(server: Server) -> None:
    said = curl(server, "/sessions", "-H", "Host: my-server.example.org:8080")
    assert (said["code"], "-auth_token" in said["error"]) == ("forbidden_host", True)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs the Debian package curl")
def test_a_mistyped_session_is_named(server: Server) -> None:
    assert curl(server, "/sessions/session-x") == {
        "error": "Session session-x not found",
        "code": "session_not_found",
    }
