"""The Chat Completions dialect: what OpenAI's clients send, and the routes that they send it to."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from flask import Blueprint, Response, request
from pydantic import BaseModel

from agent import Agent
from session_core.data.message import Content, MessageFields, StoredMessage, content_text, message_text, tool_message
from session_core.data.session import new_message
from session_core.model.outgoing_messages import read_tool_calls
from session_core.turns.models import ModelRefused
from session_core.turns.turn_request import TurnRequest
from session_core.web.bodies import FailingFast, ModelName, check_question, idempotency_key, parse_body
from session_core.web.errors import ApiError, json_response, set_error_code, set_error_form
from session_core.web.openai_events import CompletionRenderer, openai_error, render_completion
from session_core.web.openai_history import ChatRequest, find_chat, start_in_session
from session_core.web.openai_tools import (
    ClientsTool,
    Function,
    client_tools,
    find_results,
    find_tool_choice,
    stored_answer,
    with_call_ids,
)
from session_core.web.turn_responses import TurnResponses
from session_core.web.uploads import Uploads, body_with_files, has_files

# What is between the client and this server, and not passed on to the model server.
_NOT_PASSED_ON = {"user", "store", "metadata"}
# Open WebUI marks what it asks for itself (0.9.7 and later, where a header is set up with {{TASK}}). Older ones are
# known by the words of their templates, and so is LibreChat.
_TASK_HEADER = "X-OpenWebUI-Task"
_TITLE_TASK = "concise, 5-word-or-less title"
_FIRST_EVENT_SECONDS = 2.0  # for which an answer is an HTTP status, should the turn fail


class _Message(BaseModel, strict=True):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    tool_calls: Any = None
    tool_call_id: Any = None


class _StreamOptions(BaseModel, strict=True):
    include_usage: bool | None = None


class _Body(BaseModel, strict=True, extra="allow"):
    """What `POST /v1/chat/completions` takes."""

    messages: FailingFast[_Message]
    model: ModelName | None = None
    n: Literal[1] | None = None
    tools: list[ClientsTool] | None = None
    functions: list[Function] | None = None
    function_call: str | dict[str, Any] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


def openai_dialect(responses: TurnResponses, agent: Agent, session_headers: Sequence[str]) -> Blueprint:
    """The routes that OpenAI's clients call. `session_headers` are those that name sessions."""
    blueprint = Blueprint("openai", __name__, url_prefix="/v1")
    set_error_form(blueprint, openai_error)
    set_error_code(blueprint, ModelRefused, "model_not_found", str)

    @blueprint.post("/chat/completions")
    def complete_chat() -> Response:
        with body_with_files(responses.max_file_bytes) as (body, uploads):
            asked = _parse_request(body, agent, uploads)
        responses.sessions.models.check(asked.own.model)
        key = idempotency_key()
        chat = None if _is_task(asked) else find_chat(responses.sessions.storage, session_headers)
        if chat is None:
            reader = responses.start_one_shot(asked.messages, asked.turn_request(TurnRequest(continues=True)))
        else:
            reader = start_in_session(responses, chat, asked, key)
        if not asked.stream:
            return responses.whole(reader, functools.partial(render_completion, asked=asked))
        renderer = CompletionRenderer(reader.turn, asked, asked.own.model or agent.model)
        started = 2 if asked.own.prefix else 1  # events before the first one of the model
        return responses.fail_early(reader, started, _FIRST_EVENT_SECONDS) or responses.stream(reader, renderer)

    @blueprint.get("/models")
    def list_openai_models() -> Response:
        return json_response(
            {"object": "list", "data": [_render_model(name) for name in responses.sessions.models.names()]}
        )

    @blueprint.get("/models/<path:model>")
    def get_openai_model(model: str) -> Response:
        responses.sessions.models.check(model)
        return json_response(_render_model(model))

    return blueprint


