"""What callers have taken out of a conversation item by item, and what is stored all the same."""

from collections.abc import Mapping, Sequence
from typing import Any

from session_core.data.message import StoredMessage

TEXT = "text"  # the parts of a message that can be removed, beside its calls, each of which goes by its id
REASONING = "reasoning"


def removed_parts(responses: Mapping[str, Any] | None, message_id: str) -> list[str]:
    """What was removed of a message, see `Session.responses`."""
    removed = (responses or {}).get("removed")
    parts = removed.get(message_id) if isinstance(removed, dict) else None
    return [part for part in parts if isinstance(part, str)] if isinstance(parts, list) else []


def removed_of(responses: Mapping[str, Any] | None, messages: Sequence[StoredMessage]) -> dict[str, Any] | None:
    """`Session.responses` of a session of these messages alone: what was removed of them. None where nothing was."""
    found = {one["id"]: parts for one in messages if (parts := removed_parts(responses, one["id"]))}
    return {"removed": found} if found else None


def without_removed(messages: Sequence[StoredMessage], responses: Mapping[str, Any] | None) -> list[StoredMessage]:
    """The messages, without what was removed of them. One of which nothing is left is left out."""
    if not (responses or {}).get("removed"):
        return list(messages)
    left = (_without(message, removed_parts(responses, message["id"])) for message in messages)
    return [message for message in left if message is not None]


def _without(message: StoredMessage, parts: Sequence[str]) -> StoredMessage | None:
    if not parts:
        return message
    left = message.copy()
    left["content"] = "" if TEXT in parts else message["content"]
    left["reasoning"] = "" if REASONING in parts else message.get("reasoning", "")
    left["tool_calls"] = [call for call in message.get("tool_calls", ()) if call.get("id") not in parts]
    return left if message["role"] == "assistant" and (left["content"] or left["tool_calls"]) else None
