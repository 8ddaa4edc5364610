"""Search without an index: sessions are read, newest first, until enough of them hold the words or the time is up."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from session_core.data.message import Content
from session_core.data.text import as_object, utf8_text
from session_core.data.words import Words
from session_core.turns.journal import with_partial_answer
from storage import Session, SessionCorrupt, SessionNotFound, Storage, StorageUnavailable

_SEARCH_SECONDS = 2.0
_TYPES = ("text", "image", "file")  # of parts that are known


@dataclass(frozen=True)
class Found:
    """A session that holds all the words, and its newest text that holds the most of them: the message (None: the
    title), and what is around the first of them there."""

    session_id: str
    message_id: str | None
    snippet: str


@dataclass(frozen=True)
class Search:
    """A search for words in the set titles of a store's sessions, and in the texts of their conversations as callers
    see them, with the model's reasoning or without. It locks nothing, and reads each session as it is then."""

    storage: Storage
    words: Words
    show_reasoning: bool

    def page(self, limit: int, after: str | None = None) -> tuple[list[Found], str | None]:
        """At most `limit` sessions, in the order of the list, of those behind `after`.

        The second value is the `after` of the next page, None where the list is at its end. It is the last session
        that was looked at: after two seconds there may be fewer sessions than `limit`, or none, on a page. Raises
        SessionNotFound where there is no session `after`, and StorageUnavailable.
        """
        give_up = time.monotonic() + _SEARCH_SECONDS
        found: list[Found] = []
        last = None
        for session_id, content in self.storage.contents(after):
            if last is not None and (len(found) == limit or time.monotonic() > give_up):
                return found, last
            last = session_id
            if content is None or self.words.may_stand_in(content):
                with contextlib.suppress(SessionNotFound, SessionCorrupt, StorageUnavailable):  # it alone is left out
                    found += [one] if (one := self._look_at(session_id)) else []
        return found, None

    def _look_at(self, session_id: str) -> Found | None:
        """The session, if it holds all the words."""
        session = with_partial_answer(self.storage, session_id)
        missing, most = set(self.words.folded), 0
        place: tuple[str | None, str] = None, ""
        for message_id, text in self._texts(session):
            here = self.words.found_in(text)
            missing.difference_update(here)
            if len(here) > most:
                most, place = len(here), (message_id, text)
            if most == len(self.words.folded):
                break
        return None if missing else Found(session_id, place[0], self.words.snippet(place[1]))

    def _texts(self, session: Session) -> Iterator[tuple[str | None, str]]:
        """The texts of the conversation, newest message first, each with its message's id, and then the title."""
        for message in reversed(session.conversation):
            yield from ((message["id"], text) for text in _content_texts(message["content"]))
            for call in message.get("tool_calls", ()):
                function = as_object(as_object(call).get("function"))
                yield from ((message["id"], utf8_text(function.get(name))) for name in ("name", "arguments"))
            if message["role"] == "tool":
                yield message["id"], message.get("name", "")
            if self.show_reasoning:
                yield message["id"], message.get("reasoning", "")
        yield None, session.title or ""


def _content_texts(content: Content) -> list[str]:
    """The texts of a content, and the names of its files, each as it is stored."""
    if isinstance(content, str):
        return [content]
    known = (part for part in content if part["type"] in _TYPES)
    return [part["text"] if part["type"] == "text" else part.get("name", "") for part in known]
