"""Losing power, simulated: what `storage` does to the disk is recorded, and every state that the disk could be in
at any moment is rebuilt, opened, and held against what had been acknowledged until then.

Between two fsyncs of a file any of its blocks may have reached the disk or not, its length may have without them, and
the last write may be torn at any byte. Between two fsyncs of a directory any of its changes may have. So a disk is a
tree of nodes, each with what is certain and what is pending.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from session_core.stores import disk_access, files
from session_core.stores.files import FileStorage
from storage import Session, SessionBusy, SessionCorrupt, SessionNotFound, StorageUnavailable

State = dict[str, bytes]  # the session files that are found after a crash, by their names
Snapshot = dict[str, Session]  # the sessions as they are when all goes well
ID = "session-f00d"


@dataclass
class Event:
    """Something that was done to the disk. `operation` counts the operations on the storage; `kind` is `write`,
    `truncate`, `utime`, `entries` (changes to a directory, None for a name that goes), or `fsync`."""

    operation: int
    kind: str
    node: int
    what: Any = None


class Killed(BaseException):
    """The process ends here."""


class Recorder:
    """The module `os` as `storage` is to see it: all is done, but for `fsync`, and what changes the disk is written
    down. The root directory is there from the beginning."""

    def __init__(self, root: Path) -> None:
        self.events: list[Event] = []
        self.operation = 0
        self.fail: BaseException | None = None  # what the directory's next fsync raises
        self._names = {str(root): 0}
        self._nodes: dict[int, int] = {}
        self._count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _record(self, kind: str, node: int, what: Any = None) -> None:
        self.events.append(Event(self.operation, kind, node, what))

    def _enter(self, path: str) -> None:
        self._count += 1
        self._names[path] = self._count
        self._record("entries", self._names[os.path.dirname(path)], {os.path.basename(path): self._count})

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)
        self._enter(path)

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        file = os.open(path, flags, mode)
        if flags & os.O_CREAT:
            self._enter(path)
        self._nodes[file] = self._names[path]
        return file

    def pwrite(self, file: int, data: bytes, offset: int) -> int:
        self._record("write", self._nodes[file], (offset, bytes(data)))
        return os.pwrite(file, data, offset)

    def ftruncate(self, file: int, size: int) -> None:
        self._record("truncate", self._nodes[file], size)
        os.ftruncate(file, size)

    def utime(self, file: int, ns: tuple[int, int]) -> None:
        self._record("utime", self._nodes[file])
        os.utime(file, ns=ns)

    def fsync(self, file: int) -> None:
        if self.fail is not None and stat.S_ISDIR(os.fstat(file).st_mode):
            error, self.fail = self.fail, None
            raise error
        self._record("fsync", self._nodes[file])

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)
        self._names[new] = self._names.pop(old)
        change = {os.path.basename(old): None, os.path.basename(new): self._names[new]}
        self._record("entries", self._names[os.path.dirname(new)], change)

    def link(self, old: str, new: str) -> None:
        os.link(old, new)
        self._names[new] = self._names[old]
        self._record("entries", self._names[os.path.dirname(new)], {os.path.basename(new): self._names[new]})

    def unlink(self, path: str) -> None:
        os.unlink(path)
        if self._names.pop(path, None) is not None:
            self._record("entries", self._names[os.path.dirname(path)], {os.path.basename(path): None})

    def place(self, path: Path, data: bytes) -> None:
        """A file by another hand, which has long been on the disk."""
        path.write_bytes(data)
        self._record("write", self._count + 1, (0, data))
        self._record("fsync", self._count + 1)
        self._enter(str(path))
        self._record("fsync", self._names[str(path.parent)])


@dataclass
class Film:
    """A scenario: what happened to the disk, and the sessions after each operation."""

    names: list[str]
    events: list[Event]
    snapshots: list[Snapshot]

    @property
    def fsyncs(self) -> list[tuple[str, int]]:
        """Each fsync by its operation's name and its number in that, once for operations of one name."""
        found: dict[tuple[str, int], None] = {}
        for operation, name in enumerate(self.names):
            if not name:  # not our program's
                continue
            count = sum(event.kind == "fsync" and event.operation == operation for event in self.events)
            found.update(dict.fromkeys((name, number) for number in range(count)))
        return list(found)

    def without(self, name: str, number: int) -> Film:
        """The same, had the program left out this fsync."""
        events, seen = [], dict.fromkeys(range(len(self.names)), -1)
        for event in self.events:
            if event.kind == "fsync":
                seen[event.operation] += 1
                if (self.names[event.operation], seen[event.operation]) == (name, number):
                    continue
            events.append(event)
        return Film(self.names, events, self.snapshots)


