"""A turn as it is stored: what a retry gets, and what a failed attempt left.

A turn may be tried again. Messages of later attempts carry their number as `attempt`, so the messages of a failed
attempt stay stored and are left out of what the model gets. An attempt may go on with the one before: its messages
carry `continues`, and the tool calls and results of the one before go to the model, but not its partial answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import Any, cast

from session_core.data.message import (
    AttemptFields,
    MessageFields,
    QuestionFields,
    StoredMessage,
    begins_turn,
    message_text,
    read_status,
    tool_message,
    user_message,
)
from session_core.data.session import expanded, new_message
from session_core.data.versions import BEGINNING, replaced_messages
from session_core.model.events import ToolCall, ToolResult
from session_core.model.outgoing_messages import read_tool_calls
from session_core.model.reply import sum_usage
from session_core.turns.event_log import Ended, Event, Failed, Started, Steered
from session_core.turns.told import read_result, told_pieces
from session_core.turns.turn_request import Answers, TurnRefused, TurnRequest
from session_core.turns.waiting import answers_left, fitting_answers, settle
from storage import Session

INTERRUPTED_TEXT = "The turn was interrupted."

_FIELDS_THAT_LEAVE_OUT = frozenset(("attempt", "previous_refused", "leaves_out", "replaces", "after", "history"))
_INCOMPLETE = ("length", "content_filter", "no_finish_reason")  # the model ended here, and nothing failed


@dataclass(frozen=True)
class StoredTurn:
    """A turn as it is stored.

    `messages` are the user's message and what followed it, in all attempts. `error` is the code of the error that
    ended the turn, where the turn left no partial answer. `is_last` says whether it is the session's last turn.
    `continues` tells of the attempt that goes on with the one before, of which nothing may be stored yet.
    """

    messages: list[StoredMessage]
    error: str | None
    is_last: bool
    continues: Mapping[str, Any] = field(default_factory=dict)

    @property
    def attempt(self) -> int:
        """The number of the last attempt, from 1."""
        begun = self.continues.get("attempt")
        return max(begun if isinstance(begun, int) else 1, *(one.get("attempt", 1) for one in self.messages))

    @property
    def fields(self) -> AttemptFields:
        """What the messages of the last attempt have."""
        return {"attempt": self.attempt} if self.attempt > 1 else {}

    @property
    def answers_digest(self) -> str:
        """Of the answers that the last attempt goes on with, see `TurnRequest.answers_digest`."""
        begun = self.continues.get("attempt") == self.attempt
        return str((self.continues if begun else self.messages[-1]).get("answers_digest", ""))

    @property
    def can_be_retried(self) -> bool:
        """Whether the turn failed and is the session's last, so that its key may ask the model again."""
        return self.is_last and isinstance(self.last_event(), Failed)

    @property
    def complete(self) -> bool:
        """Whether the turn has its whole answer, so that there is nothing to go on with."""
        last = self.last_event()
        return isinstance(last, Ended) and last.status == "completed"

    @property
    def interrupted(self) -> bool:
        """Whether the last attempt has no end: it runs, or its process is gone."""
        last = self.messages[-1]
        answered = last["role"] == "assistant" and not last.get("tool_calls")
        ended = (answered and last.get("attempt", 1) == self.attempt) or self.waiting
        return self.error is None and not ended

    @property
    def calling(self) -> StoredMessage | None:
        """The message whose calls end the last attempt, where some of them wait for answers. Others may still run."""
        last = next((one for one in reversed(self.messages) if one["role"] != "tool"), self.messages[0])
        return last if "pending" in last and last.get("attempt", 1) == self.attempt else None

    @property
    def waiting(self) -> StoredMessage | None:
        """That message, where the turn has ended with it. Its `pending` are those that have no answer."""
        calling = self.calling
        if calling is None or self.error is not None:
            return None
        open_calls = self._open_calls([calling])
        pending = {call.id: calling["pending"][call.id] for call in open_calls if call.id in calling["pending"]}
        if len(pending) < len(open_calls) or (self.is_last and not pending):
            return None
        return {**calling, "status": "waiting", "pending": pending}

    @property
    def waited(self) -> dict[str, str]:
        """For what each call waits, or waited, that did not run at once, by its id."""
        return {id: way for message in self.messages for id, way in message.get("pending", {}).items()}

    @property
    def unanswered(self) -> list[ToolCall]:
        """The calls that wait for answers, or that have no result because the turn was interrupted meanwhile."""
        kept = without_failed_attempts(self.messages, 1 + self.attempt, continues=True)
        asking = [message for message in kept if "pending" in message]
        return [call for call in self._open_calls(asking) if any(call.id in one["pending"] for one in asking)]

    def request(self, key: str) -> TurnRequest:
        """What the request asked for that has this key: the question, or that the turn goes on."""
        digest = str(self.continues.get("answers_digest", ""))
        has_key = (message for message in self.messages if message.get("idempotency_key") == key)
        return next(map(TurnRequest.stored, has_key), TurnRequest(continues=True, stored_digest=digest))

    def last_event(self) -> Ended | Failed:
        """The event that ended the last attempt."""
        last = self.messages[-1]
        if self.error is not None:
            return Failed(self.error)
        if self.interrupted:
            return Failed("internal_error", INTERRUPTED_TEXT)
        if last.get("reason") == "interrupted":
            return Failed("internal_error", INTERRUPTED_TEXT, message_id=last["id"])
        if read_status(last) == "incomplete" and last.get("reason") not in _INCOMPLETE:
            return Failed(last.get("reason", "internal_error"), message_id=last["id"])
        text = "".join(message_text(message) for message in self._answers() if message["role"] == "assistant")
        last = self.waiting or last
        return Ended(last, text, last.get("finish_reason"))

    def last_event_of(self, attempt: int) -> Ended | Failed:
        """The event that ended this attempt, as far as the attempt was stored."""
        messages = [message for message in self.messages if message.get("attempt", 1) <= attempt]
        return replace(self, messages=messages, continues={"attempt": attempt}).last_event()

    def events(self) -> list[Event]:
        """The events of the last attempt, made from what is stored."""
        events: list[Event] = [Started()]
        waited = self.waited
        for message in self._answers():
            if message["role"] == "tool":
                given = waited.get(message.get("tool_call_id", "")) == "client"
                events.append(replace(read_result(message), given=given))
            elif message["role"] == "user":
                events.append(Steered(message["id"], message["content"]))
            else:
                events += told_pieces(message)
                events += [replace(call, waits_for=waited.get(call.id)) for call in read_tool_calls(message)]
        return [*events, self.last_event()]

    def _open_calls(self, messages: Sequence[StoredMessage]) -> list[ToolCall]:
        """The calls of these messages that have no result."""
        answered = {message.get("tool_call_id") for message in self.messages if message["role"] == "tool"}
        return [call for one in messages for call in read_tool_calls(one) if call.id not in answered]

    def _answers(self) -> list[StoredMessage]:
        attempt = self.attempt
        return [message for message in self.messages[1:] if message.get("attempt", 1) == attempt]


