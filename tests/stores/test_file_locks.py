"""Session files under locks, and other processes beside us."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from session_core.stores import file_index
from session_core.stores.files import FileStorage
from storage import LockedSession, SessionBusy, SessionNotFound
from tests.support.server import TIMEOUT
from tests.support.session_files import ID, ONE, ROOT, TWO, Faults, laid_out, open_files, put, user


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
    with (storage.lock_for_turn if turn else storage.lock)(ID) as locked:
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
            storage.lock_for_turn(ID)
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
    with (storage.lock_for_turn if turn else storage.lock)(ID) as locked:
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

        def listdir(self, directory: int | str) -> list[str]:
            found = os.listdir(directory)
            path.unlink(missing_ok=True)
            return found

    monkeypatch.setattr(file_index, "os", Slow())
    assert storage.page() == ([other], None)


def test_a_file_deleted_before_it_is_locked_is_not_found(
    storage: FileStorage, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, files = put(directory, laid_out(ONE)), open_files(directory)
    faults = Faults(monkeypatch)
    faults.fail = lambda name, number: path.unlink() if name == "flock" else None
    with pytest.raises(SessionNotFound):
        storage.lock(ID)
    assert open_files(directory) == files


class Process:
    """Another process with a `storage` on the same directory, which does what it is told."""

    SCRIPT = """
import sys
from storage import *
from session_core.stores.files import FileStorage
storage = FileStorage.open(sys.argv[1])
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
                one.start(f"locked = storage.lock_for_turn({ID!r})")
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
            locked = storage.lock_for_turn(%r)
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
    assert process.do(f"locked = storage.lock_for_turn({ID!r}); locked.configure(title='a')") == "done"
    assert process.do("locked.append({'role': 'user', 'content': 'two'})") == "done"
    assert storage.running(ID) is True
    with pytest.raises(SessionBusy):
        storage.lock(ID)
    process.kill()
    assert storage.running(ID) is False
    storage.lock_for_turn(ID).release()
    assert [message["content"] for message in storage.get(ID).messages[1:]] == ["two"]


def test_a_program_that_we_start_holds_no_lock_of_ours(storage: FileStorage, directory: Path) -> None:
    put(directory, laid_out(ONE))
    with storage.lock_for_turn(ID):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        assert storage.running(ID) is False
        storage.lock(ID).release()
    finally:
        child.kill()
        child.wait(TIMEOUT)
