"""Session files: their layout, other layouts, and what is no session."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from session_core.stores.files import FileStorage
from storage import Session, SessionBusy, SessionCorrupt, Summary
from tests.support.server import TIMEOUT
from tests.support.session_files import (
    FOREIGN,
    GOOD,
    ID,
    ONE,
    THEN,
    THREE,
    TWO,
    dump,
    laid_out,
    open_files,
    put,
    user,
)


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
        assert lines[-1] == f'],"updated_at":"{locked.session.updated_at}","last_error":"model_error"}}'
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
        ["jq", "-r", ".id, .last_error, .messages[].content", str(directory / f"{id}.json")],
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
        storage = FileStorage.open(str(directory / "in" / "it"))
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
    FileStorage.open(str(directory)).create()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755


def test_a_path_that_is_not_absolute_stays_where_it_was(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.mkdir()
    monkeypatch.chdir(directory)
    storage = FileStorage.open("sessions")
    monkeypatch.chdir(tmp_path)
    assert (directory / "sessions" / f"{storage.create()}.json").exists()


def test_nothing_but_sessions_is_left_in_the_directory(storage: FileStorage, directory: Path) -> None:
    id, deleted = storage.create(), storage.create()
    with storage.lock_for_turn(id) as locked:
        locked.append(user("x"))
        locked.configure(title="x")
    with storage.lock(deleted) as locked:
        locked.delete()
    storage.check()
    assert os.listdir(directory) == [f"{id}.json"]


def test_no_file_is_left_open(storage: FileStorage, directory: Path) -> None:
    before = open_files(directory)
    id = storage.create()
    with storage.lock_for_turn(id) as locked:
        locked.append(user("x"))
        locked.configure(title="x")
        locked.configure(title="y")
    for ask in (storage.get, storage.summary, storage.running):
        ask(id)
    with storage.lock_for_turn(id), pytest.raises(SessionBusy):
        storage.lock(id)
    with storage.lock(id) as locked:
        locked.delete()
    storage.page()
    storage.check()
    assert open_files(directory) == before


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
    again = FileStorage.open(str(directory))
    assert [again.get(id) for id in ids] == [storage.get(id) for id in ids]
    assert again.page()[0] == [ids[1], ids[2], ids[0]]


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
    assert path.read_bytes() == laid_out(ONE, head=',"title":"new"', tail=',"last_error":"old"')
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
    with storage.lock_for_turn(ID) as locked:
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


def test_a_message_is_added_in_place_whatever_was_imported(storage: FileStorage, directory: Path) -> None:
    given: Any = {"role": "user", "content": "Hi", "created_at": "2026-01-31T12:34:56Z", "id": "msg-1"}
    id = storage.create([given])
    before = (directory / f"{id}.json").stat().st_ino
    with storage.lock(id) as locked:
        locked.append({"role": "assistant", "content": "Hello"})
    assert (directory / f"{id}.json").stat().st_ino == before
