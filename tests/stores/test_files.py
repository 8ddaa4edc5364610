"""Session files: their layout, what breaks them, the file system under them, and other processes beside us."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import resource
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pytest

from session_core.stores import disk_access, file_locks, file_sweep, files
from session_core.stores.files import FileStorage
from storage import (
    LockedSession,
    Session,
    SessionBusy,
    SessionCorrupt,
    SessionNotFound,
    StorageUnavailable,
    Summary,
)

ROOT = Path(__file__).parent.parent.parent
TIMEOUT = 30.0  # seconds; how long a test waits for what must happen at all
ID = "session-0123456789abcdef"
THEN = 1_700_000_000_123_456_789  # a time in nanoseconds


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where sessions are to be kept; in memory where the system offers that, since many are made here."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path / "sessions"
        return
    with tempfile.TemporaryDirectory(dir=memory) as parent:
        yield Path(parent) / "sessions"


@pytest.fixture
def storage(directory: Path) -> FileStorage:
    return FileStorage(str(directory))


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


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- layout ---


def test_a_file_holds_one_message_a_line(storage: FileStorage, directory: Path) -> None:
    id = storage.create()
    path = directory / f"{id}.json"
    created = storage.get(id).created_at
    assert path.read_text() == f'{{"id":"{id}","created_at":"{created}","messages":[\n],"updated_at":"{created}"}}\n'
    with storage.lock(id) as locked:
        one = locked.append(user("What is 15 * 23?"))
        two = locked.append({"role": "assistant", "content": "é\n🎉\x01", "usage": {"total_tokens": 3}})
    assert path.read_text() == (
        f'{{"id":"{id}","created_at":"{created}","messages":[\n'
        f'{{"id":"{one["id"]}","role":"user","content":"What is 15 * 23?","created_at":"{one["created_at"]}"}},\n'
        f'{{"id":"{two["id"]}","role":"assistant","content":"é\\n🎉\\u0001","usage":{{"total_tokens":3}},'
        f'"created_at":"{two["created_at"]}"}}\n'
        f'],"updated_at":"{two["created_at"]}"}}\n'
    )


def test_a_title_stands_in_the_first_line_and_a_note_in_the_last(storage: FileStorage, directory: Path) -> None:
    path = put(directory, laid_out(ONE, TWO))
    with storage.lock(ID) as locked:
        locked.configure(title="Größe")
        assert path.read_bytes() == laid_out(ONE, TWO, head=',"title":"Größe"')
        locked.set_last_error("model_error")
        lines = path.read_text().splitlines()
        assert lines[:-1] == laid_out(ONE, TWO, head=',"title":"Größe"').decode().splitlines()[:-1]
        assert lines[-1] == f'],"updated_at":"{locked.session.updated_at}","note":"model_error"}}'
        locked.configure(title=None)
        assert path.read_text().splitlines() == [laid_out().decode().splitlines()[0], *lines[1:]]


@pytest.mark.skipif(not shutil.which("jq"), reason="needs the Debian package jq")
def test_jq_reads_a_file(storage: FileStorage, directory: Path) -> None:
    id = storage.create()
    with storage.lock(id) as locked:
        locked.append(user("one"))
        locked.append(user("two"))
        locked.set_last_error("x")
    query = subprocess.run(
        ["jq", "-r", ".id, .note, .messages[].content", str(directory / f"{id}.json")],
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT,
    )
    assert query.stdout.split() == [id, "x", "one", "two"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_nobody_else_may_read_what_is_stored(directory: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        storage = FileStorage(str(directory / "in" / "it"))
        id = storage.create()
        path = directory / "in" / "it" / f"{id}.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with storage.lock(id) as locked:
            locked.append(user("x"))
            locked.configure(title="x")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    for made in (directory, directory / "in", directory / "in" / "it"):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_a_directory_that_is_there_is_taken_as_it_is(directory: Path) -> None:
    directory.mkdir(mode=0o755)
    FileStorage(str(directory)).create()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755


def test_a_path_that_is_not_absolute_stays_where_it_was(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.mkdir()
    monkeypatch.chdir(directory)
    storage = FileStorage("sessions")
    monkeypatch.chdir(tmp_path)
    assert (directory / "sessions" / f"{storage.create()}.json").exists()


def test_nothing_but_sessions_is_left_in_the_directory(storage: FileStorage, directory: Path) -> None:
    id, deleted = storage.create(), storage.create()
    with storage.lock(id, turn=True) as locked:
        locked.append(user("x"))
        locked.configure(title="x")
    with storage.lock(deleted) as locked:
        locked.delete()
    storage.check()
    assert os.listdir(directory) == [f"{id}.json"]


def test_no_file_is_left_open(storage: FileStorage) -> None:
    before = open_files()
    id = storage.create()
    with storage.lock(id, turn=True) as locked:
        locked.append(user("x"))
        locked.configure(title="x")
        locked.configure(title="y")
    for ask in (storage.get, storage.summary, storage.running):
        ask(id)
    with storage.lock(id, turn=True), pytest.raises(SessionBusy):
        storage.lock(id)
    with storage.lock(id) as locked:
        locked.delete()
    storage.page()
    storage.check()
    assert open_files() == before


def test_the_times_of_the_files_are_the_order_of_the_list(storage: FileStorage, directory: Path) -> None:
    for number, id in enumerate(("session-c", "session-b", "session-a", "session-d")):
        path = put(directory, laid_out(id=id), id)
        os.utime(path, ns=(0, THEN + number // 3))
    assert storage.page()[0] == ["session-d", "session-a", "session-b", "session-c"]


def test_sessions_survive_a_restart(storage: FileStorage, directory: Path) -> None:
    ids = [storage.create() for _ in range(3)]
    with storage.lock(ids[1]) as locked:
        locked.append(user("one"))
        locked.configure(title="title")
        locked.set_last_error("note")
    again = FileStorage(str(directory))
    assert [again.get(id) for id in ids] == [storage.get(id) for id in ids]
    assert again.page()[0] == [ids[1], ids[2], ids[0]]


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


@pytest.mark.parametrize("write", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_file_in_another_layout_is_read_and_then_written_anew(
    storage: FileStorage, directory: Path, write: Callable[[dict[str, Any]], bytes]
) -> None:
    foreign = write(json.loads(laid_out(ONE, TWO, THREE)))
    path = put(directory, foreign)
    expected = Session(ID, "2026-01-31T12:34:00Z", THREE["created_at"], None, [ONE, TWO, THREE])
    assert storage.get(ID) == expected
    with storage.lock(ID) as locked:
        assert locked.session == expected
    assert path.read_bytes() == foreign
    with storage.lock(ID) as locked:
        four = locked.append(user("4"))
        five = locked.append(user("5"))
    messages = [json.loads(line.removesuffix(b",")) for line in path.read_bytes().splitlines()[1:-1]]
    assert messages == [ONE, TWO, THREE, four, five]
    assert json.loads(path.read_bytes())["updated_at"] == five["created_at"]
    assert path.read_bytes().startswith(laid_out()[: laid_out().index(b"\n")])
    assert storage.get(ID).messages == messages


def test_a_file_in_another_layout_can_be_given_a_title_and_a_note(storage: FileStorage, directory: Path) -> None:
    pretty = FOREIGN["pretty"](json.loads(laid_out(ONE, head=',"title":"old"', tail=',"note":"old"')))
    path = put(directory, pretty)
    assert (storage.get(ID).title, storage.get(ID).last_error) == ("old", "old")
    with storage.lock(ID) as locked:
        locked.configure(title="new")
    assert path.read_bytes() == laid_out(ONE, head=',"title":"new"', tail=',"note":"old"')
    assert path.stat().st_mtime_ns == THEN
    put(directory, pretty)
    with storage.lock(ID) as locked:
        locked.set_last_error("new")
    assert (storage.get(ID).title, storage.get(ID).last_error, storage.get(ID).messages) == ("old", "new", [ONE])


def test_a_file_without_times_of_change_was_changed_with_its_last_message(
    storage: FileStorage, directory: Path
) -> None:
    value = json.loads(laid_out(ONE, TWO))
    del value["updated_at"]
    put(directory, dump(value).encode())
    assert storage.get(ID).updated_at == TWO["created_at"]
    put(directory, dump({**value, "messages": []}).encode())
    assert storage.get(ID).updated_at == value["created_at"]


# --- files that cannot be understood ---

GOOD = json.loads(laid_out(ONE, TWO))
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "zeros": bytes(4096),
    "garbage": bytes(range(256)) * 20,
    "a word": b"null",
    "a list": b"[]",
    "an object": b"{}",
    "an array of brackets": b"[" * 100_000,
    "brackets inside": laid_out({**ONE, "x": 0}).replace(b'"x":0', b'"x":' + b"[" * 100_000),
    "another session": laid_out(ONE, id="session-f"),
    "two BOMs": 2 * b"\xef\xbb\xbf" + laid_out(ONE),
    "not UTF-8": laid_out(ONE).replace(b"What", b"Wh\xe4t"),
    "UTF-16": laid_out(ONE).decode().encode("utf-16"),
    "NaN": laid_out({**ONE, "x": 0}, TWO).replace(b'"x":0', b'"x":NaN'),
    "NaN in the last message": laid_out(ONE, {**TWO, "x": 0}).replace(b'"x":0', b'"x":NaN'),
    "infinity": laid_out({**ONE, "x": 0}, TWO).replace(b'"x":0', b'"x":-1e999'),
    "a lone surrogate": laid_out(ONE, TWO).replace(b"What", rb"\ud800"),
    "too large an integer": laid_out({**ONE, "x": 0}).replace(b'"x":0', b'"x":' + b"1" * 5000),
    "no messages": dump({**GOOD, "messages": None}).encode(),
    "messages in an object": dump({**GOOD, "messages": {}}).encode(),
    "a message that is none": dump({**GOOD, "messages": [ONE, 1, TWO]}).encode(),
    "a message without a role": laid_out(ONE, {**TWO, "role": None}),
    "a message without content": laid_out({**ONE, "content": None}, TWO),
    "a message without an id": laid_out(ONE, {**TWO, "id": 2}),
    "a message without a time": dump({**GOOD, "messages": [{**ONE, "created_at": 1}]}).encode(),
    "a title that is none": dump({**GOOD, "title": 1}).encode(),
    "a note that is none": dump({**GOOD, "note": []}).encode(),
    "no time": dump({**GOOD, "created_at": None}).encode(),
    "a time that is none": dump({**GOOD, "updated_at": 1}).encode(),
    "a hole in the middle": laid_out(ONE, TWO, THREE).replace(dump(TWO).encode()[9:30], bytes(21)),
    "a line in the middle cut": laid_out(ONE, TWO, THREE).replace(dump(TWO).encode()[9:], b""),
    "a line in the middle cut, and the end": laid_out(ONE, TWO, THREE).replace(dump(TWO).encode()[9:], b"")[:-9],
    "a word in the middle": laid_out(ONE, TWO, THREE).replace(b"},\n", b"},\nx\n", 1),
    "the last message cut": laid_out(ONE, TWO).replace(dump(TWO).encode()[9:], b""),
    "without its first line": laid_out(ONE, TWO).partition(b"\n")[2],
    "twice": laid_out(ONE, TWO) + laid_out(ONE, TWO),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_a_file_that_is_no_session_is_corrupt_and_is_left_as_it_is(
    storage: FileStorage, directory: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = put(directory, data)
    good = storage.create()
    with pytest.raises(SessionCorrupt):
        storage.get(ID)
    assert f"{ID}.json" in caplog.text and "Traceback" not in caplog.text
    assert storage.running(ID) is False
    with storage.lock(ID, turn=True) as locked:
        for change in (
            lambda: locked.session,
            lambda: locked.append(user("x")),
            lambda: locked.set_last_error("x"),
            lambda: locked.configure(title="x"),
        ):
            with pytest.raises(SessionCorrupt):
                change()
        assert storage.running(ID) is True
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (data, THEN)
    assert storage.summary(ID) == Summary(ID)
    assert storage.page() == ([good, ID], None)
    assert storage.get(good).messages == []
    with storage.lock(ID) as locked:
        locked.delete()
    assert storage.page() == ([good], None)


def test_the_log_says_nothing_of_what_is_in_a_file(
    storage: FileStorage, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for secret, data in (("15", laid_out(ONE)[:-60]), ("secret", b'{"secret": secret'), ("secret", b'["secret"]')):
        put(directory, data)
        with contextlib.suppress(SessionCorrupt), storage.lock(ID) as locked:
            locked.append(user("secret"))
        assert secret not in caplog.text.replace(ID, "")


# --- files that were torn, cut, or struck by a bit ---


def is_usable(storage: FileStorage, directory: Path, *kept: dict[str, Any]) -> bool:
    """Whether the session has these messages, and takes further ones in a file that is whole again."""
    assert storage.get(ID).messages == list(kept)
    with storage.lock(ID) as locked:
        assert locked.session.messages == list(kept)
        new = [locked.append(user("next")), locked.append(user("and next"))]
    value = json.loads((directory / f"{ID}.json").read_bytes())
    return bool(value["messages"] == storage.get(ID).messages == [*kept, *new])


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
            with storage.lock(id, turn=True) as locked:
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


# --- odd entries in the directory ---


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound, contextlib.chdir(path.parent):
        bound.bind(path.name)


ODD: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
    "a socket": _socket,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a folder": lambda path: path.symlink_to("."),
    "a link to a session": lambda path: path.symlink_to(_elsewhere(path)),
}


def _elsewhere(path: Path) -> Path:
    there = path.parent.parent / "elsewhere.json"
    there.write_bytes(laid_out(ONE))
    return there


@pytest.mark.parametrize("make", ODD.values(), ids=ODD.keys())
def test_what_is_no_regular_file_is_no_session(
    storage: FileStorage, directory: Path, make: Callable[[Path], object]
) -> None:
    make(directory / f"{ID}.json")
    before, open_before = os.lstat(directory / f"{ID}.json"), open_files()
    for ask in (storage.get, storage.summary, storage.running, storage.lock):
        with pytest.raises(SessionNotFound):
            ask(ID)
    good = storage.create()
    assert storage.page() == ([good], None)
    after = os.lstat(directory / f"{ID}.json")
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)
    assert open_files() == open_before


@pytest.mark.parametrize("make", [os.mkfifo, ODD["a link to a session"]], ids=["a FIFO", "a link"])
def test_what_becomes_no_regular_file_while_we_look_is_not_opened(
    storage: FileStorage, directory: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object]
) -> None:
    path = put(directory, laid_out(ONE, TWO))
    faults = Faults(monkeypatch)

    def swap(name: str, number: int) -> None:
        if name == "open":
            path.unlink()
            make(path)

    for ask in (storage.get, lambda id: storage.lock(id).session):
        faults.fail = swap
        with pytest.raises((StorageUnavailable, SessionNotFound)):
            ask(ID)
        faults.clear()
        path.unlink()
        put(directory, laid_out(ONE, TWO))


def test_files_with_other_names_are_ignored(
    storage: FileStorage, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        *("session-A.json", "session-.json", "session-a.JSON", "session-a.json~", ".session-a.json", "a.json"),
        *("xsession-a.json", "session-a.json.tmp", "session-a", "session-a .json", "session-a\n.json", ".json"),
        *("session-" + "a" * 65 + ".json", "session-é.json", "notes.txt"),
        *(".hidden.tmp", ".session-a.tmp", ".session-a.x.tmp", f"{ID}.0123456789abcdef.tmp"),
    ]
    for name in [*map(os.fsencode, names), b"session-\xff.json", b"\xff.json", b".\xff.tmp"]:
        path = os.fsencode(directory) + b"/" + name
        with open(path, "wb") as file:
            file.write(laid_out(ONE, id="session-a"))
        os.utime(path, (0, 0))
    present = set(os.listdir(directory))
    monkeypatch.setattr(file_sweep, "_ORPHAN_SECONDS", -60.0)
    again = FileStorage(str(directory))
    assert storage.page() == again.page() == ([], None)
    assert set(os.listdir(directory)) == present


def test_what_a_crash_left_is_swept_when_it_is_old(
    directory: Path, storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [directory / f".{ID}.0123456789abcdef.tmp", directory / ".0123456789abcdef.tmp"]
    for path in left:
        path.write_bytes(b"x")
        os.utime(path, (0, 0))  # as when an old session is given a title just now
    FileStorage(str(directory))
    assert all(path.exists() for path in left)
    monkeypatch.setattr(file_sweep, "_ORPHAN_SECONDS", -60.0)  # an hour later
    FileStorage(str(directory))
    assert os.listdir(directory) == []


# --- the file system says no ---


class Calls:
    """The module `os` or `fcntl`, as `storage` is to see it: counts the calls, and lets one of them fail."""

    def __init__(self, module: Any, faults: Faults) -> None:
        self._module = module
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._module, name)
        return self._faults.wrapped(name, real) if name in Faults.CALLS else real


class Faults:
    CALLS = (
        *(
            "open",
            "read",
            "pread",
            "write",
            "pwrite",
            "ftruncate",
            "utime",
            "fsync",
            "lseek",
            "rename",
            "unlink",
            "link",
        ),
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


def _unlocks(name: str, args: tuple[Any, ...]) -> bool:
    """Whether the call unlocks: the file is closed behind it, and the kernel gives no reason to refuse it."""
    if name == "flock":
        return bool(args[1] == fcntl.LOCK_UN)
    return name == "fcntl" and struct.unpack("h", args[2][:2])[0] == fcntl.F_UNLCK


def _change(change: Callable[[LockedSession], object]) -> Callable[[FileStorage], object]:
    def run(storage: FileStorage) -> object:
        with storage.lock(ID, turn=True) as locked:
            return change(locked)

    return run


OPERATIONS: dict[str, Callable[[FileStorage], object]] = {
    "create": lambda storage: storage.create(),
    "get": lambda storage: storage.get(ID),
    "summary": lambda storage: storage.summary(ID),
    "page": lambda storage: storage.page(),
    "running": lambda storage: storage.running(ID),
    "check": lambda storage: storage.check(),
    "append": _change(lambda locked: locked.append(user("new"))),
    "note": _change(lambda locked: locked.set_last_error("new")),
    "rename": _change(lambda locked: locked.configure(title="new")),
    "delete": _change(lambda locked: locked.delete()),
    "open": lambda storage: FileStorage(storage._directory),
    "open a new directory": lambda storage: FileStorage(storage._directory + "/a/b"),
}
STATES = {"ours": laid_out(ONE, TWO), "foreign": FOREIGN["pretty"](GOOD), "torn": laid_out(ONE, TWO, THREE)[:-70]}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("onward", [False, True], ids=["once", "from then on"])
def test_any_call_to_the_system_that_fails_leaves_what_was_stored(
    storage: FileStorage,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    state: str,
    onward: bool,
) -> None:
    older = storage.create()
    run, faults, files = OPERATIONS[operation], Faults(monkeypatch), open_files()
    put(directory, STATES[state])
    before = storage.get(ID)
    faults.clear()
    run(storage)
    count = len(faults.calls)
    for number in range(count):
        shutil.rmtree(directory)
        faults.clear()
        storage = FileStorage(str(directory))
        put(directory, laid_out(id=older), older)
        put(directory, STATES[state])
        order = storage.page()[0]
        names = set(os.listdir(directory))
        faults.clear()
        faults.fail = lambda name, at, number=number: (  # type: ignore[misc]
            OSError(errno.EIO, "injected") if at == number or (onward and at > number) else None
        )
        with pytest.raises(StorageUnavailable):
            run(storage)
        failed = faults.calls[number]
        faults.clear()
        assert open_files() == files, failed
        if operation == "delete" and failed == "fsync" and not os.path.exists(directory / f"{ID}.json"):
            continue  # neither promised to be there nor to be gone
        after = storage.get(ID)
        assert storage.running(ID) is False
        if onward and operation == "append":
            assert after.messages[:2] == before.messages
        elif onward or (failed == "fsync" and operation == "rename"):
            assert after.messages == before.messages
        else:
            assert after == before, failed
            assert [id for id in storage.page()[0] if id in order] == order
        if not onward:
            left = {name for name in os.listdir(directory) if name.endswith(".tmp")}
            assert not left or (operation in ("check", "open", "open a new directory") and failed == "unlink")
        assert names <= set(os.listdir(directory))
        assert is_usable(storage, directory, *after.messages)
        assert storage.get(older).messages == []


@pytest.mark.parametrize(
    "change",
    [
        lambda locked: locked.append(user("x" * 9000)),
        lambda locked: locked.set_last_error("y" * 9000),
        lambda locked: locked.configure(title="z"),
    ],
    ids=["append", "note", "rename"],
)
@pytest.mark.parametrize("state", STATES)
def test_a_turn_goes_on_after_a_call_that_failed(
    storage: FileStorage,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[LockedSession], object],
    state: str,
) -> None:
    faults = Faults(monkeypatch)
    number = 0
    while True:
        put(directory, STATES[state])
        faults.clear()
        with storage.lock(ID, turn=True) as locked:
            assert locked.session.messages == [ONE, TWO]
            faults.clear()
            faults.fail = lambda name, at, number=number: (  # type: ignore[misc]
                OSError(errno.ENOSPC, "injected") if at == number else None
            )
            try:
                change(locked)
                break  # it makes no further call that could fail
            except StorageUnavailable:
                faults.clear()
            assert locked.session.messages == [ONE, TWO]
            assert storage.running(ID) is True
            three = locked.append(user("3"))
            assert storage.get(ID).messages == [ONE, TWO, three]
            locked.configure(title="title")
            four = locked.append(user("4"))
        assert (
            storage.get(ID).messages
            == [ONE, TWO, three, four]
            == json.loads((directory / f"{ID}.json").read_bytes())["messages"]
        )
        number += 1
    assert number >= 4


def test_writes_that_write_a_part_are_continued(
    storage: FileStorage, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(monkeypatch)
    faults.short = True
    id = storage.create()
    with storage.lock(id) as locked:
        said = [locked.append(user("é" * 5000)), locked.append(user("x"))]
        locked.configure(title="title")
    assert storage.get(id).messages == said == json.loads((directory / f"{id}.json").read_bytes())["messages"]


def test_a_session_that_could_not_be_written_keeps_its_place_in_the_list(
    storage: FileStorage, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(directory, laid_out(ONE))
    later = storage.create()
    faults = Faults(monkeypatch)
    faults.fail = lambda name, at: OSError(errno.ENOSPC, "full") if faults.calls.count("pwrite") == 1 else None
    with storage.lock(ID) as locked, pytest.raises(StorageUnavailable):
        locked.append(user("x"))
    assert storage.page()[0] == [later, ID]
    assert (directory / f"{ID}.json").stat().st_mtime_ns == THEN


def in_a_namespace(function: Callable[[str], None], directory: Path) -> None:
    """Run one of this module's functions in a process that may mount what nobody else sees."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        subprocess.run([*unshare, "true"], capture_output=True, check=True, timeout=TIMEOUT)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("needs unshare(1) and leave to make namespaces, to mount a small file system")
    directory.mkdir()
    script = f"import sys; from tests.stores import test_files; test_files.{function.__name__}(sys.argv[1])"
    done = subprocess.run(
        [*unshare, sys.executable, "-c", script, str(directory)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT,
    )
    assert done.returncode == 0, done.stderr


def _mount(directory: str, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)


def _refused(*actions: Callable[[], object]) -> None:
    for action in actions:
        try:
            action()
        except StorageUnavailable:
            continue
        raise AssertionError("it was not refused")


def _on_a_full_disk(directory: str) -> None:
    _mount(directory, "size=256k")
    storage = FileStorage(directory)
    put(Path(directory), FOREIGN["pretty"](GOOD), ID)
    ids = [storage.create() for _ in range(3)]
    for id in ids:
        with storage.lock(id) as locked:
            locked.append(user("x" * 3000))
    filler = os.path.join(directory, "filler")
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096) == 4096:
            pass
    before = [storage.get(id) for id in (*ids, ID)], storage.page()
    for _ in range(2):
        _refused(storage.create, storage.check)
        for id in ids:
            with storage.lock(id, turn=True) as locked:
                _refused(lambda: locked.append(user("y" * 6000)), lambda: locked.configure(title="y"))
                _refused(lambda: locked.set_last_error("y" * 6000))
        with storage.lock(ID) as locked:
            _refused(lambda: locked.append(user("y")), lambda: locked.configure(title="y"))
        assert ([storage.get(id) for id in (*ids, ID)], storage.page()) == before
        _refused(lambda: FileStorage(directory))
    assert not [name for name in os.listdir(directory) if name.endswith(".tmp")]
    with storage.lock(ids[0]) as locked:
        locked.delete()
    os.unlink(filler)
    storage.check()
    for id in (*ids[1:], ID):
        with storage.lock(id) as locked:
            locked.append(user("after"))
        with open(os.path.join(directory, f"{id}.json")) as stored:
            assert json.load(stored)["messages"] == storage.get(id).messages
        assert storage.get(id).messages[-1]["content"] == "after"


