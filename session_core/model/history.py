"""What goes out of a history: the turns that fit, and the current one.

The stored history stays as it happened. It is cut and mended on its way out.
"""

import bisect
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from session_core.data.message import AnswerFields, MessageFields, begins_turn, file_parts, message_text
from session_core.data.text import utf8_text
from session_core.model.capabilities import RequestForm
from session_core.model.outgoing_files import Files, FilesOfRun, render_content
from session_core.model.outgoing_messages import PORTABLE_ID, OutgoingMessages, add_id, read_tool_calls
from session_core.model.provider_metadata import ModelId, provider_metadata
from session_core.model.reply import Reply

_WHOLE = RequestForm()
_MAX_TRIMS = 5  # of one run, so that it takes at most six requests


class OutgoingHistory:
    """A history as the model gets it: the turns before, which may be cut, and the current turn.

    `history` is stored messages, oldest first. `max_history` is how many of the messages before the current turn go
    out at most (0: all). `model_id` is the server and the model that get it. `instructions` go before all messages.
    `files` gives the bytes of what the messages name.
    """

    def __init__(
        self,
        history: Sequence[MessageFields],
        max_history: int,
        model_id: ModelId,
        instructions: str = "",
        files: Files | None = None,
    ) -> None:
        self._messages = list(history)
        self._begin = 0  # of the messages that go out, at the beginning of a turn
        self._model_id = model_id
        self._instructions = utf8_text(instructions)
        self._files = files or FilesOfRun()
        self._trims = 0
        self._ids: set[str] = set()
        self._first: str | None = None  # id of the first message that fits, where earlier ones do not
        self.returned_metadata = False  # whether the last messages had something that only their own server takes
        for message in history:
            if "provider_metadata" in message and model_id.wrote(message):
                self._first = message["provider_metadata"].get("first") or self._first
        if self._first:
            self._begin = next((begin for begin in self._turns() if history[begin].get("id") == self._first), 0)
        if max_history:
            self._cut_in_steps(max_history)
        self._left_out: list[str] = []  # ids of questions

    @property
    def model(self) -> str:
        """The name of the model that gets it."""
        return self._model_id.model

    def add(self, message: MessageFields) -> MessageFields:
        """Adds a message to the current turn. Returns it."""
        self._messages.append(message)
        return message

    def steer(self, messages: Callable[[], Iterable[MessageFields]]) -> None:
        """Adds what the user has sent since, where the history ends with the results of all calls."""
        if self._messages[-1].get("role") == "tool":
            self._messages += messages()

    def unique_id(self, id: str) -> str:
        """This id of a tool call, or a new one where it is empty or in use."""
        self._ids = self._ids or {call.id for message in self._messages for call in read_tool_calls(message)}
        return add_id(id, self._ids)

    def fields_of(self, reply: Reply) -> AnswerFields:
        """What the history keeps of a reply beside its text and its calls. Some may be empty."""
        calls = reply.complete_calls
        metadata = provider_metadata(
            self._model_id,
            reply.reasoning_field,
            reply.verbatim_fields,
            [call.extras for call in calls],
            self._first,
            keep_server=not all(PORTABLE_ID.fullmatch(call.id) for call in calls if call.id),
        )
        return {
            "reasoning": reply.reasoning,
            "model": self.model,
            "provider_metadata": metadata,
            "leaves_out": self._left_out,
            "request": self._describe_request(reply.prompt_tokens),
        }

    @property
    def has_unanswered(self) -> bool:
        """Whether questions of earlier turns go out that were never answered."""
        return len(self._turns_to_answer()) > 1

    def leave_out_unanswered(self) -> bool:
        """Leaves out the turns directly before the current one that were never answered.

        Returns whether there were any.
        """
        *unanswered, current = self._turns_to_answer()
        if not unanswered:
            return False
        self._left_out += [utf8_text(self._messages[turn].get("id")) for turn in unanswered]
        del self._messages[unanswered[0] : current]
        return True

    def trim(self, *, keep: bool) -> bool:
        """Keeps the newest half of the text before the current turn, and after four times nothing of it.

        Returns whether anything was left to cut. With `keep`, the session's next turns begin there too.
        """
        turns = self._turns()
        before, current = self._begin, turns[-1]
        if before == current:
            return False
        self._trims += 1
        sizes = [text_size(self._messages[begin:end]) for begin, end in itertools.pairwise(turns)]
        limit = sum(sizes) // 2 if self._trims < _MAX_TRIMS else 0
        kept = sum(size <= limit for size in itertools.accumulate(reversed(sizes)))
        self._begin = turns[-1 - kept]
        if self._begin == before:  # turns without text
            self._begin = current
        if keep:
            self._first = utf8_text(self._messages[self._begin].get("id")) or None
        return True

    def messages(self, form: RequestForm = _WHOLE) -> list[dict[str, Any]]:
        """The messages in the form that every server takes, mended where the history is not."""
        outgoing = OutgoingMessages(self._model_id, form, self._instructions)
        for begin, end in itertools.pairwise([*self._turns(), len(self._messages)]):
            outgoing.add_turn(self._messages[begin:end])
        self.returned_metadata = outgoing.returned_metadata
        for message in outgoing.sent:
            if isinstance(message["content"], list):
                message["content"] = render_content(message["content"], self._files, form)
        return outgoing.sent

    def _describe_request(self, tokens: int) -> dict[str, Any]:
        return {"tokens": tokens, "first": utf8_text(self._messages[self._begin].get("id"))} if tokens else {}

    def _turns(self) -> list[int]:
        """Where the turns begin that go out. The last one is the current turn."""
        later = range(self._begin + 1, len(self._messages))
        return [self._begin, *(at for at in later if begins_turn(self._messages[at]))]

    def _turns_to_answer(self) -> list[int]:
        """Where the turns begin that have no answer yet. The last one is the current turn."""
        turns = self._turns()
        for number, (begin, end) in reversed(list(enumerate(itertools.pairwise(turns)))):
            if any(map(_is_answer, self._messages[begin:end])):
                return turns[number + 1 :]
        return turns

    def _cut_in_steps(self, limit: int) -> None:
        """Cuts as all earlier turns did, so that the same message stays the first for many turns.

        A turn that reaches the limit cuts down to two thirds of it, or to the turn before where that alone is larger
        and within the limit.
        """
        turns = self._turns()
        for last, current in itertools.pairwise(turns):
            if current - self._begin > limit:
                newest = current - last if current - last <= limit else 0
                self._begin = turns[bisect.bisect_left(turns, current - max(2 * limit // 3, newest))]


def _is_answer(message: MessageFields) -> bool:
    text = message_text(message)
    return message.get("role") == "assistant" and "tool_calls" not in message and not (not text or text.isspace())


def text_size(messages: Sequence[MessageFields]) -> int:
    """The characters of the messages' texts, and the bytes of their pictures and files."""
    texts = (text for message in messages for text in (message_text(message), message.get("reasoning")))
    arguments = (call.arguments for message in messages for call in read_tool_calls(message))
    files = (part["size"] for message in messages for part in file_parts(message.get("content")))
    return sum(map(len, map(utf8_text, texts))) + sum(map(len, arguments)) + sum(files)
