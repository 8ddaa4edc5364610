"""What a session tells of the error that ended its last turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from session_core.web.errors import ERRORS
from tests.support.client import Client, json_of
from tests.support.model_server import BREAK, STALL, ModelServer, ReplyTo, answer, status
from tests.support.server import Server

FAILURES: dict[str, ReplyTo] = {"without a text": status(401, {}), "with a partial answer": answer("Hel", BREAK)}


@pytest.mark.parametrize("failure", FAILURES)
def test_the_session_tells_what_ended_its_last_turn(anywhere: Client, failure: str) -> None:
    session = anywhere.create()
    anywhere.model.then(FAILURES[failure])
    code = anywhere.run(session).get_json()["code"]
    assert anywhere.session(session)["last_error"] == {"error": ERRORS[code][1], "code": code}
    anywhere.run(session)
    assert "last_error" not in anywhere.session(session)


def test_a_copy_of_a_failed_turn_tells_it_too(anywhere: Client) -> None:
    session = anywhere.create()
    anywhere.model.then(status(401, {}))
    anywhere.run(session)
    copy = json_of(anywhere.request("POST", "/sessions", {"copy_of": session}))["id"]
    assert anywhere.session(copy)["last_error"] == anywhere.session(session)["last_error"]


def test_a_turn_that_runs_was_cancelled_or_never_asked_has_not_failed(anywhere: Client) -> None:
    session = anywhere.create()
    anywhere.model.then(answer("Hel", BREAK))
    anywhere.run(session)
    anywhere.model.then(answer("Hel", STALL, "lo"))
    stream = anywhere.stream(session)
    assert "last_error" not in anywhere.session(session)
    anywhere.cancel(session)
    stream.rest()
    assert "last_error" not in anywhere.session(session)
    made = anywhere.request("POST", "/sessions", {"messages": [{"role": "user", "content": "Hi"}]})
    assert "last_error" not in anywhere.session(json_of(made)["id"])


def test_a_turn_that_a_crash_has_cut_off_is_told(tmp_path: Path) -> None:
    model = ModelServer(answer(STALL)).start()
    flags = (f"-session_dir={tmp_path / 's'}", f"-base_url={model.base_url}", "-api_key=k")
    with Server(*flags, log=tmp_path / "log") as server:
        session = server.create()
        next(server.say(session, "Hi").events())
        server.kill()
    with Server(*flags, log=tmp_path / "log") as server:
        found = server.request("GET", f"/sessions/{session}").json
        assert found["last_error"] == {"error": "The turn was interrupted.", "code": "internal_error"}
    model.stop()
