"""The Chat Completions dialect's answers: a turn as chunks, or as one completion, and an error."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from flask import Response

from session_core.model.events import Chunk, Reasoning
from session_core.turns.event_log import Ended, Event, Failed, LoggedEvent, Started
from session_core.turns.turn import Turn
from session_core.web.errors import describe_error, json_response
from session_core.web.openai_history import ChatRequest
from session_core.web.openai_tools import render_calls
from session_core.web.turn_responses import DONE, Renderer, encode_json, sse_data

_ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def openai_error(status: int, code: str, text: str) -> Response:
    """The error in the form of OpenAI's API."""
    return json_response(_error(status, code, text), status)


class CompletionRenderer(Renderer):
    """The chunks of one completion, without the prefix of the answer, which the client has."""

    comment = b": keep-alive\n"  # an empty line behind it is an empty event for some clients

    def __init__(self, turn: Turn, asked: ChatRequest, model: str) -> None:
        self._fixed = {
            "id": f"chatcmpl-{turn.id}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._asked = asked
        self._prefix_length = len(asked.own.prefix)
        self.broken_off = sse_data(encode_json(_error_of("storage_unavailable"))) + DONE

    def render(self, entry: LoggedEvent) -> bytes:
        """The frames of the next event, and `[DONE]` behind the last."""
        block = b"".join(sse_data(encode_json(chunk)) for chunk in self.completion_chunks(entry.event))
        return block + DONE if isinstance(entry.event, Ended | Failed) else block

    def completion_chunks(self, event: Event) -> Iterator[dict[str, Any]]:
        """The chunks of the next event, as objects."""
        match event:
            case Started():
                yield self._chunk({"role": "assistant", "content": ""})
            case Reasoning():
                yield self._chunk({"reasoning_content": event.content})
            case Chunk():
                content = event.content[self._prefix_length :]  # in a replay the prefix has the answer behind it
                self._prefix_length -= len(event.content) - len(content)
                if content:
                    yield self._chunk({"content": content}, logprobs=event.logprobs)
            case Ended():
                if event.status == "waiting":
                    calls = render_calls(event.message, self._asked.functions)
                    numbered = [{"index": at, **call} for at, call in enumerate(calls.get("tool_calls", ()))]
                    yield self._chunk({"tool_calls": numbered} if numbered else calls)
                yield self._chunk({}, _finish_reason(event, self._asked))
                if self._asked.with_usage:
                    yield {**self._fixed, "choices": [], "usage": _usage(event)}
            case Failed():
                yield _error_of(event.code, event.text)

    def _chunk(
        self, delta: dict[str, Any], finish_reason: str | None = None, logprobs: Sequence[Any] | None = None
    ) -> dict[str, Any]:
        return {
            **self._fixed,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason, **_render_logprobs(logprobs)}],
        }


def render_completion(turn: Turn, last: Ended, *, asked: ChatRequest) -> Response:
    """The ended turn as one completion, without the prefix of the answer, which the client has."""
    message: dict[str, Any] = {"role": "assistant", "content": last.complete_text.removeprefix(asked.own.prefix)}
    events = [one.event for one in turn.read_all()]
    if reasoning := [event.content for event in events if isinstance(event, Reasoning)]:
        message["reasoning_content"] = "".join(reasoning)
    if last.status == "waiting":
        message |= {"content": message["content"] or None, **render_calls(last.message, asked.functions)}
    logprobs = [token for event in events if isinstance(event, Chunk) for token in event.logprobs or ()]
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": _finish_reason(last, asked),
        **_render_logprobs(logprobs),
    }
    return json_response(
        {
            "id": f"chatcmpl-{turn.id}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": last.message.get("model", ""),
            "choices": [choice],
            "usage": _usage(last),
        }
    )


def _usage(last: Ended) -> dict[str, Any]:
    """The usage with all numbers that OpenAI's has, 0 where the model server tells none: clients need them."""
    return dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 0) | (
        last.message.get("usage") or {}
    )


def _error_of(code: str, text: str | None = None) -> dict[str, Any]:
    code, status, default = describe_error(code)
    return _error(status, code, text or default)


def _error(status: int, code: str, text: str) -> dict[str, Any]:
    kind = _ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": text, "type": kind, "param": None, "code": code}}


def _render_logprobs(tokens: Sequence[Any] | None) -> dict[str, Any]:
    return {"logprobs": {"content": tokens, "refusal": None}} if tokens else {}


def _finish_reason(last: Ended, asked: ChatRequest) -> str:
    """OpenAI's word for how the answer ended. Of those that its clients know, `length` is the one for an answer that
    was cut short, whatever cut it."""
    if last.status == "waiting":
        return "function_call" if asked.functions else "tool_calls"
    if last.message.get("reason") == "content_filter":
        return "content_filter"
    return "length" if last.status in ("incomplete", "cancelled") else "stop"
