"""Model servers behind TLS: answers, kept connections, and a cancel that reaches a silent one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.model_server import STALL, ModelServer, answer
from tests.support.relay import Relay
from tests.support.server import Server
from tests.support.tls import NAME, certificate, tls_front, tunnel_proxy

Serve = Callable[..., Server]


class Site(NamedTuple):
    """A server process, the model server that it asks, and the TLS between them."""

    server: Server
    model: ModelServer
    front: Relay


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["direct", "through a proxy"])
def site(request: pytest.FixtureRequest, serve: Serve, model: ModelServer, trusted: Path) -> Iterator[Site]:
    with tls_front(model.server_port, trusted) as front, tunnel_proxy(front.port) as proxy:
        direct = request.param == "direct"
        address = f"https://localhost:{front.port}/v1" if direct else f"https://{NAME}/v1"
        env = {"SSL_CERT_FILE": str(trusted), "https_proxy": f"http://127.0.0.1:{proxy.port}", "no_proxy": ""}
        server = serve("-api_key=k", f"-base_url={address}", env=env)
        yield Site(server, model, front)
        server.close()
        assert proxy.connections == (0 if direct else front.connections)


def test_turns_are_answered_over_one_connection(site: Site) -> None:
    site.model.then(answer("Hello", " there"), answer("Again"))
    session_id = site.server.create()
    for text in ("Hello there", "Again"):
        ends = [event for event in site.server.say(session_id, "Hi").events() if event["type"] == "stream_end"]
        assert [end["data"]["complete_text"] for end in ends] == [text]
    assert (len(site.model.requests), site.front.connections) == (2, 1)


def test_a_cancel_ends_a_silent_stream_and_closes_the_connection(site: Site) -> None:
    site.model.then(answer("Hel", STALL))
    session_id = site.server.create()
    stream = site.server.say(session_id, "Hi").events()
    assert next(event for event in stream if event["type"] == "stream_chunk")["data"]["content"] == "Hel"
    assert site.server.request("POST", f"/sessions/{session_id}/cancel", {}).status == 200
    assert [event["data"]["status"] for event in stream if event["type"] == "stream_end"] == ["cancelled"]
    assert site.front.ended.wait(30)
    assert next(event for event in site.server.say(session_id, "Hi").events() if event["type"] == "stream_end")
    assert site.front.connections == 2


def test_a_certificate_of_nobodys_is_not_accepted(serve: Serve, model: ModelServer, trusted: Path) -> None:
    with tls_front(model.server_port, trusted) as front:
        server = serve("-api_key=k", f"-base_url=https://localhost:{front.port}/v1", env={"no_proxy": ""})
        reply = server.request("POST", f"/sessions/{server.create()}/run", {"message": "Hi"})
        assert (reply.status, reply.json["code"]) == (502, "model_error")
        assert model.requests == []
        server.close()