def test_on_a_full_disk_what_was_stored_is_intact(directory: Path) -> None:
    in_a_namespace(_on_a_full_disk, directory)


def _on_a_read_only_disk(directory: str) -> None:
    _mount(directory, "size=256k")
    storage = FileStorage(directory)
    id = storage.create()
    with storage.lock(id) as locked:
        locked.append(user("one"))
    before = storage.get(id), storage.summary(id), storage.page(), storage.running(id)
    subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
    _refused(storage.create, storage.check, lambda: storage.lock(id), lambda: FileStorage(directory))
    assert (storage.get(id), storage.summary(id), storage.page(), storage.running(id)) == before
    subprocess.run(["mount", "-o", "remount,rw", directory], check=True)
    storage.check()
    with storage.lock(id) as locked:
        locked.append(user("two"))
    assert [message["content"] for message in storage.get(id).messages] == ["one", "two"]


def test_on_a_read_only_disk_sessions_can_be_read(directory: Path) -> None:
    in_a_namespace(_on_a_read_only_disk, directory)


@pytest.mark.parametrize("put_in_its_place", ["nothing", "a file"])
def test_without_its_directory_the_store_is_unavailable(
    storage: FileStorage, directory: Path, put_in_its_place: str
) -> None:
    id = storage.create()
    storage.summary(id)
    moved = directory.with_name("moved")
    directory.rename(moved)
    if put_in_its_place == "a file":
        directory.write_text("x")
    _refused(
        *(storage.create, storage.check, storage.page, lambda: storage.page(after=id)),
        *(lambda ask=ask: ask(id) for ask in (storage.get, storage.summary, storage.running, storage.lock)),
    )
    directory.unlink(missing_ok=True)
    moved.rename(directory)
    storage.check()
    with storage.lock(id) as locked:
        locked.append(user("one"))
    assert storage.page()[0] == [id]


