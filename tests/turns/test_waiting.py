"""Turns that wait for a person, or for the client."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from agent import tool
from session_core.stores.files import FileStorage
from tests.support.client import Client, Stream, error_of, json_of
from tests.support.model_server import BREAK, STALL, ReplyTo, answer, status, tool_call, tool_calls
from tests.support.server import TIMEOUT
from tests.support.well_formed import assert_well_formed

SEND = tool_call("send", {"to": "Ann"}, text="Shall I?", id="call_send")
BOTH = tool_calls(("look", {}), ("send", {"to": "Ann"}), ids=("call_look", "call_send"))
YES: dict[str, Any] = {"call_send": {"approve": True}}
NO: dict[str, Any] = {"call_send": {"approve": False, "reason": "not to Ann"}}
PENDING = [{"id": "call_send", "name": "send", "arguments": '{"to": "Ann"}', "for": "approval"}]


class Mail:
    """What the tools did. `blocked`, where it is set, is what sending waits for."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.began = threading.Event()
        self.blocked: threading.Event | None = None

    def tools(self) -> list[Any]:
        @tool(needs_approval=True)
        def send(to: str) -> str:
            """Sends a letter."""
            self.sent.append(to)
            self.began.set()
            if self.blocked:
                self.blocked.wait(TIMEOUT)
            return f"sent to {to}"

        def look() -> str:
            """Looks for letters."""
            return "no letters"

        return [send, look]


@pytest.fixture
def mail() -> Mail:
    return Mail()


@pytest.fixture(params=["memory", "files"])
def client(request: pytest.FixtureRequest, mail: Mail, tmp_path: Path) -> Iterator[Client]:
    storage = FileStorage.open(str(tmp_path / "sessions")) if request.param == "files" else None
    with Client(storage=storage, tools=mail.tools()) as client:
        yield client


def waiting(client: Client, *replies: ReplyTo) -> str:
    """A session that waits."""
    client.model.then(*(replies or (SEND,)))
    session = client.create()
    assert json_of(client.run(session, "Write to Ann"))["message"]["status"] == "waiting"
    return session


def reply(client: Client, session: str, answers: object, how: str = "run", **headers: str) -> TestResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.request("POST", f"/sessions/{session}/{how}", {"answers": answers}, named)


def events(client: Client, session: str, answers: object) -> list[dict[str, Any]]:
    frames = reply(client, session, answers, "run_stream").text.splitlines()
    return [json.loads(line[6:]) for line in frames if line]


def told(client: Client) -> list[tuple[str, str]]:
    """What the model got last, as roles and texts."""
    assert_well_formed(client.model.requests[-1])
    return [(one["role"], one["content"]) for one in client.model.requests[-1]["messages"]]


def texts(client: Client, session: str) -> list[tuple[str, str]]:
    return [(one["role"], one["content"]) for one in client.messages(session)]


def test_a_call_that_needs_approval_ends_the_turn_and_waits(client: Client, mail: Mail) -> None:
    client.model.then(SEND)
    session = client.create()
    message = json_of(client.run(session, "Write to Ann"))["message"]
    assert (message["status"], message["pending"], message["content"]) == ("waiting", PENDING, "Shall I?")
    found = client.session(session)
    assert (found["pending"], found["running"]) == (PENDING, False)
    assert found["messages"][-1] == message
    assert mail.sent == [] and len(client.model.requests) == 1


def test_the_stream_ends_with_what_is_pending(client: Client) -> None:
    client.model.then(SEND)
    session = client.create()
    *_, call, end = client.stream(session, "Write to Ann")
    assert call["type"] == "stream_tool_call"
    assert (end["type"], end["data"]["status"], end["data"]["pending"]) == ("stream_end", "waiting", PENDING)
    assert end["data"]["message_id"] == client.messages(session)[-1]["id"]
    assert (end["data"]["complete_text"], end["data"]["finish_reason"]) == ("Shall I?", "tool_calls")


