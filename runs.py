"""One turn at a time in a session: started, watched, cancelled, resumed.

A turn runs on a thread of its own. It stores each message as it completes and appends each event to a log that any
number of readers follow, each at its own pace. Whoever ends a turn first, ends it: the model's answer, a failure, a
cancel, the clock, a deletion or the shutdown, all by way of `Turn._end`; what comes later is dropped.

Where the storage lets other processes follow a turn, the log is told to them line by line, and they keep a copy.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import json
import logging
import secrets
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from agent import Agent, Answer, Chunk, Message, ModelError, Stop, Stopped, ToolCall, ToolResult, tool_calls_of
from storage import (
    Elsewhere,
    LinesMissing,
    Session,
    SessionBusy,
    SessionCorrupt,
    SessionLost,
    SessionNotFound,
    Storage,
    StorageUnavailable,
    Taken,
    timestamp,
    to_json,
)

log = logging.getLogger(__name__)

REPLAY_SECONDS = 60.0  # how long an ended turn can still be watched
REPLAY_BYTES = 64 << 20  # ... unless the ended turns hold more than this together
MAX_EVENTS = 200_000  # of one turn
MAX_WATCHERS = 16  # of one turn, beside whoever started it
INTERRUPTED = 1_000_000  # the number of the event that ends a turn whose process has gone: nobody knows its last one

_BLIND = 5.0  # seconds without word from the store, after which a turn of another process is followed no more
_WAS_INTERRUPTED = "The turn was interrupted."
_INCOMPLETE = ("length", "content_filter", "no_finish_reason")  # the model ended here, and nothing failed


class Overloaded(Exception):
    """As many turns run, or as many clients watch this one, as may."""


class ShuttingDown(Exception):
    """No new turns are started any more."""


class KeyReused(Exception):
    """The idempotency key belongs to another message of this session."""


@dataclass(frozen=True, slots=True)
class Started:
    """The first event of a turn: the user's message is stored."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of a turn that the model finished or that was cancelled. `message` is stored; its `status` and
    `reason` say whether it is complete. `complete_text` is all text of the turn."""

    message: dict[str, Any]
    complete_text: str
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a turn that something else ended. `text` says what in words, where there is more to say than
    the code does; `message_id` is that of the partial answer, if there was one."""

    code: str
    text: str | None = None
    retry_after: str | None = None
    message_id: str | None = None


Event = Started | Chunk | ToolCall | ToolResult | Ended | Failed


class Entry(NamedTuple):
    """An event in the log of its turn. Entries are numbered from 1; `sequence` numbers the chunks among them."""

    number: int
    created_at: str
    sequence: int
    event: Event


