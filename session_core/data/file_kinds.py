"""What the bytes of a picture or a file are, and the part of a message that names them."""

import codecs
import hashlib
import re

from session_core.data.message import ContentPart
from session_core.data.text import utf8_text

PICTURES = ("image/jpeg", "image/png", "image/gif", "image/webp")
PDF = "application/pdf"
TEXT = "text/plain"
MAX_FILES = 16  # pictures and files of one message

_BEGINNINGS = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"%PDF-": PDF,
}
_OTHER_NAMES = {"image/jpg": "image/jpeg", "application/octet-stream": "", "application/x-pdf": PDF}
_TEXT_LABEL = re.compile(
    r"text/[\w.+-]+|image/svg\+xml|application/(?:[\w.-]+[+-])?"
    r"(?:(?:nd)?json|json5|xml|yaml|toml|(?:java|ecma|type)script|sql|sh|tex|php|python|ruby|csv|rtf|graphql|diff)"
)
_NAME_LENGTH = 200  # characters
_DECODED_AT_ONCE = 1 << 20  # bytes


def detect_kind(data: bytes) -> str | None:
    """The media type by the bytes themselves: one of `PICTURES`, `PDF`, or `TEXT` for text in UTF-8. None for all
    else."""
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    return next(
        (kind for start, kind in _BEGINNINGS.items() if data.startswith(start)), TEXT if _is_text(data) else None
    )


def file_part(data: bytes, label: str = "", name: str = "") -> ContentPart:
    """The part that names these bytes. `label` is the media type that a caller gives them, and `name` the file's.

    Raises ValueError, in words for callers, for bytes of other kinds, and for a label that contradicts them.
    """
    kind = detect_kind(data)
    if kind is None:
        raise ValueError("is neither a picture (JPEG, PNG, GIF or WebP) nor a PDF nor text in UTF-8")
    label = label.partition(";")[0].strip().lower()
    label = _OTHER_NAMES.get(label, label) or kind
    if label != kind and not (kind == TEXT and _TEXT_LABEL.fullmatch(label)):
        raise ValueError(f"has the media type {label[:100]!r}, but its bytes are {kind}")
    part: ContentPart = {
        "type": "image" if kind in PICTURES else "file",
        "sha256": hashlib.sha256(data).hexdigest(),
        "media_type": label,
        "size": len(data),
    }
    if name := " ".join(utf8_text(name).split())[:_NAME_LENGTH]:
        part["name"] = name
    return part


def describe_part(part: ContentPart) -> str:
    """A word in a picture's or a file's place."""
    name = f" {part['name']}" if "name" in part else ""
    return f"[{part['type']}{name}, {part['media_type']}, {part['size']} bytes]"


def _is_text(data: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(data), _DECODED_AT_ONCE):
            decoder.decode(data[start : start + _DECODED_AT_ONCE])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return bool(data) and b"\0" not in data
