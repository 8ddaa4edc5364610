"""The plug is pulled at random moments; `python -m tests.crash_loop 1000` does the same for longer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.crash_loop import Loop
from tests.support.model_server import HEADERS, STALL, ModelServer, answer, frames, tool_call
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.server import Server, wait_until

Serve = Callable[..., Server]


STORES = ["files", pytest.param("redis", marks=NEEDED)]
ROUNDS = {"files": 3, "redis": 1}  # in Redis, each waits for leases to run out
CUT_OFF = {"files": 3, "redis": 1}  # turns, at least


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module", params=STORES)
def loop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loop:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    in_redis = request.param == "redis"
    redis = request.getfixturevalue("redis") if in_redis else None
    loop = Loop(tmp_path_factory.mktemp("crashes"), seed, redis)
    loop.run(rounds=ROUNDS[request.param])
    return loop


@pytest.mark.parametrize("what", ["lost", "duplicated", "out of order", "undeleted", "unusable"])
def test_after_crashes_nothing_that_was_acknowledged_is(loop: Loop, what: str) -> None:
    assert loop.figures[what] == 0, loop.failures


def test_the_crashes_have_cut_off_turns_and_spared_others(loop: Loop, request: pytest.FixtureRequest) -> None:
    store = request.node.callspec.params["loop"]
    assert loop.figures["rounds"] == ROUNDS[store]
    assert loop.figures["turns"] > 2 * ROUNDS[store] and loop.figures["turns cut off"] >= CUT_OFF[store]


# --- killed at chosen moments ---

PHASES = {
    "silent": answer(STALL),
    "headers": frames(HEADERS, STALL),
    "text": answer("Hel", STALL),
    "tool": tool_call("calculator", {"expression": "6*7"}, text="Let me see. "),
}


@dataclass
class Killed:
    """A server that was killed while four sessions were in four phases of a turn, and its successor."""

    server: Server
    model: ModelServer
    ids: dict[str, str]
    found: dict[str, list[dict[str, Any]]]  # what the successor gave of each session first


@pytest.fixture(scope="module", params=STORES)
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killed]:
    path = tmp_path_factory.mktemp("killed")
    in_redis = request.param == "redis"
    kept = f"-redis_url={request.getfixturevalue('redis').url}" if in_redis else f"-session_dir={path / 'sessions'}"

    def reply(request: dict[str, Any]) -> Any:
        last = request["messages"][-1]
        return PHASES.get(last["content"], answer(STALL))(request)

    with ModelServer(default=reply) as model:
        flags = (f"-base_url={model.base_url}", kept)
        with Server(*flags, log=path / "log") as server:
            ids = {phase: server.create() for phase in PHASES}
            streams = {phase: server.say(ids[phase], phase, Idempotency_Key="the-key") for phase in PHASES}
            model.wait_for(len(PHASES) + 1)
            for event in streams["text"].events():
                if event["type"] == "stream_chunk":
                    break
            server.kill()
            for stream in streams.values():
                stream.close()
        model.default = answer("Good morning.")
        with Server(*flags, log=path / "log") as server:
            for id in ids.values() if in_redis else ():
                wait_until(lambda id=id: not server.request("GET", f"/sessions/{id}").json["running"])
            yield Killed(server, model, ids, {phase: server.messages(ids[phase]) for phase in PHASES})


@pytest.mark.parametrize("phase", PHASES)
def test_the_message_of_a_turn_that_had_begun_is_there_once(killed: Killed, phase: str) -> None:
    assert [message["content"] for message in killed.found[phase] if message["role"] == "user"] == [phase]


def test_a_tool_call_and_its_result_are_there(killed: Killed) -> None:
    _, call, result = killed.found["tool"]
    assert (call["content"], call["tool_calls"][0]["function"]["name"]) == ("Let me see. ", "calculator")
    assert (result["tool_call_id"], result["content"]) == (call["tool_calls"][0]["id"], "42")


@pytest.mark.parametrize("phase", PHASES)
def test_a_retry_with_its_key_asks_again_and_stores_the_message_once(killed: Killed, phase: str) -> None:
    events = list(killed.server.say(killed.ids[phase], phase, Idempotency_Key="the-key").events())
    assert (events[0]["type"], events[-1]["data"]["complete_text"]) == ("stream_start", "Good morning.")
    assert killed.model.requests[-1]["messages"][-1] == {"role": "user", "content": phase}
    messages = killed.server.messages(killed.ids[phase])
    assert [message["content"] for message in messages].count(phase) == 1
    assert messages[: len(killed.found[phase])] == killed.found[phase]


@pytest.mark.parametrize("phase", PHASES)
def test_the_next_turn_is_taken_at_once(killed: Killed, phase: str) -> None:
    reply = killed.server.request("POST", f"/sessions/{killed.ids[phase]}/run", {"message": "And now?"})
    assert (reply.status, reply.json["message"]["content"]) == (200, "Good morning.")


def test_the_lock_of_a_killed_process_is_free_before_another_one_starts(serve: Serve, tmp_path: Path) -> None:
    with ModelServer(answer("Hel", STALL)) as model:
        flags = (f"-base_url={model.base_url}", f"-session_dir={tmp_path / 'sessions'}")
        first, second = serve(*flags), serve(*flags)
        session_id = first.create()
        stream = first.say(session_id, "Hi")
        model.wait_for(1)
        assert second.request("POST", f"/sessions/{session_id}/run", {"message": "Hi"}).status == 409
        first.kill()
        stream.close()
        assert second.request("POST", f"/sessions/{session_id}/run", {"message": "Hi"}).status == 200
        assert second.request("GET", f"/sessions/{session_id}").json["running"] is False
