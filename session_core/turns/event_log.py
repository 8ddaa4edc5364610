"""The events of one turn, for any number of readers.

A turn appends each event once. Readers follow the log, each at its own pace. The log can be sealed, so that exactly
one caller writes the last event.
"""

from __future__ import annotations

import _thread
import contextlib
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from session_core.data.message import Status, StoredMessage, read_status
from session_core.data.strict_json import from_json, to_json
from session_core.model.events import Chunk, Reasoning, ToolCall, ToolResult
from storage import timestamp

MAX_EVENTS = 200_000  # of one turn
INTERRUPTED = 1_000_000  # number of the event that ends a turn whose process is gone; its real last one is unknown

_ENTRY_BYTES = 250  # about what an entry takes in memory beside its texts


class TurnEnded(Exception):
    """Another caller has begun to end the turn. Its log takes no more events."""


@dataclass(frozen=True, slots=True)
class Started:
    """The first event of a turn: the user's message is stored."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of a turn that the model finished or that was cancelled.

    `message` is stored. `complete_text` is all text of the
    turn.
    """

    message: StoredMessage
    complete_text: str
    finish_reason: str | None

    @property
    def status(self) -> Status:
        """Whether the answer is complete, and why not."""
        return read_status(self.message)


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a turn that anything else ended.

    `text` is a sentence for people, where the code alone says too little. `message_id` is that of the partial answer,
    if one was stored.
    """

    code: str
    text: str | None = None
    retry_after: str | None = None
    message_id: str | None = None


def status_of(last: Ended | Failed) -> str:
    """The status of a turn, or the code of the error that ended it."""
    return last.code if isinstance(last, Failed) else last.status


Event = Started | Reasoning | Chunk | ToolCall | ToolResult | Ended | Failed


class LoggedEvent(NamedTuple):
    """An event in the log of its turn. Entries are numbered from 1. `sequence` numbers the chunks among
    them, and the pieces of reasoning apart from those."""

    number: int
    created_at: str
    sequence: int
    event: Event


class EventLog:
    """The events of one turn, for one writer at a time and any number of readers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[LoggedEvent] = []
        self._waiting: list[_thread.LockType] = []
        self._chunks = 0
        self._thoughts = 0
        self._sealed = False
        self._second = 0
        self._now = ""
        self.publish: Callable[[LoggedEvent], None] | None = None  # is called with each new entry

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, event: Event) -> None:
        """Adds an event and wakes the readers. Raises TurnEnded once the log is sealed."""
        with self._lock:
            if self._sealed:
                raise TurnEnded
            self._add(event)

    @property
    def sealed(self) -> bool:
        """Whether only the last event may still be added."""
        return self._sealed

    def seal(self) -> bool:
        """Refuses all further events but the last one. Returns whether this call sealed the log."""
        with self._lock:
            sealed, self._sealed = self._sealed, True
            return not sealed

    def close(self, event: Ended | Failed) -> None:
        """Adds the last event."""
        with self._lock:
            self._add(event)

    def copy(self, entry: LoggedEvent) -> None:
        """Adds an entry as it stands in the log of another process."""
        with self._lock:
            self._entries.append(entry)
            self._wake()

    def read(self, after: int, seconds: float, most: int = 256) -> list[LoggedEvent]:
        """The next entries behind the first `after` ones, at most `most`, as soon as there are any.

        Returns an empty list if none comes within `seconds`.
        """
        with self._lock:
            if len(self._entries) > after:
                return self._entries[after : after + most]
            signal = _thread.allocate_lock()
            signal.acquire()
            self._waiting.append(signal)
        if not signal.acquire(timeout=seconds):
            with self._lock, contextlib.suppress(ValueError):
                self._waiting.remove(signal)
        return self._entries[after : after + most]

    @property
    def closed(self) -> bool:
        """Whether the last event can be read."""
        return bool(self._entries) and isinstance(self._entries[-1].event, Ended | Failed)

    def find_index(self, number: int) -> int | None:
        """How many entries there are up to this number. None if the log has no such entry yet.

        A process that is gone may have sent an entry to its own clients and not published it. Such a number gives all
        entries but the last. It gives None where the log holds a text in its place, which may repeat what was sent.
        """
        if not self._entries or number > self._entries[-1].number:
            return None
        index = bisect_right(self._entries, number, key=lambda entry: entry.number)
        if self._entries[index - 1].number == number:
            return index
        substituted = any(entry.number == INTERRUPTED for entry in self._entries[-2:])
        return None if substituted else len(self._entries) - 1

    def text(self, after: int = 0) -> str:
        """All text behind the first `after` entries."""
        return "".join(entry.event.content for entry in self._entries[after:] if type(entry.event) is Chunk)

    def size(self) -> int:
        """About how many bytes of memory the entries take."""
        return sum(_ENTRY_BYTES + _size(entry.event) for entry in self._entries)

    def _add(self, event: Event) -> None:
        second = int(time.time())
        if second != self._second:
            self._second, self._now = second, timestamp()
        sequence = 0
        if type(event) is Chunk:
            self._chunks = sequence = self._chunks + 1
        elif type(event) is Reasoning:
            self._thoughts = sequence = self._thoughts + 1
        self._entries.append(LoggedEvent(len(self._entries) + 1, self._now, sequence, event))
        if self.publish is not None:
            self.publish(self._entries[-1])
        if self._waiting:
            self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for signal in waiting:
            signal.release()


def _size(event: Event) -> int:
    """How many bytes the texts of an event take."""
    if isinstance(event, Chunk | Reasoning):
        return sys.getsizeof(event.content)
    if isinstance(event, Ended):
        return sys.getsizeof(event.complete_text) + sys.getsizeof(event.message["content"])
    texts = (getattr(event, name) for name in event.__slots__)
    return sum(sys.getsizeof(text) for text in texts if isinstance(text, str))


_EVENTS = {kind.__name__: kind for kind in (Started, Reasoning, Chunk, ToolCall, ToolResult, Ended, Failed)}


def encode_event(entry: LoggedEvent) -> bytes:
    """The entry as one line, as servers publish it to one another."""
    fields = [getattr(entry.event, name) for name in entry.event.__slots__]
    return to_json([entry.number, entry.created_at, entry.sequence, type(entry.event).__name__, *fields])


def decode_event(line: bytes) -> LoggedEvent:
    """The entry that `encode_entry` has put on a line. Raises ValueError, TypeError or KeyError for anything else."""
    number, created_at, sequence, kind, *fields = from_json(line)
    if not isinstance(created_at, str):
        raise TypeError("an entry without its time")
    return LoggedEvent(number, created_at, sequence, _EVENTS[kind](*fields))
