"""One run of the agent: ask the model, call the tools that it wants, and ask again."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from session_core.data.message import ERROR, AnswerFields, MessageFields, assistant_message, tool_call, tool_message
from session_core.model.budget import Budget
from session_core.model.events import Answer, Event, Message, ModelError, ToolCall, ToolResult
from session_core.model.finish_reasons import classify_finish_reason
from session_core.model.history import Conversation
from session_core.model.provider_metadata import ModelId, provider_state
from session_core.model.reply import Reply, sum_usage
from session_core.telemetry.spans import Observer
from session_core.tools.calls import run_calls
from session_core.tools.functions import AnyTool

_MAX_ROUNDS = 10  # of tool calls


class Rounds:
    """One run of the agent: its conversation, its budget, its usage."""

    def __init__(
        self,
        tools: Mapping[str, AnyTool],
        tool_timeout: float,
        conversation: Conversation,
        budget: Budget,
        origin: ModelId,
        observer: Observer,
    ) -> None:
        self.conversation = conversation
        self.budget = budget
        self._origin = origin
        self._tools = tools
        self._tool_timeout = tool_timeout
        self._observer = observer
        self._usage: dict[str, Any] | None = None

    def answer(self, ask: Callable[[], Generator[Event, None, Reply]]) -> Generator[Event, None, Answer]:
        """Asks the model, calls the tools that it wants, and asks again, until it answers."""
        rounds = 0
        while True:
            reply = yield from ask()
            self._usage = sum_usage(self._usage, reply.usage)
            meaning = classify_finish_reason(reply.finish_reason)
            calls = reply.calls(self.conversation.unique_id) if meaning == "completed" else []
            fields = self._fields(reply, calls)
            if not calls:
                reason = None if meaning == "completed" else meaning
                return Answer(reply.text, reply.finish_reason, reason, self._usage, fields)
            if rounds == _MAX_ROUNDS:
                raise ModelError("too_many_tool_rounds", f"The model wanted tools more than {_MAX_ROUNDS} times.")
            called = [tool_call(call.id, call.name, call.arguments) for call in calls]
            yield self._add(assistant_message(reply.text, called, **fields))
            yield from calls
            for call, result in zip(calls, self._results(calls), strict=True):
                failed = result.error is not None
                content = f"{ERROR}{result.error}" if failed else result.result or ""
                yield self._add(tool_message(call.id, call.name, content, failed))
                yield result
            rounds += 1

    def _fields(self, reply: Reply, calls: Sequence[ToolCall]) -> AnswerFields:
        """What the history keeps of a reply beside its text and its calls."""
        extras = reply.call_extras if calls else []
        state = provider_state(self._origin, reply.reasoning_field, reply.details, extras, self.conversation.first)
        return {"reasoning": reply.reasoning, "model": self._origin.model, "provider_metadata": state}

    def _add(self, message: MessageFields) -> Message:
        self.conversation.add(message)
        return Message(message, self._usage)

    def _results(self, calls: Sequence[ToolCall]) -> Iterator[ToolResult]:
        return run_calls(self._tools, calls, self.budget, self._tool_timeout, self._observer)