def test_the_other_calls_of_the_same_answer_run(client: Client, mail: Mail) -> None:
    client.model.then(BOTH)
    session = client.create()
    kinds = [event["type"] for event in client.stream(session)]
    assert kinds == ["stream_start", "stream_tool_call", "stream_tool_call", "stream_tool_result", "stream_end"]
    assert texts(client, session) == [("user", "Hi"), ("assistant", ""), ("tool", "no letters")]
    assert client.session(session)["pending"] == PENDING
    reply(client, session, YES)
    assert told(client)[-2:] == [("tool", "no letters"), ("tool", "sent to Ann")]


def test_an_approved_call_runs_and_the_turn_goes_on(client: Client, mail: Mail) -> None:
    session = waiting(client)
    client.model.then(answer("Done."))
    message = json_of(reply(client, session, YES))["message"]
    assert message["content"] == "Done." and "status" not in message and "pending" not in message
    assert mail.sent == ["Ann"]
    assert told(client) == [("user", "Write to Ann"), ("assistant", "Shall I?"), ("tool", "sent to Ann")]
    found = client.session(session)
    assert "pending" not in found and all("status" not in one for one in found["messages"])
    assert error_of(reply(client, session, YES)) == (409, "nothing_to_continue")
    assert mail.sent == ["Ann"]


def test_the_events_of_what_goes_on_begin_with_the_results(client: Client) -> None:
    session = waiting(client)
    client.model.then(answer("Done."))
    start, result, chunk, end = events(client, session, YES)
    assert [start["type"], chunk["type"]] == ["stream_start", "stream_chunk"]
    assert result["data"] == {"id": "call_send", "name": "send", "result": "sent to Ann"}
    assert (end["data"]["complete_text"], end["data"]["status"]) == ("Done.", "completed")


def test_a_denied_call_is_told_to_the_model_with_its_reason(client: Client, mail: Mail) -> None:
    session = waiting(client)
    result = events(client, session, NO)[1]
    assert result["data"] == {"id": "call_send", "name": "send", "error": "not executed: not to Ann"}
    assert told(client)[-1] == ("tool", "not executed: not to Ann")
    stored = client.messages(session)[2]
    assert (stored["content"], stored["is_error"]) == ("not executed: not to Ann", True)
    assert mail.sent == []


def test_a_denial_needs_no_reason(client: Client) -> None:
    session = waiting(client)
    reply(client, session, {"call_send": {"approve": False}})
    assert told(client)[-1] == ("tool", "not executed: the user did not allow it")


@pytest.mark.parametrize(
    ("answers", "names"),
    [
        ({}, "call_send is missing"),
        ({"call_send": {"result": "sent"}}, "call_send waits for approve"),
        ({"call_send": {"error": "no"}}, "call_send waits for approve"),
        ({"call_send": {"approve": True}, "call_2": {"approve": True}}, "call_2 does not wait"),
        ({"call_send": {"approve": True, "result": "x"}}, "exactly one of approve, result and error"),
        ({"call_send": {}}, "exactly one of approve, result and error"),
        ({"call_send": {"approve": "yes"}}, "answers.call_send.approve"),
        ({"call_send": {"approve": None}}, "answers.call_send"),
        ({"call_send": True}, "answers.call_send"),
        ([], "answers"),
    ],
)
def test_answers_that_do_not_fit_are_refused_by_name(client: Client, mail: Mail, answers: object, names: str) -> None:
    session = waiting(client)
    response = reply(client, session, answers)
    assert error_of(response) == (400, "invalid_request") and names in json_of(response)["error"]
    assert client.session(session)["pending"] == PENDING and mail.sent == []
    assert len(client.model.requests) == 1


def test_nothing_runs_before_every_answer_is_known(client: Client, mail: Mail) -> None:
    two = tool_calls(("send", {"to": "Ann"}), ("send", {"to": "Bob"}), ids=("call_1", "call_2"))
    session = waiting(client, two)
    assert error_of(reply(client, session, {"call_1": {"approve": True}})) == (400, "invalid_request")
    assert mail.sent == []
    reply(client, session, {"call_2": {"approve": True}, "call_1": {"approve": False, "reason": "no"}})
    assert mail.sent == ["Bob"]
    assert told(client)[-2:] == [("tool", "not executed: no"), ("tool", "sent to Bob")]
    assert [one["tool_call_id"] for one in client.messages(session) if one["role"] == "tool"] == ["call_1", "call_2"]


