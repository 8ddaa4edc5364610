"""The server behind nginx, with the configuration of `docs/nginx.conf` as it stands but for its two ports."""

import copy
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

import pytest
from two_servers import free_port, listens, nginx_command, where_is

from tests.support.model_server import STALL, ModelServer, answer, wait
from tests.support.server import ROOT, TIMEOUT, Server, wait_until
from tests.support.tls import certificate

NGINX = where_is("nginx")
CONFIGURATION = ROOT / "docs" / "nginx.conf"

pytestmark = pytest.mark.skipif(NGINX is None, reason="needs the Debian package nginx")


@contextmanager
def nginx(folder: Path, backend: int, *, without: str = "", site: str = "", listen: str = "") -> Iterator[int]:
    """An nginx in front of this port; gives its own port. `without` is left out of the configuration. `site` stands
    before its location, `listen` behind its port."""
    location = site
    port = free_port()
    site = CONFIGURATION.read_text(encoding="utf-8")
    for old, new in (
        ("listen 8000;", f"listen 127.0.0.1:{port}{listen or ';'}"),
        ("    location / {", location or "    location / {"),
        ("127.0.0.1:8080", f"127.0.0.1:{backend}"),
        (without, ""),
    ):
        assert old in site
        site = site.replace(old, new)
    process = subprocess.Popen(nginx_command(folder, site))
    try:
        wait_until(lambda: process.poll() is not None or listens(port))
        assert process.poll() is None, (folder / "nginx.log").read_text()
        yield port
    finally:
        process.terminate()
        process.wait(TIMEOUT)


@pytest.fixture(scope="module")
def scripted() -> Iterator[ModelServer]:
    with ModelServer() as model:
        yield model


@pytest.fixture
def model(scripted: ModelServer) -> ModelServer:
    scripted.default = answer("OK")
    return scripted