class _Log:
    """The events of one turn, for one writer after another and any number of readers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[Entry] = []
        self._waiting: list[_thread.LockType] = []
        self._chunks = 0
        self._sealed = False
        self._second = 0
        self._now = ""
        self.tell: Callable[[Entry], None] | None = None  # called with each new entry

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, event: Event) -> None:
        """Add an event and wake the readers. Raises _Over where the turn is being ended."""
        with self._lock:
            if self._sealed:
                raise _Over
            self._add(event)

    @property
    def sealed(self) -> bool:
        return self._sealed

    def seal(self) -> bool:
        """Let no event in but the last one; whether this call did it."""
        with self._lock:
            sealed, self._sealed = self._sealed, True
            return not sealed

    def close(self, event: Ended | Failed) -> None:
        """Add the last event."""
        with self._lock:
            self._add(event)

    def copy(self, entry: Entry) -> None:
        """Add an entry as it stands in the log of another process."""
        with self._lock:
            self._entries.append(entry)
            self._wake()

    def read(self, after: int, seconds: float, most: int = 256) -> list[Entry]:
        """The next entries behind number `after`, as soon as there are any; none after `seconds` without."""
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
        """Whether the last event is there to read."""
        return bool(self._entries) and isinstance(self._entries[-1].event, Ended | Failed)

    def place(self, number: int) -> int | None:
        """How many entries there are up to this number, None where there is none such yet. All but the last, where
        the entry itself is missing: a process that has gone had shown it, and not told. None there too, where
        something was told in place of it, which may be more than had been shown."""
        if not self._entries or number > self._entries[-1].number:
            return None
        place = bisect_right(self._entries, number, key=lambda entry: entry.number)
        if self._entries[place - 1].number == number:
            return place
        made_up = any(entry.number == INTERRUPTED for entry in self._entries[-2:])
        return None if made_up else len(self._entries) - 1

    def text(self, after: int = 0) -> str:
        """All text behind entry number `after`."""
        return "".join(entry.event.content for entry in self._entries[after:] if type(entry.event) is Chunk)

    def size(self) -> int:
        """About how many bytes of memory the entries take."""
        return sum(250 + _size(entry.event) for entry in self._entries)

    def _add(self, event: Event) -> None:
        second = int(time.time())
        if second != self._second:
            self._second, self._now = second, timestamp()
        sequence = 0
        if type(event) is Chunk:
            self._chunks = sequence = self._chunks + 1
        self._entries.append(Entry(len(self._entries) + 1, self._now, sequence, event))
        if self.tell is not None:
            self.tell(self._entries[-1])
        if self._waiting:
            self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for signal in waiting:
            signal.release()


def _size(event: Event) -> int:
    """How many bytes the texts in an event take."""
    if type(event) is Chunk:
        return sys.getsizeof(event.content)
    if isinstance(event, Ended):
        return sys.getsizeof(event.complete_text) + sys.getsizeof(event.message["content"])
    texts = (getattr(event, name) for name in event.__slots__)
    return sum(sys.getsizeof(text) for text in texts if isinstance(text, str))


# --- the log as it is told to other processes ---

_EVENTS = {kind.__name__: kind for kind in (Started, Chunk, ToolCall, ToolResult, Ended, Failed)}


def _line(number: int, created_at: str, sequence: int, event: Event) -> bytes:
    fields = [getattr(event, name) for name in event.__slots__]
    return to_json([number, created_at, sequence, type(event).__name__, *fields])


def _from_line(line: bytes) -> Entry:
    number, created_at, sequence, kind, *fields = json.loads(line)
    return Entry(number, created_at, sequence, _EVENTS[kind](*fields))


class _Over(Exception):
    """The turn was ended from elsewhere while its thread was at work."""


class Turn:
    """One turn of a session: running, or ended and still to be watched. `Runs` gives them out."""

    def __init__(self, session_id: str, text: str, key: str | None = None) -> None:
        self.id = secrets.token_hex(16)
        self.session_id = session_id
        self.text = text
        self.key = key
        self._log = _Log()
        self._ended = threading.Event()
        self._watchers = threading.Semaphore(MAX_WATCHERS)

    def read(self, after: int, seconds: float) -> list[Entry]:
        """The next events behind number `after` (0: from the first), some of those there are; waits for one, and
        gives none if there is none within `seconds`. The last is an `Ended` or a `Failed`."""
        return self._log.read(after, seconds)

    def result(self) -> Ended | Failed:
        """Wait until the turn has ended, and give its last event."""
        self._ended.wait()
        last = self._log.read(len(self._log) - 1, 0)[0].event
        assert isinstance(last, Ended | Failed)
        return last

    def wait(self, seconds: float) -> bool:
        """Wait for the end, at most so long; whether the turn has ended."""
        return self._ended.wait(seconds)

    @property
    def ended(self) -> bool:
        """Whether the last event can be read."""
        return self._log.closed

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        return self._log.size() + sys.getsizeof(self.text)

    @property
    def length(self) -> int:
        """How many events there are so far."""
        return len(self._log)

    def place(self, number: int) -> int | None:
        """How many events there are up to the one of this number, which is what to read behind; None if there is
        none such."""
        return self._log.place(number)

    def watch(self) -> Callable[[], None]:
        """Count one more watcher; returns what to call when it has gone. Raises Overloaded at 16."""
        if not self._watchers.acquire(blocking=False):
            raise Overloaded
        return self._watchers.release

    def _close(self, last: Ended | Failed) -> None:
        self._log.close(last)
        self._ended.set()


class _Running(Turn):
    """A turn that this process runs: from a session that is taken to one that is released."""

    def __init__(
        self, session_id: str, text: str, key: str | None, on_end: Callable[[_Running, Ended | Failed], None]
    ) -> None:
        super().__init__(session_id, text, key)
        self.began = time.monotonic()
        self._on_end = on_end
        self._started = threading.Event()  # or will never be, see `_refusal`
        self._refusal: BaseException | None = None
        self._stop = Stop()
        self._storing = threading.Lock()  # held to write messages: by the turn's thread, and once by who ends it
        self.usage: dict[str, Any] | None = None
        self.message_count = 0  # of the session, when the turn has ended
        self._partial_from = 0  # the text behind this event is in no stored message yet
        self._attempt: dict[str, int] = {}
        self._calls = 0  # of tools, that are to run or run now
        self._tool_began = 0.0
        self._tool_seconds = 0.0

    def begin(self, taken: Taken) -> list[dict[str, Any]]:
        """Store the user's message, unless this is another attempt at a failed turn, and give the messages that
        the model is to see. Raises _Known where the key's turn has ended meanwhile, and StorageUnavailable or
        SessionCorrupt; then the turn has not begun."""
        session = taken.session
        past = _find(session, self.key)
        if past is None:
            kept = {"idempotency_key": self.key, "previous_error": session.note}
            kept = {name: value for name, value in kept.items() if value is not None}
            message = taken.append({"role": "user", "content": self.text, **kept})
        elif past.can_be_tried_again:
            message = past.messages[0]
            self._attempt = {"attempt": 1 + max(map(_attempt, past.messages))}
        else:
            raise _Known
        self._taken = taken
        whose = to_json([self.id, message["id"], self._attempt.get("attempt", 1)])
        if tell := taken.share(whose, self._end_from_elsewhere):
            self._log.tell = lambda entry: tell(_line(*entry), isinstance(entry.event, Ended | Failed))
        self._log.append(Started())
        self._started.set()
        return _without_failed_attempts(taken.session.messages, self._attempt.get("attempt", 1))

    def refuse(self, error: BaseException) -> None:
        """Say to all who wait for the turn that it does not begin."""
        self._refusal = error
        self._started.set()

    def wait_until_begun(self) -> bool:
        """Wait until the user's message is stored; False if the turn does not begin."""
        self._started.wait()
        return self._refusal is None

    def join(self) -> None:
        """Wait as `wait_until_begun` does, and raise here too what keeps the turn from beginning."""
        if not self.wait_until_begun():
            assert self._refusal is not None
            raise self._refusal

    def work(self, agent: Agent, history: Sequence[Mapping[str, Any]]) -> None:
        """Run the turn to its end, on the thread that calls."""
        try:
            with contextlib.closing(agent.run(history, self._stop)) as events:
                for event in events:
                    self._take_in(event)
        except (_Over, Stopped):
            pass  # whoever ended it has seen to the rest
        except ModelError as error:
            self.fail(error.code, str(error), error.retry_after)
        except StorageUnavailable:
            self.fail("storage_unavailable")
        except Exception:
            log.exception("turn %s of %s failed", self.id, self.session_id)
            self.fail("internal_error")

    def fail(self, code: str, text: str | None = None, retry_after: str | None = None) -> bool:
        """End the turn with an error; whether it was this call that ended it."""
        return self._end("incomplete", code, failure=Failed(code, text, retry_after))

    @property
    def ending(self) -> bool:
        """Whether somebody has begun to end the turn."""
        return self._log.sealed

    def cancel(self) -> bool:
        """End the turn as cancelled, keeping what there is of the answer; whether it was this call that ended it.
        When this returns the turn has ended either way."""
        cancelled = self._end("cancelled", "cancelled")
        self._ended.wait()
        return cancelled

    def _end_from_elsewhere(self, asked: bool) -> None:
        """Another process asks for the end, or (where not `asked`) has the session by now. Returns at once."""
        self.apart(self.cancel if asked else lambda: self.fail("internal_error", _WAS_INTERRUPTED))

    def apart(self, end: Callable[[], object]) -> None:
        """Call what ends the turn on a thread of its own, once the turn has begun."""

        def work() -> None:
            if self.wait_until_begun():
                end()

        try:
            threading.Thread(target=work, name=f"end of {self.id}", daemon=True).start()
        except RuntimeError:  # the system has no more threads to give
            work()

    def _take_in(self, event: Chunk | ToolCall | ToolResult | Message | Answer) -> None:
        if type(event) is Chunk:
            if len(self._log) >= MAX_EVENTS:
                raise ModelError("model_error", "The model server sent too long an answer.")
            self._log.append(event)
        elif isinstance(event, Message):
            self.usage = event.usage
            if event.data["role"] == "tool":
                self._tool_seconds = self.tool_seconds()
            with self._storing:
                if self._log.sealed:
                    raise _Over
                self._taken.append({**event.data, **self._attempt})
                if event.data["role"] == "assistant":
                    self._partial_from = len(self._log)
        elif isinstance(event, Answer):
            self.usage = event.usage
            status = "completed" if event.reason is None else "incomplete"
            self._end(status, event.reason, finish_reason=event.finish_reason)
        else:
            self._log.append(event)
            self._calls += 1 if isinstance(event, ToolCall) else -1
            self._tool_began = time.monotonic()

    def tool_seconds(self) -> float:
        """How long tools have worked, the one that works now included."""
        return self._tool_seconds + (time.monotonic() - self._tool_began if self._calls else 0.0)

    def _end(
        self, status: str, reason: str | None, *, finish_reason: str | None = None, failure: Failed | None = None
    ) -> bool:
        """Store what there is of the answer, release the session, and only then say so, in this order."""
        if not self._log.seal():
            return False
        if status == "cancelled" or failure:
            self._stop.set()
        last: Ended | Failed
        with self._storing:
            text = self._log.text(self._partial_from)
            answer: dict[str, Any] = {"role": "assistant", "content": text, **self._attempt}
            if status != "completed":
                answer |= {"status": status, "reason": reason}
            if self.usage is not None:
                answer["usage"] = self.usage
            if self.key is not None and finish_reason is not None:
                answer["finish_reason"] = finish_reason
            try:
                if failure is None:
                    last = Ended(self._taken.append(answer), self._log.text(), finish_reason)
                elif text:
                    message_id = self._taken.append(answer)["id"]
                    last = Failed(failure.code, failure.text, failure.retry_after, message_id)
                else:
                    self._taken.note(failure.code)
                    last = failure
            except SessionLost:
                last = Failed("internal_error", _WAS_INTERRUPTED)  # as others say who follow it
            except StorageUnavailable:
                last = failure or Failed("storage_unavailable")
            except Exception:
                log.exception("turn %s of %s could not be stored", self.id, self.session_id)
                last = Failed("internal_error")
            finally:
                self.message_count = len(self._taken.session.messages)
                self._taken.release()
                del self._taken  # and the whole history with it, which an ended turn need not hold
        self._on_end(self, last)
        self._close(last)
        return True


