"""Two server processes on one Redis: a turn can be watched, joined, cancelled and deleted from both."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
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
    start: Callable[..., Server]
    log: Path
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

        def start(*more: str) -> Server:
            return Server(*flags, *more, log=path / "log")

        with start() as here, start() as there:
            pair = Pair(here, there, redis, model, start, path / "log")
            model.default = pair.reply
            yield pair
        assert "Traceback" not in pair.log.read_text()


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


@pytest.mark.parametrize("where", ["here", "there"])
def test_when_a_session_is_deleted_who_watches_joins_or_cancels_its_turn_there_gets_the_end(
    pair: Pair, where: str
) -> None:
    turn = begin(pair.here, "stall", Idempotency_Key="k")
    path, headers = f"/sessions/{turn.id}", {"Idempotency-Key": "k"}
    with ThreadPoolExecutor() as pool:
        told = calls(pair, "zadd")
        run = pool.submit(pair.there.request, "POST", f"{path}/run", {"message": "stall"}, headers)
        wait_until(lambda: calls(pair, "zadd") > told)  # it has joined the turn
        watching = watch(pair.there, turn.id).events()
        joined = begin(pair.there, "stall", session_id=turn.id, Idempotency_Key="k")
        assert [next(watching), next(watching)] == joined.first == turn.first
        cancelled = pool.submit(pair.there.request, "POST", f"{path}/cancel")
        assert getattr(pair, where).request("DELETE", path).status == 200
        deleted_at = time.monotonic()
        ends = [turn.rest(), list(watching), joined.rest()]
        assert time.monotonic() < deleted_at + 2
    assert ends == ends[:1] * 3
    assert [event["data"]["status"] for event in ends[0]] == ["cancelled"]
    assert run.result().json["message"]["status"] == "cancelled"
    assert cancelled.result().status in (200, 404)


def test_of_two_deletions_of_a_running_turn_one_is_told_that_it_was_the_one(pair: Pair) -> None:
    for _ in range(5):
        turn = begin(pair.here, "stall")
        with ThreadPoolExecutor() as pool:
            path = f"/sessions/{turn.id}"
            asked = [pool.submit(server.request, "DELETE", path) for server in (pair.here, pair.there)]
        assert sorted(one.result().status for one in asked) == [200, 404]
        assert [event["data"]["status"] for event in turn.rest()] == ["cancelled"]


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


# --- readers of Chat Completions, where a closed connection stops the turn ---


@dataclass
class Completion:
    """What an OpenAI client reads, up to the first text."""

    reply: Reply
    lines: Iterator[str]
    session_id: str

    def rest(self) -> tuple[str, str]:
        """The rest of the text, and why it ended."""
        choices = [json.loads(line[6:])["choices"][0] for line in self.lines if line.startswith("data: {")]
        return "".join(one["delta"].get("content", "") for one in choices), choices[-1]["finish_reason"]


def complete(server: Server, chat: str, text: str = "wait", **headers: str) -> Completion:
    body = {"messages": [{"role": "user", "content": text}], "stream": True}
    sent = {"X-Session-Id": chat, **{name.replace("_", "-"): value for name, value in headers.items()}}
    reply = server.request("POST", "/v1/chat/completions", body, sent)
    lines = reply.lines()
    assert any('"Hel"' in line for line in lines)
    return Completion(reply, lines, reply.headers["X-Session-Id"])


def complete_whole(pair: Pair, pool: ThreadPoolExecutor, chat: str) -> Future[Reply]:
    """The same without a stream, there. It has joined the turn when this returns."""
    told = calls(pair, "zadd")
    body = {"messages": [{"role": "user", "content": "wait"}]}
    asked = pool.submit(pair.there.request, "POST", "/v1/chat/completions", body, {"X-Session-Id": chat})
    wait_until(lambda: calls(pair, "zadd") > told)
    return asked


def calls(pair: Pair, command: str) -> int:
    """How often Redis has run a command. While a turn stands still, ZADD is that a server tells of its readers. TIME
    is that too, and that one looks for those of others."""
    return int(pair.redis.call("INFO", "commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


def leave(pair: Pair, reader: Completion) -> None:
    """Closes the connection of a reader here, who is the last one here, and waits until the server has seen that, and
    has looked twice for readers elsewhere."""
    looks = calls(pair, "time") - calls(pair, "zadd")
    reader.reply.close()
    wait_until(lambda: calls(pair, "time") - calls(pair, "zadd") > looks + 1)


def is_cancelled(pair: Pair, session_id: str) -> bool:
    return [m.get("status") for m in pair.there.messages(session_id)] == [None, "cancelled"]


def test_a_retry_through_another_server_keeps_the_turn_running(pair: Pair) -> None:
    first = complete(pair.here, "retried")
    retry = complete(pair.there, "retried")
    leave(pair, first)
    pair.go.set()
    assert retry.rest() == ("lo", "stop")


def test_so_does_one_without_a_stream(pair: Pair) -> None:
    first = complete(pair.here, "whole")
    with ThreadPoolExecutor() as pool:
        retry = complete_whole(pair, pool, "whole")
        leave(pair, first)
        pair.go.set()
        choice = retry.result().json["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "stop")


def test_a_retry_that_comes_when_the_turn_is_being_cancelled_already_goes_on_with_it(pair: Pair) -> None:
    first = complete(pair.here, "late")
    session = f"session_server:session:{first.session_id}"
    pair.redis.call("HSET", session, "left", pair.redis.call("HGET", session, "published"))  # as here before a cancel
    with ThreadPoolExecutor() as pool:
        retry = complete_whole(pair, pool, "late")
        assert cancel(pair.here, first.session_id) == {"cancelled": True}
        pair.go.set()
        choice = retry.result().json["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "stop")
    kept = [(m["content"], m.get("status")) for m in pair.there.messages(first.session_id)]
    assert kept == [("wait", None), ("Hel", "cancelled"), ("Hello", None)]


def test_when_the_last_reader_anywhere_leaves_the_turn_is_cancelled(pair: Pair) -> None:
    first, retry = complete(pair.here, "left"), complete(pair.there, "left")
    leave(pair, first)
    retry.reply.close()
    wait_until(lambda: is_cancelled(pair, first.session_id), seconds=4)  # in five, nobody would have to tell


def test_readers_of_a_server_that_dies_have_left(pair: Pair) -> None:
    with pair.start() as third:
        first, retry = complete(pair.here, "died"), complete(third, "died")
        leave(pair, first)
        third.kill()
        retry.reply.close()
        wait_until(lambda: is_cancelled(pair, first.session_id))


def test_a_reader_there_leaves_the_turn_to_those_here(pair: Pair) -> None:
    first, other = complete(pair.here, "stays"), complete(pair.there, "stays")
    told = calls(pair, "zadd")
    other.reply.close()
    wait_until(lambda: calls(pair, "zadd") > told)
    pair.go.set()
    assert first.rest() == ("lo", "stop")


def test_who_watches_there_keeps_the_turn_running(pair: Pair) -> None:
    first = complete(pair.here, "watched")
    watching = watch(pair.there, first.session_id).events()
    assert [next(watching)["type"] for _ in range(2)] == ["stream_start", "stream_chunk"]
    leave(pair, first)
    pair.go.set()
    assert list(watching)[-1]["data"]["complete_text"] == "Hello"


def test_a_turn_that_a_client_there_wants_to_run_on_runs_on_without_readers(pair: Pair) -> None:
    first = complete(pair.here, "kept", Idempotency_Key="k")
    kept = begin(pair.there, "wait", session_id=first.session_id, Idempotency_Key="k")
    kept.events.close()  # type: ignore[attr-defined]
    readers = f"session_server:readers:{pair.redis.call('HGET', f'session_server:session:{kept.id}', 'published')}"
    wait_until(lambda: pair.redis.call("ZCOUNT", readers, time.time() * 1000, "+inf") == 0)
    leave(pair, first)
    pair.go.set()
    wait_until(lambda: [m["content"] for m in pair.there.messages(first.session_id)] == ["wait", "Hello"])


def test_an_answer_that_was_cut_short_is_no_whole_one_for_any_reader(pair: Pair) -> None:
    first, joined = complete(pair.here, "cut", "stall"), complete(pair.there, "cut", "stall")
    assert cancel(pair.there, first.session_id) == {"cancelled": True}
    assert first.rest() == joined.rest() == ("", "length")


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


def test_a_turn_that_a_server_relays_has_the_same_grace_as_its_own(pair: Pair) -> None:
    turn = begin(pair.here, "wait")
    with pair.start() as third:
        watching = watch(third, turn.id).events()
        assert [next(watching), next(watching)] == turn.first
        third.send_signal(signal.SIGTERM)
        wait_until(lambda: third.request("GET", "/ready").status == 503)
        pair.go.set()
        assert list(watching) == turn.rest()
        assert third.wait() == 0


def test_a_server_that_shuts_down_lets_go_of_turns_that_run_elsewhere(pair: Pair) -> None:
    turn = begin(pair.here, "wait")
    with pair.start("-grace=0") as third:
        watching = watch(third, turn.id).events()
        assert [next(watching), next(watching)] == turn.first
        third.send_signal(signal.SIGTERM)
        assert list(watching) == []
        assert third.wait() == 0
    resumed = watch(pair.there, turn.id, turn.first[-1]["id"])
    pair.go.set()
    assert list(resumed.events()) == turn.rest()
