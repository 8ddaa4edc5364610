"""Turns that go on, as tests ask for them."""

from __future__ import annotations

from typing import Any

from tests.support.model_server import tool_call

GO_ON = {"continue": True}


def brief(messages: list[dict[str, Any]]) -> list[tuple[str, str, str | None]]:
    return [(one["role"], one["content"], one.get("reason")) for one in messages]


BOOK = tool_call("book", {"name": "Ann"}, text="Let me see. ")
