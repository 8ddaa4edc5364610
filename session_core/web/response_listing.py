"""The items of a conversation, or of what a response was asked with, as they are stored."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flask import request

from session_core.data.message import (
    NOT_EXECUTED,
    Content,
    ContentPart,
    StoredMessage,
    as_parts,
    begins_turn,
    message_text,
    read_status,
)
from session_core.data.removed import REASONING, TEXT, removed_parts
from session_core.data.session import expanded
from session_core.data.versions import replaced_messages
from session_core.model.events import ToolCall
from session_core.model.outgoing_messages import read_tool_calls
from session_core.turns.told import read_result, told_pieces
from session_core.web.response_ids import ResponseId, item_not_found, message_item_id
from session_core.web.response_items import APPROVAL, ResponseItems, client_tools_of
from session_core.web.stored_responses import StoredResponse
from session_core.web.turn_responses import TurnResponses
from storage import Session, SessionNotFound


@dataclass(frozen=True)
class ItemFinder:
    """Finds items of any conversation, for one request."""

    _responses: TurnResponses
    _found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def find(self, id: str) -> Mapping[str, Any]:
        """The item of this id. Raises ApiError."""
        if id not in self._found:
            with contextlib.suppress(SessionNotFound):
                session = self._responses.session(f"session-{[*id.split('_'), ''][1]}")
                self._found.update({placed.item["id"]: placed.item for placed in list_items(session)})
        if id not in self._found:
            raise item_not_found(id)
        return self._found[id]


def placed_item(session: Session, id: str) -> "PlacedItem":
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
        is_question = begins_turn(message)
        if is_question or not self._id.message_id or (attempt != self._id.attempt and "recovery" not in message):
            anchor = message["id"] if is_question or not self._id.message_id else self._id.message_id
            self._id = ResponseId(self._id.session_id, anchor, attempt)
            self._called = {} if is_question else dict(self._called)
            self._output = ResponseItems(
                self._id, earlier=dict(self._called), tools=client_tools_of(message.get("response", {}))
            )
        if message["role"] == "user":
            self._add_question(message)
        elif message["role"] == "assistant":
            self._add_answer(message)
        else:
            self._add_result(message)

    def _add_question(self, message: StoredMessage) -> None:
        session_id = self._id.session_id
        item = message_item(message_item_id("msg", session_id, message["id"]), "user", message["content"], session_id)
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
            self.placed.append(PlacedItem(self._output.output[-1], message["id"], {message["id"]: call.id}))
            self._called[call.id], self._running[call.id] = call, self.placed[-1]

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


def message_item(id: str, role: str, content: Content, session_id: str = "") -> dict[str, Any]:
    """A message of the client as an item. Its pictures and files are those of this session."""
    return {
        "id": id,
        "type": "message",
        "role": role,
        "status": "completed",
        "content": [_render_part(part, session_id) for part in as_parts(content)],
    }


def _render_part(part: ContentPart, session_id: str) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "input_text", "text": part["text"]}
    address = f"{request.url_root}sessions/{session_id}/files/{part['sha256']}"
    if part["type"] == "image":
        return {"type": "input_image", "detail": "auto", "file_id": None, "image_url": address}
    return {"type": "input_file", "filename": part.get("name", ""), "file_url": address}


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