def find_turn(session: Session, key: str | None) -> StoredTurn | None:
    """The turn that was started, or gone on with, under this idempotency key."""
    if key is None:
        return None
    if session.continues and session.continues.get("idempotency_key") == key:
        return last_turn(session)
    keys = [message.get("idempotency_key") for message in session.messages]
    return turn_at(session, keys.index(key)) if key in keys else None


def last_turn(session: Session) -> StoredTurn | None:
    """The session's last turn, if it has one."""
    turn = turn_at(session, len(session.messages) - 1) if session.messages else None
    return turn if turn and begins_turn(turn.messages[0]) else None


def waiting_message(session: Session) -> StoredMessage | None:
    """The message that the session's last turn has ended with, where its calls wait for answers."""
    turn = last_turn(session)
    return turn.waiting if turn else None


def last_failure(session: Session) -> Failed | None:
    """The error that ended the session's last turn, where one did. A turn that was cut off was ended by that."""
    turn = last_turn(session)
    if turn is None or (turn.interrupted and turn.messages[-1].get("imported")):  # a question that no turn has asked
        return None
    last = turn.last_event()
    return last if isinstance(last, Failed) else None


def with_messages(session: Session, way: Sequence[StoredMessage]) -> Session:
    """The session as if it had these of its messages alone, which follow one another: each question tells of the end
    of the turn that is before it here, and the session of that of the last one."""
    state: QuestionFields = {"previous_error": session.last_error or "", "previous_refused": session.last_refused}
    told: dict[str, Any] = {message["id"]: state for message in session.messages[-1:]}
    for before, message in pairwise(session.messages):
        if begins_turn(message):
            told[before["id"]] = {name: message.get(name) for name in state}
    messages: list[StoredMessage] = []
    last: dict[str, Any] = {}
    for message in way:
        own = {name: value for name, value in message.items() if name not in state}
        own |= {name: value for name, value in last.items() if value and begins_turn(message)}
        messages.append(cast(StoredMessage, own))
        last = told.get(message["id"], {})
    error, refused = last.get("previous_error") or None, bool(last.get("previous_refused"))
    return replace(session, messages=messages, last_error=error, last_refused=refused)


def turn_at(session: Session, index: int) -> StoredTurn:
    """The turn that has the message at this index."""
    while index > 0 and not begins_turn(session.messages[index]):
        index -= 1
    for end in range(index + 1, len(session.messages)):
        message = session.messages[end]
        if begins_turn(message):
            return StoredTurn(session.messages[index:end], message.get("previous_error"), is_last=False)
    return StoredTurn(session.messages[index:], session.last_error, is_last=True, continues=session.continues or {})


