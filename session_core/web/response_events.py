"""The stream of a response: the events of its turn with the numbers by which it is taken up again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from session_core.model.events import ToolCall
from session_core.turns.event_log import Ended, Event, Failed, LoggedEvent, Started
from session_core.turns.stored import INTERRUPTED_TEXT
from session_core.web.response_ids import ResponseId
from session_core.web.response_items import ResponseItems, Told, client_tools_of
from session_core.web.response_object import render_response
from session_core.web.turn_responses import DONE, Renderer, encode_json, sse_data

# Behind events that a crash has cut off, numbers go on from the next multiple: a client may have seen events that
# were lost. No attempt has so many.
NUMBERS_OF_AN_ATTEMPT = 1_000_000

_LAST = {"completed": "completed", "failed": "failed", "incomplete": "incomplete", "cancelled": "incomplete"}


class ResponseRenderer(Renderer):
    """The events of a response behind the one of the number `after`, each as one frame, and `[DONE]` behind the last.

    `record` says what it was asked with, and `calls` are those of earlier responses, by id. `earlier` are the events
    of attempts that crashes have cut off, and that the response has gone on from. Without `deltas`, texts are told
    whole, as they can be told again.
    """

    comment = b": keep-alive\n"  # an empty line behind it is an empty event for some clients

    def __init__(
        self,
        id: ResponseId,
        record: Mapping[str, Any],
        calls: Mapping[str, ToolCall],
        earlier: Iterable[list[Event]] = (),
        after: int = -1,
        *,
        deltas: bool = True,
    ) -> None:
        self._id = id
        self._record = record
        sealed = record["model"] if record.get("sealed") else ""
        tools = client_tools_of(record)
        self._items = ResponseItems(id, earlier=calls, tools=tools, sealed=sealed, pieces=deltas)
        self._earlier = list(earlier)
        self._after = after
        self._number = 0
        self._last: Ended | Failed | None = None

    def render(self, entry: LoggedEvent) -> bytes:
        """See Renderer.render."""
        frames = b"".join(self._frame(told) for told in self._tell(entry.event))
        return frames + DONE if isinstance(entry.event, Ended | Failed) else frames

    def response(self, entries: Iterable[LoggedEvent], status: str = "in_progress") -> dict[str, Any]:
        """The response after these events of its turn."""
        for entry in entries:
            self.render(entry)
        return self._response(status)

    def _response(self, status: str) -> dict[str, Any]:
        return render_response(self._id, self._record, self._items.output, self._last, status)

    def _tell(self, event: Event) -> Iterator[Told]:
        """What tells of the turn's next event."""
        if isinstance(event, Started):
            yield from self._begin()
        elif isinstance(event, Ended | Failed):
            if isinstance(event, Failed) and event.text == INTERRUPTED_TEXT:
                self._skip_lost()
            yield from self._items.tell(event)
            self._last = event
            response = self._response("")
            yield {"type": f"response.{_LAST[response['status']]}", "response": response}
        else:
            yield from self._items.tell(event)

    def _begin(self) -> Iterator[Told]:
        """The beginning, and what was told before crashes."""
        if self._record.get("background"):
            yield {"type": "response.created", "response": self._response("queued")}
            yield {"type": "response.queued", "response": self._response("queued")}
        else:
            yield {"type": "response.created", "response": self._response("in_progress")}
        yield {"type": "response.in_progress", "response": self._response("in_progress")}
        for events in self._earlier:
            *told, last = events[1:]
            for event in told:
                yield from self._items.tell(event)
            self._skip_lost()
            yield from self._items.tell(last)

    def _skip_lost(self) -> None:
        self._number += NUMBERS_OF_AN_ATTEMPT - self._number % NUMBERS_OF_AN_ATTEMPT

    def _frame(self, told: Told) -> bytes:
        number, self._number = self._number, self._number + 1
        if number <= self._after:
            return b""
        text = encode_json({"type": told["type"], "sequence_number": number, **told})
        return f"event: {told['type']}\n".encode() + sse_data(text)
