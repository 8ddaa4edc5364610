"""Two server processes on one Redis: a turn can be watched, joined, cancelled and deleted from both."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.model_server import STALL, ModelServer, answer, tool_call, wait
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.server import Reply, Server, wait_until

pytestmark = NEEDED


@dataclass
class Pair:
    """Two servers, one Redis, and a model that answers the message `wait` when `go` is set."""

    here: Server
    there: Server
    redis: RedisServer
    model: ModelServer
    start: Callable[[], Server]
    go: threading.Event = field(default_factory=threading.Event)

    def reply(self, request: dict[str, Any]) -> Any:
        text = request["messages"][-1]["content"]
        replies = {
            "wait": answer("Hel", wait(self.go), "lo"),
            "stall": answer("Hel", STALL),
            "silent": answer(STALL),
            "tool": tool_call("calculator", {"expression": "6*7"}, text="Let me see. "),
            "42": answer("It is ", wait(self.go), "42."),
            "many": answer(*(f"{number} " for number in range(1000))),
        }
        return replies.get(text, answer(f"Re: {text}"))(request)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    path = tmp_path_factory.mktemp("pair")
    with ModelServer() as model, RedisServer(path) as redis:
        flags = (f"-base_url={model.base_url}", f"-redis_url={redis.url}", "-keep_alive=0.5")

        def start() -> Server:
            return Server(*flags, log=path / "log")

        with start() as here, start() as there:
            pair = Pair(here, there, redis, model, start)
            model.default = pair.reply
            yield pair


@pytest.fixture
def pair(both: Pair) -> Iterator[Pair]:
    both.go.clear()
    yield both
    both.go.set()


@dataclass
class Begun:
    """A turn that runs `here`: its session, its stream, and the events that have come."""

    id: str
    events: Iterator[dict[str, Any]]
    first: list[dict[str, Any]]

    def rest(self) -> list[dict[str, Any]]:
        return list(self.events)


def begin(server: Server, text: str, count: int = 2, session_id: str | None = None, **headers: str) -> Begun:
    session_id = session_id or server.create()
    events = server.say(session_id, text, **headers).events()
    return Begun(session_id, events, [next(events) for _ in range(count)])


def watch(server: Server, session_id: str, after: str = "") -> Reply:
    headers = {"Last-Event-ID": after} if after else {}
    return server.request("GET", f"/sessions/{session_id}/run_stream", headers=headers)


def cancel(server: Server, session_id: str) -> Any:
    return server.request("POST", f"/sessions/{session_id}/cancel").json


# --- watching ---


def test_a_watcher_there_sees_the_same_events_as_here(pair: Pair) -> None:
    turn = begin(pair.here, "wait")
    watching = watch(pair.there, turn.id).events()
    seen = [next(watching), next(watching)]
    assert seen == turn.first
    pair.go.set()
    assert list(watching) == turn.rest()


def test_tool_calls_and_their_results_are_seen_there(pair: Pair) -> None:
    turn = begin(pair.here, "tool", 4)
    watching = watch(pair.there, turn.id).events()
    assert [next(watching) for _ in turn.first] == turn.first
    assert [event["type"] for event in turn.first][2:] == ["stream_tool_call", "stream_tool_result"]
    pair.go.set()
    assert list(watching) == turn.rest()


def test_a_stream_that_broke_off_here_goes_on_there_behind_the_last_event(pair: Pair) -> None:
    turn = begin(pair.here, "wait")
    resumed = watch(pair.there, turn.id, turn.first[-1]["id"])
    pair.go.set()
    assert list(resumed.events()) == turn.rest()


def test_an_ended_turn_can_still_be_had_there(pair: Pair) -> None:
    turn = begin(pair.here, "Hi")
    events = turn.first + turn.rest()
    assert list(watch(pair.there, turn.id).events()) == events
    assert list(watch(pair.there, turn.id, events[0]["id"]).events()) == events[1:]
    assert watch(pair.there, turn.id, events[-1]["id"]).status == 204


def test_an_event_that_never_was_is_gone_there(pair: Pair) -> None:
    turn = begin(pair.here, "Hi")
    last = turn.rest()[-1]
    assert watch(pair.there, turn.id, f"{last['id']}0").status == 410
    assert watch(pair.there, turn.id, "evt-0-1").status == 410


def test_the_newest_turn_is_watched_wherever_it_ran(pair: Pair) -> None:
    turn = begin(pair.here, "one")
    turn.rest()
    second = begin(pair.there, "two", session_id=turn.id)
    events = second.first + second.rest()
    for server in (pair.here, pair.there):
        assert list(watch(server, turn.id).events()) == events
        assert watch(server, turn.id, turn.first[0]["id"]).status == 410


def test_when_the_last_event_is_seen_there_the_session_is_free(pair: Pair) -> None:
    for _ in range(10):
        session_id = pair.here.create()
        pair.go.clear()
        begin(pair.here, "wait", session_id=session_id)
        watching = watch(pair.there, session_id).events()
        pair.go.set()
        assert list(watching)[-1]["type"] == "stream_end"
        assert pair.there.request("POST", f"/sessions/{session_id}/run", {"message": "Hi"}).status == 200


def test_comments_are_sent_there_while_the_model_is_silent(pair: Pair) -> None:
    turn = begin(pair.here, "silent", 1)
    assert ": keep-alive" in watch(pair.there, turn.id).lines()
    assert cancel(pair.here, turn.id) == {"cancelled": True}


def test_both_say_that_the_session_runs(pair: Pair) -> None:
    turn = begin(pair.here, "wait")
    path = f"/sessions/{turn.id}"
    assert [server.request("GET", path).json["running"] for server in (pair.here, pair.there)] == [True, True]
    pair.go.set()
    turn.rest()
    assert [server.request("GET", path).json["running"] for server in (pair.here, pair.there)] == [False, False]


def test_a_second_turn_and_a_new_title_are_refused_there(pair: Pair) -> None:
    turn = begin(pair.here, "wait")
    path = f"/sessions/{turn.id}"
    assert pair.there.request("POST", f"{path}/run", {"message": "Hi"}).status == 409
    assert pair.there.request("PATCH", path, {"title": "New"}).status == 409


# --- cancelling and deleting ---


@pytest.mark.parametrize("text, count, kept", [("stall", 2, "Hel"), ("silent", 1, "")])
def test_a_turn_is_cancelled_from_there(pair: Pair, text: str, count: int, kept: str) -> None:
    turn = begin(pair.here, text, count)
    assert cancel(pair.there, turn.id) == {"cancelled": True}
    assert cancel(pair.there, turn.id) == {"cancelled": False}
    last = turn.rest()[-1]
    assert (last["type"], last["data"]["status"]) == ("stream_end", "cancelled")
    assert [(m["content"], m.get("status")) for m in pair.there.messages(turn.id)] == [
        (text, None),
        (kept, "cancelled"),
    ]


def test_a_running_turn_is_deleted_from_there(pair: Pair) -> None:
    turn = begin(pair.here, "stall")
    assert pair.there.request("DELETE", f"/sessions/{turn.id}").status == 200
    assert turn.rest()[-1]["data"]["status"] == "cancelled"
    assert [server.request("GET", f"/sessions/{turn.id}").status for server in (pair.here, pair.there)] == [404, 404]
    assert pair.here.request("GET", f"/sessions/{turn.id}/run_stream").status == 404


# --- retries ---


def test_a_key_that_is_in_use_here_is_joined_there(pair: Pair) -> None:
    turn = begin(pair.here, "wait", Idempotency_Key="k")
    joined = begin(pair.there, "wait", session_id=turn.id, Idempotency_Key="k")
    with ThreadPoolExecutor(1) as pool:
        path, headers = f"/sessions/{turn.id}/run", {"Idempotency-Key": "k"}
        whole = pool.submit(pair.there.request, "POST", path, {"message": "wait"}, headers)
        assert joined.first == turn.first
        pair.go.set()
        assert joined.rest() == turn.rest()
        assert whole.result().json["message"]["content"] == "Hello"
    assert [message["content"] for message in pair.there.messages(turn.id)] == ["wait", "Hello"]


def test_requests_of_one_key_at_once_on_both_are_one_turn(pair: Pair) -> None:
    for _ in range(5):
        session_id = pair.here.create()
        asked = len(pair.model.requests)

        def run(server: Server, session_id: str = session_id) -> Reply:
            path, headers = f"/sessions/{session_id}/run", {"Idempotency-Key": "k"}
            return server.request("POST", path, {"message": "Hi"}, headers)

        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(run, [pair.here, pair.there] * 2))
        assert [reply.status for reply in replies] == [200] * 4, [reply.text for reply in replies]
        assert len({reply.json["message"]["id"] for reply in replies}) == 1
        assert len(pair.model.requests) == asked + 1


def test_a_key_of_another_message_is_refused_there(pair: Pair) -> None:
    turn = begin(pair.here, "wait", Idempotency_Key="k")
    assert pair.there.say(turn.id, "other", Idempotency_Key="k").status == 422


def test_a_key_used_here_is_replayed_there(pair: Pair) -> None:
    turn = begin(pair.here, "Hi", Idempotency_Key="k")
    events = turn.first + turn.rest()
    again = pair.there.say(turn.id, "Hi", Idempotency_Key="k")
    assert again.headers["Idempotency-Replayed"] == "true"
    assert list(again.events()) == events


# --- what a turn costs ---


def test_a_turn_of_1000_chunks_costs_a_few_round_trips(pair: Pair) -> None:
    session_id = pair.here.create()
    before = pair.redis.calls()
    events = list(pair.here.say(session_id, "many").events())
    wait_until(lambda: watch(pair.there, session_id, events[-1]["id"]).status == 204)
    assert len(events) == 1002
    assert pair.redis.calls() - before < 60
    assert list(watch(pair.there, session_id).events()) == events


# --- servers that die, and slow ones ---


@dataclass
class Failing:
    """What is left of a server that was killed, and one that stood still for longer than its leases last: both while
    turns ran on them, of which `taken` has been followed by another on another server meanwhile."""

    killed: Begun
    watching: list[Iterator[dict[str, Any]]]  # of `killed`, from the other servers
    slow: Server
    locked: Begun
    kept: Begun
    meanwhile: list[dict[str, Any]]  # the messages of `taken`, before the slow server went on


@pytest.fixture(scope="module")
def failing(both: Pair) -> Iterator[Failing]:
    both.go.clear()
    with both.start() as dying, both.start() as slow:
        killed = begin(dying, "stall", Idempotency_Key="k")
        locked, kept = begin(slow, "wait"), begin(slow, "wait")
        seen = watch(both.there, locked.id).events()
        assert [next(seen), next(seen)] == locked.first  # so that Redis has them when the server stands still
        watching = [watch(server, killed.id).events() for server in (both.here, both.there, both.there)]
        assert [[next(events), next(events)] for events in watching] == [killed.first] * 3
        dying.kill()
        slow.send_signal(signal.SIGSTOP)
        path = f"/sessions/{locked.id}/run"
        wait_until(lambda: both.there.request("POST", path, {"message": "Hi"}).status == 200)
        wait_until(lambda: not both.there.request("GET", f"/sessions/{kept.id}").json["running"])
        meanwhile = both.there.messages(locked.id)
        slow.send_signal(signal.SIGCONT)
        yield Failing(killed, watching, slow, locked, kept, meanwhile)


def test_a_slow_server_overwrites_nothing_and_keeps_what_nobody_has_taken(failing: Failing, pair: Pair) -> None:
    last = failing.locked.rest()[-1]
    assert (last["type"], last["data"]["code"]) == ("error", "internal_error")
    assert [message["content"] for message in failing.meanwhile] == ["wait", "Hel", "Hi", "Re: Hi"]
    wait_until(lambda: pair.there.request("GET", f"/sessions/{failing.kept.id}").json["running"])
    pair.go.set()
    assert failing.kept.rest()[-1]["data"]["complete_text"] == "Hello"
    assert [message["content"] for message in pair.there.messages(failing.kept.id)] == ["wait", "Hello"]
    assert pair.there.messages(failing.locked.id) == failing.meanwhile
    path = f"/sessions/{failing.locked.id}/run"
    assert failing.slow.request("POST", path, {"message": "Bye"}).json["message"]["content"] == "Re: Bye"


def test_of_a_server_that_is_killed_in_mid_turn_the_others_take_over(failing: Failing, pair: Pair) -> None:
    turn = failing.killed
    # one who had seen more than was told gets no event twice, and the end
    beyond = watch(pair.here, turn.id, turn.first[-1]["id"].rpartition("-")[0] + "-7").events()
    ends = [list(events) for events in [*failing.watching, beyond]]
    interrupted = {"error": "The turn was interrupted.", "code": "internal_error", "status": 500}
    kept = pair.there.messages(turn.id)[1]
    assert (kept["content"], kept["reason"]) == ("Hel", "interrupted")
    assert [end["data"] for [end] in ends] == [{**interrupted, "message_id": kept["id"]}] * 4
    assert len({end["id"] for [end] in ends}) == 1
    assert watch(pair.there, turn.id, ends[0][0]["id"]).status == 204
    # and the session goes on at once, on any server
    pair.model.then(answer("Good morning."))
    again = begin(pair.there, "stall", session_id=turn.id, Idempotency_Key="k")
    assert again.rest()[-1]["data"]["complete_text"] == "Good morning."
    assert [m["content"] for m in pair.here.messages(turn.id)] == ["stall", "Hel", "Good morning."]


def test_the_end_of_a_turn_at_shutdown_is_told_there(pair: Pair) -> None:
    with pair.start() as third:
        turn = begin(third, "stall")
        watching = watch(pair.there, turn.id).events()
        assert [next(watching), next(watching)] == turn.first
        third.send_signal(signal.SIGTERM)
        assert cancel(pair.there, turn.id) == {"cancelled": True}
        assert list(watching) == turn.rest()
        assert third.wait() == 0


def test_a_server_that_shuts_down_follows_no_other_turns(pair: Pair) -> None:
    turn = begin(pair.here, "wait", Idempotency_Key="k")
    with pair.start() as third:
        own = begin(third, "stall")
        third.send_signal(signal.SIGTERM)
        wait_until(lambda: third.request("GET", "/ready").status == 503)
        for refused in (third.say(turn.id, "wait", Idempotency_Key="k"), watch(third, turn.id)):
            assert (refused.status, refused.json["code"]) == (503, "shutting_down")
        assert cancel(pair.there, own.id) == {"cancelled": True}
        assert third.wait() == 0
    pair.go.set()
    assert turn.rest()[-1]["type"] == "stream_end"


def test_a_server_that_shuts_down_lets_go_of_turns_that_run_elsewhere(pair: Pair) -> None:
    turn = begin(pair.here, "wait")
    with pair.start() as third:
        watching = watch(third, turn.id).events()
        assert [next(watching), next(watching)] == turn.first
        third.send_signal(signal.SIGTERM)
        assert list(watching) == []
        assert third.wait() == 0
    resumed = watch(pair.there, turn.id, turn.first[-1]["id"])
    pair.go.set()
    assert list(resumed.events()) == turn.rest()
