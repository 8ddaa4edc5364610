"""What else may lie in the directory of the session files."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from session_core.stores import file_sweep
from session_core.stores.files import FileStorage
from storage import SessionNotFound, StorageUnavailable
from tests.support.session_files import ID, ONE, TWO, Faults, laid_out, open_files, put


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
    before, open_before = os.lstat(directory / f"{ID}.json"), open_files(directory)
    for ask in (storage.get, storage.summary, storage.running, storage.lock):
        with pytest.raises(SessionNotFound):
            ask(ID)
    good = storage.create()
    assert storage.page() == ([good], None)
    after = os.lstat(directory / f"{ID}.json")
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)
    assert open_files(directory) == open_before


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
    again = FileStorage.open(str(directory))
    assert storage.page() == again.page() == ([], None)
    assert set(os.listdir(directory)) == present


def test_what_a_crash_left_is_swept_when_it_is_old(
    directory: Path, storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [directory / f".{ID}.0123456789abcdef.tmp", directory / ".0123456789abcdef.tmp"]
    for path in left:
        path.write_bytes(b"x")
        os.utime(path, (0, 0))  # as when an old session is given a title just now
    FileStorage.open(str(directory))
    assert all(path.exists() for path in left)
    monkeypatch.setattr(file_sweep, "_ORPHAN_SECONDS", -60.0)  # an hour later
    FileStorage.open(str(directory))
    assert os.listdir(directory) == []
