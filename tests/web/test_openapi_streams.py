"""Streams against `GET /openapi.json`, event by event, and whatever schemathesis finds."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from calculator import calculator
from tests.support.model_server import BREAK, ModelServer, answer, tool_call
from tests.support.openapi import DOCUMENT, TURNS, World, check, check_answer
from tests.support.server import TIMEOUT, Server


@pytest.mark.parametrize("kind", DOCUMENT["components"]["schemas"]["Event"]["discriminator"]["mapping"])
def test_events_are_as_the_document_says(world: World, kind: str) -> None:
    world.model.then(*TURNS[kind])
    app = world.app(tools=[calculator, world.steer])
    for operation in ("run_stream", "resume_stream"):
        response = world.ask(operation, app=app)
        events = check_answer(operation, 200, response.headers, response.text)
        assert kind in [event["type"] for event in events]


@pytest.mark.parametrize("reason", ["something_new", None, "cancelled"])
def test_a_stored_error_that_nobody_knows_is_told_again_as_the_document_says(
    world: World, reason: str | None
) -> None:
    app = world.app()
    world.model.default = answer("Hel", BREAK)
    world.ask("run_stream", app=app, Idempotency_Key="k")
    world.ask("run_stream", app=app)
    path = world.directory / f"{world.session_id}.json"
    path.write_text(path.read_text().replace('"model_error"', json.dumps(reason)))
    response = world.ask("run_stream", Idempotency_Key="k")
    assert check_answer("run_stream", 200, response.headers, response.text)[-1]["data"]["code"] == "internal_error"


@pytest.mark.parametrize("finish_reason", ["stop", "length", "content_filter", None, "something_new"])
def test_an_end_is_as_the_document_says(world: World, finish_reason: str | None) -> None:
    world.model.default = answer("Hel", finish_reason=finish_reason)
    response = world.ask("run_stream")
    assert check_answer("run_stream", 200, response.headers, response.text)[-1]["type"] == "stream_end"


def test_the_end_of_a_cancelled_turn_is_as_the_document_says(world: World) -> None:
    app = world.app()
    stream = world.begin_turn(app)
    cancelled = world.ask("cancel", app=app)
    check_answer("cancel", 200, cancelled.headers, cancelled.text)
    last = stream.last()
    check(last, "/components/schemas/StreamEnd")
    assert last["data"]["status"] == "cancelled"


def test_schemathesis_finds_no_answer_that_the_document_does_not_tell_of(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    config = tmp_path / "schemathesis.toml"
    # What is in order by its form, and refused for what came before: unknown ids, and a key for another message.
    # A session that is copied, a message that is replaced and a model that is chosen must exist.
    refused = {
        "list_sessions": 400,
        "get_session": 400,
        "resume_stream": 410,
        "run": 422,
        "run_stream": 422,
        "chat": 422,
        "complete_chat": 422,
    }
    refused |= {"create_session": 400, "configure_session": 400}
    # Items have many forms, which the document leaves to OpenAI's.
    with_items = ("create_response", "get_response", "compact_response", "create_conversation", "create_items")
    pages = ("list_conversation_items", "list_input_items")
    refused |= dict.fromkeys((*with_items, *pages), 400)
    config.write_text(
        "".join(
            f'[[operations]]\ninclude-operation-id = "{operation}"\n'
            f'checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "409", "{code}"]\n'
            for operation, code in refused.items()
        )
    )
    calls = tool_call("calculator", {"expression": "15 * 23"})
    replies = {"user": calls, "tool": answer("It is ", "345.", usage={"total_tokens": 9})}
    with ModelServer(default=lambda request: replies[request["messages"][-1]["role"]](request)) as model:
        server = serve(f"-base_url={model.base_url}", "-metrics")
        found = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", f"--config-file={config}", "--no-color"),
                *("run", f"{server.url}/openapi.json", "--seed=1", "--max-examples=3", "--continue-on-failure"),
                *("--generation-database=none", f"--request-timeout={TIMEOUT}"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=20 * TIMEOUT,
        )
        assert found.returncode == 0, found.stdout + found.stderr
        assert "Traceback" not in server.log.read_text()