@pytest.mark.parametrize("lost", ["removed", "replaced by another file"])
def test_what_could_not_be_found_again_is_not_acknowledged(storage: FileStorage, directory: Path, lost: str) -> None:
    path = put(directory, laid_out(ONE))
    with storage.lock(ID, turn=True) as locked:
        assert locked.session.messages == [ONE]
        if lost == "removed":
            path.unlink()
        else:
            put(directory, laid_out(TWO), "session-f").rename(path)
        _refused(lambda: locked.append(user("x")), lambda: locked.set_last_error("x"))


def test_a_session_whose_file_is_gone_already_can_be_deleted(storage: FileStorage, directory: Path) -> None:
    path = put(directory, laid_out(ONE))
    with storage.lock(ID) as locked:
        path.unlink()
        locked.delete()
    assert storage.page() == ([], None)


def test_a_directory_that_cannot_be_made_is_an_error(directory: Path) -> None:
    directory.parent.mkdir(exist_ok=True)
    directory.write_text("a file")
    for path in (directory, directory / "in" / "it"):
        with pytest.raises(StorageUnavailable):
            FileStorage(str(path))


def _without_descriptors(directory: str) -> None:
    storage = FileStorage(directory)
    id, other = storage.create(), storage.create()
    locked = storage.lock(id, turn=True)
    locked.append(user("one"))
    asked = [storage.get, storage.running, storage.lock, storage.summary]
    before = storage.get(id), storage.get(other)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    for spare in range(3):  # with so many left
        files = []
        with contextlib.suppress(OSError):
            while True:
                files.append(os.open("/dev/null", os.O_RDONLY))
        for file in files[:spare]:
            os.close(file)
        if spare == 0:
            _refused(storage.create, storage.check, storage.page, lambda: FileStorage(directory))
            _refused(*(lambda ask=ask: ask(other) for ask in asked))
        if spare < 2:
            _refused(storage.create, lambda: locked.configure(title="x"))
        if spare == 1:
            with storage.lock(other) as held:
                _refused(held.delete)
        for file in files[spare:]:
            os.close(file)
        assert (storage.get(id), storage.get(other)) == before
    locked.append(user("two"))
    locked.release()
    assert [message["content"] for message in storage.get(id).messages] == ["one", "two"]
    with storage.lock(other) as held:
        held.delete()
    assert storage.page() == ([id], None)


