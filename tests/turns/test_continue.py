"""Partial answers that a crash leaves, and turns that go on."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calculator import calculator
from session_core.model.events import Chunk, Reasoning, ToolCall, ToolResult
from session_core.stores.file_journal import FileJournal, read_journal
from session_core.stores.files import FileStorage
from session_core.turns.event_log import LoggedEvent, encode_event
from session_core.turns.journal import identity, journal_lines, partial_answer
from storage import MemoryStorage, Session, Storage
from tests.support.client import BreakableStorage, Client, json_of, said
from tests.support.model_server import BREAK, STALL, ModelServer, ReplyTo, answer, frames, status, tool_call, wait
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.server import TIMEOUT, Server, wait_until
from tests.support.well_formed import assert_well_formed

KEY = {"Idempotency-Key": "k"}
GO_ON = {"continue": True}
INTERRUPTED = {"status": "incomplete", "reason": "interrupted"}


def go_on(client: Client, session: str, how: str = "run", **headers: str) -> Any:
    return client.request("POST", f"/sessions/{session}/{how}", GO_ON, headers)


def sent(model: ModelServer, number: int = -1) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in model.requests[number]["messages"]]


def brief(messages: list[dict[str, Any]]) -> list[tuple[str, str, str | None]]:
    return [(one["role"], one["content"], one.get("reason")) for one in messages]


# --- going on ---


@pytest.fixture
def effects() -> list[str]:
    return []


@pytest.fixture
def client(effects: list[str], tmp_path: Path) -> Iterator[Client]:
    def book(name: str) -> str:
        """Books a seat."""
        effects.append(name)
        return f"{name} is booked"

    with Client(storage=FileStorage(str(tmp_path / "sessions")), tools=[book], timeout=5.0) as client:
        yield client


BOOK = tool_call("book", {"name": "Ann"}, text="Let me see. ")


@pytest.mark.parametrize("how", ["failed", "cut off", "cancelled", "timed out", "length"])
@pytest.mark.parametrize("way", ["run", "run_stream"])
def test_tools_that_have_a_result_are_not_called_again(
    client: Client, effects: list[str], how: str, way: str
) -> None:
    ends: dict[str, ReplyTo] = {
        "failed": status(401, {}),
        "cut off": answer("Ann ", BREAK),
        "cancelled": answer("Ann ", STALL),
        "timed out": answer("Ann ", STALL),
        "length": answer("Ann ", finish_reason="length"),
    }
    client.model.then(BOOK, ends[how])
    session = client.create()
    stream = client.stream(session, "Book Ann")
    if how == "cancelled":
        while stream.next()["type"] != "stream_tool_result":
            pass
        stream.next("stream_chunk")
        client.cancel(session)
    stream.rest()
    before = client.messages(session)
    client.model.then(answer("Ann has a seat."))
    response = go_on(client, session, way)
    assert response.status_code == 200
    if way == "run":
        assert json_of(response)["message"]["content"] == "Ann has a seat."
    else:
        events = [json.loads(line[6:]) for line in response.text.splitlines() if line]
        assert [event["type"] for event in events] == ["stream_start", "stream_chunk", "stream_end"]
        assert events[-1]["data"]["complete_text"] == "Ann has a seat."
    assert effects == ["Ann"]
    assert sent(client.model) == [("user", "Book Ann"), ("assistant", "Let me see. "), ("tool", "Ann is booked")]
    assert_well_formed(client.model.requests[-1])
    assert client.messages(session)[: len(before)] == before
    assert brief(client.messages(session))[-1] == ("assistant", "Ann has a seat.", None)
    assert client.run(session, "Thanks").status_code == 200
    assert [text for _, text in sent(client.model)] == [
        *("Book Ann", "Let me see. ", "Ann is booked", "Ann has a seat.", "Thanks")
    ]


def test_a_call_without_a_result_is_told_to_be_interrupted(client: Client, effects: list[str]) -> None:
    started = threading.Event()

    def hang() -> str:
        """Takes long."""
        started.set()
        threading.Event().wait(0.5)
        return "late"

    with Client(tools=[hang], storage=client.storage, model=client.model) as other:
        client.model.then(tool_call("hang", {}))
        session = other.create()
        stream = other.stream(session)
        stream.next("stream_start")
        assert started.wait(TIMEOUT)
        other.cancel(session)
        stream.close()
        assert json_of(go_on(other, session))["message"]["content"] == "OK"
        assert sent(client.model)[-1] == ("tool", "error: interrupted; the tool may have run")


def test_a_session_whose_last_turn_is_complete_has_nothing_to_go_on_with(client: Client) -> None:
    session = client.create()
    assert said(go_on(client, session)) == (409, "nothing_to_continue")
    client.run(session)
    assert said(go_on(client, session)) == (409, "nothing_to_continue")
    assert said(go_on(client, "session-0")) == (404, "session_not_found")
    assert len(client.messages(session)) == 2


def test_an_imported_question_is_answered_by_going_on(client: Client) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    session = json_of(client.request("POST", "/sessions", body))["id"]
    assert json_of(go_on(client, session))["message"]["content"] == "OK"
    assert sent(client.model) == [("user", "Hi")]


@pytest.mark.parametrize(
    "body",
    [{"continue": 1}, {"continue": "yes"}, {"continue": True, "message": "x"}, {"continue": True, "replaces": "m"}],
)
def test_a_wish_that_is_not_clear_is_refused(client: Client, body: dict[str, Any]) -> None:
    assert said(client.request("POST", f"/sessions/{client.create()}/run", body)) == (400, "invalid_request")


def test_going_on_under_a_key_happens_once(client: Client) -> None:
    session = client.create()
    client.model.then(answer("Hel", BREAK))
    client.run(session)
    first = go_on(client, session, **KEY)
    again = go_on(client, session, **KEY)
    assert json_of(again) == json_of(first)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert said(client.run(session, "Hi", Idempotency_Key="k")) == (422, "idempotency_key_reused")
    client.run(session, "next")
    assert json_of(go_on(client, session, **KEY)) == json_of(first)
    assert len(client.model.requests) == 3


def test_an_attempt_to_go_on_that_failed_is_tried_again_under_its_key(client: Client, effects: list[str]) -> None:
    client.model.then(BOOK, answer("A", BREAK), answer("B", BREAK), status(401, {}), answer("Done."))
    session = client.create()
    client.run(session, "Book Ann")
    assert go_on(client, session, **KEY).status_code == 502
    assert go_on(client, session, **KEY).status_code == 502
    assert json_of(go_on(client, session, **KEY))["message"]["content"] == "Done."
    assert effects == ["Ann"]
    assert sent(client.model) == [("user", "Book Ann"), ("assistant", "Let me see. "), ("tool", "Ann is booked")]
    contents = [content for role, content, _ in brief(client.messages(session)) if role == "assistant"]
    assert contents == ["Let me see. ", "A", "B", "Done."]


def test_the_key_of_the_question_gets_the_answer_of_the_attempt_that_went_on(client: Client) -> None:
    session = client.create()
    client.model.then(answer("Hel", BREAK), answer("Hello"))
    client.run(session, "Hi", Idempotency_Key="k")
    done = go_on(client, session)
    assert json_of(client.run(session, "Hi", Idempotency_Key="k")) == json_of(done)
    assert said(go_on(client, session, **KEY)) == (422, "idempotency_key_reused")


def test_a_retry_from_the_start_leaves_out_what_the_attempts_before_it_did(
    client: Client, effects: list[str]
) -> None:
    client.model.then(BOOK, answer("A", BREAK), answer("B", BREAK), BOOK, answer("C"))
    session = client.create()
    client.run(session, "Book Ann", Idempotency_Key="k")
    assert go_on(client, session).status_code == 502
    assert client.run(session, "Book Ann", Idempotency_Key="k").status_code == 200
    assert effects == ["Ann", "Ann"]
    assert sent(client.model, -2) == [("user", "Book Ann")]


def test_an_attempt_that_goes_on_calls_tools_of_its_own(client: Client, effects: list[str]) -> None:
    client.model.then(BOOK, answer("A", BREAK), tool_call("book", {"name": "Bob"}), answer("B", BREAK), answer("C"))
    session = client.create()
    client.run(session, "Book Ann")
    go_on(client, session)
    assert json_of(go_on(client, session))["message"]["content"] == "C"
    assert effects == ["Ann", "Bob"]
    assert [text for _, text in sent(client.model)] == [
        "Book Ann",
        "Let me see. ",
        "Ann is booked",
        "",
        "Bob is booked",
    ]
    assert client.session(session)["running"] is False
    client.run(session, "Thanks")
    assert [text for _, text in sent(client.model)][-3:] == ["Bob is booked", "C", "Thanks"]


def test_going_on_is_watched_resumed_and_cancelled_like_any_turn(client: Client) -> None:
    session = client.create()
    go = threading.Event()
    client.model.then(answer("Hel", BREAK), answer("One", wait(go), " two", STALL))
    client.run(session)
    response = client.later(go_on, client, session)
    client.model.wait_for(2)
    watcher = client.watch(session)
    assert [watcher.next()["type"], watcher.next()["data"]["content"]] == ["stream_start", "One"]
    go.set()
    watcher.next("stream_chunk")
    assert said(client.run(session)) == (409, "session_busy")
    assert said(go_on(client, session)) == (409, "session_busy")
    assert client.cancel(session)
    assert json_of(response.result(TIMEOUT))["message"]["status"] == "cancelled"
    assert json_of(go_on(client, session))["message"]["content"] == "OK"


def test_a_session_in_which_a_turn_goes_on_is_deleted(client: Client, tmp_path: Path) -> None:
    session = client.create()
    client.model.then(answer("Hel", BREAK), answer("One", STALL))
    client.run(session)
    response = client.later(go_on, client, session)
    client.model.wait_for(2)
    assert client.request("DELETE", f"/sessions/{session}").status_code == 200
    response.result(TIMEOUT)
    assert list((tmp_path / "sessions").iterdir()) == []


def test_a_shutdown_ends_an_attempt_and_a_later_one_goes_on(tmp_path: Path) -> None:
    with ModelServer(answer("Hel", BREAK), answer("One", STALL)) as model:
        with Client(storage=FileStorage(str(tmp_path)), model=model) as client:
            session = client.create()
            client.run(session)
            response = client.later(go_on, client, session)
            model.wait_for(2)
            wait_until(lambda: client.watch(session).next()["type"] == "stream_start")
            client.shut_down()
            assert said(response.result(TIMEOUT)) == (503, "shutting_down")
        with Client(storage=FileStorage(str(tmp_path)), model=model) as client:
            assert json_of(go_on(client, session))["message"]["content"] == "OK"


def test_a_full_disk_in_the_second_round_costs_no_second_effect(effects: list[str]) -> None:
    storage = BreakableStorage()

    def book() -> str:
        """Books a seat."""
        effects.append("Ann")
        return "booked"

    def fill(request: dict[str, Any]) -> Any:
        storage.broken = True
        return answer("Ann has a seat.")(request)

    with Client(tool_call("book", {}), fill, storage=storage, tools=[book]) as client:
        session = client.create()
        assert said(client.run(session)) == (503, "storage_unavailable")
        assert said(go_on(client, session)) == (503, "storage_unavailable")
        storage.broken = False
        assert json_of(go_on(client, session))["message"]["content"] == "OK"
    assert effects == ["Ann"]


def test_another_model_goes_on(client: Client) -> None:
    with Client(model=client.model, storage=client.storage, models=("other",)) as other:
        session = other.create()
        client.model.then(answer("Hel", BREAK))
        other.run(session)
        body = {"continue": True, "model": "other"}
        done = json_of(other.request("POST", f"/sessions/{session}/run", body))
        assert done["message"]["model"] == client.model.requests[-1]["model"] == "other"


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
def test_a_foreign_file_in_the_place_of_a_journal_is_no_error(tmp_path: Path, foreign: str) -> None:
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
    journal = FileJournal(str(path), b"first")
    journal.write(b"second\n")
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
    journal = FileJournal(str(tmp_path / "nowhere" / "journal"), b"first")
    journal.write(b"x\n")
    journal.write(b"y\n")
    assert [record.message for record in caplog.records if "journal" in record.message] == [
        "cannot keep a journal: No such file or directory; a crash would lose what is not stored yet"
    ]


def test_no_journal_stays_when_a_turn_has_ended(client: Client, tmp_path: Path) -> None:
    go = threading.Event()
    client.model.then(answer("Hel", wait(go), "lo"))
    session = client.create()
    stream = client.stream(session)
    path = tmp_path / "sessions" / f".{session}.journal"
    wait_until(path.exists)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one["role"] for one in client.messages(session)] == ["user"]  # the turn runs, and its text is not shown
    go.set()
    stream.rest()
    wait_until(lambda: not path.exists())


def test_what_could_not_be_stored_at_the_end_is_taken_over_later(tmp_path: Path, monkeypatch: Any) -> None:
    storage = FileStorage(str(tmp_path))
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
        assert said(client.run(session)) == (503, "storage_unavailable")
        full.clear()
        client.run(session, "next")
        assert brief(client.messages(session))[1:3] == [("assistant", "Hello", "interrupted"), ("user", "next", None)]


def test_a_journal_without_its_session_is_swept(tmp_path: Path) -> None:
    storage = FileStorage(str(tmp_path))
    session = storage.create()
    for name in (session, "session-gone"):
        (tmp_path / f".{name}.journal").write_text("x")
    FileStorage(str(tmp_path))
    assert [path.name for path in tmp_path.glob(".session*")] == [f".{session}.journal"]
    with storage.lock(session) as locked:
        locked.delete()
    assert list(tmp_path.iterdir()) == []


# --- kill -9 ---


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), appendfsync="no") as server:
        yield server


@pytest.fixture(params=["files", pytest.param("redis", marks=NEEDED)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "files":
        return f"-session_dir={tmp_path / 'sessions'}"
    server: RedisServer = request.getfixturevalue("redis")
    server.call("FLUSHALL")
    return f"-redis_url={server.url}"


def thinking(*texts: str) -> ReplyTo:
    return frames(*({"choices": [{"index": 0, "delta": {"reasoning_content": text}}]} for text in texts), STALL)


def killed_in_mid_answer(server: Server, session: str, path: str = "run_stream", body: Any = None) -> list[Any]:
    """The events of a turn until its text is there for long enough, and then the server is killed."""
    reply = server.request("POST", f"/sessions/{session}/{path}", body or {"message": "Hi"})
    seen = []
    for event in reply.events():
        seen.append(event)
        if event["type"] in ("stream_chunk", "stream_reasoning"):
            break
    threading.Event().wait(0.4)  # what came 300 ms ago is kept
    server.kill()
    reply.close()
    return seen


def idle(server: Server, session: str) -> None:
    """Waits until the session is free: in Redis the lease of a process that is gone has to run out."""
    wait_until(lambda: not server.request("GET", f"/sessions/{session}").json["running"])


def test_what_was_shown_is_kept(place: str, serve: Callable[..., Server]) -> None:
    with ModelServer(default=answer("Hello, ", "world", STALL)) as model:
        server = serve(f"-base_url={model.base_url}", place)
        session = server.create()
        killed_in_mid_answer(server, session)
        server = serve(f"-base_url={model.base_url}", place)
        idle(server, session)
        shown = server.messages(session)
        assert brief(shown)[1:] == [("assistant", "Hello, world", "interrupted")]
        assert shown[1]["model"] == "gpt-3.5-turbo"
        assert server.messages(session) == shown
        model.default = answer("OK")
        list(server.say(session, "next").events())
        assert server.messages(session)[:2] == shown
        assert [one["content"] for one in server.messages(session)][2:] == ["next", "OK"]


def test_reasoning_is_kept_too(place: str, serve: Callable[..., Server]) -> None:
    with ModelServer(default=thinking("Let me ", "think.")) as model:
        server = serve(f"-base_url={model.base_url}", place)
        session = server.create()
        killed_in_mid_answer(server, session)
        server = serve(f"-base_url={model.base_url}", place)
        idle(server, session)
        message = server.messages(session)[1]
        assert (message["content"], message["reasoning"]) == ("", "Let me think.")


def test_reasoning_that_is_not_shown_is_kept_in_files(serve: Callable[..., Server], tmp_path: Path) -> None:
    go = threading.Event()
    thought: dict[str, Any] = {"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}}]}
    said_: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": "Hello"}}]}
    with ModelServer(default=frames(thought, wait(go), said_, STALL)) as model:
        flags = (f"-base_url={model.base_url}", f"-session_dir={tmp_path / 's'}")
        server = serve(*flags, "-show_reasoning=false")
        session = server.create()
        go.set()
        killed_in_mid_answer(server, session)
        message = serve(*flags).messages(session)[1]
        assert (message["content"], message["reasoning"]) == ("Hello", "Hm.")


def test_a_turn_goes_on_after_kill_9_without_a_second_effect(
    place: str, serve: Callable[..., Server], tmp_path: Path
) -> None:
    tools = tmp_path / "tools.py"
    tools.write_text(
        f"def book(name: str) -> str:\n    '''Books a seat.'''\n    open({str(tmp_path / 'effects')!r}, 'a')"
        ".write(name)\n    return 'booked'\n"
    )
    with ModelServer(BOOK, answer("Ann ", STALL)) as model:
        flags = (f"-base_url={model.base_url}", place, f"-tools={tools}")
        server = serve(*flags)
        session = server.create()
        reply = server.say(session, "Book Ann")
        for event in reply.events():
            if event["type"] == "stream_chunk" and event["data"]["content"] == "Ann ":
                break
        threading.Event().wait(0.4)
        server.kill()
        reply.close()
        server = serve(*flags)
        idle(server, session)
        done = server.request("POST", f"/sessions/{session}/run", GO_ON)
        assert done.json["message"]["content"] == "OK"
        assert [text for _, text, _ in brief(server.messages(session))] == [
            *("Book Ann", "Let me see. ", "booked", "Ann ", "OK")
        ]
        assert (tmp_path / "effects").read_text() == "Ann"


def test_interrupted_turns_are_gone_on_with_at_the_start(place: str, serve: Callable[..., Server]) -> None:
    with ModelServer(default=answer("Hello", STALL)) as model:
        server = serve(f"-base_url={model.base_url}", place)
        complete = server.create()
        model.then(answer("OK"))
        list(server.say(complete, "Hi").events())
        sessions = [server.create() for _ in range(10)]
        replies = [server.say(session, "Hi") for session in sessions]
        for reply in replies:
            assert [next(reply.events())["type"], next(reply.events())["type"]] == ["stream_start", "stream_chunk"]
        threading.Event().wait(0.4)
        server.kill()
        for reply in replies:
            reply.close()
        go = threading.Event()
        model.default = answer("Good ", wait(go), "day.")
        server = serve(f"-base_url={model.base_url}", place, "-continue_interrupted")
        model.wait_for(21)
        watcher = server.request("GET", f"/sessions/{sessions[0]}/run_stream")
        assert watcher.status == 200
        go.set()
        assert [event["type"] for event in watcher.events()][-1] == "stream_end"
        for session in sessions:
            idle(server, session)
            assert brief(server.messages(session))[1:] == [
                ("assistant", "Hello", "interrupted"),
                ("assistant", "Good day.", None),
            ]
        assert len(server.messages(complete)) == 2
        assert len(model.requests) == 21


def test_a_client_that_retries_under_its_key_joins_the_turn_that_goes_on(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    with ModelServer(default=answer("Hello", STALL)) as model:
        flags = (f"-base_url={model.base_url}", f"-session_dir={tmp_path / 's'}")
        server = serve(*flags)
        session = server.create()
        reply = server.say(session, "Hi", Idempotency_Key="k")
        assert [next(reply.events())["type"], next(reply.events())["type"]] == ["stream_start", "stream_chunk"]
        server.kill()
        reply.close()
        go = threading.Event()
        model.default = answer(wait(go), "Good day.")
        server = serve(*flags, "-continue_interrupted")
        model.wait_for(2)
        joined = server.say(session, "Hi", Idempotency_Key="k").events()
        assert next(joined)["type"] == "stream_start"
        go.set()
        assert list(joined)[-1]["data"]["complete_text"] == "Good day."
        assert len(model.requests) == 2


def test_a_crash_during_recovery_loses_nothing_and_is_not_repeated_for_ever(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    with ModelServer(default=answer("Hello", STALL)) as model:
        flags = (f"-base_url={model.base_url}", f"-session_dir={tmp_path / 's'}", "-continue_interrupted")
        server = serve(*flags)
        session = server.create()
        killed_in_mid_answer(server, session)
        for number in range(5):
            server = serve(*flags)
            if number < 2:
                model.wait_for(2 + number)
                wait_until(lambda: (tmp_path / "s" / f".{session}.journal").exists())
                threading.Event().wait(0.4)
            else:
                log = server.log
                wait_until(lambda log=log: "again and again" in log.read_text())
                assert not server.request("GET", f"/sessions/{session}").json["running"]
            server.kill()
        server = serve(*flags)
        assert len(model.requests) == 3
        assert brief(server.messages(session))[1:] == [("assistant", "Hello", "interrupted")] * 3
        model.default = answer("OK")
        assert server.request("POST", f"/sessions/{session}/run", GO_ON).json["message"]["content"] == "OK"


def test_an_old_interrupted_turn_is_left_alone(serve: Callable[..., Server], tmp_path: Path) -> None:
    with ModelServer(default=answer("Hello", STALL)) as model:
        flags = (f"-base_url={model.base_url}", f"-session_dir={tmp_path / 's'}")
        server = serve(*flags)
        session = server.create()
        killed_in_mid_answer(server, session)
        path = tmp_path / "s" / f"{session}.json"
        value = json.loads(path.read_text())
        path.write_text(json.dumps({**value, "updated_at": "2026-01-01T00:00:00Z"}))
        server = serve(*flags, "-continue_interrupted")
        new = server.create()
        model.default = answer("OK")
        list(server.say(new, "Hi").events())  # the start is over
        assert brief(server.messages(session))[1:] == [("assistant", "Hello", "interrupted")]
        assert len(model.requests) == 2


@NEEDED
def test_another_server_stores_what_a_dead_one_has_left_for_its_watchers(
    redis: RedisServer, serve: Callable[..., Server]
) -> None:
    redis.call("FLUSHALL")
    with ModelServer(default=answer("Hello", STALL)) as model:
        one, other = (serve(f"-base_url={model.base_url}", f"-redis_url={redis.url}") for _ in range(2))
        session = one.create()
        reply = one.say(session, "Hi")
        watcher = other.request("GET", f"/sessions/{session}/run_stream")
        events = watcher.events()
        assert next(events)["type"] == "stream_start"
        written_at = next(events)["created_at"]
        one.kill()
        reply.close()
        last = list(events)[-1]
        assert last["data"]["code"] == "internal_error"
        kept = other.messages(session)[-1]
        assert kept["created_at"] == written_at
        assert (kept["id"], kept["content"], kept["reason"]) == (last["data"]["message_id"], "Hello", "interrupted")
        model.default = answer("OK")
        assert other.request("POST", f"/sessions/{session}/run", GO_ON).json["message"]["content"] == "OK"


@NEEDED
def test_what_redis_keeps_of_an_interrupted_turn_goes_with_its_session(
    redis: RedisServer, serve: Callable[..., Server]
) -> None:
    redis.call("FLUSHALL")
    with ModelServer(default=answer("Hello", STALL)) as model:
        server = serve(f"-base_url={model.base_url}", f"-redis_url={redis.url}")
        session = server.create()
        killed_in_mid_answer(server, session)
        server = serve(f"-base_url={model.base_url}", f"-redis_url={redis.url}")
        idle(server, session)
        [key] = redis.call("KEYS", "session_server:events:*")
        assert redis.call("PTTL", key) == -1
        assert server.request("DELETE", f"/sessions/{session}").status == 200
        assert redis.call("KEYS", "session_server:events:*") == []


def test_memory_keeps_no_journal() -> None:
    storage: Storage = MemoryStorage()
    session = storage.create()
    with storage.lock(session) as locked:
        assert locked.journal(b"x") is None
    assert storage.journal(session) == []
    assert calculator("1+1") == "2"
