"""A session whose model and server change at any moment: what each of them gets, and that each takes it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import Agent, Cancellation, Tool
from session_core.data.message import assistant_message
from session_core.model.events import Answer, Message
from tests.support.model_server import ModelServer, ReplyTo, answer, frames, status
from tests.support.well_formed import assert_well_formed

KNOWN = {"role", "content", "tool_calls", "tool_call_id", "name"}


def calculator(expression: str) -> str:
    """Calculates."""
    return f"<{expression}>"


def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def refusal(message: str, code: int = 400) -> ReplyTo:
    return status(code, {"error": {"message": message}})


class Server:
    """One kind of model server: how it calls tools and thinks, and what it refuses."""

    def __init__(self, ids: str, thinks: dict[str, Any], signature: bool = False) -> None:
        self.ids, self.thinks, self.signature = ids, thinks, signature
        self.calls_next = False
        self.made = 0
        self.model = ModelServer(default=self.reply).start()

    def reply(self, request: dict[str, Any]) -> Any:
        messages = request["messages"]
        assert_well_formed(request, extra_fields=True)
        if complaint := self.complaint(messages):
            return refusal(complaint)(request)
        if not self.calls_next or messages[-1]["role"] == "tool":
            return answer("OK")(request)
        self.made += 1
        function = {"name": "calculator", "arguments": '{"expression": "1"}'}
        call = {"index": 0, "id": self.ids.format(self.made), "type": "function", "function": function}
        if self.signature:
            call["extra_content"] = {"google": {"thought_signature": "s"}}
        return frames(chunk(self.thinks), chunk({"tool_calls": [call]}), chunk({}, "tool_calls"), "[DONE]")(request)

    def complaint(self, messages: list[dict[str, Any]]) -> str | None:
        return None


def called(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for message in messages:
        yield from message.get("tool_calls", ())


class OpenAI(Server):
    def complaint(self, messages: list[dict[str, Any]]) -> str | None:
        for message in messages:
            if unknown := message.keys() - KNOWN:
                return f"Unrecognized request argument supplied: {unknown.pop()}"
        if any(len(call["id"]) > 40 for call in called(messages)):
            return (
                "Invalid 'messages[1].tool_calls[0].id': string too long. Expected a string with maximum length 40."
            )
        return None


class Mistral(Server):
    def complaint(self, messages: list[dict[str, Any]]) -> str | None:
        for message in messages:
            if unknown := message.keys() - KNOWN:
                return f"extra_forbidden {unknown.pop()}: Extra inputs are not permitted"
        for call in called(messages):
            if not re.fullmatch("[a-zA-Z0-9]{9}", call["id"]):
                return f"Tool call id was {call['id']} but must be a-z, A-Z, 0-9, with a length of 9."
        return None


class Gemini(Server):
    def complaint(self, messages: list[dict[str, Any]]) -> str | None:
        if all("extra_content" in call for call in called(messages)):
            return None
        return "Function call is missing a thought_signature in functionCall parts."


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Server]]:
    made: dict[str, Server] = {
        "gpt": OpenAI("call_{:024}", {"content": None}),
        "mistral": Mistral(
            "{:09}", {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}
        ),
        "gemini": Gemini("", {"content": ""}, signature=True),
        "qwen on vLLM": Server("chatcmpl-tool-{:032}", {"reasoning_content": "hm"}),
        "qwen on llama.cpp": Server("{:032}", {"reasoning_content": "hm"}),
        "kimi": Server("functions.calculator:{}", {"reasoning_content": ""}),
    }
    yield made
    for server in made.values():
        server.model.stop()


KINDS = ("gpt", "mistral", "gemini", "qwen on vLLM", "qwen on llama.cpp", "kimi")


@settings(max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.tuples(st.sampled_from(KINDS), st.booleans()), min_size=2, max_size=7))
def test_a_session_may_change_its_model_and_server_at_any_moment(
    servers: dict[str, Server], turns: list[tuple[str, bool]]
) -> None:
    history: list[Any] = []
    agents = {
        kind: Agent(
            api_key="k", base_url=servers[kind].model.base_url, model=kind.partition(" ")[0], tools=[Tool(calculator)]
        )
        for kind in KINDS
    }
    for kind, calls in turns:
        servers[kind].calls_next = calls
        history.append({"id": f"msg-{len(history)}", "role": "user", "content": "Hi"})
        events = list(agents[kind].run(history, Cancellation()))
        last = events[-1]
        assert isinstance(last, Answer)
        history += [event.data for event in events if isinstance(event, Message)]
        history.append(assistant_message(last.content, **last.fields))
    for agent in agents.values():
        agent.close()


def history_with_call(id: str, **fields: Any) -> list[Any]:
    function = {"name": "calculator", "arguments": "{}"}
    call = {"id": id, "type": "function", "function": function}
    return [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [call], **fields},
        {"role": "tool", "tool_call_id": id, "name": "calculator", "content": "1"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Hi"},
    ]


def sent_id(model: ModelServer, history: list[Any]) -> str:
    agent = Agent(api_key="k", base_url=model.base_url, model="m")
    list(agent.run(history, Cancellation()))
    agent.close()
    (call,) = called(model.requests[-1]["messages"])
    assert model.requests[-1]["messages"][2]["tool_call_id"] == call["id"]
    return str(call["id"])


@pytest.mark.parametrize("id", ["call_" + "x" * 24, "chatcmpl-tool-" + "0" * 32, "functions.f:0", "é", "x" * 300])
def test_an_id_of_another_model_goes_out_as_nine_letters_and_digits_each_time_the_same(id: str) -> None:
    with ModelServer() as model:
        first = sent_id(model, history_with_call(id, model="another"))
        assert re.fullmatch("[A-Za-z0-9]{9}", first)
        assert sent_id(model, history_with_call(id, model="another")) == first


def test_an_id_that_every_server_takes_stays_as_it_is() -> None:
    with ModelServer() as model:
        assert sent_id(model, history_with_call("D681PevKs", model="another")) == "D681PevKs"


def test_an_id_of_the_same_model_on_another_server_is_made_anew() -> None:
    with ModelServer() as model:
        metadata = {"server": "https://elsewhere/v1"}
        assert sent_id(model, history_with_call("call_1", model="m", provider_metadata=metadata)) != "call_1"


# Tools that come and go


def test_tools_that_come_stand_behind_those_that_are_there_and_the_order_stays() -> None:
    def first() -> str:
        """First."""
        return ""

    def second() -> str:
        """Second."""
        return ""

    early: list[Tool] = []
    late = [Tool(second)]
    with ModelServer() as model:
        sources = [lambda: early, lambda: late]
        agent = Agent(api_key="k", base_url=model.base_url, model="m", tools=[calculator], tool_sources=sources)
        for _ in range(2):
            list(agent.run([{"role": "user", "content": "Hi"}], Cancellation()))
            early.append(Tool(first))
        early.clear()
        list(agent.run([{"role": "user", "content": "Hi"}], Cancellation()))
        agent.close()
        offered = [[tool["function"]["name"] for tool in request["tools"]] for request in model.requests]
    assert offered == [["calculator", "second"], ["calculator", "second", "first"], ["calculator", "second"]]
