"""The summary of a session's older messages, which goes to the model in their place."""

from collections.abc import Mapping
from typing import Any, Required, TypedDict, cast

_TEXTS = ("until", "content", "created_at")


class Compacted(TypedDict, total=False):
    """A summary of all messages up to and with the one of the id `until`. `usage` is of it and of those before it, as
    far as no message tells of those tokens: of those that were made on request."""

    until: Required[str]
    content: Required[str]
    created_at: Required[str]
    usage: dict[str, Any]


def read_compacted(value: Any) -> Compacted | None:
    """The summary that a JSON value stands for. None where it stands for none."""
    if not isinstance(value, Mapping) or not all(isinstance(value.get(name), str) for name in _TEXTS):
        return None
    usage = value.get("usage")
    read = {name: value[name] for name in _TEXTS} | ({"usage": usage} if isinstance(usage, dict) else {})
    return cast(Compacted, read)
