"""A turn whose time is up, wherever it is."""

from __future__ import annotations

import time

import pytest

from storage import Storage
from tests.support.client import Client, error_of
from tests.support.model_server import STALL, Piece, answer, pause, status, tool_call
from tests.support.phases import PHASES, Tool, phase
from tests.support.server import TIMEOUT
from tests.support.well_formed import assert_well_formed


@pytest.mark.parametrize("where", [name for name in PHASES if name != "between two tries"])
def test_a_turn_ends_when_its_time_is_up_wherever_it_is(where: str, tool: Tool) -> None:
    with phase(where, tool, timeout=2.0) as now:  # enough to get there on a busy machine
        session_id = now.client.create()
        last = now.client.stream(session_id).last()
        assert last["type"] == "error"
        assert (last["data"]["code"], last["data"]["status"]) == ("model_timeout", 504)
        message = now.client.messages(session_id)[-1]
        if now.text:
            assert message["id"] == last["data"]["message_id"]
            assert (message["content"], message["status"], message["reason"]) == (
                now.text,
                "incomplete",
                "model_timeout",
            )
        else:
            assert "message_id" not in last["data"]
            assert "status" not in message


def test_run_says_504_when_the_time_is_up() -> None:
    with Client(answer("Hel", STALL), timeout=0.5) as client:
        assert error_of(client.run(client.create())) == (504, "model_timeout")


def test_a_model_that_goes_on_for_ever_is_ended_when_the_time_is_up() -> None:
    endless: list[Piece] = ["x", pause(0.02)]
    with Client(answer(*endless * 2000), timeout=2.0) as client:
        session_id = client.create()
        assert client.stream(session_id).last()["data"]["code"] == "model_timeout"
        assert client.messages(session_id)[-1]["reason"] == "model_timeout"
        assert client.model.closed.wait(TIMEOUT)


def test_a_wait_that_the_model_server_asks_for_keeps_within_the_time() -> None:
    with Client(status(503, {"error": "busy"}, {"Retry-After": "3600"}), timeout=20) as client:
        began = time.monotonic()
        assert error_of(client.run(client.create())) == (502, "model_error")
        assert time.monotonic() - began < 15
        assert len(client.model.requests) == 1


def test_the_result_of_a_tool_that_was_abandoned_is_dropped(tool: Tool, storage: Storage) -> None:
    with Client(tool_call("slow", {}), tools=[tool.function], storage=storage, timeout=2.0) as client:
        session_id = client.create()
        assert error_of(client.run(session_id)) == (504, "model_timeout")
        before = client.messages(session_id)
        assert [message["role"] for message in before] == ["user", "assistant"]
        tool.go.set()
        assert tool.done.wait(TIMEOUT)
        client.close()  # waits for the turn's thread
        assert client.messages(session_id) == before


def test_the_session_is_free_while_an_abandoned_tool_still_works(tool: Tool) -> None:
    with Client(tool_call("slow", {}), tools=[tool.function], timeout=2.0) as client:
        session_id = client.create()
        assert error_of(client.run(session_id)) == (504, "model_timeout")
        assert client.run(session_id, "again").status_code == 200
        [*_, request] = client.model.requests
        assert_well_formed(request)
        assert "error: interrupted; the tool may have run" in [message["content"] for message in request["messages"]]
        tool.go.set()
