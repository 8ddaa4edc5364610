"""What the queue of a session promises, in every back end of `storage.Storage`."""

from __future__ import annotations

import pytest

from session_core.data.message_queue import MAX_QUEUED, NotQueued, QueuedMessage, QueueFull
from storage import SessionNotFound, Storage
from tests.support.lock_conformance import LockConformance
from tests.support.store_steps import at_once, texts, user


def queued(text: str) -> QueuedMessage:
    return {"id": f"msg-{text}", "content": text, "created_at": "2026-01-31T12:34:56Z", "asked": {"model": "other"}}


def waiting(storage: Storage, id: str) -> list[object]:
    return [message["content"] for message in storage.queue(id).read()]


class QueueConformance(LockConformance):
    def test_messages_wait_in_order_whoever_has_locked_the_session(
        self, storage: Storage, other: Storage, id: str
    ) -> None:
        with storage.lock_for_turn(id):
            assert [storage.queue(id).add(queued("a")), other.queue(id).add(queued("b"))] == [1, 2]
            assert other.queue(id).add(queued("now"), first=True) == 1
        assert storage.queue(id).read() == other.queue(id).read() == [queued(text) for text in ("now", "a", "b")]

    def test_one_that_waits_already_keeps_its_place(self, storage: Storage, id: str) -> None:
        assert [storage.queue(id).add(queued(text)) for text in ("a", "b", "a")] == [1, 2, 1]
        assert storage.queue(id).add(queued("b"), first=True) == 2
        assert waiting(storage, id) == ["a", "b"]

    def test_of_many_that_come_at_once_as_many_wait_as_may(self, storage: Storage, other: Storage, id: str) -> None:
        def add(number: int) -> int:
            try:
                return (storage, other)[number % 2].queue(id).add(queued(str(number)))
            except QueueFull:
                return 0

        places = at_once(MAX_QUEUED + 4, add)
        assert sorted(places) == [0, 0, 0, 0, *range(1, MAX_QUEUED + 1)]
        assert [f"{places.index(place)}" for place in range(1, MAX_QUEUED + 1)] == waiting(other, id)

    def test_a_message_is_taken_out_once(self, storage: Storage, other: Storage, id: str) -> None:
        storage.queue(id).add(queued("a"))
        assert [storage.queue(id).remove("msg-a"), other.queue(id).remove("msg-a")] == [True, False]
        assert waiting(other, id) == []

    def test_a_message_leaves_the_queue_in_the_write_that_stores_it(
        self, storage: Storage, other: Storage, id: str
    ) -> None:
        storage.queue(id).add(queued("a"))
        storage.queue(id).add(queued("b"))
        with storage.lock(id) as locked:
            assert locked.append(user("b"), "msg-b", queued=True)["id"] == "msg-b"
            assert (waiting(other, id), texts(other, id)) == (["a"], ["one", "two", "b"])

    def test_what_waits_no_more_is_not_stored(self, storage: Storage, other: Storage, id: str) -> None:
        storage.queue(id).add(queued("a"))
        with storage.lock(id) as locked:
            other.queue(id).remove("msg-a")
            with pytest.raises(NotQueued):
                locked.append(user("a"), "msg-a", queued=True)
            locked.append(user("three"))
        assert texts(other, id) == ["one", "two", "three"]

    def test_a_deleted_session_has_no_queue(self, storage: Storage, other: Storage, id: str) -> None:
        queue = storage.queue(id)
        queue.add(queued("a"))
        with storage.lock(id) as locked:
            locked.delete()
        with pytest.raises(SessionNotFound):
            storage.queue(id).read()
        with pytest.raises(SessionNotFound):
            queue.add(queued("b"))
        storage.ensure(id)
        assert waiting(storage, id) == waiting(other, id) == []

    def test_what_outlives_the_process_is_found(self, storage: Storage, id: str) -> None:
        storage.queue(id).add(queued("a"))
        assert set(storage.with_queue()) <= {id}
        storage.queue(id).remove("msg-a")
        assert list(storage.with_queue()) == []
