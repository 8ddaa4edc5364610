"""The AI SDK's dialect: what its transport sends, and the routes that it sends that to.

The sources are `src/ui/http-chat-transport.ts` and `src/ui/chat.ts` of the npm package `ai`, 5 to 7. The client makes
ids for its messages, and keeps that of one that it edits. After a reload it has the server's. Both are understood.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from flask import Blueprint, Response
from pydantic import BaseModel

from session_core.data.message import StoredMessage
from session_core.turns.stored import turn_at
from session_core.turns.turn_request import TurnRequest
from session_core.web.bodies import (
    IDEMPOTENCY_KEY,
    FailingFast,
    ModelName,
    check_question,
    idempotency_key,
    json_body,
    parse_body,
)
from session_core.web.errors import ApiError
from session_core.web.turn_responses import TurnResponses, add_stream
from session_core.web.ui_messages import ANSWER, UiRenderer
from storage import Session


class _Part(BaseModel, strict=True):
    type: str
    text: str = ""


class _Message(BaseModel, strict=True):
    role: Literal["user"] = "user"
    id: str | None = None
    parts: FailingFast[_Part] = []


class _Body(BaseModel, strict=True):
    """What `DefaultChatTransport` sends."""

    id: str
    messages: FailingFast[dict[str, Any]] = []
    message: dict[str, Any] | None = None
    trigger: Literal["submit-message", "regenerate-message"] = "submit-message"
    messageId: str | None = None
    model: ModelName | None = None


def ui_dialect(responses: TurnResponses) -> Blueprint:
    """The routes that `useChat` calls."""
    blueprint = Blueprint("ui", __name__, url_prefix="/ui")

    @blueprint.post("/chat")
    def chat() -> Response:
        session_id, question = _parse_turn_request(json_body(), responses.sessions.storage.get)
        reader = responses.start(session_id, question)
        return responses.stream(reader, UiRenderer(reader.turn.message_id))

    def resume_chat(session_id: str) -> Response:
        turn = responses.sessions.attach(session_id)
        running = None if turn is None or turn.ended else turn  # the client has the answer of an ended turn
        return responses.watch(running, lambda _: 0, lambda turn: UiRenderer(turn.message_id))

    add_stream(blueprint, "/chat/<session_id>/stream", resume_chat)
    return blueprint


def _parse_turn_request(body: Mapping[str, Any], get: Callable[[str], Session]) -> tuple[str, TurnRequest]:
    """The id of the session, and what the body of `POST /ui/chat` asks of it, with a key that a retry has too.

    The key is the request's own Idempotency-Key. Without one, that of a new question is the id of its message, and
    that of any other is made from what it replaces. `get` reads the session. Raises ApiError, and what `get` raises.
    """
    asked = parse_body(_Body, body)
    again = asked.trigger == "regenerate-message"
    message = _last_message(asked, again)
    named, key = asked.messageId, idempotency_key()
    session = get(asked.id) if again or named else None
    if session and (target := _question(session, named) or (_question(session, message.id) if again else None)):
        answered = bool(named and named.endswith(ANSWER))
        text = None if again else _text(message)
        replaces = _replaced(session, target, text, key, answered=answered)
        return asked.id, TurnRequest(text, replaces, key=key or _replacing_key(replaces, text), model=asked.model)
    return asked.id, TurnRequest(_text(message), key=key or _key(message.id), model=asked.model)


def _last_message(asked: _Body, again: bool) -> _Message:
    """The message that is sent, or the question of the answer that is to be tried again."""
    sent = [asked.message] if asked.message else asked.messages
    last = [one for one in sent if not again or one.get("role") == "user"][-1:]
    return parse_body(_Message, last[0] if last else {})


def _text(message: _Message) -> str:
    if any(part.type == "file" for part in message.parts):
        raise ApiError("invalid_request", "A message must have no files.")
    return check_question("".join(part.text for part in message.parts if part.type == "text"))


def _question(session: Session, id: str | None) -> StoredMessage | None:
    """The question of this id, or the one that stands in its place by now. By the id of its answer, only itself."""
    found: StoredMessage | None = None
    for message in session.messages if id else ():
        if message["role"] != "user":
            continue
        if message["id"] + ANSWER == id:
            return message
        if message.get("replaces") == found["id"] if found else message["id"] == id or _has_key(message, _key(id)):
            found = message
    return found


def _replaced(session: Session, target: StoredMessage, text: str | None, key: str | None, *, answered: bool) -> str:
    """The id of the question that this one replaces: the target, or where the request is a retry, the same as before.

    Two wishes to try the last answer again look the same, unless they name the answer or have a key. The second is
    taken for a retry as long as the first has no answer.
    """
    earlier = [message for message in session.messages if key and _has_key(message, key)]
    if not key and not answered and _has_key(target, _replacing_key(target.get("replaces", ""), text)):
        unanswered = turn_at(session, session.messages.index(target)).can_be_retried
        earlier = [target] if unanswered or text is not None else []
    return earlier[0].get("replaces", target["id"]) if earlier else target["id"]


def _has_key(message: StoredMessage, key: str | None) -> bool:
    return message.get("idempotency_key") == key


def _replacing_key(replaces: str, text: str | None) -> str:
    return "ui-" + hashlib.sha256(f"{replaces} {'again' if text is None else 'edit ' + text}".encode()).hexdigest()


def _key(id: str | None) -> str | None:
    """The key that a message's own id stands for, whatever characters it has."""
    return (id if IDEMPOTENCY_KEY.fullmatch(id) else "ui-" + hashlib.sha256(id.encode()).hexdigest()) if id else None
