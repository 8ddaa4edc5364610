"""The life of sessions over HTTP, in any order of what callers can do, against a small model of it."""

from __future__ import annotations

import functools
import random
import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from session_core.model.demo import Exchange
from session_core.stores.files import FileStorage
from storage import MemoryStorage, Storage
from tests.support.client import Client, Stream, error_of, json_of
from tests.support.model_server import BREAK, ModelServer, ReplyTo, answer, pause, status, tool_call, wait
from tests.support.server import TIMEOUT, wait_until
from tests.support.well_formed import assert_well_formed

TOOL = tool_call("calculator", {"expression": "1+1"}, text="Let me see. ")

# What the model server does in a turn: its replies, the messages that the turn leaves (role, content, status), and
# the code of its error, if it has one.
ENDS: dict[str, tuple[list[Any], list[tuple[str, str, str | None]], str | None]] = {
    "answers": ([answer("It", " is 2.")], [("assistant", "It is 2.", None)], None),
    "calls a tool": (
        [TOOL, answer("It is 2.")],
        [("assistant", "Let me see. ", None), ("tool", "2", None), ("assistant", "It is 2.", None)],
        None,
    ),
    "is cut off": ([answer("It is", finish_reason="length")], [("assistant", "It is", "incomplete")], None),
    "says nothing": ([answer()], [("assistant", "", None)], None),
    "refuses": ([status(401, {"error": "no"})], [], "model_unauthorized"),
    "breaks off": ([answer("It is", BREAK)], [("assistant", "It is", "incomplete")], "model_error"),
    "breaks off after a tool": (
        [TOOL, status(404, {"error": "no"})],
        [("assistant", "Let me see. ", None), ("tool", "2", None)],
        "model_error",
    ),
}


@dataclass
class Turn:
    """What is known of a turn; `error` is the code of its failure, `message` its answer."""

    text: str
    key: str | None
    error: str | None = None
    message: dict[str, Any] | None = None


