"""What every back end of `storage.Storage` promises of locks and deletions, as tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from storage import SessionBusy, SessionNotFound, Storage
from tests.support.store_steps import at_once, patiently, say, texts, user, when_refused


class LockConformance:
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

    # --- take and release ---

    def test_a_session_taken_for_a_turn_is_refused_at_once(self, storage: Storage, other: Storage, id: str) -> None:
        with storage.lock_for_turn(id):
            began = time.monotonic()
            for handle in (storage, other):
                for lock in (handle.lock_for_turn, handle.lock):
                    with pytest.raises(SessionBusy):
                        lock(id)
            assert time.monotonic() - began < 3.5  # four refusals, none of them after the second that others wait

    def test_who_holds_a_session_briefly_is_waited_for(
        self, storage: Storage, other: Storage, id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        locked = storage.lock(id)
        when_refused(monkeypatch, other, locked.release)
        with other.lock_for_turn(id) as mine:
            mine.append(user("three"))
        assert texts(storage, id) == ["one", "two", "three"]

    def test_who_holds_a_session_for_long_is_not_waited_for(self, storage: Storage, other: Storage, id: str) -> None:
        with storage.lock(id), pytest.raises(SessionBusy):
            other.lock(id)

    def test_a_released_session_can_be_taken_again(self, storage: Storage, other: Storage, id: str) -> None:
        for handle in (storage, other, storage):
            handle.lock_for_turn(id).release()
        with pytest.raises(ZeroDivisionError), storage.lock_for_turn(id):
            raise ZeroDivisionError
        other.lock_for_turn(id).release()

    def test_releasing_again_takes_nothing_from_the_next_holder(self, storage: Storage, id: str) -> None:
        first = storage.lock_for_turn(id)
        first.release()
        with storage.lock_for_turn(id):
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
        with storage.lock_for_turn(id) as locked:
            locked.append(user("three"))
            assert texts(other, id) == ["one", "two", "three"]
            assert other.summary(id).message_count == 3
            assert other.page() == ([id], None)

    def test_sessions_are_taken_one_by_one(self, storage: Storage, other: Storage, id: str) -> None:
        second = storage.create()
        with storage.lock_for_turn(id) as one, other.lock_for_turn(second) as two:
            one.append(user("to the first"))
            two.append(user("to the second"))
        assert (texts(storage, id)[-1], texts(storage, second)) == ("to the first", ["to the second"])

    def test_of_many_who_take_a_session_at_once_one_has_it(self, storage: Storage, other: Storage, id: str) -> None:
        def lock(number: int) -> Any:
            try:
                return (storage, other)[number % 2].lock_for_turn(id)
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
        with storage.lock_for_turn(id) as locked:
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
        with storage.lock_for_turn(id) as locked, ThreadPoolExecutor(1) as pool:
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
