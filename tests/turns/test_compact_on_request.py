"""`POST /sessions/{id}/compact`, and how summaries end early: a cancel, the time, a deletion, the shutdown."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent import tool
from storage import Storage
from tests.support.client import Client, error_of, json_of
from tests.support.model_server import BREAK, STALL, ReplyTo, answer, pause, status, tool_call, wait
from tests.support.server import TIMEOUT, wait_until
from tests.support.sessions import asked, post, texts
from tests.support.summaries import Summarizer, compact, contents, is_beginning, question, talk, tokens

LIMIT = 700  # tokens: seven turns without tools
DUE = 9  # the first turn before which a summary is made


@pytest.fixture
def model() -> Iterator[Summarizer]:
    with Summarizer() as model:
        yield model


@pytest.fixture
def client(model: Summarizer, store: Callable[[], Storage]) -> Iterator[Client]:
    with Client(model=model, storage=store(), tools=()) as client:
        yield client


@pytest.fixture
def plain(model: Summarizer) -> Iterator[Client]:
    with Client(model=model, compact_at=LIMIT, tools=(), keep_alive=0.05) as client:
        yield client


class Summing:
    """A summary that is being made, of the session that it names."""

    def __init__(self, client: Client, turns: int = 6) -> None:
        self.client = client
        self.model: Summarizer = client.model  # type: ignore[assignment]
        self.go = threading.Event()
        self.session = client.create()
        talk(client, self.session, turns)
        self.model.summaries.append(answer("The ", wait(self.go), "summary."))
        self.answer = client.later(client.request, "POST", f"/sessions/{self.session}/compact")
        self.model.wait_for(turns + 1)

    def end(self) -> Any:
        self.go.set()
        return json_of(self.answer.result(TIMEOUT))


# --- on request ---


def test_what_is_old_is_summed_up_and_the_next_turn_goes_on_behind_it(client: Client, model: Summarizer) -> None:
    session = client.create()
    talk(client, session, 6)
    made = compact(client, session)
    assert made["status"] == "completed" and made["compacted"]["content"] == "summary 1."
    assert client.session(session)["compacted"] == made["compacted"]
    assert is_beginning(model.asked[0]["messages"][:-1], model.turns[-1]["messages"])
    talk(client, session, 1, 7)
    assert contents(model.turns[-1])[1:] == ["Question 5", "Answer", "Question 6", "Answer", "Question 7"]
    assert len(texts(client, session)) == 14


def test_the_newest_turns_that_fit_into_half_of_the_last_request_are_not_summed_up(
    client: Client, model: Summarizer
) -> None:
    session = client.create()
    talk(client, session, 6)
    half = tokens(model.turns[-1]) / 2
    compact(client, session)
    talk(client, session, 1, 7)
    assert tokens({"messages": model.turns[-1]["messages"][1:-1]}) <= half


def test_a_session_without_turns_has_nothing_to_sum_up(client: Client, model: Summarizer) -> None:
    assert compact(client, client.create()) == {"status": "nothing_to_sum_up", "compacted": None}
    assert model.requests == []


def test_what_is_summed_up_already_is_not_summed_up_again(client: Client, model: Summarizer) -> None:
    session = client.create()
    talk(client, session, 6)
    made = compact(client, session)["compacted"]
    assert compact(client, session) == {"status": "nothing_to_sum_up", "compacted": made}
    assert len(model.asked) == 1


def test_it_needs_no_count_of_tokens() -> None:
    with Summarizer(tells=False) as model, Client(model=model) as client:
        session = client.create()
        talk(client, session, 6)
        assert compact(client, session)["status"] == "completed"


def test_it_changes_neither_the_list_nor_the_time_of_the_session(client: Client) -> None:
    session, other = client.create(), client.create()
    talk(client, session, 6)
    talk(client, other, 1)
    before = client.session(session)["updated_at"]
    compact(client, session)
    assert client.session(session)["updated_at"] == before
    assert json_of(client.get("/sessions"))["sessions"] == [other, session]


def test_the_tokens_of_all_summaries_on_request_count_in_the_usage(client: Client, model: Summarizer) -> None:
    session = client.create()
    for number in range(0, 18, 6):
        talk(client, session, 6, number + 1)
        compact(client, session)
    assert len(model.asked) == 3
    assert client.session(session)["usage"]["prompt_tokens"] == sum(map(tokens, model.requests))


def test_a_session_that_is_not_there_is_404(plain: Client) -> None:
    assert error_of(plain.request("POST", "/sessions/session-0/compact")) == (404, "session_not_found")


def test_a_body_that_is_no_json_is_400(plain: Client) -> None:
    response = plain.request("POST", f"/sessions/{plain.create()}/compact", b"{")
    assert error_of(response) == (400, "invalid_request")


def test_while_a_turn_runs_it_is_409(client: Client, model: Summarizer) -> None:
    session, go = client.create(), threading.Event()
    model.then(answer("Hel", wait(go), "lo"))
    stream = client.stream(session)
    response = client.request("POST", f"/sessions/{session}/compact")
    assert error_of(response) == (409, "session_busy") and response.headers["Retry-After"] == "1"
    go.set()
    stream.rest()


def test_while_it_runs_the_session_is_busy(client: Client) -> None:
    summing = Summing(client)
    session = summing.session
    assert client.session(session)["running"]
    for path, body in (("run", {"message": "Hi"}), ("compact", None)):
        response = client.request("POST", f"/sessions/{session}/{path}", body)
        assert error_of(response) == (409, "session_busy")
    assert summing.end()["status"] == "completed"
    assert not client.session(session)["running"]
    talk(client, session, 1)


def test_a_message_that_is_queued_meanwhile_begins_behind_it(client: Client, model: Summarizer) -> None:
    summing = Summing(client)
    response = client.request("POST", f"/sessions/{summing.session}/run", {"message": "Next.", "if_busy": "queue"})
    assert response.status_code == 202
    assert summing.end()["status"] == "completed"
    model.wait_for(8)
    assert contents(model.requests[-1])[-1] == "Next."
    assert model.requests[-1]["messages"][0]["content"].endswith("The summary.")
    wait_until(lambda: not client.session(summing.session)["running"])


def test_an_interrupt_ends_it_and_begins_without_a_summary(client: Client, model: Summarizer) -> None:
    summing = Summing(client)
    response = client.request("POST", f"/sessions/{summing.session}/run", {"message": "Now.", "if_busy": "interrupt"})
    assert response.status_code == 202
    assert json_of(summing.answer.result(TIMEOUT))["status"] == "cancelled"
    model.wait_for(8)
    assert contents(model.requests[-1])[-1] == "Now."
    assert "compacted" not in client.session(summing.session)
    wait_until(lambda: not client.session(summing.session)["running"])


def test_where_messages_wait_it_is_409(client: Client, model: Summarizer) -> None:
    @tool(needs_approval=True)
    def send() -> str:
        """Sends."""
        return "sent"

    with Client(model=model, storage=client.storage, tools=[send]) as waiting:
        session, go = waiting.create(), threading.Event()
        talk(waiting, session, 6)
        model.then(answer("Hel", wait(go), "lo"), tool_call("send", {}, id="call_send"))
        stream = waiting.stream(session)
        stream.next("stream_chunk")
        for text in ("two", "three"):
            body = {"message": text, "if_busy": "queue"}
            assert waiting.request("POST", f"/sessions/{session}/run", body).status_code == 202
        go.set()
        stream.rest()
        wait_until(lambda: waiting.session(session).get("pending"))  # which holds the queue
        response = waiting.request("POST", f"/sessions/{session}/compact")
        assert error_of(response) == (409, "session_busy")


def test_a_message_that_came_into_the_current_turn_ends_nothing_old(client: Client, model: Summarizer) -> None:
    def slow() -> str:
        """Waits."""
        go.wait(TIMEOUT)
        return "x" * 6000

    go = threading.Event()
    with Client(model=model, storage=client.storage, tools=[slow], compact_at=LIMIT) as steered:
        session = steered.create()
        model.then(tool_call("slow", {}, id="call_slow"), answer("Hel", BREAK, usage={"prompt_tokens": 9999}))
        stream = steered.stream(session, "one")
        stream.next("stream_tool_call")
        body = {"message": "two", "if_busy": "steer"}
        assert steered.request("POST", f"/sessions/{session}/run", body).status_code == 202
        go.set()
        stream.rest()
        post(steered, session, **{"continue": True})
        assert [role for role, _ in asked(steered)] == ["user", "assistant", "tool", "user"]
        assert model.asked == []


def test_there_is_nothing_to_watch_of_it(client: Client) -> None:
    summing = Summing(client)
    watching = client.watch(summing.session)
    assert watching.status == 204
    summing.end()


def test_the_turn_before_it_can_still_be_watched(plain: Client) -> None:
    summing = Summing(plain)
    summing.end()
    assert plain.watch(summing.session).rest()[-1]["type"] == "stream_end"


def test_a_cancel_ends_it_and_leaves_no_summary(client: Client, model: Summarizer) -> None:
    summing = Summing(client)
    assert client.cancel(summing.session)
    ended = json_of(summing.answer.result(TIMEOUT))
    assert ended == {"status": "cancelled", "compacted": None}
    assert "compacted" not in client.session(summing.session)
    assert model.closed.wait(1)
    assert len(client.messages(summing.session)) == 12
    talk(client, summing.session, 1)


def test_cancel_says_true_exactly_when_there_is_no_summary(client: Client, model: Summarizer) -> None:
    session = client.create()
    talk(client, session, 6)
    copies = [json_of(client.request("POST", "/sessions", {"copy_of": session}))["id"] for _ in range(12)]
    for number, copy in enumerate(copies):
        model.summaries.append(answer("The ", pause(0.01 * (number % 4)), "summary."))
        requests = len(model.requests)
        running = client.later(client.request, "POST", f"/sessions/{copy}/compact")
        model.wait_for(requests + 1)
        cancelled = client.cancel(copy)
        assert cancelled == ("compacted" not in client.session(copy))
        assert json_of(running.result(TIMEOUT))["status"] == ("cancelled" if cancelled else "completed")


def test_a_deletion_ends_it(client: Client) -> None:
    summing = Summing(client)
    assert client.request("DELETE", f"/sessions/{summing.session}").status_code == 200
    assert summing.answer.result(TIMEOUT).status_code in (200, 404)
    assert client.get(f"/sessions/{summing.session}").status_code == 404


def test_a_shutdown_ends_it(plain: Client) -> None:
    summing = Summing(plain)
    plain.shut_down()
    assert error_of(summing.answer.result(TIMEOUT)) == (503, "shutting_down")
    assert "compacted" not in plain.session(summing.session)


FAILURES: dict[str, tuple[ReplyTo, int, str]] = {
    "nothing": (answer(""), 502, "model_error"),
    "cut off": (answer("The", finish_reason="length"), 502, "model_error"),
    "broken off": (answer("The", BREAK), 502, "model_error"),
    "refused": (status(400, {"error": {"message": "no"}}), 502, "model_error"),
    "the key": (status(401, {"error": {"message": "no"}}), 502, "model_unauthorized"),
    "slow down": (status(429, {"error": {"message": "no"}}, {"Retry-After": "100"}), 429, "model_rate_limited"),
    "silent": (answer(STALL), 504, "model_timeout"),
}


@pytest.mark.parametrize(("reply", "code", "name"), FAILURES.values(), ids=list(FAILURES))
def test_a_model_that_fails_is_told_as_for_a_turn(reply: ReplyTo, code: int, name: str) -> None:
    with Summarizer() as model, Client(model=model, timeout=3.0) as client:
        session = client.create()
        talk(client, session, 6)
        model.summaries += [reply] * 3
        response = client.request("POST", f"/sessions/{session}/compact")
        assert error_of(response) == (code, name)
        assert name != "model_rate_limited" or response.headers["Retry-After"] == "100"
        assert "compacted" not in client.session(session) and "last_error" not in client.session(session)
        model.summaries.clear()
        assert compact(client, session)["status"] == "completed"


def test_a_turn_that_waits_is_not_summed_up(client: Client, model: Summarizer) -> None:
    @tool(needs_approval=True)
    def send() -> str:
        """Sends."""
        return "sent"

    with Client(model=model, storage=client.storage, tools=[send]) as waiting:
        session = waiting.create()
        talk(waiting, session, 6)
        model.then(tool_call("send", {}, id="call_send"))
        waiting.run(session, "Send it! " * 300)
        assert compact(waiting, session)["status"] == "completed"
        messages = waiting.messages(session)
        assert waiting.session(session)["pending"]
        until = [message["id"] for message in messages].index(waiting.session(session)["compacted"]["until"])
        post(waiting, session, answers={"call_send": {"approve": True}})
        assert [role for role, _ in asked(waiting)][-4:] == ["assistant", "user", "assistant", "tool"]
        assert len(asked(waiting)) == 1 + len(messages[until + 1 :]) + 1


def test_a_turn_that_failed_can_go_on_behind_a_summary(client: Client, model: Summarizer) -> None:
    session = client.create()
    talk(client, session, 6)
    model.then(answer("Hel", BREAK))
    client.run(session, "x" * 9000)
    compact(client, session)
    post(client, session, **{"continue": True})
    assert [role for role, _ in asked(client)] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert asked(client)[-1] == ("user", "x" * 9000)
    assert asked(client)[0][1].endswith("summary 1.")


def test_the_answer_that_a_retry_gets_stays_the_same(client: Client) -> None:
    session = client.create()
    talk(client, session, 5)
    first = client.run(session, "x" * 9000, Idempotency_Key="k")
    compact(client, session)
    again = client.run(session, "x" * 9000, Idempotency_Key="k")
    assert again.headers["Idempotency-Replayed"] == "true"
    assert json_of(again) == json_of(first)


# --- before a turn ---


def begun(client: Client, *pieces: Any) -> tuple[str, Any]:
    """A session, and the stream of a turn that has begun with a summary."""
    session = client.create()
    talk(client, session, DUE - 1)
    client.model.summaries.append(answer(*pieces))  # type: ignore[attr-defined]
    stream = client.stream(session, question(DUE))
    assert stream.next()["type"] == "stream_start"
    client.model.wait_for(DUE)
    return session, stream


def test_a_cancel_during_the_summary_ends_the_turn_and_leaves_none(plain: Client, model: Summarizer) -> None:
    session, stream = begun(plain, "The sum", STALL)
    assert plain.cancel(session)
    assert stream.last()["data"]["status"] == "cancelled"
    assert model.closed.wait(1)
    assert "compacted" not in plain.session(session)
    last = plain.messages(session)[-1]
    assert (last["content"], last["status"]) == ("", "cancelled")
    assert len(model.turns) == DUE - 1
    talk(plain, session, 1, DUE + 1)
    assert plain.session(session)["compacted"]["content"] == "summary 1."


def test_keep_alive_comments_come_during_the_summary(plain: Client) -> None:
    go = threading.Event()
    session = begun(plain, "The", wait(go), " summary.")[0]
    comments = plain.watch(session)
    assert b"stream_start" in comments.write()
    assert comments.write() == b": keep-alive\n\n"
    go.set()
    assert comments.last()["data"]["status"] == "completed"


def test_a_summary_that_takes_too_long_leaves_the_turn_half_of_its_time() -> None:
    with Summarizer() as model, Client(model=model, compact_at=LIMIT, tools=(), timeout=4.0) as client:
        session = client.create()
        talk(client, session, DUE - 1)
        model.summaries.append(answer("The", STALL))
        began = time.monotonic()
        talk(client, session, 1, DUE)
        assert 1.5 < time.monotonic() - began < 4
        assert "compacted" not in client.session(session)


def test_a_deletion_during_the_summary_ends_the_turn(plain: Client) -> None:
    session, stream = begun(plain, STALL)
    assert plain.request("DELETE", f"/sessions/{session}").status_code == 200
    assert stream.last()["data"]["status"] == "cancelled"


def test_a_shutdown_during_the_summary_ends_the_turn_with_its_question_stored(plain: Client) -> None:
    session, stream = begun(plain, STALL)
    plain.shut_down()
    assert stream.last()["data"]["code"] == "shutting_down"
    assert texts(plain, session)[-1] == question(DUE) and "compacted" not in plain.session(session)


def test_the_turns_behind_a_summary_are_cut_by_max_history_from_there_on(model: Summarizer) -> None:
    with Client(model=model, compact_at=LIMIT, tools=(), max_history=8) as client:
        session = client.create()
        talk(client, session, 6)
        compact(client, session)
        talk(client, session, 5, 7)
        first = [contents(request)[1] for request in model.turns[-5:]]
        assert first == [*["Question 6"] * 4, "Question 9"]
        assert model.turns[-1]["messages"][0]["content"].endswith("summary 1.")
