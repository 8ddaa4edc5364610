"""How pictures and files are served: as what they are, to whoever may read the session, and nothing in them runs."""

from __future__ import annotations

import io
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.test import TestResponse

from session_core.stores.files import FileStorage
from tests.support.client import Client, error_of, json_of
from tests.support.pictures import PDF, encoded, file, image, png, sha256, text

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


# --- a conversation with its pictures and files ---


@pytest.fixture
def session(client: Client) -> str:
    session = client.create()
    message = [text("What?"), image(png(), name="a [dot].png"), file(b"a,b\n", name="t.csv", media_type="text/csv")]
    assert client.request("POST", f"/sessions/{session}/run", {"message": message}).status_code == 200
    return session


def test_an_export_with_data_is_imported_with_all(client: Client, session: str) -> None:
    export = json_of(client.get(f"/sessions/{session}?files=true"))
    assert export["messages"][0]["content"][1]["data"] == encoded(png())
    response = client.request("POST", "/sessions", {"messages": export["messages"]})
    assert response.status_code == 201, response.text
    copy = json_of(response)["id"]
    assert client.messages(copy)[0]["content"] == client.messages(session)[0]["content"]
    assert client.get(f"/sessions/{copy}/files/{sha256(png())}").data == png()


def test_an_export_with_data_has_all_else_as_without(client: Client, session: str) -> None:
    export, plain = (json_of(client.get(f"/sessions/{session}{query}")) for query in ("?files=true", ""))
    for part in export["messages"][0]["content"]:
        part.pop("data", None)
    assert export == plain


def test_an_empty_session_is_exported_too(client: Client) -> None:
    session = client.create()
    assert json_of(client.get(f"/sessions/{session}?files=true")) == json_of(client.get(f"/sessions/{session}"))


def test_the_document_links_to_a_folder_beside_it(client: Client, session: str) -> None:
    response = client.get(f"/sessions/{session}", Accept="application/zip")
    assert response.headers["Content-Disposition"] == f"attachment; filename={session}.zip"
    with zipfile.ZipFile(io.BytesIO(response.data)) as archive:
        document = archive.read("conversation.md").decode()
        linked = re.findall(r"\]\((files/[^)]+)\)", document)
        assert linked == [f"files/{sha256(png())}.png", f"files/{sha256(b'a,b' + bytes([10]))}.txt"]
        assert [archive.read(name) for name in linked] == [png(), b"a,b\n"]
    assert document == client.get(f"/sessions/{session}", Accept="text/markdown").text
    assert r"![a \[dot\]\.png](" in document


def test_a_picture_that_is_missing_costs_itself_alone(tmp_path: Path) -> None:
    with Client(storage=FileStorage.open(str(tmp_path))) as client:
        session = client.create()
        client.request("POST", f"/sessions/{session}/run", {"message": [text("What?"), image(png())]})
        shutil.rmtree(tmp_path / f".{session}.files")
        assert "data" not in json_of(client.get(f"/sessions/{session}?files=true"))["messages"][0]["content"][1]
        assert client.get(f"/sessions/{session}", Accept="application/zip").status_code == 200
        assert client.run(session, "Go on").status_code == 200
        assert "[image, image/png, " in client.model.requests[-1]["messages"][0]["content"]


def test_a_picture_that_is_gone_is_kept_when_it_is_sent_again(tmp_path: Path) -> None:
    with Client(storage=FileStorage.open(str(tmp_path))) as client:
        session = client.create()
        client.request("POST", f"/sessions/{session}/run", {"message": [image(png())]})
        shutil.rmtree(tmp_path / f".{session}.files")
        client.request("POST", f"/sessions/{session}/run", {"message": [image(png())]})
        assert client.get(f"/sessions/{session}/files/{sha256(png())}").data == png()
