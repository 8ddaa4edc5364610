"""Whatever breaks in a turn, and wherever in it, the session takes the next one, and its request is well formed."""

from __future__ import annotations

import itertools
import json
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from session_core.model.demo import Exchange, ScriptedReply, chunk
from session_core.stores.files import FileStorage
from storage import MemoryStorage
from tests.support.client import Client, error_of, json_of
from tests.support.model_server import (
    BREAK,
    RESET,
    STALL,
    ModelServer,
    Piece,
    ReplyTo,
    answer,
    body,
    frames,
    nobody_listens,
    raw,
    status,
    tool_call,
    tool_calls,
)
from tests.support.server import TIMEOUT, Server
from tests.support.well_formed import assert_well_formed

# A turn with a tool, in which something happens at one place: a text and a call are answered, then a text.
TOOL = tool_call("calculator", {"expression": "1+1"}, text="Let me see. ")
SAYS = chunk({"role": "assistant", "content": "Let me see. "})
CALLS = chunk({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "calculator"}}]})
ARGUES = chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"expres'}}]})


class Phase(NamedTuple):
    before: tuple[ReplyTo, ...]  # answers before the one with the fault
    said: tuple[Piece, ...]  # of that one


PHASES = {
    "before the first answer": Phase((), ()),
    "in the first answer": Phase((), (SAYS,)),
    "in a tool call": Phase((), (SAYS, CALLS, ARGUES)),
    "after the tool's result": Phase((TOOL,), ()),
    "in the second answer": Phase((TOOL,), (chunk({"role": "assistant", "content": "It is"}),)),
}

# What may happen at any place in an answer.
FAULTS: dict[str, tuple[Piece, ...]] = {
    "the connection ends": (BREAK,),
    "the connection is reset": (RESET,),
    "the answer just ends": (),
    "the answer ends with DONE": ("[DONE]",),
    "there is an error in the stream": ({"error": {"message": "CUDA out of memory", "code": 500}},),
    "there is a frame that is not JSON": ('{"choices": [', "[DONE]"),
    "there is a frame that is not UTF-8": (b"data: \xff\xfe\n\n", "[DONE]"),
    "there is a frame that is no object": ("5", "null", "[DONE]"),
    "there are bytes of no kind": (b"\x00\x01\xf0\x9f\r\r\n\n\x80", "[DONE]"),
    "the deltas are of odd types": (
        {"choices": [{"index": 0, "delta": {"content": 5, "tool_calls": [{"index": "x", "function": 7}, 3, None]}}]},
        chunk({}, "stop"),
        "[DONE]",
    ),
    "it wants a tool without a name": (
        chunk({"tool_calls": [{"index": 9, "id": "call_9", "function": {"arguments": "{}"}}]}),
        chunk({}, "tool_calls"),
        "[DONE]",
    ),
    "it is cut off for its length": (chunk({}, "length"), "[DONE]"),
}

# What may come in place of an answer.
REFUSALS: dict[str, ReplyTo] = {
    "it refuses the request": status(400, {"error": {"message": "bad request"}}),
    "it refuses the key": status(401, {"error": "no"}),
    "it limits the rate": status(429, {"error": "slow down"}, {"Retry-After": "0"}),
    "it fails": status(500, {"error": "oops"}, {"Retry-After": "0"}),
    "a page of HTML comes": body(b"<html><body>Bad gateway</body></html>", "text/html"),
    "an empty body comes": body(b""),
    "an empty object comes": body(b"{}", "application/json"),
    "something else than HTTP comes": raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "no byte comes": raw(b""),
}
START = ("before the first answer", "after the tool's result")


def replies(phase: str, fault: Sequence[Piece]) -> list[ReplyTo]:
    before, said = PHASES[phase]
    faulty = frames(*said, *fault)
    return [*before, *([faulty] if said else [faulty] * 3)]  # nothing was said: it may be asked for again


def refusals(phase: str, refusal: ReplyTo) -> list[ReplyTo]:
    return [*PHASES[phase].before, *[refusal] * 3]


class Scripts:
    """A model server for many sessions at once: what is answered follows from the last user message, `name: text`."""

    def __init__(self) -> None:
        self.requests: dict[str, list[dict[str, Any]]] = {}
        self._replies: dict[str, Iterator[ReplyTo]] = {}

    def add(self, message: str, *replies: ReplyTo) -> None:
        self._replies[message] = iter(replies)

    def __call__(self, request: dict[str, Any]) -> ScriptedReply:
        asked = [sent["content"] for sent in request["messages"] if sent["role"] == "user"][-1]
        message = asked.split("\n\n")[-1]  # a message that was never answered may stand before it
        self.requests.setdefault(message.partition(":")[0], []).append(request)
        return next(self._replies.get(message, iter(())), answer("OK"))(request)