class Slow:
    """A turn whose model has said "One", and goes on when the test says so."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.stream: Stream
        self.seen: list[dict[str, Any]] = []
        self.breaks = False
        self.go_on = threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        wait(self.go_on)(exchange)
        if self.breaks:
            BREAK(exchange)


@dataclass
class Session:
    id: str
    title: str | None = None
    messages: list[tuple[str, str, str | None]] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    held: list[dict[str, Any]] | None = None  # the events of the turn that can be watched
    lost: list[str] = field(default_factory=list)  # ids of events that cannot be had any more
    slow: Slow | None = None
    kept: bool = False  # whether the last message is what a crash has left, and stands in the journal alone

    def of_key(self, key: str | None) -> Turn | None:
        return next((turn for turn in self.turns if key is not None and turn.key == key), None)


KEYS = st.sampled_from([None, "key-1", "key-2", "key-3"])
TEXTS = st.sampled_from(["What is 1+1?", "Hello"])


class Life(RuleBasedStateMachine):
    """Each rule does one thing, and says what must come of it."""

    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.model = ModelServer().start()
        self.storage = self.open()
        self.client = Client(model=self.model, storage=self.storage)
        self.all: list[Session] = []  # in the order of the list

    def open(self) -> Storage:
        return MemoryStorage()

    def reopen(self) -> Storage:
        return self.storage

    def teardown(self) -> None:
        self.client.close()
        for session in self.all:
            if session.slow:
                session.slow.stream.close()
        self.model.stop()
        for request in self.model.requests:
            assert_well_formed(request)

    def touch(self, session: Session) -> None:
        """Something was stored in it."""
        self.all.remove(session)
        self.all.insert(0, session)

    @rule(target=sessions)
    def create(self) -> Session:
        self.all.insert(0, Session(self.client.create()))
        return self.all[0]

    # A turn at one go, by either way

    @rule(session=sessions, end=st.sampled_from([*ENDS]), text=TEXTS, key=KEYS, stream=st.booleans())
    def say(self, session: Session, end: str, text: str, key: str | None, stream: bool) -> None:
        headers = {} if key is None else {"Idempotency_Key": key}
        known = session.of_key(key)
        asked = len(self.model.requests)
        if known and known.text != text:
            assert error_of(self.client.run(session.id, text, **headers)) == (422, "idempotency_key_reused")
        elif session.slow and known is session.slow.turn:
            joined = self.client.stream(session.id, text, **headers)
            assert [joined.next() for _ in session.slow.seen] == session.slow.seen
            joined.close()
        elif known and (known is not session.turns[-1] or known.error is None):
            self.replay(session, known, headers, stream)
        elif session.slow:
            assert error_of(self.client.run(session.id, text, **headers)) == (409, "session_busy")
        else:
            self.new_turn(session, known, end, text, headers, stream)
            return
        assert len(self.model.requests) == asked

    def new_turn(
        self, session: Session, known: Turn | None, end: str, text: str, headers: dict[str, str], stream: bool
    ) -> None:
        """A turn that is run: a new one, or another attempt at the last, which is known by its key."""
        replies, left, error = ENDS[end]
        asked = len(self.model.requests)
        self.model.then(*replies)
        if stream:
            response = self.client.stream(session.id, text, **headers)
            events = response.rest()
            assert "Idempotency-Replayed" not in response.headers
        else:
            answered = self.client.run(session.id, text, **headers)
            assert "Idempotency-Replayed" not in answered.headers
            if error:
                assert error_of(answered)[1] == error
            events = self.client.watch(session.id).rest()
        assert len(self.model.requests) == asked + len(replies)
        turn = self.begun(session, known, text, headers.get("Idempotency_Key"))
        session.messages += left
        turn.error = error
        assert events[-1]["data"].get("code") == error
        self.ended(session, turn, events)
        if not stream and not error:
            assert json_of(answered)["message"] == turn.message

    def begun(self, session: Session, known: Turn | None, text: str, key: str | None) -> Turn:
        session.lost += [event["id"] for event in session.held or ()]
        session.held = None
        if session.kept:  # which is stored now
            session.kept = False
            self.touch(session)
        if known is None:
            known = Turn(text, key)
            session.turns.append(known)
            session.messages.append(("user", text, None))
            self.touch(session)
        return known

    def ended(self, session: Session, turn: Turn, events: list[dict[str, Any]]) -> None:
        session.held = events
        self.touch(session)
        turn.message = None
        if turn.error is None:
            turn.message = self.client.messages(session.id)[-1]
            assert events[-1]["data"]["message_id"] == turn.message["id"]

    def replay(self, session: Session, turn: Turn, headers: dict[str, str], stream: bool) -> None:
        response = self.client.run(session.id, turn.text, **headers)
        assert response.headers["Idempotency-Replayed"] == "true"
        if turn.error is not None:
            assert error_of(response)[1] == turn.error
        else:
            assert json_of(response)["message"] == turn.message
        if stream:
            again = self.client.stream(session.id, turn.text, **headers)
            assert again.headers["Idempotency-Replayed"] == "true"
            events = again.rest()
            assert events[-1]["data"].get("code") == turn.error
            if session.held and turn is session.turns[-1]:
                assert events == session.held

    # A turn that takes its time

    @precondition(lambda self: sum(session.slow is not None for session in self.all) < 3)
    @rule(session=sessions, text=TEXTS, key=KEYS)
    def begin(self, session: Session, text: str, key: str | None) -> None:
        known = session.of_key(key)
        again = known and known is session.turns[-1] and known.error is not None and known.text == text
        if session.slow or (known and not again):
            return
        slow = Slow(known or Turn(text, key))
        self.model.then(answer("One", slow, " two."))
        slow.stream = self.client.stream(session.id, text, **({} if key is None else {"Idempotency_Key": key}))
        slow.seen = [slow.stream.next(), slow.stream.next()]
        assert slow.seen[1]["data"]["content"] == "One"
        slow.turn = self.begun(session, known, text, key)
        slow.turn.error = None
        session.slow = slow

    @rule(session=sessions, how=st.sampled_from(["finish", "break", "cancel"]))
    def end(self, session: Session, how: str) -> None:
        if session.slow is None:
            if how == "cancel":
                assert not self.client.cancel(session.id)
            return
        slow, session.slow = session.slow, None
        if how == "cancel":
            assert self.client.cancel(session.id)
            session.messages.append(("assistant", "One", "cancelled"))
        else:
            slow.breaks = how == "break"
            slow.go_on.set()
            left = ("One", "incomplete") if slow.breaks else ("One two.", None)
            session.messages.append(("assistant", *left))
            slow.turn.error = "model_error" if slow.breaks else None
        self.ended(session, slow.turn, slow.seen + slow.stream.rest())

    # Resuming

    @rule(session=sessions, seen=st.integers(0, 8), leave=st.booleans())
    def resume(self, session: Session, seen: int, leave: bool) -> None:
        events = session.slow.seen if session.slow else session.held
        if events is None:
            assert self.client.watch(session.id).status == 204
            return
        seen = min(seen, len(events))
        stream = self.client.watch(session.id, **({"Last_Event_ID": events[seen - 1]["id"]} if seen else {}))
        if session.slow:
            assert [stream.next() for _ in events[seen:]] == events[seen:]
            stream.close()
        elif seen == len(events):
            assert stream.status == 204
        elif leave:
            assert stream.next() == events[seen]
            stream.close()
        else:
            assert stream.rest() == events[seen:]

    @rule(session=sessions, which=st.integers(0, 100))
    def resume_at_what_is_lost(self, session: Session, which: int) -> None:
        if session.lost:
            stream = self.client.watch(session.id, Last_Event_ID=session.lost[which % len(session.lost)])
            assert (stream.status, stream.json["code"]) == (410, "event_gone")

    # The session

    @rule(session=sessions, title=st.sampled_from(["A title", "", None]))
    def rename(self, session: Session, title: str | None) -> None:
        response = self.client.request("PATCH", f"/sessions/{session.id}", {"title": title})
        if session.slow:
            assert error_of(response) == (409, "session_busy")
        else:
            session.title = title or None
            assert json_of(response) == self.details(session)

    @rule(session=consumes(sessions))
    def delete(self, session: Session) -> None:
        assert self.client.request("DELETE", f"/sessions/{session.id}").status_code == 200
        self.all.remove(session)
        if session.slow:
            assert session.slow.stream.last()["data"]["status"] == "cancelled"
        for response in (self.client.run(session.id), self.client.get(f"/sessions/{session.id}")):
            assert error_of(response) == (404, "session_not_found")
        assert self.client.watch(session.id).status == 404

    @rule()
    def restart(self) -> None:
        """Running turns end with an error; what they have said is stored, oldest turn first."""
        self.client.shut_down()
        for slow, session in self.interrupted():
            assert slow.stream.last()["data"]["code"] == "shutting_down"
            session.messages.append(("assistant", "One", "incomplete"))
            slow.turn.error = "shutting_down"
        self.client.close()
        self.begin_anew()

    def interrupted(self) -> list[tuple[Slow, Session]]:
        """The turns that run and do not run on, and their sessions. No events can be had any more."""
        found = []
        for session in self.all:
            if session.slow:
                found.append((session.slow, session))
                session.lost += [event["id"] for event in session.slow.seen]
                session.slow = None
            session.lost += [event["id"] for event in session.held or ()]
            session.held = None
        return found

    def begin_anew(self) -> None:
        self.storage = self.reopen()
        self.client = Client(model=self.model, storage=self.storage)
        now = json_of(self.client.get("/sessions"))["sessions"]
        assert sorted(now) == sorted(session.id for session in self.all)
        self.all.sort(key=lambda session: now.index(session.id))

    # What must hold at any time

    def details(self, session: Session) -> dict[str, Any]:
        """The session in the list; its times are those that it has."""
        first = next((content for role, content, _ in session.messages if role == "user"), None)
        got = self.client.session(session.id)
        return {
            "id": session.id,
            "title": session.title or first,
            "created_at": got["created_at"],
            "updated_at": got["updated_at"],
            "message_count": len(session.messages) - session.kept,
            "running": session.slow is not None,
        }

    @invariant()
    def the_list_is_true(self) -> None:
        assert json_of(self.client.get("/sessions"))["sessions"] == [session.id for session in self.all]
        details = json_of(self.client.get("/sessions?details=true"))["sessions"]
        assert details == [self.details(session) for session in self.all]

    @invariant()
    def the_messages_are_all_there_once_and_in_order(self) -> None:
        for session in self.all:
            stored = self.client.messages(session.id)
            assert [(m["role"], m["content"], m.get("status")) for m in stored] == session.messages
            assert len({message["id"] for message in stored}) == len(stored)


class LifeInFiles(Life):
    """The same with files, which are opened anew at a restart."""

    def open(self) -> Storage:
        self.directory = tempfile.TemporaryDirectory()
        return self.reopen()

    def reopen(self) -> Storage:
        return FileStorage.open(self.directory.name)

    def teardown(self) -> None:
        super().teardown()
        self.directory.cleanup()

    def is_kept(self, session: Session) -> bool:
        """Whether the journal has what the turn has written."""
        journal = Path(self.directory.name) / f".{session.id}.journal"
        return journal.exists() and b"One" in journal.read_bytes()

    @rule()
    def crash(self) -> None:
        """The files are found as they are at this moment, with what the turns that ran have written."""
        for session in self.all:
            if session.slow:
                wait_until(functools.partial(self.is_kept, session))
        before, self.directory = self.directory, tempfile.TemporaryDirectory()
        shutil.copytree(before.name, self.directory.name, dirs_exist_ok=True)
        self.client.close()
        for slow, session in self.interrupted():
            slow.stream.close()
            slow.turn.error = "internal_error"
            session.messages.append(("assistant", "One", "incomplete"))
            session.kept = True
        before.cleanup()
        self.begin_anew()


@pytest.mark.parametrize("seed", range(4))
def test_however_many_call_at_once_a_key_is_one_turn_and_has_one_answer(seed: int, tmp_path: Path) -> None:
    moment: ReplyTo = answer("It is", pause(0.01), " 2.")
    ends = [moment, *(reply for replies, _, _ in ENDS.values() for reply in replies)]
    shuffled = random.Random(seed)
    answers: dict[str, set[str]] = {"key-1": set(), "key-2": set()}

    def call(number: int) -> None:
        choose = random.Random(f"{seed} {number}").choice
        for _ in range(10):
            key = choose([*answers])
            headers = {"Idempotency_Key": key}
            match choose(["run", "run", "stream", "stream", "leave", "cancel", "watch", "rename", "plain"]):
                case "run":
                    response = client.run(session, key, **headers)
                    if response.status_code == 200:
                        answers[key].add(json_of(response)["message"]["id"])
                    else:
                        assert error_of(response)[0] in (409, 502)
                case "stream":
                    stream = client.stream(session, key, **headers)
                    last = stream.last() if stream.status == 200 else {"type": stream.json["code"]}
                    assert last["type"] in ("stream_end", "error", "session_busy")
                    if last["type"] == "stream_end":
                        answers[key].add(last["data"]["message_id"])
                case "leave":
                    client.stream(session, key, **headers).close()
                case "cancel":
                    client.cancel(session)
                case "watch":
                    stream = client.watch(session)
                    assert stream.status in (200, 204)
                    assert stream.status == 204 or stream.last()["type"] in ("stream_end", "error")
                case "rename":
                    response = client.request("PATCH", f"/sessions/{session}", {"title": key})
                    assert response.status_code in (200, 409)
                case "plain":
                    assert client.run(session, "plain").status_code in (200, 409, 502)

    with Client(
        default=lambda request: shuffled.choice(ends)(request), storage=FileStorage.open(str(tmp_path))
    ) as client:
        session = client.create()
        for caller in [client.later(call, number) for number in range(5)]:
            caller.result(TIMEOUT)
        client.cancel(session)
        stored = client.messages(session)
        for key, ids in answers.items():
            assert [message["content"] for message in stored].count(key) <= 1
            assert len(ids) <= 1
            assert ids <= {message["id"] for message in stored}
        for request in client.model.requests:
            assert_well_formed(request)


TestLife = Life.TestCase
TestLifeInFiles = LifeInFiles.TestCase
TestLife.settings = TestLifeInFiles.settings = settings(
    max_examples=10, stateful_step_count=25, deadline=None, database=None
)
