"""Responses as they are stored: found by their ids, and told again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from session_core.data.message import StoredMessage, begins_turn
from session_core.model.events import ToolCall
from session_core.model.outgoing_messages import read_tool_calls
from session_core.turns.event_log import Event
from session_core.turns.stored import StoredTurn, turn_at
from session_core.turns.turn import Turn
from session_core.web.response_events import ResponseRenderer
from session_core.web.response_ids import ResponseId, response_not_found
from session_core.web.response_items import ResponseItems, client_tools_of
from session_core.web.response_object import seconds
from storage import Session


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
        question = [self.turn.messages[0]]
        known = (one.get("response") for one in [*self.messages, *begun, *question])
        found: dict[str, Any] = next(filter(None, known), {})
        model = next((one["model"] for one in self.messages if "model" in one), "")
        created_at = (self.messages or self.turn.messages)[0]["created_at"]
        return {"created_at": seconds(created_at), "model": model, "conversation": not found, **found}

    @property
    def last_message(self) -> StoredMessage:
        """The last of its messages, or its question."""
        return (self.messages or self.turn.messages)[-1]

    @property
    def is_last(self) -> bool:
        """Whether its turn is the session's last one, and it is the last of its turn."""
        return self.turn.is_last and self.attempts[-1] == self.turn.attempt

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
        return new_renderer(self.id, record, calls, earlier, after, deltas="response" in self.turn.messages[0])

    def _at(self, attempt: int) -> StoredTurn:
        """The turn as this attempt has left it."""
        own = (one for index, one in enumerate(self.turn.messages) if not index or "added" not in one)
        messages = [one for one in own if one.get("attempt", 1) <= attempt]
        error = self.turn.error if attempt == self.turn.attempt else None
        return dataclasses.replace(self.turn, messages=messages, error=error, continues={"attempt": attempt})


def new_renderer(
    id: ResponseId,
    record: Mapping[str, Any],
    calls: Mapping[str, ToolCall] | None = None,
    earlier: Iterable[list[Event]] = (),
    after: int = -1,
    *,
    deltas: bool = True,
) -> ResponseRenderer:
    """A renderer for a response that was asked with what the record says. `calls` are those of earlier responses.

    Without `deltas`, texts are told whole, as they can be told again.
    """
    items = ResponseItems(
        id,
        earlier=calls,
        tools=client_tools_of(record),
        sealed=record["model"] if record.get("sealed") else "",
        pieces=deltas,
    )
    return ResponseRenderer(id, record, items, earlier, after)


def find_response(session: Session, id: ResponseId) -> StoredResponse:
    """The response of this id. Raises ApiError where the session has none, or it was deleted."""
    ids = [message["id"] if begins_turn(message) else "" for message in session.messages]
    deleted = (session.responses or {}).get("deleted", ())
    if id.message_id in ids and str(id) not in deleted:
        turn = turn_at(session, ids.index(id.message_id))
        found = StoredResponse(id, turn, _attempts_of(turn, id.attempt))
        if found.attempts and (id.attempt > 1 or "added" not in turn.messages[0]):
            return found
    raise response_not_found(id)


def last_response_id(turn: StoredTurn, session_id: str) -> ResponseId:
    """The id of the response that the last attempt at a turn belongs to."""
    recovered = _recovered(turn)
    attempt = turn.attempt
    while attempt in recovered:
        attempt -= 1
    return ResponseId(session_id, turn.messages[0]["id"], attempt)


def _attempts_of(turn: StoredTurn, first: int) -> list[int]:
    """The attempts of the response that begins with this one, empty where none does."""
    numbers = {1, turn.attempt, *(message.get("attempt", 1) for message in turn.messages)}
    recovered = _recovered(turn)
    if first not in numbers - recovered:
        return []
    later = [number for number in sorted(numbers) if number > first]
    end = next((number for number in later if number not in recovered), turn.attempt + 1)
    return [first, *(number for number in later if number < end)]


def _recovered(turn: StoredTurn) -> set[int]:
    """The attempts that the server itself has begun."""
    begun = [turn.continues] if turn.continues.get("recovery") else []
    return {one.get("attempt", 1) for one in [*turn.messages, *begun] if "recovery" in one}
