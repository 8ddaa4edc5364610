"""Messages that a client adds to a session, of which no turn has asked the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from session_core.data.message import MessageFields, StoredMessage
from session_core.turns.attachments import keep_question_files
from session_core.turns.stored import last_turn, question_message
from session_core.turns.turn_request import TurnRequest
from storage import LockedSession, Storage


def add_messages(
    storage: Storage, session: LockedSession, messages: Sequence[StoredMessage], files: Mapping[str, bytes]
) -> None:
    """Adds messages with the bytes of their pictures and files, durably.

    Raises TurnRefused where one of them names a picture or a file that is not there, SessionCorrupt and
    StorageUnavailable.
    """
    for message in messages:
        turn = last_turn(session.session)
        stored: MessageFields = {**message}  # type: ignore[typeddict-unknown-key]
        if message["role"] == "user":
            asked = TurnRequest(message["content"], files=dict(files))
            stored = question_message(session.session, asked)
            keep_question_files(storage, session.session, asked, stored)
        elif turn is not None:
            stored = {**stored, **turn.fields}
        session.append({**stored, "imported": True, "added": True}, message["id"], message["created_at"])
