"""The frames of one answer, put together."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from session_core.data.text import as_object, json_object, utf8_text
from session_core.model.budget import Budget
from session_core.model.events import Chunk, ModelError, Reasoning, ToolCall
from session_core.model.failures import NotAnAnswer
from session_core.model.finish_reasons import classify_finish_reason
from session_core.model.provider_metadata import extra_call_fields
from session_core.model.thinking import ThinkTags, add_details, objects_in, read_details, read_parts, read_reasoning

_MAX_CALLS = 64  # in one answer
_PLAIN = {"role", "content"}  # of a delta with text alone


@dataclass
class PartialCall:
    """A tool call that is arriving. `extras` is what it carried beside its known fields."""

    index: Any
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)


class Reply:
    """One answer of the model. `add` takes its frames one by one, and `end` the end of the stream."""

    def __init__(self, budget: Budget) -> None:
        self.finish_reason: str | None = None
        self.model: str | None = None  # as the last frame names it
        self.usage: Any = None
        self.reasoning_field: str | None = None  # the name under which the reasoning comes
        self.verbatim_fields: dict[str, Any] = {}  # what the server wants back beside that
        self._budget = budget
        self._pieces: dict[type[Reasoning | Chunk], list[str]] = {Reasoning: [], Chunk: []}
        self._halves = {Reasoning: "", Chunk: ""}  # of a character that stands in two frames
        self._tags = ThinkTags()
        self._calls: list[PartialCall] = []
        self._logprobs: list[dict[str, Any]] = []  # of tokens that no event has told yet

    def add(self, frame: Any) -> list[Reasoning | Chunk]:
        """Takes one frame, a chunk or a whole completion. Returns the reasoning and the text that it adds.

        Raises ValueError for what is no frame, NotAnAnswer for an error in its place.
        """
        choice = _first_choice(frame)
        self.usage = frame.get("usage") or self.usage
        if choice is None:
            return []
        if choice.get("finish_reason"):
            self._finish(choice["finish_reason"], frame.get("model"))
        self.usage = choice.get("usage") or self.usage  # Moonshot
        delta = choice.get("delta") or self._news_in(choice.get("message"))
        if not isinstance(delta, dict):
            return []
        text = delta.get("content")
        logprobs = choice.get("logprobs")
        if isinstance(text, str) and text and self._plain(delta) and text.isascii() and not logprobs:  # most frames
            self._budget.use(len(text))
            self._pieces[Chunk].append(text)
            return [Chunk(text)]
        return self._add_logprobs(logprobs, self._add_delta(delta))

    def end(self) -> list[Reasoning | Chunk]:
        """The last reasoning and text, if any is left. Raises ValueError if nothing has come at all."""
        reasoning, text = self._tags.end()
        rest = self._emit(reasoning, text, last=True)
        if self.finish_reason is None and not self.has_begun and not any(call.name for call in self._calls):
            raise ValueError("nothing in the answer")
        return rest

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the request had, as the model server tells. 0 where it does not."""
        used = as_object(self.usage)
        told = used.get("prompt_tokens") or used.get("input_tokens")
        return told if type(told) is int and 0 < told < 1e15 else 0

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self._pieces[Chunk])

    @property
    def reasoning(self) -> str:
        """All reasoning so far."""
        return "".join(self._pieces[Reasoning])

    @property
    def incomplete_reason(self) -> str | None:
        """Why the answer is not complete: `length`, `content_filter` or `no_finish_reason`."""
        meaning = classify_finish_reason(self.finish_reason)
        return None if meaning == "completed" else meaning

    @property
    def is_broken_off(self) -> bool:
        """Whether the finish reason means a failure."""
        return classify_finish_reason(self.finish_reason) == "failed"

    @property
    def has_begun(self) -> bool:
        """Whether there is reasoning or text."""
        return any(self._pieces.values())

    def calls(self, unique_id: Callable[[str], str]) -> list[ToolCall]:
        """The tool calls of a complete answer, each with an id that `unique_id` makes unique in its conversation."""
        return [
            ToolCall(unique_id(utf8_text(call.id)), utf8_text(call.name), utf8_text("".join(call.arguments)) or "{}")
            for call in self.complete_calls
        ]

    @property
    def complete_calls(self) -> list[PartialCall]:
        """The tool calls of a complete answer, as they came."""
        return [call for call in self._calls if call.name] if self.incomplete_reason is None else []

    def _add_delta(self, delta: dict[str, Any]) -> list[Reasoning | Chunk]:
        reasoning = self._reasoning_in(delta)
        text = delta.get("content") or delta.get("refusal") or ""
        if not isinstance(text, str):
            size = len(str(text))
            inner, text = read_parts(text)
            self._budget.use(max(0, size - len(inner) - len(text)))  # what is neither, and is not kept
            reasoning += inner
        if calls := delta.get("tool_calls"):
            self._add_calls(calls)
        if isinstance(call := delta.get("function_call"), dict):  # of servers from before tool calls
            self._add_calls([{"index": 0, "function": call}])
        if not reasoning and not text:
            return []
        inner, text = self._tags.split(text) if text else ("", "")
        return self._emit(reasoning + inner, text)

    def _add_logprobs(self, sent: Any, events: list[Reasoning | Chunk]) -> list[Reasoning | Chunk]:
        """The events, of which a text at the end bears what is known of all tokens up to there."""
        if sent:
            text = utf8_text(json.dumps(sent, ensure_ascii=False))
            self._budget.use(len(text))
            self._logprobs += objects_in(as_object(json_object(text)).get("content"))
        if self._logprobs and events and isinstance(events[-1], Chunk):
            events[-1] = Chunk(events[-1].content, self._logprobs)
            self._logprobs = []
        return events

    def _finish(self, reason: Any, model: Any) -> None:
        reason = utf8_text(str(reason))[:100]
        if classify_finish_reason(reason) != "no_finish_reason":
            self.finish_reason = reason
            self.model = utf8_text(str(model))[:200] if model else None

    def _news_in(self, message: Any) -> Any:
        """What a whole message adds. Some servers send it last, behind its own pieces."""
        if not isinstance(message, dict) or not (self.has_begun or self._calls):
            return message
        text = message.get("content")
        known = self.text
        rest = {"content": text[len(known) :]} if isinstance(text, str) and text.startswith(known) else {}
        return rest | ({} if self._calls else {"tool_calls": message.get("tool_calls")})

    def _plain(self, delta: dict[str, Any]) -> bool:
        """Whether a delta has text alone, which is an answer's text as it stands."""
        return self._tags.passed and not self._halves[Chunk] and delta.keys() <= _PLAIN

    def _reasoning_in(self, delta: dict[str, Any]) -> str:
        name, text = read_reasoning(delta)
        if self.reasoning_field is None or (text and not self._pieces[Reasoning]):
            self.reasoning_field = name or self.reasoning_field
        if isinstance(opaque := delta.get("reasoning_opaque"), str) and opaque:
            self._budget.use(len(opaque))
            self.verbatim_fields["reasoning_opaque"] = opaque
        if details := delta.get("reasoning_details"):
            self._budget.use(len(str(details)))
            add_details(self.verbatim_fields.setdefault("reasoning_details", []), details)
            if not self.reasoning_field:  # else the same text comes under that name
                text = read_details(details)
        return text

    def _emit(self, reasoning: str, text: str, last: bool = False) -> list[Reasoning | Chunk]:
        """Counts and keeps what came, and returns it as events. A half of a character waits for the other one."""
        events: list[Reasoning | Chunk] = []
        for kind, added in ((Reasoning, reasoning), (Chunk, text)):
            whole, self._halves[kind] = _whole_characters(self._halves[kind] + added, last)
            if whole:
                self._budget.use(len(whole.encode()))
                self._pieces[kind].append(whole)
                events.append(Chunk(whole) if kind is Chunk else Reasoning(whole, self.reasoning_field))
        return events

    def _add_calls(self, pieces: Any) -> None:
        for piece in objects_in(pieces):
            function = as_object(piece.get("function"))
            id, name, arguments = piece.get("id"), function.get("name"), function.get("arguments")
            id, name = id if isinstance(id, str) else "", name if isinstance(name, str) else ""
            arguments = _arguments_text(arguments)
            self._budget.use(len(id) + len(name) + len(arguments))
            call = self._find_call(piece.get("index"), id, name) or self._begin_call(piece.get("index"))
            is_repeated = bool(id and name and call.name) and arguments == "".join(call.arguments)
            call.id = call.id or id
            call.name = call.name or name
            if extras := extra_call_fields(piece):
                self._budget.use(len(str(extras)))
                call.extras |= extras
            if arguments and not (is_repeated and json_object(arguments) is not None):
                call.arguments.append(arguments)

    def _find_call(self, index: Any, id: str, name: str) -> PartialCall | None:
        """The call that a piece goes on with: by id and index where there are any, else by what the piece begins."""
        is_indexed = isinstance(index, int)
        calls = [call for call in self._calls if call.index == index] if is_indexed else self._calls
        if not calls:
            return None
        last = calls[-1]
        begins = bool(id and name and last.id) if is_indexed else bool(id or name)
        known = (call for call in calls if id and call.id == id)
        return next(known, None if begins else last)

    def _begin_call(self, index: Any) -> PartialCall:
        if len(self._calls) == _MAX_CALLS:
            raise ModelError("model_error", "The model asked for too many tools at once.")
        self._calls.append(PartialCall(index))
        return self._calls[-1]


def _first_choice(frame: Any) -> dict[str, Any] | None:
    """The choice that a frame adds to, if there is one. Raises ValueError and NotAnAnswer as `Reply.add` does."""
    if not isinstance(frame, dict):
        raise ValueError("a frame is not a JSON object")
    if frame.get("error") or frame.get("object") == "error":
        raise NotAnAnswer(frame)
    choices = frame.get("choices")
    choice = choices[0] if choices and isinstance(choices, list) else None
    return choice if isinstance(choice, dict) and not choice.get("index") else None


def _arguments_text(arguments: Any) -> str:
    if arguments is None or isinstance(arguments, str):
        return arguments or ""
    return json.dumps(arguments)


def _whole_characters(text: str, last: bool) -> tuple[str, str]:
    """The text that UTF-8 can hold, and the half of a character at its end, unless it is the last text."""
    if text.isascii():
        return text, ""
    half = text[-1] if "\ud800" <= text[-1] <= "\udbff" and not last else ""
    return utf8_text(text[: len(text) - len(half)]), half


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