def _parse_request(body: Mapping[str, Any], agent: Agent, uploads: Uploads) -> ChatRequest:
    """The request in a body. Raises ApiError."""
    asked = parse_body(_Body, with_call_ids(body))
    system, messages = _parse_messages(asked.messages, uploads)
    prefix = ""
    while messages and messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]:
        prefix = message_text(messages.pop()) + prefix
    if not messages:
        raise ApiError(
            "invalid_request", "The last message must be the user's, or an answer that is to be continued."
        )
    if messages[-1]["role"] == "user":
        check_question(messages[-1]["content"])
    tools = client_tools(body)
    own = TurnRequest(
        model=asked.model,
        system_prompt="\n\n".join(system) if system else None,
        options=_find_options(
            asked, any_tools=bool(tools.tools) or not all(tool.may_need_approval for tool in agent.tools)
        ),
        client_tools=tools,
        prefix=prefix,
        files=uploads.files,
    )
    return ChatRequest(
        messages,
        own,
        stream=bool(asked.stream),
        with_usage=bool(asked.stream_options and asked.stream_options.include_usage),
        results=find_results(messages),
        functions=bool(asked.functions and not asked.tools),
    )


def _find_options(asked: _Body, *, any_tools: bool) -> dict[str, Any] | None:
    """What goes on to the model server as it is, None for nothing. Without `any_tools` it takes no parameters of
    tools."""
    left_out = _NOT_PASSED_ON if any_tools else {*_NOT_PASSED_ON, "tool_choice", "parallel_tool_calls"}
    others = {"tool_choice": find_tool_choice(asked.function_call), **(asked.model_extra or {})}
    return {name: value for name, value in others.items() if name not in left_out and value is not None} or None


def _parse_messages(sent: list[_Message], uploads: Uploads) -> tuple[list[str], list[StoredMessage]]:
    """The texts of the system messages, and the messages of the conversation as they are stored."""
    system: list[str] = []
    messages: list[StoredMessage] = []
    calls: dict[str, str] = {}  # of the client's tools: by id the name
    for index, message in enumerate(sent):
        content = _parse_content(message, f"messages[{index}]", uploads)
        text = content_text(content)
        fields: MessageFields = {"role": message.role, "content": content}
        if message.role in ("system", "developer"):
            system.append(text)
            continue
        if message.role in ("tool", "function"):
            if (name := calls.get(str(message.tool_call_id))) is None:  # of tools that ran here, or elsewhere
                continue
            fields = tool_message(str(message.tool_call_id), name, text, None)
        elif message.role == "assistant":
            called = read_tool_calls({"role": "assistant", "content": "", "tool_calls": message.tool_calls})
            fields = stored_answer(text, called)
            calls |= {call.id: call.name for call in called}
        if message.role == "user" or text or "tool_calls" in fields or "tool_call_id" in fields:
            messages.append(new_message(fields))
    return system, messages


def _parse_content(message: _Message, where: str, uploads: Uploads) -> Content:
    """The content of a message, with pictures and files where it is the user's.

    Parts of an answer that are no text (thinking, a refusal, a picture) are copies of what the server has.
    """
    if not isinstance(message.content, list):
        return message.content or message.refusal or ""
    if message.role == "user" and has_files(message.content):
        return uploads.parse_content(message.content, f"{where}.content")
    for part in message.content:
        uploads.skip(part)
    texts = [part.get("text") for part in message.content]
    if message.role not in ("assistant", "tool", "function") and not all(isinstance(text, str) for text in texts):
        raise ApiError("invalid_request", f"{where} has a content that is no text.")
    return "".join(text for text in texts if isinstance(text, str))


def _is_task(asked: ChatRequest) -> bool:
    """Whether a front end asks for itself: for a title, for tags, for what the user might ask next."""
    text = message_text(asked.messages[-1])
    by_words = ("### Task:\n" in text and "<chat_history>" in text) or _TITLE_TASK in text
    return by_words or bool(request.headers.get(_TASK_HEADER))


def _render_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "session_server"}
