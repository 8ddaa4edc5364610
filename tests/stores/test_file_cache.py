"""Large sessions, which are kept parsed between turns."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from session_core.stores.files import FileStorage
from storage import Session, StorageUnavailable
from tests.support.session_files import Faults, user

LONG = "long " * 20_000


def large(storage: FileStorage) -> str:
    """A session that a turn has used a moment ago."""
    session_id = storage.create()
    with storage.lock_for_turn(session_id) as session:
        session.append(user(LONG))
        session.append(user("one"))
    return session_id


def texts(session: Session) -> list[str]:
    return [message["content"] for message in session.messages]


def test_a_turn_finds_what_the_turn_before_it_has_left(storage: FileStorage) -> None:
    session_id = large(storage)
    for number in range(3):
        with storage.lock_for_turn(session_id) as session:
            assert session.session == storage.get(session_id)
            session.append(user(str(number)))
            session.set_last_error("internal_error")
    assert texts(storage.get(session_id)) == [LONG, "one", "0", "1", "2"]


def test_what_a_turn_does_to_its_list_of_messages_stays_its_own(storage: FileStorage) -> None:
    session_id = large(storage)
    for _ in range(2):
        with storage.lock_for_turn(session_id) as session:
            session.append(user("two"))
            session.session.messages.clear()
    with storage.lock_for_turn(session_id) as session:
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
    with FileStorage.open(str(file.parent)).lock_for_turn(file.stem) as session:
        session.append(user("two"))


def renamed(file: Path, storage: FileStorage) -> None:
    with storage.lock(file.stem) as session:
        session.configure(title="Another")


def renamed_by_a_turn(file: Path, storage: FileStorage) -> None:
    with storage.lock_for_turn(file.stem) as session:
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
    with storage.lock_for_turn(session_id) as session:
        assert session.session == storage.get(session_id) != before


def test_a_turn_after_a_write_that_failed_reads_again(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id = large(storage)
    faults = Faults(monkeypatch)
    with storage.lock_for_turn(session_id) as session:
        session.append(user("two"))
        faults.fail = lambda name, at: OSError(errno.ENOSPC, "injected") if name == "fsync" else None
        with pytest.raises(StorageUnavailable):
            session.append(user("three"))
        faults.clear()
    with storage.lock_for_turn(session_id) as session:
        assert session.session == storage.get(session_id)
        assert texts(session.session) == [LONG, "one", "two"]
