"""OpenAI's client over the app in the test's own process, and its types as the measure of what comes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

import openai
from openai.types.conversations import Conversation, ConversationItem
from openai.types.responses import Response, ResponseItem, ResponseStreamEvent
from pydantic import TypeAdapter
from werkzeug.test import TestResponse

from tests.support.client import Client

_HTTPX = importlib.import_module(openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])
_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
_ITEM: TypeAdapter[Any] = TypeAdapter(ConversationItem)
_INPUT_ITEM: TypeAdapter[Any] = TypeAdapter(ResponseItem)
_LAST = {"response.completed", "response.incomplete", "response.failed"}


def sdk(client: Client, **settings: Any) -> openai.OpenAI:
    """OpenAI's client, which asks once."""
    http = _HTTPX.Client(transport=_HTTPX.WSGITransport(client.app, raise_app_exceptions=False))
    return openai.OpenAI(api_key="none", base_url="http://127.0.0.1/v1", http_client=http, max_retries=0, **settings)


def checked(response: TestResponse | str) -> dict[str, Any]:
    """A response object of the type that OpenAI's package has."""
    if isinstance(response, TestResponse):
        assert response.status_code == 200, response.text
    found: dict[str, Any] = json.loads(response if isinstance(response, str) else response.text)
    check_response(found)
    return found


def check_response(found: dict[str, Any]) -> None:
    Response.model_validate(found)
    missing = [name for name in ("metadata", "text", "tools", "reasoning", "usage", "error") if name not in found]
    assert not missing
    for name in ("metadata", "tools", "text", "temperature", "top_p", "truncation", "service_tier", "store"):
        assert found[name] is not None, name


def check_item(item: dict[str, Any]) -> None:
    _ITEM.validate_python(item)


def check_input_item(item: dict[str, Any]) -> None:
    _INPUT_ITEM.validate_python(item)


def check_conversation(found: dict[str, Any]) -> None:
    Conversation.model_validate(found)


def stream_events(text: str) -> Iterator[dict[str, Any]]:
    """The events in frames, each of the type that OpenAI's package has, under its own name."""
    for frame in text.replace(": keep-alive\n", "").split("\n\n"):
        if not frame or frame == "data: [DONE]":
            continue
        name, _, data = frame.partition("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        _EVENT.validate_python(event)
        if "response" in event:
            check_response(event["response"])
        yield event


def whole_stream(response: TestResponse) -> list[dict[str, Any]]:
    """The events of a stream from its beginning to its end, numbered one by one from 0."""
    assert response.status_code == 200 and response.mimetype == "text/event-stream", response.text
    assert response.text.endswith("data: [DONE]\n\n")
    events = list(stream_events(response.text))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] in _LAST for event in events] == [False] * (len(events) - 1) + [True]
    return events


def types_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def output_text(response: dict[str, Any]) -> str:
    parts = (part for item in response["output"] if item["type"] == "message" for part in item["content"])
    return "".join(part["text"] for part in parts)