def mark_waiting(session: Session) -> Session:
    """The session, in which the message that waits for answers has the status `waiting`, and says for which."""
    waiting = waiting_message(session)
    if waiting is None:
        return session
    return replace(session, messages=[waiting if one["id"] == waiting["id"] else one for one in session.messages])


def question_message(session: Session, request: TurnRequest) -> MessageFields:
    """The user's message for a new question. Raises TurnRefused."""
    content = request.content
    fields: QuestionFields = {
        "previous_error": session.last_error or "",
        "previous_refused": session.last_refused,
        "client_id": request.client_id or "",
        "terms": request.terms or "",
        "response": dict(request.response or {}),
    }
    place: QuestionFields = {}
    if request.replaces is not None:
        replaced = _by_id(session).get(request.replaces)
        if replaced is None or replaced["role"] != "user":
            raise TurnRefused("replaces must be the id of a user's message of this session.")
        content = replaced["content"] if content is None else content
        place = {"replaces": request.replaces}
    elif request.after is not None:
        if request.after not in (BEGINNING, *_by_id(session)):
            raise TurnRefused("after must be the id of a message of this session.")
        place = {"after": request.after}
    history = [*request.history] if place else [*settled_messages(session, request.answers), *request.history]
    if history:
        first, *others = history
        fields["history"] = [{**first, **place}, *others]
    else:
        fields |= place
    return user_message(content or "", request.key, **fields)


def _by_id(session: Session) -> dict[str, StoredMessage]:
    return {message["id"]: message for message in expanded(session.messages)}


def settled_messages(session: Session, answers: Answers | None = None) -> list[StoredMessage]:
    """The results, by these answers, of the calls that the last turn has left waiting. Without answers it goes on by
    those that it was interrupted with, and what has none is denied."""
    turn = last_turn(session)
    if turn is None:
        return []
    given = fitting_answers(turn.waited, answers) or answers_left(turn.continues.get("answers"))
    results = (one for one in settle(turn.unanswered, given) if isinstance(one, ToolResult))
    made = (tool_message(one.id, one.name, one.content, one.error is not None) for one in results)
    return [new_message({**one, **turn.fields}) for one in made]


def session_usage(session: Session) -> dict[str, Any] | None:
    """What the model server told of the use of tokens, summed over all turns, replaced ones too, and over summaries.
    None where it told nothing."""
    total = session.compacted.get("usage") if session.compacted else None
    for message in session.messages:
        if "usage" in message:
            total = sum_usage(total, message["usage"])
    return total


def outgoing_messages(
    messages: Sequence[StoredMessage], attempt: int, *, continues: bool = False
) -> list[StoredMessage]:
    """The messages that go to the model, where this attempt runs now in the last turn.

    They are all but those of failed attempts, those of earlier turns whose question the model server refused or which
    a later answer leaves out, and those that a later question has replaced.
    """
    if attempt == 1 and _FIELDS_THAT_LEAVE_OUT.isdisjoint(chain.from_iterable(messages)):
        return list(messages)  # in one pass, since histories are long
    replaced = replaced_messages(expanded(list(messages)))
    kept = expanded(_without_refused_turns(without_failed_attempts(messages, attempt, continues=continues)))
    return [message for message in kept if message["id"] not in replaced] if replaced else kept


def _without_refused_turns(kept: list[StoredMessage]) -> list[StoredMessage]:
    left_out = {id for message in kept for id in message.get("leaves_out", ()) if isinstance(id, str)}
    found: list[StoredMessage] = []
    turn: list[StoredMessage] = []
    for message in kept:
        if begins_turn(message):
            refused = message.get("previous_refused") or (turn and turn[0]["id"] in left_out)
            found += [one for first in turn[:1] for one in first.get("history", ())] if refused else turn
            turn = []
        turn.append(message)
    return found + turn


def without_failed_attempts(
    messages: Sequence[StoredMessage], attempt: int, *, continues: bool = False
) -> list[StoredMessage]:
    """The messages without those of attempts that another one followed. Where that one continues the one before,
    without the partial answer of the one before.

    `attempt` is the number of the attempt that runs now, in the last turn.
    """
    if attempt == 1 and not any("attempt" in message for message in messages):
        return list(messages)
    kept = []
    for message in reversed(messages):
        if begins_turn(message):
            attempt, continues = 1, False
        elif message["role"] != "user":
            own = message.get("attempt", 1)
            followed = own < attempt
            if followed and not continues:
                continue
            attempt, continues = own, message.get("continues", False)
            if followed and message["role"] == "assistant" and not message.get("tool_calls"):
                continue
        kept.append(message)
    return kept[::-1]
