"""Who joins a turn: how many may, and what becomes of them and of others."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from session_core.stores.files import FileStorage
from tests.support.client import Client, error_of
from tests.support.model_server import answer, wait
from tests.support.server import TIMEOUT, wait_until


def test_those_who_join_a_turn_take_no_place_of_a_first_one() -> None:
    go = threading.Event()

    def reply(request: dict[str, list[dict[str, str]]]) -> object:
        text = request["messages"][-1]["content"]
        return (answer("Hel", wait(go), "lo") if text == "wait" else answer("OK"))(request)

    with Client(default=reply, max_streams=2) as client, ThreadPoolExecutor(40) as pool:
        session = client.create()
        first = client.stream(session, "wait", Idempotency_Key="k")
        first.next("stream_chunk")
        joined = [pool.submit(client.run, session, "wait", Idempotency_Key="k") for _ in range(40)]
        wait_until(lambda: sum(one.done() for one in joined) == 24)  # the rest of them wait
        assert {error_of(one.result()) for one in joined if one.done()} == {(503, "overloaded")}
        assert client.run(client.create(), "now").status_code == 200
        go.set()
        assert sum(one.result(TIMEOUT).status_code == 200 for one in joined) == 16
        first.rest()


def test_a_one_shot_session_is_forgotten() -> None:
    with Client(default=answer("OK")) as client:
        one_shot = client.app.extensions["turn_responses"].one_shot
        for stream in (True, False):
            body = {"messages": [{"role": "user", "content": "Hi"}], "stream": stream}
            assert client.request("POST", "/v1/chat/completions", body).status_code == 200
            assert one_shot.storage.page() == ([], None)


def test_a_request_with_a_key_reads_its_session_once(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    storage = FileStorage.open(str(tmp_path))
    reads: list[str] = []
    parsed = FileStorage._parsed

    def count(self: FileStorage, session_id: str, file: int) -> object:
        reads.append(session_id)
        return parsed(self, session_id, file)

    with Client(default=answer("OK"), storage=storage) as client:
        session = client.create()
        monkeypatch.setattr(FileStorage, "_parsed", count)
        for _ in range(2):  # a new turn, and its replay
            assert client.run(session, Idempotency_Key="k").status_code == 200
        assert reads == [session] * 2
