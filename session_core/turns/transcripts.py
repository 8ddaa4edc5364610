"""What a client wants whose transcript is compared with a stored conversation and all its versions.

The client's transcript is the truth. Where it agrees with what is stored, the stored messages stand in its place.
From the first difference on, what the client has stands in place of what is stored. A transcript may lack its
beginning.
"""

import functools
import operator
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from session_core.data.message import (
    Content,
    StoredMessage,
    begins_turn,
    content_text,
    file_parts,
    message_text,
)
from session_core.data.text import unwrapped_forms
from session_core.data.versions import BEGINNING, find_parents, find_path
from session_core.turns.stored import without_failed_attempts
from session_core.turns.turn_request import TurnRequest

_MAX_WAYS = 64  # on which a part of an answer is looked for
_DECORATION = re.compile(r"<(/?)(details|think)\b")

_Messages = Sequence[StoredMessage]


class ClientMessage(NamedTuple):
    """A message of a client's transcript. `id` is what the client calls it by; it calls an answer by its question.

    Of an answer only what the assistant says has a text, and not the results of its calls.
    """

    role: Literal["user", "assistant"]
    content: Content
    id: str | None = None


@dataclass(frozen=True)
class ClientIntent:
    """What becomes of the question that ends a transcript.

    `append`: it stands behind the conversation as it is now. `retry`: it is the stored question `id` once more.
    `replace`: it stands behind the stored message `id` (`BEGINNING`: behind none), and what stood there leaves the
    conversation, with the question `replaces` at its head. `since` is the index of the first message of the
    transcript that is not stored: those before the question come with it.
    """

    kind: Literal["append", "retry", "replace"]
    id: str = BEGINNING
    since: int = 0
    replaces: str | None = None

    def request(self, messages: _Messages) -> TurnRequest:
        """What is asked for, where these are the transcript's messages as they are stored."""
        content, history = messages[-1]["content"], tuple(messages[self.since : -1])
        if self.kind == "append":
            return TurnRequest(content, history=history)
        if self.kind == "retry":
            return TurnRequest(content, self.id)
        return TurnRequest(content, self.replaces, None if self.replaces else self.id, history=history)


def compare_histories(stored: _Messages, transcript: Sequence[ClientMessage]) -> ClientIntent:
    """Compares all messages that a session has, oldest first, with a transcript that ends with a question.

    Texts agree where they are equal but for white space and what front ends put around them. A beginning agrees with
    an answer that did not complete. A transcript of a question alone is a whole conversation. Takes time that is
    about linear in the texts.
    """
    parts = _parse_transcript(transcript)
    tree = _Tree(stored)
    found = _find_agreement(tree, parts)
    if found.parts == len(parts):
        return ClientIntent("retry", stored[tree.question_of(found.place)]["id"], len(transcript))
    next_part = parts[found.parts]
    if found.place == len(stored) - 1:
        return ClientIntent("append", since=next_part.since)
    place = stored[found.place]["id"] if found.place >= 0 else BEGINNING
    replaced = tree.questions.get(found.place) if next_part.role == "user" else None
    return ClientIntent("replace", place, next_part.since, None if replaced is None else stored[replaced]["id"])


def compare_question(conversation: _Messages, content: Content) -> ClientIntent:
    """Compares a question that a client sends alone, and that goes on with the conversation as it is now."""
    last = next((message for message in reversed(conversation) if begins_turn(message)), None)
    if last is not None and _question_key(content) in _question_keys(last):
        return ClientIntent("retry", last["id"], 1)
    return ClientIntent("append")


def agrees_with_answer(stored: _Messages, text: str) -> bool:
    """Whether a client's copy of an answer agrees with the messages that the answer is stored in."""
    key = _answer_key(text)
    return any(known == key or (_is_incomplete(stored) and known.startswith(key)) for known in _answer_keys(stored))


class _Part(NamedTuple):
    """A question of a transcript, or an answer, of which a client may have several messages."""

    role: str
    keys: list[str]
    since: int  # the index of its first message
    id: str | None

    @property
    def key(self) -> str:
        """What the texts of equal parts have in common."""
        return "".join(self.keys)


def _parse_transcript(transcript: Sequence[ClientMessage]) -> list[_Part]:
    parts: list[_Part] = []
    answer_begins = 0
    for index, message in enumerate(transcript):
        if message.role == "user":
            parts.append(_Part("user", [_question_key(message.content)], index, message.id))
            answer_begins = index + 1
        elif key := _answer_key(content_text(message.content)):
            if parts and parts[-1].role == "assistant":
                parts[-1].keys.append(key)
            else:
                parts.append(_Part("assistant", [key], answer_begins, message.id))
    return parts


class _Tree:
    """The stored messages of all versions."""

    def __init__(self, stored: _Messages) -> None:
        self.stored = stored
        self.parents = find_parents(stored)
        self.current = set(find_path(self.parents, len(stored) - 1))
        self.questions: dict[int, int] = {}  # behind each message: the one of the conversation, or the newest
        self._continued: set[int] = set()  # behind which an answer goes on
        for index, parent in enumerate(self.parents):
            if not begins_turn(stored[index]):
                self._continued.add(parent)
            elif self.questions.get(parent) not in self.current:
                self.questions[parent] = index

    def question_of(self, index: int) -> int:
        """The question that this message is, or answers. -1 where there is none."""
        while index >= 0 and not begins_turn(self.stored[index]):
            index = self.parents[index]
        return index

    def is_called(self, index: int, id: str | None) -> bool:
        """Whether a client calls the question that this message is, or answers, by this id."""
        question = self.question_of(index)
        known = self.stored[question] if question >= 0 else None
        return known is not None and id is not None and id in (known["id"], known.get("client_id"))

    def answer(self, index: int) -> list[StoredMessage]:
        """The messages of the answer that ends with this one. None where an answer does not end here."""
        found = []
        if index not in self._continued or index in self.questions:
            while index >= 0 and not begins_turn(self.stored[index]):
                found.append(self.stored[index])
                index = self.parents[index]
        return found[::-1]


