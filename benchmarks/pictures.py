"""What pictures cost: a session that has many, a turn that has none, and the memory of one with the largest."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.bench import OURS, Bench
from session_core.data.file_kinds import file_part
from session_core.stores.files import FileStorage
from storage import new_id, timestamp

_MESSAGES = 500
_PICTURES = 50  # of a megabyte each
_TRIES = 100


def pictures(bench: Bench) -> None:
    """A session of 500 messages with and without 50 pictures of 1 MB: to read it, and to begin and store a turn."""
    with tempfile.TemporaryDirectory() as directory:
        storage = FileStorage.open(directory)
        for name, count in (("no picture", 0), (f"{_PICTURES} pictures of 1 MB", _PICTURES)):
            session_id = _session(storage, count)
            read = _milliseconds(lambda id=session_id: storage.get(id))
            bench.add("pictures", f"to read a session of {_MESSAGES} messages, {name}", "ms", {OURS: read})
            turn = _milliseconds(lambda id=session_id: _store_question(storage, id))
            bench.add("pictures", f"to lock it and store a question without a picture, {name}", "ms", {OURS: turn})


def _session(storage: FileStorage, count: int) -> str:
    files = {}
    messages: list[Any] = []
    for index in range(_MESSAGES):
        content: Any = f"Message {index}. " + "A sentence of about the length that people write. " * 4
        if index % 2 == 0 and index // 2 < count:
            data = b"\x89PNG\r\n\x1a\n" + os.urandom(1 << 20)
            part = file_part(data)
            files[part["sha256"]] = data
            content = [{"type": "text", "text": content}, part]
        role = "assistant" if index % 2 else "user"
        messages.append({"id": new_id("msg"), "role": role, "content": content, "created_at": timestamp()})
    return storage.create(messages, files)


def _store_question(storage: FileStorage, session_id: str) -> None:
    with storage.lock_for_turn(session_id) as session:
        session.append({"role": "user", "content": "And now?"})


def _milliseconds(call: Callable[[], object]) -> list[float]:
    took = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        call()
        took.append((time.perf_counter() - began) * 1000)
    return [statistics.median(took)]


BENCHMARKS = {"pictures": pictures}
