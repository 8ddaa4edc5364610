"""A turn that runs here, from the stored question to the stored answer.

The turn runs on a thread of its own. It stores each message as it completes and appends each event to its log. The
first caller that ends the turn, ends it: the model's answer, a failure, a cancel, the clock, a deletion or the
shutdown. All of them go through `LocalTurn._end`, which drops what comes later.
"""

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, assert_never

from agent import Agent
from session_core.data.message import AnswerFields, AttemptFields, MessageFields, StoredMessage, assistant_message
from session_core.data.message_queue import MessageQueue, NotQueued
from session_core.data.session import version_of
from session_core.model.cancellation import Cancellation
from session_core.model.events import (
    Answer,
    Cancelled,
    Chunk,
    Message,
    ModelError,
    Reasoning,
    ToolCall,
    ToolResult,
    Waiting,
)
from session_core.turns.attempt import Attempt
from session_core.turns.compaction import before_last_turn, behind_summary, store, sum_up
from session_core.turns.event_log import MAX_EVENTS, Ended, Failed, Started, Steered, TurnEnded
from session_core.turns.journal import identity
from session_core.turns.queued import steered_message, steering
from session_core.turns.report import TurnReport
from session_core.turns.stored import INTERRUPTED_TEXT, last_turn
from session_core.turns.turn import Turn
from session_core.turns.turn_request import TurnRequest
from storage import LockedSession, LockLost, SessionCorrupt, StorageUnavailable

log = logging.getLogger(__name__)

_READERS_SECONDS = 0.5  # between two looks for readers of other processes, where the last one here has left