@pytest.mark.parametrize("more", [{"message": "Hi"}, {"continue": True}, {"replaces": "msg-1"}, {"after": "msg-1"}])
def test_answers_stand_alone(client: Client, more: Mapping[str, Any]) -> None:
    body = {"answers": YES, **more}
    session = waiting(client)
    assert error_of(client.request("POST", f"/sessions/{session}/run", body)) == (400, "invalid_request")


def test_answers_where_nothing_waits_are_refused(client: Client) -> None:
    session = client.create()
    assert error_of(reply(client, session, YES)) == (409, "nothing_to_continue")
    client.run(session)
    assert error_of(reply(client, session, YES)) == (409, "nothing_to_continue")
    assert error_of(reply(client, "session-0", YES)) == (404, "session_not_found")


def test_a_waiting_turn_does_not_go_on_without_answers(client: Client, mail: Mail) -> None:
    session = waiting(client)
    body = {"continue": True}
    assert error_of(client.request("POST", f"/sessions/{session}/run", body)) == (409, "turn_waiting")
    assert client.session(session)["pending"] == PENDING


def test_a_new_message_denies_what_is_pending(client: Client, mail: Mail) -> None:
    session = waiting(client)
    assert client.run(session, "Never mind").status_code == 200
    denied = ("tool", "not executed: the user went on")
    assert told(client)[-3:] == [denied, ("assistant", "(interrupted)"), ("user", "Never mind")]
    stored = client.messages(session)
    assert [one["role"] for one in stored] == ["user", "assistant", "tool", "user", "assistant"]
    assert stored[2]["is_error"] is True and "pending" not in client.session(session)
    assert error_of(reply(client, session, YES)) == (409, "nothing_to_continue")
    assert mail.sent == []


def test_a_cancel_denies_what_is_pending(client: Client, mail: Mail) -> None:
    session = waiting(client)
    assert client.cancel(session) is True
    assert client.cancel(session) is False
    found = client.session(session)
    assert "pending" not in found
    assert [(one["role"], one.get("status")) for one in found["messages"]][1:] == [
        ("assistant", None),
        ("tool", None),
        ("assistant", "cancelled"),
    ]
    assert error_of(reply(client, session, YES)) == (409, "nothing_to_continue")
    client.run(session, "Hello")
    assert ("tool", "not executed: the user went on") in told(client)
    assert mail.sent == []


@pytest.mark.parametrize("number", range(5))
def test_a_cancel_beside_the_answers_ends_the_turn_once(client: Client, restless: None, number: int) -> None:
    session = waiting(client)
    client.model.then(answer("Done."))
    answered = client.later(reply, client, session, YES)
    cancelled = client.cancel(session)
    assert answered.result(TIMEOUT).status_code in ((200, 409) if cancelled else (200,))
    asked, *rest = [one for one in client.messages(session) if one["role"] == "assistant"]
    assert asked["content"] == "Shall I?"
    assert [one.get("status") for one in rest] == ["cancelled" if cancelled else None]


def test_a_cancelled_turn_that_waited_is_what_its_key_gives(client: Client) -> None:
    client.model.then(SEND)
    session = client.create()
    client.run(session, "Write", Idempotency_Key="q")
    client.cancel(session)
    assert json_of(client.run(session, "Write", Idempotency_Key="q"))["message"]["status"] == "cancelled"


def test_the_question_can_be_asked_again_while_it_waits(client: Client) -> None:
    session = waiting(client)
    question = client.messages(session)[0]["id"]
    body = {"replaces": question, "message": "Write to Bob"}
    assert client.request("POST", f"/sessions/{session}/run", body).status_code == 200
    assert told(client) == [("user", "Write to Bob")]
    assert "pending" not in client.session(session)


