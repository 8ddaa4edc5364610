"""What a session is, and the JSON object that it stands for."""

from __future__ import annotations

import operator
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from session_core.data.strict_json import to_json

SETTINGS = ("title", "model", "system_prompt")  # of a session
TITLE_LENGTH = 200  # characters at most
SESSION_ID = re.compile(r"session-[0-9a-z-]{1,64}")

_SHOWN_TITLE_LENGTH = 80  # characters of a title that is made from the first user message
_KNOWN_FIELDS = {"id", "created_at", "updated_at", "messages", "note", "continuation", *SETTINGS}
_required_fields = operator.itemgetter("id", "role", "content", "created_at")  # of every message


@dataclass(frozen=True)
class Session:
    """A copy of a session. Changing it changes nothing that is stored.

    `messages` are JSON objects, oldest first, each with `id`, `role`, `content` and `created_at`. Those that a later
    question has replaced are among them (see `conversation`). `last_error` is the code of the error that ended the
    last turn, where that left no message. `continuation` tells of the attempt that goes on with the last turn (see
    `LockedSession.set_continuation`). `model` and `system_prompt` are the session's own, if it has any. `extra` are
    fields that this version does not know.
    """

    id: str
    created_at: str
    updated_at: str
    title: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    last_error: str | None = None
    continuation: dict[str, Any] | None = None
    model: str | None = None
    system_prompt: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """The messages that no later question has replaced."""
        messages = expanded(self.messages)
        replaced = replaced_messages(messages)
        return [message for message in messages if message["id"] not in replaced] if replaced else messages


@dataclass(frozen=True)
class Summary:
    """What a list shows of a session. `title` is the one that was set, else the beginning of the first user message,
    else None. A session that cannot be understood has None for all but its id."""

    id: str
    title: str | None = None
    created_at: str | None = None
    updated_at: str | None = None
    message_count: int | None = None


def new_id(kind: str) -> str:
    """An id that cannot be guessed: 128 random bits in lower-case hex after `kind` and a hyphen."""
    return f"{kind}-{secrets.token_hex(16)}"


def timestamp(seconds: float | None = None) -> str:
    """A time in seconds since 1970, now if None, in UTC and to the second: `2026-01-31T12:34:56Z`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def summarize(session: Session) -> Summary:
    """What a list shows of this session."""
    title, messages = session.title, session.conversation
    if title is None:
        first = next((m["content"] for m in messages if m["role"] == "user"), "")
        title = " ".join(first[: 10 * TITLE_LENGTH].split())[:_SHOWN_TITLE_LENGTH] or None
    return Summary(session.id, title, session.created_at, session.updated_at, len(messages))


def expanded(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, each with those before it that were stored in its own line (its `history`)."""
    if not any("history" in message for message in messages):
        return messages
    found: list[dict[str, Any]] = []
    for message in messages:
        history = message.get("history")
        found += [one for one in history if is_message(one)] if isinstance(history, list) else []
        found.append({name: value for name, value in message.items() if name != "history"})
    return found


def replaced_messages(messages: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The ids of the messages that later questions have replaced, each with the id of the question that did."""
    found: dict[str, str] = {}
    if not any("replaces" in message for message in messages):
        return found
    current: list[str] = []
    places: dict[str, int] = {}  # of the first message of each id
    for message in messages:
        replaced = message.get("replaces")
        first = places.get(replaced) if isinstance(replaced, str) else None
        if first is not None and message["role"] == "user":
            for id in current[first:]:
                found[id] = message["id"]
                if places.get(id, -1) >= first:
                    del places[id]
            del current[first:]
        places.setdefault(message["id"], len(current))
        current.append(message["id"])
    return found


def session_from(session_id: str, value: Any) -> Session:
    """The session that a JSON object stands for. Raises ValueError where it is none, or not the one of this id."""
    if not isinstance(value, dict) or value.get("id") != session_id:
        raise ValueError("it does not hold the session that it is named after")
    messages, last_error, continuation = value.get("messages"), value.get("note"), value.get("continuation")
    if not isinstance(messages, list) or not are_messages(messages):
        raise ValueError("its messages are not a list of messages")
    settings = {name: value.get(name) for name in SETTINGS}
    if not all(isinstance(text, str | None) for text in (last_error, *settings.values())):
        raise ValueError("its note or one of its settings is not text")
    if not isinstance(continuation, dict | None):
        raise ValueError("its continuation is no object")
    created = value.get("created_at")
    updated = value.get("updated_at", messages[-1]["created_at"] if messages else created)
    if not isinstance(created, str) or not isinstance(updated, str):
        raise ValueError("its times are missing")
    extra = {name: field for name, field in value.items() if name not in _KNOWN_FIELDS}
    return Session(
        session_id,
        created,
        updated,
        messages=messages,
        last_error=last_error,
        continuation=continuation,
        extra=extra,
        **settings,
    )


def is_message(value: Any) -> bool:
    """Whether a JSON value is a message: an object with the fields that every message has."""
    return are_messages([value])


def configured(session: Session, settings: Mapping[str, str | None]) -> Session:
    """The session with these settings. Raises TypeError for other names."""
    if unknown := settings.keys() - set(SETTINGS):
        raise TypeError(f"there is no setting {min(unknown)}")
    to_json(dict(settings))
    return replace(session, **settings)  # type: ignore[arg-type]


def are_messages(values: list[Any]) -> bool:
    try:
        return set(map(type, chain.from_iterable(map(_required_fields, values)))) <= {str}
    except (KeyError, TypeError):  # a field is missing, or the value is no object
        return False
