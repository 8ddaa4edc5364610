"""Stored messages in the form that every model server takes."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from session_core.data.message import (
    ERROR,
    INTERRUPTED_CALL,
    WENT_ON,
    Content,
    MessageFields,
    as_parts,
    begins_turn,
    content_text,
    file_parts,
    message_text,
    read_status,
    tool_call,
    with_files,
)
from session_core.data.text import json_object, utf8_text
from session_core.model.capabilities import ForeignCalls, RequestForm
from session_core.model.events import ToolCall
from session_core.model.provider_metadata import FOREIGN_SIGNATURE, ModelId, returned_calls, returned_fields

PORTABLE_ID = re.compile(r"[A-Za-z0-9_-]{1,40}")  # of a call, as OpenAI and Anthropic take it
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")  # as Mistral takes it, and all others


class OutgoingMessages:
    """The messages of one request, put together one after the other, and mended where the history is not well formed.

    `model_id` is the server and the model that get them. What that model left with its messages goes back to it, and
    to no other one. `instructions` go before all messages.
    """

    def __init__(self, model_id: ModelId, form: RequestForm, instructions: str) -> None:
        self.sent: list[dict[str, Any]] = []
        self.returned_metadata = False  # whether something is among them that only its own server takes
        self._model_id = model_id
        self._form = form
        self._ids: set[str] = set()
        if instructions:
            self.sent.append({"role": "system", "content": instructions})

    def add_turn(self, turn: Sequence[MessageFields]) -> None:
        """Adds the messages from a user's up to the next one. Results stand behind their calls."""
        results = _results_by_id(turn)
        for message in turn:
            if message.get("role") == "user":
                self._add_user(message)
            elif message.get("role") == "assistant":
                self._add_assistant(message, results)

    @property
    def _last_role(self) -> str | None:
        """None before the first message of the conversation."""
        return self.sent[-1]["role"] if self.sent and self.sent[-1]["role"] != "system" else None

    def _add_user(self, message: MessageFields) -> None:
        content: Content = utf8_text(message_text(message))
        if file_parts(message.get("content")):
            content = message["content"]
        if self._last_role == "tool" and begins_turn(message):
            self._add_text("assistant", "(interrupted)")
        elif self._last_role == "user":
            content = _join_contents(self.sent.pop()["content"], content)
        self._add_text("user", content)

    def _add_assistant(self, message: MessageFields, results: dict[str, list[Content]]) -> None:
        text = utf8_text(message_text(message))
        calls = read_tool_calls(message)
        if not calls and (not text or text.isspace()):
            if read_status(message) != "cancelled" or self._last_role != "user":
                return
            text = "(cancelled)"
        if self._last_role is None:  # a conversation that was imported, and begins with a greeting
            self._add_text("user", "(the conversation begins)")
        if self._last_role == "assistant":
            text = _joined(self.sent.pop()["content"], text)
        if calls:
            made = [self._mended(call, keep_id=self._keeps_id(call.id, message)) for call in calls]
            pending = message.get("pending", {})
            missing = {call.id: WENT_ON if call.id in pending else f"{ERROR}{INTERRUPTED_CALL}" for call in calls}
            contents = [results[call.id].pop(0) if results.get(call.id) else missing[call.id] for call in calls]
            calling = {"role": "assistant", "content": text, "tool_calls": made}
            self._add_calls(message, calling, list(map(content_text, contents)))
            self._add_pictures(contents)
        else:
            self._add_text("assistant", text)
            self._return_metadata(message, self.sent[-1])

    def _add_text(self, role: str, content: Any) -> None:
        self.sent.append({"role": role, "content": content})

    def _add_calls(self, message: MessageFields, calling: dict[str, Any], contents: Sequence[str]) -> None:
        """Adds a message with tool calls, and the results behind it, in the form that this server wants."""
        calls = calling["tool_calls"]
        self._return_metadata(message, calling)
        if self._form.reasoning_everywhere and "reasoning_content" not in calling:
            own = self._model_id.wrote(message)
            calling["reasoning_content"] = utf8_text(message.get("reasoning")) if own else ""
        is_foreign = not any("extra_content" in call for call in calls)
        if is_foreign and self._form.foreign_calls is ForeignCalls.TEXT:
            self._add_text("assistant", _as_text(calling, contents))
            return
        if is_foreign and self._form.foreign_calls is ForeignCalls.SIGNED:
            calls[0]["extra_content"] = FOREIGN_SIGNATURE
        self.sent.append(calling)
        for call, content in zip(calls, contents, strict=True):
            self.sent.append({"role": "tool", "tool_call_id": call["id"], "content": content})

    def _add_pictures(self, contents: Sequence[Content]) -> None:
        """Adds the pictures of results as a message of the user, since servers take none in those of tools."""
        pictures = [part for content in contents for part in file_parts(content)]
        if not pictures or not self._form.has("pictures"):
            return
        if self._last_role == "tool":
            self._add_text("assistant", "(The results have pictures.)")
        self._add_text("user", with_files("(These are the pictures of the results.)", pictures))

    def _keeps_id(self, id: str, message: MessageFields) -> bool:
        """Whether an id goes out as it came: its own server gets it back, as far as that is known."""
        if self._form.short_ids:
            return False
        portable = PORTABLE_ID.fullmatch(id) and self._model_id.may_have_written(message)
        return bool(portable) or self._model_id.wrote(message)

    def _mended(self, call: ToolCall, *, keep_id: bool) -> dict[str, Any]:
        """A call whose name, id and arguments servers take."""
        name = re.sub(r"[^A-Za-z0-9_-]", "_", call.name)[:64]
        arguments = call.arguments if json_object(call.arguments) is not None else "{}"
        id = call.id if keep_id or _SHORT_ID.fullmatch(call.id) else _short_id(call.id)
        return tool_call(add_id(id, self._ids), name, arguments)

    def _return_metadata(self, message: MessageFields, sent: dict[str, Any]) -> None:
        """Adds what the message's own server wants back with it, if this is the server."""
        if not self._form.has("provider_metadata") or not self._model_id.wrote(message):
            return
        fields, calls = returned_fields(message), sent.get("tool_calls", [])
        sent.update(fields)
        extras = returned_calls(message, len(calls))
        for call, extra in zip(calls, extras, strict=True):
            call.update(extra)
        self.returned_metadata |= bool(fields) or any(extras)


