"""The list of a large directory, of which only what changes is looked at."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from session_core.stores import file_index
from session_core.stores.files import FileStorage
from storage import Storage, StorageUnavailable
from tests.stores.test_storage_properties import FileMachine
from tests.support.cost import cost
from tests.support.server import TIMEOUT
from tests.support.storage_conformance import StorageConformance
from tests.support.store_steps import say


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories are watched however few files they have."""
    monkeypatch.setattr(file_index, "_WATCHED_BYTES", 0)


class TestWatchedStorage(StorageConformance):
    @pytest.fixture
    def make(self, directory: Path) -> Callable[[], Storage]:
        return lambda: FileStorage.open(str(directory))


class WatchedMachine(FileMachine):
    def __init__(self) -> None:
        super().__init__()
        self.before = file_index._WATCHED_BYTES
        file_index._WATCHED_BYTES = 0

    def teardown(self) -> None:
        file_index._WATCHED_BYTES = self.before
        super().teardown()


TestWatched = WatchedMachine.TestCase
TestWatched.settings = FileMachine.TestCase.settings


def listed(storage: Storage) -> list[str]:
    return storage.page()[0]


def _replace(file: Path) -> None:
    other = file.with_name("other")
    shutil.copy2(file, other)
    os.utime(other, ns=(1, 1))
    other.rename(file)


def _append(file: Path) -> None:
    with file.open("a") as opened:
        opened.write(" ")


def _link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to(file.with_name("elsewhere"))


CHANGES: dict[str, tuple[Callable[[Path], object], list[int]]] = {
    "an older time": (lambda file: os.utime(file, ns=(1, 1)), [2, 0, 1]),
    "a newer time": (lambda file: os.utime(file), [1, 2, 0]),
    "one with an older time in its place": (_replace, [2, 0, 1]),
    "more at its end": (_append, [1, 2, 0]),
    "other content": (lambda file: file.write_text("{}"), [1, 2, 0]),
    "no more": (lambda file: file.unlink(), [2, 0]),
    "another name": (lambda file: file.rename(file.with_name("other")), [2, 0]),
    "a link in its place": (_link, [2, 0]),
}


@pytest.mark.parametrize("change,order", CHANGES.values(), ids=CHANGES.keys())
def test_what_other_programs_do_to_a_file_is_seen(
    directory: Path, storage: FileStorage, change: Callable[[Path], object], order: list[int]
) -> None:
    ids = [storage.create() for _ in range(3)]
    for number, id in enumerate(ids, 2):  # long ago, since the system's own times are milliseconds apart
        os.utime(directory / f"{id}.json", ns=(number, number))
    assert listed(storage) == ids[::-1]
    change(directory / f"{ids[1]}.json")
    assert listed(storage) == [ids[number] for number in order]


def test_a_file_that_another_program_brings_is_seen(directory: Path, storage: FileStorage) -> None:
    id = storage.create()
    assert listed(storage) == [id]
    shutil.copy2(directory / f"{id}.json", directory / "session-0.json")
    assert listed(storage) == ["session-0", id]


def test_more_changes_than_the_system_keeps_are_seen(directory: Path, storage: FileStorage) -> None:
    ids = [storage.create() for _ in range(3)]
    assert listed(storage) == ids[::-1]
    for number in range(20_000):
        os.utime(directory / f"{ids[number % 2]}.json", ns=(number, number))
    storage.create()
    assert listed(storage)[1:] == [ids[2], ids[1], ids[0]]


def test_many_changes_are_seen(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_index, "_MAX_CHANGES", 3)
    ids = [storage.create() for _ in range(10)]
    assert listed(storage) == ids[::-1]
    for id in ids[:5]:
        say(storage, id, "Hi")
    assert listed(storage) == [*ids[4::-1], *ids[:4:-1]]


def test_a_directory_that_is_gone_is_unavailable_until_it_is_back(directory: Path, storage: FileStorage) -> None:
    id = storage.create()
    assert listed(storage) == [id]
    elsewhere = directory.rename(directory.with_name("elsewhere"))
    with pytest.raises(StorageUnavailable):
        listed(storage)
    elsewhere.rename(directory)
    assert listed(storage) == [id]


def test_another_directory_of_the_same_name_is_seen(directory: Path, storage: FileStorage) -> None:
    storage.create()
    assert len(listed(storage)) == 1
    directory.rename(directory.with_name("elsewhere"))
    directory.mkdir()
    assert listed(storage) == []
    id = storage.create()
    assert listed(storage) == [id]


def test_a_forked_process_sees_changes_and_takes_none_from_its_parent(storage: FileStorage) -> None:
    ids = [storage.create()]
    assert listed(storage) == ids
    ids = [storage.create(), *ids]
    fork = multiprocessing.get_context("fork")
    reader, writer = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: writer.send(listed(storage)))
    child.start()
    assert reader.poll(TIMEOUT) and reader.recv() == ids
    child.join(TIMEOUT)
    assert listed(storage) == ids


def test_a_store_that_is_no_more_watches_nothing(directory: Path) -> None:
    FileStorage.open(str(directory))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        assert listed(FileStorage.open(str(directory))) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_list_costs_less_than_a_look_at_every_file(directory: Path, storage: FileStorage) -> None:
    data = (directory / f"{storage.create()}.json").read_bytes()
    for number in range(5_000):
        (directory / f"session-{number}.json").write_bytes(data)
    first = cost(lambda: listed(storage), 1)
    id = storage.create()
    assert listed(storage)[0] == id
    assert cost(lambda: listed(storage)) < first / 4
