"""Pulls the plug on a server again and again, and counts what that costs.

    python -m tests.crash_loop 1000           # so many rounds; the seed may follow, and how many seconds at most
    python -m tests.crash_loop --redis 1000   # sessions in Redis, which is killed too, every other time
    python -m tests.crash_loop --pair 100     # two servers on one Redis behind nginx, and faults of all three

Each round, several sessions are at work at once on one server: turns by `run` and by `run_stream`, with and without
tools and idempotency keys, messages that wait behind a turn, new titles, deletions, new sessions. At a random moment
the process is killed with
SIGKILL and another one started on the same directory. Then whatever was acknowledged (a turn by its `stream_start`,
an answer by its `stream_end`, everything by a 2xx) must be there once and in order, every file must be JSON, every
key must give its turn without storing the message again, and every session must take the next turn at once (in
Redis, as soon as the dead server's lease has run out). What a client had received of an answer, 300 ms or more before
the kill, must be in the session once and in order. A turn without a key that was cut off is gone on with.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.model_server import ModelServer, answer, pause, tool_call
from tests.support.redis_server import RedisServer
from tests.support.server import ROOT, Reply, Server, ServerClient, wait_until

AT_ONCE = 6  # sessions
WITHIN = 0.9  # seconds from the start of the work to the kill, at most
KEPT_AFTER = 0.3  # seconds before the kill, and more on a busy machine; what a client had by then must be kept
CUT_OFF = (OSError, http.client.HTTPException, ValueError)  # what a client sees of a server that is killed


@dataclass
class Asked:
    """A turn as its client knows it."""

    text: str
    way: str
    key: str | None
    acknowledged: bool = False
    message_id: str | None = None  # of the answer, once that is acknowledged
    seen: list[tuple[float, str]] = field(default_factory=list)  # when a piece of the answer came, and the piece
    queued: bool = False  # it was to wait behind a turn
    settled: bool = False  # it was looked at after a crash, and will not be asked again


@dataclass
class Conversation:
    """A session as its client knows it."""

    id: str
    turns: list[Asked] = field(default_factory=list)
    count: int = 0  # of turns, those included that nobody remembers
    titles: set[str | None] = field(default_factory=lambda: {None})  # one of these; more than one after a cut
    deleting: bool = False

    def turn(self, kind: str, way: str, keyed: bool = False) -> Asked:
        """The next turn, with a text and a key of its own."""
        self.count += 1
        turn = Asked(f"{kind} {self.count}", way, f"key-{self.count}" if keyed else None)
        self.turns.append(turn)
        return turn


class Loop:
    """Rounds of work, kill and restart in one directory, or one Redis. `figures` counts what was done; `failures`
    says in words what was lost, doubled or left unusable."""

    expected_refusals: tuple[int, ...] = ()  # statuses that a caller is told to try again, and that end its work

    def __init__(self, directory: Path, seed: int, redis: RedisServer | None = None) -> None:
        self.figures: Counter[str] = Counter()
        self.failures: list[str] = []
        self.redis = redis
        self.directory = directory / "sessions"
        self._log = directory / "log"
        self.random = random.Random(seed)
        self.conversations: list[Conversation] = []
        self._lock = threading.Lock()
        self.over = threading.Event()  # of the work, where the server does not end it
        self.killed_at = 0.0
        self.kept_after = KEPT_AFTER

    def run(self, rounds: int, seconds: float = float("inf")) -> None:
        """So many rounds, or fewer if they take too long."""
        until = time.monotonic() + seconds
        with ModelServer(default=reply_to) as model, ThreadPoolExecutor(AT_ONCE + 1) as pool:
            server = self._start(model)
            try:
                while self.figures["rounds"] < rounds and time.monotonic() < until:
                    self._letwork(server, pool)
                    server = self._start(model)
                    self.check_all(server, pool)
                    self.figures["rounds"] += 1
            finally:
                server.close()

    def _letwork(self, server: ServerClient, pool: ThreadPoolExecutor) -> None:
        """All sessions at work, until the server is killed."""
        while len(self.conversations) < AT_ONCE:
            self.conversations.append(Conversation(server.create()))
        working = [
            pool.submit(self.work, server, conversation, random.Random(self.random.random()))
            for conversation in self.conversations
        ]
        slowness = pool.submit(self._slowness, server)
        time.sleep(self.random.uniform(0, WITHIN))
        self.killed_at = time.monotonic()
        server.kill()
        self.kept_after = KEPT_AFTER + 3 * slowness.result()
        for worker in working:
            worker.result()
        if self.redis and self.random.random() < 0.5:
            self.redis.kill()
            self.redis.start()
        self.figures["torn files"] += sum(not _is_json(path) for path in self._files())

    def _slowness(self, server: Server) -> float:
        """The longest time, in seconds, that the server took for a write to its store before it was killed."""
        slowest = 0.0
        while True:
            began = time.monotonic()
            try:
                server.request("GET", "/ready")
            except CUT_OFF:
                return max(slowest, self.killed_at - began)
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.02)

    def check_all(self, server: ServerClient, pool: ThreadPoolExecutor) -> None:
        """What is left after the kill, and whether work can go on."""
        kept = list(pool.map(lambda conversation: self._check(server, conversation), self.conversations))
        self.conversations = [one for one, keep in zip(self.conversations, kept, strict=True) if keep]
        for path in self._files():
            if not _is_json(path):
                self._fail("unusable", path.name, "its file is not JSON")

    def _start(self, model: ModelServer) -> Server:
        kept = f"-redis_url={self.redis.url}" if self.redis else f"-session_dir={self.directory}"
        return Server(f"-base_url={model.base_url}", kept, "-log_level=error", log=self._log)

    def count(self, what: str) -> None:
        with self._lock:
            self.figures[what] += 1

    def _fail(self, what: str, where: str, words: object) -> None:
        with self._lock:
            self.figures[what] += 1
            self.failures.append(f"round {self.figures['rounds'] + 1}, {where}: {what}: {words}")

    def _files(self) -> list[Path]:
        return list(self.directory.glob("session-*"))

    # --- the work ---

    def work(self, server: ServerClient, conversation: Conversation, choose: random.Random) -> None:
        """Turns and other changes, one after the other, until the server is gone."""
        try:
            while not self.over.is_set():
                number = choose.random()
                if number < 0.05:
                    self._rename(server, conversation, f"Title {number}")
                elif number < 0.07 and conversation.turns:
                    self._delete(server, conversation)
                else:
                    kind, way = choose.choice(["plain", "tool", "slow"]), choose.choice(["run", "run_stream"])
                    if choose.random() < 0.2:
                        refusal = self._queue(server, conversation, choose.randint(1, 3))
                    else:
                        turn = conversation.turn(kind, way, keyed=choose.random() < 0.5)
                        refusal = self._ask(server, conversation, turn)
                    if refusal:
                        if refusal.status in self.expected_refusals:
                            self.count("refused for now")
                            return
                        self._fail("unusable", conversation.id, refusal.text)
        except CUT_OFF:
            return

    def _ask(self, server: ServerClient, conversation: Conversation, turn: Asked) -> Reply | None:
        """Runs the turn, and notes what of it is acknowledged. The reply if it is a refusal."""
        headers = {} if turn.key is None else {"Idempotency-Key": turn.key}
        reply = server.request("POST", f"/sessions/{conversation.id}/{turn.way}", {"message": turn.text}, headers)
        if reply.status != 200:
            return reply
        if turn.way == "run":
            turn.acknowledged, turn.message_id = True, reply.json["message"]["id"]
            self.count("turns")
            return None
        self._follow(reply, turn)
        return None

    def _follow(self, reply: Reply, turn: Asked) -> None:
        """Reads the stream of the turn to its end."""
        try:
            for event in reply.events():
                turn.acknowledged = True
                if event["type"] == "stream_chunk":
                    turn.seen.append((time.monotonic(), event["data"]["content"]))
                if event["type"] == "stream_end" and event["data"]["status"] == "completed":
                    turn.message_id = event["data"]["message_id"]
        finally:
            reply.close()
        if turn.message_id is None:
            raise ConnectionAbortedError("the stream broke off")
        self.count("turns")

    def _queue(self, server: ServerClient, conversation: Conversation, count: int) -> Reply | None:
        """A turn, and messages that wait behind it, until none runs. The reply if one is a refusal."""
        path, turn = f"/sessions/{conversation.id}", conversation.turn("slow", "run_stream")
        stream = server.request("POST", f"{path}/run_stream", {"message": turn.text})
        if stream.status != 200:
            return stream
        turn.acknowledged = True
        for _ in range(count):
            waiting = conversation.turn("plain", "run", keyed=True)
            waiting.queued, body = True, {"message": waiting.text, "if_busy": "queue"}
            reply = server.request("POST", f"{path}/run", body, {"Idempotency-Key": waiting.key or ""})
            if reply.status not in (200, 202):
                stream.close()
                return reply
            waiting.acknowledged = True
            self.count("queued")
        self._follow(stream, turn)
        self._drain(server, conversation)
        return None

    def _drain(self, server: ServerClient, conversation: Conversation) -> None:
        """Waits until all that waits was asked, for which it asks."""
        give_up = time.monotonic() + 30
        while (found := server.request("GET", f"/sessions/{conversation.id}")).status == 200 and found.json[
            "running"
        ]:
            server.request("GET", f"/sessions/{conversation.id}/run_stream").close()
            if time.monotonic() > give_up:
                self._fail("unusable", conversation.id, "what waits does not begin")
                return
            time.sleep(0.02)

    def _rename(self, server: ServerClient, conversation: Conversation, title: str) -> None:
        conversation.titles.add(title)
        if server.request("PATCH", f"/sessions/{conversation.id}", {"title": title}).status == 200:
            conversation.titles = {title}
            self.count("titles")

    def _delete(self, server: ServerClient, conversation: Conversation) -> None:
        conversation.deleting = True
        if server.request("DELETE", f"/sessions/{conversation.id}").status == 200:
            self.count("deletions")
            made = server.request("POST", "/sessions")
            if made.status in self.expected_refusals:
                raise ConnectionError(made.text)  # as where the server is gone
            deleted, conversation.id = conversation.id, made.json["id"]
            conversation.turns, conversation.titles, conversation.deleting = [], {None}, False
            if (self.directory / f"{deleted}.json").exists():
                self._fail("undeleted", deleted, "its file is there")

    # --- the check ---

    def _check(self, server: ServerClient, conversation: Conversation) -> bool:
        """Counts what is wrong with the session after the restart; whether it can go on being used."""
        reply = server.request("GET", f"/sessions/{conversation.id}")
        if reply.status == 404 and conversation.deleting:
            return False
        conversation.deleting = False
        if reply.status != 200:
            self._fail("unusable", conversation.id, reply.text)
            return False
        if self.redis:
            lease = f"session_server:lease:{conversation.id}"
            wait_until(lambda: self.redis and not self.redis.call("EXISTS", lease), seconds=10)
        self._drain(server, conversation)
        reply = server.request("GET", f"/sessions/{conversation.id}")
        self._compare(conversation, reply.json["messages"])
        self._check_seen(conversation, reply.json["messages"])
        self._check_title(server, conversation)
        for turn in conversation.turns:
            if turn.message_id is None and not turn.settled and not turn.queued:
                self.count("turns cut off")
                if turn.key is not None:
                    self._retry(server, conversation, turn)
                elif turn is conversation.turns[-1] and turn.acknowledged:
                    self._continue(server, conversation, turn)
            turn.settled = True
        self._replay(server, conversation)
        if refusal := self._ask(server, conversation, conversation.turn("plain", "run")):
            self._fail("unusable", conversation.id, refusal.text)
            return False
        messages = server.messages(conversation.id)
        self._compare(conversation, messages)
        return len(messages) < 200

    def _compare(self, conversation: Conversation, messages: list[dict[str, Any]]) -> None:
        """Each acknowledged message is there once and in order; the others, once at most."""
        places: dict[str, int] = {}
        for place, message in enumerate(messages):
            name = message["content"] if message["role"] == "user" else message["id"]
            if name in places:
                self._fail("duplicated", conversation.id, name)
            places[name] = place
        order = []
        for turn in conversation.turns:
            for acknowledged, name in (
                (turn.acknowledged, turn.text),
                (turn.message_id is not None, turn.message_id),
            ):
                if acknowledged and name not in places:
                    self._fail("lost", conversation.id, name)
                elif name in places:
                    order.append(places[name or ""])
            if turn.message_id in places:
                content = messages[places[turn.message_id]]["content"]
                if content != _answer_to(turn.text):
                    self._fail("lost", conversation.id, f"all but {content!r} of the answer to {turn.text}")
        if order != sorted(order):
            self._fail("out of order", conversation.id, order)

    def _check_seen(self, conversation: Conversation, messages: list[dict[str, Any]]) -> None:
        """What was received of an answer long enough before the kill is there, once and in order."""
        for turn in conversation.turns:
            if turn.settled or turn.message_id is not None or not turn.seen:
                continue
            received = "".join(text for when, text in turn.seen if when <= self.killed_at - self.kept_after)
            texts = [one["content"] for one in messages]
            kept = ""
            for message in messages[texts.index(turn.text) + 1 :] if turn.text in texts else ():
                if message["role"] == "user":
                    break
                kept += message["content"] if message["role"] == "assistant" else ""
            self.count("partial answers" if received else "partial answers too short")
            self.figures["characters received"] += len(received)
            if not kept.startswith(received) or not _answer_to(turn.text).startswith(kept):
                self._fail("lost", conversation.id, f"{received!r} was received, {kept!r} is there")

    def _continue(self, server: ServerClient, conversation: Conversation, turn: Asked) -> None:
        """The turn that was cut off, gone on with."""
        self.count("continued")
        reply = server.request("POST", f"/sessions/{conversation.id}/run", {"continue": True})
        if reply.status == 409 and reply.json["code"] == "nothing_to_continue":
            if not any(one["content"] == _answer_to(turn.text) for one in server.messages(conversation.id)):
                self._fail("unusable", conversation.id, reply.text)
        elif reply.status != 200 or reply.json["message"]["content"] != _answer_to(turn.text):
            self._fail("unusable", conversation.id, reply.text)

    def _check_title(self, server: ServerClient, conversation: Conversation) -> None:
        listed = server.request("GET", "/sessions?details=true").json["sessions"]
        title = next(one["title"] for one in listed if one["id"] == conversation.id)
        given = title if title is not None and title.startswith("Title") else None
        if given not in conversation.titles:
            self._fail("lost", conversation.id, f"the title, now {title}")
        conversation.titles = {given}

    def _retry(self, server: ServerClient, conversation: Conversation, turn: Asked) -> None:
        """The turn that was cut off, once more under its key."""
        self.count("retries")
        if refusal := self._ask(server, conversation, turn):
            self._fail("unusable", conversation.id, refusal.text)
            return
        texts = [message["content"] for message in server.messages(conversation.id)]
        if texts.count(turn.text) != 1:
            self._fail("duplicated", conversation.id, f"{turn.text} is there {texts.count(turn.text)} times")

    def _replay(self, server: ServerClient, conversation: Conversation) -> None:
        """The last turn under a key that has its answer gives the same answer again, and stores nothing."""
        turn = next((turn for turn in conversation.turns[::-1] if turn.key and turn.message_id), None)
        if turn is None:
            return
        self.count("replays")
        before = len(server.messages(conversation.id))
        again = Asked(turn.text, turn.way, turn.key)
        if refusal := self._ask(server, conversation, again):
            self._fail("unusable", conversation.id, refusal.text)
        elif again.message_id != turn.message_id or len(server.messages(conversation.id)) != before:
            self._fail("duplicated", conversation.id, turn.text)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def _answer_to(text: str) -> str:
    return f"This is the answer to {text}" + (" and so on" * 10 if text.startswith("slow") else "")


def reply_to(request: dict[str, Any]) -> Any:
    """What the model says: first the calculator where that is asked for, then the answer, word by word."""
    text = next(message["content"] for message in request["messages"][::-1] if message["role"] == "user")
    text = text.splitlines()[-1]  # the line before is a message that was left without an answer
    if text.startswith("tool") and request["messages"][-1]["role"] != "tool":
        return tool_call("calculator", {"expression": "2**100"})(request)
    pieces = _answer_to(text).split(" ")
    steps: list[Any] = []
    for piece in pieces:
        steps += [pause(0.03 if text.startswith("slow") else 0.002), f" {piece}" if steps else piece]
    return answer(*steps)(request)


def main(rounds: int, seed: int, seconds: float, kind: str) -> int:
    print(f"{rounds} rounds, seed {seed} {kind}")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        redis = stack.enter_context(RedisServer(directory)) if kind else None
        if kind == "--pair":
            sys.path.insert(0, str(ROOT / "docs"))  # where what starts nginx is
            from tests.crash_pair import PairLoop

            loop: Loop = PairLoop(directory, seed, redis)
        else:
            loop = Loop(directory, seed, redis)
        loop.run(rounds, seconds)
    done = (
        "rounds",
        "turns",
        "queued",
        "turns cut off",
        "partial answers",
        "characters received",
        "continued",
        "retries",
    )
    for name in (*done, "replays", "titles", "deletions", "torn files"):
        print(f"{name + ':':20}{loop.figures[name]:>8}")
    for name in sorted(name for name in loop.figures if name.startswith(("fault", "refused"))):
        print(f"{name + ':':20}{loop.figures[name]:>8}")
    for name in ("lost", "duplicated", "out of order", "undeleted", "unusable"):
        print(f"{name + ':':20}{loop.figures[name]:>8}")
    print(*loop.failures, sep="\n", end="")
    return 1 if loop.failures else 0


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:] if not argument.startswith("--")]
    kind = next((argument for argument in ("--redis", "--pair") if argument in sys.argv), "")
    seed = numbers[1] if len(numbers) > 1 else random.randrange(10**6)
    seconds = numbers[2] if len(numbers) > 2 else float("inf")
    sys.exit(main(numbers[0] if numbers else 100, seed, seconds, kind))
