"""The Chat Completions dialect: what OpenAI's clients send, and the routes that they send it to."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from flask import Blueprint, Response, request
from pydantic import BaseModel

from agent import Agent
from session_core.data.message import StoredMessage
from session_core.turns.models import ModelRefused
from session_core.web.bodies import FailingFast, ModelName, check_question, idempotency_key, json_body, parse_body
from session_core.web.errors import ApiError, json_response, set_error_form
from session_core.web.openai_events import CompletionRenderer, openai_error, render_completion
from session_core.web.openai_history import ChatRequest, find_session_id, start_in_session, start_one_shot
from session_core.web.turn_responses import TurnReader, TurnResponses
from storage import new_id, timestamp

# Parameters of the Chat Completions API, and of servers that are compatible with it, that are passed on.
_OPTIONS = (
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "stop", "max_tokens", "max_completion_tokens"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "response_format"),
    *("reasoning_effort", "verbosity"),
)
# Open WebUI marks what it asks for itself (0.9.7 and later, where a header is set up with {{TASK}}); older ones and
# LibreChat are known by the words of their templates.
_TASK_HEADER = "X-OpenWebUI-Task"
_TITLE_TASK = re.compile(r"\bconcise, 5-word-or-less title\b")


class _Message(BaseModel, strict=True):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Any = None


class _StreamOptions(BaseModel, strict=True):
    include_usage: bool | None = None


class _Body(BaseModel, strict=True):
    """What `POST /v1/chat/completions` takes."""

    messages: FailingFast[_Message]
    model: ModelName | None = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


def openai_dialect(responses: TurnResponses, agent: Agent, session_headers: Sequence[str]) -> Blueprint:
    """The routes that OpenAI's clients call. `session_headers` are those that name sessions."""
    blueprint = Blueprint("openai", __name__, url_prefix="/v1")
    set_error_form(blueprint, openai_error)

    @blueprint.post("/chat/completions")
    def complete_chat() -> Response:
        asked = _parse_request(json_body())
        with _model_errors():
            responses.sessions.models.check(asked.model)
            reader = start(asked)
        if asked.stream:
            renderer = CompletionRenderer(reader.turn, asked.model or agent.model, with_usage=asked.with_usage)
            return responses.stream(reader, renderer)
        return responses.whole(reader, render_completion)

    def start(asked: ChatRequest) -> TurnReader:
        key = idempotency_key()
        is_task = request.headers.get(_TASK_HEADER) or _is_template(asked.messages[-1]["content"])
        session_id = None if is_task else find_session_id(responses.sessions.storage, session_headers)
        if session_id is None:
            return start_one_shot(responses, asked)
        if any("parts" in message for message in asked.messages):
            raise ApiError("invalid_request", "A session takes no pictures.")
        return start_in_session(responses, session_id, asked, key)

    @blueprint.get("/models")
    def list_openai_models() -> Response:
        names = responses.sessions.models.names()
        return json_response({"object": "list", "data": [_render_model(name) for name in names]})

    @blueprint.get("/models/<path:model>")
    def get_openai_model(model: str) -> Response:
        with _model_errors():
            responses.sessions.models.check(model)
        return json_response(_render_model(model))

    return blueprint


def _parse_request(body: Mapping[str, Any]) -> ChatRequest:
    """The request in a body. Raises ApiError."""
    if body.get("tools") or body.get("functions"):
        raise ApiError("invalid_request", "Tools run on this server: leave tools and functions out.")
    asked = parse_body(_Body, body)
    system, messages = _parse_messages(asked.messages)
    if not messages or messages[-1]["role"] != "user":
        raise ApiError("invalid_request", "The last message must be the user's.")
    if "parts" not in messages[-1]:
        check_question(str(messages[-1]["content"]))
    return ChatRequest(
        messages,
        "\n\n".join(system) if system else None,
        asked.model,
        bool(asked.stream),
        bool(asked.stream_options and asked.stream_options.include_usage),
        {name: body[name] for name in _OPTIONS if body.get(name) is not None},
    )


def _parse_messages(sent: list[_Message]) -> tuple[list[str], list[StoredMessage]]:
    """The texts of the system messages, and the messages of the conversation as they are stored."""
    system: list[str] = []
    messages: list[StoredMessage] = []
    for index, message in enumerate(sent):
        if message.role in ("tool", "function"):  # of tools that ran here, or elsewhere
            continue
        text, parts = _parse_content(message.content, index)
        if message.role in ("system", "developer"):
            system.append(text)
        elif message.role == "user" or text or parts:
            messages.append({"id": new_id("msg"), "role": message.role, "content": text, "created_at": timestamp()})
            if parts:
                messages[-1]["parts"] = parts
    return system, messages


def _parse_content(content: Any, index: int) -> tuple[str, list[dict[str, Any]]]:
    """The text of a message, and its parts as they are sent, where it has pictures."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    texts = [one.get("text") if isinstance(one, dict) else None for one in parts]
    pictures = [one for one in parts if isinstance(one, dict) and one.get("type") == "image_url"]
    if len(parts) != sum(isinstance(text, str) for text in texts) + len(pictures):
        raise ApiError("invalid_request", f"messages[{index}] has a content that is no text.")
    return "".join(text for text in texts if isinstance(text, str)), parts if pictures else []


def _is_template(text: str) -> bool:
    """Whether a question is one that a front end asks for itself."""
    _, task, rest = text.partition("### Task:\n")
    return bool((task and "<chat_history>" in rest) or _TITLE_TASK.search(text))


def _render_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "session_server"}


@contextlib.contextmanager
def _model_errors() -> Iterator[None]:
    """Says in OpenAI's code that a model may not be chosen."""
    try:
        yield
    except ModelRefused as error:
        raise ApiError("model_not_found", str(error)) from None