@dataclass
class Case:
    """A turn in which something happened, and the next one."""

    session: str
    events: list[dict[str, Any]] = field(default_factory=list)
    next: dict[str, Any] = field(default_factory=dict)
    third: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)

    @property
    def last(self) -> dict[str, Any]:
        return self.events[-1]


def all_at_once(names: Sequence[str], play: Callable[[str], Case]) -> dict[str, Case]:
    """The cases by name, played at the same time, each in a session of its own."""
    with ThreadPoolExecutor(max(1, len(names))) as pool:
        played = {name: pool.submit(play, name) for name in names}
        return {name: case.result(TIMEOUT) for name, case in played.items()}


def next_turns(client: Client, scripts: Scripts, name: str, case: Case) -> Case:
    """The turns after the one in which something happened: one that calls the tool again, and a plain one."""
    scripts.add(f"{name}: next", TOOL, answer("It is 2."))
    case.next = json_of(client.run(case.session, f"{name}: next"))
    case.third = json_of(client.run(case.session, f"{name}: third"))
    case.messages = client.messages(case.session)
    case.requests = scripts.requests[name]
    return case


REFUSED = {f"{what}, {phase}": refusals(phase, refusal) for phase in START for what, refusal in REFUSALS.items()}
CASES = {f"{what}, {phase}": replies(phase, fault) for phase in PHASES for what, fault in FAULTS.items()} | REFUSED
WHOLE = {f"{name}, whole answers": replies for name, replies in REFUSED.items()}


@pytest.fixture(scope="module")
def broken() -> dict[str, Case]:
    """Every case of a model server that does not do what it should, also where it is asked for whole answers."""
    scripts = Scripts()

    def play(client: Client, name: str, replies: list[ReplyTo]) -> Case:
        scripts.add(f"{name}: first", *replies)
        case = Case(client.create())
        case.events = client.stream(case.session, f"{name}: first").rest()
        return next_turns(client, scripts, name, case)

    with Client(default=scripts) as client, Client(model=client.model, stream=False) as other:
        streamed = all_at_once([*CASES], lambda name: play(client, name, CASES[name]))
        return streamed | all_at_once([*WHOLE], lambda name: play(other, name, WHOLE[name]))


@pytest.mark.parametrize("name", [*CASES, *WHOLE])
def test_a_turn_in_which_the_model_server_breaks_has_one_end(broken: dict[str, Case], name: str) -> None:
    ends = [event for event in broken[name].events if event["type"] in ("stream_end", "error")]
    assert ends == [broken[name].last]
    if ends[0]["type"] == "error":
        assert ends[0]["data"]["code"] in ("model_error", "model_unauthorized", "model_rate_limited")
    else:
        assert ends[0]["data"]["status"] in ("completed", "incomplete")


@pytest.mark.parametrize("name", [*CASES, *WHOLE])
def test_the_turn_after_it_is_answered(broken: dict[str, Case], name: str) -> None:
    assert broken[name].next["message"]["content"] == "It is 2."
    assert broken[name].third["message"]["content"] == "OK"


@pytest.mark.parametrize("name", [*CASES, *WHOLE])
def test_all_its_requests_are_well_formed(broken: dict[str, Case], name: str) -> None:
    for request in broken[name].requests:
        assert_well_formed(request)


@pytest.mark.parametrize("name", [*CASES, *WHOLE])
def test_what_was_said_before_it_is_kept(broken: dict[str, Case], name: str) -> None:
    case = broken[name]
    told = "".join(event["data"]["content"] for event in case.events if event["type"] == "stream_chunk")
    stored = itertools.takewhile(lambda message: message["content"] != f"{name}: next", case.messages)
    assert "".join(message["content"] for message in stored if message["role"] == "assistant") == told


def test_a_model_server_that_is_not_there_leaves_a_session_that_works() -> None:
    storage = MemoryStorage()
    with Client(storage=storage, base_url=nobody_listens()) as lost:
        session = lost.create()
        assert error_of(lost.run(session, "One")) == (502, "model_error")
    with Client(storage=storage) as client:
        assert client.run(session, "Two").status_code == 200
        assert_well_formed(client.model.requests[0])
        assert client.model.requests[0]["messages"] == [{"role": "user", "content": "One\n\nTwo"}]


