"""Responses as they are stored: found by their ids, and told again."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from session_core.data.message import StoredMessage, begins_turn
from session_core.model.outgoing_messages import read_tool_calls
from session_core.turns.stored import StoredTurn, turn_at
from session_core.turns.turn import Turn
from session_core.web.response_ids import ResponseId, response_not_found
from session_core.web.response_object import ResponseRenderer, seconds
from storage import Session

RESULTS_KEY = "results "  # begins the key of an attempt that is for results alone; that of a caller has no space


@dataclass(frozen=True)
class StoredResponse:
    """A response as far as it is stored: some attempts at a turn, of which a crash has cut off all but the last."""

    id: ResponseId
    turn: StoredTurn
    attempts: list[int]

    @property
    def messages(self) -> list[StoredMessage]:
        """Its messages, without the question."""
        own = (one for one in self.turn.messages[1:] if "added" not in one)
        return [one for one in own if one.get("attempt", 1) in self.attempts]

    @property
    def record(self) -> Mapping[str, Any]:
        """What it was asked with, see `session_core/web/response_object.py`; for a turn of another dialect the
        defaults."""
        continues = self.turn.continues
        begun = [continues] if continues.get("attempt") in self.attempts else []
        known = (one.get("response") for one in [*self.messages, *begun, self.turn.messages[0]])
        found: dict[str, Any] = next(filter(None, known), {})
        model = next((one["model"] for one in self.messages if "model" in one), "")
        return {
            "created_at": seconds((self.messages or self.turn.messages)[0]["created_at"]),
            "model": model,
            "conversation": not found,
            **found,
        }

    @property
    def last_message(self) -> StoredMessage:
        """The last of its messages, or its question."""
        return (self.messages or self.turn.messages)[-1]

    @property
    def is_last(self) -> bool:
        """Whether its turn is the session's last one, and it is the last of its turn but for results that a client
        has given together with something else, which was not taken."""
        later = [
            one for one in (*self.turn.messages, self.turn.continues) if one.get("attempt", 1) > self.attempts[-1]
        ]
        return self.turn.is_last and all(str(one.get("idempotency_key")).startswith(RESULTS_KEY) for one in later)

    def is_told_by(self, turn: Turn) -> bool:
        """Whether the events of this turn, which runs or has ended, are those of the response."""
        return (turn.attempt or self.turn.attempt) in self.attempts

    def replay(self) -> Turn:
        """A turn with the events of the last attempt."""
        return Turn.replay(self.id.session_id, self._at(self.attempts[-1]))

    def renderer(self, attempt: int = 0, after: int = -1, *, sealed: bool = False) -> ResponseRenderer:
        """A renderer for the events of this attempt, of the last one without a number. `sealed` asks for reasoning as
        the client may send it back, also where the response was asked without."""
        until = self.attempts.index(attempt or self.attempts[-1])
        earlier = [self._at(number).events() for number in self.attempts[:until]]
        called = [one for one in self.turn.messages if one.get("attempt", 1) < self.id.attempt]
        calls = {call.id: call for message in called for call in read_tool_calls(message)}
        record = {**self.record, "sealed": True} if sealed else self.record
        return ResponseRenderer(self.id, record, calls, earlier, after, deltas="response" in self.turn.messages[0])

    def _at(self, attempt: int) -> StoredTurn:
        """The turn as this attempt has left it."""
        own = (one for index, one in enumerate(self.turn.messages) if not index or "added" not in one)
        messages = [one for one in own if one.get("attempt", 1) <= attempt]
        return dataclasses.replace(
            self.turn,
            messages=messages,
            error=self.turn.error if attempt == self.turn.attempt else None,
            continues={"attempt": attempt},
        )


def find_response(session: Session, id: ResponseId) -> StoredResponse:
    """The response of this id. Raises ApiError where the session has none, or it was deleted."""
    ids = [message["id"] if begins_turn(message) else "" for message in session.messages]
    deleted = (session.responses or {}).get("deleted", ())
    if id.message_id in ids and str(id) not in deleted:
        turn = turn_at(session, ids.index(id.message_id))
        attempts = next((found for found in _responses_of(turn) if found[0] == id.attempt), None)
        if attempts and (id.attempt > 1 or "added" not in turn.messages[0]):
            return StoredResponse(id, turn, attempts)
    raise response_not_found(id)


def response_of_key(session: Session, message_id: str, key: str | None) -> StoredResponse:
    """The response that was asked for under this key, of the turn with this first message: the last one before
    answers that came under another key. Raises ApiError as `find_response` does."""
    turn = turn_at(session, [message["id"] for message in session.messages].index(message_id))
    begun: list[Mapping[str, Any]] = [*turn.messages, turn.continues]
    own = {one.get("attempt", 1) for one in begun if one.get("idempotency_key") == key}
    answered = {one.get("attempt", 1) for one in begun if one.get("answers_digest")} - own
    next_one = min((number for number in answered if number > min(own, default=0)), default=1 + turn.attempt)
    numbers = [found[0] for found in _responses_of(turn) if found[0] < next_one]
    return find_response(session, ResponseId(session.id, message_id, numbers[-1]))


def _responses_of(turn: StoredTurn) -> list[list[int]]:
    """The attempts of each response of a turn: one that the server itself has begun belongs to that of the one
    before."""
    begun = [turn.continues] if turn.continues.get("recovery") else []
    recovered = {one.get("attempt", 1) for one in [*turn.messages, *begun] if "recovery" in one}
    found: list[list[int]] = []
    for number in sorted({1, turn.attempt, *(message.get("attempt", 1) for message in turn.messages)}):
        if found and number in recovered:
            found[-1].append(number)
        else:
            found.append([number])
    return found
