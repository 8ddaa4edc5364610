"""What a session is, and the JSON object that it stands for."""

import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from session_core.data.compacted import Compacted, read_compacted
from session_core.data.message import MessageFields, StoredMessage, are_messages, message_text, normalize, read_error
from session_core.data.removed import without_removed
from session_core.data.text import unwrap_question
from session_core.data.versions import replaced_messages

SETTINGS = ("title", "model", "system_prompt")  # of a session
CONFIGURABLE = (*SETTINGS, "compacted", "responses")
STATE = ("last_error", "last_refused", "continues")  # of its last turn
TITLE_LENGTH = 200  # characters at most
SESSION_ID = re.compile(r"session-[0-9a-z-]{1,64}")

_SHOWN_TITLE_LENGTH = 80  # characters of a title that is made from the first user message
_OLD_NAMES = ("note", "continuation")  # of `last_error` and `continues`
_KNOWN_FIELDS = {"id", "created_at", "updated_at", "messages", *STATE, *_OLD_NAMES, *CONFIGURABLE}


@dataclass(frozen=True)
class Session:
    """A copy of a session. Changing it changes nothing that is stored.

    `messages` are oldest first. Those that a later question has replaced are among them (see `conversation`).
    `last_error` is the code of the error that ended the last turn, where that left no message, and `last_refused`
    says that the model server refused the question. `continues` tells of the attempt that goes on with the last turn
    (see `LockedSession.set_continues`). `model` and `system_prompt` are the session's own, if it has any. `compacted`
    is the newest summary, in force or not (see `current_compacted`). `responses` is what OpenAI's Conversations keep
    beside the messages: their `metadata`, the `deleted` responses, and what was `removed` of messages (see
    `session_core/data/removed.py`). `extra` are fields that this version does not know.
    """

    id: str
    created_at: str
    updated_at: str
    title: str | None = None
    messages: list[StoredMessage] = field(default_factory=list)
    last_error: str | None = None
    last_refused: bool = False
    continues: dict[str, Any] | None = None
    model: str | None = None
    system_prompt: str | None = None
    responses: dict[str, Any] | None = None
    compacted: Compacted | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def conversation(self) -> list[StoredMessage]:
        """The messages that no later question has replaced, without what was removed of them."""
        messages = expanded(self.messages)
        replaced = replaced_messages(messages)
        kept = [message for message in messages if message["id"] not in replaced] if replaced else messages
        return without_removed(kept, self.responses)

    @property
    def current_compacted(self) -> Compacted | None:
        """The summary that is in force: the last message that it sums up is in the conversation."""
        made = self.compacted
        return made if made and any(message["id"] == made["until"] for message in self.conversation) else None


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


def new_message(fields: MessageFields) -> StoredMessage:
    """A message of these fields, with an id and the time."""
    return {**fields, "id": new_id("msg"), "created_at": timestamp()}


def version_of(session: Session) -> tuple[int, str | None]:
    """What tells whether a turn has been added to a session since."""
    return len(session.messages), session.messages[-1]["id"] if session.messages else None


def summarize(session: Session) -> Summary:
    """What a list shows of this session."""
    title, messages = session.title, session.conversation
    if title is None:
        first = unwrap_question(next((message_text(m) for m in messages if m["role"] == "user"), ""))
        title = " ".join(first[: 10 * TITLE_LENGTH].split())[:_SHOWN_TITLE_LENGTH] or None
    return Summary(session.id, title, session.created_at, session.updated_at, len(messages))


def expanded(messages: list[StoredMessage]) -> list[StoredMessage]:
    """The messages, each with those before it that were stored in its own line (its `history`)."""
    if not any("history" in message for message in messages):
        return messages
    found: list[StoredMessage] = []
    for message in messages:
        found += message.get("history", ())
        found.append(message.copy())
        found[-1].pop("history", None)
    return found


def session_from(session_id: str, value: Any) -> Session:
    """The session that a JSON object stands for, in the names of this version. Raises ValueError where it is none, or
    not the one of this id."""
    if not isinstance(value, dict) or value.get("id") != session_id:
        raise ValueError("it does not hold the session that it is named after")
    messages, created = value.get("messages"), value.get("created_at")
    if not isinstance(messages, list) or not are_messages(messages):
        raise ValueError("its messages are not a list of messages")
    normalize(messages)
    texts = {name: value.get(name) for name in ("last_error", "note", *SETTINGS)}
    if not all(isinstance(text, str | None) for text in texts.values()):
        raise ValueError("its last error or one of its settings is not text")
    last_error, refused = texts.pop("last_error"), value.get("last_refused") is True
    note = texts.pop("note")
    if "note" in value:  # an earlier version wrote it, after this one
        last_error, refused = read_error(note)
    continues, responses = _objects(value.get("continuation", value.get("continues")), value.get("responses"))
    updated = value.get("updated_at", messages[-1]["created_at"] if messages else created)
    if not isinstance(created, str) or not isinstance(updated, str):
        raise ValueError("its times are missing")
    return Session(
        session_id,
        created,
        updated,
        messages=messages,
        last_error=last_error,
        last_refused=refused,
        continues=continues,
        responses=responses,
        compacted=read_compacted(value.get("compacted")),
        extra={name: field for name, field in value.items() if name not in _KNOWN_FIELDS},
        **texts,
    )


def _objects(*values: Any) -> tuple[dict[str, Any] | None, ...]:
    if not all(isinstance(value, dict | None) for value in values):
        raise ValueError("what tells of the attempt that continues its last turn, or of its responses, is no object")
    return values
