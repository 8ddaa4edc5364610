"""What goes out: a history that every model server takes.

The stored history stays as it happened. This room mends it on its way out.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from session_core.data.message import MessageFields, read_status, tool_call
from session_core.data.text import json_object, utf8_text
from session_core.model.capabilities import RequestForm
from session_core.model.events import ToolCall
from session_core.model.provider_metadata import ModelId, returned_calls, returned_fields, sign

_WHOLE = RequestForm()
_MAX_TRIMS = 5  # of one run, so that it takes at most six requests
_INTERRUPTED = "error: interrupted; the tool may have run"


class Conversation:
    """A history as the model gets it: the turns before, which may be cut, and the current turn.

    `history` is stored messages, oldest first. `max_history` is how many of the messages before the current turn go
    out at most (0: all). `origin` is the server and the model that get it. What that model left with its messages
    goes back to it, and to no other one. `instructions` go before all messages.
    """

    def __init__(
        self, history: Sequence[MessageFields], max_history: int, origin: ModelId, instructions: str = ""
    ) -> None:
        self._messages = list(history)
        self._begin = 0  # of the messages that go out, at the beginning of a turn
        self._origin = origin
        self._instructions = utf8_text(instructions)
        self._trims = 0
        self._ids: set[str] = set()
        self._first: str | None = None  # id of the first message that fits, where earlier ones do not
        self.returned_metadata = False  # whether the last messages had something that only their own server takes
        for message in history:
            if "provider_metadata" in message and origin.wrote(message):
                self._first = message["provider_metadata"].get("first") or self._first
        if self._first:
            fitting = (begin for begin in self._turns() if history[begin].get("id") == self._first)
            self._begin = next(fitting, 0)
        if max_history:
            self._keep_newest(max_history, len)

    @property
    def model(self) -> str:
        """The name of the model that gets it."""
        return self._origin.model

    def add(self, message: MessageFields) -> None:
        """Adds a message to the current turn."""
        self._messages.append(message)

    def unique_id(self, id: str) -> str:
        """This id of a tool call, or a new one where it is empty or in use."""
        self._ids = self._ids or {call.id for message in self._messages for call in read_tool_calls(message)}
        return _add_id(id, self._ids)

    @property
    def first(self) -> str | None:
        """The id of the first message that fits into the model's context. None where all messages fit."""
        return self._first

    def trim(self) -> bool:
        """Keeps the newest half of the text before the current turn, and after four times nothing of it.

        Returns whether anything was left to cut.
        """
        before, current = self._begin, self._turns()[-1]
        if before == current:
            return False
        self._trims += 1
        limit = _size(self._messages[before:current]) // 2 if self._trims < _MAX_TRIMS else 0
        self._keep_newest(limit, _size)
        if self._begin == before:  # turns without text
            self._begin = current
        self._first = utf8_text(self._messages[self._begin].get("id")) or None
        return True

    def messages(self, shape: RequestForm = _WHOLE) -> list[dict[str, Any]]:
        """The messages in the form that every server takes, mended where the history is not."""
        self.returned_metadata = False
        sent: list[dict[str, Any]] = []
        if self._instructions:
            sent.append({"role": "system", "content": self._instructions})
        ids: set[str] = set()
        last = None  # role
        turn = self._begin
        results: dict[str, list[str]] | None = None  # of the turn's tools
        for at in range(self._begin, len(self._messages)):
            message = self._messages[at]
            role, text = message.get("role"), utf8_text(message.get("content"))
            if role == "user":
                turn, results = at, None
                if last == "tool":
                    sent.append({"role": "assistant", "content": "(interrupted)"})
                elif last == "user" and isinstance(sent[-1]["content"], str) and "parts" not in message:
                    text = _joined(sent.pop()["content"], text)
                sent.append({"role": "user", "content": message.get("parts") or text})
                last = "user"
            elif role == "assistant":
                calls = read_tool_calls(message) if "tool_calls" in message else []
                if not calls and (not text or text.isspace()):
                    if read_status(message) != "cancelled" or last != "user":
                        continue
                    text = "(cancelled)"
                if last is None:  # a conversation that was imported, and begins with a greeting
                    sent.append({"role": "user", "content": "(the conversation begins)"})
                if last == "assistant":
                    text = _joined(sent.pop()["content"], text)
                if calls:
                    results = self._results(turn) if results is None else results
                    answered = list(_with_results(text, calls, results, ids))
                    last = self._fit(message, answered, shape)
                    sent.extend(answered)
                else:
                    sent.append({"role": "assistant", "content": text})
                    last = "assistant"
                    if "provider_metadata" in message:
                        self._return(message, sent[-1:], shape)
        return sent

    def _fit(self, message: MessageFields, answered: list[dict[str, Any]], shape: RequestForm) -> str:
        """Gives a message with tool calls, and the results behind it, the form that this server wants.

        Returns the role of the last message.
        """
        self._return(message, answered, shape)
        first = answered[0]
        if shape.reasoning_everywhere and "reasoning_content" not in first:
            own = self._origin.wrote(message)
            first["reasoning_content"] = utf8_text(message.get("reasoning")) if own else ""
        if shape.signatures and not any("extra_content" in call for call in first["tool_calls"]):
            if shape.signatures == 1:
                sign(first["tool_calls"][0])
            else:
                answered[:] = [_as_text(answered)]
        return str(answered[-1]["role"])

    def _return(self, message: MessageFields, answered: list[dict[str, Any]], shape: RequestForm) -> None:
        """Gives a message what its own server wants back with it, if this is the server."""
        if not shape.provider_state or not self._origin.wrote(message):
            return
        fields = returned_fields(message)
        answered[0].update(fields)
        calls = answered[0].get("tool_calls", [])
        extras = returned_calls(message, len(calls))
        for call, extra in zip(calls, extras, strict=True):
            call.update(extra)
        self.returned_metadata |= bool(fields) or any(extras)

    def _turns(self) -> list[int]:
        """Where the turns begin that go out. The last one is the current turn."""
        later = range(self._begin + 1, len(self._messages))
        return [self._begin, *(at for at in later if self._messages[at].get("role") == "user")]

    def _results(self, turn: int) -> dict[str, list[str]]:
        """The results of a turn's tools, by the ids of their calls."""
        results: dict[str, list[str]] = {}
        for at in range(turn, len(self._messages)):
            message = self._messages[at]
            if message.get("role") == "tool":
                results.setdefault(utf8_text(message.get("tool_call_id")), []).append(
                    utf8_text(message.get("content"))
                )
            elif message.get("role") == "user" and at > turn:
                break
        return results

    def _keep_newest(self, limit: int, measure: Callable[[list[MessageFields]], int]) -> None:
        turns = self._turns()
        earlier = [self._messages[begin:end] for begin, end in itertools.pairwise(turns)]
        sizes = itertools.accumulate(map(measure, reversed(earlier)))
        kept = sum(1 for size in sizes if size <= limit)
        self._begin = turns[len(turns) - 1 - kept]


