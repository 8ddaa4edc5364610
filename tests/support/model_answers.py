"""Frames of a model server, and what the agent makes of them."""

from collections.abc import Mapping
from typing import Any

import pytest

from agent import Agent, Cancellation
from session_core.model.events import Answer, Event, ModelError, ToolCall
from tests.support.model_server import ModelServer, ReplyTo

QUESTION = {"role": "user", "content": "Hi"}


def calculator(expression: str) -> str:
    """Calculates."""
    return f"<{expression}>"


def converse(model: ModelServer, *history: Mapping[str, Any], **settings: Any) -> list[Event]:
    agent = Agent(api_key="sk-test-key", base_url=model.base_url, model="m", **settings)
    try:
        return list(agent.run(history or [QUESTION], Cancellation()))
    finally:
        agent.close()


def events(*replies: ReplyTo, **settings: Any) -> list[Event]:
    """What the agent makes of these replies."""
    with ModelServer(*replies) as model:
        return converse(model, tools=[calculator], **settings)


def final(*replies: ReplyTo, **settings: Any) -> Answer:
    last = events(*replies, **settings)[-1]
    assert isinstance(last, Answer)
    return last


def calls(*replies: ReplyTo) -> list[ToolCall]:
    return [event for event in events(*replies) if isinstance(event, ToolCall)]


def failure(*replies: ReplyTo, **settings: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        events(*replies, **settings)
    return caught.value


def text_delta(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


def end(reason: str | None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


STOP = end("stop")
DONE = "[DONE]"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


# What goes out


def called(id: str, arguments: Any = '{"expression": "1"}', name: str = "calculator") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def sent(*history: Mapping[str, Any], **settings: Any) -> list[dict[str, Any]]:
    """The messages that the model server gets for this history."""
    with ModelServer() as model:
        converse(model, *history, **settings)
        messages: list[dict[str, Any]] = model.requests[0]["messages"]
        return messages
