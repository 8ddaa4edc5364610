"""Pictures and files in a directory: durable before they are named, and cleared where a crash has left them."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from session_core.stores import disk_access, file_sweep
from session_core.stores.files import FileStorage
from storage import Storage, StorageUnavailable
from tests.support.files_conformance import keep, naming
from tests.support.pictures import png, sha256
from tests.support.queue_conformance import queued
from tests.support.server import ROOT

ONE, TWO = png(1), png(2)


def files_of(directory: Path, id: str) -> list[str]:
    return sorted(path.name for path in (directory / f".{id}.files").glob("*"))


@pytest.fixture
def an_hour_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_sweep, "_ORPHAN_SECONDS", -60.0)


def leave(storage: Storage, id: str, data: bytes) -> None:
    """Keeps a picture that no message names, as a crash would."""
    storage.files.keep(id, {sha256(data): data})


def test_only_the_owner_can_read_them(storage: FileStorage, directory: Path) -> None:
    keep(storage, id := storage.create(), ONE)
    (path,) = (directory / f".{id}.files").iterdir()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_session_without_pictures_has_no_directory(storage: FileStorage, directory: Path) -> None:
    with storage.lock_for_turn(id := storage.create()) as session:
        session.append({"role": "user", "content": "Hello"})
    assert os.listdir(directory) == [f"{id}.json"]


def test_a_deleted_session_leaves_nothing(storage: FileStorage, directory: Path) -> None:
    keep(storage, id := storage.create(), ONE, TWO)
    with storage.lock(id) as session:
        session.delete()
    assert os.listdir(directory) == []


def test_a_copy_takes_no_further_room(storage: FileStorage, directory: Path) -> None:
    keep(storage, id := storage.create(), ONE)
    copy = storage.create(storage.get(id).messages, files=id)
    (path,), (copied,) = ((directory / f".{one}.files").iterdir() for one in (id, copy))
    assert path.samefile(copied)


def test_without_hard_links_a_copy_has_its_own(
    storage: FileStorage, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    keep(storage, id := storage.create(), ONE)
    copy = storage.create(storage.get(id).messages, files=id)
    with storage.lock(id) as session:
        session.delete()
    assert storage.files.read(copy, sha256(ONE)) == ONE


def test_the_bytes_and_both_directories_are_synced_before_the_message(
    storage: FileStorage, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id, done = storage.create(), []
    fsync, rename = os.fsync, os.rename

    def synced(file: int) -> None:
        done.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{file}'))}")
        fsync(file)

    def renamed(path: str, target: str) -> None:
        done.append(f"rename to {os.path.basename(target)}")
        rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    keep(storage, id, ONE)
    made, written, *rest = done
    assert made == f"sync {directory.name}"  # with the new directory in it
    assert written.startswith("sync ") and written.endswith(".tmp")
    assert rest == [f"rename to {sha256(ONE)}.new", f"sync .{id}.files", f"sync {id}.json"]


def test_what_a_message_names_stays_for_ever(storage: FileStorage, directory: Path, an_hour_later: None) -> None:
    keep(storage, id := storage.create(), ONE)
    for _ in range(2):
        again = FileStorage.open(str(directory))
        assert files_of(directory, id) == [sha256(ONE)]
        assert again.files.read(id, sha256(ONE)) == ONE


def test_what_a_crash_has_left_is_gone_an_hour_later(
    storage: FileStorage, directory: Path, an_hour_later: None
) -> None:
    keep(storage, id := storage.create(), ONE)
    leave(storage, id, TWO)
    (directory / f".{id}.files" / "0123456789abcdef.tmp").write_bytes(b"half")
    FileStorage.open(str(directory))
    assert files_of(directory, id) == [sha256(ONE)]


def test_what_is_on_its_way_survives_the_start_of_another_process(storage: FileStorage, directory: Path) -> None:
    leave(storage, id := storage.create(), ONE)
    leave(storage, lost := "session-not-made-yet", TWO)
    FileStorage.open(str(directory))
    assert files_of(directory, id) == [f"{sha256(ONE)}.new"]
    assert files_of(directory, lost) == [f"{sha256(TWO)}.new"]


def test_what_was_left_for_an_hour_and_is_sent_again_stays(
    storage: FileStorage, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(storage, id := storage.create(), ONE)
    (path,) = (directory / f".{id}.files").iterdir()
    os.utime(path, (0, 0))
    leave(storage, id, ONE)
    FileStorage.open(str(directory))
    assert storage.files.read(id, sha256(ONE)) == ONE


def test_files_without_a_session_are_gone_an_hour_later(
    storage: FileStorage, directory: Path, an_hour_later: None
) -> None:
    leave(storage, "session-deleted", ONE)
    FileStorage.open(str(directory))
    assert os.listdir(directory) == []


def test_what_waits_in_the_queue_of_a_session_is_named_too(
    storage: FileStorage, directory: Path, an_hour_later: None
) -> None:
    leave(storage, id := storage.create(), ONE)
    (directory / f".{id}.queue").write_text(json.dumps([naming(ONE)]))
    FileStorage.open(str(directory))
    assert storage.files.read(id, sha256(ONE)) == ONE


def test_what_cannot_be_written_is_an_error_and_leaves_nothing(
    storage: FileStorage, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    id = storage.create()
    monkeypatch.setattr(disk_access, "write_all", full)
    with pytest.raises(StorageUnavailable):
        leave(storage, id, ONE)
    assert files_of(directory, id) == []


def test_a_directory_that_has_vanished_is_not_made_again(storage: FileStorage, directory: Path) -> None:
    os.rmdir(directory)
    with pytest.raises(StorageUnavailable):
        leave(storage, "session-x", ONE)
    assert not directory.exists()


@pytest.mark.parametrize("kind", ["link", "directory", "pipe"])
def test_only_a_regular_file_is_read(storage: FileStorage, directory: Path, kind: str) -> None:
    id = storage.create()
    path = directory / f".{id}.files" / sha256(ONE)
    path.parent.mkdir()
    if kind == "link":
        (directory / "secret").write_bytes(b"secret")
        path.symlink_to(directory / "secret")
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    try:
        assert storage.files.read(id, sha256(ONE)) is None
    except StorageUnavailable:
        assert kind == "link"


KILLED = """
import os, signal, sys
from session_core.stores.files import FileStorage
from storage import LockedSession
from tests.support.client import Client
from tests.support.pictures import image, png