class Camera:
    """Runs a scenario, operation by operation."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.directory = root / "a" / "sessions"
        self.recorder = Recorder(root)
        self._film = Film([], [], [])
        self._monkeypatch = monkeypatch
        for room in (disk_access, files):
            monkeypatch.setattr(room, "os", self.recorder)
        self.storage = self.do("open", lambda: FileStorage.open(str(self.directory)))

    def do(self, name: str, operation: Callable[[], Any]) -> Any:
        self.recorder.operation = len(self._film.names)
        self._film.names.append(name)
        try:
            result = operation()
        except (Killed, StorageUnavailable) as error:
            result = error
        reader = result if isinstance(result, FileStorage) else self.storage
        self._film.snapshots.append({id: reader.get(id) for id in reader.page()[0]})
        return result

    def change(self, name: str, id: str, change: Callable[[Any], Any]) -> Any:
        def take() -> Any:
            with self.storage.lock_for_turn(id) as locked:
                return change(locked)

        return self.do(name, take)

    def place(self, data: bytes) -> None:
        self.do("", lambda: self.recorder.place(self.directory / f"{ID}.json", data))

    def film(self) -> Film:
        """What was recorded until now. Nothing is any more."""
        for room in (disk_access, files):
            self._monkeypatch.setattr(room, "os", os)
        return Film(self._film.names, self.recorder.events, self._film.snapshots)


# --- what may be on the disk ---


@dataclass
class Node:
    certain: bytes = b""
    entries: dict[str, int] = field(default_factory=dict)
    pending: list[Event] = field(default_factory=list)

    def sync(self) -> None:
        self.certain = self.contents()[-1]
        self.entries = self.listings()[-1]
        self.pending = []

    def contents(self) -> list[bytes]:
        """The file's content after each pending change."""
        contents = [self.certain]
        for event in self.pending:
            data = contents[-1]
            if event.kind == "write":
                offset, added = event.what
                contents.append(data[:offset].ljust(offset, b"\0") + added + data[offset + len(added) :])
            elif event.kind == "truncate":
                contents.append(data[: event.what].ljust(event.what, b"\0"))
        return contents

    def listings(self) -> list[dict[str, int]]:
        """What the directory can hold after a crash, each once; everything last."""
        changes = [event.what for event in self.pending if event.kind == "entries"]
        listings: list[dict[str, int]] = []
        for kept in _subsets(len(changes)):
            merged: dict[str, int | None] = dict(self.entries)
            for number in sorted(kept):
                merged.update(changes[number])
            listing = {name: node for name, node in merged.items() if node is not None}
            if listing in listings:
                listings.remove(listing)
            listings.append(listing)
        return listings

    def crashed(self, at_any_byte: bool) -> set[bytes]:
        """What the file can hold after a crash."""
        *past, new = self.contents()
        old = self.certain
        if not past:
            return {new}
        if not old:
            return {b"", bytes(len(new)), new[: len(new) // 2], new}
        sizes = {len(data) for data in (*past, new)}
        stale = old.ljust(max(sizes), b"\0")
        fresh = new + stale[len(new) :]
        changed = [at for at in range(len(stale)) if stale[at] != fresh[at]] or [len(stale)]
        found = {old, new}
        for block in (512, 4096):
            blocks = range(changed[0] // block, changed[-1] // block + 1)
            for kept in _subsets(len(blocks)):
                data = bytearray(stale)
                for number in kept:
                    part = slice(blocks[number] * block, (blocks[number] + 1) * block)
                    data[part] = fresh[part]
                found |= {bytes(data[:size]) for size in sizes}
        for at in range(changed[0], changed[-1] + 1) if at_any_byte else ():
            if at - changed[0] < 150 or changed[-1] - at < 150 or (at + 2) % 512 < 4:
                torn = fresh[:at] + stale[at:]
                found |= {torn[:size] for size in (*sizes, max(at, len(old)))}
        return found


def _subsets(count: int) -> Iterator[set[int]]:
    """Subsets of the numbers below `count`: all where they are few, else some of each kind; the whole last."""
    everything = set(range(count))
    if count <= 5:
        yield from ({number for number in everything if bits >> number & 1} for bits in range(1 << count))
        return
    for number in range(count):
        yield set(range(number))
        yield set(range(number, count)) - {0}
        yield {number}
        yield everything - {number}
    yield everything


def crashes(film: Film, at_any_byte: bool) -> Iterator[tuple[State | None, Snapshot, Snapshot]]:
    """Every state in which the power can leave the disk (None: without the directory), with the sessions that were
    acknowledged by then, and those that the operation under way would lead to."""
    nodes: dict[int, Node] = {}
    snapshots = [{}, *film.snapshots]
    for position, event in enumerate(film.events):
        node = nodes.setdefault(event.node, Node())
        if event.kind == "fsync":
            node.sync()
        else:
            node.pending.append(event)
        following = film.events[position + 1].operation if position + 1 < len(film.events) else len(film.names)
        # What is on the disk now is there until the next event, in this operation or when others are over.
        now = event.operation
        moments = {(now, now + 1)} | {(over, over) for over in range(now + 1, following + 1)}
        for state in _states(nodes, at_any_byte):
            for before, after in moments:
                yield state, snapshots[before], snapshots[after]


def _states(nodes: dict[int, Node], at_any_byte: bool) -> Iterator[State | None]:
    """The directory is the deepest one, down the only path."""
    paths: list[dict[str, int] | None] = [{"": 0}]
    for _ in range(3):
        below: list[dict[str, int] | None] = []
        for listing in paths:
            inner = [node for name, node in (listing or {}).items() if "." not in name]
            below += nodes.setdefault(inner[0], Node()).listings() if inner else [None]
        paths = below
    for listing in paths:
        if listing is None:
            yield None
            continue
        visible = [(name, node) for name, node in listing.items() if name.endswith(".json")]
        for contents in product(*(nodes.setdefault(node, Node()).crashed(at_any_byte) for _, node in visible)):
            yield {name: data for (name, _), data in zip(visible, contents, strict=True)}


class Examiner:
    """Opens what was left on the disk."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self._known: dict[tuple[str, bytes], Session | Exception] = {}
        self.states = 0

    def __len__(self) -> int:
        return len(self._known)

    def opened(self, name: str, data: bytes) -> Session | Exception:
        """The session in a file, if it can be read and takes another message."""
        found = self._known.get((name, data))
        if found is None:
            found = self._known[name, data] = self._open(name.removesuffix(".json"), data)
        return found

    def _open(self, id: str, data: bytes) -> Session | Exception:
        path = self._directory / f"{id}.json"
        path.write_bytes(data)
        try:
            storage = FileStorage.open(str(self._directory))
            session = storage.get(id)
            with storage.lock_for_turn(id) as locked:
                added = locked.append({"role": "user", "content": "after the crash"})
            assert storage.get(id).messages == [*session.messages, added] == json.loads(path.read_bytes())["messages"]
            return session
        except (AssertionError, SessionBusy, SessionCorrupt, SessionNotFound, StorageUnavailable) as error:
            return error
        finally:
            path.unlink()

    def violations(self, film: Film, at_any_byte: bool = True) -> Iterator[str]:
        for state, before, after in crashes(film, at_any_byte):
            self.states += 1
            found = {name.removesuffix(".json"): self.opened(name, data) for name, data in (state or {}).items()}
            for id in {*found, *before, *after}:
                if complaint := _complaint(found.get(id), before.get(id), after.get(id)):
                    yield f"{id} {complaint}: {(state or {}).get(id + '.json')!r}"


def _complaint(found: Session | Exception | None, before: Session | None, after: Session | None) -> str | None:
    if found is None:
        return "is gone" if before and after else None
    allowed = [session for session in (before, after) if session]
    if not allowed:
        return "is back"
    if isinstance(found, Exception):
        return f"cannot be used ({found!r})"
    if found.messages not in [session.messages for session in allowed]:
        return f"has {len(found.messages)} messages, which are not those that it had"
    if found.title not in [session.title for session in allowed]:
        return f"has the title {found.title!r}"
    if found.last_error not in [session.last_error for session in allowed] and (
        before == after or found.last_error is not None
    ):
        return f"has the note {found.last_error!r}"
    return None


# --- the tests ---


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory, in memory where the system offers that."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as path:
        yield Path(path)


@pytest.fixture
def camera(place: Path, monkeypatch: pytest.MonkeyPatch) -> Camera:
    (place / "disk").mkdir()
    return Camera(place / "disk", monkeypatch)


@pytest.fixture
def examiner(place: Path) -> Examiner:
    return Examiner(place / "found")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def foreign(*texts: str) -> bytes:
    now = "2026-01-31T12:34:56Z"
    messages = [{"id": f"msg-{number}", **user(text), "created_at": now} for number, text in enumerate(texts)]
    return json.dumps({"id": ID, "created_at": now, "messages": messages}, indent=2).encode()


def a_life(camera: Camera) -> Film:
    """Each thing that can be done to a session, long messages and short ones."""
    id = camera.do("create", lambda: camera.storage.create())
    camera.change("append", id, lambda locked: locked.append(user("one")))
    camera.change("append", id, lambda locked: locked.append(user("two " * 3000)))
    camera.change("append", id, lambda locked: locked.append(user("three")))
    camera.change("note", id, lambda locked: locked.set_last_error("model_error"))
    camera.change("rename", id, lambda locked: locked.configure(title="title"))
    camera.change("append", id, lambda locked: locked.append(user("four")))
    camera.place(foreign("one", "two"))
    camera.change("append to a foreign file", ID, lambda locked: locked.append(user("three")))
    camera.change("append", ID, lambda locked: locked.append(user("four")))
    camera.change("delete", id, lambda locked: locked.delete())
    camera.change("note", ID, lambda locked: locked.set_last_error("timeout"))
    camera.change("rename", ID, lambda locked: locked.configure(title="title"))
    camera.change("delete", ID, lambda locked: locked.delete())
    camera.do("create", lambda: camera.storage.create())
    return camera.film()


FSYNCS = [
    ("open", 0),  # the directory above the new one's parent
    ("open", 1),  # the new one's parent
    ("create", 0),  # the file
    ("create", 1),  # the directory
    ("append", 0),
    ("note", 0),
    ("rename", 0),  # the file
    ("rename", 1),  # the directory
    ("append to a foreign file", 0),  # the file, written anew
    ("append to a foreign file", 1),  # the directory
    ("append to a foreign file", 2),  # the message
    ("delete", 0),
]


def test_power_may_fail_at_any_moment(camera: Camera, examiner: Examiner) -> None:
    film = a_life(camera)
    assert list(examiner.violations(film)) == []
    assert examiner.states > 3000 and len(examiner) > 2000


@pytest.mark.parametrize(("name", "number"), FSYNCS)
def test_no_fsync_can_be_left_out(camera: Camera, examiner: Examiner, name: str, number: int) -> None:
    film = a_life(camera)
    assert next(examiner.violations(film.without(name, number), at_any_byte=False), None) is not None


def test_these_are_all_fsyncs(camera: Camera) -> None:
    opening = ("open", 2)  # for what was done before by others, as below
    assert sorted(a_life(camera).fsyncs) == sorted([*FSYNCS, opening])


def a_second_life(camera: Camera) -> Film:
    """A process is killed between a rename and the fsync that makes it durable; another one goes on."""
    camera.place(foreign("one"))
    camera.recorder.fail = Killed()
    killed = camera.change("append to a foreign file", ID, lambda locked: locked.append(user("two")))
    assert isinstance(killed, Killed)
    camera.storage = camera.do("open again", lambda: FileStorage.open(str(camera.directory)))
    camera.change("append", ID, lambda locked: locked.append(user("two")))
    return camera.film()


def test_what_a_killed_process_did_is_durable_before_it_is_added_to(camera: Camera, examiner: Examiner) -> None:
    film = a_second_life(camera)
    assert list(examiner.violations(film)) == []
    assert next(examiner.violations(film.without("open again", 0)), None) is not None


def test_what_could_not_be_made_durable_is_not_added_to(camera: Camera, examiner: Examiner) -> None:
    def try_twice(locked: Any) -> None:
        camera.recorder.fail = OSError("injected")
        with pytest.raises(StorageUnavailable):
            locked.append(user("two"))
        locked.append(user("two"))

    camera.place(foreign("one"))
    camera.change("append", ID, try_twice)
    camera.change("append", ID, lambda locked: locked.append(user("three")))
    film = camera.film()
    assert list(examiner.violations(film)) == []


@pytest.mark.parametrize("size", [60, 700, 1500])
def test_the_closing_line_may_lie_across_any_two_blocks(camera: Camera, examiner: Examiner, size: int) -> None:
    now = "2026-01-31T12:34:56Z"
    line = f'{{"id":"msg-0","role":"user","content":"CONTENT","created_at":"{now}"}}'
    file = f'{{"id":"{ID}","created_at":"{now}","messages":[\n{line}\n],"updated_at":"{now}"}}\n'
    for before in range(-2, 50):
        content = "x" * (2048 - before - file.index("\n]") + len("CONTENT"))
        camera.place(file.replace("CONTENT", content).encode())
        camera.change("append", ID, lambda locked: locked.append(user("y" * size)))
        camera.change("delete", ID, lambda locked: locked.delete())
    film = camera.film()
    assert list(examiner.violations(film, at_any_byte=False)) == []


@pytest.mark.parametrize("change", ["append", "note"])
def test_a_change_costs_one_write_and_one_fsync_at_any_length_of_the_history(camera: Camera, change: str) -> None:
    costs = []
    for length in (0, 1, 30, 3000):
        id = camera.storage.create()
        with camera.storage.lock(id) as locked:
            for number in range(length):
                locked.append(user(str(number)))
        at = len(camera.recorder.events)
        with camera.storage.lock_for_turn(id) as locked:
            if change == "append":
                locked.append(user("What is 15 * 23?"))
            else:
                locked.set_last_error("model_error")
        events = camera.recorder.events[at:]
        assert [event.kind for event in events] == ["write", "utime", "fsync"]
        costs.append(len(events[0].what[1]))
    assert max(costs) - min(costs) <= len(",") and max(costs) < 250


def test_a_message_is_written_over_the_closing_line_and_beyond(camera: Camera) -> None:
    id = camera.storage.create()
    with camera.storage.lock(id) as locked:
        for number in range(5):
            before = (camera.directory / f"{id}.json").read_bytes()
            at = len(camera.recorder.events)
            locked.append(user(str(number)))
            offset, _ = camera.recorder.events[at].what
            assert before[offset:].startswith(b"\n]") and before[offset:].count(b"\n") == 2
