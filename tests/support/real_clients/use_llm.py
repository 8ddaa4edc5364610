"""The library behind the command `llm`, which calls tools by itself."""

from __future__ import annotations

import llm
from lines import serve, weather
from llm.default_plugins.openai_models import Chat


class Conversation:
    """A conversation."""

    def __init__(self, url: str, session: str | None, stream: bool) -> None:
        headers = {"X-Session-Id": session} if session else {}
        model = Chat("here", model_name="gpt-3.5-turbo", api_base=url, headers=headers, supports_tools=True)
        model.key = "none"
        self._conversation: llm.Conversation = model.conversation()
        self._stream = stream

    def ask(self, text: str) -> str:
        return str(self._conversation.chain(text, tools=[weather], stream=self._stream).text())


serve(Conversation)
