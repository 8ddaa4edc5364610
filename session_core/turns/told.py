"""What was told of a stored message: the pieces of an answer, the outcome of a call."""

from collections.abc import Iterator, Sequence

from session_core.data.message import ERROR, StoredMessage, file_parts, message_text, tool_failed
from session_core.model.events import Chunk, Reasoning, ToolResult


def told_pieces(message: StoredMessage) -> Iterator[Reasoning | Chunk]:
    """The reasoning and the text of a message in the pieces in which they were told, or each in one where those are
    not known."""
    reasoning, text = message.get("reasoning", ""), message_text(message)
    lengths: Sequence[int] = message.get("deltas", ())
    name = message.get("provider_metadata", {}).get("reasoning_field")
    if not _fit(lengths, -len(reasoning), len(text)):
        lengths = list(filter(None, (-len(reasoning), len(text))))
    thought = said = 0
    for length in lengths:
        if length < 0:
            yield Reasoning(reasoning[thought : thought - length], name)
            thought -= length
        else:
            yield Chunk(text[said : said + length])
            said += length


def read_result(message: StoredMessage) -> ToolResult:
    """The outcome of a call that a tool's message tells of."""
    text, failed = message_text(message), tool_failed(message)
    result, error = (None, text.removeprefix(ERROR)) if failed else (text, None)
    return ToolResult(
        message.get("tool_call_id", ""),
        message.get("name", ""),
        result,
        error,
        files=file_parts(message["content"]),
    )


def _fit(lengths: Sequence[int], thought: int, said: int) -> bool:
    """Whether these are the lengths of the pieces of such texts."""
    if not all(type(length) is int and length for length in lengths):  # in a file that another hand has changed
        return False
    return (sum(min(one, 0) for one in lengths), sum(max(one, 0) for one in lengths)) == (thought, said)