def test_a_model_server_that_vanishes_in_mid_turn_leaves_a_session_that_works() -> None:
    storage = MemoryStorage()
    model = ModelServer(tool_call("vanish", {})).start()

    def vanish() -> str:
        model.stop()
        return "done"

    with Client(storage=storage, base_url=model.base_url, tools=[vanish]) as lost:
        session = lost.create()
        assert error_of(lost.run(session, "One")) == (502, "model_error")
    with Client(storage=storage) as client:
        assert client.run(session, "Two").status_code == 200
        assert_well_formed(client.model.requests[0])


# Ended from outside, while the model says nothing


class Reached:
    """A step of the model that says when it is reached, and then nothing more until the client leaves; `late`: it
    does not look whether the client has left, and goes on when the test says so."""

    def __init__(self, late: bool = False) -> None:
        self.event = threading.Event()
        self.go_on = threading.Event()
        self._late = late

    def __call__(self, exchange: Exchange) -> None:
        self.event.set()
        if self._late:
            self.go_on.wait(TIMEOUT)
        else:
            STALL(exchange)


LATER: tuple[Piece, ...] = (chunk({"content": "Too late."}), chunk({}, "stop"), "[DONE]")


@pytest.fixture(scope="module")
def cancelled() -> dict[str, Case]:
    """A turn that was cancelled in each phase."""
    scripts = Scripts()

    def play(name: str) -> Case:
        reached = Reached()
        scripts.add(f"{name}: first", *replies(name, [reached]))
        case = Case(client.create())
        stream = client.stream(case.session, f"{name}: first")
        assert reached.event.wait(TIMEOUT)
        assert client.cancel(case.session)
        case.events = stream.rest()
        return next_turns(client, scripts, name, case)

    with Client(default=scripts) as client:
        return all_at_once([*PHASES], play)


@pytest.mark.parametrize("phase", PHASES)
def test_after_a_cancel_in_any_phase_the_next_turn_is_answered(cancelled: dict[str, Case], phase: str) -> None:
    case = cancelled[phase]
    assert case.last["data"]["status"] == "cancelled"
    assert case.next["message"]["content"] == "It is 2."
    for request in case.requests:
        assert_well_formed(request)


@pytest.mark.parametrize("phase", PHASES)
def test_a_cancel_in_any_phase_leaves_one_cancelled_message(cancelled: dict[str, Case], phase: str) -> None:
    messages = cancelled[phase].messages
    assert [message.get("status") for message in messages if message["role"] == "assistant"].count("cancelled") == 1


@pytest.fixture(scope="module")
def timed_out() -> dict[str, Case]:
    """A turn whose time was up in each phase."""
    scripts = Scripts()
    storage = MemoryStorage()

    def play(name: str) -> Case:
        scripts.add(f"{name}: first", *replies(name, [STALL]))
        case = Case(hasty.create())
        case.events = hasty.stream(case.session, f"{name}: first").rest()
        return next_turns(client, scripts, name, case)

    with (
        Client(storage=storage, default=scripts) as client,
        Client(storage=storage, model=client.model, timeout=1) as hasty,
    ):
        return all_at_once([*PHASES], play)


@pytest.mark.parametrize("phase", PHASES)
def test_after_a_timeout_in_any_phase_the_next_turn_is_answered(timed_out: dict[str, Case], phase: str) -> None:
    case = timed_out[phase]
    assert case.last["data"]["code"] == "model_timeout"
    assert case.next["message"]["content"] == "It is 2."
    for request in case.requests:
        assert_well_formed(request)


@pytest.fixture(scope="module")
def too_late() -> dict[str, Case]:
    """A turn that was cancelled in each phase, and whose model goes on to answer after the next turn."""
    scripts = Scripts()

    def play(name: str) -> Case:
        reached = Reached(late=True)
        scripts.add(f"{name}: first", *replies(name, [reached, *LATER]))
        case = Case(client.create())
        stream = client.stream(case.session, f"{name}: first")
        assert reached.event.wait(TIMEOUT)
        client.cancel(case.session)
        case.events = stream.rest()
        scripts.add(f"{name}: next", TOOL, answer(lambda exchange: reached.go_on.set(), "It is 2."))
        client.run(case.session, f"{name}: next")
        return next_turns(client, scripts, name, case)

    with Client(default=scripts) as client:
        return all_at_once([*PHASES], play)


