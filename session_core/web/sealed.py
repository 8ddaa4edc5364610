"""What a client keeps for this server and sends back: plain JSON in base64, which nobody needs to read."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from session_core.data.strict_json import from_json, to_json

_MARK = "sealed."  # which tells it from a picture in base64


def seal(value: Mapping[str, Any]) -> str:
    """A JSON object as one word. It is no secret: its content is the client's own conversation."""
    return _MARK + base64.urlsafe_b64encode(to_json(dict(value))).decode()


def unseal(text: Any) -> dict[str, Any]:
    """The object that was sealed, empty for a word of another server."""
    try:
        value = from_json(base64.urlsafe_b64decode(text.removeprefix(_MARK)))
    except (ValueError, TypeError, AttributeError, binascii.Error, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
