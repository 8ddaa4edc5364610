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
import time
from typing import Any

import pytest

from session_core.data.words import parse_words
from storage import Session, SessionNotFound, Storage, Summary
from tests.support.files_conformance import FilesConformance
from tests.support.queue_conformance import QueueConformance
from tests.support.store_steps import say, texts, user

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


class StorageConformance(QueueConformance, FilesConformance):
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
            storage.lock_for_turn(bad)
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

    # --- what continues the last turn ---

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

    def test_a_continuation_may_come_with_messages(self, storage: Storage, other: Storage, id: str) -> None:
        say(storage, other.create(), "in between")
        whole: list[Any] = [{**user(f"line {n}\n"), "id": f"msg-{n}", "created_at": "t"} for n in range(3)]
        with storage.lock_for_turn(id) as locked:
            before = locked.session.messages.copy()
            locked.set_continues({"attempt": 2}, whole)
            whole[0]["content"] = "changed"
            for found in (locked.session, other.get(id)):
                assert [one["content"] for one in found.messages[len(before) :]] == [f"line {n}\n" for n in range(3)]
                assert found.continues == {"attempt": 2}
            locked.append({"role": "assistant", "content": "four"})
        assert [one["content"] for one in other.get(id).messages[-2:]] == ["line 2\n", "four"]
        assert storage.page()[0][0] == id
        assert storage.summary(id).message_count == len(before) + 4

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

    # --- contents, for searches ---

    def test_contents_are_those_of_the_list_and_hold_all_texts(
        self, storage: Storage, other: Storage, id: str
    ) -> None:
        others = [storage.create(title='A "title" é'), storage.create()]
        say(storage, id, "Grüße an „alle“", 'C:\\new "x"')
        assert [session_id for session_id, _ in other.contents()] == storage.page()[0] == [id, *others[::-1]]
        contents = dict(other.contents())
        for query, found in (("GRÜSSE alle“ one", id), ("c:\\new", id), ('title"', others[0])):
            words = parse_words(query)
            may = {session_id for session_id, content in contents.items() if content and words.may_stand_in(content)}
            assert may == {found}

    def test_contents_begin_behind_a_session_that_is_there(self, storage: Storage) -> None:
        ids = [storage.create() for _ in range(3)]
        assert [id for id, _ in storage.contents(ids[2])] == [ids[1], ids[0]]
        assert list(storage.contents(ids[0])) == []
        with pytest.raises(SessionNotFound):
            list(storage.contents("session-0"))

    def test_contents_go_on_while_sessions_go_and_change(self, storage: Storage, other: Storage) -> None:
        ids = [storage.create() for _ in range(3)]
        contents = other.contents()
        seen = [next(contents)[0]]
        with storage.lock(ids[1]) as locked:
            locked.delete()
        say(storage, ids[0], "Hi")
        seen += [id for id, _ in contents]
        assert set(seen) == set(ids) or set(seen) == {ids[0], ids[2]}

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
        with storage.lock_for_turn(id) as locked:
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

    def test_a_session_is_plain_json(self, storage: Storage, id: str) -> None:
        session = vars(storage.get(id))
        assert json.loads(json.dumps(session)) == session
