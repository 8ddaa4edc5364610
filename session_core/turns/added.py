"""Messages that a client adds to a session, of which no turn has asked the model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from session_core.data.message import MessageFields, StoredMessage, begins_turn
from session_core.turns.stored import last_turn, question_message
from session_core.turns.turn_request import TurnRequest
from storage import Session


def with_added(session: Session, messages: Sequence[StoredMessage]) -> tuple[Session, list[StoredMessage]]:
    """The session as it is when these messages stand behind its own, one after the other, and they as they do."""
    for message in messages:
        turn = last_turn(session)
        fields: MessageFields = {**message}  # type: ignore[typeddict-unknown-key]
        if begins_turn(message):
            fields = question_message(session, TurnRequest(message["content"]))
            session = replace(session, continues=None)
        elif turn is not None:
            fields = {**fields, **turn.fields}
        added = {**fields, "imported": True, "added": True, "id": message["id"], "created_at": message["created_at"]}
        session = replace(
            session,
            messages=[*session.messages, cast(StoredMessage, added)],
            last_error=None,
            last_refused=False,
        )
    return session, session.messages[len(session.messages) - len(messages) :]
