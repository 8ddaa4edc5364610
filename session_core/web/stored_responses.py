"""Responses and items as they are stored: found by their ids, and told again."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from session_core.data.message import NOT_EXECUTED, StoredMessage, message_text, read_status
from session_core.data.removed import REASONING, TEXT, removed_parts
from session_core.data.session import expanded
from session_core.data.versions import replaced_messages
from session_core.model.events import ToolCall
from session_core.model.outgoing_messages import read_tool_calls
from session_core.turns.event_log import Event
from session_core.turns.sessions import Sessions
from session_core.turns.stored import StoredTurn, turn_at
from session_core.turns.told import read_result, told_pieces
from session_core.turns.turn import Turn
from session_core.web.response_events import ResponseRenderer
from session_core.web.response_ids import ResponseId, item_not_found, message_item_id, response_not_found
from session_core.web.response_items import APPROVAL, ResponseItems
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
        return [one for one in self.turn.messages[1:] if one.get("attempt", 1) in self.attempts]

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

    def renderer(self, attempt: int = 0, after: int = -1) -> ResponseRenderer:
        """A renderer for the events of this attempt, of the last one without a number."""
        until = self.attempts.index(attempt or self.attempts[-1])
        earlier = [self._at(number).events() for number in self.attempts[:until]]
        called = [one for one in self.turn.messages if one.get("attempt", 1) < self.id.attempt]
        calls = {call.id: call for message in called for call in read_tool_calls(message)}
        return new_renderer(self.id, self.record, calls, earlier, after, deltas="response" in self.turn.messages[0])

    def _at(self, attempt: int) -> StoredTurn:
        """The turn as this attempt has left it."""
        messages = [one for one in self.turn.messages if one.get("attempt", 1) <= attempt]
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
        custom=custom_tools(record),
        sealed=record["model"] if record.get("sealed") else "",
        pieces=deltas,
    )
    return ResponseRenderer(id, record, items, earlier, after)


def find_response(session: Session, id: ResponseId) -> StoredResponse:
    """The response of this id. Raises ApiError where the session has none, or it was deleted."""
    ids = [message["id"] if message["role"] == "user" else "" for message in session.messages]
    deleted = (session.responses or {}).get("deleted", ())
    if id.message_id in ids and str(id) not in deleted:
        turn = turn_at(session, ids.index(id.message_id))
        found = StoredResponse(id, turn, _attempts_of(turn, id.attempt))
        if found.attempts:
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


def custom_tools(record: Mapping[str, Any]) -> frozenset[str]:
    """The names of the client's tools that take a text, of those that a response was asked with."""
    return frozenset(tool["name"] for tool in record.get("tools", ()) if tool["type"] == "custom")


def _recovered(turn: StoredTurn) -> set[int]:
    """The attempts that the server itself has begun."""
    begun = [turn.continues] if turn.continues.get("recovery") else []
    return {one.get("attempt", 1) for one in [*turn.messages, *begun] if "recovery" in one}


def find_item(sessions: Sessions, id: str) -> Mapping[str, Any]:
    """An item of any conversation. Raises ApiError."""
    return placed_item(sessions.session(f"session-{[*id.split('_'), ''][1]}"), id).item


def placed_item(session: Session, id: str) -> PlacedItem:
    """The item of this id. Raises ApiError."""
    found = next((placed for placed in list_items(session) if placed.item["id"] == id), None)
    if found is None:
        raise item_not_found(id)
    return found


@dataclass(frozen=True)
class PlacedItem:
    """An item of a conversation, and what it is of the stored messages: by their ids, the parts (see
    `session_core/data/removed.py`)."""

    item: dict[str, Any]
    of: str  # the message that has brought it
    parts: dict[str, str] = field(default_factory=dict)

    def is_output_of(self, id: ResponseId) -> bool:
        """Whether a response has made it."""
        return bool(re.fullmatch(rf"(rs|msg|mcp)_{str(id)[5:]}_[0-9]+", self.item["id"]))


def list_items(session: Session) -> list[PlacedItem]:
    """The items of a conversation, oldest first, without those that were replaced or removed."""
    messages = expanded(session.messages)
    replaced = replaced_messages(messages)
    items = _Items(session.id)
    kept = [message for message in messages if message["id"] not in replaced]
    system = _system_texts(kept)
    for message in kept:
        items.add(message, system.get(message["id"], ()))
    gone = {(message["id"], part) for message in messages for part in removed_parts(session.responses, message["id"])}
    return [placed for placed in items.placed if gone.isdisjoint(placed.parts.items())]


def _system_texts(messages: Sequence[StoredMessage]) -> dict[str, Sequence[str]]:
    """By the ids of messages, the texts of system messages that came before them."""
    found = {}
    for index, message in enumerate(messages):
        record = message.get("response", {})
        found[messages[max(0, index + 1 - record.get("input", 1))]["id"]] = record.get("system", ())
    return found


