"""The beginning of a turn: what is stored before the model is asked, and what the model is asked with."""

from dataclasses import dataclass
from typing import Any, cast

from session_core.data.message import AttemptFields, StoredMessage
from session_core.data.removed import without_removed
from session_core.model.events import ToolCall, ToolResult
from session_core.turns.added import with_added
from session_core.turns.attachments import SessionFiles, keep_new_files
from session_core.turns.compaction import behind_summary
from session_core.turns.queued import check_order
from session_core.turns.stored import StoredTurn, find_turn, last_turn, outgoing_messages, question_message
from session_core.turns.turn_request import Answers, NothingToContinue, TurnRequest, TurnWaiting
from session_core.turns.waiting import answers_left, check_answers, settle
from storage import LockedSession, Session, SessionBusy, Storage, timestamp


@dataclass(frozen=True)
class Attempt:
    """An attempt at a turn, whose question is stored.

    `number` counts the attempts from 1. `fields` are in each message that it stores. `settings` are the arguments of
    `Agent.run`, and `history` are the messages that go to the model. With `keeps_deltas`, each answer is stored with
    the lengths of its pieces.
    """

    message_id: str
    number: int
    fields: AttemptFields
    settings: dict[str, Any]
    history: list[StoredMessage]
    keeps_deltas: bool = False


def begin_attempt(storage: Storage, session: LockedSession, request: TurnRequest, default_model: str) -> Attempt:
    """Stores the user's message, or that the last turn is continued. Another attempt at a failed turn finds the
    user's message stored.

    Raises TurnRefused, NothingToContinue, TurnWaiting, NotQueued, StorageUnavailable, SessionCorrupt, and SessionBusy
    where another message waits before this one, or the message that the request is to be `behind` is not the last
    one; then nothing has begun.
    """
    fields: AttemptFields = {}
    answered: list[ToolCall | ToolResult] = []
    stored = find_turn(session.session, request.key)
    if stored is None and request.behind not in (None, *(one["id"] for one in session.session.messages[-1:])):
        raise SessionBusy(session.id)
    if request.goes_on:
        # the history was added by the first request of this key
        found, added = with_added(session.session, () if stored else request.history)
        stored, fields, answers = _go_on(found, request)
        keep_new_files(storage, session.session, request.files, added)
        session.set_continues({**fields, **({"answers": answers} if answers else {})}, added)
        message, answered = stored.messages[0], settle(stored.unanswered, answers)
    elif stored is None:
        check_order(storage.queue(session.id), session.session, request)
        question = question_message(session.session, request)
        if request.queued_id is None:  # else they were kept when the message came
            keep_new_files(storage, session.session, request.files, [question])
        message = session.append(question, request.queued_id, queued=request.queued_id is not None)
    else:
        message, fields = stored.messages[0], {"attempt": 1 + stored.attempt}
    found = session.session
    number = fields.get("attempt", 1)
    outgoing = outgoing_messages(found.messages, number, continues=request.goes_on)
    history, summary = behind_summary(found, without_removed(outgoing, found.responses))
    settings = {
        "model": request.model or found.model or default_model,
        "system_prompt": found.system_prompt if request.system_prompt is None else request.system_prompt,
        "summary": summary,
        "options": request.options,
        "answered": answered,
        "results_only": request.results_only,
        "client_tools": request.client_tools,
        "files": SessionFiles(storage, session.id),
    }
    if request.prefix:
        history.append({"id": "", "role": "assistant", "content": request.prefix, "created_at": timestamp()})
    return Attempt(
        message["id"],
        number,
        fields,
        settings,
        history,
        keeps_deltas=request.response is not None or "response" in message,
    )


def _go_on(session: Session, request: TurnRequest) -> tuple[StoredTurn, AttemptFields, Answers]:
    """The session's last turn, with which an attempt goes on, the fields of its messages, and the answers to what has
    waited: those of the request, or where it was interrupted with them, what is left of them."""
    stored = last_turn(session)
    if stored is None or stored.complete:
        raise NothingToContinue
    waiting = stored.waiting
    if waiting is not None and request.answers is None:
        raise TurnWaiting
    if waiting is None and request.answers is not None and find_turn(session, request.key) is None:
        raise NothingToContinue
    answers = answers_left(stored.continues.get("answers"))
    if waiting is not None and request.answers is not None:
        check_answers(waiting, request.answers)
        answers = dict(request.answers)
    beside: AttemptFields = {
        "idempotency_key": request.key or "",
        "answers_digest": request.answers_digest,
        "recovery": request.recovery,
        "response": dict(request.response or {}),
    }
    kept = {name: value for name, value in beside.items() if value}
    fields = cast(AttemptFields, {"attempt": 1 + stored.attempt, "continues": True, **kept})
    return stored, fields, answers
