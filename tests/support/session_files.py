"""Session files as a test writes them, and calls of the file system that fail."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from session_core.stores import disk_access, file_locks, file_sweep, files
from session_core.stores.files import FileStorage

ROOT = Path(__file__).parent.parent.parent


ID = "session-0123456789abcdef"


WHEN = "2026-01-31T12:34:56Z"


THEN = 1_700_000_000_123_456_789  # a time in nanoseconds


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def message(number: int, content: str, **more: object) -> dict[str, Any]:
    return {"id": f"msg-{number}", **user(content), **more, "created_at": f"2026-01-31T12:34:{number:02}Z"}


def dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def laid_out(*messages: dict[str, Any], id: str = ID, head: str = "", tail: str = "") -> bytes:
    """A session's file as the program writes it."""
    lines = "".join("\n" + dump(message) + "," for message in messages).removesuffix(",")
    updated = messages[-1]["created_at"] if messages else "2026-01-31T12:34:00Z"
    first = f'{{"id":"{id}","created_at":"2026-01-31T12:34:00Z"{head},"messages":['
    return f'{first}{lines}\n],"updated_at":"{updated}"{tail}}}\n'.encode()


ONE = message(1, "What is 15 * 23?")


TWO = message(2, "héllo\n日本語 🎉")


THREE = message(3, "It is 3 .", call={"a": [1.5]})


def put(directory: Path, data: bytes, id: str = ID) -> Path:
    """A session's file, written by another hand a while ago."""
    path = directory / f"{id}.json"
    path.write_bytes(data)
    os.utime(path, ns=(THEN, THEN))
    return path


def write_numbered(directory: Path, session: str, count: int) -> None:
    """A session of that many messages: `number 0` is a question, `number 1` its answer, and so on."""
    roles = ("user", "assistant")
    messages = [
        {"id": f"msg-{number}", "role": roles[number % 2], "content": f"number {number}", "created_at": WHEN}
        for number in range(count)
    ]
    data = {"id": session, "created_at": WHEN, "updated_at": WHEN, "messages": messages}
    (directory / f"{session}.json").write_text(json.dumps(data))


def open_files(directory: Path) -> list[str]:
    """The files in the directory, deleted ones too, that this process has open. Not those of others: a thread of an
    earlier test may still close some."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them is closed by now
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return sorted(name for name in found if name.startswith(f"{directory}/"))


# --- other layouts ---


def _reordered(value: dict[str, Any]) -> bytes:
    messages = [dict(reversed(message.items())) for message in value["messages"]]
    return dump(dict(reversed({**value, "messages": messages}.items()))).encode() + b"\n"


FOREIGN: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "pretty": lambda value: json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n",
    "with tabs": lambda value: json.dumps(value, indent="\t").encode(),
    "on one line": lambda value: dump(value).encode() + b"\n",
    "with escapes": lambda value: json.dumps(value).encode(),
    "in another order": _reordered,
    "without its last newline": lambda value: laid_out(ONE, TWO, THREE)[:-1],
    "with another newline": lambda value: laid_out(ONE, TWO, THREE) + b"\n",
    "with CR": lambda value: laid_out(ONE, TWO, THREE).replace(b"\n", b"\r\n"),
    "with a BOM": lambda value: b"\xef\xbb\xbf" + laid_out(ONE, TWO, THREE),
    "two messages a line": lambda value: laid_out(ONE, TWO, THREE).replace(b"},\n", b"},", 1),
    "a message on two lines": lambda value: laid_out(ONE, TWO, THREE).replace(b'"role"', b'\n"role"', 1),
    "two a line and a line too many": lambda value: (
        laid_out(ONE, TWO, THREE).replace(b"},\n", b"},", 1).replace(b"\n]", b"\n\n]")
    ),
}


# --- files that cannot be understood ---

GOOD = json.loads(laid_out(ONE, TWO))


# --- files that were torn, cut, or struck by a bit ---


def is_usable(storage: FileStorage, directory: Path, *kept: dict[str, Any]) -> bool:
    """Whether the session has these messages, and takes further ones in a file that is whole again."""
    assert storage.get(ID).messages == list(kept)
    with storage.lock(ID) as locked:
        assert locked.session.messages == list(kept)
        new = [locked.append(user("next")), locked.append(user("and next"))]
    value = json.loads((directory / f"{ID}.json").read_bytes())
    return bool(value["messages"] == storage.get(ID).messages == [*kept, *new])


# --- the file system says no ---


class Calls:
    """The module `os` or `fcntl`, as `storage` is to see it: counts the calls, and lets one of them fail."""

    def __init__(self, module: Any, faults: Faults) -> None:
        self._module = module
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._module, name)
        return self._faults.wrapped(name, real) if name in Faults.CALLS else real


def _unlocks(name: str, args: tuple[Any, ...]) -> bool:
    """Whether the call unlocks: the file is closed behind it, and the kernel gives no reason to refuse it."""
    if name == "flock":
        return bool(args[1] == fcntl.LOCK_UN)
    return name == "fcntl" and bool(struct.unpack("h", args[2][:2])[0] == fcntl.F_UNLCK)


class Faults:
    CALLS = (
        *("open", "read", "pread", "write", "pwrite", "ftruncate", "utime", "fsync", "lseek", "rename", "unlink"),
        *("mkdir", "stat", "fstat", "lstat", "scandir", "flock", "fcntl"),
    )

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fail: Callable[[str, int], OSError | None] = lambda name, number: None
        self.short = False  # each write writes a part only
        self.calls: list[str] = []
        for room in (disk_access, file_sweep, files):
            monkeypatch.setattr(room, "os", Calls(os, self))
        monkeypatch.setattr(file_locks, "fcntl", Calls(fcntl, self))

    def wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if _unlocks(name, args):
                return real(*args, **kwargs)
            number = len(self.calls)
            self.calls.append(name)
            error = self.fail(name, number)
            if name == "pwrite" and (error is not None or self.short):
                file, data, offset = args
                written = real(file, bytes(data)[: max(1, len(data) // 3)], offset)
                if error is None:
                    return written
            if error is not None:
                raise error
            return real(*args, **kwargs)

        return call

    def clear(self) -> None:
        self.fail, self.short, self.calls = (lambda name, number: None), False, []