class LocalTurn(Turn):
    """A turn that this process runs: from the stored question to the release of its session.

    `recorder` is the locked session. `on_end(turn, version)` is called once, when everything is stored and before
    readers get the last event, with the version of the session (see `version_of`).
    """

    def __init__(
        self,
        recorder: LockedSession,
        request: TurnRequest,
        attempt: Attempt,
        report: TurnReport,
        on_end: Callable[["LocalTurn", tuple[Any, ...]], None],
    ) -> None:
        super().__init__(recorder.id, request)
        self.message_id = attempt.message_id
        self.report = report
        self._attempt = replace(attempt, history=[])  # which a running turn does not need any more
        self._recorder = recorder
        self._storing = threading.Lock()  # held to store messages: by the turn's thread, and once by who ends it
        self._cancellation = Cancellation()
        self._on_end = on_end

    def start(self) -> None:
        """Begins the record and the log. Never raises."""
        attempt = self._attempt
        first = identity(
            self.id, self.message_id, attempt.number, {**attempt.fields, "model": attempt.settings["model"]}
        )
        self._recorder.record(first, self._log, self._end_from_elsewhere)
        self._log.append(Started())
        if self.request.prefix:
            self._log.append(Chunk(self.request.prefix))

    def run(self, agent: Agent, history: Sequence[StoredMessage], queue: MessageQueue) -> None:
        """Runs the turn to its end, on the calling thread. Messages of the queue may come into it."""
        try:
            self._run(agent, history, queue)
        except (TurnEnded, Cancelled):
            pass  # the caller that ended the turn does the rest
        except ModelError as error:
            self.fail(error.code, str(error), error.retry_after, refused=error.refused)
        except StorageUnavailable:
            self.fail("storage_unavailable")
        except Exception:
            log.exception("turn %s of %s failed", self.id, self.session_id)
            self.fail("internal_error")

    def _run(self, agent: Agent, history: Sequence[StoredMessage], queue: MessageQueue) -> None:
        settings = self._attempt.settings
        try:
            history, summary = self._compact(agent, history)
            settings = {**settings, "summary": summary}
        except (ModelError, StorageUnavailable) as error:
            log.warning("turn %s of %s goes on without a new summary: %r", self.id, self.session_id, error)
        report, steer = self.report, functools.partial(self._take_steered, queue)
        settings = {**settings, "usage": report.usage, "steer": steer}
        with contextlib.closing(agent.run(history, self._cancellation, observer=report.span, **settings)) as events:
            for event in events:
                self._handle(event)
        self._end("cancelled", "cancelled")  # where the run had no answer to give

    def _compact(self, agent: Agent, history: Sequence[StoredMessage]) -> tuple[Sequence[StoredMessage], str]:
        """Stores a summary, where one is due. Returns the messages behind it, and its text."""
        settings = self._attempt.settings
        old = [] if settings["results_only"] else before_last_turn(history)
        made = sum_up(agent, old, settings, self._cancellation, self.report, if_due=True)
        if made is None:
            return history, settings["summary"]
        with self._before_the_end():
            store(self._recorder, made)
            return behind_summary(self._recorder.session, history)

    def fail(
        self, code: str, text: str | None = None, retry_after: str | None = None, *, refused: bool = False
    ) -> bool:
        """Ends the turn with an error. Returns whether this call ended it.

        `refused` says that the model server refused the question, which is then left out of later requests.
        """
        return self._end("incomplete", code, failure=Failed(code, text, retry_after, refused=refused))

    @property
    def ending(self) -> bool:
        """Whether a caller has begun to end the turn."""
        return self._log.sealed

    def cancel(self) -> bool:
        """Ends the turn as cancelled and keeps its partial answer. Returns whether this call ended it.

        The turn has ended when this returns, either way.
        """
        cancelled = self._end("cancelled", "cancelled")
        self._log.wait()
        return cancelled

    def tell_readers(self) -> bool:
        """See Turn.tell_readers."""
        return self.ending

    def _leave_alone(self) -> None:
        if self.readers.may_end_it:
            self.end_in_background(self._cancel_unread)

    def _cancel_unread(self) -> None:
        """Cancels the turn as soon as nobody reads it anywhere, unless somebody reads it here again."""
        while not (self.readers.count or self.ended):
            with contextlib.suppress(StorageUnavailable):  # which was logged; then nobody knows
                if not (self._recorder.read_elsewhere() or self.readers.count):
                    self.cancel()
            self.wait(_READERS_SECONDS)

    def end_in_background(self, end: Callable[[], object]) -> None:
        """Calls `end` on a thread of its own. Returns at once."""
        try:
            threading.Thread(target=end, name=f"end of {self.id}", daemon=True).start()
        except RuntimeError:  # the system gives no more threads
            end()

    def _end_from_elsewhere(self, asked: bool) -> None:
        """Another process asks for the end, or (where not `asked`) this one has lost the lock."""
        if not self.ending:
            end = self.cancel if asked else functools.partial(self.fail, "internal_error", INTERRUPTED_TEXT)
            self.end_in_background(end)

    def _handle(self, event: Reasoning | Chunk | ToolCall | ToolResult | Message | Answer | Waiting) -> None:
        if isinstance(event, Chunk | Reasoning):
            if len(self._log) >= MAX_EVENTS:
                raise ModelError("model_error", "The model server sent too long an answer.")
            self.report.saw(event)
            self._log.append(event)
        elif isinstance(event, Message):
            self.report.usage = event.usage
            with self._before_the_end():
                stored: MessageFields = {**event.data, **self._next_fields()}
                if event.data["role"] == "assistant":
                    stored = {**stored, **self._deltas()}
                    if self.request.prefix:
                        stored["content"] = self._log.unstored(Chunk)  # with the prefix
                self._recorder.append(stored)
                if event.data["role"] == "assistant":
                    self._log.mark_stored()
        elif isinstance(event, Answer):
            self.report.usage = event.usage
            status = "completed" if event.reason is None else "incomplete"
            self._end(status, event.reason, finish_reason=event.finish_reason, fields=event.fields)
        elif isinstance(event, Waiting):
            self._end("waiting", None, finish_reason=event.finish_reason)
        elif isinstance(event, ToolCall | ToolResult):
            self._log.append(event)
            self.report.saw(event)
        else:
            assert_never(event)

    @contextlib.contextmanager
    def _before_the_end(self) -> Iterator[None]:
        """Has whoever ends the turn wait until this is stored. Raises TurnEnded where the end has begun."""
        with self._storing:
            if self._log.sealed:
                raise TurnEnded
            yield

    def _take_steered(self, queue: MessageQueue) -> list[StoredMessage]:
        """Stores the messages of the queue that go into the turn now, and returns them."""
        found, taken = [], []
        with contextlib.suppress(StorageUnavailable, SessionCorrupt):  # which was logged; they wait on
            found = steering(queue, self.message_id)
        for message in found:
            with self._before_the_end(), contextlib.suppress(NotQueued):
                steered = steered_message(message, self._attempt.number)
                taken.append(self._recorder.append(steered, message["id"], queued=True))
                self._log.append(Steered(message["id"], message["content"]))
        return taken

    def _end(
        self,
        status: str,
        reason: str | None,
        *,
        finish_reason: str | None = None,
        fields: AnswerFields | None = None,
        failure: Failed | None = None,
    ) -> bool:
        """Stores the answer or what there is of it, releases the session, and only then adds the last event."""
        if not self._log.seal():
            return False
        last: Ended | Failed = Failed("internal_error")
        version: tuple[Any, ...] = ()
        with self._apart():
            if status == "cancelled" or failure:
                self._cancellation.cancel()
        with self._storing, self._apart():
            last = self._store_end(self._answer(status, reason, finish_reason, fields), finish_reason, failure)
            version = version_of(self._recorder.session)
        for part in (self._recorder.release, lambda: self.report.end(last), lambda: self._on_end(self, version)):
            with self._apart():
                part()
        self._log.close(last)
        return True

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """A part of the end, which keeps no other one from coming, whatever it raises."""
        try:
            yield
        except Exception:
            log.exception("a part of the end of turn %s of %s failed", self.id, self.session_id)

    def _answer(
        self, status: str, reason: str | None, finish_reason: str | None, fields: AnswerFields | None
    ) -> MessageFields:
        """The turn's last message: the answer, or what there is of it."""
        beside: AnswerFields = {**(self._partial_fields() if fields is None else fields), **self._next_fields()}
        beside |= self._deltas()
        if status != "completed":
            beside |= {"status": status, "reason": reason or ""}
        if self.request.key is not None:
            beside["finish_reason"] = finish_reason or ""
        beside["usage"] = self.report.usage or {}
        return assistant_message(self._log.unstored(Chunk), **beside)

    def _next_fields(self) -> AttemptFields:
        """What the next message has beside its own fields. The first one alone has the response."""
        fields = self._attempt.fields
        rest: AttemptFields = {**fields}
        rest.pop("response", None)
        self._attempt = replace(self._attempt, fields=rest)
        return fields

    def _deltas(self) -> AnswerFields:
        return {"deltas": self._log.unstored_lengths()} if self._attempt.keeps_deltas else {}

    @property
    def attempt(self) -> int:
        """See Turn.attempt."""
        return self._attempt.number

    def _partial_fields(self) -> AnswerFields:
        """What is stored beside the text of a partial answer."""
        return {"reasoning": self._log.unstored(Reasoning), "model": self._attempt.settings["model"]}

    def _store_end(self, answer: MessageFields, finish_reason: str | None, failure: Failed | None) -> Ended | Failed:
        """Stores the answer, or the code of the failure where there is no text. Returns the last event. What could
        not be stored stays recorded."""
        try:
            last = self._store(answer, finish_reason, failure)
            self._recorder.drop_journal()
            return last
        except LockLost:
            return Failed("internal_error", INTERRUPTED_TEXT)  # what other servers tell their watchers
        except StorageUnavailable:
            return failure or Failed("storage_unavailable")

    def _store(self, answer: MessageFields, finish_reason: str | None, failure: Failed | None) -> Ended | Failed:
        turn = last_turn(self._recorder.session)
        if turn and turn.waiting and answer.get("status") == "waiting":
            return Ended(turn.waiting, self._log.text, finish_reason)
        if turn and turn.calling:
            answer.pop("usage", None)  # which is stored with the calls
        if failure is None:
            return Ended(self._recorder.append(answer), self._log.text, finish_reason)
        silent = self._log.text == self.request.prefix  # the model has said nothing
        if answer["content"] and not silent:
            return replace(failure, message_id=self._recorder.append(answer)["id"], refused=False)
        self._recorder.set_last_error(failure.code, refused=failure.refused and silent)
        return failure


def fail_all(turns: Sequence[LocalTurn], code: str) -> None:
    """Ends those of the turns that have not ended. All have ended when this returns.

    It ends them at the same time, since a store may take seconds to say that it cannot be written.
    """
    for turn in turns:
        if not turn.ending:
            turn.end_in_background(functools.partial(turn.fail, code))
    for turn in turns:
        turn.result()