class _Agreement(NamedTuple):
    """How many parts of a transcript agree, up to which stored message. Of several, the greatest counts."""

    parts: int = 0
    by_id: bool = False
    from_beginning: bool = False
    current: bool = False
    place: int = -1


def _find_agreement(tree: _Tree, parts: Sequence[_Part]) -> _Agreement:
    """The best agreement of the transcript with a way through the tree.

    A way begins where the conversation does, or, where the transcript lacks its beginning, at any message: then two
    parts must agree, or all but the question.
    """
    best = _Agreement()
    for index, ways, whole in _follow(tree, parts):
        count = ways.bit_length() - 1
        if len(parts) == 1 or (count < 2 and count != len(parts) - 1):
            count = whole.bit_length() - 1
        if count > 0:
            agreement = _Agreement(
                count,
                by_id=tree.is_called(index, parts[count - 1].id),
                from_beginning=bool(whole >> count & 1),
                current=index in tree.current,
                place=index,
            )
            best = max(best, agreement)
    return best


def _follow(tree: _Tree, parts: Sequence[_Part]) -> Iterator[tuple[int, int, int]]:
    """Yields for each question, and each end of an answer, its index and how many parts of the transcript may agree
    up to it, on any way to it and on those from the beginning, as two sets: the bit `1 << n` stands for the number
    `n`."""
    masks: defaultdict[tuple[str, str], int] = defaultdict(
        int
    )  # by role and key: the set of the parts that have them
    for at, part in enumerate(parts):
        masks[part.role, part.key] |= 1 << at
    missing = (1 << len(parts)) | _join(1 << at for at, part in enumerate(parts) if part.role == "user")  # an answer
    agreed: dict[int, tuple[int, int]] = {-1: (0, 1)}
    before: dict[int, tuple[int, int]] = {}  # by message of an answer: what has agreed before that answer
    for index, parent in enumerate(tree.parents):
        message = tree.stored[index]
        if begins_turn(message):
            ways, whole = agreed[parent]
            mask, skipped = _join(masks[("user", key)] for key in _question_keys(message)), 0
        else:
            ways, whole = before[index] = before.get(parent) or agreed[parent]
            if not (answer := tree.answer(index)):
                continue
            keys = _answer_keys(answer)
            mask, skipped = _join(masks["assistant", key] for key in keys), 0
            if _is_incomplete(answer):
                mask |= _find_beginnings(keys, parts, ways | 1)
            if _is_incomplete(answer) or "" in keys:
                skipped = missing
        agreed[index] = ((ways | 1) & mask) << 1 | ways & skipped, (whole & mask) << 1 | whole & skipped
        yield index, *agreed[index]


def _find_beginnings(keys: Sequence[str], parts: Sequence[_Part], indexes: int) -> int:
    """Those of the indexes whose parts are beginnings of an answer, as far as they are among the greatest ones."""
    found = 0
    for _ in range(min(_MAX_WAYS, indexes.bit_count())):
        index = indexes.bit_length() - 1
        indexes ^= 1 << index
        if index < len(parts) and parts[index].role == "assistant":
            found |= any(key.startswith(parts[index].key) for key in keys) << index
    return found


def _join(masks: Iterator[int]) -> int:
    return functools.reduce(operator.or_, masks, 0)


def _question_keys(message: StoredMessage) -> set[str]:
    """What texts of a client agree with a stored question: also those with less before the question itself. The same
    pictures and files stand beside them."""
    files = _files_key(message["content"])
    return {_words(text) + files for text in unwrapped_forms(message_text(message))}


def _question_key(content: Content) -> str:
    return _words(content_text(content)) + _files_key(content)


def _files_key(content: Content) -> str:
    return "".join(f" {part['sha256']}" for part in file_parts(content))


def _answer_keys(answer: _Messages) -> list[str]:
    """What texts of a client agree with a stored answer: that of its last attempt, and of all that this continues."""
    attempts = [message.get("attempt", 1) for message in answer]
    last = max(attempts, default=1)
    own = [message for message, attempt in zip(answer, attempts, strict=True) if attempt == last]
    kept = own if len(own) == len(answer) else without_failed_attempts(answer, last)
    texts = ["".join(message_text(one) for one in found if one["role"] == "assistant") for found in (own, kept)]
    return [_answer_key(text) for text in dict.fromkeys(texts)]


def _is_incomplete(answer: _Messages) -> bool:
    last = answer[-1]
    return last["role"] != "assistant" or "status" in last or bool(last.get("tool_calls"))


def _words(text: str) -> str:
    return " ".join(text.split())


def _answer_key(text: str) -> str:
    return "".join(_without_decorations(text).split())


def _without_decorations(text: str) -> str:
    """The text without what front ends put around it: `<details>…</details>`, `<think>…</think>`."""
    kept: list[str] = []
    at = start = depth = 0
    kind = ""
    for found in _DECORATION.finditer(text):
        closes, name = found[1], found[2]
        if not depth and not closes:
            kind, depth, start = name, 1, found.start()
        elif depth and name == kind:
            depth += -1 if closes else 1
            if not depth:
                kept.append(text[at:start])
                at = text.find(">", found.end()) + 1 or len(text)
                if at == len(text):
                    break
    return "".join([*kept, text[at:]]) if kept else text