class _Followed(Turn):
    """A turn that another process runs, or has just run, with a log that is a copy of the one there."""

    def __init__(self, session_id: str, there: Elsewhere, storage: Storage) -> None:
        super().__init__(session_id, "")
        self.there = there
        self._storage = storage
        self._leave = threading.Event()
        first, *lines = there.read(1.0) or [b""]
        if not first:
            raise LinesMissing(f"nothing is told of the turn of {session_id}")
        self.id, self.message_id, self._attempt = json.loads(first)
        self._copy(lines)

    def follow(self) -> None:
        """Copy what is told, on the thread that calls, until the turn has ended or cannot be followed any more."""
        heard = time.monotonic()
        try:
            while not self.ended and not self._leave.is_set() and time.monotonic() < heard + _BLIND:
                try:
                    lines = self.there.read(1.0)
                    if not lines and self.there.interrupted():
                        self.there.end(self._how_it_ended())
                except LinesMissing:
                    return
                except StorageUnavailable:
                    self._leave.wait(0.2)
                else:
                    heard = time.monotonic()
                    self._copy(lines)
        except Exception:
            log.exception("turn %s of %s cannot be followed", self.id, self.session_id)
        finally:
            self._ended.set()

    def leave(self) -> None:
        """Stop following soon."""
        self._leave.set()

    def read(self, after: int, seconds: float) -> list[Entry]:
        """See Turn.read. Raises StorageUnavailable where the turn cannot be followed any more."""
        until = time.monotonic() + seconds
        while True:
            lost = self._lost
            entries = self._log.read(after, max(0.0, min(until - time.monotonic(), 1.0)))
            if entries or (time.monotonic() >= until and not lost):
                return entries
            if lost:
                raise StorageUnavailable(f"the turn of {self.session_id} cannot be followed any more")

    def result(self) -> Ended | Failed:
        """See Turn.result. Raises StorageUnavailable where the turn cannot be followed any more."""
        self._ended.wait()
        if self._lost:
            raise StorageUnavailable(f"the turn of {self.session_id} cannot be followed any more")
        return super().result()

    def place(self, number: int) -> int | None:
        """See Turn.place. The other process shows events before it tells them, so what is not here is waited for."""
        give_up = time.monotonic() + 2 * _BLIND
        while self._log.place(number) is None and not self._ended.is_set() and time.monotonic() < give_up:
            self._log.read(self.length, 0.2)
        return self._log.place(number)

    def cancel(self) -> bool:
        """Have the other process cancel the turn, and wait until it has ended; whether it ended so."""
        if self.ended:
            return False
        self.there.ask_to_end()
        last = self.result()
        return isinstance(last, Ended) and last.message.get("status") == "cancelled"

    @property
    def failed(self) -> bool:
        """Whether the turn has ended, and not with an answer."""
        return self.ended and isinstance(self.result(), Failed)

    @property
    def _lost(self) -> bool:
        """Whether there is no last event, and will be none."""
        return self._ended.is_set() and not self.ended

    def _copy(self, lines: list[bytes]) -> None:
        for line in lines:
            self._log.copy(_from_line(line))
        if self.ended:
            self._ended.set()

    def _how_it_ended(self) -> list[bytes]:
        """The last events of the turn, whose process has gone: by what it had stored until then."""
        last: Ended | Failed = Failed("internal_error", _WAS_INTERRUPTED)
        with contextlib.suppress(SessionNotFound, SessionCorrupt):
            session = self._storage.get(self.session_id)
            ids = [message["id"] for message in session.messages]
            if self.message_id in ids:
                last = _past(session, ids.index(self.message_id)).end_of(self._attempt)
        lines = [] if len(self._log) else [_line(1, timestamp(), 0, Started())]
        if isinstance(last, Ended) and (rest := last.complete_text.removeprefix(self._log.text())):
            sequence = 1 + max((entry.sequence for entry in self._log.read(0, 0, MAX_EVENTS)), default=0)
            lines.append(_line(INTERRUPTED, timestamp(), sequence, Chunk(rest)))  # shown there, but not told
        return [*lines, _line(INTERRUPTED + 1, timestamp(), 0, last)]


