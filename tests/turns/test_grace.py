"""Turns that run while the server shuts down."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

from storage import Storage
from tests.support.client import Client, error_of
from tests.support.model_server import answer, wait
from tests.support.phases import Tool, every_phase, phase
from tests.support.server import TIMEOUT, wait_until


def test_a_turn_that_ends_within_the_grace_is_complete(storage: Storage) -> None:
    go = threading.Event()
    with Client(answer("Hel", wait(go), "lo"), storage=storage) as client:
        session_id = client.create()
        stream = client.stream(session_id)
        stream.next("stream_chunk")
        ending: Future[None] = client.later(client.shut_down, TIMEOUT)
        wait_until(lambda: client.get("/ready").status_code == 503)
        assert error_of(client.run(client.create())) == (503, "shutting_down")
        go.set()
        ending.result(TIMEOUT)
        assert stream.last()["data"]["status"] == "completed"


@every_phase
def test_a_turn_that_outlasts_the_grace_ends_with_an_error_and_keeps_its_text(where: str, tool: Tool) -> None:
    with phase(where, tool) as now:
        client = now.client
        session_id = client.create()
        stream = client.stream(session_id)
        now.reached()
        if now.text:
            while stream.next("stream_chunk")["data"]["content"] != now.text:
                pass
        began = time.monotonic()
        client.shut_down(0.1)
        assert time.monotonic() - began < 15
        last = stream.last()
        assert last["type"] == "error"
        assert (last["data"]["code"], last["data"]["status"]) == ("shutting_down", 503)
        message = client.messages(session_id)[-1]
        if now.text:
            assert message["id"] == last["data"]["message_id"]
            assert (message["content"], message["reason"]) == (now.text, "shutting_down")
        else:
            assert message["role"] != "assistant" or message.get("tool_calls")
        tool.go.set()


def test_reading_goes_on_while_shutting_down(storage: Storage) -> None:
    with Client(storage=storage) as client:
        session_id = client.create()
        client.run(session_id)
        client.shut_down()
        assert len(client.messages(session_id)) == 2
        assert client.get("/sessions").status_code == 200
        response = client.run(session_id)
        assert error_of(response) == (503, "shutting_down")
        assert response.headers["Retry-After"]
