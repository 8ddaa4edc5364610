"""What the AI SDK's transport sends: a new question, an edited one, or an answer that is to be tried again.

The sources are `src/ui/http-chat-transport.ts` and `src/ui/chat.ts` of the npm package `ai`, 5 to 7. The client
makes ids for its messages, and keeps the id of one that it edits. After a reload it has the ids of the server. Both
find the question, also where others have replaced it since.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from storage import Session
from turns.question import Question
from turns.stored import turn_at
from web.errors import ApiError
from web.requests import KEY, idempotency_key, session_settings
from web.ui_messages import ANSWER

_Message = Mapping[str, Any]


def ui_question(body: Mapping[str, Any], get: Callable[[str], Session]) -> tuple[str, Question]:
    """The id of the session, and what the body of `POST /ui/chat` asks of it, with a key that a retry has too.

    The key is the request's own Idempotency-Key. Without one, that of a new question is the id of its message, and
    that of any other is made from what it replaces. `get` reads the session. Raises ApiError, and what `get` raises.
    """
    session_id, trigger, id = body.get("id"), body.get("trigger", "submit-message"), body.get("messageId")
    if not isinstance(session_id, str) or not isinstance(id, str | None):
        raise ApiError("invalid_request", "id must be the id of a session, and messageId that of a message.")
    if trigger not in ("submit-message", "regenerate-message"):
        raise ApiError("invalid_request", "trigger must be submit-message or regenerate-message.")
    again, key = trigger == "regenerate-message", idempotency_key()
    message = _user_message(body, anywhere=again)
    model = session_settings({"model": body.get("model")})["model"]
    if again or id:
        session = get(session_id)
        answered = _answered(session, id) if again and id else None
        target = answered or _current(session, message.get("id") if again else id)
        if target is not None:
            text = None if again else _text(message)
            replaces = _replaced(session, target, text, key, named=answered is not None)
            return session_id, Question(text, replaces, key=key or _made_key(replaces, text), model=model)
    return session_id, Question(_text(message), key=key or _own_key(message.get("id")), model=model)


def _user_message(body: Mapping[str, Any], *, anywhere: bool) -> _Message:
    """The last message, which must be the user's. With `anywhere` the user's last one, empty if there is none."""
    messages = [body["message"]] if "message" in body else body.get("messages", [])
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise ApiError("invalid_request", "messages must be a list of messages, or message one.")
    by_user = [one for one in (messages if anywhere else messages[-1:]) if one.get("role") == "user"]
    if not by_user and not anywhere:
        raise ApiError("invalid_request", "The last message must be the user's.")
    message: _Message = by_user[-1] if by_user else {}
    if not isinstance(message.get("id"), str | None):
        raise ApiError("invalid_request", "The id of a message must be text.")
    return message


def _text(message: _Message) -> str:
    """The text of a user's message. Files are refused, since a session holds text alone."""
    parts = message.get("parts")
    parts = parts if isinstance(parts, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    if any(isinstance(part, dict) and part.get("type") == "file" for part in parts):
        raise ApiError("invalid_request", "Files cannot be sent here: a message is text.")
    text = "".join(text for text in texts if isinstance(text, str))
    if not text.strip():
        raise ApiError("invalid_request", "The message must have a part of text that is not blank.")
    return text


def _current(session: Session, id: str | None) -> _Message | None:
    """The question of this id, the server's or the client's, or the one that stands in its place by now."""
    found: _Message | None = None
    key = _own_key(id)
    for message in session.messages if id else ():
        if message["role"] == "user":
            ids = (message["id"], message.get("idempotency_key"))
            if (id in ids or key in ids) if found is None else message.get("replaces") == found["id"]:
                found = message
    return found


def _answered(session: Session, id: str) -> _Message | None:
    """The question whose answer has this id, or holds the stored message of this id."""
    question: _Message | None = None
    for message in session.messages:
        if message["role"] == "user":
            question = message
            if id == message["id"] + ANSWER:
                return question
        elif id == message["id"]:
            return question
    return None


def _replaced(session: Session, target: _Message, text: str | None, key: str | None, *, named: bool) -> str:
    """The id of the question that this one replaces: the target, or where the request is a retry, the same as before.

    Two wishes to try the last answer again look the same, unless they name the answer or have a key. The second is
    taken for a retry as long as the first has no answer.
    """
    if key:
        made = [message for message in session.messages if message.get("idempotency_key") == key]
    else:
        again = not named and target.get("idempotency_key") == _made_key(target.get("replaces", ""), text)
        index = session.messages.index(dict(target))
        made = [dict(target)] if again and (text is not None or turn_at(session, index).can_be_retried) else []
    return str(made[0].get("replaces", target["id"]) if made else target["id"])


def _own_key(id: str | None) -> str | None:
    """The key that a message's own id stands for. None for none."""
    return (id if KEY.fullmatch(id) else _digest(id)) if id else None


def _made_key(replaces: str, text: str | None) -> str:
    """The key of a question that replaces another one, without a text of one that is asked again."""
    return _digest("again" if text is None else "edit", replaces, text or "")


def _digest(*texts: str) -> str:
    return "ui-" + hashlib.sha256("\0".join(texts).encode()).hexdigest()
