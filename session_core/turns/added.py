"""Messages that a client adds to a session, of which no turn has asked the model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from session_core.data.message import AttemptFields, MessageFields, StoredMessage, begins_turn
from session_core.turns.stored import last_turn, question_message
from session_core.turns.turn_request import TurnRequest
from storage import Session


def with_added(session: Session, messages: Sequence[StoredMessage]) -> tuple[Session, list[StoredMessage]]:
    """The session as it is when these messages stand behind its own, one after the other, and they as they do."""
    turn = last_turn(session)
    of_turn: AttemptFields = turn.fields if turn else {}
    session = replace(session, messages=session.messages.copy())
    for message in messages:
        fields: MessageFields = {**message, **of_turn}  # type: ignore[typeddict-unknown-key]
        if begins_turn(message):
            fields, of_turn = question_message(session, TurnRequest(message["content"])), {}
            session = replace(session, continues=None)
        session.messages.append(
            cast(
                StoredMessage,
                {**fields, "imported": True, "added": True, "id": message["id"], "created_at": message["created_at"]},
            )
        )
        session = replace(session, last_error=None, last_refused=False)
    return session, session.messages[len(session.messages) - len(messages) :]
