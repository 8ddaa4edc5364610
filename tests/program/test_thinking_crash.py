"""A session with a model that thinks, over `kill -9` in mid-turn and a change of `-model` at the restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.model_server import STALL, ModelServer, answer
from tests.support.server import Server
from tests.support.thinking_servers import SERVERS
from tests.support.well_formed import assert_well_formed


def converse(server: Server, session: str, turns: int) -> None:
    for _ in range(turns):
        reply = server.request("POST", f"/sessions/{session}/run", {"message": "What is 1+1?"})
        assert (reply.status, reply.json.get("message", {}).get("content")) == (200, "It is 2."), reply.text


@pytest.mark.parametrize("name", [name for name in SERVERS if name != "OpenRouter"])
def test_a_session_goes_on_after_a_crash_and_with_another_model(name: str, tmp_path: Path) -> None:
    script = SERVERS[name]()
    with ModelServer(default=script) as model:
        flags = (f"-session_dir={tmp_path}/sessions", f"-base_url={model.base_url}")
        with Server(*flags, "-model=one", log=tmp_path / "log") as server:
            session = server.create()
            converse(server, session, 2)
            before = len(model.requests)
            model.then(script, answer(STALL))  # the crash comes after the tools, before the answer
            server.say(session, "What is 1+1?")
            model.wait_for(before + 2)
            server.kill()
        with Server(*flags, "-model=one", log=tmp_path / "log") as server:
            converse(server, session, 1)
        with Server(*flags, "-model=two", log=tmp_path / "log") as server:
            converse(server, session, 2)
        with Server(*flags, "-model=one", log=tmp_path / "log") as server:
            converse(server, session, 1)
        for request in model.requests:
            assert_well_formed(request, extra_fields=True)
