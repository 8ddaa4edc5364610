"""What every back end of `storage.Storage` promises of pictures and files, as tests."""

from __future__ import annotations

from typing import Any

from session_core.data.message import MessageFields
from storage import Storage
from tests.support.pictures import png, sha256, stored

ONE, TWO = png(1), png(2)


def naming(*pictures: bytes) -> MessageFields:
    """A question that names these pictures."""
    content: Any = [stored(data) for data in pictures]
    return {"role": "user", "content": content}


def keep(storage: Storage, id: str, *pictures: bytes) -> None:
    """Keeps these pictures, and then stores a message that names them."""
    storage.files.keep(id, {sha256(data): data for data in pictures})
    with storage.lock_for_turn(id) as locked:
        locked.append(naming(*pictures))


class FilesConformance:
    def test_what_is_kept_is_read_everywhere(self, storage: Storage, other: Storage, id: str) -> None:
        keep(storage, id, ONE, TWO)
        assert [store.files.read(id, sha256(ONE)) for store in (storage, other)] == [ONE, ONE]
        assert other.files.read(id, sha256(TWO)) == TWO

    def test_a_file_can_be_read_before_a_message_names_it(self, storage: Storage, other: Storage, id: str) -> None:
        storage.files.keep(id, {sha256(ONE): ONE})
        assert other.files.read(id, sha256(ONE)) == ONE

    def test_what_was_never_kept_is_none(self, storage: Storage, id: str) -> None:
        assert storage.files.read(id, sha256(ONE)) is None
        keep(storage, id, TWO)
        assert storage.files.read(id, sha256(ONE)) is None

    def test_the_same_file_may_be_kept_again(self, storage: Storage, other: Storage, id: str) -> None:
        keep(storage, id, ONE)
        keep(other, id, ONE)
        assert storage.files.read(id, sha256(ONE)) == ONE

    def test_sessions_are_apart(self, storage: Storage, id: str) -> None:
        keep(storage, storage.create(), ONE)
        assert storage.files.read(id, sha256(ONE)) is None

    def test_files_go_with_their_session_alone(self, storage: Storage, other: Storage, id: str) -> None:
        neighbour = storage.create()
        keep(storage, id, ONE, TWO)
        keep(storage, neighbour, ONE)
        with other.lock(id) as locked:
            locked.delete()
        assert storage.files.read(id, sha256(ONE)) is storage.files.read(id, sha256(TWO)) is None
        assert storage.files.read(neighbour, sha256(ONE)) == ONE

    def test_a_session_is_created_with_files(self, storage: Storage, other: Storage) -> None:
        message: Any = {**naming(ONE), "id": "msg-1", "created_at": "2026-01-31T12:34:56Z"}
        id = storage.create([message], files={sha256(ONE): ONE})
        assert other.files.read(id, sha256(ONE)) == ONE

    def test_a_copy_shares_what_it_names(self, storage: Storage, other: Storage, id: str) -> None:
        keep(storage, id, ONE, TWO)
        message: Any = {**naming(ONE), "id": "msg-1", "created_at": "2026-01-31T12:34:56Z"}
        copy = other.create([message], files=id)
        with storage.lock(id) as locked:
            locked.delete()
        assert storage.files.read(copy, sha256(ONE)) == ONE
        assert storage.files.read(copy, sha256(TWO)) is None

    def test_a_copy_leaves_out_what_is_missing(self, storage: Storage, id: str) -> None:
        message: Any = {**naming(ONE), "id": "msg-1", "created_at": "2026-01-31T12:34:56Z"}
        copy = storage.create([message], files=id)
        assert storage.files.read(copy, sha256(ONE)) is None

    def test_users_are_apart(self, storage: Storage) -> None:
        first, second = storage.for_user("ann"), storage.for_user("bob")
        id = first.create()
        keep(first, id, ONE)
        assert second.files.read(id, sha256(ONE)) is storage.files.read(id, sha256(ONE)) is None

    def test_a_session_with_files_that_is_made_again_is_empty(self, storage: Storage, id: str) -> None:
        keep(storage, id, ONE)
        with storage.lock(id) as locked:
            locked.delete()
        storage.ensure(id)
        assert storage.files.read(id, sha256(ONE)) is None