def test_without_file_descriptors_what_was_stored_is_intact(directory: Path) -> None:
    script = "import sys; from tests.stores import test_files; test_files._without_descriptors(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", script, str(directory)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT,
    )
    assert done.returncode == 0, done.stderr


# --- locks, and other processes ---


@pytest.mark.parametrize("turn", [False, True])
def test_a_taken_file_is_locked_for_every_program(storage: FileStorage, directory: Path, turn: bool) -> None:
    def is_locked() -> bool:
        with open(directory / f"{ID}.json", "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    put(directory, laid_out(ONE))
    assert not is_locked()
    with storage.lock(ID, turn=turn) as locked:
        assert is_locked()
        locked.append(user("two"))
        assert is_locked()
        locked.configure(title="a")
        assert is_locked()
        locked.append(user("three"))
        assert is_locked()
    assert not is_locked()


def test_a_file_that_another_program_locks_is_busy_and_does_not_run(storage: FileStorage, directory: Path) -> None:
    with put(directory, laid_out(ONE)).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(SessionBusy):
            storage.lock(ID, turn=True)
        assert storage.running(ID) is False
        assert storage.get(ID).messages == [ONE]


@pytest.mark.parametrize("turn", [False, True])
def test_a_file_replaced_before_it_is_locked_is_not_the_one_that_is_taken(
    storage: FileStorage, directory: Path, monkeypatch: pytest.MonkeyPatch, turn: bool
) -> None:
    put(directory, laid_out(ONE))
    faults = Faults(monkeypatch)

    def replace(name: str, number: int) -> None:
        if name == "flock" and faults.calls.count("flock") == 1:
            put(directory, laid_out(ONE, TWO), "session-f").rename(directory / f"{ID}.json")

    faults.fail = replace
    with storage.lock(ID, turn=turn) as locked:
        assert locked.session.messages == [ONE, TWO]
        three = locked.append(user("three"))
    assert storage.get(ID).messages == [ONE, TWO, three]


def test_nobody_takes_a_new_session_before_it_is_durable(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(monkeypatch)
    locked: list[LockedSession | None] = []

    def look(name: str, number: int) -> None:
        if name == "fsync" and faults.calls.count("fsync") == 2:  # that of the directory
            locked.extend(storage._lock(id, turn=True) for id in storage.page()[0])

    faults.fail = look
    storage.create()
    assert locked == [None]


def test_a_session_deleted_while_the_list_is_made_is_not_in_it(
    storage: FileStorage, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = put(directory, laid_out(ONE)), storage.create()

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        @contextlib.contextmanager
        def scandir(self, directory: str) -> Iterator[list[os.DirEntry[str]]]:
            with os.scandir(directory) as entries:
                found = list(entries)
            path.unlink()
            yield found

    monkeypatch.setattr(files, "os", Slow())
    assert storage.page() == ([other], None)


def test_a_file_deleted_before_it_is_locked_is_not_found(
    storage: FileStorage, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, files = put(directory, laid_out(ONE)), open_files()
    faults = Faults(monkeypatch)
    faults.fail = lambda name, number: path.unlink() if name == "flock" else None
    with pytest.raises(SessionNotFound):
        storage.lock(ID)
    assert open_files() == files


class Process:
    """Another process with a `storage` on the same directory, which does what it is told."""

    SCRIPT = """
import sys
from storage import *
from session_core.stores.files import FileStorage
storage = FileStorage(sys.argv[1])
for line in sys.stdin:
    try:
        exec(eval(line))
        print("done", flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.SCRIPT, str(directory)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._watchdog = threading.Timer(2 * TIMEOUT, self.process.kill)
        self._watchdog.start()

    def start(self, code: str) -> None:
        assert self.process.stdin is not None
        print(repr(code), file=self.process.stdin, flush=True)

    def outcome(self) -> str:
        """`done`, or the name of the exception."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, code: str) -> str:
        self.start(code)
        return self.outcome()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._watchdog.cancel()
        self._watchdog.join()
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def process(storage: FileStorage, directory: Path) -> Iterator[Process]:
    with Process(directory) as process:
        yield process


def test_of_two_processes_one_has_the_session(storage: FileStorage, directory: Path, process: Process) -> None:
    put(directory, laid_out(ONE))
    with Process(directory) as second:
        for round in range(10):
            for one in (process, second):
                one.start(f"locked = storage.lock({ID!r}, turn=True)")
            outcomes = [process.outcome(), second.outcome()]
            assert sorted(outcomes) == ["SessionBusy", "done"]
            winner = (process, second)[outcomes.index("done")]
            assert storage.running(ID) is True
            assert winner.do(f"locked.append({{'role': 'user', 'content': '{round}'}}); locked.release()") == "done"
            assert storage.running(ID) is False
    assert [message["content"] for message in storage.get(ID).messages[1:]] == [str(n) for n in range(10)]


def test_processes_that_take_turns_lose_and_mix_nothing(
    storage: FileStorage, directory: Path, process: Process
) -> None:
    put(directory, laid_out(ONE))
    work = """
for number in range(40):
    while True:
        try:
            locked = storage.lock(%r, turn=True)
            break
        except SessionBusy:
            pass
    with locked:
        for what in ("asks", "is answered"):
            locked.append({"role": "user", "content": "%s.%%d %%s" %% (number, what)})
        if number %% 5 == 0:
            locked.configure(title=str(number))
"""
    with Process(directory) as second:
        process.start(work % (ID, "a"))
        second.start(work % (ID, "b"))
        assert (process.outcome(), second.outcome()) == ("done", "done")
    said = [message["content"].split(maxsplit=1) for message in storage.get(ID).messages[1:]]
    assert [who for who, what in said[::2]] == [who for who, what in said[1::2]]
    assert [who for who, what in said if what == "asks" and who[0] == "a"] == [f"a.{n}" for n in range(40)]
    assert [who for who, what in said if what == "is answered" and who[0] == "b"] == [f"b.{n}" for n in range(40)]
    assert len(said) == 160


def test_a_process_that_lists_and_looks_is_in_nobodys_way(
    storage: FileStorage, directory: Path, process: Process
) -> None:
    put(directory, laid_out(ONE))
    stop = directory.parent / "stop"
    process.start(f"""
import os
looked = 0
while not os.path.exists({str(stop)!r}) or not looked:
    storage.running({ID!r}), storage.page(), storage.summary({ID!r}), storage.get({ID!r})
    looked += 1
""")
    for number in range(300):
        locked = storage._lock(ID, turn=True)
        assert locked is not None
        with locked:
            locked.append(user(str(number)))
    stop.write_text("")
    assert process.outcome() == "done"


def test_a_session_is_deleted_by_one_process_and_taken_by_none(
    storage: FileStorage, directory: Path, process: Process
) -> None:
    for _ in range(20):
        put(directory, laid_out(ONE))
        process.start(f"with storage.lock({ID!r}) as locked: locked.append({{'role': 'user', 'content': 'x'}})")
        while True:
            with contextlib.suppress(SessionBusy), storage.lock(ID) as locked:
                locked.delete()
                break
        assert process.outcome() in ("done", "SessionNotFound", "SessionBusy")
        assert storage.page() == ([], None)


def test_a_session_whose_process_was_killed_is_free(storage: FileStorage, directory: Path, process: Process) -> None:
    put(directory, laid_out(ONE))
    assert process.do(f"locked = storage.lock({ID!r}, turn=True); locked.configure(title='a')") == "done"
    assert process.do("locked.append({'role': 'user', 'content': 'two'})") == "done"
    assert storage.running(ID) is True
    with pytest.raises(SessionBusy):
        storage.lock(ID)
    process.kill()
    assert storage.running(ID) is False
    storage.lock(ID, turn=True).release()
    assert [message["content"] for message in storage.get(ID).messages[1:]] == ["two"]


def test_a_program_that_we_start_holds_no_lock_of_ours(storage: FileStorage, directory: Path) -> None:
    put(directory, laid_out(ONE))
    with storage.lock(ID, turn=True):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        assert storage.running(ID) is False
        storage.lock(ID).release()
    finally:
        child.kill()
        child.wait(TIMEOUT)


# --- large sessions, which are kept parsed between turns ---

LONG = "long " * 20_000


def large(storage: FileStorage) -> str:
    """A session that a turn has used a moment ago."""
    session_id = storage.create()
    with storage.lock(session_id, turn=True) as session:
        session.append(user(LONG))
        session.append(user("one"))
    return session_id


def texts(session: Session) -> list[str]:
    return [message["content"] for message in session.messages]


def test_a_turn_finds_what_the_turn_before_it_has_left(storage: FileStorage) -> None:
    session_id = large(storage)
    for number in range(3):
        with storage.lock(session_id, turn=True) as session:
            assert session.session == storage.get(session_id)
            session.append(user(str(number)))
            session.set_last_error("internal_error")
    assert texts(storage.get(session_id)) == [LONG, "one", "0", "1", "2"]


def test_what_a_turn_does_to_its_list_of_messages_stays_its_own(storage: FileStorage) -> None:
    session_id = large(storage)
    for _ in range(2):
        with storage.lock(session_id, turn=True) as session:
            session.append(user("two"))
            session.session.messages.clear()
    with storage.lock(session_id, turn=True) as session:
        assert session.session == storage.get(session_id)
        assert texts(session.session) == [LONG, "one", "two", "two"]


def edited(file: Path, storage: FileStorage) -> None:
    file.write_bytes(file.read_bytes().replace(b'"one"', b'"two"'))


def edited_with_its_time_kept(file: Path, storage: FileStorage) -> None:
    before = file.stat()
    edited(file, storage)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(file: Path, storage: FileStorage) -> None:
    copy = file.with_suffix(".copy")
    copy.write_bytes(file.read_bytes())
    edited(copy, storage)
    copy.rename(file)


def added_to(file: Path, storage: FileStorage) -> None:
    with FileStorage(str(file.parent)).lock(file.stem, turn=True) as session:
        session.append(user("two"))


def renamed(file: Path, storage: FileStorage) -> None:
    with storage.lock(file.stem) as session:
        session.configure(title="Another")


def renamed_by_a_turn(file: Path, storage: FileStorage) -> None:
    with storage.lock(file.stem, turn=True) as session:
        session.append(user("two"))
        session.configure(title="Another")


@pytest.mark.parametrize(
    "change", [edited, edited_with_its_time_kept, replaced, added_to, renamed, renamed_by_a_turn]
)
def test_a_turn_reads_again_what_others_have_changed(
    storage: FileStorage, directory: Path, change: Callable[[Path, FileStorage], None]
) -> None:
    session_id = large(storage)
    before = storage.get(session_id)
    change(directory / f"{session_id}.json", storage)
    with storage.lock(session_id, turn=True) as session:
        assert session.session == storage.get(session_id) != before


def test_a_turn_after_a_write_that_failed_reads_again(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id = large(storage)
    faults = Faults(monkeypatch)
    with storage.lock(session_id, turn=True) as session:
        session.append(user("two"))
        faults.fail = lambda name, at: OSError(errno.ENOSPC, "injected") if name == "fsync" else None
        with pytest.raises(StorageUnavailable):
            session.append(user("three"))
        faults.clear()
    with storage.lock(session_id, turn=True) as session:
        assert session.session == storage.get(session_id)
        assert texts(session.session) == [LONG, "one", "two"]
