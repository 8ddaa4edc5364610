"""Session files that were torn, cut, or struck by a bit."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from session_core.stores import disk_access
from session_core.stores.files import FileStorage
from storage import SessionCorrupt, Summary
from tests.support.session_files import ID, ONE, THREE, TWO, dump, is_usable, laid_out, message, put, user


def test_a_file_cut_to_any_length_keeps_the_lines_that_are_whole(storage: FileStorage, directory: Path) -> None:
    data = laid_out(ONE, TWO, THREE, head=',"title":"x"', tail=',"note":"x"')
    for length in range(len(data)):
        path = put(directory, data[:length])
        if length < data.index(b"\n"):
            with pytest.raises(SessionCorrupt):
                storage.get(ID)
            assert path.read_bytes() == data[:length]
        else:
            whole = [m for m in (ONE, TWO, THREE) if data.index(dump(m).encode()) + len(dump(m).encode()) <= length]
            assert is_usable(storage, directory, *whole), length
            assert storage.get(ID).title == "x"


@pytest.mark.parametrize("before", [(), (ONE,), (ONE, TWO)], ids=len)
@pytest.mark.parametrize("note", ["", ',"note":"model_error"', f',"note":"{"n" * 1000}"'], ids=len)
@pytest.mark.parametrize("rest", ["old", "cut", "zeros"])
def test_a_write_torn_at_any_byte_leaves_all_messages_before_it(
    storage: FileStorage, directory: Path, before: tuple[dict[str, Any], ...], note: str, rest: str
) -> None:
    old = laid_out(*before, head=',"title":"x"', tail=note)
    new = laid_out(*before, THREE, head=',"title":"x"')
    start = old.rindex(b"\n]")
    end = new.index(dump(THREE).encode()) + len(dump(THREE).encode())
    for length in range(start, len(new)):
        stale = b"" if rest == "cut" else old[length:]
        put(directory, (new[:length] + stale).ljust(len(new) if rest == "zeros" else 0, b"\0"))
        messages = storage.get(ID).messages
        if note and length < end and len(messages) > len(before):  # the note has lent it the end that it lacked
            assert {**messages.pop(), "created_at": THREE["created_at"]} == THREE and len(old) >= end
            continue
        assert is_usable(storage, directory, *before, *[THREE] * (length >= end)), length
        assert storage.get(ID).title == "x"


def test_a_bit_that_flips_loses_no_message_without_a_word(
    storage: FileStorage, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    data = laid_out(ONE, TWO, THREE, head=',"title":"x"', tail=',"note":"x"')
    other = storage.create()
    untouched = storage.get(other)
    outcomes = {"corrupt": 0, "whole": 0}
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path = put(directory, bytes(flipped))
        try:
            messages = storage.get(ID).messages
        except SessionCorrupt:
            outcomes["corrupt"] += 1
            assert storage.summary(ID) == Summary(ID)
            with storage.lock(ID) as locked, pytest.raises(SessionCorrupt):
                locked.append(user("x"))
            assert path.read_bytes() == flipped
        else:
            outcomes["whole"] += 1
            assert len(messages) == 3, bit
            changed = [now for now, then in zip(messages, (ONE, TWO, THREE), strict=True) if now != then]
            assert len(changed) <= 1, bit
            assert is_usable(storage, directory, *messages), bit
    assert storage.get(other) == untouched
    assert min(outcomes.values()) > 1000, outcomes


@pytest.mark.parametrize("size", [512, 4096])
def test_a_block_of_zeros_costs_the_last_message_at_most(storage: FileStorage, directory: Path, size: int) -> None:
    messages = [message(number, str(number) * 700) for number in range(12)]
    data = laid_out(*messages)
    last = data.rindex(b"\n{")
    for start in range(0, len(data), size):
        put(directory, data[:start] + bytes(min(size, len(data) - start)) + data[start + size :])
        if start > last:
            assert is_usable(storage, directory, *messages[: 12 if start >= data.rindex(b"\n]") else 11])
        elif start + size < last:
            with pytest.raises(SessionCorrupt):
                storage.get(ID)


def test_whoever_reads_while_another_writes_finds_no_broken_session(storage: FileStorage) -> None:
    id = storage.create()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            messages = storage.get(id).messages
            assert [message["content"] for message in messages] == [str(n) * 600 for n in range(len(messages))]

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            with storage.lock_for_turn(id) as locked:
                for number in range(150):
                    locked.append(user(str(number) * 600))
                    locked.set_last_error("x" * (number % 7 * 100))
        finally:
            stop.set()
    for reader in readers:
        reader.result()


def test_what_looks_broken_while_it_is_written_is_read_again(
    storage: FileStorage, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(directory, laid_out(ONE, TWO))
    half_written = [laid_out(ONE, TWO).replace(word, bytes(4)) for word in (b"What", b"role")]

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def pread(self, file: int, size: int, offset: int) -> bytes:
            return half_written.pop() if half_written and offset == 0 else os.pread(file, size, offset)

    monkeypatch.setattr(disk_access, "os", Slow())
    assert storage.get(ID).messages == [ONE, TWO]
    assert half_written == []
