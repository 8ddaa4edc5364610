"""A response as an object: what it was asked with, what came of it, and the stream of events that tell of both.

What it was asked with is stored as `response` in the first message of its turn, in the names of the API, as far as it
is not the default. Beside that stand:

    created_at    seconds since 1970
    model         the model that was asked
    conversation  whether a conversation was named
    input         how many messages it brought, which end with the question, or before its answer
    system        the texts of its system messages, which later requests have too
    sealed        whether reasoning comes with `encrypted_content`
"""

import calendar
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from session_core.model.events import ToolCall
from session_core.turns.event_log import Ended, Event, Failed, LoggedEvent, Started
from session_core.turns.stored import INTERRUPTED_TEXT
from session_core.web.errors import describe_error
from session_core.web.response_ids import ResponseId, conversation_id
from session_core.web.response_items import ResponseItems, Told, client_tools_of
from session_core.web.turn_responses import DONE, Renderer, encode_json, sse_data

DEFAULTS: dict[str, Any] = {
    "background": False,
    "frequency_penalty": 0,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "presence_penalty": 0,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1,
    "truncation": "disabled",
}
_ERROR_CODES = {
    "model_rate_limited": "rate_limit_exceeded",
    "context_length_exceeded": "invalid_prompt",
    "invalid_request": "invalid_prompt",
}
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
        self._items = ResponseItems(id, earlier=calls, tools=client_tools_of(record), sealed=sealed, pieces=deltas)
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
        """The response, with the last event of its turn, or with this status where the turn has not ended."""
        record, last = self._record, self._last
        message = last.message if isinstance(last, Ended) else None
        if last is not None:
            status = "failed" if isinstance(last, Failed) else {"waiting": "completed"}.get(last.status, last.status)
        reason = message.get("reason") if message and status == "incomplete" else None
        return {
            "id": str(self._id),
            "object": "response",
            "created_at": record["created_at"],
            "completed_at": seconds(message["created_at"]) if message and status == "completed" else None,
            "status": status,
            "error": _error(last) if isinstance(last, Failed) else None,
            "incomplete_details": {"reason": _incomplete_reason(reason)} if reason else None,
            **{name: record.get(name, default) for name, default in DEFAULTS.items()},
            "conversation": {"id": conversation_id(self._id.session_id)} if record.get("conversation") else None,
            "model": record["model"],
            "output": list(self._items.output),
            "usage": render_usage(message.get("usage")) if message else None,
        }

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


def render_usage(usage: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The use of tokens in the names of this API. None where the model server told nothing."""
    if not usage:
        return None
    cached = _number(usage.get("prompt_tokens_details"), "cached_tokens")
    thought = _number(usage.get("completion_tokens_details"), "reasoning_tokens")
    sent, answered = _number(usage, "prompt_tokens"), _number(usage, "completion_tokens")
    return {
        "input_tokens": sent,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": answered,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": _number(usage, "total_tokens") or sent + answered,
    }


def seconds(created_at: str) -> int:
    """A stored time in seconds since 1970, 0 for one that another hand has written."""
    try:
        return calendar.timegm(time.strptime(created_at, "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError:
        return 0


def _number(fields: Any, name: str) -> int:
    value = fields.get(name) if isinstance(fields, Mapping) else None
    return value if isinstance(value, int) else 0


def _incomplete_reason(reason: str) -> str:
    """Of the reasons that clients know, the one for an answer that was cut short, whatever cut it."""
    return "content_filter" if reason == "content_filter" else "max_output_tokens"


def _error(failed: Failed) -> dict[str, str]:
    """The error, in words that do not change when the response is had again: more of them are not stored."""
    code, _, text = describe_error(failed.code)
    message = failed.text if failed.text == INTERRUPTED_TEXT else text
    return {"code": _ERROR_CODES.get(code, "server_error"), "message": message or text}