@pytest.mark.parametrize("phase", PHASES)
def test_an_answer_that_comes_after_the_turn_has_ended_is_nowhere(too_late: dict[str, Case], phase: str) -> None:
    case = too_late[phase]
    assert "Too late" not in json.dumps([case.events, case.messages, case.requests])
    assert case.next["message"]["content"] == "It is 2."
    for request in case.requests:
        assert_well_formed(request)


@pytest.mark.parametrize("end", ["cancel", "timeout", "delete", "shutdown"])
def test_the_result_of_a_tool_that_comes_too_late_is_dropped(end: str) -> None:
    called, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def slow() -> str:
        called.set()
        assert go_on.wait(TIMEOUT)
        done.set()
        return "Too late."

    storage = MemoryStorage()
    with Client(
        tool_calls(("slow", {}), ("slow", {})), storage=storage, tools=[slow], timeout=3.0 if end == "timeout" else 60
    ) as client:
        session = client.create()
        stream = client.stream(session, "One")
        assert called.wait(TIMEOUT)
        if end == "cancel":
            assert client.cancel(session)
        elif end == "delete":
            client.request("DELETE", f"/sessions/{session}")
        elif end == "shutdown":
            client.shut_down()
        last = stream.last()
        go_on.set()
        assert done.wait(TIMEOUT)
        codes = {"timeout": "model_timeout", "shutdown": "shutting_down"}
        assert last["data"].get("code", "cancelled") == codes.get(end, "cancelled")
    with Client(storage=storage) as client:
        if end == "delete":
            assert error_of(client.run(session, "Two")) == (404, "session_not_found")
            return
        assert client.run(session, "Two").status_code == 200
        assert_well_formed(client.model.requests[0])
        results = [
            message["content"] for message in client.model.requests[0]["messages"] if message["role"] == "tool"
        ]
        assert results == ["error: interrupted; the tool may have run"] * 2
        assert "Too late" not in json.dumps(client.messages(session))


def test_after_a_kill_in_any_phase_the_next_turn_is_answered(serve: Callable[..., Server], tmp_path: Path) -> None:
    scripts = Scripts()
    with ModelServer(default=scripts) as model:
        flags = (f"-session_dir={tmp_path}/sessions", "-api_key=k", f"-base_url={model.base_url}")
        server = serve(*flags)
        cases, streams = {}, []
        for phase in PHASES:
            reached = Reached()
            scripts.add(f"{phase}: first", *replies(phase, [reached]))
            cases[phase] = server.create()
            streams.append(server.say(cases[phase], f"{phase}: first"))
            assert reached.event.wait(TIMEOUT)
        server.kill()
        for stream in streams:
            stream.close()
        server = serve(*flags)
        for phase, session in cases.items():
            scripts.add(f"{phase}: next", TOOL, answer("It is 2."))
            reply = server.request("POST", f"/sessions/{session}/run", {"message": f"{phase}: next"})
            assert reply.json["message"]["content"] == "It is 2."
            for request in scripts.requests[phase]:
                assert_well_formed(request)
            assert server.messages(session)[0]["content"] == f"{phase}: first"


# Histories of any shape

WORDS = st.sampled_from(["", " ", "Hello", "é\U0001f600", "\x00", "a\n\nb", "error: x", "<|im_end|>"])
IDS = st.sampled_from(["call_1", "call_2", "", " ", "é", "x" * 100])
ODD: st.SearchStrategy[Any] = st.sampled_from([None, 5, True, 1.5, "x", [], {}, [[]], {"a": None}])
ARGUMENTS = st.sampled_from(
    ['{"expression": "1"}', "{}", "", " ", "[]", "5", "null", "no", '{"a": NaN}', '{"a": 1} x', '{"a":1', '"{}"']
)
NAMES = st.sampled_from(["calculator", "", " ", "a b", "é", "x" * 100, "no_such_tool"])
CALLED = st.one_of(
    ODD,
    st.fixed_dictionaries(
        {
            "id": st.one_of(IDS, ODD),
            "type": st.sampled_from(["function", "custom", None]),
            "function": st.one_of(
                ODD,
                st.fixed_dictionaries({"name": st.one_of(NAMES, ODD), "arguments": st.one_of(ARGUMENTS, ODD)}),
            ),
        },
        optional={"index": ODD},
    ),
)
GOOD_CALL = st.builds(
    lambda id, arguments: {
        "id": id,
        "type": "function",
        "function": {"name": "calculator", "arguments": arguments},
    },
    IDS,
    ARGUMENTS,
)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", *["assistant", "tool"] * 3, "system", "developer", "function", ""]),
        "content": WORDS,
    },
    optional={
        "tool_calls": st.one_of(ODD, st.lists(CALLED, max_size=3), st.lists(GOOD_CALL, min_size=1, max_size=3)),
        "tool_call_id": st.one_of(IDS, ODD),
        "name": st.one_of(NAMES, ODD),
        "status": st.one_of(st.sampled_from(["incomplete", "cancelled", "completed"]), ODD),
        "reason": st.one_of(st.sampled_from(["length", "model_error", "cancelled", "no such code"]), ODD),
        "usage": ODD,
        "attempt": st.one_of(st.integers(-1, 3), ODD),
        "finish_reason": ODD,
        "idempotency_key": st.one_of(st.just("key"), ODD),
        "previous_error": st.one_of(st.just("no such code"), ODD),
        "refusal": ODD,
        **dict.fromkeys(("reasoning", "model", "provider_metadata", "provider_state", "is_error"), ODD),
        **dict.fromkeys(("replaces", "history", "previous_refused", "continues", "goes_on", "leaves_out"), ODD),
    },
)


