"""What OpenAI's clients send to `POST /v1/chat/completions`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flask import request

from session_core.data.message import StoredMessage
from session_core.web.bodies import session_settings
from session_core.web.errors import ApiError
from storage import SESSION_ID, new_id, timestamp

# Parameters of the Chat Completions API, and of servers that are compatible with it, that are passed on.
_OPTIONS = (
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "stop", "max_tokens", "max_completion_tokens"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "response_format"),
    *("reasoning_effort", "verbosity"),
)
# Open WebUI marks what it asks for itself (0.9.7 and later, where a header is set up with {{TASK}}); older ones and
# LibreChat are known by the words of their templates.
_TASK_HEADER = "X-OpenWebUI-Task"
_TASK = re.compile(r"### Task:\n.*<chat_history>|\bconcise, 5-word-or-less title\b", re.DOTALL)


@dataclass(frozen=True)
class ChatRequest:
    """A request. `messages` are the user's and the assistant's, oldest first, as they are stored; the last is the
    question. `instructions` are the texts of its system messages, None where it has none."""

    messages: list[StoredMessage]
    instructions: str | None
    model: str | None
    stream: bool
    with_usage: bool
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The text of the last message."""
        return self.messages[-1]["content"]

    @property
    def is_task(self) -> bool:
        """Whether a front end asks for itself: for a title, for tags, for what the user might ask next."""
        return bool(request.headers.get(_TASK_HEADER)) or bool(_TASK.search(self.question))


def chat_request(body: Mapping[str, Any], *, images: bool) -> ChatRequest:
    """The request in a body. Without `images`, one that has any is refused. Raises ApiError."""
    if body.get("tools") or body.get("functions"):
        raise ApiError("invalid_request", "Tools run on this server: leave tools and functions out.")
    if body.get("n") not in (None, 1):
        raise ApiError("invalid_request", "n must be 1.")
    model = session_settings({"model": body.get("model")})["model"]
    streams, about = body.get("stream"), body.get("stream_options")
    about = {} if about is None else about
    with_usage = about.get("include_usage") if isinstance(about, dict) else ""
    if not isinstance(streams, bool | None) or not isinstance(with_usage, bool | None):
        raise ApiError("invalid_request", "stream must be true or false, and stream_options an object.")
    messages, instructions = _messages(body.get("messages"), images)
    options = {name: body[name] for name in _OPTIONS if body.get(name) is not None}
    return ChatRequest(messages, instructions, model, bool(streams), bool(with_usage), options)


def named_session(headers: Sequence[str], known: Any) -> str | None:
    """The id of the session that one of these headers names, None where none does. Raises ApiError.

    A value that is the id of a session that is `known` names that one; any other value stands for an id of its own.
    """
    for name in headers:
        if (value := request.headers.get(name)) is not None:
            if not re.fullmatch(r"[\x21-\x7e]{1,128}", value):
                raise ApiError("invalid_request", f"{name} must be 1 to 128 visible ASCII characters.")
            if SESSION_ID.fullmatch(value) and known(value):
                return value
            return f"session-{hashlib.sha256(value.encode()).hexdigest()[:32]}"
    return None


def _messages(sent: Any, images: bool) -> tuple[list[StoredMessage], str | None]:
    if not isinstance(sent, list) or not all(isinstance(one, dict) for one in sent):
        raise ApiError("invalid_request", "messages must be a list of messages.")
    found: list[StoredMessage] = []
    system: list[str] = []
    for index, message in enumerate(sent):
        role, content = message.get("role"), message.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
        texts = [one.get("text") if isinstance(one, dict) else None for one in parts]
        pictures = [one for one in parts if isinstance(one, dict) and one.get("type") == "image_url"]
        if role in ("tool", "function"):  # of tools that ran here, or elsewhere
            continue
        if role not in ("system", "developer", "user", "assistant"):
            raise ApiError("invalid_request", f"messages[{index}] has no role that is known.")
        if len(parts) != sum(isinstance(text, str) for text in texts) + len(pictures) or (pictures and not images):
            raise ApiError("invalid_request", f"messages[{index}] has a content that is no text.")
        text = "".join(text for text in texts if isinstance(text, str))
        if role in ("system", "developer"):
            system.append(text)
        elif text or pictures or role == "user":
            found.append({"id": new_id("msg"), "role": role, "content": text, "created_at": timestamp()})
            if pictures:
                found[-1]["parts"] = parts
    if not found or found[-1]["role"] != "user":
        raise ApiError("invalid_request", "The last message must be the user's.")
    if not found[-1]["content"].strip() and "parts" not in found[-1]:
        raise ApiError("invalid_request", "The last message must not be blank.")
    return found, "\n\n".join(system) if system else None
