"""A turn that runs here, from the stored question to the stored answer.

The turn runs on a thread of its own. It stores each message as it completes and appends each event to its log. The
first caller that ends the turn, ends it: the model's answer, a failure, a cancel, the clock, a deletion or the
shutdown. All of them go through `LocalTurn._end`, which drops what comes later.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

from agent import Agent
from session_core.model.cancellation import Cancellation
from session_core.model.events import Answer, Cancelled, Chunk, Message, ModelError, Reasoning, ToolCall, ToolResult
from session_core.telemetry.spans import Observer, Result, TurnSpan
from session_core.turns.event_log import (
    MAX_EVENTS,
    Ended,
    Failed,
    LoggedEvent,
    Started,
    TurnEnded,
    encode_event,
    status_of,
)
from session_core.turns.journal import identity, journal_lines
from session_core.turns.stored import (
    INTERRUPTED_TEXT,
    find_turn,
    last_turn,
    outgoing_messages,
    question_message,
    stored_error,
    version_of,
)
from session_core.turns.turn import Turn
from session_core.turns.turn_request import NothingToContinue, TurnRequest
from storage import LockedSession, LockLost, StorageUnavailable, timestamp

log = logging.getLogger(__name__)


class KeyInUse(Exception):
    """A turn of this idempotency key runs or has ended in the meantime. No other one is needed."""


class LocalTurn(Turn):
    """A turn that this process runs: from the lock of its session to the release.

    `on_end(turn, last_event)` is called once, when everything is stored and before readers get the last event. With
    `show_reasoning`, the model's reasoning is among the events. It is stored either way. `observer` sees it.
    """

    def __init__(
        self,
        session_id: str,
        question: TurnRequest,
        on_end: Callable[[LocalTurn, Ended | Failed], None],
        observer: Observer,
        *,
        show_reasoning: bool,
    ) -> None:
        super().__init__(session_id, question)
        self.started_at = time.monotonic()
        self.usage: dict[str, Any] | None = None
        self.version: tuple[Any, ...] = ()  # of the session, when the turn has ended
        self._on_end = on_end
        self._start_decided = threading.Event()  # the turn has started, or `_start_error` says why it never will
        self._start_error: BaseException | None = None
        self._cancellation = Cancellation()
        self._storing = threading.Lock()  # held to write messages: by the turn's thread, and once by who ends it
        self._stored_until = 0  # the text behind so many events is in no stored message yet
        self._reasoning: list[str] = []  # that is in no stored message yet
        self._show_reasoning = show_reasoning
        self._observer = observer
        self._silent = True  # until the first text
        self._settings: dict[str, Any] = {}  # model, instructions and options that are not the agent's own
        self._attempt: dict[str, Any] = {}
        self._journal: Callable[[bytes], None] | None = None
        self._kept_until = 0  # so many events are in the journal
        self._hidden: list[str] = []  # reasoning that is neither an event nor in the journal
        self._open_calls = 0  # tool calls without a result
        self._tool_started_at = 0.0
        self._tool_seconds = 0.0

    def start(self, session: LockedSession, default_model: str) -> list[dict[str, Any]]:
        """Stores the user's message, and returns the messages that go to the model.

        Another attempt at a failed turn finds the user's message stored. Raises KeyInUse where the key's turn has
        ended in the meantime, QuestionRefused, NothingToContinue, and StorageUnavailable or SessionCorrupt; then the
        turn has not started.
        """
        question = self.question
        stored = find_turn(session.session, question.key)
        if stored is not None and not stored.can_be_retried:
            raise KeyInUse
        if question.continues:
            message = self._go_on(session)
        elif stored is None:
            message = session.append(question_message(session.session, question))
        else:
            message = stored.messages[0]
            self._attempt = {"attempt": 1 + stored.attempt}
        self._settings = {
            "model": question.model or session.session.model or default_model,
            "system_prompt": session.session.system_prompt
            if question.system_prompt is None
            else question.system_prompt,
            "options": question.options,
        }
        self._session = session
        self.message_id = message["id"]
        attempt = self._attempt.get("attempt", 1)
        first = identity(self.id, self.message_id, attempt, {**self._attempt, "model": self._settings["model"]})
        self._journal = session.journal(first)
        if publish := session.publish_turn(first, self._end_from_elsewhere):
            self._log.publish = lambda entry: publish(encode_event(entry), isinstance(entry.event, Ended | Failed))
        self._observer = self._observer.start_span(
            TurnSpan(self.session_id, self._settings["model"], self.started_at)
        )
        self._log.append(Started())
        self._start_decided.set()
        return outgoing_messages(session.session.messages, attempt, goes_on=question.continues)

    def _go_on(self, session: LockedSession) -> dict[str, Any]:
        """Stores that an attempt goes on with the session's last turn. Returns the turn's question."""
        stored = last_turn(session.session)
        if stored is None or stored.complete:
            raise NothingToContinue
        attempt = {"attempt": 1 + stored.attempt, "goes_on": True}
        self._attempt = attempt if self.question.key is None else {**attempt, "idempotency_key": self.question.key}
        session.set_continuation({**self._attempt, "recovery": self.question.recovery})
        return stored.messages[0]

    def keep(self) -> None:
        """Writes to the journal what has come since the last time. Never raises."""
        if self._journal is None or not self._storing.acquire(blocking=False):
            return  # there is none, or what has come is being stored
        try:
            if self._journal is None:
                return
            if hidden := self._hidden[:]:
                del self._hidden[: len(hidden)]
                self._journal(encode_event(LoggedEvent(0, timestamp(), 0, Reasoning("".join(hidden)))) + b"\n")
            if len(self._log) > self._kept_until:
                entries = self._log.read(self._kept_until, 0, MAX_EVENTS)
                self._kept_until += len(entries)
                self._journal(b"".join(line + b"\n" for line in journal_lines(entries)))
        except Exception:
            log.exception("the journal of turn %s of %s could not be kept", self.id, self.session_id)
            self._journal = None
        finally:
            self._storing.release()

    def fail_to_start(self, error: BaseException) -> None:
        """Tells all who wait for the start that the turn does not start."""
        self._start_error = error
        self._start_decided.set()

    def wait_for_start(self) -> bool:
        """Waits until the user's message is stored. Returns False if the turn does not start."""
        self._start_decided.wait()
        return self._start_error is None

    def join(self) -> None:
        """Waits for the start. Raises the error that keeps the turn from starting."""
        if not self.wait_for_start():
            assert self._start_error is not None
            raise self._start_error

    def run(self, agent: Agent, history: Sequence[Mapping[str, Any]]) -> None:
        """Runs the turn to its end, on the calling thread."""
        try:
            run = agent.run(history, self._cancellation, observer=self._observer, **self._settings)
            with contextlib.closing(run) as events:
                for event in events:
                    self._handle(event)
        except (TurnEnded, Cancelled):
            pass  # the caller that ended the turn does the rest
        except ModelError as error:
            self.fail(error.code, str(error), error.retry_after, refused=error.refused)
        except StorageUnavailable:
            self.fail("storage_unavailable")
        except Exception:
            log.exception("turn %s of %s failed", self.id, self.session_id)
            self.fail("internal_error")

    def fail(
        self, code: str, text: str | None = None, retry_after: str | None = None, *, refused: bool = False
    ) -> bool:
        """Ends the turn with an error. Returns whether this call ended it.

        `refused` says that the model server refused the question, which is then left out of later requests.
        """
        return self._end("incomplete", code, failure=Failed(code, text, retry_after), refused=refused)

    @property
    def ending(self) -> bool:
        """Whether a caller has begun to end the turn."""
        return self._log.sealed

    def cancel(self) -> bool:
        """Ends the turn as cancelled and keeps its partial answer. Returns whether this call ended it.

        The turn has ended when this returns, either way.
        """
        cancelled = self._end("cancelled", "cancelled")
        self._ended.wait()
        return cancelled

    def end_in_background(self, end: Callable[[], object]) -> None:
        """Calls `end` on a thread of its own, once the turn has started. Returns at once."""

        def end_when_started() -> None:
            if self.wait_for_start():
                end()

        try:
            threading.Thread(target=end_when_started, name=f"end of {self.id}", daemon=True).start()
        except RuntimeError:  # the system gives no more threads
            end_when_started()

    def tool_seconds(self) -> float:
        """How many seconds tools have worked, the running one included."""
        return self._tool_seconds + (time.monotonic() - self._tool_started_at if self._open_calls else 0.0)

    def _end_from_elsewhere(self, asked: bool) -> None:
        """Another process asks for the end, or (where not `asked`) has locked the session by now."""
        self.end_in_background(self.cancel if asked else lambda: self.fail("internal_error", INTERRUPTED_TEXT))

    def _handle(self, event: Reasoning | Chunk | ToolCall | ToolResult | Message | Answer) -> None:
        if isinstance(event, Chunk | Reasoning):
            if len(self._log) >= MAX_EVENTS:
                raise ModelError("model_error", "The model server sent too long an answer.")
            if type(event) is Reasoning:
                self._reasoning.append(event.content)
                if not self._show_reasoning and self._journal is not None:
                    self._hidden.append(event.content)
            elif self._silent:
                self._silent = False
                self._observer.first_chunk(time.monotonic() - self.started_at)
            if type(event) is Chunk or self._show_reasoning:
                self._log.append(event)
        elif isinstance(event, Message):
            self.usage = event.usage
            if event.data["role"] == "tool":
                self._tool_seconds = self.tool_seconds()
            with self._storing:
                if self._log.sealed:
                    raise TurnEnded
                self._session.append({**event.data, **self._attempt})
                if event.data["role"] == "assistant":
                    self._stored_until = len(self._log)
                    self._reasoning = []
        elif isinstance(event, Answer):
            self.usage = event.usage
            status = "completed" if event.reason is None else "incomplete"
            self._end(status, event.reason, finish_reason=event.finish_reason, fields=event.fields)
        elif isinstance(event, ToolCall | ToolResult):
            self._log.append(event)
            self._open_calls += 1 if isinstance(event, ToolCall) else -1
            self._tool_started_at = time.monotonic()
        else:
            assert_never(event)

    def _end(
        self,
        status: str,
        reason: str | None,
        *,
        finish_reason: str | None = None,
        fields: Mapping[str, Any] | None = None,
        failure: Failed | None = None,
        refused: bool = False,
    ) -> bool:
        """Stores the answer or what there is of it, releases the session, and only then adds the last event."""
        if not self._log.seal():
            return False
        if status == "cancelled" or failure:
            self._cancellation.cancel()
        with self._storing:
            answer: dict[str, Any] = {"role": "assistant", "content": self._log.text(self._stored_until)}
            answer |= self._partial_fields() if fields is None else fields
            answer |= self._attempt
            if status != "completed":
                answer |= {"status": status, "reason": reason}
            if self.usage is not None:
                answer["usage"] = self.usage
            if self.question.key is not None and finish_reason is not None:
                answer["finish_reason"] = finish_reason
            try:
                last = self._store_end(answer, finish_reason, failure, refused)
                if self._journal is not None:
                    self._session.drop_journal()
            except LockLost:
                last = Failed("internal_error", INTERRUPTED_TEXT)  # what other servers tell their watchers
            except StorageUnavailable:
                last = failure or Failed("storage_unavailable")
            except Exception:
                log.exception("turn %s of %s could not be stored", self.id, self.session_id)
                last = Failed("internal_error")
            finally:
                self._journal = None
                self.version = version_of(self._session.session)
                self._session.release()
                del self._session  # with the whole history, which an ended turn does not need
        self._observer.end(Result(status_of(last), failed=isinstance(last, Failed), usage=self.usage))
        self._on_end(self, last)
        self._close(last)
        return True

    def _partial_fields(self) -> dict[str, Any]:
        """What is stored beside the text of a partial answer."""
        fields = {"reasoning": "".join(self._reasoning), "model": self._settings["model"]}
        return {name: value for name, value in fields.items() if value}

    def _store_end(
        self, answer: dict[str, Any], finish_reason: str | None, failure: Failed | None, refused: bool
    ) -> Ended | Failed:
        """Stores the answer, or the code of the failure where there is no text. Returns the last event."""
        if failure is None:
            return Ended(self._session.append(answer), self._log.text(), finish_reason)
        if answer["content"]:
            message_id = self._session.append(answer)["id"]
            return Failed(failure.code, failure.text, failure.retry_after, message_id)
        self._session.set_last_error(stored_error(failure.code, refused=refused and not self._log.text()))
        return failure


def fail_all(turns: Sequence[LocalTurn], code: str) -> None:
    """Ends those of the turns that have not ended. All have ended when this returns.

    It ends them at the same time, since a store may take seconds to say that it cannot be written.
    """
    for turn in turns:
        if not turn.ending:
            turn.end_in_background(functools.partial(turn.fail, code))
    for turn in turns:
        if turn.wait_for_start():
            turn.result()