def test_the_key_of_a_waiting_turn_gives_it_again(client: Client) -> None:
    client.model.then(SEND)
    session = client.create()
    first = client.run(session, "Write", Idempotency_Key="q")
    client.app.extensions["turns"].turns.forget((client.storage, session))
    again = client.run(session, "Write", Idempotency_Key="q")
    assert json_of(again) == json_of(first) and again.headers["Idempotency-Replayed"] == "true"
    stream = client.stream(session, "Write", Idempotency_Key="q").rest()
    assert [event["type"] for event in stream] == [
        *("stream_start", "stream_chunk", "stream_tool_call", "stream_end")
    ]
    assert stream[-1]["data"]["pending"] == PENDING and stream[-1]["data"]["finish_reason"] == "tool_calls"
    assert len(client.model.requests) == 1


def test_answers_under_a_key_count_once(client: Client, mail: Mail) -> None:
    session = waiting(client)
    first = reply(client, session, YES, Idempotency_Key="a")
    again = reply(client, session, YES, Idempotency_Key="a")
    assert json_of(again) == json_of(first) and again.headers["Idempotency-Replayed"] == "true"
    assert error_of(reply(client, session, NO, Idempotency_Key="a")) == (422, "idempotency_key_reused")
    assert error_of(client.run(session, "Hi", Idempotency_Key="a")) == (422, "idempotency_key_reused")
    client.run(session, "Thanks")
    assert json_of(reply(client, session, YES, Idempotency_Key="a")) == json_of(first)
    assert error_of(reply(client, session, NO, Idempotency_Key="a")) == (422, "idempotency_key_reused")
    assert mail.sent == ["Ann"]


def test_a_retry_of_answers_joins_the_turn_that_runs(client: Client, mail: Mail) -> None:
    mail.blocked = threading.Event()
    session = waiting(client)
    first = client.later(reply, client, session, YES, Idempotency_Key="a")
    assert mail.began.wait(TIMEOUT)
    assert error_of(reply(client, session, YES)) == (409, "session_busy")
    second = client.later(reply, client, session, YES, Idempotency_Key="a")
    mail.blocked.set()
    assert json_of(first.result(TIMEOUT)) == json_of(second.result(TIMEOUT))
    assert mail.sent == ["Ann"]


def test_a_failed_attempt_is_tried_again_under_the_key_of_its_answers(client: Client, mail: Mail) -> None:
    session = waiting(client)
    client.model.then(status(401, {}), answer("Done."))
    assert error_of(reply(client, session, YES, Idempotency_Key="a")) == (502, "model_unauthorized")
    assert json_of(reply(client, session, YES, Idempotency_Key="a"))["message"]["content"] == "Done."
    assert told(client)[-1] == ("tool", "sent to Ann") and mail.sent == ["Ann"]


def test_what_goes_on_may_wait_again_and_counts_its_rounds_anew(client: Client, mail: Mail) -> None:
    session = waiting(client)
    for _ in range(2):
        client.model.then(*(tool_call("look", {}) for _ in range(9)), SEND)
        waits = client.session(session)["pending"][0]["id"]
        assert json_of(reply(client, session, {waits: {"approve": True}}))["message"]["status"] == "waiting"
    assert mail.sent == ["Ann", "Ann"]


def test_a_tool_that_is_gone_is_an_error_that_the_model_is_told(client: Client, mail: Mail) -> None:
    session = waiting(client)
    with Client(model=client.model, storage=client.storage, tools=[]) as later:
        assert reply(later, session, YES).status_code == 200
        assert told(later)[-1][1].startswith("error: there is no tool of this name")


def test_what_waits_waits_after_a_restart(client: Client, mail: Mail) -> None:
    session = waiting(client)
    with Client(model=client.model, storage=client.storage, tools=mail.tools()) as later:
        assert later.session(session)["pending"] == PENDING
        assert reply(later, session, YES).status_code == 200
    assert mail.sent == ["Ann"]


def test_a_copy_waits_on_its_own(client: Client, mail: Mail) -> None:
    session = waiting(client)
    copy = json_of(client.request("POST", "/sessions", {"copy_of": session}))["id"]
    reply(client, session, NO)
    assert client.session(copy)["pending"] == PENDING
    reply(client, copy, YES)
    assert mail.sent == ["Ann"] and "pending" not in client.session(copy)


def test_an_import_does_not_wait(client: Client) -> None:
    messages = client.messages(waiting(client))
    session = json_of(client.request("POST", "/sessions", {"messages": messages}))["id"]
    assert "pending" not in client.session(session)
    assert client.run(session, "Hello").status_code == 200
    told(client)


