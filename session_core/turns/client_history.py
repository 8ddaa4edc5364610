"""What a client that resends its whole conversation wants of a session that has one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Wish:
    """`next`: a question behind the stored conversation. `again`: its last question once more. `instead`: what the
    client has from its user's message of index `since` on stands in place of what is stored from the user's message
    of index `at` on (behind all, where there is no such one)."""

    kind: Literal["next", "again", "instead"]
    at: int = 0
    since: int = 0


def wish_of(stored: Sequence[str], client: Sequence[str]) -> Wish:
    """Compares the user's messages of the stored conversation with those of the client, the new question last.

    A client may lack the first messages of the conversation. White space does not count. A client that sends its
    question alone goes on, also where it has edited its first question: nothing tells the two apart.
    """
    known, sent = [_words(text) for text in stored], [_words(text) for text in client]
    *earlier, question = sent
    if earlier == known:
        return Wish("next")
    if known and question == known[-1] and _ends_with(known[:-1], earlier):
        return Wish("again")
    prefix = _common(known, sent)
    if earlier and prefix == len(earlier):  # the rest is unknown to the client, or it has gone back
        return Wish("instead", prefix, prefix)
    if _ends_with(known, earlier):
        return Wish("next")
    offset = max(range(len(known)), key=lambda start: (_common(known[start:], sent), -start), default=0)
    common = _common(known[offset:], sent)
    return Wish("instead", offset + common if common else 0, common)


def _words(text: str) -> str:
    return " ".join(text.split())


def _ends_with(texts: Sequence[str], end: Sequence[str]) -> bool:
    return list(texts[len(texts) - len(end) :]) == list(end)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many texts both begin with."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))