class _Items:
    """The items of a conversation, which grow with each message."""

    def __init__(self, session_id: str) -> None:
        self.placed: list[PlacedItem] = []
        self._id = ResponseId(session_id, "")
        self._output = ResponseItems(self._id)
        self._waited: dict[str, str] = {}  # by id of a call: what it has waited for
        self._called: dict[str, ToolCall] = {}
        self._running: dict[str, PlacedItem] = {}  # by id of the call

    def add(self, message: StoredMessage, system: Sequence[str]) -> None:
        """Adds the items of the next message, and before it those of system messages."""
        for index, text in enumerate(system):
            id = f"{message_item_id('sys', self._id.session_id, message['id'])}_{index}"
            self.placed.append(PlacedItem(message_item(id, "system", text), message["id"]))
        attempt = message.get("attempt", 1)
        is_question = message["role"] == "user"
        if is_question or not self._id.message_id or (attempt != self._id.attempt and "recovery" not in message):
            anchor = message["id"] if is_question or not self._id.message_id else self._id.message_id
            self._id = ResponseId(self._id.session_id, anchor, attempt)
            self._output = ResponseItems(
                self._id, earlier=self._called.copy(), custom=custom_tools(message.get("response", {}))
            )
        if is_question:
            self._add_question(message)
        elif message["role"] == "assistant":
            self._add_answer(message)
        else:
            self._add_result(message)

    def _add_question(self, message: StoredMessage) -> None:
        session_id = self._id.session_id
        item = message_item(message_item_id("msg", session_id, message["id"]), "user", message_text(message))
        self.placed.append(PlacedItem(item, message["id"], {message["id"]: TEXT}))

    def _add_answer(self, message: StoredMessage) -> None:
        pending = message.get("pending", {})
        self._waited |= pending
        first = len(self._output.output)
        for piece in told_pieces(message):
            list(self._output.tell(piece))
        list(self._output.close("completed" if read_status(message) == "completed" else "incomplete"))
        for item in self._output.output[first:]:
            part = REASONING if item["type"] == "reasoning" else TEXT
            self.placed.append(PlacedItem(item, message["id"], {message["id"]: part}))
        for call in read_tool_calls(message):
            list(self._output.tell(dataclasses.replace(call, waits_for=pending.get(call.id))))
            placed = PlacedItem(self._output.output[-1], message["id"], {message["id"]: call.id})
            self.placed.append(placed)
            self._called[call.id], self._running[call.id] = call, placed

    def _add_result(self, message: StoredMessage) -> None:
        call_id, text, count = message.get("tool_call_id", ""), message_text(message), len(self._output.output)
        of, parts = message["id"], {message["id"]: TEXT}
        item = {"id": message_item_id("fco", self._id.session_id, of), "type": "function_call_output"}
        if self._waited.get(call_id) == "client":
            item |= {"call_id": call_id, "output": text, "status": "completed"}
            self.placed.append(PlacedItem(item, of, parts))
            return
        if self._waited.get(call_id) == "approval":
            item |= {"type": "mcp_approval_response", "approval_request_id": APPROVAL + call_id}
            answer = {"approve": not text.startswith(NOT_EXECUTED), "reason": None}
            self.placed.append(PlacedItem(item | answer, of, parts))
        list(self._output.tell(read_result(message)))
        if len(self._output.output) > count:  # it has run by now
            self.placed.append(PlacedItem(self._output.output[-1], of, parts))
        elif call_id in self._running:
            self._running[call_id].parts.update(parts)


def message_item(id: str, role: str, text: str) -> dict[str, Any]:
    """A message of the client as an item."""
    content = [{"type": "input_text", "text": text}]
    return {"id": id, "type": "message", "role": role, "status": "completed", "content": content}


def input_items(session: Session, found: StoredResponse) -> Iterator[dict[str, Any]]:
    """The items that a response was asked with, oldest first."""
    if any("answers_digest" in message for message in found.messages):
        wanted = {message["id"] for message in found.messages if message["role"] == "tool"}
    else:
        ids = [message["id"] for message in expanded(session.messages)]
        before = [one for one in found.turn.messages if one.get("attempt", 1) < found.id.attempt]
        end = ids.index((before or found.turn.messages[:1])[-1]["id"]) + 1
        wanted = set(ids[max(0, end - found.record.get("input", 1)) : end])
    for placed in list_items(session):
        if placed.of in wanted and not placed.is_output_of(found.id):
            yield placed.item


def list_page(items: Sequence[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """A page of a list, behind the item of the id `after`."""
    ids = [item["id"] for item in items]
    start = ids.index(after) + 1 if after in ids else 0
    page = list(items[start : start + limit])
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else "",
        "last_id": page[-1]["id"] if page else "",
        "has_more": start + limit < len(items),
    }
