"""How pictures and files are served: as what they are, to whoever may read the session, and nothing in them runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.test import TestResponse

from tests.support.client import Client, error_of
from tests.support.pictures import PDF, file, image, png, sha256

HTML = b"<script>alert(1)</script>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client() as client:
        yield client


def served(client: Client, part: dict[str, str], data: bytes) -> TestResponse:
    session = client.create()
    assert client.request("POST", f"/sessions/{session}/run", {"message": [part]}).status_code == 200
    return client.get(f"/sessions/{session}/files/{sha256(data)}")


@pytest.mark.parametrize("data", [png(), PDF, HTML, SVG], ids=["png", "pdf", "html", "svg"])
def test_nothing_in_it_runs(client: Client, data: bytes) -> None:
    response = served(client, image(data) if data == png() else file(data), data)
    assert response.data == data
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"


@pytest.mark.parametrize("data, label", [(HTML, "text/html"), (SVG, "image/svg+xml"), (b"{}", "application/json")])
def test_text_of_every_kind_is_plain_text_and_an_attachment(client: Client, data: bytes, label: str) -> None:
    response = served(client, file(data, media_type=label), data)
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.headers["Content-Disposition"] == "attachment"


def test_a_pdf_is_an_attachment(client: Client) -> None:
    response = served(client, file(PDF), PDF)
    assert (response.headers["Content-Type"], response.headers["Content-Disposition"]) == (
        "application/pdf",
        "attachment",
    )


def test_a_picture_is_shown(client: Client) -> None:
    response = served(client, image(png()), png())
    assert response.headers["Content-Type"] == "image/png"
    assert "Content-Disposition" not in response.headers


def test_it_is_kept_by_the_caller_alone_and_for_ever(client: Client) -> None:
    response = served(client, image(png()), png())
    assert response.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    again = client.get(response.request.path, If_None_Match=response.headers["ETag"])
    assert (again.status_code, again.data) == (304, b"")


@pytest.mark.parametrize(
    "name", ["0" * 64, "0", sha256(png()).upper(), "..%2f..%2fetc%2fpasswd", f"{sha256(png())}.new"]
)
def test_what_is_not_there_is_404(client: Client, name: str) -> None:
    session = client.create()
    client.request("POST", f"/sessions/{session}/run", {"message": [image(png())]})
    assert error_of(client.get(f"/sessions/{session}/files/{name}")) == (404, "not_found")


def test_a_session_that_is_not_there_is_said_first(client: Client) -> None:
    assert error_of(client.get(f"/sessions/session-x/files/{'0' * 64}")) == (404, "session_not_found")


def test_another_user_cannot_read_it(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("ann one\nbob two\n")
    with Client(users=str(users), headers={"Authorization": "Bearer one"}) as client:
        session = client.create()
        client.request("POST", f"/sessions/{session}/run", {"message": [image(png())]})
        path = f"/sessions/{session}/files/{sha256(png())}"
        assert client.get(path).status_code == 200
        assert client.get(path, Authorization="Bearer two").status_code == 404
        assert client.get(path, Authorization="Bearer three").status_code == 401


def test_a_page_of_another_origin_gets_none(client: Client) -> None:
    response = served(client, image(png()), png())
    foreign = client.get(response.request.path, Origin="https://example.org")
    assert error_of(foreign) == (403, "forbidden_origin")
