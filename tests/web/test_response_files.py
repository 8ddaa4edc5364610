"""Pictures and files in responses and conversations."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Client, error_of, json_of, storages
from tests.support.pictures import png
from tests.support.responses import check_item, checked

PATH = "/v1/responses"
PNG = png()
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
TEXT = "data:text/csv;base64," + base64.b64encode(b"a,b\n1,2\n").decode()
QUESTION = {"type": "input_text", "text": "What is this?"}
PICTURE = {"type": "input_image", "image_url": URL}


@pytest.fixture(params=["memory", "files"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    with Client(storage=storages(tmp_path)[request.param](), timeout=20.0) as client:
        yield client


def ask(client: Client, *parts: Any, **body: Any) -> dict[str, Any]:
    given = [{"role": "user", "content": list(parts)}]
    return checked(client.request("POST", PATH, {"input": given, **body}))


def sent_urls(client: Client) -> list[str]:
    found = client.model.requests[-1]["messages"]
    parts = [part for one in found if isinstance(one["content"], list) for part in one["content"]]
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


@pytest.mark.parametrize("store", [True, False])
def test_a_picture_reaches_the_model(client: Client, store: bool) -> None:
    ask(client, QUESTION, PICTURE, store=store)
    assert sent_urls(client) == [URL]


def test_a_picture_is_kept_and_shown_at_an_address_of_this_server(client: Client) -> None:
    response = ask(client, QUESTION, PICTURE)
    (item,) = json_of(client.get(f"{PATH}/{response['id']}/input_items"))["data"]
    check_item(item)
    address = item["content"][1]["image_url"]
    assert client.get(address.removeprefix("http://localhost")).data == PNG
    ask(client, {"type": "input_image", "image_url": address}, previous_response_id=response["id"])
    assert sent_urls(client) == [URL, URL]


@pytest.mark.parametrize("store", [True, False])
def test_a_picture_goes_with_a_branch(client: Client, store: bool) -> None:
    response = ask(client, QUESTION, PICTURE)
    ask(client, QUESTION, previous_response_id=response["id"])
    ask(client, QUESTION, previous_response_id=response["id"], store=store)
    assert sent_urls(client) == [URL]


def test_a_file_of_text_reaches_the_model_with_its_name(client: Client) -> None:
    response = ask(client, QUESTION, {"type": "input_file", "filename": "table.csv", "file_data": TEXT})
    assert "table.csv" in str(client.model.requests[-1]["messages"])
    assert "1,2" in str(client.model.requests[-1]["messages"])
    (item,) = json_of(client.get(f"{PATH}/{response['id']}/input_items"))["data"]
    check_item(item)


def test_a_conversation_may_be_filled_with_pictures(client: Client) -> None:
    item = {"role": "user", "content": [QUESTION, PICTURE]}
    made = json_of(client.request("POST", "/v1/conversations", {"items": [item]}))
    client.request("POST", f"/v1/conversations/{made['id']}/items", {"items": [item]})
    ask(client, QUESTION, conversation=made["id"])
    assert sent_urls(client) == [URL, URL]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_image", "image_url": "http://127.0.0.1/picture.png"},
        {"type": "input_image", "file_id": "file-1"},
        {"type": "input_file", "file_url": "http://127.0.0.1/a.pdf"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
        {"type": "input_audio", "input_audio": {}},
    ],
)
def test_what_is_no_picture_and_no_file_is_refused(client: Client, part: dict[str, Any]) -> None:
    given = [{"role": "user", "content": [QUESTION, part]}]
    assert error_of(client.request("POST", PATH, {"input": given})) == (400, "invalid_request")
    assert json_of(client.get("/sessions"))["sessions"] == []
