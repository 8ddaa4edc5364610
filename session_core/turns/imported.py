"""Conversations that come in: from a caller, or as a copy of another session."""

import contextlib
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from session_core.data.compacted import Compacted, read_compacted
from session_core.data.message import (
    AnswerFields,
    Content,
    MessageFields,
    StoredMessage,
    answer_fields,
    assistant_message,
    content_text,
    file_parts,
    is_content,
    tool_call,
    tool_message,
    user_message,
)
from session_core.data.removed import removed_of
from session_core.data.session import expanded
from session_core.data.text import as_object, utf8_text
from session_core.data.versions import find_parents, find_path
from session_core.model.reply import sum_usage
from session_core.model.summarizing import MAX_SUMMARY_CHARACTERS
from session_core.turns.stored import with_messages
from storage import Session, new_id, timestamp

_MESSAGE_ID = re.compile(r"msg-[0-9a-z-]{1,64}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_REASON = re.compile(r"[a-z_]{1,40}")
_STATUSES = ("incomplete", "cancelled")


class ImportRefused(Exception):
    """A conversation that cannot be taken in. The text names the message by its index, for people."""


def copied(session: Session, until: str | None) -> tuple[list[StoredMessage], dict[str, Any]]:
    """The conversation of a session up to and with this message, of any version, or the one that counts now, for a
    session of its own; and the last error, where it ends there. Raises ImportRefused."""
    messages = expanded(session.messages)
    ids = [message["id"] for message in messages]
    if until is not None and until not in ids:
        raise ImportRefused("until must be the id of a message of that session.")
    last = len(ids) - 1 if until is None else ids.index(until)
    found = with_messages(session, [messages[index] for index in find_path(find_parents(messages), last)])
    for message in found.messages:  # these tell of the other session's turns
        for name in ("idempotency_key", "replaces", "after", "client_id", "terms"):
            message.pop(name, None)  # type: ignore[misc]
    state: dict[str, Any] = {
        "last_error": found.last_error,
        "last_refused": found.last_refused,
        "continues": None,
        "compacted": found.current_compacted,
        "responses": removed_of(session.responses, found.messages),
    }
    if last == len(ids) - 1 and "answers" in (session.continues or {}):  # by which no call runs in the copy too
        state["continues"] = {name: (session.continues or {}).get(name) for name in ("attempt", "answers")}
    return _marked(found.messages), state


def imported(messages: Any) -> tuple[list[StoredMessage], str | None]:
    """The messages that a caller sends, as they are stored, and the text of a system message at their beginning.

    Takes what `GET /sessions/{id}` gives and what the Chat Completions API takes: user, assistant and tool messages
    with text, or with parts of which those for pictures and files are whole. Keeps ids and times that this server may
    have made, and gives new ones to all others. Whatever else it does not know is left out. Raises ImportRefused.
    """
    if not isinstance(messages, list):
        raise ImportRefused("messages must be a list of messages.")
    found: list[StoredMessage] = []
    system_prompt = None
    ids: set[str] = set()
    calls: set[str] = set()
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ImportRefused(f"messages[{index}] must be an object.")
        role, content = message.get("role"), _content(message.get("content"), index, may_miss="tool_calls" in message)
        text = content_text(content)
        if role in ("system", "developer") and index == 0:
            system_prompt = text
            continue
        if role not in ("user", "assistant", "tool"):
            where = (
                "only the first message may have it" if role in ("system", "developer") else "use user or assistant"
            )
            raise ImportRefused(f"messages[{index}] has the role {role!r}: {where}.")
        if role == "user" and not (text.strip() or file_parts(content)):
            raise ImportRefused(f"messages[{index}] is a blank question.")
        id = _id(message.get("id"), index, ids)
        if role == "user":
            stored = user_message(content)
        elif role == "assistant":
            stored = _answer(text, message, index)
            calls |= {call["id"] for call in stored.get("tool_calls", ())}
        else:
            stored = _result(content, message, index, calls)
        found.append({**stored, "id": id, "created_at": _time(message.get("created_at"))})
    return _marked(found), system_prompt


def imported_summary(value: Any, given: Sequence[Any], messages: Sequence[StoredMessage]) -> Compacted | None:
    """The summary that a caller sends with the `given` messages, for what is stored of them. Raises ImportRefused."""
    ids = [message.get("id") for message in given[len(given) - len(messages) :]]  # without those of a system message
    made = read_compacted(value)
    if made is None or made["until"] not in ids or not 0 < len(made["content"].strip()) <= MAX_SUMMARY_CHARACTERS:
        raise ImportRefused("compacted must have the id of one of the messages as until, a content, and created_at.")
    return {
        "until": messages[ids.index(made["until"])]["id"],
        "content": made["content"],
        "created_at": _time(made["created_at"]),
    }


def _content(content: Any, index: int, *, may_miss: bool) -> Content:
    if isinstance(content, str) or (content is None and may_miss):
        return content or ""
    if is_content(content) and file_parts(content):
        return content
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


def _marked(messages: list[StoredMessage]) -> list[StoredMessage]:
    """The messages, whose end nobody can take for a turn that a crash has cut off (see `recovery`)."""
    if messages:
        messages[-1]["imported"] = True
    return messages


def _time(given: Any) -> str:
    """A time as this server writes it: the one that is given, or now."""
    with contextlib.suppress(ValueError):  # no day, or no time of a day
        if isinstance(given, str) and _TIME.fullmatch(given) and datetime.fromisoformat(given):
            return given
    return timestamp()


def _answer(text: str, message: dict[str, Any], index: int) -> MessageFields:
    calls = _calls(message["tool_calls"], index) if message.get("tool_calls") else []
    known = answer_fields(message)
    kept: AnswerFields = {
        "reasoning": known.get("reasoning", ""),
        "model": known.get("model", ""),
        "usage": sum_usage(None, known.get("usage")) or {},
    }
    if (status := known.get("status")) in _STATUSES:
        reason = known.get("reason", "")
        kept |= {"status": status, "reason": reason if _REASON.fullmatch(reason) else "interrupted"}
    return assistant_message(text, calls, **kept)


def _result(content: Content, message: dict[str, Any], index: int, calls: set[str]) -> MessageFields:
    call_id, is_error = message.get("tool_call_id"), message.get("is_error")
    if not isinstance(call_id, str) or call_id not in calls:
        raise ImportRefused(f"messages[{index}] has a tool_call_id that no message before it calls.")
    return tool_message(
        call_id, utf8_text(message.get("name")), content, is_error if type(is_error) is bool else None
    )


def _calls(calls: Any, index: int) -> list[dict[str, Any]]:
    found = []
    for call in calls if isinstance(calls, list) else [None]:
        function = as_object(as_object(call).get("function"))
        id, name, arguments = as_object(call).get("id"), function.get("name"), function.get("arguments")
        if not (isinstance(id, str) and isinstance(name, str) and name and isinstance(arguments, str)):
            raise ImportRefused(f"messages[{index}] has a tool call without id, name and arguments as texts.")
        found.append(tool_call(id, name, arguments))
    return found
