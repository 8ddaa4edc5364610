"""What a running turn has written so far, kept where a crash leaves it.

A journal is the lines that `Storage.journal` returns: first the identity of the turn, then entries of its log, of
which several may be joined. It survives `kill -9`, and no power cut. Whoever locks the session next for a turn stores
what it holds as a partial answer, with the reason `interrupted`.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from session_core.data.message import StoredMessage, answer_fields, assistant_message
from session_core.data.strict_json import from_json, to_json
from session_core.model.events import Chunk, Reasoning, ToolCall
from session_core.turns.event_log import Ended, Failed, decode_event, decode_lengths
from session_core.turns.stored import last_turn
from storage import LockedSession, Session, Storage


def identity(turn_id: str, message_id: str, attempt: int, fields: Mapping[str, Any]) -> bytes:
    """The first line, also of what is published: the turn, its question, the number of its attempt, and what its
    messages have beside their texts."""
    return to_json([turn_id, message_id, attempt, dict(fields)])


def partial_answer(session: Session, lines: Sequence[bytes]) -> StoredMessage | None:
    """The message that an interrupted turn has left, None where it has left nothing that is not stored.

    The lines may be torn, foreign, or of an earlier turn. The message has the same id however often it is made.
    """
    turn = last_turn(session)
    try:
        _, message_id, attempt, fields = from_json(lines[0])
        valid = isinstance(attempt, int) and isinstance(fields, dict)
    except (IndexError, ValueError, TypeError, RecursionError):
        valid = False
    if turn is None or not valid or message_id != turn.messages[0]["id"]:
        return None
    if attempt < turn.attempt or (attempt == turn.attempt and not turn.interrupted):
        return None
    rounds, reasoning, text, deltas, created_at = _last_round(lines[1:])
    stored = [one for one in turn.messages if one.get("tool_calls") and one.get("attempt", 1) == attempt]
    if len(stored) > rounds or not (reasoning or text):
        return None  # the text was stored with the tool calls behind it
    digest = hashlib.sha256(lines[0] + b"%d" % rounds).hexdigest()
    beside = answer_fields(fields) | {
        "reasoning": reasoning,
        "status": "incomplete",
        "reason": "interrupted",
        "deltas": deltas,
    }
    return {**assistant_message(text, **beside), "id": f"msg-{digest[:32]}", "created_at": created_at}


def take_over(storage: Storage, session: LockedSession) -> None:
    """Stores the partial answer that an interrupted turn has left, durably, and drops the journal."""
    turn = last_turn(session.session)
    if turn is None or turn.complete:
        return
    if message := partial_answer(session.session, storage.journal(session.id)):
        session.append(message, message["id"], message["created_at"])
        session.drop_journal()


def with_partial_answer(storage: Storage, session_id: str) -> Session:
    """The session as it is stored, with the partial answer that an interrupted turn has left.

    Raises SessionNotFound, SessionCorrupt and StorageUnavailable.
    """
    session = storage.get(session_id)
    turn = last_turn(session)
    if turn is None or turn.complete:
        return session
    lines = storage.journal(session_id)
    if not lines or storage.running(session_id):
        return session
    session = storage.get(session_id)  # in which the answer is by now, if somebody has taken it over
    if message := partial_answer(session, lines):
        session.messages.append(message)
    return session


def _last_round(lines: Iterable[bytes]) -> tuple[int, str, str, list[int], str]:
    """How often tools were called, the reasoning and the text behind that, the lengths of its pieces, and the time of
    the last of it."""
    rounds, calling, created_at = 0, False, ""
    pieces: list[Reasoning | Chunk] = []
    deltas: list[int] = []
    for line in lines:
        try:
            entry = decode_event(line)
        except (ValueError, TypeError, RecursionError):  # the end is torn, or of another program
            break
        if entry is None:  # of a later version
            continue
        event = entry.event
        if isinstance(event, Ended | Failed):
            break
        if isinstance(event, ToolCall) and not calling:
            rounds += 1
            pieces, deltas = [], []
        calling = isinstance(event, ToolCall)
        if isinstance(event, Reasoning | Chunk) and isinstance(event.content, str):
            pieces.append(event)
            deltas += decode_lengths(line)
            created_at = entry.created_at
    texts = {kind: "".join(one.content for one in pieces if type(one) is kind) for kind in (Reasoning, Chunk)}
    return rounds, texts[Reasoning], texts[Chunk], deltas, created_at
