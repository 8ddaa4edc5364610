"""Approval and tools of the client, by the AI SDK's own client against a server process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from session_core.web.ui_messages import UI_MESSAGES
from tests.support.front_end import MISSING, NEEDS, FrontEnd, shapes
from tests.support.letters import Letters
from tests.support.model_server import ModelServer, answer, tool_call, tool_calls, wait
from tests.support.server import Server, wait_until

pytestmark = pytest.mark.skipif(MISSING, reason=NEEDS)
SEND = tool_call("send", {"to": "Ann"}, text="Shall I?", id="call_send")
WEATHER = {"weather": {"description": "Tells the weather", "parameters": {"type": "object"}}}
ASK = tool_call("weather", {"city": "Bern"}, id="call_w")


class World:
    """A model server, a server process over a directory, and what its tool has sent."""

    def __init__(self, directory: Path, model: ModelServer, serve: Callable[..., Server]) -> None:
        self.model = model
        self._directory = directory
        self._serve = serve
        self._letters = Letters(directory)
        self.start()

    def start(self) -> None:
        """Starts a server, or another one after `kill`."""
        flags = (f"-session_dir={self._directory / 'sessions'}", self._letters.flag)
        self.server = self._serve(*flags, f"-base_url={self.model.base_url}")

    @property
    def sent(self) -> list[str]:
        return self._letters.sent

    def history(self, front_end: FrontEnd) -> list[dict[str, Any]]:
        reply = self.server.request("GET", f"/sessions/{front_end.session_id}", headers={"Accept": UI_MESSAGES})
        messages: list[dict[str, Any]] = reply.json
        return messages

    def open(self, client: FrontEnd, **more: Any) -> FrontEnd:
        return client.open(self.server.url, self.server.create(), **more)


@pytest.fixture
def world(tmp_path: Path, serve: Callable[..., Server]) -> Iterator[World]:
    with ModelServer() as model:
        yield World(tmp_path, model, serve)


@pytest.fixture(scope="module", params=["ai6", "ai"])
def client(request: pytest.FixtureRequest) -> Iterator[FrontEnd]:
    with FrontEnd(request.param) as client:
        yield client


def tool_part(found: dict[str, Any]) -> dict[str, Any]:
    """The first call in the last message."""
    [part, *_] = [part for part in found["messages"][-1]["parts"] if part["type"] == "dynamic-tool"]
    return part


def sent(world: World) -> list[tuple[str, str]]:
    return [(one["role"], one["content"]) for one in world.model.requests[-1]["messages"][1:]]


def asks(world: World, client: FrontEnd) -> FrontEnd:
    """A chat in which approval is asked for."""
    world.model.then(SEND, answer("Done."))
    front_end = world.open(client)
    found = front_end.send("Write to Ann")
    assert (tool_part(found)["state"], found["finish"]["finishReason"]) == ("approval-requested", "tool-calls")
    assert shapes(found["messages"]) == shapes(world.history(front_end))
    front_end.do("validate", world.history(front_end))
    return front_end


def approve(front_end: FrontEnd, *, approved: bool = True) -> dict[str, Any]:
    front_end.do("approve", {"id": "call_send", "approved": approved, "reason": None if approved else "not to Ann"})
    front_end.do("shows", "Done.")
    wait_until(lambda: front_end.do("settle")["status"] == "ready")
    return front_end.do("settle")


def test_an_approved_call_runs_and_its_message_goes_on(world: World, client: FrontEnd) -> None:
    front_end = asks(world, client)
    found = approve(front_end)
    assert [message["role"] for message in found["messages"]] == ["user", "assistant"]
    assert (tool_part(found)["state"], tool_part(found)["output"]) == ("output-available", "sent to Ann")
    assert found["frames"][0]["messageId"] == found["messages"][-1]["id"]
    assert found["frames"][1] == {"type": "start-step"}
    assert world.sent == ["Ann"] and len(world.model.requests) == 2
    front_end.do("validate", world.history(front_end))
    assert [part["type"] for part in world.history(front_end)[-1]["parts"]] == [
        part["type"] for part in found["messages"][-1]["parts"]
    ]


def test_a_denied_call_is_told_to_the_model_once(world: World, client: FrontEnd) -> None:
    front_end = asks(world, client)
    found = approve(front_end, approved=False)
    assert tool_part(found)["state"] == "output-denied"
    assert found["frames"][1] == {"type": "start-step"}
    assert world.model.requests[-1]["messages"][-1]["content"] == "not executed: not to Ann"
    assert world.sent == [] and len(world.model.requests) == 2
    assert tool_part({"messages": world.history(front_end)})["state"] == "output-denied"
    front_end.do("validate", world.history(front_end))
    assert front_end.send("Thanks")["status"] == "ready"


@pytest.mark.parametrize("crash", [False, True])
def test_what_waits_is_answered_after_a_reload_and_a_crash(world: World, client: FrontEnd, crash: bool) -> None:
    front_end = asks(world, client)
    if crash:
        world.server.kill()
        world.start()
        front_end.open(world.server.url, front_end.session_id)
    front_end.do("load", world.history(front_end))
    found = approve(front_end)
    assert tool_part(found)["output"] == "sent to Ann" and world.sent == ["Ann"]


def test_an_approval_goes_with_the_next_message(world: World, client: FrontEnd) -> None:
    front_end = asks(world, client)
    messages = front_end.do("settle")["messages"]
    tool_part({"messages": messages}).update(
        state="approval-responded", approval={"id": "call_send", "approved": True}
    )
    front_end.do("set", messages)
    world.model.forget()
    assert front_end.send("And hurry")["messages"][-1]["parts"][-1]["text"] == "OK"
    expected = [
        *[("user", "Write to Ann"), ("assistant", "Shall I?"), ("tool", "sent to Ann")],
        *[("assistant", "(interrupted)"), ("user", "And hurry")],
    ]
    assert sent(world) == expected
    assert world.sent == ["Ann"] and len(world.model.requests) == 1
    front_end.send("Thanks")
    assert sent(world)[:5] == expected


def test_a_new_message_denies_what_waits(world: World, client: FrontEnd) -> None:
    front_end = asks(world, client)
    front_end.send("Never mind")
    assert "not executed: the user went on" in [one["content"] for one in world.model.requests[-1]["messages"]]
    front_end.do("validate", world.history(front_end))
    assert world.sent == []


def test_a_request_that_is_sent_twice_runs_the_call_once(world: World, client: FrontEnd) -> None:
    front_end = asks(world, client)
    approve(front_end)
    assert front_end.do("repeat")["result"] == 200
    assert world.sent == ["Ann"] and len(world.model.requests) == 2


def test_a_second_approval_in_the_same_message_is_a_request_of_its_own(world: World, client: FrontEnd) -> None:
    two = [tool_call("send", {"to": to}, id=id) for to, id in (("Ann", "call_send"), ("Bob", "call_2"))]
    world.model.then(*two, answer("Done."))
    front_end = world.open(client)
    front_end.send("Write")
    front_end.do("approve", {"id": "call_send", "approved": True})
    world.model.wait_for(2)
    wait_until(lambda: "approval-requested" in str(front_end.do("settle")["messages"][-1]["parts"][-1]))
    front_end.do("approve", {"id": "call_2", "approved": True})
    front_end.do("shows", "Done.")
    assert world.sent == ["Ann", "Bob"]


def test_a_reload_while_the_message_goes_on_takes_it_up(world: World, client: FrontEnd) -> None:
    go = threading.Event()
    world.model.then(SEND, answer("Done", wait(go), " well."))
    front_end = world.open(client)
    front_end.send("Write to Ann")
    front_end.do("approve", {"id": "call_send", "approved": True})
    front_end.do("shows", "Done")
    front_end.do("load", world.history(front_end))
    front_end.do("resume")
    front_end.do("shows", "Done")
    go.set()
    front_end.do("shows", "Done well.")
    found = front_end.do("settle")
    assert shapes(found["messages"]) == shapes(world.history(front_end))


def test_a_tool_of_the_client_is_answered_by_its_output(world: World, client: FrontEnd) -> None:
    world.model.then(ASK, answer("Rain."))
    front_end = world.open(client, body={"tools": WEATHER})
    found = front_end.send("Weather?")
    assert tool_part(found)["state"] == "input-available" and not tool_part(found).get("providerExecuted")
    assert [one["function"]["name"] for one in world.model.requests[-1]["tools"]] == ["calculator", "send", "weather"]
    output = {"sky": "grey"}
    front_end.do("output", {"tool": "weather", "toolCallId": "call_w", "output": output})
    front_end.do("shows", "Rain.")
    wait_until(lambda: front_end.do("settle")["status"] == "ready")
    found = front_end.do("settle")
    assert world.model.requests[-1]["messages"][-1]["content"] == '{"sky":"grey"}'
    assert tool_part(found)["output"] == tool_part({"messages": world.history(front_end)})["output"] == output
    front_end.do("validate", world.history(front_end))


def test_an_output_goes_with_the_next_message(world: World, client: FrontEnd) -> None:
    world.model.then(ASK)
    front_end = world.open(client, body={"tools": WEATHER})
    messages = front_end.send("Weather?")["messages"]
    tool_part({"messages": messages}).update(state="output-available", output="rain")
    front_end.do("set", messages)
    front_end.send("In German")
    contents = [one["content"] for one in world.model.requests[-1]["messages"]]
    assert "rain" in contents and contents[-1] == "In German"


def test_approval_and_an_output_are_answered_together(world: World, client: FrontEnd) -> None:
    both = tool_calls(("send", {"to": "Ann"}), ("weather", {}), ids=("call_send", "call_w"))
    world.model.then(both, answer("Done."))
    front_end = world.open(client, body={"tools": WEATHER})
    front_end.send("Both")
    front_end.do("approve", {"id": "call_send", "approved": True})
    assert len(world.model.requests) == 1
    front_end.do("output", {"tool": "weather", "toolCallId": "call_w", "output": "rain"})
    front_end.do("shows", "Done.")
    results = [one["content"] for one in world.model.requests[-1]["messages"][-2:]]
    assert results == ["sent to Ann", "rain"]
