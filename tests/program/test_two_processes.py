"""Two server processes on one directory, or one Redis: one turn at a time in a session, and the truth about one
another. What is possible with Redis only is in `test_redis_turns.py`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.support.model_server import ModelServer, answer, wait
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.server import Reply, Server, wait_until

T = TypeVar("T")


@dataclass
class Pair:
    """Two servers on one directory or one Redis, and a model that answers the message `wait` when `go` is set."""

    here: Server
    there: Server
    directory: Path
    go: threading.Event = field(default_factory=threading.Event)

    def reply(self, request: dict[str, Any]) -> Any:
        text = request["messages"][-1]["content"]
        return answer("Hel", wait(self.go), "lo")(request) if text == "wait" else answer(f"Re: {text}")(request)

    def run(self, server: Server, session_id: str, message: str, **headers: str) -> Reply:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return server.request("POST", f"/sessions/{session_id}/run", {"message": message}, sent)

    def at_once(self, *calls: Callable[[], T]) -> list[T]:
        """What the calls give when they are made at the same moment."""
        start = threading.Barrier(len(calls))

        def call(one: Callable[[], T]) -> T:
            start.wait()
            return one()

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(call, calls))


@pytest.fixture(scope="module", params=["files", pytest.param("redis", marks=NEEDED)])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    path = tmp_path_factory.mktemp("pair")
    with ModelServer() as model, ExitStack() as stack:
        kept = f"-session_dir={path / 'sessions'}"
        if request.param == "redis":
            kept = f"-redis_url={stack.enter_context(RedisServer(path)).url}"
        flags = (f"-base_url={model.base_url}", kept)
        with Server(*flags, log=path / "here.log") as here, Server(*flags, log=path / "there.log") as there:
            pair = Pair(here, there, path / "sessions")
            model.default = pair.reply
            yield pair


files_only = pytest.mark.parametrize("both", ["files"], indirect=True)


@pytest.fixture
def pair(both: Pair) -> Iterator[Pair]:
    both.go.clear()
    yield both
    both.go.set()


@pytest.fixture
def running(pair: Pair) -> Iterator[str]:
    """A session in which a turn runs here."""
    session_id = pair.here.create()
    stream = pair.here.say(session_id, "wait")
    events = stream.events()
    assert [next(events)["type"] for _ in range(2)] == ["stream_start", "stream_chunk"]
    yield session_id
    pair.go.set()
    assert list(events)[-1]["data"]["complete_text"] == "Hello"  # whatever the other process was asked to do


# --- turns ---


def test_of_two_turns_at_once_exactly_one_runs(pair: Pair) -> None:
    for _ in range(10):
        pair.go.clear()
        session_id = pair.here.create()
        replies = pair.at_once(*[partial(server.say, session_id, "wait") for server in (pair.here, pair.there)])
        pair.go.set()
        assert sorted(reply.status for reply in replies) == [200, 409]
        refused = next(reply for reply in replies if reply.status == 409)
        assert (refused.json["code"], refused.headers["Retry-After"]) == ("session_busy", "1")
        locked = next(reply for reply in replies if reply.status == 200)
        assert list(locked.events())[-1]["type"] == "stream_end"
        assert [message["content"] for message in pair.there.messages(session_id)] == ["wait", "Hello"]


def test_turns_from_both_sides_neither_mix_nor_get_lost(pair: Pair) -> None:
    session_id = pair.here.create()
    statuses: Counter[int] = Counter()

    def insist(server: Server, name: str) -> None:
        for number in range(8):
            wait_until(partial(runs, server, f"{name} {number}"))

    def runs(server: Server, text: str) -> bool:
        status = pair.run(server, session_id, text).status
        statuses[status] += 1
        return status == 200

    pair.at_once(*[partial(insist, server, name) for server, name in sides(pair)])
    texts = [message["content"] for message in pair.here.messages(session_id)]
    assert set(statuses) <= {200, 409}
    assert texts[1::2] == [f"Re: {text}" for text in texts[::2]]
    for _, name in sides(pair):
        assert [text for text in texts[::2] if text.startswith(name)] == [f"{name} {number}" for number in range(8)]
    assert pair.here.messages(session_id) == pair.there.messages(session_id)


def sides(pair: Pair) -> list[tuple[Server, str]]:
    return [(pair.here, "a"), (pair.there, "b"), (pair.here, "c"), (pair.there, "d")]


def test_a_session_made_here_can_be_used_there_at_once(pair: Pair) -> None:
    for _ in range(5):
        assert pair.run(pair.there, pair.here.create(), "Hi").json["message"]["content"] == "Re: Hi"


def test_a_key_used_there_is_replayed_here(pair: Pair) -> None:
    session_id = pair.here.create()
    first = pair.run(pair.there, session_id, "Hi", Idempotency_Key="k")
    again = pair.run(pair.here, session_id, "Hi", Idempotency_Key="k")
    assert again.json == first.json
    assert again.headers["Idempotency-Replayed"] == "true"


@files_only
def test_a_key_that_is_in_use_there_is_busy_here(pair: Pair, running: str) -> None:
    assert pair.run(pair.there, running, "wait", Idempotency_Key="k").status == 409


# --- a turn that runs in the other process ---


def test_the_other_process_says_that_the_session_runs_and_when_no_more(pair: Pair) -> None:
    session_id = pair.here.create()
    stream = pair.here.say(session_id, "wait")
    next(stream.events())
    during = seen_running(pair.there, session_id)
    pair.go.set()
    list(stream.events())
    assert (during, seen_running(pair.there, session_id)) == ([True, True], [False, False])


def seen_running(server: Server, session_id: str) -> list[bool]:
    listed = server.request("GET", "/sessions?details=true").json["sessions"]
    return [
        server.request("GET", f"/sessions/{session_id}").json["running"],
        next(one["running"] for one in listed if one["id"] == session_id),
    ]


def test_what_is_stored_so_far_can_be_read_there(pair: Pair, running: str) -> None:
    assert [message["content"] for message in pair.there.messages(running)] == ["wait"]


@files_only
@pytest.mark.parametrize(
    "method, path, body",
    [
        ("POST", "/run", {"message": "Hi"}),
        ("POST", "/run_stream", {"message": "Hi"}),
        ("GET", "/run_stream", None),
        ("POST", "/cancel", None),
        ("PATCH", "", {"title": "New"}),
        ("DELETE", "", None),
    ],
)
def test_it_cannot_be_joined_watched_cancelled_renamed_or_deleted(
    pair: Pair, running: str, method: str, path: str, body: object
) -> None:
    reply = pair.there.request(method, f"/sessions/{running}{path}", body)
    assert (reply.status, reply.json["code"], reply.headers["Retry-After"]) == (409, "session_busy", "1")
    assert pair.here.request("GET", f"/sessions/{running}").json["running"] is True


@files_only
def test_where_nothing_runs_there_is_nothing_to_watch_or_cancel_there(pair: Pair) -> None:
    session_id = pair.here.create()
    assert pair.run(pair.here, session_id, "Hi").status == 200
    assert pair.there.request("GET", f"/sessions/{session_id}/run_stream").status == 204
    assert pair.there.request("POST", f"/sessions/{session_id}/cancel").json == {"cancelled": False}


@files_only
def test_the_events_of_a_turn_are_gone_when_the_next_one_has_begun_there(pair: Pair) -> None:
    session_id = pair.here.create()
    events = list(pair.here.say(session_id, "Hi").events())
    assert list(pair.here.request("GET", f"/sessions/{session_id}/run_stream").events()) == events
    assert pair.run(pair.there, session_id, "Hi again").status == 200
    assert pair.here.request("GET", f"/sessions/{session_id}/run_stream").status == 204
    gone = pair.here.request("GET", f"/sessions/{session_id}/run_stream?after={events[0]['id']}")
    assert (gone.status, gone.json["code"]) == (410, "event_gone")


# --- deletions and titles ---


def test_of_two_deletions_at_once_one_is_told_that_it_was_the_one(pair: Pair) -> None:
    for _ in range(10):
        session_id = pair.here.create()
        replies = pair.at_once(
            *[partial(server.request, "DELETE", f"/sessions/{session_id}") for server in (pair.here, pair.there)]
        )
        assert sorted(reply.status for reply in replies) == [200, 404]
        assert not (pair.directory / f"{session_id}.json").exists()


def test_a_deletion_and_a_turn_at_once_are_one_after_the_other(pair: Pair) -> None:
    for _ in range(15):
        session_id = pair.here.create()
        run, delete = pair.at_once(
            partial(pair.run, pair.here, session_id, "Hi"),
            partial(pair.there.request, "DELETE", f"/sessions/{session_id}"),
        )
        assert (run.status, delete.status) in [(200, 200), (200, 409), (404, 200), (409, 200)]
        there = 200 if delete.status == 409 else 404
        assert [server.request("GET", f"/sessions/{session_id}").status for server in (pair.here, pair.there)] == [
            there,
            there,
        ]


def test_a_session_deleted_there_is_gone_here_with_the_events_of_its_last_turn(pair: Pair) -> None:
    session_id = pair.here.create()
    assert pair.run(pair.here, session_id, "Hi").status == 200
    assert pair.there.request("DELETE", f"/sessions/{session_id}").status == 200
    assert pair.here.request("GET", f"/sessions/{session_id}/run_stream").status == 404
    assert pair.run(pair.here, session_id, "Hi").status == 404
    assert session_id not in pair.here.request("GET", "/sessions").json["sessions"]


# --- looking at sessions disturbs nobody ---


@pytest.fixture
def meanwhile() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Does something again and again, on a thread of its own, until the test is over."""
    over = threading.Event()
    threads: list[threading.Thread] = []

    def start(do: Callable[[], object]) -> None:
        def repeat() -> None:
            while not over.is_set():
                do()

        threads.append(threading.Thread(target=repeat))
        threads[-1].start()

    yield start
    over.set()
    for thread in threads:
        thread.join()


def test_looking_at_sessions_there_never_costs_a_turn_here(
    pair: Pair, meanwhile: Callable[[Callable[[], object]], None]
) -> None:
    session_id = pair.here.create()
    meanwhile(lambda: pair.there.request("GET", "/sessions?details=true"))
    meanwhile(lambda: pair.there.request("GET", f"/sessions/{session_id}"))
    statuses = [pair.run(pair.here, session_id, f"Hi {number}").status for number in range(40)]
    assert statuses == [200] * 40


def test_a_new_title_there_never_costs_a_turn_here_and_neither_is_lost(
    pair: Pair, meanwhile: Callable[[Callable[[], object]], None]
) -> None:
    session_id = pair.here.create()
    renamed: list[int] = []

    def rename() -> None:
        reply = pair.there.request("PATCH", f"/sessions/{session_id}", {"title": f"Title {len(renamed)}"})
        renamed.append(reply.status)

    meanwhile(rename)
    statuses = [pair.run(pair.here, session_id, f"Hi {number}").status for number in range(40)]
    assert statuses == [200] * 40
    assert set(renamed) <= {200, 409}
    assert len(pair.there.messages(session_id)) == 80
