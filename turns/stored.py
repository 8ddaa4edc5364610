"""A turn as it is stored: what a retry gets, and what a failed attempt left.

A turn may be tried again under its key. Messages of later attempts carry their number as `attempt`, so the messages
of a failed attempt stay stored and are left out of what the model gets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from model.events import Chunk, Reasoning, ToolResult
from model.history import tool_calls_of
from storage import Session
from turns.log import Ended, Event, Failed, Started

INTERRUPTED_TEXT = "The turn was interrupted."

_REFUSED = " refused"  # follows the stored code of an error where the model server refused the question
_INCOMPLETE = ("length", "content_filter", "no_finish_reason")  # the model ended here, and nothing failed


@dataclass(frozen=True)
class StoredTurn:
    """A turn as it is stored.

    `messages` are the user's message and what followed it, in all attempts. `error` is the code of the error that
    ended the turn, where the turn left no partial answer. `is_last` says whether it is the session's last turn.
    """

    messages: list[dict[str, Any]]
    error: str | None
    is_last: bool

    @property
    def attempt(self) -> int:
        """The number of the last attempt, from 1."""
        return max(map(_attempt, self.messages))

    @property
    def can_be_retried(self) -> bool:
        """Whether the turn failed and is the session's last, so that its key may ask the model again."""
        return self.is_last and isinstance(self.last_event(), Failed)

    def last_event(self) -> Ended | Failed:
        """The event that ended the last attempt."""
        last = self.messages[-1]
        if self.error is not None:
            return Failed(self.error)
        if last["role"] != "assistant" or last.get("tool_calls"):
            return Failed("internal_error", INTERRUPTED_TEXT)
        if last.get("status") == "incomplete" and last.get("reason") not in _INCOMPLETE:
            return Failed(str(last.get("reason")), message_id=last["id"])
        text = "".join(message["content"] for message in self._answers() if message["role"] == "assistant")
        return Ended(last, text, last.get("finish_reason"))

    def last_event_of(self, attempt: int) -> Ended | Failed:
        """The event that ended this attempt, as far as the attempt was stored."""
        messages = [message for message in self.messages if _attempt(message) <= attempt]
        if max(map(_attempt, messages)) < attempt and self.error is None:
            return Failed("internal_error", INTERRUPTED_TEXT)
        return replace(self, messages=messages).last_event()

    def events(self, *, show_reasoning: bool) -> list[Event]:
        """The events of the last attempt, made from what is stored."""
        events: list[Event] = [Started()]
        for message in self._answers():
            if message["role"] == "tool":
                text, call = message["content"], (message.get("tool_call_id", ""), message.get("name", ""))
                error = text.removeprefix("error: ") if text.startswith("error: ") else None
                events.append(ToolResult(*call, result=text if error is None else None, error=error))
                continue
            reasoning = message.get("reasoning")
            if show_reasoning and reasoning and isinstance(reasoning, str):
                events.append(Reasoning(reasoning))
            if message["content"]:
                events.append(Chunk(message["content"]))
            events += tool_calls_of(message)
        return [*events, self.last_event()]

    def _answers(self) -> list[dict[str, Any]]:
        attempt = self.attempt
        return [message for message in self.messages[1:] if _attempt(message) == attempt]


def find_turn(session: Session, key: str | None) -> StoredTurn | None:
    """The turn that was started with this idempotency key."""
    if key is None:
        return None
    keys = [message.get("idempotency_key") for message in session.messages]
    return turn_at(session, keys.index(key)) if key in keys else None


def turn_at(session: Session, index: int) -> StoredTurn:
    """The turn that begins with the message at this index."""
    messages = session.messages[index:]
    for number, message in enumerate(messages):
        if number > 0 and message["role"] == "user":
            return StoredTurn(messages[:number], _code(message.get("previous_error")), is_last=False)
    return StoredTurn(messages, _code(session.last_error), is_last=True)


def stored_error(code: str, *, refused: bool) -> str:
    """The code of the error that ended a turn, as it is stored. `refused` says that the model server refused the
    question."""
    return code + _REFUSED if refused else code


def outgoing_messages(messages: Sequence[dict[str, Any]], attempt: int) -> list[dict[str, Any]]:
    """The messages that go to the model, of which `attempt` is the number of the attempt that runs now.

    They are all but those of attempts that another one followed, and those of earlier turns whose question the model
    server refused.
    """
    kept = without_failed_attempts(messages, attempt)
    if not any(_is_refused(message.get("previous_error")) for message in kept if message["role"] == "user"):
        return kept
    found: list[dict[str, Any]] = []
    turn: list[dict[str, Any]] = []
    for message in kept:
        if message["role"] == "user":
            found += [] if _is_refused(message.get("previous_error")) else turn
            turn = []
        turn.append(message)
    return found + turn


def without_failed_attempts(messages: Sequence[dict[str, Any]], attempt: int) -> list[dict[str, Any]]:
    """The messages without those of attempts that another one followed.

    `attempt` is the number of the attempt that runs now, in the last turn.
    """
    if attempt == 1 and not any("attempt" in message for message in messages):
        return list(messages)
    kept = []
    for message in reversed(messages):
        if message["role"] == "user":
            attempt = 1
        elif _attempt(message) < attempt:
            continue
        else:
            attempt = _attempt(message)
        kept.append(message)
    return kept[::-1]


def _code(stored: Any) -> str | None:
    return stored.removesuffix(_REFUSED) if isinstance(stored, str) else None


def _is_refused(stored: Any) -> bool:
    return isinstance(stored, str) and stored.endswith(_REFUSED)


def _attempt(message: Mapping[str, Any]) -> int:
    attempt = message.get("attempt")
    return attempt if isinstance(attempt, int) else 1
