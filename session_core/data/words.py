"""The words of a search: read from a query, found in texts whatever their case, shown with what is around them."""

import re
import unicodedata
from bisect import bisect_right
from dataclasses import dataclass

MAX_QUERY_LENGTH = 1000  # characters

_SNIPPET_LENGTH = 160  # characters
_SNIPPET_BEFORE = 50  # characters of it that stand before the first word, at most
_FOLDED_AT_ONCE = 500  # characters
_WORD = re.compile(r'"([^"]*)"?|(\S+)')
_PLAIN = re.compile(r'[^\s"\\\x00-\x1f]+')  # what a JSON string holds as it is, unless it is written with escapes
_ESCAPED = re.compile(rb"\\[u/]")  # what a JSON string may hold in place of any character
_NO_TEXT = re.compile(r'"(?:id|role|type|created_at|updated_at|tool_call_id|model)":"[^"\\]*"|"\w+":')  # of a session
_MARKS = re.compile(r"([^\w\s\x00-\x7f]{31,})")  # combining marks are among these characters


@dataclass(frozen=True)
class Words:
    """What is looked for, each once: words and phrases as `fold` gives them, and the pieces of these that JSON holds
    as they are."""

    folded: tuple[str, ...]
    pieces: tuple[str, ...]

    def found_in(self, text: str) -> list[str]:
        """Those that stand in the text, also as parts of its words."""
        folded = fold(text)
        return [word for word in self.folded if word in folded]

    def may_stand_in(self, data: bytes) -> bool:
        """Whether the strings of this JSON in UTF-8 may hold all of them, taken together. Faster than parsing it."""
        if _ESCAPED.search(data):
            return True
        text = data.decode(errors="replace")
        if not (text.isascii() or unicodedata.is_normalized("NFC", text)):  # a mark may join the letter of an escape
            return True
        return self._have_pieces_in(text) and self._have_pieces_in(_NO_TEXT.sub('"', text))

    def _have_pieces_in(self, text: str) -> bool:
        folded = _fold_letters(text)
        return all(piece in folded for piece in self.pieces)

    def snippet(self, text: str) -> str:
        """The text around the first place where one of them stands, on one line, with … where it is cut."""
        line, folded = " ".join(text.split()), fold(text)
        start = min((place for word in self.folded if (place := folded.find(word)) >= 0), default=0)
        at = _original_place(line, folded, start)
        first = max(0, at - _SNIPPET_BEFORE)
        first = line.find(" ", first, at) + 1 or first if first else 0
        end = first + _SNIPPET_LENGTH
        if end < len(line) and (space := line.rfind(" ", at + _SNIPPET_LENGTH // 2, end + 1)) > 0:
            end = space
        return ("…" if first else "") + line[first:end] + ("…" if end < len(line) else "")


def parse_words(query: str) -> Words:
    """The words of a query: white space separates them, and `"several words"` are one, as they stand. A quote that is
    not closed holds to the end; one inside a word belongs to it. Raises ValueError where there is no word, or the
    query is too long."""
    if len(query) > MAX_QUERY_LENGTH:
        raise ValueError(f"have at most {MAX_QUERY_LENGTH} characters")
    found = dict.fromkeys(fold(phrase or word) for phrase, word in _WORD.findall(query))
    found.pop("", None)
    if not found:
        raise ValueError("have a word")
    pieces = {piece for word in found for piece in _PLAIN.findall(word)}
    return Words(tuple(found), tuple(sorted(pieces, key=len, reverse=True)))


def fold(text: str) -> str:
    """The text as it is compared: without differences of case (Unicode's full case folding; a dotted İ is an i), of
    white space, and between the ways in which Unicode writes the same letter with its marks."""
    return _fold_letters(" ".join(text.split()))


def _fold_letters(text: str) -> str:
    if text.isascii():
        return text.lower()
    return _composed(_composed(text).casefold().replace("i\u0307", "i"))


def _composed(text: str) -> str:
    """The text in normal form C, but for runs of more than 30 marks, which take quadratic time to sort."""
    if unicodedata.is_normalized("NFC", text):
        return text
    parts = _MARKS.split(text)
    parts[::2] = [unicodedata.normalize("NFC", part) for part in parts[::2]]
    return "".join(parts)


def _original_place(line: str, folded: str, place: int) -> int:
    """Where in a line that stands which stands at this place of its folded form. Both have the same spaces."""
    number = folded.count(" ", 0, place)
    at = len(" ".join(line.split(" ", number)[:number])) + bool(number)
    rest = place - (folded.rfind(" ", 0, place) + 1)
    end = line.find(" ", at) if " " in line[at:] else len(line)
    while at < end and (length := len(fold(line[at : min(end, at + _FOLDED_AT_ONCE)]))) <= rest:
        at, rest = at + _FOLDED_AT_ONCE, rest - length
    return at + bisect_right(range(_FOLDED_AT_ONCE), rest, key=lambda size: len(fold(line[at : at + size]))) - 1
