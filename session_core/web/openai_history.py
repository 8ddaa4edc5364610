"""What the Chat Completions dialect does with the history that a client sends: the turn that a request means."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flask import request

from session_core.data.message import StoredMessage
from session_core.turns.client_history import wish_of
from session_core.turns.event_log import Ended
from session_core.turns.local import LocalTurn
from session_core.turns.sessions import Sessions
from session_core.turns.stored import find_turn, last_turn
from session_core.turns.turn import Turn
from session_core.turns.turn_request import NothingToContinue, TurnRequest
from session_core.web.errors import ApiError
from session_core.web.turn_responses import TurnReader, TurnResponses
from storage import SESSION_ID, Session, SessionBusy, SessionNotFound, Storage

_MAX_LOOKS = 3  # at a session in which turns start and end meanwhile


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


def find_session_id(storage: Storage, headers: Sequence[str]) -> str | None:
    """The id of the session that one of these headers names, None where none does. Raises ApiError.

    A value that is the id of a session names that one; any other value stands for an id of its own.
    """
    for name in headers:
        if (value := request.headers.get(name)) is not None:
            if not re.fullmatch(r"[\x21-\x7e]{1,128}", value):
                raise ApiError("invalid_request", f"{name} must be 1 to 128 visible ASCII characters.")
            if SESSION_ID.fullmatch(value):
                with contextlib.suppress(SessionNotFound):
                    storage.running(value)
                    return value
            return f"session-{hashlib.sha256(value.encode()).hexdigest()[:32]}"
    return None


def start_one_shot(responses: TurnResponses, asked: ChatRequest) -> TurnReader:
    """Reads a turn in a session in memory, which goes with its answer."""
    session_id = responses.one_shot.create(asked.messages)

    def forget() -> None:
        with contextlib.suppress(SessionNotFound):
            responses.one_shot.delete(session_id)

    question = _for_this_turn(TurnRequest(continues=True), asked)
    with contextlib.ExitStack() as stack:
        stack.callback(forget)
        reader = responses.start(session_id, question, keeps_running=False, sessions=responses.one_shot)
        stack.callback(reader.close)
        return dataclasses.replace(reader, close=stack.pop_all().close)


def start_in_session(responses: TurnResponses, session_id: str, asked: ChatRequest, key: str | None) -> TurnReader:
    """Reads the turn that a request means in a session, which is made where it does not exist."""
    sessions = responses.sessions
    sessions.storage.ensure(session_id)
    unanswered: set[str] = set()
    looks = 0
    while True:
        looks += 1
        try:
            found = _look(sessions, session_id, asked, key, unanswered)
            if isinstance(found, Turn):
                reader = responses.join(found)
            else:
                reader = responses.start(session_id, _for_this_turn(found, asked), keeps_running=False)
            return dataclasses.replace(reader, headers={**reader.headers, "X-Session-Id": session_id})
        except (NothingToContinue, SessionBusy):  # a turn has ended or started since the look
            if looks == _MAX_LOOKS:
                raise
            with contextlib.suppress(SessionBusy):
                sessions.attach(session_id)  # which waits until the question of a turn that starts is stored


def _look(
    sessions: Sessions, session_id: str, asked: ChatRequest, key: str | None, unanswered: set[str]
) -> Turn | TurnRequest:
    """The turn that the request is a retry of, or the question that it asks.

    `unanswered` are the questions that earlier looks saw without an answer, or while their turn ran. A turn that
    has answered one since is joined like one that runs.
    """
    session = sessions.session(session_id)
    users = [one for one in session.conversation if one["role"] == "user"]
    sent = [index for index, one in enumerate(asked.messages) if one["role"] == "user"]
    wish = wish_of([one["content"] for one in users], [asked.messages[index]["content"] for index in sent])
    question = TurnRequest(asked.messages[-1]["content"], key=key)
    if key is not None and (known := find_turn(session, key)):
        stored = TurnRequest.stored(known.messages[0], key)
        return dataclasses.replace(question, replaces=stored.replaces, continues=stored.continues)
    if wish.kind == "again":
        return _retry(sessions, session, users[-1]["id"], key, unanswered)
    if wish.kind == "instead":
        replaced = users[wish.at]["id"] if wish.at < len(users) else None
        history = tuple(asked.messages[sent[wish.since] : -1])
        return TurnRequest(asked.messages[-1]["content"], replaced, history=history, key=key)
    return question


def _retry(
    sessions: Sessions, session: Session, id: str, key: str | None, unanswered: set[str]
) -> Turn | TurnRequest:
    """The turn of the session's last question, where it has an answer that the caller cannot have seen, or the wish
    for another answer."""
    last, turn = last_turn(session), sessions.attach(session.id)
    own = turn if turn is not None and turn.message_id == id else None
    ended = own is None or own.ended  # else the caller cannot have seen its end
    if last is None or (last.complete and ended and id not in unanswered):
        return TurnRequest(None, id, key=key)
    unanswered.add(id)
    if own is not None and _has_an_answer(own, sessions):
        return own
    return TurnRequest(None, id if last.complete else None, continues=not last.complete, key=key)


def _has_an_answer(turn: Turn, sessions: Sessions) -> bool:
    """Whether the turn runs, or has its whole answer."""
    if not turn.ended:
        return isinstance(turn, LocalTurn) or sessions.running(turn.session_id)
    last = turn.result()
    return isinstance(last, Ended) and last.status == "completed"


def _for_this_turn(question: TurnRequest, asked: ChatRequest) -> TurnRequest:
    """The question with what the request sets for this turn alone."""
    return dataclasses.replace(
        question, model=asked.model, system_prompt=asked.instructions, options=asked.options or None
    )