def read_tool_calls(message: MessageFields) -> list[ToolCall]:
    """The tool calls of a stored message, as far as they have a name."""
    found = []
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and (name := utf8_text(function.get("name"))):
            found.append(ToolCall(utf8_text(call.get("id")), name, utf8_text(function.get("arguments"))))
    return found


def add_id(id: str, ids: set[str]) -> str:
    """Adds an id, or a new one if it is empty or in use. Returns the one that it added, the same for the same ids."""
    number = len(ids)
    while not id or id in ids:
        id = _short_id(str(number))
        number += 1
    ids.add(id)
    return id


def _short_id(id: str) -> str:
    """Nine letters or digits, which all servers take, for an id."""
    return hashlib.sha256(id.encode()).hexdigest()[:9]


def _results_by_id(turn: Sequence[MessageFields]) -> dict[str, list[Content]]:
    """The results of a turn's tools, by the ids of their calls."""
    results: dict[str, list[Content]] = {}
    for message in turn:
        if message.get("role") == "tool":
            content = with_files(utf8_text(message_text(message)), file_parts(message.get("content")))
            results.setdefault(utf8_text(message.get("tool_call_id")), []).append(content)
    return results


def _as_text(calling: Mapping[str, Any], contents: Iterable[str]) -> str:
    """A message with tool calls, and their results, as one text."""
    lines = [
        f"({call['function']['name']}({call['function']['arguments']}) gave: {content})"
        for call, content in zip(calling["tool_calls"], contents, strict=True)
    ]
    return _joined(calling["content"], *lines)


def _join_contents(one: Content, other: Content) -> Content:
    if isinstance(one, str) and isinstance(other, str):
        return _joined(one, other)
    return [part for content in (one, other) for part in as_parts(content)]


def _joined(*texts: str) -> str:
    return "\n\n".join(filter(None, texts))
