"""What every back end of `storage.Storage` promises, as tests. To run them over one of your own:

    class TestMyStorage(StorageConformance):
        @pytest.fixture
        def make(self) -> Callable[[], Storage]:
            return lambda: MyStorage(...)

Each call of `make()` opens the same store once more, as a second process would.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from storage import LockedSession, Session, SessionBusy, SessionNotFound, Storage, Summary

TIMEOUT = 30.0  # seconds; how long a test waits for what must happen at all

MALFORMED = [
    "",
    "session",
    "session-",
    "session-" + "a" * 65,
    "session-A",
    "session-é",
    "session-a\n",
    "session-a.json",
    "session-a/../session-b",
    "../session-a",
    "session-\0",
    "session-\udc80",
    "msg-0",
]
UNKNOWN = ["session-0", "session-" + "0" * 64, "session--"]

NOT_JSON: dict[str, Any] = {
    "NaN": float("nan"),
    "infinity": float("inf"),
    "a lone surrogate": "\ud800",
    "a lone surrogate in a list": ["\udfff"],
    "a lone surrogate as a name": {"\ud800": 1},
    "bytes": b"bytes",
    "a set": {1},
    "an object": object(),
}

VALUES: dict[str, Any] = {
    "all kinds of JSON": {"list": [1, -2.5, 1e300, True, False, None, "x", [], {}], "object": {"a": {"b": []}}},
    "an integer of 100 digits": 10**99,
    "other scripts": "héllo 日本語 🎉 \u2028\u2029\ufeff",
    "controls": "\0\x01\x1f\x7f\x80\r\n\t\b\f",
    "what looks like a file": '"}\n],"updated_at":"2026-01-31T12:34:56Z"}\n},\n{"id":"msg-0"',
    "backslashes": "\\ \\n \\u0041 \\ud800 \\\\",
    "nothing": "",
}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def say(storage: Storage, session_id: str, *texts: str) -> None:
    with storage.lock(session_id) as locked:
        for text in texts:
            locked.append(user(text))


def texts(storage: Storage, session_id: str) -> list[str]:
    return [message["content"] for message in storage.get(session_id).messages]


def patiently(storage: Storage, session_id: str) -> LockedSession:
    """The session locked for a turn, when those who had it before have done with it."""
    give_up = time.monotonic() + TIMEOUT
    while True:
        try:
            return storage.lock(session_id, turn=True)
        except SessionBusy:
            if time.monotonic() > give_up:
                raise


def when_refused(monkeypatch: pytest.MonkeyPatch, storage: Storage, act: Callable[[], object]) -> None:
    """Do something as soon as this handle has tried in vain to lock a session, and waits."""
    lock = storage._lock

    def locking(session_id: str, turn: bool) -> LockedSession | None:
        locked = lock(session_id, turn)
        if locked is None:
            act()
        return locked

    monkeypatch.setattr(storage, "_lock", locking)


def at_once(count: int, work: Callable[[int], object]) -> list[Any]:
    """What `work(0)` … `work(count - 1)` give, called from so many threads at the same moment."""
    barrier = threading.Barrier(count, timeout=TIMEOUT)

    def enter(number: int) -> object:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(enter, range(count), timeout=TIMEOUT))


class StorageConformance:
    @pytest.fixture
    def make(self) -> Callable[[], Storage]:
        """Opens the store that is tested."""
        raise NotImplementedError("override the fixture `make`: see the top of this module")

    @pytest.fixture
    def storage(self, make: Callable[[], Storage]) -> Storage:
        return make()

    @pytest.fixture
    def other(self, storage: Storage, make: Callable[[], Storage]) -> Storage:
        """The same store, opened a second time."""
        return make()

    @pytest.fixture
    def id(self, storage: Storage) -> str:
        """A session with two messages."""
        session_id = storage.create()
        say(storage, session_id, "one", "two")
        return session_id

    # --- ids ---

    def test_session_ids_hold_128_random_bits(self, storage: Storage) -> None:
        ids = [storage.create() for _ in range(20)]
        assert all(re.fullmatch(r"session-[0-9a-f]{32}", id) for id in ids)
        assert len({id[:16] for id in ids}) == len({id[-8:] for id in ids}) == 20

    def test_message_ids_hold_128_random_bits(self, storage: Storage, id: str) -> None:
        one, two = storage.get(id).messages
        assert re.fullmatch(r"msg-[0-9a-f]{32}", one["id"]) and re.fullmatch(r"msg-[0-9a-f]{32}", two["id"])
        assert one["id"][:12] != two["id"][:12]

    @pytest.mark.parametrize("bad", MALFORMED + UNKNOWN, ids=ascii)
    def test_an_id_that_is_malformed_or_unknown_is_not_found(self, storage: Storage, id: str, bad: str) -> None:
        for ask in (storage.get, storage.summary, storage.running, storage.lock):
            with pytest.raises(SessionNotFound):
                ask(bad)
        with pytest.raises(SessionNotFound):
            storage.lock(bad, turn=True)
        with pytest.raises(SessionNotFound):
            storage.page(after=bad)

    # --- a session ---

    def test_a_new_session_is_empty(self, storage: Storage) -> None:
        id = storage.create()
        now = storage.get(id).created_at
        assert storage.get(id) == Session(id, now, now, None, [], None)

    def test_times_are_in_utc_and_to_the_second(self, storage: Storage, id: str) -> None:
        session = storage.get(id)
        for text in (session.created_at, session.updated_at, session.messages[0]["created_at"]):
            then = time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")
            assert abs(time.mktime(time.gmtime()) - time.mktime(then)) < 600

    def test_a_session_is_handed_out_as_a_copy(self, storage: Storage, id: str) -> None:
        session = storage.get(id)
        session.messages[0]["content"] = "changed"
        session.messages.pop()
        assert texts(storage, id) == ["one", "two"]

    def test_what_one_handle_stores_the_other_sees(self, storage: Storage, other: Storage, id: str) -> None:
        assert other.get(id) == storage.get(id)
        assert other.summary(id) == storage.summary(id)
        say(other, id, "three")
        assert texts(storage, id) == ["one", "two", "three"]
        assert storage.summary(id).message_count == 3

    def test_a_good_store_passes_its_check(self, storage: Storage) -> None:
        storage.check()
        assert storage.page() == ([], None)

    # --- append ---

    def test_messages_keep_their_order(self, storage: Storage) -> None:
        id = storage.create()
        said = [str(number) for number in range(30)]
        say(storage, id, *said[:10])
        say(storage, id, *said[10:])
        assert texts(storage, id) == said

    def test_an_added_message_is_given_back_as_it_is_stored(self, storage: Storage, id: str) -> None:
        with storage.lock(id) as locked:
            message = locked.append({"role": "tool", "content": "", "name": "calculator", "values": (1, 2)})
        assert message == storage.get(id).messages[-1]
        assert {**message, "id": "", "created_at": ""} == {
            "id": "",
            "role": "tool",
            "content": "",
            "name": "calculator",
            "values": [1, 2],
            "created_at": "",
        }

    @pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
    def test_any_json_comes_back_as_it_went_in(self, storage: Storage, other: Storage, id: str, value: Any) -> None:
        with storage.lock(id) as locked:
            message = locked.append({**user(str(value)), "value": value, str(value): None})
            locked.append(user("after"))
        found = other.get(id).messages
        assert found[2] == message
        assert (found[2]["content"], found[2]["value"], found[2][str(value)]) == (str(value), value, None)
        assert len(found) == 4

    def test_a_message_may_be_long(self, storage: Storage, other: Storage, id: str) -> None:
        long = "é" * (1 << 20)
        say(storage, id, long, "after")
        assert texts(other, id) == ["one", "two", long, "after"]

    def test_id_and_time_of_a_message_are_not_for_the_caller_to_set(self, storage: Storage, id: str) -> None:
        with storage.lock(id) as locked:
            message = locked.append({"created_at": "then", "id": "mine", **user("three")})
        assert message["id"].startswith("msg-")
        assert message["created_at"] == storage.get(id).updated_at != "then"

    def test_an_added_message_updates_the_session(self, storage: Storage, id: str) -> None:
        session = storage.get(id)
        assert session.created_at <= session.updated_at == session.messages[-1]["created_at"]

    def test_changing_a_message_after_it_was_added_changes_nothing(self, storage: Storage, id: str) -> None:
        fields = {**user("three"), "list": [1]}
        with storage.lock(id) as locked:
            message = locked.append(fields)
            fields["content"] = "changed"
            fields["list"].append(2)
            message["content"] = "changed"
            message["list"].append(3)
            locked.append(user("four"))
            locked.configure(title="a")
        assert texts(storage, id) == ["one", "two", "three", "four"]
        assert storage.get(id).messages[2]["list"] == [1]

    @pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON.keys())
    def test_what_json_cannot_hold_is_refused(self, storage: Storage, id: str, value: Any) -> None:
        first = storage.create()
        before = storage.get(id)
        with storage.lock(id) as locked:
            with pytest.raises((ValueError, TypeError)):
                locked.append({**user("three"), "value": value})
            assert locked.session == before
        assert storage.get(id) == before
        assert storage.page()[0] == [first, id]
        say(storage, id, "three")
        assert texts(storage, id) == ["one", "two", "three"]

    @pytest.mark.parametrize(
        "fields",
        [{}, {"role": "user"}, {"content": "x"}, {"role": 1, "content": "x"}, {"role": "user", "content": None}],
    )
    def test_a_message_without_role_or_content_is_refused(
        self, storage: Storage, id: str, fields: dict[str, Any]
    ) -> None:
        with storage.lock(id) as locked, pytest.raises(ValueError):
            locked.append(fields)
        assert texts(storage, id) == ["one", "two"]

    # --- the last error ---

    def test_the_last_error_stands_until_the_next_message(self, storage: Storage, other: Storage, id: str) -> None:
        with storage.lock(id) as locked:
            locked.set_last_error("model_error")
            assert locked.session.last_error == other.get(id).last_error == "model_error"
            locked.append(user("three"))
            assert locked.session.last_error is None
        assert other.get(id).last_error is None
        assert texts(other, id) == ["one", "two", "three"]

    def test_an_error_replaces_the_one_before(self, storage: Storage, id: str) -> None:
        for code in ("a" * 1000, "b", "", "c" * 1000):
            with storage.lock(id) as locked:
                locked.set_last_error(code)
            assert storage.get(id).last_error == code
        assert texts(storage, id) == ["one", "two"]

    def test_a_session_without_messages_can_have_an_error(self, storage: Storage) -> None:
        id = storage.create()
        with storage.lock(id) as locked:
            locked.set_last_error("x")
        assert (storage.get(id).last_error, storage.get(id).messages) == ("x", [])
        say(storage, id, "one")
        assert (storage.get(id).last_error, texts(storage, id)) == (None, ["one"])

    def test_an_error_may_be_long(self, storage: Storage, other: Storage, id: str) -> None:
        with storage.lock(id) as locked:
            locked.set_last_error("é" * 100_000)
        assert other.get(id).last_error == "é" * 100_000
        say(storage, id, "three")
        assert (other.get(id).last_error, texts(other, id)) == (None, ["one", "two", "three"])

    def test_an_error_moves_the_session_to_the_front(self, storage: Storage, id: str) -> None:
        later = storage.create()
        with storage.lock(id) as locked:
            locked.set_last_error("x")
        assert storage.page()[0] == [id, later]

    def test_an_error_that_json_cannot_hold_is_refused(self, storage: Storage, id: str) -> None:
        with storage.lock(id) as locked, pytest.raises(ValueError):
            locked.set_last_error("\ud800")
        assert storage.get(id).last_error is None

    # --- the continuation ---

    def test_a_continuation_stands_until_the_next_question(self, storage: Storage, other: Storage, id: str) -> None:
        with storage.lock(id) as locked:
            locked.set_last_error("x")
            locked.set_continues({"attempt": 2, "key": "é"})
            assert other.get(id).continues == {"attempt": 2, "key": "é"}
            assert other.get(id).last_error is None
            locked.append({"role": "assistant", "content": "three"})
            locked.set_last_error("y")
            assert other.get(id).continues == {"attempt": 2, "key": "é"}
            locked.append(user("four"))
        assert (other.get(id).continues, other.get(id).last_error) == (None, None)

    def test_a_continuation_that_json_cannot_hold_is_refused(self, storage: Storage, id: str) -> None:
        with storage.lock(id) as locked, pytest.raises(ValueError):
            locked.set_continues({"x": float("nan")})
        assert storage.get(id).continues is None

    # --- created whole ---

    def test_a_session_is_created_with_messages_and_settings(self, storage: Storage, other: Storage) -> None:
        messages = [{"id": f"msg-{n}", "role": "user", "content": "é", "created_at": "t", "x": [n]} for n in range(3)]
        id = storage.create(messages, last_error="refused", title="T", model="m", system_prompt="\0 é")
        found = other.get(id)
        assert (found.messages, found.last_error) == (messages, "refused")
        assert (found.title, found.model, found.system_prompt) == ("T", "m", "\0 é")
        messages[0]["x"].append(7)
        say(other, id, "four")
        assert [message["content"] for message in storage.get(id).messages] == ["é", "é", "é", "four"]
        assert storage.get(id).messages[0]["x"] == [0]

    @pytest.mark.parametrize("bad", [{}, {"id": "msg-0", "role": "user", "content": "x"}, {"id": float("nan")}])
    def test_what_is_no_message_creates_nothing(self, storage: Storage, bad: dict[str, Any]) -> None:
        with pytest.raises(ValueError):
            storage.create([bad])
        with pytest.raises(ValueError):
            storage.create(title="\ud800")
        with pytest.raises(TypeError):
            storage.create(colour="red")
        assert storage.page() == ([], None)

    # --- what a question replaces ---

    def test_replaced_messages_are_stored_and_not_counted(self, storage: Storage, other: Storage, id: str) -> None:
        first = storage.get(id).messages[0]["id"]
        with storage.lock(id) as locked:
            locked.append({**user("ONE"), "replaces": first})
            locked.append({"role": "assistant", "content": "1"})
        found = other.get(id)
        assert [message["content"] for message in found.messages] == ["one", "two", "ONE", "1"]
        assert [message["content"] for message in found.conversation] == ["ONE", "1"]
        for handle in (storage, other):
            assert (handle.summary(id).message_count, handle.summary(id).title) == (2, "ONE")
        with storage.lock(id) as locked:
            locked.configure(title="T")
        assert (other.summary(id).message_count, other.summary(id).title) == (2, "T")

    # --- unchanged since ---

    def test_sessions_that_did_not_change_are_found(self, storage: Storage, other: Storage, id: str) -> None:
        assert list(other.unchanged_since(time.time() - 3600)) == []
        assert set(other.unchanged_since(time.time() + 3600)) == {id}

    # --- rename ---

    def test_a_title_changes_nothing_else(self, storage: Storage, other: Storage, id: str) -> None:
        with storage.lock(id) as locked:
            locked.set_last_error("x")
        storage.create()
        before, order = storage.get(id), storage.page()
        with storage.lock(id) as locked:
            locked.configure(title="Zahlen 🎉")
        assert vars(other.get(id)) == {**vars(before), "title": "Zahlen 🎉"}
        assert other.page() == order

    def test_a_title_can_be_replaced_and_removed(self, storage: Storage, other: Storage, id: str) -> None:
        before = storage.get(id)
        with storage.lock(id) as locked:
            locked.configure(title="a")
            locked.configure(title="b")
            assert other.get(id).title == locked.session.title == "b"
            locked.configure(title=None)
        assert other.get(id) == before

    def test_a_title_stays_when_messages_are_added(self, storage: Storage, other: Storage, id: str) -> None:
        with storage.lock(id) as locked:
            locked.append(user("three"))
            locked.configure(title="a")
            locked.append(user("four"))
        say(other, id, "five")
        assert storage.get(id).title == "a"
        assert texts(storage, id) == ["one", "two", "three", "four", "five"]

    def test_a_title_that_json_cannot_hold_is_refused(self, storage: Storage, id: str) -> None:
        with storage.lock(id) as locked, pytest.raises(ValueError):
            locked.configure(title="\ud800")
        assert storage.get(id).title is None

    # --- summary ---

    def test_a_summary_says_what_a_list_shows(self, storage: Storage, id: str) -> None:
        session = storage.get(id)
        assert storage.summary(id) == Summary(id, "one", session.created_at, session.updated_at, 2)

    def test_a_summary_is_that_of_now(self, storage: Storage, other: Storage, id: str) -> None:
        for number in range(3, 8):
            assert storage.summary(id).message_count == number - 1
            say(other, id, str(number))
        with other.lock(id) as locked:
            locked.configure(title="a")
        assert storage.summary(id).title == "a"
        with other.lock(id) as locked:
            locked.configure(title="b")
        assert storage.summary(id).title == "b"

    def test_a_session_without_words_of_a_user_has_no_title(self, storage: Storage) -> None:
        id = storage.create()
        assert storage.summary(id).title is None
        with storage.lock(id) as locked:
            locked.append({"role": "assistant", "content": "hello"})
        assert storage.summary(id).title is None

    @pytest.mark.parametrize(
        ("text", "title"),
        [
            ("What is 15 * 23?", "What is 15 * 23?"),
            ("  two\n\n words\t", "two words"),
            ("word " * 100, ("word " * 16).strip()),
            ("é" * 100_000, "é" * 80),
            (" \n ", None),
        ],
    )
    def test_the_first_words_of_the_user_are_the_title_until_one_is_set(
        self, storage: Storage, text: str, title: str | None
    ) -> None:
        id = storage.create()
        with storage.lock(id) as locked:
            locked.append({"role": "assistant", "content": "hello"})
            locked.append(user(text))
            locked.append(user("later"))
        found = storage.summary(id).title
        assert (found or "").strip() == (title or "") and (found is None) == (title is None)
        with storage.lock(id) as locked:
            locked.configure(title="set")
        assert storage.summary(id).title == "set"

    # --- the list ---

    def test_an_empty_store_lists_nothing(self, storage: Storage) -> None:
        assert storage.page() == storage.page(limit=1) == ([], None)

    def test_the_list_begins_with_what_was_updated_last(self, storage: Storage, other: Storage) -> None:
        a, b, c = storage.create(), storage.create(), storage.create()
        assert storage.page() == other.page() == ([c, b, a], None)
        say(storage, b, "x")
        assert storage.page() == other.page() == ([b, c, a], None)
        say(other, a, "x")
        assert storage.page() == other.page() == ([a, b, c], None)

    def test_taking_a_session_and_reading_it_leave_the_list_alone(self, storage: Storage, id: str) -> None:
        order = [storage.create(), id]
        with storage.lock(id, turn=True) as locked:
            assert locked.session == storage.get(id)
        storage.summary(id)
        storage.running(id)
        assert storage.page()[0] == order

    def test_the_list_can_be_walked_by_pages(self, storage: Storage) -> None:
        ids = [storage.create() for _ in range(5)][::-1]
        assert storage.page(limit=2) == (ids[:2], ids[1])
        assert storage.page(limit=2, after=ids[1]) == (ids[2:4], ids[3])
        assert storage.page(limit=2, after=ids[3]) == (ids[4:], None)
        assert storage.page(limit=2, after=ids[4]) == ([], None)
        assert storage.page(after=ids[2]) == (ids[3:], None)

    def test_a_page_that_holds_the_rest_is_the_last(self, storage: Storage) -> None:
        ids = [storage.create() for _ in range(3)][::-1]
        assert storage.page(limit=3) == storage.page(limit=1000) == (ids, None)
        assert storage.page(limit=2, after=ids[0]) == (ids[1:], None)

    def test_a_deleted_session_is_no_place_to_go_on_from(self, storage: Storage, id: str) -> None:
        storage.create()
        with storage.lock(id) as locked:
            locked.delete()
        with pytest.raises(SessionNotFound):
            storage.page(after=id)

    # --- take and release ---

    def test_a_session_taken_for_a_turn_is_refused_at_once(self, storage: Storage, other: Storage, id: str) -> None:
        with storage.lock(id, turn=True):
            began = time.monotonic()
            for handle in (storage, other):
                for turn in (True, False):
                    with pytest.raises(SessionBusy):
                        handle.lock(id, turn=turn)
            assert time.monotonic() - began < 3.5  # four refusals, none of them after the second that others wait

    def test_who_holds_a_session_briefly_is_waited_for(
        self, storage: Storage, other: Storage, id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        locked = storage.lock(id)
        when_refused(monkeypatch, other, locked.release)
        with other.lock(id, turn=True) as mine:
            mine.append(user("three"))
        assert texts(storage, id) == ["one", "two", "three"]

    def test_who_holds_a_session_for_long_is_not_waited_for(self, storage: Storage, other: Storage, id: str) -> None:
        with storage.lock(id), pytest.raises(SessionBusy):
            other.lock(id)

    def test_a_released_session_can_be_taken_again(self, storage: Storage, other: Storage, id: str) -> None:
        for handle in (storage, other, storage):
            handle.lock(id, turn=True).release()
        with pytest.raises(ZeroDivisionError), storage.lock(id, turn=True):
            raise ZeroDivisionError
        other.lock(id, turn=True).release()

    def test_releasing_again_takes_nothing_from_the_next_holder(self, storage: Storage, id: str) -> None:
        first = storage.lock(id, turn=True)
        first.release()
        with storage.lock(id, turn=True):
            first.release()
            assert storage.running(id)
            with pytest.raises(SessionBusy):
                storage.lock(id)

    def test_changing_a_session_after_its_release_is_an_error(self, storage: Storage, id: str) -> None:
        read, unread = storage.lock(id), None
        assert read.session.id == id
        read.release()
        unread = storage.lock(id)
        unread.release()
        before, order = storage.get(id), storage.page()
        for locked in (read, unread):
            with pytest.raises(RuntimeError):
                locked.append(user("three"))
            with pytest.raises(RuntimeError):
                locked.set_last_error("x")
            with pytest.raises(RuntimeError):
                locked.configure(title="x")
            with pytest.raises(RuntimeError):
                locked.delete()
        assert (storage.get(id), storage.page()) == (before, order)

    def test_a_taken_session_is_as_the_last_holder_left_it(self, storage: Storage, other: Storage, id: str) -> None:
        with storage.lock(id) as locked:
            assert locked.session.messages[1]["content"] == "two"
            locked.append(user("three"))
        with other.lock(id) as locked:
            assert locked.session == storage.get(id)
            locked.append(user("four"))
            assert locked.session == storage.get(id)
        with storage.lock(id) as locked:
            assert [message["content"] for message in locked.session.messages] == ["one", "two", "three", "four"]

    def test_what_a_turn_has_stored_so_far_can_be_read(self, storage: Storage, other: Storage, id: str) -> None:
        with storage.lock(id, turn=True) as locked:
            locked.append(user("three"))
            assert texts(other, id) == ["one", "two", "three"]
            assert other.summary(id).message_count == 3
            assert other.page() == ([id], None)

    def test_sessions_are_taken_one_by_one(self, storage: Storage, other: Storage, id: str) -> None:
        second = storage.create()
        with storage.lock(id, turn=True) as one, other.lock(second, turn=True) as two:
            one.append(user("to the first"))
            two.append(user("to the second"))
        assert (texts(storage, id)[-1], texts(storage, second)) == ("to the first", ["to the second"])

    def test_of_many_who_take_a_session_at_once_one_has_it(self, storage: Storage, other: Storage, id: str) -> None:
        def lock(number: int) -> Any:
            try:
                return (storage, other)[number % 2].lock(id, turn=True)
            except SessionBusy:
                return None

        for _ in range(10):
            [locked] = [locked for locked in at_once(8, lock) if locked]
            locked.release()

    def test_what_many_add_one_after_another_is_all_there(self, storage: Storage, other: Storage, id: str) -> None:
        def add(number: int) -> None:
            for round in range(5):
                with patiently((storage, other)[number % 2], id) as locked:
                    locked.append(user(f"{number}.{round} asks"))
                    locked.append(user(f"{number}.{round} is answered"))

        at_once(4, add)
        said = texts(storage, id)[2:]
        asked = [text.split()[0] for text in said if text.endswith("asks")]
        assert said == [f"{who} {what}" for who in asked for what in ("asks", "is answered")]
        assert sorted(asked) == [f"{number}.{round}" for number in range(4) for round in range(5)]

    # --- running ---

    def test_a_session_runs_while_it_is_taken_for_a_turn(self, storage: Storage, other: Storage, id: str) -> None:
        assert (storage.running(id), other.running(id)) == (False, False)
        with storage.lock(id, turn=True) as locked:
            assert (storage.running(id), other.running(id)) == (True, True)
            locked.append(user("three"))
            locked.configure(title="a")
            locked.append(user("four"))
            assert (storage.running(id), other.running(id)) == (True, True)
        assert (storage.running(id), other.running(id)) == (False, False)

    def test_a_session_that_is_taken_for_less_does_not_run(self, storage: Storage, other: Storage, id: str) -> None:
        with storage.lock(id) as locked:
            locked.configure(title="a")
            assert (storage.running(id), other.running(id)) == (False, False)

    def test_asking_costs_a_taker_nothing(self, storage: Storage, other: Storage, id: str) -> None:
        stop = threading.Event()

        def ask(handle: Storage) -> None:
            while not stop.is_set():
                handle.running(id)
                handle.page()
                handle.summary(id)
                handle.get(id)

        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(ask, handle) for handle in (storage, other, other)]
            try:
                for number in range(200):
                    locked = storage._lock(id, turn=bool(number % 2))
                    assert locked is not None, "somebody who only asked was in the way"
                    locked.release()
            finally:
                stop.set()
        for future in asking:
            future.result()

    def test_whoever_looks_sees_a_turn_run_from_its_beginning_to_its_end(
        self, storage: Storage, other: Storage, id: str
    ) -> None:
        with storage.lock(id, turn=True) as locked, ThreadPoolExecutor(1) as pool:
            stop = threading.Event()

            def look() -> Iterator[bool]:
                while not stop.is_set():
                    yield other.running(id)

            looks = pool.submit(lambda: all(look()))
            try:
                for number in range(60):
                    locked.configure(title=str(number))  # which may move the session to another place in the store
            finally:
                stop.set()
            assert looks.result(), "the turn seemed to have ended"

    # --- delete ---

    def test_a_deleted_session_is_gone(self, storage: Storage, other: Storage, id: str) -> None:
        kept = storage.create()
        with storage.lock(id) as locked:
            locked.delete()
        for handle in (storage, other):
            for ask in (handle.get, handle.summary, handle.running, handle.lock):
                with pytest.raises(SessionNotFound):
                    ask(id)
            assert handle.page() == ([kept], None)

    @pytest.mark.parametrize("look_first", [True, False])
    def test_nothing_brings_a_deleted_session_back(
        self, storage: Storage, other: Storage, id: str, look_first: bool
    ) -> None:
        with storage.lock(id) as locked:
            if look_first:
                assert locked.session.id == id
            locked.delete()
            with pytest.raises(RuntimeError):
                locked.append(user("three"))
            with pytest.raises(RuntimeError):
                locked.set_last_error("x")
            with pytest.raises(RuntimeError):
                locked.configure(title="x")
            with pytest.raises(RuntimeError):
                locked.delete()
        assert storage.page() == other.page() == ([], None)

    def test_who_waits_for_a_session_that_is_deleted_does_not_find_it(
        self, storage: Storage, other: Storage, id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        locked = storage.lock(id)
        when_refused(monkeypatch, other, locked.delete)
        with pytest.raises(SessionNotFound):
            other.lock(id)

    def test_of_many_who_delete_at_once_one_does_it(self, storage: Storage, other: Storage, id: str) -> None:
        def delete(number: int) -> bool:
            try:
                with patiently((storage, other)[number % 2], id) as locked:
                    locked.delete()
                return True
            except SessionNotFound:
                return False

        assert sum(at_once(6, delete)) == 1

    def test_deleting_among_takers_and_readers_ends_in_one_way(self, storage: Storage, other: Storage) -> None:
        for _ in range(5):
            id = storage.create()

            def act(number: int, id: str = id) -> None:
                try:
                    if number == 0:
                        with patiently(storage, id) as locked:
                            locked.delete()
                    elif number < 4:
                        with patiently(other, id) as locked:
                            locked.append(user("x"))
                            locked.configure(title="y")
                    else:
                        other.summary(id)
                        assert other.get(id).id == id
                except SessionNotFound:
                    pass

            at_once(6, act)
            assert storage.page() == other.page() == ([], None)

    def test_a_session_is_plain_json(self, storage: Storage, id: str) -> None:
        session = vars(storage.get(id))
        assert json.loads(json.dumps(session)) == session
