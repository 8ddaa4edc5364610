"""Sessions in files on a file system without hard links, such as exFAT or a folder that a virtual machine shares."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from session_core.stores import file_sweep, files
from session_core.stores.files import FileStorage
from storage import Session, SessionExists, StorageUnavailable, timestamp

ID = "session-0123456789abcdef"


def _no_links(*_: object, **__: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileStorage:
    monkeypatch.setattr(os, "link", _no_links)
    return FileStorage.open(str(tmp_path))


def test_sessions_are_made_and_go_on(storage: FileStorage, tmp_path: Path) -> None:
    session_id = storage.create()
    with storage.lock_for_turn(session_id) as session:
        session.append({"role": "user", "content": "Hello"})
    assert storage.get(session_id).messages[0]["content"] == "Hello"
    assert os.listdir(tmp_path) == [f"{session_id}.json"]


def test_no_session_is_ever_replaced(storage: FileStorage) -> None:
    storage.ensure(ID)
    with storage.lock(ID) as session:
        session.configure(title="mine")
    with pytest.raises(SessionExists):
        storage._create(Session(ID, timestamp(), timestamp()))
    assert storage.get(ID).title == "mine"


def test_of_many_that_make_the_same_session_all_find_it(storage: FileStorage, tmp_path: Path) -> None:
    others = [storage, FileStorage.open(str(tmp_path)), FileStorage.open(str(tmp_path))]

    def say(number: int) -> None:
        while True:
            try:
                others[number % 3].ensure(ID)
                with others[number % 3].lock(ID) as session:
                    session.append({"role": "user", "content": str(number)})
                return
            except files.SessionCorrupt:
                continue  # it is being made

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(say, range(30)))
    assert sorted(int(message["content"]) for message in storage.get(ID).messages) == list(range(30))


def test_a_session_that_cannot_be_made_leaves_nothing(
    storage: FileStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "rename", _no_links)
    with pytest.raises(StorageUnavailable):
        storage.create()
    assert os.listdir(tmp_path) == []


def test_what_a_crash_leaves_is_gone_an_hour_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{ID}.json").touch()
    FileStorage.open(str(tmp_path))
    assert os.listdir(tmp_path) == [f"{ID}.json"]
    monkeypatch.setattr(file_sweep, "_ORPHAN_SECONDS", -60.0)
    FileStorage.open(str(tmp_path))
    assert os.listdir(tmp_path) == []
