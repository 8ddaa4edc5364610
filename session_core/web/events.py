"""The native dialect's events: a turn as Server-Sent Events, and a message as callers see it."""

import re
from collections.abc import Mapping
from typing import Any, cast

from session_core.data.message import StoredMessage, tool_failed
from session_core.model.events import Chunk, Reasoning, ToolCall, ToolResult
from session_core.turns.event_log import Ended, Failed, LoggedEvent, Started, Steered
from session_core.turns.turn import Turn
from session_core.turns.waiting import pending_calls
from session_core.web.errors import ApiError, describe_error
from session_core.web.turn_responses import Renderer, encode_json, sse_data

_PUBLIC_FIELDS = (
    *("id", "role", "content", "reasoning", "tool_calls", "tool_call_id", "name", "status", "reason"),
    *("is_error", "model", "usage", "replaces", "steered", "created_at"),
)
_SUBSTITUTED = "-s"  # ends the id of an event that stands in place of events of a server that is gone


class EventRenderer(Renderer):
    """The events of a turn, each as one frame. With `resumable` a frame has an `id:` line. A client can resume a
    stream that is broken off."""

    comment = b": keep-alive\n\n"

    def __init__(self, turn: Turn, *, resumable: bool = False) -> None:
        self._turn_id = turn.id
        self._resumable = resumable

    def render(self, entry: LoggedEvent) -> bytes:
        """The frame of the next event."""
        event_id = f"evt-{self._turn_id}-{entry.number}{_SUBSTITUTED if entry.substituted else ''}"
        if isinstance(entry.event, Chunk):  # most events are chunks; encoding a dict of one takes nine times as long
            data = f'{{"content":{encode_json(entry.event.content)},"sequence":{entry.sequence}}}'
            text = f'{{"type":"stream_chunk","id":"{event_id}","created_at":"{entry.created_at}","data":{data}}}'
        else:
            kind, data_field = render_event(entry.event, entry.sequence)
            text = encode_json({"type": kind, "id": event_id, "created_at": entry.created_at, **data_field})
        frame = sse_data(text)
        return f"id: {event_id}\n".encode() + frame if self._resumable else frame


def find_resume_index(turn: Turn | None, event_id: str) -> int:
    """How many of the turn's events the client has seen, by the id of the last one. 0 for an empty id.

    Raises ApiError `event_gone` where the turn has no such event.
    """
    if not event_id:
        return 0
    found = re.fullmatch(rf"evt-{turn.id}-([1-9][0-9]{{0,9}})({_SUBSTITUTED})?", event_id) if turn else None
    index = turn.find_index(int(found[1]), substituted=bool(found[2])) if turn and found else None
    if index is None:
        raise ApiError("event_gone")
    return index


def render_event(
    event: Started | Reasoning | ToolCall | ToolResult | Steered | Ended | Failed, sequence: int
) -> tuple[str, dict[str, Any]]:
    """The `type` of an event, and an object that holds its `data`, if it has any."""
    match event:
        case Started():
            return "stream_start", {}
        case Reasoning():
            return "stream_reasoning", {"data": {"content": event.content, "sequence": sequence}}
        case ToolCall():
            return "stream_tool_call", {"data": {"id": event.id, "name": event.name, "arguments": event.arguments}}
        case ToolResult():
            outcome = {"result": event.result} if event.error is None else {"error": event.error}
            files = {"files": event.files} if event.files else {}
            return "stream_tool_result", {"data": {"id": event.id, "name": event.name, **outcome, **files}}
        case Steered():
            return "stream_message", {"data": {"message_id": event.message_id, "content": event.content}}
        case Ended():
            return "stream_end", {"data": _render_end(event)}
        case Failed():
            return "error", {"data": _render_failure(event)}


def _render_end(event: Ended) -> dict[str, Any]:
    fields: Mapping[str, object] = event.message
    data = {"complete_text": event.complete_text, "message_id": fields["id"], "status": event.status}
    data |= {name: fields[name] for name in ("reason",) if name in fields}
    data |= {"pending": pending_calls(event.message)} if event.status == "waiting" else {}
    data["finish_reason"] = event.finish_reason
    return data | {name: fields[name] for name in ("usage",) if name in fields}


def _render_failure(event: Failed) -> dict[str, Any]:
    code, status, text = describe_error(event.code)
    data = {"error": event.text or text, "code": code, "status": status}
    return data if event.message_id is None else {**data, "message_id": event.message_id}


def render_message(message: StoredMessage, *, show_reasoning: bool) -> StoredMessage:
    """A stored message as callers see it, without what the server keeps beside it."""
    fields: Mapping[str, object] = message
    shown: dict[str, Any] = {name: fields[name] for name in _PUBLIC_FIELDS if name in fields}
    if message.get("status") == "waiting":
        shown["pending"] = pending_calls(message)
    if message["role"] == "tool" and tool_failed(message):
        shown["is_error"] = True
    if not show_reasoning:
        shown.pop("reasoning", None)
    return cast(StoredMessage, shown)
