"""Conversations that come in: from a caller, or as a copy of another session."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from session_core.model.reply import sum_usage
from storage import Session, new_id, timestamp

_MESSAGE_ID = re.compile(r"msg-[0-9a-z-]{1,64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_STATUSES = ("incomplete", "cancelled")


class ImportRefused(Exception):
    """A conversation that cannot be taken in. The text names the message by its index, for people."""


def copied(session: Session, until: str | None) -> tuple[list[dict[str, Any]], str | None]:
    """The conversation of a session up to and with this message, or all of it, for a session of its own; and its last
    error. Raises ImportRefused."""
    messages, last_error = session.conversation, session.last_error
    if until is not None:
        ids = [message["id"] for message in messages]
        if until not in ids:
            raise ImportRefused("until must be the id of a message in the conversation of that session.")
        last_error = last_error if until == ids[-1] else None
        messages = messages[: ids.index(until) + 1]
    private = ("idempotency_key", "replaces")  # they tell of the other session's turns
    own = [{key: field for key, field in one.items() if key not in private} for one in messages]
    return _marked(own), last_error


def imported(messages: Any) -> tuple[list[dict[str, Any]], str | None]:
    """The messages that a caller sends, as they are stored, and the text of a system message at their beginning.

    Takes what `GET /sessions/{id}` gives and what the Chat Completions API takes: user, assistant and tool messages
    with text. Keeps ids and times that this server may have made, and gives new ones to all others. Whatever else it
    does not know is left out. Raises ImportRefused.
    """
    if not isinstance(messages, list):
        raise ImportRefused("messages must be a list of messages.")
    found: list[dict[str, Any]] = []
    system_prompt = None
    ids: set[str] = set()
    calls: set[str] = set()
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ImportRefused(f"messages[{index}] must be an object.")
        role, text = message.get("role"), _text(message.get("content"), index, may_miss="tool_calls" in message)
        if role in ("system", "developer") and index == 0:
            system_prompt = text
            continue
        if role not in ("user", "assistant", "tool"):
            where = (
                "only the first message may have it" if role in ("system", "developer") else "use user or assistant"
            )
            raise ImportRefused(f"messages[{index}] has the role {role!r}: {where}.")
        if role == "user" and not text.strip():
            raise ImportRefused(f"messages[{index}] is a blank question.")
        stored: dict[str, Any] = {"id": _id(message.get("id"), index, ids), "role": role, "content": text}
        if role == "assistant":
            stored |= _answer(message, index)
            calls |= {call["id"] for call in stored.get("tool_calls", ())}
        elif role == "tool":
            if message.get("tool_call_id") not in calls:
                raise ImportRefused(f"messages[{index}] has a tool_call_id that no message before it calls.")
            stored |= {"tool_call_id": message["tool_call_id"], "name": _string(message.get("name"))}
        created = message.get("created_at")
        known = isinstance(created, str) and _TIME.fullmatch(created)
        found.append({**stored, "created_at": created if known else timestamp()})
    return _marked(found), system_prompt


def _marked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, whose end nobody can take for a turn that a crash has cut off (see `recovery`)."""
    return [*messages[:-1], *({**last, "imported": True} for last in messages[-1:])]


def _text(content: Any, index: int, *, may_miss: bool) -> str:
    if isinstance(content, str) or (content is None and may_miss):
        return content or ""
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise ImportRefused(f"messages[{index}] has a content that is no text.")
    return "".join(map(str, texts))


def _id(given: Any, index: int, ids: set[str]) -> str:
    id = given if isinstance(given, str) and _MESSAGE_ID.fullmatch(given) else new_id("msg")
    if id in ids:
        raise ImportRefused(f"messages[{index}] has the id of an earlier message: {id}.")
    ids.add(id)
    return id


def _answer(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    """What an assistant's message has beside its text."""
    found: dict[str, Any] = {name: text for name in ("reasoning", "model") if (text := _string(message.get(name)))}
    if message.get("tool_calls"):
        found["tool_calls"] = _calls(message["tool_calls"], index)
    if message.get("status") in _STATUSES:
        reason = _string(message.get("reason"))
        known = re.fullmatch(r"[a-z_]{1,40}", reason)
        found |= {"status": message["status"], "reason": reason if known else "interrupted"}
    if usage := sum_usage(None, message.get("usage")):
        found["usage"] = usage
    return found


def _calls(calls: Any, index: int) -> list[dict[str, Any]]:
    found = []
    for call in calls if isinstance(calls, list) else [None]:
        function = call.get("function") if isinstance(call, dict) else None
        function = function if isinstance(function, dict) else {}
        id, name, arguments = (
            call.get("id") if isinstance(call, dict) else None,
            *map(function.get, ("name", "arguments")),
        )
        if not (isinstance(id, str) and isinstance(name, str) and name and isinstance(arguments, str)):
            raise ImportRefused(f"messages[{index}] has a tool call without id, name and arguments as texts.")
        found.append({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
    return found


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""
