"""Summaries of what is old in a history: how much of it is old, and what the model is asked for."""

import itertools
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from session_core.data.message import MessageFields, StoredMessage, begins_turn, file_parts, message_text
from session_core.model.chat_completions import Completions, OfferedTool
from session_core.model.events import Event, ModelError
from session_core.model.history import OutgoingHistory, text_size
from session_core.model.outgoing_files import Files
from session_core.model.provider_metadata import ModelId

MAX_SUMMARY_CHARACTERS = 64 << 10
_MIN_SHORTENED = 2000  # characters of a text that is not shortened further
_MESSAGE_CHARACTERS = 16  # about what a message takes beside its texts
_FILE_CHARACTERS = 6000  # of text take about as many tokens as a picture or a PDF, however many bytes that has
INTRODUCTION = "Summary of this conversation so far. The messages that it sums up are not sent again:"
ASK = """\
Sum up our conversation up to here. Its messages will not be sent to you again: whoever reads the summary alone must
be able to go on as if nothing were missing.
Quote word for word what the user asked for, decided and forbade, as far as it still holds, and all names, numbers,
paths, addresses and texts that may be needed again. Say what was done and found out, what the tools gave, and what is
still open. If your instructions end with an earlier summary, take over all of it that still holds.
Write in the language of the conversation. Call no tool, answer nothing else, and write the summary alone."""


@dataclass(frozen=True, slots=True)
class SummedUp:
    """The model has summed up the messages up to and with the one of the id `until`. `usage` is of that request."""

    until: str
    content: str
    usage: Any


def add_summary(instructions: str, summary: str) -> str:
    """The instructions with the summary at their end, if there is one."""
    return "\n\n".join(filter(None, (instructions, summary and f"{INTRODUCTION}\n\n{summary}")))


def count_old(history: Sequence[MessageFields], limit: int | None, beside: int, *, again: bool) -> int:
    """How many messages are old: those before the newest turns that fit into half of `limit` tokens. With None they
    fit into half of what the last request had. 0 where that had less than the limit, or is not known, or where there
    was none since the last summary.

    What was cut from the last request is old too. As the model server tells the tokens of whole requests alone, they
    are shared out by the lengths of texts. Instructions and tools have `beside` characters. Where a summary is made
    `again`, less than an eighth of the limit is not old yet: else each turn might make one.
    """
    tokens, first, end = _last_request(history)
    if first < 0 or (limit is not None and tokens < limit):
        return 0
    room = (beside + _size(history[first:end])) * (limit / tokens if limit else 1) / 2
    begins = [0, *(at for at in range(1, len(history)) if begins_turn(history[at])), len(history)]
    newest = [_size(history[begin:end]) for begin, end in itertools.pairwise(begins)][::-1]
    kept = sum(size <= room for size in itertools.accumulate(newest))
    old = max(begins[-1 - kept], first)
    return 0 if again and limit and _size(history[:old]) < room / 4 else old


def sum_up(
    completions: Completions,
    tools: Mapping[str, OfferedTool],
    old: Sequence[StoredMessage],
    model_id: ModelId,
    instructions: str,
    summary: str,
    files: Files | None,
) -> Generator[Event | SummedUp, None, None]:
    """Has the model sum up these messages, and the `summary` of those before them: at once, or piece by piece where
    they are too long for it. Each piece gives a `SummedUp` of all up to there.

    Raises ModelError, also where the model writes nothing, too much, or not to the end.
    """
    while old:
        piece = _Piece(old, model_id, add_summary(instructions, summary), files)
        reply = yield from completions.ask(piece, tools)
        summary = reply.text.strip()
        yield SummedUp(old[piece.length - 1]["id"], summary, reply.usage)
        if reply.incomplete_reason or not 0 < len(summary) <= MAX_SUMMARY_CHARACTERS:
            raise ModelError("model_error", "The model did not give a usable summary.")
        old = old[piece.length :]


class _Piece(OutgoingHistory):
    """The beginning of some messages, and the request to sum it up."""

    def __init__(
        self, messages: Sequence[MessageFields], model_id: ModelId, instructions: str, files: Files | None
    ) -> None:
        super().__init__([*messages, {"role": "user", "content": ASK}], 0, model_id, instructions, files)
        self._begin = 0  # also where earlier requests were cut

    @property
    def length(self) -> int:
        """How many of the messages it has."""
        return len(self._messages) - 1

    def leave_out_unanswered(self) -> bool:
        """Leaves nothing out: what is summed up is not sent again."""
        return False

    def trim(self, *, keep: bool) -> bool:
        """Keeps the oldest half of the text, in whole turns. Where that is one turn, halves its longest texts.

        Returns whether anything was left to cut.
        """
        *begins, asking = self._turns()
        if len(begins) == 1:
            return self._shorten()
        sizes = (text_size(self._messages[begin:end]) for begin, end in itertools.pairwise([*begins, asking]))
        half = text_size(self._messages[:asking]) // 2
        kept = sum(size <= half for size in itertools.accumulate(sizes))
        del self._messages[begins[min(max(kept, 1), len(begins) - 1)] : asking]
        return True

    def _shorten(self) -> bool:
        longest = max(len(message_text(message)) for message in self._messages[:-1])
        if longest <= _MIN_SHORTENED:
            return False
        self._messages[:-1] = [_shortened(message, longest // 2) for message in self._messages[:-1]]
        return True


def _shortened(message: MessageFields, most: int) -> MessageFields:
    """The message without pictures and files, and without the middle of its text where that has more characters."""
    text = message_text(message)
    cut = text if len(text) <= most else f"{text[: most // 2]}\n[…]\n{text[-most // 2 :]}"
    return {**message, "content": cut}


def _last_request(history: Sequence[MessageFields]) -> tuple[int, int, int]:
    """How many tokens the last request had whose size is known, the index of its first message (-1: it stands before
    this history), and that of its answer. Where none is known: 0 tokens and the whole history."""
    ids = [message.get("id") for message in history]
    for end in reversed(range(len(history))):
        if (request := history[end].get("request")) and type(tokens := request.get("tokens")) is int and tokens > 0:
            first = request.get("first")
            return tokens, ids.index(first) if first in ids[:end] else -1, end
    return 0, 0, len(history)


def _size(messages: Sequence[MessageFields]) -> int:
    """About how many characters of text take as many tokens as the messages."""
    files = (part for message in messages for part in file_parts(message.get("content")))
    sizes = (part["size"] for part in files if not part["media_type"].startswith("text/"))
    surplus = sum(max(0, size - _FILE_CHARACTERS) for size in sizes)
    return text_size(messages) - surplus + _MESSAGE_CHARACTERS * len(messages)
