"""A conversation as a Markdown document, read back by a Markdown parser."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from session_core.web.markdown import render_markdown
from tests.support.client import Client, json_of
from tests.support.model_server import answer, frames, tool_calls

NASTY = [
    "```\n# Broken out\n```",
    "````\n~~~\n```python\nx\n",
    "\n\n---\n# Heading\n> quote\n<script>alert(1)</script>",
    "</pre></code>\n[link]: http://evil.example\n[link]",
    "`" * 40,
    "    indented\n\ttab",
    "\r# carriage\r\n## both",
    "",
    " ",
]


def read(document: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The headings of a document, and its code blocks with their languages. Nothing else may have a meaning."""
    tokens = MarkdownIt("commonmark").parse(document)
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    blocks = [(token.info, token.content) for token in tokens if token.type == "fence"]
    kinds = {token.type for token in tokens}
    assert kinds <= {
        *("heading_open", "heading_close", "inline", "fence", "paragraph_open", "paragraph_close"),
        *("bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close"),
    }
    inner = {child.type for token in tokens if token.type == "inline" for child in token.children or ()}
    assert inner <= {"text", "text_special", "softbreak"}
    return headings, blocks


def normal(text: str) -> str:
    """A text as CommonMark reads it: with its own line ends, and without the NUL."""
    return re.sub("\r\n?", "\n", text).replace("\0", "\ufffd")


TEXT = st.text() | st.sampled_from(NASTY) | st.lists(st.sampled_from([*"`~#>-\n\r\t ", "a", "```"])).map("".join)


@given(TEXT, TEXT, TEXT, TEXT, st.sampled_from(["user", "assistant", "tool", "narrator"]))
@settings(max_examples=400, deadline=None)
def test_nothing_in_a_message_breaks_out_of_its_place(
    text: str, reasoning: str, name: str, title: str, role: str
) -> None:
    calls = [{"function": {"name": f"f{name}", "arguments": text}}]
    message: dict[str, Any] = {
        "role": role,
        "content": text,
        "reasoning": reasoning,
        "created_at": "2026",
        "name": name,
    }
    other = {"role": "user", "content": "The next.", "created_at": "2027"}
    document = render_markdown(title, {"Model": name}, [message | {"tool_calls": calls}, other])
    headings, blocks = read(document)
    assert len(headings) == 3
    expected = [*([reasoning] if reasoning else []), *([text] if text else []), text, "The next."]
    assert [content for _, content in blocks] == [normal(one + "\n") for one in expected]


def test_the_document_has_roles_tool_calls_reasoning_and_times() -> None:
    thinking: dict[str, Any] = {"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}}]}
    said: dict[str, Any] = {"choices": [{"delta": {"content": "It is *2*."}, "finish_reason": "stop"}]}
    with Client(tool_calls(("calculator", {"expression": "1+1"})), frames(thinking, said)) as client:
        session = client.create()
        client.run(session, "How much?")
        client.request("PATCH", f"/sessions/{session}", {"title": "Sums # 1"})
        response = client.get(f"/sessions/{session}", Accept="text/markdown")
        times = [message["created_at"] for message in client.messages(session)]
    assert response.headers["Content-Type"] == "text/markdown; charset=utf-8"
    headings, blocks = read(response.text)
    plain = [re.sub(r"\\(.)", r"\1", heading) for heading in headings]
    assert plain[0] == "Sums # 1"
    roles = ["User", "Assistant", "Tool result of calculator", "Assistant"]
    assert plain[1:] == [f"{role}, {time}" for role, time in zip(roles, times, strict=True)]
    assert blocks == [
        ("text", "How much?\n"),
        ("json", '{"expression": "1+1"}\n'),
        ("text", "2\n"),
        ("text", "Hm.\n"),
        ("markdown", "It is *2*.\n"),
    ]


def test_reasoning_that_is_not_shown_is_not_in_the_document() -> None:
    thinking: dict[str, Any] = {"choices": [{"index": 0, "delta": {"reasoning_content": "Secret."}}]}
    said: dict[str, Any] = {"choices": [{"delta": {"content": "2"}, "finish_reason": "stop"}]}
    with Client(frames(thinking, said), show_reasoning=False) as client:
        session = client.create()
        client.run(session)
        assert "Secret" not in client.get(f"/sessions/{session}", Accept="text/markdown").text


@pytest.mark.parametrize(
    "accept", ["", "*/*", "application/json", "text/html", "application/json, text/markdown;q=0.9"]
)
def test_json_is_given_where_markdown_is_not_preferred(accept: str) -> None:
    with Client(answer("OK")) as client:
        response = client.get(f"/sessions/{client.create()}", Accept=accept)
        assert json_of(response)["messages"] == []
