"""Pictures among the results of tools."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from session_core.data.file_kinds import MAX_FILES, PICTURES, describe_part, file_part
from session_core.data.message import ContentPart
from session_core.model.outgoing_files import Files


@dataclass(frozen=True)
class Picture:
    """A picture that a tool gives, alone or in a list with what else it gives: JPEG, PNG, GIF or WebP, as its first
    bytes say. Raises ValueError for other bytes."""

    data: bytes

    def __post_init__(self) -> None:
        if file_part(self.data)["type"] != "image":
            raise ValueError("the picture is none: it must be JPEG, PNG, GIF or WebP")

    def __str__(self) -> str:
        return describe_part(file_part(self.data))


@dataclass(frozen=True)
class ToolOutput:
    """What a tool gives: a text for the model, and the bytes of pictures."""

    text: str
    pictures: Sequence[bytes] = ()


def split_pictures(result: Any) -> tuple[Any, list[Picture]]:
    """What a function returns without its pictures, and these. A word for each stands behind the rest, where that is
    text, or nothing."""
    if isinstance(result, Picture):
        return str(result), [result]
    pictures = [one for one in result if isinstance(one, Picture)] if isinstance(result, list | tuple) else []
    if not pictures:
        return result, []
    others = [one for one in result if not isinstance(one, Picture)]
    if all(isinstance(one, str) for one in others):
        return "\n".join([*others, *map(str, pictures)]), pictures
    return others, pictures


def keep_pictures(files: Files, max_bytes: int, pictures: Sequence[bytes]) -> list[ContentPart]:
    """Keeps those of the pictures that a message may have, and returns the parts that name them."""
    found = {part["sha256"]: (part, data) for data in pictures if len(data) <= max_bytes for part in _parts(data)}
    kept = dict(list(found.items())[:MAX_FILES])
    if kept:
        files.keep({name: data for name, (_, data) in kept.items()})
    return [part for part, _ in kept.values()]


def _parts(data: bytes) -> list[ContentPart]:
    try:
        part = file_part(data)
    except ValueError:
        return []
    return [part] if part["media_type"] in PICTURES else []
