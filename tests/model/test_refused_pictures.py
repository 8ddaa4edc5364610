"""A model server that takes no pictures, or no PDF, refuses once; then a word stands in their place."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.support.client import Client
from tests.support.model_server import ReplyTo, answer, status
from tests.support.pictures import PDF, data_url, file, image, png, text

# How servers say that a model takes none.
NEVER: dict[str, tuple[int, str]] = {
    "OpenAI": (400, "Invalid content type. image_url is only supported by certain models."),
    "vLLM": (400, "At most 0 image(s) may be provided in one prompt."),
    "vLLM without": (400, "some-model is not a multimodal model"),
    "llama.cpp": (500, "image input is not supported - hint: you may need to provide the mmproj"),
    "OpenRouter": (404, "No endpoints found that support image input"),
    "DeepSeek": (422, "messages[0]: unknown variant `image_url`, expected `text`"),
    "Groq": (400, "messages[0].content must be a string"),
    "Mistral": (400, "Image input is not enabled for this model"),
    "Ollama": (400, "this model is missing data required for image input"),
    "a proxy": (415, "images are not supported here"),
}
# How they say that they cannot take this one.
THIS_ONE: dict[str, tuple[int, str]] = {
    "OpenAI": (400, "You uploaded an unsupported image. Please make sure your image is valid."),
    "Anthropic": (400, "Could not process image"),
    "Gemini": (400, "Unable to process input image. Please retry or report."),
    "a limit": (400, "image exceeds 5 MB maximum: the image is too large"),
}


def refusing(code: int, words: str, kind: str = "image_url") -> ReplyTo:
    """Answers what has no picture, and refuses what has one."""

    def reply(request: dict[str, Any]) -> Any:
        contents = [message["content"] for message in request["messages"] if isinstance(message["content"], list)]
        has_one = any(part["type"] == kind for content in contents for part in content)
        chosen = status(code, {"error": {"message": words}}) if has_one else answer("OK")
        return chosen(request)

    return reply


def ask(client: Client, session: str, *parts: Any) -> int:
    response = client.request("POST", f"/sessions/{session}/run", {"message": list(parts)})
    return response.status_code


def kinds(client: Client) -> list[str]:
    """Whether pictures went out with each request."""
    return ["picture" if "data:image" in str(request) else "word" for request in client.model.requests]


@pytest.mark.parametrize("server", NEVER)
def test_it_is_asked_again_with_a_word_and_remembered(server: str, caplog: pytest.LogCaptureFixture) -> None:
    with Client(default=refusing(*NEVER[server])) as client, caplog.at_level(logging.WARNING):
        session = client.create()
        assert ask(client, session, text("What is this?"), image(png())) == 200
        assert client.run(session, "And now?").status_code == 200
        assert kinds(client) == ["picture", "word", "word"]
        assert client.model.requests[1]["messages"][-1]["content"] == (
            f"What is this?\n\n[image, image/png, {len(png())} bytes]"
        )
    (warning,) = [record.getMessage() for record in caplog.records if "pictures" in record.getMessage()]
    assert "is asked without pictures for 10 minutes" in warning


@pytest.mark.parametrize("server", THIS_ONE)
def test_what_is_said_of_one_picture_is_not_remembered(server: str, caplog: pytest.LogCaptureFixture) -> None:
    with Client(default=refusing(*THIS_ONE[server])) as client, caplog.at_level(logging.WARNING):
        assert ask(client, client.create(), text("What is this?"), image(png())) == 200
        assert kinds(client) == ["picture", "word"]
        client.model.default = answer("OK")
        assert ask(client, client.create(), image(png(1))) == 200
        assert kinds(client)[-1] == "picture"
    assert any("is asked without pictures this time" in record.getMessage() for record in caplog.records)


def test_a_server_that_has_taken_one_goes_on_getting_them(caplog: pytest.LogCaptureFixture) -> None:
    with Client(default=answer("OK")) as client:
        session = client.create()
        ask(client, session, image(png()))
        client.model.then(status(400, {"error": {"message": "images are not supported"}}))
        assert client.run(session, "And now?").status_code == 200
        assert client.run(session, "And then?").status_code == 200
        assert kinds(client) == ["picture", "picture", "word", "picture"]


def test_a_pdf_is_refused_apart_from_pictures() -> None:
    with Client(default=refusing(400, "file parts are not supported", "file")) as client:
        session = client.create()
        assert ask(client, session, text("Read"), image(png()), file(PDF, name="x.pdf")) == 200
        parts = client.model.requests[-1]["messages"][-1]["content"]
        assert parts[1:] == [
            {"type": "image_url", "image_url": {"url": data_url(png())}},
            text(f"[file x.pdf, application/pdf, {len(PDF)} bytes]"),
        ]


def test_the_same_refusal_without_pictures_is_the_answer() -> None:
    refusal = status(400, {"error": {"message": "images are not supported"}})
    with Client(default=refusal) as client:
        session = client.create()
        assert ask(client, session, image(png())) == 502
        assert kinds(client)[:2] == ["picture", "word"]
        client.model.default = answer("OK")
        assert client.run(session, "Hello").status_code == 200  # the session stays usable
        assert client.model.requests[-1]["messages"][-1]["content"] == "Hello"


@pytest.mark.parametrize("code", [401, 403, 429, 500, 503])
def test_an_error_that_says_nothing_of_pictures_keeps_them(code: int) -> None:
    with Client(default=status(code, {"error": {"message": "no"}}, {"Retry-After": "0"})) as client:
        ask(client, client.create(), image(png()))
        assert set(kinds(client)) == {"picture"}