def assistant_message(text: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    """An assistant's message as the API has it."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [tool_call(call.id, call.name, call.arguments) for call in calls]
    return message


def read_tool_calls(message: MessageFields) -> list[ToolCall]:
    """The tool calls of a stored message, as far as they have a name."""
    found = []
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and (name := utf8_text(function.get("name"))):
            found.append(ToolCall(utf8_text(call.get("id")), name, utf8_text(function.get("arguments"))))
    return found


def _as_text(answered: list[dict[str, Any]]) -> dict[str, Any]:
    """A message with tool calls, and their results, as one text."""
    first, *results = answered
    lines = [
        f"({call['function']['name']}({call['function']['arguments']}) gave: {result['content']})"
        for call, result in zip(first["tool_calls"], results, strict=True)
    ]
    return {"role": "assistant", "content": "\n\n".join(filter(None, (first["content"], *lines)))}


def _with_results(
    text: str, calls: list[ToolCall], results: dict[str, list[str]], ids: set[str]
) -> Iterator[dict[str, Any]]:
    """An assistant's message whose calls have names, ids and arguments that servers take, and one result for each."""
    contents = [results[call.id].pop(0) if results.get(call.id) else _INTERRUPTED for call in calls]
    mended = [
        ToolCall(
            _add_id(call.id, ids),
            re.sub(r"[^A-Za-z0-9_-]", "_", call.name)[:64],
            call.arguments if json_object(call.arguments) is not None else "{}",
        )
        for call in calls
    ]
    yield assistant_message(text, mended)
    for call, content in zip(mended, contents, strict=True):
        yield {"role": "tool", "tool_call_id": call.id, "content": content}


def _add_id(id: str, ids: set[str]) -> str:
    """Adds an id, or a new one if it is empty or in use. Returns the one that it added."""
    while not id or id in ids:
        id = secrets.token_hex(5)[:9]  # Mistral takes nine letters or digits
    ids.add(id)
    return id


def _joined(one: str, other: str) -> str:
    return "\n\n".join(filter(None, (one, other)))


def _size(messages: list[MessageFields]) -> int:
    """The characters of the messages' texts."""
    texts = (message.get(field) for message in messages for field in ("content", "reasoning"))
    arguments = (call.arguments for message in messages for call in read_tool_calls(message))
    return sum(map(len, map(utf8_text, texts))) + sum(map(len, arguments))
