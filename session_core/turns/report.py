"""What is told of a turn while it runs: its times, its tokens, its span, its line in the log."""

import logging
import time
from typing import Any

from session_core.model.events import Chunk, ToolCall, ToolResult
from session_core.telemetry.spans import Observer, Result
from session_core.turns.event_log import Ended, Event, Failed, status_of

log = logging.getLogger(__name__)


class TurnReport:
    """The report of one turn, which began at `started_at`. Its events are told to the `span`."""

    def __init__(self, session_id: str, span: Observer, started_at: float) -> None:
        self.span = span
        self.started_at = started_at
        self.usage: dict[str, Any] | None = None
        self._session_id = session_id
        self._silent = True  # until the first text
        self._open_calls = 0  # tool calls without a result
        self._tool_counted_at = 0.0
        self._tool_seconds = 0.0

    def saw(self, event: Event) -> None:
        """Tells of the next event."""
        if self._silent and type(event) is Chunk:
            self._silent = False
            self.span.first_chunk(time.monotonic() - self.started_at)
        elif isinstance(event, ToolCall | ToolResult):
            self._tool_seconds = self._tool_time()
            self._open_calls += 1 if isinstance(event, ToolCall) else -1
            self._tool_counted_at = time.monotonic()

    def end(self, last: Ended | Failed) -> None:
        """Tells of the end."""
        self.span.end(Result(status_of(last), failed=isinstance(last, Failed), usage=self.usage))
        seconds = time.monotonic() - self.started_at
        log.info(
            "turn session=%s status=%s seconds=%.3f model_seconds=%.3f tokens=%s",
            self._session_id,
            status_of(last),
            seconds,
            seconds - self._tool_time(),
            (self.usage or {}).get("total_tokens", "-"),
        )

    def _tool_time(self) -> float:
        return self._tool_seconds + (time.monotonic() - self._tool_counted_at if self._open_calls else 0.0)
