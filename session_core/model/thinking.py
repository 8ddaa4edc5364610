"""The reasoning of a model, from all shapes in which it comes.

Servers send it as `reasoning_content`, `reasoning`, `reasoning_text`, `reasoning_details`, parts of a list in
`content`, or as `<think>…</think>` at the beginning of the text.
"""

from collections.abc import Mapping
from typing import Any

REASONING_FIELDS = ("reasoning_content", "reasoning", "reasoning_text")  # the last one: Copilot

_OPEN, _CLOSE = "<think>", "</think>"
_JOINED_KEYS = ("text", "summary", "data")  # of a reasoning detail, whose values come piece by piece


class ThinkTags:
    """Splits the text of an answer into reasoning and text, where the answer begins with `<think>`."""

    def __init__(self) -> None:
        self._state = "start"
        self._held = ""

    @property
    def passed(self) -> bool:
        """Whether all that follows is text."""
        return self._state == "text"

    def split(self, text: str) -> tuple[str, str]:
        """The reasoning and the text that this piece adds. Holds back what may be the beginning of a tag."""
        if self._state == "text":
            return "", text
        self._held += text
        if self._state == "start":
            begin = self._held.lstrip()
            if len(begin) < len(_OPEN) and _OPEN.startswith(begin):
                return "", ""  # too little to tell
            if not begin.startswith(_OPEN):
                return "", self._release()
            self._state, self._held = "thinking", begin.removeprefix(_OPEN)
        if self._state == "thinking":
            reasoning, closed, rest = self._held.partition(_CLOSE)
            if not closed:
                kept = _overlap(self._held, _CLOSE)
                reasoning, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
                return reasoning, ""
            self._state, self._held = "after", rest
            return reasoning, self._after()
        return "", self._after()

    def end(self) -> tuple[str, str]:
        """The reasoning and the text that are still held back."""
        thinking = self._state == "thinking"
        held = self._release()
        return (held, "") if thinking else ("", held)

    def _after(self) -> str:
        """The text behind the tag, without the empty lines before it."""
        self._held = self._held.lstrip()
        return self._release() if self._held else ""

    def _release(self) -> str:
        held, self._held, self._state = self._held, "", "text"
        return held


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of the text may begin the tag."""
    return next((size for size in range(len(tag) - 1, 0, -1) if text.endswith(tag[:size])), 0)


def objects_in(value: Any) -> list[dict[str, Any]]:
    """The objects in a list of a model server. None in anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def read_reasoning(delta: Mapping[str, Any]) -> tuple[str | None, str]:
    """The name and the text of the reasoning in a delta or a message. The name is None where there is none.

    A server that sends the same text under two names is read by the first that is not empty.
    """
    found = [(name, text) for name in REASONING_FIELDS if isinstance(text := delta.get(name), str)]
    return next((one for one in found if one[1]), found[0] if found else (None, ""))


def read_details(details: Any) -> str:
    """The text in a list of reasoning details, as far as it is not encrypted."""
    texts = (detail.get(key) for detail in objects_in(details) for key in ("text", "summary"))
    return "".join(text for text in texts if isinstance(text, str))


def add_details(known: list[dict[str, Any]], details: Any) -> None:
    """Adds the pieces of reasoning details to the known ones. Pieces of one index and type are one detail."""
    for piece in objects_in(details):
        index, kind = piece.get("index"), piece.get("type")
        detail = next((one for one in known if (one.get("index"), one.get("type")) == (index, kind)), None)
        if detail is None or not isinstance(index, int):
            known.append(dict(piece))
            continue
        for key, value in piece.items():
            before = detail.get(key)
            if key in _JOINED_KEYS and isinstance(before, str) and isinstance(value, str):
                detail[key] = before + value
            elif value is not None:
                detail[key] = value


def read_parts(parts: Any) -> tuple[str, str]:
    """The reasoning and the text in a list of content parts."""
    reasoning, text = "", ""
    for part in objects_in(parts):
        if part.get("type") == "thinking":
            inner = part.get("thinking")
            reasoning += inner if isinstance(inner, str) else read_parts(inner)[1]
        elif isinstance(part.get("text"), str):
            text += part["text"]
    return reasoning, text
