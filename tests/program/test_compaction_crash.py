"""Summaries and the end of the process, and two servers on one Redis."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.model_server import STALL, answer
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.server import TIMEOUT, Server, wait_until
from tests.support.summaries import Summarizer, contents, question

LIMIT = 700
DUE = 9  # the first turn before which a summary is made


@dataclass
class Place:
    """A store, a model, and servers over both."""

    model: Summarizer
    flags: tuple[str, ...]
    log: Path

    def serve(self, *more: str) -> Server:
        return Server(*self.flags, f"-compact_at={LIMIT}", "-calculator=false", *more, log=self.log)

    def grown(self, server: Server, turns: int) -> str:
        session = server.create()
        for number in range(1, turns + 1):
            assert server.request("POST", f"/sessions/{session}/run", {"message": question(number)}).status == 200
        return session


@pytest.fixture(params=["files", pytest.param("redis", marks=NEEDED)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with Summarizer() as model:
        base = f"-base_url={model.base_url}"
        if request.param == "files":
            yield Place(model, (base, f"-session_dir={tmp_path / 'sessions'}"), tmp_path / "log")
            return
        with RedisServer(tmp_path) as redis:
            yield Place(model, (base, f"-redis_url={redis.url}"), tmp_path / "log")


def session_of(server: Server, session: str) -> Any:
    return server.request("GET", f"/sessions/{session}").json


def free(server: Server, session: str) -> bool:
    return not session_of(server, session)["running"]


def test_a_kill_during_the_summary_of_a_turn_leaves_the_question_and_no_summary(place: Place) -> None:
    with place.serve() as server:
        session = place.grown(server, DUE - 1)
        place.model.summaries.append(answer("The sum", STALL))
        stream = server.say(session, question(DUE))
        place.model.wait_for(DUE)
        server.kill()
        stream.close()
    with place.serve() as server:
        wait_until(lambda: free(server, session))
        found = session_of(server, session)
        assert found["messages"][-1]["content"] == question(DUE) and "compacted" not in found
        reply = server.request("POST", f"/sessions/{session}/run", {"continue": True})
        assert reply.status == 200
        found = session_of(server, session)
        assert found["compacted"]["content"] == "summary 1." and len(found["messages"]) == 2 * DUE


def test_a_kill_during_a_second_summary_leaves_the_first(place: Place) -> None:
    with place.serve() as server:
        session = place.grown(server, DUE + 2)
        first = session_of(server, session)["compacted"]
        requests = len(place.model.requests)
        place.model.summaries.append(answer("The sum", STALL))
        answering = ThreadPoolExecutor(1)
        answering.submit(server.request, "POST", f"/sessions/{session}/compact")
        place.model.wait_for(requests + 1)
        server.kill()
        answering.shutdown()
    with place.serve() as server:
        wait_until(lambda: free(server, session))
        assert session_of(server, session)["compacted"] == first
        assert server.request("POST", f"/sessions/{session}/compact").json["status"] == "completed"
        assert server.request("POST", f"/sessions/{session}/run", {"message": "And?"}).status == 200
        assert place.model.turns[-1]["messages"][0]["content"].endswith("summary 2.")


def test_a_partial_answer_that_a_crash_has_left_outlives_a_summary_on_request(tmp_path: Path) -> None:
    with Summarizer() as model:
        place = Place(
            model, (f"-base_url={model.base_url}", f"-session_dir={tmp_path / 'sessions'}"), tmp_path / "log"
        )
        with place.serve() as server:
            session = place.grown(server, 6)
            model.then(answer("Hello, world", STALL))
            stream = server.say(session, "Hi")
            journal = tmp_path / "sessions" / f".{session}.journal"
            wait_until(lambda: journal.exists() and b"world" in journal.read_bytes())
            server.kill()
            stream.close()
        with place.serve() as server:
            assert server.request("POST", f"/sessions/{session}/compact").json["status"] == "completed"
            last = session_of(server, session)["messages"][-1]
            assert (last["content"], last["reason"]) == ("Hello, world", "interrupted")


def test_a_summary_outlives_a_kill_right_after_its_answer(place: Place) -> None:
    with place.serve() as server:
        session = place.grown(server, 6)
        made = server.request("POST", f"/sessions/{session}/compact").json["compacted"]
        server.kill()
    with place.serve() as server:
        assert session_of(server, session)["compacted"] == made
        wait_until(lambda: free(server, session))
        assert server.request("POST", f"/sessions/{session}/run", {"message": "And?"}).status == 200
        assert contents(place.model.turns[-1])[1] != "Question 1"


@pytest.mark.parametrize("how", ["turn", "request"])
@NEEDED
def test_a_cancel_on_another_server_reaches_the_summary(how: str, tmp_path: Path) -> None:
    with Summarizer() as model, RedisServer(tmp_path) as redis:
        place = Place(model, (f"-base_url={model.base_url}", f"-redis_url={redis.url}"), tmp_path / "log")
        with place.serve() as here, place.serve() as there, ThreadPoolExecutor(1) as later:
            session = place.grown(here, DUE - 1)
            model.summaries.append(answer("The sum", STALL))
            path, body = ("run", {"message": "Hi"}) if how == "turn" else ("compact", None)
            running = later.submit(here.request, "POST", f"/sessions/{session}/{path}", body)
            model.wait_for(DUE)
            busy = there.request("POST", f"/sessions/{session}/compact")
            assert (busy.status, busy.json["code"]) == (409, "session_busy")
            if how == "request":
                assert there.request("GET", f"/sessions/{session}/run_stream").status == 204
            assert there.request("POST", f"/sessions/{session}/cancel").json == {"cancelled": True}
            assert running.result(TIMEOUT).status == 200 and model.closed.wait(1)
            assert "compacted" not in session_of(there, session)
            assert there.request("POST", f"/sessions/{session}/compact").json["status"] == "completed"
            assert session_of(here, session)["compacted"]["content"] == "summary 1."
