"""The ids of responses, conversations and items, which carry all that is needed to find what they name."""

import re
from dataclasses import dataclass

from session_core.web.errors import ApiError

_SUFFIX = "[0-9a-z-]{1,64}"
_RESPONSE = re.compile(f"resp_({_SUFFIX})_({_SUFFIX})(?:_([1-9][0-9]{{0,5}}))?")
_CONVERSATION = re.compile(f"conv_({_SUFFIX})")


@dataclass(frozen=True)
class ResponseId:
    """The id of a response: its session, the question of its turn, and the number of its first attempt."""

    session_id: str
    message_id: str
    attempt: int = 1

    def __str__(self) -> str:
        return self._with("resp")

    def item(self, kind: str, index: int) -> str:
        """The id of an item of its output."""
        return f"{self._with(kind)}_{index}"

    def _with(self, kind: str) -> str:
        attempt = f"_{self.attempt}" if self.attempt > 1 else ""
        return f"{kind}_{_suffix(self.session_id)}_{_suffix(self.message_id)}{attempt}"


def parse_response_id(text: str) -> ResponseId:
    """The id in a text. Raises ApiError where it is none."""
    found = _RESPONSE.fullmatch(text)
    if found is None:
        raise response_not_found(text)
    return ResponseId(f"session-{found[1]}", f"msg-{found[2]}", int(found[3] or 1))


def response_not_found(id: object) -> ApiError:
    """The error of an id that no response has."""
    return ApiError("not_found", f"Response with id '{id}' not found.")


def item_not_found(id: str) -> ApiError:
    """The error of an id that no item has."""
    return ApiError("not_found", f"Item with id '{id}' not found.")


def conversation_id(session_id: str) -> str:
    """The id of a session as a conversation."""
    return f"conv_{_suffix(session_id)}"


def session_of(conversation: str) -> str:
    """The session that is a conversation. Raises ApiError where the id has another form."""
    found = _CONVERSATION.fullmatch(conversation)
    if found is None:
        raise ApiError("not_found", f"Conversation with id '{conversation}' not found: it is invalid.")
    return f"session-{found[1]}"


def message_item_id(kind: str, session_id: str, message_id: str) -> str:
    """The id of a message of the session as an item."""
    return f"{kind}_{_suffix(session_id)}_{_suffix(message_id)}"


def _suffix(id: str) -> str:
    return id.partition("-")[2]
