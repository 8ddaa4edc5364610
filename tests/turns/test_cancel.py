"""A turn that is cancelled, wherever it is."""

from __future__ import annotations

import threading
import time

import pytest
from werkzeug.test import TestResponse

from storage import Storage
from tests.support.client import Client, json_of
from tests.support.model_server import STALL, answer
from tests.support.phases import PHASES, Tool, every_phase, outcome, phase
from tests.support.server import TIMEOUT
from tests.support.well_formed import assert_well_formed


@every_phase
def test_cancel_ends_the_turn_wherever_it_is(where: str, tool: Tool, storage: Storage) -> None:
    with phase(where, tool, storage=storage) as now:
        client = now.client
        session_id = client.create()
        stream = client.stream(session_id)
        now.reached()
        if now.text:
            while stream.next("stream_chunk")["data"]["content"] != now.text:
                pass
        began = time.monotonic()
        assert client.cancel(session_id) is True
        assert time.monotonic() - began < 15
        last = stream.last()
        assert last["type"] == "stream_end"
        assert last["data"]["status"] == "cancelled"
        message = client.messages(session_id)[-1]
        assert message["id"] == last["data"]["message_id"]
        assert (message["role"], message["content"]) == ("assistant", now.text)
        assert (message["status"], message["reason"]) == ("cancelled", last["data"]["reason"])


@pytest.mark.parametrize("where", [name for name in PHASES if name not in ("while connecting", "between two tries")])
def test_the_next_message_is_answered_after_a_cancel(where: str, tool: Tool) -> None:
    with phase(where, tool) as now:
        session_id = now.client.create()
        stream = now.client.stream(session_id, "first")
        now.reached()
        assert now.client.cancel(session_id) is True
        stream.close()
        response = now.client.run(session_id, "second")
        assert outcome(response) == (200, "OK", "completed", None)
        assert_well_formed(now.client.model.requests[-1])


@pytest.mark.parametrize("where", ["before the headers", "after the headers", "in mid-answer", "after a tool"])
def test_cancel_reaches_the_model_server_within_a_second(where: str, tool: Tool) -> None:
    with phase(where, tool) as now:
        session_id = now.client.create()
        stream = now.client.stream(session_id)
        now.reached()
        now.client.cancel(session_id)
        assert now.client.model.closed.wait(5)  # on a busy machine; else one
        stream.close()


def test_cancel_reaches_a_model_server_that_is_asked_for_whole_answers(tool: Tool) -> None:
    with phase("before the headers", tool, stream=False) as now:
        session_id = now.client.create()
        stream = now.client.stream(session_id)
        now.reached()
        assert now.client.cancel(session_id) is True
        assert now.client.model.closed.wait(5)
        assert outcome(stream)[:3] == (200, "", "cancelled")


def test_a_cancelled_turn_is_not_asked_again() -> None:
    with phase("between two tries", Tool()) as now:
        session_id = now.client.create()
        stream = now.client.stream(session_id)
        now.reached()
        now.client.cancel(session_id)
        stream.close()
        now.client.close()
        assert len(now.client.model.requests) == 1


@pytest.mark.parametrize("where", ["before the headers", "in mid-answer", "while a tool works"])
def test_run_of_a_cancelled_turn_is_200_with_the_partial_answer(where: str, tool: Tool) -> None:
    with phase(where, tool) as now:
        session_id = now.client.create()
        waiting = now.client.later(now.client.run, session_id)
        now.reached()
        if now.text:
            now.client.watch(session_id).next("stream_chunk")
        assert now.client.cancel(session_id) is True
        response: TestResponse = waiting.result(TIMEOUT)
        assert outcome(response)[:3] == (200, now.text, "cancelled")
        assert json_of(response)["message"] == now.client.messages(session_id)[-1]


def test_a_result_that_comes_after_a_cancel_is_dropped(tool: Tool, storage: Storage) -> None:
    with phase("while a tool works", tool, storage=storage) as now:
        session_id = now.client.create()
        stream = now.client.stream(session_id)
        now.reached()
        now.client.cancel(session_id)
        before = now.client.messages(session_id)
        tool.go.set()
        assert tool.done.wait(TIMEOUT)
        now.client.close()  # waits for the turn's thread
        assert now.client.messages(session_id) == before
        types = [event["type"] for event in stream]
        assert types == ["stream_start", "stream_chunk", "stream_tool_call", "stream_end"]


def test_of_many_cancels_at_once_one_ends_the_turn_and_all_answer_after_its_end() -> None:
    with Client(answer("Hel", STALL)) as client:
        session_id = client.create()
        stream = client.stream(session_id)
        stream.next("stream_chunk")
        together = threading.Barrier(12)

        def cancel() -> tuple[bool, bool]:
            together.wait(TIMEOUT)
            return client.cancel(session_id), client.session(session_id)["running"]

        answers = [one.result(TIMEOUT) for one in [client.later(cancel) for _ in range(12)]]
        assert any(cancelled for cancelled, _ in answers)
        assert not any(running for _, running in answers)
        assert len(client.messages(session_id)) == 2


@pytest.mark.usefixtures("restless")
def test_cancel_says_true_exactly_when_the_answer_is_kept_as_cancelled(storage: Storage) -> None:
    with Client(storage=storage) as client:
        session_id = client.create()
        for _ in range(40):  # a race with the end of the turn
            stream = client.stream(session_id)
            cancelled = client.cancel(session_id)
            end = stream.next("stream_end")["data"]
            assert end["status"] == ("cancelled" if cancelled else "completed")
            assert client.messages(session_id)[-1].get("status", "completed") == end["status"]


def test_a_cancel_beside_retries_of_an_ended_turn_finds_that_none_runs(storage: Storage) -> None:
    with Client(default=answer("It is 2."), storage=storage) as client:
        session = client.create()
        assert client.run(session, "1 + 1?", Idempotency_Key="key").status_code == 200
        over = threading.Event()

        def retry() -> None:
            while not over.is_set():
                assert client.run(session, "1 + 1?", Idempotency_Key="key").status_code == 200

        retries = [client.later(retry) for _ in range(4)]
        try:
            assert not any(client.cancel(session) for _ in range(200))
        finally:
            over.set()
        for one in retries:
            one.result(TIMEOUT)
