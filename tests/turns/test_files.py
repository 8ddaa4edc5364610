"""Pictures and files in messages: kept beside the session, named by the message, sent to the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from werkzeug.test import TestResponse

from session_core.data.file_kinds import MAX_FILES
from session_core.web.hardened_waitress import MAX_BODY_BYTES
from storage import Storage
from tests.support import pictures
from tests.support.client import Client, json_of
from tests.support.cost import cost
from tests.support.model_server import answer, status
from tests.support.pictures import PDF, data_url, encoded, file, image, png, sha256, stored, text

LARGE = 3 << 20  # bytes of a picture that no other body could hold


def ask(client: Client, session: str, message: Any, **more: Any) -> TestResponse:
    return client.request("POST", f"/sessions/{session}/run", {"message": message, **more})


def content(client: Client, session: str, index: int = 0) -> Any:
    return client.messages(session)[index]["content"]


def sent(client: Client, index: int = -1) -> Any:
    """The content of the last message that went to the model."""
    return client.model.requests[index]["messages"][-1]["content"]


def refused(response: TestResponse, status: int = 400) -> str:
    assert response.status_code == status, response.text
    said: str = json_of(response)["error"]
    return said


def get(client: Client, session: str, data: bytes) -> TestResponse:
    return client.get(f"/sessions/{session}/files/{sha256(data)}")


def test_a_picture_is_stored_beside_the_session_and_named_in_the_message(anywhere: Client) -> None:
    session = anywhere.create()
    assert ask(anywhere, session, [text("What is this?"), image(png())]).status_code == 200
    assert content(anywhere, session) == [text("What is this?"), stored(png())]
    assert get(anywhere, session, png()).data == png()


def test_the_model_gets_a_picture_as_a_data_url(anywhere: Client) -> None:
    ask(anywhere, anywhere.create(), [text("What is this?"), image(png())])
    assert sent(anywhere) == [
        text("What is this?"),
        {"type": "image_url", "image_url": {"url": data_url(png())}},
    ]


def test_the_model_gets_a_text_file_as_text_with_its_name(anywhere: Client) -> None:
    ask(anywhere, anywhere.create(), [text("Read this."), file(b"a,b\n1,2\n", name="t.csv", media_type="text/csv")])
    assert sent(anywhere) == "Read this.\n\n[file t.csv, text/csv, 8 bytes]\n\na,b\n1,2\n"


def test_the_model_gets_a_pdf_as_a_file(anywhere: Client) -> None:
    ask(anywhere, anywhere.create(), [file(PDF, name="paper.pdf")])
    part = {"filename": "paper.pdf", "file_data": data_url(PDF, "application/pdf")}
    assert sent(anywhere) == [{"type": "file", "file": part}]


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (pictures.JPEG, "image/jpeg"),
        (png(), "image/png"),
        (pictures.GIF, "image/gif"),
        (pictures.WEBP, "image/webp"),
    ],
)
def test_the_first_bytes_say_what_a_picture_is(client: Client, data: bytes, media_type: str) -> None:
    session = client.create()
    ask(client, session, [image(data)])
    assert content(client, session) == [stored(data, media_type)]
    assert get(client, session, data).content_type == media_type


@pytest.mark.parametrize("label", ["image/png", "IMAGE/PNG", "application/octet-stream", "", None])
def test_a_label_that_fits_or_says_nothing_is_taken(client: Client, label: str | None) -> None:
    session = client.create()
    assert ask(client, session, [image(png(), media_type=label)]).status_code == 200
    assert content(client, session) == [stored(png())]


@pytest.mark.parametrize("label", ["text/html", "image/svg+xml", "application/json", "application/x-yaml"])
def test_text_of_any_kind_is_a_file(client: Client, label: str) -> None:
    session = client.create()
    assert ask(client, session, [file(b"<svg/>", media_type=label)]).status_code == 200
    assert content(client, session) == [stored(b"<svg/>", label)]


def test_parts_without_a_picture_are_a_text(client: Client) -> None:
    session = client.create()
    ask(client, session, [text("Hello "), text("there")])
    assert content(client, session) == "Hello there"
    assert sent(client) == "Hello there"


def test_a_picture_alone_is_a_message(client: Client) -> None:
    session = client.create()
    assert ask(client, session, [image(png())]).status_code == 200
    assert json_of(client.get("/sessions?details=true"))["sessions"][0]["title"] is None


def test_the_title_is_made_of_the_text(client: Client) -> None:
    session = client.create()
    ask(client, session, [image(png()), text("What is this?")])
    assert json_of(client.get("/sessions?details=true"))["sessions"][0]["title"] == "What is this?"


BAD: dict[str, tuple[list[Any], int, str]] = {
    "no base64": ([{"type": "image", "data": "###"}], 400, "message[0] is not in base64."),
    "white space in base64": (
        [{"type": "image", "data": encoded(png())[:8] + "\n" + encoded(png())[8:]}],
        400,
        "bas",
    ),
    "base64 without its end": ([{"type": "image", "data": encoded(png()).rstrip("=") + "A"}], 400, "base64"),
    "nothing": ([image(b"")], 400, "is neither a picture"),
    "other bytes": ([image(b"\xfe\xed\xfa\xce")], 400, "is neither a picture"),
    "a zip": ([file(b"PK\x03\x04\xff")], 400, "nor text in UTF-8"),
    "text with zeros": ([file(b"a\0b")], 400, "nor text in UTF-8"),
    "half a character": ([file("é".encode()[:1])], 400, "nor text in UTF-8"),
    "another picture": ([image(png(), media_type="image/jpeg")], 400, "has the media type 'image/jpeg'"),
    "a picture as text": ([file(png(), media_type="text/plain")], 400, "its bytes are image/png"),
    "text as a picture": ([file(b"Hello", media_type="image/png")], 400, "its bytes are text/plain"),
    "text as a film": ([file(b"Hello", media_type="video/mp4")], 400, "its bytes are text/plain"),
    "a file that is a picture": ([file(png())], 400, "message[0] is no file"),
    "a picture that is a file": ([image(PDF)], 400, "message[0] is no image"),
    "an address": ([{"type": "image", "url": "http://127.0.0.1/x.png"}], 400, "no address is fetched"),
    "OpenAI's address": (
        [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}],
        400,
        "no address is fetched",
    ),
    "an address as data": ([{"type": "image", "data": "http://127.0.0.1/x.png"}], 400, "is not in base64"),
    "a hash that is not there": ([{"type": "image", "sha256": "0" * 64}], 400, "There is no picture or file 000"),
    "a hash that is none": ([{"type": "image", "sha256": "../../x"}], 400, "must have its data"),
    "no part": (["Hello"], 400, "message[0] must be a part"),
    "another part": ([{"type": "input_audio", "data": ""}], 400, "message[0] must be a part"),
    "a text that is none": ([{"type": "text", "text": 1}], 400, "message[0] must be a part"),
    "too many": ([image(png())] * (MAX_FILES + 1), 400, f"more than {MAX_FILES} pictures"),
    "blank": ([text(" ")], 400, "must not be blank"),
    "no parts": ([], 400, "must not be blank"),
    "too large": ([image(png(size=5000))], 413, "message[0] is larger than 4000 bytes."),
    "too large in a large body": ([image(png(size=2 << 20))], 413, "is larger than"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_bad_is_refused_and_leaves_nothing(bad: str, tmp_path: Any) -> None:
    from session_core.stores.files import FileStorage

    message, status, words = BAD[bad]
    with Client(storage=FileStorage.open(str(tmp_path)), max_file_bytes=4000) as client:
        session = client.create()
        assert words in refused(ask(client, session, message), status)
        assert client.messages(session) == []
        assert [path.name for path in tmp_path.iterdir()] == [f"{session}.json"]
        assert not client.model.requests


def test_the_largest_picture_is_taken(client: Client) -> None:
    with Client(max_file_bytes=5000) as small:
        session = small.create()
        data = png(size=5000)
        data = data[:-4] + bytes(5000 - len(data)) + data[-4:]
        assert len(data) == 5000
        assert ask(small, session, [image(data)]).status_code == 200
        assert refused(ask(small, session, [image(data + b"\0")]), 413)


def test_a_body_holds_four_of_the_largest(anywhere: Client) -> None:
    session = anywhere.create()
    large = [png(shade, LARGE) for shade in range(4)]
    assert ask(anywhere, session, [text("four"), *map(image, large)]).status_code == 200
    assert content(anywhere, session) == [text("four"), *map(stored, large)]
    assert get(anywhere, session, large[3]).data == large[3]
    assert [part["type"] for part in sent(anywhere)] == ["text", *["image_url"] * 4]


def test_a_large_body_has_no_more_text_than_any_other(client: Client) -> None:
    words = "a b" * (MAX_BODY_BYTES // 3)
    response = ask(client, client.create(), [text(words), image(png(size=LARGE))])
    assert refused(response, 413) == "The request is larger than 1 MiB without its pictures and files."


def test_what_is_in_base64_and_no_picture_makes_no_body_larger(client: Client) -> None:
    response = ask(client, client.create(), [image(png())], model=None, other="a" * MAX_BODY_BYTES)
    assert "without its pictures" in refused(response, 413)


def test_a_large_body_may_have_escapes_and_long_texts(client: Client) -> None:
    session, data = client.create(), png(size=LARGE)
    body = json.dumps({"message": [text('"\\' * 3000), text("word " * 3000), image(data)]}).replace("/", "\\/")
    response = client.request("POST", f"/sessions/{session}/run", body.encode())
    assert response.status_code == 200, response.text
    assert content(client, session) == [text('"\\' * 3000), text("word " * 3000), stored(data)]


@pytest.mark.parametrize("path", ["/cancel", ""])
def test_no_other_route_takes_a_large_body(client: Client, path: str) -> None:
    session = client.create()
    method = "POST" if path else "PATCH"
    body = {"title": "a" * (MAX_BODY_BYTES + 1)}
    assert client.request(method, f"/sessions/{session}{path}", body).status_code == 413


def test_a_larger_body_than_four_of_the_largest_is_refused(client: Client) -> None:
    with Client(max_file_bytes=4000) as small:
        response = ask(small, small.create(), [image(png(size=4 << 20))])
        assert refused(response, 413) == "The request is larger than 1 MiB."


def test_what_the_session_has_is_named_by_its_hash_alone(anywhere: Client) -> None:
    session = anywhere.create()
    ask(anywhere, session, [image(png(), name="x.png")])
    again = [text("Once more"), {"type": "image", "sha256": sha256(png())}]
    assert ask(anywhere, session, again).status_code == 200
    assert content(anywhere, session, 2) == [text("Once more"), stored(png(), name="x.png")]
    assert sent(anywhere)[1] == {"type": "image_url", "image_url": {"url": data_url(png())}}


def test_another_session_has_no_part_in_a_picture(anywhere: Client) -> None:
    ask(anywhere, anywhere.create(), [image(png())])
    other = anywhere.create()
    assert get(anywhere, other, png()).status_code == 404
    assert refused(ask(anywhere, other, [{"type": "image", "sha256": sha256(png())}]))


def test_the_same_key_and_the_same_parts_are_the_same_turn(anywhere: Client) -> None:
    session, key = anywhere.create(), {"Idempotency-Key": "k"}
    path, body = f"/sessions/{session}/run", {"message": [text("What?"), image(png())]}
    first = anywhere.request("POST", path, body, key)
    again = anywhere.request("POST", path, body, key)
    assert json_of(again) == json_of(first)
    assert again.headers["Idempotency-Replayed"] == "true"
    other = {"message": [text("What?"), image(png(1))]}
    assert anywhere.request("POST", path, other, key).status_code == 422
    assert anywhere.request("POST", path, {"message": "What?"}, key).status_code == 422


def test_another_try_has_the_same_picture(anywhere: Client) -> None:
    session = anywhere.create()
    ask(anywhere, session, [text("What?"), image(png())])
    question = anywhere.messages(session)[0]["id"]
    response = anywhere.request("POST", f"/sessions/{session}/run", {"replaces": question})
    assert response.status_code == 200, response.text
    assert content(anywhere, session) == [text("What?"), stored(png())]


def test_an_edit_may_keep_the_picture_by_its_hash(anywhere: Client) -> None:
    session = anywhere.create()
    ask(anywhere, session, [text("What?"), image(png())])
    edit = [text("Who?"), {"type": "image", "sha256": sha256(png())}]
    ask(anywhere, session, edit, replaces=anywhere.messages(session)[0]["id"])
    assert content(anywhere, session) == [text("Who?"), stored(png())]


def test_an_earlier_picture_is_part_of_the_beginning_that_stays(anywhere: Client) -> None:
    session = anywhere.create()
    ask(anywhere, session, [text("What?"), image(png())])
    ask(anywhere, session, "And now?")
    first, second = (request["messages"] for request in anywhere.model.requests[-2:])
    assert json.dumps(second[: len(first)]) == json.dumps(first)


def test_a_failed_turn_is_tried_again_with_its_picture(anywhere: Client) -> None:
    session, key = anywhere.create(), {"Idempotency-Key": "k"}
    path, body = f"/sessions/{session}/run", {"message": [image(png())]}
    anywhere.model.then(status(401, {}))
    assert anywhere.request("POST", path, body, key).status_code == 502
    assert anywhere.request("POST", path, body, key).status_code == 200
    assert sent(anywhere)[0]["type"] == "image_url"
    assert len(anywhere.messages(session)) == 2


def test_a_copy_shares_the_pictures_and_keeps_them(anywhere: Client) -> None:
    session = anywhere.create()
    ask(anywhere, session, [text("What?"), image(png())])
    copy = json_of(anywhere.request("POST", "/sessions", {"copy_of": session}))["id"]
    assert anywhere.request("DELETE", f"/sessions/{session}").status_code == 200
    assert get(anywhere, session, png()).status_code == 404
    assert get(anywhere, copy, png()).data == png()
    ask(anywhere, copy, "Go on")
    assert anywhere.model.requests[-1]["messages"][0]["content"][1]["type"] == "image_url"


def test_a_copy_of_the_beginning_has_its_pictures_alone(anywhere: Client) -> None:
    session = anywhere.create()
    ask(anywhere, session, [image(png(1))])
    ask(anywhere, session, [image(png(2))])
    until = anywhere.messages(session)[1]["id"]
    copy = json_of(anywhere.request("POST", "/sessions", {"copy_of": session, "until": until}))["id"]
    assert get(anywhere, copy, png(1)).status_code == 200
    assert get(anywhere, copy, png(2)).status_code == 404


def test_a_deleted_session_has_no_pictures(store: Callable[[], Storage]) -> None:
    storage = store()
    with Client(storage=storage, default=answer("OK")) as client:
        session = client.create()
        ask(client, session, [image(png())])
        client.request("DELETE", f"/sessions/{session}")
        assert get(client, session, png()).status_code == 404
        assert storage.files.read(session, sha256(png())) is None


def test_a_conversation_with_pictures_is_imported(anywhere: Client) -> None:
    messages = [
        {"role": "user", "content": [text("What?"), image(png())]},
        {"role": "assistant", "content": "A dot."},
    ]
    response = anywhere.request("POST", "/sessions", {"messages": messages})
    assert response.status_code == 201, response.text
    session = json_of(response)["id"]
    assert content(anywhere, session) == [text("What?"), stored(png())]
    assert get(anywhere, session, png()).data == png()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "sha256": sha256(png()), "media_type": "image/png", "size": 9},
        {"type": "image", "data": "#"},
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}},
    ],
)
def test_an_import_needs_the_data(client: Client, part: dict[str, Any]) -> None:
    before = json_of(client.get("/sessions"))
    body = {"messages": [{"role": "user", "content": [text("What?"), part]}]}
    assert "messages[0].content" in refused(client.request("POST", "/sessions", body))
    assert json_of(client.get("/sessions")) == before


def test_a_picture_waits_for_nothing_that_is_refused(client: Client, shared: Client) -> None:
    response = ask(client, "session-nobody", [image(png())])
    assert response.status_code == 404


@pytest.mark.parametrize("piece", ['"', '\\"', "\\", '"a",', '"' + "A" * 2000 + '",', "A", "é"], ids=repr)
def test_a_large_body_of_whatever_kind_is_refused_at_once(client: Client, piece: str) -> None:
    body = b'{"message":["' + piece.encode() * ((16 << 20) // len(piece.encode())) + b'"]}'
    session = client.create()
    took = cost(lambda: client.request("POST", f"/sessions/{session}/run", body), 1)
    assert took < 1.6  # a tenth of a second for a megabyte
    assert client.messages(session) == []
