"""The AI SDK's own client, versions 5 to 7, against a server process: what it shows is what the server keeps."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from session_core.web.ui_messages import UI_MESSAGES
from tests.support.front_end import MISSING, NEEDS, NODE, FrontEnd, shapes
from tests.support.model_server import (
    BREAK,
    STALL,
    ModelServer,
    ReplyTo,
    answer,
    frames,
    status,
    tool_call,
    tool_calls,
)
from tests.support.model_server import wait as wait_for
from tests.support.server import ROOT, TIMEOUT, Server, wait_until

pytestmark = pytest.mark.skipif(MISSING, reason=NEEDS)

THINKS = frames(
    {"choices": [{"index": 0, "delta": {"reasoning_content": "Hm. "}}]},
    {"choices": [{"index": 0, "delta": {"reasoning_content": "Yes."}}]},
    {"choices": [{"index": 0, "delta": {"content": "It is "}}]},
    {"choices": [{"index": 0, "delta": {"content": "345."}, "finish_reason": "stop"}]},
    "[DONE]",
)
SUM = ("calculator", {"expression": "15 * 23"})
TURNS: dict[str, tuple[ReplyTo, ...]] = {
    "text": (answer("It is ", "345.", usage={"total_tokens": 3}),),
    "nothing": (answer(),),
    "reasoning": (THINKS,),
    "a tool": (tool_call(*SUM, text="Let me see. "), answer("It is 345.")),
    "several tools": (tool_calls(SUM, ("calculator", {"expression": "1/0"}), ("abacus", {})), answer("345.")),
    "arguments that are no object": (tool_calls(("calculator", "{"), ("calculator", "[1]")), answer("345.")),
    "several rounds": (tool_call(*SUM), tool_call(*SUM), THINKS),
    "a cut": (answer("It is", finish_reason="length"),),
    "a filter": (answer("It is", finish_reason="content_filter"),),
    "no reason": (answer("It is", finish_reason=None),),
    "a failure": (answer("It is", BREAK),),
    "a failure without text": (status(401, {}),),
    "a failure after a tool": (tool_call(*SUM), status(401, {})),
}
FINISHES = {"a cut": "length", "a filter": "content-filter", "no reason": "other"}


@pytest.fixture(scope="module")
def shared_model() -> Iterator[ModelServer]:
    with ModelServer() as model:
        yield model


@pytest.fixture
def model(shared_model: ModelServer) -> ModelServer:
    shared_model.forget()
    return shared_model


@pytest.fixture(scope="module")
def server(shared_model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with Server(f"-base_url={shared_model.base_url}", "-keep_alive=0.2", log=log) as server:
        yield server


@pytest.fixture(scope="module", params=["ai5", "ai6", "ai"])
def client(request: pytest.FixtureRequest) -> Iterator[FrontEnd]:
    with FrontEnd(request.param) as client:
        yield client


@pytest.fixture
def front_end(client: FrontEnd, server: Server) -> FrontEnd:
    return client.open(server.url, server.create())


def history(server: Server, front_end: FrontEnd) -> list[dict[str, Any]]:
    """What the server keeps, as UI messages."""
    reply = server.request("GET", f"/sessions/{front_end.session_id}", headers={"Accept": UI_MESSAGES})
    assert reply.status == 200
    messages: list[dict[str, Any]] = reply.json
    return messages


def texts(messages: list[dict[str, Any]]) -> list[str]:
    return ["".join(part.get("text", "") for part in message["parts"]) for message in messages]


@pytest.mark.parametrize("kind", TURNS)
def test_a_turn_is_the_same_to_the_client_and_in_the_history(
    front_end: FrontEnd, server: Server, model: ModelServer, kind: str
) -> None:
    model.then(*TURNS[kind])
    found = front_end.send("How much?")
    assert shapes(found["messages"]) == shapes(history(server, front_end))
    assert (found["status"] == "error") == kind.startswith("a failure")
    if kind.startswith("a failure"):
        assert "model server" in found["error"]
    else:
        assert found["finish"]["finishReason"] == FINISHES.get(kind, "stop")
    found = front_end.send("And now?")
    assert found["status"] == "ready"
    assert texts(found["messages"])[-1] == "OK"
    assert shapes(found["messages"]) == shapes(history(server, front_end))
    front_end.do("validate", history(server, front_end))


def test_a_cancelled_turn_keeps_what_was_shown(front_end: FrontEnd, server: Server, model: ModelServer) -> None:
    model.then(tool_call(*SUM), answer("It is", STALL))
    front_end.do("send", {"text": "How much?"})
    front_end.do("shows", "It is")
    assert server.request("POST", f"/sessions/{front_end.session_id}/cancel").json == {"cancelled": True}
    found = front_end.do("settle")
    assert (found["status"], found["frames"][-1]) == ("ready", {"type": "abort"})
    assert found["messages"][-1]["metadata"]["status"] == "cancelled"
    assert shapes(found["messages"]) == shapes(history(server, front_end))


def test_a_client_that_stops_ends_the_request_and_not_the_turn(
    front_end: FrontEnd, server: Server, model: ModelServer
) -> None:
    model.then(answer("Wait", STALL))
    front_end.do("send", {"text": "How much?"})
    front_end.do("shows", "Wait")
    assert front_end.do("stop")["status"] == "ready"
    assert server.request("GET", f"/sessions/{front_end.session_id}").json["running"]


def test_a_client_in_mid_answer_loads_and_resumes_without_doubling(
    front_end: FrontEnd, server: Server, model: ModelServer
) -> None:
    go = threading.Event()
    model.then(tool_call(*SUM, text="Let me see. "), answer("It is ", wait_for(go), "345."))
    with FrontEnd(front_end.package) as second:
        second.open(server.url, front_end.session_id)
        front_end.do("send", {"text": "How much?"})
        front_end.do("shows", "It is ")
        second.do("load", history(server, second))
        second.do("resume")
        second.do("shows", "It is ")
        go.set()
        shown = [client.do("settle")["messages"] for client in (front_end, second)]
        assert shapes(shown[0]) == shapes(shown[1]) == shapes(history(server, second))
        second.do("resume")  # nothing runs by now
        found = second.do("settle")
        assert (found["status"], found["messages"]) == ("ready", shown[1])


def test_a_client_that_lost_its_connection_resumes_without_doubling(
    front_end: FrontEnd, server: Server, model: ModelServer
) -> None:
    go = threading.Event()
    model.then(answer("It is ", wait_for(go), "345."))
    front_end.do("send", {"text": "How much?"})
    front_end.do("shows", "It is ")
    front_end.do("stop")
    front_end.do("resume")
    wait_until(lambda: front_end.do("shows", "It is ")["status"] == "streaming")
    go.set()
    found = front_end.do("settle")
    assert texts(found["messages"]) == ["How much?", "It is 345."]
    assert shapes(found["messages"]) == shapes(history(server, front_end))


@pytest.mark.parametrize("only_last", [False, True])
@pytest.mark.parametrize("reload", [False, True])
def test_questions_are_edited_and_answers_tried_again(
    front_end: FrontEnd, server: Server, model: ModelServer, only_last: bool, reload: bool
) -> None:
    model.then(*(answer(f"Answer {number}") for number in range(1, 9)))
    front_end.open(server.url, front_end.session_id, only_last=only_last)

    def holds(found: dict[str, Any], *expected: str) -> list[dict[str, Any]]:
        assert found["status"] == "ready", found["error"]
        assert texts(found["messages"]) == list(expected)
        assert shapes(found["messages"]) == shapes(history(server, front_end))
        if reload:
            front_end.do("load", history(server, front_end))
            return history(server, front_end)
        messages: list[dict[str, Any]] = found["messages"]
        return messages

    holds(front_end.send("One"), "One", "Answer 1")
    messages = holds(front_end.send("Two"), "One", "Answer 1", "Two", "Answer 2")
    holds(front_end.again(), "One", "Answer 1", "Two", "Answer 3")
    messages = holds(front_end.again(), "One", "Answer 1", "Two", "Answer 4")
    messages = holds(front_end.again(messageId=messages[-1]["id"]), "One", "Answer 1", "Two", "Answer 5")
    messages = holds(front_end.send("Three", messageId=messages[2]["id"]), "One", "Answer 1", "Three", "Answer 6")
    messages = holds(front_end.send("Two", messageId=messages[2]["id"]), "One", "Answer 1", "Two", "Answer 7")
    holds(front_end.again(messageId=messages[1]["id"]), "One", "Answer 8")


def test_a_page_that_edits_by_setting_its_messages_is_answered_for_what_it_shows(
    front_end: FrontEnd, server: Server, model: ModelServer
) -> None:
    model.then(*(answer(f"Answer {number}") for number in range(1, 6)))
    front_end.send("One")
    messages = front_end.send("Two")["messages"]

    front_end.do("set", messages[:2])  # as assistant-ui does
    edited = front_end.send("Edited")["messages"]
    assert [one["content"] for one in model.requests[-1]["messages"]][-3:] == ["One", "Answer 1", "Edited"]
    assert texts(history(server, front_end)) == texts(edited) == ["One", "Answer 1", "Edited", "Answer 3"]

    changed = {**edited[2], "parts": [{"type": "text", "text": "Changed"}]}
    front_end.do("set", [*edited[:2], changed])  # as Vercel's chatbot does
    shown = front_end.again()["messages"]
    assert [one["content"] for one in model.requests[-1]["messages"]][-3:] == ["One", "Answer 1", "Changed"]
    assert texts(history(server, front_end)) == texts(shown) == ["One", "Answer 1", "Changed", "Answer 4"]

    front_end.do("set", messages)  # back to another branch
    shown = front_end.send("Three")["messages"]
    assert texts(history(server, front_end)) == texts(shown)
    assert texts(shown) == ["One", "Answer 1", "Two", "Answer 2", "Three", "Answer 5"]


def test_an_answer_that_is_being_tried_again_is_joined(
    front_end: FrontEnd, server: Server, model: ModelServer
) -> None:
    go = threading.Event()
    model.then(answer("Answer 1"), answer("Answer ", wait_for(go), "2"))
    front_end.send("One")
    front_end.do("again", {})
    front_end.do("shows", "Answer ")
    with FrontEnd(front_end.package) as other:
        other.open(server.url, front_end.session_id)
        other.do("load", history(server, other))  # without the answer, which is being written
        other.do("again", {})
        other.do("shows", "Answer ")
        go.set()
        shown = [client.do("settle")["messages"] for client in (front_end, other)]
    assert shapes(shown[0]) == shapes(shown[1]) == shapes(history(server, front_end))
    assert (texts(shown[0]), len(model.requests)) == (["One", "Answer 2"], 2)


@pytest.mark.parametrize("how", ["send", "edit", "again by id"])
def test_a_request_that_is_sent_twice_happens_once(
    front_end: FrontEnd, server: Server, model: ModelServer, how: str
) -> None:
    model.then(answer("Answer 1"), answer("Answer 2"))
    found = front_end.send("One")
    if how == "edit":
        front_end.send("Two", messageId=found["messages"][0]["id"])
    elif how == "again by id":
        front_end.again(messageId=found["messages"][1]["id"])
    before = history(server, front_end)
    asked = len(model.requests)
    assert front_end.do("repeat")["result"] == 200
    assert (history(server, front_end), len(model.requests)) == (before, asked)


def test_a_question_that_never_arrived_is_asked_when_it_is_tried_again(
    front_end: FrontEnd, server: Server, model: ModelServer
) -> None:
    front_end.send("One")
    go = threading.Event()
    model.then(answer("Wait", wait_for(go)))
    stream = server.say(front_end.session_id, "From elsewhere")
    events = stream.events()
    assert next(event for event in events if event["type"] == "stream_chunk")
    found = front_end.send("Two")
    assert found["status"] == "error"
    assert found["error"] == "A turn is running in this session. Wait for its end, or cancel it."
    go.set()
    assert list(events)[-1]["type"] == "stream_end"
    found = front_end.again()
    assert found["status"] == "ready"
    assert texts(history(server, front_end)) == ["One", "OK", "Two", "OK"]  # what the page shows


def test_the_oldest_version_that_works(server: Server, model: ModelServer) -> None:
    """Those before 5.0.92 refuse the `finishReason` of a `finish`."""
    with FrontEnd("ai5-oldest") as front_end:
        front_end.open(server.url, server.create())
        model.then(*TURNS["several tools"], *TURNS["several rounds"])
        front_end.send("How much?")
        found = front_end.again()
        assert (found["status"], found["frames"][-1]) == ("ready", {"type": "finish", "finishReason": "stop"})
        assert shapes(found["messages"]) == shapes(history(server, front_end))
        front_end.do("validate", history(server, front_end))


def test_a_session_that_is_not_there_is_an_error(front_end: FrontEnd, server: Server) -> None:
    found = front_end.open(server.url, "session-none").send("One")
    assert found["error"] == "Session session-none not found"


def test_a_token_is_a_header_of_the_transport(client: FrontEnd, serve: Callable[..., Server]) -> None:
    server = serve("-demo", "-auth_token=secret")
    token = {"Authorization": "Bearer secret"}
    session_id = server.request("POST", "/sessions", headers=token).json["id"]
    client.open(server.url, session_id, headers=token)
    assert client.send("What is 15 * 23?")["status"] == "ready"
    client.do("resume")
    assert client.do("settle")["status"] == "ready"
    client.open(server.url, session_id)
    assert client.send("What is 15 * 23?")["error"].startswith("A valid token is needed")


def test_the_example_without_the_ai_sdk_works_as_it_stands(serve: Callable[..., Server]) -> None:
    example = (ROOT / "docs" / "front-ends.md").read_text().split("```js\nconst server")[1].split("```")[0]
    script = f"const server{example}".replace("http://127.0.0.1:8080", serve("-demo").url)
    command = [str(NODE), "--experimental-eventsource", "--no-warnings", "--input-type=module", "--eval", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    first, *rest = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert (first, "".join(rest)) == ("2 + 2 is 4.", "15 * 23 is 345.")