def write_history(directory: Path, messages: list[dict[str, Any]], note: str | None = None) -> str:
    """Make a session as another hand might write it, and give its id."""
    session = f"session-{secrets.token_hex(8)}"
    now = "2026-01-31T12:34:56Z"
    stored = [{"id": f"msg-{number}", "created_at": now, **message} for number, message in enumerate(messages)]
    value = {"id": session, "created_at": now, "messages": stored, "updated_at": now}
    if note is not None:
        value["note"] = note
    (directory / f"{session}.json").write_text(json.dumps(value), encoding="utf-8")
    return session


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Path]]:
    directory = tmp_path_factory.mktemp("sessions")
    with Client(storage=FileStorage.open(str(directory))) as client:
        yield client, directory


quietly = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quietly
@given(messages=st.lists(MESSAGE, max_size=8), note=st.sampled_from([None, "model_error", "no such code"]))
def test_a_history_of_any_shape_makes_well_formed_requests(
    by_hand: tuple[Client, Path], messages: list[dict[str, Any]], note: str | None
) -> None:
    client, directory = by_hand
    session = write_history(directory, messages, note)
    asked = len(client.model.requests)
    client.model.then(TOOL, answer("It is 2."))
    assert json_of(client.run(session, "What is 1+1?"))["message"]["content"] == "It is 2."
    client.run(session, "Thanks")
    requests = client.model.requests[asked:]
    assert len(requests) == 3
    for request in requests:
        assert_well_formed(request)
    assert requests[0]["messages"][-1]["content"].endswith("What is 1+1?")
    assert requests[1]["messages"][-1]["content"] == "2"


@settings(quietly, max_examples=200)
@given(
    messages=st.lists(MESSAGE, max_size=3),
    note=st.sampled_from([None, None, "model_error", "no such code"]),
    later=st.sampled_from([True, True, True, False]),
)
def test_a_key_in_a_history_of_any_shape_gives_an_answer_or_an_error(
    by_hand: tuple[Client, Path], messages: list[dict[str, Any]], note: str | None, later: bool
) -> None:
    client, directory = by_hand
    before = {"role": "user", "content": "Hi", "idempotency_key": "key"}
    behind = {"role": "user", "content": "Next", "previous_error": note}
    session = write_history(directory, [before, *messages, *([behind] if later else [])], None if later else note)
    asked = len(client.model.requests)
    first = client.stream(session, "Hi", Idempotency_Key="key")
    assert first.status in (200, 422)
    if first.status == 200:
        assert first.last()["type"] in ("stream_end", "error")
        assert client.run(session, "Hi", Idempotency_Key="key").headers["Content-Type"] == "application/json"
    for request in client.model.requests[asked:]:
        assert_well_formed(request)


@quietly
@given(messages=st.lists(MESSAGE, max_size=8))
def test_a_history_of_any_shape_can_be_read(by_hand: tuple[Client, Path], messages: list[dict[str, Any]]) -> None:
    client, directory = by_hand
    session = write_history(directory, messages)
    stored = client.messages(session)
    assert [(message["role"], message["content"]) for message in stored] == [
        (message["role"], message["content"]) for message in messages
    ]
    for form in ("text/markdown", "application/vnd.ai-sdk.ui-messages+json"):
        assert client.get(f"/sessions/{session}", Accept=form).status_code == 200
    assert client.request("POST", "/sessions", {"copy_of": session}).status_code == 201