class Runs:
    """The turns of all sessions in a storage, run with one agent. Every method may be called from any thread.

    At most `max_turns` run at once, each for `timeout` seconds at most.
    """

    def __init__(self, storage: Storage, agent: Agent, *, timeout: float, max_turns: int) -> None:
        self._storage = storage
        self._agent = agent
        self._timeout = timeout
        self._max_turns = max_turns
        self._lock = threading.Lock()
        self._running: dict[str, _Running] = {}  # by session, oldest first, from before they begin
        self._begun: dict[_Running, None] = {}  # oldest first
        self._ended: dict[str, _Held] = {}  # by session, oldest first
        self._ended_bytes = 0
        self._followed: dict[str, _Followed] = {}  # by the id of the turn there, those that have not ended
        self._closing = False
        self._clock: threading.Thread | None = None
        self._tick = threading.Condition(self._lock)
        self._next_tick = 0.0

    def start(
        self, session_id: str, text: str, key: str | None = None, *, room: bool = True
    ) -> tuple[Turn, bool]:
        """Start a turn with a user's message, which is durable when this returns; or, where the idempotency key
        is that of an earlier request with the same message, give that one's turn: running, or ended, or told again
        from what is stored. The second value says whether it had ended. A failed turn that is the session's last
        is tried again under its key. Without `room`, no new turn begins.

        Raises SessionNotFound, KeyReused, ShuttingDown, SessionBusy, Overloaded (in this order), and
        StorageUnavailable or SessionCorrupt.
        """
        refused = False
        while True:
            turn = _Running(session_id, text, key, self._on_end)
            try:
                if key is not None and (known := self._known(session_id, text, key)):
                    return known
                history = self._begin(turn, room)
            except _Known:
                continue
            except SessionBusy:
                if refused or key is None or self._storage.elsewhere(session_id) is None:
                    raise
                refused = True  # it may be the turn of this key that begins there
                continue
            try:
                threading.Thread(target=turn.work, args=(self._agent, history), name=turn.id, daemon=True).start()
            except RuntimeError:  # the system has no more threads to give
                turn.fail("overloaded")
            return turn, False

    def attach(self, session_id: str) -> Turn | None:
        """The session's turn that runs or can still be watched, None where there is none.

        Raises SessionNotFound, StorageUnavailable, and where it runs in another process, ShuttingDown, or SessionBusy
        if it cannot be followed from here.
        """
        while True:
            turn = self._here_or_elsewhere(session_id)
            if turn is None or not turn.ended or isinstance(turn, _Followed):
                return turn
            if self._storage.summary(session_id).message_count in (turn.message_count, None):
                return turn
            with self._lock:  # another process has gone on with the session
                if self._watchable(session_id) is turn:
                    self._forget(session_id)

    def running(self, session_id: str) -> bool:
        """Whether a turn runs in the session, in any process. Raises SessionNotFound, StorageUnavailable."""
        return self._storage.running(session_id)

    def cancel(self, session_id: str) -> bool:
        """Cancel the session's turn and wait until it has ended; False if none runs.

        Raises SessionNotFound, StorageUnavailable, and where it runs in another process, ShuttingDown, or SessionBusy
        if it cannot be followed from here.
        """
        turn = self._here_or_elsewhere(session_id)
        return turn is not None and turn.cancel()

    def delete(self, session_id: str) -> None:
        """Delete the session, durably; a turn that runs in it is cancelled and has ended when this returns.

        Raises what `cancel` does, and SessionBusy where one turn after the other begins.
        """
        for last_try in (False, False, False, True):
            self.cancel(session_id)
            try:
                with self._storage.take(session_id) as taken:
                    taken.delete()
                break
            except SessionBusy:  # another turn began in between
                if last_try:
                    raise
        with self._lock:
            self._forget(session_id)

    def rename(self, session_id: str, title: str | None) -> None:
        """Set the session's title, or remove it with None. Raises SessionNotFound, SessionBusy where a turn runs,
        SessionCorrupt, StorageUnavailable."""
        with self._storage.take(session_id) as taken:
            taken.rename(title)

    def shut_down(self, grace: float) -> None:
        """Start no more turns, give the running ones `grace` seconds to end, then end them as failed. All have
        ended, and what they leave is stored, when this returns. May be repeated, with less grace."""
        with self._lock:
            self._closing = True
            turns = list(self._running.values())
        until = time.monotonic() + grace
        for turn in turns:
            if turn.wait_until_begun():
                turn.wait(until - time.monotonic())
        _fail_all(turns, "shutting_down")
        self._storage.flush()
        with self._lock:
            self._tick.notify()
            for followed in self._followed.values():
                followed.leave()

    @property
    def closing(self) -> bool:
        """Whether `shut_down` was called."""
        return self._closing

    def _known(self, session_id: str, text: str, key: str) -> tuple[Turn, bool] | None:
        """The turn that has this key, unless it failed and can be tried again; and whether it had ended."""
        with self._lock:
            running = self._running.get(session_id)
        if running is not None and running.key == key:
            if running.text != text:
                raise KeyReused
            running.join()
            return running, False
        past = _find(self._storage.get(session_id), key)
        if past is None:
            return None
        if past.messages[0]["content"] != text:
            raise KeyReused
        there = self._elsewhere(session_id)
        if there is not None and there.message_id == past.messages[0]["id"]:
            over = not self._storage.running(session_id)
            if over:
                there.wait(_BLIND)  # its last event is on its way, or has to be made up for
            if not there.failed:
                return there, over
        if past.can_be_tried_again:
            return None
        with self._lock:
            held = self._watchable(session_id)
        if held is None or held.key != key or isinstance(held.result(), Failed):  # or tried again elsewhere since
            return past.told_again(session_id), True
        return held, True

    def _watchable(self, session_id: str) -> _Running | None:
        held = self._ended.get(session_id)
        return held and held.turn

    def _here_or_elsewhere(self, session_id: str) -> _Running | _Followed | None:
        turn = self._here(session_id)
        if turn is not None and not turn.ended:
            return turn
        if there := self._elsewhere(session_id):
            return there
        if self._storage.running(session_id):
            turn = self._here(session_id)  # it may have begun since
            if turn is None or turn.ended:
                raise SessionBusy(session_id)
        return turn

    def _elsewhere(self, session_id: str) -> _Followed | None:
        """The session's newest turn if it is one of another process, which is followed here from now on."""
        there = self._storage.elsewhere(session_id)
        if there is None:
            return None
        with self._lock:
            known = self._followed.get(there.id)
        turn = known or _Followed(session_id, there, self._storage)
        if turn is known or turn.ended:
            return turn
        with self._lock:
            if self._closing:
                raise ShuttingDown
            if there.id not in self._followed:
                try:
                    threading.Thread(target=self._follow, args=(turn,), name=f"follow {turn.id}", daemon=True).start()
                except RuntimeError as error:  # the system has no more threads to give
                    raise StorageUnavailable(str(error)) from error
                self._followed[there.id] = turn
            return self._followed[there.id]

    def _follow(self, turn: _Followed) -> None:
        turn.follow()
        with self._lock:
            del self._followed[turn.there.id]

    def _here(self, session_id: str) -> _Running | None:
        while True:
            with self._lock:
                running = self._running.get(session_id)
                if running is None:
                    return self._watchable(session_id)
            if running.wait_until_begun():
                return running

    def _begin(self, turn: _Running, room: bool) -> list[dict[str, Any]]:
        """Take the session and begin the turn in it, or leave everything as it was and raise; _Known where a turn
        of the same key is in it by now."""
        id = turn.session_id
        with self._lock:
            closing, other = self._closing, self._running.get(id)
            if not closing and other is None:
                self._running[id] = turn
        if other is not None and other.key is not None and other.key == turn.key:
            raise _Known
        if closing or other is not None:
            self._storage.running(id)  # where there is no such session, that is said first
            raise ShuttingDown if closing else SessionBusy(id)
        try:
            taken = self._storage.take(id, turn=True)
            try:
                self._admit(turn, room)
                return turn.begin(taken)
            except BaseException:
                taken.release()
                raise
        except BaseException as error:
            with self._lock:
                del self._running[id]
                self._begun.pop(turn, None)
            turn.refuse(error)
            raise

    def _admit(self, turn: _Running, room: bool) -> None:
        with self._lock:
            if self._closing:
                raise ShuttingDown
            if not room or len(self._begun) >= self._max_turns:
                raise Overloaded
            try:
                self._wake_by(turn.began + self._timeout)
            except RuntimeError:  # the system has no more threads to give
                raise Overloaded from None
            self._begun[turn] = None

    def _on_end(self, turn: _Running, last: Ended | Failed) -> None:
        now = time.monotonic()
        held = _Held(turn, now + REPLAY_SECONDS, turn.size)
        with self._lock:
            del self._running[turn.session_id]
            del self._begun[turn]
            self._forget(turn.session_id)
            self._ended[turn.session_id] = held
            self._ended_bytes += held.size
            while self._ended_bytes > REPLAY_BYTES:
                self._forget(next(iter(self._ended)))
            self._wake_by(now + REPLAY_SECONDS)
        seconds = now - turn.began
        log.info(
            "turn session=%s status=%s seconds=%.3f model_seconds=%.3f tokens=%s",
            turn.session_id,
            last.code if isinstance(last, Failed) else last.message.get("status", "completed"),
            seconds,
            seconds - turn.tool_seconds(),
            (turn.usage or {}).get("total_tokens", "-"),
        )

    def _forget(self, session_id: str) -> None:
        if held := self._ended.pop(session_id, None):
            self._ended_bytes -= held.size

    def _wake_by(self, when: float) -> None:
        """See that the clock looks again at this time, or before. To be called with the lock held."""
        if self._clock is None:
            clock = threading.Thread(target=self._keep_time, name="clock", daemon=True)
            clock.start()
            self._clock = clock
        elif when < self._next_tick:
            self._tick.notify()

    def _keep_time(self) -> None:
        """End the turns whose time is up, and forget the ended ones, as long as there are any of either; after a
        shutdown, as long as any run."""
        while True:
            with self._lock:
                now = time.monotonic()
                for session_id, held in list(self._ended.items()):
                    if held.until > now:
                        break
                    self._forget(session_id)
                if not self._begun and (self._closing or not self._ended):
                    self._clock = None
                    return
                deadlines = {turn: turn.began + self._timeout for turn in self._begun if not turn.ending}
                due = [turn for turn, deadline in deadlines.items() if deadline <= now]
                if not due:
                    ticks = [*deadlines.values(), *(held.until for held in self._ended.values())]
                    self._next_tick = max(min(ticks, default=0.0), now + 0.05)
                    self._tick.wait(self._next_tick - now)
            _fail_all(due, "model_timeout")