@pytest.fixture(scope="module")
def server(scripted: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "server.log"
    with Server(f"-base_url={scripted.base_url}", "-keep_alive=0.2", log=log) as server:
        yield server


@contextmanager
def behind(server: Server, folder: Path, without: str = "") -> Iterator[Server]:
    """The same server, as it is reached by way of nginx."""
    with nginx(folder, server.port, without=without) as port:
        proxied = copy.copy(server)
        proxied.port = port
        yield proxied


@pytest.fixture(scope="module")
def proxied(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with behind(server, tmp_path_factory.mktemp("nginx")) as proxied:
        yield proxied


def passes_each_event_at_once(proxied: Server, model: ModelServer) -> None:
    go = threading.Event()
    model.default = answer("one ", wait(go), "two")
    events = proxied.say(proxied.create(), "Hello").events()
    assert next(events)["type"] == "stream_start"
    assert next(events)["data"]["content"] == "one "
    assert not go.is_set()
    go.set()
    assert [event["type"] for event in events] == ["stream_chunk", "stream_end"]


def test_each_event_passes_at_once(proxied: Server, model: ModelServer) -> None:
    passes_each_event_at_once(proxied, model)


def test_the_server_itself_asks_nginx_not_to_hold_events_back(
    server: Server, model: ModelServer, tmp_path: Path
) -> None:
    with behind(server, tmp_path, without="proxy_buffering off;") as proxied:
        passes_each_event_at_once(proxied, model)


def test_comments_pass_while_the_model_is_silent(proxied: Server, model: ModelServer) -> None:
    model.default = answer(STALL)
    session_id = proxied.create()
    reply = proxied.say(session_id, "Hello")
    assert ": keep-alive" in reply.lines()
    assert proxied.request("POST", f"/sessions/{session_id}/cancel").json == {"cancelled": True}
    assert json.loads([line for line in reply.lines() if line.startswith("data: ")][-1][6:])["type"] == "stream_end"


def test_a_stream_is_resumed_where_it_broke_off(proxied: Server, model: ModelServer) -> None:
    go = threading.Event()
    model.default = answer("one ", wait(go), "two")
    session_id = proxied.create()
    reply = proxied.say(session_id, "Hello")
    events = reply.events()
    last = [next(events), next(events)][-1]
    reply.close()
    path = f"/sessions/{session_id}/run_stream"
    resumed = proxied.request("GET", path, headers={"Last-Event-ID": last["id"]}).events()
    go.set()
    rest = list(resumed)
    assert [event["type"] for event in rest] == ["stream_chunk", "stream_end"]
    assert rest[-1]["data"]["complete_text"] == "one two"
    assert proxied.request("GET", path, headers={"Last-Event-ID": rest[-1]["id"]}).status == 204


def test_a_client_that_leaves_does_not_end_the_turn(proxied: Server, model: ModelServer) -> None:
    go = threading.Event()
    model.default = answer("one ", wait(go), "two")
    session_id = proxied.create()
    reply = proxied.say(session_id, "Hello")
    assert next(reply.events())["type"] == "stream_start"
    reply.close()
    go.set()
    wait_until(lambda: not proxied.request("GET", f"/sessions/{session_id}").json["running"])
    assert proxied.messages(session_id)[-1]["content"] == "one two"


def test_a_whole_answer_passes(proxied: Server, model: ModelServer) -> None:
    reply = proxied.request("POST", f"/sessions/{proxied.create()}/run", {"message": "é" * 1000})
    assert (reply.status, reply.json["message"]["content"]) == (200, "OK")


def test_a_body_over_1_mib_is_refused_by_the_server(proxied: Server) -> None:
    reply = proxied.request("POST", "/sessions", b" " * 1_500_000)
    assert (reply.status, reply.json["code"]) == (413, "request_too_large")


def test_a_body_over_2_mib_does_not_reach_the_server(proxied: Server) -> None:
    head = (
        b"POST /sessions HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: too-much\r\nContent-Length: 3000000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", proxied.port), timeout=TIMEOUT) as connection:
        connection.sendall(head)
        assert connection.recv(12) == b"HTTP/1.1 413"
    assert "too-much" not in proxied.log.read_text()


def test_other_hosts_are_refused_without_a_token(proxied: Server) -> None:
    reply = proxied.request("GET", "/sessions", headers={"Host": "chat.example.org"})
    assert (reply.status, reply.json["code"]) == (403, "forbidden_host")


def test_with_a_token_the_page_may_call_from_any_host(
    serve: Callable[..., Server], model: ModelServer, tmp_path: Path
) -> None:
    server = serve(f"-base_url={model.base_url}", "-auth_token=secret")
    page = {"Host": "chat.example.org:8000", "Origin": "http://chat.example.org:8000"}
    with behind(server, tmp_path) as proxied:
        assert proxied.request("POST", "/sessions", headers=page).status == 401
        page["Authorization"] = "Bearer secret"
        assert proxied.request("POST", "/sessions", headers=page).status == 201
        page["Origin"] = "http://elsewhere.example.org"
        assert proxied.request("POST", "/sessions", headers=page).status == 403


CHAT = """
    location /chat/ {
        proxy_pass http://session_server/;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-Host $http_host;
        proxy_set_header X-Forwarded-Prefix /chat;
        proxy_buffering off;
    }

    location / {"""


@contextmanager
def under_a_path(server: Server, folder: Path, listen: str = "") -> Iterator[Server]:
    """The same server, as it is reached by way of nginx at /chat/, by the lines that the documentation gives."""
    documented = (ROOT / "docs" / "several-servers.md").read_text(encoding="utf-8")
    for line in CHAT.split("location / ")[0].splitlines():
        assert line.strip() in documented
    with nginx(folder, server.port, site=CHAT, listen=listen) as port:
        proxied = copy.copy(server)
        proxied.port = port
        yield proxied


def test_at_a_path_of_a_proxy_the_location_and_the_origin_are_the_proxys(
    serve: Callable[..., Server], model: ModelServer, tmp_path: Path
) -> None:
    server = serve(f"-base_url={model.base_url}", "-auth_token=secret", "-trusted_proxies=1")
    with under_a_path(server, tmp_path) as proxied:
        page = {"Host": "chat.example.org", "Origin": "http://chat.example.org", "Authorization": "Bearer secret"}
        reply = proxied.request("POST", "/chat/sessions", headers=page)
        assert (reply.status, reply.headers["Location"]) == (201, f"/chat/sessions/{reply.json['id']}")
        assert proxied.request("GET", reply.headers["Location"], headers=page).json["messages"] == []
        page["Origin"] = "http://elsewhere.example.org"
        assert proxied.request("POST", "/chat/sessions", headers=page).status == 403
    assert "127.0.0.1 POST /sessions 201" in server.log.read_text()


def test_without_a_token_a_host_that_a_trusted_proxy_tells_must_be_loopback_too(
    serve: Callable[..., Server], model: ModelServer, tmp_path: Path
) -> None:
    server = serve(f"-base_url={model.base_url}", "-trusted_proxies=1")
    with under_a_path(server, tmp_path) as proxied:
        assert proxied.request("GET", "/chat/sessions", headers={"Host": "localhost"}).status == 200
        refused = proxied.request("GET", "/chat/sessions", headers={"Host": "chat.example.org"})
        assert (refused.status, refused.json["code"]) == (403, "forbidden_host")


def test_without_a_token_a_page_of_another_name_cannot_pass_for_a_proxy(
    serve: Callable[..., Server], model: ModelServer
) -> None:
    server = serve(f"-base_url={model.base_url}", "-trusted_proxies=1")
    pretended = {"X-Forwarded-Host": "localhost", "Host": "evil.example"}  # as after DNS rebinding
    assert server.request("GET", "/sessions", headers=pretended).status == 403
    assert server.request("GET", "/sessions", headers={**pretended, "Host": "localhost"}).status == 200
    told = {"X-Forwarded-Host": "evil.example", "Host": "localhost"}
    assert server.request("GET", "/sessions", headers=told).status == 403


def test_forwarded_headers_are_not_believed_unless_proxies_are_trusted(server: Server) -> None:
    forwarded = {"X-Forwarded-Host": "localhost", "Host": "chat.example.org", "X-Forwarded-Prefix": "/chat"}
    assert server.request("GET", "/sessions", headers=forwarded).status == 403
    created = server.request("POST", "/sessions", headers={"X-Forwarded-Prefix": "/chat"})
    assert created.headers["Location"].startswith("/sessions/")


@pytest.mark.skipif(where_is("openssl") is None, reason="needs the Debian package openssl")
def test_a_page_that_is_served_with_tls_may_call(
    serve: Callable[..., Server], model: ModelServer, tmp_path: Path
) -> None:
    file = certificate(tmp_path)
    tls = f" ssl; ssl_certificate {file}; ssl_certificate_key {file};"
    server = serve(f"-base_url={model.base_url}", "-auth_token=secret", "-trusted_proxies=1")
    trusting = ssl.create_default_context(cafile=file)
    with under_a_path(server, tmp_path, tls) as proxied:
        for origin, status in (("https://localhost", 201), ("https://evil.example", 403)):
            connection = HTTPSConnection("localhost", proxied.port, timeout=TIMEOUT, context=trusting)
            page = {"Origin": f"{origin}:{proxied.port}", "Authorization": "Bearer secret"}
            connection.request("POST", "/chat/sessions", headers=page)
            assert connection.getresponse().status == status
            connection.close()


def test_connections_to_the_server_are_kept(tmp_path: Path) -> None:
    with ModelServer() as model, nginx(tmp_path, model.server_port) as port:
        for _ in range(3):
            connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
            connection.request("POST", "/v1/chat/completions", json.dumps({"messages": []}))
            assert connection.getresponse().read()
            connection.close()
    assert model.connections == 1
