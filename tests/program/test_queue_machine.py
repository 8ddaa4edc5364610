"""Laws of the queue, over servers that are killed: what was accepted is asked once and in order, or was taken back.

The machine sends, steers, interrupts, takes back, cancels, deletes and kills, and knows what must come of it: which
message runs, which wait, and what stands in the session.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from session_core.data.message_queue import MAX_QUEUED
from tests.support.model_server import ModelServer, answer, tool_call, wait
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.server import Reply, Server, wait_until

WAYS = st.sampled_from(["reject", "queue", "queue", "steer", "interrupt"])


@dataclass
class Sent:
    """A message that was accepted. `go` lets the model answer it, `called` lets it call its tool before."""

    text: str
    key: str | None
    id: str = ""
    steers: str = ""  # the text of the message into whose turn it goes
    called: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)


class World:
    """One server over files, or two that share a Redis, and the model."""

    def __init__(self, directory: Path, redis: RedisServer | None = None) -> None:
        self.known: dict[str, Sent] = {}
        self.redis = redis
        self.model = ModelServer(default=self._reply).start()
        self._directory = directory
        self.servers = [self.serve() for _ in range(2 if redis else 1)]

    def serve(self) -> Server:
        kept = f"-redis_url={self.redis.url}" if self.redis else f"-session_dir={self._directory}/sessions"
        return Server(f"-base_url={self.model.base_url}", kept, "-log_level=error", log=self._directory / "log")

    def close(self) -> None:
        for server in self.servers:
            server.close()
        self.model.stop()
        assert "Traceback" not in (self._directory / "log").read_text()

    def _reply(self, request: dict[str, Any]) -> Any:
        sent = self.known[_question(request)]
        if sent.text.startswith("tool") and request["messages"][-1]["role"] == "user" and not sent.called.is_set():
            called = tool_call("calculator", {"expression": "6*7"})(request)
            return replace(called, parts=[wait(sent.called), *called.parts])
        return answer("Hel", wait(sent.go), "lo")(request)


class QueueMachine(RuleBasedStateMachine):
    """One session at a time, in a world that outlives the machine."""

    world: World

    @initialize()
    def start(self) -> None:
        self.servers, self.redis, self.known = self.world.servers, self.world.redis, self.world.known
        self.runs_on = 0
        self._new_session()

    def teardown(self) -> None:
        for sent in self.known.values():
            sent.called.set()
            sent.go.set()
        self._ask()
        wait_until(lambda: not self._session()["running"])
        self.order += self.waiting
        self.running, self.waiting = None, []
        self._check()

    @rule(way=WAYS, tool=st.booleans(), keyed=st.booleans(), at=st.integers(0, 1))
    def send(self, way: str, tool: bool, keyed: bool, at: int) -> None:
        number = len(self.known)
        sent = Sent(f"{'tool' if tool else 'plain'} {number}", f"key-{number}" if keyed else None)
        self.known[sent.text] = sent
        reply = self._post(sent, way, at)
        if self.running is None:
            assert reply.status == 200, reply.text
            next(reply.events())
            reply.close()
            self._begins(sent, at)
        elif way == "reject":
            assert reply.status == 409, reply.text
        elif len(self.waiting) == MAX_QUEUED:
            assert (reply.status, reply.json["code"]) == (429, "queue_full")
        else:
            assert reply.status == 202, reply.text
            sent.id = reply.json["id"]
            place = 0 if way == "interrupt" else len(self.waiting)
            assert reply.json["position"] == place + 1
            self.waiting.insert(place, sent)
            sent.steers = self.running.text if way == "steer" else ""
            if way == "interrupt":
                self._next()
        self._check()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), at=st.integers(0, 1))
    def send_again(self, data: st.DataObject, at: int) -> None:
        """The key of a message that waits is that message."""
        place = data.draw(st.integers(0, len(self.waiting) - 1))
        sent = self.waiting[place]
        if sent.key is not None:
            reply = self._post(sent, "reject", at)
            assert (reply.status, reply.json) == (202, {"id": sent.id, "position": place + 1})
            self._check()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), at=st.integers(0, 1))
    def take_back(self, data: st.DataObject, at: int) -> None:
        sent = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        for status in (200, 404):
            path = f"/sessions/{self.session_id}/queued/{sent.id}"
            assert self._server(at).request("DELETE", path).status == status
        self._check()

    @precondition(lambda self: self.running)
    @rule()
    def go_on(self) -> None:
        """The model goes on: with its tool, behind which what steers comes in, or to its end."""
        assert self.running is not None
        if self.running.text.startswith("tool") and not self.running.called.is_set():
            self.running.called.set()
            steering = [sent for sent in self.waiting if sent.steers == self.running.text]
            self.waiting = [sent for sent in self.waiting if sent not in steering]
            self.order += steering
            wait_until(lambda: len(self._asked(self.running)) == 2)
        else:
            self.running.called.set()
            self.running.go.set()
            self._next()
        self._check()

    @precondition(lambda self: self.running)
    @rule(at=st.integers(0, 1))
    def cancel(self, at: int) -> None:
        assert self._server(at).request("POST", f"/sessions/{self.session_id}/cancel").json == {"cancelled": True}
        self._next()
        self._check()

    @rule(at=st.integers(0, 1))
    def delete(self, at: int) -> None:
        assert self._server(at).request("DELETE", f"/sessions/{self.session_id}").status == 200
        assert not any(self._asked(sent) for sent in self.waiting)
        self._new_session()

    @precondition(lambda self: self.running)
    @rule()
    def kill(self) -> None:
        """The server that runs the turn is killed. What waits is there, and begins when somebody asks."""
        self.servers[self.runs_on].kill()
        self.servers[self.runs_on] = self.world.serve()
        if self.redis:
            lease = f"session_server:lease:{self.session_id}"
            wait_until(lambda: self.redis and not self.redis.call("EXISTS", lease))
        self.running = None
        self._check()
        if self.waiting:
            self._ask()
            self._next()
        self._check()

    def _new_session(self) -> None:
        self.session_id = self.servers[0].create()
        self.running: Sent | None = None
        self.waiting: list[Sent] = []
        self.order: list[Sent] = []  # those that stand in the session

    def _next(self) -> None:
        """The turn that ran has ended, and that of the next message begins."""
        self.running = None
        if self.waiting:
            self._begins(self.waiting.pop(0), None)
        else:
            wait_until(lambda: not self._session()["running"])

    def _begins(self, sent: Sent, at: int | None) -> None:
        wait_until(lambda: self._asked(sent))
        self.running = sent
        self.order.append(sent)
        if self.redis:
            lease = str(self.redis.call("GET", f"session_server:lease:{self.session_id}"))
            self.runs_on = next(
                number for number, server in enumerate(self.servers) if f"-{server.process.pid}-" in lease
            )

    def _check(self) -> None:
        """The session holds, in this order, what has begun, and what waits; all that was asked was asked once."""
        for server in self.servers:
            found = server.request("GET", f"/sessions/{self.session_id}").json
            texts = [message["content"] for message in found["messages"] if message["role"] == "user"]
            assert texts == [sent.text for sent in self.order]
            ids = {message["content"]: message["id"] for message in found["messages"]}
            assert all(ids[sent.text] == sent.id for sent in self.order if sent.id)
            assert [one["content"] for one in found.get("queued", [])] == [sent.text for sent in self.waiting]
            assert found["running"] == bool(self.running or self.waiting)
        for sent in self.known.values():
            assert len(self._asked(sent)) <= (2 if sent.text.startswith("tool") else 1)

    def _asked(self, sent: Sent | None) -> list[dict[str, Any]]:
        """The requests in which this message is the last question, or the one whose tool was called."""
        assert sent is not None
        return [request for request in list(self.world.model.requests) if _question(request) == sent.text]

    def _ask(self) -> None:
        """Asks for the stream, which has what waits begin."""
        self.servers[0].request("GET", f"/sessions/{self.session_id}/run_stream").close()

    def _session(self) -> dict[str, Any]:
        found: dict[str, Any] = self.servers[0].request("GET", f"/sessions/{self.session_id}").json
        return found

    def _post(self, sent: Sent, way: str, at: int) -> Reply:
        headers = {"Idempotency-Key": sent.key} if sent.key else {}
        body = {"message": sent.text, "if_busy": way}
        return self._server(at).request("POST", f"/sessions/{self.session_id}/run_stream", body, headers)

    def _server(self, at: int) -> Server:
        return self.servers[at % len(self.servers)]


def _question(request: dict[str, Any]) -> str:
    """The question of the turn for which the model is asked: not what has come in behind the results of its tools."""
    messages = request["messages"]
    users = [at for at, message in enumerate(messages) if message["role"] == "user"]
    question = next(at for at in reversed(users) if at == 0 or messages[at - 1]["role"] != "tool")
    text: str = messages[question]["content"]
    return text.split("\n\n")[-1]  # those before it were never answered


LIMITS: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.explicit, Phase.generate],
}


def run(world: World, examples: int) -> None:
    with contextlib.closing(world):
        machine = type("Machine", (QueueMachine,), {"world": world})
        run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=14, **LIMITS))


def test_what_is_accepted_is_asked_once_and_in_order_or_taken_back(tmp_path: Path) -> None:
    run(World(tmp_path), 8)


@NEEDED
def test_so_it_is_with_two_servers_on_one_redis(tmp_path: Path) -> None:
    with RedisServer(tmp_path, appendfsync="no") as redis:
        run(World(tmp_path, redis), 2)
