"""The tool calls of one answer, run at the same time."""

import contextlib
import logging
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace

from session_core.data.message import ContentPart
from session_core.data.text import utf8_text
from session_core.model.budget import Budget
from session_core.model.cancellation import Cancellation
from session_core.model.events import ToolCall, ToolResult
from session_core.telemetry.spans import Observer, Result, ToolSpan
from session_core.tools.functions import MAX_RESULT_CHARACTERS, AnyTool

log = logging.getLogger(__name__)

MAX_AT_ONCE = 8  # calls of one answer

_TIMED_OUT = "the tool did not answer in time"
_LOOK_SECONDS = 0.1  # between two looks at the turn's own end, while a tool works
_RESPONSIVE_SECONDS = 0.005  # the interpreter's switch interval while tools work


def run_calls(
    tools: Mapping[str, AnyTool],
    calls: Sequence[ToolCall],
    budget: Budget,
    timeout: float,
    observer: Observer | None = None,
    keep: Callable[[Sequence[bytes]], list[ContentPart]] | None = None,
) -> Generator[ToolResult, None, None]:
    """The results of the calls, in the order of the calls.

    A call that takes longer than `timeout` seconds is abandoned: it is told so, and its result is dropped. A function
    cannot hear that, and its thread goes on. `keep` keeps the pictures of a result, and returns the parts that name
    them. Raises Cancelled or ModelError when the turn has ended or its time is
    up, and abandons all calls then.
    """
    pending: queue.SimpleQueue[_Call] = queue.SimpleQueue()
    started = [_Call(tools, call, observer or Observer()) for call in calls]
    for call in started:
        pending.put(call)
    for _ in range(min(len(started), MAX_AT_ONCE)):
        _start_worker(pending)
    try:
        for call in started:
            while not call.done.wait(_LOOK_SECONDS):
                budget.remaining()
                if call.began_at is not None and time.monotonic() > call.began_at + timeout:
                    call.cancellation.cancel()
                    call.end(Result("timeout", failed=True))
                    call.result = ToolResult(call.call.id, call.call.name, error=_TIMED_OUT)
                    _start_worker(pending)  # in place of the one that hangs
                    break
            budget.remaining()
            assert call.result is not None
            yield replace(call.result, files=keep(call.pictures)) if keep and call.pictures else call.result
    finally:
        for call in started:
            if not call.done.is_set():
                call.cancellation.cancel()
                call.end(Result("stopped"))


class _Call:
    """One call, and what becomes of it."""

    def __init__(self, tools: Mapping[str, AnyTool], call: ToolCall, observer: Observer) -> None:
        self.call = call
        self.done = threading.Event()
        self.began_at: float | None = None
        self.cancellation = Cancellation()
        self.result: ToolResult | None = None
        self.pictures: Sequence[bytes] = ()
        self._tools = tools
        self._observer = observer
        self._observed: Observer | None = None  # while it runs
        self._lock = threading.Lock()

    def run(self) -> None:
        if self.cancellation.is_cancelled:
            return
        self.began_at = time.monotonic()
        observed = self._observed = self._observer.start_span(
            ToolSpan(self.call.id, self.call.name, self.call.name in self._tools)
        )
        with observed.current():
            result = self._result()
        self.end(Result("ok") if result.error is None else Result("error", failed=True))
        if not self.cancellation.is_cancelled:
            self.result = result
        self.done.set()

    def end(self, outcome: Result) -> None:
        """Tells the observer of the end, if the call runs: the first one counts."""
        with self._lock:
            observed, self._observed = self._observed, None
        if observed:
            observed.end(outcome)

    def _result(self) -> ToolResult:
        id, name = self.call.id, self.call.name
        tool = self._tools.get(name)
        if tool is None:
            known = ", ".join(self._tools) or "none"
            return ToolResult(id, name, error=f"there is no tool of this name; the tools are: {known}")
        try:
            with _responsive:
                output = tool(self.call.arguments, id, self.cancellation)
            if isinstance(output, str):
                return ToolResult(id, name, result=output)
            self.pictures = output.pictures
            return ToolResult(id, name, result=output.text)
        except ValueError as error:
            return ToolResult(id, name, error=utf8_text(str(error))[:MAX_RESULT_CHARACTERS] or "the tool failed")
        except BaseException as error:  # noqa: BLE001  a tool is anybody's code
            where = "".join(traceback.format_tb(error.__traceback__))  # without the text, which may quote a message
            log.warning("Tool %s failed with %s", name, type(error).__name__, extra={"where": where})
            return ToolResult(id, name, error=f"the tool failed ({type(error).__name__})")


def _start_worker(pending: queue.SimpleQueue[_Call]) -> None:
    """Runs pending calls on a thread of its own, or on this one where the system gives no more threads."""
    try:
        threading.Thread(target=_work, args=(pending,), name="tool", daemon=True).start()
    except RuntimeError:
        _work(pending)


def _work(pending: queue.SimpleQueue[_Call]) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            call = pending.get_nowait()
            call.run()
            if call.cancellation.is_cancelled:  # another worker has taken this one's place
                return


class _Responsive:
    """Lets a thread that computes give way sooner than it otherwise does, while at least one tool works."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tools = 0
        self._interval = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._tools:
                self._interval = sys.getswitchinterval()
                sys.setswitchinterval(min(self._interval, _RESPONSIVE_SECONDS))
            self._tools += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._tools -= 1
            if not self._tools:
                sys.setswitchinterval(self._interval)


_responsive = _Responsive()
