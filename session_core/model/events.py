"""What a run of the agent says, event by event."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from session_core.data.message import ERROR, NOT_EXECUTED, AnswerFields, ContentPart, MessageFields


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the answer's text, never empty. `logprobs` are those of its tokens, as the API has them."""

    content: str
    logprobs: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thinks before it says or does something, never empty. `name` is the field by which
    the model server sends it, and wants it back."""

    content: str
    name: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model calls a tool. `arguments` is what it sent, which should be a JSON object. `waits_for` is `approval`,
    or the `client`, where it does not run now."""

    id: str
    name: str
    arguments: str
    waits_for: str | None = None


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The outcome of a call: a result, or an error. The model gets either. `given` says that it is the client's.
    `files` are pictures, which are kept."""

    id: str
    name: str
    result: str | None = None
    error: str | None = None
    given: bool = False
    files: Sequence[ContentPart] = ()

    @property
    def content(self) -> str:
        """What the model is told."""
        if self.error is None:
            return self.result or ""
        return self.error if self.error.startswith(NOT_EXECUTED) else f"{ERROR}{self.error}"


@dataclass(frozen=True, slots=True)
class Message:
    """A complete message for the history: the assistant's with tool calls, or a tool's.

    The assistant's has `reasoning`, `model` and `provider_metadata` where there are any, see `Answer`.
    `usage` is summed over the model calls of the run so far, if the model server tells it.
    """

    data: MessageFields
    usage: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The last event of a run that ended well, with the text after the last tool call.

    `reason` says why the answer is not complete: `length`, `content_filter` or `no_finish_reason`. `fields` are what
    the history keeps beside the text: `reasoning`, the `model` that wrote it, and what
    `session_core/model/provider_metadata.py` keeps.
    """

    content: str
    finish_reason: str | None
    reason: str | None
    usage: dict[str, Any] | None
    fields: AnswerFields = field(default_factory=AnswerFields, compare=False)


@dataclass(frozen=True, slots=True)
class Waiting:
    """The last event of a run whose last calls wait for answers. Their `Message` has `pending`, and the usage."""

    finish_reason: str | None


Event = Reasoning | Chunk | ToolCall | ToolResult | Message | Answer | Waiting


class ModelError(Exception):
    """There is no answer. The text is a sentence for people, without the model server's own words.

    `code` is `context_length_exceeded`, `invalid_request`, `model_rate_limited`, `model_error`, `model_unauthorized`,
    `too_many_tool_rounds` or `model_timeout`. `retry_after` is the model server's header, where it limits the rate.
    `refused` says that the model server refuses the question, so that it must not be sent again with later ones.
    """

    refused = False

    def __init__(self, code: str, sentence: str, retry_after: str | None = None) -> None:
        super().__init__(sentence)
        self.code = code
        self.retry_after = retry_after


class Cancelled(Exception):
    """The `Cancellation` of the run ended it."""
