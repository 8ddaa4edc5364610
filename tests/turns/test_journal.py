"""The journal of a running turn: what it holds, and its file."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from session_core.model.events import Chunk, Reasoning, ToolCall, ToolResult
from session_core.stores.file_journal import FileJournal, read_journal
from session_core.stores.files import FileStorage
from session_core.turns.event_log import LoggedEvent, encode_event, journal_lines
from session_core.turns.journal import identity, partial_answer
from storage import Session
from tests.support.client import Client, error_of
from tests.support.continued import brief
from tests.support.model_server import answer, wait
from tests.support.recorded import Lines
from tests.support.server import wait_until

INTERRUPTED = {"status": "incomplete", "reason": "interrupted"}


# --- what a journal holds ---


def entries(*events: Any) -> list[LoggedEvent]:
    return [LoggedEvent(number, "2026-01-31T12:34:56Z", 1, event) for number, event in enumerate(events, 1)]


def session_of(*messages: dict[str, Any], error: str | None = None, begun: int | None = None) -> Session:
    whole = [{"id": f"msg-{n}", "content": "", "created_at": "t", **one} for n, one in enumerate(messages)]
    continues = None if begun is None else {"attempt": begun}
    return Session("session-0", "t", "t", messages=whole, last_error=error, continues=continues)


FIRST = identity("turn", "msg-0", 1, {"model": "m"})


QUESTION = {"role": "user", "content": "Hi"}


CALLED = {"role": "assistant", "content": "a", "tool_calls": [{}]}


RESULT = {"role": "tool", "content": "r"}


LINES = [FIRST, *map(encode_event, entries(Reasoning("Hm."), Chunk("Hel"), Chunk("lo")))]


def test_a_journal_holds_text_and_reasoning() -> None:
    found = partial_answer(session_of(QUESTION), LINES)
    assert found is not None
    assert found.items() >= {"role": "assistant", "content": "Hello", "reasoning": "Hm.", "model": "m"}.items()
    assert found.items() >= INTERRUPTED.items()
    assert partial_answer(session_of(QUESTION), LINES) == found
    assert found["created_at"] == "2026-01-31T12:34:56Z"  # of what was written last


TOOLS = [FIRST, *map(encode_event, entries(Chunk("a"), ToolCall("1", "x", "{}"), ToolResult("1", "x"), Chunk("b")))]


@pytest.mark.parametrize(
    "session, lines, text",
    [
        (session_of(QUESTION, CALLED, RESULT), TOOLS, "b"),
        (session_of(QUESTION, CALLED, RESULT), TOOLS[:-1], None),
        (session_of(QUESTION, CALLED), TOOLS[:2], None),  # stored, and its call not yet told
        (session_of(QUESTION, CALLED, RESULT, CALLED, RESULT), TOOLS, None),
        (session_of(QUESTION, {"role": "assistant", "content": "done"}), LINES, None),
        (session_of(QUESTION, error="model_error"), LINES, None),
        (session_of(QUESTION, {**QUESTION, "id": "msg-9"}), LINES, None),  # of an earlier turn
        (session_of(QUESTION, begun=2), LINES, None),  # of an earlier attempt
        (session_of(), LINES, None),
        (session_of(QUESTION), [], None),
        (session_of(QUESTION), [FIRST], None),
        (session_of(QUESTION), [b""], None),
        (session_of(QUESTION), [b"{}", *LINES[1:]], None),
        (session_of(QUESTION), [b"[1,2,3,4]", *LINES[1:]], None),
        (session_of(QUESTION), [b"\xff\0", *LINES[1:]], None),
        (session_of(QUESTION), [*LINES, b'[4,"2026"'], "Hello"),  # torn
        (session_of(QUESTION), [*LINES[:3], b"\0\0\0", LINES[3]], "Hel"),
        (session_of(QUESTION), [*LINES, b'[1,"t",0,"Chunk",7]'], "Hello"),
        (session_of(QUESTION), [*LINES, b'[1,"t",0,"Unknown",7]'], "Hello"),
        (session_of(QUESTION), [*LINES, b'[1,null,0,"Chunk","!"]'], "Hello"),  # could not be stored
        (session_of(QUESTION), [*LINES, b"[" * 100_000], "Hello"),
        (session_of(QUESTION), [b"[" * 100_000, *LINES[1:]], None),
        (session_of(QUESTION), [*LINES, rb'[1,"t",0,"Chunk","\ud800"]'], "Hello"),
    ],
)
def test_what_a_journal_gives_to_a_session(session: Session, lines: list[bytes], text: str | None) -> None:
    found = partial_answer(session, lines)
    assert (found and found["content"]) == text


def test_a_later_attempt_has_left_its_own() -> None:
    first = identity("turn", "msg-0", 2, {"attempt": 2, "continues": True})
    session = session_of(QUESTION, {"role": "assistant", "content": "A", "status": "incomplete", "reason": "x"})
    found = partial_answer(session, [first, *LINES[1:]])
    assert found is not None
    assert (found["content"], found["attempt"], found["continues"]) == ("Hello", 2, True)


def test_a_journal_of_another_hand_leaves_its_session_usable(tmp_path: Path) -> None:
    odd = {
        "content": 5,
        "role": "user",
        "id": "msg-0",
        "created_at": 7,
        "tool_calls": [5],
        "model": [],
        "attempt": "2",
    }
    with Client(storage=FileStorage.open(str(tmp_path))) as client:
        session = client.storage.create([{"id": "msg-0", "role": "user", "content": "Hi", "created_at": "t"}])
        lines = [identity("turn", "msg-0", 1, odd), *LINES[1:]]
        (tmp_path / f".{session}.journal").write_bytes(b"\n".join(lines))
        assert client.run(session, "Next").status_code == 200
        _, partial, *_ = client.messages(session)
        assert partial.keys() == {"id", "role", "content", "reasoning", "status", "reason", "created_at"}
        assert (partial["role"], partial["content"], partial["reason"]) == ("assistant", "Hello", "interrupted")


EVENTS = st.lists(
    st.builds(Chunk, st.text(min_size=1))
    | st.builds(Reasoning, st.text(min_size=1))
    | st.just(ToolCall("1", "x", "{}"))
    | st.just(ToolResult("1", "x", result="r"))
)


@given(EVENTS, st.lists(st.integers(0, 20), max_size=4))
@settings(max_examples=300, deadline=None)
def test_joined_lines_say_the_same_as_single_ones(events: list[Any], cuts: list[int]) -> None:
    single = entries(*events)
    parts = [0, *sorted(min(cut, len(single)) for cut in cuts), len(single)]
    joined = [line for a, b in itertools.pairwise(parts) for line in journal_lines(single[a:b])]
    calls = sum(isinstance(one, ToolCall) for one in events)
    for stored in range(calls + 1):
        session = session_of(QUESTION, *[CALLED] * stored)
        one, other = (partial_answer(session, [FIRST, *lines]) for lines in (map(encode_event, single), joined))
        assert (one and (one["content"], one.get("reasoning"))) == (
            other and (other["content"], other.get("reasoning"))
        )


@given(st.lists(st.binary(max_size=40), max_size=5))
@settings(max_examples=300, deadline=None)
def test_no_rubbish_in_a_journal_is_an_error(lines: list[bytes]) -> None:
    partial_answer(session_of(QUESTION), lines)
    partial_answer(session_of(QUESTION), [FIRST, *lines])


# --- the file of a journal ---


@pytest.mark.parametrize("foreign", ["a directory", "a link", "a FIFO", "an old journal"])
def test_a_foreign_file_in_the_place_of_a_journal_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, foreign: str
) -> None:
    path = tmp_path / "journal"
    if foreign == "a directory":
        path.mkdir()
    elif foreign == "a link":
        (tmp_path / "elsewhere").write_text("kept")
        path.symlink_to(tmp_path / "elsewhere")
    elif foreign == "a FIFO":
        os.mkfifo(path)
    else:
        path.write_text("old\n")
    assert read_journal(str(path)) == ([b"old", b""] if foreign == "an old journal" else [])
    assert ("is left alone" in caplog.text) is (foreign != "an old journal")
    journal = FileJournal(str(path), b"first", Lines(b"second"))
    journal.flush()
    journal.close()
    if foreign != "a directory":
        assert read_journal(str(path)) == [b"first", b"second", b""]
    if foreign == "a link":
        assert (tmp_path / "elsewhere").read_text() == "kept"


def test_a_journal_that_cannot_be_written_costs_the_turn_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if not os.path.exists("/dev/full"):
        pytest.fail("this test needs /dev/full")
    journal = FileJournal(str(tmp_path / "nowhere" / "journal"), b"first", Lines(b"x"))
    assert not journal.flush()
    assert not journal.flush()
    assert [record.message for record in caplog.records if "journal" in record.message] == [
        "cannot keep a journal: No such file or directory; a crash would lose what is not stored yet"
    ]


def test_no_journal_stays_when_a_turn_has_ended(tmp_path: Path) -> None:
    go = threading.Event()
    with Client(answer("Hel", wait(go), "lo"), storage=FileStorage.open(str(tmp_path / "sessions"))) as client:
        session = client.create()
        stream = client.stream(session)
        path = tmp_path / "sessions" / f".{session}.journal"
        wait_until(path.exists)
        assert path.stat().st_mode & 0o777 == 0o600
        assert [one["role"] for one in client.messages(session)] == ["user"]  # the turn runs
        go.set()
        stream.rest()
        wait_until(lambda: not path.exists())


def test_what_could_not_be_stored_at_the_end_is_taken_over_later(tmp_path: Path, monkeypatch: Any) -> None:
    storage = FileStorage.open(str(tmp_path))
    full = threading.Event()
    write = os.pwrite

    def pwrite(file: int, data: bytes, offset: int) -> int:
        if full.is_set():
            raise OSError(28, "No space left on device")
        return write(file, data, offset)

    monkeypatch.setattr("session_core.stores.files.os.pwrite", pwrite)
    with Client(storage=storage) as client:
        session = client.create()
        go = threading.Event()
        client.model.then(answer("Hello", wait(go)))
        stream = client.stream(session)
        wait_until((tmp_path / f".{session}.journal").exists)
        full.set()
        go.set()
        assert stream.last()["data"]["code"] == "storage_unavailable"
        assert brief(client.messages(session))[-1] == ("assistant", "Hello", "interrupted")
        assert error_of(client.run(session)) == (503, "storage_unavailable")
        full.clear()
        client.run(session, "next")
        assert brief(client.messages(session))[1:3] == [("assistant", "Hello", "interrupted"), ("user", "next", None)]


def test_a_journal_without_its_session_is_swept(tmp_path: Path) -> None:
    storage = FileStorage.open(str(tmp_path))
    session = storage.create()
    for name in (session, "session-gone"):
        (tmp_path / f".{name}.journal").write_text("x")
    FileStorage.open(str(tmp_path))
    assert [path.name for path in tmp_path.glob(".session*")] == [f".{session}.journal"]
    with storage.lock(session) as locked:
        locked.delete()
    assert list(tmp_path.iterdir()) == []
