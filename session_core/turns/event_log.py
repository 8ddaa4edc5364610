"""The events of one turn, for any number of readers.

A turn appends each event once. Readers and the recorder follow the log, each at its own pace. The log can be sealed,
so that exactly one caller writes the last event.
"""

import _thread
import contextlib
import functools
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from session_core.data.message import Content, Status, StoredMessage, message_text, read_status
from session_core.data.strict_json import from_json, to_json
from session_core.model.events import Chunk, Reasoning, ToolCall, ToolResult
from storage import timestamp

MAX_EVENTS = 200_000  # of one turn

_ENTRY_BYTES = 250  # about what an entry takes in memory beside its texts
_time_of = functools.lru_cache(1)(timestamp)  # many events have the same


class TurnEnded(Exception):
    """Another caller has begun to end the turn. Its log takes no more events."""


@dataclass(frozen=True, slots=True)
class Started:
    """The first event of a turn: the user's message is stored."""


@dataclass(frozen=True, slots=True)
class Steered:
    """A message of the user has come into the turn, and is stored."""

    message_id: str
    content: Content


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
    if one was stored. `refused` says that the model server refused the question.
    """

    code: str
    text: str | None = None
    retry_after: str | None = None
    message_id: str | None = None
    refused: bool = False


def status_of(last: Ended | Failed) -> str:
    """The status of a turn, or the code of the error that ended it."""
    return last.code if isinstance(last, Failed) else last.status


Event = Started | Reasoning | Chunk | ToolCall | ToolResult | Steered | Ended | Failed


class LoggedEvent(NamedTuple):
    """An event in the log of its turn. Entries are numbered from 1. `sequence` numbers the chunks among
    them, and the pieces of reasoning apart from those. With `substituted`, it stands in place of events of a process
    that is gone, which may have sent others of this number to its clients."""

    number: int
    created_at: str
    sequence: int
    event: Event
    substituted: bool = False


class EventLog:
    """The events of one turn, for one writer at a time and any number of readers. A recorder gets them as lines."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[LoggedEvent] = []
        self._waiting: list[_thread.LockType] = []
        self._chunks = 0
        self._thoughts = 0
        self._stored_until = 0  # the text behind so many entries is in no stored message yet
        self.sealed = False  # then only the last event may still be added
        self._over = threading.Event()

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, event: Event) -> None:
        """Adds an event and wakes the readers. Raises TurnEnded once the log is sealed."""
        with self._lock:
            if self.sealed:
                raise TurnEnded
            self._add(event)

    def seal(self) -> bool:
        """Refuses all further events but the last one. Returns whether this call sealed the log."""
        with self._lock:
            sealed, self.sealed = self.sealed, True
            return not sealed

    def close(self, event: Ended | Failed) -> None:
        """Adds the last event."""
        with self._lock:
            self._add(event)
        self._over.set()

    def give_up(self) -> None:
        """Says that no more events will come, and no last one."""
        self._over.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until no more events will come, at most so long. Returns whether that is so."""
        return self._over.wait(seconds)

    def copy(self, entry: LoggedEvent) -> None:
        """Adds an entry as it stands in the log of another process."""
        with self._lock:
            self._entries.append(entry)
            self._wake()
        if self.ended:
            self._over.set()

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
    def ended(self) -> bool:
        """Whether the last event can be read."""
        return bool(self._entries) and isinstance(self._entries[-1].event, Ended | Failed)

    @property
    def lost(self) -> bool:
        """Whether there is no last event, and will be none."""
        return self._over.is_set() and not self.ended

    def find_index(self, number: int, *, substituted: bool = False) -> int | None:
        """How many entries there are up to this number, of the turn's own or of the substituted ones. None if the
        log has no such entry yet.

        A process that is gone may have sent an entry to its own clients and not published it. Such a number gives all
        entries but the last. It gives None where the log holds a text in its place, which may repeat what was sent.
        """
        index = bisect_right(self._entries, number, key=lambda entry: entry.number)
        if index and self._entries[index - 1][::4] == (number, substituted):
            return index
        substitutes = sum(entry.substituted for entry in self._entries[-2:])
        return len(self._entries) - 1 if substitutes == 1 and not substituted else None

    def mark_stored(self) -> None:
        """Says that all text so far is in stored messages."""
        self._stored_until = len(self._entries)

    def unstored(self, kind: type[Chunk] | type[Reasoning]) -> str:
        """The text, or the reasoning, that is in no stored message yet."""
        return self._joined(kind, self._stored_until)

    def unstored_lengths(self) -> list[int]:
        """The lengths of the pieces of text that are in no stored message yet, and of reasoning, below zero."""
        events = (entry.event for entry in self._entries[self._stored_until :])
        return [signed_length(event) for event in events if isinstance(event, Chunk | Reasoning)]

    @property
    def text(self) -> str:
        """All text."""
        return self._joined(Chunk, 0)

    def _joined(self, kind: type[Chunk] | type[Reasoning], after: int) -> str:
        events = (entry.event for entry in self._entries[after:])
        return "".join(event.content for event in events if isinstance(event, kind))

    def events(self, after: int) -> tuple[list[bytes], bool]:
        """See `storage.TurnLines`."""
        entries = self.read(after, 0, MAX_EVENTS + 1)
        ended = isinstance(entries[-1].event, Ended | Failed) if entries else self.ended
        return [encode_event(entry) for entry in entries], ended

    def partial_text(self, after: int) -> tuple[list[bytes], int]:
        """See `storage.TurnLines`."""
        entries = self.read(after, 0, MAX_EVENTS + 1)
        return list(journal_lines(entries)), after + len(entries)

    @property
    def size(self) -> int:
        """About how many bytes of memory the entries take."""
        return sum(_ENTRY_BYTES + _size(entry.event) for entry in self._entries)

    def _add(self, event: Event) -> None:
        sequence = 0
        if type(event) is Chunk:
            self._chunks = sequence = self._chunks + 1
        elif type(event) is Reasoning:
            self._thoughts = sequence = self._thoughts + 1
        self._entries.append(LoggedEvent(len(self._entries) + 1, _time_of(int(time.time())), sequence, event))
        if self._waiting:
            self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for signal in waiting:
            signal.release()


def _size(event: Event) -> int:
    """How many bytes the texts of an event take."""
    if isinstance(event, Chunk) and event.logprobs:
        return sys.getsizeof(event.content) + len(str(event.logprobs))
    if isinstance(event, Chunk | Reasoning):
        return sys.getsizeof(event.content)
    if isinstance(event, Ended):
        return sys.getsizeof(event.complete_text) + sys.getsizeof(message_text(event.message))
    texts = (getattr(event, name) for name in event.__slots__)
    return sum(sys.getsizeof(text) for text in texts if isinstance(text, str))


_EVENTS: dict[str, type[Event]] = {
    kind.__name__: kind for kind in (Started, Reasoning, Chunk, ToolCall, ToolResult, Steered, Ended, Failed)
}


def signed_length(piece: Chunk | Reasoning) -> int:
    """The length of a piece of text, or that of a piece of reasoning below zero."""
    return len(piece.content) if isinstance(piece, Chunk) else -len(piece.content)


def encode_event(entry: LoggedEvent, lengths: Sequence[int] = ()) -> bytes:
    """The entry as one line, as servers publish it to one another. With `lengths`, several were joined to it."""
    fields = [getattr(entry.event, name) for name in entry.event.__slots__]
    fields += [lengths] if lengths else []
    return to_json([entry.number, entry.created_at, entry.sequence, type(entry.event).__name__, *fields])


def decode_lengths(line: bytes) -> list[int]:
    """The lengths of the pieces that were joined to the entry on a line, see `signed_length`. Raises what
    `decode_event` raises."""
    _, _, _, kind, text, *others = from_json(line)
    if others and isinstance(others[-1], list):
        return list(others[-1])
    return [signed_length(Chunk(text) if kind == "Chunk" else Reasoning(text))]


def decode_event(line: bytes) -> LoggedEvent | None:
    """The entry that `encode_event` has put on a line. None for a kind of event that this version does not know.

    Raises ValueError or TypeError for anything else.
    """
    number, created_at, sequence, kind, *fields = from_json(line)
    if not isinstance(created_at, str) or not isinstance(number, int) or not isinstance(sequence, int):
        raise TypeError("an entry without its number and time")
    known = _EVENTS.get(kind)
    if known is None:
        return None
    return LoggedEvent(number, created_at, sequence, known(*fields[: len(known.__slots__)]))


def journal_lines(entries: Iterable[LoggedEvent]) -> Iterator[bytes]:
    """The entries in fewer lines. Texts in a row are joined, and of tools only the kind of event is kept."""
    for kind, group in groupby(entries, key=lambda entry: type(entry.event)):
        first, *rest = group
        if kind in (Chunk, Reasoning):
            pieces: list[Any] = [entry.event for entry in (first, *rest)]
            text = "".join(piece.content for piece in pieces)
            yield encode_event(first._replace(event=kind(text)), [signed_length(piece) for piece in pieces])
        elif kind is ToolCall:
            yield encode_event(first._replace(event=ToolCall("", "", "")))
        elif kind is ToolResult:
            yield encode_event(first._replace(event=ToolResult("", "")))
