"""The messages that wait in a session until their turn begins, or until they go into the turn that runs."""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Required, TypedDict

from session_core.data.message import Content, is_message
from session_core.data.store_errors import SessionCorrupt
from session_core.data.strict_json import from_json

log = logging.getLogger(__name__)

MAX_QUEUED = 16  # messages that wait in a session


class QueueFull(Exception):
    """As many messages wait in the session as may."""


class NotQueued(Exception):
    """The message does not wait any more: its turn has begun, or it was taken back."""


class QueuedMessage(TypedDict, total=False):
    """A user's message that waits. `steers` is the id of the question into whose turn it goes, as long as that runs.
    `asked` is what the request has asked for beside the text."""

    id: Required[str]
    content: Required[Content]
    created_at: Required[str]
    idempotency_key: str
    steers: str
    asked: dict[str, Any]


class MessageQueue(ABC):
    """The queue of one session. Every method may be called from any thread, whoever has locked the session.

    What is added is durable when `add` returns, and so is what is removed. `LockedSession.append` takes a message out
    in the write that stores it. Every method raises SessionNotFound, SessionCorrupt and StorageUnavailable.
    """

    @abstractmethod
    def read(self) -> list[QueuedMessage]:
        """The messages that wait, the next one first."""

    @abstractmethod
    def add(self, message: QueuedMessage, *, first: bool = False) -> int:
        """Adds a message behind all others, or before them. Returns its place, from 1: of one that waits already, the
        one that it has. Raises QueueFull."""

    @abstractmethod
    def remove(self, message_id: str) -> bool:
        """Takes a message out. Returns whether it has waited."""


class ListQueue(MessageQueue):
    """A queue in a list of the process, which this lock is held to find and to change."""

    def __init__(self, find: Callable[[], list[QueuedMessage]], lock: threading.Lock) -> None:
        self._find = find
        self._lock = lock

    def read(self) -> list[QueuedMessage]:
        with self._lock:
            return list(self._find())

    def add(self, message: QueuedMessage, *, first: bool = False) -> int:
        with self._lock:
            return insert(self._find(), message, first=first)

    def remove(self, message_id: str) -> bool:
        with self._lock:
            return take_out(self._find(), message_id)


def insert(messages: list[QueuedMessage], message: QueuedMessage, *, first: bool) -> int:
    """Adds a message to a list as `MessageQueue.add` does."""
    ids = [one["id"] for one in messages]
    if message["id"] in ids:
        return 1 + ids.index(message["id"])
    if len(ids) >= MAX_QUEUED:
        raise QueueFull
    messages.insert(0 if first else len(ids), message)
    return 1 if first else len(messages)


def take_out(messages: list[QueuedMessage], message_id: str) -> bool:
    """Removes a message from a list. Returns whether it was there."""
    before = len(messages)
    messages[:] = (one for one in messages if one["id"] != message_id)
    return len(messages) < before


def parse_queue(session_id: str, data: bytes) -> list[QueuedMessage]:
    """The messages that wait, from a JSON list. Logs what is none, and raises SessionCorrupt."""
    try:
        values: list[Any] = from_json(data)
        if all(is_message({**one, "role": "user"}) and isinstance(one.get("asked", {}), dict) for one in values):
            return values
        raise ValueError("one of its messages is none")
    except (ValueError, TypeError, RecursionError) as error:
        log.error("the queue of %s cannot be understood and is left as it is: %s", session_id, error)
        raise SessionCorrupt(session_id) from error