def _fail_all(turns: Sequence[_Running], code: str) -> None:
    """End those of the turns that have not ended, at the same time, since a store may take seconds to say that it
    cannot be written. All have ended when this returns."""
    for turn in turns:
        if not turn.ending:
            turn.apart(functools.partial(turn.fail, code))
    for turn in turns:
        if turn.wait_until_begun():
            turn.result()


class _Known(Exception):
    """The turn of this key was begun or has ended meanwhile, and need not be run."""


class _Held(NamedTuple):
    """An ended turn that can still be watched, until when, and about how many bytes it takes."""

    turn: _Running
    until: float
    size: int


@dataclass(frozen=True)
class _Past:
    """A turn as it is stored: the user's message and what came of it, in all attempts; the error that was noted when
    it ended, if one was; and whether it is the session's last."""

    messages: list[dict[str, Any]]
    error: str | None
    is_last: bool

    @property
    def can_be_tried_again(self) -> bool:
        return self.is_last and isinstance(self._end(), Failed)

    def end_of(self, attempt: int) -> Ended | Failed:
        """The last event of this attempt, as far as it was stored."""
        messages = [message for message in self.messages if _attempt(message) <= attempt]
        if max(map(_attempt, messages)) < attempt and self.error is None:
            return Failed("internal_error", _WAS_INTERRUPTED)
        return replace(self, messages=messages)._end()

    def told_again(self, session_id: str) -> Turn:
        """The ended turn, its events made from what is stored."""
        turn = Turn(session_id, self.messages[0]["content"])
        turn._log.append(Started())
        for message in self._answers():
            if message["role"] == "tool":
                text, call = message["content"], (message.get("tool_call_id", ""), message.get("name", ""))
                error = text.removeprefix("error: ") if text.startswith("error: ") else None
                turn._log.append(ToolResult(*call, result=text if error is None else None, error=error))
                continue
            if message["content"]:
                turn._log.append(Chunk(message["content"]))
            for tool_call in tool_calls_of(message):
                turn._log.append(tool_call)
        turn._close(self._end())
        return turn

    def _answers(self) -> list[dict[str, Any]]:
        attempt = max(map(_attempt, self.messages))
        return [message for message in self.messages[1:] if _attempt(message) == attempt]

    def _end(self) -> Ended | Failed:
        last = self.messages[-1]
        if self.error is not None:  # which is noted where there is no partial answer
            return Failed(self.error)
        if last["role"] != "assistant" or last.get("tool_calls"):
            return Failed("internal_error", _WAS_INTERRUPTED)
        if last.get("status") == "incomplete" and last.get("reason") not in _INCOMPLETE:
            return Failed(str(last.get("reason")), message_id=last["id"])
        text = "".join(message["content"] for message in self._answers() if message["role"] == "assistant")
        return Ended(last, text, last.get("finish_reason"))


def _find(session: Session, key: str | None) -> _Past | None:
    """The turn that was started with this key."""
    if key is None:
        return None
    keys = [message.get("idempotency_key") for message in session.messages]
    return _past(session, keys.index(key)) if key in keys else None


def _past(session: Session, place: int) -> _Past:
    """The turn that begins with the message at this place."""
    messages = session.messages[place:]
    for number, message in enumerate(messages):
        if number > 0 and message["role"] == "user":
            error = message.get("previous_error")
            return _Past(messages[:number], error if isinstance(error, str) else None, is_last=False)
    return _Past(messages, session.note, is_last=True)


def _attempt(message: Mapping[str, Any]) -> int:
    attempt = message.get("attempt")
    return attempt if isinstance(attempt, int) else 1


def _without_failed_attempts(messages: Sequence[dict[str, Any]], attempt: int) -> list[dict[str, Any]]:
    """The messages without those of attempts that were followed by another; `attempt` is that of the last turn."""
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
