"""Pictures and files in Redis: each once for all sessions of a user that have it, and for as long as one has it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storage import Storage
from tests.support.files_conformance import keep
from tests.support.pictures import png, sha256
from tests.support.redis_server import NEEDED, RedisServer

pytestmark = NEEDED

ONE = png(1)
FILE, HOLDERS = (f"session_server:{kind}:{sha256(ONE)}" for kind in ("file", "holders"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), appendfsync="no") as server:
        yield server


@pytest.fixture
def storage(server: RedisServer) -> Storage:
    from session_core.stores.redis import RedisStorage

    server.call("FLUSHALL")
    return RedisStorage(server.url)


def ends(server: RedisServer) -> list[bool]:
    """Whether the bytes, and the list of who has them, go by themselves."""
    return [int(server.call("PTTL", key)) > 0 for key in (FILE, HOLDERS)]


def test_what_no_message_names_goes_by_itself(server: RedisServer, storage: Storage) -> None:
    storage.files.keep(storage.create(), {sha256(ONE): ONE})
    assert ends(server) == [True, True]


def test_what_a_message_names_stays(server: RedisServer, storage: Storage) -> None:
    keep(storage, storage.create(), ONE)
    assert ends(server) == [False, False]


def test_what_two_sessions_have_is_there_once(server: RedisServer, storage: Storage) -> None:
    keep(storage, id := storage.create(), ONE)
    keep(storage, storage.create(), ONE)
    storage.create(storage.get(id).messages, files=id)
    assert len(server.call("KEYS", "session_server:file:*")) == 1


def test_the_last_deletion_leaves_nothing(server: RedisServer, storage: Storage) -> None:
    keep(storage, first := storage.create(), ONE)
    keep(storage, second := storage.create(), ONE)
    for id in (first, second):
        with storage.lock(id) as session:
            session.delete()
    assert server.call("KEYS", "session_server:*:*") == []


def test_what_is_on_its_way_to_a_session_survives_the_deletion_of_another(
    server: RedisServer, storage: Storage
) -> None:
    keep(storage, first := storage.create(), ONE)
    storage.files.keep(second := storage.create(), {sha256(ONE): ONE})
    with storage.lock(first) as session:
        session.delete()
    assert ends(server) == [True, True]
    keep(storage, second, ONE)
    assert ends(server) == [False, False]
    assert storage.files.read(second, sha256(ONE)) == ONE


@pytest.mark.parametrize("text", [f'"sha256":"{sha256(ONE)}"', f'{{"sha256":"{sha256(ONE)}"}}'])
def test_words_in_a_message_hold_nothing(server: RedisServer, storage: Storage, text: str) -> None:
    storage.files.keep(id := storage.create(), {sha256(ONE): ONE})
    with storage.lock_for_turn(id) as session:
        session.append({"role": "user", "content": text})
    assert ends(server) == [True, True]
