"""The frames of one answer, put together."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from model.budget import Budget
from model.events import ModelError, ToolCall
from model.stream import NotAnAnswer
from model.text import utf8_text

_MAX_CALLS = 64  # in one answer


class Reply:
    """One answer of the model. `add` takes its frames one by one, and `end` the end of the stream."""

    def __init__(self, budget: Budget) -> None:
        self.finish_reason: str | None = None
        self.usage: Any = None
        self._budget = budget
        self._text: list[str] = []
        self._half = ""  # of a character that stands in two frames
        self._calls: list[_PartialCall] = []
        self._by_index: dict[int, _PartialCall] = {}

    def add(self, frame: Any) -> str:
        """Takes one frame, a chunk or a whole completion. Gives the text that it adds.

        Raises ValueError for what is no frame, NotAnAnswer for an error in its place.
        """
        if not isinstance(frame, dict):
            raise ValueError("a frame is not a JSON object")
        if frame.get("error") or frame.get("object") == "error":
            raise NotAnAnswer(frame)
        if usage := frame.get("usage"):
            self.usage = usage
        choices = frame.get("choices")
        if not choices or not isinstance(choices, list):
            return ""
        choice = choices[0]
        if not isinstance(choice, dict) or choice.get("index"):
            return ""
        if reason := choice.get("finish_reason"):
            self.finish_reason = utf8_text(str(reason))[:100]
        delta = choice.get("delta") or choice.get("message")
        if not isinstance(delta, dict):
            return ""
        text = self._add_text(delta.get("content"))
        if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
            self._budget.use(len(str(reasoning)))
        if calls := delta.get("tool_calls"):
            self._add_calls(calls)
        return text

    def end(self) -> str:
        """The last text, if any is left. Raises ValueError if nothing has come at all."""
        rest, self._half = utf8_text(self._half), ""
        self._text.append(rest)
        if self.finish_reason is None and not any(call.name for call in self._calls) and not any(self._text):
            raise ValueError("nothing in the answer")
        return rest

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self._text)

    @property
    def has_calls(self) -> bool:
        """Whether a tool call has begun."""
        return bool(self._calls)

    def calls(self, unique_id: Callable[[str], str]) -> list[ToolCall]:
        """The tool calls. `unique_id` gives each an id that is unique in its conversation."""
        return [
            ToolCall(unique_id(utf8_text(call.id)), utf8_text(call.name), utf8_text("".join(call.arguments)) or "{}")
            for call in self._calls
            if call.name
        ]

    def _add_text(self, content: Any) -> str:
        text = content or ""
        if not isinstance(text, str):
            self._budget.use(len(str(text)))
            text = _text_of_parts(text)
        if text:
            if self._half or not text.isascii():
                text = self._whole_characters(text)
            self._budget.use(len(text) if text.isascii() else len(text.encode()))
            self._text.append(text)
        return text

    def _whole_characters(self, text: str) -> str:
        text = self._half + text
        self._half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
        return utf8_text(text[:-1] if self._half else text)

    def _add_calls(self, pieces: Any) -> None:
        for piece in pieces if isinstance(pieces, list) else ():
            if not isinstance(piece, dict):
                continue
            function = piece.get("function")
            function = function if isinstance(function, dict) else {}
            id, name, arguments = piece.get("id"), function.get("name"), function.get("arguments")
            id, name = id if isinstance(id, str) else "", name if isinstance(name, str) else ""
            if not isinstance(arguments, str):
                arguments = "" if arguments is None else json.dumps(arguments)
            self._budget.use(len(id) + len(name) + len(arguments))
            call = self._call_of(piece.get("index"), id, name)
            call.id = call.id or id
            call.name = call.name or name
            if arguments:
                call.arguments.append(arguments)

    def _call_of(self, index: Any, id: str, name: str) -> _PartialCall:
        """The call that a piece belongs to: by index where there is one, else by what the piece begins."""
        last = self._calls[-1] if self._calls else None
        if isinstance(index, int):
            call = self._by_index.get(index)
            new = call is None or bool(id and name and call.id and id != call.id)
        else:
            call = last
            new = call is None or (id != call.id if id else bool(name))
        if call is None or new:
            if len(self._calls) == _MAX_CALLS:
                raise ModelError("model_error", "The model asked for too many tools at once.")
            call = _PartialCall(id, name)
            self._calls.append(call)
            if isinstance(index, int):
                self._by_index[index] = call
        return call


class _PartialCall:
    """A tool call that is arriving."""

    def __init__(self, id: str, name: str) -> None:
        self.id = id
        self.name = name
        self.arguments: list[str] = []


def _text_of_parts(parts: Any) -> str:
    """The text in a list of content parts, without the reasoning."""
    texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return "".join(text for text in texts if isinstance(text, str))


def sum_usage(before: dict[str, Any] | None, usage: Any, depth: int = 0) -> dict[str, Any] | None:
    """The numbers of two usages added up, those of their details too. None where there is no number."""
    total = dict(before or {})
    for key, value in list(usage.items())[:50] if isinstance(usage, dict) else ():
        known = total.get(key := utf8_text(key)[:100])
        if isinstance(value, dict) and depth < 3:
            total[key] = sum_usage(known if isinstance(known, dict) else None, value, depth + 1) or {}
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15:
            total[key] = value + (known if isinstance(known, (int, float)) else 0)
    return total or None
