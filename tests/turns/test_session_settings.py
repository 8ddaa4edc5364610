"""The model and the instructions of a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage import Storage
from tests.support.client import Client, error_of, json_of
from tests.support.model_server import ModelServer
from tests.support.sessions import asked, patch, post
from tests.support.thinking_servers import SERVERS


def test_a_session_has_its_own_model_and_instructions(anywhere: Client) -> None:
    body = {"title": " Sums ", "model": "other", "system_prompt": "Be brief."}
    session = json_of(anywhere.request("POST", "/sessions", body))["id"]
    found = anywhere.session(session)
    assert (found["title"], found["model"], found["system_prompt"]) == ("Sums", "other", "Be brief.")
    assert post(anywhere, session, message="Hi")["model"] == "other"
    assert anywhere.model.requests[-1]["model"] == "other"
    assert asked(anywhere) == [("system", "Be brief."), ("user", "Hi")]


def test_settings_are_changed_and_removed_without_a_change_of_the_list(anywhere: Client) -> None:
    first, second = anywhere.create(), anywhere.create()
    before = anywhere.session(first)
    changed = patch(anywhere, first, model="other", system_prompt="")
    assert (changed["model"], changed["system_prompt"], changed["updated_at"]) == ("other", "", before["updated_at"])
    assert json_of(anywhere.get("/sessions"))["sessions"] == [second, first]
    post(anywhere, first, message="Hi")
    assert asked(anywhere) == [("user", "Hi")]
    assert "model" not in patch(anywhere, first, model=None, system_prompt=None)
    assert {"title", "model", "system_prompt"}.isdisjoint(anywhere.session(first))
    post(anywhere, first, message="Hi")
    assert anywhere.model.requests[-1]["model"] == "gpt-3.5-turbo"


def test_settings_survive_a_restart(store: Callable[[], Storage], tmp_path: Path) -> None:
    storage = store()
    with Client(storage=storage, models=("other",)) as client:
        session = json_of(client.request("POST", "/sessions", {"model": "other", "system_prompt": "é"}))["id"]
        post(client, session, message="Hi")
    with Client(storage=storage, models=("other",)) as client:
        post(client, session, message="Again")
        assert client.model.requests[-1]["model"] == "other"
        assert asked(client)[0] == ("system", "é")


def test_a_model_for_one_turn_alone(anywhere: Client) -> None:
    session = anywhere.create()
    assert post(anywhere, session, message="Hi", model="other")["model"] == "other"
    assert post(anywhere, session, message="Hi")["model"] == "gpt-3.5-turbo"


def test_the_turn_of_a_key_keeps_its_model_when_it_is_replayed(anywhere: Client) -> None:
    session = anywhere.create()
    path, key = f"/sessions/{session}/run", {"Idempotency-Key": "k"}
    first = anywhere.request("POST", path, {"message": "Hi", "model": "other"}, key)
    again = anywhere.request("POST", path, {"message": "Hi"}, key)
    assert json_of(again) == json_of(first)
    assert len(anywhere.model.requests) == 1


@pytest.mark.parametrize("how", ["POST", "PATCH", "run", "run_stream"])
def test_a_model_that_is_not_allowed_is_refused_by_names_of_those_that_are(anywhere: Client, how: str) -> None:
    session = anywhere.create()
    path = {"POST": "/sessions", "PATCH": f"/sessions/{session}"}.get(how, f"/sessions/{session}/{how}")
    method = how if how == "PATCH" else "POST"
    response = anywhere.request(method, path, {"model": "gpt-9", "message": "Hi"})
    assert error_of(response) == (400, "invalid_request")
    assert json_of(response)["error"] == "model must be one of these: gpt-3.5-turbo, other."
    assert anywhere.model.requests == [] and anywhere.messages(session) == []


def test_a_session_whose_model_is_no_longer_allowed_says_so_until_it_has_another(
    store: Callable[[], Storage],
) -> None:
    storage = store()
    with Client(storage=storage, models=("other",)) as client:
        session = json_of(client.request("POST", "/sessions", {"model": "other"}))["id"]
    with Client(storage=storage) as client:
        refused = client.run(session)
        assert error_of(refused) == (400, "invalid_request")
        assert client.messages(session) == [] and not client.session(session)["running"]
        patch(client, session, model=None)
        assert client.run(session).status_code == 200


def test_any_model_may_be_chosen_with_a_star_and_the_model_server_is_asked_for_the_list(tmp_path: Path) -> None:
    with Client(models=("*",)) as client:
        session = json_of(client.request("POST", "/sessions", {"model": "whatever"}))["id"]
        assert post(client, session, message="Hi")["model"] == "whatever"
        client.model.listed = ["llama", "qwen"]
        assert json_of(client.get("/models")) == {
            "models": ["gpt-3.5-turbo", "llama", "qwen"],
            "default": "gpt-3.5-turbo",
        }
        client.model.listed = []
        assert len(json_of(client.get("/models"))["models"]) == 3  # it is asked once a minute


def test_a_model_server_that_lists_nothing_costs_the_list_alone() -> None:
    with Client(models=("*",)) as client:
        assert json_of(client.get("/models"))["models"] == ["gpt-3.5-turbo"]


def test_models_are_listed_by_name(anywhere: Client) -> None:
    assert json_of(anywhere.get("/models")) == {"models": ["gpt-3.5-turbo", "other"], "default": "gpt-3.5-turbo"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"model": ""},
        {"model": 7},
        {"model": "x" * 201},
        {"system_prompt": "é" * 32769},
        {"system_prompt": []},
        {"title": "x" * 201},
        {"title": {}},
    ],
)
def test_settings_of_another_form_are_refused(anywhere: Client, body: dict[str, Any]) -> None:
    response = anywhere.request("PATCH", f"/sessions/{anywhere.create()}", body)
    assert error_of(response) == (400, "invalid_request")


def test_instructions_may_have_64_kib(anywhere: Client) -> None:
    assert patch(anywhere, anywhere.create(), system_prompt="é" * 32768)["system_prompt"] == "é" * 32768


def test_what_another_model_left_is_not_sent_to_this_one() -> None:
    with ModelServer(default=SERVERS["DeepSeek"]()) as model, Client(model=model, models=("other",)) as client:
        session = client.create()
        post(client, session, message="What is 1+1?")
        post(client, session, message="What is 1+1?", model="other")
        sent = model.requests[-1]["messages"]
        [foreign] = {message.get("reasoning_content") for message in sent[:2] if message.get("tool_calls")}
        assert not foreign
