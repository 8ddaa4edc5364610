"""`GET /openapi.json` by itself, and against the routes and limits of the server."""

import configparser
import json
import re

import pytest
from openapi_spec_validator import validate

from session_core.data.session import TITLE_LENGTH
from session_core.web.errors import ERRORS
from session_core.web.page_files import PAGE_FILE_ROUTES
from tests.support.client import Client
from tests.support.openapi import ALL_CASES, DOCUMENT, OPERATIONS, _validator, check
from tests.support.server import ROOT


def test_the_document_is_valid_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    validate(DOCUMENT)


def test_the_server_sends_the_document() -> None:
    with Client() as client:
        assert json.loads(client.get("/openapi.json").data) == DOCUMENT


def test_the_document_has_the_version_of_the_package() -> None:
    package = configparser.ConfigParser()
    package.read(ROOT / "setup.cfg", encoding="utf-8")
    assert DOCUMENT["info"]["version"] == package["metadata"]["version"]


def test_every_route_of_the_app_is_an_operation_and_every_operation_a_route() -> None:
    with Client(metrics=True) as client:
        routes = {
            (method, re.sub(r"<(?:path:|string\(.*\):)?(\w+)>", r"{\1}", rule.rule))
            for rule in client.app.url_map.iter_rules()
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        }
    files = {("GET", route.replace("<version>", "{version}")) for route in PAGE_FILE_ROUTES}
    assert routes - files == {(method, path) for method, path, _ in OPERATIONS.values()}


def test_only_operations_that_are_open_to_all_do_without_the_token() -> None:
    assert {name for name, (_, _, operation) in OPERATIONS.items() if operation.get("security") == []} == {
        "health",
        "ready",
        "page",
        "openapi",
    }


def test_every_error_code_is_in_the_document() -> None:
    assert DOCUMENT["components"]["schemas"]["ErrorCode"]["enum"] == list(ERRORS)


def test_every_error_code_can_come_from_an_operation() -> None:
    told = {code for case in ALL_CASES for code in [case[2]] if code}
    assert told | {"method_not_allowed"} == set(ERRORS)


def test_every_error_code_is_told_under_its_status() -> None:
    wrong = [case for case in ALL_CASES if case[2] and ERRORS[case[2]][0] != case[1]]
    assert not wrong


@pytest.mark.parametrize("code", DOCUMENT["components"]["schemas"]["TurnErrorCode"]["enum"])
def test_an_error_event_has_the_status_of_its_code(code: str) -> None:
    event = {
        "type": "error",
        "id": "evt-1-1",
        "created_at": "2026-01-31T12:34:56Z",
        "data": {"error": "It failed.", "code": code, "status": ERRORS[code][0]},
    }
    check(event, "/components/schemas/Event")
    event["data"]["status"] = 418
    assert not _validator("/components/schemas/Event").is_valid(event)


def test_a_title_has_the_length_that_the_document_says() -> None:
    assert DOCUMENT["components"]["schemas"]["NewTitle"]["maxLength"] == TITLE_LENGTH
    with Client() as client:
        path = f"/sessions/{client.create()}"
        assert client.request("PATCH", path, {"title": "é" * TITLE_LENGTH}).status_code == 200
        assert client.request("PATCH", path, {"title": "é" * (TITLE_LENGTH + 1)}).status_code == 400


@pytest.mark.parametrize("operation", ["list_sessions", "get_session"])
def test_a_limit_has_the_bounds_that_the_document_says(operation: str) -> None:
    limit = OPERATIONS[operation][2]["parameters"][0]["schema"]
    with Client() as client:
        path = OPERATIONS[operation][1].format(session_id=client.create())
        for number, expected in (("minimum", 200), ("maximum", 200)):
            assert client.get(f"{path}?limit={limit[number]}").status_code == expected
        assert client.get(f"{path}?limit={limit['minimum'] - 1}").status_code == 400
        assert client.get(f"{path}?limit={limit['maximum'] + 1}").status_code == 400


@pytest.mark.parametrize("key", ["k", "~" * 255, "", "~" * 256, "two words", "é"])
def test_an_idempotency_key_has_the_form_that_the_document_says(key: str) -> None:
    fits = re.fullmatch(DOCUMENT["components"]["parameters"]["IdempotencyKey"]["schema"]["pattern"], key)
    with Client() as client:
        assert client.run(client.create(), Idempotency_Key=key).status_code == (200 if fits else 400)
