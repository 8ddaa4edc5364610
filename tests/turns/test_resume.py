"""A turn's events can be had again: while it runs, after a cut, and for a while after its end."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from session_core.model.demo import Exchange
from session_core.stores.files import FileStorage
from session_core.turns import recent
from storage import MemoryStorage
from tests.support.client import BreakableStorage, Client, Stream, json_of, storages
from tests.support.model_server import STALL, ModelServer, answer, status, tool_call, wait
from tests.support.server import TIMEOUT, Reply, Server, wait_until


class Frame(NamedTuple):
    """One event as it came: the line before `data:`, if there was one, and the `data:` line."""

    id: str | None
    data: str


class Frames:
    """A stream read frame by frame."""

    def __init__(self, stream: Stream) -> None:
        assert stream.status == 200, stream.json
        self._stream = stream
        self._unread: list[Frame] = []
        self._give_up = time.monotonic() + TIMEOUT

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self.next()) is not None:
            yield frame

    def next(self) -> Frame | None:
        """The next frame, None at the end."""
        while not self._unread:
            assert time.monotonic() < self._give_up, "the stream does not end"
            write = self._stream.write().decode()
            if not write:
                return None
            self._unread = [_frame(text) for text in write.split("\n\n")[:-1] if not text.startswith(":")]
        return self._unread.pop(0)

    def take(self, count: int) -> list[Frame]:
        """So many frames, or fewer where the stream ends before; then the client leaves."""
        frames = [frame for _ in range(count) if (frame := self.next()) is not None]
        self._stream.close()
        return frames


def _frame(text: str) -> Frame:
    *before, data = text.split("\n")
    assert data.startswith("data: ") and len(before) < 2, text
    return Frame(before[0] if before else None, data)


class Gate:
    """A step of the model that waits until the test opens it."""

    def __init__(self) -> None:
        self._opened = threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        wait(self._opened)(exchange)

    def open(self) -> None:
        self._opened.set()


# Eight events: start, chunk, tool call, tool result, three chunks, end.
TURN = (tool_call("calculator", {"expression": "1+1"}, text="Let me see. "), answer("It", " is", " 2."))
NEVER = "evt-0123456789abcdef0123456789abcdef-1"


@pytest.fixture(scope="module", params=["memory", "files"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(storage=storages(tmp_path_factory.mktemp("store"))[request.param]()) as client:
        yield client


@pytest.fixture
def client(shared: Client) -> Client:
    """The app, as if its model server had been asked nothing yet."""
    shared.model.requests.clear()
    return shared


def ended(client: Client) -> tuple[str, list[str]]:
    """A session with a turn of eight events that has ended, and their ids."""
    client.model.then(*TURN)
    session = client.create()
    return session, [event["id"] for event in client.stream(session)]


def halted(client: Client) -> tuple[str, Stream, Gate]:
    """A session in whose turn the model has said "One" and says " two." when the gate is opened; and its stream."""
    gate = Gate()
    client.model.then(answer("One", gate, " two."))
    session = client.create()
    stream = client.stream(session)
    stream.next("stream_chunk")
    return session, stream, gate


def code(stream: Stream) -> tuple[int, str]:
    return stream.status, stream.json["code"]


def status_of(stream: Stream | Reply) -> int:
    """The status of a response that is not read."""
    stream.close()
    return stream.status


# What is sent


def test_attaching_to_an_ended_turn_gives_all_its_events(client: Client) -> None:
    client.model.then(*TURN)
    session = client.create()
    sent = client.stream(session).rest()
    assert len(sent) == 8
    assert client.watch(session).rest() == sent


def test_a_turn_by_run_can_be_watched_too(client: Client) -> None:
    client.model.then(*TURN)
    session = client.create()
    message = json_of(client.run(session))["message"]
    assert client.watch(session).last()["data"]["message_id"] == message["id"]


def test_the_data_lines_are_those_of_the_first_stream_byte_for_byte(client: Client) -> None:
    odd = tool_call("calculator", '{"expression": "\\u00e9+1"}', text="é\u2028 ")
    client.model.then(odd, answer("\U0001f600\n", "data: ", "\x00"))
    session = client.create()
    sent = [frame.data for frame in Frames(client.stream(session))]
    assert [frame.data for frame in Frames(client.watch(session))] == sent


def test_each_frame_has_an_id_line_before_its_data(client: Client) -> None:
    session, ids = ended(client)
    assert [frame.id for frame in Frames(client.watch(session))] == [f"id: {id}" for id in ids]


def test_the_first_stream_has_no_id_lines(client: Client) -> None:
    assert {frame.id for frame in Frames(client.stream(client.create()))} == {None}


def test_a_resumed_stream_has_the_headers_of_a_stream(client: Client) -> None:
    session, _ = ended(client)
    headers = client.watch(session).headers
    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert headers["Cache-Control"] == "no-cache, no-transform"
    assert headers["X-Accel-Buffering"] == "no"


@pytest.mark.parametrize("seen", range(1, 8))
def test_last_event_id_gives_the_events_behind_it(client: Client, seen: int) -> None:
    session, ids = ended(client)
    assert [event["id"] for event in client.watch(session, Last_Event_ID=ids[seen - 1])] == ids[seen:]


def test_the_id_may_be_given_as_after_in_the_query(client: Client) -> None:
    session, ids = ended(client)
    assert [event["id"] for event in client.watch(session, f"?after={ids[2]}")] == ids[3:]


def test_an_event_source_that_began_with_a_query_goes_on_by_its_header(client: Client) -> None:
    session, ids = ended(client)
    assert [event["id"] for event in client.watch(session, f"?after={ids[2]}", Last_Event_ID=ids[5])] == ids[6:]


@pytest.mark.parametrize(("query", "headers"), [("?after=", {}), ("", {"Last_Event_ID": ""})])
def test_an_empty_id_is_none(client: Client, query: str, headers: dict[str, str]) -> None:
    session, ids = ended(client)
    assert [event["id"] for event in client.watch(session, query, **headers)] == ids


def test_attaching_in_mid_turn_gives_what_has_been_and_then_what_comes(client: Client) -> None:
    session, stream, gate = halted(client)
    watcher = client.watch(session)
    assert watcher.next()["type"] == "stream_start"
    assert watcher.next()["data"]["content"] == "One"
    gate.open()
    assert watcher.next()["data"]["content"] == " two."
    assert watcher.next()["type"] == "stream_end"
    assert watcher.rest() == []
    stream.close()


def test_attaching_in_mid_turn_behind_the_newest_event_gives_only_what_comes(client: Client) -> None:
    session, stream, gate = halted(client)
    newest = client.watch(session).next("stream_chunk")["id"]
    watcher = client.watch(session, Last_Event_ID=newest)
    gate.open()
    assert watcher.next()["data"]["content"] == " two."
    watcher.close()
    stream.close()


def test_the_turn_goes_on_when_its_client_and_all_watchers_have_left(client: Client) -> None:
    session, stream, gate = halted(client)
    watcher = client.watch(session)
    seen = watcher.next("stream_chunk")["id"]
    watcher.close()
    stream.close()
    gate.open()
    assert client.watch(session, Last_Event_ID=seen).last()["data"]["complete_text"] == "One two."


def test_a_silent_resumed_stream_is_kept_alive() -> None:
    with Client(keep_alive=0.05) as client:
        session, stream, gate = halted(client)
        watcher = client.watch(session)
        watcher.next("stream_chunk")
        assert watcher.write() == b": keep-alive\n\n"
        gate.open()
        watcher.rest()
        stream.close()


def test_a_watcher_sees_how_a_turn_was_cancelled(client: Client) -> None:
    session, stream, _ = halted(client)
    watcher = client.watch(session)
    assert client.cancel(session)
    assert watcher.last()["data"]["status"] == "cancelled"
    stream.close()


def test_a_watcher_sees_how_a_turn_failed(client: Client) -> None:
    client.model.then(status(404, {"error": "no"}))
    session = client.create()
    client.run(session)
    assert [event["type"] for event in client.watch(session)] == ["stream_start", "error"]


def test_a_watcher_sees_the_end_of_a_turn_whose_session_is_deleted(client: Client) -> None:
    session, stream, _ = halted(client)
    watcher = client.watch(session)
    assert client.request("DELETE", f"/sessions/{session}").status_code == 200
    assert watcher.last()["data"]["status"] == "cancelled"
    stream.close()


def test_a_watcher_sees_the_end_of_a_turn_that_a_shutdown_ended() -> None:
    with Client() as client:
        session, stream, _ = halted(client)
        watcher = client.watch(session)
        client.shut_down()
        assert watcher.last()["data"]["code"] == "shutting_down"
        stream.close()


# When there is nothing to send


def test_behind_the_last_event_of_an_ended_turn_is_nothing(client: Client) -> None:
    session, ids = ended(client)
    stream = client.watch(session, Last_Event_ID=ids[-1])
    assert (stream.status, stream.write()) == (204, b"")


def test_who_has_the_last_event_is_sent_away_at_once(client: Client) -> None:
    session = client.create()
    for _ in range(10):
        last = client.stream(session).last()["id"]
        assert client.watch(session, Last_Event_ID=last).status == 204


def test_a_session_without_turns_has_nothing_to_watch(client: Client) -> None:
    assert client.watch(client.create()).status == 204


def test_a_session_that_does_not_exist_cannot_be_watched(client: Client) -> None:
    assert code(client.watch("session-never")) == (404, "session_not_found")


def test_a_deleted_session_cannot_be_watched(client: Client) -> None:
    session, ids = ended(client)
    client.request("DELETE", f"/sessions/{session}")
    assert code(client.watch(session, Last_Event_ID=ids[0])) == (404, "session_not_found")


def test_head_is_not_allowed_on_a_stream(client: Client) -> None:
    session, _ = ended(client)
    response = client.request("HEAD", f"/sessions/{session}/run_stream")
    assert (response.status_code, response.headers["Allow"]) == (405, "GET, OPTIONS, POST")


# Ids that are not held


@pytest.mark.parametrize(
    "number", ["0", "9", "-1", "01", "1x", "", " 1", "1.0", "9" * 30, "\u0661"], ids=lambda number: repr(number)
)
def test_a_number_that_no_event_of_the_turn_has_is_gone(client: Client, number: str) -> None:
    session, ids = ended(client)
    assert code(client.watch(session, f"?after={ids[0].removesuffix('1')}{number}")) == (410, "event_gone")


@pytest.mark.parametrize("around", ["x{}", "{}x", "{} ", "{}-1"])
def test_what_only_holds_an_id_is_gone(client: Client, around: str) -> None:
    session, ids = ended(client)
    assert code(client.watch(session, f"?after={around.format(ids[0])}")) == (410, "event_gone")


@pytest.mark.parametrize("garbage", [NEVER, "evt-", "1", "garbage", "null", "%0A", "a b", "é", "9" * 5000])
def test_an_id_that_never_was_is_gone(client: Client, garbage: str) -> None:
    session, _ = ended(client)
    assert code(client.watch(session, f"?after={garbage}")) == (410, "event_gone")


def test_an_id_is_gone_where_nothing_is_held(client: Client) -> None:
    assert code(client.watch(client.create(), Last_Event_ID=NEVER)) == (410, "event_gone")


def test_an_event_of_the_future_is_gone_also_while_the_turn_runs(client: Client) -> None:
    session, stream, gate = halted(client)
    newest = client.watch(session).next("stream_chunk")["id"]
    future = newest.removesuffix("2") + "3"
    assert code(client.watch(session, Last_Event_ID=future)) == (410, "event_gone")
    gate.open()
    stream.rest()


def test_an_event_of_another_session_is_gone(client: Client) -> None:
    session, _ = ended(client)
    _, others = ended(client)
    assert code(client.watch(session, Last_Event_ID=others[0])) == (410, "event_gone")


def test_after_a_restart_nothing_is_held(tmp_path: Path) -> None:
    with Client(storage=FileStorage.open(str(tmp_path))) as client:
        session, ids = ended(client)
    with Client(storage=FileStorage.open(str(tmp_path))) as client:
        assert client.watch(session).status == 204
        assert code(client.watch(session, Last_Event_ID=ids[-1])) == (410, "event_gone")


# How long an ended turn is held


def test_an_ended_turn_is_held_for_a_minute() -> None:
    assert recent.REPLAY_SECONDS == 60


def test_when_its_time_is_up_an_ended_turn_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with Client() as client:
        monkeypatch.setattr(recent, "REPLAY_SECONDS", 0.0)
        session, ids = ended(client)
        wait_until(lambda: status_of(client.watch(session)) == 204)
        assert code(client.watch(session, Last_Event_ID=ids[-1])) == (410, "event_gone")


def test_the_next_turn_of_the_session_takes_the_place_of_the_last_when_it_begins(client: Client) -> None:
    session, ids = ended(client)
    gate = Gate()
    client.model.then(answer("Three", gate))
    stream = client.stream(session)
    start = stream.next()
    watcher = client.watch(session)
    assert watcher.next() == start
    assert code(client.watch(session, Last_Event_ID=ids[-1])) == (410, "event_gone")
    gate.open()
    watcher.close()
    stream.rest()


def test_a_turn_that_cannot_begin_leaves_the_last_one_as_it_was() -> None:
    storage = BreakableStorage()
    with Client(storage=storage) as client:
        session, ids = ended(client)
        storage.broken = True
        assert client.run(session).status_code == 503
        assert [event["id"] for event in client.watch(session)] == ids


def test_a_turn_in_another_session_changes_nothing(client: Client) -> None:
    session, ids = ended(client)
    ended(client)
    assert [event["id"] for event in client.watch(session)] == ids


def test_of_many_ended_turns_the_newest_are_held(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "REPLAY_BYTES", 1_000_000)
    client.model.then(*[answer("x" * 100_000)] * 15)
    sessions = [client.create() for _ in range(15)]
    for session in sessions:
        client.run(session)
    held = [status_of(client.watch(session)) == 200 for session in sessions]
    assert held == sorted(held), "an older one was kept"
    assert 1 <= sum(held) <= 10


def test_of_many_turns_of_a_session_only_the_last_counts(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "REPLAY_BYTES", 1_000_000)
    session, ids = ended(client)
    other = client.create()
    for _ in range(8):
        client.model.then(answer("x" * 100_000))
        client.run(other)
    assert len(client.watch(session).rest()) == len(ids)


def test_an_ended_turn_that_was_dropped_is_gone(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "REPLAY_BYTES", 1000)
    session, ids = ended(client)
    assert client.watch(session).status == 204
    assert code(client.watch(session, Last_Event_ID=ids[-1])) == (410, "event_gone")


@pytest.mark.parametrize("long", ["message", "text", "arguments", "result", "wide"])
def test_the_memory_for_ended_turns_counts_whatever_is_long(long: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "x" * 100_000
    monkeypatch.setattr(recent, "REPLAY_BYTES", 90_000)
    replies = {
        "message": [answer("")],
        "text": [answer(text)],
        "arguments": [tool_call("shout", {"it": text})],
        "result": [tool_call("shout", {"it": "x"})],
        "wide": [answer("\U0001f600" * 25_000)],
    }

    def shout(it: str) -> str:
        return text if long == "result" else ""

    with Client(*replies[long], tools=[shout]) as client:
        session = client.create()
        client.run(session, text if long == "message" else "Hi")
        assert client.watch(session).status == 204


def test_a_watcher_of_a_turn_that_is_dropped_reads_on(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "REPLAY_BYTES", 100)
    session, stream, gate = halted(client)
    watcher = client.watch(session)
    watcher.next()
    gate.open()
    stream.rest()
    assert client.watch(session).status == 204
    assert watcher.last()["data"]["complete_text"] == "One two."


# How many may watch


def test_sixteen_watch_and_one_more_is_refused(client: Client) -> None:
    session, stream, gate = halted(client)
    watchers = [client.watch(session) for _ in range(16)]
    assert [watcher.status for watcher in watchers] == [200] * 16
    refused = client.watch(session)
    assert code(refused) == (503, "overloaded")
    assert refused.headers["Retry-After"]
    gate.open()
    for watcher in watchers:
        assert watcher.last()["data"]["complete_text"] == "One two."
    assert stream.last()["data"]["complete_text"] == "One two."


@pytest.mark.parametrize("read", [0, 1], ids=["unread", "read"])
def test_a_watcher_that_leaves_makes_room(client: Client, read: int) -> None:
    session, stream, gate = halted(client)
    watchers = [client.watch(session) for _ in range(16)]
    for _ in range(read):
        watchers[3].next()
    watchers[3].close()
    watchers.append(client.watch(session))
    assert watchers[-1].status == 200
    assert client.watch(session).status == 503
    gate.open()
    for watcher in (*watchers[:3], *watchers[4:], stream):
        watcher.close()


def test_watchers_of_one_turn_take_no_room_from_those_of_another(client: Client) -> None:
    session, ids = ended(client)
    watchers = [client.watch(session) for _ in range(16)]
    assert client.watch(session).status == 503
    other, _ = ended(client)
    assert len(client.watch(other).rest()) == len(ids)
    for watcher in watchers:
        watcher.close()


def test_a_watcher_that_vanishes_from_a_real_server_makes_room(serve: Callable[..., Server]) -> None:
    with ModelServer(default=answer("One", STALL)) as model:
        server = serve("-api_key=k", f"-base_url={model.base_url}", "-keep_alive=0.05")
        session = server.create()
        stream = server.say(session, "Count")
        path = f"/sessions/{session}/run_stream"
        watchers = [server.request("GET", path) for _ in range(16)]
        assert [watcher.status for watcher in watchers] == [200] * 16
        for watcher in watchers:
            watcher.close()
        wait_until(lambda: status_of(server.request("GET", path)) == 200)
        stream.close()


def test_a_turn_of_another_process_cannot_be_watched(tmp_path: Path) -> None:
    with Client(storage=FileStorage.open(str(tmp_path))) as client:
        session, stream, gate = halted(client)
        with Client(storage=FileStorage.open(str(tmp_path))) as other:
            assert code(other.watch(session)) == (409, "session_busy")
        gate.open()
        stream.rest()


# No gap and no double


@pytest.mark.parametrize("seen", range(1, 9))
def test_a_stream_that_is_cut_and_resumed_is_whole(client: Client, seen: int) -> None:
    client.model.then(*TURN)
    session = client.create()
    before = Frames(client.stream(session)).take(seen)
    last = Frames(client.watch(session)).take(seen)[-1].id
    behind = client.watch(session, Last_Event_ID=(last or "").removeprefix("id: "))
    after = [] if behind.status == 204 else list(Frames(behind))
    assert [frame.data for frame in before + after] == [frame.data for frame in Frames(client.watch(session))]
    assert len(before + after) == 8


class EventSource:
    """What a browser's EventSource does with a session's stream (https://html.spec.whatwg.org/#server-sent-events):
    it connects again whenever the stream ends or breaks, until it is told to stop. Here each connection breaks
    after as many events as `cuts` says, and the last ones do not."""

    def __init__(self, client: Client, session: str, cuts: list[int]) -> None:
        self.data: list[str] = []
        self.connections = 0
        last_id = ""
        while True:
            stream = client.watch(session, **({"Last_Event_ID": last_id} if last_id else {}))
            self.connections += 1
            self.status = stream.status
            if stream.status != 200:
                return
            for frame in Frames(stream).take(cuts.pop(0) if cuts else 1000):
                assert frame.id is not None
                last_id = frame.id.removeprefix("id: ")
                self.data.append(frame.data)


def test_an_event_source_gets_each_event_once_and_stops(client: Client) -> None:
    client.model.then(*TURN)
    session = client.create()
    sent = [frame.data for frame in Frames(client.stream(session))]
    source = EventSource(client, session, [])
    assert source.data == sent
    assert (source.connections, source.status) == (2, 204)


class Pace:
    """Lets the model go on as soon as the foremost reader has come near to what it has said."""

    def __init__(self) -> None:
        self._seen = 0
        self._changed = threading.Condition()

    def saw(self, count: int) -> None:
        with self._changed:
            self._seen = max(self._seen, count)
            self._changed.notify_all()

    def wait_until(self, count: int) -> Callable[[Exchange], object]:
        def step(exchange: Exchange) -> None:
            with self._changed:
                assert self._changed.wait_for(lambda: self._seen >= count, TIMEOUT)

        return step


def test_however_many_watch_and_whenever_they_are_cut_each_sees_the_whole_turn_once() -> None:
    steps = st.lists(st.integers(1, 15), max_size=12)

    @settings(max_examples=20, deadline=None, database=None)
    @given(watchers=st.lists(steps, min_size=1, max_size=6))
    def check(client: Client, watchers: list[list[int]]) -> None:
        pace = Pace()
        pieces = [piece for number in range(60) for piece in (f"{number} ", pace.wait_until(number - 2))]
        client.model.then(answer(*pieces))
        session = client.create()
        stream = client.stream(session)

        def watch(cuts: list[int]) -> list[str]:
            data: list[str] = []
            after: dict[str, str] = {}
            while not data or '"stream_end"' not in data[-1]:
                stream = client.watch(session, **after)
                for frame in itertools.islice(Frames(stream), cuts.pop(0) if cuts else None):
                    data.append(frame.data)
                    after = {"Last_Event_ID": str(frame.id).removeprefix("id: ")}
                    pace.saw(len(data))
                stream.close()
            return data

        seen = [client.later(watch, list(cuts)) for cuts in watchers]
        whole = [frame.data for frame in Frames(stream)]
        assert len(whole) == 62
        for one in seen:
            assert one.result(TIMEOUT) == whole

    with Client() as client:
        check(client)


@pytest.mark.parametrize("cuts", [[1] * 8, [3, 1, 2], [8], [7, 1]])
def test_an_event_source_that_is_cut_gets_each_event_once(cuts: list[int]) -> None:
    with Client(storage=MemoryStorage()) as client:
        session, ids = ended(client)
        source = EventSource(client, session, cuts)
        assert [line.split('"id":"')[1].split('"')[0] for line in source.data] == ids
        assert source.status == 204