LockedSession.append = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
with Client(storage=FileStorage.open(sys.argv[1])) as client:
    client.request("POST", f"/sessions/{sys.argv[2]}/run", {"message": [image(png())]})
"""


def test_a_process_that_is_killed_between_the_bytes_and_the_message_loses_nothing_else(
    storage: FileStorage, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(storage, id := storage.create(), ONE)
    before = storage.get(id)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(directory), id], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert files_of(directory, id) == sorted([f"{sha256(ONE)}.new", f"{sha256(png())}.new"])
    again = FileStorage.open(str(directory))
    assert again.get(id) == before
    keep(again, id, png())  # the same picture, sent again
    monkeypatch.setattr(file_sweep, "_ORPHAN_SECONDS", -60.0)
    assert FileStorage.open(str(directory)).files.read(id, sha256(png())) == png()


def test_a_process_that_is_killed_between_the_bytes_and_the_message_leaves_nothing_for_long(
    storage: FileStorage, directory: Path, an_hour_later: None
) -> None:
    id = storage.create()
    subprocess.run([sys.executable, "-c", KILLED, str(directory), id], cwd=ROOT, check=False)
    assert files_of(directory, id) == [f"{sha256(png())}.new"]
    FileStorage.open(str(directory))
    assert files_of(directory, id) == []


def test_what_a_session_has_that_is_made_again_beside_its_deletion_stays(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, other = FileStorage.open(str(directory)), FileStorage.open(str(directory))
    id, unlink = storage.create(), os.unlink
    storage.queue(id).remove("msg-none")  # so that there is a lock of the queues

    def unlink_and_make_again(path: str, **more: Any) -> None:
        unlink(path, **more)
        if path.endswith(f"{id}.json"):
            other.ensure(id)
            keep(other, id, ONE)
            other.queue(id).add(queued("a"))

    monkeypatch.setattr(os, "unlink", unlink_and_make_again)
    with storage.lock(id) as locked:
        locked.delete()
    assert other.files.read(id, sha256(ONE)) == ONE
    assert len(other.queue(id).read()) == 1
