"""Pictures and files for tests, and their parts as callers send and get them."""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from typing import Any


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(shade: int = 0, size: int = 0) -> bytes:
    """A picture of one pixel, of at least so many bytes. Another shade is another picture."""
    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    data = _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(bytes([0, shade])))
    filler = _chunk(b"teXt", bytes(max(0, size - 100))) if size else b""
    return b"\x89PNG\r\n\x1a\n" + data + filler + _chunk(b"IEND", b"")


JPEG = b"\xff\xd8\xff\xe0" + bytes(20)
GIF = b"GIF89a" + bytes(20)
WEBP = b"RIFF\x20\0\0\0WEBPVP8 " + bytes(20)
PDF = b"%PDF-1.7\n1 0 obj\n"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(data: bytes, **more: Any) -> dict[str, Any]:
    return {"type": "image", "data": encoded(data), **more}


def file(data: bytes, **more: Any) -> dict[str, Any]:
    return {"type": "file", "data": encoded(data), **more}


def stored(data: bytes, media_type: str = "image/png", **more: Any) -> dict[str, Any]:
    """The part that names this picture or file."""
    kind = "image" if media_type.startswith("image/") and media_type != "image/svg+xml" else "file"
    return {"type": kind, "sha256": sha256(data), "media_type": media_type, "size": len(data), **more}


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{encoded(data)}"
