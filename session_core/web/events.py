"""A turn's events as Server-Sent Events."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from session_core.data.message import StoredMessage, tool_failed
from session_core.model.events import Chunk, Reasoning, ToolCall, ToolResult
from session_core.turns.event_log import Ended, Failed, LoggedEvent, Started
from session_core.turns.turn import Turn
from session_core.web.errors import ApiError, describe_error
from storage import StorageUnavailable

_BLOCK_BYTES = 1 << 16  # of events in one write, which is also what a client that stops reading holds up

_encode = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":")
).encode  # to_json gives bytes, and takes twice as long


def frames(
    turn: Turn, after: int, keep_alive: float, encode: Callable[[LoggedEvent], bytes], broken_off: bytes = b""
) -> Iterator[bytes]:
    """The turn's events behind the first `after` ones, each as `encode` gives it, as they come, until the last.

    A comment comes after `keep_alive` seconds without an event, `broken_off` where the turn can be read no more.
    """
    while True:
        try:
            entries = turn.read(after, keep_alive)
        except StorageUnavailable:  # the turn runs elsewhere; the stream breaks off, and a client can resume it
            yield broken_off
            return
        if not entries:
            yield b": keep-alive\n\n"
        block = b""
        for entry in entries:
            block += encode(entry)
            if len(block) >= _BLOCK_BYTES or entry is entries[-1]:
                yield block
                block = b""
        after += len(entries)
        if entries and isinstance(entries[-1].event, Ended | Failed):
            return


def resume_index(turn: Turn | None, event_id: str) -> int:
    """How many of the turn's events the client has seen, by the id of the last one. 0 for an empty id.

    Raises ApiError `event_gone` where the turn has no such event.
    """
    if not event_id:
        return 0
    found = re.fullmatch(rf"evt-{turn.id}-([1-9][0-9]{{0,9}})", event_id) if turn else None
    index = turn.find_index(int(found[1])) if turn and found else None
    if index is None:
        raise ApiError("event_gone")
    return index


_PUBLIC_FIELDS = (
    *("id", "role", "content", "reasoning", "tool_calls", "tool_call_id", "name", "status", "reason"),
    *("is_error", "model", "usage", "replaces", "created_at"),
)


def public_message(message: StoredMessage, *, show_reasoning: bool) -> StoredMessage:
    """A stored message as callers see it, without what the server keeps beside it."""
    fields: Mapping[str, object] = message
    shown = cast(StoredMessage, {name: fields[name] for name in _PUBLIC_FIELDS if name in fields})
    if message["role"] == "tool" and tool_failed(message):
        shown["is_error"] = True
    if not show_reasoning:
        shown.pop("reasoning", None)
    return shown


def event_frame(turn_id: str, entry: LoggedEvent, *, resumable: bool) -> bytes:
    """An event as one frame. With `resumable` it has an `id:` line."""
    event_id = f"evt-{turn_id}-{entry.number}"
    if isinstance(entry.event, Chunk):  # most events are chunks; encoding a dict of one takes nine times as long
        data = f'{{"content":{_encode(entry.event.content)},"sequence":{entry.sequence}}}'
        text = f'{{"type":"stream_chunk","id":"{event_id}","created_at":"{entry.created_at}","data":{data}}}'
    else:
        kind, data_field = event_json(entry.event, entry.sequence)
        text = _encode({"type": kind, "id": event_id, "created_at": entry.created_at, **data_field})
    return (f"id: {event_id}\ndata: {text}\n\n" if resumable else f"data: {text}\n\n").encode()


def event_json(
    event: Started | Reasoning | ToolCall | ToolResult | Ended | Failed, sequence: int
) -> tuple[str, dict[str, Any]]:
    """The `type` of an event, and an object that holds its `data`, if it has any."""
    data: dict[str, Any]
    match event:
        case Started():
            return "stream_start", {}
        case Reasoning():
            kind, data = "stream_reasoning", {"content": event.content, "sequence": sequence}
        case ToolCall():
            kind, data = "stream_tool_call", {"id": event.id, "name": event.name, "arguments": event.arguments}
        case ToolResult():
            outcome = {"result": event.result} if event.error is None else {"error": event.error}
            kind, data = "stream_tool_result", {"id": event.id, "name": event.name, **outcome}
        case Ended():
            message = event.message
            data = {"complete_text": event.complete_text, "message_id": message["id"], "status": event.status}
            data |= {"reason": message["reason"]} if "reason" in message else {}
            data["finish_reason"] = event.finish_reason
            if "usage" in message:
                data["usage"] = message["usage"]
            kind = "stream_end"
        case Failed():
            code, status, text = describe_error(event.code)
            kind, data = "error", {"error": event.text or text, "code": code, "status": status}
            data |= {} if event.message_id is None else {"message_id": event.message_id}
    return kind, {"data": data}
