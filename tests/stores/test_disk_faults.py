"""A file system that says no: every call that fails, a full disk, a read-only one, no descriptors."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from session_core.stores.files import FileStorage
from storage import LockedSession, StorageUnavailable
from tests.support.server import TIMEOUT
from tests.support.session_files import (
    FOREIGN,
    GOOD,
    ID,
    ONE,
    ROOT,
    THEN,
    THREE,
    TWO,
    Faults,
    is_usable,
    laid_out,
    open_files,
    put,
    user,
)


def _change(change: Callable[[LockedSession], object]) -> Callable[[FileStorage], object]:
    def run(storage: FileStorage) -> object:
        with storage.lock_for_turn(ID) as locked:
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
    "open": lambda storage: FileStorage.open(storage._directory),
    "open a new directory": lambda storage: FileStorage.open(storage._directory + "/a/b"),
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
    run, faults, files = OPERATIONS[operation], Faults(monkeypatch), open_files(directory)
    put(directory, STATES[state])
    before = storage.get(ID)
    faults.clear()
    run(storage)
    count = len(faults.calls)
    for number in range(count):
        shutil.rmtree(directory)
        faults.clear()
        storage = FileStorage.open(str(directory))
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
        assert open_files(directory) == files, failed
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
        with storage.lock_for_turn(ID) as locked:
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
    script = (
        f"import sys; from tests.stores import test_disk_faults; test_disk_faults.{function.__name__}(sys.argv[1])"
    )
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
    storage = FileStorage.open(directory)
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
            with storage.lock_for_turn(id) as locked:
                _refused(lambda: locked.append(user("y" * 6000)), lambda: locked.configure(title="y"))
                _refused(lambda: locked.set_last_error("y" * 6000))
        with storage.lock(ID) as locked:
            _refused(lambda: locked.append(user("y")), lambda: locked.configure(title="y"))
        assert ([storage.get(id) for id in (*ids, ID)], storage.page()) == before
        _refused(lambda: FileStorage.open(directory))
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
    storage = FileStorage.open(directory)
    id = storage.create()
    with storage.lock(id) as locked:
        locked.append(user("one"))
    before = storage.get(id), storage.summary(id), storage.page(), storage.running(id)
    subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
    _refused(storage.create, storage.check, lambda: storage.lock(id), lambda: FileStorage.open(directory))
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
    with storage.lock_for_turn(ID) as locked:
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
            FileStorage.open(str(path))


def _without_descriptors(directory: str) -> None:
    storage = FileStorage.open(directory)
    id, other = storage.create(), storage.create()
    locked = storage.lock_for_turn(id)
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
            _refused(storage.create, storage.check, storage.page, lambda: FileStorage.open(directory))
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
    script = (
        "import sys; from tests.stores import test_disk_faults; test_disk_faults._without_descriptors(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(directory)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
