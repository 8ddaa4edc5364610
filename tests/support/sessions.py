"""Sessions that people edit, as tests ask for them."""

from __future__ import annotations

from typing import Any

from tests.support.client import Client, json_of


def post(client: Client, session: str, how: str = "run", **body: Any) -> Any:
    """A turn by its body. Gives the answer to `run`, or the events."""
    response = client.request("POST", f"/sessions/{session}/{how}", body)
    assert response.status_code == 200, response.text
    return json_of(response)["message"] if how == "run" else response.text


def asked(client: Client, number: int = -1) -> list[tuple[str, str]]:
    """Role and text of the messages in one request to the model."""
    return [(message["role"], message["content"]) for message in client.model.requests[number]["messages"]]


def texts(client: Client, session: str, query: str = "") -> list[str]:
    return [message["content"] for message in json_of(client.get(f"/sessions/{session}{query}"))["messages"]]


def patch(client: Client, session: str, **settings: Any) -> Any:
    response = client.request("PATCH", f"/sessions/{session}", settings)
    assert response.status_code == 200, response.text
    return json_of(response)
