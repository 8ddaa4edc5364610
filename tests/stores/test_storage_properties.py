"""Laws of storage, whatever is done in whatever order: it behaves as a plain dict does."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from session_core.stores.files import FileStorage
from storage import LockedSession, MemoryStorage, SessionBusy, SessionNotFound, Storage, Summary

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
EXTRA = st.dictionaries(TEXT, JSON, max_size=2)
REFUSED = st.sampled_from([float("nan"), float("-inf"), "\ud800", b"", {1}])
SIZES = st.sampled_from([0, 1, 50, 5000, 40_000])  # the last makes a file that is kept parsed

IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a disk would be asked for thousands of fsyncs


class Machine(RuleBasedStateMachine):
    """A store, opened twice, beside a dict of the sessions in the order of the list, oldest first. One session at a
    time is held for a turn."""

    sessions: Bundle[str] = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, dict[str, Any]] = {}
        self.held: LockedSession | None = None

    def open(self) -> Storage:
        raise NotImplementedError

    @initialize()
    def opened(self) -> None:
        self.handles = [self.open(), self.open()]

    def lock(self, session: str, which: int) -> contextlib.AbstractContextManager[LockedSession]:
        """The session, also if it is held already."""
        if self.held is not None and self.held.id == session:
            return contextlib.nullcontext(self.held)
        return self.handles[which].lock(session)

    def touch(self, session: str) -> None:
        self.model[session] = self.model.pop(session)

    @rule(target=sessions, which=st.integers(0, 1))
    def create(self, which: int) -> str:
        session = self.handles[which].create()
        assert session not in self.model
        self.model[session] = {"messages": [], "title": None, "last_error": None}
        return session

    @rule(session=sessions, which=st.integers(0, 1), text=TEXT, size=SIZES, extra=EXTRA)
    def append(self, session: str, which: int, text: str, size: int, extra: dict[str, Any]) -> None:
        fields = {**extra, "role": "user", "content": text + "é" * size}
        with self.lock(session, which) as locked:
            message = locked.append(fields)
        fields |= {"id": message["id"], "created_at": message["created_at"]}
        assert message == fields
        self.model[session]["messages"].append(message)
        self.model[session]["last_error"] = None
        self.touch(session)

    @rule(session=sessions, which=st.integers(0, 1), value=REFUSED)
    def append_what_is_refused(self, session: str, which: int, value: Any) -> None:
        with self.lock(session, which) as locked, pytest.raises((ValueError, TypeError)):
            locked.append({"role": "user", "content": "x", "value": value})

    @rule(session=sessions, which=st.integers(0, 1), text=TEXT, size=SIZES)
    def set_last_error(self, session: str, which: int, text: str, size: int) -> None:
        with self.lock(session, which) as locked:
            locked.set_last_error(text * (1 + size // 10))
        self.model[session]["last_error"] = text * (1 + size // 10)
        self.touch(session)

    @rule(session=sessions, which=st.integers(0, 1), title=st.none() | TEXT)
    def rename(self, session: str, which: int, title: str | None) -> None:
        with self.lock(session, which) as locked:
            locked.configure(title=title)
        self.model[session]["title"] = title

    @rule(session=consumes(sessions), which=st.integers(0, 1))
    def delete(self, session: str, which: int) -> None:
        with self.lock(session, which) as locked:
            locked.delete()
        if self.held is locked:
            self.held = None
        del self.model[session]
        for handle in self.handles:
            for ask in (handle.get, handle.summary, handle.running, handle.lock):
                with pytest.raises(SessionNotFound):
                    ask(session)

    @rule(session=sessions, which=st.integers(0, 1))
    def hold(self, session: str, which: int) -> None:
        if self.held is None:
            self.held = self.handles[which].lock_for_turn(session)
        for handle in self.handles:
            with pytest.raises(SessionBusy):
                handle.lock_for_turn(self.held.id)

    @rule()
    def release(self) -> None:
        if self.held is not None:
            self.held.release()
        self.held = None

    @rule(which=st.integers(0, 1))
    def open_again(self, which: int) -> None:
        self.handles[which] = self.open()

    @rule(limit=st.integers(1, 4), which=st.integers(0, 1))
    def walk(self, limit: int, which: int) -> None:
        found: list[str] = []
        after = None
        while True:
            page, after = self.handles[which].page(limit, after)
            assert len(page) <= limit
            found += page
            if after is None:
                break
        assert found == list(self.model)[::-1]

    @invariant()
    def both_handles_show_the_sessions_of_the_model(self) -> None:
        if not hasattr(self, "handles"):
            return
        for handle in self.handles:
            assert handle.page() == (list(self.model)[::-1], None)
            for id in list(self.model)[-2:]:  # those that were changed last
                session = handle.get(id)
                assert {name: getattr(session, name) for name in ("messages", "title", "last_error")} == self.model[
                    id
                ]
                assert session.created_at <= session.updated_at
                if self.held is not None and self.held.id == id:
                    assert self.held.session.messages == session.messages
                assert handle.running(id) is (self.held is not None and self.held.id == id)
                summary = handle.summary(id)
                assert summary == Summary(
                    id, summary.title, session.created_at, session.updated_at, len(session.messages)
                )
                assert session.title is None or summary.title == session.title

    def teardown(self) -> None:
        if self.held is not None:
            self.held.release()


class MemoryMachine(Machine):
    def open(self) -> Storage:
        self.storage = getattr(self, "storage", None) or MemoryStorage()
        return self.storage


class FileMachine(Machine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(dir=IN_MEMORY)

    def open(self) -> Storage:
        return FileStorage.open(self.directory.name)

    @invariant()
    def files_are_json_with_one_message_a_line(self) -> None:
        files = list(Path(self.directory.name).iterdir())
        assert {file.name for file in files} == {f"{id}.json" for id in self.model}
        for id in list(self.model)[-2:]:
            data = (Path(self.directory.name) / f"{id}.json").read_bytes()
            assert json.loads(data)["id"] == id
            _, *lines, closing, end = data.split(b"\n")
            assert [json.loads(line.removesuffix(b",")) for line in lines] == self.model[id]["messages"]
            assert closing.startswith(b"]") and end == b""

    def teardown(self) -> None:
        super().teardown()
        self.directory.cleanup()


TestMemory = MemoryMachine.TestCase
TestFiles = FileMachine.TestCase
TestMemory.settings = TestFiles.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