def test_a_document_tells_that_a_turn_waits(client: Client) -> None:
    text = client.get(f"/sessions/{waiting(client)}", Accept="text/markdown").text
    assert "Status: waiting (for answers)" in text and "Tool call of send" in text


def test_the_usage_of_a_waiting_turn_counts_once(client: Client) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    session = waiting(client, tool_calls(("send", {"to": "Ann"}), usage=usage))
    assert client.messages(session)[-1]["usage"] == usage
    client.model.then(answer("Done.", usage=usage))
    reply(client, session, {"call_1": {"approve": True}})
    assert client.session(session)["usage"]["total_tokens"] == 10


def test_a_cancel_while_other_calls_run_leaves_nothing_waiting(mail: Mail) -> None:
    began = threading.Event()

    def hang() -> str:
        """Takes long."""
        began.set()
        threading.Event().wait(0.5)
        return "late"

    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    both = tool_calls(("hang", {}), ("send", {"to": "Ann"}), ids=("call_hang", "call_send"), usage=usage)
    with Client(both, tools=[hang, *mail.tools()]) as client:
        session = client.create()
        stream = client.stream(session)
        stream.next("stream_start")
        assert began.wait(TIMEOUT)
        client.cancel(session)
        stream.close()
        found = client.session(session)
        assert "pending" not in found and found["usage"] == usage
        client.request("POST", f"/sessions/{session}/run", {"continue": True})
        assert told(client)[-2:] == [
            ("tool", "error: interrupted; the tool may have run"),
            ("tool", "not executed: the user went on"),
        ]


@pytest.mark.parametrize("then", ["continue", "message", "copy"])
def test_a_call_that_was_cut_off_is_not_run_again_and_no_answer_is_lost(
    client: Client, mail: Mail, then: str
) -> None:
    mail.blocked = threading.Event()
    three = tool_calls(*(("send", {"to": to}) for to in ("Ann", "Bob", "Eve")), ids=("call_1", "call_2", "call_3"))
    session = waiting(client, three)
    no = {"approve": False, "reason": "no"}
    answers = {"call_1": no, "call_2": {"approve": True}, "call_3": no}
    response = client.later(reply, client, session, answers)
    assert mail.began.wait(TIMEOUT)
    client.cancel(session)
    mail.blocked.set()
    assert json_of(response.result(TIMEOUT))["message"]["status"] == "cancelled"
    assert "pending" not in client.session(session)
    if then == "copy":
        session = json_of(client.request("POST", "/sessions", {"copy_of": session}))["id"]
    body = {"continue": True} if then == "continue" else {"message": "Hello"}
    assert client.request("POST", f"/sessions/{session}/run", body).status_code == 200
    results = [
        ("tool", "not executed: no"),
        ("tool", "error: interrupted; the tool may have run"),
        ("tool", "not executed: no"),
    ]
    assert [one for one in told(client) if one[0] == "tool"] == results
    assert mail.sent == ["Bob"]


def test_a_running_turn_that_goes_on_is_watched_and_does_not_wait(client: Client, mail: Mail) -> None:
    session = waiting(client)
    client.model.then(answer("Hel", STALL))
    response = client.later(reply, client, session, YES)
    client.model.wait_for(2)
    watcher: Stream = client.watch(session)
    assert [watcher.next()["type"], watcher.next()["type"]] == ["stream_start", "stream_tool_result"]
    watcher.next("stream_chunk")
    assert "pending" not in client.session(session)
    client.cancel(session)
    assert json_of(response.result(TIMEOUT))["message"]["content"] == "Hel"


def test_what_goes_on_and_breaks_off_goes_on_from_the_results(client: Client, mail: Mail) -> None:
    session = waiting(client)
    client.model.then(answer("Do", BREAK), answer("Done."))
    assert reply(client, session, YES).status_code == 502
    assert client.request("POST", f"/sessions/{session}/run", {"continue": True}).status_code == 200
    assert told(client)[-1] == ("tool", "sent to Ann") and mail.sent == ["Ann"]
