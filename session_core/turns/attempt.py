"""The beginning of a turn: what is stored before the model is asked, and what the model is asked with."""

from dataclasses import dataclass
from typing import Any

from session_core.data.message import AttemptFields, StoredMessage
from session_core.turns.stored import find_turn, last_turn, outgoing_messages, question_message
from session_core.turns.turn_request import NothingToContinue, TurnRequest
from storage import LockedSession, timestamp


@dataclass(frozen=True)
class Attempt:
    """An attempt at a turn, whose question is stored.

    `number` counts the attempts from 1. `fields` are in each message that it stores. `settings` are the arguments of
    `Agent.run`, and `history` are the messages that go to the model.
    """

    message_id: str
    number: int
    fields: AttemptFields
    settings: dict[str, Any]
    history: list[StoredMessage]


def begin_attempt(session: LockedSession, request: TurnRequest, default_model: str) -> Attempt:
    """Stores the user's message, or that the last turn is continued. Another attempt at a failed turn finds the
    user's message stored.

    Raises TurnRefused, NothingToContinue, StorageUnavailable and SessionCorrupt; then nothing has begun.
    """
    fields: AttemptFields = {}
    stored = find_turn(session.session, request.key)
    if request.continues:
        message, fields = _continue(session, request)
    elif stored is None:
        message = session.append(question_message(session.session, request))
    else:
        message, fields = stored.messages[0], {"attempt": 1 + stored.attempt}
    found = session.session
    instructions = found.system_prompt if request.system_prompt is None else request.system_prompt
    settings = {
        "model": request.model or found.model or default_model,
        "system_prompt": instructions,
        "options": request.options,
    }
    number = fields.get("attempt", 1)
    history = outgoing_messages(found.messages, number, continues=request.continues)
    if request.prefix:
        now = timestamp()
        history.append({"id": "", "role": "assistant", "content": request.prefix, "created_at": now})
    return Attempt(message["id"], number, fields, settings, history)


def _continue(session: LockedSession, request: TurnRequest) -> tuple[StoredMessage, AttemptFields]:
    """Stores that an attempt continues the session's last turn. Returns the turn's question, and the fields."""
    stored = last_turn(session.session)
    if stored is None or stored.complete:
        raise NothingToContinue
    fields: AttemptFields = {"attempt": 1 + stored.attempt, "continues": True}
    if request.key is not None:
        fields["idempotency_key"] = request.key
    session.set_continues({**fields, "recovery": request.recovery})
    return stored.messages[0], fields
