"""What one model server wants back with a message, and what the history keeps of it.

A stored assistant's message has a field `provider_metadata`, which the API does not show:

    server             the address that the message came from
    reasoning_field    the name under which the reasoning came, such as `reasoning_content`
    reasoning_details  OpenRouter's list, verbatim
    reasoning_opaque   Copilot's text, verbatim
    calls              for each tool call, what it carried beside its known fields (Gemini's `extra_content`)
    first              the id of the first message that fitted into the model's context, where earlier ones did not
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from session_core.data.message import MessageFields
from session_core.data.text import utf8_text
from session_core.model.thinking import REASONING_FIELDS

log = logging.getLogger(__name__)

MAX_METADATA_BYTES = 256 << 10  # of one message

VERBATIM_FIELDS = ("reasoning_details", "reasoning_opaque")  # of a message
_KNOWN_CALL_FIELDS = ("id", "type", "index", "function")
# The `extra_content` of a call that Google's model did not make itself, without which it refuses the call.
FOREIGN_SIGNATURE = {"google": {"thought_signature": "skip_thought_signature_validator"}}


@dataclass(frozen=True)
class ModelId:
    """The server and the model that wrote a message."""

    server: str
    model: str

    @classmethod
    def at(cls, base_url: str, model: str) -> "ModelId":
        """The identity of a model at an address, without the credentials and the query in it."""
        url = urlsplit(base_url)
        return cls(url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment="").geturl(), model)

    def wrote(self, message: MessageFields) -> bool:
        """Whether a stored message is from here."""
        metadata = message.get("provider_metadata", {})
        return (metadata.get("server"), message.get("model")) == (self.server, self.model)

    def may_have_written(self, message: MessageFields) -> bool:
        """Whether a stored message may be from here, where only its model is known, or not even that."""
        known = "provider_metadata" in message
        return self.wrote(message) if known else message.get("model", self.model) == self.model


def extra_call_fields(piece: Mapping[str, Any]) -> dict[str, Any]:
    """What a piece of a tool call carries beside its known fields."""
    return {key: value for key, value in piece.items() if key not in _KNOWN_CALL_FIELDS and value is not None}


def provider_metadata(
    model_id: ModelId,
    reasoning_field: str | None,
    verbatim_fields: Mapping[str, Any],
    calls: Sequence[Mapping[str, Any]],
    first: str | None,
    *,
    keep_server: bool = False,
) -> dict[str, Any]:
    """What to store beside a message, empty where there is nothing.

    `keep_server` says that the server is to be known in any case. Drops, with a warning, what is too large or no JSON
    in UTF-8.
    """
    metadata = _filled({"reasoning_field": reasoning_field, "first": first})
    if verbatim := _filled({**verbatim_fields, "calls": calls if any(calls) else None}):
        try:
            text = utf8_text(json.dumps(verbatim, ensure_ascii=False, allow_nan=False))
        except ValueError:
            text = ""
        if text and len(text.encode()) <= MAX_METADATA_BYTES:
            metadata |= json.loads(text)
        else:
            log.warning("What %s wants back with a message is too large or no JSON, and is dropped", model_id.model)
    return {"server": model_id.server, **metadata} if metadata or keep_server else {}


def _filled(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


def returned_fields(message: MessageFields) -> dict[str, Any]:
    """The fields of a stored message that its own server gets back: reasoning, under its own name, and what is kept
    verbatim."""
    metadata = message["provider_metadata"]
    fields = {}
    if (name := metadata.get("reasoning_field")) in REASONING_FIELDS:
        fields[name] = utf8_text(message.get("reasoning"))
    return fields | {name: metadata[name] for name in VERBATIM_FIELDS if metadata.get(name)}


def returned_calls(message: MessageFields, count: int) -> list[dict[str, Any]]:
    """For each of the `count` tool calls of a stored message, what its own server gets back with it."""
    calls = message["provider_metadata"].get("calls")
    if not isinstance(calls, list) or len(calls) != count:
        return [{}] * count
    return [extra_call_fields(call) if isinstance(call, Mapping) else {} for call in calls]
