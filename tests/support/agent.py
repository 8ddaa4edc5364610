"""The agent by itself: what tests say to it, and what they read of it."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from agent import Agent, Cancellation
from session_core.model.events import Answer, Chunk, Event, ModelError
from tests.support.model_server import ModelServer

QUESTION = {"role": "user", "content": "Hi"}
MakeAgent = Callable[..., Agent]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def calling(
    *ids: str, text: str = "", arguments: str = '{"expression": "1"}', name: str = "calculator"
) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    calls = [{"id": id, "type": "function", "function": function} for id in ids]
    return {"role": "assistant", "content": text, "tool_calls": calls}


def told(id: str, content: str = "1") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "name": "calculator", "content": content}


def sent_result(id: str, content: str = "1") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


def calculator(expression: str) -> str:
    """Calculates an expression.

    Use it for all arithmetic.
    """
    if "bad" in expression:
        raise ValueError(f"cannot read {expression}")
    return f"<{expression}>"


def run(agent: Agent, *history: Mapping[str, Any]) -> list[Event]:
    return list(agent.run(history or [QUESTION], Cancellation()))


def failure(agent: Agent, *history: Mapping[str, Any]) -> ModelError:
    with pytest.raises(ModelError) as caught:
        run(agent, *history)
    return caught.value


OK = [Chunk("OK"), Answer("OK", "stop", None, None)]


# What goes out


def sent(model: ModelServer, agent: Agent, *history: Mapping[str, Any]) -> Any:
    run(agent, *history)
    return model.requests[-1]["messages"]


MEBIBYTE = "x" * (1 << 20)


def delta(**given: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": given}]}


# Trying again

SOON = {"Retry-After": "0"}
